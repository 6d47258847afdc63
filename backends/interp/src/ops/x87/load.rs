//! Loads, constants, and moves between registers: FLD, FILD, FBLD, FLD1 and so on, FXCH, FCMOVcc.

use super::last_st;
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::num::soft::{self, Env, F32, F64, F80, bcd, flag};
use crate::num::x87math::{Constant, constant};
use crate::op::{Exec, Flow, Handler, OpPtr};
use crate::ops::operand::Any;
use crate::ops::{ops, outlined};
use iced_x86::{MemorySize as S, Mnemonic as M};

/// A memory format that can be loaded.
pub(super) trait Source {
    fn load(cpu: &mut Cpu, op: OpPtr) -> Exec<Self>
    where
        Self: Sized;
    /// As FLD and FILD load it.
    fn extend(self, env: &mut Env) -> F80;
    /// As an operand of arithmetic.
    fn operand(self, env: &mut Env) -> F80;
}

macro_rules! source {
    ($($t:ty, $int:ty, $new:expr => |$env:ident, $v:ident| $extend:expr, $operand:expr;)*) => {$(
        impl Source for $t {
            #[inline(always)]
            fn load(cpu: &mut Cpu, op: OpPtr) -> Exec<$t> {
                Any::read::<$int>(cpu, op).map($new)
            }
            #[inline(always)]
            fn extend(self, $env: &mut Env) -> F80 { let $v = self; $extend }
            #[inline(always)]
            fn operand(self, $env: &mut Env) -> F80 { let $v = self; $operand }
        }
    )*};
}

source! {
    F32, u32, F32 => |env, v| soft::convert(env, v), soft::widen(env, v);
    F64, u64, F64 => |env, v| soft::convert(env, v), soft::widen(env, v);
    i16, u16, |v| v as i16 => |env, v| soft::from_i32(env, i32::from(v)), soft::from_i32(env, i32::from(v));
    i32, u32, |v| v as i32 => |env, v| soft::from_i32(env, v), soft::from_i32(env, v);
    i64, u64, |v| v as i64 => |env, v| soft::from_i64(env, v), soft::from_i64(env, v);
}

impl Cpu {
    /// Pushes a value, if there is room.
    #[inline]
    fn x87_push(&mut self, op: OpPtr, v: F80) {
        if self.st_empty(7) {
            self.clear_c1();
            self.push_st(v);
        } else if self.x87_stack_fault(op, true) {
            self.push_st(F80::INDEFINITE);
        }
    }

    fn bytes10(&mut self, op: OpPtr) -> Exec<[u8; 10]> {
        let at = Any::at(self, op, 10, false)?;
        let mut b = [0; 10];
        self.read_bytes(at, &mut b)?;
        Ok(b)
    }
}

fn fld<T: Source>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let v = T::load(cpu, op)?;
        if !cpu.st_empty(7) {
            cpu.x87_push(op, F80::INDEFINITE);
            return Ok(());
        }
        let mut env = cpu.env();
        let v = v.extend(&mut env);
        // A denormal is loaded even where its exception is unmasked, as found on the silicon.
        let invalid = env.flags & flag::IE & !env.masks != 0;
        cpu.retire(op, &mut env);
        if !invalid {
            cpu.push_st(v);
        }
        Ok(())
    })
}

/// FCMOVcc; `c` is the condition.
fn cmov(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        if cpu.st_empty(0) || cpu.st_empty(op.b) {
            if cpu.x87_stack_fault(op, false) {
                cpu.set_st(0, F80::INDEFINITE);
            }
            return Ok(());
        }
        if cpu.lazy.cond(op.c) {
            cpu.set_st(0, cpu.st(op.b));
        }
        Ok(())
    })
}

ops! {
    fn fld80(cpu, op) {
        cpu.x87_wait()?;
        let b = cpu.bytes10(op)?;
        cpu.x87_push(op, F80::from_bytes(b))
    }

    fn fbld(cpu, op) {
        cpu.x87_wait()?;
        let b = cpu.bytes10(op)?;
        cpu.x87_push(op, bcd::fbld(b))
    }

    fn fld_st(cpu, op) {
        cpu.x87_wait()?;
        if cpu.st_empty(op.b) {
            if cpu.x87_stack_fault(op, false) {
                cpu.push_st(F80::INDEFINITE);
            }
        } else {
            let v = cpu.st(op.b);
            cpu.x87_push(op, v);
        }
    }

    fn fld_constant(cpu, op) {
        cpu.x87_wait()?;
        let which = match op.c {
            0 => Constant::One,
            1 => Constant::Log2Ten,
            2 => Constant::Log2E,
            3 => Constant::Pi,
            4 => Constant::Log10Two,
            5 => Constant::LnTwo,
            _ => Constant::Zero,
        };
        let v = constant(&cpu.env(), which);
        cpu.x87_push(op, v)
    }

    fn fxch(cpu, op) {
        cpu.x87_wait()?;
        if cpu.st_empty(0) || cpu.st_empty(op.b) {
            if !cpu.x87_stack_fault(op, false) {
                return Ok(());
            }
            for i in [0, op.b] {
                if cpu.st_empty(i) {
                    cpu.set_st(i, F80::INDEFINITE);
                }
            }
        } else {
            cpu.clear_c1();
        }
        let (a, b) = (cpu.st(0), cpu.st(op.b));
        cpu.set_st(0, b);
        cpu.set_st(op.b, a)
    }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    if let Some(n) =
        [M::Fld1, M::Fldl2t, M::Fldl2e, M::Fldpi, M::Fldlg2, M::Fldln2, M::Fldz].iter().position(|c| *c == m)
    {
        l.op.c = n as u8;
        return Some(fld_constant);
    }
    l.op.b = last_st(l, 1);
    Some(match m {
        M::Fld if !l.is_mem(0) => fld_st,
        M::Fld => match l.i.memory_size() {
            S::Float32 => fld::<F32>,
            S::Float64 => fld::<F64>,
            _ => fld80,
        },
        M::Fild => match l.i.memory_size() {
            S::Int16 => fld::<i16>,
            S::Int32 => fld::<i32>,
            _ => fld::<i64>,
        },
        M::Fbld => fbld,
        M::Fxch => fxch,
        M::Fcmovb
        | M::Fcmovnb
        | M::Fcmove
        | M::Fcmovne
        | M::Fcmovbe
        | M::Fcmovnbe
        | M::Fcmovu
        | M::Fcmovnu => {
            l.op.c = match m {
                M::Fcmovb => 2,
                M::Fcmovnb => 3,
                M::Fcmove => 4,
                M::Fcmovne => 5,
                M::Fcmovbe => 6,
                M::Fcmovnbe => 7,
                M::Fcmovu => 10,
                _ => 11,
            };
            cmov
        }
        _ => return None,
    })
}
