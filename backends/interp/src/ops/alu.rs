//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT.

use super::operand::{Addr, Imm, Mem, RegA, RegB, Src};
use super::{any_form, by_form, by_width};
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::flags::{Lazy, kind};
use crate::op::{Flow, Handler, OpPtr, next, run};
use crate::regs::Int;
use iced_x86::Mnemonic as M;

/// A two-operand operation.
pub(crate) trait Alu {
    /// The result; with `F`, also the flags.
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, b: T) -> T;
}

macro_rules! alu {
    ($($name:ident |$lazy:ident, $a:ident, $b:ident| $r:expr, $flags:expr;)*) => {$(
        pub(crate) struct $name;
        impl Alu for $name {
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
    )*};
}

alu! {
    Add |lazy, a, b| a.wrapping_add(b), |l, r, _, b| l.set(kind::ADD, r, b);
    Sub |lazy, a, b| a.wrapping_sub(b), |l, r, _, b| l.set(kind::SUB, r, b);
    And |lazy, a, b| a & b, |l, r, _, _| l.logic(r);
    Or |lazy, a, b| a | b, |l, r, _, _| l.logic(r);
    Xor |lazy, a, b| a ^ b, |l, r, _, _| l.logic(r);
    Adc |lazy, a, b| a.wrapping_add(b).wrapping_add(u64::from(lazy.cf())), |l, r, a, b| {
        let (r64, a, b) = (r.z(), a.z(), b.z());
        l.set(kind::CARRIES, r, T::new(a & b | (a | b) & !r64));
    };
    Sbb |lazy, a, b| a.wrapping_sub(b).wrapping_sub(u64::from(lazy.cf())), |l, r, a, b| {
        let (r64, a, b) = (r.z(), a.z(), b.z());
        l.set(kind::CARRIES, r, T::new(!a & b | (!a | b) & r64));
    };
}

fn to_reg<T: Int, O: Alu, S: Src<T>, const F: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = S::load(cpu, op)?;
        let a = T::get(cpu, op.a);
        let r = O::run::<T, F>(&mut cpu.lazy, a, b);
        T::set(cpu, op.a, r);
        Ok(())
    })
}

/// Flags are left also where nobody reads them: that costs little beside the access.
fn to_mem<T: Int, O: Alu, S: Src<T>, A: Addr>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = S::load(cpu, op)?;
        let at = A::at(cpu, op, T::BYTES as u64, true)?;
        cpu.rmw::<T>(at, |cpu, a| O::run::<T, true>(&mut cpu.lazy, a, b))
    })
}

fn to_mem_locked<T: Int, O: Alu, S: Src<T>, A: Addr>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = S::load(cpu, op)?;
        let at = A::at(cpu, op, T::BYTES as u64, true)?;
        let before = cpu.lazy;
        cpu.lazy = cpu.locked::<T, Lazy>(at, |a| {
            let mut lazy = before;
            let r = O::run::<T, true>(&mut lazy, a, b);
            (r, lazy)
        })?;
        Ok(())
    })
}

/// CMP and TEST: flags only.
fn flags_only<T: Int, O: Alu, X: Src<T>, Y: Src<T>>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let a = X::load(cpu, op)?;
        let b = Y::load(cpu, op)?;
        O::run::<T, true>(&mut cpu.lazy, a, b);
        Ok(())
    })
}

/// A one-operand operation.
trait Unary {
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T) -> T;
}

struct Inc;
struct Dec;
struct Neg;
struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T) -> T {
        let r = T::new(a.z().wrapping_add(1));
        if F {
            let carry = T::new(u64::from(lazy.cf()));
            lazy.set(kind::INC, r, carry);
        }
        r
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T) -> T {
        let r = T::new(a.z().wrapping_sub(1));
        if F {
            let carry = T::new(u64::from(lazy.cf()));
            lazy.set(kind::DEC, r, carry);
        }
        r
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T) -> T {
        Sub::run::<T, F>(lazy, T::new(0), a)
    }
}

