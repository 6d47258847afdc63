//! Guest time. Nothing here asserts how long anything takes on the host.

use super::interrupts::put_handler;
use crate::conformance::board::Event;
use crate::conformance::code::{self, CODE, LAPIC, MARK, assemble};
use crate::conformance::plugin::Plugin;
use crate::conformance::rig::Rig;
use godwit_state::{CpuState, lvt};
use iced_x86::code_asm::*;
use std::time::Duration;

const VECTOR: u8 = 0x40;

/// Puts the TSC into RBX and is done, again and again.
fn read_tsc() -> Vec<u8> {
    assemble(64, CODE, |a| {
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.lea(rbx, qword_ptr(rax + rdx))?;
        code::done(a)?;
        a.jmp(CODE)
    })
}

/// The backend has said that it cannot set a guest's TSC here.
fn tsc_is_fixed(rig: &Rig) -> bool {
    rig.board.log().iter().any(|line| line.contains("TSC"))
}

fn tsc_seen(rig: &Rig) -> u64 {
    rig.cpu().save().regs.gpr[3]
}

pub(super) fn clock_runs_only_when_started(plugin: Plugin) {
    let rig = Rig::long(plugin, 0, &read_tsc());
    let first = rig.clock();
    assert_eq!((first.tsc, first.kvmclock_ns), (0, 0), "a new VM's clock is stopped at zero");
    rig.run_to_done();
    let stopped = rig.stop();
    assert!(stopped.tsc > 0 && stopped.kvmclock_ns > 0);
    assert!(tsc_seen(&rig) <= stopped.tsc, "the guest has seen time that is yet to come");
    let state = rig.cpu().save();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.clock(), stopped);
    assert_eq!(rig.cpu().save(), state);
    rig.start(0);
    rig.run_more();
    let again = rig.stop();
    assert!(tsc_seen(&rig) >= stopped.tsc, "time has gone backwards");
    assert!(again.tsc > stopped.tsc && again.kvmclock_ns > stopped.kvmclock_ns);
}

pub(super) fn advance_is_seen(plugin: Plugin) {
    let rig = Rig::long(plugin, 0, &read_tsc());
    rig.run_to_done();
    let before = rig.stop();
    rig.start(7_000_000_000);
    rig.run_more();
    let after = rig.stop();
    assert!(after.kvmclock_ns >= before.kvmclock_ns + 7_000_000_000);
    let advanced = before.tsc + 7 * (before.tsc_khz * 1000 - before.tsc_khz);
    assert!(tsc_is_fixed(&rig) || tsc_seen(&rig) >= advanced);
    assert_eq!(after.tsc_khz, before.tsc_khz);
}

pub(super) fn tsc_is_the_clocks_own(plugin: Plugin) {
    let rig = Rig::long(plugin, 0, &read_tsc());
    if tsc_is_fixed(&rig) {
        return println!("SKIPPED tsc_is_the_clocks_own: {}", rig.board.log().join("; "));
    }
    let mut state = rig.cpu().save();
    state.tsc.offset = 1 << 50;
    rig.cpu().load(&state);
    rig.run_to_done();
    let clock = rig.stop();
    let seen = tsc_seen(&rig);
    assert!(seen >= 1 << 50 && seen <= clock.tsc + (1 << 50));
    assert_eq!(rig.cpu().save().tsc.offset, 1 << 50, "an offset is kept exactly");
}

/// Counts in RBX until the handler has been; the handler marks and lets it go on.
fn wait_for_timer(rig: &Rig, set_up: impl FnOnce(&mut CpuState)) {
    let program = assemble(64, CODE, |a| {
        let mut top = a.create_label();
        a.sti()?;
        a.set_label(&mut top)?;
        a.hlt()?;
        a.cmp(byte_ptr(0x3000), 0)?;
        a.je(top)?;
        a.cli()?;
        code::done(a)?;
        a.mov(byte_ptr(0x3000), 0)?;
        a.jmp(CODE)
    });
    rig.fill_long(&program);
    let bytes = assemble(64, code::handler(VECTOR), |a| {
        a.push(rax)?;
        a.mov(eax, i32::from(VECTOR))?;
        a.out(MARK as i32, al)?;
        a.mov(byte_ptr(0x3000), 1)?;
        a.mov(eax, LAPIC + 0xb0)?;
        a.mov(dword_ptr(rax), 0)?;
        a.pop(rax)?;
        a.iretq()
    });
    rig.ram.write(code::handler(VECTOR), &bytes);
    let mut state = code::long_mode(rig.model, 0);
    set_up(&mut state);
    rig.cpu().load(&state);
}

