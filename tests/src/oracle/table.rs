//! What the oracle draws from: every instruction form that the decoder finds in 64- and 32-bit code, by mnemonic, with the
//! class that says how a sequence may hold it. Built by decoding all opcodes once; the same on every host.

use iced_x86::{
    Code, CpuidFeature as F, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, Mnemonic as M,
    OpKind,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// Which instructions are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// General registers, branches, and what a program may ask of the machine.
    Integer,
    /// x87 and MMX, and what saves their state.
    X87,
    /// SSE to SSE4.2, AES, PCLMULQDQ, SHA, without VEX.
    Sse,
    /// VEX: AVX, AVX2, FMA, F16C, BMI.
    Avx,
    /// As Integer, in 32-bit code.
    Integer32,
    /// All others, in 32-bit code.
    Vector32,
}

impl Family {
    /// Of its code: 32 or 64.
    pub fn bits(self) -> u32 {
        if matches!(self, Family::Integer32 | Family::Vector32) { 32 } else { 64 }
    }
}

/// All families, by name.
pub const FAMILIES: [(&str, Family); 6] = [
    ("integer", Family::Integer),
    ("x87", Family::X87),
    ("sse", Family::Sse),
    ("avx", Family::Avx),
    ("integer32", Family::Integer32),
    ("vector32", Family::Vector32),
];

/// How a sequence may hold an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// As it is.
    Plain,
    /// With a forward target.
    Branch,
    /// Its result is the machine's, and is overwritten.
    Blind,
    /// Saves or restores x87 or vector state: at a fixed place, and what differs by vendor there is overwritten.
    Environment,
    /// Loads flags: TF, NT and AC are cleared beforehand.
    Flags,
    /// Looks at a descriptor: with selectors that no table has.
    Selector,
    /// Always faults or traps at CPL 3: rare, since it ends its sequence.
    Fatal,
    /// Last in its sequence, and compared with a tolerance.
    Approximate,
}

/// One form: everything of its encoding that is not free.
#[derive(Debug, Clone)]
pub struct Form {
    /// What the decoder calls it.
    pub code: Code,
    /// VEX, or a legacy encoding.
    pub vex: bool,
    /// 0 one byte, 1 0f, 2 0f38, 3 0f3a.
    pub map: u8,
    /// 0 none, 1 66, 2 f3, 3 f2, as VEX.pp.
    pub pp: u8,
    /// REX.W or VEX.W.
    pub w: bool,
    /// VEX.L.
    pub l: bool,
    /// VEX.vvvv names a register.
    pub vvvv: bool,
    /// The opcode byte.
    pub opcode: u8,
    /// ModRM.reg, where it is part of the opcode.
    pub reg: Option<u8>,
    /// ModRM.rm of a register form, where it is part of the opcode.
    pub rm: Option<u8>,
    /// The operand of ModRM is in memory.
    pub memory: bool,
    /// The index is a vector.
    pub vsib: bool,
}

/// A mnemonic with its forms.
#[derive(Debug)]
pub struct Entry {
    /// The mnemonic.
    pub mnemonic: M,
    /// How it is drawn.
    pub class: Class,
    /// Its forms.
    pub forms: Vec<Form>,
}

/// All there is to draw.
pub struct Table {
    /// By family, in the order of [`FAMILIES`].
    pub families: [Vec<Entry>; 6],
    /// Mnemonics of the model that are never drawn, and why.
    pub left_out: BTreeMap<String, &'static str>,
}

