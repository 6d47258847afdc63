//! The guest's own code: home, which starts a vector and says what came of it, and the handlers that lead back there.
//!
//! ```text
//! home (protected mode, flat) ─ tables anew, pokes, MSRs, DRs, CRs ─┬─► IRETD ──────────────► the vector's code
//!   ▲                                                               ├─► long mode, IRETQ ───►      │ any exception,
//!   │                                                               └─► real mode, IRET ────►      │ or INT 0x20
//!   └── home's part of the handlers ◄── handlers of 16, 32 and 64 bits: all registers to DUMP ◄────┘
//! ```

use super::layout::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Vectors that have handlers.
pub const HANDLED: u32 = 0x30;
/// Bytes between two handlers.
const STRIDE: u32 = 16;
/// Where the handlers of real mode are, of protected and of long mode; after each what they share.
const HANDLERS_16: u32 = HANDLERS;
const SHARED_16: u32 = HANDLERS + 0x300;
const HANDLERS_32: u32 = HANDLERS + 0x400;
const SHARED_32: u32 = HANDLERS + 0x700;
const HANDLERS_64: u32 = HANDLERS + 0x900;
const SHARED_64: u32 = HANDLERS + 0xc00;
/// Real mode's entry, in 16-bit code: before and after.
const TO_REAL: u32 = HANDLERS + 0xe80;
const REAL: u32 = HANDLERS + 0xec0;
/// Home's parts: a new vector, control registers.
const PREPARE: u32 = HOME + 0x40;
const LEAVE: u32 = HOME + 0x240;
/// Where handlers come home, in 32-bit code.
const BACK: u32 = HOME + 0x400;
/// ECX bytes from ESI to the serial port.
const SEND: u32 = HOME + 0x5c0;
/// Where 64-bit handlers come home, still in compatibility mode.
const BACK_FROM_LONG: u32 = HOME + 0x600;
/// Long mode's entry.
const TO_LONG: u32 = HOME + 0x700;

const COM1: u32 = 0x3f8;
/// A port that a test may listen to: all is said.
pub const DONE: u16 = 0xf4;

type Result = std::result::Result<(), IcedError>;

fn assemble(bits: u32, at: u32, room: u32, f: impl FnOnce(&mut CodeAssembler) -> Result) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("16, 32 or 64");
    f(&mut a).expect("valid instructions");
    let code = a.assemble(at.into()).expect("the guest assembles");
    assert!(code.len() <= room as usize, "code at {at:#x} has {} bytes", code.len());
    code
}

/// JMP FAR in 32-bit code, or with its prefix in 16-bit code.
fn far(selector: u16, to: u32) -> Vec<u8> {
    let mut out = vec![0xea];
    out.extend(to.to_le_bytes());
    out.extend(selector.to_le_bytes());
    out
}

fn coded(vector: u32) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

fn at(offset: u32) -> u32 {
    DUMP + offset
}

/// Where the handler of a vector is.
pub fn handler(bits: u32, vector: u32) -> u32 {
    let first = match bits {
        16 => HANDLERS_16,
        32 => HANDLERS_32,
        _ => HANDLERS_64,
    };
    first + STRIDE * vector
}

/// All code below [`LOW`]: address and bytes.
pub fn low_code() -> Vec<(u32, Vec<u8>)> {
    let mut out = Vec::new();
    for vector in 0..HANDLED {
        for (bits, shared) in [(16, SHARED_16), (32, SHARED_32), (64, SHARED_64)] {
            let place = handler(bits, vector);
            let code = assemble(bits, place, STRIDE, |a| {
                if bits == 16 {
                    a.push(vector as i32)?;
                } else {
                    if !coded(vector) {
                        a.push(0)?;
                    }
                    a.push(vector as i32)?;
                }
                a.jmp(u64::from(shared))
            });
            out.push((place, code));
        }
    }
    out.push((SHARED_16, assemble(16, SHARED_16, HANDLERS_32 - SHARED_16, shared_16)));
    out.push((SHARED_32, assemble(32, SHARED_32, HANDLERS_64 - SHARED_32, shared_32)));
    out.push((SHARED_64, assemble(64, SHARED_64, TO_REAL - SHARED_64, shared_64)));
    out.push((TO_REAL, assemble(16, TO_REAL, REAL - TO_REAL, to_real)));
    out.push((REAL, assemble(16, REAL, HANDLERS + 0x1000 - REAL, real)));
    out
}

/// Registers but those that take part: of 32 bits.
const OTHERS: [(AsmRegister32, u32); 6] = [(ecx, 1), (edx, 2), (ebx, 3), (ebp, 5), (esi, 6), (edi, 7)];

