//! One vCPU's state while it runs, and what follows from its control registers.

use crate::cache::Cache;
use crate::counters::Counters;
use crate::flags::{self, Lazy};
use crate::lapic::Lapic;
use crate::mmu::ram::RamMap;
use crate::mmu::space::Spaces;
use crate::mmu::tlb::{self, Tlb};
use crate::num::vec::V256;
use crate::op::{Abort, Flow, OpPtr, opaque};
use crate::shared::{VcpuShared, VmShared};
use godwit_sdk::Host;
use godwit_state::model::{CpuidEntry, Features};
use godwit_state::{ActivityV1, EventsV1, F80, MsrsV1, SegmentV1, TableV1, access};
use std::sync::Arc;

/// Registers of the file: sixteen, then [`ZERO`] and [`PAGE`].
pub(crate) const REGS: usize = 18;
/// Always zero: the base or index that an address does not have.
pub(crate) const ZERO: u8 = 16;
/// Instruction pointer of the start of the page that runs: the base of RIP-relative addresses.
pub(crate) const PAGE: u8 = 17;

/// Register numbers.
pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RBP: usize = 5;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

/// Segment registers, numbered as encoded.
pub(crate) const ES: usize = 0;
pub(crate) const CS: usize = 1;
pub(crate) const SS: usize = 2;
pub(crate) const FS: usize = 4;
pub(crate) const GS: usize = 5;

/// Bits of CR0.
pub(crate) mod cr0 {
    pub(crate) const PE: u64 = 1;
    pub(crate) const MP: u64 = 1 << 1;
    pub(crate) const EM: u64 = 1 << 2;
    pub(crate) const TS: u64 = 1 << 3;
    pub(crate) const ET: u64 = 1 << 4;
    pub(crate) const NE: u64 = 1 << 5;
    pub(crate) const WP: u64 = 1 << 16;
    pub(crate) const AM: u64 = 1 << 18;
    pub(crate) const NW: u64 = 1 << 29;
    pub(crate) const CD: u64 = 1 << 30;
    pub(crate) const PG: u64 = 1 << 31;
}

/// Bits of CR4.
pub(crate) mod cr4 {
    pub(crate) const VME: u64 = 1;
    pub(crate) const PVI: u64 = 1 << 1;
    pub(crate) const TSD: u64 = 1 << 2;
    pub(crate) const DE: u64 = 1 << 3;
    pub(crate) const PSE: u64 = 1 << 4;
    pub(crate) const PAE: u64 = 1 << 5;
    pub(crate) const MCE: u64 = 1 << 6;
    pub(crate) const PGE: u64 = 1 << 7;
    pub(crate) const PCE: u64 = 1 << 8;
    pub(crate) const OSFXSR: u64 = 1 << 9;
    pub(crate) const OSXMMEXCPT: u64 = 1 << 10;
    pub(crate) const UMIP: u64 = 1 << 11;
    pub(crate) const FSGSBASE: u64 = 1 << 16;
    pub(crate) const PCIDE: u64 = 1 << 17;
    pub(crate) const OSXSAVE: u64 = 1 << 18;
    pub(crate) const SMEP: u64 = 1 << 20;
    pub(crate) const SMAP: u64 = 1 << 21;
}

/// Bits of EFER.
pub(crate) mod efer {
    pub(crate) const SCE: u64 = 1;
    pub(crate) const LME: u64 = 1 << 8;
    pub(crate) const LMA: u64 = 1 << 10;
    pub(crate) const NXE: u64 = 1 << 11;
    pub(crate) const FFXSR: u64 = 1 << 14;
}

/// What decoding depends on; part of a block's key, and the low 16 bits of `Cpu::tag`.
pub(crate) mod mode {
    /// 0, 1, 2: 16-, 32-, 64-bit code.
    pub(crate) const BITS: u64 = 3;
    /// The stack is 32 bits wide (outside of 64-bit code).
    pub(crate) const BIG_STACK: u64 = 1 << 2;
    /// CR0.TS.
    pub(crate) const TS: u64 = 1 << 3;
    /// CR0.EM.
    pub(crate) const EM: u64 = 1 << 4;
    /// CR4.OSFXSR.
    pub(crate) const FXSR: u64 = 1 << 5;
    /// CR4.OSXSAVE and XCR0 has AVX.
    pub(crate) const AVX: u64 = 1 << 6;
    /// One instruction at a time.
    pub(crate) const STEP: u64 = 1 << 7;
    /// CPL 3.
    pub(crate) const USER: u64 = 1 << 8;
    /// Protected mode.
    pub(crate) const PROTECTED: u64 = 1 << 9;
    /// Virtual-8086 mode.
    pub(crate) const V86: u64 = 1 << 10;
    /// All of them.
    pub(crate) const ALL: u64 = 0xffff;
}

