//! Far transfers, software interrupts, returns from handlers, fast system calls.

use super::operand::offset;
use super::ops;
use crate::cpu::{CS, Cpu, RCX, RDX, RSP, SS, cr4, efer, mode};
use crate::decode::Lower;
use crate::exception::Source;
use crate::flags::{AC, ARITH, DF, ID, IF, IOPL, NT, OF, RF, TF, VIF, VIP, VM};
use crate::op::{Exec, Flow, Handler, OpPtr, leave};
use crate::segment::{Descriptor, GP, NP};
use crate::task::By;
use godwit_state::{SegmentV1, access};
use iced_x86::{Code as C, Mnemonic as M, OpKind, Register};

fn canonical(v: u64) -> bool {
    v.wrapping_add(1 << 47) >> 48 == 0
}

impl Cpu {
    /// Checks the target of a transfer in the code segment `d`, whose offset is `rip`.
    fn check_target(&mut self, d: &Descriptor, rip: u64) -> Exec {
        let long = self.long_mode() && d.access() & access::L != 0;
        let ok = if long { canonical(rip) } else { rip <= u64::from(d.limit()) };
        if ok { Ok(()) } else { Err(self.gp(0)) }
    }

    /// A far JMP or CALL to a selector and offset; `next` is the next instruction's place.
    fn far_to(&mut self, selector: u16, rip: u64, by: By, next: u64, size: u8) -> Exec {
        let call = (by == By::Call).then_some(next);
        if self.real_segments() {
            if let Some(back) = call {
                self.push_return(size, back)?;
            }
            self.seg[CS].selector = selector;
            self.seg[CS].base = u64::from(selector) << 4;
            if self.v86() {
                self.seg[CS].access = 0xfb;
                self.seg[CS].limit = 0xffff;
            }
            self.rip = rip;
            self.update_mode();
            return Ok(());
        }
        let code = u32::from(selector & 0xfffc);
        if code == 0 {
            return Err(self.gp(0));
        }
        let mut d = self.descriptor(selector, GP)?;
        if !d.is_segment() {
            return self.gate(d, selector, by, next);
        }
        if !d.is_code() {
            return Err(self.gp(code));
        }
        let rpl = (selector & 3) as u8;
        let allowed =
            if d.conforming() { d.dpl() <= self.cpl } else { rpl <= self.cpl && d.dpl() == self.cpl };
        let long_bits = d.access() & (access::L | access::DB) == access::L | access::DB && self.long_mode();
        if !allowed || long_bits {
            return Err(self.gp(code));
        }
        if !d.present() {
            return Err(self.raise(NP, Some(code)));
        }
        self.check_target(&d, rip)?;
        self.far_within(&mut d, selector, call, rip, size)
    }

    /// Pushes CS and the offset to return to.
    fn push_return(&mut self, size: u8, back: u64) -> Exec {
        let (cs, sp) = (self.seg[CS].selector, self.gpr[RSP]);
        self.push_sized(size, u64::from(cs))?;
        let pushed = self.push_sized(size, back);
        if pushed.is_err() {
            self.gpr[RSP] = sp;
        }
        pushed
    }

    /// A transfer without a change of privilege to the code segment `d`; a call's place to return to is pushed.
    fn far_within(
        &mut self,
        d: &mut Descriptor,
        selector: u16,
        call: Option<u64>,
        rip: u64,
        size: u8,
    ) -> Exec {
        let (cpl, sp) = (self.cpl, self.gpr[RSP]);
        if let Some(back) = call {
            self.push_return(size, back)?;
        }
        let done = self.set_code(d, selector, cpl);
        if done.is_err() {
            self.gpr[RSP] = sp;
            return done;
        }
        self.rip = rip;
        Ok(())
    }

