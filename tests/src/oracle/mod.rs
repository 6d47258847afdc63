//! The oracle: random instruction sequences on the processor ([`native`]) and on the interpreter ([`interp`]), compared.
//!
//! `tests/oracle.rs` runs a short slice and replays `vectors/oracle.txt`, which holds what a processor answered;
//! `godwit-fuzz` runs long slices and records. A seed is all that names a case: [`case`] makes it again anywhere.
//! Flags that the manuals leave undefined are followed through a sequence ([`generate::undefined`]): nothing
//! reads them, and they are not compared at its end.

pub mod generate;
pub mod interp;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod native;

use generate::{Family, Random};
use std::fmt::Write as _;

/// Where sequences stand: at no power of two, which registers often hold.
pub const CODE: u64 = 0x1234_0000;
/// The buffer they may touch, the stack in its upper half.
pub const DATA: u64 = 0x1235_0000;
/// Its bytes.
pub const DATA_LEN: usize = 0x2000;

/// Registers and memory, before or after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, ... as instructions number them.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
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
            gpr: [0; 16],
            rip: CODE,
            rflags: 0x202,
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
    /// What was there then.
    pub state: State,
}

/// The sequence and the state of a seed.
pub fn case(seed: u64, family: Family) -> (Vec<Vec<u8>>, State) {
    let mut r = Random::new(seed ^ (family as u64) << 60);
    let code = generate::sequence(&mut r, family);
    (code, generate::state(&mut r))
}

/// Flags compared at a sequence's end: the status flags and DF without those left undefined. After a fault, those
/// that any instruction leaves undefined go too.
pub fn compared_flags(code: &[Vec<u8>], faulted: bool) -> u64 {
    let (mut end, mut ever) = (0, 0);
    for bytes in code {
        end = generate::undefined_after(end, &generate::decode(bytes));
        ever |= end;
    }
    0xcd5 & !if faulted { ever } else { end }
}

/// Differences in words, none if they agree.
pub fn differences(code: &[Vec<u8>], native: &Outcome, interp: &Outcome) -> String {
    let mut out = String::new();
    let (a, b) = (&native.state, &interp.state);
    let mask = compared_flags(code, native.fault.is_some());
    let mut say = |what: &str, x: u128, y: u128| {
        if x != y {
            let _ = writeln!(out, "  {what}: native {x:x}, interpreter {y:x}");
        }
    };
    say("fault", native.fault.map_or(999, u128::from), interp.fault.map_or(999, u128::from));
    say("rip", a.rip.into(), b.rip.into());
    for n in 0..16 {
        say(&format!("gpr {n}"), a.gpr[n].into(), b.gpr[n].into());
        for k in 0..4 {
            say(&format!("ymm {n}.{k}"), a.ymm[n][k].into(), b.ymm[n][k].into());
        }
    }
    say("rflags", (a.rflags & mask).into(), (b.rflags & mask).into());
    say("mxcsr", a.mxcsr.into(), b.mxcsr.into());
    say("fcw", a.fcw.into(), b.fcw.into());
    say("fsw", a.fsw.into(), b.fsw.into());
    say("ftw", a.ftw.into(), b.ftw.into());
    for n in 0..8 {
        say(&format!("st {n} exponent"), a.st[n].0.into(), b.st[n].0.into());
        say(&format!("st {n} significand"), a.st[n].1.into(), b.st[n].1.into());
    }
    if let Some(at) = (0..DATA_LEN).find(|n| a.memory[*n] != b.memory[*n]) {
        say(&format!("memory at {at:#x}"), a.memory[at].into(), b.memory[at].into());
    }
    out
}

/// 64 bits of all that is compared (FNV-1a).
pub fn digest(code: &[Vec<u8>], outcome: &Outcome) -> u64 {
    let s = &outcome.state;
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |bytes: &[u8]| {
        for b in bytes {
            hash = (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
        }
    };
    eat(&outcome.fault.unwrap_or(999).to_le_bytes());
    eat(&s.rip.to_le_bytes());
    eat(&(s.rflags & compared_flags(code, outcome.fault.is_some())).to_le_bytes());
    s.gpr.iter().chain(s.ymm.iter().flatten()).for_each(|g| eat(&g.to_le_bytes()));
    eat(&s.mxcsr.to_le_bytes());
    eat(&[s.fcw.to_le_bytes(), s.fsw.to_le_bytes()].concat());
    eat(&[s.ftw]);
    for (se, frac) in s.st {
        eat(&se.to_le_bytes());
        eat(&frac.to_le_bytes());
    }
    eat(&s.memory);
    hash
}

/// A sequence for people: bytes and mnemonics.
pub fn listing(code: &[Vec<u8>]) -> String {
    let mut out = String::new();
    for bytes in code {
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(out, "  {hex:30} {:?}", generate::decode(bytes).code());
    }
    out
}

/// Drops instructions as long as `differ` holds.
pub fn minimise(mut code: Vec<Vec<u8>>, mut differ: impl FnMut(&[Vec<u8>]) -> bool) -> Vec<Vec<u8>> {
    let mut n = 0;
    while n < code.len() {
        let mut fewer = code.clone();
        fewer.remove(n);
        if !fewer.is_empty() && differ(&fewer) {
            code = fewer;
            n = 0;
        } else {
            n += 1;
        }
    }
    code
}
