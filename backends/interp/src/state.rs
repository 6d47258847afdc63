//! Between the running form of a vCPU's state and the canonical one.

use crate::cpu::{Cpu, System};
use crate::num::vec::{V128, V256};
use godwit_sdk::{Error, Result};
use godwit_state::model::Feature;
use godwit_state::{
    AvxV1, CpuState, DebugV1, EventsV1, F80, FpuV1, LapicV1, RegsV1, SegmentV1, SystemV1, TscV1,
};
use std::sync::atomic::Ordering;

impl Cpu {
    /// All of the state.
    pub(crate) fn save(&mut self) -> CpuState {
        self.absorb();
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.gpr[..16]);
        let [es, cs, ss, ds, fs, gs] = self.seg.map(SegmentV1::canonical);
        let y = &self.sys;
        let load = |w: &[std::sync::atomic::AtomicU32; 8]| w.each_ref().map(|w| w.load(Ordering::SeqCst));
        let f = &self.fpu;
        let pending = f.sw & 0x80 != 0;
        let last = |v: u64| if pending { v } else { 0 };
        let mut st = [F80::default(); 8];
        for (i, r) in st.iter_mut().enumerate() {
            *r = f.regs[(usize::from(f.top) + i) & 7];
        }
        CpuState {
            regs: RegsV1 { gpr, rip: self.rip, rflags: self.rflags() },
            system: SystemV1 {
                cs,
                ds,
                es,
                fs,
                gs,
                ss,
                tr: y.tr,
                ldtr: y.ldtr.canonical(),
                gdtr: y.gdtr,
                idtr: y.idtr,
                cr0: y.cr0,
                cr2: y.cr2,
                cr3: y.cr3,
                cr4: y.cr4,
                efer: y.efer,
                xcr0: y.xcr0,
                pdpte: y.pdpte,
            },
            msrs: self.msrs,
            debug: DebugV1 { dr: y.dr, dr6: y.dr6, dr7: y.dr7 },
            fpu: FpuV1 {
                fcw: f.cw,
                fsw: f.sw & !0x3800 | u16::from(f.top) << 11,
                ftw: f.tags,
                fop: last(u64::from(f.fop)) as u16,
                fip: last(f.fip),
                fdp: last(f.fdp),
                st,
                mxcsr: f.mxcsr,
                xmm: self.vec.map(|v| v.lo.to_u128()),
            },
            avx: self
                .features
                .has(Feature::AVX)
                .then(|| AvxV1 { ymm_high: self.vec.map(|v| v.hi.to_u128()) }),
            events: self.events_state(),
            lapic: LapicV1 { irr: load(&self.me.irr), tmr: load(&self.me.tmr), ..self.lapic.r },
            tsc: TscV1 { offset: self.tsc_offset, adjust: self.tsc_adjust },
        }
    }

    /// Replaces all of the state.
    pub(crate) fn load(&mut self, s: &CpuState) -> Result<()> {
        let avx = self.features.has(Feature::AVX);
        if s.avx.is_some() != avx {
            let what = if avx {
                "lacks AVX state, which the CPU model has"
            } else {
                "has AVX state, which the CPU model lacks"
            };
            return Err(Error::State(format!("the vCPU's state {what}")));
        }
        if !self.features.has(Feature::XSAVE) && s.system.xcr0 != 1 {
            return Err(Error::State(format!(
                "xcr0 is {:#x}, but the CPU model has no XSAVE",
                s.system.xcr0
            )));
        }
        let y = &s.system;
        self.gpr[..16].copy_from_slice(&s.regs.gpr);
        self.rip = s.regs.rip;
        self.seg = [y.es, y.cs, y.ss, y.ds, y.fs, y.gs];
        self.sys = System {
            tr: y.tr,
            ldtr: y.ldtr,
            gdtr: y.gdtr,
            idtr: y.idtr,
            cr0: y.cr0,
            cr2: y.cr2,
            cr3: y.cr3,
            cr4: y.cr4,
            efer: y.efer,
            xcr0: y.xcr0,
            pdpte: y.pdpte,
            dr: s.debug.dr,
            dr6: s.debug.dr6,
            dr7: s.debug.dr7,
        };
        self.msrs = s.msrs;
        self.cpl = y.ss.dpl();
        self.set_rflags(s.regs.rflags);
        let f = &s.fpu;
        self.fpu.cw = f.fcw;
        self.fpu.sw = f.fsw & !0x3800;
        self.fpu.top = (f.fsw >> 11 & 7) as u8;
        self.fpu.tags = f.ftw;
        self.fpu.fop = f.fop;
        self.fpu.fip = f.fip;
        self.fpu.fdp = f.fdp;
        for (i, r) in f.st.iter().enumerate() {
            self.fpu.regs[(usize::from(self.fpu.top) + i) & 7] = *r;
        }
        self.fpu.mxcsr = f.mxcsr;
        for (i, v) in self.vec.iter_mut().enumerate() {
            *v = V256 {
                lo: V128::from_u128(f.xmm[i]),
                hi: V128::from_u128(s.avx.as_ref().map_or(0, |a| a.ymm_high[i])),
            };
        }
        let e = &s.events;
        self.activity = e.activity;
        self.shadow_sti = e.shadow_sti;
        self.shadow_ss = e.shadow_ss;
        self.nmi_masked = e.nmi_masked;
        self.nmi_pending = e.nmi_pending;
        self.debug_pending = 0;
        self.step_trap = false;
        self.inject = EventsV1 {
            activity: Default::default(),
            shadow_sti: false,
            shadow_ss: false,
            nmi_masked: false,
            nmi_pending: 0,
            ..*e
        };
        if let Some(vector) = self.inject.sipi.take() {
            self.me.sipi.store(u32::from(vector), Ordering::SeqCst);
            self.me.attention.fetch_or(crate::shared::attention::SIPI, Ordering::SeqCst);
        }
        self.lapic.r = LapicV1 { irr: [0; 8], tmr: [0; 8], ..s.lapic };
        self.lapic.errors = 0;
        for i in 0..8 {
            self.me.irr[i].store(s.lapic.irr[i], Ordering::SeqCst);
            self.me.tmr[i].store(s.lapic.tmr[i], Ordering::SeqCst);
        }
        self.tsc_offset = s.tsc.offset;
        self.tsc_adjust = s.tsc.adjust;
        self.publish_apic();
        self.arm_timer();
        self.check_events = true;
        self.interrupts = true;
        self.flush_tlb();
        Ok(())
    }
}
