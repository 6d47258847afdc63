//! Delivery of exceptions and interrupts (SDM vol. 3A, chapter 6).

use crate::cpu::{CS, Cpu, Exception, RSP, SS};
use crate::flags::{AC, IF, NT, RF, TF, VM};
use crate::op::{Exec, Flow};
use crate::segment::{GP, NP};
use crate::task::By;
use godwit_state::{SegmentV1, access};

/// Where an event comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// Interrupt or NMI.
    External,
    /// A fault or trap of the processor's own.
    Exception,
    /// INT n, INT3, INTO: the gate's DPL counts.
    Software,
}

const DF: u8 = 8;
const TS: u8 = 10;
const PF: u8 = 14;

/// Exceptions of which two in a row are a double fault.
fn contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13)
}

fn has_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// Exceptions raised by delivering one, before the instruction is started again.
const NESTED: u32 = 16;

impl Cpu {
    /// Delivers `self.exception`, and what that raises.
    pub(crate) fn deliver_exception(&mut self) -> Flow {
        let mut e = self.exception;
        // Benign exceptions may raise each other for ever (#AC out of a handler of its own): silicon hangs there. Here the
        // instruction starts again, after a look at who wants this vCPU to stop.
        for _ in 0..NESTED {
            match e.vector {
                PF => self.sys.cr2 = e.payload,
                1 => self.take_debug(e.payload),
                _ => {}
            }
            let rf = !matches!(e.vector, 1 | 3 | 4 | 8);
            let code = if has_code(e.vector) { Some(e.code.unwrap_or(0)) } else { None };
            match self.deliver(e.vector, Source::Exception, code, rf) {
                Ok(()) => return Flow::Next,
                Err(_) => match self.combine(e) {
                    Some(next) => e = next,
                    None => return Flow::Shutdown,
                },
            }
        }
        Flow::Next
    }

    /// What follows when `self.exception` is raised while delivering `first`.
    fn combine(&mut self, first: Exception) -> Option<Exception> {
        let second = self.exception;
        if first.vector == DF {
            return None;
        }
        let double = (contributory(first.vector) && contributory(second.vector))
            || (first.vector == PF && (contributory(second.vector) || second.vector == PF));
        if double {
            if second.vector == PF {
                self.sys.cr2 = second.payload;
            }
            return Some(Exception { vector: DF, code: Some(0), payload: 0, non_canonical: false });
        }
        Some(second)
    }

    /// Delivers an interrupt; exceptions on the way are delivered instead.
    pub(crate) fn deliver_interrupt(&mut self, vector: u8, source: Source) -> Flow {
        match self.deliver(vector, source, None, false) {
            Ok(()) => Flow::Next,
            Err(_) => self.deliver_exception(),
        }
    }

    /// Enters the handler of a vector; `self.rip` is what will be returned to.
    pub(crate) fn deliver(&mut self, vector: u8, source: Source, code: Option<u32>, rf: bool) -> Exec {
        self.check_events = true;
        let before = (self.seg[CS], self.seg[SS], self.cpl, self.gpr[RSP], self.flags, self.rip);
        let result = if !self.protected() {
            self.deliver_real(vector)
        } else if self.long_mode() {
            self.deliver_long(vector, source, code, rf)
        } else {
            self.deliver_protected(vector, source, code, rf)
        };
        if result.is_err() {
            // Nothing has happened yet.
            (self.seg[CS], self.seg[SS], _, self.gpr[RSP], self.flags, self.rip) = before;
            self.set_cpl(before.2);
            if source != Source::Software && !matches!(self.exception.vector, DF | PF) {
                // The EXT bit.
                self.exception.code = self.exception.code.map(|c| c | 1);
            }
        } else {
            // The trap of an instruction that has come here is not taken in the handler.
            self.step_trap = false;
        }
        result
    }

    fn deliver_real(&mut self, vector: u8) -> Exec {
        let at = u64::from(vector) * 4;
        if at + 3 > u64::from(self.sys.idtr.limit) {
            return Err(self.gp(0));
        }
        let entry: u32 = self.system_read(self.sys.idtr.base.wrapping_add(at))?;
        let flags = self.rflags();
        let (cs, ip) = (self.seg[CS].selector, self.rip);
        self.push16(flags as u16)?;
        self.push16(cs)?;
        self.push16(ip as u16)?;
        self.flags &= !(IF | TF | AC | RF);
        self.seg[CS].selector = (entry >> 16) as u16;
        self.seg[CS].base = u64::from(entry >> 16) << 4;
        self.rip = u64::from(entry & 0xffff);
        self.update_mode();
        Ok(())
    }

