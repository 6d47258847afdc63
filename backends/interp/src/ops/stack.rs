//! PUSH, POP, ENTER, LEAVE and the flags' way over the stack.

use super::operand::{Any, Imm, Index, Mem, RegB, Src, offset};
use super::{by_wide, ops};
use crate::cpu::{Cpu, RBP, RSP, SS, cr4, mode};
use crate::decode::{Form, Lower};
use crate::flags::{IF, IOPL, RF, TF, VIF, VIP, VM, ZF};
use crate::mmu::ram;
use crate::op::{Exec, Flow, Handler, OpPtr, leave, next, quick, run};
use crate::regs::Int;
use iced_x86::{Mnemonic as M, Register};

impl Cpu {
    /// Bits of the stack pointer.
    pub(crate) fn stack_mask(&self) -> u64 {
        if self.long_code() {
            u64::MAX
        } else if self.tag & mode::BIG_STACK != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    fn set_sp(&mut self, v: u64) {
        let mask = self.stack_mask();
        self.gpr[RSP] = match mask {
            0xffff => self.gpr[RSP] & !0xffff | v & 0xffff,
            _ => v & mask,
        };
    }

    /// Linear address of an offset in the stack.
    pub(crate) fn stack_at(&mut self, offset: u64, bytes: u64, write: bool) -> Exec<u64> {
        let offset = offset & self.stack_mask();
        self.linear(SS, offset, bytes, write)
    }

    /// Pushes 8 bytes in 64-bit code, if the TLB has the page; if not, nothing happens.
    #[inline(always)]
    pub(crate) fn quick_push(&mut self, v: u64) -> Exec {
        let sp = self.gpr[RSP].wrapping_sub(8);
        self.quick_write(sp, v)?;
        self.gpr[RSP] = sp;
        Ok(())
    }

    /// Pushes the low 2, 4 or 8 bytes.
    pub(crate) fn push_sized(&mut self, bytes: u8, v: u64) -> Exec {
        let sp = self.gpr[RSP].wrapping_sub(u64::from(bytes));
        let at = self.stack_at(sp, u64::from(bytes), true).map_err(|e| self.stack_fault(e))?;
        let done = match bytes {
            2 => self.write(at, v as u16),
            4 => self.write(at, v as u32),
            _ => self.write(at, v),
        };
        done.map_err(|e| self.stack_fault(e))?;
        self.set_sp(sp);
        Ok(())
    }

    /// A non-canonical stack pointer is #SS whatever segment the instruction's operand names.
    pub(crate) fn stack_fault(&mut self, e: crate::op::Abort) -> crate::op::Abort {
        if std::mem::take(&mut self.exception.non_canonical) {
            self.exception.vector = 12;
        }
        e
    }

    /// Reads 2, 4 or 8 bytes `depth` above the stack pointer.
    pub(crate) fn peek_sized(&mut self, bytes: u8, depth: u64) -> Exec<u64> {
        let at = self.gpr[RSP].wrapping_add(depth);
        let at = self.stack_at(at, u64::from(bytes), false)?;
        let v = match bytes {
            2 => self.read::<u16>(at).map(Int::z),
            4 => self.read::<u32>(at).map(Int::z),
            _ => self.read::<u64>(at),
        };
        v.map_err(|e| self.stack_fault(e))
    }

    /// Moves the stack pointer up.
    pub(crate) fn drop_stack(&mut self, bytes: u64) {
        self.set_sp(self.gpr[RSP].wrapping_add(bytes));
    }
}

/// PUSH in 64-bit code; `G` is the operand's general form.
fn push64<S: Src, G: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, push::<u64, G>, {
        let v = S::load::<u64>(cpu, op)?;
        cpu.quick_push(v)
    })
}

fn pop64(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, pop_reg::<u64>, {
        let v = cpu.quick_read::<u64>(cpu.gpr[RSP])?;
        cpu.gpr[RSP] = cpu.gpr[RSP].wrapping_add(8);
        u64::set(cpu, op.a, v);
        Ok(())
    })
}

/// Most PUSHes or POPs that one handler does.
pub(crate) const ROW: usize = 6;

/// PUSH of registers in a row, in 64-bit code, none of them RSP.
fn pushes<const N: usize>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let sp = cpu.gpr[RSP].wrapping_sub(8 * N as u64);
    let Ok(host) = cpu.quick_place(sp, 8 * N as u64, true) else { return push::<u64, RegB>(cpu, op) };
    let mut cell = op;
    for n in (0..N).rev() {
        ram::store(host + 8 * n, u64::get(cpu, cell.b));
        cell = cell.succ();
    }
    cpu.gpr[RSP] = sp;
    cell.go(cpu)
}

