//! Registers that a program uses, and the events waiting for it.

use crate::section::{Section, StateError};
use serde::{Deserialize, Serialize};

/// General registers (SDM vol. 1, 3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RegsV1 {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of their encoding.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags. Bit 1 is always 1; bits 3, 5, 15 and 22 to 63 are 0.
    pub rflags: u64,
}

impl Section for RegsV1 {
    const KIND: &'static str = "x86.regs";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        const ZERO: u64 = !0x3f_7fd7;
        if self.rflags & 2 == 0 || self.rflags & ZERO != 0 {
            return Err(StateError::invalid::<Self>(format!(
                "rflags {:#x} has reserved bits wrong",
                self.rflags
            )));
        }
        Ok(())
    }
}

/// Debug registers (SDM vol. 3B, 18.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugV1 {
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6; 0xffff0ff0 at reset.
    pub dr6: u64,
    /// DR7; 0x400 at reset.
    pub dr7: u64,
}

impl Default for DebugV1 {
    fn default() -> Self {
        DebugV1 { dr: [0; 4], dr6: 0xffff_0ff0, dr7: 0x400 }
    }
}

impl Section for DebugV1 {
    const KIND: &'static str = "x86.debug";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        if self.dr6 >> 32 != 0 || self.dr7 >> 32 != 0 {
            return Err(StateError::invalid::<Self>("dr6 or dr7 has bits above 31"));
        }
        Ok(())
    }
}

/// An 80-bit x87 register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct F80 {
    /// Sign (bit 15) and exponent.
    pub se: u16,
    /// Significand with its explicit integer bit.
    pub frac: u64,
}

/// x87 and SSE state (SDM vol. 1, 8.1 and 10.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuV1 {
    /// Control word.
    pub fcw: u16,
    /// Status word, with the top of stack in bits 11 to 13.
    pub fsw: u16,
    /// Bit i: physical register i is not empty (FXSAVE's abridged tag word).
    pub ftw: u8,
    /// Last opcode, instruction and data pointer. Canonically 0 unless an unmasked x87 exception is
    /// pending (FSW.ES): some processors forget them otherwise.
    pub fop: u16,
    /// See `fop`.
    pub fip: u64,
    /// See `fop`.
    pub fdp: u64,
    /// ST(0) to ST(7), in stack order.
    pub st: [F80; 8],
    /// SSE control and status.
    pub mxcsr: u32,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
}

impl Default for FpuV1 {
    /// The state after FNINIT and with MXCSR's reset value.
    fn default() -> Self {
        FpuV1 {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            st: [F80::default(); 8],
            mxcsr: 0x1f80,
            xmm: [0; 16],
        }
    }
}

impl Section for FpuV1 {
    const KIND: &'static str = "x86.fpu";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        if self.mxcsr & !0xffff != 0 {
            return Err(StateError::invalid::<Self>(format!(
                "mxcsr {:#x} has reserved bits set",
                self.mxcsr
            )));
        }
        if self.fop & !0x7ff != 0 {
            return Err(StateError::invalid::<Self>("fop has more than 11 bits"));
        }
        if self.fsw & 0x80 == 0 && (self.fop, self.fip, self.fdp) != (0, 0, 0) {
            return Err(StateError::invalid::<Self>("fop, fip or fdp without a pending exception"));
        }
        Ok(())
    }
}

/// Upper halves of YMM0 to YMM15 (SDM vol. 1, 14.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AvxV1 {
    /// Bits 128 to 255 of each register.
    pub ymm_high: [u128; 16],
}

impl Section for AvxV1 {
    const KIND: &'static str = "x86.avx";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        Ok(())
    }
}

/// An exception that has a vector but no handler running yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExceptionV1 {
    /// 0 to 31.
    pub vector: u8,
    /// The error code that will be pushed, for the vectors that push one.
    pub error_code: Option<u32>,
    /// What will go to CR2 (#PF) or DR6 (#DB) when the exception is delivered; `None` if it is there already.
    pub payload: Option<u64>,
}

/// What a vCPU is doing between instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ActivityV1 {
    /// Executing.
    #[default]
    Running,
    /// In HLT.
    Halted,
    /// An application processor that has had no INIT yet. Equal to `WaitForSipi` for a guest.
    Uninitialized,
    /// After INIT, waiting for SIPI.
    WaitForSipi,
}

/// Events waiting for a vCPU (SDM vol. 3A, chapter 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventsV1 {
    /// Executing, halted or waiting.
    pub activity: ActivityV1,
    /// Raised by an instruction, delivery not begun; the faulting instruction has not retired.
    pub exception_pending: Option<ExceptionV1>,
    /// Delivery had begun and must be completed first (a fault of the host's making came between).
    pub exception_injected: Option<ExceptionV1>,
    /// Acknowledged external interrupt whose delivery must be completed.
    pub interrupt_injected: Option<u8>,
    /// Software interrupt (INT n) whose delivery must be completed; `interrupt_injected` is its vector.
    pub interrupt_soft: bool,
    /// Interrupts are held off for one instruction after STI.
    pub shadow_sti: bool,
    /// Interrupts and debug traps are held off for one instruction after a load of SS.
    pub shadow_ss: bool,
    /// NMI delivery must be completed.
    pub nmi_injected: bool,
    /// Number of NMIs waiting: 0 to 2.
    pub nmi_pending: u8,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// SIPI received and not yet acted on: its vector.
    pub sipi: Option<u8>,
}

impl Section for EventsV1 {
    const KIND: &'static str = "x86.events";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        for e in [self.exception_pending, self.exception_injected].into_iter().flatten() {
            if e.vector > 31 || e.vector == 2 {
                return Err(StateError::invalid::<Self>(format!("exception vector {}", e.vector)));
            }
        }
        if self.nmi_pending > 2 {
            return Err(StateError::invalid::<Self>(format!("nmi_pending {}", self.nmi_pending)));
        }
        if self.interrupt_soft && self.interrupt_injected.is_none() {
            return Err(StateError::invalid::<Self>("interrupt_soft without a vector"));
        }
        Ok(())
    }
}
