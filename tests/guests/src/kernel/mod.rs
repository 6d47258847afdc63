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

mod handlers;
mod setup;
mod smp;

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
    /// With int3 and syscall for ring 3, and small pages.
    pub bench: bool,
    /// With XSAVE and AVX switched on where CPUID has them.
    pub xsave: bool,
    /// With all other CPUs started.
    pub smp: bool,
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
    other_cpu: CodeLabel,
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
            other_cpu: a.create_label(),
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
            self.set_up(config)?;
        }
        Ok((linux, common))
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
    if config.smp {
        k.other_cpu()?;
    }
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
    if config.smp {
        let trampoline = smp::trampoline(text.label_ip(&k.r.other_cpu)?)?;
        let at = (TRAMPOLINE_SOURCE - KERNEL) as usize;
        bytes[at..at + trampoline.len()].copy_from_slice(&trampoline);
    }
    bytes.extend(&text.inner.code_buffer);
    Ok(Kernel { bytes, entry32: KERNEL_TEXT as u32, entry64: text.label_ip(&linux)? })
}
