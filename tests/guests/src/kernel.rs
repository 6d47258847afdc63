//! The ring-0 stub under every guest: from either boot protocol to long mode, to a program in ring 3.
//!
//! ```text
//! PVH, 32-bit ----> tables, long mode --+
//! Linux, 64-bit --> our tables ---------+--> [early text] --> UART, PIC, LAPIC, clock --> ring 3
//!
//! ring 3 --- write to SERVICE, AL = service ---> #PF --> service --> ring 3, after the write
//! LAPIC timer --> ticks + 1, print ring out to the serial port --> wherever it came from
//! any other exception --> a line saying which, reset
//! ```
//!
//! Ring-0 code is integer only and short, all port I/O is here, and the way in from ring 3 is a
//! page fault: so it runs on hosts where KVM emulates ring 0 instruction by instruction.

use crate::layout::*;
use crate::tables::{self, Gate, kernel_stack_top};
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, Code, IcedError, Instruction, MemoryOperand, Register};

/// Ring-3 requests, passed in AL by a write to [`SERVICE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Service {
    /// Send what is in the print ring.
    Flush = 0,
    /// Send what is in the print ring, then reset the machine.
    Reset = 1,
    /// Halt until the next interrupt.
    Wait = 2,
    /// Return at once.
    Nothing = 3,
    /// Write to port 0x80, RCX times.
    PortOut = 4,
    /// Load CR3, RCX times, with a few accesses after each.
    LoadCr3 = 5,
}

/// Length of the one instruction that may call a service: the handler steps over it.
pub const SERVICE_CALL_LEN: i32 = 7;

/// The instruction that calls the service in AL.
pub(crate) fn service_call() -> Result<Instruction, IcedError> {
    let target = MemoryOperand::with_displ(SERVICE, 8);
    Instruction::with2(Code::Mov_rm8_r8, target, Register::AL)
}

/// What differs between the kernels of two guests.
pub(crate) struct Config<'a> {
    /// Printed straight from ring 0 as soon as long mode is on; then the machine resets.
    pub print_and_reset: Option<&'a str>,
    /// LAPIC timer interrupts a second.
    pub ticks_per_second: u32,
    /// With int3 and syscall for ring 3, AVX switched on where it is there, and small pages.
    pub bench: bool,
}

/// A kernel ready to be loaded at [`KERNEL`].
pub(crate) struct Kernel {
    pub bytes: Vec<u8>,
    pub entry32: u32,
    pub entry64: u64,
}

const CR4: u32 = 1 << 5 | 1 << 9 | 1 << 10; // PAE, OSFXSR, OSXMMEXCPT
const CR0: u32 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1; // PG WP NE ET MP PE
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const APIC_BASE: u32 = 0x1b;
const X2APIC_MSRS: u32 = 0x800;

const LAPIC_EOI: u32 = 0xb0;
const LAPIC_SPURIOUS: u32 = 0xf0;
const LAPIC_LVT_TIMER: u32 = 0x320;
const LAPIC_LVT_LINT0: u32 = 0x350;
const LAPIC_INITIAL: u32 = 0x380;
const LAPIC_CURRENT: u32 = 0x390;
const LAPIC_DIVIDE: u32 = 0x3e0;

const PIT_HZ: u32 = 1_193_182;

/// Vectors that push an error code.
const WITH_ERROR_CODE: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

fn pvh_entry(long_mode: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    a.cld()?;
    a.mov(esi, ebx)?;
    a.mov(edi, 1)?;
    a.lgdt(ptr(GDT_POINTER))?;
    a.mov(eax, PML4 as u32)?;
    a.mov(cr3, eax)?;
    a.mov(eax, CR4)?;
    a.mov(cr4, eax)?;
    a.mov(ecx, EFER)?;
    a.xor(edx, edx)?;
    a.mov(eax, 1 << 8)?;
    a.wrmsr()?;
    a.mov(eax, CR0)?;
    a.mov(cr0, eax)?;
    a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, KERNEL_CS, long_mode as u32)?)?;
    a.assemble(KERNEL_TEXT)
}

