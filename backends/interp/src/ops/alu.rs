//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT.
//!
//! Handlers of their own have the operations on registers, and on memory in its usual forms. All others share the
//! `any_*` ones, which find the operation by its number in `op.c`.

use super::operand::{Any, Base, Imm, Index, Mem, Quick, RegA, RegB, Segment, Src};
use super::{by_width, by_word};
use crate::cpu::Cpu;
use crate::decode::{Form, Lower};
use crate::flags::{Lazy, kind};
use crate::op::{Abort, Exec, Flow, Handler, OpPtr, next, quick, run};
use crate::regs::Int;
use iced_x86::Mnemonic as M;

/// A two-operand operation.
pub(crate) trait Alu {
    /// As the opcodes number it.
    const NUMBER: u8;
    /// The result; with `F`, also the flags.
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, b: T) -> T;
}

macro_rules! alu {
    ($($name:ident $number:literal |$lazy:ident, $a:ident, $b:ident| $r:expr, $flags:expr;)*) => {$(
        pub(crate) struct $name;
        impl Alu for $name {
            const NUMBER: u8 = $number;
            #[inline(always)]
            fn run<T: Int, const F: bool>($lazy: &mut Lazy, a: T, b: T) -> T {
                let ($a, $b) = (a.z(), b.z());
                let r = T::new($r);
                if F {
                    let set: fn(&mut Lazy, T, T, T) = $flags;
                    set($lazy, r, a, b);
                }
                r
            }
        }
    )*

        /// The operation of that number, with flags.
        #[inline(never)]
        fn by_number<T: Int>(number: u8, lazy: &mut Lazy, a: T, b: T) -> T {
            match number & 7 {
                $($number => $name::run::<T, true>(lazy, a, b),)*
                _ => Sub::run::<T, true>(lazy, a, b),
            }
        }
    };
}

alu! {
    Add 0 |lazy, a, b| a.wrapping_add(b), |l, r, _, b| l.set(kind::ADD, r, b);
    Sub 5 |lazy, a, b| a.wrapping_sub(b), |l, r, _, b| l.set(kind::SUB, r, b);
    And 4 |lazy, a, b| a & b, |l, r, _, _| l.logic(r);
    Or 1 |lazy, a, b| a | b, |l, r, _, _| l.logic(r);
    Xor 6 |lazy, a, b| a ^ b, |l, r, _, _| l.logic(r);
    Adc 2 |lazy, a, b| a.wrapping_add(b).wrapping_add(u64::from(lazy.cf())), |l, r, a, b| {
        let (r64, a, b) = (r.z(), a.z(), b.z());
        l.set(kind::CARRIES, r, T::new(a & b | (a | b) & !r64));
    };
    Sbb 3 |lazy, a, b| a.wrapping_sub(b).wrapping_sub(u64::from(lazy.cf())), |l, r, a, b| {
        let (r64, a, b) = (r.z(), a.z(), b.z());
        l.set(kind::CARRIES, r, T::new(!a & b | (!a | b) & r64));
    };
}

/// In `op.c`, besides the operation's number: the second operand is the immediate.
const IMMEDIATE: u8 = 8;
/// The first operand is the register.
const REGISTER_FIRST: u8 = 16;

fn to_reg<T: Int, O: Alu, S: Src, const F: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_to_reg::<T>, {
        let b = S::load(cpu, op)?;
        let a = T::get(cpu, op.a);
        let r = O::run::<T, F>(&mut cpu.lazy, a, b);
        T::set(cpu, op.a, r);
        Ok(())
    })
}

#[inline(never)]
fn any_to_reg<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = Any::read(cpu, op)?;
        let a = T::get(cpu, op.a);
        let r = by_number(op.c, &mut cpu.lazy, a, b);
        T::set(cpu, op.a, r);
        Ok(())
    })
}

/// Flags are left also where nobody reads them: that costs little beside the access.
fn to_mem<T: Int, O: Alu, S: Src, Q: Quick>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_to_mem::<T>, {
        let b = S::load(cpu, op)?;
        Q::rmw::<T>(cpu, op, |cpu, a| O::run::<T, true>(&mut cpu.lazy, a, b))
    })
}

fn register_or_immediate<T: Int>(cpu: &Cpu, op: OpPtr) -> T {
    if op.c & IMMEDIATE != 0 { T::new(op.imm) } else { T::get(cpu, op.a) }
}

#[inline(never)]
fn any_to_mem<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = register_or_immediate(cpu, op);
        Any::rmw::<T>(cpu, op, |cpu, a| by_number(op.c, &mut cpu.lazy, a, b))
    })
}