impl Unary for Not {
    #[inline(always)]
    fn run<T: Int, const F: bool>(_lazy: &mut Lazy, a: T) -> T {
        T::new(!a.z())
    }
}

fn unary_reg<T: Int, O: Unary, const F: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let a = T::get(cpu, op.a);
    let r = O::run::<T, F>(&mut cpu.lazy, a);
    T::set(cpu, op.a, r);
    next(cpu, op)
}

fn unary_mem<T: Int, O: Unary, A: Addr>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let at = A::at(cpu, op, T::BYTES as u64, true)?;
        cpu.rmw::<T>(at, |cpu, a| O::run::<T, true>(&mut cpu.lazy, a))
    })
}

fn unary_mem_locked<T: Int, O: Unary, A: Addr>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let at = A::at(cpu, op, T::BYTES as u64, true)?;
        let before = cpu.lazy;
        cpu.lazy = cpu.locked::<T, Lazy>(at, |a| {
            let mut lazy = before;
            let r = O::run::<T, true>(&mut lazy, a);
            (r, lazy)
        })?;
        Ok(())
    })
}

fn binary<O: Alu>(l: &mut Lower<'_>) -> Option<Handler> {
    let f = l.flags;
    if l.is_mem(0) {
        let w = l.width(0);
        return if l.is_reg(1) {
            l.op.a = l.number(1);
            Some(match l.locked {
                true => by_width!(w, T => any_form!(A => to_mem_locked::<T, O, RegA, A>)),
                false => by_width!(w, T => by_form!(l.form, A => to_mem::<T, O, RegA, A>)),
            })
        } else {
            l.imm(1);
            Some(match l.locked {
                true => by_width!(w, T => any_form!(A => to_mem_locked::<T, O, Imm, A>)),
                false => by_width!(w, T => by_form!(l.form, A => to_mem::<T, O, Imm, A>)),
            })
        };
    }
    let w = l.width(0);
    l.op.a = l.number(0);
    Some(if l.is_reg(1) {
        l.op.b = l.number(1);
        if f {
            by_width!(w, T => to_reg::<T, O, RegB, true>)
        } else {
            by_width!(w, T => to_reg::<T, O, RegB, false>)
        }
    } else if l.is_mem(1) {
        if f {
            by_width!(w, T => by_form!(l.form, A => to_reg::<T, O, Mem<A>, true>))
        } else {
            by_width!(w, T => by_form!(l.form, A => to_reg::<T, O, Mem<A>, false>))
        }
    } else {
        l.imm(1);
        if f {
            by_width!(w, T => to_reg::<T, O, Imm, true>)
        } else {
            by_width!(w, T => to_reg::<T, O, Imm, false>)
        }
    })
}

fn compare<O: Alu>(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    if l.is_mem(0) {
        return Some(if l.is_reg(1) {
            l.op.a = l.number(1);
            by_width!(w, T => by_form!(l.form, A => flags_only::<T, O, Mem<A>, RegA>))
        } else {
            l.imm(1);
            by_width!(w, T => by_form!(l.form, A => flags_only::<T, O, Mem<A>, Imm>))
        });
    }
    l.op.a = l.number(0);
    Some(if l.is_reg(1) {
        l.op.b = l.number(1);
        by_width!(w, T => flags_only::<T, O, RegA, RegB>)
    } else if l.is_mem(1) {
        by_width!(w, T => by_form!(l.form, A => flags_only::<T, O, RegA, Mem<A>>))
    } else {
        l.imm(1);
        by_width!(w, T => flags_only::<T, O, RegA, Imm>)
    })
}

fn unary<O: Unary>(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    if l.is_mem(0) {
        return Some(if l.locked {
            by_width!(w, T => any_form!(A => unary_mem_locked::<T, O, A>))
        } else {
            by_width!(w, T => by_form!(l.form, A => unary_mem::<T, O, A>))
        });
    }
    l.op.a = l.number(0);
    Some(if l.flags {
        by_width!(w, T => unary_reg::<T, O, true>)
    } else {
        by_width!(w, T => unary_reg::<T, O, false>)
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
