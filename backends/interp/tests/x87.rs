//! x87 and MMX against the processor the tests run on: every encoding, from random states, through the
//! interpreter as a guest in 64-bit mode.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod harness;

use godwit_sdk::abi;
use godwit_sdk::state::{
    AvxV1, CpuState, DebugV1, EventsV1, FpuV1, LapicV1, Model, MsrsV1, RegsV1, SystemV1, TscV1, access,
};
use harness::Vm;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic as M, Register};

/// Of a vector: FXSAVE image before, then after, then the memory operand, then RFLAGS and RAX after.
const VECTOR: usize = 1152;
const AFTER: usize = 512;
const MEMORY: usize = 1024;
const FLAGS: usize = 1088;
const RAX: usize = 1096;

const CODE_AT: u64 = 0x20_0000;
const DATA_AT: u64 = 0x80_0000;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 33) % n
    }

    /// Sign, exponent and significand, of any class.
    fn f80(&mut self) -> [u8; 10] {
        let sign = (self.next() & 0x8000) as u16;
        let top = 1 << 63;
        let frac = match self.below(4) {
            0 => top,
            1 => top | self.next() & 0xffff << 47,
            _ => self.next() | top,
        };
        let (se, frac) = match self.below(16) {
            0 => (0, 0),
            1 => (0, frac & !top | 1),
            2 => (0x7fff, top),
            3 => (0x7fff, top | 1 << 62 | frac >> 2),
            4 => (0x7fff, top | frac >> 2 & !(1 << 62) | 1),
            5 => (self.next() as u16 & 0x7fff, self.next()),
            6 => (0x7ffe - self.below(3) as u16, frac),
            7 => (1 + self.below(3) as u16, frac),
            _ => (0x3fff - 20 + self.below(80) as u16, frac),
        };
        let mut b = [0; 10];
        b[..8].copy_from_slice(&frac.to_le_bytes());
        b[8..].copy_from_slice(&(se | sign).to_le_bytes());
        b
    }

    fn memory(&mut self) -> [u8; 16] {
        let mut b = [0; 16];
        b[..8].copy_from_slice(&self.next().to_le_bytes());
        b[8..].copy_from_slice(&self.next().to_le_bytes());
        match self.below(8) {
            0 => b[..10].copy_from_slice(&self.f80()),
            1 => b[..4].copy_from_slice(&(self.below(1000) as f32 - 300.5).to_le_bytes()),
            2 => b[..8].copy_from_slice(&(self.below(1000) as f64 - 300.5).to_le_bytes()),
            3 => b[..8].copy_from_slice(&(self.below(1 << 20) as i64 - 1000).to_le_bytes()),
            4 => b[..4].copy_from_slice(&[0, 0, [0, 0x80, 0x81, 0xc0][self.below(4) as usize], 0x7f]),
            5 => b[..8].copy_from_slice(&((0x7ff0 + self.below(16)) << 48 | self.below(2)).to_le_bytes()),
            6 => {
                b[..10].fill(0);
                b[self.below(10) as usize] = 0x40;
            }
            _ => {}
        }
        b
    }

    /// An FXSAVE image without pending exceptions.
    fn image(&mut self) -> Vec<u8> {
        let mut m = vec![0; 512];
        let masks = if self.below(2) == 0 { 0x3f } else { self.next() as u16 & 0x3f };
        let precision = [0, 2, 3, 3][self.below(4) as usize];
        let cw = 0x40 | masks | precision << 8 | (self.below(4) as u16) << 10;
        let sw = self.next() as u16 & 0x7f40 | self.next() as u16 & masks;
        let tags = match self.below(4) {
            0 => self.next() as u8,
            1 => 0xff,
            _ => !(1 << self.below(8)),
        };
        m[..2].copy_from_slice(&cw.to_le_bytes());
        m[2..4].copy_from_slice(&sw.to_le_bytes());
        m[4] = tags;
        m[24..28].copy_from_slice(&(0x1f80 | (self.below(4) as u32) << 13).to_le_bytes());
        for i in 0..8 {
            m[32 + 16 * i..42 + 16 * i].copy_from_slice(&self.f80());
        }
        for i in 0..16 {
            let b = self.memory();
            m[160 + 16 * i..176 + 16 * i].copy_from_slice(&b);
        }
        m
    }
}