#[inline(never)]
fn any_to_mem_locked<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    super::outlined(cpu, op, |cpu, op| {
        let b = register_or_immediate(cpu, op);
        let at = Any::at(cpu, op, T::BYTES as u64, true)?;
        let before = cpu.lazy;
        cpu.lazy = cpu.locked::<T, Lazy>(at, |a| {
            let mut lazy = before;
            let r = by_number(op.c, &mut lazy, a, b);
            (r, lazy)
        })?;
        Ok(())
    })
}

/// CMP and TEST: flags only.
fn flags_only<T: Int, O: Alu, X: Src, Y: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_flags_only::<T>, {
        let a = X::load(cpu, op)?;
        let b = Y::load(cpu, op)?;
        O::run::<T, true>(&mut cpu.lazy, a, b);
        Ok(())
    })
}

#[inline(never)]
fn any_flags_only<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let (mut a, mut b) = (Any::read::<T>(cpu, op)?, register_or_immediate(cpu, op));
        if op.c & REGISTER_FIRST != 0 {
            (a, b) = (b, a);
        }
        by_number(op.c, &mut cpu.lazy, a, b);
        Ok(())
    })
}

/// A one-operand operation.
trait Unary {
    const NUMBER: u8;
    /// Carry is not changed.
    const CARRY_STAYS: bool;
    /// The result; with `F`, also the flags, with the carry there was.
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, carry: bool) -> T;
}

struct Inc;
struct Dec;
struct Neg;
struct Not;

impl Unary for Inc {
    const NUMBER: u8 = 0;
    const CARRY_STAYS: bool = true;
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, carry: bool) -> T {
        let r = T::new(a.z().wrapping_add(1));
        if F {
            lazy.set(kind::INC, r, T::new(u64::from(carry)));
        }
        r
    }
}

impl Unary for Dec {
    const NUMBER: u8 = 1;
    const CARRY_STAYS: bool = true;
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, carry: bool) -> T {
        let r = T::new(a.z().wrapping_sub(1));
        if F {
            lazy.set(kind::DEC, r, T::new(u64::from(carry)));
        }
        r
    }
}

impl Unary for Neg {
    const NUMBER: u8 = 2;
    const CARRY_STAYS: bool = false;
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, _carry: bool) -> T {
        Sub::run::<T, F>(lazy, T::new(0), a)
    }
}

impl Unary for Not {
    const NUMBER: u8 = 3;
    const CARRY_STAYS: bool = false;
    #[inline(always)]
    fn run<T: Int, const F: bool>(_lazy: &mut Lazy, a: T, _carry: bool) -> T {
        T::new(!a.z())
    }
}

/// The operation of that number, with flags.
#[inline(never)]
fn unary_by_number<T: Int>(number: u8, lazy: &mut Lazy, a: T) -> T {
    let carry = lazy.cf();
    match number {
        Inc::NUMBER => Inc::run::<T, true>(lazy, a, carry),
        Dec::NUMBER => Dec::run::<T, true>(lazy, a, carry),
        Neg::NUMBER => Neg::run::<T, true>(lazy, a, carry),
        _ => Not::run::<T, true>(lazy, a, carry),
    }
}

/// The carry that `O` leaves as it is.
#[inline(always)]
fn kept_carry<O: Unary, const F: bool>(cpu: &Cpu) -> Exec<bool> {
    if F && O::CARRY_STAYS { cpu.lazy.quick_cf().ok_or(Abort) } else { Ok(false) }
}

fn unary_reg<T: Int, O: Unary, const F: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_unary_reg::<T>, {
        let carry = kept_carry::<O, F>(cpu)?;
        let a = T::get(cpu, op.a);
        let r = O::run::<T, F>(&mut cpu.lazy, a, carry);
        T::set(cpu, op.a, r);
        Ok(())
    })
}

#[inline(never)]
fn any_unary_reg<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let a = T::get(cpu, op.a);
    let r = unary_by_number(op.c, &mut cpu.lazy, a);
    T::set(cpu, op.a, r);
    next(cpu, op)
}

fn unary_mem<T: Int, O: Unary, Q: Quick>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_unary_mem::<T>, {
        let carry = kept_carry::<O, true>(cpu)?;
        Q::rmw::<T>(cpu, op, |cpu, a| O::run::<T, true>(&mut cpu.lazy, a, carry))
    })
}

#[inline(never)]
fn any_unary_mem<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, { Any::rmw::<T>(cpu, op, |cpu, a| unary_by_number(op.c, &mut cpu.lazy, a)) })
}

#[inline(never)]
fn any_unary_mem_locked<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    super::outlined(cpu, op, |cpu, op| {
        let at = Any::at(cpu, op, T::BYTES as u64, true)?;
        let before = cpu.lazy;
        cpu.lazy = cpu.locked::<T, Lazy>(at, |a| {
            let mut lazy = before;
            let r = unary_by_number(op.c, &mut lazy, a);
            (r, lazy)
        })?;
        Ok(())
    })
}

