//! The local APIC's registers, as MMIO and as MSRs, and the messages between LAPICs (SDM vol. 3A, chapter 11).
//!
//! Requested vectors live in [`VcpuShared`], where any thread may set them; all else belongs to the vCPU.

use crate::cpu::Cpu;
use crate::op::Exec;
use crate::shared::{VcpuShared, VmShared, attention};
use godwit_state::{LapicV1, lvt};
use std::sync::atomic::Ordering;

/// IA32_APIC_BASE: enabled.
pub(crate) const BASE_ENABLE: u64 = 1 << 11;
/// IA32_APIC_BASE: x2APIC mode.
pub(crate) const BASE_X2: u64 = 1 << 10;

const VERSION: u32 = 0x0005_0014;
const MASKED: u32 = 1 << 16;
const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// The registers that are the vCPU's own. `irr` and `tmr` of the saved form are not used.
#[derive(Debug, Clone)]
pub(crate) struct Lapic {
    pub r: LapicV1,
    /// Errors since the last write of ESR.
    pub errors: u32,
}

/// A message to LAPICs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub destination: u32,
    pub logical: bool,
    /// The destination is in x2APIC form: 32 bits.
    pub wide: bool,
    pub mode: u32,
    pub vector: u8,
    pub level: bool,
}

impl VcpuShared {
    fn matches(&self, m: &Message) -> bool {
        let x2 = self.apic_x2.load(Ordering::Relaxed);
        let id = self.apic_id.load(Ordering::Relaxed);
        let broadcast = if m.wide { u32::MAX } else { 0xff };
        if !m.logical {
            return m.destination == broadcast || id == m.destination;
        }
        let ldr = self.apic_ldr.load(Ordering::Relaxed);
        if x2 {
            let ldr = x2_ldr(id);
            if m.destination == broadcast {
                return true;
            }
            return ldr >> 16 == m.destination >> 16 && ldr & m.destination & 0xffff != 0;
        }
        let (ldr, dest) = (ldr >> 24, m.destination & 0xff);
        if self.apic_dfr.load(Ordering::Relaxed) >> 28 == 0xf {
            ldr & dest != 0
        } else {
            dest == 0xff || (ldr >> 4 == dest >> 4 && ldr & dest & 0xf != 0)
        }
    }

    fn accept(&self, m: &Message) {
        match m.mode {
            0 | 1 if m.vector >= 16 && self.apic_on.load(Ordering::Relaxed) => {
                self.request(m.vector, m.level)
            }
            4 => self.attend(attention::NMI),
            5 => self.attend(attention::INIT),
            6 => {
                self.sipi.store(u32::from(m.vector), Ordering::SeqCst);
                self.attend(attention::SIPI);
            }
            _ => {}
        }
    }
}

/// Logical id in x2APIC mode.
pub(crate) fn x2_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}

impl VmShared {
    /// Delivers a message.
    pub(crate) fn deliver(&self, m: &Message) {
        let mut targets = self.vcpus.iter().filter(|v| v.matches(m));
        if m.mode == 1 {
            if let Some(v) = targets.find(|v| v.apic_on.load(Ordering::Relaxed)) {
                v.accept(m);
            }
        } else {
            targets.for_each(|v| v.accept(m));
        }
    }

    /// Delivers an MSI (SDM vol. 3A, 11.11).
    pub(crate) fn signal_msi(&self, address: u64, data: u32) {
        self.deliver(&Message {
            destination: (address >> 12 & 0xff) as u32,
            logical: address & 4 != 0,
            wide: false,
            mode: data >> 8 & 7,
            vector: data as u8,
            level: data & 1 << 15 != 0,
        });
    }
}

fn highest(words: impl DoubleEndedIterator<Item = u32> + ExactSizeIterator) -> Option<u8> {
    words
        .enumerate()
        .rev()
        .find(|(_, w)| *w != 0)
        .map(|(i, w)| (i * 32) as u8 + (31 - w.leading_zeros()) as u8)
}

impl Lapic {
    pub(crate) fn new(id: u32) -> Self {
        Lapic { r: LapicV1::reset(id), errors: 0 }
    }

    /// True if an access to `gpa` is to the registers.
    pub(crate) fn owns(&self, gpa: u64, apic_base: u64) -> bool {
        apic_base & (BASE_ENABLE | BASE_X2) == BASE_ENABLE && gpa >> 12 == (apic_base & 0xff_ffff_f000) >> 12
    }