fn decode(bytes: &[u8]) -> Option<Instruction> {
    let i = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
    (!i.is_invalid()).then_some(i)
}

/// Every x87 encoding with registers, and with memory at RSI; and every MMX one for some operands.
fn encodings() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut add = |bytes: &[u8]| {
        if let Some(i) = decode(bytes) {
            all.push(bytes[..i.len()].to_vec());
        }
    };
    for escape in 0xd8..=0xdf {
        for modrm in (0xc0..=0xffu8).chain((0..8).map(|r| r << 3 | 6)) {
            let environment =
                modrm < 0xc0 && matches!((escape, modrm >> 3), (0xd9, 4) | (0xd9, 6) | (0xdd, 4) | (0xdd, 6));
            if !environment {
                add(&[escape, modrm]);
            }
        }
    }
    add(&[0x9b]);
    let mmx = |i: &Instruction| {
        // No registers but those that the code sets and the caller gives away.
        let stray = |n| {
            let r = i.op_register(n);
            r.is_gpr() && !matches!(r.full_register(), Register::RAX | Register::RCX)
        };
        if (0..i.op_count()).any(stray) {
            return false;
        }
        (0..i.op_count()).any(|n| i.op_register(n).is_mm())
            || matches!(i.mnemonic(), M::Emms | M::Cvtpi2pd | M::Cvtpi2ps)
    };
    for prefix in [None, Some(0x66), Some(0xf2), Some(0xf3)] {
        for rex in [None, Some(0x48)] {
            for map in [&[][..], &[0x38], &[0x3a]] {
                for opcode in (0..=0xff).filter(|o| !map.is_empty() || !matches!(o, 0x38 | 0x3a)) {
                    for modrm in [0xc1, 0xd1, 0xda, 0xe1, 0xf1, 0xfd, 0x06, 0x0e, 0x3e] {
                        for imm in [1, 7, 35] {
                            let mut b: Vec<u8> = prefix.into_iter().chain(rex).collect();
                            b.push(0x0f);
                            b.extend(map);
                            b.extend([opcode, modrm, imm]);
                            if decode(&b).is_some_and(|i| mmx(&i)) {
                                add(&b);
                            }
                        }
                    }
                }
            }
        }
    }
    all.sort();
    all.dedup();
    all
}

/// What the code does to each vector, with the data at R15.
fn code(vectors: &[Vec<u8>], last: &[u8]) -> Vec<u8> {
    let mut c = Vec::new();
    for (n, insn) in vectors.iter().enumerate() {
        let at = |offset: usize| ((n * VECTOR + offset) as u32).to_le_bytes();
        let mut put = |b: &[u8], offset: usize| {
            c.extend(b);
            c.extend(at(offset));
        };
        put(&[0x49, 0x8d, 0xb7], MEMORY); // lea rsi, [r15 + ..]
        put(&[0x49, 0x8d, 0xbf], MEMORY + 16); // lea rdi
        put(&[0x49, 0x0f, 0xae, 0x8f], 0); // fxrstor64
        put(&[0x49, 0x8b, 0x87], RAX); // mov rax
        put(&[0x49, 0x89, 0xc1, 0x49, 0x89, 0xc2, 0x49, 0x8b, 0x8f], RAX); // mov r9, rax; mov r10, rax; mov rcx
        put(&[0x49, 0xff, 0xb7], FLAGS); // push
        c.push(0x9d); // popfq
        c.extend(insn);
        c.push(0x9c); // pushfq
        let mut put = |b: &[u8], offset: usize| {
            c.extend(b);
            c.extend(at(offset));
        };
        put(&[0x41, 0x8f, 0x87], FLAGS); // pop
        put(&[0x49, 0x89, 0x87], RAX); // mov [..], rax
        put(&[0x49, 0x01, 0x8f], RAX); // add [..], rcx
        put(&[0x49, 0x0f, 0xae, 0x87], AFTER); // fxsave64
        c.extend([0xdb, 0xe3]); // fninit
    }
    c.extend(last);
    c
}

