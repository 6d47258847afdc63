//! Messages, ExtINT, EOI, NMI, shutdown, and starting another vCPU.

use crate::conformance::board::Event;
use crate::conformance::code::{self, CODE, DONE, LAPIC, MARK, assemble, handler};
use crate::conformance::plugin::Plugin;
use crate::conformance::rig::{Ended, Rig};
use godwit_state::{Model, lvt};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::time::Duration;

const MSI: u64 = 0xfee0_0000;
const LEVEL: u32 = 1 << 15 | 1 << 14;

/// A handler that writes its vector to the port, ends the interrupt at the LAPIC if asked, and returns.
pub(super) fn put_handler(rig: &Rig, vector: u8, eoi: bool) {
    let bytes = assemble(64, handler(vector), |a| {
        a.push(rax)?;
        a.mov(eax, i32::from(vector))?;
        a.out(MARK as i32, al)?;
        a.mov(byte_ptr(0x3000), 1)?;
        if eoi {
            a.mov(eax, LAPIC + 0xb0)?;
            a.mov(dword_ptr(rax), 0)?;
        }
        a.pop(rax)?;
        a.iretq()
    });
    assert!(bytes.len() <= 64);
    rig.ram.write(handler(vector), &bytes);
}

/// Waits for a handler of [`put_handler`]. Not just for an instruction after STI: a KVM that emulates ring 0 looks for
/// interrupts only now and then.
fn until_marked(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.cmp(byte_ptr(0x3000), 0)?;
    a.je(top)
}

fn halt_then_done() -> Vec<u8> {
    assemble(64, CODE, |a| {
        a.mov(al, 1)?;
        a.out(MARK as i32, al)?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        code::done(a)
    })
}

fn mark(value: u64) -> Event {
    Event::Out(MARK, 1, value)
}

/// Runs to the end; once the guest has marked 1 and a moment has passed, does `then`.
fn during_run(rig: &Rig, then: impl FnOnce()) -> Vec<Event> {
    rig.kick_when_done();
    let cpu = rig.cpu();
    std::thread::scope(|s| {
        let thread = s.spawn(|| cpu.run());
        rig.board.wait_for(mark(1));
        std::thread::sleep(Duration::from_millis(5));
        then();
        assert_eq!(thread.join().expect("no panic"), Ok(Ended::Kicked));
    });
    let mut events = rig.board.take();
    assert!(matches!(events.pop(), Some(Event::Out(DONE, ..))));
    events
}

pub(super) fn message_wakes_a_halt(plugin: Plugin) {
    let rig = Rig::long(plugin, 0, &halt_then_done());
    put_handler(&rig, 0x30, true);
    rig.start(0);
    let events = during_run(&rig, || rig.vm.msi(MSI, 0x30));
    assert_eq!(events, [mark(1), mark(0x30)]);
    rig.stop();
    let state = rig.cpu().save();
    assert_eq!((state.lapic.isr, state.lapic.irr), ([0; 8], [0; 8]));
    // To a LAPIC that is not there: lost, as on a bus.
    rig.vm.msi(MSI | 9 << 12, 0x30);
}

/// A rig whose LINT0 takes the 8259s' interrupt, which goes away when it is acknowledged.
fn with_extint(plugin: Plugin, program: &[u8]) -> Rig {
    let rig = Rig::new(plugin);
    rig.fill_long(program);
    let mut state = code::long_mode(rig.model, 0);
    state.lapic.lvt[lvt::LINT0] = 0x700;
    rig.cpu().load(&state);
    put_handler(&rig, 0x28, false);
    rig
}

/// Kicks when done, and drops the 8259s' output when acknowledged.
fn lower_when_acknowledged(rig: &Rig) {
    let (cpu, vm) = (rig.cpu(), rig.vm);
    rig.board.set_hook(move |event| match event {
        Event::Ack => vm.set_extint(false),
        Event::Out(DONE, ..) => cpu.kick(),
        _ => {}
    });
}

pub(super) fn extint_is_acknowledged(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.sti()?;
        until_marked(a)?;
        a.cli()?;
        code::done(a)
    });
    let rig = with_extint(plugin, &program);
    rig.board.push_extint(0x28);
    rig.vm.set_extint(true);
    rig.start(0);
    lower_when_acknowledged(&rig);
    assert_eq!(rig.cpu().run(), Ok(Ended::Kicked));
    assert_eq!(rig.board.take(), [Event::Ack, mark(0x28), Event::Out(DONE, 1, 0)]);
}

pub(super) fn extint_wakes_a_halt(plugin: Plugin) {
    let rig = with_extint(plugin, &halt_then_done());
    rig.board.push_extint(0x28);
    rig.start(0);
    lower_when_acknowledged(&rig);
    let cpu = rig.cpu();
    std::thread::scope(|s| {
        let thread = s.spawn(|| cpu.run());
        rig.board.wait_for(mark(1));
        std::thread::sleep(Duration::from_millis(5));
        rig.vm.set_extint(true);
        assert_eq!(thread.join().expect("no panic"), Ok(Ended::Kicked));
    });
    assert_eq!(rig.board.take(), [mark(1), Event::Ack, mark(0x28), Event::Out(DONE, 1, 1)]);
    // And a vCPU that is halted when it is first run.
    rig.stop();
    let mut state = cpu.save();
    state.regs.rip = CODE + 6;
    state.regs.rflags |= 0x200;
    state.events.activity = godwit_state::ActivityV1::Halted;
    cpu.load(&state);
    rig.board.push_extint(0x28);
    rig.vm.set_extint(true);
    rig.start(0);
    assert_eq!(cpu.run(), Ok(Ended::Kicked));
    assert_eq!(rig.board.take(), [Event::Ack, mark(0x28), Event::Out(DONE, 1, 1)]);
}

