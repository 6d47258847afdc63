//! CPU models: what a guest sees, the same bits on every backend and host.
//!
//! A model is an exact CPUID table of ours. The portable ones are the levels of the x86-64 psABI with
//! what every processor of that level has besides. [`Model::Host`] is the exception: whatever the backend
//! has on this host; a guest of it moves only to where the same features are.
//!
//! The vendor is AuthenticAMD with family 15, model 107, as emulators have long shown it: Linux knows it, and
//! knows it free of the speculation flaws that would cost an emulated guest dearly.

use crate::section::StateError;

/// A named CPU model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Model {
    /// "x86-64": the baseline, SSE2.
    X86_64,
    /// "x86-64-v2": SSE4.2, POPCNT, CMPXCHG16B.
    V2,
    /// "x86-64-v3": AVX2, BMI, FMA, XSAVE.
    V3,
    /// "host": all that the backend has; not portable.
    Host,
}

/// Feature bits of a model, by CPUID register (SDM vol. 2A, CPUID; APM vol. 3, appendix E).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Leaf 1 EDX.
    pub leaf1_edx: u32,
    /// Leaf 1 ECX.
    pub leaf1_ecx: u32,
    /// Leaf 7, subleaf 0, EBX.
    pub leaf7_ebx: u32,
    /// Leaf 7, subleaf 0, ECX.
    pub leaf7_ecx: u32,
    /// Leaf 0xd, subleaf 1, EAX.
    pub xsave_eax: u32,
    /// Leaf 0x80000001 EDX.
    pub ext1_edx: u32,
    /// Leaf 0x80000001 ECX.
    pub ext1_ecx: u32,
}

