//! The 64-bit Linux boot protocol: boot_params, identity page tables, long mode.

use super::{Boot, BootError, FirstState, cpu, layout, put};
use crate::memory::GuestRam;

/// Offsets in boot_params (arch/x86/include/uapi/asm/bootparam.h).
const ACPI_RSDP: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const HEADER: usize = 0x1f1;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
const E820_MAX: usize = 128;

/// The header of a kernel that came as bare ELF: "HdrS", version 2.6, boot flag.
fn plain_header(params: &mut [u8]) {
    params[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
    params[0x202..0x206].copy_from_slice(b"HdrS");
    params[0x206..0x208].copy_from_slice(&0x206u16.to_le_bytes());
    params[0x230..0x234].copy_from_slice(&0x0100_0000u32.to_le_bytes());
}

pub(super) fn prepare(
    ram: &GuestRam,
    entry: u64,
    header: Option<&[u8]>,
    boot: &Boot,
) -> Result<FirstState, BootError> {
    let mut params = vec![0u8; 4096];
    match header {
        Some(h) => {
            // What follows the header in boot_params is the memory map's.
            let len = h.len().min(E820_TABLE - HEADER);
            params[HEADER..HEADER + len].copy_from_slice(&h[..len]);
        }
        None => plain_header(&mut params),
    }
    let mut set = |at: usize, bytes: &[u8]| params[at..at + bytes.len()].copy_from_slice(bytes);
    set(TYPE_OF_LOADER, &[0xff]);
    // Loaded high.
    set(LOADFLAGS, &[1]);
    set(CMD_LINE_PTR, &(layout::CMDLINE as u32).to_le_bytes());
    set(CMDLINE_SIZE, &(boot.cmdline_len as u32 + 1).to_le_bytes());
    set(ACPI_RSDP, &boot.rsdp.to_le_bytes());
    if let Some((at, len)) = boot.initrd {
        // Below the gap, so below 4 GiB.
        set(RAMDISK_IMAGE, &(at as u32).to_le_bytes());
        set(RAMDISK_SIZE, &(len as u32).to_le_bytes());
    }
    let count = boot.map.len().min(E820_MAX);
    set(E820_ENTRIES, &[count as u8]);
    for (i, e) in boot.map.iter().take(count).enumerate() {
        let at = E820_TABLE + 20 * i;
        set(at, &e.start.to_le_bytes());
        set(at + 8, &e.len.to_le_bytes());
        set(at + 16, &e.kind.to_le_bytes());
    }
    put(ram, "boot parameters", layout::PARAMS, &params)?;
    cpu::long_mode(ram, entry, layout::PARAMS)
}
