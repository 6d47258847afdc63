//! Canonical state of a vCPU, in and out.

use crate::lapic::Page;
use crate::sys::{self, failed};
use crate::vcpu::KvmVcpu;
use crate::vm::lock;
use crate::{fpu, msrs, segments};
use godwit_sdk::state::model::{self, Feature};
use godwit_sdk::state::{
    ActivityV1, AvxV1, CpuState, DebugV1, EventsV1, ExceptionV1, FpuV1, LapicV1, MsrsV1, RegsV1, SystemV1,
    TscV1,
};
use godwit_sdk::{Error, Result};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, kvm_debugregs, kvm_mp_state, kvm_regs, kvm_vcpu_events, kvm_xcr, kvm_xcrs,
};

/// A refusal of this section by KVM.
fn refused<E: std::fmt::Display>(kind: &'static str, call: &'static str) -> impl FnOnce(E) -> Error {
    move |e| Error::State(format!("section {kind}: {call}: {e}"))
}

fn regs(r: &kvm_regs) -> RegsV1 {
    RegsV1 {
        gpr: [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ],
        rip: r.rip,
        rflags: r.rflags,
    }
}

fn to_regs(s: &RegsV1) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = s.gpr;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: s.rip,
        rflags: s.rflags,
    }
}

/// The vectors of exceptions that push an error code.
fn exception(nr: u8, has_code: u8, code: u32, payload: Option<u64>) -> ExceptionV1 {
    ExceptionV1 { vector: nr, error_code: (has_code != 0).then_some(code), payload }
}

fn events(e: &kvm_vcpu_events, mp_state: u32) -> Result<EventsV1> {
    let x = &e.exception;
    let payload = (e.exception_has_payload != 0).then_some(e.exception_payload);
    let injected = e.interrupt.injected != 0;
    Ok(EventsV1 {
        activity: match mp_state {
            KVM_MP_STATE_RUNNABLE => ActivityV1::Running,
            KVM_MP_STATE_HALTED => ActivityV1::Halted,
            KVM_MP_STATE_UNINITIALIZED => ActivityV1::Uninitialized,
            KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => ActivityV1::WaitForSipi,
            other => return Err(Error::State(format!("KVM's mp_state {other} has no canonical form"))),
        },
        exception_pending: (x.pending != 0)
            .then(|| exception(x.nr, x.has_error_code, x.error_code, payload)),
        exception_injected: (x.injected != 0).then(|| exception(x.nr, x.has_error_code, x.error_code, None)),
        interrupt_injected: injected.then_some(e.interrupt.nr),
        interrupt_soft: injected && e.interrupt.soft != 0,
        shadow_sti: u32::from(e.interrupt.shadow) & KVM_X86_SHADOW_INT_STI != 0,
        shadow_ss: u32::from(e.interrupt.shadow) & KVM_X86_SHADOW_INT_MOV_SS != 0,
        nmi_injected: e.nmi.injected != 0,
        nmi_pending: e.nmi.pending.min(2),
        nmi_masked: e.nmi.masked != 0,
        sipi: None,
    })
}

fn to_events(s: &EventsV1) -> Result<(kvm_vcpu_events, u32)> {
    let mut e = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if s.interrupt_soft {
        // It takes one, but never gives it back: its own saves leave RIP at the INT instead, to be executed again.
        return Err(Error::State("section x86.events: KVM cannot hold interrupt_soft".into()));
    }
    let x = match (s.exception_pending, s.exception_injected) {
        (Some(_), Some(_)) => {
            return Err(Error::State(
                "section x86.events: KVM cannot hold exception_pending beside exception_injected".into(),
            ));
        }
        (Some(x), None) => {
            e.exception.pending = 1;
            Some(x)
        }
        (None, Some(x)) => {
            e.exception.injected = 1;
            Some(x)
        }
        (None, None) => None,
    };
    if let Some(x) = x {
        e.exception.nr = x.vector;
        e.exception.has_error_code = u8::from(x.error_code.is_some());
        e.exception.error_code = x.error_code.unwrap_or(0);
        e.exception_has_payload = u8::from(x.payload.is_some());
        e.exception_payload = x.payload.unwrap_or(0);
    }
    e.interrupt.injected = u8::from(s.interrupt_injected.is_some());
    e.interrupt.nr = s.interrupt_injected.unwrap_or(0);
    e.interrupt.shadow = (if s.shadow_sti { KVM_X86_SHADOW_INT_STI } else { 0 }
        | if s.shadow_ss { KVM_X86_SHADOW_INT_MOV_SS } else { 0 }) as u8;
    e.nmi.injected = u8::from(s.nmi_injected);
    e.nmi.pending = s.nmi_pending;
    e.nmi.masked = u8::from(s.nmi_masked);
    let mut mp_state = match s.activity {
        ActivityV1::Running => KVM_MP_STATE_RUNNABLE,
        ActivityV1::Halted => KVM_MP_STATE_HALTED,
        ActivityV1::Uninitialized => KVM_MP_STATE_UNINITIALIZED,
        ActivityV1::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
    };
    if let Some(vector) = s.sipi {
        if mp_state == KVM_MP_STATE_INIT_RECEIVED {
            mp_state = KVM_MP_STATE_SIPI_RECEIVED;
        }
        e.sipi_vector = u32::from(vector);
        e.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
    }
    Ok((e, mp_state))
}