fn shared_16(a: &mut CodeAssembler) -> Result {
    a.push(ds)?;
    a.push(eax)?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    for (r, n) in OTHERS {
        a.mov(dword_ptr(at(dump::GPR + n * 8)), r)?;
    }
    a.pop(eax)?;
    a.mov(dword_ptr(at(dump::GPR)), eax)?;
    a.pop(ax)?;
    a.mov(word_ptr(at(dump::SEGMENTS)), ax)?;
    for (n, s) in [es, fs, gs].into_iter().enumerate() {
        a.mov(word_ptr(at(dump::SEGMENTS + 8 + n as u32 * 8)), s)?;
    }
    for offset in [dump::VECTOR, dump::RIP, dump::CS, dump::RFLAGS] {
        a.pop(ax)?;
        a.mov(word_ptr(at(offset)), ax)?;
    }
    a.mov(dword_ptr(at(dump::RSP)), esp)?;
    a.mov(word_ptr(at(dump::SS)), ss)?;
    for (n, r) in [cr0, cr2, cr3, cr4].into_iter().enumerate() {
        a.mov(eax, r)?;
        a.mov(dword_ptr(at(dump::CR + n as u32 * 8)), eax)?;
    }
    a.db(&[0x66])?;
    a.lgdt(fword_ptr(POINTERS))?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    a.db(&[0x66])?;
    a.db(&far(0x08, BACK))
}

fn shared_32(a: &mut CodeAssembler) -> Result {
    let (mut flat, mut inner, mut saved) = (a.create_label(), a.create_label(), a.create_label());
    a.push(ds)?;
    a.push(eax)?;
    a.mov(eax, 0x10)?;
    a.mov(ds, eax)?;
    for (r, n) in OTHERS {
        a.mov(dword_ptr(at(dump::GPR + n * 8)), r)?;
    }
    a.pop(eax)?;
    a.mov(dword_ptr(at(dump::GPR)), eax)?;
    a.pop(eax)?;
    a.mov(word_ptr(at(dump::SEGMENTS)), ax)?;
    for (n, s) in [es, fs, gs].into_iter().enumerate() {
        a.mov(word_ptr(at(dump::SEGMENTS + 8 + n as u32 * 8)), s)?;
    }
    for offset in [dump::VECTOR, dump::ERROR, dump::RIP, dump::CS, dump::RFLAGS] {
        a.pop(eax)?;
        a.mov(dword_ptr(at(offset)), eax)?;
    }
    // EAX: flags. From virtual-8086 mode, from another ring, from this one.
    a.test(eax, 0x2_0000)?;
    a.je(flat)?;
    for offset in
        [dump::RSP, dump::SS, dump::SEGMENTS + 8, dump::SEGMENTS, dump::SEGMENTS + 16, dump::SEGMENTS + 24]
    {
        a.pop(eax)?;
        a.mov(dword_ptr(at(offset)), eax)?;
    }
    a.jmp(saved)?;
    a.set_label(&mut flat)?;
    a.test(byte_ptr(at(dump::CS)), 3)?;
    a.je(inner)?;
    for offset in [dump::RSP, dump::SS] {
        a.pop(eax)?;
        a.mov(dword_ptr(at(offset)), eax)?;
    }
    a.jmp(saved)?;
    a.set_label(&mut inner)?;
    a.mov(dword_ptr(at(dump::RSP)), esp)?;
    a.mov(word_ptr(at(dump::SS)), ss)?;
    a.set_label(&mut saved)?;
    a.str(word_ptr(at(dump::TASK)))?;
    a.sldt(word_ptr(at(dump::TASK + 8)))?;
    for (n, r) in [cr0, cr2, cr3, cr4].into_iter().enumerate() {
        a.mov(eax, r)?;
        a.mov(dword_ptr(at(dump::CR + n as u32 * 8)), eax)?;
    }
    // Paging off: virtual is physical.
    a.mov(eax, cr0)?;
    a.and(eax, 0x7fff_ffff)?;
    a.mov(cr0, eax)?;
    a.db(&far(0x08, BACK))
}

