//! Hardware task switches (SDM vol. 3A, chapter 8): far transfers to a TSS or a task gate, task gates in the IDT, and
//! IRET from a nested task. Called by `ops::far` and `exception`; long mode has none.
//!
//! ```text
//!  checks of the new TSS ─► both TSSs can be accessed ─► old state, busy bits, link ─► TR, CR3, registers ─► segments
//!        faults belong to the old task                                               └── to the new one ──┘
//! ```
//! A fault after the switch is put into `inject`, as one that is pending: it is the new task's, before its first
//! instruction.

use crate::cpu::{CS, Cpu, SS, cr0, cr4};
use crate::flags::{NT, VM};
use crate::op::{Abort, Exec};
use crate::segment::{Descriptor, GP, NP};
use godwit_state::{ExceptionV1, SegmentV1, access};

const TS: u8 = 10;
/// Bit 1 of a TSS descriptor's type.
const BUSY: u32 = 2;
/// Bit 3 of it: a TSS of 32 bits.
const WIDE: u32 = 8;
/// DR6.BT.
const BT: u64 = 1 << 15;
/// DR7's enable bits that hold for one task only: L0 to L3, and LE.
const LOCAL: u64 = 0x155;
/// Where the registers are in a TSS of 32 bits: EIP, EFLAGS, eight general ones, then ES, CS, SS, DS, FS, GS.
const STATE32: usize = 0x20;
/// And in one of 16 bits: IP, FLAGS, eight general ones, then ES, CS, SS, DS.
const STATE16: usize = 0x0e;

/// What switches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum By {
    /// A far JMP.
    Jump,
    /// A far CALL.
    Call,
    /// IRET with NT set.
    Return,
    /// An exception or interrupt through a task gate, with the error code to be pushed.
    Event { external: bool, code: Option<u32> },
}

impl By {
    fn nests(self) -> bool {
        matches!(self, By::Call | By::Event { .. })
    }
}

impl Cpu {
    /// The TSS that a task gate names.
    pub(crate) fn gate_task(&mut self, selector: u16) -> Exec<Descriptor> {
        if selector & 4 != 0 || selector & 0xfffc == 0 {
            return Err(self.gp(u32::from(selector & 0xfffc)));
        }
        self.descriptor(selector, GP)
    }

    /// IRET with NT set: back to the task that the link names.
    pub(crate) fn return_task(&mut self, next: u64) -> Exec {
        let link: u16 = self.system_read(self.sys.tr.base)?;
        let code = u32::from(link & 0xfffc);
        if link & 4 != 0 || code == 0 {
            return Err(self.raise(TS, Some(code)));
        }
        let d = self.descriptor(link, TS)?;
        self.task_switch(link, d, By::Return, next, self.rflags())
    }

    /// Switches to the task whose TSS `d` is. The old one will go on at `next` with `flags`.
    pub(crate) fn task_switch(
        &mut self,
        selector: u16,
        mut d: Descriptor,
        by: By,
        next: u64,
        flags: u64,
    ) -> Exec {
        let code = u32::from(selector & 0xfffc);
        let wanted = if by == By::Return { BUSY } else { 0 };
        if d.is_segment() || !matches!(d.system_type() & !WIDE, 1 | 3) || d.system_type() & BUSY != wanted {
            return Err(self.raise(if by == By::Return { TS } else { GP }, Some(code)));
        }
        if !d.present() {
            return Err(self.raise(NP, Some(code)));
        }
        let wide = d.system_type() & WIDE != 0;
        let len = if wide { 0x68 } else { 0x2c };
        if d.limit() < len as u32 - 1 {
            return Err(self.raise(TS, Some(code)));
        }

        // All that may fault for the old task, before anything has changed.
        let old = self.sys.tr;
        let from_wide = old.access & WIDE != 0;
        let mut image = [0u8; 0x68];
        let saved = self.task_image(from_wide, next, if by == By::Return { flags & !NT } else { flags });
        let state = if from_wide { STATE32 } else { STATE16 };
        if old.limit < (state + saved.len()) as u32 - 1 {
            return Err(self.raise(TS, Some(u32::from(old.selector & 0xfffc))));
        }
        let into = old.base.wrapping_add(state as u64) & 0xffff_ffff;
        let gdt = self.sys.gdtr.base;
        let old_entry = gdt.wrapping_add(u64::from(old.selector & 0xfff8) + 4) & 0xffff_ffff;
        self.implicitly(|cpu| {
            cpu.read_bytes(d.base(), &mut image[..len])?;
            if by.nests() {
                cpu.check_write(d.base(), 2)?;
            }
            if by != By::Return {
                cpu.check_write(d.at.wrapping_add(4), 4)?;
            }
            if !by.nests() {
                cpu.check_write(old_entry, 4)?;
            }
            cpu.write_bytes(into, &saved)
        })?;
        if !by.nests() {
            let high: u32 = self.system_read(old_entry)?;
            self.system_write(old_entry, high & !(BUSY << 8))?;
        }
        if by.nests() {
            self.system_write(d.base(), old.selector)?;
        }
        if by != By::Return {
            d.high |= BUSY << 8;
            self.system_write(d.at.wrapping_add(4), d.high)?;
        }

        self.sys.tr = d.segment(selector);
        self.sys.tr.access |= BUSY;
        self.sys.cr0 |= cr0::TS;
        self.sys.dr7 &= !LOCAL;
        self.step_trap = false;
        self.check_events = true;
        let external = matches!(by, By::Event { external: true, .. });
        let pushed = match by {
            By::Event { code, .. } => code,
            _ => None,
        };
        if self.enter_task(&image, wide, by.nests(), pushed).is_err() {
            // From here on it is the new task's fault.
            let e = self.exception;
            self.inject.exception_pending = Some(ExceptionV1 {
                vector: e.vector,
                error_code: e.code.map(|c| c | u32::from(external)),
                payload: (e.vector == 14).then_some(e.payload),
            });
        }
        self.update_mode();
        Ok(())
    }

