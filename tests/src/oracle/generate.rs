//! Random instruction sequences and the states they start from, both from one seed. [`super`] runs them.
//!
//! Bytes are drawn opcode map by opcode map and kept if the decoder takes them for an instruction of the model that a
//! program may run here; so every form of every instruction comes up without a table of forms.

use super::{DATA, DATA_LEN, State};
use iced_x86::{
    CpuidFeature as F, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic as M, OpKind, Register,
    RflagsBits,
};

/// Xorshift64*: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Self {
        let mut r = Random((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1);
        for _ in 0..8 {
            r.next();
        }
        r
    }

    /// 64 random bits.
    #[allow(clippy::should_implement_trait, reason = "not an iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

/// Which instructions are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// General registers.
    Integer,
    /// x87 and MMX.
    X87,
    /// SSE to SSE4.2, AES, PCLMULQDQ, without VEX.
    Sse,
    /// VEX: AVX, AVX2, FMA, F16C, BMI.
    Avx,
}

/// All families, by name.
pub const FAMILIES: [(&str, Family); 4] =
    [("integer", Family::Integer), ("x87", Family::X87), ("sse", Family::Sse), ("avx", Family::Avx)];

/// Features of x86-64-v3 that the sequences use; SHA and AES belong to the host model.
fn allowed(f: F) -> bool {
    matches!(
        f,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::MMX
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::POPCNT
            | F::AVX
            | F::AVX2
            | F::FMA
            | F::F16C
            | F::BMI1
            | F::BMI2
            | F::LZCNT
            | F::MOVBE
            | F::MULTIBYTENOP
    )
}

/// Why an instruction of the model is never drawn: its result is the machine's, not the program's, or the
/// manuals leave it open.
pub fn left_out(m: M) -> Option<&'static str> {
    Some(match m {
        M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Rdpid | M::Xgetbv => "tells of the machine",
        M::Sldt | M::Str | M::Smsw | M::Sgdt | M::Sidt | M::Lar | M::Lsl | M::Verr | M::Verw => {
            "reads the system's tables"
        }
        M::Lfs | M::Lgs | M::Lss => "loads a segment",
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd | M::Cli | M::Sti => {
            "asks for IOPL"
        }
        M::Popf | M::Popfq | M::Popfd => "sets TF and AC",
        M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Fnstenv
        | M::Fstenv
        | M::Fldenv
        | M::Fnsave
        | M::Fsave
        | M::Frstor => "stores FIP and FDP, which differ by vendor",
        M::Fsin
        | M::Fcos
        | M::Fsincos
        | M::Fptan
        | M::Fpatan
        | M::F2xm1
        | M::Fyl2x
        | M::Fyl2xp1
        | M::Fprem
        | M::Fprem1 => {
            "x87: transcendentals are not bit-exact between processors; num's own tests judge them"
        }
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss | M::Vrcpps | M::Vrcpss | M::Vrsqrtps | M::Vrsqrtss => {
            "approximations differ by vendor (SDM vol. 2, RCPPS)"
        }
        M::Fdisi | M::Feni | M::Fndisi | M::Fneni | M::Fnsetpm | M::Fsetpm | M::Frstpm => "NOPs of the 8087",
        M::Ud0 | M::Ud1 | M::Ud2 => "fault by design",
        M::Reservednop => "defined by vendor",
        _ => return None,
    })
}

/// Status flags in RFLAGS' own bits.
fn bits(set: u32) -> u64 {
    [
        (RflagsBits::OF, 11),
        (RflagsBits::SF, 7),
        (RflagsBits::ZF, 6),
        (RflagsBits::AF, 4),
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
    ]
    .into_iter()
    .filter(|(bit, _)| set & bit != 0)
    .fold(0, |all, (_, shift)| all | 1 << shift)
}

