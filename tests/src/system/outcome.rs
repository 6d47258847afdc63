//! What came of a vector, as text: what differs from how it started.

use super::layout::dump;
use super::vector::{Kind, REGISTERS, Vector};

/// A dump and the changed words that follow it.
pub struct Raw<'a> {
    dump: &'a [u8],
    changes: &'a [u8],
}

fn word(bytes: &[u8], at: u32) -> u32 {
    bytes.get(at as usize..at as usize + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

impl<'a> Raw<'a> {
    /// The first of a stream, and what follows.
    pub fn split(stream: &'a [u8]) -> Option<(Raw<'a>, &'a [u8])> {
        let (dump, rest) = stream.split_at_checked(dump::LEN as usize)?;
        let count = word(rest.get(..4)?, 0) as usize;
        let (changes, rest) = rest.get(4..)?.split_at_checked(count * 8)?;
        Some((Raw { dump, changes }, rest))
    }

    fn wide(&self, at: u32) -> u64 {
        u64::from(word(self.dump, at)) | u64::from(word(self.dump, at + 4)) << 32
    }

    /// As text: exception with error code where there is one, instruction pointer, flags; then what is not as it was.
    pub fn text(&self, v: &Vector) -> String {
        let s = &v.start;
        let vector = word(self.dump, dump::VECTOR);
        let mut out = format!("#{vector:x}");
        if matches!(vector, 8 | 10..=14 | 17) && v.mode.kind() != Kind::Real {
            out += &format!("({:x})", word(self.dump, dump::ERROR));
        }
        out += &format!(" ip={:x} flags={:x}", self.wide(dump::RIP), self.wide(dump::RFLAGS));
        let mut differs = |name: &str, is: u64, was: u64| {
            if is != was {
                out += &format!(" {name}={is:x}");
            }
        };
        differs("cs", self.wide(dump::CS), s.cs.into());
        differs("ss", self.wide(dump::SS), s.ss.into());
        differs("sp", self.wide(dump::RSP), s.gpr[4]);
        for (n, name) in REGISTERS.iter().enumerate().filter(|(n, _)| *n != 4) {
            if n < 8 || v.mode.kind() == Kind::Long {
                differs(name, self.wide(dump::GPR + n as u32 * 8), s.gpr[n]);
            }
        }
        for (n, (name, was)) in
            [("ds", s.ds), ("es", s.es), ("fs", s.fs), ("gs", s.gs)].into_iter().enumerate()
        {
            differs(name, self.wide(dump::SEGMENTS + n as u32 * 8), was.into());
        }
        if v.mode.kind() != Kind::Real {
            let task = if v.mode.kind() == Kind::Long { 0x60 } else { 0x58 };
            differs("tr", self.wide(dump::TASK), task);
            differs("ldtr", self.wide(dump::TASK + 8), 0x80);
        }
        for (n, (name, was)) in [("cr0", s.cr0), ("cr2", 0), ("cr3", s.cr3), ("cr4", s.cr4), ("efer", s.efer)]
            .into_iter()
            .enumerate()
        {
            differs(name, self.wide(dump::CR + n as u32 * 8), was.into());
        }
        differs("dr6", self.wide(dump::DR), 0xffff_0ff0);
        differs("dr7", self.wide(dump::DR + 8), u64::from(s.dr[4]) | 0x400);
        for change in self.changes.chunks_exact(8) {
            differs(&format!("@{:x}", word(change, 0)), word(change, 4).into(), u64::MAX);
        }
        out
    }
}
