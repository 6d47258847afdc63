//! Starting the other CPUs: INIT and SIPI to all of them, and their way from real mode to ring 3.
//!
//! No CPU is named: each takes the next number when it comes. It enters the program at the same
//! address as the first, with its number in RBX and a small stack of its own.

use super::setup::{LAPIC_ICR, X2APIC_MSRS};
use super::{Asm, Assembler, CR0, CR4, EFER};
use crate::layout::*;
use iced_x86::code_asm::*;
use iced_x86::{Code, Instruction, MemoryOperand, Register};

const INIT_ALL_BUT_SELF: u32 = 0xc_4500;
const STARTUP_ALL_BUT_SELF: u32 = 0xc_4600 | (TRAMPOLINE >> 12) as u32;

/// Real-mode code for [`TRAMPOLINE`]: straight to long mode at `target`.
pub(super) fn trampoline(target: u64) -> Asm<Vec<u8>> {
    let mut a = CodeAssembler::new(16)?;
    a.cli()?;
    a.xor(eax, eax)?;
    a.mov(ds, eax)?;
    a.mov(eax, CR4)?;
    a.mov(cr4, eax)?;
    a.mov(eax, PML4 as u32)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, EFER)?;
    a.xor(edx, edx)?;
    a.mov(eax, 1 << 8)?;
    a.wrmsr()?;
    // A 32-bit base, from the copy of the descriptor below 64 KiB.
    let pointer = MemoryOperand::with_base_displ_size(Register::None, TRAMPOLINE_GDT as i64, 2);
    a.add_instruction(Instruction::with1(Code::Lgdt_m1632, pointer)?)?;
    a.mov(eax, CR0)?;
    a.mov(cr0, eax)?;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, KERNEL_CS, target as u32)?)?;
    a.assemble(TRAMPOLINE)
}

impl Assembler {
    /// Spins for `ms` milliseconds, or a while where the TSC's frequency is unknown.
    fn delay(&mut self, ms: i32) -> Asm {
        self.read_tsc()?;
        let a = &mut self.a;
        let (mut known, mut again) = (a.create_label(), a.create_label());
        a.mov(r8, rax)?;
        a.mov(r9d, dword_ptr(TSC_KHZ))?;
        a.test(r9, r9)?;
        a.jne(known)?;
        a.mov(r9d, 1_000_000)?;
        a.set_label(&mut known)?;
        a.imul_3(r9, r9, ms)?;
        a.set_label(&mut again)?;
        a.pause()?;
        self.read_tsc()?;
        let a = &mut self.a;
        a.sub(rax, r8)?;
        a.cmp(rax, r9)?;
        a.jb(again)
    }

    /// Sends an interrupt command to the CPUs that its shorthand names.
    fn send(&mut self, command: u32) -> Asm {
        let a = &mut self.a;
        let (mut x2apic, mut sent) = (a.create_label(), a.create_label());
        a.mov(eax, command)?;
        a.xor(edx, edx)?;
        a.cmp(byte_ptr(X2APIC), 0)?;
        a.jne(x2apic)?;
        a.mov(ecx, (LAPIC + u64::from(LAPIC_ICR)) as u32)?;
        a.mov(dword_ptr(rcx), eax)?;
        a.jmp(sent)?;
        a.set_label(&mut x2apic)?;
        a.mov(ecx, X2APIC_MSRS + (LAPIC_ICR >> 4))?;
        a.wrmsr()?;
        a.set_label(&mut sent)?;
        a.nop()
    }

    /// On the first CPU: starts the others.
    pub(super) fn start_others(&mut self) -> Asm {
        let a = &mut self.a;
        a.mov(esi, TRAMPOLINE_SOURCE as u32)?;
        a.mov(edi, TRAMPOLINE as u32)?;
        a.mov(ecx, (KERNEL_TEXT64 - TRAMPOLINE_SOURCE) as u32)?;
        a.rep().movsb()?;
        a.mov(rax, qword_ptr(GDT_POINTER))?;
        a.mov(qword_ptr(TRAMPOLINE_GDT), rax)?;
        a.mov(dword_ptr(CPUS), 1)?;
        self.send(INIT_ALL_BUT_SELF)?;
        self.delay(10)?;
        self.send(STARTUP_ALL_BUT_SELF)?;
        self.delay(1)?;
        self.send(STARTUP_ALL_BUT_SELF)
    }

    /// Where another CPU comes out of the trampoline.
    pub(super) fn other_cpu(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut room, mut halt) = (a.create_label(), a.create_label());
        a.set_label(&mut self.r.other_cpu)?;
        a.mov(eax, u32::from(KERNEL_DS))?;
        a.mov(ss, eax)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ebx, 1)?;
        a.lock().xadd(dword_ptr(CPUS), ebx)?;
        a.cmp(ebx, MAX_CPUS as u32)?;
        a.jb(room)?;
        a.lock().dec(dword_ptr(CPUS))?;
        a.set_label(&mut halt)?;
        a.hlt()?;
        a.jmp(halt)?;
        a.set_label(&mut room)?;
        a.lea(esp, ptr(rbx + 1))?;
        a.imul_3(esp, esp, KERNEL_STACK_SIZE as u32)?;
        a.add(esp, KERNEL_STACKS as i32)?;
        a.lidt(ptr(IDT_POINTER))?;
        a.mov(eax, ebx)?;
        a.shl(eax, 4)?;
        a.add(eax, i32::from(TSS_SELECTOR))?;
        a.ltr(ax)?;
        a.mov(r12d, ebx)?; // CPUID changes RBX
        self.enable_lapic()?;
        let a = &mut self.a;
        a.mov(ebx, r12d)?;
        a.mov(eax, ebx)?;
        a.shl(eax, OTHER_STACK_SHIFT)?;
        a.neg(rax)?;
        a.add(rax, STACK_TOP as i32)?;
        a.push(i32::from(USER_DS))?;
        a.push(rax)?;
        a.push(0x202)?;
        a.push(i32::from(USER_CS))?;
        a.push(PROGRAM as i32)?;
        a.iretq()
    }
}