/// Labels of the 64-bit routines that others call.
struct Routines {
    apic_write: CodeLabel,
    apic_read: CodeLabel,
    drain: CodeLabel,
    reset: CodeLabel,
    print: CodeLabel,
    print_hex: CodeLabel,
    syscall: CodeLabel,
}

struct Assembler {
    a: CodeAssembler,
    r: Routines,
    text: Vec<(CodeLabel, Vec<u8>)>,
}

type Asm<T = ()> = Result<T, IcedError>;

impl Assembler {
    fn new() -> Asm<Self> {
        let mut a = CodeAssembler::new(64)?;
        let r = Routines {
            apic_write: a.create_label(),
            apic_read: a.create_label(),
            drain: a.create_label(),
            reset: a.create_label(),
            print: a.create_label(),
            print_hex: a.create_label(),
            syscall: a.create_label(),
        };
        Ok(Self { a, r, text: Vec::new() })
    }

    fn out(&mut self, port: u16, value: u8) -> Asm {
        self.a.mov(edx, u32::from(port))?;
        self.a.mov(eax, u32::from(value))?;
        self.a.out(dx, al)
    }

    fn apic_write(&mut self, register: u32, value: u32) -> Asm {
        self.a.mov(ecx, register)?;
        self.a.mov(eax, value)?;
        self.a.call(self.r.apic_write)
    }

    fn print(&mut self, text: &str) -> Asm {
        let label = self.a.create_label();
        self.text.push((label, text.as_bytes().to_vec()));
        self.a.lea(rsi, ptr(label))?;
        self.a.mov(ecx, text.len() as u32)?;
        self.a.call(self.r.print)
    }

    /// The 64-bit Linux entry, then the common start; returns the labels of both.
    fn start(&mut self, config: &Config<'_>) -> Asm<(CodeLabel, CodeLabel)> {
        let a = &mut self.a;
        let (mut linux, mut common) = (a.create_label(), a.create_label());
        a.set_label(&mut linux)?;
        a.cli()?;
        a.cld()?;
        a.mov(edi, 2)?;
        a.mov(eax, PML4 as u32)?;
        a.mov(cr3, rax)?;
        a.mov(eax, CR4)?;
        a.mov(cr4, rax)?;
        a.mov(eax, CR0)?;
        a.mov(cr0, rax)?;
        a.mov(esp, kernel_stack_top(0) as u32)?;
        a.lgdt(ptr(GDT_POINTER))?;
        a.push(i32::from(KERNEL_CS))?;
        a.lea(rax, ptr(common))?;
        a.push(rax)?;
        a.add_instruction(Instruction::with(Code::Retfq))?;

        a.set_label(&mut common)?;
        a.mov(eax, u32::from(KERNEL_DS))?;
        a.mov(ss, eax)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(esp, kernel_stack_top(0) as u32)?;
        if let Some(text) = config.print_and_reset {
            self.print(text)?;
            self.a.jmp(self.r.reset)?;
        } else {
            self.set_up(config.ticks_per_second, config.bench)?;
        }
        Ok((linux, common))
    }

    /// Devices and clock, then into the program.
    fn set_up(&mut self, ticks_per_second: u32, bench: bool) -> Asm {
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
        if bench {
            self.enable_for_bench()?;
        }

        // Initial count = kHz * 1000 / ticks a second.
        let a = &mut self.a;
        a.mov(eax, dword_ptr(BUS_KHZ))?;
        a.mov(ecx, 1000)?;
        a.mul(ecx)?;
        a.mov(ecx, ticks_per_second)?;
        a.div(ecx)?;
        a.mov(edi, eax)?;
        self.apic_write(LAPIC_LVT_TIMER, 1 << 17 | u32::from(TIMER_VECTOR))?;
        let a = &mut self.a;
        a.mov(ecx, LAPIC_INITIAL)?;
        a.mov(eax, edi)?;
        a.call(self.r.apic_write)?;

        let a = &mut self.a;
        a.push(i32::from(USER_DS))?;
        a.push(STACK_TOP as i32)?;
        a.push(0x202)?;
        a.push(i32::from(USER_CS))?;
        a.push(PROGRAM as i32)?;
        a.iretq()
    }

