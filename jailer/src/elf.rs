//! The few facts of an ELF file that say what it needs to run: machine, loader, libraries, search path.
//!
//! Called by `libraries`. Reads 64-bit files of either byte order; every offset is checked, because the
//! reader runs as root.

/// What could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ElfError {
    #[error("not an ELF file")]
    NotElf,
    #[error("not a 64-bit ELF file")]
    NotElf64,
    #[error("damaged ELF file: {0}")]
    Damaged(&'static str),
}

/// What an executable or a shared library says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Elf {
    pub(crate) big_endian: bool,
    /// `e_machine`.
    pub(crate) machine: u16,
    /// `PT_INTERP`: the dynamic loader.
    pub(crate) interpreter: Option<String>,
    /// `DT_NEEDED`, in order.
    pub(crate) needed: Vec<String>,
    /// `DT_RUNPATH`, else `DT_RPATH`, split at colons.
    pub(crate) search: Vec<String>,
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

struct Reader<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl<'a> Reader<'a> {
    fn at<const N: usize>(&self, offset: u64) -> Result<[u8; N], ElfError> {
        let start = usize::try_from(offset).map_err(|_| ElfError::Damaged("offset"))?;
        let end = start.checked_add(N).ok_or(ElfError::Damaged("offset"))?;
        let bytes = self.bytes.get(start..end).ok_or(ElfError::Damaged("it ends too early"))?;
        let mut out: [u8; N] = bytes.try_into().map_err(|_| ElfError::Damaged("offset"))?;
        if self.big_endian {
            out.reverse();
        }
        Ok(out)
    }

    fn u16(&self, offset: u64) -> Result<u16, ElfError> {
        self.at(offset).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: u64) -> Result<u32, ElfError> {
        self.at(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: u64) -> Result<u64, ElfError> {
        self.at(offset).map(u64::from_le_bytes)
    }

    fn text(&self, offset: u64) -> Result<String, ElfError> {
        let start = usize::try_from(offset).map_err(|_| ElfError::Damaged("string offset"))?;
        let bytes = self.bytes.get(start..).ok_or(ElfError::Damaged("string offset"))?;
        let end = bytes.iter().position(|&b| b == 0).ok_or(ElfError::Damaged("string without end"))?;
        String::from_utf8(bytes[..end].to_vec()).map_err(|_| ElfError::Damaged("string is not UTF-8"))
    }
}

fn plus(a: u64, b: u64) -> Result<u64, ElfError> {
    a.checked_add(b).ok_or(ElfError::Damaged("offset"))
}

/// Reads `bytes`, a whole file.
pub(crate) fn read(bytes: &[u8]) -> Result<Elf, ElfError> {
    if bytes.get(..4) != Some(b"\x7fELF") {
        return Err(ElfError::NotElf);
    }
    if bytes.get(4) != Some(&2) {
        return Err(ElfError::NotElf64);
    }
    let big_endian = match bytes.get(5) {
        Some(1) => false,
        Some(2) => true,
        _ => return Err(ElfError::Damaged("byte order")),
    };
    let r = Reader { bytes, big_endian };
    let mut elf = Elf { big_endian, machine: r.u16(18)?, ..Elf::default() };
    let (phoff, phentsize, phnum) = (r.u64(32)?, u64::from(r.u16(54)?), u64::from(r.u16(56)?));
    if phnum > 0 && phentsize < 56 {
        return Err(ElfError::Damaged("program header size"));
    }
    let mut loads = Vec::new();
    let mut dynamic = None;
    for i in 0..phnum {
        let ph = plus(phoff, i * phentsize)?;
        let (kind, offset, vaddr, filesz) =
            (r.u32(ph)?, r.u64(plus(ph, 8)?)?, r.u64(plus(ph, 16)?)?, r.u64(plus(ph, 32)?)?);
        match kind {
            PT_LOAD => loads.push((vaddr, filesz, offset)),
            PT_DYNAMIC => dynamic = Some((offset, filesz)),
            PT_INTERP => elf.interpreter = Some(r.text(offset)?),
            _ => {}
        }
    }
    let Some((dynamic, len)) = dynamic else { return Ok(elf) };
    let (mut needed, mut rpath, mut runpath, mut strings) = (Vec::new(), None, None, None);
    for i in 0..len / 16 {
        let entry = plus(dynamic, i * 16)?;
        let value = r.u64(plus(entry, 8)?)?;
        match r.u64(entry)? {
            0 => break,
            DT_NEEDED => needed.push(value),
            DT_STRTAB => strings = Some(value),
            DT_RPATH => rpath = Some(value),
            DT_RUNPATH => runpath = Some(value),
            _ => {}
        }
    }
    if needed.is_empty() && rpath.is_none() && runpath.is_none() {
        return Ok(elf);
    }
    let strings = strings.ok_or(ElfError::Damaged("no string table"))?;
    let (vaddr, _, offset) = loads
        .iter()
        .find(|(vaddr, filesz, _)| strings.checked_sub(*vaddr).is_some_and(|d| d < *filesz))
        .ok_or(ElfError::Damaged("string table is not loaded"))?;
    let strings = plus(*offset, strings - vaddr)?;
    for name in needed {
        elf.needed.push(r.text(plus(strings, name)?)?);
    }
    if let Some(path) = runpath.or(rpath) {
        elf.search =
            r.text(plus(strings, path)?)?.split(':').filter(|s| !s.is_empty()).map(str::to_owned).collect();
    }
    Ok(elf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_test_is_read() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = read(&bytes).unwrap();
        assert_eq!(elf.big_endian, cfg!(target_endian = "big"));
        if cfg!(target_env = "gnu") {
            assert!(elf.interpreter.is_some());
            assert!(elf.needed.iter().any(|n| n.starts_with("libc.so")), "{elf:?}");
        }
        // Cut anywhere in its first part or damaged anywhere in its headers: an error or other facts, never a panic.
        for len in (0..bytes.len().min(8192)).step_by(7) {
            let _ = read(&bytes[..len]);
        }
        let mut damaged = bytes;
        for at in 4..damaged.len().min(1024) {
            let was = std::mem::replace(&mut damaged[at], 0xff);
            let _ = read(&damaged);
            damaged[at] = was;
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(read(b"#!/bin/sh\n"), Err(ElfError::NotElf));
        assert_eq!(read(b""), Err(ElfError::NotElf));
        assert_eq!(read(b"\x7fELF\x01\x01"), Err(ElfError::NotElf64));
        assert!(matches!(read(b"\x7fELF\x02\x01\x01"), Err(ElfError::Damaged(_))));
    }

    #[test]
    fn big_endian_is_read() {
        let mut b = vec![0u8; 64 + 56];
        b[..6].copy_from_slice(b"\x7fELF\x02\x02");
        b[18..20].copy_from_slice(&22u16.to_be_bytes());
        b[32..40].copy_from_slice(&64u64.to_be_bytes());
        b[54..56].copy_from_slice(&56u16.to_be_bytes());
        b[56..58].copy_from_slice(&1u16.to_be_bytes());
        b[64..68].copy_from_slice(&PT_INTERP.to_be_bytes());
        b[72..80].copy_from_slice(&120u64.to_be_bytes());
        b.extend_from_slice(b"/lib/ld64.so.1\0");
        let elf = read(&b).unwrap();
        assert!(elf.big_endian && elf.machine == 22);
        assert_eq!(elf.interpreter.as_deref(), Some("/lib/ld64.so.1"));
    }
}
