//! The kernel's tables, made here rather than by the guest: ring-0 code is slow on some hosts.

use crate::layout::*;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 3 | 1 << 4;
// Set beforehand, so that a running guest doesn't dirty its page tables.
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
const LARGE: u64 = 1 << 7;

/// An address in the guest that the CPU jumps to for a vector.
pub(crate) struct Gate {
    pub vector: u8,
    pub handler: u64,
    /// Whether ring 3 may call it by an instruction.
    pub user: bool,
}

fn put(image: &mut [u8], at: u64, bytes: &[u8]) {
    let start = (at - KERNEL) as usize;
    image[start..start + bytes.len()].copy_from_slice(bytes);
}

fn put64(image: &mut [u8], at: u64, value: u64) {
    put(image, at, &value.to_le_bytes());
}

/// Identity mapping of 4 GiB in 2 MiB pages, all for ring 3 but the kernel's.
fn page_tables(image: &mut [u8]) {
    let table = PRESENT | WRITABLE | USER | 1 << 5;
    put64(image, PML4, (PML4 + PAGE) | table);
    for gib in 0..4 {
        let directory = PML4 + (2 + gib) * PAGE;
        put64(image, PML4 + PAGE + gib * 8, directory | table);
        for entry in 0..512 {
            let gpa = gib << 30 | entry << 21;
            let mut flags = PRESENT | WRITABLE | ACCESSED_DIRTY | LARGE;
            if gpa != KERNEL {
                flags |= USER;
            }
            if gpa >= DEVICES {
                flags |= UNCACHED;
            }
            put64(image, directory + entry * 8, gpa | flags);
        }
    }
}

/// Top of a CPU's ring-0 stack.
pub(crate) fn kernel_stack_top(cpu: u64) -> u64 {
    KERNEL_STACKS + (cpu + 1) * KERNEL_STACK_SIZE
}

fn segments(image: &mut [u8]) {
    // Null, then code, data, user data, user code: the order that syscall and sysret want.
    let fixed: [u64; 5] =
        [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
    for (slot, descriptor) in (0..).zip(fixed) {
        put64(image, GDT + slot * 8, descriptor);
    }
    for cpu in 0..MAX_CPUS {
        let tss = TSS + cpu * TSS_STRIDE;
        let limit = 103;
        let low = limit | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        let slot = GDT + u64::from(TSS_SELECTOR) + cpu * 16;
        put64(image, slot, low);
        put64(image, slot + 8, tss >> 32);
        put64(image, tss + 4, kernel_stack_top(cpu));
        // IST 1, for double faults: the lower half of the same stack.
        put64(image, tss + 36, kernel_stack_top(cpu) - KERNEL_STACK_SIZE / 2);
        put(image, tss + 102, &104u16.to_le_bytes());
    }
    let limit = u64::from(TSS_SELECTOR) + MAX_CPUS * 16 - 1;
    put64(image, GDT_POINTER, limit | GDT << 16);
    put64(image, IDT_POINTER, (PAGE - 1) | IDT << 16);
}

fn gates(image: &mut [u8], gates: &[Gate]) {
    for gate in gates {
        let ist = u64::from(gate.vector == 8);
        let low = gate.handler & 0xffff
            | u64::from(KERNEL_CS) << 16
            | ist << 32
            | if gate.user { 0xee << 40 } else { 0x8e << 40 }
            | (gate.handler >> 16 & 0xffff) << 48;
        put64(image, IDT + u64::from(gate.vector) * 16, low);
        put64(image, IDT + u64::from(gate.vector) * 16 + 8, gate.handler >> 32);
    }
}

/// Page tables that map [`SMALL_PAGES_SIZE`] from [`FILL`] in 4 KiB pages.
pub(crate) fn small_pages() -> Vec<u8> {
    let flags = PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
    let entries = (0..SMALL_PAGES_SIZE / PAGE).map(|page| (FILL + page * PAGE) | flags);
    entries.flat_map(u64::to_le_bytes).collect()
}

fn use_small_pages(image: &mut [u8]) {
    for table in 0..SMALL_PAGES_SIZE >> 21 {
        let entry = PML4 + 2 * PAGE + ((FILL >> 21) + table) * 8;
        let flags = PRESENT | WRITABLE | USER | 1 << 5;
        put64(image, entry, (SMALL_PAGE_TABLES + table * PAGE) | flags);
    }
}

/// Writes every table into `image`, which starts at [`KERNEL`].
pub(crate) fn write(image: &mut [u8], idt: &[Gate], small: bool) {
    page_tables(image);
    if small {
        use_small_pages(image);
    }
    segments(image);
    gates(image, idt);
}
