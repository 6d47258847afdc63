//! FADD, FSUB(R), FMUL, FDIV(R) in all their forms; FABS, FCHS, FSQRT, FRNDINT.

use super::load::Source;
use super::{C2, last_st};
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::num::soft::{self, Env, F32, F64, F80};
use crate::op::{Flow, Handler, OpPtr};
use crate::ops::outlined;
use iced_x86::{MemorySize as S, Mnemonic as M};

/// An operation of two operands, by its number.
static BINARY: [fn(&mut Env, F80, F80) -> F80; 6] = [
    soft::add,
    soft::mul,
    soft::sub,
    |env, a, b| soft::sub(env, b, a),
    soft::div,
    |env, a, b| soft::div(env, b, a),
];
const ADD: u64 = 0;
const MUL: u64 = 1;
const SUB: u64 = 2;
const SUBR: u64 = 3;
const DIV: u64 = 4;
const DIVR: u64 = 5;

/// ST(0) = f(ST(0)).
pub(super) trait Unary {
    fn run(env: &mut Env, v: F80) -> F80;
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

/// The operation whose number is in `imm`.
fn binary(op: OpPtr, env: &mut Env, a: F80, b: F80) -> F80 {
    BINARY[op.imm as usize % BINARY.len()](env, a, b)
}

/// ST(a) = ST(a) op ST(b), then `c` pops.
fn registers(cpu: &mut Cpu, op: OpPtr) -> Flow {
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
        let v = binary(op, &mut env, cpu.st(op.a), cpu.st(op.b));
        if cpu.retire(op, &mut env) {
            cpu.set_st(op.a, v);
            cpu.pop_times(op.c);
        }
        Ok(())
    })
}

fn memory<T: Source>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let from = T::load(cpu, op)?;
        if cpu.st_empty(0) {
            if cpu.x87_stack_fault(op, false) {
                cpu.set_st(0, F80::INDEFINITE);
            }
            return Ok(());
        }
        let mut env = cpu.env();
        let from = from.operand(&mut env);
        let v = binary(op, &mut env, cpu.st(0), from);
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

fn pick(l: &mut Lower<'_>, number: u64, pops: u8) -> Option<Handler> {
    l.op.imm = number;
    if l.i.op_count() > 0 && l.is_mem(0) {
        return Some(match l.i.memory_size() {
            S::Float32 => memory::<F32>,
            S::Float64 => memory::<F64>,
            S::Int16 => memory::<i16>,
            S::Int32 => memory::<i32>,
            _ => return None,
        });
    }
    l.op.a = if l.i.op_count() > 0 { l.number(0) } else { 1 };
    l.op.b = last_st(l, 0);
    l.op.c = pops;
    Some(registers)
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    match l.i.mnemonic() {
        M::Fadd | M::Fiadd => pick(l, ADD, 0),
        M::Faddp => pick(l, ADD, 1),
        M::Fmul | M::Fimul => pick(l, MUL, 0),
        M::Fmulp => pick(l, MUL, 1),
        M::Fsub | M::Fisub => pick(l, SUB, 0),
        M::Fsubp => pick(l, SUB, 1),
        M::Fsubr | M::Fisubr => pick(l, SUBR, 0),
        M::Fsubrp => pick(l, SUBR, 1),
        M::Fdiv | M::Fidiv => pick(l, DIV, 0),
        M::Fdivp => pick(l, DIV, 1),
        M::Fdivr | M::Fidivr => pick(l, DIVR, 0),
        M::Fdivrp => pick(l, DIVR, 1),
        M::Fabs => Some(alone::<Abs, false>),
        M::Fchs => Some(alone::<Chs, false>),
        M::Fsqrt => Some(alone::<Sqrt, false>),
        M::Frndint => Some(alone::<Rndint, false>),
        _ => None,
    }
}
