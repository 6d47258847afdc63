//! What ring-3 programs share: printing into the ring, numbers, command-line options, services.
//! A guest makes a [`Program`], writes its code, and turns it into an ELF file with `finish`.
//!
//! Routines take and return values in RAX, RCX, RDX, RSI, RDI, R8 and R9 and may change those
//! and no others.

use crate::elf::{self, Segment};
use crate::kernel::{self, Config, Service};
use crate::layout::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

pub(crate) type Asm<T = ()> = Result<T, IcedError>;

/// LAPIC timer interrupts a second in guests with a program.
pub(crate) const TICKS_PER_SECOND: u32 = 100;

/// Multiplier and increments of the value mixers, here and in the host-side checkers.
pub(crate) const MIX_N: u64 = 0x9e37_79b9_7f4a_7c15;
pub(crate) const MIX_I: u64 = 0xd1b5_4a32_d192_ed03;
pub(crate) const MIX_BIAS: u64 = 0x2545_f491_4f6c_dd1d;
pub(crate) const MIX_MUL: u64 = 0xbf58_476d_1ce4_e5b9;

/// A well-mixed word of `n` and `i`; [`Program::mix`] is its twin in the guest.
pub(crate) fn mix(n: u64, i: u64) -> u64 {
    let mut z = n.wrapping_mul(MIX_N).wrapping_add(i.wrapping_mul(MIX_I)).wrapping_add(MIX_BIAS);
    z ^= z >> 32;
    z = z.wrapping_mul(MIX_MUL);
    z ^ z >> 29
}

/// A program in the making.
pub(crate) struct Program {
    /// The assembler, for the guest's own code.
    pub a: CodeAssembler,
    puts: CodeLabel,
    decimal: CodeLabel,
    hex: CodeLabel,
    option: CodeLabel,
    micros: CodeLabel,
    mix: CodeLabel,
    tsc: CodeLabel,
    text: Vec<(CodeLabel, Vec<u8>)>,
}

impl Program {
    pub(crate) fn new() -> Asm<Self> {
        let mut a = CodeAssembler::new(64)?;
        Ok(Self {
            puts: a.create_label(),
            decimal: a.create_label(),
            hex: a.create_label(),
            option: a.create_label(),
            micros: a.create_label(),
            mix: a.create_label(),
            tsc: a.create_label(),
            a,
            text: Vec::new(),
        })
    }

    /// Loads RSI with the address and ECX with the length of `text`.
    fn text(&mut self, text: &str) -> Asm {
        let label = self.a.create_label();
        self.text.push((label, text.as_bytes().to_vec()));
        self.a.lea(rsi, ptr(label))?;
        self.a.mov(ecx, text.len() as u32)
    }

    /// Prints `text`.
    pub(crate) fn print(&mut self, text: &str) -> Asm {
        self.text(text)?;
        self.a.call(self.puts)
    }

    /// Prints RAX in decimal with at least `width` digits.
    pub(crate) fn print_decimal(&mut self, width: u32) -> Asm {
        self.a.mov(ecx, width)?;
        self.a.call(self.decimal)
    }

    /// Prints `label` and the variable at `at` in decimal.
    pub(crate) fn print_field(&mut self, label: &str, at: u64) -> Asm {
        self.print(label)?;
        self.a.mov(rax, qword_ptr(at))?;
        self.print_decimal(1)
    }

    /// Prints `label` and the variable at `at` as 16 hexadecimal digits.
    pub(crate) fn print_hex_field(&mut self, label: &str, at: u64) -> Asm {
        self.print(label)?;
        self.a.mov(rax, qword_ptr(at))?;
        self.a.call(self.hex)
    }

    /// Stores into the variable `at` the number that follows `NAME=` on the command line.
    pub(crate) fn option(&mut self, name: &str, default: u64, at: u64) -> Asm {
        self.text(&format!("{name}="))?;
        self.a.mov(rax, default)?;
        self.a.call(self.option)?;
        self.a.mov(qword_ptr(at), rax)
    }

