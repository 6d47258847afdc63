//! Moves, extensions, LEA, exchanges and compare-exchanges.

use super::operand::{Any, Base, Flat, Imm, Index, Mem, Quick, RegA, RegB, Segment, Src, offset};
use super::{by_form, by_long, by_wide, by_width, ops};
use crate::cpu::{Cpu, RAX, RBX, RCX, RDX};
use crate::decode::{Form, Lower};
use crate::flags::{ZF, kind};
use crate::mmu::{locked, ram};
use crate::op::{Abort, Flow, Handler, OpPtr, next, quick, run};
use crate::regs::Int;
use iced_x86::{Mnemonic as M, Register};

fn to_reg<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_to_reg::<T>, {
        let v = S::load::<T>(cpu, op)?;
        T::set(cpu, op.a, v);
        Ok(())
    })
}

#[inline(never)]
fn any_to_reg<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = Any::read::<T>(cpu, op)?;
        T::set(cpu, op.a, v);
        Ok(())
    })
}

fn to_mem<T: Int, S: Src, Q: Quick>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_to_mem::<T, S>, {
        let v = S::load::<T>(cpu, op)?;
        Q::write(cpu, op, v)
    })
}

#[inline(never)]
fn any_to_mem<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = S::load::<T>(cpu, op)?;
        Any::write(cpu, op, v)
    })
}

/// MOVZX.
fn zero_extend<T: Int, F: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_zero_extend::<T, F>, {
        let v = S::load::<F>(cpu, op)?;
        T::set(cpu, op.a, T::new(v.z()));
        Ok(())
    })
}

#[inline(never)]
fn any_zero_extend<T: Int, F: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = Any::read::<F>(cpu, op)?;
        T::set(cpu, op.a, T::new(v.z()));
        Ok(())
    })
}

/// MOVSX and MOVSXD.
fn sign_extend<T: Int, F: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_sign_extend::<T, F>, {
        let v = S::load::<F>(cpu, op)?;
        T::set(cpu, op.a, T::new(v.s() as u64));
        Ok(())
    })
}

#[inline(never)]
fn any_sign_extend<T: Int, F: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = Any::read::<F>(cpu, op)?;
        T::set(cpu, op.a, T::new(v.s() as u64));
        Ok(())
    })
}

fn quick_lea<T: Int, F: Flat>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let v = F::at(cpu, op);
    T::set(cpu, op.a, T::new(v));
    next(cpu, op)
}

fn lea<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let v = offset(cpu, op);
    T::set(cpu, op.a, T::new(v));
    next(cpu, op)
}

fn xchg_regs<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let (a, b) = (T::get(cpu, op.a), T::get(cpu, op.b));
    T::set(cpu, op.a, b);
    T::set(cpu, op.b, a);
    next(cpu, op)
}

/// CMOVcc between registers. Where the flags are not those of a comparison, [`any_cmov`] does it.
fn cmov<T: Int, const CC: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let Some(yes) = cpu.lazy.quick_cond::<CC>() else { return any_cmov::<T, RegB>(cpu, op) };
    let r = if yes { op.b } else { op.a };
    let v = T::get(cpu, r);
    T::set(cpu, op.a, v);
    next(cpu, op)
}

/// CMOVcc; `c` is the condition.
#[inline(never)]
fn any_cmov<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = S::load::<T>(cpu, op)?;
        let v = if cpu.lazy.cond(op.c) { v } else { T::get(cpu, op.a) };
        T::set(cpu, op.a, v);
        Ok(())
    })
}

/// SETcc of a register.
fn setcc<const CC: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let Some(yes) = cpu.lazy.quick_cond::<CC>() else { return any_setcc(cpu, op) };
    u8::set(cpu, op.a, u8::from(yes));
    next(cpu, op)
}

/// SETcc of a register; `c` is the condition.
#[inline(never)]
fn any_setcc(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let v = u8::from(cpu.lazy.cond(op.c));
    u8::set(cpu, op.a, v);
    next(cpu, op)
}

