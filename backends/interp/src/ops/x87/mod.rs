//! x87: the register stack, its faults, and how an instruction's exceptions are reported.
//!
//! ```text
//!  handler: x87_wait ─► memory operand ─► stack check ─► num::soft / num::x87math ─► retire ─► write, pop
//!             #MF           #PF, #GP       x87_stack_fault                             flags, ES
//! ```
//! An instruction without operands in memory cannot fault once `x87_wait` has passed; its exceptions set the
//! status word, and if one is unmasked, ES, which the next waiting instruction turns into #MF.
//!
//! With CR0.NE clear a processor would assert FERR# and leave the rest to the board. Here it is #MF too, as on
//! processors with virtualisation, on which a guest always runs with NE set.
//!
//! The pointers to the last instruction are kept for exceptions that are pending, and read as zero otherwise:
//! the canonical state has no more.

mod arith;
mod compare;
mod control;
mod load;
mod math;
mod store;

use crate::cpu::{Cpu, cr0, mode};
use crate::decode::Lower;
use crate::num::soft::{Env, F80, flag};
use crate::op::{Exec, Flow, Handler, OpPtr};
use crate::ops::operand;

/// FSW: a stack fault.
const SF: u16 = 0x40;
/// FSW: an unmasked exception is pending.
const ES: u16 = 0x80;
const IE: u16 = flag::IE as u16;
const C1: u16 = flag::C1 as u16;
const C2: u16 = flag::C2 as u16;
/// FSW: C0 to C3.
const CODES: u16 = (flag::C0 | flag::C1 | flag::C2 | flag::C3) as u16;

impl Cpu {
    /// #MF if an exception is pending.
    #[inline(always)]
    pub(crate) fn x87_wait(&mut self) -> Exec {
        if self.fpu.sw & ES != 0 { Err(self.raise(16, None)) } else { Ok(()) }
    }

    #[inline(always)]
    fn st_index(&self, i: u8) -> usize {
        usize::from(self.fpu.top.wrapping_add(i) & 7)
    }

    /// ST(i).
    #[inline(always)]
    fn st(&self, i: u8) -> F80 {
        let r = self.fpu.regs[self.st_index(i)];
        F80 { se: r.se, frac: r.frac }
    }

    /// Fills ST(i).
    #[inline(always)]
    fn set_st(&mut self, i: u8, v: F80) {
        let at = self.st_index(i);
        self.fpu.regs[at] = godwit_state::F80 { frac: v.frac, se: v.se };
        self.fpu.tags |= 1 << at;
    }

    #[inline(always)]
    fn st_empty(&self, i: u8) -> bool {
        self.fpu.tags & 1 << self.st_index(i) == 0
    }

    fn free_st(&mut self, i: u8) {
        self.fpu.tags &= !(1 << self.st_index(i));
    }

    fn pop_st(&mut self) {
        self.free_st(0);
        self.fpu.top = self.fpu.top.wrapping_add(1) & 7;
    }

    fn pop_times(&mut self, times: u8) {
        for _ in 0..times {
            self.pop_st();
        }
    }

    fn push_st(&mut self, v: F80) {
        self.fpu.top = self.fpu.top.wrapping_sub(1) & 7;
        self.set_st(0, v);
    }

    fn clear_c1(&mut self) {
        self.fpu.sw &= !C1;
    }

    fn env(&self) -> Env {
        Env::from_cw(self.fpu.cw)
    }

    /// Reports an empty source (or with `over` a full destination). True if the masked response is due.
    #[cold]
    #[inline(never)]
    fn x87_stack_fault(&mut self, op: OpPtr, over: bool) -> bool {
        self.fpu.sw = self.fpu.sw & !C1 | IE | SF | if over { C1 } else { 0 };
        self.summarise(op);
        self.fpu.cw & IE != 0
    }

    /// Reports an operation's exceptions and condition codes. True if its result is to be written.
    #[inline(always)]
    fn retire(&mut self, op: OpPtr, env: &mut Env) -> bool {
        let write = !env.suppressed();
        self.fpu.sw = self.fpu.sw & !C1 | env.flags as u16;
        if env.trapped() {
            self.summarise(op);
        }
        write
    }

    /// Works out ES, and keeps the pointers to the instruction if it is the one that set it.
    #[cold]
    #[inline(never)]
    fn summarise(&mut self, op: OpPtr) {
        self.update_x87_summary();
        if self.fpu.sw & ES == 0 {
            return;
        }
        let (rip, offset) = (op.rip(self), operand::offset(self, op));
        let real = self.real_segments();
        let base = |cpu: &Cpu, segment: usize| if real { cpu.seg[segment].base } else { 0 };
        let mut code = [0; 15];
        let code = &mut code[..usize::from(op.len).min(15)];
        self.fpu.fip = rip.wrapping_add(base(self, crate::cpu::CS));
        (self.fpu.fop, self.fpu.fdp) = (0, 0);
        if self.read_code(rip, code).is_err() {
            return;
        }
        // Behind the prefixes.
        if let Some([escape, modrm]) = code.array_windows().find(|[e, _]| e & 0xf8 == 0xd8) {
            self.fpu.fop = u16::from(escape & 7) << 8 | u16::from(*modrm);
            if *modrm < 0xc0 {
                self.fpu.fdp = offset.wrapping_add(base(self, usize::from(op.seg)));
            }
        }
    }

    /// The bytes of the instruction that runs.
    fn read_code(&mut self, rip: u64, into: &mut [u8]) -> Exec {
        for (n, byte) in into.iter_mut().enumerate() {
            let at = self.linear_rip(rip.wrapping_add(n as u64) & self.rip_mask);
            let gpa = self.fetch(at)?;
            self.read_physical(gpa, std::slice::from_mut(byte));
        }
        Ok(())
    }
}

/// #NM.
pub(super) fn not_available(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.raise(7, None);
    cpu.abort(op)
}

fn wait(cpu: &mut Cpu, op: OpPtr) -> Flow {
    super::outlined(cpu, op, |cpu, _| {
        let both = cr0::MP | cr0::TS;
        if cpu.sys.cr0 & both == both {
            return Err(cpu.raise(7, None));
        }
        cpu.x87_wait()
    })
}

/// The number of the instruction's last stack operand; `or` if it names none.
fn last_st(l: &Lower<'_>, or: u8) -> u8 {
    let n = l.i.op_count();
    if n > 0 && l.is_reg(n - 1) && l.reg(n - 1).is_st() { l.number(n - 1) } else { or }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    if l.i.mnemonic() == iced_x86::Mnemonic::Wait {
        return Some(wait);
    }
    let handler = load::lower(l)
        .or_else(|| store::lower(l))
        .or_else(|| arith::lower(l))
        .or_else(|| compare::lower(l))
        .or_else(|| control::lower(l))
        .or_else(|| math::lower(l))?;
    Some(if l.mode & (mode::EM | mode::TS) != 0 { not_available } else { handler })
}
