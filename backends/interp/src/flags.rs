//! Arithmetic flags, lazily: an instruction leaves its result, one operand and what it did; whoever reads
//! a flag works it out.

use crate::cpu::Cpu;
use crate::regs::Int;
use std::sync::atomic::Ordering;

/// Carry.
pub(crate) const CF: u64 = 1;
/// Parity of the low byte.
pub(crate) const PF: u64 = 1 << 2;
/// Carry out of bit 3.
pub(crate) const AF: u64 = 1 << 4;
/// Zero.
pub(crate) const ZF: u64 = 1 << 6;
/// Sign.
pub(crate) const SF: u64 = 1 << 7;
/// Single step.
pub(crate) const TF: u64 = 1 << 8;
/// Interrupts enabled.
pub(crate) const IF: u64 = 1 << 9;
/// String direction.
pub(crate) const DF: u64 = 1 << 10;
/// Overflow.
pub(crate) const OF: u64 = 1 << 11;
/// I/O privilege level.
pub(crate) const IOPL: u64 = 3 << 12;
/// Nested task.
pub(crate) const NT: u64 = 1 << 14;
/// Resume: no instruction breakpoint here.
pub(crate) const RF: u64 = 1 << 16;
/// Virtual-8086 mode.
pub(crate) const VM: u64 = 1 << 17;
/// Alignment check, and SMAP override.
pub(crate) const AC: u64 = 1 << 18;
/// Virtual interrupt flag.
pub(crate) const VIF: u64 = 1 << 19;
/// Virtual interrupt pending.
pub(crate) const VIP: u64 = 1 << 20;
/// CPUID is there.
pub(crate) const ID: u64 = 1 << 21;
/// The six arithmetic flags.
pub(crate) const ARITH: u64 = CF | PF | AF | ZF | SF | OF;

/// All that RFLAGS has, but for bit 1.
pub(crate) const ALL: u64 = ARITH | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;

/// What set the flags last: in `op` times four, plus the width's logarithm.
pub(crate) mod kind {
    /// `src` holds the flags themselves; `dst` is zero if ZF is among them.
    pub(crate) const BITS: u32 = 0;
    /// Addition: `dst` result, `src` second operand.
    pub(crate) const ADD: u32 = 1;
    /// Subtraction or comparison: `dst` result, `src` second operand.
    pub(crate) const SUB: u32 = 2;
    /// `dst` result; no carry, no overflow.
    pub(crate) const LOGIC: u32 = 3;
    /// Increment: `dst` result, `src` the carry before.
    pub(crate) const INC: u32 = 4;
    /// Decrement: as INC.
    pub(crate) const DEC: u32 = 5;
    /// With carry or borrow: `dst` result, `src` the vector of carries out of each bit.
    pub(crate) const CARRIES: u32 = 6;
    /// Left shift: `dst` result, `src` the value before the last bit's shift.
    pub(crate) const SHL: u32 = 7;
    /// Right shift: as SHL.
    pub(crate) const SHR: u32 = 8;
    /// Multiplication: `dst` low half, `src` non-zero if the high half matters.
    pub(crate) const MUL: u32 = 9;
}

/// In `op`: carry is not what `kind` says.
const CARRY_GIVEN: u32 = 1 << 8;
/// It is set.
const CARRY: u32 = 1 << 9;

/// Lazy flags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lazy {
    pub dst: u64,
    pub src: u64,
    pub op: u32,
}

impl Lazy {
    /// All six clear.
    pub(crate) const NONE: Lazy = Lazy { dst: ZF, src: 0, op: kind::BITS * 4 };

    #[inline(always)]
    pub(crate) fn set<T: Int>(&mut self, kind: u32, dst: T, src: T) {
        self.dst = dst.z();
        self.src = src.z();
        self.op = kind * 4 + T::LOG;
    }

    #[inline(always)]
    pub(crate) fn logic<T: Int>(&mut self, dst: T) {
        self.dst = dst.z();
        self.op = kind::LOGIC * 4 + T::LOG;
    }