macro_rules! features {
    ($($(#[$doc:meta])* $name:ident: $field:ident $bit:expr, $text:expr;)*) => {
        /// A CPU feature by name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, non_camel_case_types, clippy::upper_case_acronyms)]
        pub enum Feature { $($name),* }
        impl Feature {
            /// All features that some model has.
            pub const ALL: &'static [Feature] = &[$(Feature::$name),*];
            /// The name people know it by, as in /proc/cpuinfo.
            pub fn name(self) -> &'static str {
                match self { $(Feature::$name => $text),* }
            }
            /// The register that holds it and its mask there.
            fn place(self, features: &mut Features) -> (&mut u32, u32) {
                match self { $(Feature::$name => (&mut features.$field, 1 << $bit)),* }
            }
        }
    };
}

features! {
    FPU: leaf1_edx 0, "fpu";
    DE: leaf1_edx 2, "de";
    PSE: leaf1_edx 3, "pse";
    TSC: leaf1_edx 4, "tsc";
    MSR: leaf1_edx 5, "msr";
    PAE: leaf1_edx 6, "pae";
    CX8: leaf1_edx 8, "cx8";
    APIC: leaf1_edx 9, "apic";
    SEP: leaf1_edx 11, "sep";
    MTRR: leaf1_edx 12, "mtrr";
    PGE: leaf1_edx 13, "pge";
    CMOV: leaf1_edx 15, "cmov";
    PAT: leaf1_edx 16, "pat";
    PSE36: leaf1_edx 17, "pse36";
    CLFLUSH: leaf1_edx 19, "clflush";
    MMX: leaf1_edx 23, "mmx";
    FXSR: leaf1_edx 24, "fxsr";
    SSE: leaf1_edx 25, "sse";
    SSE2: leaf1_edx 26, "sse2";
    SSE3: leaf1_ecx 0, "sse3";
    PCLMULQDQ: leaf1_ecx 1, "pclmulqdq";
    SSSE3: leaf1_ecx 9, "ssse3";
    FMA: leaf1_ecx 12, "fma";
    CX16: leaf1_ecx 13, "cx16";
    PCID: leaf1_ecx 17, "pcid";
    SSE4_1: leaf1_ecx 19, "sse4.1";
    SSE4_2: leaf1_ecx 20, "sse4.2";
    X2APIC: leaf1_ecx 21, "x2apic";
    MOVBE: leaf1_ecx 22, "movbe";
    POPCNT: leaf1_ecx 23, "popcnt";
    TSC_DEADLINE: leaf1_ecx 24, "tsc_deadline_timer";
    AES: leaf1_ecx 25, "aes";
    XSAVE: leaf1_ecx 26, "xsave";
    AVX: leaf1_ecx 28, "avx";
    F16C: leaf1_ecx 29, "f16c";
    RDRAND: leaf1_ecx 30, "rdrand";
    HYPERVISOR: leaf1_ecx 31, "hypervisor";
    FSGSBASE: leaf7_ebx 0, "fsgsbase";
    BMI1: leaf7_ebx 3, "bmi1";
    AVX2: leaf7_ebx 5, "avx2";
    SMEP: leaf7_ebx 7, "smep";
    BMI2: leaf7_ebx 8, "bmi2";
    ERMS: leaf7_ebx 9, "erms";
    INVPCID: leaf7_ebx 10, "invpcid";
    RDSEED: leaf7_ebx 18, "rdseed";
    ADX: leaf7_ebx 19, "adx";
    SMAP: leaf7_ebx 20, "smap";
    CLFLUSHOPT: leaf7_ebx 23, "clflushopt";
    SHA: leaf7_ebx 29, "sha";
    UMIP: leaf7_ecx 2, "umip";
    RDPID: leaf7_ecx 22, "rdpid";
    XSAVEOPT: xsave_eax 0, "xsaveopt";
    XSAVEC: xsave_eax 1, "xsavec";
    XGETBV1: xsave_eax 2, "xgetbv1";
    SYSCALL: ext1_edx 11, "syscall";
    NX: ext1_edx 20, "nx";
    FXSR_OPT: ext1_edx 25, "fxsr_opt";
    PDPE1GB: ext1_edx 26, "pdpe1gb";
    RDTSCP: ext1_edx 27, "rdtscp";
    LM: ext1_edx 29, "lm";
    LAHF: ext1_ecx 0, "lahf_lm";
    LZCNT: ext1_ecx 5, "abm";
}

impl Features {
    /// The features listed.
    pub fn of(list: &[Feature]) -> Self {
        let mut out = Features::default();
        for f in list {
            let (register, mask) = f.place(&mut out);
            *register |= mask;
        }
        out
    }

    /// True if `feature` is among these.
    pub fn has(mut self, feature: Feature) -> bool {
        let (register, mask) = feature.place(&mut self);
        *register & mask != 0
    }

    /// Both sets together.
    pub fn union(self, other: Self) -> Self {
        Features {
            leaf1_edx: self.leaf1_edx | other.leaf1_edx,
            leaf1_ecx: self.leaf1_ecx | other.leaf1_ecx,
            leaf7_ebx: self.leaf7_ebx | other.leaf7_ebx,
            leaf7_ecx: self.leaf7_ecx | other.leaf7_ecx,
            xsave_eax: self.xsave_eax | other.xsave_eax,
            ext1_edx: self.ext1_edx | other.ext1_edx,
            ext1_ecx: self.ext1_ecx | other.ext1_ecx,
        }
    }

    /// Those of `self` that `host` lacks, in the order of [`Feature::ALL`].
    pub fn missing_in(self, host: Self) -> Vec<Feature> {
        Feature::ALL.iter().copied().filter(|f| self.has(*f) && !host.has(*f)).collect()
    }
}

use Feature as F;

const BASE: &[Feature] = &[
    F::FPU,
    F::DE,
    F::PSE,
    F::TSC,
    F::MSR,
    F::PAE,
    F::CX8,
    F::APIC,
    F::SEP,
    F::MTRR,
    F::PGE,
    F::CMOV,
    F::PAT,
    F::PSE36,
    F::CLFLUSH,
    F::MMX,
    F::FXSR,
    F::SSE,
    F::SSE2,
    F::SYSCALL,
    F::NX,
    F::LM,
    // Given by the backend or the LAPIC model whatever the processor: every model has them.
    F::X2APIC,
    F::TSC_DEADLINE,
    F::HYPERVISOR,
];
const V2: &[Feature] = &[F::CX16, F::LAHF, F::POPCNT, F::SSE3, F::SSSE3, F::SSE4_1, F::SSE4_2, F::RDTSCP];
const V3: &[Feature] = &[
    F::AVX,
    F::AVX2,
    F::BMI1,
    F::BMI2,
    F::F16C,
    F::FMA,
    F::LZCNT,
    F::MOVBE,
    F::XSAVE,
    // Not in the psABI level, but in every processor that has it and runs KVM.
    F::AES,
    F::PCLMULQDQ,
    F::FSGSBASE,
    F::RDRAND,
    F::SMEP,
    F::PDPE1GB,
    F::ERMS,
    F::XSAVEOPT,
];
const INTERPRETER_EXTRA: &[Feature] = &[
    F::PCID,
    F::INVPCID,
    F::RDSEED,
    F::ADX,
    F::SMAP,
    F::CLFLUSHOPT,
    F::SHA,
    F::UMIP,
    F::RDPID,
    F::XSAVEC,
    F::XGETBV1,
    F::FXSR_OPT,
];

/// Features of `host` on the interpreter: every one that this crate can name.
pub fn all_features() -> Features {
    Features::of(BASE).union(Features::of(V2)).union(Features::of(V3)).union(Features::of(INTERPRETER_EXTRA))
}

impl Features {
    /// As seven registers, in the order of the fields: for descriptors and messages between programs.
    pub fn registers(self) -> [u32; 7] {
        let f = self;
        [f.leaf1_edx, f.leaf1_ecx, f.leaf7_ebx, f.leaf7_ecx, f.xsave_eax, f.ext1_edx, f.ext1_ecx]
    }

    /// The reverse of [`Features::registers`].
    pub fn from_registers(registers: [u32; 7]) -> Self {
        let [leaf1_edx, leaf1_ecx, leaf7_ebx, leaf7_ecx, xsave_eax, ext1_edx, ext1_ecx] = registers;
        Features { leaf1_edx, leaf1_ecx, leaf7_ebx, leaf7_ecx, xsave_eax, ext1_edx, ext1_ecx }
    }
}

impl Model {
    /// The portable models, weakest first.
    pub const PORTABLE: [Model; 3] = [Model::X86_64, Model::V2, Model::V3];

    /// The name in config files, state and messages.
    pub fn name(self) -> &'static str {
        match self {
            Model::X86_64 => "x86-64",
            Model::V2 => "x86-64-v2",
            Model::V3 => "x86-64-v3",
            Model::Host => "host",
        }
    }

    /// The model of that name.
    pub fn from_name(name: &str) -> Option<Model> {
        [Model::X86_64, Model::V2, Model::V3, Model::Host].into_iter().find(|m| m.name() == name)
    }

    /// What the model has; `None` for [`Model::Host`], which depends on the backend.
    pub fn features(self) -> Option<Features> {
        let base = Features::of(BASE);
        Some(match self {
            Model::X86_64 => base,
            Model::V2 => base.union(Features::of(V2)),
            Model::V3 => base.union(Features::of(V2)).union(Features::of(V3)),
            Model::Host => return None,
        })
    }
}