    /// A transfer through a call gate or a task gate, or to a task.
    fn gate(&mut self, g: Descriptor, selector: u16, by: By, next: u64) -> Exec {
        let call = (by == By::Call).then_some(next);
        let code = u32::from(selector & 0xfffc);
        let long = self.long_mode();
        let kind = g.system_type();
        let task = !long && matches!(kind, 1 | 3 | 5 | 9 | 11);
        if !(kind == 12 || kind == 4 && !long || task) {
            return Err(self.gp(code));
        }
        if g.dpl() < self.cpl || (selector & 3) as u8 > g.dpl() {
            return Err(self.gp(code));
        }
        if task && kind != 5 {
            if selector & 4 != 0 {
                return Err(self.gp(code));
            }
            return self.task_switch(selector, g, by, next, self.rflags());
        }
        if !g.present() {
            return Err(self.raise(NP, Some(code)));
        }
        if kind == 5 {
            let selector = (g.low >> 16) as u16;
            let tss = self.gate_task(selector)?;
            return self.task_switch(selector, tss, by, next, self.rflags());
        }
        let target = (g.low >> 16) as u16;
        let mut rip = u64::from(g.low & 0xffff);
        if kind == 12 {
            rip |= u64::from(g.high & 0xffff_0000);
        }
        rip |= u64::from(self.upper(&g, selector)?) << 32;
        let target_code = u32::from(target & 0xfffc);
        if target_code == 0 {
            return Err(self.gp(0));
        }
        let mut d = self.descriptor(target, GP)?;
        let is_long = d.access() & access::L != 0;
        if !d.is_code() || d.dpl() > self.cpl || (long && (!is_long || d.access() & access::DB != 0)) {
            return Err(self.gp(target_code));
        }
        if !d.present() {
            return Err(self.raise(NP, Some(target_code)));
        }
        let size: u8 = if long {
            8
        } else if kind == 12 {
            4
        } else {
            2
        };
        let within = d.conforming() || d.dpl() == self.cpl;
        if call.is_none() && !within {
            return Err(self.gp(target_code));
        }
        self.check_target(&d, rip)?;
        let Some(back) = call.filter(|_| !within) else {
            return self.far_within(&mut d, target, call, rip, size);
        };
        let old_cs = self.seg[CS].selector;
        let cpl = d.dpl();
        let before = (self.seg[SS], self.gpr[RSP], self.seg[CS], self.cpl);
        let count = if long { 0 } else { g.high & 31 };
        let mut parameters = Vec::with_capacity(count as usize);
        for i in 0..u64::from(count) {
            parameters.push(self.peek_sized(size, i * u64::from(size))?);
        }
        let (ss, sp) = if long {
            let at = self.sys.tr.base.wrapping_add(4 + u64::from(cpl) * 8);
            let sp = self.system_read::<u64>(at)?;
            (self.null_stack(u16::from(cpl), cpl), sp)
        } else {
            self.inner_stack(cpl)?
        };
        let mut frame = vec![u64::from(before.0.selector), before.1];
        frame.extend(parameters.into_iter().rev());
        frame.extend([u64::from(old_cs), back]);
        self.seg[SS] = ss;
        self.gpr[RSP] = sp;
        let work = || -> Exec {
            self.set_code(&mut d, target, cpl)?;
            for v in frame {
                self.push_sized(size, v)?;
            }
            Ok(())
        };
        if let Err(e) = work() {
            (self.seg[SS], self.gpr[RSP], self.seg[CS], _) = before;
            self.set_cpl(before.3);
            return Err(e);
        }
        self.rip = rip;
        Ok(())
    }

    /// The code segment to return to: checked as RET and IRET do.
    fn return_code(&mut self, selector: u16) -> Exec<Descriptor> {
        let code = u32::from(selector & 0xfffc);
        if code == 0 {
            return Err(self.gp(0));
        }
        let d = self.descriptor(selector, GP)?;
        let rpl = (selector & 3) as u8;
        let ok =
            d.is_code() && rpl >= self.cpl && if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
        if !ok {
            return Err(self.gp(code));
        }
        if !d.present() {
            return Err(self.raise(NP, Some(code)));
        }
        Ok(d)
    }

    /// SS to return to, with CPL `rpl`.
    fn return_stack(&mut self, selector: u16, rpl: u8, long: bool) -> Exec<SegmentV1> {
        if selector & 0xfffc == 0 && long && rpl != 3 {
            if (selector & 3) as u8 != rpl {
                return Err(self.gp(0));
            }
            return Ok(self.null_stack(selector, rpl));
        }
        self.stack_segment(selector, rpl, GP)
    }