/// Features of the interpreter's own model that a program can use.
fn allowed(f: F) -> bool {
    use F as C;
    matches!(
        f,
        C::INTEL8086
            | C::INTEL186
            | C::INTEL286
            | C::INTEL386
            | C::INTEL486
            | C::X64
            | C::FPU
            | C::FPU287
            | C::FPU387
            | C::CMOV
            | C::CX8
            | C::CMPXCHG16B
            | C::CPUID
            | C::TSC
            | C::RDTSCP
            | C::RDPID
            | C::RDRAND
            | C::RDSEED
            | C::MSR
            | C::SEP
            | C::SYSCALL
            | C::MMX
            | C::FXSR
            | C::SSE
            | C::SSE2
            | C::SSE3
            | C::SSSE3
            | C::SSE4_1
            | C::SSE4_2
            | C::AES
            | C::PCLMULQDQ
            | C::SHA
            | C::POPCNT
            | C::AVX
            | C::AVX2
            | C::FMA
            | C::F16C
            | C::BMI1
            | C::BMI2
            | C::ADX
            | C::LZCNT
            | C::MOVBE
            | C::FSGSBASE
            | C::INVPCID
            | C::SMAP
            | C::CLFSH
            | C::CLFLUSHOPT
            | C::PREFETCHW
            | C::PAUSE
            | C::MULTIBYTENOP
            | C::XSAVE
            | C::XSAVEOPT
            | C::XSAVEC
            | C::CET_IBT
            | C::RDPMC
    )
}

/// Why an instruction of the model is never drawn.
fn refused(m: M, bits: u32) -> Option<&'static str> {
    Some(match m {
        M::Iretd if bits == 32 => return None,
        M::Syscall | M::Sysenter | M::Sysexit | M::Sysexitq | M::Sysret | M::Sysretq => {
            "calls the host's kernel, or is undefined by vendor in 64-bit code"
        }
        M::Sldt | M::Str | M::Smsw | M::Sgdt | M::Sidt => "the host's kernel emulates it under UMIP",
        M::Lfs | M::Lgs | M::Lss => "loads a segment from the host's tables",
        M::Rdpmc => "counts for the host",
        M::Fdisi | M::Feni | M::Fndisi | M::Fneni | M::Fnsetpm | M::Fsetpm | M::Frstpm => "NOPs of the 8087",
        // Under SVM and its like the instruction pointer reported is the hypervisor's choice.
        M::Int1 => "virtualised processors disagree whether it has passed",
        M::Ud0 => "its length differs by vendor (`ud0-length`)",
        M::Reservednop => "defined by vendor",
        M::Iret | M::Iretd => "IRETQ stands for it, in 32-bit code IRETD",
        M::Les | M::Lds => "loads a segment from the host's tables",
        M::Rsm => "system management mode is not in the model",
        _ => return None,
    })
}

fn class(i: &Instruction) -> Class {
    match i.mnemonic() {
        M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdpid | M::Xgetbv | M::Rdrand | M::Rdseed => Class::Blind,
        M::Fnstenv
        | M::Fldenv
        | M::Fnsave
        | M::Frstor
        | M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsavec
        | M::Xsavec64
        | M::Xrstor
        | M::Xrstor64 => Class::Environment,
        M::Popf | M::Popfd | M::Popfq => Class::Flags,
        M::Lar | M::Lsl | M::Verr | M::Verw => Class::Selector,
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::Fpatan | M::F2xm1 | M::Fyl2x | M::Fyl2xp1 => {
            Class::Approximate
        }
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss => Class::Approximate,
        M::Vrcpps | M::Vrcpss | M::Vrsqrtps | M::Vrsqrtss => Class::Approximate,
        // Not as often as it might be: a trap that most flags do not give.
        M::Into => Class::Plain,
        M::Int | M::Int3 | M::Ud1 | M::Ud2 => Class::Fatal,
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd | M::Cli | M::Sti => {
            Class::Fatal
        }
        _ if i.is_privileged() => Class::Fatal,
        _ if i.flow_control() != FlowControl::Next => Class::Branch,
        _ => Class::Plain,
    }
}

