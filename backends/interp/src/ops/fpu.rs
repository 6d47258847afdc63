//! x87 and EMMS. (Arithmetic is in `num::soft` and `num::x87math`.)

use super::operand::{Addr, Any};
use crate::cpu::{Cpu, RAX, cr0, mode};
use crate::decode::Lower;
use crate::num::soft::{self, Env, F32, F64, F80, Relation, flag};
use crate::num::x87math::{self as xm, Constant};
use crate::op::{Abort, Exec, Handler, OpPtr};
use crate::regs::Int;
use iced_x86::{Code as C, Mnemonic as M};

/// What one of the family does with the operands in `op.c` (ST(i)) and memory.
type Body = fn(&mut Cpu, OpPtr) -> Exec;

const ES_B: u16 = 0x8080;
const C0: u16 = 0x100;
const C1: u16 = 0x200;
const C2: u16 = 0x400;
const C3: u16 = 0x4000;
const SF: u16 = 0x40;

impl Cpu {
    fn index(&self, i: u8) -> usize {
        usize::from(self.fpu.top.wrapping_add(i) & 7)
    }

    fn empty(&self, i: u8) -> bool {
        self.fpu.tags >> self.index(i) & 1 == 0
    }

    /// ST(i) as a number to compute with.
    fn st(&self, i: u8) -> F80 {
        let r = self.fpu.regs[self.index(i)];
        F80 { se: r.se, frac: r.frac }
    }

    fn set_st(&mut self, i: u8, v: F80) {
        let n = self.index(i);
        self.fpu.regs[n] = godwit_state::F80 { se: v.se, frac: v.frac };
        self.fpu.tags |= 1 << n;
    }

    fn pop_st(&mut self) {
        let n = self.index(0);
        self.fpu.tags &= !(1 << n);
        self.fpu.top = self.fpu.top.wrapping_add(1) & 7;
    }

    /// Raises #NM, and #MF for an exception still pending.
    fn enter_x87(&mut self, waits: bool) -> Exec {
        if self.tag & (mode::EM | mode::TS) != 0 {
            return Err(self.raise(7, None));
        }
        if waits && self.fpu.sw & 0x80 != 0 {
            return Err(self.math_fault());
        }
        Ok(())
    }

    fn math_fault(&mut self) -> Abort {
        // Without CR0.NE the 8259s would tell; nobody has wired that for decades.
        let _ = self.sys.cr0 & cr0::NE;
        self.raise(16, None)
    }

    fn env(&self) -> Env {
        Env::from_cw(self.fpu.cw)
    }

    /// Takes over flags; false if an unmasked exception forbids the result.
    fn retire_x87(&mut self, env: &mut Env) -> bool {
        let suppressed = env.suppressed();
        let f = env.flags as u16;
        self.fpu.sw = self.fpu.sw & !C1 | f & (0x3f | C1);
        if self.fpu.sw & !self.fpu.cw & 0x3f != 0 {
            self.fpu.sw |= ES_B;
        }
        !suppressed
    }

    /// A stack fault: `over` of the stack. True if it is masked.
    fn stack_fault_x87(&mut self, over: bool) -> bool {
        self.fpu.sw = self.fpu.sw & !C1 | SF | flag::IE as u16 | if over { C1 } else { 0 };
        let masked = self.fpu.cw & 1 != 0;
        if !masked {
            self.fpu.sw |= ES_B;
        }
        masked
    }

    fn push_st(&mut self, v: F80) {
        if !self.empty(7) {
            if self.stack_fault_x87(true) {
                self.fpu.top = self.fpu.top.wrapping_sub(1) & 7;
                self.set_st(0, INDEFINITE);
            }
            return;
        }
        self.fpu.top = self.fpu.top.wrapping_sub(1) & 7;
        self.set_st(0, v);
    }

    fn note_x87(&mut self, op: OpPtr) {
        self.fpu.fip = op.rip(self);
        self.fpu.fop = 0;
    }
}

const INDEFINITE: F80 = F80 { se: 0xffff, frac: 0xc000_0000_0000_0000 };