    /// RAX = microseconds of RAX TSC cycles; 0 where the TSC's frequency is unknown.
    pub(crate) fn micros(&mut self) -> Asm {
        self.a.call(self.micros)
    }

    /// RAX = [`mix`] of RAX and RCX.
    pub(crate) fn mix(&mut self) -> Asm {
        self.a.call(self.mix)
    }

    /// RAX = the TSC; clobbers RDX only.
    pub(crate) fn read_tsc(&mut self) -> Asm {
        self.a.call(self.tsc)
    }

    /// Calls ring 0; clobbers AL only.
    pub(crate) fn service(&mut self, service: Service) -> Asm {
        self.a.mov(al, service as u32)?;
        self.a.add_instruction(kernel::service_call()?)
    }

    fn puts_routine(&mut self) -> Asm {
        let (mut next, mut full, mut end) =
            (self.a.create_label(), self.a.create_label(), self.a.create_label());
        let a = &mut self.a;
        a.set_label(&mut self.puts)?;
        a.test(ecx, ecx)?;
        a.je(end)?;
        a.set_label(&mut next)?;
        a.mov(rax, qword_ptr(RING_HEAD))?;
        a.mov(rdx, rax)?;
        a.sub(rdx, qword_ptr(RING_TAIL))?;
        a.cmp(rdx, RING_SIZE as i32)?;
        a.jae(full)?;
        a.movzx(edx, ax)?;
        a.mov(dil, byte_ptr(rsi))?;
        a.mov(byte_ptr(rdx + RING as i32), dil)?;
        a.inc(rax)?;
        a.mov(qword_ptr(RING_HEAD), rax)?;
        a.inc(rsi)?;
        a.dec(ecx)?;
        a.jne(next)?;
        a.set_label(&mut end)?;
        a.ret()?;
        a.set_label(&mut full)?;
        self.service(Service::Flush)?;
        self.a.jmp(next)
    }

    fn number_routines(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut digit, mut pad, mut padded) = (a.create_label(), a.create_label(), a.create_label());
        // The digits grow downwards on the stack.
        a.set_label(&mut self.decimal)?;
        a.lea(rsi, ptr(rsp - 8))?;
        a.sub(rsp, 48)?;
        a.mov(r8, rsi)?;
        a.mov(edi, 10)?;
        a.set_label(&mut digit)?;
        a.xor(edx, edx)?;
        a.div(rdi)?;
        a.add(edx, u32::from(b'0'))?;
        a.dec(rsi)?;
        a.mov(byte_ptr(rsi), dl)?;
        a.test(rax, rax)?;
        a.jne(digit)?;
        a.set_label(&mut pad)?;
        a.mov(rdx, r8)?;
        a.sub(rdx, rsi)?;
        a.cmp(edx, ecx)?;
        a.jae(padded)?;
        a.dec(rsi)?;
        a.mov(byte_ptr(rsi), u32::from(b'0'))?;
        a.jmp(pad)?;
        a.set_label(&mut padded)?;
        a.mov(ecx, edx)?;
        a.call(self.puts)?;
        a.add(rsp, 48)?;
        a.ret()?;

