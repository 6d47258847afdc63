//! A line of `tests/vectors/system.txt`: `name | mode | assembly | hex | setup | oracles | outcome`.

use super::layout::*;
use std::process::Command;

/// What the guest starts a vector in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Real mode.
    Real,
    /// Protected mode, virtual-8086 mode.
    Protected,
    /// Long mode, compatibility mode.
    Long,
}

/// A mode by its name in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Its name.
    pub name: &'static str,
    kind: Kind,
    /// Bits of code.
    pub bits: u32,
    cs: u16,
    ss: u16,
    data: u16,
    sp: u32,
    flags: u32,
}

const fn mode(name: &'static str, kind: Kind, bits: u32, cs: u16, ss: u16, data: u16) -> Mode {
    let (sp, flags) = if cs & 3 == 0 { (STACK0 - 0x100, 2) } else { (STACK3 - 0x100, 2) };
    Mode { name, kind, bits, cs, ss, data, sp, flags }
}

/// All modes. Those with a U are ring 3's.
const MODES: [Mode; 10] = [
    mode("r16", Kind::Real, 16, 0, 0, 0),
    mode("p16", Kind::Protected, 16, 0x20, 0x28, 0x28),
    mode("p16u", Kind::Protected, 16, 0x4b, 0x53, 0x53),
    mode("p32", Kind::Protected, 32, 0x08, 0x10, 0x10),
    mode("p32u", Kind::Protected, 32, 0x33, 0x3b, 0x3b),
    Mode { sp: STACK3 - 0x100, flags: 0x2_3002, ..mode("v86", Kind::Protected, 16, 0, 0, 0) },
    mode("c32", Kind::Long, 32, 0x08, 0x10, 0x10),
    mode("c32u", Kind::Long, 32, 0x33, 0x3b, 0x3b),
    mode("l64", Kind::Long, 64, 0x18, 0x10, 0x10),
    mode("l64u", Kind::Long, 64, 0x43, 0x3b, 0x3b),
];

impl Mode {
    /// The same without what the name says of ring and code.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// What the guest loads before a vector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "registers by their names")]
pub struct Start {
    pub cr0: u32,
    pub cr3: u32,
    pub cr4: u32,
    pub efer: u32,
    /// DR0 to DR3, DR7.
    pub dr: [u32; 5],
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
    pub ip: u32,
    pub flags: u32,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 ...
    pub gpr: [u64; 16],
    pub msrs: Vec<(u32, u64)>,
}

/// A vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vector {
    /// What it shows.
    pub name: String,
    /// Where it runs.
    pub mode: Mode,
    /// As GNU's assembler takes it, in Intel's syntax.
    pub assembly: String,
    /// What differs from the default.
    pub setup: String,
    /// Whose word the outcome is: `tcg`, `kvm`, `manual`.
    pub oracles: String,
    /// What is expected; empty where nothing was recorded yet.
    pub outcome: String,
    /// What the guest loads.
    pub start: Start,
    /// What is changed in memory.
    pub pokes: Vec<(u32, Vec<u8>)>,
    /// The code, without the end that every vector has: INT 0x20.
    pub code: Vec<u8>,
}

/// Registers in the order of their numbers.
pub const REGISTERS: [&str; 16] =
    ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// MSRs that every vector begins with: SYSENTER's, STAR, LSTAR, CSTAR, FMASK, FS, GS and kernel GS bases.
const MSRS: [(u32, u64); 10] = [
    (0x174, 0),
    (0x175, 0),
    (0x176, 0),
    (0xc000_0081, 0),
    (0xc000_0082, 0),
    (0xc000_0083, 0),
    (0xc000_0084, 0),
    (0xc000_0100, 0),
    (0xc000_0101, 0),
    (0xc000_0102, 0),
];

fn number(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| format!("{text:?} is no hexadecimal number"))
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let text = text.replace(' ', "");
    (0..text.len().div_ceil(2))
        .map(|n| Ok(number(text.get(n * 2..n * 2 + 2).unwrap_or("?"))? as u8))
        .collect()
}