pub(super) fn extint_waits_for_the_flag(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.cli()?;
        a.mov(al, 1)?;
        a.out(MARK as i32, al)?;
        a.mov(al, 2)?;
        a.out(MARK as i32, al)?;
        a.sti()?;
        until_marked(a)?;
        a.cli()?;
        code::done(a)
    });
    let rig = with_extint(plugin, &program);
    rig.board.push_extint(0x28);
    rig.start(0);
    let (cpu, vm) = (rig.cpu(), rig.vm);
    rig.board.set_hook(move |event| match event {
        // Raised from a device access, by the vCPU's own thread.
        Event::Out(MARK, 1, 1) => vm.set_extint(true),
        Event::Ack => vm.set_extint(false),
        Event::Out(DONE, ..) => cpu.kick(),
        _ => {}
    });
    assert_eq!(cpu.run(), Ok(Ended::Kicked));
    assert_eq!(rig.board.take(), [mark(1), mark(2), Event::Ack, mark(0x28), Event::Out(DONE, 1, 2)]);
}

fn level(plugin: Plugin, data: u32, masked: bool) -> Vec<Event> {
    let rig = Rig::long(plugin, 0, &halt_then_done());
    put_handler(&rig, 0x35, true);
    rig.start(0);
    rig.routes(&[(5, MSI, data, masked), (6, MSI, 0x36, false)]);
    during_run(&rig, || rig.vm.msi(MSI, data))
}

pub(super) fn level_eoi_is_reported(plugin: Plugin) {
    assert_eq!(level(plugin, 0x35 | LEVEL, false), [mark(1), mark(0x35), Event::Eoi(0x35)]);
}

pub(super) fn masked_level_eoi_is_reported(plugin: Plugin) {
    assert_eq!(level(plugin, 0x35 | LEVEL, true), [mark(1), mark(0x35), Event::Eoi(0x35)]);
}

pub(super) fn edge_eoi_is_not_reported(plugin: Plugin) {
    assert_eq!(level(plugin, 0x35, false), [mark(1), mark(0x35)]);
}

pub(super) fn nmi_is_taken(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.mov(al, 1)?;
        a.out(MARK as i32, al)?;
        a.hlt()?;
        code::done(a)
    });
    let rig = Rig::long(plugin, 0, &program);
    put_handler(&rig, 2, false);
    rig.start(0);
    let events = during_run(&rig, || rig.vm.nmi(0).expect("vCPU 0"));
    assert_eq!(events, [mark(1), mark(2)]);
}

pub(super) fn triple_fault_shuts_down(plugin: Plugin) {
    // A write to a page that is not there, with an IDT that has no entry.
    let program = assemble(64, CODE, |a| {
        a.mov(rbx, 1u64 << 40)?;
        a.mov(byte_ptr(rbx), 1)
    });
    let rig = Rig::new(plugin);
    rig.fill_long(&program);
    let mut state = code::long_mode(rig.model, 0);
    state.system.idtr.limit = 0;
    rig.cpu().load(&state);
    rig.start(0);
    assert_eq!(rig.cpu().run(), Ok(Ended::Shutdown));
}

pub(super) fn other_cpu_starts(plugin: Plugin) {
    if plugin.probe().expect("usable").0.max_vcpus < 2 {
        return;
    }
    const START: u8 = 0x20;
    let icr = |a: &mut CodeAssembler, command: i32| -> Result<(), IcedError> {
        a.mov(eax, LAPIC + 0x310)?;
        a.mov(dword_ptr(rax), 1 << 24)?;
        a.mov(eax, LAPIC + 0x300)?;
        a.mov(dword_ptr(rax), command)
    };
    let program = assemble(64, CODE, |a| {
        icr(a, 0x4500)?;
        icr(a, 0x4600 | i32::from(START))?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.cmp(byte_ptr(0x3000), 0)?;
        a.je(wait)?;
        code::done(a)
    });
    let rig = Rig::with(plugin, 2, Model::X86_64, 0);
    rig.fill_long(&program);
    rig.cpu().load(&code::long_mode(rig.model, 0));
    rig.vcpus[1].load(&code::reset(1, rig.model));
    // Real mode, at the page that the start-up message names: says its mark, lets the first go on, halts.
    let other = assemble(16, 0, |a| {
        a.mov(al, 7)?;
        a.out(MARK as i32, al)?;
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(byte_ptr(0x3000), 1)?;
        a.hlt()
    });
    rig.ram.write(u64::from(START) << 12, &other);
    rig.start(0);
    rig.kick_when_done();
    std::thread::scope(|s| {
        let second = s.spawn(|| rig.vcpus[1].run());
        assert_eq!(rig.cpu().run(), Ok(Ended::Kicked));
        rig.vcpus[1].kick();
        assert_eq!(second.join().expect("no panic"), Ok(Ended::Kicked));
    });
    assert!(rig.board.take().contains(&mark(7)));
}