    /// Sets all six flags to those in `bits`.
    #[inline(always)]
    pub(crate) fn put(&mut self, bits: u64) {
        self.dst = !bits & ZF;
        self.src = bits & ARITH;
        self.op = kind::BITS * 4;
    }

    /// Changes only the carry.
    #[inline(always)]
    pub(crate) fn set_carry(&mut self, on: bool) {
        if self.kind() == kind::BITS {
            self.src = self.src & !CF | u64::from(on);
        } else {
            self.op = self.op & (CARRY_GIVEN - 1) | CARRY_GIVEN | if on { CARRY } else { 0 };
        }
    }

    #[inline(always)]
    fn kind(&self) -> u32 {
        self.op >> 2 & 0x3f
    }

    #[inline(always)]
    fn mask(&self) -> u64 {
        u64::MAX >> (64 - (8 << (self.op & 3)))
    }

    #[inline(always)]
    fn top(&self) -> u64 {
        1 << ((8 << (self.op & 3)) - 1)
    }

    #[inline(never)]
    pub(crate) fn cf(&self) -> bool {
        if self.op & CARRY_GIVEN != 0 {
            return self.op & CARRY != 0;
        }
        match self.kind() {
            kind::BITS | kind::INC | kind::DEC => self.src & CF != 0,
            kind::ADD => self.dst < self.src,
            kind::SUB => self.dst.wrapping_add(self.src) & self.mask() < self.src,
            kind::LOGIC => false,
            kind::CARRIES | kind::SHL => self.src & self.top() != 0,
            kind::SHR => self.src & 1 != 0,
            _ => self.src != 0,
        }
    }

    #[inline]
    pub(crate) fn zf(&self) -> bool {
        self.dst == 0
    }

    #[inline]
    pub(crate) fn sf(&self) -> bool {
        if self.kind() == kind::BITS { self.src & SF != 0 } else { self.dst & self.top() != 0 }
    }

    #[inline]
    pub(crate) fn of(&self) -> bool {
        let top = self.top();
        match self.kind() {
            kind::BITS => self.src & OF != 0,
            kind::ADD => {
                let a = self.dst.wrapping_sub(self.src);
                (a ^ self.dst) & (self.src ^ self.dst) & top != 0
            }
            kind::SUB => {
                let a = self.dst.wrapping_add(self.src);
                (a ^ self.src) & (a ^ self.dst) & top != 0
            }
            kind::LOGIC => false,
            kind::INC => self.dst == top,
            kind::DEC => self.dst == top - 1,
            kind::CARRIES => (self.src ^ (self.src << 1)) & top != 0,
            kind::SHL | kind::SHR => (self.src ^ self.dst) & top != 0,
            _ => self.src != 0,
        }
    }

    #[inline]
    pub(crate) fn pf(&self) -> bool {
        if self.kind() == kind::BITS { self.src & PF != 0 } else { (self.dst as u8).count_ones() & 1 == 0 }
    }

    pub(crate) fn af(&self) -> bool {
        match self.kind() {
            kind::BITS => self.src & AF != 0,
            kind::ADD => (self.dst.wrapping_sub(self.src) ^ self.src ^ self.dst) & 16 != 0,
            kind::SUB => (self.dst.wrapping_add(self.src) ^ self.src ^ self.dst) & 16 != 0,
            kind::INC => self.dst & 15 == 0,
            kind::DEC => self.dst & 15 == 15,
            kind::CARRIES => self.src & 8 != 0,
            _ => false,
        }
    }

    /// The six flags.
    pub(crate) fn bits(&self) -> u64 {
        if self.kind() == kind::BITS {
            return self.src & ARITH;
        }
        let bit = |on: bool, mask: u64| if on { mask } else { 0 };
        bit(self.cf(), CF)
            | bit(self.pf(), PF)
            | bit(self.af(), AF)
            | bit(self.zf(), ZF)
            | bit(self.sf(), SF)
            | bit(self.of(), OF)
    }

