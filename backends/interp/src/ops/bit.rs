//! Bit tests, scans, counts, BMI1, BMI2, ADX, CRC32.

use super::operand::{Any, Mem, RegB, Src, offset};
use super::{by_wide, by_width, ops};
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::flags::{CF, OF, SF, ZF};
use crate::num::crypto;
use crate::op::{Exec, Flow, Handler, OpPtr, run};
use crate::regs::Int;
use godwit_state::model::Feature;
use iced_x86::Mnemonic as M;

/// What happens to the bit.
trait Change {
    const WRITES: bool;
    fn apply(v: u64, bit: u64) -> u64;
}
struct Test;
struct Set;
struct Reset;
struct Complement;
impl Change for Test {
    const WRITES: bool = false;
    fn apply(v: u64, _bit: u64) -> u64 {
        v
    }
}
impl Change for Set {
    const WRITES: bool = true;
    fn apply(v: u64, bit: u64) -> u64 {
        v | bit
    }
}
impl Change for Reset {
    const WRITES: bool = true;
    fn apply(v: u64, bit: u64) -> u64 {
        v & !bit
    }
}
impl Change for Complement {
    const WRITES: bool = true;
    fn apply(v: u64, bit: u64) -> u64 {
        v ^ bit
    }
}

/// The bit's number: register `b`, or the immediate if `c` says so.
#[inline(always)]
fn number<T: Int>(cpu: &Cpu, op: OpPtr) -> T {
    if op.c & 1 != 0 { T::new(op.imm) } else { T::get(cpu, op.b) }
}

fn bit_reg<T: Int, C: Change>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let n = number::<T>(cpu, op).z() & u64::from(T::BITS - 1);
    let v = T::get(cpu, op.a).z();
    cpu.lazy.set_carry(v >> n & 1 != 0);
    if C::WRITES {
        T::set(cpu, op.a, T::new(C::apply(v, 1 << n)));
    }
    crate::op::next(cpu, op)
}

/// With a register for the bit's number, the word may lie anywhere around the address.
fn bit_mem<T: Int, C: Change>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let n = number::<T>(cpu, op);
        let at = if op.c & 1 != 0 {
            Any::at(cpu, op, T::BYTES as u64, C::WRITES)?
        } else {
            let words = n.s() >> T::BITS.trailing_zeros();
            let bytes = (words as u64).wrapping_mul(T::BYTES as u64);
            let at = offset(cpu, op).wrapping_add(bytes) & super::operand::address_mask(op.asize);
            cpu.linear(usize::from(op.seg), at, T::BYTES as u64, C::WRITES)?
        };
        let bit = 1u64 << (n.z() & u64::from(T::BITS - 1));
        let old = if !C::WRITES {
            cpu.read::<T>(at)?
        } else if op.c & 2 != 0 {
            cpu.locked::<T, T>(at, |v| (T::new(C::apply(v.z(), bit)), v))?
        } else {
            let mut was = n;
            cpu.rmw::<T>(at, |_, v| {
                was = v;
                T::new(C::apply(v.z(), bit))
            })?;
            was
        };
        cpu.lazy.set_carry(old.z() & bit != 0);
        Ok(())
    })
}

fn lower_bit<C: Change>(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    if l.is_reg(1) {
        l.op.b = l.number(1);
    } else {
        l.op.imm = l.i.immediate(1);
        l.op.c = 1;
    }
    if l.locked {
        l.op.c |= 2;
    }
    if l.is_reg(0) {
        l.op.a = l.number(0);
        return Some(by_wide!(w, T => bit_reg::<T, C>));
    }
    Some(by_wide!(w, T => bit_mem::<T, C>))
}

fn flag(on: bool, f: u64) -> u64 {
    if on { f } else { 0 }
}