fn family(i: &Instruction, bits: u32) -> Family {
    let has = |list: &[F]| i.cpuid_features().iter().any(|f| list.contains(f));
    let state = class(i) == Class::Environment;
    let vectors = i.encoding() == EncodingKind::VEX || state;
    if bits == 32 {
        let others =
            [F::FPU, F::FPU287, F::FPU387, F::MMX, F::SSE, F::SSE2, F::SSE3, F::SSSE3, F::SSE4_1, F::SSE4_2];
        let others = vectors || has(&others) || has(&[F::AES, F::PCLMULQDQ, F::SHA]);
        if others { Family::Vector32 } else { Family::Integer32 }
    } else if i.encoding() == EncodingKind::VEX {
        Family::Avx
    } else if has(&[F::FPU, F::FPU287, F::FPU387, F::MMX]) || state {
        Family::X87
    } else if has(&[F::SSE, F::SSE2, F::SSE3, F::SSSE3, F::SSE4_1, F::SSE4_2, F::AES, F::PCLMULQDQ, F::SHA]) {
        Family::Sse
    } else {
        Family::Integer
    }
}

/// Decodes one instruction.
pub fn decode(bytes: &[u8], bits: u32) -> Instruction {
    Decoder::with_ip(bits, bytes, super::CODE, DecoderOptions::NONE).decode()
}

/// The bytes in front of ModRM.
pub fn head(f: &Form, rex: u8, vvvv: u8, out: &mut Vec<u8>) {
    if f.vex {
        // R, X, B and vvvv are stored inverted.
        out.extend([0xc4, ((!rex & 7) << 5) | f.map]);
        out.push(u8::from(f.w) << 7 | (!vvvv & 15) << 3 | u8::from(f.l) << 2 | f.pp);
    } else {
        match f.pp {
            1 => out.push(0x66),
            2 => out.push(0xf3),
            3 => out.push(0xf2),
            _ => {}
        }
        let rex = rex & 7 | u8::from(f.w) << 3;
        if rex != 0 {
            out.push(0x40 | rex);
        }
        out.extend_from_slice(match f.map {
            0 => &[][..],
            1 => &[0x0f],
            2 => &[0x0f, 0x38],
            _ => &[0x0f, 0x3a],
        });
    }
    out.push(f.opcode);
}

fn probe(f: &Form, reg: u8, rm: u8, bits: u32) -> Option<Instruction> {
    let mut bytes = Vec::with_capacity(16);
    head(f, 0, if f.vvvv { 2 } else { 0 }, &mut bytes);
    if f.memory {
        bytes.extend([0x44 | reg << 3, 0x08, 0]);
    } else {
        bytes.push(0xc0 | reg << 3 | rm);
    }
    bytes.extend([0x11; 8]);
    let i = decode(&bytes, bits);
    if i.is_invalid() {
        return None;
    }
    let offset = !f.vex && f.map == 0 && matches!(f.opcode, 0xa0..=0xa3);
    let by_modrm = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) && !offset;
    (!f.memory || by_modrm).then_some(i)
}

fn selectable(i: &Instruction, bits: u32, left_out: &mut BTreeMap<String, &'static str>) -> bool {
    let m = i.mnemonic();
    if !i.cpuid_features().iter().all(|f| allowed(*f)) {
        return false;
    }
    if let Some(why) = refused(m, bits) {
        left_out.insert(format!("{m:?}"), why);
        return false;
    }
    // Loads of segment registers; BSWAP and double shifts of 16 bits, undefined by the manual.
    let segment =
        i.op_count() > 0 && i.op0_kind() == OpKind::Register && i.op0_register().is_segment_register();
    let open = m == M::Bswap && i.op0_register().size() == 2
        || matches!(m, M::Shld | M::Shrd) && (i.op0_register().size() == 2 || i.memory_size().size() == 2);
    // Vendors differ: `branch-16` and `far-branch-64` in their table.
    let branch = i.flow_control() != FlowControl::Next && {
        let far64 = matches!(i.code(), Code::Jmp_m1664 | Code::Call_m1664);
        let narrow = matches!(
            i.code(),
            Code::Jmp_rm16
                | Code::Call_rm16
                | Code::Jmp_m1616
                | Code::Call_m1616
                | Code::Retnw
                | Code::Retnw_imm16
                | Code::Retfw
                | Code::Retfw_imm16
                | Code::Jmp_ptr1616
                | Code::Call_ptr1616
        ) || bits == 64 && matches!(i.code(), Code::Retfd | Code::Retfd_imm16)
            || i.op0_kind() == OpKind::NearBranch16;
        far64 || narrow
    };
    let loads_segment = segment && m != M::Push;
    !loads_segment && !open && !branch
}

