//! Boot: puts a kernel, its command line, initrd and tables into RAM, and gives vCPU 0 its first registers.
//!
//! Called by `machine` once, before the first instruction. The map is Firecracker's:
//!
//! ```text
//! 0x0000_0500  GDT           0x0000_7000  boot_params (Linux) or start_info (PVH; its lists at 0x7000 too)
//! 0x0000_9000  page tables   0x0002_0000  command line      0x000e_0000  ACPI tables
//! 0x0010_0000  kernel        top of low RAM: initrd
//! ```

pub mod acpi;
mod bzimage;
mod cpu;
mod e820;
mod elf;
mod linux;
mod pvh;

use crate::memory::GuestRam;
use crate::memory::ram::{GAP_END, GAP_START};
use godwit_state::{RegsV1, SystemV1};
use std::path::PathBuf;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Guest-physical addresses of what boot puts into RAM.
pub mod layout {
    /// Global descriptor table.
    pub const GDT: u64 = 0x500;
    /// Linux's boot_params, or PVH's start_info.
    pub const PARAMS: u64 = 0x7000;
    /// Page tables: one page each of three levels.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// Command line.
    pub const CMDLINE: u64 = 0x2_0000;
    /// Its room, with the final NUL.
    pub const CMDLINE_SIZE: usize = 2048;
    /// End of usable low memory: the extended BIOS data area begins.
    pub const EBDA: u64 = 0x9_fc00;
    /// ACPI's root pointer; the other tables follow.
    pub const ACPI: u64 = 0xe_0000;
    /// The VM generation ID, on a page of its own after the tables.
    pub const GENERATION: u64 = 0xf_f000;
    /// End of the area for ACPI tables.
    pub const ACPI_END: u64 = 0x10_0000;
    /// Where a relocatable or bzImage kernel goes.
    pub const KERNEL: u64 = 0x10_0000;
}

/// What to boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootSource {
    /// ELF or bzImage.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Command line, complete.
    pub cmdline: String,
}

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("{what} {path}: {source}", path = .path.display())]
    File {
        /// Kernel or initrd.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a kernel that can be booted.
    #[error("kernel {path}: {reason}", path = .path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// RAM is too small.
    #[error(
        "{what} does not fit into guest memory: it needs {len} bytes at {gpa:#x}; give the guest more memory"
    )]
    Room {
        /// What does not fit.
        what: String,
        /// Where it should go.
        gpa: u64,
        /// Its size.
        len: u64,
    },
    /// Too long a command line.
    #[error("the kernel command line has {len} bytes; at most {max} fit")]
    Cmdline {
        /// Its length.
        len: usize,
        /// What fits.
        max: usize,
    },
    /// Bytes that no command line may have.
    #[error("the kernel command line contains a NUL byte")]
    CmdlineNul,
}

/// vCPU 0's first registers; the rest is as after reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstState {
    /// General registers.
    pub regs: RegsV1,
    /// Segments and control registers.
    pub system: SystemV1,
}

/// How an ELF file wants to be entered.
enum Entry {
    /// 32-bit protected mode, by the PVH note.
    Pvh(u64),
    /// 64-bit long mode, by Linux's protocol; the setup header of a bzImage.
    Linux(u64, Option<Vec<u8>>),
}

pub(super) fn put(ram: &GuestRam, what: &str, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
    ram.write_slice(bytes, GuestAddress(gpa)).map_err(|_| BootError::Room {
        what: what.into(),
        gpa,
        len: bytes.len() as u64,
    })
}

/// Bytes of RAM below the gap and above it.
fn ram_sizes(ram: &GuestRam) -> (u64, u64) {
    ram.iter().fold((0, 0), |(low, high), r| match r.start_addr().0 {
        0..GAP_START => (low + r.len(), high),
        _ => (low, high + r.len()),
    })
}

fn read(what: &'static str, path: &PathBuf) -> Result<Vec<u8>, BootError> {
    std::fs::read(path).map_err(|source| BootError::File { what, path: path.clone(), source })
}

/// Loads everything; `acpi_tables` lie at [`layout::ACPI`].
///
/// # Errors
/// Each names the file and what is wrong.
pub fn load(ram: &GuestRam, source: &BootSource, acpi_tables: &[u8]) -> Result<FirstState, BootError> {
    let image = read("kernel", &source.kernel)?;
    let fail = |reason: String| BootError::Kernel { path: source.kernel.clone(), reason };
    let (entry, kernel_end) = if image.starts_with(b"\x7fELF") {
        elf::load(ram, &image).map_err(|e| e.of(&source.kernel))?
    } else if bzimage::is(&image) {
        bzimage::load(ram, &image).map_err(|e| e.of(&source.kernel))?
    } else {
        return Err(fail("neither an ELF file nor a bzImage: this is no kernel".into()));
    };
    let (low, high) = ram_sizes(ram);
    let cmdline = source.cmdline.as_bytes();
    let max = layout::CMDLINE_SIZE - 1;
    if cmdline.len() > max {
        return Err(BootError::Cmdline { len: cmdline.len(), max });
    }
    if cmdline.contains(&0) {
        return Err(BootError::CmdlineNul);
    }
    put(ram, "the command line", layout::CMDLINE, cmdline)?;
    put(ram, "the command line", layout::CMDLINE + cmdline.len() as u64, &[0])?;
    let initrd = match &source.initrd {
        None => None,
        Some(path) => {
            let bytes = read("initrd", path)?;
            let len = bytes.len() as u64;
            let room = BootError::Room { what: format!("initrd {}", path.display()), gpa: kernel_end, len };
            let at = low.checked_sub(len).map(|a| a & !0xfff).filter(|a| *a >= kernel_end).ok_or(room)?;
            put(ram, "the initrd", at, &bytes)?;
            Some((at, len))
        }
    };
    if !acpi_tables.is_empty() {
        put(ram, "the ACPI tables", layout::ACPI, acpi_tables)?;
    }
    let map = e820::map(low, (high > 0).then_some((GAP_END, high)));
    let boot = Boot {
        cmdline_len: cmdline.len() as u64,
        initrd,
        map,
        rsdp: if acpi_tables.is_empty() { 0 } else { layout::ACPI },
    };
    match entry {
        Entry::Pvh(at) => pvh::prepare(ram, at, &boot),
        Entry::Linux(at, header) => linux::prepare(ram, at, header.as_deref(), &boot),
    }
}

/// What both protocols tell the kernel.
struct Boot {
    cmdline_len: u64,
    initrd: Option<(u64, u64)>,
    map: Vec<e820::Entry>,
    rsdp: u64,
}

/// A kernel's fault, before its path is known.
enum LoadError {
    Image(String),
    Room { what: String, gpa: u64, len: u64 },
}

impl LoadError {
    fn of(self, path: &std::path::Path) -> BootError {
        match self {
            LoadError::Image(reason) => BootError::Kernel { path: path.into(), reason },
            LoadError::Room { what, gpa, len } => BootError::Room { what, gpa, len },
        }
    }
}

#[cfg(test)]
mod tests;