/// Flags that an instruction leaves undefined (SDM vol. 1, appendix A; APM vol. 3, appendix E).
pub fn undefined(i: &Instruction) -> u64 {
    let by_count = bits(RflagsBits::OF | RflagsBits::AF | RflagsBits::CF);
    match i.mnemonic() {
        // OF after a count other than 1, AF always, CF beyond the operand's width: by count, so never relied on.
        M::Shl | M::Sal | M::Shr | M::Sar => by_count,
        M::Shld | M::Shrd => by_count,
        M::Rol | M::Ror | M::Rcl | M::Rcr => bits(RflagsBits::OF),
        // Every flag but ZF.
        M::Bsf | M::Bsr => bits(NOT_ZF),
        _ => bits(i.rflags_undefined()),
    }
}

const NOT_ZF: u32 = RflagsBits::OF | RflagsBits::SF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// Flags undefined after `i` if `before` were undefined before it.
pub fn undefined_after(before: u64, i: &Instruction) -> u64 {
    let keeps = matches!(
        i.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    ) || i.has_rep_prefix()
        || i.has_repne_prefix();
    let defined = if keeps { 0 } else { bits(i.rflags_written() | i.rflags_cleared() | i.rflags_set()) };
    before & !defined | undefined(i)
}

fn usable(i: &Instruction, family: Family, unsure: u64) -> bool {
    if i.is_invalid()
        || i.flow_control() != FlowControl::Next
        || i.is_privileged()
        || left_out(i.mnemonic()).is_some()
        || !i.cpuid_features().iter().all(|f| allowed(*f))
        || i.segment_prefix() != Register::None
        || bits(i.rflags_read()) & unsure != 0
        || unsure != 0 && matches!(i.mnemonic(), M::Pushf | M::Pushfd | M::Pushfq | M::Lahf)
    {
        return false;
    }
    let segment =
        (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_segment_register());
    // Undefined results: BSWAP of 16 bits, double shifts of 16 bits by more.
    let open = i.mnemonic() == M::Bswap && i.op0_register().size() == 2
        || matches!(i.mnemonic(), M::Shld | M::Shrd)
            && (i.op0_register().size() == 2 || i.memory_size().size() == 2);
    if segment || open || i.mnemonic() == M::Enter {
        return false;
    }
    let has = |list: &[F]| i.cpuid_features().iter().any(|f| list.contains(f));
    let class = if i.encoding() == iced_x86::EncodingKind::VEX {
        Family::Avx
    } else if has(&[F::FPU, F::FPU287, F::FPU387, F::MMX]) {
        Family::X87
    } else if has(&[F::SSE, F::SSE2, F::SSE3, F::SSSE3, F::SSE4_1, F::SSE4_2]) {
        Family::Sse
    } else {
        Family::Integer
    };
    class == family
}

fn draw(r: &mut Random, family: Family) -> Vec<u8> {
    let mut b = Vec::new();
    if family == Family::Avx {
        let map = 1 + r.below(3) as u8;
        // Registers inverted; W, vvvv, L and pp at will.
        b.extend([0xc4, (r.next() as u8 & 0xe0) | map, r.next() as u8]);
        if r.below(2) == 0 {
            b[2] |= 0x78;
        }
        b.push(r.next() as u8);
    } else {
        if r.below(3) == 0 {
            b.push(0x66);
        }
        if r.below(3) == 0 {
            b.push(if r.below(2) == 0 { 0xf2 } else { 0xf3 });
        }
        if family == Family::Integer && r.below(16) == 0 {
            b.push(0xf0);
        }
        if r.below(2) == 0 {
            b.push(0x40 | r.next() as u8 & 0xf);
        }
        match (family, r.below(4)) {
            (Family::X87, 0..3) => b.push(0xd8 + r.below(8) as u8),
            (Family::Integer, 0..2) => b.push(r.next() as u8),
            (_, 2) => b.extend([0x0f, 0x38, r.next() as u8]),
            (Family::Sse, 3) => b.extend([0x0f, 0x3a, r.next() as u8]),
            _ => b.extend([0x0f, r.next() as u8]),
        }
    }
    // ModRM: half registers, half memory at a pointer register with a displacement.
    let reg = (r.next() as u8 & 7) << 3;
    if r.below(2) == 0 {
        b.push(0xc0 | reg | r.next() as u8 & 7);
        b.extend(r.next().to_le_bytes());
    } else {
        // RBX, RBP, RSI, RDI point into the buffer; multiples of 16 often suit aligned forms.
        let base = [3, 5, 6, 7][r.below(4) as usize];
        let disp = r.next() as u8 & if r.below(4) == 0 { 0xff } else { 0xf0 };
        b.extend([0x40 | reg | base, disp]);
        b.extend(r.next().to_le_bytes());
    }
    b.extend(r.next().to_le_bytes());
    b
}