    /// The registers as a TSS keeps them.
    fn task_image(&self, wide: bool, next: u64, flags: u64) -> Vec<u8> {
        let selectors = self.seg.iter().map(|s| u64::from(s.selector));
        let words = [next, flags].into_iter().chain(self.gpr[..8].iter().copied());
        if wide {
            words.chain(selectors).flat_map(|w| (w as u32).to_le_bytes()).collect()
        } else {
            words.chain(selectors.take(4)).flat_map(|w| (w as u16).to_le_bytes()).collect()
        }
    }

    /// Loads what a TSS keeps. All registers have their values when a segment's check fails.
    fn enter_task(&mut self, image: &[u8], wide: bool, nested: bool, code: Option<u32>) -> Exec {
        let half = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let full = |at: usize| u64::from(half(at)) | u64::from(half(at + 2)) << 16;
        let word = |n: usize| if wide { full(STATE32 + 4 * n) } else { u64::from(half(STATE16 + 2 * n)) };
        if wide && self.sys.cr0 & cr0::PG != 0 {
            self.task_tables(full(0x1c));
        }
        let flags = word(1) | if nested { NT } else { 0 };
        // They lie there as they are numbered.
        for n in 0..8 {
            self.gpr[n] = word(2 + n);
        }
        self.rip = word(0);
        let v86 = wide && flags & VM != 0;
        for register in 0..6 {
            // 16-bit tasks have no FS and GS.
            let selector = if wide || register < 4 { word(10 + register) as u16 } else { 0 };
            self.seg[register] = if v86 {
                SegmentV1 {
                    selector,
                    base: u64::from(selector) << 4,
                    limit: 0xffff,
                    access: if register == CS { 0xfb } else { 0xf3 },
                }
            } else {
                SegmentV1 { selector, access: access::UNUSABLE, ..SegmentV1::default() }
            };
        }
        self.set_rflags(flags);
        let cpl = if v86 { 3 } else { (self.seg[CS].selector & 3) as u8 };
        // What says how wide the code and the stack are must be there even if their loads fail.
        if !v86 {
            self.seg[SS].access |= u32::from(cpl) << access::DPL_SHIFT;
        }
        self.set_cpl(cpl);
        self.sys.ldtr = SegmentV1 { access: access::UNUSABLE, ..SegmentV1::default() };
        self.task_ldt(if wide { half(0x60) } else { half(0x2a) })?;
        if !v86 {
            self.task_segments(cpl)?;
        }
        if let Some(code) = code {
            self.push_sized(if wide { 4 } else { 2 }, u64::from(code))?;
        }
        if self.rip > u64::from(self.seg[CS].limit) {
            return Err(self.gp(0));
        }
        if wide && half(0x64) & 1 != 0 {
            self.debug_pending |= BT;
        }
        Ok(())
    }

    /// CR3 of the new task.
    fn task_tables(&mut self, cr3: u64) {
        // Reserved bits in the PDPTEs leave nothing mapped, and the first fetch faults.
        if self.sys.cr4 & cr4::PAE != 0 && !self.load_pdptes(cr3) {
            self.sys.pdpte = [0; 4];
        }
        self.sys.cr3 = cr3;
        self.switch_space(false);
    }

    fn task_ldt(&mut self, selector: u16) -> Exec {
        self.sys.ldtr.selector = selector;
        let code = u32::from(selector & 0xfffc);
        if code == 0 {
            return Ok(());
        }
        if selector & 4 != 0 {
            return Err(self.raise(TS, Some(code)));
        }
        let d = self.descriptor(selector, TS)?;
        if d.is_segment() || d.system_type() != 2 || !d.present() {
            return Err(self.raise(TS, Some(code)));
        }
        self.sys.ldtr = d.segment(selector);
        Ok(())
    }

    fn task_segments(&mut self, cpl: u8) -> Exec {
        let selector = self.seg[CS].selector;
        let code = u32::from(selector & 0xfffc);
        if code == 0 {
            return Err(self.raise(TS, Some(0)));
        }
        let mut cs = self.descriptor(selector, TS)?;
        let level = if cs.conforming() { cs.dpl() <= cpl } else { cs.dpl() == cpl };
        if !cs.is_code() || !level {
            return Err(self.raise(TS, Some(code)));
        }
        if !cs.present() {
            return Err(self.raise(NP, Some(code)));
        }
        let ss = self.stack_segment(self.seg[SS].selector, cpl, TS)?;
        self.set_code(&mut cs, selector, cpl)?;
        self.seg[SS] = ss;
        self.update_mode();
        for register in [0, 3, 4, 5] {
            let selector = self.seg[register].selector;
            if let Err(Abort) = self.load_segment(register, selector) {
                if self.exception.vector == GP {
                    self.exception.vector = TS;
                }
                return Err(Abort);
            }
        }
        Ok(())
    }
}
