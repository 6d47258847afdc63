//! Integer SIMD: the lane functions of MMX, SSE2 to SSE4.2 and AVX2, as functions of
//! [`V128`](super::vec::V128) values. AVX2's 256-bit forms are the same functions on both
//! halves ([`V256::zip`](super::vec::V256::zip)) except those of [`permute`]; MMX's 64-bit
//! forms are in [`mmx`]. Loops have fixed trip counts over plain arrays so that the compiler
//! vectorises them.

pub mod arith;
pub mod mmx;
pub mod permute;
pub mod shift;
pub mod shuffle;
pub mod string;