/// POP of registers in a row, in 64-bit code, none of them RSP; and RET.
fn pops<const N: usize, const RET: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let words = N + usize::from(RET);
    let sp = cpu.gpr[RSP];
    let Ok(host) = cpu.quick_place(sp, 8 * words as u64, false) else { return pop_reg::<u64>(cpu, op) };
    let mut cell = op;
    for n in 0..N {
        u64::set(cpu, cell.a, ram::load(host + 8 * n));
        cell = cell.succ();
    }
    cpu.gpr[RSP] = sp.wrapping_add(8 * words as u64);
    if RET { super::branch::indirect(cpu, cell, ram::load(host + 8 * N)) } else { cell.go(cpu) }
}

pub(super) fn push_row(n: usize) -> Option<Handler> {
    Some(match n {
        2 => pushes::<2>,
        3 => pushes::<3>,
        4 => pushes::<4>,
        5 => pushes::<5>,
        6 => pushes::<6>,
        _ => return None,
    })
}

pub(super) fn pop_row(n: usize, ret: bool) -> Option<Handler> {
    Some(match (n, ret) {
        (2, false) => pops::<2, false>,
        (3, false) => pops::<3, false>,
        (4, false) => pops::<4, false>,
        (5, false) => pops::<5, false>,
        (6, false) => pops::<6, false>,
        (1, true) => pops::<1, true>,
        (2, true) => pops::<2, true>,
        (3, true) => pops::<3, true>,
        (4, true) => pops::<4, true>,
        (5, true) => pops::<5, true>,
        (6, true) => pops::<6, true>,
        _ => return None,
    })
}

#[inline(never)]
fn push<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = S::load::<T>(cpu, op)?;
        cpu.push_sized(T::BYTES as u8, v.z())
    })
}

#[inline(never)]
fn pop_reg<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = cpu.peek_sized(T::BYTES as u8, 0)?;
        cpu.drop_stack(T::BYTES as u64);
        T::set(cpu, op.a, T::new(v));
        Ok(())
    })
}

/// The address is worked out with the stack pointer already moved.
fn pop_mem<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = cpu.peek_sized(T::BYTES as u8, 0)?;
        let sp = cpu.gpr[RSP];
        cpu.drop_stack(T::BYTES as u64);
        let done = Any::write(cpu, op, T::new(v));
        if done.is_err() {
            cpu.gpr[RSP] = sp;
        }
        done
    })
}

/// MOV to SS: holds off interrupts for one instruction.
pub(crate) fn mov_ss<S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        let v = S::load::<u16>(cpu, op)?;
        cpu.load_segment(SS, v)?;
        cpu.shadow_ss = true;
        cpu.check_events = true;
        Ok(super::pause(cpu, op))
    })
}

/// Flags that POPF may change.
fn popf(cpu: &mut Cpu, op: OpPtr) -> Exec {
    let bytes = op.c;
    if cpu.v86() && cpu.iopl() < 3 {
        if cpu.sys.cr4 & cr4::VME == 0 || bytes != 2 {
            return Err(cpu.gp(0));
        }
        let v = cpu.peek_sized(bytes, 0)?;
        if v & TF != 0 || (v & IF != 0 && cpu.flags & VIP != 0) {
            return Err(cpu.gp(0));
        }
        cpu.drop_stack(2);
        let vif = if v & IF != 0 { VIF } else { 0 };
        let keep = cpu.rflags() & (IF | IOPL | VIF | 0xffff_0000);
        cpu.set_rflags(v & 0xffff & !(IF | IOPL) | keep & !VIF | vif);
        return Ok(());
    }
    let v = cpu.peek_sized(bytes, 0)?;
    cpu.drop_stack(u64::from(bytes));
    let mut keep = VM | VIF | VIP | RF;
    if cpu.cpl != 0 && cpu.protected() {
        keep |= IOPL;
        if cpu.cpl > cpu.iopl() {
            keep |= IF;
        }
    }
    if bytes == 2 {
        keep |= 0xffff_0000;
    }
    let old = cpu.rflags();
    let new = v & !keep | old & keep;
    cpu.set_rflags(new & !RF);
    Ok(())
}

fn popf_op(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let tag = cpu.tag;
    match popf(cpu, op) {
        Ok(()) if cpu.check_events || cpu.tag != tag => super::pause(cpu, op),
        Ok(()) => next(cpu, op),
        Err(_) => cpu.abort(op),
    }
}