impl std::str::FromStr for Model {
    type Err = StateError;
    fn from_str(s: &str) -> Result<Self, StateError> {
        Model::from_name(s).ok_or_else(|| StateError::Invalid {
            kind: "cpu model".into(),
            what: format!("no model is named {s:?}; there are x86-64, x86-64-v2, x86-64-v3 and host"),
        })
    }
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One row of a CPUID table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidEntry {
    /// EAX that selects it.
    pub leaf: u32,
    /// ECX that selects it, if the leaf has subleaves.
    pub subleaf: Option<u32>,
    /// EAX, EBX, ECX, EDX.
    pub regs: [u32; 4],
}

/// APIC bus frequency in kHz: one LAPIC timer tick before the divisor is 1 ns.
pub const APIC_BUS_KHZ: u32 = 1_000_000;

/// The CPUID table of vCPU `vcpu` of `vcpus` (its APIC id is its number).
///
/// What an instruction sees differs in the bits that follow the CPU's own state: leaf 1 EDX bit 9 (IA32_APIC_BASE
/// enable), leaf 1 ECX bit 27 (CR4.OSXSAVE), leaf 0xd subleaves 0 and 1 EBX (XCR0): [`patch_dynamic`] puts them in. A leaf that is not in
/// the table reads as zeros.
pub fn cpuid_table(features: Features, vcpu: u32, vcpus: u32, tsc_khz: u64) -> Vec<CpuidEntry> {
    let text = |s: &[u8; 12]| {
        let word = |i: usize| u32::from_le_bytes([s[i], s[i + 1], s[i + 2], s[i + 3]]);
        [word(0), word(4), word(8)]
    };
    let vendor = text(b"AuthenticAMD");
    let smt_bits = vcpus.next_power_of_two().trailing_zeros();
    let avx = features.has(F::AVX);
    let xsave = features.has(F::XSAVE);
    let max_basic = if xsave { 0xd } else { 0xb };
    let plain = |leaf, regs| CpuidEntry { leaf, subleaf: None, regs };
    let sub = |leaf, subleaf, regs| CpuidEntry { leaf, subleaf: Some(subleaf), regs };
    let mut t = vec![
        plain(0, [max_basic, vendor[0], vendor[2], vendor[1]]),
        plain(
            1,
            [
                // Family 15, model 107, stepping 1.
                0x0006_0fb1,
                (vcpu << 24) | (vcpus.min(255) << 16) | (8 << 8),
                features.leaf1_ecx,
                // HTT: the logical processor count above is valid.
                features.leaf1_edx | if vcpus > 1 { 1 << 28 } else { 0 },
            ],
        ),
        sub(7, 0, [0, features.leaf7_ebx, features.leaf7_ecx, 0]),
        // Extended topology: one thread a core, all cores in one package.
        sub(0xb, 0, [0, 1, 0x100, vcpu]),
        sub(0xb, 1, [smt_bits, vcpus, 0x201, vcpu]),
        sub(0xb, 2, [0, 0, 2, vcpu]),
    ];
    if xsave {
        let xcr0 = if avx { 7 } else { 3 };
        t.push(sub(0xd, 0, [xcr0, 576, xsave_size(xcr0.into()), 0]));
        t.push(sub(0xd, 1, [features.xsave_eax, 0, 0, 0]));
        if avx {
            t.push(sub(0xd, 2, [256, 576, 0, 0]));
        }
    }
    t.extend([
        plain(0x4000_0000, {
            let kvm = text(b"KVMKVMKVM\0\0\0");
            [0x4000_0010, kvm[0], kvm[1], kvm[2]]
        }),
        // Clock source at the old and the new MSRs, and its stable bit.
        plain(0x4000_0001, [(1 << 0) | (1 << 3) | (1 << 24), 0, 0, 0]),
        plain(0x4000_0010, [u32::try_from(tsc_khz).unwrap_or(u32::MAX), APIC_BUS_KHZ, 0, 0]),
        plain(0x8000_0000, [0x8000_0008, vendor[0], vendor[2], vendor[1]]),
        plain(
            0x8000_0001,
            [
                0x0006_0fb1,
                0,
                // Legacy core-multiprocessing.
                features.ext1_ecx | if vcpus > 1 { 1 << 1 } else { 0 },
                // AMD repeats part of leaf 1 here.
                features.ext1_edx | (features.leaf1_edx & 0x0183_f3ff),
            ],
        ),
    ]);
    let brand = b"Godwit Virtual CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (i, chunk) in brand.chunks_exact(16).enumerate() {
        let word = |k: usize| u32::from_le_bytes([chunk[k], chunk[k + 1], chunk[k + 2], chunk[k + 3]]);
        t.push(plain(0x8000_0002 + i as u32, [word(0), word(4), word(8), word(12)]));
    }
    t.extend([
        // L1: 64 KiB, 2-way, 64-byte lines; TLB figures as family 15 has them.
        plain(0x8000_0005, [0xff08_ff08, 0xff20_ff20, 0x4002_0140, 0x4002_0140]),
        // L2: 512 KiB, 16-way.
        plain(0x8000_0006, [0, 0x4200_4200, 0x0200_8140, 0]),
        // Invariant TSC.
        plain(0x8000_0007, [0, 0, 0, 1 << 8]),
        // 48 linear and 40 physical address bits; number of cores.
        plain(0x8000_0008, [0x3028, 0, if vcpus > 1 { (smt_bits << 12) | (vcpus - 1) } else { 0 }, 0]),
    ]);
    t
}

