//! Local APIC (SDM vol. 3A, chapter 11).

use crate::section::{Section, StateError};
use serde::{Deserialize, Serialize};

/// Indices into [`LapicV1::lvt`].
pub mod lvt {
    /// Timer (register 0x320).
    pub const TIMER: usize = 0;
    /// Thermal sensor (0x330).
    pub const THERMAL: usize = 1;
    /// Performance counters (0x340).
    pub const PERF: usize = 2;
    /// LINT0 (0x350).
    pub const LINT0: usize = 3;
    /// LINT1 (0x360).
    pub const LINT1: usize = 4;
    /// Error (0x370).
    pub const ERROR: usize = 5;
}

/// Registers of the local APIC. APIC base and mode are IA32_APIC_BASE's, in "x86.msrs".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicV1 {
    /// APIC id: 8 bits in xAPIC mode, 32 in x2APIC mode (as a number, not shifted).
    pub id: u32,
    /// Task priority (0x80); CR8 is its upper four bits.
    pub tpr: u8,
    /// Logical destination (0xd0), the register's 32 bits. In x2APIC mode derived from the id.
    pub ldr: u32,
    /// Destination format (0xe0); 0xffffffff in x2APIC mode, where the register is not there.
    pub dfr: u32,
    /// Spurious vector (0xf0).
    pub svr: u32,
    /// In-service, vector v is bit v % 32 of word v / 32 (0x100).
    pub isr: [u32; 8],
    /// Trigger mode: level-triggered vectors (0x180).
    pub tmr: [u32; 8],
    /// Requested (0x200).
    pub irr: [u32; 8],
    /// Error status, as a read would give it (0x280).
    pub esr: u32,
    /// Interrupt command, low half (0x300).
    pub icr_low: u32,
    /// Interrupt command, high half (0x310): a number in x2APIC mode, shifted left by 24 in xAPIC mode.
    pub icr_high: u32,
    /// Local vector table, by the indices in [`lvt`].
    pub lvt: [u32; 6],
    /// Initial count (0x380).
    pub timer_initial: u32,
    /// Divide configuration (0x3e0).
    pub timer_divide: u32,
    /// When the one-shot or periodic timer next expires, in nanoseconds of the VM's kvmclock; `None` when it
    /// does not run. One timer tick is 1 ns times the divisor (the APIC bus is 1 GHz, as CPUID says).
    pub timer_deadline_ns: Option<u64>,
    /// IA32_TSC_DEADLINE: 0 when not armed.
    pub tsc_deadline: u64,
}

impl LapicV1 {
    /// Reset state (SDM vol. 3A, 11.4.7.1) of the LAPIC with that id.
    pub fn reset(id: u32) -> Self {
        LapicV1 {
            id,
            tpr: 0,
            ldr: 0,
            dfr: 0xffff_ffff,
            svr: 0xff,
            isr: [0; 8],
            tmr: [0; 8],
            irr: [0; 8],
            esr: 0,
            icr_low: 0,
            icr_high: 0,
            lvt: [0x1_0000; 6],
            timer_initial: 0,
            timer_divide: 0,
            timer_deadline_ns: None,
            tsc_deadline: 0,
        }
    }

    /// Timer ticks of 1 ns in a count of the divide configuration: 1 to 128.
    pub fn timer_divisor(&self) -> u32 {
        let d = self.timer_divide;
        1 << ((((d & 3) | ((d >> 1) & 4)) + 1) & 7)
    }
}

impl Section for LapicV1 {
    const KIND: &'static str = "x86.lapic";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        let bad = |what: &str| Err(StateError::invalid::<Self>(what));
        if self.timer_divide & !0xb != 0 {
            return bad("timer_divide has reserved bits set");
        }
        // Vectors below 16 are refused on receipt; they cannot be requested or in service.
        if [self.isr[0], self.irr[0], self.tmr[0]].iter().any(|w| w & 0xffff != 0) {
            return bad("a vector below 16 is requested or in service");
        }
        if self.timer_deadline_ns.is_some() && self.timer_initial == 0 {
            return bad("a timer runs whose initial count is 0");
        }
        Ok(())
    }
}
