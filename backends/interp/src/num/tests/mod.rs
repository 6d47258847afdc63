//! The silicon as oracle: the same operation is run natively and by this module's functions,
//! and result and flags are compared bit for bit.

// Rows of a table of operations read best when all have the same form.
#![allow(clippy::redundant_closure)]

mod native;
mod simd_native;
mod sse_native;
mod values;
mod x87_native;
mod x87math_native;