fn shared_64(a: &mut CodeAssembler) -> Result {
    let all = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    for (n, r) in all.into_iter().enumerate().filter(|(n, _)| *n != 4) {
        a.mov(qword_ptr(at(dump::GPR + n as u32 * 8)), r)?;
    }
    for (n, s) in [ds, es, fs, gs].into_iter().enumerate() {
        a.mov(word_ptr(at(dump::SEGMENTS + n as u32 * 8)), s)?;
    }
    for offset in [dump::VECTOR, dump::ERROR, dump::RIP, dump::CS, dump::RFLAGS, dump::RSP, dump::SS] {
        a.pop(rax)?;
        // Vector and error code share a word of 64 bits.
        if offset == dump::VECTOR || offset == dump::ERROR {
            a.mov(dword_ptr(at(offset)), eax)?;
        } else {
            a.mov(qword_ptr(at(offset)), rax)?;
        }
    }
    a.str(word_ptr(at(dump::TASK)))?;
    a.sldt(word_ptr(at(dump::TASK + 8)))?;
    for (n, r) in [cr0, cr2, cr3, cr4].into_iter().enumerate() {
        a.mov(rax, r)?;
        a.mov(qword_ptr(at(dump::CR + n as u32 * 8)), rax)?;
    }
    // PCIDs must go before long mode does.
    a.mov(rax, cr4)?;
    a.and(eax, !(1 << 17))?;
    a.mov(cr4, rax)?;
    a.mov(ax, 0x10)?;
    a.mov(ss, ax)?;
    a.mov(esp, HOME_STACK)?;
    a.push(0x08)?;
    a.push(BACK_FROM_LONG as i32)?;
    a.db(&[0x48, 0xcb])
}

/// 16-bit code in a segment of base 0, protected mode: to real mode and on.
fn to_real(a: &mut CodeAssembler) -> Result {
    a.mov(ax, 0x28)?;
    for s in [ds, es, fs, gs, ss] {
        a.mov(s, ax)?;
    }
    a.mov(eax, dword_ptr(LAUNCH + record::CR))?;
    a.mov(cr0, eax)?;
    a.db(&[0xea, REAL as u8, (REAL >> 8) as u8, 0, 0])
}

fn real(a: &mut CodeAssembler) -> Result {
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(ss, ax)?;
    a.lidt(fword_ptr(POINTERS + 0x10))?;
    a.mov(fs, word_ptr(LAUNCH + record::SEGMENTS))?;
    a.mov(gs, word_ptr(LAUNCH + record::SEGMENTS + 2))?;
    a.mov(esp, LAUNCH + record::POPAD)?;
    a.popad()?;
    a.lss(esp, fword_ptr(LAUNCH + record::STACK))?;
    a.mov(es, word_ptr(LAUNCH + record::SEGMENTS + 6))?;
    a.mov(ds, word_ptr(LAUNCH + record::SEGMENTS + 4))?;
    a.iret()
}

/// Home: entered with nothing but flat protected mode, at its start.
pub fn home() -> Vec<u8> {
    let mut out = vec![0; 0x800];
    for (place, code) in [
        (HOME, assemble(32, HOME, PREPARE - HOME, start)),
        (PREPARE, assemble(32, PREPARE, LEAVE - PREPARE, prepare)),
        (LEAVE, assemble(32, LEAVE, BACK - LEAVE, leave)),
        (BACK, assemble(32, BACK, SEND - BACK, back)),
        (SEND, assemble(32, SEND, BACK_FROM_LONG - SEND, send)),
        (BACK_FROM_LONG, assemble(32, BACK_FROM_LONG, TO_LONG - BACK_FROM_LONG, back_from_long)),
        (TO_LONG, assemble(64, TO_LONG, 0x100, to_long)),
    ] {
        let place = (place - HOME) as usize;
        out[place..place + code.len()].copy_from_slice(&code);
    }
    out
}

/// Tables anew.
fn start(a: &mut CodeAssembler) -> Result {
    a.mov(esp, HOME_STACK)?;
    a.cld()?;
    a.mov(esi, PRISTINE)?;
    a.xor(edi, edi)?;
    a.mov(ecx, LOW / 4)?;
    a.rep().movsd()?;
    a.lgdt(fword_ptr(POINTERS))?;
    a.lidt(fword_ptr(POINTERS + 8))?;
    a.db(&far(0x08, PREPARE))
}

