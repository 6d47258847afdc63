//! MMX forms. Lanewise operations are the 128-bit ones on a zero-extended register; those
//! that move lanes are arranged so that the 128-bit function does the work too.

use super::super::vec::V128;
use super::{arith, shuffle};

#[inline(always)]
fn wide(a: u64) -> V128 {
    V128::from_halves(a, 0)
}

/// Any operation that works lane by lane (PADDx, PCMPx, PMULx, PAVGx, PMADDWD, PSADBW, PSIGNx,
/// logic and so on).
#[inline(always)]
#[must_use]
pub fn lanes(a: u64, b: u64, f: impl Fn(V128, V128) -> V128) -> u64 {
    f(wide(a), wide(b)).low()
}

/// Any lane by lane operation of one operand (PABSx, shifts by count).
#[inline(always)]
#[must_use]
pub fn map(a: u64, f: impl Fn(V128) -> V128) -> u64 {
    f(wide(a)).low()
}

/// Packs and horizontal operations (PACKxx, PHADDx, PHSUBx): lanes of `a`, then of `b`.
#[inline(always)]
#[must_use]
pub fn joined(a: u64, b: u64, f: impl Fn(V128, V128) -> V128) -> u64 {
    let ab = V128::from_halves(a, b);
    f(ab, ab).low()
}

/// PUNPCKLxx, with the 128-bit PUNPCKLxx.
#[inline(always)]
#[must_use]
pub fn unpack_low(a: u64, b: u64, f: impl Fn(V128, V128) -> V128) -> u64 {
    f(wide(a), wide(b)).low()
}

/// PUNPCKHxx, with the 128-bit PUNPCK**L**xx.
#[inline(always)]
#[must_use]
pub fn unpack_high(a: u64, b: u64, f: impl Fn(V128, V128) -> V128) -> u64 {
    f(wide(a), wide(b)).high()
}

/// PSHUFB: three index bits.
#[inline(always)]
#[must_use]
pub fn pshufb(a: u64, mask: u64) -> u64 {
    shuffle::pshufb(wide(a), wide(mask & 0x8787_8787_8787_8787)).low()
}

/// PSHUFW
#[inline(always)]
#[must_use]
pub fn pshufw(a: u64, imm: u8) -> u64 {
    shuffle::pshuflw(wide(a), imm).low()
}

/// PALIGNR
#[inline(always)]
#[must_use]
pub fn palignr(a: u64, b: u64, imm: u8) -> u64 {
    if imm < 16 { (V128::from_halves(b, a).to_u128() >> (u32::from(imm) * 8)) as u64 } else { 0 }
}

/// PMOVMSKB
#[inline(always)]
#[must_use]
pub fn pmovmskb(a: u64) -> u32 {
    arith::pmovmskb(wide(a))
}
