//! vCPU 0's first registers, and the tables they point to.

use super::{BootError, FirstState, layout, put};
use crate::memory::GuestRam;
use godwit_state::{RegsV1, SegmentV1, SystemV1, TableV1, access};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RBX: usize = 3;
const RSI: usize = 6;
const RSP: usize = 4;
const RBP: usize = 5;

const DATA: u32 = access::PRESENT | access::S | access::WRITABLE | access::ACCESSED | access::DB | access::G;
const CODE: u32 =
    access::PRESENT | access::S | access::WRITABLE | access::ACCESSED | access::CODE | access::G;
/// A busy 32-bit or 64-bit TSS.
const TSS: u32 = access::PRESENT | 11;

fn segment(selector: u16, limit: u32, access: u32) -> SegmentV1 {
    SegmentV1 { selector, base: 0, limit, access }
}

/// A descriptor as the processor reads it from memory.
fn descriptor(s: &SegmentV1) -> u64 {
    let limit = u64::from(if s.access & access::G != 0 { s.limit >> 12 } else { s.limit });
    let rights = u64::from(s.access & 0xf0ff);
    (limit & 0xffff) | rights << 40 | (limit >> 16) << 48
}

fn with_gdt(ram: &GuestRam, mut system: SystemV1) -> Result<SystemV1, BootError> {
    let gdt = [0, descriptor(&system.cs), descriptor(&system.ds), descriptor(&system.tr)];
    let bytes: Vec<u8> = gdt.iter().flat_map(|d| d.to_le_bytes()).collect();
    put(ram, "the GDT", layout::GDT, &bytes)?;
    system.gdtr = TableV1 { base: layout::GDT, limit: bytes.len() as u16 - 1 };
    system.idtr = TableV1 { base: 0, limit: 0 };
    Ok(system)
}

fn flat(code: SegmentV1) -> SystemV1 {
    let data = segment(0x10, u32::MAX, DATA);
    SystemV1 {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: segment(0x18, 0x67, TSS),
        ldtr: segment(0, 0, access::UNUSABLE),
        ..SystemV1::reset()
    }
}

/// PVH: flat 32-bit segments, no paging, EBX is `start_info`.
pub(super) fn protected_mode(ram: &GuestRam, entry: u64, start_info: u64) -> Result<FirstState, BootError> {
    let system =
        SystemV1 { cr0: CR0_PE | CR0_ET, ..with_gdt(ram, flat(segment(0x8, u32::MAX, CODE | access::DB)))? };
    let mut regs = RegsV1 { rip: entry, rflags: 2, ..RegsV1::default() };
    regs.gpr[RBX] = start_info;
    Ok(FirstState { regs, system })
}

/// Linux: long mode, the first GiB mapped one to one by 2 MiB pages, RSI is `params`.
pub(super) fn long_mode(ram: &GuestRam, entry: u64, params: u64) -> Result<FirstState, BootError> {
    let (pml4, pdpt, pd) = (layout::PAGE_TABLES, layout::PAGE_TABLES + 0x1000, layout::PAGE_TABLES + 0x2000);
    put(ram, "page tables", pml4, &(pdpt | 3).to_le_bytes())?;
    put(ram, "page tables", pdpt, &(pd | 3).to_le_bytes())?;
    let entries: Vec<u8> = (0..512u64).flat_map(|i| (i << 21 | 0x83).to_le_bytes()).collect();
    put(ram, "page tables", pd, &entries)?;
    let system = SystemV1 {
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3: pml4,
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        ..with_gdt(ram, flat(segment(0x8, u32::MAX, CODE | access::L)))?
    };
    let mut regs = RegsV1 { rip: entry, rflags: 2, ..RegsV1::default() };
    regs.gpr[RSI] = params;
    regs.gpr[RSP] = 0x8ff0;
    regs.gpr[RBP] = 0x8ff0;
    Ok(FirstState { regs, system })
}
