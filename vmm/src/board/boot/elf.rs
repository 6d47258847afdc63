//! ELF kernels: loadable segments, and the note that names a PVH entry.
//!
//! By hand, since the loader crate is for x86 hosts only and ours are any.

use super::{Entry, LoadError};
use crate::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

const PT_LOAD: u32 = 1;
/// Names the loader of a program that runs under an operating system.
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PVH_NOTE: u32 = 18;
/// More than any kernel has.
const MAX_HEADERS: u16 = 256;

fn bad(what: impl Into<String>) -> LoadError {
    LoadError::Image(what.into())
}

/// `N` bytes at `at`.
fn bytes<const N: usize>(image: &[u8], at: u64) -> Result<[u8; N], LoadError> {
    let at = usize::try_from(at).map_err(|_| bad("an offset is beyond the file"))?;
    let end = at.checked_add(N).ok_or_else(|| bad("an offset is beyond the file"))?;
    let slice = image.get(at..end).ok_or_else(|| bad("the file is cut short"))?;
    slice.try_into().map_err(|_| bad("the file is cut short"))
}

fn u16_at(image: &[u8], at: u64) -> Result<u16, LoadError> {
    Ok(u16::from_le_bytes(bytes(image, at)?))
}

fn u32_at(image: &[u8], at: u64) -> Result<u32, LoadError> {
    Ok(u32::from_le_bytes(bytes(image, at)?))
}

fn u64_at(image: &[u8], at: u64) -> Result<u64, LoadError> {
    Ok(u64::from_le_bytes(bytes(image, at)?))
}

struct Segment {
    kind: u32,
    offset: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

/// Program headers of either class, and the entry.
fn headers(image: &[u8]) -> Result<(u64, Vec<Segment>), LoadError> {
    let ident: [u8; 16] = bytes(image, 0)?;
    if ident[5] != 1 {
        return Err(bad("a big-endian ELF file; guests are x86-64"));
    }
    let machine = u16_at(image, 18)?;
    let wide = match (ident[4], machine) {
        (2, 62) => true,
        (1, 3) => false,
        _ => return Err(bad(format!("an ELF file for machine {machine}; guests are x86-64 (62)"))),
    };
    let word = |wide_at, narrow_at: u64| {
        if wide { u64_at(image, wide_at) } else { u32_at(image, narrow_at).map(u64::from) }
    };
    let entry = word(24, 24)?;
    let table = word(32, 28)?;
    let (size_at, count_at) = if wide { (54, 56) } else { (42, 44) };
    let (size, count) = (u16_at(image, size_at)?, u16_at(image, count_at)?);
    if size < if wide { 56 } else { 32 } || count > MAX_HEADERS {
        return Err(bad("its program headers are malformed"));
    }
    let mut out = Vec::new();
    for i in 0..u64::from(count) {
        let at = table.checked_add(i * u64::from(size)).ok_or_else(|| bad("program headers overflow"))?;
        let kind = u32_at(image, at)?;
        let field = |wide_off, narrow_off: u64| {
            if wide { u64_at(image, at + wide_off) } else { u32_at(image, at + narrow_off).map(u64::from) }
        };
        out.push(Segment {
            kind,
            offset: field(8, 4)?,
            paddr: field(24, 12)?,
            filesz: field(32, 16)?,
            memsz: field(40, 20)?,
            align: field(48, 28)?,
        });
    }
    Ok((entry, out))
}

/// The PVH entry in a note segment.
fn pvh_entry(image: &[u8], s: &Segment) -> Result<Option<u64>, LoadError> {
    let align = if s.align == 8 { 8 } else { 4 };
    let (mut at, end) = (s.offset, s.offset.saturating_add(s.filesz));
    while at.saturating_add(12) <= end {
        let (name, desc, kind) = (u32_at(image, at)?, u32_at(image, at + 4)?, u32_at(image, at + 8)?);
        let name_at = at + 12;
        let desc_at = name_at + u64::from(name).next_multiple_of(align);
        if kind == PVH_NOTE && name == 4 && bytes::<4>(image, name_at)? == *b"Xen\0" {
            return match desc {
                4 => u32_at(image, desc_at).map(|e| Some(e.into())),
                8 => u64_at(image, desc_at).map(|e| Some(e & 0xffff_ffff)),
                _ => Err(bad("its PVH note has a wrong size")),
            };
        }
        at = desc_at + u64::from(desc).next_multiple_of(align);
    }
    Ok(None)
}

/// Loads the segments; where to enter, and where the kernel ends.
pub(super) fn load(ram: &GuestRam, image: &[u8]) -> Result<(Entry, u64), LoadError> {
    let (entry, segments) = headers(image)?;
    let wide = image[4] == 2;
    let mut end = 0;
    let mut pvh = None;
    for s in &segments {
        match s.kind {
            PT_LOAD => {
                let from = usize::try_from(s.offset).map_err(|_| bad("a segment is beyond the file"))?;
                let len = usize::try_from(s.filesz).map_err(|_| bad("a segment is beyond the file"))?;
                let data = from.checked_add(len).and_then(|to| image.get(from..to));
                let data = data.ok_or_else(|| bad("a segment is beyond the file"))?;
                if s.memsz < s.filesz {
                    return Err(bad("a segment is smaller in memory than in the file"));
                }
                let room = || LoadError::Room { what: "the kernel".into(), gpa: s.paddr, len: s.memsz };
                let segment_end = s.paddr.checked_add(s.memsz).ok_or_else(room)?;
                ram.write_slice(data, GuestAddress(s.paddr)).map_err(|_| room())?;
                // RAM is zero already; the end must only be there.
                if s.memsz > 0 {
                    ram.read_slice(&mut [0], GuestAddress(segment_end - 1)).map_err(|_| room())?;
                }
                end = end.max(segment_end);
            }
            PT_INTERP => {
                return Err(bad(
                    "a program for an operating system, with a loader of its own, and no kernel",
                ));
            }
            PT_NOTE if pvh.is_none() => pvh = pvh_entry(image, s)?,
            _ => {}
        }
    }
    if end == 0 {
        return Err(bad("an ELF file without loadable segments"));
    }
    let entry = match pvh {
        Some(at) => Entry::Pvh(at),
        None if wide => Entry::Linux(entry, None),
        None => {
            return Err(bad(
                "a 32-bit ELF file without a PVH note; the guest is entered by PVH or in 64-bit mode",
            ));
        }
    };
    Ok((entry, end))
}