    fn far_return(&mut self, size: u8, extra: u64) -> Exec {
        let step = u64::from(size);
        let rip = self.peek_sized(size, 0)?;
        let selector = self.peek_sized(size, step)? as u16;
        if self.real_segments() {
            self.drop_stack(2 * step + extra);
            return self.far_to(selector, rip, By::Jump, 0, size);
        }
        let mut d = self.return_code(selector)?;
        self.check_target(&d, rip)?;
        let rpl = (selector & 3) as u8;
        if rpl == self.cpl {
            self.drop_stack(2 * step + extra);
            self.set_code(&mut d, selector, rpl)?;
        } else {
            let sp = self.peek_sized(size, 2 * step + extra)?;
            let ss_selector = self.peek_sized(size, 3 * step + extra)? as u16;
            let long = self.long_mode() && d.access() & access::L != 0;
            let ss = self.return_stack(ss_selector, rpl, long)?;
            self.set_code(&mut d, selector, rpl)?;
            self.seg[SS] = ss;
            self.update_mode();
            let mask = self.stack_mask();
            self.gpr[RSP] = if mask == 0xffff { self.gpr[RSP] & !0xffff | sp & 0xffff } else { sp & mask };
            self.drop_stack(extra);
            self.drop_inner_segments();
        }
        self.rip = rip;
        self.update_mode();
        Ok(())
    }

    /// Flags that IRET takes from the stack, at CPL `cpl` and with operand size `size`.
    fn return_flags(&mut self, v: u64, size: u8, cpl: u8) {
        let mut take = ARITH | TF | DF | NT;
        if size > 2 {
            take |= RF | AC | ID;
        }
        if cpl <= self.iopl() {
            take |= IF;
        }
        if cpl == 0 {
            take |= IOPL;
            if size > 2 {
                take |= VIF | VIP;
            }
        }
        let mut new = v & take | self.rflags() & !take;
        if self.sys.dr7 & 0xff == 0 {
            new &= !RF;
        }
        self.set_rflags(new);
    }

    fn interrupt_return(&mut self, size: u8, next: u64) -> Exec {
        crate::mmu::ram::fence();
        // NMIs may come again; `set_rflags` looks after the rest.
        self.check_events |= self.nmi_pending > 0 || self.tag & mode::STEP != 0 || self.debug_pending != 0;
        let step = u64::from(size);
        if self.real_segments() {
            if self.v86() && self.iopl() < 3 {
                return Err(self.gp(0));
            }
            let rip = self.peek_sized(size, 0)?;
            let selector = self.peek_sized(size, step)? as u16;
            let v = self.peek_sized(size, 2 * step)?;
            self.drop_stack(3 * step);
            self.seg[CS].selector = selector;
            self.seg[CS].base = u64::from(selector) << 4;
            self.rip = rip;
            let mut take = ARITH | TF | DF | IF | NT | IOPL;
            if size > 2 {
                take |= RF | AC | ID;
            }
            if self.v86() {
                take &= !IOPL;
            }
            let new = v & take | self.rflags() & !take;
            self.set_rflags(new & !RF);
            self.nmi_masked = false;
            self.update_mode();
            return Ok(());
        }
        if self.flags & NT != 0 {
            if self.long_mode() {
                return Err(self.gp(0));
            }
            self.return_task(next)?;
            self.nmi_masked = false;
            return Ok(());
        }
        let rip = self.peek_sized(size, 0)?;
        let selector = self.peek_sized(size, step)? as u16;
        let v = self.peek_sized(size, 2 * step)?;
        if v & VM != 0 && self.cpl == 0 && !self.long_mode() && size == 4 {
            return self.return_to_v86(rip, selector, v);
        }
        let mut d = self.return_code(selector)?;
        self.check_target(&d, rip)?;
        let rpl = (selector & 3) as u8;
        let from_long = self.long_code();
        let old_cpl = self.cpl;
        if rpl != self.cpl || from_long {
            let sp = self.peek_sized(size, 3 * step)?;
            let ss_selector = self.peek_sized(size, 4 * step)? as u16;
            let long = self.long_mode() && d.access() & access::L != 0;
            let ss = self.return_stack(ss_selector, rpl, long)?;
            self.set_code(&mut d, selector, rpl)?;
            self.seg[SS] = ss;
            self.update_mode();
            let mask = self.stack_mask();
            self.gpr[RSP] = if mask == 0xffff { self.gpr[RSP] & !0xffff | sp & 0xffff } else { sp & mask };
            if rpl != old_cpl {
                self.drop_inner_segments();
            }
        } else {
            self.drop_stack(3 * step);
            self.set_code(&mut d, selector, rpl)?;
        }
        self.rip = rip;
        self.return_flags(v, size, old_cpl);
        self.nmi_masked = false;
        self.update_mode();
        Ok(())
    }