ops! {
    fn pushf(cpu, op) {
        let mut v = cpu.rflags() & !(RF | VM);
        if cpu.v86() && cpu.iopl() < 3 {
            if cpu.sys.cr4 & cr4::VME == 0 || op.c != 2 {
                return Err(cpu.gp(0));
            }
            v = v & !IF | IOPL | if v & VIF != 0 { IF } else { 0 };
        }
        cpu.push_sized(op.c, v)?
    }

    fn push_segment(cpu, op) {
        let v = u64::from(cpu.seg[usize::from(op.a)].selector);
        if op.c == 4 {
            // Only two bytes are written.
            let sp = cpu.gpr[RSP].wrapping_sub(4);
            let at = cpu.stack_at(sp, 2, true)?;
            cpu.write(at, v as u16)?;
            cpu.set_sp(sp)
        } else {
            cpu.push_sized(op.c, v)?
        }
    }

    fn pop_segment(cpu, op) {
        let v = cpu.peek_sized(op.c, 0)?;
        cpu.load_segment(usize::from(op.a), v as u16)?;
        cpu.drop_stack(u64::from(op.c))
    }

    pause fn pop_ss(cpu, op) {
        let v = cpu.peek_sized(op.c, 0)?;
        let before = cpu.stack_mask();
        cpu.load_segment(SS, v as u16)?;
        let sp = cpu.gpr[RSP];
        cpu.gpr[RSP] = sp & !before | sp.wrapping_add(u64::from(op.c)) & before;
        cpu.shadow_ss = true;
        cpu.check_events = true
    }

    fn pusha<T: Int>(cpu, _op) {
        let regs: [u64; 8] = std::array::from_fn(|r| cpu.gpr[r]);
        let sp = cpu.gpr[RSP];
        for v in regs {
            if cpu.push_sized(T::BYTES as u8, v).is_err() {
                cpu.gpr[RSP] = sp;
                return Err(crate::op::Abort);
            }
        }
    }

    fn popa<T: Int>(cpu, _op) {
        let mut new = [0; 8];
        for (i, v) in new.iter_mut().enumerate() {
            *v = cpu.peek_sized(T::BYTES as u8, (i * T::BYTES) as u64)?;
        }
        for (i, v) in new.into_iter().enumerate() {
            let r = 7 - i;
            if r != RSP { T::set(cpu, r as u8, T::new(v)) }
        }
        cpu.drop_stack(8 * T::BYTES as u64)
    }

    fn leave_op<T: Int>(cpu, _op) {
        let mask = cpu.stack_mask();
        let at = cpu.stack_at(cpu.gpr[RBP], T::BYTES as u64, false)?;
        let v = cpu.read::<T>(at)?;
        let sp = (cpu.gpr[RBP] & mask).wrapping_add(T::BYTES as u64);
        cpu.set_sp(sp);
        T::set(cpu, RBP as u8, v)
    }

    fn enter<T: Int>(cpu, op) {
        let (size, level) = (op.imm & 0xffff, op.c & 31);
        let bytes = T::BYTES as u64;
        let start = cpu.gpr[RSP];
        let bp = cpu.gpr[RBP];
        let mut work = || -> Exec<u64> {
            cpu.push_sized(T::BYTES as u8, bp)?;
            let frame = cpu.gpr[RSP];
            if level > 0 {
                for i in 1..u64::from(level) {
                    let at = cpu.stack_at(bp.wrapping_sub(i * bytes), bytes, false)?;
                    let v = cpu.read::<T>(at)?.z();
                    cpu.push_sized(T::BYTES as u8, v)?;
                }
                cpu.push_sized(T::BYTES as u8, frame)?;
            }
            // The new stack top must be writable.
            let end = cpu.gpr[RSP].wrapping_sub(size);
            let at = cpu.stack_at(end, bytes.min(2), true)?;
            cpu.check_write(at, 1)?;
            Ok(frame)
        };
        match work() {
            Ok(frame) => {
                let sp = cpu.gpr[RSP].wrapping_sub(size);
                cpu.set_sp(sp);
                T::set(cpu, RBP as u8, T::new(frame))
            }
            Err(e) => {
                cpu.gpr[RSP] = start;
                return Err(e);
            }
        }
    }

    fn bound<T: Int>(cpu, op) {
        let at = offset(cpu, op);
        let at = cpu.linear(usize::from(op.seg), at, 2 * T::BYTES as u64, false)?;
        let (low, high) = (cpu.read::<T>(at)?.s(), cpu.read::<T>(at.wrapping_add(T::BYTES as u64))?.s());
        let v = T::get(cpu, op.a).s();
        if v < low || v > high {
            return Err(cpu.raise(5, None));
        }
    }

    fn arpl_reg(cpu, op) {
        let (a, b) = (u16::get(cpu, op.a), u16::get(cpu, op.b));
        let r = if a & 3 < b & 3 { a & !3 | b & 3 } else { a };
        cpu.lazy.change(ZF, if a & 3 < b & 3 { ZF } else { 0 });
        u16::set(cpu, op.a, r)
    }

    /// Written only if it changes: it may stand where nothing may be written.
    fn arpl_mem(cpu, op) {
        let at = Any::at(cpu, op, 2, false)?;
        let (a, b) = (cpu.read::<u16>(at)?, u16::get(cpu, op.b));
        let below = a & 3 < b & 3;
        if below {
            Any::at(cpu, op, 2, true)?;
            cpu.write(at, a & !3 | b & 3)?;
        }
        cpu.lazy.change(ZF, if below { ZF } else { 0 })
    }
}

