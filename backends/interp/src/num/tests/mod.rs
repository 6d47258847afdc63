//! Tests of the arithmetic. On x86-64 the silicon is the oracle: the same operation is run
//! natively and by this module's functions, and result and flags are compared bit for bit
//! (`*_native`, `simd`). Every host replays the recorded [`corpus`].

// Rows of a table of operations read best when all have the same form.
#![allow(clippy::redundant_closure)]

mod corpus;
#[cfg(target_arch = "x86_64")]
mod native;
mod simd;
#[cfg(target_arch = "x86_64")]
mod sse_native;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod sse_traps;
mod values;
#[cfg(target_arch = "x86_64")]
mod x87_native;
#[cfg(target_arch = "x86_64")]
mod x87math_native;