fn binary<O: Alu>(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    l.op.c = O::NUMBER;
    if l.is_mem(0) {
        let register = l.is_reg(1);
        if register {
            l.op.a = l.number(1);
        } else {
            l.imm(1);
            l.op.c |= IMMEDIATE;
        }
        return Some(match (l.form, register) {
            _ if l.locked => by_width!(w, T => any_to_mem_locked::<T>),
            (Form::Any, _) => by_width!(w, T => any_to_mem::<T>),
            (_, true) => by_word!(w, T => to_mem::<T, O, RegA, Index>, else any_to_mem::<T>),
            (_, false) => by_word!(w, T => to_mem::<T, O, Imm, Index>, else any_to_mem::<T>),
        });
    }
    l.op.a = l.number(0);
    Some(if l.is_reg(1) {
        l.op.b = l.number(1);
        if l.flags {
            by_width!(w, T => to_reg::<T, O, RegB, true>)
        } else {
            by_word!(w, T => to_reg::<T, O, RegB, false>, else to_reg::<T, O, RegB, true>)
        }
    } else if l.is_mem(1) {
        match l.form {
            Form::Any if w == 64 && l.in_segment() => to_reg::<u64, O, Mem<Segment>, true>,
            Form::Any => by_width!(w, T => any_to_reg::<T>),
            Form::Base => by_word!(w, T => to_reg::<T, O, Mem<Base>, true>, else any_to_reg::<T>),
            Form::Index => by_word!(w, T => to_reg::<T, O, Mem<Index>, true>, else any_to_reg::<T>),
        }
    } else {
        l.imm(1);
        if l.flags {
            by_width!(w, T => to_reg::<T, O, Imm, true>)
        } else {
            by_word!(w, T => to_reg::<T, O, Imm, false>, else to_reg::<T, O, Imm, true>)
        }
    })
}

fn compare<O: Alu>(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    l.op.c = O::NUMBER;
    if l.is_mem(0) {
        let register = l.is_reg(1);
        if register {
            l.op.a = l.number(1);
        } else {
            l.imm(1);
            l.op.c |= IMMEDIATE;
        }
        return Some(match (l.form, register) {
            (Form::Any, _) => by_width!(w, T => any_flags_only::<T>),
            (_, true) => by_width!(w, T => flags_only::<T, O, Mem<Index>, RegA>),
            (_, false) => by_width!(w, T => flags_only::<T, O, Mem<Index>, Imm>),
        });
    }
    l.op.a = l.number(0);
    Some(if l.is_reg(1) {
        l.op.b = l.number(1);
        by_width!(w, T => flags_only::<T, O, RegA, RegB>)
    } else if l.is_mem(1) {
        l.op.c |= REGISTER_FIRST;
        match l.form {
            Form::Any => by_width!(w, T => any_flags_only::<T>),
            _ => by_width!(w, T => flags_only::<T, O, RegA, Mem<Index>>),
        }
    } else {
        l.imm(1);
        by_width!(w, T => flags_only::<T, O, RegA, Imm>)
    })
}

fn unary<O: Unary>(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    l.op.c = O::NUMBER;
    if l.is_mem(0) {
        return Some(match l.form {
            _ if l.locked => by_width!(w, T => any_unary_mem_locked::<T>),
            Form::Any => by_width!(w, T => any_unary_mem::<T>),
            _ => by_word!(w, T => unary_mem::<T, O, Index>, else any_unary_mem::<T>),
        });
    }
    l.op.a = l.number(0);
    Some(if l.flags {
        by_word!(w, T => unary_reg::<T, O, true>, else any_unary_reg::<T>)
    } else {
        by_word!(w, T => unary_reg::<T, O, false>, else any_unary_reg::<T>)
    })
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    if let Some(fused) = super::branch::lower_fused(l) {
        return Some(fused);
    }
    match l.i.mnemonic() {
        M::Add => binary::<Add>(l),
        M::Or => binary::<Or>(l),
        M::Adc => binary::<Adc>(l),
        M::Sbb => binary::<Sbb>(l),
        M::And => binary::<And>(l),
        M::Sub => binary::<Sub>(l),
        M::Xor => binary::<Xor>(l),
        M::Cmp => compare::<Sub>(l),
        M::Test => compare::<And>(l),
        M::Inc => unary::<Inc>(l),
        M::Dec => unary::<Dec>(l),
        M::Neg => unary::<Neg>(l),
        M::Not => unary::<Not>(l),
        _ => None,
    }
}
