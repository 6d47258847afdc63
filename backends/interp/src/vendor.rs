//! Where processors of AMD and of Intel differ in what a program can see, and what the interpreter does: its models
//! say AuthenticAMD, so it does as AMD's manual says, and as a Zen 5 processor was found to do where that is silent.
//!
//! Tests that compare with the processor they run on take from here, by name, what may differ there. On AMD's nothing
//! may. On Intel's they know what it does instead and demand that, to the bit, and print how often ([`SetAside`]).
//! SDM is Intel's manual (order number 325462), APM is AMD's (24592, 24593, 24594, 26568, 26569).

use std::collections::BTreeMap;
use std::fmt;

/// One difference.
#[derive(Debug)]
pub struct Difference {
    /// What tests call it.
    pub name: &'static str,
    /// The instructions.
    pub instructions: &'static str,
    /// What AMD's processors do, and the interpreter.
    pub amd: &'static str,
    /// What Intel's do.
    pub intel: &'static str,
    /// What the manuals say.
    pub manual: &'static str,
    /// How it is known that this is the vendor's way and no fault of the interpreter.
    pub seen: Seen,
}

/// What proves a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Answers recorded on a Zen 5: of `tests/vectors/oracle.txt`, or `testdata/num-*.txt` beside the interpreter.
    Recorded,
    /// The tests that compare with the processor, run on both: with equal operands they agree on a Zen 5 (816,000
    /// sequences of 64-bit code) and differ on an Intel Xeon (Sapphire Rapids).
    BothRun,
    /// Seen on that Xeon alone. What AMD's do is not known: the interpreter does what follows from its manual's general
    /// rules.
    IntelOnly,
    /// The manuals themselves.
    Manuals,
}