/// An exception on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exception {
    pub vector: u8,
    pub code: Option<u32>,
    /// CR2 of a page fault; bits of DR6 of a debug exception.
    pub payload: u64,
    /// The #GP is for a non-canonical address: #SS if the segment is SS.
    pub non_canonical: bool,
}

/// Control registers and tables.
#[derive(Clone, Debug)]
pub(crate) struct System {
    pub tr: SegmentV1,
    pub ldtr: SegmentV1,
    pub gdtr: TableV1,
    pub idtr: TableV1,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub pdpte: [u64; 4],
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

/// x87 and MXCSR.
#[derive(Clone, Debug)]
pub(crate) struct Fpu {
    pub cw: u16,
    /// Without the top of stack.
    pub sw: u16,
    /// Physical register that is ST(0).
    pub top: u8,
    /// Bit i: physical register i is not empty.
    pub tags: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    /// By physical register.
    pub regs: [F80; 8],
    pub mxcsr: u32,
}

/// A jump cache entry: where a given instruction pointer leads under a given tag.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Jump {
    pub va: u64,
    pub tag: u64,
    pub page: u64,
    pub op: Option<OpPtr>,
}

/// Entries of the jump cache.
pub(crate) const JUMPS: usize = 4096;

/// One vCPU. What handlers use most comes first: the shortest forms of the host's instructions reach 127 bytes far.
#[repr(C)]
pub(crate) struct Cpu {
    pub lazy: Lazy,
    /// Instructions left before the dispatcher looks around.
    pub budget: i64,
    /// Low bits of the tags of TLB entries that may be used now.
    pub class: u64,
    /// `epoch << 16 | mode`: for which links and jump cache entries are good.
    pub tag: u64,
    pub jumps: Box<[Jump; JUMPS]>,
    /// General registers in encoding order, then [`ZERO`] and [`PAGE`].
    pub gpr: [u64; REGS],
    /// Next instruction, valid between chains.
    pub rip: u64,
    /// Selects the bits of an instruction pointer.
    pub rip_mask: u64,
    /// RFLAGS without the arithmetic flags and bit 1.
    pub flags: u64,
    /// The branch whose slot is to be linked, and [`PAGE`] there.
    pub link: Option<OpPtr>,
    pub link_page: u64,
    pub vec: [V256; 16],
    pub seg: [SegmentV1; 6],
    pub fpu: Fpu,
    pub rtlb: Tlb,
    pub wtlb: Tlb,
    pub ftlb: Tlb,
    #[cfg(feature = "plain-loop")]
    pub next_op: Option<OpPtr>,
    pub cpl: u8,
    /// Accesses are the processor's own, with CPL 0's rights.
    pub implicit: bool,
    /// Executing, halted or waiting.
    pub activity: ActivityV1,
    /// Loaded with the state: what must be delivered first.
    pub inject: EventsV1,
    /// When the LAPIC's timer is due, in nanoseconds of kvmclock.
    pub timer_due: Option<u64>,
    /// Memory accesses are watched: no TLB entries.
    pub slow_memory: bool,
    /// Something may have to be delivered before the next instruction.
    pub check_events: bool,
    /// An interrupt may be waiting in the LAPIC or at the 8259s.
    pub interrupts: bool,
    /// Interrupts are held off for one instruction, after STI and after a load of SS.
    pub shadow_sti: bool,
    pub shadow_ss: bool,
    pub nmi_masked: bool,
    pub nmi_pending: u8,
    /// Debug exceptions of DR6's form to be raised after this instruction.
    pub debug_pending: u64,
    /// The trap flag was set before this instruction.
    pub step_trap: bool,
    pub generation: u64,
    pub epoch: u64,
    pub spaces: Spaces,
    pub exception: Exception,
    pub sys: System,
    pub msrs: MsrsV1,
    pub lapic: Lapic,
    pub tsc_offset: i64,
    pub tsc_adjust: u64,
    pub clock: crate::clock::Running,
    pub cache: Cache,
    pub counters: Counters,
    pub features: Features,
    pub cpuid: Vec<CpuidEntry>,
    pub random: crate::random::Random,
    /// There are other vCPUs.
    pub smp: bool,
    pub id: u32,
    pub host: Host,
    pub ram: Arc<RamMap>,
    pub vm: Arc<VmShared>,
    pub me: Arc<VcpuShared>,
}