ops! {
    direct fn bsf<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        cpu.lazy.logic(T::new(v));
        // An empty source leaves the destination.
        let r = if v != 0 { T::new(u64::from(v.trailing_zeros())) } else { T::get(cpu, op.a) };
        if v != 0 || T::BITS != 32 { T::set(cpu, op.a, r) }
    }

    direct fn bsr<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        cpu.lazy.logic(T::new(v));
        let r = if v != 0 { T::new(u64::from(63 - v.leading_zeros())) } else { T::get(cpu, op.a) };
        if v != 0 || T::BITS != 32 { T::set(cpu, op.a, r) }
    }

    fn tzcnt<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        let r = v.trailing_zeros().min(T::BITS);
        cpu.lazy.change(CF | ZF, flag(v == 0, CF) | flag(r == 0, ZF));
        T::set(cpu, op.a, T::new(u64::from(r)))
    }

    fn lzcnt<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        let r = v.leading_zeros() - (64 - T::BITS);
        cpu.lazy.change(CF | ZF, flag(v == 0, CF) | flag(r == 0, ZF));
        T::set(cpu, op.a, T::new(u64::from(r)))
    }

    direct fn popcnt<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        cpu.lazy.put(flag(v == 0, ZF));
        T::set(cpu, op.a, T::new(u64::from(v.count_ones())))
    }

    direct fn andn<T: Int, S: Src>(cpu, op) {
        let b = S::load::<T>(cpu, op)?.z();
        let r = T::new(!T::get(cpu, op.c).z() & b);
        cpu.lazy.logic(r);
        T::set(cpu, op.a, r)
    }

    direct fn bextr<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        let control = T::get(cpu, op.c).z();
        let (start, len) = (control & 0xff, control >> 8 & 0xff);
        let v = if start >= 64 { 0 } else { v >> start };
        let r = T::new(if len >= 64 { v } else { v & ((1 << len) - 1) });
        cpu.lazy.put(flag(r.z() == 0, ZF));
        T::set(cpu, op.a, r)
    }

    direct fn blsi<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        let r = T::new(v & v.wrapping_neg());
        cpu.lazy.put(flag(v != 0, CF) | flag(r.z() == 0, ZF) | flag(r.z() & T::TOP != 0, SF));
        T::set(cpu, op.a, r)
    }

    direct fn blsmsk<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        let r = T::new(v ^ v.wrapping_sub(1));
        cpu.lazy.put(flag(v == 0, CF) | flag(r.z() & T::TOP != 0, SF));
        T::set(cpu, op.a, r)
    }

    direct fn blsr<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        let r = T::new(v & v.wrapping_sub(1));
        cpu.lazy.put(flag(v == 0, CF) | flag(r.z() == 0, ZF) | flag(r.z() & T::TOP != 0, SF));
        T::set(cpu, op.a, r)
    }

    direct fn bzhi<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        let n = T::get(cpu, op.c).z() & 0xff;
        let over = n >= u64::from(T::BITS);
        let r = T::new(if over { v } else { v & ((1 << n) - 1) });
        cpu.lazy.put(flag(over, CF) | flag(r.z() == 0, ZF) | flag(r.z() & T::TOP != 0, SF));
        T::set(cpu, op.a, r)
    }

    fn pdep<T: Int, S: Src>(cpu, op) {
        let mask = S::load::<T>(cpu, op)?.z();
        let r = crypto::pdep(T::get(cpu, op.c).z(), mask);
        T::set(cpu, op.a, T::new(r))
    }

    fn pext<T: Int, S: Src>(cpu, op) {
        let mask = S::load::<T>(cpu, op)?.z();
        let r = crypto::pext(T::get(cpu, op.c).z(), mask);
        T::set(cpu, op.a, T::new(r))
    }

    fn adcx<T: Int, S: Src>(cpu, op) { add_with::<T, S>(cpu, op, CF)? }
    fn adox<T: Int, S: Src>(cpu, op) { add_with::<T, S>(cpu, op, OF)? }

    fn crc32<T: Int, S: Src>(cpu, op) {
        let v = S::load::<T>(cpu, op)?.z();
        let crc = crypto::crc32(u32::get(cpu, op.a), v, T::BYTES);
        u32::set(cpu, op.a, crc)
    }
}

fn add_with<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr, which: u64) -> Exec {
    let b = S::load::<T>(cpu, op)?.z();
    let a = T::get(cpu, op.a).z();
    let carry = u128::from(cpu.lazy.bits() & which != 0);
    let sum = u128::from(a) + u128::from(b) + carry;
    cpu.lazy.change(which, flag(sum >> T::BITS != 0, which));
    T::set(cpu, op.a, T::new(sum as u64));
    Ok(())
}

macro_rules! two {
    ($l:ident, $h:ident, $dest:expr, $src:expr, $w:expr) => {{
        $l.op.a = $l.number($dest);
        if $l.is_reg($src) {
            $l.op.b = $l.number($src);
            by_wide!($w, T => $h::<T, RegB>)
        } else {
            by_wide!($w, T => $h::<T, Mem<Any>>)
        }
    }};
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    Some(match l.i.mnemonic() {
        M::Bt => return lower_bit::<Test>(l),
        M::Bts => return lower_bit::<Set>(l),
        M::Btr => return lower_bit::<Reset>(l),
        M::Btc => return lower_bit::<Complement>(l),
        M::Bsf => two!(l, bsf, 0, 1, w),
        M::Bsr => two!(l, bsr, 0, 1, w),
        // REP BSF and REP BSR where the model has no TZCNT and LZCNT; see also `decode`.
        M::Tzcnt if !l.features.has(Feature::BMI1) => two!(l, bsf, 0, 1, w),
        M::Lzcnt if !l.features.has(Feature::LZCNT) => two!(l, bsr, 0, 1, w),
        M::Tzcnt => two!(l, tzcnt, 0, 1, w),
        M::Lzcnt => two!(l, lzcnt, 0, 1, w),
        M::Popcnt => two!(l, popcnt, 0, 1, w),
        M::Andn => {
            l.op.c = l.number(1);
            two!(l, andn, 0, 2, w)
        }
        M::Bextr => {
            l.op.c = l.number(2);
            two!(l, bextr, 0, 1, w)
        }
        M::Bzhi => {
            l.op.c = l.number(2);
            two!(l, bzhi, 0, 1, w)
        }
        M::Pdep => {
            l.op.c = l.number(1);
            two!(l, pdep, 0, 2, w)
        }
        M::Pext => {
            l.op.c = l.number(1);
            two!(l, pext, 0, 2, w)
        }
        M::Blsi => two!(l, blsi, 0, 1, w),
        M::Blsmsk => two!(l, blsmsk, 0, 1, w),
        M::Blsr => two!(l, blsr, 0, 1, w),
        M::Adcx => two!(l, adcx, 0, 1, w),
        M::Adox => two!(l, adox, 0, 1, w),
        M::Crc32 => {
            l.op.a = l.number(0);
            let w = l.width(1);
            if l.is_reg(1) {
                l.op.b = l.number(1);
                by_width!(w, T => crc32::<T, RegB>)
            } else {
                by_width!(w, T => crc32::<T, Mem<Any>>)
            }
        }
        _ => return None,
    })
}