ops! {
    /// SETcc of memory; `c` is the condition.
    fn setcc_mem(cpu, op) {
        let v = u8::from(cpu.lazy.cond(op.c));
        Any::write(cpu, op, v)?
    }

    /// MOV with a 64-bit absolute address, or any other.
    fn load_absolute<T: Int>(cpu, op) {
        let at = cpu.linear(usize::from(op.seg), op.imm, T::BYTES as u64, false)?;
        let v = cpu.read::<T>(at)?;
        T::set(cpu, op.a, v)
    }

    fn store_absolute<T: Int>(cpu, op) {
        let at = cpu.linear(usize::from(op.seg), op.imm, T::BYTES as u64, true)?;
        cpu.write(at, T::get(cpu, op.a))?
    }

    /// MOV from a segment register.
    fn from_segment<T: Int>(cpu, op) {
        let v = cpu.seg[usize::from(op.b)].selector;
        T::set(cpu, op.a, T::new(u64::from(v)))
    }

    fn from_segment_mem(cpu, op) { Any::write(cpu, op, cpu.seg[usize::from(op.b)].selector)? }

    /// MOV to a segment register.
    fn to_segment<S: Src>(cpu, op) {
        let v = S::load::<u16>(cpu, op)?;
        cpu.load_segment(usize::from(op.c), v)?
    }

    /// XCHG with memory: always locked.
    fn xchg_mem<T: Int>(cpu, op) {
        let at = Any::at(cpu, op, T::BYTES as u64, true)?;
        let new = T::get(cpu, op.a);
        let old = cpu.locked::<T, T>(at, |old| (new, old))?;
        T::set(cpu, op.a, old)
    }

    direct fn bswap<T: Int>(cpu, op) {
        let v = T::get(cpu, op.a).z();
        let v = if T::BITS == 64 { v.swap_bytes() } else if T::BITS == 32 { u64::from((v as u32).swap_bytes()) } else { 0 };
        T::set(cpu, op.a, T::new(v))
    }

    fn movbe_load<T: Int>(cpu, op) {
        let v = Any::read::<T>(cpu, op)?.z().swap_bytes() >> (64 - T::BITS);
        T::set(cpu, op.a, T::new(v))
    }

    fn movbe_store<T: Int>(cpu, op) {
        let v = T::get(cpu, op.a).z().swap_bytes() >> (64 - T::BITS);
        Any::write(cpu, op, T::new(v))?
    }

    direct fn cbw(cpu, op) { let v = cpu.gpr[RAX] as i8 as i16 as u16; u16::set(cpu, RAX as u8, v) }
    direct fn cwde(cpu, op) { cpu.gpr[RAX] = u64::from(cpu.gpr[RAX] as i16 as i32 as u32) }
    direct fn cdqe(cpu, op) { cpu.gpr[RAX] = cpu.gpr[RAX] as i32 as i64 as u64 }
    direct fn cwd(cpu, op) { let v = (cpu.gpr[RAX] as i16 >> 15) as u16; u16::set(cpu, RDX as u8, v) }
    direct fn cdq(cpu, op) { cpu.gpr[RDX] = u64::from((cpu.gpr[RAX] as i32 >> 31) as u32) }
    direct fn cqo(cpu, op) { cpu.gpr[RDX] = (cpu.gpr[RAX] as i64 >> 63) as u64 }

    fn xlat(cpu, op) {
        let mask = super::operand::address_mask(op.asize);
        let at = cpu.gpr[RBX].wrapping_add(cpu.gpr[RAX] & 0xff) & mask;
        let at = cpu.linear(usize::from(op.seg), at, 1, false)?;
        let v = cpu.read::<u8>(at)?;
        cpu.gpr[RAX] = cpu.gpr[RAX] & !0xff | u64::from(v)
    }

    fn xadd_regs<T: Int>(cpu, op) {
        let (a, b) = (T::get(cpu, op.a), T::get(cpu, op.b));
        let r = T::new(a.z().wrapping_add(b.z()));
        cpu.lazy.set(kind::ADD, r, b);
        T::set(cpu, op.b, a);
        T::set(cpu, op.a, r)
    }

    fn xadd_mem<T: Int>(cpu, op) {
        let at = Any::at(cpu, op, T::BYTES as u64, true)?;
        let b = T::get(cpu, op.b);
        let sum = |a: T| T::new(a.z().wrapping_add(b.z()));
        let old = if op.c != 0 {
            cpu.locked::<T, T>(at, |a| (sum(a), a))?
        } else {
            let mut was = b;
            cpu.rmw::<T>(at, |_, a| { was = a; sum(a) })?;
            was
        };
        cpu.lazy.set(kind::ADD, sum(old), b);
        T::set(cpu, op.b, old)
    }

    fn cmpxchg_regs<T: Int>(cpu, op) {
        let (acc, dest, src) = (T::new(cpu.gpr[RAX]), T::get(cpu, op.a), T::get(cpu, op.b));
        cpu.lazy.set(kind::SUB, T::new(acc.z().wrapping_sub(dest.z())), dest);
        if acc == dest { T::set(cpu, op.a, src) } else { set_acc(cpu, dest) }
    }

    fn cmpxchg_mem<T: Int>(cpu, op) {
        let at = Any::at(cpu, op, T::BYTES as u64, true)?;
        let (acc, src) = (T::new(cpu.gpr[RAX]), T::get(cpu, op.b));
        // What was there is written back if it differs.
        let new = |old: T| if old == acc { src } else { old };
        let old = if op.c != 0 {
            cpu.locked::<T, T>(at, |old| (new(old), old))?
        } else {
            let mut was = acc;
            cpu.rmw::<T>(at, |_, old| { was = old; new(old) })?;
            was
        };
        cpu.lazy.set(kind::SUB, T::new(acc.z().wrapping_sub(old.z())), old);
        if old != acc { set_acc(cpu, old) }
    }

    fn cmpxchg8b(cpu, op) {
        let at = Any::at(cpu, op, 8, true)?;
        let half = |cpu: &Cpu, hi: usize, lo: usize| (cpu.gpr[hi] & 0xffff_ffff) << 32 | cpu.gpr[lo] & 0xffff_ffff;
        let (old, new) = (half(cpu, RDX, RAX), half(cpu, RCX, RBX));
        let was = cpu.locked::<u64, u64>(at, |v| (if v == old { new } else { v }, v))?;
        cpu.lazy.change(ZF, if was == old { ZF } else { 0 });
        if was != old {
            cpu.gpr[RAX] = was & 0xffff_ffff;
            cpu.gpr[RDX] = was >> 32;
        }
    }

    fn cmpxchg16b(cpu, op) {
        let at = Any::at(cpu, op, 16, true)?;
        if at & 15 != 0 {
            return Err(cpu.gp(0));
        }
        let wide = |cpu: &Cpu, hi: usize, lo: usize| u128::from(cpu.gpr[hi]) << 64 | u128::from(cpu.gpr[lo]);
        let (old, new) = (wide(cpu, RDX, RAX), wide(cpu, RCX, RBX));
        let was = cpu.exchange128(at, old, new)?;
        cpu.lazy.change(ZF, if was == old { ZF } else { 0 });
        if was != old {
            cpu.gpr[RAX] = was as u64;
            cpu.gpr[RDX] = (was >> 64) as u64;
        }
    }
}