    /// Processor priority.
    pub(crate) fn ppr(&self) -> u8 {
        let isr = highest(self.r.isr.iter().copied()).unwrap_or(0);
        if self.r.tpr & 0xf0 >= isr & 0xf0 { self.r.tpr } else { isr & 0xf0 }
    }

    fn software_enabled(&self) -> bool {
        self.r.svr & 0x100 != 0
    }

    fn timer_mode(&self) -> u32 {
        self.r.lvt[lvt::TIMER] >> 17 & 3
    }
}

impl Cpu {
    /// Tells the other threads what messages this LAPIC takes.
    pub(crate) fn publish_apic(&mut self) {
        let enabled = self.msrs.apic_base & BASE_ENABLE != 0;
        let me = &self.me;
        me.apic_id.store(self.lapic.r.id, Ordering::SeqCst);
        me.apic_ldr.store(self.lapic.r.ldr, Ordering::SeqCst);
        me.apic_dfr.store(self.lapic.r.dfr, Ordering::SeqCst);
        me.apic_x2.store(self.msrs.apic_base & BASE_X2 != 0, Ordering::SeqCst);
        me.apic_on.store(enabled && self.lapic.software_enabled(), Ordering::SeqCst);
    }

    /// The vector that may interrupt now, taken from IRR into ISR.
    pub(crate) fn acknowledge(&mut self) -> Option<u8> {
        if !self.lapic.software_enabled() || self.msrs.apic_base & BASE_ENABLE == 0 {
            return None;
        }
        let irr = self.me.irr.each_ref().map(|w| w.load(Ordering::SeqCst));
        let vector = highest(irr.iter().copied())?;
        if vector & 0xf0 <= self.lapic.ppr() & 0xf0 {
            return None;
        }
        let (word, bit) = (usize::from(vector / 32), 1u32 << (vector % 32));
        self.me.irr[word].fetch_and(!bit, Ordering::SeqCst);
        self.lapic.r.isr[word] |= bit;
        Some(vector)
    }

    /// True if [`Cpu::acknowledge`] would give a vector.
    pub(crate) fn deliverable(&self) -> bool {
        if !self.lapic.software_enabled() || self.msrs.apic_base & BASE_ENABLE == 0 {
            return false;
        }
        let irr = self.me.irr.each_ref().map(|w| w.load(Ordering::SeqCst));
        highest(irr.iter().copied()).is_some_and(|v| v & 0xf0 > self.lapic.ppr() & 0xf0)
    }

    /// True if the 8259s request an interrupt that this vCPU takes.
    pub(crate) fn extint_requested(&self) -> bool {
        if self.id != 0 || !self.vm.extint.load(Ordering::SeqCst) {
            return false;
        }
        let lint0 = self.lapic.r.lvt[lvt::LINT0];
        self.msrs.apic_base & BASE_ENABLE == 0 || (lint0 & MASKED == 0 && lint0 >> 8 & 7 == 7)
    }

    fn eoi(&mut self) {
        let Some(vector) = highest(self.lapic.r.isr.iter().copied()) else { return };
        let (word, bit) = (usize::from(vector / 32), 1u32 << (vector % 32));
        self.lapic.r.isr[word] &= !bit;
        self.look_for_interrupts();
        if self.me.tmr[word].load(Ordering::SeqCst) & bit != 0 {
            self.host.eoi(vector);
        }
    }

    /// Priorities or masks have changed.
    pub(crate) fn look_for_interrupts(&mut self) {
        self.interrupts = true;
        self.check_events = true;
    }

    fn lapic_error(&mut self, bit: u32) {
        self.lapic.errors |= bit;
        let entry = self.lapic.r.lvt[lvt::ERROR];
        if entry & MASKED == 0 {
            self.me.request(entry as u8, false);
        }
    }

    fn send(&mut self, icr: u64, wide: bool) {
        let low = icr as u32;
        let mode = low >> 8 & 7;
        let vector = low as u8;
        // A level de-assert of INIT does nothing.
        if mode == 5 && low & 1 << 14 == 0 && low & 1 << 15 != 0 {
            return;
        }
        if matches!(mode, 0 | 1) && vector < 16 {
            self.lapic_error(ESR_SEND_ILLEGAL);
            return;
        }
        let destination = if wide { (icr >> 32) as u32 } else { (icr >> 56) as u32 };
        let m = Message { destination, logical: low & 1 << 11 != 0, wide, mode, vector, level: false };
        let vm = self.vm.clone();
        match low >> 18 & 3 {
            0 => vm.deliver(&m),
            1 => self.me.accept(&m),
            shorthand => {
                for v in vm.vcpus.iter().filter(|v| shorthand == 2 || v.id != self.id) {
                    v.accept(&m);
                }
            }
        }
    }