/// Stack operand size in bytes: from the mnemonic's form.
fn stack_bytes(l: &Lower<'_>) -> u8 {
    let n = l.i.stack_pointer_increment().unsigned_abs();
    match n {
        2 | 4 | 8 => n as u8,
        _ => (l.bits / 8) as u8,
    }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let long = l.bits == 64;
    let bytes = stack_bytes(l);
    let w = u32::from(bytes) * 8;
    let m = l.i.mnemonic();
    if !matches!(m, M::Bound | M::Arpl) && !l.is_mem(0) {
        l.op.seg = SS as u8;
    }
    Some(match m {
        M::Push | M::Pop if l.is_reg(0) && l.reg(0).is_segment_register() => {
            l.op.a = l.number(0);
            l.op.c = bytes;
            match (m, l.reg(0)) {
                (M::Push, _) => push_segment,
                (_, Register::SS) => pop_ss,
                _ => pop_segment,
            }
        }
        M::Push if l.is_reg(0) => {
            l.op.b = l.number(0);
            if long && bytes == 8 { push64::<RegB, RegB> } else { by_wide!(w, T => push::<T, RegB>) }
        }
        M::Push if l.is_mem(0) => {
            if long && bytes == 8 && l.form != Form::Any {
                push64::<Mem<Index>, Mem<Any>>
            } else {
                by_wide!(w, T => push::<T, Mem<Any>>)
            }
        }
        M::Push => {
            l.imm(0);
            if long && bytes == 8 { push64::<Imm, Imm> } else { by_wide!(w, T => push::<T, Imm>) }
        }
        M::Pop if l.is_reg(0) => {
            l.op.a = l.number(0);
            if long && bytes == 8 { pop64 } else { by_wide!(w, T => pop_reg::<T>) }
        }
        M::Pop => by_wide!(w, T => pop_mem::<T>),
        M::Pushf | M::Pushfd | M::Pushfq => {
            l.op.c = bytes;
            pushf
        }
        M::Popf | M::Popfd | M::Popfq => {
            l.op.c = bytes;
            popf_op
        }
        M::Pusha => pusha::<u16>,
        M::Pushad => pusha::<u32>,
        M::Popa => popa::<u16>,
        M::Popad => popa::<u32>,
        M::Leave => {
            use iced_x86::Code as C;
            match l.i.code() {
                C::Leavew => leave_op::<u16>,
                C::Leaved => leave_op::<u32>,
                _ => leave_op::<u64>,
            }
        }
        M::Enter => {
            use iced_x86::Code as C;
            l.op.imm = l.i.immediate(0);
            l.op.c = l.i.immediate(1) as u8;
            match l.i.code() {
                C::Enterw_imm16_imm8 => enter::<u16>,
                C::Enterd_imm16_imm8 => enter::<u32>,
                _ => enter::<u64>,
            }
        }
        M::Bound => {
            l.op.a = l.number(0);
            let w = l.width(0);
            by_wide!(w, T => bound::<T>)
        }
        M::Arpl if !l.protected() || l.mode & mode::V86 != 0 => super::undefined,
        M::Arpl => {
            l.op.b = l.number(1);
            if l.is_reg(0) {
                l.op.a = l.number(0);
                arpl_reg
            } else {
                arpl_mem
            }
        }
        _ => return None,
    })
}
