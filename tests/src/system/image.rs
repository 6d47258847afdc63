//! The guest's memory: tables, handlers, home, and the records of vectors.

use super::guest;
use super::layout::*;
use super::vector::Vector;
use godwit_guests::elf::{self, Segment};

/// The GDT, by selector.
const GDT_ENTRIES: [(u32, u64); 28] = [
    (0x08, 0x00cf_9b00_0000_ffff),
    (0x10, 0x00cf_9300_0000_ffff),
    (0x18, 0x00af_9b00_0000_ffff),
    (0x20, 0x0000_9b00_0000_ffff),
    (0x28, 0x0000_9300_0000_ffff),
    (0x30, 0x00cf_fb00_0000_ffff),
    (0x38, 0x00cf_f300_0000_ffff),
    (0x40, 0x00af_fb00_0000_ffff),
    (0x48, 0x0000_fb00_0000_ffff),
    (0x50, 0x0000_f300_0000_ffff),
    // TSSs: protected mode's, long mode's, two others.
    (0x58, 0x0000_8900_4000_0087),
    (0x60, 0x0000_8900_4600_0087),
    (0x70, 0x0000_8900_4200_0067),
    (0x78, 0x0000_8100_4400_002b),
    // LDT.
    (0x80, 0x0000_8200_1800_00ff),
    // Call gates of 32, 16 and 64 bits, a task gate: for ring 3.
    (0x90, 0x0000_ec00_0008_6800),
    (0x98, 0x0000_e400_0020_6800),
    (0xa0, 0x0000_ec00_0018_6800),
    (0xb0, 0x0000_e500_0070_0000),
    // Conforming code; data that is not present, that is read only; code that may only run; data that expands down, that
    // is small; code and data of ring 1; code that is not present.
    (0xb8, 0x00cf_9f00_0000_ffff),
    (0xc0, 0x00cf_7300_0000_ffff),
    (0xc8, 0x00cf_f100_0000_ffff),
    (0xd0, 0x00cf_f900_0000_ffff),
    (0xd8, 0x0040_f700_0000_7fff),
    (0xe0, 0x0040_f300_7000_000f),
    (0xe8, 0x00cf_bb00_0000_ffff),
    (0xf0, 0x00cf_b300_0000_ffff),
    (0xf8, 0x00cf_1b00_0000_ffff),
];

/// Vectors that every ring may raise: one's end, and what else a vector likes.
const OPEN: [u32; 4] = [3, 4, 0x20, 0x21];

