//! The PVH boot protocol (Xen's start_info.h): 32-bit protected mode, EBX points to start_info.

use super::{Boot, BootError, FirstState, cpu, layout, put};
use crate::memory::GuestRam;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;

pub(super) fn prepare(ram: &GuestRam, entry: u64, boot: &Boot) -> Result<FirstState, BootError> {
    let modules = layout::PARAMS + START_INFO_SIZE.next_multiple_of(16);
    let map = modules + MODULE_SIZE;
    let mut out = Vec::new();
    out.extend(MAGIC.to_le_bytes());
    out.extend(VERSION.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.extend(u32::from(boot.initrd.is_some()).to_le_bytes());
    out.extend(if boot.initrd.is_some() { modules } else { 0 }.to_le_bytes());
    out.extend(layout::CMDLINE.to_le_bytes());
    out.extend(boot.rsdp.to_le_bytes());
    out.extend(map.to_le_bytes());
    out.extend((boot.map.len() as u32).to_le_bytes());
    out.extend(0u32.to_le_bytes());
    out.resize((modules - layout::PARAMS) as usize, 0);
    let (at, len) = boot.initrd.unwrap_or((0, 0));
    for word in [at, len, 0, 0] {
        out.extend(word.to_le_bytes());
    }
    for e in &boot.map {
        out.extend(e.start.to_le_bytes());
        out.extend(e.len.to_le_bytes());
        out.extend(e.kind.to_le_bytes());
        out.extend(0u32.to_le_bytes());
    }
    put(ram, "PVH start info", layout::PARAMS, &out)?;
    cpu::protected_mode(ram, entry, layout::PARAMS)
}
