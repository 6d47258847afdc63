//! Multiplication, division and decimal adjustment.

use super::operand::{Any, Index, Mem, RegB, Src};
use super::{by_long, by_wide, by_width, ops};
use crate::cpu::{Cpu, RAX, RDX};
use crate::decode::{Form, Lower};
use crate::flags::{AF, CF, OF, kind};
use crate::op::{Abort, Exec, Flow, Handler, OpPtr, quick, run};
use crate::regs::Int;
use iced_x86::Mnemonic as M;

/// Puts a double-width product into (r)DX:(r)AX or AX.
fn put_wide<T: Int>(cpu: &mut Cpu, v: u128) {
    if T::BITS == 8 {
        u16::set(cpu, RAX as u8, v as u16);
    } else {
        T::set(cpu, RAX as u8, T::new(v as u64));
        T::set(cpu, RDX as u8, T::new((v >> T::BITS) as u64));
    }
}

/// (r)DX:(r)AX or AX.
fn wide<T: Int>(cpu: &Cpu) -> u128 {
    if T::BITS == 8 {
        u128::from(cpu.gpr[RAX] & 0xffff)
    } else {
        u128::from(cpu.gpr[RDX] & T::MASK) << T::BITS | u128::from(cpu.gpr[RAX] & T::MASK)
    }
}

fn mul<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = S::load::<T>(cpu, op)?;
        let r = u128::from(cpu.gpr[RAX] & T::MASK) * u128::from(b.z());
        put_wide::<T>(cpu, r);
        cpu.lazy.set(kind::MUL, T::new(r as u64), T::new(u64::from(r >> T::BITS != 0)));
        Ok(())
    })
}

fn imul_wide<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = S::load::<T>(cpu, op)?;
        let r = i128::from(T::new(cpu.gpr[RAX]).s()) * i128::from(b.s());
        put_wide::<T>(cpu, r as u128);
        let low = T::new(r as u64);
        cpu.lazy.set(kind::MUL, low, T::new(u64::from(i128::from(low.s()) != r)));
        Ok(())
    })
}

#[inline(always)]
fn signed_product<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
    if T::BITS == 64 {
        let (r, over) = a.s().overflowing_mul(b.s());
        let r = T::new(r as u64);
        cpu.lazy.set(kind::MUL, r, T::new(u64::from(over)));
        r
    } else {
        let r = a.s() * b.s();
        let low = T::new(r as u64);
        cpu.lazy.set(kind::MUL, low, T::new(u64::from(low.s() != r)));
        low
    }
}

fn imul<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_imul::<T>, {
        let b = S::load::<T>(cpu, op)?;
        let a = T::get(cpu, op.a);
        let r = signed_product(cpu, a, b);
        T::set(cpu, op.a, r);
        Ok(())
    })
}

#[inline(never)]
fn any_imul<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = Any::read::<T>(cpu, op)?;
        let a = T::get(cpu, op.a);
        let r = signed_product(cpu, a, b);
        T::set(cpu, op.a, r);
        Ok(())
    })
}

/// By the immediate.
fn imul_imm<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let a = S::load::<T>(cpu, op)?;
        let r = signed_product(cpu, a, T::new(op.imm));
        T::set(cpu, op.a, r);
        Ok(())
    })
}

#[cold]
fn divide_error(cpu: &mut Cpu) -> Abort {
    cpu.raise(0, None)
}

fn put_quotient<T: Int>(cpu: &mut Cpu, q: u64, r: u64) {
    if T::BITS == 8 {
        u16::set(cpu, RAX as u8, (q & 0xff | (r & 0xff) << 8) as u16);
    } else {
        T::set(cpu, RAX as u8, T::new(q));
        T::set(cpu, RDX as u8, T::new(r));
    }
}

fn div<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = S::load::<T>(cpu, op)?.z();
        if b == 0 {
            return Err(divide_error(cpu));
        }
        let a = wide::<T>(cpu);
        let (q, r) = if a >> 64 == 0 {
            let a = a as u64;
            (u128::from(a / b), a % b)
        } else {
            (a / u128::from(b), (a % u128::from(b)) as u64)
        };
        if q > u128::from(T::MASK) {
            return Err(divide_error(cpu));
        }
        put_quotient::<T>(cpu, q as u64, r);
        Ok(())
    })
}

fn idiv<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = i128::from(S::load::<T>(cpu, op)?.s());
        if b == 0 {
            return Err(divide_error(cpu));
        }
        let shift = 128 - 2 * T::BITS;
        let a = (wide::<T>(cpu) << shift) as i128 >> shift;
        let (q, r) = match (i64::try_from(a), b as i64) {
            (Ok(a), b) if b != -1 => (i128::from(a / b), a % b),
            _ => match a.checked_div(b) {
                Some(q) => (q, (a % b) as i64),
                None => return Err(divide_error(cpu)),
            },
        };
        if i128::from(T::new(q as u64).s()) != q {
            return Err(divide_error(cpu));
        }
        put_quotient::<T>(cpu, q as u64, r as u64);
        Ok(())
    })
}

