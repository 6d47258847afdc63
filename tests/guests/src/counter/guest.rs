//! The counter's program.

use super::*;
use crate::kernel::Service;
use crate::layout::*;
use crate::program::{Asm, MIX_BIAS, MIX_I, MIX_N, Program, TICKS_PER_SECOND};
use iced_x86::code_asm::*;

const N: u64 = VARS;
const SUM: u64 = VARS + 0x08;
const ERRORS: u64 = VARS + 0x10;
const DEADLINE: u64 = VARS + 0x18;
const TICKS_A_LINE: u64 = VARS + 0x20;
const LINES: u64 = VARS + 0x28;
const FILL_MIB: u64 = VARS + 0x30;
const UNITS: u64 = VARS + 0x38;
const IDLE: u64 = VARS + 0x40;
const SPIN: u64 = VARS + 0x48;
const LAST_LINE: u64 = VARS + 0x50;
const LAST_WAKE: u64 = VARS + 0x58;
const GAP: u64 = VARS + 0x60;
const MAX_GAP: u64 = VARS + 0x68;
const STALL: u64 = VARS + 0x70;
const SCRATCH: u64 = VARS + 0x78;
const MEM: u64 = VARS + 0x80;
const FILL_CURSOR: u64 = VARS + 0x88;
const FILL_PAGES: u64 = VARS + 0x90;
const TEMPLATE_HASH: u64 = VARS + 0x98;
const BAD_LINES: u64 = VARS + 0xa0;
const DEFAULT_MXCSR: u64 = VARS + 0xa8;
const THREE: u64 = VARS + 0xb0;

/// State blocks: what must be found, and what was found.
const EXPECTED: u64 = VARS + 0x400;
const FOUND: u64 = VARS + 0x800;
/// The page that fills RAM, but for its first and last word.
const TEMPLATE: u64 = VARS + 0x2000;

/// Pages of filled RAM verified a line.
const FILL_WINDOW: u32 = 64;

const MEM_ERROR: u32 = GROUPS.len() as u32;
const FILL_ERROR: u32 = MEM_ERROR + 1;
const TSC_ERROR: u32 = MEM_ERROR + 2;

/// All general registers but RAX and RDX, which the wait uses, and RSP.
const LIVE: [AsmRegister64; 13] = [rbx, rcx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15];
const XMMS: [AsmRegisterXmm; 16] =
    [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15];
const YMMS: [AsmRegisterYmm; 16] =
    [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15];

fn word(block: u64, group: &Group, index: u64) -> u64 {
    block + (group.first + index) * 8
}

struct Counter {
    p: Program,
    /// What takes part unless the command line says otherwise.
    units: u64,
    check: CodeLabel,
    arithmetic: CodeLabel,
    pattern: CodeLabel,
}

impl Counter {
    /// Jumps to `label` where `unit` takes no part.
    fn skip_without(&mut self, unit: Unit, label: CodeLabel) -> Asm {
        self.p.a.test(byte_ptr(UNITS), unit as u32)?;
        self.p.a.je(label)
    }

    fn start(&mut self) -> Asm {
        let p = &mut self.p;
        p.option("rate", 10, SCRATCH)?;
        p.a.mov(rcx, qword_ptr(SCRATCH))?;
        p.a.mov(eax, TICKS_PER_SECOND)?;
        p.a.xor(edx, edx)?;
        let (mut divide, mut at_least_one) = (p.a.create_label(), p.a.create_label());
        p.a.test(rcx, rcx)?;
        p.a.jne(divide)?;
        p.a.inc(ecx)?;
        p.a.set_label(&mut divide)?;
        p.a.div(rcx)?;
        p.a.test(rax, rax)?;
        p.a.jne(at_least_one)?;
        p.a.inc(eax)?;
        p.a.set_label(&mut at_least_one)?;
        p.a.mov(qword_ptr(TICKS_A_LINE), rax)?;
        p.option("lines", 0, LINES)?;
        p.option("fill", 0, FILL_MIB)?;
        p.option("units", self.units, UNITS)?;
        p.option("idle", 0, IDLE)?;
        p.print_field("counter: booted_by=", BOOTED_BY)?;
        p.print_field(" tsc_khz=", TSC_KHZ)?;
        p.print_field(" bus_khz=", BUS_KHZ)?;
        p.print_field(" time_source=", TIME_SOURCE)?;
        p.print_field(" ticks_a_line=", TICKS_A_LINE)?;
        p.print_field(" lines=", LINES)?;
        p.print_field(" fill=", FILL_MIB)?;
        p.print_field(" units=", UNITS)?;
        p.print("\n")?;
        let a = &mut p.a;
        a.mov(dword_ptr(DEFAULT_MXCSR), MXCSR_MASKED as u32)?;
        a.mov(dword_ptr(THREE), 3)?;
        self.write_pattern()?;
        self.fill_ram()?;
        let p = &mut self.p;
        p.read_tsc()?;
        p.a.mov(qword_ptr(LAST_LINE), rax)?;
        p.a.mov(rax, qword_ptr(TICKS))?;
        p.a.mov(qword_ptr(DEADLINE), rax)
    }