    fn register(&mut self, reg: u32) -> Option<u32> {
        let x2 = self.msrs.apic_base & BASE_X2 != 0;
        let r = &self.lapic.r;
        let word = |base: u32| ((reg - base) >> 4) as usize;
        Some(match reg {
            0x20 => {
                if x2 {
                    r.id
                } else {
                    r.id << 24
                }
            }
            0x30 => VERSION,
            0x80 => u32::from(r.tpr),
            0x90 if !x2 => u32::from(self.lapic.ppr()),
            0xa0 => u32::from(self.lapic.ppr()),
            0xd0 => {
                if x2 {
                    x2_ldr(r.id)
                } else {
                    r.ldr
                }
            }
            0xe0 if !x2 => r.dfr,
            0xf0 => r.svr,
            0x100..=0x170 => r.isr[word(0x100)],
            0x180..=0x1f0 => self.me.tmr[word(0x180)].load(Ordering::SeqCst),
            0x200..=0x270 => self.me.irr[word(0x200)].load(Ordering::SeqCst),
            0x280 => r.esr,
            0x300 => r.icr_low,
            0x310 if !x2 => r.icr_high,
            0x320..=0x370 => r.lvt[word(0x320)],
            0x380 => r.timer_initial,
            0x390 => self.current_count(),
            0x3e0 => r.timer_divide,
            _ => return None,
        })
    }

    fn set_register(&mut self, reg: u32, v: u32) -> Option<()> {
        let x2 = self.msrs.apic_base & BASE_X2 != 0;
        match reg {
            0x80 => {
                self.lapic.r.tpr = v as u8;
                self.look_for_interrupts();
            }
            0xb0 => self.eoi(),
            0xd0 if !x2 => self.lapic.r.ldr = v & 0xff00_0000,
            0xe0 if !x2 => self.lapic.r.dfr = v | 0x0fff_ffff,
            0xf0 => {
                self.lapic.r.svr = v & 0x1ff;
                if v & 0x100 == 0 {
                    self.lapic.r.lvt.iter_mut().for_each(|l| *l |= MASKED);
                }
                self.look_for_interrupts();
            }
            0x280 => self.lapic.r.esr = std::mem::take(&mut self.lapic.errors),
            0x300 if !x2 => {
                self.lapic.r.icr_low = v & !0x1000;
                let icr = u64::from(self.lapic.r.icr_high) << 32 | u64::from(v);
                self.send(icr, false);
            }
            0x310 if !x2 => self.lapic.r.icr_high = v & 0xff00_0000,
            0x320..=0x370 => {
                let n = ((reg - 0x320) >> 4) as usize;
                const WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
                let mut v = v & WRITABLE[n];
                if !self.lapic.software_enabled() {
                    v |= MASKED;
                }
                let before = self.lapic.timer_mode();
                self.lapic.r.lvt[n] = v;
                if n == lvt::TIMER {
                    let after = self.lapic.timer_mode();
                    if before != after && (before == 2 || after == 2) {
                        self.lapic.r.timer_deadline_ns = None;
                        self.lapic.r.tsc_deadline = 0;
                        self.lapic.r.timer_initial = 0;
                    }
                    self.arm_timer();
                }
                self.look_for_interrupts();
            }
            0x380 => {
                if self.lapic.timer_mode() != 2 {
                    self.lapic.r.timer_initial = v;
                    let period = u64::from(v) * u64::from(self.lapic.r.timer_divisor());
                    self.lapic.r.timer_deadline_ns = (v != 0).then(|| self.clock.now_ns() + period);
                    self.arm_timer();
                }
            }
            0x3e0 => {
                let left = self.current_count();
                self.lapic.r.timer_divide = v & 0xb;
                if self.lapic.r.timer_deadline_ns.is_some() {
                    let ns = u64::from(left) * u64::from(self.lapic.r.timer_divisor());
                    self.lapic.r.timer_deadline_ns = Some(self.clock.now_ns() + ns);
                    self.arm_timer();
                }
            }
            0x3f0 if x2 => self.me.request(v as u8, false),
            _ => return None,
        }
        self.publish_apic();
        Some(())
    }

    fn current_count(&self) -> u32 {
        let Some(due) = self.lapic.r.timer_deadline_ns else { return 0 };
        let left = due.saturating_sub(self.clock.now_ns()) / u64::from(self.lapic.r.timer_divisor());
        left.min(u64::from(u32::MAX)) as u32
    }

