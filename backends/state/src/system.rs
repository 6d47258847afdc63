//! Segments, tables, control and model-specific registers, and time.

use crate::section::{Section, StateError};
use serde::{Deserialize, Serialize};

/// Bits of [`SegmentV1::access`]: bits 8 to 15 and 20 to 23 of a descriptor's upper word, moved down by
/// eight, as the virtual-machine control structure has them (SDM vol. 3C, 25.4.1).
pub mod access {
    /// Type: bits 0 to 3 (for code and data: accessed, writable/readable, expand-down/conforming, code).
    pub const TYPE: u32 = 0xf;
    /// Accessed (code and data).
    pub const ACCESSED: u32 = 1;
    /// Writable data or readable code.
    pub const WRITABLE: u32 = 2;
    /// Expand-down data or conforming code.
    pub const EXPAND_DOWN: u32 = 4;
    /// Code, not data.
    pub const CODE: u32 = 8;
    /// Code or data, not a system descriptor.
    pub const S: u32 = 1 << 4;
    /// Descriptor privilege level, two bits.
    pub const DPL_SHIFT: u32 = 5;
    /// Present.
    pub const PRESENT: u32 = 1 << 7;
    /// Available to software.
    pub const AVL: u32 = 1 << 12;
    /// 64-bit code.
    pub const L: u32 = 1 << 13;
    /// 32-bit default operation size, or big stack.
    pub const DB: u32 = 1 << 14;
    /// Limit was given in pages.
    pub const G: u32 = 1 << 15;
    /// The register holds a null selector and cannot be used.
    pub const UNUSABLE: u32 = 1 << 16;
}

/// A segment register with its descriptor cache (SDM vol. 3A, 3.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SegmentV1 {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, the granularity bit already applied.
    pub limit: u32,
    /// See [`access`].
    pub access: u32,
}

impl SegmentV1 {
    /// A segment as real mode has it: base is the selector times 16, limit 64 KiB, access rights as after reset.
    pub fn real_mode(selector: u16, code: bool) -> Self {
        let access = access::PRESENT
            | access::S
            | access::WRITABLE
            | access::ACCESSED
            | if code { access::CODE } else { 0 };
        SegmentV1 { selector, base: u64::from(selector) << 4, limit: 0xffff, access }
    }

    /// Descriptor privilege level.
    pub fn dpl(&self) -> u8 {
        ((self.access >> access::DPL_SHIFT) & 3) as u8
    }

    /// With the rights that a saved state has: what a processor keeps of an unusable segment's differs between makers, and some
    /// say only that it is not present; the privilege level (SS) matters.
    #[must_use]
    pub fn canonical(self) -> Self {
        if self.access & (access::PRESENT | access::UNUSABLE) == access::PRESENT {
            return self;
        }
        SegmentV1 { access: access::UNUSABLE | self.access & 3 << access::DPL_SHIFT, ..self }
    }

