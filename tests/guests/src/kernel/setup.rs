//! From long mode to ring 3: serial port, interrupt controllers, the clock's frequencies.

use super::{Asm, Assembler, CR4, Config, EFER};
use crate::layout::*;
use iced_x86::code_asm::*;

const STAR: u32 = 0xc000_0081;
const APIC_BASE: u32 = 0x1b;
pub(super) const X2APIC_MSRS: u32 = 0x800;

const LAPIC_SPURIOUS: u32 = 0xf0;
pub(super) const LAPIC_ICR: u32 = 0x300;
const LAPIC_LVT_TIMER: u32 = 0x320;
const LAPIC_LVT_LINT0: u32 = 0x350;
const LAPIC_INITIAL: u32 = 0x380;
const LAPIC_CURRENT: u32 = 0x390;
const LAPIC_DIVIDE: u32 = 0x3e0;

const PIT_HZ: u32 = 1_193_182;

impl Assembler {
    /// Devices and clock, then into the program.
    pub(super) fn set_up(&mut self, config: &Config<'_>) -> Asm {
        let a = &mut self.a;
        let mut have_cmdline = a.create_label();
        a.lidt(ptr(IDT_POINTER))?;
        a.mov(eax, u32::from(TSS_SELECTOR))?;
        a.ltr(ax)?;
        a.mov(dword_ptr(BOOTED_BY), edi)?;
        a.mov(eax, dword_ptr(rsi + 24))?; // hvm_start_info.cmdline_paddr
        a.cmp(edi, 1)?;
        a.je(have_cmdline)?;
        a.mov(eax, dword_ptr(rsi + 0x228))?; // boot_params.hdr.cmd_line_ptr
        a.set_label(&mut have_cmdline)?;
        a.mov(qword_ptr(CMDLINE), rax)?;

        self.out(COM1 + 1, 0)?; // no interrupts
        self.out(COM1 + 3, 3)?; // 8 bits, no parity
        self.out(COM1 + 2, 7)?; // FIFOs on and empty
        self.out(0x21, 0xff)?; // both PICs masked
        self.out(0xa1, 0xff)?;
        self.enable_lapic()?;
        self.learn_frequencies()?;
        if config.xsave {
            self.enable_xsave()?;
        }
        if config.bench {
            self.enable_syscall()?;
        }

        if config.smp {
            self.start_others()?;
        }

        // Initial count = kHz * 1000 / ticks a second.
        let a = &mut self.a;
        a.mov(eax, dword_ptr(BUS_KHZ))?;
        a.mov(ecx, 1000)?;
        a.mul(ecx)?;
        a.mov(ecx, config.ticks_per_second)?;
        a.div(ecx)?;
        a.mov(edi, eax)?;
        self.apic_write(LAPIC_LVT_TIMER, 1 << 17 | u32::from(TIMER_VECTOR))?;
        let a = &mut self.a;
        a.mov(ecx, LAPIC_INITIAL)?;
        a.mov(eax, edi)?;
        a.call(self.r.apic_write)?;

        let a = &mut self.a;
        a.xor(ebx, ebx)?;
        a.push(i32::from(USER_DS))?;
        a.push(STACK_TOP as i32)?;
        a.push(0x202)?;
        a.push(i32::from(USER_CS))?;
        a.push(PROGRAM as i32)?;
        a.iretq()
    }

    /// SYSCALL, with the routine that answers it.
    pub(super) fn enable_syscall(&mut self) -> Asm {
        let a = &mut self.a;
        a.mov(ecx, EFER)?;
        a.rdmsr()?;
        a.or(eax, 1)?;
        a.wrmsr()?;
        a.mov(ecx, STAR)?;
        a.xor(eax, eax)?;
        a.mov(edx, u32::from(KERNEL_DS) << 16 | u32::from(KERNEL_CS))?;
        a.wrmsr()?;
        a.mov(ecx, STAR + 1)?; // LSTAR
        a.lea(rax, ptr(self.r.syscall))?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(ecx, STAR + 3)?; // FMASK: interrupts off, for there is no stack
        a.mov(eax, 1 << 9)?;
        a.wrmsr()
    }

