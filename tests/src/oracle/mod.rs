//! The oracle: random instruction sequences on the processor ([`native`]) and on the interpreter ([`interp`]), compared.
//!
//! ```text
//!  seed ─► generate (table) ─► code, state ─┬─► native: the processor, in this process ─┐
//!                                           └─► interp: a VM of the interpreter ────────┴─► differences (undefined)
//! ```
//! `tests/oracle.rs` runs a short slice and replays `vectors/oracle.txt`, which holds what a processor answered;
//! `godwit-fuzz` runs long slices and records. A seed is all that names a case: [`case`] makes it again anywhere.
//! What is not compared is in [`undefined`], and what is never drawn in [`table`], each with its reason. Where vendors
//! differ, by the table in [`godwit_interp::vendor`], an Intel processor is held to what [`intel`] makes of a sequence.

pub mod generate;
pub mod intel;
pub mod interp;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod native;
pub mod table;
pub mod undefined;

use generate::{Family, Random};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use std::fmt::Write as _;
use undefined::Tolerance;

/// Where sequences stand: at no power of two, which registers often hold.
pub const CODE: u64 = 0x1234_0000;
/// The buffer they may touch, the stack in its upper half.
pub const DATA: u64 = 0x1235_0000;
/// Its bytes.
pub const DATA_LEN: usize = 0x2000;

/// What follows every sequence: JMP [0x23456110], which leads out natively.
const WAY_OUT: [u8; 7] = [0xff, 0x24, 0x25, 0x10, 0x61, 0x45, 0x23];

/// What follows a sequence of 32-bit code: JMP FAR [0x234561a8], which leads to [`THROUGH`] in 64-bit code.
const WAY_OUT_32: [u8; 6] = [0xff, 0x2d, 0xa8, 0x61, 0x45, 0x23];
/// Where the code's page has [`WAY_OUT`] for those.
const THROUGH: u64 = CODE + 0xff0;

/// Registers and memory, before or after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// 64, or 32 for compatibility mode: there flat segments, and in FS and GS the buffer's ([`generate::FS`]).
    pub bits: u32,
    /// RAX, RCX, RDX, RBX, RSP, ... as instructions number them.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
    /// x87 control word.
    pub fcw: u16,
    /// x87 status word.
    pub fsw: u16,
    /// x87 tag word, abridged.
    pub ftw: u8,
    /// ST0 to ST7: sign and exponent, significand.
    pub st: [(u16, u64); 8],
    /// MXCSR.
    pub mxcsr: u32,
    /// YMM registers, low quarter first.
    pub ymm: [[u64; 4]; 16],
    /// The buffer.
    pub memory: Vec<u8>,
}

impl State {
    /// All zero, but control words as after reset.
    #[allow(clippy::new_without_default, reason = "the state is not a neutral one")]
    pub fn new() -> State {
        State {
            bits: 64,
            gpr: [0; 16],
            rip: CODE,
            rflags: 0x202,
            fs_base: 0,
            gs_base: 0,
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            st: [(0, 0); 8],
            mxcsr: 0x1f80,
            ymm: [[0; 4]; 16],
            memory: vec![0; DATA_LEN],
        }
    }
}

/// How a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exception's vector; none at the sequence's end.
    pub fault: Option<u32>,
    /// Its error code, 0 if it has none.
    pub error: u32,
    /// The address of a page fault.
    pub address: u64,
    /// What was there then.
    pub state: State,
}

/// An error code as it is compared: whether a page outside of the oracle's own is present differs between a process
/// and the interpreter's bare machine.
fn error_code(vector: u32, code: u32, address: u64) -> u32 {
    let ours = (CODE..CODE + 0x1000).contains(&address) || (DATA..DATA + DATA_LEN as u64).contains(&address);
    if vector == 14 && !ours { code & !1 } else { code }
}

/// The sequence and the state of a seed.
pub fn case(seed: u64, family: Family) -> (Vec<Vec<u8>>, State) {
    let mut r = Random::new(seed ^ (family as u64) << 60);
    let code = generate::sequence(&mut r, family);
    (code, generate::state(&mut r, family.bits()))
}