/// Where the memory operand's value comes from: by the kind in `op.a`.
mod source {
    pub(super) const F32: u8 = 1;
    pub(super) const F64: u8 = 2;
    pub(super) const F80: u8 = 3;
    pub(super) const I16: u8 = 4;
    pub(super) const I32: u8 = 5;
    pub(super) const I64: u8 = 6;
    pub(super) const BCD: u8 = 7;
}

fn size(kind: u8) -> u64 {
    match kind {
        source::F32 | source::I32 => 4,
        source::F64 | source::I64 => 8,
        source::I16 => 2,
        _ => 10,
    }
}

fn load_value(cpu: &mut Cpu, op: OpPtr, env: &mut Env) -> Exec<F80> {
    let at = Any::at(cpu, op, size(op.a), false)?;
    cpu.fpu.fdp = at;
    Ok(match op.a {
        source::F32 => soft::convert(env, F32(cpu.read::<u32>(at)?)),
        source::F64 => soft::convert(env, F64(cpu.read::<u64>(at)?)),
        source::I16 => soft::from_i32(env, i32::from(cpu.read::<u16>(at)? as i16)),
        source::I32 => soft::from_i32(env, cpu.read::<u32>(at)? as i32),
        source::I64 => soft::from_i64(env, cpu.read::<u64>(at)? as i64),
        k => {
            let mut b = [0; 10];
            cpu.read_bytes(at, &mut b)?;
            if k == source::BCD { soft::bcd::fbld(b) } else { F80::from_bytes(b) }
        }
    })
}

fn load_op(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.enter_x87(true)?;
    let mut env = cpu.env();
    let v = load_value(cpu, op, &mut env)?;
    cpu.note_x87(op);
    if !cpu.empty(7) {
        cpu.push_st(v);
        return Ok(());
    }
    if cpu.retire_x87(&mut env) {
        cpu.push_st(v);
    }
    Ok(())
}

