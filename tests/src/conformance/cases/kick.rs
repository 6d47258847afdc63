//! Kicks: from everywhere, to everywhere, never lost.

use crate::conformance::board::Event;
use crate::conformance::code::{CODE, MARK, assemble};
use crate::conformance::plugin::Plugin;
use crate::conformance::rig::{Ended, Rig};
use godwit_state::{ActivityV1, Model};
use iced_x86::code_asm::*;
use std::time::Duration;

pub(super) fn kick_before_run_is_kept(plugin: Plugin) {
    let rig = Rig::real(plugin, &[0xf4]);
    rig.start(0);
    rig.cpu().kick();
    assert_eq!(rig.cpu().run(), Ok(Ended::Kicked));
}

pub(super) fn kicks_do_not_add_up(plugin: Plugin) {
    // The guest halts for good, so that a second return can only be by the second kick.
    let rig = Rig::real(plugin, &[0xfa, 0xf4]);
    rig.start(0);
    let cpu = rig.cpu();
    for _ in 0..3 {
        cpu.kick();
    }
    assert_eq!(cpu.run(), Ok(Ended::Kicked));
    std::thread::scope(|s| {
        let second = s.spawn(|| cpu.run());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!second.is_finished(), "one return for three kicks");
        cpu.kick();
        assert_eq!(second.join().expect("no panic"), Ok(Ended::Kicked));
    });
}

/// Runs the rig's guest until it has marked its way, then kicks it from another thread.
fn kick_while_running(rig: &Rig, wait: Option<Event>) {
    rig.start(0);
    let cpu = rig.cpu();
    std::thread::scope(|s| {
        let thread = s.spawn(|| cpu.run());
        if let Some(event) = wait {
            rig.board.wait_for(event);
        }
        std::thread::sleep(Duration::from_millis(5));
        cpu.kick();
        assert_eq!(thread.join().expect("no panic"), Ok(Ended::Kicked));
    });
    rig.stop();
}

pub(super) fn kick_ends_a_busy_loop(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.out(MARK as i32, al)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rbx)?;
        a.jmp(top)
    });
    let rig = Rig::long(plugin, 0, &program);
    rig.run_until(|s| s.regs.gpr[3] > 0);
    assert_eq!(rig.board.take(), [Event::Out(MARK, 1, 0)]);
}

pub(super) fn kick_ends_a_ring_3_loop(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rbx)?;
        a.jmp(top)
    });
    let rig = Rig::long(plugin, 3, &program);
    let state = rig.run_until(|s| s.regs.gpr[3] > 0);
    assert_eq!(state.system.cs.dpl(), 3);
}

pub(super) fn kick_ends_a_halt(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.out(MARK as i32, al)?;
        a.hlt()?;
        a.jmp(CODE)
    });
    let rig = Rig::long(plugin, 0, &program);
    kick_while_running(&rig, Some(Event::Out(MARK, 1, 0)));
    let state = rig.cpu().save();
    assert_eq!(state.events.activity, ActivityV1::Halted);
    // It is still halted when it goes on.
    kick_while_running(&rig, None);
    assert_eq!(rig.board.take(), [Event::Out(MARK, 1, 0)]);
}

pub(super) fn kick_ends_a_wait_for_init(plugin: Plugin) {
    if plugin.probe().expect("usable").0.max_vcpus < 2 {
        return;
    }
    let rig = Rig::with(plugin, 2, Model::X86_64, 0);
    rig.start(0);
    let other = rig.vcpus[1];
    std::thread::scope(|s| {
        let thread = s.spawn(|| other.run());
        std::thread::sleep(Duration::from_millis(5));
        other.kick();
        assert_eq!(thread.join().expect("no panic"), Ok(Ended::Kicked));
    });
    rig.stop();
    let activity = other.save().events.activity;
    assert!(matches!(activity, ActivityV1::Uninitialized | ActivityV1::WaitForSipi), "{activity:?}");
}

pub(super) fn many_kicks_lose_nothing(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rbx)?;
        a.jmp(top)
    });
    let rig = Rig::long(plugin, 3, &program);
    rig.start(0);
    let cpu = rig.cpu();
    // Kicks fall everywhere around the entry into the guest; a lost one hangs here.
    std::thread::scope(|s| {
        for i in 0..300u32 {
            let thread = s.spawn(|| cpu.run());
            for _ in 0..i * 7 % 500 {
                std::hint::spin_loop();
            }
            cpu.kick();
            assert_eq!(thread.join().expect("no panic"), Ok(Ended::Kicked));
        }
    });
}