    fn return_to_v86(&mut self, rip: u64, cs: u16, v: u64) -> Exec {
        let mut words = [0; 6];
        for (i, w) in words.iter_mut().enumerate() {
            *w = self.peek_sized(4, 12 + i as u64 * 4)?;
        }
        self.set_rflags(v & 0x3f_7fd7 & !RF);
        let segment =
            |s: u64| SegmentV1 { selector: s as u16, base: (s & 0xffff) << 4, limit: 0xffff, access: 0xf3 };
        self.seg[CS] = segment(u64::from(cs));
        self.seg[CS].access = 0xfb;
        self.seg[SS] = segment(words[1]);
        for (r, w) in [0, 3, 4, 5].into_iter().zip(&words[2..]) {
            self.seg[r] = segment(*w);
        }
        self.gpr[RSP] = words[0];
        self.rip = rip & 0xffff;
        self.nmi_masked = false;
        self.set_cpl(3);
        Ok(())
    }

    /// INT n, INT3, INTO. The return address is the next instruction's.
    fn software_interrupt(&mut self, vector: u8, op: OpPtr, checked: bool) -> Exec<Flow> {
        if checked && self.v86() && self.iopl() < 3 && self.sys.cr4 & cr4::VME == 0 {
            return Err(self.gp(0));
        }
        let here = op.rip(self);
        self.rip = op.next_rip(self);
        self.budget -= i64::from(op.n);
        match self.deliver(vector, Source::Software, None, false) {
            Ok(()) => Ok(Flow::Next),
            Err(e) => {
                self.rip = here;
                Err(e)
            }
        }
    }

    /// A flat code or data segment for SYSCALL and its like.
    pub(super) fn flat(selector: u16, code: bool, long: bool, dpl: u8) -> SegmentV1 {
        let mut a = access::PRESENT | access::S | access::ACCESSED | access::WRITABLE | access::G;
        a |= u32::from(dpl) << access::DPL_SHIFT;
        if code {
            a |= access::CODE;
        }
        a |= if code && long { access::L } else { access::DB };
        SegmentV1 { selector, base: 0, limit: u32::MAX, access: a }
    }

    fn syscall(&mut self, back: u64) -> Exec {
        if self.sys.efer & efer::SCE == 0 || !self.protected() {
            return Err(self.ud());
        }
        let star = self.msrs.star;
        let selector = (star >> 32) as u16;
        if self.long_mode() {
            let rflags = self.rflags() & !RF;
            self.gpr[RCX] = back;
            self.gpr[11] = rflags;
            self.rip = if self.long_code() { self.msrs.lstar } else { self.msrs.cstar };
            self.set_rflags(rflags & !(self.msrs.sfmask | RF));
        } else {
            self.gpr[RCX] = back;
            self.rip = star & 0xffff_ffff;
            self.flags &= !(VM | IF | RF);
        }
        // SFMASK may hold off the trap; SYSENTER cannot.
        self.step_trap &= self.flags & TF != 0;
        let long = self.long_mode();
        self.seg[CS] = Self::flat(selector & 0xfffc, true, long, 0);
        self.seg[SS] = Self::flat((selector & 0xfffc).wrapping_add(8), false, false, 0);
        self.set_cpl(0);
        Ok(())
    }

    fn sysret(&mut self, wide: bool) -> Exec {
        if self.sys.efer & efer::SCE == 0 || !self.protected() {
            return Err(self.ud());
        }
        self.privileged()?;
        let selector = (self.msrs.star >> 48) as u16;
        let rip = self.gpr[RCX];
        if self.long_mode() {
            if wide && !canonical(rip) {
                return Err(self.gp(0));
            }
            let v = self.gpr[11] & 0x3c_7fd7 | 2;
            self.set_rflags(v);
        } else {
            self.flags |= IF;
        }
        let cs = if wide { selector.wrapping_add(16) } else { selector };
        self.seg[CS] = Self::flat(cs | 3, true, wide, 3);
        self.seg[SS] = Self::flat(selector.wrapping_add(8) | 3, false, false, 3);
        self.rip = if wide { rip } else { rip & 0xffff_ffff };
        self.check_events = true;
        self.set_cpl(3);
        Ok(())
    }

