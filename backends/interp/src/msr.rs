//! CPUID, model-specific registers and the pages of kvmclock.

use crate::cpu::{Cpu, FS, GS, RAX, RBX, RCX, RDX, cr0, efer};
use crate::lapic::{BASE_ENABLE, BASE_X2};
use crate::op::Exec;
use godwit_state::model::{self, Feature as F};
use std::time::{SystemTime, UNIX_EPOCH};

/// Registers that Linux asks for on every AMD processor. As on KVM they read as 0, and what it writes has no effect.
mod amd {
    /// PERF_CTL0; up to PERF_CTR3 the counters of the first AMD64 processors.
    pub(super) const EVENTS: u32 = 0xc001_0000;
    pub(super) const LAST_COUNTER: u32 = 0xc001_0007;
    pub(super) const SYSCFG: u32 = 0xc001_0010;
    pub(super) const HWCR: u32 = 0xc001_0015;
    /// TLB cache disable, flush filter disable, IGNNE emulation.
    pub(super) const HWCR_IGNORED: u64 = 1 << 3 | 1 << 6 | 1 << 8;
    pub(super) const INT_PENDING: u32 = 0xc001_0055;
    pub(super) const DE_CFG: u32 = 0xc001_1029;
}

/// Where an IA32_MTRR_FIX register is in `MsrsV1::mtrr_fixed`.
fn fixed_mtrr(msr: u32) -> Option<usize> {
    match msr {
        0x250 => Some(0),
        0x258 | 0x259 => Some((msr - 0x257) as usize),
        0x268..=0x26f => Some((msr - 0x265) as usize),
        _ => None,
    }
}

fn canonical(v: u64) -> bool {
    v.wrapping_add(1 << 47) >> 48 == 0
}

impl Cpu {
    /// CPUID.
    pub(crate) fn cpuid(&mut self) {
        let (leaf, sub) = (self.gpr[RAX] as u32, self.gpr[RCX] as u32);
        let mut regs = model::cpuid_lookup(&self.cpuid, leaf, sub);
        model::patch_dynamic(leaf, sub, &mut regs, self.msrs.apic_base, self.sys.cr4, self.sys.xcr0);
        for (r, v) in [RAX, RBX, RCX, RDX].into_iter().zip(regs) {
            self.gpr[r] = u64::from(v);
        }
    }

    /// The TSC as this vCPU sees it.
    pub(crate) fn tsc(&self) -> u64 {
        self.clock.tsc().wrapping_add(self.tsc_offset as u64)
    }

    /// RDMSR; #GP if the model does not have it.
    pub(crate) fn read_msr(&mut self, msr: u32) -> Exec<u64> {
        let m = &self.msrs;
        Ok(match msr {
            0x10 => self.tsc(),
            0x1b => m.apic_base,
            0x3b => self.tsc_adjust,
            0x8b => 0,
            0xfe => 0x508,
            0x174 => m.sysenter_cs,
            0x175 => m.sysenter_esp,
            0x176 => m.sysenter_eip,
            0x1a0 => m.misc_enable,
            0x200..=0x20f => {
                let v = m.mtrr_var[((msr - 0x200) / 2) as usize];
                if msr & 1 == 0 { v.base } else { v.mask }
            }
            0x277 => m.pat,
            0x2ff => m.mtrr_def_type,
            0x6e0 => self.lapic.r.tsc_deadline,
            0x800..=0x8ff => return self.x2apic_read(msr),
            0xc000_0080 => self.sys.efer,
            0xc000_0081 => m.star,
            0xc000_0082 => m.lstar,
            0xc000_0083 => m.cstar,
            0xc000_0084 => m.sfmask,
            0xc000_0100 => self.seg[FS].base,
            0xc000_0101 => self.seg[GS].base,
            0xc000_0102 => m.kernel_gs_base,
            0xc000_0103 if self.has_tsc_aux() => m.tsc_aux,
            amd::EVENTS..=amd::LAST_COUNTER | amd::SYSCFG | amd::HWCR | amd::INT_PENDING | amd::DE_CFG => 0,
            0x11 | 0x4b56_4d00 => m.kvm_wall_clock,
            0x12 | 0x4b56_4d01 => m.kvm_system_time,
            _ => match fixed_mtrr(msr) {
                Some(n) => m.mtrr_fixed[n],
                None => return Err(self.unknown_msr(msr, false)),
            },
        })
    }