    /// SYSCALL, and the XSAVE features that AVX takes, where CPUID offers them.
    fn enable_for_bench(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut no_avx, mut done) = (a.create_label(), a.create_label());
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
        a.wrmsr()?;
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

    fn enable_lapic(&mut self) -> Asm {
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
    fn learn_frequencies(&mut self) -> Asm {
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
    fn read_pit(&mut self) -> Asm {
        let a = &mut self.a;
        a.xor(eax, eax)?;
        a.out(0x43, al)?; // latch channel 0
        a.in_(al, 0x40)?;
        a.mov(edx, eax)?;
        a.in_(al, 0x40)?;
        a.shl(eax, 8)?;
        a.or(eax, edx)
    }

    fn read_tsc(&mut self) -> Asm {
        let a = &mut self.a;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)
    }

    /// Counts TSC and LAPIC cycles over 10 ms of the PIT's channel 0 (channel 2 needs port 0x61,
    /// which many boards lack); without a PIT, TSC cycles over 10 ms of a 1 GHz LAPIC.
    fn measure(&mut self, done: CodeLabel) -> Asm {
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
    fn lapic_routines(&mut self) -> Asm {
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

    /// Sends the print ring's contents; clobbers RAX, RCX, RDX, RSI, RDI.
    fn drain_routine(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut more, mut poll, mut ready) = (a.create_label(), a.create_label(), a.create_label());
        let (mut burst, mut end) = (a.create_label(), a.create_label());
        a.set_label(&mut self.r.drain)?;
        a.mov(rcx, qword_ptr(RING_TAIL))?;
        a.set_label(&mut more)?;
        a.cmp(rcx, qword_ptr(RING_HEAD))?;
        a.je(end)?;
        a.mov(esi, 100_000)?;
        a.mov(edx, u32::from(COM1 + 5))?;
        a.set_label(&mut poll)?;
        a.in_(al, dx)?;
        a.test(al, 0x20)?; // transmitter empty: the FIFO takes 16 bytes
        a.jne(ready)?;
        a.dec(esi)?;
        a.jne(poll)?;
        a.set_label(&mut ready)?;
        a.mov(edx, u32::from(COM1))?;
        a.mov(esi, 16)?;
        a.set_label(&mut burst)?;
        a.movzx(edi, cx)?;
        a.mov(al, byte_ptr(rdi + RING as i32))?;
        a.out(dx, al)?;
        a.inc(rcx)?;
        a.cmp(rcx, qword_ptr(RING_HEAD))?;
        a.je(more)?;
        a.dec(esi)?;
        a.jne(burst)?;
        a.jmp(more)?;
        a.set_label(&mut end)?;
        a.mov(qword_ptr(RING_TAIL), rcx)?;
        a.ret()
    }

    /// Prints ECX bytes at RSI past the ring, and RAX in hexadecimal; clobbers RAX to RDI.
    fn print_routines(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut next, mut poll, mut digit, mut decimal) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut self.r.print)?;
        a.zero_bytes()?;
        a.set_label(&mut next)?;
        a.mov(edx, u32::from(COM1))?;
        a.mov(al, byte_ptr(rsi))?;
        a.out(dx, al)?; // the first byte needs no look at the line status
        a.inc(rsi)?;
        a.mov(edx, u32::from(COM1 + 5))?;
        a.set_label(&mut poll)?;
        a.in_(al, dx)?;
        a.test(al, 0x20)?;
        a.je(poll)?;
        a.dec(ecx)?;
        a.jne(next)?;
        a.ret()?;

        a.set_label(&mut self.r.print_hex)?;
        a.mov(rdi, rax)?;
        a.mov(ecx, 16)?;
        a.mov(edx, u32::from(COM1))?;
        a.set_label(&mut digit)?;
        a.rol(rdi, 4)?;
        a.mov(eax, edi)?;
        a.and(eax, 15)?;
        a.add(eax, u32::from(b'0'))?;
        a.cmp(eax, u32::from(b'9'))?;
        a.jbe(decimal)?;
        a.add(eax, 39)?;
        a.set_label(&mut decimal)?;
        a.out(dx, al)?;
        a.dec(ecx)?;
        a.jne(digit)?;
        a.ret()
    }

