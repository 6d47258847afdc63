//! The four operand widths, and register access by the decoder's operand numbers.
//!
//! A register operand is its number (0 to 15; up to 17 as an address base), except that an 8-bit one is
//! the byte's offset in the register file, so that AH to BH need no case of their own. The only file that indexes
//! registers unchecked.

use crate::cpu::{Cpu, REGS};

/// An operand width: u8, u16, u32 or u64.
pub(crate) trait Int: Copy + Eq + Ord + std::fmt::Debug + 'static {
    /// Width in bits.
    const BITS: u32;
    /// Width in bytes.
    const BYTES: usize;
    /// 0 to 3.
    const LOG: u32;
    /// The low bits.
    const MASK: u64;
    /// The sign bit.
    const TOP: u64;
    /// From the low bits.
    fn new(v: u64) -> Self;
    /// Zero-extended.
    fn z(self) -> u64;
    /// Sign-extended.
    fn s(self) -> i64;
    /// Rotated left by less than its width.
    fn rol(self, n: u32) -> Self;
    /// A register operand.
    fn get(cpu: &Cpu, r: u8) -> Self;
    /// Writes a register operand: 32 bits clear the upper half, 8 and 16 leave the rest.
    fn set(cpu: &mut Cpu, r: u8, v: Self);
}

#[inline(always)]
fn file(cpu: &Cpu, r: u8) -> &u64 {
    debug_assert!(usize::from(r) < REGS);
    // SAFETY: operand numbers come from the decoder, which gives register numbers below REGS only.
    unsafe { cpu.gpr.get_unchecked(usize::from(r)) }
}

#[inline(always)]
fn file_mut(cpu: &mut Cpu, r: u8) -> &mut u64 {
    debug_assert!(usize::from(r) < REGS);
    // SAFETY: as above.
    unsafe { cpu.gpr.get_unchecked_mut(usize::from(r)) }
}

macro_rules! common {
    ($t:ty, $s:ty, $log:expr) => {
        const BITS: u32 = <$t>::BITS;
        const BYTES: usize = size_of::<$t>();
        const LOG: u32 = $log;
        const MASK: u64 = <$t>::MAX as u64;
        const TOP: u64 = 1 << (<$t>::BITS - 1);
        #[inline(always)]
        fn new(v: u64) -> Self {
            v as $t
        }
        #[inline(always)]
        fn z(self) -> u64 {
            self as u64
        }
        #[inline(always)]
        fn s(self) -> i64 {
            self as $s as i64
        }
        #[inline(always)]
        fn rol(self, n: u32) -> Self {
            self.rotate_left(n)
        }
    };
}

impl Int for u8 {
    common!(u8, i8, 0);
    #[inline(always)]
    fn get(cpu: &Cpu, r: u8) -> u8 {
        debug_assert!(usize::from(r) < REGS * 8);
        // SAFETY: 8-bit operand numbers are offsets below 128 (see `byte_register`).
        unsafe { *cpu.gpr.as_ptr().cast::<u8>().add(usize::from(r)) }
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, r: u8, v: u8) {
        debug_assert!(usize::from(r) < REGS * 8);
        // SAFETY: as above.
        unsafe { *cpu.gpr.as_mut_ptr().cast::<u8>().add(usize::from(r)) = v }
    }
}

impl Int for u16 {
    common!(u16, i16, 1);
    #[inline(always)]
    fn get(cpu: &Cpu, r: u8) -> u16 {
        *file(cpu, r) as u16
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, r: u8, v: u16) {
        let f = file_mut(cpu, r);
        *f = *f & !0xffff | u64::from(v);
    }
}

impl Int for u32 {
    common!(u32, i32, 2);
    #[inline(always)]
    fn get(cpu: &Cpu, r: u8) -> u32 {
        *file(cpu, r) as u32
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, r: u8, v: u32) {
        *file_mut(cpu, r) = u64::from(v);
    }
}

impl Int for u64 {
    common!(u64, i64, 3);
    #[inline(always)]
    fn get(cpu: &Cpu, r: u8) -> u64 {
        *file(cpu, r)
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, r: u8, v: u64) {
        *file_mut(cpu, r) = v;
    }
}

/// Operand number of the low (or second) byte of a register.
pub(crate) fn byte_register(register: u8, high: bool) -> u8 {
    let byte = if cfg!(target_endian = "big") { 7 - u8::from(high) } else { u8::from(high) };
    (register & 15) * 8 + byte
}