/// Runs the code on this processor.
fn native(code: &[u8], data: &mut [u8]) {
    let len = code.len().next_multiple_of(1 << 16);
    // SAFETY: a fresh mapping, filled and called; the code writes nothing but `data`, its stack and scratch registers.
    unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let map = libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
        assert_ne!(map, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(code.as_ptr(), map.cast(), code.len());
        let mut mxcsr = 0u32;
        std::arch::asm!(
            "stmxcsr [{mx}]", "call {f}", "ldmxcsr [{mx}]", "cld",
            f = in(reg) map, mx = in(reg) &raw mut mxcsr,
            inout("r15") data.as_mut_ptr() => _,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
        libc::munmap(map, len);
    }
}

/// Runs the code in a guest, identity-mapped in 64-bit mode.
fn interpreted(code: &[u8], data: &mut [u8]) {
    let vm = Vm::new(Model::V3, 0);
    vm.write(0x1000, &0x2003u64.to_le_bytes());
    vm.write(0x2000, &0x3003u64.to_le_bytes());
    for i in 0..32u64 {
        vm.write(0x3000 + i * 8, &(i << 21 | 0x83).to_le_bytes());
    }
    vm.write(CODE_AT, code);
    vm.write(DATA_AT, data);
    let mut s = SystemV1::reset();
    let flags = access::PRESENT | access::S | access::G | access::WRITABLE | access::ACCESSED;
    for (segment, more) in [
        (&mut s.cs, access::CODE | access::L),
        (&mut s.ss, access::DB),
        (&mut s.ds, access::DB),
        (&mut s.es, access::DB),
    ] {
        (segment.base, segment.limit, segment.access) = (0, u32::MAX, flags | more);
    }
    s.cr0 = 0x8000_0033;
    s.cr3 = 0x1000;
    s.cr4 = 0x620;
    s.efer = 0x500;
    let mut gpr = [0; 16];
    gpr[4] = 0x1f_0000;
    gpr[15] = DATA_AT;
    let state = CpuState {
        regs: RegsV1 { gpr, rip: CODE_AT, rflags: 2 },
        system: s,
        msrs: MsrsV1::reset(true),
        debug: DebugV1::default(),
        fpu: FpuV1::default(),
        avx: Some(AvxV1::default()),
        events: EventsV1::default(),
        lapic: LapicV1::reset(0),
        tsc: TscV1::default(),
    };
    vm.load(&state.to_sections());
    assert_eq!(vm.run(), abi::EXIT_KICKED);
    vm.read(DATA_AT, data);
}

fn hex(b: &[u8]) -> String {
    b.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn x87_and_mmx_as_this_processor_does() {
    // What the manuals leave open (C1 after FFREE and FCMOVcc, quotient bits after a NaN, CVTPI2PS from memory) is
    // done as AMD does it.
    let id = std::arch::x86_64::__cpuid(0);
    let amd = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
    if !(amd && std::is_x86_feature_detected!("ssse3")) {
        println!("SKIPPED x87_and_mmx_as_this_processor_does: the processor is not AMD's, or lacks SSSE3");
        return;
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut vectors = Vec::new();
    let mut data = Vec::new();
    for insn in encodings() {
        for _ in 0..if insn[0] >= 0xd8 { 24 } else { 3 } {
            let mut v = random.image();
            v.resize(MEMORY, 0);
            for _ in 0..4 {
                v.extend(random.memory());
            }
            v.extend((0x202 | random.next() & 0x8d5).to_le_bytes());
            v.extend(random.next().to_le_bytes());
            v.resize(VECTOR, 0);
            data.extend(v);
            vectors.push(insn.clone());
        }
    }
    // An FXRSTOR needs 16 bytes of alignment.
    let mut host = vec![0u128; data.len() / 16];
    // SAFETY: plain bytes of the same length.
    let host = unsafe { std::slice::from_raw_parts_mut(host.as_mut_ptr().cast::<u8>(), data.len()) };
    host.copy_from_slice(&data);
    native(&code(&vectors, &[0xc3]), host);
    let mut guest = data.clone();
    // mov al, 0xfe; out 0x64, al; hlt
    interpreted(&code(&vectors, &[0xb0, 0xfe, 0xe6, 0x64, 0xf4]), &mut guest);
    let mut wrong = std::collections::BTreeMap::<String, (usize, String)>::new();
    for (n, insn) in vectors.iter().enumerate() {
        let (before, a, b) =
            (&data[n * VECTOR..][..VECTOR], &host[n * VECTOR..][..VECTOR], &guest[n * VECTOR..][..VECTOR]);
        let i = decode(insn).unwrap();
        // Of these silicon keeps its own last bits.
        let inexact = matches!(
            i.mnemonic(),
            M::F2xm1 | M::Fyl2x | M::Fyl2xp1 | M::Fpatan | M::Fptan | M::Fsin | M::Fcos | M::Fsincos
        );
        let mut differs = Vec::new();
        let ignored: u16 = if inexact { 0x0232 } else { 0 };
        let word = |v: &[u8], at: usize| u16::from_le_bytes([v[at], v[at + 1]]);
        if word(a, AFTER) != word(b, AFTER) {
            differs.push("cw");
        }
        if (word(a, AFTER + 2) ^ word(b, AFTER + 2)) & !ignored != 0 {
            differs.push("sw");
        }
        if a[AFTER + 4] != b[AFTER + 4] {
            differs.push("tags");
        }
        if a[AFTER + 24..AFTER + 28] != b[AFTER + 24..AFTER + 28] {
            differs.push("mxcsr");
        }
        let skip = if inexact { 64 } else { 32 };
        let from = if inexact && a[AFTER + 32..AFTER + 64] == b[AFTER + 32..AFTER + 64] { 32 } else { skip };
        if a[AFTER + from..AFTER + 160] != b[AFTER + from..AFTER + 160] {
            differs.push("st");
        }
        if a[AFTER + 160..AFTER + 416] != b[AFTER + 160..AFTER + 416] {
            differs.push("xmm");
        }
        if a[MEMORY..FLAGS] != b[MEMORY..FLAGS] {
            differs.push("memory");
        }
        if a[FLAGS..RAX + 8] != b[FLAGS..RAX + 8] {
            differs.push("flags or rax");
        }
        if differs.is_empty() {
            continue;
        }
        let show = |v: &[u8], at: usize| {
            format!(
                "cw {:04x} sw {:04x} tags {:02x} st0 {} st1 {} st7 {} mem {} flags {}",
                word(v, at),
                word(v, at + 2),
                v[at + 4],
                hex(&v[at + 32..at + 42]),
                hex(&v[at + 48..at + 58]),
                hex(&v[at + 144..at + 154]),
                hex(&v[MEMORY..MEMORY + 16]),
                hex(&v[FLAGS..FLAGS + 16])
            )
        };
        let entry = wrong.entry(format!("{:?} {differs:?}", i.code())).or_default();
        entry.0 += 1;
        entry.1 = format!(
            "{}\n  before {}\n  native {}\n  here   {}",
            hex(insn),
            show(before, 0),
            show(a, AFTER),
            show(b, AFTER)
        );
    }
    for (what, (times, example)) in &wrong {
        println!("{times} times {what}: {example}");
    }
    assert!(wrong.is_empty(), "{} kinds of difference in {} vectors", wrong.len(), vectors.len());
}