/// All of them.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        name: "dpps-nan",
        instructions: "DPPS, DPPD, VDPPS, VDPPD",
        amd: "of several NaNs the first, by element, goes to every element of the result",
        intel: "each element adds in an order of its own: its neighbour's product to its own, the other pair's sum to \
                its pair's (DPPD: the neighbour's to its own)",
        manual: "SDM vol. 2, DPPS: which NaN goes where is implementation dependent. APM vol. 4, DPPS: silent",
        seen: Seen::Recorded,
    },
    Difference {
        name: "vcvtps2ph-denormal",
        instructions: "VCVTPS2PH",
        amd: "with underflow unmasked, a denormal source that fits but for its exponent raises UE alone",
        intel: "raises PE too",
        manual: "SDM vol. 1, 4.9.1.5 (numeric underflow): PE if the result is inexact, but not of which result where \
                 none is delivered; APM vol. 1 (SIMD floating-point exceptions) neither",
        seen: Seen::BothRun,
    },
    Difference {
        name: "vcvtps2ph-fault",
        instructions: "VCVTPS2PH to memory",
        amd: "where the store faults, MXCSR is as before; the store is looked at before unmasked exceptions",
        intel: "MXCSR has the conversion's flags; unmasked exceptions come before the store's",
        manual: "SDM vol. 3 (priority among concurrent events) and APM vol. 2, 8.5 (priorities): the order of faults of \
                 one instruction's execution is the implementation's",
        seen: Seen::BothRun,
    },
    Difference {
        name: "gather-fault",
        instructions: "VGATHERDPS and its kind, VPGATHERDD and its kind",
        amd: "at a fault the mask is as given, but for elements that are done",
        intel: "at a fault the mask's elements are all ones or zero by their top bits; it is zero beyond the vector's \
                length, and the destination too once an element is done",
        manual: "SDM vol. 2, VGATHERDPS: its operation extends the mask before it loads. APM vol. 6, VGATHERDPS: those \
                 done have their mask cleared, and no more is said",
        seen: Seen::Recorded,
    },
    Difference {
        name: "sha-alignment",
        instructions: "SHA1RNDS4 and its kind, with a memory operand",
        amd: "takes any address",
        intel: "#GP unless it is 16 bytes aligned",
        manual: "SDM vol. 2, SHA1RNDS4: exceptions of type 4, which has the #GP",
        seen: Seen::Recorded,
    },
    Difference {
        name: "repeat-fault",
        instructions: "REPE and REPNE CMPS and SCAS",
        amd: "where an iteration faults, flags are of the last one before it",
        intel: "flags are as before the instruction",
        manual: "SDM vol. 2, REP: EFLAGS is restored to the state before the instruction. APM vol. 3, 1.2.6: silent",
        seen: Seen::Manuals,
    },
    Difference {
        name: "cmps-order",
        instructions: "CMPS",
        amd: "of two operands that fault, that at rSI does",
        intel: "that at rDI does",
        manual: "SDM vol. 2, CMPS, and APM vol. 3, CMPS: no order",
        seen: Seen::BothRun,
    },
    Difference {
        name: "mmx-fault",
        instructions: "MOVD, MOVQ, MOVNTQ from an MMX register to memory",
        amd: "where the store faults, nothing of the switch from x87 is done",
        intel: "TOP is 0, the tags are as before",
        manual: "SDM vol. 3 (effect of MMX instructions on x87 state) and APM vol. 1 (actions taken on executing 64-bit \
                 media instructions) say when the switch is, not what a fault leaves of it",
        seen: Seen::BothRun,
    },
    Difference {
        name: "x87-store",
        instructions: "FST, FSTP, FIST, FISTP, FISTTP, FBSTP to memory",
        amd: "the store is looked at first, also where an unmasked exception will keep it from being made",
        intel: "an unmasked exception keeps it from being looked at",
        manual: "SDM vol. 1, 8.5.1 to 8.5.5, and APM vol. 1 (x87 floating-point exceptions): nothing is stored; no word \
                 of looking at its address",
        seen: Seen::BothRun,
    },
    Difference {
        name: "segment-offset",
        instructions: "memory operands in FS and GS, in 64-bit code",
        amd: "#GP where the offset is not canonical, though the linear address is",
        intel: "the linear address alone counts",
        manual: "SDM vol. 1, 3.3.7.1: the linear address. APM vol. 2, 1.1.3 and 4.8: canonical form of virtual addresses, \
                 no word of offsets",
        seen: Seen::BothRun,
    },
    Difference {
        name: "popa-fault",
        instructions: "POPA, POPAD",
        amd: "a fault leaves every register as it was",
        intel: "what was popped before the fault stays popped, but for SP",
        manual: "APM vol. 2, 8.1 (precise exceptions: no part of the instruction is done); SDM vol. 2, POPA: silent",
        seen: Seen::IntelOnly,
    },
    Difference {
        name: "x87-parts",
        instructions: "FLD, FSTP and FBSTP of 80 bits, FNSTENV and its kind",
        amd: "all or nothing is stored; over the end of canonical addresses #GP or #SS come before any page fault",
        intel: "in parts: 8 bytes are stored though the last 2 fault; a page fault of the first part comes before the \
                #GP or #SS of the next",
        manual: "APM vol. 2, 8.1 (precise exceptions); SDM vol. 3 (priority among concurrent events): the order within an \
                 instruction's execution is the implementation's",
        seen: Seen::IntelOnly,
    },
    Difference {
        name: "maskmov-fault",
        instructions: "MASKMOVQ, MASKMOVDQU, VMASKMOVDQU",
        amd: "a page fault at the operand's start, whatever the mask",
        intel: "at the upper half (8 bytes) of MASKMOVDQU's operand, whatever the mask",
        manual: "SDM vol. 2, MASKMOVDQU: whether a mask of zeros faults is implementation dependent. APM vol. 4 too",
        seen: Seen::BothRun,
    },
    Difference {
        name: "maskmov-span",
        instructions: "VMASKMOVPS, VMASKMOVPD, VPMASKMOVD and VPMASKMOVQ to memory",
        amd: "a page fault is at the first byte in the bad page that would be written",
        intel: "at another of the operand's bytes in that page: no rule was found that says which",
        manual: "SDM vol. 3 (interrupt 14) and APM vol. 2, 8.2.15: CR2 has the linear address that faults; which byte of \
                 an operand in two pages that is, neither says",
        seen: Seen::IntelOnly,
    },
    Difference {
        name: "x87-unchanged",
        instructions: "FPREM, FPREM1 by infinity; FSCALE by zero",
        amd: "a denormal ST(0) that does not change underflows if that is unmasked: it is scaled, with UE",
        intel: "it stays, without UE",
        manual: "SDM vol. 1, 8.5.5, and APM vol. 1 (x87 floating-point exceptions): underflow of a tiny result; whether \
                 an operand handed on is one, neither says",
        seen: Seen::BothRun,
    },
    Difference {
        name: "x87-transcendental",
        instructions: "FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X, FYL2XP1",
        amd: "within a unit of the last place; the interpreter rounds rightly, which is closer",
        intel: "within a unit of the last place, on a side of its own; with it goes whether the result is tiny (UE), \
                and whether it was rounded up (C1)",
        manual: "SDM vol. 1, 8.3.10; APM vol. 1, 6.4.5.1: an error below one unit",
        seen: Seen::Manuals,
    },
    Difference {
        name: "approximation",
        instructions: "RCPPS, RCPSS, RSQRTPS, RSQRTSS and their VEX forms",
        amd: "Zen's table, which the interpreter has",
        intel: "another",
        manual: "SDM vol. 2, RCPPS; APM vol. 4, RCPPS: a relative error of 1.5 * 2^-12 at most",
        seen: Seen::Recorded,
    },
    Difference {
        name: "mxcsr-mm",
        instructions: "LDMXCSR, FXRSTOR, XRSTOR",
        amd: "processors with misaligned SSE mode have MXCSR bit 17; the models do not, and the interpreter raises #GP",
        intel: "#GP",
        manual: "APM vol. 2, 11.2.5 (MM)",
        seen: Seen::Manuals,
    },
    Difference {
        name: "branch-16",
        instructions: "near JMP, CALL, RET and Jcc with an operand size prefix in 64-bit code",
        amd: "a target of 16 bits",
        intel: "the prefix is ignored",
        manual: "APM vol. 3, 1.2.2; SDM vol. 2, JMP",
        seen: Seen::Manuals,
    },
    Difference {
        name: "far-branch-64",
        instructions: "far JMP and CALL with REX.W",
        amd: "REX.W is ignored",
        intel: "an offset of 64 bits",
        manual: "APM vol. 3, JMP (far); SDM vol. 2, JMP",
        seen: Seen::Manuals,
    },
    Difference {
        name: "ud0-length",
        instructions: "UD0",
        amd: "without ModRM",
        intel: "with ModRM, whose bytes may fault first",
        manual: "SDM vol. 2, UD; APM vol. 3, UD0",
        seen: Seen::Manuals,
    },
    Difference {
        name: "x87-pointers",
        instructions: "FNSTENV, FNSAVE, FXSAVE, XSAVE: FOP, FIP and FDP",
        amd: "FXSAVE and XSAVE write them, and FXRSTOR and XRSTOR read them, only with an exception pending",
        intel: "always; FDP and FOP may change only at unmasked exceptions",
        manual: "APM vol. 5, FXSAVE and FXRSTOR; SDM vol. 1, 8.1.8 and 8.1.9",
        seen: Seen::Manuals,
    },
];