ops! {
    direct fn mulx<T: Int, S: Src>(cpu, op) {
        let b = S::load::<T>(cpu, op)?;
        let r = u128::from(cpu.gpr[RDX] & T::MASK) * u128::from(b.z());
        // If both destinations are one, the high half stays.
        T::set(cpu, op.c, T::new(r as u64));
        T::set(cpu, op.a, T::new((r >> T::BITS) as u64))
    }

    fn aam(cpu, op) {
        if op.imm as u8 == 0 {
            return Err(divide_error(cpu));
        }
        let al = cpu.gpr[RAX] as u8;
        let (q, r) = (al / op.imm as u8, al % op.imm as u8);
        u16::set(cpu, RAX as u8, u16::from(q) << 8 | u16::from(r));
        cpu.lazy.logic(r)
    }

    fn aad(cpu, op) {
        let ax = cpu.gpr[RAX] as u16;
        let r = (ax as u8).wrapping_add(((ax >> 8) as u8).wrapping_mul(op.imm as u8));
        u16::set(cpu, RAX as u8, u16::from(r));
        cpu.lazy.logic(r)
    }

    fn aaa(cpu, _op) { adjust_ascii(cpu, true)? }
    fn aas(cpu, _op) { adjust_ascii(cpu, false)? }
    fn daa(cpu, _op) { adjust_decimal(cpu, true)? }
    fn das(cpu, _op) { adjust_decimal(cpu, false)? }
}

fn adjust_ascii(cpu: &mut Cpu, add: bool) -> Exec {
    let ax = cpu.gpr[RAX] as u16;
    let carry = ax & 0xf > 9 || cpu.lazy.af();
    let r = match (carry, add) {
        (true, true) => ax.wrapping_add(0x106),
        (true, false) => ax.wrapping_sub(0x106),
        _ => ax,
    } & 0xff0f;
    u16::set(cpu, RAX as u8, r);
    cpu.lazy.logic(r as u8);
    cpu.lazy.change(CF | AF, if carry { CF | AF } else { 0 });
    Ok(())
}

fn adjust_decimal(cpu: &mut Cpu, add: bool) -> Exec {
    let al = cpu.gpr[RAX] as u8;
    let (cf, af) = (cpu.lazy.cf(), cpu.lazy.af());
    let low = al & 0xf > 9 || af;
    let high = al > 0x99 || cf;
    let fix = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let r = if add { al.wrapping_add(fix) } else { al.wrapping_sub(fix) };
    // DAS: a borrow from the low digit's correction counts too.
    let carry = high || (!add && low && (al < 6 || cf));
    u8::set(cpu, crate::regs::byte_register(0, false), r);
    cpu.lazy.logic(r);
    cpu.lazy.change(CF | AF | OF, if carry { CF } else { 0 } | if low { AF } else { 0 });
    Ok(())
}

macro_rules! one_operand {
    ($l:ident, $h:ident) => {{
        let w = $l.width(0);
        if $l.is_reg(0) {
            $l.op.b = $l.number(0);
            by_width!(w, T => $h::<T, RegB>)
        } else {
            by_width!(w, T => $h::<T, Mem<Any>>)
        }
    }};
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    Some(match l.i.mnemonic() {
        M::Mul => one_operand!(l, mul),
        M::Div => one_operand!(l, div),
        M::Idiv => one_operand!(l, idiv),
        M::Imul if l.i.op_count() == 1 => one_operand!(l, imul_wide),
        M::Imul => {
            l.op.a = l.number(0);
            let w = l.width(0);
            let three = l.i.op_count() == 3;
            if three {
                l.imm(2);
            }
            if l.is_reg(1) {
                l.op.b = l.number(1);
                if three { by_wide!(w, T => imul_imm::<T, RegB>) } else { by_wide!(w, T => imul::<T, RegB>) }
            } else if three {
                by_wide!(w, T => imul_imm::<T, Mem<Any>>)
            } else if l.form == Form::Any || w == 16 {
                by_wide!(w, T => any_imul::<T>)
            } else {
                by_long!(w, T => imul::<T, Mem<Index>>)
            }
        }
        M::Mulx => {
            l.op.a = l.number(0);
            l.op.c = l.number(1);
            let w = l.width(0);
            if l.is_reg(2) {
                l.op.b = l.number(2);
                by_wide!(w, T => mulx::<T, RegB>)
            } else {
                by_wide!(w, T => mulx::<T, Mem<Any>>)
            }
        }
        M::Aam => {
            l.imm(0);
            aam
        }
        M::Aad => {
            l.imm(0);
            aad
        }
        M::Aaa => aaa,
        M::Aas => aas,
        M::Daa => daa,
        M::Das => das,
        _ => return None,
    })
}