    fn sysenter(&mut self) -> Exec {
        let selector = self.msrs.sysenter_cs as u16;
        if !self.protected() || selector & 0xfffc == 0 {
            return Err(self.gp(0));
        }
        let long = self.long_mode();
        self.flags &= !(VM | IF | RF);
        self.seg[CS] = Self::flat(selector & 0xfffc, true, long, 0);
        self.seg[SS] = Self::flat((selector & 0xfffc).wrapping_add(8), false, false, 0);
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        self.gpr[RSP] = self.msrs.sysenter_esp & mask;
        self.rip = self.msrs.sysenter_eip & mask;
        self.set_cpl(0);
        Ok(())
    }

    fn sysexit(&mut self, wide: bool) -> Exec {
        let selector = self.msrs.sysenter_cs as u16;
        if !self.protected() || selector & 0xfffc == 0 || self.cpl != 0 {
            return Err(self.gp(0));
        }
        let (rip, rsp) = (self.gpr[RDX], self.gpr[RCX]);
        if wide && (!canonical(rip) || !canonical(rsp)) {
            return Err(self.gp(0));
        }
        let base = (selector & 0xfffc).wrapping_add(if wide { 32 } else { 16 });
        self.seg[CS] = Self::flat(base | 3, true, wide, 3);
        self.seg[SS] = Self::flat(base.wrapping_add(8) | 3, false, false, 3);
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        self.gpr[RSP] = rsp & mask;
        self.rip = rip & mask;
        self.set_cpl(3);
        Ok(())
    }
}

/// Body of a handler that sets `cpu.rip` itself.
macro_rules! transfer {
    ($($name:ident |$cpu:ident, $op:ident| $body:expr;)*) => {$(
        pub(super) fn $name($cpu: &mut Cpu, $op: OpPtr) -> Flow {
            // The body may move `rip`'s page, so the place to return to on a fault is kept.
            let here = $op.rip($cpu);
            let seg = $op.seg;
            $cpu.budget -= i64::from($op.n);
            let result: Exec = $body;
            match result {
                Ok(()) => Flow::Next,
                Err(_) => {
                    $cpu.rip = here;
                    if std::mem::take(&mut $cpu.exception.non_canonical) && usize::from(seg) == SS {
                        $cpu.exception.vector = 12;
                    }
                    Flow::Fault
                }
            }
        }
    )*};
}

/// Selector and offset in memory: the offset's bytes are `c`.
fn far_pointer(cpu: &mut Cpu, op: OpPtr) -> Exec<(u16, u64)> {
    let size = usize::from(op.c);
    let at = offset(cpu, op);
    let at = cpu.linear(usize::from(op.seg), at, size as u64 + 2, false)?;
    let mut b = [0; 10];
    cpu.read_bytes(at, &mut b[..size + 2])?;
    let selector = u16::from_le_bytes([b[size], b[size + 1]]);
    b[size..].fill(0);
    let mut offset = [0; 8];
    offset.copy_from_slice(&b[..8]);
    Ok((selector, u64::from_le_bytes(offset)))
}

fn far_immediate(cpu: &mut Cpu, op: OpPtr, by: By) -> Exec {
    let next = op.next_rip(cpu);
    cpu.far_to((op.imm >> 32) as u16, op.imm & 0xffff_ffff, by, next, op.c)
}

fn far_memory(cpu: &mut Cpu, op: OpPtr, by: By) -> Exec {
    let next = op.next_rip(cpu);
    let (selector, offset) = far_pointer(cpu, op)?;
    cpu.far_to(selector, offset, by, next, op.c)
}

transfer! {
    jmp_far |cpu, op| far_immediate(cpu, op, By::Jump);
    call_far |cpu, op| far_immediate(cpu, op, By::Call);
    jmp_far_mem |cpu, op| far_memory(cpu, op, By::Jump);
    call_far_mem |cpu, op| far_memory(cpu, op, By::Call);
    retf |cpu, op| cpu.far_return(op.c, op.imm);
    iret |cpu, op| { let next = op.next_rip(cpu); cpu.interrupt_return(op.c, next) };
    syscall |cpu, op| { let back = op.next_rip(cpu); cpu.syscall(back) };
    sysret |cpu, op| cpu.sysret(op.c == 8);
    sysenter |cpu, op| { let _ = op; cpu.sysenter() };
    sysexit |cpu, op| cpu.sysexit(op.c == 8);
}

