//! AVX2 and AVX operations that cross the 128-bit halves.

use super::super::vec::{V128, V256};
use super::shuffle;

/// VPERMD, VPERMPS: 32-bit lanes of `a` chosen by the low three bits of each index.
#[inline]
#[must_use]
pub fn vpermd(index: V256, a: V256) -> V256 {
    let a = a.u32s();
    V256::from_u32s(index.u32s().map(|i| a[(i & 7) as usize]))
}

/// VPERMQ, VPERMPD by immediate.
#[inline]
#[must_use]
pub fn vpermq(a: V256, imm: u8) -> V256 {
    let a = a.u64s();
    let f = |i: u32| a[usize::from(imm >> (2 * i) & 3)];
    V256::from_u64s([f(0), f(1), f(2), f(3)])
}

/// VPERM2F128, VPERM2I128.
#[inline]
#[must_use]
pub fn vperm2f128(a: V256, b: V256, imm: u8) -> V256 {
    let f = |c: u8| {
        if c & 8 != 0 {
            return V128::ZERO;
        }
        match c & 3 {
            0 => a.lo,
            1 => a.hi,
            2 => b.lo,
            _ => b.hi,
        }
    };
    V256::new(f(imm), f(imm >> 4))
}

/// VINSERTF128, VINSERTI128.
#[inline]
#[must_use]
pub fn vinsertf128(a: V256, b: V128, imm: u8) -> V256 {
    if imm & 1 == 0 { V256::new(b, a.hi) } else { V256::new(a.lo, b) }
}

/// VEXTRACTF128, VEXTRACTI128.
#[inline]
#[must_use]
pub fn vextractf128(a: V256, imm: u8) -> V128 {
    if imm & 1 == 0 { a.lo } else { a.hi }
}

/// VPBROADCASTB
#[inline]
#[must_use]
pub fn vpbroadcastb(v: u8) -> V128 {
    V128::from_u8s([v; 16])
}

/// VPBROADCASTW
#[inline]
#[must_use]
pub fn vpbroadcastw(v: u16) -> V128 {
    V128::from_u16s([v; 8])
}

/// VPBROADCASTD, VBROADCASTSS
#[inline]
#[must_use]
pub fn vpbroadcastd(v: u32) -> V128 {
    V128::from_u32s([v; 4])
}

/// VPBROADCASTQ, VBROADCASTSD
#[inline]
#[must_use]
pub fn vpbroadcastq(v: u64) -> V128 {
    V128::from_u64s([v; 2])
}

/// PMOVSX and PMOVZX to 256 bits: `extend` is the 128-bit function, `used` the source bytes
/// one half consumes (8, 4 or 2).
#[inline]
#[must_use]
pub fn extend(a: V128, used: u8, extend: impl Fn(V128) -> V128) -> V256 {
    V256::new(extend(a), extend(super::shift::psrldq(a, used)))
}

/// VMPSADBW on 256 bits.
#[inline]
#[must_use]
pub fn vmpsadbw(a: V256, b: V256, imm: u8) -> V256 {
    use super::arith::mpsadbw;
    V256::new(mpsadbw(a.lo, b.lo, imm), mpsadbw(a.hi, b.hi, imm >> 3))
}

/// VSHUFPD on 256 bits.
#[inline]
#[must_use]
pub fn vshufpd(a: V256, b: V256, imm: u8) -> V256 {
    V256::new(shuffle::shufpd(a.lo, b.lo, imm), shuffle::shufpd(a.hi, b.hi, imm >> 2))
}

/// VPERMILPD by immediate on 256 bits.
#[inline]
#[must_use]
pub fn vpermilpd_imm(a: V256, imm: u8) -> V256 {
    vshufpd(a, a, imm)
}

/// VBLENDPS, VPBLENDD on 256 bits.
#[inline]
#[must_use]
pub fn vblendps(a: V256, b: V256, imm: u8) -> V256 {
    V256::new(shuffle::blendps(a.lo, b.lo, imm), shuffle::blendps(a.hi, b.hi, imm >> 4))
}

/// VBLENDPD on 256 bits.
#[inline]
#[must_use]
pub fn vblendpd(a: V256, b: V256, imm: u8) -> V256 {
    V256::new(shuffle::blendpd(a.lo, b.lo, imm), shuffle::blendpd(a.hi, b.hi, imm >> 2))
}

/// VPTEST on 256 bits: (ZF, CF).
#[inline]
#[must_use]
pub fn vptest(a: V256, b: V256) -> (bool, bool) {
    both(a, b, super::arith::ptest)
}

/// VTESTPS on 256 bits: (ZF, CF).
#[inline]
#[must_use]
pub fn vtestps(a: V256, b: V256) -> (bool, bool) {
    both(a, b, super::arith::vtestps)
}

/// VTESTPD on 256 bits: (ZF, CF).
#[inline]
#[must_use]
pub fn vtestpd(a: V256, b: V256) -> (bool, bool) {
    both(a, b, super::arith::vtestpd)
}

#[inline(always)]
fn both(a: V256, b: V256, f: impl Fn(V128, V128) -> (bool, bool)) -> (bool, bool) {
    let ((z0, c0), (z1, c1)) = (f(a.lo, b.lo), f(a.hi, b.hi));
    (z0 && z1, c0 && c1)
}

/// VPMOVMSKB on 256 bits.
#[inline]
#[must_use]
pub fn vpmovmskb(a: V256) -> u32 {
    super::arith::pmovmskb(a.lo) | super::arith::pmovmskb(a.hi) << 16
}

/// VPBLENDVB, VBLENDVPS, VBLENDVPD on 256 bits, by the 128-bit function.
#[inline]
#[must_use]
pub fn blendv(a: V256, b: V256, mask: V256, f: impl Fn(V128, V128, V128) -> V128) -> V256 {
    V256::new(f(a.lo, b.lo, mask.lo), f(a.hi, b.hi, mask.hi))
}