    /// Writes every slice as if by the sixteen lines before the first.
    fn write_pattern(&mut self) -> Asm {
        let a = &mut self.p.a;
        let (mut slice, mut store) = (a.create_label(), a.create_label());
        a.mov(ebx, 1)?;
        a.set_label(&mut slice)?;
        a.lea(rax, ptr(rbx - SLICES as i32))?;
        a.call(self.pattern)?; // RAX = first value, RCX = step
        a.mov(edi, ebx)?;
        a.and(edi, SLICES as i32 - 1)?;
        a.shl(edi, 16)?;
        a.add(edi, PATTERN as i32)?;
        a.mov(esi, SLICE_WORDS as u32)?;
        a.set_label(&mut store)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 31)?;
        a.xor(rdx, rax)?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.add(rdi, 8)?;
        a.add(rax, rcx)?;
        a.dec(esi)?;
        a.jne(store)?;
        a.inc(ebx)?;
        a.cmp(ebx, SLICES as i32)?;
        a.jbe(slice)
    }

    /// Fills RAM page by page: the template, with the page's own number at both ends.
    fn fill_ram(&mut self) -> Asm {
        let p = &mut self.p;
        let a = &mut p.a;
        let (mut template, mut page, mut end) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rax, qword_ptr(FILL_MIB))?;
        a.shl(rax, 8)?;
        a.mov(qword_ptr(FILL_PAGES), rax)?;
        a.xor(ebx, ebx)?;
        a.xor(ebp, ebp)?;
        a.set_label(&mut template)?;
        a.mov(eax, ebx)?;
        a.mov(ecx, 1000)?;
        p.mix()?;
        let a = &mut p.a;
        a.mov(qword_ptr(rbx * 8 + TEMPLATE as i32), rax)?;
        a.inc(ebx)?;
        a.cmp(ebx, 512)?;
        a.jb(template)?;
        self.hash_page(TEMPLATE)?;
        let a = &mut self.p.a;
        a.mov(qword_ptr(TEMPLATE_HASH), rax)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut page)?;
        a.cmp(rbx, qword_ptr(FILL_PAGES))?;
        a.jae(end)?;
        a.mov(rbp, rbx)?;
        a.shl(rbp, 12)?;
        a.add(rbp, FILL as i32)?;
        a.mov(rdi, rbp)?;
        a.mov(esi, TEMPLATE as u32)?;
        a.mov(ecx, 512)?;
        a.rep().movsq()?;
        self.stamp()?;
        let a = &mut self.p.a;
        a.mov(qword_ptr(rbp), rax)?;
        a.not(rax)?;
        a.mov(qword_ptr(rbp + 4088), rax)?;
        a.inc(rbx)?;
        a.jmp(page)?;
        a.set_label(&mut end)?;
        a.nop()
    }

    /// RAX = the number that page RBX carries.
    fn stamp(&mut self) -> Asm {
        self.p.a.mov(rax, rbx)?;
        self.p.a.mov(ecx, 2000)?;
        self.p.mix()
    }

    /// RAX = hash over the page at RBP, or at `at`, but for its first and last word.
    fn hash_page(&mut self, at: u64) -> Asm {
        let a = &mut self.p.a;
        let mut next = a.create_label();
        if at != 0 {
            a.mov(ebp, at as u32)?;
        }
        a.xor(eax, eax)?;
        a.mov(ecx, 1)?;
        a.set_label(&mut next)?;
        a.rol(rax, 7)?;
        a.xor(rax, qword_ptr(rbp + rcx * 8))?;
        a.inc(ecx)?;
        a.cmp(ecx, 511)?;
        a.jb(next)
    }

    /// Puts this line's values into the expected block.
    fn prepare(&mut self) -> Asm {
        let p = &mut self.p;
        let a = &mut p.a;
        let (mut value, mut exponent) = (a.create_label(), a.create_label());
        a.xor(ebx, ebx)?;
        a.set_label(&mut value)?;
        a.mov(rax, qword_ptr(N))?;
        a.mov(ecx, ebx)?;
        p.mix()?;
        let a = &mut p.a;
        a.mov(qword_ptr(rbx * 8 + EXPECTED as i32), rax)?;
        a.inc(ebx)?;
        a.cmp(ebx, MXCSR.first as u32)?;
        a.jb(value)?;
        let mut high = a.create_label();
        a.mov(ebx, YMM_HIGH.first as u32)?;
        a.set_label(&mut high)?;
        a.mov(rax, qword_ptr(N))?;
        a.mov(ecx, ebx)?;
        p.mix()?;
        let a = &mut p.a;
        a.mov(qword_ptr(rbx * 8 + EXPECTED as i32), rax)?;
        a.inc(ebx)?;
        a.cmp(ebx, (YMM_HIGH.first + YMM_HIGH.words) as u32)?;
        a.jb(high)?;
        // x87: any mantissa with its top bit set; exponents of normal numbers, any sign.
        a.xor(ebx, ebx)?;
        a.set_label(&mut exponent)?;
        a.mov(rax, qword_ptr(N))?;
        a.lea(rcx, ptr(rbx + 100))?;
        p.mix()?;
        let a = &mut p.a;
        a.mov(rcx, rax)?;
        a.bts(rax, 63)?;
        a.mov(esi, ebx)?;
        a.shl(esi, 4)?;
        a.mov(qword_ptr(rsi + word(EXPECTED, &X87, 0) as i32), rax)?;
        a.and(ecx, 0x8fff)?;
        a.add(ecx, 0x3000)?;
        a.mov(qword_ptr(rsi + word(EXPECTED, &X87, 1) as i32), rcx)?;
        a.inc(ebx)?;
        a.cmp(ebx, 8)?;
        a.jb(exponent)?;

        // Rounding mode 1 + n % 3: down, up, to zero, never the default.
        a.mov(rax, qword_ptr(N))?;
        a.xor(edx, edx)?;
        a.mov(ecx, 3)?;
        a.div(rcx)?;
        a.inc(edx)?;
        a.mov(eax, edx)?;
        a.shl(eax, 13)?;
        a.mov(ecx, dword_ptr(N))?;
        a.and(ecx, 0x3f)?;
        a.lea(eax, ptr(rax + rcx + (MXCSR_MASKED + MXCSR_FLUSH) as i32))?;
        a.mov(qword_ptr(word(EXPECTED, &MXCSR, 0)), rax)?;
        a.shl(edx, 10)?;
        a.add(edx, FCW_MASKED as i32)?;
        a.mov(qword_ptr(word(EXPECTED, &FCW, 0)), rdx)?;
        a.mov(ebp, EXPECTED as u32)?;
        a.call(self.arithmetic)
    }

    /// Loads every register from the expected block, waits, and stores them into the found one.
    fn wait_with_live_registers(&mut self) -> Asm {
        let (mut no_sse, mut no_avx, mut no_x87) =
            (self.p.a.create_label(), self.p.a.create_label(), self.p.a.create_label());
        // Where they are not live, the arithmetic after the wait takes them from here.
        for group in [MXCSR, FCW] {
            self.p.a.mov(rax, qword_ptr(word(EXPECTED, &group, 0)))?;
            self.p.a.mov(qword_ptr(word(FOUND, &group, 0)), rax)?;
        }
        self.skip_without(Unit::Sse, no_sse)?;
        let a = &mut self.p.a;
        a.ldmxcsr(dword_ptr(word(EXPECTED, &MXCSR, 0)))?;
        for (i, register) in (0..).zip(XMMS) {
            a.movaps(register, xmmword_ptr(word(EXPECTED, &XMM, 2 * i)))?;
        }
        a.set_label(&mut no_sse)?;
        self.skip_without(Unit::Avx, no_avx)?;
        let a = &mut self.p.a;
        for (i, register) in (0..).zip(YMMS) {
            a.vinsertf128(register, register, xmmword_ptr(word(EXPECTED, &YMM_HIGH, 2 * i)), 1)?;
        }
        a.set_label(&mut no_avx)?;
        self.skip_without(Unit::X87, no_x87)?;
        let a = &mut self.p.a;
        a.fninit()?;
        a.fldcw(word_ptr(word(EXPECTED, &FCW, 0)))?;
        for i in (0..8).rev() {
            a.fld(tbyte_ptr(word(EXPECTED, &X87, 2 * i)))?;
        }
        a.set_label(&mut no_x87)?;
        for (i, register) in (0..).zip(LIVE) {
            a.mov(register, qword_ptr(word(EXPECTED, &GENERAL, i)))?;
        }

        self.wait()?;

        let a = &mut self.p.a;
        for (i, register) in (0..).zip(LIVE) {
            a.mov(qword_ptr(word(FOUND, &GENERAL, i)), register)?;
        }
        let (mut no_sse, mut no_avx, mut no_x87) = (a.create_label(), a.create_label(), a.create_label());
        self.skip_without(Unit::Avx, no_avx)?;
        let a = &mut self.p.a;
        for (i, register) in (0..).zip(YMMS) {
            a.vextractf128(xmmword_ptr(word(FOUND, &YMM_HIGH, 2 * i)), register, 1)?;
        }
        a.set_label(&mut no_avx)?;
        self.skip_without(Unit::Sse, no_sse)?;
        let a = &mut self.p.a;
        for (i, register) in (0..).zip(XMMS) {
            a.movaps(xmmword_ptr(word(FOUND, &XMM, 2 * i)), register)?;
        }
        a.stmxcsr(dword_ptr(word(FOUND, &MXCSR, 0)))?;
        a.ldmxcsr(dword_ptr(DEFAULT_MXCSR))?;
        a.set_label(&mut no_sse)?;
        self.skip_without(Unit::X87, no_x87)?;
        let a = &mut self.p.a;
        a.fnstcw(word_ptr(word(FOUND, &FCW, 0)))?;
        for i in 0..8 {
            a.fstp(tbyte_ptr(word(FOUND, &X87, 2 * i)))?;
        }
        a.set_label(&mut no_x87)?;
        a.mov(ebp, FOUND as u32)?;
        a.call(self.arithmetic)
    }

    /// Until DEADLINE, watching the TSC at every step. Uses RAX and RDX only.
    fn wait(&mut self) -> Asm {
        let a = &mut self.p.a;
        let (mut step, mut forward, mut shorter, mut halt, mut awake) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut step)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rdx, rax)?;
        a.mov(rax, rdx)?;
        a.sub(rax, qword_ptr(LAST_WAKE))?;
        a.mov(qword_ptr(LAST_WAKE), rdx)?;
        a.jae(forward)?;
        a.or(dword_ptr(ERRORS), 1 << TSC_ERROR)?;
        a.xor(eax, eax)?;
        a.set_label(&mut forward)?;
        a.cmp(rax, qword_ptr(STALL))?;
        a.jbe(shorter)?;
        a.mov(qword_ptr(STALL), rax)?;
        a.set_label(&mut shorter)?;
        a.cmp(byte_ptr(SPIN), 0)?;
        a.je(halt)?;
        a.pause()?;
        a.jmp(awake)?;
        a.set_label(&mut halt)?;
        self.p.service(Service::Wait)?;
        let a = &mut self.p.a;
        a.set_label(&mut awake)?;
        a.mov(rax, qword_ptr(TICKS))?;
        a.cmp(rax, qword_ptr(DEADLINE))?;
        a.jb(step)
    }

    /// Results that depend on the live rounding modes, into the block at RBP.
    fn arithmetic_routine(&mut self) -> Asm {
        let (mut no_sse, mut no_x87) = (self.p.a.create_label(), self.p.a.create_label());
        self.p.a.set_label(&mut self.arithmetic)?;
        self.skip_without(Unit::SseArithmetic, no_sse)?;
        let at = |group: &Group, index: u64| (group.first + index) as i32 * 8;
        let a = &mut self.p.a;
        a.ldmxcsr(dword_ptr(rbp + at(&MXCSR, 0)))?;
        a.cvtsi2sd(xmm0, qword_ptr(N))?;
        a.mov(eax, 3)?;
        a.cvtsi2sd(xmm1, eax)?;
        a.divsd(xmm0, xmm1)?;
        a.movsd_2(qword_ptr(rbp + at(&SSE_RESULTS, 0)), xmm0)?;
        a.cvtsi2ss(xmm0, qword_ptr(N))?;
        a.mov(eax, 7)?;
        a.cvtsi2ss(xmm1, eax)?;
        a.divss(xmm0, xmm1)?;
        a.movss(dword_ptr(rbp + at(&SSE_RESULTS, 1)), xmm0)?;
        // 2^-1000 * 2^-60 would be denormal: flushed to zero.
        a.mov(rax, (1023u64 - 1000) << 52)?;
        a.movq(xmm0, rax)?;
        a.mov(rax, (1023u64 - 60) << 52)?;
        a.movq(xmm1, rax)?;
        a.mulsd(xmm0, xmm1)?;
        a.movsd_2(qword_ptr(rbp + at(&SSE_RESULTS, 2)), xmm0)?;
        a.ldmxcsr(dword_ptr(DEFAULT_MXCSR))?;
        a.set_label(&mut no_sse)?;
        self.skip_without(Unit::X87Arithmetic, no_x87)?;
        let a = &mut self.p.a;
        a.fninit()?;
        a.fldcw(word_ptr(rbp + at(&FCW, 0)))?;
        a.fild(qword_ptr(N))?;
        a.fidiv(dword_ptr(THREE))?;
        a.fstp(tbyte_ptr(rbp + at(&X87_RESULTS, 0)))?;
        a.fninit()?;
        a.set_label(&mut no_x87)?;
        a.ret()
    }

    /// Compares and folds ECX words from offset RSI of the blocks; error bit EDX.
    fn check_routine(&mut self) -> Asm {
        let a = &mut self.p.a;
        let (mut next, mut same) = (a.create_label(), a.create_label());
        a.set_label(&mut self.check)?;
        a.mov(rax, qword_ptr(SUM))?;
        a.mov(r8, FOLD)?;
        a.set_label(&mut next)?;
        a.mov(rdi, qword_ptr(rsi + FOUND as i32))?;
        a.cmp(rdi, qword_ptr(rsi + EXPECTED as i32))?;
        a.je(same)?;
        a.bts(dword_ptr(ERRORS), edx)?;
        a.set_label(&mut same)?;
        a.xor(rax, rdi)?;
        a.imul_2(rax, r8)?;
        a.rol(rax, 31)?;
        a.add(rsi, 8)?;
        a.dec(ecx)?;
        a.jne(next)?;
        a.mov(qword_ptr(SUM), rax)?;
        a.ret()
    }

    /// Folds RAX into the sum.
    fn fold(&mut self) -> Asm {
        let a = &mut self.p.a;
        a.xor(rax, qword_ptr(SUM))?;
        a.mov(rcx, FOLD)?;
        a.imul_2(rax, rcx)?;
        a.rol(rax, 31)?;
        a.mov(qword_ptr(SUM), rax)
    }

    /// RAX = a line's number; returns the first value and the step of what it writes.
    fn pattern_routine(&mut self) -> Asm {
        let a = &mut self.p.a;
        a.set_label(&mut self.pattern)?;
        a.mov(rcx, MIX_N)?;
        a.imul_2(rax, rcx)?;
        a.mov(rcx, MIX_BIAS)?;
        a.add(rax, rcx)?;
        a.mov(rcx, MIX_I)?;
        a.ret()
    }

    /// Verifies and rewrites this line's slice; MEM = its hash.
    fn memory(&mut self) -> Asm {
        let a = &mut self.p.a;
        let (mut next, mut same) = (a.create_label(), a.create_label());
        a.mov(rax, qword_ptr(N))?;
        a.mov(edi, eax)?;
        a.and(edi, SLICES as i32 - 1)?;
        a.shl(edi, 16)?;
        a.add(edi, PATTERN as i32)?;
        a.call(self.pattern)?;
        a.mov(r9, rax)?; // what goes in
        a.mov(rax, qword_ptr(N))?;
        a.sub(rax, SLICES as i32)?;
        a.call(self.pattern)?; // RAX = what must be there
        a.xor(r8d, r8d)?;
        a.mov(esi, SLICE_WORDS as u32)?;
        a.set_label(&mut next)?;
        a.mov(rbx, qword_ptr(rdi))?;
        a.rol(r8, 7)?;
        a.xor(r8, rbx)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 31)?;
        a.xor(rdx, rax)?;
        a.cmp(rdx, rbx)?;
        a.je(same)?;
        a.or(dword_ptr(ERRORS), 1 << MEM_ERROR)?;
        a.set_label(&mut same)?;
        a.mov(rdx, r9)?;
        a.shr(rdx, 31)?;
        a.xor(rdx, r9)?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.add(rdi, 8)?;
        a.add(rax, rcx)?;
        a.add(r9, rcx)?;
        a.dec(esi)?;
        a.jne(next)?;
        a.mov(qword_ptr(MEM), r8)?;
        a.mov(rax, r8)?;
        self.fold()
    }

    /// Verifies the next pages of the filled RAM.
    fn verify_fill(&mut self) -> Asm {
        let a = &mut self.p.a;
        let (mut page, mut inside, mut bad, mut next, mut end) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.cmp(qword_ptr(FILL_PAGES), 0)?;
        a.je(end)?;
        a.mov(r12d, FILL_WINDOW)?;
        a.set_label(&mut page)?;
        a.mov(rbx, qword_ptr(FILL_CURSOR))?;
        a.cmp(rbx, qword_ptr(FILL_PAGES))?;
        a.jb(inside)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut inside)?;
        a.mov(rbp, rbx)?;
        a.shl(rbp, 12)?;
        a.add(rbp, FILL as i32)?;
        self.stamp()?;
        let a = &mut self.p.a;
        a.cmp(rax, qword_ptr(rbp))?;
        a.jne(bad)?;
        a.not(rax)?;
        a.cmp(rax, qword_ptr(rbp + 4088))?;
        a.jne(bad)?;
        self.hash_page(0)?;
        let a = &mut self.p.a;
        a.cmp(rax, qword_ptr(TEMPLATE_HASH))?;
        a.je(next)?;
        a.set_label(&mut bad)?;
        a.or(dword_ptr(ERRORS), 1 << FILL_ERROR)?;
        a.set_label(&mut next)?;
        a.inc(rbx)?;
        a.mov(qword_ptr(FILL_CURSOR), rbx)?;
        a.dec(r12d)?;
        a.jne(page)?;
        a.set_label(&mut end)?;
        a.nop()
    }

    /// Sets the next deadline, and whether to spin up to it.
    fn schedule(&mut self) -> Asm {
        let a = &mut self.p.a;
        let (mut in_time, mut decided, mut mixed) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rax, qword_ptr(DEADLINE))?;
        a.add(rax, qword_ptr(TICKS_A_LINE))?;
        a.mov(rcx, qword_ptr(TICKS))?;
        a.inc(rcx)?;
        a.cmp(rax, rcx)?;
        a.jae(in_time)?;
        a.mov(rax, rcx)?;
        a.set_label(&mut in_time)?;
        a.mov(qword_ptr(DEADLINE), rax)?;
        a.mov(eax, dword_ptr(IDLE))?;
        a.test(eax, eax)?;
        a.je(mixed)?;
        a.dec(eax)?;
        a.jmp(decided)?;
        a.set_label(&mut mixed)?;
        a.test(byte_ptr(N), 3)?;
        a.sete(al)?;
        a.set_label(&mut decided)?;
        a.mov(byte_ptr(SPIN), al)?;
        a.mov(qword_ptr(STALL), 0)?;
        self.p.read_tsc()?;
        self.p.a.mov(qword_ptr(LAST_WAKE), rax)
    }

    fn check_groups(&mut self) -> Asm {
        self.p.a.mov(rax, qword_ptr(N))?;
        self.fold()?;
        for (bit, group) in (0u32..).zip(&GROUPS) {
            let mut skip = self.p.a.create_label();
            self.skip_without(group.unit, skip)?;
            let a = &mut self.p.a;
            a.mov(esi, group.first as u32 * 8)?;
            a.mov(ecx, group.words as u32)?;
            a.mov(edx, bit)?;
            a.call(self.check)?;
            a.set_label(&mut skip)?;
            a.nop()?;
        }
        Ok(())
    }

    fn time(&mut self) -> Asm {
        let p = &mut self.p;
        let (mut forward, mut shorter) = (p.a.create_label(), p.a.create_label());
        p.read_tsc()?;
        let a = &mut p.a;
        a.mov(rcx, rax)?;
        a.sub(rax, qword_ptr(LAST_LINE))?;
        a.mov(qword_ptr(LAST_LINE), rcx)?;
        a.jae(forward)?;
        a.or(dword_ptr(ERRORS), 1 << TSC_ERROR)?;
        a.xor(eax, eax)?;
        a.set_label(&mut forward)?;
        p.micros()?;
        let a = &mut p.a;
        a.mov(qword_ptr(GAP), rax)?;
        a.cmp(rax, qword_ptr(MAX_GAP))?;
        a.jbe(shorter)?;
        a.mov(qword_ptr(MAX_GAP), rax)?;
        a.set_label(&mut shorter)?;
        a.mov(rax, qword_ptr(STALL))?;
        p.micros()?;
        p.a.mov(qword_ptr(STALL), rax)
    }

    fn print_line(&mut self) -> Asm {
        let p = &mut self.p;
        p.print("n=")?;
        p.a.mov(rax, qword_ptr(N))?;
        p.print_decimal(6)?;
        p.print_hex_field(" sum=", SUM)?;
        p.print_hex_field(" mem=", MEM)?;
        p.print_field(" gap_us=", GAP)?;
        p.print_field(" max_gap_us=", MAX_GAP)?;
        p.print_field(" stall_us=", STALL)?;
        p.print_field(" units=", UNITS)?;
        let (mut bad, mut end) = (p.a.create_label(), p.a.create_label());
        p.a.cmp(dword_ptr(ERRORS), 0)?;
        p.a.jne(bad)?;
        p.print(" ok\n")?;
        p.a.jmp(end)?;
        p.a.set_label(&mut bad)?;
        p.a.inc(qword_ptr(BAD_LINES))?;
        p.print(" BAD")?;
        let names = GROUPS.iter().map(|group| group.name).chain(MORE_ERRORS);
        for (bit, name) in (0u32..).zip(names) {
            let mut without = p.a.create_label();
            p.a.bt(dword_ptr(ERRORS), bit)?;
            p.a.jnc(without)?;
            p.print(&format!(" {name}"))?;
            p.a.set_label(&mut without)?;
            p.a.nop()?;
        }
        p.print("\n")?;
        p.a.set_label(&mut end)?;
        p.a.mov(dword_ptr(ERRORS), 0)
    }

    fn main(&mut self) -> Asm {
        self.start()?;
        let (mut line, mut done) = (self.p.a.create_label(), self.p.a.create_label());
        self.p.a.set_label(&mut line)?;
        self.p.a.inc(qword_ptr(N))?;
        self.prepare()?;
        self.schedule()?;
        self.wait_with_live_registers()?;
        self.check_groups()?;
        self.memory()?;
        self.verify_fill()?;
        self.time()?;
        self.print_line()?;
        let a = &mut self.p.a;
        a.mov(rax, qword_ptr(LINES))?;
        a.test(rax, rax)?;
        a.je(line)?;
        a.cmp(rax, qword_ptr(N))?;
        a.ja(line)?;
        a.jmp(done)?;
        a.set_label(&mut done)?;
        self.p.print_field("counter done: lines=", N)?;
        self.p.print_field(" bad=", BAD_LINES)?;
        self.p.print("\n")?;
        self.p.service(Service::Reset)
    }
}

fn counter(units: u64) -> Asm<Counter> {
    let mut p = Program::new()?;
    let (check, arithmetic, pattern) = (p.a.create_label(), p.a.create_label(), p.a.create_label());
    let mut counter = Counter { p, units, check, arithmetic, pattern };
    counter.main()?;
    counter.arithmetic_routine()?;
    counter.check_routine()?;
    counter.pattern_routine()?;
    Ok(counter)
}

pub(crate) fn build() -> Asm<Vec<u8>> {
    counter(BASE_UNITS)?.p.finish()
}

pub(crate) fn build_avx() -> Asm<Vec<u8>> {
    counter(BASE_UNITS | Unit::Avx as u64)?.p.finish_avx()
}