fn int(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, { cpu.software_interrupt(op.imm as u8, op, true) })
}

fn int3(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, { cpu.software_interrupt(3, op, false) })
}

fn into(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        if cpu.lazy.bits() & OF != 0 {
            cpu.software_interrupt(4, op, false)
        } else {
            Ok(super::pause(cpu, op))
        }
    })
}

fn int1(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.raise(1, None);
    cpu.rip = op.next_rip(cpu);
    Flow::Fault
}

ops! {
    /// LDS, LES, LFS, LGS, LSS: `b` is the segment register, `a` the other.
    fn load_far(cpu, op) {
        let (selector, value) = far_pointer(cpu, op)?;
        cpu.load_segment(usize::from(op.b), selector)?;
        match op.c {
            2 => <u16 as crate::regs::Int>::set(cpu, op.a, value as u16),
            4 => <u32 as crate::regs::Int>::set(cpu, op.a, value as u32),
            _ => <u64 as crate::regs::Int>::set(cpu, op.a, value),
        }
    }

    pause fn load_far_ss(cpu, op) {
        let (selector, value) = far_pointer(cpu, op)?;
        cpu.load_segment(SS, selector)?;
        match op.c {
            2 => <u16 as crate::regs::Int>::set(cpu, op.a, value as u16),
            4 => <u32 as crate::regs::Int>::set(cpu, op.a, value as u32),
            _ => <u64 as crate::regs::Int>::set(cpu, op.a, value),
        }
    }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    Some(match m {
        M::Jmp | M::Call if matches!(l.kind(0), OpKind::FarBranch16 | OpKind::FarBranch32) => {
            let (off, size) = if l.kind(0) == OpKind::FarBranch16 {
                (u64::from(l.i.far_branch16()), 2)
            } else {
                (u64::from(l.i.far_branch32()), 4)
            };
            l.op.imm = u64::from(l.i.far_branch_selector()) << 32 | off;
            l.op.c = size;
            if m == M::Jmp { jmp_far } else { call_far }
        }
        M::Jmp | M::Call if l.is_mem(0) => {
            l.op.c = match l.i.code() {
                C::Jmp_m1616 | C::Call_m1616 => 2,
                C::Jmp_m1632 | C::Call_m1632 => 4,
                _ => 8,
            };
            if m == M::Jmp { jmp_far_mem } else { call_far_mem }
        }
        M::Retf => {
            l.op.imm = if l.i.op_count() > 0 { l.i.immediate(0) & 0xffff } else { 0 };
            l.op.c = match l.i.code() {
                C::Retfw | C::Retfw_imm16 => 2,
                C::Retfd | C::Retfd_imm16 => 4,
                _ => 8,
            };
            l.op.seg = SS as u8;
            retf
        }
        M::Iret | M::Iretd | M::Iretq => {
            l.op.c = match m {
                M::Iret => 2,
                M::Iretd => 4,
                _ => 8,
            };
            l.op.seg = SS as u8;
            iret
        }
        M::Int => {
            l.imm(0);
            int
        }
        M::Int3 => int3,
        M::Into => into,
        M::Int1 => int1,
        M::Syscall if l.bits == 64 => super::fast_call::syscall,
        M::Syscall => syscall,
        M::Sysret | M::Sysretq => {
            l.op.c = if m == M::Sysretq { 8 } else { 4 };
            if m == M::Sysretq && l.bits == 64 { super::fast_call::sysret } else { sysret }
        }
        M::Sysenter => sysenter,
        M::Sysexit | M::Sysexitq => {
            l.op.c = if m == M::Sysexitq { 8 } else { 4 };
            sysexit
        }
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
            l.op.a = l.number(0);
            l.op.c = (l.width(0) / 8) as u8;
            let (r, h): (Register, Handler) = match m {
                M::Lds => (Register::DS, load_far),
                M::Les => (Register::ES, load_far),
                M::Lfs => (Register::FS, load_far),
                M::Lgs => (Register::GS, load_far),
                _ => (Register::SS, load_far_ss),
            };
            l.op.b = r.number() as u8;
            h
        }
        M::Ud0 | M::Ud1 | M::Ud2 => super::undefined,
        _ => return None,
    })
}
