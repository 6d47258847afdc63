//! FCOM, FUCOM, FICOM, FCOMI, FUCOMI and their popping forms; FTST, FXAM.

use super::load::Source;
use super::{C1, CODES, last_st};
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::num::soft::{self, Env, F32, F64, F80, Relation};
use crate::op::{Flow, Handler, OpPtr};
use crate::ops::{ops, outlined};
use iced_x86::{MemorySize as S, Mnemonic as M};

impl Cpu {
    /// Compares ST(0) with a value and pops `op.c` times. The codes are set even if an exception is unmasked.
    #[inline]
    fn x87_compare(&mut self, op: OpPtr, env: &mut Env, with: Option<F80>, quiet: bool) {
        let (relation, pop) = match with {
            Some(with) if !self.st_empty(0) => {
                let relation = soft::compare(env, self.st(0), with, quiet);
                (relation, self.retire(op, env))
            }
            _ => (Relation::Unordered, self.x87_stack_fault(op, false)),
        };
        self.fpu.sw = self.fpu.sw & !CODES | relation.x87_codes() as u16;
        if pop {
            self.pop_times(op.c);
        }
    }
}

fn registers<const QUIET: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let with = if cpu.st_empty(op.b) { None } else { Some(cpu.st(op.b)) };
        let mut env = cpu.env();
        cpu.x87_compare(op, &mut env, with, QUIET);
        Ok(())
    })
}

fn memory<T: Source>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let with = T::load(cpu, op)?;
        let mut env = cpu.env();
        let with = with.operand(&mut env);
        cpu.x87_compare(op, &mut env, Some(with), false);
        Ok(())
    })
}

/// FCOMI and FUCOMI.
fn to_flags<const QUIET: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let (relation, pop) = if cpu.st_empty(0) || cpu.st_empty(op.b) {
            (Relation::Unordered, cpu.x87_stack_fault(op, false))
        } else {
            let mut env = cpu.env();
            let relation = soft::compare(&mut env, cpu.st(0), cpu.st(op.b), QUIET);
            // C1 is left as it is.
            let c1 = cpu.fpu.sw & C1;
            let pop = cpu.retire(op, &mut env);
            cpu.fpu.sw |= c1;
            (relation, pop)
        };
        cpu.lazy.put(u64::from(relation.eflags()));
        if pop {
            cpu.pop_times(op.c);
        }
        Ok(())
    })
}

ops! {
    fn ftst(cpu, op) {
        cpu.x87_wait()?;
        let mut env = cpu.env();
        cpu.x87_compare(op, &mut env, Some(F80::ZERO), false)
    }

    fn fxam(cpu, _op) {
        cpu.x87_wait()?;
        let codes = soft::fxam(cpu.st(0), cpu.st_empty(0));
        cpu.fpu.sw = cpu.fpu.sw & !CODES | codes as u16
    }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    l.op.c = match m {
        M::Fcomp | M::Fucomp | M::Ficomp | M::Fcomip | M::Fucomip => 1,
        M::Fcompp | M::Fucompp => 2,
        _ => 0,
    };
    l.op.b = last_st(l, 1);
    Some(match m {
        M::Fcom | M::Fcomp | M::Ficom | M::Ficomp if l.is_mem(0) => match l.i.memory_size() {
            S::Float32 => memory::<F32>,
            S::Float64 => memory::<F64>,
            S::Int16 => memory::<i16>,
            _ => memory::<i32>,
        },
        M::Fcom | M::Fcomp | M::Fcompp => registers::<false>,
        M::Fucom | M::Fucomp | M::Fucompp => registers::<true>,
        M::Fcomi | M::Fcomip => to_flags::<false>,
        M::Fucomi | M::Fucomip => to_flags::<true>,
        M::Ftst => ftst,
        M::Fxam => fxam,
        _ => return None,
    })
}