/// Decodes one instruction.
pub fn decode(bytes: &[u8]) -> Instruction {
    Decoder::with_ip(64, bytes, super::CODE, DecoderOptions::NONE).decode()
}

/// A sequence of 1 to 12 instructions.
pub fn sequence(r: &mut Random, family: Family) -> Vec<Vec<u8>> {
    let want = 1 + r.below(12) as usize;
    let (mut out, mut unsure) = (Vec::new(), 0);
    while out.len() < want {
        // Other families may set the stage.
        let from = if r.below(8) == 0 { Family::Integer } else { family };
        let mut bytes = draw(r, from);
        let i = decode(&bytes);
        if !usable(&i, from, unsure) {
            continue;
        }
        unsure = undefined_after(unsure, &i);
        bytes.truncate(i.len());
        out.push(bytes);
    }
    out
}

fn number(r: &mut Random) -> u64 {
    const DOUBLES: [f64; 8] = [0.0, -0.0, 1.0, -1.5, f64::INFINITY, 1e300, 1e-310, 3.7e5];
    const SINGLES: [f32; 8] = [0.0, -0.0, 1.0, -1.5, f32::INFINITY, 1e38, 1e-40, 7.25];
    match r.below(6) {
        0 => DOUBLES[r.below(8) as usize].to_bits(),
        1 => {
            let pair = [SINGLES[r.below(8) as usize], SINGLES[r.below(8) as usize]];
            u64::from(pair[0].to_bits()) << 32 | u64::from(pair[1].to_bits())
        }
        2 => 1u64.wrapping_shl(r.next() as u32).wrapping_sub(r.below(2)),
        3 => r.below(256),
        _ => r.next(),
    }
}

/// A state to start from.
pub fn state(r: &mut Random) -> State {
    let mut s = State::new();
    for g in &mut s.gpr {
        *g = number(r);
    }
    for pointer in [3, 5, 6, 7] {
        s.gpr[pointer] = DATA + 0x400 + r.below(0x180) * 16;
    }
    s.gpr[4] = DATA + DATA_LEN as u64 / 2;
    if r.below(2) == 0 {
        s.gpr[1] = r.below(70);
    }
    s.rflags = 0x202 | r.next() & 0x8d5 | if r.below(8) == 0 { 0x400 } else { 0 };
    for x in &mut s.ymm {
        *x = [0; 4].map(|_| number(r));
    }
    s.mxcsr = 0x1f80 | (r.next() as u32 & 0xe07f) & if r.below(2) == 0 { 0 } else { !0 };
    if r.below(8) == 0 {
        s.mxcsr &= !(r.next() as u32 & 0x1f80) & !0x3f;
    }
    let depth = r.below(9);
    s.fsw = ((8 - depth) as u16 & 7) << 11;
    s.ftw = (0xffu32 << (8 - depth)) as u8;
    s.fcw = 0x7f | (r.next() as u16 & 0xf00);
    if s.fcw & 0x300 == 0x100 {
        s.fcw |= 0x300;
    }
    for st in &mut s.st {
        let exponent = [0x3fff, 0xbffe, 0x4004, 0x7ffe, 1, 0x3fd0][r.below(6) as usize];
        *st = (exponent, r.next() | 1 << 63);
        if r.below(8) == 0 {
            *st =
                [(0, 0), (0x8000, 0), (0x7fff, 1 << 63), (0x7fff, 3 << 62), (0, 12345)][r.below(5) as usize];
        }
    }
    for chunk in s.memory.chunks_exact_mut(8) {
        chunk.copy_from_slice(&number(r).to_le_bytes());
    }
    s
}