impl Cpu {
    /// Compares and exchanges 16 aligned bytes; gives what was there.
    fn exchange128(&mut self, at: u64, old: u128, new: u128) -> Result<u128, Abort> {
        self.check_write(at, 16)?;
        match self.run_of(at, true)? {
            Some((host, _)) => {
                ram::fence_beside_atomic();
                let was = locked::compare_exchange128(host, old, new).err().unwrap_or(old);
                ram::fence_beside_atomic();
                Ok(was)
            }
            None => {
                ram::fence();
                let was = self.read128(at)?;
                self.write128(at, if was == old { new } else { was })?;
                ram::fence();
                Ok(was)
            }
        }
    }
}

fn set_acc<T: Int>(cpu: &mut Cpu, v: T) {
    // AL, AX, EAX or RAX.
    let r = if T::BITS == 8 { crate::regs::byte_register(0, false) } else { 0 };
    T::set(cpu, r, v);
}

macro_rules! by_condition {
    ($cc:expr, $c:ident => $e:expr) => {
        match $cc {
            0 => {
                const $c: u8 = 0;
                $e
            }
            1 => {
                const $c: u8 = 1;
                $e
            }
            2 => {
                const $c: u8 = 2;
                $e
            }
            3 => {
                const $c: u8 = 3;
                $e
            }
            4 => {
                const $c: u8 = 4;
                $e
            }
            5 => {
                const $c: u8 = 5;
                $e
            }
            6 => {
                const $c: u8 = 6;
                $e
            }
            7 => {
                const $c: u8 = 7;
                $e
            }
            8 => {
                const $c: u8 = 8;
                $e
            }
            9 => {
                const $c: u8 = 9;
                $e
            }
            10 => {
                const $c: u8 = 10;
                $e
            }
            11 => {
                const $c: u8 = 11;
                $e
            }
            12 => {
                const $c: u8 = 12;
                $e
            }
            13 => {
                const $c: u8 = 13;
                $e
            }
            14 => {
                const $c: u8 = 14;
                $e
            }
            _ => {
                const $c: u8 = 15;
                $e
            }
        }
    };
}
pub(crate) use by_condition;