/// A new vector: what it asks for, and what memory then is.
fn prepare(a: &mut CodeAssembler) -> Result {
    let (mut msrs, mut msrs_done) = (a.create_label(), a.create_label());
    let (mut pokes, mut pokes_done) = (a.create_label(), a.create_label());
    let (mut go, mut no_long, mut legacy) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(eax, 0x10)?;
    for s in [ds, es, ss] {
        a.mov(s, eax)?;
    }
    a.mov(ebx, dword_ptr(CURRENT))?;
    a.cmp(dword_ptr(ebx), -1)?;
    a.jne(go)?;
    // All is said: a test hears it; elsewhere a triple fault ends the machine.
    a.mov(edx, u32::from(DONE))?;
    a.out(dx, al)?;
    a.lidt(fword_ptr(POINTERS + 0x18))?;
    a.int3()?;
    a.set_label(&mut go)?;
    // What is loaded last.
    a.mov(esi, ebx)?;
    a.mov(edi, LAUNCH)?;
    a.mov(ecx, record::COPIED / 4)?;
    a.rep().movsd()?;
    // ESI: the lists.
    a.lodsd()?;
    a.mov(ebp, eax)?;
    a.set_label(&mut msrs)?;
    a.test(ebp, ebp)?;
    a.je(msrs_done)?;
    a.mov(ecx, dword_ptr(esi))?;
    a.mov(eax, dword_ptr(esi + 4))?;
    a.mov(edx, dword_ptr(esi + 8))?;
    a.wrmsr()?;
    a.add(esi, 12)?;
    a.dec(ebp)?;
    a.jmp(msrs)?;
    a.set_label(&mut msrs_done)?;
    a.lodsd()?;
    a.mov(ebp, eax)?;
    a.set_label(&mut pokes)?;
    a.test(ebp, ebp)?;
    a.je(pokes_done)?;
    a.mov(edi, dword_ptr(esi))?;
    a.mov(ecx, dword_ptr(esi + 4))?;
    a.add(esi, 8)?;
    a.rep().movsb()?;
    a.add(esi, 3)?;
    a.and(esi, !3)?;
    a.dec(ebp)?;
    a.jmp(pokes)?;
    a.set_label(&mut pokes_done)?;
    a.mov(dword_ptr(CURRENT), esi)?;
    // IRET's frame.
    a.mov(esi, LAUNCH + record::FRAME)?;
    a.mov(edi, dword_ptr(LAUNCH + record::FRAME_AT))?;
    a.mov(ecx, dword_ptr(LAUNCH + record::FRAME_LEN))?;
    a.rep().movsd()?;
    // Nothing dumped yet.
    a.mov(edi, DUMP)?;
    a.xor(eax, eax)?;
    a.mov(ecx, dump::LEN / 4)?;
    a.rep().stosd()?;
    a.mov(eax, 0x80)?;
    a.lldt(ax)?;
    a.cmp(dword_ptr(LAUNCH), 2)?;
    a.je(no_long)?;
    a.mov(eax, 0x58)?;
    a.ltr(ax)?;
    a.jmp(legacy)?;
    a.set_label(&mut no_long)?;
    // Long mode loads its own; here only the mark that this leaves.
    a.mov(byte_ptr(GDT + 0x65), 0x8b)?;
    a.set_label(&mut legacy)?;
    a.xor(esi, esi)?;
    a.mov(edi, SHADOW)?;
    a.mov(ecx, LOW / 4)?;
    a.rep().movsd()?;
    a.mov(byte_ptr(GDT + 0x65), 0x89)?;
    for (n, r) in [dr0, dr1, dr2, dr3, dr7].into_iter().enumerate() {
        a.mov(eax, dword_ptr(LAUNCH + record::DR + n as u32 * 4))?;
        a.mov(r, eax)?;
    }
    a.mov(eax, 0xffff_0ff0u32)?;
    a.mov(dr6, eax)?;
    a.xor(eax, eax)?;
    a.mov(cr2, eax)?;
    for (n, s) in [fs, gs].into_iter().enumerate() {
        a.mov(eax, dword_ptr(LAUNCH + record::SEGMENTS + n as u32 * 2))?;
        a.mov(s, eax)?;
    }
    a.jmp(u64::from(LEAVE))
}

/// Control registers, and off.
fn leave(a: &mut CodeAssembler) -> Result {
    let (mut real, mut long) = (a.create_label(), a.create_label());
    a.cmp(dword_ptr(LAUNCH), 0)?;
    a.je(real)?;
    a.mov(eax, dword_ptr(LAUNCH + record::CR + 8))?;
    // PCIDs only in long mode.
    a.and(eax, !(1 << 17))?;
    a.mov(cr4, eax)?;
    a.mov(eax, dword_ptr(LAUNCH + record::CR + 4))?;
    a.mov(cr3, eax)?;
    a.mov(ecx, 0xc000_0080u32)?;
    a.rdmsr()?;
    a.mov(eax, dword_ptr(LAUNCH + record::CR + 12))?;
    a.wrmsr()?;
    a.mov(eax, dword_ptr(LAUNCH + record::CR))?;
    a.mov(cr0, eax)?;
    a.cmp(dword_ptr(LAUNCH), 2)?;
    a.je(long)?;
    a.mov(esp, LAUNCH + record::POPAD)?;
    a.popad()?;
    a.mov(es, word_ptr(LAUNCH + record::SEGMENTS + 6).cs())?;
    a.mov(ds, word_ptr(LAUNCH + record::SEGMENTS + 4).cs())?;
    a.lss(esp, fword_ptr(LAUNCH + record::STACK).cs())?;
    a.iretd()?;
    a.set_label(&mut long)?;
    a.db(&far(0x18, TO_LONG))?;
    a.set_label(&mut real)?;
    a.db(&far(0x20, TO_REAL))
}

