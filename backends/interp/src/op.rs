//! One decoded instruction and how handlers run on.
//!
//! A block is an array of cells of 32 bytes: [`Op`]s, each branch followed by the [`Slot`] that links it to
//! its target. A handler does its instruction's work and calls the next op's handler as its last act; the
//! compiler makes that a jump. In builds where it does not, the budget bounds the depth of the stack.
//!
//! This is the only file that walks from one cell to the next.

use crate::cpu::Cpu;
use std::cell::Cell;
use std::ptr::NonNull;

/// What an instruction does.
pub(crate) type Handler = fn(&mut Cpu, OpPtr) -> Flow;

/// Why a chain of handlers came back. `cpu.rip` is the next instruction's in every case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Flow {
    /// Go on at `cpu.rip`.
    Next,
    /// Go on at `cpu.rip`, and link the slot in `cpu.link` to the block found there.
    Link,
    /// The code here has changed: go on at `cpu.rip` with fresh code.
    Stale,
    /// `cpu.exception` is to be delivered; `cpu.rip` is where it will return to.
    Fault,
    /// HLT.
    Halt,
    /// Triple fault.
    Shutdown,
    /// Only with the plain dispatcher: run the op in `cpu.next_op`.
    #[cfg_attr(not(feature = "plain-loop"), allow(dead_code))]
    Chain,
}

/// A decoded instruction. What the operand fields mean is up to the handler; the usual meaning is given.
#[derive(Clone, Debug)]
#[repr(C)]
pub(crate) struct Op {
    /// Its handler; replaced when the code under the block changes.
    pub run: Cell<Handler>,
    /// Immediate, or a branch's target relative to the page's start.
    pub imm: u64,
    /// Displacement of the memory operand (for RIP-relative ones from the page's start).
    pub disp: i32,
    /// First register operand.
    pub a: u8,
    /// Second register operand.
    pub b: u8,
    /// Base register, [`crate::cpu::ZERO`] if there is none, [`crate::cpu::PAGE`] if RIP.
    pub base: u8,
    /// Index register, or [`crate::cpu::ZERO`].
    pub index: u8,
    /// The index is multiplied by this.
    pub scale: u8,
    /// Segment register of the memory operand.
    pub seg: u8,
    /// Offset of the instruction in its page.
    pub off: u16,
    /// Length in bytes; of both, if it is a fused pair.
    pub len: u8,
    /// Instructions of the block up to and with this one.
    pub n: u8,
    /// Third register operand, or whatever the handler wants.
    pub c: u8,
    /// Address size in bytes.
    pub asize: u8,
}

/// Where a branch goes, once known. Follows the branch's op.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot {
    /// The target's first op.
    pub to: Cell<Option<OpPtr>>,
    /// For a target in another page: `cpu.tag` for which the link is good.
    pub tag: Cell<u64>,
    /// For a target in another page: `gpr[PAGE]` here, for which it is good.
    pub from: Cell<u64>,
    /// For a target in another page: `gpr[PAGE]` there.
    pub page: Cell<u64>,
}

/// A cell of a block.
#[repr(C)]
pub(crate) union Cellule {
    /// An instruction.
    pub op: std::mem::ManuallyDrop<Op>,
    /// A link.
    pub slot: std::mem::ManuallyDrop<Slot>,
}

const _: () = assert!(size_of::<Op>() == 32 && size_of::<Slot>() == 32 && size_of::<Cellule>() == 32);

/// A pointer to an op in a block. Blocks are not freed while a chain runs or anything points to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(crate) struct OpPtr(pub NonNull<Cellule>);

impl std::ops::Deref for OpPtr {
    type Target = Op;
    #[inline(always)]
    fn deref(&self) -> &Op {
        // SAFETY: an OpPtr is only made by the block cache for a cell that holds an op, and by `next` and
        // `skip`, whose callers know that an op follows; ops live until the whole cache is emptied, which
        // happens outside of any chain and drops every link.
        unsafe { &*self.0.as_ptr().cast::<Op>() }
    }
}

