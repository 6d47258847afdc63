//! What comes between instructions: interrupts, NMI, INIT and SIPI, debug traps, halting.

use crate::cpu::{CS, Cpu, Exception, RDX, System, cr4};
use crate::exception::Source;
use crate::flags::{IF, RF, TF};
use crate::op::Flow;
use crate::shared::attention;
use godwit_state::{ActivityV1, EventsV1, ExceptionV1, LapicV1, SegmentV1, SystemV1};
use std::sync::atomic::Ordering;

/// DR6 bits.
const BS: u64 = 1 << 14;

impl Cpu {
    pub(crate) fn is_running(&self) -> bool {
        self.activity == ActivityV1::Running
    }

    pub(crate) fn set_running(&mut self) {
        self.activity = ActivityV1::Running;
    }

    /// HLT has been executed, or the vCPU was waiting before.
    pub(crate) fn set_halted(&mut self) {
        if self.activity == ActivityV1::Running {
            self.activity = ActivityV1::Halted;
        }
    }

    /// True if a halted vCPU has something to wake up for.
    pub(crate) fn wakes(&self) -> bool {
        if self.activity == ActivityV1::Running {
            return true;
        }
        if self.activity != ActivityV1::Halted {
            return false;
        }
        let interrupt = self.flags & IF != 0 && (self.deliverable() || self.extint_requested());
        interrupt || (self.nmi_pending > 0 && !self.nmi_masked)
    }

    /// Completes deliveries that were under way when the state was saved.
    pub(crate) fn injected(&mut self) -> Option<Flow> {
        let e = std::mem::take(&mut self.inject);
        if let Some(x) = e.exception_injected.or(e.exception_pending) {
            // What was pending besides comes after.
            self.inject = EventsV1 { exception_injected: None, exception_pending: None, ..e };
            self.exception = Exception {
                vector: x.vector,
                code: x.error_code,
                payload: x.payload.unwrap_or(match x.vector {
                    14 => self.sys.cr2,
                    _ => 0,
                }),
                non_canonical: false,
            };
            return Some(self.deliver_exception());
        }
        if e.nmi_injected {
            self.inject.interrupt_injected = e.interrupt_injected;
            self.inject.interrupt_soft = e.interrupt_soft;
            self.nmi_masked = true;
            return Some(self.deliver_interrupt(2, Source::External));
        }
        let vector = e.interrupt_injected?;
        let source = if e.interrupt_soft { Source::Software } else { Source::External };
        Some(self.deliver_interrupt(vector, source))
    }

    /// Delivers what is requested, if it may be.
    pub(crate) fn interrupt(&mut self) -> Flow {
        if self.nmi_pending > 0 && !self.nmi_masked {
            self.nmi_pending -= 1;
            self.nmi_masked = true;
            self.counters.interrupts += 1;
            return self.deliver_interrupt(2, Source::External);
        }
        if !self.interrupts || self.flags & IF == 0 {
            return Flow::Next;
        }
        if self.extint_requested()
            && let Some(vector) = self.host.extint_ack()
        {
            self.counters.interrupts += 1;
            return self.deliver_interrupt(vector, Source::External);
        }
        match self.acknowledge() {
            Some(vector) => {
                self.counters.interrupts += 1;
                self.deliver_interrupt(vector, Source::External)
            }
            None => {
                self.interrupts = false;
                Flow::Next
            }
        }
    }

    /// After an instruction that ran with the trap flag or breakpoints.
    pub(crate) fn after_step(&mut self) -> Flow {
        self.check_events = true;
        if self.step_trap {
            self.debug_pending |= BS;
        }
        Flow::Next
    }

    /// Raises the debug traps of the last instruction, and breakpoints on the next.
    pub(crate) fn deliver_debug(&mut self) -> Flow {
        if self.shadow_ss {
            // Held off by a load of SS; lost after it, as on the silicon.
            self.debug_pending = 0;
        } else if self.debug_pending != 0 {
            let payload = std::mem::take(&mut self.debug_pending);
            self.exception = Exception { vector: 1, code: None, payload, non_canonical: false };
            self.counters.exceptions += 1;
            let flow = self.deliver_exception();
            self.step_trap = self.flags & TF != 0;
            return flow;
        }
        self.step_trap = self.flags & TF != 0;
        if self.sys.dr7 & 0xff != 0 {
            let hits = self.breakpoints(self.linear_rip(self.rip), 1, 0);
            if hits != 0 && self.flags & RF == 0 {
                self.exception = Exception { vector: 1, code: None, payload: hits, non_canonical: false };
                self.flags |= RF;
                return self.deliver_exception();
            }
            self.flags &= !RF;
        }
        Flow::Next
    }

    /// Bits of DR6 for the breakpoints that an access hits; `kind` as in DR7.
    pub(crate) fn breakpoints(&self, va: u64, bytes: u64, kind: u64) -> u64 {
        let mut hits = 0;
        for n in 0..4 {
            if self.sys.dr7 >> (n * 2) & 3 == 0 {
                continue;
            }
            let control = self.sys.dr7 >> (16 + n * 4) & 15;
            let matches = match control & 3 {
                3 => kind == 1 || kind == 3,
                k => k == kind,
            };
            let len = [1, 2, 8, 4][(control >> 2) as usize];
            let at = self.sys.dr[n as usize] & !(len - 1);
            if matches && va < at.wrapping_add(len) && at < va.wrapping_add(bytes) {
                hits |= 1 << n;
            }
        }
        hits
    }