impl Vector {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &str) -> Result<Vector, String> {
        let mut fields: Vec<&str> = line.split('|').map(str::trim).collect();
        fields.resize(fields.len().max(7), "");
        let [name, mode, assembly, hex, setup, oracles, outcome] = fields[..] else {
            return Err(format!("more than seven fields: {line}"));
        };
        let mode = *MODES.iter().find(|m| m.name == mode).ok_or(format!("{name}: no mode {mode:?}"))?;
        let mut v = Vector {
            name: name.into(),
            mode,
            assembly: assembly.into(),
            setup: setup.into(),
            oracles: oracles.into(),
            outcome: outcome.into(),
            start: Start::default(),
            pokes: Vec::new(),
            code: bytes(hex).map_err(|why| format!("{name}: {why}"))?,
        };
        let s = &mut v.start;
        (s.cs, s.ss, s.ds, s.es) = (mode.cs, mode.ss, mode.data, mode.data);
        (s.ip, s.flags) = (CODE, mode.flags);
        s.gpr[4] = mode.sp.into();
        s.gpr[3] = DATA.into();
        s.msrs = MSRS.to_vec();
        (s.cr0, s.cr3, s.cr4, s.efer) = match mode.kind {
            Kind::Real => (0x30, 0, 0, 0),
            Kind::Protected => (0x31, 0, 0, 0),
            Kind::Long => (0x8000_0031, PML4, 0x20, 0x901),
        };
        for word in setup.split_whitespace() {
            v.set(word).map_err(|why| format!("{name}: {word}: {why}"))?;
        }
        if !hex.is_empty() {
            v.code.extend([0xcd, 0x20]);
        }
        Ok(v)
    }

    fn set(&mut self, word: &str) -> Result<(), String> {
        let s = &mut self.start;
        let (name, value) = word.split_once('=').ok_or("no value")?;
        if let Some(at) = name.strip_prefix('@') {
            self.pokes.push((number(at)? as u32, bytes(value)?));
            return Ok(());
        }
        if let Some(msr) = name.strip_prefix("msr") {
            let msr = number(msr)? as u32;
            s.msrs.retain(|(n, _)| *n != msr);
            s.msrs.push((msr, number(value)?));
            return Ok(());
        }
        if name == "paging" {
            (s.cr3, s.cr4) = match value {
                "32" => (PD, s.cr4 | 0x10),
                "pae" => (PDPT_PAE, s.cr4 | 0x20),
                _ => return Err("no such paging".into()),
            };
            s.cr0 |= 0x8000_0000;
            return Ok(());
        }
        let value = number(value)?;
        if let Some(n) = REGISTERS.iter().position(|r| *r == name) {
            s.gpr[n] = value;
            return Ok(());
        }
        let selector = match name {
            "cs" => &mut s.cs,
            "ss" => &mut s.ss,
            "ds" => &mut s.ds,
            "es" => &mut s.es,
            "fs" => &mut s.fs,
            "gs" => &mut s.gs,
            _ => {
                let word = match name {
                    "cr0" => &mut s.cr0,
                    "cr3" => &mut s.cr3,
                    "cr4" => &mut s.cr4,
                    "efer" => &mut s.efer,
                    "dr0" => &mut s.dr[0],
                    "dr1" => &mut s.dr[1],
                    "dr2" => &mut s.dr[2],
                    "dr3" => &mut s.dr[3],
                    "dr7" => &mut s.dr[4],
                    "ip" => &mut s.ip,
                    "flags" => &mut s.flags,
                    _ => return Err("no such register".into()),
                };
                *word = value as u32;
                return Ok(());
            }
        };
        *selector = value as u16;
        Ok(())
    }

    /// IRET's frame in words of 32 bits, where it goes, and the stack that IRET finds it on.
    pub fn frame(&self) -> (Vec<u32>, u32, (u32, u32)) {
        let s = &self.start;
        let (cs, ss, sp) = (u32::from(s.cs), u32::from(s.ss), s.gpr[4] as u32);
        let aside = STACK0 - 0x80;
        match self.mode.kind {
            Kind::Real => (vec![s.ip & 0xffff | cs << 16, s.flags & 0xffff], sp - 6, (sp - 6, ss)),
            Kind::Protected if s.flags & 0x2_0000 != 0 => {
                let data = [s.es, s.ds, s.fs, s.gs].map(u32::from);
                ([&[s.ip, cs, s.flags, sp, ss][..], &data].concat(), aside, (aside, 0x10))
            }
            Kind::Protected if s.cs & 3 != 0 => (vec![s.ip, cs, s.flags, sp, ss], aside, (aside, 0x10)),
            Kind::Protected => (vec![s.ip, cs, s.flags], sp - 12, (sp - 12, ss)),
            Kind::Long => (vec![s.ip, 0, cs, 0, s.flags, 0, sp, 0, ss, 0], aside, (aside, 0x10)),
        }
    }

    /// The line, with all that is known.
    pub fn line(&self) -> String {
        let code = &self.code[..self.code.len().saturating_sub(2)];
        let hex: String = code.iter().map(|b| format!("{b:02x}")).collect();
        let fields =
            [&self.name, self.mode.name, &self.assembly, &hex, &self.setup, &self.oracles, &self.outcome];
        fields.map(str::to_string).join(" | ")
    }

    /// True if the outcome is this oracle's word.
    pub fn trusts(&self, oracle: &str) -> bool {
        self.oracles.split(' ').any(|o| o == oracle)
    }
}

/// True if a line of the file is a vector, not a remark or empty.
pub fn is_vector(line: &str) -> bool {
    !line.starts_with('#') && !line.trim().is_empty()
}

/// Every vector of the file.
///
/// # Panics
/// If a line is wrong.
pub fn all(text: &str) -> Vec<Vector> {
    text.lines()
        .filter(|l| is_vector(l))
        .map(|l| Vector::parse(l).unwrap_or_else(|why| panic!("{why}")))
        .collect()
}

/// What GNU's assembler makes of a vector's assembly.
///
/// # Errors
/// If it is not there, or what it says.
pub fn assembled(v: &Vector, dir: &std::path::Path) -> Result<Vec<u8>, String> {
    let file = |what: &str| dir.join(format!("vector-{}.{what}", std::process::id()));
    let names =
        [("CODE", CODE), ("DATA", DATA), ("ELSEWHERE", ELSEWHERE), ("GDT", GDT), ("TSS", TSS), ("LDT", LDT)];
    let mut text = format!(".intel_syntax noprefix\n.code{}\n", v.mode.bits);
    names.iter().for_each(|(name, value)| text += &format!(".set {name}, {value}\n"));
    text += &format!("start: {}\n", v.assembly);
    std::fs::write(file("s"), text).map_err(|e| e.to_string())?;
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        let out = Command::new(program).args(args).output().map_err(|e| format!("no {program}: {e}"))?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() { Ok(()) } else { Err(format!("{}: {said}", v.name)) }
    };
    let (s, o, b) = (file("s"), file("o"), file("bin"));
    run("as", &["--64".as_ref(), "-o".as_ref(), o.as_ref(), s.as_ref()])?;
    run(
        "objcopy",
        &["-O".as_ref(), "binary".as_ref(), "-j".as_ref(), ".text".as_ref(), o.as_ref(), b.as_ref()],
    )?;
    let code = std::fs::read(&b).map_err(|e| e.to_string());
    for name in [s, o, b] {
        std::fs::remove_file(name).ok();
    }
    code
}