/// Every instruction of a sequence, with where it stands.
pub fn instructions(code: &[u8], bits: u32) -> Vec<Instruction> {
    let mut decoder = Decoder::with_ip(bits, code, CODE, DecoderOptions::NONE);
    let mut out = Vec::with_capacity(48);
    while decoder.can_decode() {
        out.push(decoder.decode());
    }
    out
}

/// Flags compared at a sequence's end: the status flags and DF without those left undefined. After a fault, those
/// that any instruction leaves undefined go too.
fn compared_flags(code: &[u8], bits: u32, faulted: bool) -> u64 {
    let (end, ever) = undefined::flags(code, bits);
    0xcd5 & !if faulted { ever } else { end }
}

/// The last instruction's tolerance.
fn tolerance(code: &[Vec<u8>], bits: u32) -> Tolerance {
    code.last().map_or(Tolerance::None, |l| undefined::tolerance(&table::decode(l, bits)))
}

/// The page of a sequence, with what follows it.
fn page(code: &[u8], bits: u32) -> [u8; 0x1000] {
    let mut page = [0xcc; 0x1000];
    page[..code.len()].copy_from_slice(code);
    let out: &[u8] = if bits == 32 { &WAY_OUT_32 } else { &WAY_OUT };
    page[code.len()..code.len() + out.len()].copy_from_slice(out);
    if bits == 32 {
        page[(THROUGH - CODE) as usize..][..WAY_OUT.len()].copy_from_slice(&WAY_OUT);
    }
    page
}

/// C1 of the x87 status word.
const C1: u16 = 1 << 9;

/// True if nothing differs that is compared.
pub fn agree(code: &[Vec<u8>], native: &Outcome, interp: &Outcome) -> bool {
    // Flags need a look at the code only if they differ.
    let (a, b) = (&native.state, &interp.state);
    let flags = (a.rflags ^ b.rflags) & 0xcd5;
    let same = native.fault == interp.fault
        && native.error == interp.error
        && native.address == interp.address
        && a.rip == b.rip
        && a.gpr == b.gpr
        && a.ymm == b.ymm
        && a.st == b.st
        && (a.mxcsr, a.fcw, a.fsw, a.ftw) == (b.mxcsr, b.fcw, b.fsw, b.ftw)
        && (a.fs_base, a.gs_base) == (b.fs_base, b.gs_base)
        && flags == 0
        && a.memory == b.memory;
    same || beyond_the_model(code, native, interp) || differences(code, native, interp).is_empty()
}

/// True if the processor took a bit of MXCSR that the models do not have, where the interpreter raises #GP: AMD's MM
/// (`mxcsr-mm` in the vendors' table).
fn beyond_the_model(code: &[Vec<u8>], native: &Outcome, interp: &Outcome) -> bool {
    use iced_x86::Mnemonic as M;
    let loads = |i: &Instruction| {
        matches!(i.mnemonic(), M::Ldmxcsr | M::Vldmxcsr | M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64)
    };
    interp.fault == Some(13)
        && (native.fault, native.state.rip) != (interp.fault, interp.state.rip)
        && instructions(&code.concat(), native.state.bits)
            .iter()
            .any(|i| i.ip() == interp.state.rip && loads(i))
}

