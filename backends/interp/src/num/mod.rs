//! Arithmetic as pure functions over values: no CPU, no memory, no dispatch. The instruction
//! handlers call these; they give the same bits on every host.
//!
//! # Which function for which instruction
//!
//! | instructions | function |
//! |---|---|
//! | ADDSS/SD, SUB, MUL, DIV, SQRT, MIN, MAX, CMPSx, (U)COMISx, ROUNDSx | [`sse::scalar`]`::{add, sub, mul, div, sqrt, min, max, cmp, comi, round}::<f32 or f64>` on encodings |
//! | VF(N)MADD/SUB scalar | [`sse::scalar::fma`] |
//! | ADDPS/PD ... ROUNDPD, HADD, HSUB, ADDSUB, DPPS, DPPD, packed FMA | [`sse::packed`], by mnemonic; `v` prefix for 256 bits (128-bit VEX forms use the plain ones) |
//! | CVT* , VCVTPH2PS, VCVTPS2PH | [`sse::convert`] |
//! | RCPSS/PS, RSQRTSS/PS | [`sse::approx`] |
//! | FADD, FSUB(R), FMUL, FDIV(R), FSQRT | [`soft`]`::{add, sub, mul, div, sqrt}` on [`soft::F80`], [`soft::Env::from_cw`]; an m32 or m64 operand by [`soft::widen`], an integer one by [`soft::from_i32`] |
//! | FLD/FST m32/m64 | [`soft::convert()`]; FLD/FSTP m80 are plain copies |
//! | FILD, FIST(P), FISTTP | [`soft::from_i64`], [`soft::to_i16`], [`soft::to_i32`], [`soft::to_i64`] |
//! | FCOM*, FUCOM*, FTST, FCOMI, FUCOMI | [`soft::compare()`] (quiet for the U forms), then [`soft::Relation::x87_codes`] or [`soft::Relation::eflags`]; FXAM: [`soft::fxam`] |
//! | FRNDINT, FPREM, FPREM1, FSCALE, FXTRACT, FBLD, FBSTP | [`soft::convert::frndint`], [`soft::rem`], [`soft::bcd`] |
//! | FSIN, FCOS, FPTAN, FPATAN, F2XM1, FYL2X, FYL2XP1, FLDPI and so on | [`x87math`] |
//! | integer SIMD: MMX, SSE2 to SSE4.2, AVX2 | [`simd`]`::{arith, shift, shuffle}` by mnemonic, [`simd::permute`] for what crosses halves, [`simd::mmx`] for 64-bit forms, [`simd::string`] for PCMPxSTRx |
//! | AES, PCLMULQDQ, SHA, CRC32, PDEP, PEXT | [`crypto`] |
//!
//! # How flags come back
//!
//! SSE functions update [`sse::Mxcsr`] and return `Err(`[`sse::Unmasked`]`)` when #XM is due.
//! x87 functions accumulate into [`soft::Env::flags`], whose bits (IE to PE, C0 to C3) have the
//! status word's places: after the operation the handler calls [`soft::Env::suppressed`]; if
//! true it writes no result (compares set their condition codes all the same); it then clears C1 and ors the flags into the status word (and
//! sets ES and B if [`soft::Env::trapped`]). Stores to memory also write nothing if an
//! unmasked overflow, underflow or invalid occurred. The x87 stack and its faults are the
//! handlers' own.

#![cfg_attr(not(test), forbid(unsafe_code))]
// Lane loops index several arrays at once; zipped iterators would hide that and vectorise worse.
#![allow(clippy::needless_range_loop)]

pub mod crypto;
pub mod simd;
pub mod soft;
pub mod sse;
pub mod vec;
pub mod x87math;

#[cfg(test)]
mod tests;