    fn reset_routine(&mut self) -> Asm {
        let a = &mut self.a;
        let mut pause = a.create_label();
        a.set_label(&mut self.r.reset)?;
        a.mov(al, 0xfe)?;
        a.out(0x64, al)?;
        // Some boards have no i8042: after a while, a triple fault.
        a.mov(ecx, 1000)?;
        a.set_label(&mut pause)?;
        a.dec(ecx)?;
        a.jne(pause)?;
        a.lidt(ptr(NO_IDT_POINTER))?;
        a.ud2()
    }

    fn save(&mut self) -> Asm {
        for register in [rcx, rdx, rsi, rdi] {
            self.a.push(register)?;
        }
        Ok(())
    }

    fn restore(&mut self) -> Asm {
        for register in [rdi, rsi, rdx, rcx] {
            self.a.pop(register)?;
        }
        Ok(())
    }

    fn timer_handler(&mut self) -> Asm {
        let mut empty = self.a.create_label();
        self.a.push(rax)?;
        self.save()?;
        let a = &mut self.a;
        a.inc(qword_ptr(TICKS))?;
        a.mov(rax, qword_ptr(RING_TAIL))?;
        a.cmp(rax, qword_ptr(RING_HEAD))?;
        a.je(empty)?;
        a.call(self.r.drain)?;
        a.set_label(&mut empty)?;
        a.mov(ecx, LAPIC_EOI)?;
        a.xor(eax, eax)?;
        a.call(self.r.apic_write)?;
        self.restore()?;
        self.a.pop(rax)?;
        self.a.iretq()
    }

    /// #PF: a service call, or a fault like any other. Stack: error code, RIP, CS, ...
    fn page_fault_handler(&mut self, fault: CodeLabel) -> Asm {
        let a = &mut self.a;
        let (mut port, mut load_cr3, mut again) = (a.create_label(), a.create_label(), a.create_label());
        let (mut other, mut flush, mut wait, mut out) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.push(rax)?;
        a.mov(rax, cr2)?;
        a.cmp(rax, SERVICE as i32)?;
        a.jne(other)?;
        a.test(byte_ptr(rsp + 24), 3)?;
        a.je(other)?;
        a.add(qword_ptr(rsp + 16), SERVICE_CALL_LEN)?;
        a.mov(al, byte_ptr(rsp))?;
        a.cmp(al, Service::Wait as u32)?;
        a.je(wait)?;
        a.cmp(al, Service::Flush as u32)?;
        a.je(flush)?;
        a.cmp(al, Service::Nothing as u32)?;
        a.je(out)?;
        a.cmp(al, Service::PortOut as u32)?;
        a.je(port)?;
        a.cmp(al, Service::LoadCr3 as u32)?;
        a.je(load_cr3)?;
        a.call(self.r.drain)?;
        let a = &mut self.a;
        a.jmp(self.r.reset)?;
        a.set_label(&mut port)?;
        a.out(0x80, al)?;
        a.dec(rcx)?;
        a.jne(port)?;
        a.jmp(out)?;
        a.set_label(&mut load_cr3)?;
        a.mov(rax, cr3)?;
        a.set_label(&mut again)?;
        a.mov(cr3, rax)?;
        for page in 0..4 {
            a.mov(rdx, qword_ptr(FILL + page * 17 * PAGE))?;
        }
        a.dec(rcx)?;
        a.jne(again)?;
        a.jmp(out)?;
        a.set_label(&mut wait)?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        a.jmp(out)?;
        a.set_label(&mut flush)?;
        self.save()?;
        self.a.call(self.r.drain)?;
        self.restore()?;
        let a = &mut self.a;
        a.set_label(&mut out)?;
        a.pop(rax)?;
        a.add(rsp, 8)?;
        a.iretq()?;
        a.set_label(&mut other)?;
        a.pop(rax)?;
        a.push(14)?;
        a.jmp(fault)
    }