    fn has_tsc_aux(&self) -> bool {
        self.features.has(F::RDTSCP) || self.features.has(F::RDPID)
    }

    fn unknown_msr(&mut self, msr: u32, write: bool) -> crate::op::Abort {
        self.note(&format!("{} of unknown MSR {msr:#x}: #GP", if write { "write" } else { "read" }));
        self.gp(0)
    }

    /// WRMSR.
    pub(crate) fn write_msr(&mut self, msr: u32, v: u64) -> Exec {
        let must = |cpu: &mut Cpu, ok: bool| if ok { Ok(()) } else { Err(cpu.gp(0)) };
        match msr {
            0x10 => {
                let change = v.wrapping_sub(self.tsc());
                self.tsc_offset = self.tsc_offset.wrapping_add(change as i64);
                self.tsc_adjust = self.tsc_adjust.wrapping_add(change);
                self.arm_timer();
            }
            0x1b => self.write_apic_base(v)?,
            0x3b => {
                let change = v.wrapping_sub(self.tsc_adjust);
                self.tsc_offset = self.tsc_offset.wrapping_add(change as i64);
                self.tsc_adjust = v;
                self.arm_timer();
            }
            // Microcode update: nothing to load.
            0x8b | 0x79 => {}
            0x174 => self.msrs.sysenter_cs = v & 0xffff_ffff,
            0x175 => {
                must(self, canonical(v))?;
                self.msrs.sysenter_esp = v;
            }
            0x176 => {
                must(self, canonical(v))?;
                self.msrs.sysenter_eip = v;
            }
            0x1a0 => self.msrs.misc_enable = v,
            0x200..=0x20f => {
                let n = ((msr - 0x200) / 2) as usize;
                let address = (1u64 << model::PHYSICAL_ADDRESS_BITS) - 1;
                if msr & 1 == 0 {
                    must(self, v & !(address & !0xf00) == 0)?;
                    self.msrs.mtrr_var[n].base = v;
                } else {
                    must(self, v & !(address & !0x7ff) == 0)?;
                    self.msrs.mtrr_var[n].mask = v;
                }
            }
            0x277 => {
                must(self, v.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7)))?;
                self.msrs.pat = v;
            }
            0x2ff => {
                must(self, v & !0xcff == 0)?;
                self.msrs.mtrr_def_type = v;
            }
            0x6e0 => self.set_tsc_deadline(v),
            0x800..=0x8ff => self.x2apic_write(msr, v)?,
            0xc000_0080 => self.write_efer(v)?,
            0xc000_0081 => self.msrs.star = v,
            0xc000_0082 => {
                must(self, canonical(v))?;
                self.msrs.lstar = v;
            }
            0xc000_0083 => {
                must(self, canonical(v))?;
                self.msrs.cstar = v;
            }
            0xc000_0084 => self.msrs.sfmask = v & 0xffff_ffff,
            0xc000_0100 => {
                must(self, canonical(v))?;
                self.seg[FS].base = v;
            }
            0xc000_0101 => {
                must(self, canonical(v))?;
                self.seg[GS].base = v;
            }
            0xc000_0102 => {
                must(self, canonical(v))?;
                self.msrs.kernel_gs_base = v;
            }
            0xc000_0103 if self.has_tsc_aux() => {
                must(self, v >> 32 == 0)?;
                self.msrs.tsc_aux = v;
            }
            amd::EVENTS..=amd::LAST_COUNTER | amd::DE_CFG => {}
            amd::HWCR => must(self, v & !amd::HWCR_IGNORED == 0)?,
            0x11 | 0x4b56_4d00 => {
                self.msrs.kvm_wall_clock = v;
                self.write_wall_clock();
            }
            0x12 | 0x4b56_4d01 => {
                self.msrs.kvm_system_time = v;
                self.write_kvmclock();
            }
            _ => match fixed_mtrr(msr) {
                Some(n) => self.msrs.mtrr_fixed[n] = v,
                None => return Err(self.unknown_msr(msr, true)),
            },
        }
        Ok(())
    }

    fn write_apic_base(&mut self, v: u64) -> Exec {
        let reserved = !(((1u64 << model::PHYSICAL_ADDRESS_BITS) - 1) & !0x2ff);
        let (old, new) = (self.msrs.apic_base & (BASE_ENABLE | BASE_X2), v & (BASE_ENABLE | BASE_X2));
        let illegal = new == BASE_X2
            || (old == 0 && new == BASE_ENABLE | BASE_X2)
            || (old == BASE_ENABLE | BASE_X2 && new == BASE_ENABLE);
        if v & reserved != 0 || illegal {
            return Err(self.gp(0));
        }
        self.msrs.apic_base = v & !0x100 | self.msrs.apic_base & 0x100;
        if new == 0 {
            let id = self.lapic.r.id;
            self.lapic.r = godwit_state::LapicV1::reset(id);
            self.arm_timer();
        }
        if new & BASE_X2 != 0 {
            self.lapic.r.dfr = u32::MAX;
            self.lapic.r.ldr = crate::lapic::x2_ldr(self.lapic.r.id);
        }
        self.publish_apic();
        self.look_for_interrupts();
        self.flush_tlb();
        Ok(())
    }

    fn write_efer(&mut self, v: u64) -> Exec {
        let mut allowed = efer::SCE | efer::LME | efer::LMA;
        if self.features.has(F::NX) {
            allowed |= efer::NXE;
        }
        if self.features.has(F::FXSR_OPT) {
            allowed |= efer::FFXSR;
        }
        let old = self.sys.efer;
        if v & !allowed != 0 || ((v ^ old) & efer::LME != 0 && self.sys.cr0 & cr0::PG != 0) {
            return Err(self.gp(0));
        }
        self.sys.efer = v & !efer::LMA | old & efer::LMA;
        self.flush_tlb();
        Ok(())
    }

    /// Brings the page of kvmclock up to date.
    pub(crate) fn write_kvmclock(&mut self) {
        let at = self.msrs.kvm_system_time;
        if at & 1 == 0 {
            return;
        }
        let at = at & !3;
        let mut old = [0; 4];
        self.read_physical(at, &mut old);
        let version = u32::from_le_bytes(old) & !1;
        let (tsc, ns) = self.clock.both();
        let tsc = tsc.wrapping_add(self.tsc_offset as u64);
        let (mul, shift) = crate::clock::pvclock_scale(self.clock.tsc_khz);
        self.write_physical(at, &(version.wrapping_add(1)).to_le_bytes());
        let mut page = [0; 28];
        page[4..12].copy_from_slice(&tsc.to_le_bytes());
        page[12..20].copy_from_slice(&ns.to_le_bytes());
        page[20..24].copy_from_slice(&mul.to_le_bytes());
        page[24] = shift as u8;
        // Stable: all vCPUs' clocks are one.
        page[25] = 1;
        self.write_physical(at + 4, &page);
        self.write_physical(at, &(version.wrapping_add(2)).to_le_bytes());
    }

    /// Writes the wall-clock time at which kvmclock was 0.
    fn write_wall_clock(&mut self) {
        let at = self.msrs.kvm_wall_clock & !3;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let boot = now.saturating_sub(self.clock.now_ns());
        let mut old = [0; 4];
        self.read_physical(at, &mut old);
        let version = (u32::from_le_bytes(old) & !1).wrapping_add(2);
        let mut page = [0; 12];
        page[..4].copy_from_slice(&version.to_le_bytes());
        page[4..8].copy_from_slice(&((boot / 1_000_000_000) as u32).to_le_bytes());
        page[8..].copy_from_slice(&((boot % 1_000_000_000) as u32).to_le_bytes());
        self.write_physical(at, &page);
    }

    /// Logs something odd about the guest, a limited number of times.
    pub(crate) fn note(&mut self, text: &str) {
        self.counters.unknown += 1;
        if self.counters.unknown <= 32 {
            let rip = self.rip;
            self.host
                .log(godwit_sdk::LogLevel::Warn, &format!("vCPU {}: {text} (near rip {rip:#x})", self.id));
        }
    }
}
