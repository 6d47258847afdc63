//! Transcendentals, and what works on exponents and remainders: F2XM1, FYL2X, FYL2XP1, FPATAN, FPTAN, FSIN,
//! FCOS, FSINCOS, FPREM, FPREM1, FSCALE, FXTRACT.

use super::arith::{alone, unary};
use super::{C2, CODES};
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::num::soft::{Env, F80, flag, rem};
use crate::num::x87math as xm;
use crate::op::{Flow, Handler, OpPtr};
use crate::ops::outlined;
use iced_x86::Mnemonic as M;

/// A result from ST(0) and ST(1).
trait Two {
    /// Condition codes that the instruction defines besides C1.
    const CODES: u16 = 0;
    /// The result goes to ST(1), and ST(0) is popped.
    const POP: bool;
    fn run(env: &mut Env, x: F80, y: F80) -> F80;
}
/// ST(0) is replaced by the first result, the second is pushed.
trait Pair {
    /// C2 tells of an argument out of range.
    const RANGE: bool;
    fn run(env: &mut Env, x: F80) -> (F80, F80);
}

struct Fyl2x;
struct Fyl2xp1;
struct Fpatan;
struct Fprem;
struct Fprem1;
struct Fscale;
struct Fsincos;
struct Fptan;
struct Fxtract;

unary! {
    F2xm1: |env, x| xm::f2xm1(env, x);
    Fsin: |env, x| xm::fsin(env, x);
    Fcos: |env, x| xm::fcos(env, x);
}

macro_rules! two {
    ($($name:ident, $codes:expr, $pop:expr => |$env:ident, $x:ident, $y:ident| $e:expr;)*) => {$(
        impl Two for $name {
            const CODES: u16 = $codes;
            const POP: bool = $pop;
            fn run($env: &mut Env, $x: F80, $y: F80) -> F80 { $e }
        }
    )*};
}

two! {
    Fyl2x, 0, true => |env, x, y| xm::fyl2x(env, x, y);
    Fyl2xp1, 0, true => |env, x, y| xm::fyl2xp1(env, x, y);
    Fpatan, 0, true => |env, x, y| xm::fpatan(env, x, y);
    Fprem, CODES, false => |env, x, y| rem::fprem(env, x, y, false);
    Fprem1, CODES, false => |env, x, y| rem::fprem(env, x, y, true);
    Fscale, 0, false => |env, x, y| rem::fscale(env, x, y);
}

impl Pair for Fsincos {
    const RANGE: bool = true;
    fn run(env: &mut Env, x: F80) -> (F80, F80) {
        xm::fsincos(env, x)
    }
}
impl Pair for Fptan {
    const RANGE: bool = true;
    fn run(env: &mut Env, x: F80) -> (F80, F80) {
        xm::fptan(env, x)
    }
}
impl Pair for Fxtract {
    const RANGE: bool = false;
    fn run(env: &mut Env, x: F80) -> (F80, F80) {
        rem::fxtract(env, x)
    }
}

fn two<O: Two>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let to = u8::from(O::POP);
        cpu.fpu.sw &= !(O::CODES & C2);
        if cpu.st_empty(0) || cpu.st_empty(1) {
            if cpu.x87_stack_fault(op, false) {
                cpu.set_st(to, F80::INDEFINITE);
                cpu.pop_times(to);
            }
            return Ok(());
        }
        let mut env = cpu.env();
        let v = O::run(&mut env, cpu.st(0), cpu.st(1));
        // A NaN leaves the quotient's bits as they are, and so does an unmasked exception that comes before the result.
        if v.se & 0x7fff != 0x7fff && !env.suppressed() {
            cpu.fpu.sw &= !O::CODES;
        }
        if cpu.retire(op, &mut env) {
            cpu.set_st(to, v);
            cpu.pop_times(to);
        }
        Ok(())
    })
}

fn pair<O: Pair>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        if O::RANGE {
            cpu.fpu.sw &= !C2;
        }
        let empty = cpu.st_empty(0);
        if empty || !cpu.st_empty(7) {
            if cpu.x87_stack_fault(op, !empty) {
                cpu.set_st(0, F80::INDEFINITE);
                cpu.push_st(F80::INDEFINITE);
            }
            return Ok(());
        }
        let mut env = cpu.env();
        let (first, second) = O::run(&mut env, cpu.st(0));
        if cpu.retire(op, &mut env) && env.flags & flag::C2 == 0 {
            cpu.set_st(0, first);
            cpu.push_st(second);
        }
        Ok(())
    })
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    Some(match l.i.mnemonic() {
        M::F2xm1 => alone::<F2xm1, false>,
        M::Fsin => alone::<Fsin, true>,
        M::Fcos => alone::<Fcos, true>,
        M::Fyl2x => two::<Fyl2x>,
        M::Fyl2xp1 => two::<Fyl2xp1>,
        M::Fpatan => two::<Fpatan>,
        M::Fprem => two::<Fprem>,
        M::Fprem1 => two::<Fprem1>,
        M::Fscale => two::<Fscale>,
        M::Fsincos => pair::<Fsincos>,
        M::Fptan => pair::<Fptan>,
        M::Fxtract => pair::<Fxtract>,
        _ => return None,
    })
}