    pub(crate) fn lapic_mmio_read(&mut self, gpa: u64, bytes: usize) -> u64 {
        let reg = (gpa & 0xff0) as u32;
        let v = match self.register(reg) {
            Some(v) => u64::from(v),
            None => {
                self.lapic_error(ESR_ILLEGAL_REGISTER);
                0
            }
        };
        let v = if gpa & 0xc == 0 { v >> (8 * (gpa & 3)) } else { 0 };
        if bytes >= 8 { v } else { v & ((1 << (8 * bytes)) - 1) }
    }

    pub(crate) fn lapic_mmio_write(&mut self, gpa: u64, bytes: usize, v: u64) {
        if gpa & 0xf != 0 || bytes < 4 {
            return;
        }
        if self.set_register((gpa & 0xff0) as u32, v as u32).is_none() {
            self.lapic_error(ESR_ILLEGAL_REGISTER);
        }
    }

    /// RDMSR of 0x800 to 0x8ff.
    pub(crate) fn x2apic_read(&mut self, msr: u32) -> Exec<u64> {
        if self.msrs.apic_base & BASE_X2 == 0 {
            return Err(self.gp(0));
        }
        if msr == 0x830 {
            return Ok(u64::from(self.lapic.r.icr_high) << 32 | u64::from(self.lapic.r.icr_low));
        }
        let reg = (msr - 0x800) << 4;
        match self.register(reg) {
            Some(v) if reg != 0xb0 => Ok(u64::from(v)),
            _ => Err(self.gp(0)),
        }
    }

    /// WRMSR of 0x800 to 0x8ff.
    pub(crate) fn x2apic_write(&mut self, msr: u32, v: u64) -> Exec {
        if self.msrs.apic_base & BASE_X2 == 0 {
            return Err(self.gp(0));
        }
        if msr == 0x830 {
            self.lapic.r.icr_low = v as u32;
            self.lapic.r.icr_high = (v >> 32) as u32;
            self.send(v, true);
            return Ok(());
        }
        let reg = (msr - 0x800) << 4;
        let zero_only = matches!(reg, 0xb0 | 0x280);
        if v >> 32 != 0 || (zero_only && v != 0) || reg == 0x20 || reg == 0xd0 {
            return Err(self.gp(0));
        }
        match self.set_register(reg, v as u32) {
            Some(()) => Ok(()),
            None => Err(self.gp(0)),
        }
    }

    /// WRMSR of IA32_TSC_DEADLINE.
    pub(crate) fn set_tsc_deadline(&mut self, v: u64) {
        if self.lapic.timer_mode() == 2 {
            self.lapic.r.tsc_deadline = v;
            self.arm_timer();
        }
    }

    /// Works out when the timer is due.
    pub(crate) fn arm_timer(&mut self) {
        self.timer_due = if self.lapic.timer_mode() == 2 {
            let t = self.lapic.r.tsc_deadline;
            (t != 0).then(|| self.clock.ns_of_tsc(t.wrapping_sub(self.tsc_offset as u64)))
        } else {
            self.lapic.r.timer_deadline_ns
        };
    }

    /// Lets the timer expire if it is due; otherwise how many nanoseconds are left.
    #[inline]
    pub(crate) fn timer_tick(&mut self) -> Option<u64> {
        let due = self.timer_due?;
        let now = self.clock.now_ns();
        if now < due {
            return Some(due - now);
        }
        self.expire(now);
        self.timer_due.map(|due| due.saturating_sub(now))
    }

    #[cold]
    fn expire(&mut self, now: u64) {
        let entry = self.lapic.r.lvt[lvt::TIMER];
        match self.lapic.timer_mode() {
            1 => {
                let period = u64::from(self.lapic.r.timer_initial) * u64::from(self.lapic.r.timer_divisor());
                let due = self.lapic.r.timer_deadline_ns.unwrap_or(now);
                // Periods that nobody could see are not made up for.
                let missed = now.saturating_sub(due) / period.max(1);
                self.lapic.r.timer_deadline_ns = Some(due + (missed + 1) * period);
            }
            2 => self.lapic.r.tsc_deadline = 0,
            _ => self.lapic.r.timer_deadline_ns = None,
        }
        self.arm_timer();
        if entry & MASKED == 0 && entry as u8 >= 16 {
            self.me.request(entry as u8, false);
            self.look_for_interrupts();
        }
    }
}