    fn validate<S: Section>(&self, name: &str) -> Result<(), StateError> {
        if self.access & !0x1_f0ff != 0 {
            return Err(StateError::invalid::<S>(format!(
                "{name} has reserved access bits {:#x}",
                self.access
            )));
        }
        Ok(())
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableV1 {
    /// Linear address.
    pub base: u64,
    /// Size in bytes less one.
    pub limit: u16,
}

/// Segments, tables and control registers (SDM vol. 3A, chapters 2 and 3). CR8 is the LAPIC's TPR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemV1 {
    /// Code segment; its DPL is the current privilege level's source together with SS.
    pub cs: SegmentV1,
    /// Data segments and stack.
    pub ds: SegmentV1,
    /// See `ds`.
    pub es: SegmentV1,
    /// Base is also IA32_FS_BASE.
    pub fs: SegmentV1,
    /// Base is also IA32_GS_BASE.
    pub gs: SegmentV1,
    /// Stack; its DPL is the current privilege level.
    pub ss: SegmentV1,
    /// Task register.
    pub tr: SegmentV1,
    /// Local descriptor table.
    pub ldtr: SegmentV1,
    /// Global descriptor table.
    pub gdtr: TableV1,
    /// Interrupt descriptor table.
    pub idtr: TableV1,
    /// Control registers.
    pub cr0: u64,
    /// Page-fault address.
    pub cr2: u64,
    /// Page-table root, and PCID.
    pub cr3: u64,
    /// Feature enables.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XCR0: 1 if the model has no XSAVE.
    pub xcr0: u64,
    /// The four PDPTEs of PAE paging, read at the last load of CR3; zero in other paging modes.
    pub pdpte: [u64; 4],
}

impl SystemV1 {
    /// Reset state (SDM vol. 3A, 10.1.1).
    pub fn reset() -> Self {
        let data = SegmentV1::real_mode(0, false);
        SystemV1 {
            cs: SegmentV1 { selector: 0xf000, base: 0xffff_0000, ..SegmentV1::real_mode(0, true) },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            // A busy 32-bit TSS and an LDT.
            tr: SegmentV1 { selector: 0, base: 0, limit: 0xffff, access: access::PRESENT | 11 },
            ldtr: SegmentV1 { selector: 0, base: 0, limit: 0xffff, access: access::PRESENT | 2 },
            gdtr: TableV1 { base: 0, limit: 0xffff },
            idtr: TableV1 { base: 0, limit: 0xffff },
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            pdpte: [0; 4],
        }
    }
}

impl Section for SystemV1 {
    const KIND: &'static str = "x86.system";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        const CR0_PE: u64 = 1;
        const CR0_PG: u64 = 1 << 31;
        const CR4_PAE: u64 = 1 << 5;
        const EFER_LME: u64 = 1 << 8;
        const EFER_LMA: u64 = 1 << 10;
        let bad = |what: String| Err(StateError::invalid::<Self>(what));
        for (name, segment) in [
            ("cs", self.cs),
            ("ds", self.ds),
            ("es", self.es),
            ("fs", self.fs),
            ("gs", self.gs),
            ("ss", self.ss),
            ("tr", self.tr),
            ("ldtr", self.ldtr),
        ] {
            segment.validate::<Self>(name)?;
        }
        if self.cr0 >> 32 != 0 || self.cr4 >> 32 != 0 {
            return bad("cr0 or cr4 has bits above 31".into());
        }
        if self.cr0 & CR0_PG != 0 && self.cr0 & CR0_PE == 0 {
            return bad("cr0 has paging without protection".into());
        }
        let long = self.cr0 & CR0_PG != 0 && self.efer & EFER_LME != 0;
        if (self.efer & EFER_LMA != 0) != long {
            return bad(format!("efer {:#x} does not agree with cr0 {:#x}", self.efer, self.cr0));
        }
        if long && self.cr4 & CR4_PAE == 0 {
            return bad("long mode without cr4.pae".into());
        }
        if self.xcr0 & 1 == 0 || self.xcr0 & !7 != 0 || self.xcr0 & 6 == 4 {
            return bad(format!("xcr0 {:#x}", self.xcr0));
        }
        Ok(())
    }
}

/// A variable-range MTRR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MtrrVarV1 {
    /// IA32_MTRR_PHYSBASEn.
    pub base: u64,
    /// IA32_MTRR_PHYSMASKn.
    pub mask: u64,
}