/// Differences in words, none if they agree.
pub fn differences(code: &[Vec<u8>], native: &Outcome, interp: &Outcome) -> String {
    let mut out = String::new();
    let (a, b) = (&native.state, &interp.state);
    let mask = compared_flags(&code.concat(), a.bits, native.fault.is_some());
    let tolerance = tolerance(code, a.bits);
    let mut say = |what: &str, x: u128, y: u128| {
        if x != y {
            let _ = writeln!(out, "  {what}: native {x:x}, interpreter {y:x}");
        }
    };
    say("fault", native.fault.map_or(999, u128::from), interp.fault.map_or(999, u128::from));
    say("error code", native.error.into(), interp.error.into());
    say("fault address", native.address.into(), interp.address.into());
    say("rip", a.rip.into(), b.rip.into());
    for n in 0..16 {
        say(&format!("gpr {n}"), a.gpr[n].into(), b.gpr[n].into());
        for k in 0..4 {
            let (x, y) = (a.ymm[n][k], b.ymm[n][k]);
            if tolerance != Tolerance::Approximation || !undefined::close_singles(x, y) {
                say(&format!("ymm {n}.{k}"), x.into(), y.into());
            }
        }
    }
    say("rflags", (a.rflags & mask).into(), (b.rflags & mask).into());
    say("fs base", a.fs_base.into(), b.fs_base.into());
    say("gs base", a.gs_base.into(), b.gs_base.into());
    say("mxcsr", a.mxcsr.into(), b.mxcsr.into());
    say("fcw", a.fcw.into(), b.fcw.into());
    let sw = if tolerance == Tolerance::Ulp { !C1 } else { !0 };
    say("fsw", (a.fsw & sw).into(), (b.fsw & sw).into());
    say("ftw", a.ftw.into(), b.ftw.into());
    for n in 0..8 {
        if tolerance == Tolerance::Ulp && n < 2 && undefined::close(a.st[n], b.st[n]) {
            continue;
        }
        say(&format!("st {n} exponent"), a.st[n].0.into(), b.st[n].0.into());
        say(&format!("st {n} significand"), a.st[n].1.into(), b.st[n].1.into());
    }
    if let Some(at) = (0..DATA_LEN).find(|n| a.memory[*n] != b.memory[*n]) {
        say(&format!("memory at {at:#x}"), a.memory[at].into(), b.memory[at].into());
    }
    if !out.is_empty() {
        let _ = writeln!(out, "  ended by {:?}, error code {:#x}", native.fault, native.error);
    }
    out
}

/// 64 bits of all that is compared exactly (FNV-1a).
pub fn digest(code: &[Vec<u8>], outcome: &Outcome) -> u64 {
    let s = &outcome.state;
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |bytes: &[u8]| {
        for b in bytes {
            hash = (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
        }
    };
    let tolerance = tolerance(code, s.bits);
    eat(&outcome.fault.unwrap_or(999).to_le_bytes());
    eat(&outcome.error.to_le_bytes());
    eat(&outcome.address.to_le_bytes());
    eat(&s.rip.to_le_bytes());
    eat(&(s.rflags & compared_flags(&code.concat(), s.bits, outcome.fault.is_some())).to_le_bytes());
    s.gpr.iter().for_each(|g| eat(&g.to_le_bytes()));
    if tolerance != Tolerance::Approximation {
        s.ymm.iter().flatten().for_each(|g| eat(&g.to_le_bytes()));
    }
    [s.fs_base, s.gs_base].iter().for_each(|g| eat(&g.to_le_bytes()));
    eat(&s.mxcsr.to_le_bytes());
    let sw = if tolerance == Tolerance::Ulp { !C1 } else { !0 };
    for w in [s.fcw, s.fsw & sw, s.ftw.into()] {
        eat(&w.to_le_bytes());
    }
    for (exponent, significand) in &s.st[if tolerance == Tolerance::Ulp { 2 } else { 0 }..] {
        eat(&exponent.to_le_bytes());
        eat(&significand.to_le_bytes());
    }
    eat(&s.memory);
    hash
}

/// A sequence for people: bytes and what the decoder calls them.
pub fn listing(code: &[Vec<u8>], bits: u32) -> String {
    let mut out = String::new();
    let bytes = code.concat();
    for i in instructions(&bytes, bits) {
        let at = (i.ip() - CODE) as usize;
        if i.mnemonic() != iced_x86::Mnemonic::Nop || i.len() > 1 {
            let hex: String = bytes[at..at + i.len()].iter().map(|b| format!("{b:02x}")).collect();
            let _ = writeln!(out, "  {at:3x} {hex:30} {:?}", i.code());
        }
    }
    out
}

/// Replaces steps by NOPs as long as `differ` holds: offsets, and so branches, stay as they are.
pub fn minimise(mut code: Vec<Vec<u8>>, mut differ: impl FnMut(&[Vec<u8>]) -> bool) -> Vec<Vec<u8>> {
    for n in 0..code.len() {
        let step = std::mem::take(&mut code[n]);
        code[n] = vec![0x90; step.len()];
        if !differ(&code) {
            code[n] = step;
        }
    }
    code
}