impl OpPtr {
    /// The next cell, which must be an op: true for every op that is not the last of its block.
    #[inline(always)]
    pub(crate) fn succ(self) -> OpPtr {
        // SAFETY: the cache ends every block with an op that never asks for its successor.
        OpPtr(unsafe { self.0.add(1) })
    }

    /// The op after this one's slot.
    #[inline(always)]
    pub(crate) fn past_slot(self) -> OpPtr {
        // SAFETY: as `succ`; conditional branches are never a block's last op.
        OpPtr(unsafe { self.0.add(2) })
    }

    /// The link that follows a branch.
    #[inline(always)]
    pub(crate) fn slot(&self) -> &Slot {
        // SAFETY: called by handlers of branches only, and the cache puts a slot behind each of those.
        unsafe { &*self.0.as_ptr().add(1).cast::<Slot>() }
    }

    /// Runs the op.
    #[inline(always)]
    pub(crate) fn go(self, cpu: &mut Cpu) -> Flow {
        (self.run.get())(cpu, self)
    }

    /// Instruction pointer of this op.
    #[inline(always)]
    pub(crate) fn rip(&self, cpu: &Cpu) -> u64 {
        cpu.page_rip(u64::from(self.off))
    }

    /// Instruction pointer after this op.
    #[inline(always)]
    pub(crate) fn next_rip(&self, cpu: &Cpu) -> u64 {
        cpu.page_rip(u64::from(self.off) + u64::from(self.len))
    }
}

/// Runs on with the next op.
#[cfg(not(feature = "plain-loop"))]
#[inline(always)]
pub(crate) fn next(cpu: &mut Cpu, op: OpPtr) -> Flow {
    op.succ().go(cpu)
}

/// Has the dispatcher run the next op.
#[cfg(feature = "plain-loop")]
#[inline(always)]
pub(crate) fn next(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.next_op = Some(op.succ());
    Flow::Chain
}

/// Runs on after a conditional branch that is not taken.
#[cfg(not(feature = "plain-loop"))]
#[inline(always)]
pub(crate) fn fall(cpu: &mut Cpu, op: OpPtr) -> Flow {
    op.past_slot().go(cpu)
}

/// As [`next`], after a conditional branch that is not taken.
#[cfg(feature = "plain-loop")]
#[inline(always)]
pub(crate) fn fall(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.next_op = Some(op.past_slot());
    Flow::Chain
}

/// A flow that the compiler does not know. A handler's last call would be none if its caller knew what it returns.
#[inline(always)]
pub(crate) fn opaque(flow: Flow) -> Flow {
    std::hint::black_box(flow)
}

/// An instruction was stopped by the exception in `cpu.exception`; or, from a quick form of an operand (see
/// `ops::operand`), nothing has happened yet and there is no exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abort;

/// Result of anything that may raise an exception.
pub(crate) type Exec<T = ()> = Result<T, Abort>;

/// Body of a handler that may fault and then runs on.
macro_rules! run {
    ($cpu:ident, $op:ident, $body:block) => {{
        // The closure is what `?` in the body returns from.
        #[allow(clippy::redundant_closure_call)]
        let result: $crate::op::Exec = (|| $body)();
        match result {
            Ok(()) => $crate::op::next($cpu, $op),
            Err(_) => $cpu.abort($op),
        }
    }};
}

/// Body of a handler that may fault and otherwise ends with a flow.
macro_rules! leave {
    ($cpu:ident, $op:ident, $body:block) => {{
        // As above.
        #[allow(clippy::redundant_closure_call)]
        let result: $crate::op::Exec<$crate::op::Flow> = (|| $body)();
        match result {
            Ok(flow) => flow,
            Err(_) => $cpu.abort($op),
        }
    }};
}

/// Body of a handler with quick operands, which then runs on; and the handler that does it all where they will not do.
/// The body changes nothing before its last access.
macro_rules! quick {
    ($cpu:ident, $op:ident, $general:expr, $body:block) => {{
        // As above.
        #[allow(clippy::redundant_closure_call)]
        let result: $crate::op::Exec = (|| $body)();
        match result {
            Ok(()) => $crate::op::next($cpu, $op),
            Err(_) => $general($cpu, $op),
        }
    }};
}

pub(crate) use {leave, quick, run};