    /// XSAVE, with AVX where CPUID offers it.
    pub(super) fn enable_xsave(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut no_avx, mut done) = (a.create_label(), a.create_label());
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.bt(ecx, 26)?; // XSAVE
        a.jnc(done)?;
        a.mov(edi, ecx)?;
        a.mov(eax, CR4 | 1 << 18)?;
        a.mov(cr4, rax)?;
        a.mov(eax, 3)?;
        a.bt(edi, 28)?; // AVX
        a.jnc(no_avx)?;
        a.mov(eax, 7)?;
        a.set_label(&mut no_avx)?;
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.xsetbv()?;
        a.set_label(&mut done)?;
        a.nop()
    }

    pub(super) fn enable_lapic(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut xapic, mut on) = (a.create_label(), a.create_label());
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.mov(edi, ecx)?;
        a.mov(ecx, APIC_BASE)?;
        a.rdmsr()?;
        a.or(eax, 1 << 11)?;
        a.bt(edi, 21)?;
        a.jnc(xapic)?;
        a.wrmsr()?; // x2APIC is only entered from xAPIC
        a.or(eax, 1 << 10)?;
        a.mov(byte_ptr(X2APIC), 1)?;
        a.set_label(&mut xapic)?;
        a.wrmsr()?;
        a.jmp(on)?;
        a.set_label(&mut on)?;
        self.apic_write(LAPIC_SPURIOUS, 0x100 | u32::from(SPURIOUS_VECTOR))?;
        self.apic_write(LAPIC_LVT_LINT0, 1 << 16)?;
        self.apic_write(LAPIC_LVT_TIMER, 1 << 16)?;
        self.apic_write(LAPIC_DIVIDE, 0xb) // by one
    }

    /// Fills TSC_KHZ, BUS_KHZ and TIME_SOURCE.
    pub(super) fn learn_frequencies(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut measure, mut done) = (a.create_label(), a.create_label());
        a.bt(edi, 31)?; // CPUID.1:ECX, from enable_lapic: a hypervisor is there
        a.jnc(measure)?;
        a.mov(eax, 0x4000_0000)?;
        a.cpuid()?;
        a.cmp(eax, 0x4000_0010)?;
        a.jb(measure)?;
        a.mov(eax, 0x4000_0010)?;
        a.cpuid()?;
        a.test(eax, eax)?;
        a.je(measure)?;
        a.test(ebx, ebx)?;
        a.je(measure)?;
        a.mov(dword_ptr(TSC_KHZ), eax)?;
        a.mov(dword_ptr(BUS_KHZ), ebx)?;
        a.mov(byte_ptr(TIME_SOURCE), 1)?;
        a.jmp(done)?;
        a.set_label(&mut measure)?;
        self.measure(done)?;
        self.a.set_label(&mut done)?;
        self.a.nop()
    }

    /// Reads PIT channel 0 into EAX; clobbers EDX.
    pub(super) fn read_pit(&mut self) -> Asm {
        let a = &mut self.a;
        a.xor(eax, eax)?;
        a.out(0x43, al)?; // latch channel 0
        a.in_(al, 0x40)?;
        a.mov(edx, eax)?;
        a.in_(al, 0x40)?;
        a.shl(eax, 8)?;
        a.or(eax, edx)
    }

    pub(super) fn read_tsc(&mut self) -> Asm {
        let a = &mut self.a;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)
    }

    /// Counts TSC and LAPIC cycles over 10 ms of the PIT's channel 0 (channel 2 needs port 0x61,
    /// which many boards lack); without a PIT, TSC cycles over 10 ms of a 1 GHz LAPIC.
    pub(super) fn measure(&mut self, done: CodeLabel) -> Asm {
        let a = &mut self.a;
        let (mut wait, mut moving, mut long_enough) = (a.create_label(), a.create_label(), a.create_label());
        let (mut no_pit, mut lapic_wait) = (a.create_label(), a.create_label());
        a.mov(al, 0x34)?; // channel 0, both bytes, rate generator
        a.out(0x43, al)?;
        a.xor(eax, eax)?;
        a.out(0x40, al)?;
        a.out(0x40, al)?;
        self.apic_write(LAPIC_INITIAL, u32::MAX)?;
        self.read_pit()?;
        self.a.mov(r8d, eax)?;
        self.read_tsc()?;
        self.a.mov(r9, rax)?;
        self.a.xor(r10d, r10d)?;
        self.a.set_label(&mut wait)?;
        self.read_pit()?;
        let a = &mut self.a;
        a.neg(eax)?;
        a.add(eax, r8d)?;
        a.movzx(eax, ax)?;
        a.test(eax, eax)?;
        a.jne(moving)?;
        a.inc(r10d)?;
        a.cmp(r10d, 200)?;
        a.jae(no_pit)?;
        a.jmp(wait)?;
        a.set_label(&mut moving)?;
        a.cmp(eax, PIT_HZ / 100)?;
        a.jae(long_enough)?;
        a.jmp(wait)?;
        a.set_label(&mut long_enough)?;
        a.mov(ebx, 1000)?;
        a.imul_2(ebx, eax)?; // PIT counts * 1000
        self.read_tsc()?;
        let a = &mut self.a;
        a.sub(rax, r9)?;
        a.mov(ecx, PIT_HZ)?;
        a.mul(rcx)?;
        a.div(rbx)?;
        a.mov(dword_ptr(TSC_KHZ), eax)?;
        a.mov(ecx, LAPIC_CURRENT)?;
        a.call(self.r.apic_read)?;
        let a = &mut self.a;
        a.not(eax)?;
        a.mov(ecx, PIT_HZ)?;
        a.mul(rcx)?;
        a.div(rbx)?;
        a.mov(dword_ptr(BUS_KHZ), eax)?;
        a.mov(byte_ptr(TIME_SOURCE), 2)?;
        a.test(eax, eax)?;
        a.jne(done)?;

        a.set_label(&mut no_pit)?;
        a.mov(dword_ptr(BUS_KHZ), 1_000_000)?;
        a.mov(byte_ptr(TIME_SOURCE), 3)?;
        self.apic_write(LAPIC_INITIAL, u32::MAX)?;
        self.read_tsc()?;
        let a = &mut self.a;
        a.mov(r9, rax)?;
        a.mov(r10d, 10_000_000)?; // not for ever, should the LAPIC stand still
        a.set_label(&mut lapic_wait)?;
        a.dec(r10d)?;
        a.je(done)?;
        a.mov(ecx, LAPIC_CURRENT)?;
        a.call(self.r.apic_read)?;
        let a = &mut self.a;
        a.not(eax)?;
        a.cmp(eax, 10_000_000)?;
        a.jb(lapic_wait)?;
        a.mov(ebx, eax)?;
        self.read_tsc()?;
        let a = &mut self.a;
        a.sub(rax, r9)?;
        a.mov(ecx, 1_000_000)?;
        a.mul(rcx)?;
        a.div(rbx)?;
        a.mov(dword_ptr(TSC_KHZ), eax)?;
        a.jmp(done)
    }

    /// LAPIC access in either mode: ECX = register, EAX = value; clobbers EDX and ECX.
    pub(super) fn lapic_routines(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut write_msr, mut read_msr) = (a.create_label(), a.create_label());
        a.set_label(&mut self.r.apic_write)?;
        a.cmp(byte_ptr(X2APIC), 0)?;
        a.jne(write_msr)?;
        a.mov(edx, LAPIC as u32)?;
        a.mov(dword_ptr(rdx + rcx), eax)?;
        a.ret()?;
        a.set_label(&mut write_msr)?;
        a.shr(ecx, 4)?;
        a.add(ecx, X2APIC_MSRS)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.ret()?;

        a.set_label(&mut self.r.apic_read)?;
        a.cmp(byte_ptr(X2APIC), 0)?;
        a.jne(read_msr)?;
        a.mov(edx, LAPIC as u32)?;
        a.mov(eax, dword_ptr(rdx + rcx))?;
        a.ret()?;
        a.set_label(&mut read_msr)?;
        a.shr(ecx, 4)?;
        a.add(ecx, X2APIC_MSRS)?;
        a.rdmsr()?;
        a.ret()
    }
}