fn tick() -> Event {
    Event::Out(MARK, 1, u64::from(VECTOR))
}

fn one_shot(deadline_ns: Option<u64>) -> impl FnOnce(&mut CpuState) {
    move |s| {
        s.lapic.lvt[lvt::TIMER] = u32::from(VECTOR);
        s.lapic.timer_initial = 50_000_000;
        s.lapic.timer_divide = 0xb;
        s.lapic.timer_deadline_ns = deadline_ns;
    }
}

pub(super) fn one_shot_timer_fires(plugin: Plugin) {
    let rig = Rig::new(plugin);
    wait_for_timer(&rig, one_shot(Some(5_000_000)));
    assert_eq!(rig.run_to_done(), [tick()]);
    let clock = rig.stop();
    assert!(clock.kvmclock_ns >= 5_000_000, "fired before its time, at {}", clock.kvmclock_ns);
    let lapic = rig.cpu().save().lapic;
    assert_eq!((lapic.timer_deadline_ns, lapic.timer_initial), (None, 50_000_000));
}

pub(super) fn periodic_timer_fires(plugin: Plugin) {
    let rig = Rig::new(plugin);
    wait_for_timer(&rig, |s| {
        s.lapic.lvt[lvt::TIMER] = 1 << 17 | u32::from(VECTOR);
        s.lapic.timer_initial = 2_000_000;
        s.lapic.timer_divide = 0xb;
        s.lapic.timer_deadline_ns = Some(2_000_000);
    });
    // On a busy host the next one may be due before the guest has looked whether the first came.
    let mut ticks = rig.run_to_done();
    for _ in 0..4 {
        let more = rig.run_more();
        assert!(!more.is_empty(), "a tick is missing");
        ticks.extend(more);
    }
    assert!(ticks.iter().all(|e| *e == tick()), "{ticks:?}");
    let clock = rig.stop();
    let (now, last) = (clock.kvmclock_ns, 2_000_000 * ticks.len() as u64);
    assert!(now >= last, "{} ticks by {now}", ticks.len());
    // On a slow host it may be due as the clock stops.
    let deadline = rig.cpu().save().lapic.timer_deadline_ns.expect("it runs on");
    assert!(deadline > last && deadline <= now + 2_000_000, "{deadline} after {last}, at {now}");
}

pub(super) fn tsc_deadline_fires(plugin: Plugin) {
    let rig = Rig::new(plugin);
    let ticks = rig.clock().tsc_khz * 5;
    wait_for_timer(&rig, |s| {
        s.lapic.lvt[lvt::TIMER] = 2 << 17 | u32::from(VECTOR);
        s.lapic.tsc_deadline = ticks;
    });
    assert_eq!(rig.cpu().save().lapic.tsc_deadline, ticks);
    assert_eq!(rig.run_to_done(), [tick()]);
    let clock = rig.stop();
    assert!(clock.tsc >= ticks);
    assert_eq!(rig.cpu().save().lapic.tsc_deadline, 0);
}