impl KvmVcpu {
    fn has_avx(&self) -> bool {
        self.vm.has(Feature::AVX)
    }

    fn has_tsc_aux(&self) -> bool {
        self.vm.has(Feature::RDTSCP) || self.vm.has(Feature::RDPID)
    }

    /// The architectural reset state: KVM's own differs in details (EDX, IA32_MISC_ENABLE, LINT0).
    fn reset_state(&self) -> CpuState {
        let id = self.shared.id;
        let mut regs = RegsV1 { rip: 0xfff0, rflags: 2, ..Default::default() };
        // EDX is the processor's signature (SDM vol. 3A, 10.1.1).
        let table = model::cpuid_table(self.vm.features, id, self.vm.vcpu_count, 0);
        regs.gpr[2] = u64::from(model::cpuid_lookup(&table, 1, 0)[0]);
        CpuState {
            regs,
            system: SystemV1::reset(),
            msrs: MsrsV1::reset(id == 0),
            debug: DebugV1::default(),
            fpu: FpuV1::default(),
            avx: self.has_avx().then(AvxV1::default),
            events: EventsV1 {
                activity: if id == 0 { ActivityV1::Running } else { ActivityV1::Uninitialized },
                ..Default::default()
            },
            lapic: LapicV1::reset(id),
            tsc: TscV1::default(),
        }
    }

    /// Puts the vCPU into that state, unless another has been loaded. Done as late as this because nearly every vCPU is
    /// loaded before it runs.
    pub(crate) fn ensure_reset(&mut self) -> Result<()> {
        if !self.fresh {
            return Ok(());
        }
        // No timer runs in this state, so it does not matter whether the clock does.
        self.apply(&self.reset_state())?;
        self.replaced();
        Ok(())
    }

    /// All of the state; the clock is stopped.
    pub(crate) fn save_state(&mut self) -> Result<CpuState> {
        lock(&self.vm.time).stopped()?;
        if self.fresh {
            // KVM need not be asked, nor told yet: a start saves time by it.
            return Ok(self.reset_state());
        }
        let fd = &self.shared.fd;
        // First, because it acts on an INIT or SIPI that waits, which changes registers and segments.
        let mp_state = fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?.mp_state;
        let regs = regs(&fd.get_regs().map_err(failed("KVM_GET_REGS"))?);
        let sregs = if self.vm.kvm.sregs2 {
            sys::sregs2(self.shared.raw()).map_err(failed("KVM_GET_SREGS2"))?
        } else {
            segments::widen(&fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?)
        };
        let xcr0 = if self.vm.has(Feature::XSAVE) {
            let xcrs = fd.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
            let known = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
            known.filter(|x| x.xcr == 0).map(|x| x.value).next().unwrap_or(1)
        } else {
            1
        };
        let xsave = fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
        let (fpu, avx) = fpu::from_kvm(&xsave, self.has_avx());
        let debug = fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
        let page = Page(fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?);
        let mut lapic = page.to_state(sregs.apic_base);
        let offset = lock(&self.vm.time).fill(self.shared.id, &mut lapic)?;
        let msrs = msrs::save(fd, sregs.apic_base, self.has_tsc_aux())?;
        // Last: an NMI that another thread has sent is among the events only after KVM has looked at its requests.
        let e = fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        let mut events = events(&e, mp_state)?;
        if events.shadow_sti && events.shadow_ss {
            // AMD processors have one shadow for both, and KVM then gives both. The stronger one stands for it.
            (events.shadow_sti, events.shadow_ss) = self.shadow.unwrap_or((false, true));
        }
        Ok(CpuState {
            regs,
            system: segments::from_kvm(&sregs, xcr0),
            msrs,
            debug: DebugV1 { dr: debug.db, dr6: debug.dr6, dr7: debug.dr7 },
            fpu,
            avx,
            events,
            lapic,
            tsc: TscV1 { offset, adjust: 0 },
        })
    }

    /// Replaces all of the state; the clock is stopped.
    pub(crate) fn load_state(&mut self, s: &CpuState) -> Result<()> {
        lock(&self.vm.time).stopped()?;
        self.apply(s)?;
        lock(&self.vm.time).load(self.shared.id, &s.lapic, s.tsc.offset)?;
        self.replaced();
        self.shadow = Some((s.events.shadow_sti, s.events.shadow_ss));
        Ok(())
    }