/// The difference of that name.
///
/// # Panics
/// If there is none: a test names what is not in the table.
#[must_use]
pub fn named(name: &str) -> &'static Difference {
    DIFFERENCES.iter().find(|d| d.name == name).unwrap_or_else(|| panic!("no difference is called {name}"))
}

/// Whose processor this program runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// AMD, or Hygon, whose are AMD's.
    Amd,
    /// Intel.
    Intel,
    /// Anything else: not x86, or of a vendor that nobody has tried.
    Other,
}

/// Whose processor this program runs on.
#[must_use]
pub fn host() -> Vendor {
    #[cfg(target_arch = "x86_64")]
    {
        let leaf = core::arch::x86_64::__cpuid(0);
        let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
        match &name[..] {
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            b"GenuineIntel" => Vendor::Intel,
            _ => Vendor::Other,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vendor::Other
}

/// Comparisons in which this processor did as the other vendor's do.
#[derive(Debug, Default)]
pub struct SetAside {
    /// How often, by a difference's name.
    pub by_name: BTreeMap<&'static str, u64>,
}

impl SetAside {
    /// Notes one.
    ///
    /// # Panics
    /// If the table does not have it.
    pub fn note(&mut self, name: &str) {
        *self.by_name.entry(named(name).name).or_default() += 1;
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_name.values().sum()
    }
}

impl fmt::Display for SetAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} set aside for what this processor's vendor does otherwise", self.total())?;
        for (n, (name, count)) in self.by_name.iter().enumerate() {
            write!(f, "{} {name} {count}", if n == 0 { ':' } else { ',' })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_field_says_something() {
        for (n, d) in DIFFERENCES.iter().enumerate() {
            assert!(DIFFERENCES[..n].iter().all(|other| other.name != d.name), "{} twice", d.name);
            for text in [d.name, d.instructions, d.amd, d.intel, d.manual] {
                assert!(!text.trim().is_empty(), "{}", d.name);
            }
        }
    }

    #[test]
    fn what_is_set_aside_is_counted_by_name() {
        let mut aside = SetAside::default();
        assert_eq!(aside.total(), 0);
        aside.note("dpps-nan");
        aside.note("dpps-nan");
        aside.note("sha-alignment");
        assert_eq!(aside.total(), 3);
        let text = aside.to_string();
        assert!(text.starts_with("3 set aside") && text.ends_with(": dpps-nan 2, sha-alignment 1"), "{text}");
    }
}
