//! Makes a multiboot kernel (such as the Xen hypervisor) bootable by PVH: the kernel, its modules and a finished
//! multiboot information structure become segments of one ELF file, with a few instructions that enter it.
//!
//! Both protocols enter in 32-bit protected mode; only what EAX and EBX say differs.

use crate::elf::{self, Segment};

/// Where the entry and the information structure lie.
const SHIM: u64 = 0x10_0000;
const SHIM_SIZE: usize = 0x1000;
/// The information structure, the list of modules, the memory map and the texts, from [`SHIM`].
const INFO: usize = 0x100;
const MODULES: usize = 0x200;
const MAP: usize = 0x300;
const TEXTS: usize = 0x400;
/// Where the first module goes; the kernel lies below.
const FIRST_MODULE: u64 = 32 << 20;
/// Below this is RAM, then what a BIOS would keep, then the ROMs up to 1 MiB.
const LOW_KIB: u32 = 639;

/// A file that comes with the kernel, and its command line.
pub struct Module<'a> {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Name and arguments.
    pub line: &'a str,
}

fn word(file: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(file.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The loadable segments of a 32-bit ELF file, and its entry.
fn segments(file: &[u8]) -> Option<(Vec<Segment>, u32)> {
    let magic = |at| word(file, at) == Some(0x1bad_b002);
    if file.get(..5)? != b"\x7fELF\x01" || !(0..8192).step_by(4).any(magic) {
        return None;
    }
    let (first, count) = (word(file, 28)? as usize, usize::from(file[44]));
    let mut out = Vec::new();
    for at in (0..count).map(|i| first + i * 32).filter(|at| word(file, *at) == Some(1)) {
        let (offset, len) = (word(file, at + 4)? as usize, word(file, at + 16)? as usize);
        let mut bytes = file.get(offset..offset.checked_add(len)?)?.to_vec();
        bytes.resize(word(file, at + 20)? as usize, 0);
        out.push(Segment { gpa: word(file, at + 12)?.into(), bytes, executable: true });
    }
    Some((out, word(file, 24)?))
}

struct Shim {
    bytes: Vec<u8>,
    texts: usize,
}

impl Shim {
    fn put(&mut self, at: usize, words: &[u32]) {
        for (to, word) in self.bytes[at..].chunks_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Where a text is that ends with a zero.
    fn text(&mut self, text: &str) -> Option<u32> {
        let at = self.texts;
        self.bytes.get_mut(at..at + text.len() + 1)?[..text.len()].copy_from_slice(text.as_bytes());
        self.texts += text.len() + 1;
        Some(SHIM as u32 + at as u32)
    }
}

/// The PVH image of `kernel` (a 32-bit multiboot ELF file) for a machine with `mib` MiB, at most 3 GiB. `None`: it is no
/// such file, or there is no room for all.
pub fn wrap(kernel: &[u8], line: &str, modules: Vec<Module<'_>>, mib: u32) -> Option<Vec<u8>> {
    let (mut all, entry) = segments(kernel)?;
    let mut shim = Shim { bytes: vec![0; SHIM_SIZE], texts: TEXTS };
    let count = modules.len() as u32;
    let mut at = FIRST_MODULE;
    for (i, module) in modules.into_iter().enumerate() {
        let end = at + module.bytes.len() as u64;
        let text = shim.text(module.line)?;
        shim.put(MODULES + i * 16, &[at as u32, end as u32, text]);
        all.push(Segment { gpa: at, bytes: module.bytes, executable: false });
        at = end.next_multiple_of(4096);
    }
    if at > u64::from(mib) << 20 || count > 16 {
        return None;
    }
    let line = shim.text(line)?;
    // Each entry: size of the rest, start, length, type (1 is RAM).
    let low = LOW_KIB << 10;
    for (i, (start, len, kind)) in
        [(0, low, 1), (low, 1024, 2), (0xe_0000, 0x2_0000, 2), (1 << 20, (mib - 1) << 20, 1)]
            .into_iter()
            .enumerate()
    {
        shim.put(MAP + i * 24, &[20, start, 0, len, 0, kind]);
    }
    let base = SHIM as u32;
    // Memory sizes, command line, modules, memory map.
    shim.put(INFO, &[1 | 1 << 2 | 1 << 3 | 1 << 6, LOW_KIB, (mib - 1) << 10, 0, line, count]);
    shim.put(INFO + 24, &[base + MODULES as u32]);
    shim.put(INFO + 44, &[4 * 24, base + MAP as u32]);

    // mov word [0x40e], segment of the BIOS's data; mov word [0x413], KiB below: as a BIOS leaves them.
    let mut code = vec![0x66, 0xc7, 0x05, 0x0e, 0x04, 0, 0];
    code.extend(((low >> 4) as u16).to_le_bytes());
    code.extend([0x66, 0xc7, 0x05, 0x13, 0x04, 0, 0]);
    code.extend((LOW_KIB as u16).to_le_bytes());
    // mov eax, the loader's magic; mov ebx, the information; jmp entry.
    code.push(0xb8);
    code.extend(0x2bad_b002u32.to_le_bytes());
    code.push(0xbb);
    code.extend((base + INFO as u32).to_le_bytes());
    code.push(0xe9);
    code.extend(entry.wrapping_sub(base + code.len() as u32 + 4).to_le_bytes());
    shim.bytes[..code.len()].copy_from_slice(&code);
    all.push(Segment { gpa: SHIM, bytes: shim.bytes, executable: true });
    Some(elf::write(&all, SHIM, base))
}