    /// Everything but time.
    fn apply(&self, s: &CpuState) -> Result<()> {
        if s.avx.is_some() != self.has_avx() {
            let what = if s.avx.is_some() { "is there, but the CPU model lacks AVX" } else { "is missing" };
            return Err(Error::State(format!("section x86.avx {what}")));
        }
        if s.tsc.adjust != 0 {
            return Err(Error::State(
                "section x86.tsc: IA32_TSC_ADJUST is set, which no CPU model has".into(),
            ));
        }
        if !self.vm.has(Feature::XSAVE) && s.system.xcr0 != 1 {
            return Err(Error::State("section x86.system: xcr0 is set, but the CPU model lacks XSAVE".into()));
        }
        let (events, mp_state) = to_events(&s.events)?;
        let fd = &self.shared.fd;
        // CPUID was set when the vCPU was made: KVM checks CR4, XCR0 and MSRs against it.
        fd.set_regs(&to_regs(&s.regs)).map_err(refused("x86.regs", "KVM_SET_REGS"))?;
        // IA32_APIC_BASE comes with these, and says which form the LAPIC page has.
        let sregs = segments::to_kvm(&s.system, s.msrs.apic_base, s.lapic.tpr);
        if self.vm.kvm.sregs2 {
            sys::set_sregs2(self.shared.raw(), &sregs).map_err(refused("x86.system", "KVM_SET_SREGS2"))?;
        } else {
            fd.set_sregs(&segments::narrow(&sregs)).map_err(refused("x86.system", "KVM_SET_SREGS"))?;
        }
        self.check_paging(&s.system)?;
        if self.vm.has(Feature::XSAVE) {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: s.system.xcr0, ..Default::default() };
            fd.set_xcrs(&xcrs).map_err(refused("x86.system", "KVM_SET_XCRS"))?;
        }
        let xsave = fpu::to_kvm(&s.fpu, s.avx.as_ref());
        sys::set_xsave(self.shared.raw(), &xsave).map_err(refused("x86.fpu", "KVM_SET_XSAVE"))?;
        let debug =
            kvm_debugregs { db: s.debug.dr, dr6: s.debug.dr6, dr7: s.debug.dr7, ..Default::default() };
        fd.set_debug_regs(&debug).map_err(refused("x86.debug", "KVM_SET_DEBUGREGS"))?;
        let page = Page::from_state(&s.lapic);
        // A change of the timer's mode makes KVM drop the initial count that came with it; then it must come again.
        for _ in 0..if self.fresh { 1 } else { 2 } {
            fd.set_lapic(&page.0).map_err(refused("x86.lapic", "KVM_SET_LAPIC"))?;
        }
        msrs::load(fd, &s.msrs, self.has_tsc_aux())?;
        fd.set_mp_state(kvm_mp_state { mp_state }).map_err(refused("x86.events", "KVM_SET_MP_STATE"))?;
        // Last, because KVM_SET_REGS drops a pending exception.
        self.set_events(events)
    }

    /// Some KVMs (those without hardware virtualisation under them) take paging outside long mode and silently leave it off.
    fn check_paging(&self, s: &SystemV1) -> Result<()> {
        const PG: u64 = 1 << 31;
        const LMA: u64 = 1 << 10;
        if s.cr0 & PG == 0 || s.efer & LMA != 0 {
            return Ok(());
        }
        let kept = self.shared.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?.cr0;
        if kept & PG != 0 {
            return Ok(());
        }
        Err(Error::State("section x86.system: this KVM has no paging outside long mode".into()))
    }

    fn set_events(&self, mut events: kvm_vcpu_events) -> Result<()> {
        if self.vm.kvm.exception_payload {
            events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
        } else if events.exception.pending != 0 || events.exception_has_payload != 0 {
            return Err(Error::State(
                "section x86.events: this KVM cannot take an exception that is pending (KVM_CAP_EXCEPTION_PAYLOAD)"
                    .into(),
            ));
        }
        self.shared
            .fd
            .set_vcpu_events(&events)
            .map_err(refused("x86.events", "KVM_SET_VCPU_EVENTS"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_round_trip() {
        let s = EventsV1 {
            activity: ActivityV1::Halted,
            exception_pending: Some(ExceptionV1 {
                vector: 14,
                error_code: Some(2),
                payload: Some(0xdead_b000),
            }),
            interrupt_injected: Some(0x41),
            shadow_sti: true,
            nmi_pending: 1,
            nmi_masked: true,
            ..Default::default()
        };
        let (kvm, mp_state) = to_events(&s).unwrap();
        assert_eq!(events(&kvm, mp_state).unwrap(), s);
    }

    #[test]
    fn registers_keep_their_order() {
        let s = RegsV1 { gpr: std::array::from_fn(|i| i as u64), rip: 99, rflags: 2 };
        assert_eq!(regs(&to_regs(&s)), s);
        assert_eq!(to_regs(&s).rsp, 4);
    }
}