/// CMOVcc and SETcc.
pub(super) fn lower_conditional(l: &mut Lower<'_>, cc: u8) -> Option<Handler> {
    l.op.c = cc;
    if l.i.op_count() == 1 {
        if l.is_reg(0) {
            l.op.a = l.number(0);
            return Some(by_condition!(cc, C => setcc::<C>));
        }
        return Some(setcc_mem);
    }
    l.op.a = l.number(0);
    let w = l.width(0);
    if !l.is_reg(1) {
        return Some(by_wide!(w, T => any_cmov::<T, Mem<Any>>));
    }
    l.op.b = l.number(1);
    Some(match w {
        32 => by_condition!(cc, C => cmov::<u32, C>),
        64 => by_condition!(cc, C => cmov::<u64, C>),
        _ => any_cmov::<u16, RegB>,
    })
}

fn lower_mov(l: &mut Lower<'_>) -> Option<Handler> {
    let (r0, r1) = (l.reg(0), l.reg(1));
    let special = |r: Register| r.is_cr() || r.is_dr() || r.is_tr();
    if special(r0) || special(r1) {
        return super::system::lower_control(l);
    }
    if l.is_reg(0) && r0.is_segment_register() {
        // MOV to CS is undefined.
        if r0 == Register::CS {
            return Some(super::undefined);
        }
        l.op.c = l.number(0);
        let ss = r0 == Register::SS;
        return Some(if l.is_reg(1) {
            l.op.b = r1.full_register().number() as u8;
            if ss { super::stack::mov_ss::<RegB> } else { to_segment::<RegB> }
        } else if ss {
            super::stack::mov_ss::<Mem<Any>>
        } else {
            to_segment::<Mem<Any>>
        });
    }
    if l.is_reg(1) && r1.is_segment_register() {
        l.op.b = l.number(1);
        return Some(if l.is_reg(0) {
            l.op.a = l.number(0);
            let w = l.width(0);
            by_wide!(w, T => from_segment::<T>)
        } else {
            from_segment_mem
        });
    }
    // An absolute address that does not fit a displacement.
    let wide = l.i.memory_displ_size() == 8
        && l.i.memory_base() == Register::None
        && l.i.memory_index() == Register::None
        && l.i.memory_displacement64() as i32 as i64 as u64 != l.i.memory_displacement64();
    let w = l.width(0);
    if l.is_mem(0) {
        return Some(if l.is_reg(1) {
            l.op.a = l.number(1);
            if wide {
                l.op.imm = l.i.memory_displacement64();
                return Some(by_width!(w, T => store_absolute::<T>));
            }
            by_width!(w, T => by_form!(l.form, Q => to_mem::<T, RegA, Q>, else any_to_mem::<T, RegA>))
        } else {
            l.imm(1);
            by_width!(w, T => by_form!(l.form, Q => to_mem::<T, Imm, Q>, else any_to_mem::<T, Imm>))
        });
    }
    l.op.a = l.number(0);
    Some(if l.is_reg(1) {
        l.op.b = l.number(1);
        by_width!(w, T => to_reg::<T, RegB>)
    } else if l.is_mem(1) {
        if wide {
            l.op.imm = l.i.memory_displacement64();
            return Some(by_width!(w, T => load_absolute::<T>));
        }
        match w {
            32 if l.in_segment() => to_reg::<u32, Mem<Segment>>,
            64 if l.in_segment() => to_reg::<u64, Mem<Segment>>,
            _ => by_width!(w, T => by_form!(l.form, Q => to_reg::<T, Mem<Q>>, else any_to_reg::<T>)),
        }
    } else {
        l.imm(1);
        by_width!(w, T => to_reg::<T, Imm>)
    })
}