    /// Notes a data breakpoint.
    pub(crate) fn data_breakpoint(&mut self, va: u64, bytes: usize, write: bool) {
        if self.sys.dr7 & 0xff != 0 && !self.implicit {
            self.debug_pending |= self.breakpoints(va, bytes as u64, if write { 1 } else { 3 });
        }
    }

    /// Notes an I/O breakpoint.
    pub(crate) fn port_breakpoint(&mut self, port: u16, bytes: u32) {
        if self.sys.dr7 & 0xff != 0 && self.sys.cr4 & cr4::DE != 0 {
            self.debug_pending |= self.breakpoints(u64::from(port), u64::from(bytes), 2);
        }
    }

    /// Puts a debug exception's cause into DR6.
    pub(crate) fn take_debug(&mut self, payload: u64) {
        self.sys.dr6 = self.sys.dr6 & !0xf | payload & 0xe00f;
        // General detect is off while the handler runs.
        self.sys.dr7 &= !(1 << 13);
    }

    /// INIT has come. True if the vCPU now waits.
    pub(crate) fn init(&mut self) -> bool {
        self.reset(false);
        if self.id == 0 {
            self.activity = ActivityV1::Running;
            false
        } else {
            self.activity = ActivityV1::WaitForSipi;
            true
        }
    }

    /// SIPI has come. True if the vCPU starts.
    pub(crate) fn sipi(&mut self) -> bool {
        if !matches!(self.activity, ActivityV1::WaitForSipi | ActivityV1::Uninitialized) {
            return false;
        }
        let vector = self.me.sipi.load(Ordering::SeqCst) as u16 & 0xff;
        self.seg[CS] = SegmentV1 { base: u64::from(vector) << 12, ..SegmentV1::real_mode(vector << 8, true) };
        self.rip = 0;
        self.activity = ActivityV1::Running;
        self.update_mode();
        self.check_events = true;
        true
    }

    /// Reset (`power_on`) or INIT state (SDM vol. 3A, 10.1.1).
    pub(crate) fn reset(&mut self, power_on: bool) {
        let s = SystemV1::reset();
        self.gpr = [0; crate::cpu::REGS];
        // Family, model and stepping.
        self.gpr[RDX] = 0x0006_0fb1;
        self.rip = 0xfff0;
        self.flags = 0;
        self.lazy.put(0);
        self.seg = [s.es, s.cs, s.ss, s.ds, s.fs, s.gs];
        let cr0 = if power_on { s.cr0 } else { s.cr0 & !0x6000_0000 | self.sys.cr0 & 0x6000_0000 };
        self.sys = System {
            tr: s.tr,
            ldtr: s.ldtr,
            gdtr: s.gdtr,
            idtr: s.idtr,
            cr0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: if power_on { 1 } else { self.sys.xcr0 },
            pdpte: [0; 4],
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        };
        self.cpl = 0;
        self.shadow_sti = false;
        self.shadow_ss = false;
        self.nmi_masked = false;
        self.nmi_pending = 0;
        self.debug_pending = 0;
        self.step_trap = false;
        self.inject = EventsV1::default();
        let id = self.lapic.r.id;
        let x2 = self.msrs.apic_base & crate::lapic::BASE_X2 != 0;
        if !x2 || power_on {
            self.lapic.r = LapicV1 { id, ..LapicV1::reset(id) };
        }
        self.lapic.errors = 0;
        for w in self.me.irr.iter().chain(&self.me.tmr) {
            w.store(0, Ordering::SeqCst);
        }
        self.arm_timer();
        self.publish_apic();
        self.flush_tlb();
    }

    /// Takes in what other threads have sent, for saving.
    pub(crate) fn absorb(&mut self) {
        let bits = self.me.attention.load(Ordering::SeqCst);
        if bits & attention::INIT != 0 {
            self.init();
        }
        if bits & attention::NMI != 0 {
            self.nmi_pending = (self.nmi_pending + 1).min(2);
        }
        if bits & attention::SIPI != 0 {
            self.inject.sipi = Some(self.me.sipi.load(Ordering::SeqCst) as u8);
        }
        let done = attention::INIT | attention::NMI;
        self.me.attention.fetch_and(!done, Ordering::SeqCst);
    }

    /// The saved form of what waits.
    pub(crate) fn events_state(&self) -> EventsV1 {
        EventsV1 {
            activity: self.activity,
            shadow_sti: self.shadow_sti,
            shadow_ss: self.shadow_ss,
            nmi_pending: self.nmi_pending,
            nmi_masked: self.nmi_masked,
            exception_pending: self.inject.exception_pending.or_else(|| {
                (self.debug_pending != 0).then_some(ExceptionV1 {
                    vector: 1,
                    error_code: None,
                    payload: Some(self.debug_pending),
                })
            }),
            ..self.inject
        }
    }
}