impl Cpu {
    /// Instruction pointer of an offset from the current page's start.
    #[inline(always)]
    pub(crate) fn page_rip(&self, offset: u64) -> u64 {
        self.gpr[PAGE as usize].wrapping_add(offset) & self.rip_mask
    }

    /// Stops before `op` with the exception that is in place.
    #[cold]
    #[inline(never)]
    pub(crate) fn abort(&mut self, op: OpPtr) -> Flow {
        self.rip = op.rip(self);
        if std::mem::take(&mut self.exception.non_canonical) && usize::from(op.seg) == SS {
            self.exception.vector = 12;
        }
        opaque(Flow::Fault)
    }

    /// Puts an exception in place. Returns what an instruction's body returns.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8, code: Option<u32>) -> Abort {
        self.exception = Exception { vector, code, payload: 0, non_canonical: false };
        Abort
    }

    #[cold]
    pub(crate) fn raise_page_fault(&mut self, va: u64, code: u32) -> Abort {
        self.exception = Exception { vector: 14, code: Some(code), payload: va, non_canonical: false };
        Abort
    }

    /// #UD.
    pub(crate) fn ud(&mut self) -> Abort {
        self.raise(6, None)
    }

    /// #GP with an error code.
    pub(crate) fn gp(&mut self, code: u32) -> Abort {
        self.raise(13, Some(code))
    }

    #[inline(always)]
    pub(crate) fn long_code(&self) -> bool {
        self.tag & mode::BITS == 2
    }

    /// The dispatcher looks around after every instruction.
    pub(crate) fn stepping(&self) -> bool {
        self.tag & mode::STEP != 0
    }

    pub(crate) fn long_mode(&self) -> bool {
        self.sys.efer & efer::LMA != 0
    }

    pub(crate) fn protected(&self) -> bool {
        self.sys.cr0 & cr0::PE != 0
    }

    pub(crate) fn v86(&self) -> bool {
        self.flags & flags::VM != 0
    }

    /// Real or virtual-8086 mode: segments are paragraphs.
    pub(crate) fn real_segments(&self) -> bool {
        !self.protected() || self.v86()
    }

    pub(crate) fn iopl(&self) -> u8 {
        (self.flags >> 12 & 3) as u8
    }

    pub(crate) fn alignment_checked(&self) -> bool {
        self.cpl == 3 && self.sys.cr0 & cr0::AM != 0 && self.flags & flags::AC != 0
    }

    /// Recomputes what follows from control registers, flags and segments. Called whenever one of them changes.
    pub(crate) fn update_mode(&mut self) {
        let mut m = 0;
        let long = self.long_mode();
        let cs = self.seg[CS].access;
        m |= match (long && cs & access::L != 0, cs & access::DB != 0) {
            (true, _) => 2,
            (false, true) => 1,
            (false, false) => 0,
        };
        self.rip_mask = if m == 2 { u64::MAX } else { 0xffff_ffff };
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        m |= bit(m != 2 && self.seg[SS].access & access::DB != 0, mode::BIG_STACK);
        m |= bit(self.sys.cr0 & cr0::TS != 0, mode::TS);
        m |= bit(self.sys.cr0 & cr0::EM != 0, mode::EM);
        m |= bit(self.sys.cr4 & cr4::OSFXSR != 0, mode::FXSR);
        m |= bit(self.sys.cr4 & cr4::OSXSAVE != 0 && self.sys.xcr0 & 6 == 6, mode::AVX);
        let stepping = self.flags & flags::TF != 0 || self.sys.dr7 & 0xff != 0;
        m |= bit(stepping, mode::STEP);
        m |= bit(self.cpl == 3, mode::USER);
        m |= bit(self.protected(), mode::PROTECTED);
        m |= bit(self.v86(), mode::V86);
        self.tag = self.epoch << 16 | m;

        let slow = self.alignment_checked() || self.sys.dr7 & 0xff != 0;
        if slow != self.slow_memory {
            self.slow_memory = slow;
            self.rtlb.clear();
            self.forget_writes();
        }
        let lifted = self.sys.cr4 & cr4::SMAP != 0 && self.flags & flags::AC != 0;
        let who = match (self.cpl, lifted) {
            (3, _) => tlb::USER,
            (_, true) => tlb::LIFTED,
            _ => 0,
        };
        self.class = self.generation | who;
    }

    /// Sets CPL.
    pub(crate) fn set_cpl(&mut self, cpl: u8) {
        self.cpl = cpl;
        self.update_mode();
    }

    /// Raises #GP(0) unless CPL is 0.
    pub(crate) fn privileged(&mut self) -> Result<(), Abort> {
        if self.cpl != 0 { Err(self.gp(0)) } else { Ok(()) }
    }
}