fn to_long(a: &mut CodeAssembler) -> Result {
    a.mov(eax, dword_ptr(LAUNCH + record::CR + 8))?;
    a.mov(cr4, rax)?;
    a.lidt(tbyte_ptr(POINTERS + 0x40))?;
    a.mov(eax, 0x60)?;
    a.ltr(ax)?;
    a.mov(es, word_ptr(LAUNCH + record::SEGMENTS + 6))?;
    a.mov(ds, word_ptr(LAUNCH + record::SEGMENTS + 4))?;
    a.mov(esp, dword_ptr(LAUNCH + record::FRAME_AT))?;
    let all = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    for (n, r) in all.into_iter().enumerate().filter(|(n, _)| *n != 4) {
        a.mov(r, qword_ptr(LAUNCH + record::GPR + n as u32 * 8))?;
    }
    a.iretq()
}

/// Long mode off.
fn back_from_long(a: &mut CodeAssembler) -> Result {
    a.mov(eax, 0x10)?;
    a.mov(ds, eax)?;
    a.mov(eax, cr0)?;
    a.and(eax, 0x7fff_ffff)?;
    a.mov(cr0, eax)?;
    a.jmp(u64::from(BACK))
}

/// From protected mode without paging: the rest of the dump, what changed in memory, all of it out.
fn back(a: &mut CodeAssembler) -> Result {
    let (mut look, mut same, mut full, mut over) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.mov(eax, 0x10)?;
    for s in [ds, es, ss] {
        a.mov(s, eax)?;
    }
    a.mov(esp, HOME_STACK)?;
    a.push(2)?;
    a.popfd()?;
    a.mov(ecx, 0xc000_0080u32)?;
    a.rdmsr()?;
    a.mov(dword_ptr(at(dump::EFER)), eax)?;
    a.xor(eax, eax)?;
    a.wrmsr()?;
    a.mov(eax, dr6)?;
    a.mov(dword_ptr(at(dump::DR)), eax)?;
    a.mov(eax, dr7)?;
    a.mov(dword_ptr(at(dump::DR + 8)), eax)?;
    a.mov(eax, 0x400)?;
    a.mov(dr7, eax)?;
    a.xor(eax, eax)?;
    a.mov(cr4, eax)?;
    a.mov(cr3, eax)?;
    a.mov(eax, 0x11)?;
    a.mov(cr0, eax)?;
    a.lidt(fword_ptr(POINTERS + 0x18))?;
    // What changed.
    a.xor(esi, esi)?;
    a.xor(ebp, ebp)?;
    a.set_label(&mut look)?;
    a.mov(eax, dword_ptr(esi))?;
    a.cmp(eax, dword_ptr(esi + SHADOW))?;
    a.je(same)?;
    a.cmp(ebp, MAX_CHANGES)?;
    a.je(same)?;
    a.mov(dword_ptr(ebp * 8 + CHANGES + 4), esi)?;
    a.mov(dword_ptr(ebp * 8 + CHANGES + 8), eax)?;
    a.inc(ebp)?;
    a.set_label(&mut same)?;
    a.add(esi, 4)?;
    a.cmp(esi, STACK0 - 0x1000)?;
    a.je(full)?;
    a.cmp(esi, STACK3)?;
    a.jne(over)?;
    a.set_label(&mut full)?;
    a.add(esi, 0x1000)?;
    a.set_label(&mut over)?;
    a.cmp(esi, LOW)?;
    a.jne(look)?;
    a.mov(dword_ptr(CHANGES), ebp)?;
    // Out: the dump, then the changes.
    a.mov(ecx, dump::LEN)?;
    a.mov(esi, DUMP)?;
    a.call(u64::from(SEND))?;
    a.lea(ecx, dword_ptr(ebp * 8 + 4))?;
    a.mov(esi, CHANGES)?;
    a.call(u64::from(SEND))?;
    a.jmp(u64::from(HOME))
}

fn send(a: &mut CodeAssembler) -> Result {
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.mov(edx, COM1 + 5)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.je(wait)?;
    a.mov(edx, COM1)?;
    a.lodsb()?;
    a.out(dx, al)?;
    a.dec(ecx)?;
    a.jne(wait)?;
    a.ret()
}
