//! Interrupts of devices, on every CPU and with every filter on: raised by the device thread (the PIT), by the control thread
//! (Ctrl-Alt-Del), through the I/O APIC and through the 8259s; and still there after a live move.

use godwit_guests::elf::{self, Segment};
use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::{PATIENCE, Process, Scratch, ask, program};
use iced_x86::code_asm::*;
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Programs of the guest, in 32-bit mode without paging: a page each.
const ENTRY: u64 = 0x20_0000;
const MAIN: u64 = 0x20_1000;
const REST: u64 = 0x20_2000;
const HANDLERS: u64 = 0x20_3000;
/// GDT, then IDT, then what LGDT and LIDT read.
const TABLES: u64 = 0x21_0000;
const STACK: u32 = 0x30_0000;
const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;
const EOI: u32 = LAPIC + 0xb0;

/// Vectors, and what their handlers print: the timer by the 8259s, the timer by the I/O APIC, a key by the I/O APIC.
const VECTORS: [(u32, u8); 3] = [(0x20, b'p'), (0x41, b'i'), (0x42, b'k')];

fn assembled(at: u64, program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Segment {
    let mut a = CodeAssembler::new(32).unwrap();
    program(&mut a).unwrap();
    Segment { gpa: at, bytes: a.assemble(at).unwrap(), executable: true }
}

fn entry(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.lgdt(fword_ptr(TABLES as u32 + 0x900))?;
    a.lidt(fword_ptr(TABLES as u32 + 0x908))?;
    a.mov(eax, 0x10)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    a.mov(esp, STACK)?;
    a.push(8)?;
    a.push(MAIN as i32)?;
    a.retf()
}

fn main_program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // The 8259s: vectors 0x20 and 0x28, only line 0 open, and its LAPIC lets them through.
    for (port, value) in
        [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1)]
    {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    a.mov(al, 0xfeu32)?;
    a.out(0x21, al)?;
    a.mov(al, 0xffu32)?;
    a.out(0xa1, al)?;
    for (register, value) in [(0xf0, 0x1ff), (0x80, 0), (0x350, 0x700)] {
        a.mov(dword_ptr(LAPIC + register), value)?;
    }
    // The I/O APIC: the timer is on pin 2, the keyboard on pin 1.
    for (register, value) in [(0x15, 0), (0x14, 0x41), (0x13, 0), (0x12, 0x42)] {
        a.mov(dword_ptr(IOAPIC), register)?;
        a.mov(dword_ptr(IOAPIC + 0x10), value)?;
    }
    // 100 Hz.
    for (port, value) in [(0x43, 0x34u32), (0x40, 0x9c), (0x40, 0x2e)] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    a.mov(eax, REST as u32)?;
    a.jmp(eax)
}

fn rest(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(esp, STACK)?;
    a.sti()?;
    a.set_label(&mut again)?;
    a.hlt()?;
    a.jmp(again)
}

fn handler(a: &mut CodeAssembler, vector: u32, says: u8) -> Result<(), IcedError> {
    if says == b'k' {
        a.in_(al, 0x60)?;
    }
    a.mov(dx, 0x3f8)?;
    a.mov(al, u32::from(says))?;
    a.out(dx, al)?;
    if vector == 0x20 {
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
    } else {
        a.mov(dword_ptr(EOI), 0)?;
    }
    // Nothing but rest was interrupted: there is nothing to return to, and KVMs that emulate this mode lack IRET in it.
    a.mov(eax, REST as u32)?;
    a.jmp(eax)
}

