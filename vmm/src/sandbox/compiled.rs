//! What Firecracker's `seccompiler-bin` makes of its JSON: programs for the kernel, by thread category.
//!
//! Called by `Policy::from_file`. The format is bincode's with fixed, little-endian integers: the number of categories; of
//! each the name's length, its bytes, the number of instructions, and eight bytes each (code, jt, jf, k as in `struct
//! sock_filter`). A program is for one architecture and looks at it itself.

use std::collections::BTreeMap;

use super::Kind;
use super::bpf::Instruction;
use super::json::{JsonError, complete, kind_of};

/// Longest program that the kernel takes, in instructions.
const MAX_PROGRAM: u64 = 4096;
/// More categories than there are.
const MAX_CATEGORIES: u64 = 16;
/// Longest name of a category, in bytes.
const MAX_NAME: u64 = 32;

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum CompiledError {
    /// Neither JSON nor compiled.
    #[error("neither the JSON of a seccomp filter nor what Firecracker's seccompiler-bin makes of it: {0}")]
    Form(&'static str),
    /// Programs of such a compiler are for little-endian hosts.
    #[error("a compiled filter is for little-endian hosts: give the JSON that it was made from")]
    ByteOrder,
    /// A thread that is not one of ours, or is missing.
    #[error(transparent)]
    Category(#[from] JsonError),
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], CompiledError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(CompiledError::Form("it is cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn number(&mut self, most: u64, what: &'static str) -> Result<usize, CompiledError> {
        let bytes = self.take(8)?.first_chunk().copied().unwrap_or_default();
        let number = u64::from_le_bytes(bytes);
        if number > most { Err(CompiledError::Form(what)) } else { Ok(number as usize) }
    }
}

/// Reads such a file.
pub(super) fn parse(bytes: &[u8]) -> Result<BTreeMap<Kind, Vec<Instruction>>, CompiledError> {
    if cfg!(target_endian = "big") {
        return Err(CompiledError::ByteOrder);
    }
    let mut bytes = Bytes(bytes);
    let mut programs = BTreeMap::new();
    for _ in 0..bytes.number(MAX_CATEGORIES, "it begins with no number of threads")? {
        let len = bytes.number(MAX_NAME, "a thread's name is too long")?;
        let name = String::from_utf8_lossy(bytes.take(len)?).to_lowercase();
        let kind = kind_of(&name).ok_or(JsonError::Thread(name))?;
        let count = bytes.number(MAX_PROGRAM, "a program is longer than the kernel takes")?;
        let code = bytes.take(8 * count)?.chunks_exact(8).map(|i| Instruction {
            code: u16::from_le_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_le_bytes([i[4], i[5], i[6], i[7]]),
        });
        programs.insert(kind, code.collect());
    }
    if !bytes.0.is_empty() {
        return Err(CompiledError::Form("there is more behind its end"));
    }
    complete(&mut programs)?;
    Ok(programs)
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    /// As the compiler writes it: `BTreeMap<String, Vec<u64>>`.
    fn file(threads: &[(&str, &[u64])]) -> Vec<u8> {
        let mut out = (threads.len() as u64).to_le_bytes().to_vec();
        for (name, code) in threads {
            out.extend((name.len() as u64).to_le_bytes());
            out.extend(name.as_bytes());
            out.extend((code.len() as u64).to_le_bytes());
            out.extend(code.iter().flat_map(|i| i.to_le_bytes()));
        }
        out
    }

    #[test]
    fn a_compiled_file_is_read() {
        // ld [4]; ret allow
        let code = [0x0000_0004_0000_0020, 0x7fff_0000_0000_0006];
        let programs = parse(&file(&[("VcpU", &code), ("api", &[]), ("vmm", &code[1..])])).unwrap();
        let of = |kind| programs[&kind].iter().map(|i: &Instruction| (i.code, i.k)).collect::<Vec<_>>();
        assert_eq!(of(Kind::Vcpu), [(0x20, 4), (6, libc::SECCOMP_RET_ALLOW)]);
        assert!(programs[&Kind::Api].is_empty());
        assert_eq!(of(Kind::Device), of(Kind::Control));
    }

    #[test]
    fn what_is_no_compiled_file_is_refused() {
        let good = file(&[("api", &[1, 2]), ("vcpu", &[3]), ("vmm", &[4])]);
        parse(&good).unwrap();
        for len in 0..good.len() {
            assert!(parse(&good[..len]).is_err(), "{len}");
        }
        for (bytes, wanted) in [
            ([good.clone(), vec![0]].concat(), "behind its end"),
            (vec![0xff; 64], "no number of threads"),
            (file(&[("gpu", &[])]), "unknown thread category `gpu`"),
            (file(&[("vmm", &[]), ("api", &[])]), "`vcpu`"),
            (file(&[("vmm", &[0; 4097])]), "longer than the kernel takes"),
        ] {
            let error = parse(&bytes).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
