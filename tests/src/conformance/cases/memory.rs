//! Memory slots, the dirty log, writes behind the guest's back.

use crate::conformance::board::Event;
use crate::conformance::code::{self, CODE, MARK, assemble};
use crate::conformance::plugin::Plugin;
use crate::conformance::rig::Rig;
use godwit_abi::{GUEST_PAGE_SIZE, SLOT_READ_ONLY};
use iced_x86::code_asm::*;

/// A program that writes one byte to each page given, in order.
fn writer(pages: &[u64]) -> Vec<u8> {
    assemble(64, CODE, |a| {
        for page in pages {
            a.mov(ebx, (page * GUEST_PAGE_SIZE + 8) as u32)?;
            a.mov(byte_ptr(rbx), 0x5a)?;
        }
        code::done(a)
    })
}

pub(super) fn dirty_log_is_exact(plugin: Plugin) {
    let mut pages = vec![0x100, 0x105, 0x13f, 0x140, 0x3ff, 0x105];
    let rig = Rig::long(plugin, 0, &writer(&pages));
    let start = rig.cpu().save_raw().expect("saved");
    rig.log(true).expect("the log starts");
    assert_eq!(rig.dirty(), [0u64; 0]);
    rig.run_to_done();
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(rig.dirty(), pages);
    assert_eq!(rig.dirty(), [0u64; 0], "taking the log clears it");
    // The same writes are logged again.
    rig.stop();
    rig.cpu().load_raw(&start).expect("loaded");
    rig.run_to_done();
    assert_eq!(rig.dirty(), pages);
    // Not while it is off.
    rig.log(false).expect("the log stops");
    rig.stop();
    rig.cpu().load_raw(&start).expect("loaded");
    rig.run_to_done();
    rig.log(true).expect("the log starts again");
    assert_eq!(rig.dirty(), [0u64; 0]);
}

pub(super) fn dirty_log_starts_clear(plugin: Plugin) {
    let rig = Rig::long(plugin, 0, &writer(&[0x100]));
    let start = rig.cpu().save_raw().expect("saved");
    rig.log(true).expect("the log starts");
    rig.run_to_done();
    rig.log(true).expect("starting it again clears it");
    assert_eq!(rig.dirty(), [0u64; 0]);
    rig.stop();
    rig.cpu().load_raw(&start).expect("loaded");
    rig.run_to_done();
    assert_eq!(rig.dirty(), [0x100]);
}

pub(super) fn written_code_is_seen(plugin: Plugin) {
    let program = |value: i32| {
        assemble(64, CODE, |a| {
            a.mov(al, value)?;
            a.out(MARK as i32, al)?;
            code::done(a)?;
            a.jmp(CODE)
        })
    };
    let rig = Rig::long(plugin, 0, &program(1));
    let mut seen = rig.run_to_done();
    for value in 2..6 {
        rig.dma(CODE, &program(value));
        seen.extend(rig.run_more());
    }
    assert_eq!(seen, (1..6).map(|v| Event::Out(MARK, 1, v)).collect::<Vec<_>>());
}

pub(super) fn read_only_writes_go_to_the_board(plugin: Plugin) {
    const ROM: u64 = 0x1000_0000;
    let program = assemble(64, CODE, |a| {
        a.mov(ebx, ROM as u32)?;
        a.mov(ecx, dword_ptr(rbx))?;
        a.mov(dword_ptr(rbx + 4), 0x55)?;
        a.mov(edx, dword_ptr(rbx + 4))?;
        code::done(a)
    });
    let rig = Rig::long(plugin, 0, &program);
    // The upper half of RAM, seen a second time.
    rig.ram.write(2 << 20, &[0x11, 0x22, 0x33, 0x44, 0x66, 0, 0, 0]);
    let host = rig.ram_ptr().wrapping_add(2 << 20);
    rig.map(1, ROM, 64 << 10, host, SLOT_READ_ONLY).expect("mapped");
    assert_eq!(rig.run_to_done(), [Event::Write(ROM + 4, 4, 0x55)]);
    rig.stop();
    let gpr = rig.cpu().save().regs.gpr;
    assert_eq!((gpr[1], gpr[2]), (0x4433_2211, 0x66));
}

pub(super) fn slots_can_be_moved(plugin: Plugin) {
    const AT: u64 = 0x2000_0000;
    let program = assemble(64, CODE, |a| {
        a.mov(ebx, AT as u32)?;
        a.mov(ecx, dword_ptr(rbx))?;
        code::done(a)?;
        a.jmp(CODE)
    });
    let rig = Rig::long(plugin, 0, &program);
    rig.ram.write(1 << 20, &[1, 0, 0, 0]);
    rig.ram.write(2 << 20, &[2, 0, 0, 0]);
    let host = |mib: usize| rig.ram_ptr().wrapping_add(mib << 20);
    rig.map(1, AT, GUEST_PAGE_SIZE, host(1), 0).expect("mapped");
    assert_eq!(rig.run_to_done(), []);
    rig.unmap(1).expect("unmapped");
    assert_eq!(rig.run_more(), [Event::Read(AT, 4)], "nothing is there now");
    rig.map(1, AT, GUEST_PAGE_SIZE, host(2), 0).expect("mapped again");
    assert_eq!(rig.run_more(), []);
    rig.stop();
    assert_eq!(rig.cpu().save().regs.gpr[1], 2);
}