fn lower_extend(l: &mut Lower<'_>, signed: bool) -> Option<Handler> {
    l.op.a = l.number(0);
    let (to, from) = (l.width(0), l.width(1));
    if from == to {
        // MOVSXD without REX.W.
        return lower_mov(l);
    }
    let memory = !l.is_reg(1);
    if !memory {
        l.op.b = l.number(1);
    }
    let quick = l.form != Form::Any;
    macro_rules! pick {
        ($h:ident, $any:ident, $to:ty, $from:ty) => {
            match (memory, quick) {
                (false, _) => $h::<$to, $from, RegB>,
                (_, true) => $h::<$to, $from, Mem<Index>>,
                _ => $any::<$to, $from>,
            }
        };
    }
    Some(match (signed, to, from) {
        (false, 16, _) => pick!(zero_extend, any_zero_extend, u16, u8),
        // A write of 32 bits clears the rest.
        (false, _, 8) => pick!(zero_extend, any_zero_extend, u32, u8),
        (false, _, _) => pick!(zero_extend, any_zero_extend, u32, u16),
        (true, 16, _) => pick!(sign_extend, any_sign_extend, u16, u8),
        (true, 32, 8) => pick!(sign_extend, any_sign_extend, u32, u8),
        (true, 32, _) => pick!(sign_extend, any_sign_extend, u32, u16),
        (true, _, 8) => pick!(sign_extend, any_sign_extend, u64, u8),
        (true, _, 16) => pick!(sign_extend, any_sign_extend, u64, u16),
        (true, ..) => pick!(sign_extend, any_sign_extend, u64, u32),
    })
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    Some(match l.i.mnemonic() {
        M::Mov => return lower_mov(l),
        M::Movzx => return lower_extend(l, false),
        M::Movsx | M::Movsxd => return lower_extend(l, true),
        M::Lea => {
            l.op.a = l.number(0);
            match l.form {
                Form::Base if w != 16 => by_long!(w, T => quick_lea::<T, Base>),
                Form::Index if w != 16 => by_long!(w, T => quick_lea::<T, Index>),
                _ => by_wide!(w, T => lea::<T>),
            }
        }
        M::Xchg if l.is_mem(0) || l.is_mem(1) => {
            l.op.a = l.number(u32::from(l.is_mem(0)));
            let w = l.width(u32::from(l.is_mem(0)));
            by_width!(w, T => xchg_mem::<T>)
        }
        M::Xchg => {
            l.op.a = l.number(0);
            l.op.b = l.number(1);
            by_width!(w, T => xchg_regs::<T>)
        }
        M::Bswap => {
            l.op.a = l.number(0);
            by_wide!(w, T => bswap::<T>)
        }
        M::Movbe if l.is_mem(0) => {
            l.op.a = l.number(1);
            by_wide!(w, T => movbe_store::<T>)
        }
        M::Movbe => {
            l.op.a = l.number(0);
            by_wide!(w, T => movbe_load::<T>)
        }
        M::Movnti => {
            l.op.a = l.number(1);
            by_wide!(w, T => by_form!(l.form, Q => to_mem::<T, RegA, Q>, else any_to_mem::<T, RegA>))
        }
        M::Cbw => cbw,
        M::Cwde => cwde,
        M::Cdqe => cdqe,
        M::Cwd => cwd,
        M::Cdq => cdq,
        M::Cqo => cqo,
        M::Xlatb => {
            l.op.asize = l.i.memory_base().size() as u8;
            xlat
        }
        M::Xadd | M::Cmpxchg if l.is_reg(0) => {
            l.op.a = l.number(0);
            l.op.b = l.number(1);
            if l.i.mnemonic() == M::Xadd {
                by_width!(w, T => xadd_regs::<T>)
            } else {
                by_width!(w, T => cmpxchg_regs::<T>)
            }
        }
        M::Xadd => {
            l.op.b = l.number(1);
            l.op.c = u8::from(l.locked);
            by_width!(w, T => xadd_mem::<T>)
        }
        M::Cmpxchg => {
            l.op.b = l.number(1);
            l.op.c = u8::from(l.locked);
            by_width!(w, T => cmpxchg_mem::<T>)
        }
        M::Cmpxchg8b => cmpxchg8b,
        M::Cmpxchg16b => cmpxchg16b,
        _ => return None,
    })
}