fn load_st(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.enter_x87(true)?;
    cpu.note_x87(op);
    if cpu.empty(op.c) {
        if cpu.stack_fault_x87(false) {
            cpu.fpu.top = cpu.fpu.top.wrapping_sub(1) & 7;
            cpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    cpu.fpu.sw &= !C1;
    let v = cpu.st(op.c);
    cpu.push_st(v);
    Ok(())
}

fn store_op(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.enter_x87(true)?;
    let pop = op.b & 1 != 0;
    let truncate = op.b & 2 != 0;
    let bytes = size(op.a);
    let at = Any::at(cpu, op, bytes, true)?;
    cpu.check_write(at, bytes)?;
    let mut env = cpu.env();
    let empty = cpu.empty(0);
    if empty && !cpu.stack_fault_x87(false) {
        return Ok(());
    }
    let v = if empty { INDEFINITE } else { cpu.st(0) };
    // An empty register has said what there is to say.
    let quiet = if empty { flag::ALL } else { 0 };
    env.masks |= quiet;
    let mut b = [0u8; 10];
    match op.a {
        source::F32 => b[..4].copy_from_slice(&soft::convert::<F80, F32>(&mut env, v).0.to_le_bytes()),
        source::F64 => b[..8].copy_from_slice(&soft::convert::<F80, F64>(&mut env, v).0.to_le_bytes()),
        source::I16 => b[..2].copy_from_slice(&soft::to_i16(&mut env, v, truncate).to_le_bytes()),
        source::I32 => b[..4].copy_from_slice(&soft::to_i32(&mut env, v, truncate).to_le_bytes()),
        source::I64 => b[..8].copy_from_slice(&soft::to_i64(&mut env, v, truncate).to_le_bytes()),
        source::BCD => b = soft::bcd::fbstp(&mut env, v),
        _ => b = v.to_bytes(),
    }
    if !empty {
        // Memory is not written under any unmasked exception but inexact.
        let trapped = env.flags & !env.masks & flag::ALL & !flag::PE != 0;
        cpu.note_x87(op);
        if !cpu.retire_x87(&mut env) || trapped {
            return Ok(());
        }
    }
    cpu.write_bytes(at, &b[..bytes as usize])?;
    if pop {
        cpu.pop_st();
    }
    Ok(())
}

fn store_st(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.enter_x87(true)?;
    let empty = cpu.empty(0);
    if empty && !cpu.stack_fault_x87(false) {
        return Ok(());
    }
    if !empty {
        cpu.fpu.sw &= !C1;
    }
    let v = if empty { INDEFINITE } else { cpu.st(0) };
    cpu.set_st(op.c, v);
    if op.b & 1 != 0 {
        cpu.pop_st();
    }
    Ok(())
}

/// The six arithmetic operations, numbered as encoded.
fn compute(which: u8, env: &mut Env, a: F80, b: F80) -> F80 {
    match which {
        0 => soft::add(env, a, b),
        1 => soft::mul(env, a, b),
        4 => soft::sub(env, a, b),
        5 => soft::sub(env, b, a),
        6 => soft::div(env, a, b),
        _ => soft::div(env, b, a),
    }
}

/// `op.b`: operation, times 4; bit 0 pop, bit 1 destination is ST(i).
fn arith(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.enter_x87(true)?;
    let (which, pop, to_i) = (op.b >> 2, op.b & 1 != 0, op.b & 2 != 0);
    let mut env = cpu.env();
    let operand = if op.a != 0 { Some(load_value(cpu, op, &mut env)?) } else { None };
    cpu.note_x87(op);
    let dest = if to_i { op.c } else { 0 };
    if cpu.empty(0) || (operand.is_none() && cpu.empty(op.c)) {
        if cpu.stack_fault_x87(false) {
            cpu.set_st(dest, INDEFINITE);
            if pop {
                cpu.pop_st();
            }
        }
        return Ok(());
    }
    let (a, b) = match (operand, to_i) {
        (Some(v), _) => (cpu.st(0), v),
        (None, false) => (cpu.st(0), cpu.st(op.c)),
        (None, true) => (cpu.st(op.c), cpu.st(0)),
    };
    let r = compute(which, &mut env, a, b);
    if cpu.retire_x87(&mut env) {
        cpu.set_st(dest, r);
        if pop {
            cpu.pop_st();
        }
    }
    Ok(())
}

/// Comparisons. `op.b`: pops in bits 0 and 1, bit 2 quiet, bit 3 result to RFLAGS, bit 4 with zero.
fn compare(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.enter_x87(true)?;
    let mut env = cpu.env();
    let (pops, quiet, eflags, zero) = (op.b & 3, op.b & 4 != 0, op.b & 8 != 0, op.b & 16 != 0);
    let operand = if zero {
        Some(F80 { se: 0, frac: 0 })
    } else if op.a != 0 {
        Some(load_value(cpu, op, &mut env)?)
    } else {
        None
    };
    cpu.note_x87(op);
    let relation = if cpu.empty(0) || (operand.is_none() && cpu.empty(op.c)) {
        if !cpu.stack_fault_x87(false) {
            return Ok(());
        }
        Relation::Unordered
    } else {
        let b = operand.unwrap_or_else(|| cpu.st(op.c));
        let r = soft::compare(&mut env, cpu.st(0), b, quiet);
        if !cpu.retire_x87(&mut env) {
            return Ok(());
        }
        r
    };
    if eflags {
        cpu.lazy.put(u64::from(relation.eflags()));
    } else {
        let c = match relation {
            Relation::Greater => 0,
            Relation::Less => C0,
            Relation::Equal => C3,
            Relation::Unordered => C0 | C2 | C3,
        };
        cpu.fpu.sw = cpu.fpu.sw & !(C0 | C2 | C3) | c;
    }
    for _ in 0..pops {
        cpu.pop_st();
    }
    Ok(())
}

/// Operations on ST(0) alone.
fn unary(cpu: &mut Cpu, op: OpPtr, f: impl FnOnce(&mut Env, F80) -> F80) -> Exec {
    cpu.enter_x87(true)?;
    cpu.note_x87(op);
    if cpu.empty(0) {
        if cpu.stack_fault_x87(false) {
            cpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let mut env = cpu.env();
    let r = f(&mut env, cpu.st(0));
    take_conditions(cpu, &env);
    if cpu.retire_x87(&mut env) {
        cpu.set_st(0, r);
    }
    Ok(())
}

fn take_conditions(cpu: &mut Cpu, env: &Env) {
    let c = (env.flags & (flag::C0 | flag::C2 | flag::C3)) as u16;
    cpu.fpu.sw = cpu.fpu.sw & !C2 | c & C2;
}

/// Operations of ST(0) and ST(1), into ST(1) with a pop, or into ST(0).
fn binary(cpu: &mut Cpu, op: OpPtr, pop: bool, f: impl FnOnce(&mut Env, F80, F80) -> F80) -> Exec {
    cpu.enter_x87(true)?;
    cpu.note_x87(op);
    let dest = u8::from(pop);
    if cpu.empty(0) || cpu.empty(1) {
        if cpu.stack_fault_x87(false) {
            cpu.set_st(dest, INDEFINITE);
            if pop {
                cpu.pop_st();
            }
        }
        return Ok(());
    }
    let mut env = cpu.env();
    let r = f(&mut env, cpu.st(0), cpu.st(1));
    let c = (env.flags & (flag::C0 | flag::C2 | flag::C3)) as u16;
    if !pop {
        cpu.fpu.sw = cpu.fpu.sw & !(C0 | C2 | C3) | c;
    }
    let ok = cpu.retire_x87(&mut env);
    if !pop {
        cpu.fpu.sw = cpu.fpu.sw & !C1 | (env.flags & flag::C1) as u16;
    }
    if ok {
        cpu.set_st(dest, r);
        if pop {
            cpu.pop_st();
        }
    }
    Ok(())
}

/// Operations that replace ST(0) and push another result.
fn two_results(cpu: &mut Cpu, op: OpPtr, f: impl FnOnce(&mut Env, F80) -> (F80, F80)) -> Exec {
    cpu.enter_x87(true)?;
    cpu.note_x87(op);
    if cpu.empty(0) || !cpu.empty(7) {
        let over = !cpu.empty(0);
        if cpu.stack_fault_x87(over) {
            cpu.set_st(0, INDEFINITE);
            cpu.fpu.top = cpu.fpu.top.wrapping_sub(1) & 7;
            cpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let mut env = cpu.env();
    let (below, top) = f(&mut env, cpu.st(0));
    take_conditions(cpu, &env);
    let incomplete = env.flags & flag::C2 != 0;
    if cpu.retire_x87(&mut env) && !incomplete {
        cpu.set_st(0, below);
        cpu.push_st(top);
    }
    Ok(())
}

fn constant(cpu: &mut Cpu, op: OpPtr, f: impl FnOnce(&Env) -> F80) -> Exec {
    cpu.enter_x87(true)?;
    cpu.note_x87(op);
    let env = cpu.env();
    let v = f(&env);
    cpu.fpu.sw &= !C1;
    cpu.push_st(v);
    Ok(())
}

fn examine(cpu: &mut Cpu) -> Exec {
    cpu.enter_x87(true)?;
    let v = cpu.st(0);
    let exp = v.se & 0x7fff;
    let integer = v.frac >> 63 != 0;
    let class = if cpu.empty(0) {
        C3 | C0
    } else if exp == 0 && v.frac == 0 {
        C3
    } else if exp == 0 {
        C3 | C2
    } else if !integer {
        0
    } else if exp == 0x7fff {
        if v.frac << 1 == 0 { C2 | C0 } else { C0 }
    } else {
        C2
    };
    let sign = if v.se >> 15 != 0 { C1 } else { 0 };
    cpu.fpu.sw = cpu.fpu.sw & !(C0 | C1 | C2 | C3) | class | sign;
    Ok(())
}

fn init(cpu: &mut Cpu) {
    cpu.fpu.cw = 0x37f;
    cpu.fpu.sw = 0;
    cpu.fpu.top = 0;
    cpu.fpu.tags = 0;
    cpu.fpu.fop = 0;
    cpu.fpu.fip = 0;
    cpu.fpu.fdp = 0;
}

/// The full tag word.
fn full_tags(cpu: &Cpu) -> u16 {
    (0..8).fold(0, |tags, n| {
        let r = cpu.fpu.regs[n];
        let exp = r.se & 0x7fff;
        let tag = if cpu.fpu.tags >> n & 1 == 0 {
            3
        } else if exp == 0 && r.frac == 0 {
            1
        } else if exp == 0 || exp == 0x7fff || r.frac >> 63 == 0 {
            2
        } else {
            0
        };
        tags | tag << (2 * n)
    })
}

/// The environment as FNSTENV stores it: 14 or 28 bytes.
fn store_environment(cpu: &mut Cpu, wide: bool) -> ([u8; 28], usize) {
    let words = [cpu.fpu.cw, cpu.status_word(), full_tags(cpu)];
    let mut b = [0u8; 28];
    if wide {
        for (i, w) in words.into_iter().enumerate() {
            b[i * 4..i * 4 + 2].copy_from_slice(&w.to_le_bytes());
            b[i * 4 + 2..i * 4 + 4].fill(0xff);
        }
        b[12..16].copy_from_slice(&(cpu.fpu.fip as u32).to_le_bytes());
        b[20..24].copy_from_slice(&(cpu.fpu.fdp as u32).to_le_bytes());
        b[26..28].fill(0xff);
        (b, 28)
    } else {
        for (i, w) in words.into_iter().enumerate() {
            b[i * 2..i * 2 + 2].copy_from_slice(&w.to_le_bytes());
        }
        b[6..8].copy_from_slice(&(cpu.fpu.fip as u16).to_le_bytes());
        b[10..12].copy_from_slice(&(cpu.fpu.fdp as u16).to_le_bytes());
        (b, 14)
    }
}

fn load_environment(cpu: &mut Cpu, b: &[u8], wide: bool) {
    let word = |i: usize| {
        let at = if wide { i * 4 } else { i * 2 };
        u16::from_le_bytes([b[at], b[at + 1]])
    };
    cpu.fpu.cw = word(0) & 0x1f7f | 0x40;
    cpu.set_status_word(word(1));
    let tags = word(2);
    cpu.fpu.tags = (0..8).fold(0, |t, n| t | u8::from(tags >> (2 * n) & 3 != 3) << n);
    cpu.update_x87_summary();
}

fn fnstenv(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.enter_x87(false)?;
    let wide = op.b != 0;
    let at = Any::at(cpu, op, 28, true)?;
    let (b, len) = store_environment(cpu, wide);
    cpu.write_bytes(at, &b[..len])?;
    cpu.fpu.cw |= 0x3f;
    cpu.update_x87_summary();
    Ok(())
}

fn fldenv(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.enter_x87(true)?;
    let wide = op.b != 0;
    let mut b = [0; 28];
    let len = if wide { 28 } else { 14 };
    let at = Any::at(cpu, op, len as u64, false)?;
    cpu.read_bytes(at, &mut b[..len])?;
    load_environment(cpu, &b, wide);
    Ok(())
}

fn fnsave(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.enter_x87(false)?;
    let wide = op.b != 0;
    let (e, len) = store_environment(cpu, wide);
    let mut b = [0u8; 108];
    b[..len].copy_from_slice(&e[..len]);
    for i in 0..8u8 {
        let at = len + usize::from(i) * 10;
        b[at..at + 10].copy_from_slice(&cpu.st(i).to_bytes());
    }
    let at = Any::at(cpu, op, 108, true)?;
    cpu.write_bytes(at, &b[..len + 80])?;
    init(cpu);
    Ok(())
}

fn frstor(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.enter_x87(true)?;
    let wide = op.b != 0;
    let len = if wide { 28 } else { 14 };
    let mut b = [0u8; 108];
    let at = Any::at(cpu, op, len as u64 + 80, false)?;
    cpu.read_bytes(at, &mut b[..len + 80])?;
    load_environment(cpu, &b, wide);
    for i in 0..8u8 {
        let at = len + usize::from(i) * 10;
        let mut raw = [0; 10];
        raw.copy_from_slice(&b[at..at + 10]);
        let v = F80::from_bytes(raw);
        let n = cpu.index(i);
        cpu.fpu.regs[n] = godwit_state::F80 { se: v.se, frac: v.frac };
    }
    Ok(())
}

macro_rules! bodies {
    ($($name:ident |$cpu:ident, $op:ident| $body:expr;)*) => {$(
        fn $name($cpu: &mut Cpu, $op: OpPtr) -> crate::op::Flow {
            let body: Body = |$cpu, $op| {
                let _ = &$op;
                $body
            };
            super::outlined($cpu, $op, body)
        }
    )*};
}

bodies! {
    fld |cpu, op| load_op(cpu, op);
    fld_st |cpu, op| load_st(cpu, op);
    fst |cpu, op| store_op(cpu, op);
    fst_st |cpu, op| store_st(cpu, op);
    arithmetic |cpu, op| arith(cpu, op);
    fcom |cpu, op| compare(cpu, op);
    fchs |cpu, op| unary(cpu, op, |_, v| v.negate());
    fabs |cpu, op| unary(cpu, op, |_, v| v.abs());
    fsqrt |cpu, op| unary(cpu, op, soft::sqrt);
    frndint |cpu, op| unary(cpu, op, soft::convert::frndint);
    f2xm1 |cpu, op| unary(cpu, op, xm::f2xm1);
    fsin |cpu, op| unary(cpu, op, xm::fsin);
    fcos |cpu, op| unary(cpu, op, xm::fcos);
    fsincos |cpu, op| two_results(cpu, op, xm::fsincos);
    fptan |cpu, op| two_results(cpu, op, xm::fptan);
    fxtract |cpu, op| two_results(cpu, op, |env, v| {
        let (a, b) = soft::rem::fxtract(env, v);
        (a, b)
    });
    fyl2x |cpu, op| binary(cpu, op, true, xm::fyl2x);
    fyl2xp1 |cpu, op| binary(cpu, op, true, xm::fyl2xp1);
    fpatan |cpu, op| binary(cpu, op, true, xm::fpatan);
    fprem |cpu, op| binary(cpu, op, false, |env, a, b| soft::rem::fprem(env, a, b, false));
    fprem1 |cpu, op| binary(cpu, op, false, |env, a, b| soft::rem::fprem(env, a, b, true));
    fscale |cpu, op| binary(cpu, op, false, soft::rem::fscale);
    fld_constant |cpu, op| constant(cpu, op, |env| {
        match op.c {
            0 => F80 { se: 0x3fff, frac: 1 << 63 },
            1 => xm::constant(env, Constant::Log2Ten),
            2 => xm::constant(env, Constant::Log2E),
            3 => xm::constant(env, Constant::Pi),
            4 => xm::constant(env, Constant::Log10Two),
            5 => xm::constant(env, Constant::LnTwo),
            _ => F80 { se: 0, frac: 0 },
        }
    });
    fxam |cpu, op| examine(cpu);
    fxch |cpu, op| {
        cpu.enter_x87(true)?;
        cpu.fpu.sw &= !C1;
        for i in [0, op.c] {
            if cpu.empty(i) {
                if !cpu.stack_fault_x87(false) {
                    return Ok(());
                }
                cpu.set_st(i, INDEFINITE);
            }
        }
        let (a, b) = (cpu.st(0), cpu.st(op.c));
        cpu.set_st(0, b);
        cpu.set_st(op.c, a);
        Ok(())
    };
    ffree |cpu, op| {
        cpu.enter_x87(true)?;
        let n = cpu.index(op.c);
        cpu.fpu.tags &= !(1 << n);
        if op.b != 0 { cpu.pop_st() }
        Ok(())
    };
    fincstp |cpu, op| {
        cpu.enter_x87(true)?;
        cpu.fpu.top = cpu.fpu.top.wrapping_add(1) & 7;
        cpu.fpu.sw &= !C1;
        Ok(())
    };
    fdecstp |cpu, op| {
        cpu.enter_x87(true)?;
        cpu.fpu.top = cpu.fpu.top.wrapping_sub(1) & 7;
        cpu.fpu.sw &= !C1;
        Ok(())
    };
    fnop |cpu, op| cpu.enter_x87(true);
    fninit |cpu, op| {
        cpu.enter_x87(false)?;
        init(cpu);
        Ok(())
    };
    fnclex |cpu, op| {
        cpu.enter_x87(false)?;
        cpu.fpu.sw &= !0x80ff;
        Ok(())
    };
    wait |cpu, op| {
        if cpu.tag & mode::TS != 0 && cpu.sys.cr0 & cr0::MP != 0 {
            return Err(cpu.raise(7, None));
        }
        if cpu.fpu.sw & 0x80 != 0 { return Err(cpu.math_fault()); }
        Ok(())
    };
    fldcw |cpu, op| {
        cpu.enter_x87(true)?;
        let at = Any::at(cpu, op, 2, false)?;
        cpu.fpu.cw = cpu.read::<u16>(at)? & 0x1f7f | 0x40;
        cpu.update_x87_summary();
        Ok(())
    };
    fnstcw |cpu, op| {
        cpu.enter_x87(false)?;
        let at = Any::at(cpu, op, 2, true)?;
        cpu.write(at, cpu.fpu.cw)
    };
    fnstsw_mem |cpu, op| {
        cpu.enter_x87(false)?;
        let at = Any::at(cpu, op, 2, true)?;
        let v = cpu.status_word();
        cpu.write(at, v)
    };
    fnstsw_ax |cpu, op| {
        cpu.enter_x87(false)?;
        let v = cpu.status_word();
        <u16 as Int>::set(cpu, RAX as u8, v);
        Ok(())
    };
    fnstenv_op |cpu, op| fnstenv(cpu, op);
    fldenv_op |cpu, op| fldenv(cpu, op);
    fnsave_op |cpu, op| fnsave(cpu, op);
    frstor_op |cpu, op| frstor(cpu, op);
    fcmov |cpu, op| {
        cpu.enter_x87(true)?;
        if cpu.empty(0) || cpu.empty(op.c) {
            if cpu.stack_fault_x87(false) { cpu.set_st(0, INDEFINITE) }
            return Ok(());
        }
        cpu.fpu.sw &= !C1;
        if cpu.lazy.cond(op.b) {
            let v = cpu.st(op.c);
            cpu.set_st(0, v);
        }
        Ok(())
    };
    emms |cpu, op| {
        if cpu.tag & mode::EM != 0 { return Err(cpu.ud()); }
        cpu.enter_x87(true)?;
        cpu.fpu.tags = 0;
        Ok(())
    };
}

/// Number of the ST register that is not ST(0), or 0.
fn stack_register(l: &Lower<'_>) -> u8 {
    (0..l.i.op_count())
        .filter(|n| l.is_reg(*n) && l.reg(*n).is_st())
        .map(|n| l.reg(n).number() as u8)
        .find(|n| *n != 0)
        .unwrap_or(0)
}

fn memory_kind(l: &Lower<'_>) -> u8 {
    use iced_x86::MemorySize as S;
    match l.i.memory_size() {
        S::Float32 => source::F32,
        S::Float64 => source::F64,
        S::Float80 => source::F80,
        S::Int16 => source::I16,
        S::Int32 => source::I32,
        S::Int64 => source::I64,
        S::Bcd => source::BCD,
        _ => 0,
    }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    let mem = l.i.op_count() > 0 && l.is_mem(0);
    let arith = |which: u8| which << 2;
    if mem {
        l.op.a = memory_kind(l);
    }
    l.op.c = stack_register(l);
    // ST(i) as destination.
    let to_i = !mem && l.i.op_count() == 2 && l.is_reg(0) && l.reg(0).number() != 0
        || matches!(
            l.i.code(),
            C::Fadd_sti_st0
                | C::Fmul_sti_st0
                | C::Fsub_sti_st0
                | C::Fsubr_sti_st0
                | C::Fdiv_sti_st0
                | C::Fdivr_sti_st0
        );
    let pair = |which: u8, pop: bool| arith(which) | u8::from(pop) | u8::from(to_i || pop) << 1;
    let number = match m {
        M::Fadd | M::Fiadd => Some(pair(0, false)),
        M::Faddp => Some(pair(0, true)),
        M::Fmul | M::Fimul => Some(pair(1, false)),
        M::Fmulp => Some(pair(1, true)),
        M::Fsub | M::Fisub => Some(pair(4, false)),
        M::Fsubp => Some(pair(4, true)),
        M::Fsubr | M::Fisubr => Some(pair(5, false)),
        M::Fsubrp => Some(pair(5, true)),
        M::Fdiv | M::Fidiv => Some(pair(6, false)),
        M::Fdivp => Some(pair(6, true)),
        M::Fdivr | M::Fidivr => Some(pair(7, false)),
        M::Fdivrp => Some(pair(7, true)),
        _ => None,
    };
    if let Some(b) = number {
        l.op.b = b;
        return Some(arithmetic);
    }
    let compare = match m {
        M::Fcom | M::Ficom => Some(0),
        M::Fcomp | M::Ficomp => Some(1),
        M::Fcompp => Some(2),
        M::Fucom => Some(4),
        M::Fucomp => Some(5),
        M::Fucompp => Some(6),
        M::Fcomi => Some(8),
        M::Fcomip => Some(9),
        M::Fucomi => Some(12),
        M::Fucomip => Some(13),
        M::Ftst => Some(16),
        _ => None,
    };
    if let Some(b) = compare {
        l.op.b = b;
        if matches!(m, M::Fcompp | M::Fucompp) {
            l.op.c = 1;
        }
        return Some(fcom);
    }
    let cond = match m {
        M::Fcmovb => Some(2),
        M::Fcmove => Some(4),
        M::Fcmovbe => Some(6),
        M::Fcmovu => Some(10),
        M::Fcmovnb => Some(3),
        M::Fcmovne => Some(5),
        M::Fcmovnbe => Some(7),
        M::Fcmovnu => Some(11),
        _ => None,
    };
    if let Some(cc) = cond {
        l.op.b = cc;
        return Some(fcmov);
    }
    let load_constant = match m {
        M::Fld1 => Some(0),
        M::Fldl2t => Some(1),
        M::Fldl2e => Some(2),
        M::Fldpi => Some(3),
        M::Fldlg2 => Some(4),
        M::Fldln2 => Some(5),
        M::Fldz => Some(6),
        _ => None,
    };
    if let Some(c) = load_constant {
        l.op.c = c;
        return Some(fld_constant);
    }
    // The environment's form follows the operand size.
    let wide = matches!(
        l.i.code(),
        C::Fnstenv_m28byte
            | C::Fstenv_m28byte
            | C::Fldenv_m28byte
            | C::Fnsave_m108byte
            | C::Fsave_m108byte
            | C::Frstor_m108byte
    );
    Some(match m {
        M::Fld if !mem => fld_st,
        M::Fld | M::Fild | M::Fbld => fld,
        M::Fst | M::Fstp | M::Fstpnce if !mem => {
            l.op.b = u8::from(m != M::Fst);
            fst_st
        }
        M::Fst | M::Fist => fst,
        M::Fstp | M::Fistp | M::Fbstp => {
            l.op.b = 1;
            fst
        }
        M::Fisttp => {
            l.op.b = 3;
            fst
        }
        M::Fchs => fchs,
        M::Fabs => fabs,
        M::Fsqrt => fsqrt,
        M::Frndint => frndint,
        M::F2xm1 => f2xm1,
        M::Fsin => fsin,
        M::Fcos => fcos,
        M::Fsincos => fsincos,
        M::Fptan => fptan,
        M::Fxtract => fxtract,
        M::Fyl2x => fyl2x,
        M::Fyl2xp1 => fyl2xp1,
        M::Fpatan => fpatan,
        M::Fprem => fprem,
        M::Fprem1 => fprem1,
        M::Fscale => fscale,
        M::Fxam => fxam,
        M::Fxch => fxch,
        M::Ffree => ffree,
        M::Ffreep => {
            l.op.b = 1;
            ffree
        }
        M::Fincstp => fincstp,
        M::Fdecstp => fdecstp,
        M::Fnop => fnop,
        M::Fninit | M::Finit => fninit,
        M::Fnclex | M::Fclex => fnclex,
        M::Wait => wait,
        M::Fldcw => fldcw,
        M::Fnstcw | M::Fstcw => fnstcw,
        M::Fnstsw | M::Fstsw if mem => fnstsw_mem,
        M::Fnstsw | M::Fstsw => fnstsw_ax,
        M::Fnstenv | M::Fstenv => {
            l.op.b = u8::from(wide);
            fnstenv_op
        }
        M::Fldenv => {
            l.op.b = u8::from(wide);
            fldenv_op
        }
        M::Fnsave | M::Fsave => {
            l.op.b = u8::from(wide);
            fnsave_op
        }
        M::Frstor => {
            l.op.b = u8::from(wide);
            frstor_op
        }
        M::Emms => emms,
        _ => return None,
    })
}