fn build() -> Table {
    let mut left_out = BTreeMap::new();
    let mut families: [Vec<Entry>; 6] = Default::default();
    for bits in [64, 32] {
        forms(bits, &mut families, &mut left_out);
    }
    // An instruction that is drawn in one form is not left out.
    let drawn: BTreeSet<String> = families.iter().flatten().map(|e| format!("{:?}", e.mnemonic)).collect();
    left_out.retain(|m, _| !drawn.contains(m));
    Table { families, left_out }
}

/// Adds every form that the decoder finds in code of that many bits.
fn forms(bits: u32, families: &mut [Vec<Entry>; 6], left_out: &mut BTreeMap<String, &'static str>) {
    let mut forms: BTreeMap<(Family, u32), (M, Class, Vec<Form>)> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let prefixes = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];
    let mut add = |f: Form, i: &Instruction, left_out: &mut BTreeMap<String, &'static str>| {
        if !selectable(i, bits, left_out)
            || !seen.insert((f.code as u32, f.memory, f.reg, f.rm, f.opcode, f.vvvv))
        {
            return;
        }
        let entry = forms.entry((family(i, bits), i.mnemonic() as u32)).or_insert((
            i.mnemonic(),
            class(i),
            Vec::new(),
        ));
        entry.2.push(f);
    };
    for shape in 0..4 * 2 * 4 * 2 * 2u32 {
        let (map, vex, pp, w, l) = (
            (shape & 3) as u8,
            shape >> 2 & 1 != 0,
            (shape >> 3 & 3) as u8,
            shape >> 5 & 1 != 0,
            shape >> 6 & 1 != 0,
        );
        if vex && map == 0 || !vex && (l || w && bits == 32) {
            continue;
        }
        for opcode in 0..=255u8 {
            let is_prefix = prefixes.contains(&opcode)
                || matches!(opcode, 0x0f | 0xc4 | 0xc5)
                || bits == 64 && matches!(opcode, 0x40..=0x4f | 0x62);
            if !vex && map == 0 && is_prefix || !vex && map == 1 && matches!(opcode, 0x38 | 0x3a) {
                continue;
            }
            for (memory, vvvv) in [(false, vex), (true, vex), (false, false), (true, false)] {
                let base = Form {
                    code: Code::INVALID,
                    vex,
                    map,
                    pp,
                    w,
                    l,
                    vvvv,
                    opcode,
                    reg: None,
                    rm: None,
                    memory,
                    vsib: false,
                };
                let rms: u8 = if memory { 1 } else { 8 };
                let all: Vec<Option<Instruction>> = (0..8)
                    .flat_map(|reg| (0..rms).map(move |rm| (reg, rm)))
                    .map(|(reg, rm)| probe(&base, reg, rm, bits))
                    .collect();
                let same = |part: &[Option<Instruction>]| {
                    let first = part[0].map(|i| i.code());
                    part.iter().all(|i| i.map(|i| i.code()) == first)
                };
                let form = |i: &Instruction, reg, rm| Form {
                    code: i.code(),
                    reg,
                    rm,
                    vsib: i.is_vsib(),
                    ..base.clone()
                };
                if same(&all) {
                    if let Some(i) = &all[0] {
                        add(form(i, None, None), i, left_out);
                    }
                    continue;
                }
                for reg in 0..8u8 {
                    let row = &all[usize::from(reg * rms)..usize::from((reg + 1) * rms)];
                    if same(row) {
                        if let Some(i) = &row[0] {
                            add(form(i, Some(reg), None), i, left_out);
                        }
                        continue;
                    }
                    for (rm, i) in row.iter().enumerate() {
                        if let Some(i) = i {
                            add(form(i, Some(reg), Some(rm as u8)), i, left_out);
                        }
                    }
                }
            }
        }
    }
    for ((family, _), (mnemonic, class, forms)) in forms {
        families[family as usize].push(Entry { mnemonic, class, forms });
    }
}

/// The table.
pub fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(build)
}
