//! Memory slots, the dirty log, writes behind the guest's back.

use crate::conformance::board::Event;
use crate::conformance::code::{self, CODE, DONE, MARK, assemble};
use crate::conformance::plugin::Plugin;
use crate::conformance::rig::{Ended, Rig};
use godwit_abi::{GUEST_PAGE_SIZE, SLOT_READ_ONLY};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::sync::atomic::{AtomicU32, Ordering, fence};

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

/// The log is taken while an instruction waits for a device, between two stores to a page; then the page's translation goes.
pub(super) fn dirty_log_misses_no_late_write(plugin: Plugin) {
    // Two pages that a direct-mapped TLB may want to keep in one place, and a page whose translation is taken out.
    let (first, second, third) = (0x10_0000u32, 0x30_0000u32, 0x10_1000u32);
    let program = assemble(64, CODE, |a| {
        a.mov(ebx, first)?;
        a.mov(esi, second)?;
        a.mov(edi, third)?;
        a.mov(r8d, code::DEVICE as u32)?;
        a.mov(byte_ptr(rbx), 1)?;
        a.mov(byte_ptr(rdi), 1)?;
        a.mov(dword_ptr(r8), 0x55)?;
        a.mov(byte_ptr(rbx), 2)?;
        a.mov(byte_ptr(rsi), 3)?;
        a.mov(byte_ptr(rdi), 2)?;
        a.invlpg(byte_ptr(rdi))?;
        code::done(a)
    });
    let rig = Rig::long(plugin, 0, &program);
    rig.log(true).expect("the log starts");
    let (cpu, vm, (tell, told)) = (rig.cpu(), rig.vm, std::sync::mpsc::channel());
    rig.board.set_hook(move |event| match event {
        Event::Write(..) => drop(tell.send(vm.dirty())),
        Event::Out(DONE, ..) => cpu.kick(),
        _ => {}
    });
    rig.start(0);
    assert_eq!(rig.cpu().run(), Ok(Ended::Kicked));
    rig.stop();
    let pages = [first, third, second].map(|at| u64::from(at) / GUEST_PAGE_SIZE);
    assert_eq!(told.recv().expect("the device was written"), pages[..2]);
    assert_eq!(rig.dirty(), pages);
}

/// A store, a fence and a load, again and again, while a device does the same the other way round: one of the two sees what
/// the other stored. With one processor too: devices look on.
pub(super) fn no_load_passes_a_fence(plugin: Plugin) {
    type Put = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let fences: [(&str, Put); 4] = [
        ("lock", |a| {
            a.mov(dword_ptr(rbx), ecx)?;
            a.lock().or(dword_ptr(rbp), 0)
        }),
        ("xchg", |a| {
            a.mov(eax, ecx)?;
            a.xchg(dword_ptr(rbx), eax)
        }),
        ("cmpxchg that fails", |a| {
            a.mov(dword_ptr(rbx), ecx)?;
            a.mov(eax, 1)?;
            a.lock().cmpxchg(dword_ptr(rbp), ecx)
        }),
        ("mfence", |a| {
            a.mov(dword_ptr(rbx), ecx)?;
            a.mfence()
        }),
    ];
    fences.into_iter().for_each(|(name, fence)| store_then_load(plugin, name, fence));
}

fn store_then_load(
    plugin: Plugin,
    name: &str,
    store_and_fence: fn(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    const ROUNDS: u32 = 400_000;
    let [mine, theirs, other, end, seen] = [0x10_0000u32, 0x10_0400, 0x10_0800, 0x10_0c00, 0x20_0000];
    let program = assemble(64, CODE, |a| {
        let (mut begin, mut again, mut wait) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ebx, mine)?;
        a.mov(esi, theirs)?;
        a.mov(ebp, other)?;
        a.mov(edi, seen)?;
        a.mov(ecx, 1)?;
        a.set_label(&mut begin)?;
        a.cmp(dword_ptr(rsi), 0)?;
        a.je(begin)?;
        a.set_label(&mut again)?;
        store_and_fence(a)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(dword_ptr(rdi + rcx * 4), eax)?;
        a.inc(ecx)?;
        a.cmp(ecx, ROUNDS as i32 + 1)?;
        a.jne(again)?;
        a.mov(ebx, end)?;
        a.mov(dword_ptr(rbx), 1)?;
        a.set_label(&mut wait)?;
        a.jmp(wait)
    });
    let rig = Rig::long(plugin, 3, &program);
    let cell = |at: u32| {
        // SAFETY: inside the RAM of the test, aligned; the guest's accesses are atomic too.
        unsafe { AtomicU32::from_ptr(rig.ram_ptr().wrapping_add(at as usize).cast()) }
    };
    let cpu = rig.cpu();
    // What the device saw after each of its stores, as long as there is room.
    let mut device = vec![0u32];
    rig.start(0);
    std::thread::scope(|s| {
        let guest = s.spawn(|| cpu.run());
        while cell(end).load(Ordering::Acquire) == 0 {
            if device.len() < 4 << 20 {
                cell(theirs).store((device.len() as u32).to_le(), Ordering::Relaxed);
                fence(Ordering::SeqCst);
                device.push(u32::from_le(cell(mine).load(Ordering::Relaxed)));
            }
            for _ in 0..device.len() % 16 {
                std::hint::spin_loop();
            }
        }
        cpu.kick();
        assert_eq!(guest.join().expect("no panic"), Ok(Ended::Kicked));
    });
    rig.stop();
    let mut met = 0;
    for round in 1..=ROUNDS {
        let saw = u32::from_le(cell(seen + 4 * round).load(Ordering::Relaxed));
        met += u32::from(saw != 0 && (saw as usize) < device.len() - 1);
        // The device's next store came after this load. What it then loaded is this store, or a later one.
        if let Some(next) = device.get(saw as usize + 1) {
            assert!(*next >= round, "{name}: at {round} the guest saw {saw}, and then the device saw {next}");
        }
    }
    println!("{name}: {met} of {ROUNDS} rounds beside the device's {}", device.len() - 1);
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
