//! Arithmetic as pure functions over values.

#![cfg_attr(not(test), forbid(unsafe_code))]

pub mod soft;
pub mod sse;
pub mod vec;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;