pub(super) fn timer_survives_a_stop(plugin: Plugin) {
    for mode in [0u32, 2] {
        let rig = Rig::new(plugin);
        let ticks = rig.clock().tsc_khz * 60_000;
        wait_for_timer(&rig, |s| {
            s.lapic.lvt[lvt::TIMER] = mode << 17 | u32::from(VECTOR);
            if mode == 0 {
                s.lapic.timer_divide = 0xa;
                s.lapic.timer_initial = u32::MAX;
                s.lapic.timer_deadline_ns = Some(60_000_000_000);
            } else {
                s.lapic.tsc_deadline = ticks;
            }
        });
        let lapic = rig.cpu().save().lapic;
        rig.start(0);
        rig.cpu().kick();
        assert!(rig.cpu().run().is_ok());
        let clock = rig.stop();
        let after = rig.cpu().save().lapic;
        if mode == 2 {
            let left = after.tsc_deadline.checked_sub(clock.tsc).expect("yet to come");
            assert!(left <= ticks);
            assert!(tsc_is_fixed(&rig) || after == lapic);
        } else {
            // As exact as a count of 128 ns, and reading it beside the clock, can be.
            let (was, is) = (lapic.timer_deadline_ns.expect("set"), after.timer_deadline_ns.expect("runs"));
            assert!(was.abs_diff(is) < 1_000_000_000, "{was} became {is}");
        }
        // A minute later it is due.
        rig.start(60_000_000_000);
        assert_eq!(rig.run_on(), [tick()]);
    }
}

/// It runs out after the vCPU has stopped and before the clock does: its interrupt is neither lost nor doubled.
pub(super) fn timer_that_ran_out_stopped_fires_once(plugin: Plugin) {
    for mode in [0u32, 2] {
        let rig = Rig::new(plugin);
        let khz = rig.clock().tsc_khz;
        wait_for_timer(&rig, |s| {
            one_shot(None)(s);
            s.lapic.lvt[lvt::TIMER] |= mode << 17;
            if mode == 0 {
                s.lapic.timer_deadline_ns = Some(3_000_000);
            } else {
                s.lapic.timer_initial = 0;
                s.lapic.tsc_deadline = 3 * khz;
            }
            // So that the vCPU cannot take it before it stops.
            s.regs.rip = CODE + 2;
            s.events.activity = godwit_state::ActivityV1::Halted;
        });
        rig.start(0);
        rig.cpu().kick();
        assert!(rig.cpu().run().is_ok());
        std::thread::sleep(Duration::from_millis(10));
        let clock = rig.stop();
        assert!(clock.kvmclock_ns >= 3_000_000);
        let mut state = rig.cpu().save();
        // Requested already, or due at once.
        let requested = state.lapic.irr[usize::from(VECTOR / 32)] == 1 << (VECTOR % 32);
        let due = state.lapic.timer_deadline_ns.is_some_and(|at| at <= clock.kvmclock_ns)
            || state.lapic.tsc_deadline != 0 && state.lapic.tsc_deadline <= clock.tsc;
        assert!(requested != due, "mode {mode}: {:?}", state.lapic);
        // Once, going on here and loaded again.
        for load in [false, true] {
            state.regs.rflags |= 0x200;
            if load {
                rig.stop();
            }
            rig.cpu().load(&state);
            rig.start(0);
            assert_eq!(rig.run_on(), [tick()], "mode {mode}");
            rig.cpu().kick();
            assert!(rig.cpu().run().is_ok());
            rig.stop();
            assert_eq!(rig.cpu().save().lapic.irr, [0; 8], "mode {mode}: no second one");
            rig.start(0);
        }
    }
}

pub(super) fn spent_timer_stays_silent(plugin: Plugin) {
    let rig = Rig::new(plugin);
    wait_for_timer(&rig, |s| {
        one_shot(None)(s);
        s.regs.rip = CODE + 2;
        s.regs.rflags |= 0x200;
        s.events.activity = godwit_state::ActivityV1::Halted;
    });
    put_handler(&rig, 0x31, true);
    rig.start(0);
    let cpu = rig.cpu();
    std::thread::scope(|s| {
        let thread = s.spawn(|| cpu.run());
        std::thread::sleep(Duration::from_millis(80));
        cpu.kick();
        thread.join().expect("no panic").expect("it runs");
    });
    assert_eq!(rig.board.take(), []);
    rig.stop();
    let lapic = cpu.save().lapic;
    assert_eq!((lapic.timer_initial, lapic.timer_deadline_ns), (50_000_000, None));
}