        let (mut nibble, mut small) = (a.create_label(), a.create_label());
        a.set_label(&mut self.hex)?;
        a.sub(rsp, 24)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut nibble)?;
        a.rol(rax, 4)?;
        a.mov(edx, eax)?;
        a.and(edx, 15)?;
        a.add(edx, u32::from(b'0'))?;
        a.cmp(edx, u32::from(b'9'))?;
        a.jbe(small)?;
        a.add(edx, 39)?;
        a.set_label(&mut small)?;
        a.mov(byte_ptr(rsp + rcx), dl)?;
        a.inc(ecx)?;
        a.cmp(ecx, 16)?;
        a.jb(nibble)?;
        a.mov(rsi, rsp)?;
        a.call(self.puts)?;
        a.add(rsp, 24)?;
        a.ret()
    }

    /// RSI = `NAME=`, ECX its length, RAX = default; returns the value in RAX.
    fn option_routine(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut word, mut compare, mut skip, mut parse, mut number, mut end) = (
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
            a.create_label(),
        );
        a.set_label(&mut self.option)?;
        a.mov(rdi, qword_ptr(CMDLINE))?;
        a.test(rdi, rdi)?;
        a.je(end)?;
        a.set_label(&mut word)?;
        a.xor(r8d, r8d)?;
        a.set_label(&mut compare)?;
        a.cmp(r8d, ecx)?;
        a.je(parse)?;
        a.mov(dl, byte_ptr(rdi + r8))?;
        a.cmp(dl, byte_ptr(rsi + r8))?;
        a.jne(skip)?;
        a.inc(r8d)?;
        a.jmp(compare)?;
        a.set_label(&mut skip)?;
        a.mov(dl, byte_ptr(rdi))?;
        a.test(dl, dl)?;
        a.je(end)?;
        a.inc(rdi)?;
        a.cmp(dl, u32::from(b' '))?;
        a.je(word)?;
        a.jmp(skip)?;
        a.set_label(&mut parse)?;
        a.add(rdi, rcx)?;
        a.xor(eax, eax)?;
        a.set_label(&mut number)?;
        a.movzx(edx, byte_ptr(rdi))?;
        a.sub(edx, u32::from(b'0'))?;
        a.cmp(edx, 9)?;
        a.ja(end)?;
        a.imul_3(rax, rax, 10)?;
        a.add(rax, rdx)?;
        a.inc(rdi)?;
        a.jmp(number)?;
        a.set_label(&mut end)?;
        a.ret()
    }

    fn value_routines(&mut self) -> Asm {
        let a = &mut self.a;
        let mut unknown = a.create_label();
        a.set_label(&mut self.micros)?;
        a.mov(rcx, qword_ptr(TSC_KHZ))?;
        a.test(rcx, rcx)?;
        a.je(unknown)?;
        a.mov(edx, 1000)?;
        a.mul(rdx)?;
        a.div(rcx)?;
        a.ret()?;
        a.set_label(&mut unknown)?;
        a.xor(eax, eax)?;
        a.ret()?;

        a.set_label(&mut self.mix)?;
        a.mov(rdx, MIX_N)?;
        a.imul_2(rax, rdx)?;
        a.mov(rdx, MIX_I)?;
        a.imul_2(rcx, rdx)?;
        a.add(rax, rcx)?;
        a.mov(rdx, MIX_BIAS)?;
        a.add(rax, rdx)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.xor(rax, rdx)?;
        a.mov(rdx, MIX_MUL)?;
        a.imul_2(rax, rdx)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 29)?;
        a.xor(rax, rdx)?;
        a.ret()?;

        a.set_label(&mut self.tsc)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.ret()
    }

    /// The guest's ELF file.
    pub(crate) fn finish(self) -> Asm<Vec<u8>> {
        self.finish_for(false, false)
    }

    /// The ELF file of a guest whose program may use AVX, where the CPU has it.
    pub(crate) fn finish_avx(self) -> Asm<Vec<u8>> {
        self.finish_for(true, false)
    }

    /// The ELF file of a guest whose program all CPUs enter, with their number in RBX.
    pub(crate) fn finish_smp(self) -> Asm<Vec<u8>> {
        self.finish_for(false, true)
    }

    fn finish_for(mut self, xsave: bool, smp: bool) -> Asm<Vec<u8>> {
        self.puts_routine()?;
        self.number_routines()?;
        self.option_routine()?;
        self.value_routines()?;
        for (mut label, bytes) in std::mem::take(&mut self.text) {
            self.a.set_label(&mut label)?;
            self.a.db(&bytes)?;
        }
        let kernel = kernel::build(&Config {
            print_and_reset: None,
            ticks_per_second: TICKS_PER_SECOND,
            bench: false,
            xsave,
            smp,
        })?;
        let segments = [
            Segment { gpa: KERNEL, bytes: kernel.bytes, executable: true },
            Segment { gpa: PROGRAM, bytes: self.a.assemble(PROGRAM)?, executable: true },
        ];
        Ok(elf::write(&segments, kernel.entry64, kernel.entry32))
    }
}