/// Physical address bits that every model shows.
pub const PHYSICAL_ADDRESS_BITS: u32 = 40;

/// Looks up what CPUID gives for `leaf` and `subleaf`, before [`patch_dynamic`].
pub fn cpuid_lookup(table: &[CpuidEntry], leaf: u32, subleaf: u32) -> [u32; 4] {
    table.iter().find(|e| e.leaf == leaf && e.subleaf.is_none_or(|s| s == subleaf)).map_or([0; 4], |e| e.regs)
}

/// Bytes of an XSAVE area with what XCR0 enables: legacy region and header, then AVX.
fn xsave_size(xcr0: u64) -> u32 {
    if xcr0 & 4 != 0 { 832 } else { 576 }
}

/// Puts the bits that follow the CPU's own state into what [`cpuid_lookup`] gave.
pub fn patch_dynamic(leaf: u32, subleaf: u32, regs: &mut [u32; 4], apic_base: u64, cr4: u64, xcr0: u64) {
    const APIC_ENABLE: u64 = 1 << 11;
    const CR4_OSXSAVE: u64 = 1 << 18;
    const XSAVEC: u32 = 1 << 1;
    match (leaf, subleaf) {
        (1, _) => {
            if apic_base & APIC_ENABLE == 0 {
                regs[3] &= !(1 << 9);
            }
            regs[2] &= !(1 << 27);
            if cr4 & CR4_OSXSAVE != 0 {
                regs[2] |= 1 << 27;
            }
        }
        (0x8000_0001, _) if apic_base & APIC_ENABLE == 0 => regs[3] &= !(1 << 9),
        (0xd, 0) if regs[0] != 0 => regs[1] = xsave_size(xcr0),
        // Of the compacted form, which is as large: AVX follows SSE (SDM vol. 2, CPUID).
        (0xd, 1) if regs[0] & XSAVEC != 0 => regs[1] = xsave_size(xcr0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_grow() {
        let [a, b, c] = Model::PORTABLE.map(|m| m.features().unwrap());
        assert!(
            a.missing_in(b).is_empty()
                && b.missing_in(c).is_empty()
                && c.missing_in(all_features()).is_empty()
        );
        assert_eq!(b.missing_in(a).first(), Some(&Feature::SSE3));
    }

    #[test]
    fn names_round_trip() {
        for m in [Model::X86_64, Model::V2, Model::V3, Model::Host] {
            assert_eq!(m.name().parse::<Model>(), Ok(m));
        }
        assert!("x86-64-v9".parse::<Model>().unwrap_err().to_string().contains("x86-64-v9"));
    }

    #[test]
    fn vendor_and_signature_read_as_text() {
        let t = cpuid_table(Model::X86_64.features().unwrap(), 0, 1, 2_000_000);
        let [_, b, c, d] = cpuid_lookup(&t, 0, 0);
        let vendor: Vec<u8> = [b, d, c].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(vendor, b"AuthenticAMD");
        let [_, b, c, d] = cpuid_lookup(&t, 0x4000_0000, 0);
        let signature: Vec<u8> = [b, c, d].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(signature, b"KVMKVMKVM\0\0\0");
        assert_eq!(cpuid_lookup(&t, 0x1234_5678, 0), [0; 4]);
    }

    #[test]
    fn dynamic_bits_follow_the_state() {
        let t = cpuid_table(Model::V3.features().unwrap(), 1, 4, 2_000_000);
        let mut r = cpuid_lookup(&t, 1, 0);
        patch_dynamic(1, 0, &mut r, 0xfee0_0000, 1 << 18, 1);
        assert_eq!(r[3] & (1 << 9), 0);
        assert_ne!(r[2] & (1 << 27), 0);
        assert_eq!(r[1] >> 24, 1);

        let size = |features, subleaf, xcr0| {
            let mut r = cpuid_lookup(&cpuid_table(features, 0, 1, 2_000_000), 0xd, subleaf);
            patch_dynamic(0xd, subleaf, &mut r, 0xfee0_0000, 1 << 18, xcr0);
            r[1]
        };
        let v3 = Model::V3.features().unwrap();
        let compacting = all_features();
        assert_eq!([size(v3, 0, 3), size(v3, 0, 7), size(v3, 1, 7)], [576, 832, 0]);
        assert_eq!([size(compacting, 1, 3), size(compacting, 1, 7)], [576, 832]);
    }
}