/// Memory below [`LOW`], as every vector begins with it.
pub fn pristine() -> Vec<u8> {
    let mut m = vec![0u8; LOW as usize];
    let mut put = |at: u32, bytes: &[u8]| m[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    for (at, code) in guest::low_code() {
        put(at, &code);
    }
    for vector in 0..guest::HANDLED {
        put(vector * 4, &guest::handler(16, vector).to_le_bytes());
        let gate = if OPEN.contains(&vector) { 0xee00u64 } else { 0x8e00 };
        let (h32, h64) = (u64::from(guest::handler(32, vector)), u64::from(guest::handler(64, vector)));
        put(IDT + vector * 8, &(h32 | 0x08 << 16 | gate << 32).to_le_bytes());
        put(IDT64 + vector * 16, &(h64 | 0x18 << 16 | gate << 32).to_le_bytes());
    }
    for (selector, descriptor) in GDT_ENTRIES {
        put(GDT + selector, &descriptor.to_le_bytes());
    }
    put(LDT, &0x00cf_f300_0000_ffffu64.to_le_bytes());
    put(LDT + 8, &0x00cf_fb00_0000_ffffu64.to_le_bytes());
    // Rings 0 and 1 of the tasks; no I/O ports but through the map, which is full.
    let words = |list: &[u32]| list.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    put(TSS + 4, &words(&[STACK0, 0x10, STACK1, 0xf1]));
    put(TSS + 0x64, &words(&[0x68 << 16]));
    put(TSS + 0x68, &[0xff; 0x20]);
    put(TSS64 + 4, &words(&[STACK0, 0, STACK1]));
    put(TSS64 + 0x24, &words(&[IST1]));
    put(TSS64 + 0x64, &words(&[0x68 << 16]));
    put(TSS64 + 0x68, &[0xff; 0x20]);
    // Another task: CR3, EIP, flags, eight registers, six selectors, LDT.
    put(OTHER_TSS + 4, &words(&[STACK0, 0x10]));
    put(OTHER_TSS + 0x1c, &words(&[PD, ELSEWHERE, 2, 1, 2, 3, 4, STACK3, 6, 7, 8]));
    put(OTHER_TSS + 0x48, &words(&[0x10, 0x08, 0x10, 0x10, 0x10, 0x10, 0x80, 0x68 << 16]));
    let halves = |list: &[u16]| list.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    // Of 16 bits: back link, three stacks, IP, flags, eight registers, four selectors, LDT.
    put(TSS16 + 2, &halves(&[STACK0 as u16, 0x10]));
    put(TSS16 + 14, &halves(&[ELSEWHERE as u16, 2, 1, 2, 3, 4, STACK3 as u16, 6, 7, 8]));
    put(TSS16 + 34, &halves(&[0x10, 0x08, 0x10, 0x10, 0x80]));
    // INT 0x21
    put(ELSEWHERE, &[0xcd, 0x21]);
    let pointer = |limit: u16, base: u32| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    put(POINTERS, &pointer(0x3ff, GDT));
    put(POINTERS + 8, &pointer((guest::HANDLED * 8 - 1) as u16, IDT));
    put(POINTERS + 0x10, &pointer((guest::HANDLED * 4 - 1) as u16, 0));
    put(POINTERS + 0x18, &pointer(0, 0));
    put(POINTERS + 0x40, &[pointer((guest::HANDLED * 16 - 1) as u16, IDT64), vec![0; 4]].concat());
    paging(&mut put);
    m
}

/// Flags of a page of the first 2 MiB: for ring 3 are code, data and its stack; data and the stack are untouched.
fn page(number: u32) -> u64 {
    let user = if matches!(number, 6 | 7 | 8 | 10) { 4 } else { 0 };
    let touched = if matches!(number, 7 | 8) { 0 } else { 0x60 };
    (u64::from(number) << 12) | 3 | user | touched
}

fn paging(put: &mut impl FnMut(u32, &[u8])) {
    // Present, writable, for ring 3, accessed.
    const TABLE: u64 = 0x27;
    // A large page at home; others, untouched, that show what is at 0.
    const HOME_PAGE: u64 = 0x20_00e3;
    const ALIAS: u64 = 0x87;
    for number in 0..1024 {
        put(PD + 0x1000 + number * 4, &(page(number) as u32).to_le_bytes());
    }
    put(PD, &(((u64::from(PD) + 0x1000) | TABLE) as u32).to_le_bytes());
    put(PD + 4, &(ALIAS as u32).to_le_bytes());
    for (directory, first) in [(PDPT_PAE + 0x1000, PDPT_PAE + 0x2000), (PML4 + 0x2000, PML4 + 0x3000)] {
        for number in 0..512 {
            put(first + number * 8, &page(number).to_le_bytes());
        }
        for (n, entry) in [u64::from(first) | TABLE, HOME_PAGE, ALIAS].into_iter().enumerate() {
            put(directory + n as u32 * 8, &entry.to_le_bytes());
        }
    }
    put(PDPT_PAE, &((u64::from(PDPT_PAE) + 0x1000) | 1).to_le_bytes());
    put(PML4, &((u64::from(PML4) + 0x1000) | TABLE).to_le_bytes());
    put(PML4 + 0x1000, &((u64::from(PML4) + 0x2000) | TABLE).to_le_bytes());
    put(PML4 + 0x1008, &ALIAS.to_le_bytes());
}

/// A vector's record.
pub fn record(v: &Vector) -> Vec<u8> {
    let mut out = vec![0u8; record::COPIED as usize];
    let mut put = |at: u32, bytes: &[u8]| out[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    let s = &v.start;
    put(record::KIND, &(v.mode.kind() as u32).to_le_bytes());
    for (n, word) in [s.cr0, s.cr3, s.cr4, s.efer].into_iter().chain(s.dr).enumerate() {
        put(record::CR + n as u32 * 4, &word.to_le_bytes());
    }
    for (n, selector) in [s.fs, s.gs, s.ds, s.es].into_iter().enumerate() {
        put(record::SEGMENTS + n as u32 * 2, &selector.to_le_bytes());
    }
    let (frame, at, stack) = v.frame();
    put(record::STACK, &stack.0.to_le_bytes());
    put(record::STACK + 4, &stack.1.to_le_bytes());
    put(record::FRAME_AT, &at.to_le_bytes());
    put(record::FRAME_LEN, &(frame.len() as u32).to_le_bytes());
    for (n, word) in frame.into_iter().enumerate() {
        put(record::FRAME + n as u32 * 4, &word.to_le_bytes());
    }
    for (n, register) in [7, 6, 5, 4, 3, 2, 1, 0].into_iter().enumerate() {
        put(record::POPAD + n as u32 * 4, &(s.gpr[register] as u32).to_le_bytes());
    }
    for (n, value) in s.gpr.into_iter().enumerate() {
        put(record::GPR + n as u32 * 8, &value.to_le_bytes());
    }
    out.extend((s.msrs.len() as u32).to_le_bytes());
    for (number, value) in &s.msrs {
        out.extend(number.to_le_bytes());
        out.extend(value.to_le_bytes());
    }
    let pokes: Vec<(u32, &[u8])> =
        v.pokes.iter().map(|(at, bytes)| (*at, &bytes[..])).chain([(CODE, &v.code[..])]).collect();
    out.extend((pokes.len() as u32).to_le_bytes());
    for (at, bytes) in pokes {
        out.extend(at.to_le_bytes());
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// Everything, as address and bytes. Runs `vectors` one after another.
///
/// # Panics
/// If there are more than fit.
pub fn memory(vectors: &[&Vector]) -> Vec<(u32, Vec<u8>)> {
    let mut records: Vec<u8> = vectors.iter().flat_map(|v| record(v)).collect();
    records.extend(u32::MAX.to_le_bytes());
    assert!(records.len() < (END - RECORDS) as usize, "too many vectors for one image");
    vec![
        (HOME, guest::home()),
        (CURRENT, RECORDS.to_le_bytes().to_vec()),
        (PRISTINE, pristine()),
        (RECORDS, records),
    ]
}

/// The same as a file that a machine starts by PVH.
pub fn elf(vectors: &[&Vector]) -> Vec<u8> {
    let segments: Vec<Segment> = memory(vectors)
        .into_iter()
        .map(|(at, bytes)| Segment { gpa: at.into(), bytes, executable: true })
        .collect();
    elf::write(&segments, HOME.into(), HOME)
}