fn image() -> Vec<u8> {
    let mut tables = vec![0; 0x1000];
    // Flat code and data.
    tables[8..16].copy_from_slice(&0x00cf_9b00_0000_ffffu64.to_le_bytes());
    tables[16..24].copy_from_slice(&0x00cf_9300_0000_ffffu64.to_le_bytes());
    for (i, (vector, _)) in VECTORS.iter().enumerate() {
        let to = HANDLERS + 0x1000 * i as u64;
        let gate = to & 0xffff | 8 << 16 | 0x8e00 << 32 | (to >> 16) << 48;
        let at = 0x100 + 8 * *vector as usize;
        tables[at..at + 8].copy_from_slice(&gate.to_le_bytes());
    }
    for (at, limit, base) in [(0x900, 23u16, TABLES), (0x908, 0x7ff, TABLES + 0x100)] {
        tables[at..at + 2].copy_from_slice(&limit.to_le_bytes());
        tables[at + 2..at + 6].copy_from_slice(&(base as u32).to_le_bytes());
    }
    let mut segments = vec![assembled(ENTRY, entry), assembled(MAIN, main_program), assembled(REST, rest)];
    for (i, (vector, says)) in VECTORS.iter().enumerate() {
        segments.push(assembled(HANDLERS + 0x1000 * i as u64, |a| handler(a, *vector, *says)));
    }
    segments.push(Segment { gpa: TABLES, bytes: tables, executable: false });
    elf::write(&segments, ENTRY, ENTRY as u32)
}

/// How often it has said each of these letters, and `n` times more.
fn more(vm: &Process, letters: &str, n: usize) -> Vec<(char, usize)> {
    letters.chars().map(|c| (c, said(vm, c) + n)).collect()
}

fn said(vm: &Process, letter: char) -> usize {
    vm.text().chars().filter(|c| *c == letter).count()
}

/// Waits until it has said each letter so often.
fn hears(test: &str, vm: &Process, wanted: &[(char, usize)]) {
    let end = Instant::now() + PATIENCE;
    while wanted.iter().any(|(c, n)| said(vm, *c) < *n) {
        assert!(Instant::now() < end, "{test}: {wanted:?} of {:?}; {}", vm.text(), vm.err());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The timer goes on by both ways, and a key is heard.
fn hears_all(test: &str, vm: &Process, api: &str) {
    hears(test, vm, &more(vm, "pi", 3));
    let wanted = more(vm, "kpi", 1);
    types(api.as_ref());
    hears(test, vm, &wanted);
}

fn types(api: &Path) {
    let answer = ask(api, "PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#).unwrap();
    assert_eq!(answer.0, 204, "{answer:?}");
}

fn interrupted(test: &str, here: &str, there: &str) {
    let found = [here, there].iter().try_for_each(|b| Plugin::usable(b).map(drop));
    let godwit = match found.and_then(|()| program("godwit")) {
        Ok(godwit) => godwit,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let scratch = Scratch::new(test);
    std::fs::write(scratch.path("guest.elf"), image()).unwrap();
    let spec = json!({"boot-source": {"kernel_image_path": scratch.path("guest.elf")},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 16, "cpu_model": "x86-64", "allow_tsc_mismatch": true}});
    std::fs::write(scratch.path("vm.json"), spec.to_string()).unwrap();
    let [config, a, b, way] =
        ["vm.json", "a.sock", "b.sock", "way.sock"].map(|n| scratch.path(n).to_str().unwrap().to_owned());
    let first = Process::start(&godwit, &["--config-file", &config, "--api-sock", &a, "--backend", here], "");
    hears_all(test, &first, &a);

    let way = format!("unix:{way}");
    let args = ["receive", &way, "--api-sock", &b, "--backend", there, "--allow-tsc-mismatch"];
    let second = Process::start(&godwit, &args, "");
    second.wait_place().unwrap();
    let moved = Command::new(&godwit).args(["migrate", "--api-sock", &a, &way]).output().unwrap();
    assert!(moved.status.success(), "{test}: {}", String::from_utf8_lossy(&moved.stderr));
    hears_all(test, &second, &b);
}

#[test]
fn devices_are_heard_on_kvm_and_after_a_move() {
    interrupted("devices_are_heard_on_kvm_and_after_a_move", "kvm", "kvm");
}

#[test]
fn devices_are_heard_on_the_interpreter_and_after_a_move() {
    interrupted("devices_are_heard_on_the_interpreter_and_after_a_move", "interp", "interp");
}

#[test]
fn devices_are_heard_on_kvm_and_then_on_the_interpreter() {
    interrupted("devices_are_heard_on_kvm_and_then_on_the_interpreter", "kvm", "interp");
}

#[test]
fn devices_are_heard_on_the_interpreter_and_then_on_kvm() {
    interrupted("devices_are_heard_on_the_interpreter_and_then_on_kvm", "interp", "kvm");
}
