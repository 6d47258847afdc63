//! Stores: FST, FSTP, FIST, FISTP, FISTTP, FBSTP. Nothing is stored or popped if an unmasked exception other
//! than inexact occurs; memory faults come before any change.

use super::last_st;
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::num::soft::{self, Env, F32, F64, F80, bcd, flag};
use crate::op::{Exec, Flow, Handler, OpPtr};
use crate::ops::operand::Any;
use crate::ops::{ops, outlined};
use iced_x86::{MemorySize as S, Mnemonic as M};

/// A memory format that can be stored.
trait Target: Sized {
    const BYTES: u64;
    /// Stored for an empty register.
    const INDEFINITE: Self;
    fn narrow(env: &mut Env, v: F80, truncate: bool) -> Self;
    fn write(self, cpu: &mut Cpu, at: u64) -> Exec;
}

macro_rules! target {
    ($($t:ty, $bytes:literal, $indefinite:expr => |$env:ident, $v:ident, $truncate:ident| $narrow:expr, $x:ident => $raw:expr;)*) => {$(
        impl Target for $t {
            const BYTES: u64 = $bytes;
            const INDEFINITE: $t = $indefinite;
            #[inline(always)]
            fn narrow($env: &mut Env, $v: F80, $truncate: bool) -> $t {
                let _ = $truncate;
                $narrow
            }
            #[inline(always)]
            fn write(self, cpu: &mut Cpu, at: u64) -> Exec {
                let $x = self;
                cpu.write(at, $raw)
            }
        }
    )*};
}

target! {
    F32, 4, F32(0xffc0_0000) => |env, v, t| soft::convert(env, v), x => x.0;
    F64, 8, F64(0xfff8_0000_0000_0000) => |env, v, t| soft::convert(env, v), x => x.0;
    i16, 2, i16::MIN => |env, v, t| soft::to_i16(env, v, t), x => x as u16;
    i32, 4, i32::MIN => |env, v, t| soft::to_i32(env, v, t), x => x as u32;
    i64, 8, i64::MIN => |env, v, t| soft::to_i64(env, v, t), x => x as u64;
}

/// FBSTP's operand.
struct Bcd([u8; 10]);

impl Target for Bcd {
    const BYTES: u64 = 10;
    const INDEFINITE: Bcd = Bcd([0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff]);
    fn narrow(env: &mut Env, v: F80, _truncate: bool) -> Bcd {
        Bcd(bcd::fbstp(env, v))
    }
    fn write(self, cpu: &mut Cpu, at: u64) -> Exec {
        cpu.write_bytes(at, &self.0)
    }
}

impl Target for F80 {
    const BYTES: u64 = 10;
    const INDEFINITE: F80 = F80::INDEFINITE;
    fn narrow(_env: &mut Env, v: F80, _truncate: bool) -> F80 {
        v
    }
    fn write(self, cpu: &mut Cpu, at: u64) -> Exec {
        cpu.write_bytes(at, &self.to_bytes())
    }
}

/// `a`: times to pop; `c`: truncate.
fn store<T: Target>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    const FATAL: u32 = flag::IE | flag::OE | flag::UE;
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let at = Any::at(cpu, op, T::BYTES, true)?;
        let mut env = cpu.env();
        let empty = cpu.st_empty(0);
        let v = if empty { T::INDEFINITE } else { T::narrow(&mut env, cpu.st(0), op.c != 0) };
        let raised = if empty { flag::IE } else { env.flags };
        let write = raised & FATAL & !env.masks == 0;
        if write {
            v.write(cpu, at)?;
        } else {
            cpu.check_write(at, T::BYTES)?;
            env.flags &= !(flag::PE | flag::C1);
        }
        if empty {
            cpu.x87_stack_fault(op, false);
        } else {
            cpu.retire(op, &mut env);
        }
        if write {
            cpu.pop_times(op.a);
        }
        Ok(())
    })
}

ops! {
    fn fst_st(cpu, op) {
        cpu.x87_wait()?;
        let v = if cpu.st_empty(0) {
            if !cpu.x87_stack_fault(op, false) {
                return Ok(());
            }
            F80::INDEFINITE
        } else {
            cpu.clear_c1();
            cpu.st(0)
        };
        cpu.set_st(op.b, v);
        cpu.pop_times(op.a)
    }

    /// FSTPNCE: as FSTP, but an empty register is no fault, and is not stored.
    fn fstpnce(cpu, op) {
        cpu.x87_wait()?;
        cpu.clear_c1();
        if !cpu.st_empty(0) {
            cpu.set_st(op.b, cpu.st(0));
        }
        cpu.pop_st()
    }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    if !matches!(m, M::Fst | M::Fstp | M::Fstpnce | M::Fist | M::Fistp | M::Fisttp | M::Fbstp) {
        return None;
    }
    l.op.a = u8::from(!matches!(m, M::Fst | M::Fist));
    l.op.c = u8::from(m == M::Fisttp);
    if !l.is_mem(0) {
        // ST(i) comes first in FSTPNCE's operands.
        l.op.b = if l.is_reg(0) && l.reg(0).is_st() { l.number(0) } else { last_st(l, 0) };
        return Some(if m == M::Fstpnce { fstpnce } else { fst_st });
    }
    Some(match l.i.memory_size() {
        S::Float32 => store::<F32>,
        S::Float64 => store::<F64>,
        S::Float80 => store::<F80>,
        S::Int16 => store::<i16>,
        S::Int32 => store::<i32>,
        S::Int64 => store::<i64>,
        S::Bcd => store::<Bcd>,
        _ => return None,
    })
}
