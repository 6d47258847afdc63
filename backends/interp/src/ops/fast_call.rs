//! SYSCALL and SYSRETQ between 64-bit code and 64-bit code: straight on to the next block, no trip through the
//! dispatcher. Whatever is out of the ordinary goes to the general ones in `far`.

use super::branch::indirect;
use super::far;
use crate::cpu::{CS, Cpu, RCX, SS, cr0, efer, mode};
use crate::flags::{AC, ALL, ARITH, IF, RF, TF, VM};
use crate::mmu::tlb;
use crate::op::{Flow, OpPtr};

impl Cpu {
    /// Changes CPL between two rings of 64-bit code. False if more depends on it; then nothing has changed.
    #[inline(always)]
    fn switch_ring(&mut self, cpl: u8, flags: u64) -> bool {
        let odd = self.slow_memory || self.tag & mode::STEP != 0 || flags & (TF | VM) != 0;
        if odd || flags & AC != 0 && self.sys.cr0 & cr0::AM != 0 {
            return false;
        }
        self.cpl = cpl;
        self.flags = flags;
        let user = cpl == 3;
        self.tag = if user { self.tag | mode::USER } else { self.tag & !mode::USER };
        self.class = self.generation
            | match (user, flags & AC != 0 && self.sys.cr4 & crate::cpu::cr4::SMAP != 0) {
                (true, _) => tlb::USER,
                (_, true) => tlb::LIFTED,
                _ => 0,
            };
        true
    }
}

/// SYSCALL in 64-bit code.
pub(super) fn syscall(cpu: &mut Cpu, op: OpPtr) -> Flow {
    if cpu.sys.efer & efer::SCE == 0 {
        return far::syscall(cpu, op);
    }
    let rflags = cpu.rflags() & !RF;
    let new = rflags & !cpu.msrs.sfmask;
    if !cpu.switch_ring(0, new & ALL & !ARITH) {
        return far::syscall(cpu, op);
    }
    cpu.gpr[RCX] = op.next_rip(cpu);
    cpu.gpr[11] = rflags;
    cpu.lazy.put(new);
    let selector = (cpu.msrs.star >> 32) as u16 & 0xfffc;
    cpu.seg[CS] = Cpu::flat(selector, true, true, 0);
    cpu.seg[SS] = Cpu::flat(selector.wrapping_add(8), false, false, 0);
    let to = cpu.msrs.lstar;
    indirect(cpu, op, to)
}

/// SYSRETQ in 64-bit code.
pub(super) fn sysret(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let to = cpu.gpr[RCX];
    let canonical = to.wrapping_add(1 << 47) >> 48 == 0;
    let new = cpu.gpr[11] & 0x3c_7fd7;
    let wakes = new & IF != 0 && cpu.interrupt_waits();
    if cpu.sys.efer & efer::SCE == 0
        || cpu.cpl != 0
        || !canonical
        || wakes
        || !cpu.switch_ring(3, new & ALL & !ARITH)
    {
        return far::sysret(cpu, op);
    }
    cpu.lazy.put(new);
    let selector = (cpu.msrs.star >> 48) as u16;
    cpu.seg[CS] = Cpu::flat(selector.wrapping_add(16) | 3, true, true, 3);
    cpu.seg[SS] = Cpu::flat(selector.wrapping_add(8) | 3, false, false, 3);
    indirect(cpu, op, to)
}