/// Model-specific registers (SDM vol. 4), each 0 at reset unless said otherwise. One that the CPU model lacks
/// holds its reset value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrsV1 {
    /// IA32_APIC_BASE (0x1b).
    pub apic_base: u64,
    /// IA32_SYSENTER_CS, _ESP, _EIP (0x174 to 0x176).
    pub sysenter_cs: u64,
    /// See `sysenter_cs`.
    pub sysenter_esp: u64,
    /// See `sysenter_cs`.
    pub sysenter_eip: u64,
    /// STAR (0xc0000081).
    pub star: u64,
    /// LSTAR (0xc0000082).
    pub lstar: u64,
    /// CSTAR (0xc0000083).
    pub cstar: u64,
    /// SFMASK (0xc0000084).
    pub sfmask: u64,
    /// KERNEL_GS_BASE (0xc0000102).
    pub kernel_gs_base: u64,
    /// TSC_AUX (0xc0000103).
    pub tsc_aux: u64,
    /// IA32_PAT (0x277); 0x0007040600070406 at reset.
    pub pat: u64,
    /// IA32_MISC_ENABLE (0x1a0); 1 (fast strings) at reset.
    pub misc_enable: u64,
    /// IA32_MTRR_DEF_TYPE (0x2ff).
    pub mtrr_def_type: u64,
    /// IA32_MTRR_FIX64K_00000 (0x250), FIX16K_80000, _A0000 (0x258, 0x259), FIX4K_C0000 to F8000 (0x268 to 0x26f).
    pub mtrr_fixed: [u64; 11],
    /// IA32_MTRR_PHYSBASE0 to PHYSMASK7 (0x200 to 0x20f).
    pub mtrr_var: [MtrrVarV1; 8],
    /// MSR_KVM_WALL_CLOCK_NEW (0x4b564d00).
    pub kvm_wall_clock: u64,
    /// MSR_KVM_SYSTEM_TIME_NEW (0x4b564d01).
    pub kvm_system_time: u64,
}

impl MsrsV1 {
    /// Reset state of vCPU 0 (`bsp`) or another.
    pub fn reset(bsp: bool) -> Self {
        MsrsV1 {
            apic_base: 0xfee0_0800 | if bsp { 0x100 } else { 0 },
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            pat: 0x0007_0406_0007_0406,
            misc_enable: 1,
            mtrr_def_type: 0,
            mtrr_fixed: [0; 11],
            mtrr_var: [MtrrVarV1::default(); 8],
            kvm_wall_clock: 0,
            kvm_system_time: 0,
        }
    }
}

impl Section for MsrsV1 {
    const KIND: &'static str = "x86.msrs";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        if self.apic_base & 0xc00 == 0x400 {
            return Err(StateError::invalid::<Self>("apic_base is in x2APIC mode without being enabled"));
        }
        if self.pat.to_le_bytes().iter().any(|t| !matches!(t, 0 | 1 | 4..=7)) {
            return Err(StateError::invalid::<Self>(format!(
                "pat {:#x} names a reserved memory type",
                self.pat
            )));
        }
        Ok(())
    }
}

/// One vCPU's TSC: the VM's TSC ([`ClockV1::tsc`]) plus an offset of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TscV1 {
    /// Added to the VM's TSC, modulo 2^64; 0 unless the guest wrote its TSC.
    pub offset: i64,
    /// IA32_TSC_ADJUST (0x3b).
    pub adjust: u64,
}

impl Section for TscV1 {
    const KIND: &'static str = "x86.tsc";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        Ok(())
    }
}

/// The VM's time, all values taken at one instant: when the clock was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockV1 {
    /// Frequency of the guest's TSC in kHz.
    pub tsc_khz: u64,
    /// The VM's TSC.
    pub tsc: u64,
    /// kvmclock: nanoseconds since the VM was made.
    pub kvmclock_ns: u64,
    /// The host's UTC at that instant, in nanoseconds since 1970.
    pub realtime_ns: u64,
}

impl Section for ClockV1 {
    const KIND: &'static str = "x86.clock";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        // From slower than any x86-64 to ten times faster than any.
        if !(10_000..=100_000_000).contains(&self.tsc_khz) {
            return Err(StateError::invalid::<Self>(format!("tsc_khz {} is out of range", self.tsc_khz)));
        }
        Ok(())
    }
}
