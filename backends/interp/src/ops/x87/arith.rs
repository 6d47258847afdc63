//! FADD, FSUB(R), FMUL, FDIV(R) in all their forms; FABS, FCHS, FSQRT, FRNDINT.

use super::load::Source;
use super::{C2, last_st};
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::num::soft::{self, Env, F32, F64, F80};
use crate::op::{Flow, Handler, OpPtr};
use crate::ops::operand::Addr;
use crate::ops::{by_form, outlined};
use iced_x86::{MemorySize as S, Mnemonic as M};

trait Binary {
    fn run(env: &mut Env, to: F80, from: F80) -> F80;
}
/// ST(0) = f(ST(0)).
pub(super) trait Unary {
    fn run(env: &mut Env, v: F80) -> F80;
}

macro_rules! binary {
    ($($name:ident: |$env:ident, $a:ident, $b:ident| $e:expr;)*) => {$(
        struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn run($env: &mut Env, $a: F80, $b: F80) -> F80 { $e }
        }
    )*};
}

binary! {
    Add: |env, a, b| soft::add(env, a, b);
    Mul: |env, a, b| soft::mul(env, a, b);
    Sub: |env, a, b| soft::sub(env, a, b);
    SubR: |env, a, b| soft::sub(env, b, a);
    Div: |env, a, b| soft::div(env, a, b);
    DivR: |env, a, b| soft::div(env, b, a);
}

macro_rules! unary {
    ($($name:ident: |$env:ident, $a:ident| $e:expr;)*) => {$(
        struct $name;
        impl $crate::ops::x87::arith::Unary for $name {
            #[inline(always)]
            fn run($env: &mut Env, $a: F80) -> F80 { let _ = &$env; $e }
        }
    )*};
}
pub(super) use unary;

unary! {
    Abs: |env, v| v.abs();
    Chs: |env, v| v.negate();
    Sqrt: |env, v| soft::sqrt(env, v);
    Rndint: |env, v| soft::convert::frndint(env, v);
}

/// ST(a) = ST(a) op ST(b), then `c` pops.
fn registers<O: Binary>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        if cpu.st_empty(op.a) || cpu.st_empty(op.b) {
            if cpu.x87_stack_fault(op, false) {
                cpu.set_st(op.a, F80::INDEFINITE);
                cpu.pop_times(op.c);
            }
            return Ok(());
        }
        let mut env = cpu.env();
        let v = O::run(&mut env, cpu.st(op.a), cpu.st(op.b));
        if cpu.retire(op, &mut env) {
            cpu.set_st(op.a, v);
            cpu.pop_times(op.c);
        }
        Ok(())
    })
}

fn memory<O: Binary, T: Source, A: Addr>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let from = T::load::<A>(cpu, op)?;
        if cpu.st_empty(0) {
            if cpu.x87_stack_fault(op, false) {
                cpu.set_st(0, F80::INDEFINITE);
            }
            return Ok(());
        }
        let mut env = cpu.env();
        let from = from.operand(&mut env);
        let v = O::run(&mut env, cpu.st(0), from);
        if cpu.retire(op, &mut env) {
            cpu.set_st(0, v);
        }
        Ok(())
    })
}

/// ST(0) = f(ST(0)), with C2 cleared first where it tells of an argument out of range.
pub(super) fn alone<O: Unary, const RANGE: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        if RANGE {
            cpu.fpu.sw &= !C2;
        }
        if cpu.st_empty(0) {
            if cpu.x87_stack_fault(op, false) {
                cpu.set_st(0, F80::INDEFINITE);
            }
            return Ok(());
        }
        let mut env = cpu.env();
        let v = O::run(&mut env, cpu.st(0));
        if cpu.retire(op, &mut env) {
            cpu.set_st(0, v);
        }
        Ok(())
    })
}

fn pick<O: Binary>(l: &mut Lower<'_>, pops: u8) -> Option<Handler> {
    if l.i.op_count() > 0 && l.is_mem(0) {
        return Some(match l.i.memory_size() {
            S::Float32 => by_form!(l.form, A => memory::<O, F32, A>),
            S::Float64 => by_form!(l.form, A => memory::<O, F64, A>),
            S::Int16 => by_form!(l.form, A => memory::<O, i16, A>),
            S::Int32 => by_form!(l.form, A => memory::<O, i32, A>),
            _ => return None,
        });
    }
    l.op.a = if l.i.op_count() > 0 { l.number(0) } else { 1 };
    l.op.b = last_st(l, 0);
    l.op.c = pops;
    Some(registers::<O>)
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    match l.i.mnemonic() {
        M::Fadd | M::Fiadd => pick::<Add>(l, 0),
        M::Faddp => pick::<Add>(l, 1),
        M::Fmul | M::Fimul => pick::<Mul>(l, 0),
        M::Fmulp => pick::<Mul>(l, 1),
        M::Fsub | M::Fisub => pick::<Sub>(l, 0),
        M::Fsubp => pick::<Sub>(l, 1),
        M::Fsubr | M::Fisubr => pick::<SubR>(l, 0),
        M::Fsubrp => pick::<SubR>(l, 1),
        M::Fdiv | M::Fidiv => pick::<Div>(l, 0),
        M::Fdivp => pick::<Div>(l, 1),
        M::Fdivr | M::Fidivr => pick::<DivR>(l, 0),
        M::Fdivrp => pick::<DivR>(l, 1),
        M::Fabs => Some(alone::<Abs, false>),
        M::Fchs => Some(alone::<Chs, false>),
        M::Fsqrt => Some(alone::<Sqrt, false>),
        M::Frndint => Some(alone::<Rndint, false>),
        _ => None,
    }
}