    /// Changes only the flags in `which`.
    pub(crate) fn change(&mut self, which: u64, to: u64) {
        let bits = self.bits();
        self.put(bits & !which | to & which);
    }

    /// Condition `cc`, numbered as in the opcodes.
    #[inline(never)]
    pub(crate) fn cond(&self, cc: u8) -> bool {
        let value = match cc >> 1 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        value != (cc & 1 != 0)
    }

    /// Carry, if it takes few instructions.
    #[inline(always)]
    pub(crate) fn quick_cf(&self) -> Option<bool> {
        match (self.op >> 2, self.op & 3) {
            (kind::ADD, _) => Some(self.dst < self.src),
            (kind::LOGIC, _) => Some(false),
            (kind::SUB, 3) => Some(self.dst.wrapping_add(self.src) < self.src),
            (kind::BITS | kind::INC | kind::DEC, _) => Some(self.src & CF != 0),
            _ => None,
        }
    }

    /// Condition `CC`, if it takes few instructions: after a comparison, or by the flags themselves.
    #[inline(always)]
    pub(crate) fn quick_cond<const CC: u8>(&self) -> Option<bool> {
        // What decides it where `src` holds the flags; the signed comparisons need two of them.
        let bits = match CC >> 1 {
            0 => OF,
            1 => CF,
            2 => ZF,
            3 => CF | ZF,
            4 => SF,
            5 => PF,
            _ => 0,
        };
        if CC >> 1 == 2 {
            return Some(self.zf() != (CC & 1 != 0));
        }
        if CC >> 1 == 1 && self.op & CARRY_GIVEN != 0 {
            return Some((self.op & CARRY != 0) != (CC & 1 != 0));
        }
        let before = self.dst.wrapping_add(self.src);
        if self.op == kind::SUB * 4 + u64::LOG {
            Some(compare::<u64, CC>(before, self.src))
        } else if self.op >> 2 == kind::SUB && CC >> 1 != 5 {
            // The same at the top of 64 bits.
            let shift = 64 - (8 << (self.op & 3));
            Some(compare::<u64, CC>(before << shift, self.src << shift))
        } else if bits != 0 && self.op == kind::BITS * 4 {
            Some((self.src & bits != 0) != (CC & 1 != 0))
        } else {
            None
        }
    }
}

/// Condition `CC` of a comparison of `a` with `b`, without flags.
#[inline(always)]
pub(crate) fn compare<T: Int, const CC: u8>(a: T, b: T) -> bool {
    let r = T::new(a.z().wrapping_sub(b.z()));
    let value = match CC >> 1 {
        0 => (a.z() ^ b.z()) & (a.z() ^ r.z()) & T::TOP != 0,
        1 => a.z() < b.z(),
        2 => a.z() == b.z(),
        3 => a.z() <= b.z(),
        4 => r.s() < 0,
        5 => (r.z() as u8).count_ones() & 1 == 0,
        6 => a.s() < b.s(),
        _ => a.s() <= b.s(),
    };
    value != (CC & 1 != 0)
}

impl Cpu {
    /// RFLAGS.
    pub(crate) fn rflags(&self) -> u64 {
        self.flags | self.lazy.bits() | 2
    }

    /// Sets RFLAGS; tells the dispatcher to look for interrupts and single steps.
    pub(crate) fn set_rflags(&mut self, value: u64) {
        let old = self.flags;
        self.lazy.put(value);
        self.flags = value & ALL & !ARITH;
        let changed = old ^ self.flags;
        if changed & (TF | VM) != 0 || changed & self.flags & IF != 0 && self.interrupt_waits() {
            self.check_events = true;
        }
        if changed & (TF | AC | VM) != 0 {
            self.update_mode();
        }
    }

    /// An interrupt may be waiting for IF.
    #[inline]
    pub(crate) fn interrupt_waits(&self) -> bool {
        self.interrupts || self.me.attention.load(Ordering::Relaxed) != 0
    }
}