    /// Says which exception, where, and resets. Stack: vector, error code, RIP, CS, ...
    fn fault_routine(&mut self) -> Asm {
        self.a.call(self.r.drain)?;
        for (name, offset) in [("\nPANIC vector=", 0), (" error=", 8), (" rip=", 16), (" rsp=", 40)] {
            self.print(name)?;
            self.a.mov(rax, qword_ptr(rsp + offset))?;
            self.a.call(self.r.print_hex)?;
        }
        self.print(" cr2=")?;
        self.a.mov(rax, cr2)?;
        self.a.call(self.r.print_hex)?;
        self.print("\n")?;
        self.a.jmp(self.r.reset)
    }

    /// All handlers; returns each vector's label.
    fn handlers(&mut self, bench: bool) -> Asm<Vec<(u8, CodeLabel)>> {
        let mut gates = Vec::new();
        let mut fault = self.a.create_label();
        self.a.set_label(&mut self.r.syscall)?;
        self.a.add_instruction(Instruction::with(Code::Sysretq))?;
        for vector in 0..32u8 {
            let mut label = self.a.create_label();
            self.a.set_label(&mut label)?;
            gates.push((vector, label));
            if vector == 14 {
                self.page_fault_handler(fault)?;
                continue;
            }
            if vector == 3 && bench {
                self.a.iretq()?;
                continue;
            }
            if WITH_ERROR_CODE >> vector & 1 == 0 {
                self.a.push(0)?;
            }
            self.a.push(i32::from(vector))?;
            self.a.jmp(fault)?;
        }
        self.a.set_label(&mut fault)?;
        self.fault_routine()?;
        let mut timer = self.a.create_label();
        self.a.set_label(&mut timer)?;
        self.timer_handler()?;
        gates.push((TIMER_VECTOR, timer));
        let mut spurious = self.a.create_label();
        self.a.set_label(&mut spurious)?;
        self.a.iretq()?;
        gates.push((SPURIOUS_VECTOR, spurious));
        Ok(gates)
    }
}

/// Assembles the kernel.
pub(crate) fn build(config: &Config<'_>) -> Asm<Kernel> {
    let mut k = Assembler::new()?;
    let (linux, common) = k.start(config)?;
    k.lapic_routines()?;
    k.drain_routine()?;
    k.print_routines()?;
    k.reset_routine()?;
    let handlers = k.handlers(config.bench)?;
    for (mut label, bytes) in std::mem::take(&mut k.text) {
        k.a.set_label(&mut label)?;
        k.a.db(&bytes)?;
    }
    let text = k.a.assemble_options(KERNEL_TEXT64, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let mut gates = Vec::new();
    for (vector, label) in handlers {
        gates.push(Gate { vector, handler: text.label_ip(&label)?, user: config.bench && vector == 3 });
    }
    let entry = pvh_entry(text.label_ip(&common)?)?;

    let mut bytes = vec![0; (KERNEL_TEXT64 - KERNEL) as usize];
    tables::write(&mut bytes, &gates, config.bench);
    let at = (KERNEL_TEXT - KERNEL) as usize;
    bytes[at..at + entry.len()].copy_from_slice(&entry);
    bytes.extend(&text.inner.code_buffer);
    Ok(Kernel { bytes, entry32: KERNEL_TEXT as u32, entry64: text.label_ip(&linux)? })
}
