//! The silicon as oracle: the same operation is run natively and by this module's functions,
//! and result and flags are compared bit for bit.

mod native;
mod sse_native;
mod values;
