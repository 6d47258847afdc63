//! SSE4.2's string comparisons: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM.

use super::super::vec::V128;
use super::{arith, shuffle};

/// Outcome of a string comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Match {
    /// Result bit of each element of the second operand, after polarity.
    pub bits: u16,
    /// CF, ZF, SF and OF at their places in RFLAGS; AF and PF are cleared.
    pub eflags: u32,
    imm: u8,
}

/// The element format an immediate asks for.
#[derive(Clone, Copy)]
struct Elements {
    words: bool,
    signed: bool,
}

impl Elements {
    fn of(imm: u8) -> Elements {
        Elements { words: imm & 1 != 0, signed: imm & 2 != 0 }
    }

    fn count(self) -> usize {
        if self.words { 8 } else { 16 }
    }

    /// A mask of lanes as a bit set.
    fn bits(self, mask: V128) -> u32 {
        arith::pmovmskb(if self.words { shuffle::packsswb(mask, V128::ZERO) } else { mask })
    }

    fn equal(self, a: V128, b: V128) -> u32 {
        self.bits(if self.words { arith::pcmpeqw(a, b) } else { arith::pcmpeqb(a, b) })
    }

    fn greater(self, a: V128, b: V128) -> u32 {
        let flip = match (self.signed, self.words) {
            (true, _) => V128::ZERO,
            (false, true) => V128::from_u16s([0x8000; 8]),
            (false, false) => V128::from_u8s([0x80; 16]),
        };
        let (a, b) = (arith::pxor(a, flip), arith::pxor(b, flip));
        self.bits(if self.words { arith::pcmpgtw(a, b) } else { arith::pcmpgtb(a, b) })
    }

    /// Element `i` in every lane.
    fn splat(self, a: V128, i: usize) -> V128 {
        if self.words { V128::from_u16s([a.u16_lane(i); 8]) } else { V128::from_u8s([a.u8_lane(i); 16]) }
    }
}

/// Explicit lengths (PCMPESTRx): `a_len` and `b_len` are EAX and EDX (or RAX and RDX with
/// REX.W) sign-extended; their absolute values count, saturated to the element count.
#[must_use]
pub fn explicit(a: V128, a_len: i64, b: V128, b_len: i64, imm: u8) -> Match {
    let n = Elements::of(imm).count() as u64;
    let len = |l: i64| l.unsigned_abs().min(n) as usize;
    compare(a, len(a_len), b, len(b_len), imm)
}

/// Implicit lengths (PCMPISTRx): strings end at a zero element.
#[must_use]
pub fn implicit(a: V128, b: V128, imm: u8) -> Match {
    let e = Elements::of(imm);
    let len = |v: V128| (e.equal(v, V128::ZERO).trailing_zeros() as usize).min(e.count());
    compare(a, len(a), b, len(b), imm)
}

fn compare(a: V128, a_len: usize, b: V128, b_len: usize, imm: u8) -> Match {
    let e = Elements::of(imm);
    let n = e.count();
    let (a_valid, b_valid) = ((1u32 << a_len) - 1, (1u32 << b_len) - 1);
    let mut res = match imm >> 2 & 3 {
        // Equal any: the element occurs in the set `a`.
        0 => (0..a_len).fold(0, |r, i| r | e.equal(e.splat(a, i), b)) & b_valid,
        // Ranges: pairs of bounds in `a`; an odd last element is no pair.
        1 => {
            let outside = |i: usize| e.greater(e.splat(a, i), b) | e.greater(b, e.splat(a, i + 1));
            (0..a_len / 2).fold(0, |r, i| r | !outside(2 * i)) & b_valid
        }
        // Equal each: both invalid counts as equal, one invalid as different.
        2 => (e.equal(a, b) & a_valid & b_valid) | !(a_valid | b_valid),
        // Equal ordered: `a` occurs here, as far as the register reaches.
        _ => (0..a_len).fold(!0, |r, i| {
            let beyond = !0 << (n - i);
            r & ((e.equal(e.splat(a, i), b) & b_valid) >> i | beyond)
        }),
    };
    res &= (1 << n) - 1;
    let all = (1u32 << n) - 1;
    res = match imm >> 4 & 3 {
        1 => res ^ all,
        3 => res ^ b_valid,
        _ => res,
    };
    let mut eflags = 0;
    if res != 0 {
        eflags |= 1;
    }
    if b_len < n {
        eflags |= 0x40;
    }
    if a_len < n {
        eflags |= 0x80;
    }
    if res & 1 != 0 {
        eflags |= 0x800;
    }
    Match { bits: res as u16, eflags, imm }
}

impl Match {
    /// PCMPxSTRI's ECX: index of the first or last element that matched, or the element
    /// count.
    #[must_use]
    pub fn index(&self) -> u32 {
        if self.bits == 0 {
            return if self.imm & 1 == 0 { 16 } else { 8 };
        }
        if self.imm & 0x40 == 0 { self.bits.trailing_zeros() } else { 15 - self.bits.leading_zeros() }
    }

    /// PCMPxSTRM's XMM0: the bits, or a mask of elements.
    #[must_use]
    pub fn mask(&self) -> V128 {
        let bit = |i: usize| self.bits >> i & 1 != 0;
        if self.imm & 0x40 == 0 {
            V128::from_u64s([u64::from(self.bits), 0])
        } else if self.imm & 1 == 0 {
            V128::from_u8s(core::array::from_fn(|i| if bit(i) { 0xff } else { 0 }))
        } else {
            V128::from_u16s(core::array::from_fn(|i| if bit(i) { 0xffff } else { 0 }))
        }
    }
}
