//! The interpreter backend: x86-64 on any host.

pub mod num;
