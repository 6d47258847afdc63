//! SSE4.2's string comparisons: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM.

use super::super::vec::V128;

/// Outcome of a string comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Match {
    /// Result bit of each element of the second operand, after polarity.
    pub bits: u16,
    /// CF, ZF, SF and OF at their places in RFLAGS; AF and PF are cleared.
    pub eflags: u32,
    imm: u8,
}

/// A string operand: its elements and how many are valid.
struct Text {
    v: [i32; 16],
    len: usize,
}

fn text(a: V128, imm: u8) -> Text {
    let mut v = [0i32; 16];
    let len = if imm & 1 == 0 { 16 } else { 8 };
    for (i, v) in v.iter_mut().enumerate().take(len) {
        *v = match imm & 3 {
            0 => i32::from(a.u8_lane(i)),
            1 => i32::from(a.u16_lane(i)),
            2 => i32::from(a.i8_lane(i)),
            _ => i32::from(a.i16_lane(i)),
        };
    }
    Text { v, len }
}

/// Explicit lengths (PCMPESTRx): `a_len` and `b_len` are EAX and EDX (or RAX and RDX with
/// REX.W) sign-extended; their absolute values count, saturated to the element count.
#[must_use]
pub fn explicit(a: V128, a_len: i64, b: V128, b_len: i64, imm: u8) -> Match {
    let (mut x, mut y) = (text(a, imm), text(b, imm));
    x.len = x.len.min(a_len.unsigned_abs().min(16) as usize);
    y.len = y.len.min(b_len.unsigned_abs().min(16) as usize);
    compare(&x, &y, imm)
}

/// Implicit lengths (PCMPISTRx): strings end at a zero element.
#[must_use]
pub fn implicit(a: V128, b: V128, imm: u8) -> Match {
    let (mut x, mut y) = (text(a, imm), text(b, imm));
    for t in [&mut x, &mut y] {
        t.len = t.v[..t.len].iter().position(|&c| c == 0).unwrap_or(t.len);
    }
    compare(&x, &y, imm)
}

fn compare(a: &Text, b: &Text, imm: u8) -> Match {
    let n = if imm & 1 == 0 { 16 } else { 8 };
    let mut res = 0u32;
    for j in 0..n {
        let hit = match imm >> 2 & 3 {
            // Equal any: the element occurs in the set `a`.
            0 => j < b.len && a.v[..a.len].contains(&b.v[j]),
            // Ranges: pairs of bounds in `a`; an odd last element is no pair.
            1 => j < b.len && a.v[..a.len].chunks_exact(2).any(|r| r[0] <= b.v[j] && b.v[j] <= r[1]),
            // Equal each: both invalid counts as equal.
            2 => match (j < a.len, j < b.len) {
                (true, true) => a.v[j] == b.v[j],
                (x, y) => !x && !y,
            },
            // Equal ordered: `a` occurs here, as far as the register reaches.
            _ => (0..a.len.min(n - j)).all(|i| j + i < b.len && a.v[i] == b.v[j + i]),
        };
        res |= u32::from(hit) << j;
    }
    let all = (1u32 << n) - 1;
    let valid = (1u32 << b.len) - 1;
    res = match imm >> 4 & 3 {
        1 => res ^ all,
        3 => res ^ valid,
        _ => res,
    };
    let mut eflags = 0;
    if res != 0 {
        eflags |= 1;
    }
    if b.len < n {
        eflags |= 0x40;
    }
    if a.len < n {
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