    fn push16(&mut self, v: u16) -> Exec {
        let sp = self.gpr[RSP].wrapping_sub(2) & 0xffff;
        self.check_limit(SS, sp, 2, true)?;
        self.write(self.seg[SS].base.wrapping_add(sp) & 0xffff_ffff, v)?;
        self.gpr[RSP] = self.gpr[RSP] & !0xffff | sp;
        Ok(())
    }

    fn deliver_long(&mut self, vector: u8, source: Source, code: Option<u32>, rf: bool) -> Exec {
        let idt_code = u32::from(vector) * 8 + 2;
        let at = u64::from(vector) * 16;
        if at + 15 > u64::from(self.sys.idtr.limit) {
            return Err(self.gp(idt_code));
        }
        let base = self.sys.idtr.base.wrapping_add(at);
        let low: u64 = self.system_read(base)?;
        let high: u64 = self.system_read(base.wrapping_add(8))?;
        let kind = low >> 40 & 0x1f;
        let dpl = (low >> 45 & 3) as u8;
        if !matches!(kind, 14 | 15) || (source == Source::Software && dpl < self.cpl) {
            return Err(self.gp(idt_code));
        }
        if low >> 47 & 1 == 0 {
            return Err(self.raise(NP, Some(idt_code)));
        }
        let selector = (low >> 16) as u16;
        let target = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        if selector & 0xfffc == 0 {
            return Err(self.gp(0));
        }
        let sel_code = u32::from(selector & 0xfffc);
        let mut d = self.descriptor(selector, GP)?;
        let is_long = d.access() & access::L != 0 && d.access() & access::DB == 0;
        if !d.is_code() || d.dpl() > self.cpl || !is_long {
            return Err(self.gp(sel_code));
        }
        if !d.present() {
            return Err(self.raise(NP, Some(sel_code)));
        }
        let cpl = if d.conforming() { self.cpl } else { d.dpl() };
        let ist = low >> 32 & 7;
        let (mut rsp, switch) = if ist != 0 {
            (self.tss_stack(0x24 + (ist - 1) * 8)?, cpl != self.cpl)
        } else if cpl != self.cpl {
            (self.tss_stack(4 + u64::from(cpl) * 8)?, true)
        } else {
            (self.gpr[RSP], false)
        };
        rsp &= !15;
        let flags = self.rflags() | if rf { RF } else { 0 };
        let old = (self.seg[SS].selector, self.gpr[RSP], self.seg[CS].selector, self.rip);
        let frame = [u64::from(old.0), old.1, flags, u64::from(old.2), old.3];
        let push = |cpu: &mut Cpu, rsp: &mut u64| -> Exec {
            for v in frame.into_iter().chain(code.map(u64::from)) {
                *rsp = rsp.wrapping_sub(8);
                cpu.write::<u64>(*rsp, v)?;
            }
            Ok(())
        };
        // The new stack is written with the new level's rights; addresses are 64-bit from here on.
        self.set_code(&mut d, selector, cpl)?;
        if cpl == 3 {
            push(self, &mut rsp)?
        } else {
            self.implicitly(|cpu| push(cpu, &mut rsp))?
        }
        if switch {
            self.seg[SS] = self.null_stack(u16::from(cpl), cpl);
        }
        self.gpr[RSP] = rsp;
        self.rip = target;
        self.flags &= !(TF | NT | RF | VM);
        if kind == 14 {
            self.flags &= !IF;
        }
        self.update_mode();
        if target.wrapping_add(1 << 47) >> 48 != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    fn tss_stack(&mut self, offset: u64) -> Exec<u64> {
        if offset + 7 > u64::from(self.sys.tr.limit) {
            let code = u32::from(self.sys.tr.selector & 0xfffc);
            return Err(self.raise(TS, Some(code)));
        }
        let rsp: u64 = self.system_read(self.sys.tr.base.wrapping_add(offset))?;
        if rsp.wrapping_add(1 << 47) >> 48 != 0 {
            return Err(self.raise(12, Some(0)));
        }
        Ok(rsp)
    }

    fn deliver_protected(&mut self, vector: u8, source: Source, code: Option<u32>, rf: bool) -> Exec {
        let idt_code = u32::from(vector) * 8 + 2;
        let at = u64::from(vector) * 8;
        if at + 7 > u64::from(self.sys.idtr.limit) {
            return Err(self.gp(idt_code));
        }
        let gate: u64 = self.system_read(self.sys.idtr.base.wrapping_add(at))?;
        let kind = (gate >> 40 & 0x1f) as u32;
        let dpl = (gate >> 45 & 3) as u8;
        if source == Source::Software && dpl < self.cpl {
            return Err(self.gp(idt_code));
        }
        if !matches!(kind, 5 | 6 | 7 | 14 | 15) {
            return Err(self.gp(idt_code));
        }
        if gate >> 47 & 1 == 0 {
            return Err(self.raise(NP, Some(idt_code)));
        }
        let selector = (gate >> 16) as u16;
        if kind == 5 {
            let tss = self.gate_task(selector)?;
            let flags = self.rflags() | if rf { RF } else { 0 };
            let by = By::Event { external: source != Source::Software, code };
            return self.task_switch(selector, tss, by, self.rip, flags);
        }
        let wide = kind >= 14;
        let target = if wide { gate & 0xffff | gate >> 32 & 0xffff_0000 } else { gate & 0xffff };
        if selector & 0xfffc == 0 {
            return Err(self.gp(0));
        }
        let sel_code = u32::from(selector & 0xfffc);
        let mut d = self.descriptor(selector, GP)?;
        if !d.is_code() || d.dpl() > self.cpl {
            return Err(self.gp(sel_code));
        }
        if !d.present() {
            return Err(self.raise(NP, Some(sel_code)));
        }
        let v86 = self.v86();
        let cpl = if d.conforming() && !v86 { self.cpl } else { d.dpl() };
        if v86 && cpl != 0 {
            return Err(self.gp(sel_code));
        }
        if target > u64::from(d.limit()) {
            return Err(self.gp(0));
        }
        let flags = self.rflags() | if rf { RF } else { 0 };
        let old_ss = self.seg[SS];
        let old = (self.gpr[RSP], self.seg[CS].selector, self.rip);
        let mut frame: Vec<u64> = Vec::with_capacity(10);
        let (ss, mut sp) = if cpl != self.cpl || v86 {
            let (ss, sp) = self.inner_stack(cpl)?;
            if v86 {
                frame.extend([5, 4, 3, 0].map(|r: usize| u64::from(self.seg[r].selector)));
            }
            frame.extend([u64::from(old_ss.selector), old.0]);
            (ss, sp)
        } else {
            (old_ss, old.0)
        };
        frame.extend([flags, u64::from(old.1), old.2]);
        frame.extend(code.map(u64::from));
        let size = if wide { 4 } else { 2 };
        let mask = if ss.access & access::DB != 0 { 0xffff_ffff } else { 0xffff };
        let saved_ss = self.seg[SS];
        self.seg[SS] = ss;
        let mut room = sp & mask;
        for _ in &frame {
            room = room.wrapping_sub(size) & mask;
            if self.check_limit(SS, room, size, true).is_err() {
                self.seg[SS] = saved_ss;
                return Err(self.raise(12, Some(0)));
            }
        }
        self.set_code(&mut d, selector, cpl)?;
        let push = |cpu: &mut Cpu, sp: &mut u64| -> Exec {
            for v in frame {
                let at = sp.wrapping_sub(size) & mask;
                let linear = ss.base.wrapping_add(at) & 0xffff_ffff;
                if wide {
                    cpu.write(linear, v as u32)?
                } else {
                    cpu.write(linear, v as u16)?
                }
                *sp = *sp & !mask | at;
            }
            Ok(())
        };
        if cpl == 3 {
            push(self, &mut sp)?
        } else {
            self.implicitly(|cpu| push(cpu, &mut sp))?
        }
        self.gpr[RSP] = sp & 0xffff_ffff;
        if v86 {
            for r in [0, 3, 4, 5] {
                self.seg[r] = SegmentV1 { access: access::UNUSABLE, ..SegmentV1::default() };
            }
        }
        self.rip = target;
        self.flags &= !(TF | NT | RF | VM);
        if kind & 1 == 0 {
            self.flags &= !IF;
        }
        self.update_mode();
        Ok(())
    }

    /// SS and SP of an inner level, from a 16- or 32-bit TSS.
    pub(crate) fn inner_stack(&mut self, cpl: u8) -> Exec<(SegmentV1, u64)> {
        let tr = self.sys.tr;
        let code = u32::from(tr.selector & 0xfffc);
        let wide = tr.access & 8 != 0;
        let (at, last) = if wide { (4 + u64::from(cpl) * 8, 5) } else { (2 + u64::from(cpl) * 4, 3) };
        if at + last > u64::from(tr.limit) {
            return Err(self.raise(TS, Some(code)));
        }
        let base = tr.base.wrapping_add(at);
        let (sp, selector) = if wide {
            (u64::from(self.system_read::<u32>(base)?), self.system_read::<u16>(base.wrapping_add(4))?)
        } else {
            (u64::from(self.system_read::<u16>(base)?), self.system_read::<u16>(base.wrapping_add(2))?)
        };
        Ok((self.stack_segment(selector, cpl, TS)?, sp))
    }
}
