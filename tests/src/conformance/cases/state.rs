//! State in and out.

use super::moves::{assert_same, load_rich, rich};
use crate::conformance::board::Event;
use crate::conformance::code::{self, CODE, MARK, assemble};
use crate::conformance::plugin::Plugin;
use crate::conformance::rig::Rig;
use godwit_abi as abi;
use godwit_state::{ActivityV1, CpuState, ExceptionV1, Model, RawSection, access};
use iced_x86::code_asm::*;
use std::time::Duration;

pub(super) fn reset_is_architectural(plugin: Plugin) {
    let vcpus = plugin.probe().expect("usable").0.max_vcpus.min(2);
    let rig = Rig::with(plugin, vcpus, Model::X86_64, 0);
    for (id, vcpu) in (0..).zip(&rig.vcpus) {
        let mut state = vcpu.save();
        // EDX is the processor's signature, or 0 for who has none.
        state.regs.gpr[2] = 0;
        assert_same(&state.to_sections(), &code::reset(id, rig.model).to_sections());
    }
}

pub(super) fn load_and_save_are_identical(plugin: Plugin) {
    let rig = Rig::new(plugin);
    for (name, state) in rich(rig.model) {
        let sections = state.to_sections();
        if !load_rich(&rig, name, &sections) {
            continue;
        }
        let saved = rig.cpu().save_raw().expect("saved");
        println!("{name}");
        assert_same(&sections, &saved);
        assert_same(&saved, &rig.cpu().save_raw().expect("saving changes nothing"));
    }
}

pub(super) fn sections_are_checked(plugin: Plugin) {
    let rig = Rig::new(plugin);
    let good = code::long_mode(rig.model, 0).to_sections();
    let extra = |optional: bool| {
        let mut list = good.clone();
        list.push(RawSection { kind: "x86.flux".into(), version: 3, optional, data: vec![1, 2, 3] });
        list
    };
    let refused = |list: &[RawSection], word: &str| {
        let error = rig.cpu().load_raw(list).expect_err("refused");
        assert_eq!(error.code, abi::ERR_STATE, "{error:?}");
        let text = error.text.to_lowercase();
        assert!(text.contains(word), "{error:?} does not say {word:?}");
    };
    refused(&extra(false), "x86.flux");
    rig.cpu().load_raw(&extra(true)).expect("an optional section is skipped");
    for i in 0..good.len() {
        let kind = good[i].kind.clone();
        let mut list = good.clone();
        list.remove(i);
        refused(&list, &kind);
        let mut list = good.clone();
        list.push(good[i].clone());
        refused(&list, &kind);
        let mut list = good.clone();
        list[i].data.push(0);
        refused(&list, &kind);
        let mut list = good.clone();
        list[i].version = 99;
        refused(&list, &kind);
    }
    let mut avx = code::long_mode(rig.model, 0);
    avx.avx = Some(godwit_state::AvxV1::default());
    refused(&avx.to_sections(), "avx");
    let mut list = good.clone();
    list.reverse();
    rig.cpu().load_raw(&list).expect("in any order");
    let error = rig.load_raw(&[]).expect_err("no clock");
    assert!(error.text.contains("x86.clock"), "{error:?}");
}

pub(super) fn clock_is_kept(plugin: Plugin) {
    let rig = Rig::new(plugin);
    let mut clock = rig.clock();
    clock.tsc = 0x1234_5678_9abc;
    clock.kvmclock_ns = 987_654_321;
    clock.realtime_ns = 1_700_000_000_000_000_000;
    let sections = [RawSection::mandatory(&clock)];
    rig.load_raw(&sections).expect("loaded");
    assert_same(&rig.save_raw().expect("saved"), &sections);
}

/// What a program left in the registers, SSE ones too, stays when it is saved and loaded into another VM.
pub(super) fn live_state_is_identical(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.pcmpeqb(xmm0, xmm0)?;
        a.mov(rax, 0x0102_0304_0506_0708u64)?;
        a.movq(xmm5, rax)?;
        a.paddd(xmm5, xmm0)?;
        a.mov(dword_ptr(rsp - 8), 0x3f80)?;
        a.ldmxcsr(dword_ptr(rsp - 8))?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rbx)?;
        a.paddq(xmm5, xmm0)?;
        a.jmp(top)
    });
    let rig = Rig::long(plugin, 3, &program);
    let state = rig.run_until(|s| s.regs.gpr[3] > 1000);
    let clock = rig.clock();
    assert_eq!(state.fpu.mxcsr, 0x3f80);
    assert_eq!(state.fpu.xmm[0], u128::MAX);
    // xmm5 lags rbx by at most the one addition that the loop is at.
    let low = |s: &CpuState| 0x0102_0303_0506_0707u64.wrapping_sub(s.fpu.xmm[5] as u64);
    assert!(state.regs.gpr[3] - low(&state) <= 1);

    let other = Rig::new(plugin);
    other.fill_long(&program);
    other.load_raw(&rig.save_raw().expect("saved")).expect("loaded");
    other.cpu().load(&state);
    assert_same(&other.cpu().save_raw().expect("saved"), &state.to_sections());
    assert_eq!(other.clock(), clock);
    let later = other.run_until(|s| s.regs.gpr[3] > state.regs.gpr[3] + 1000);
    assert!(later.regs.gpr[3] - low(&later) <= 1);
}

pub(super) fn pending_events_are_delivered(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.nop()?;
        code::done(a)
    });
    type Change = fn(&mut CpuState);
    let cases: [(&str, Change, u8, Option<u64>); 5] = [
        ("interrupt whose delivery has begun", |s| s.events.interrupt_injected = Some(0x61), 0x61, None),
        ("NMI", |s| s.events.nmi_pending = 1, 2, None),
        ("requested interrupt", |s| (s.lapic.irr[3], s.regs.rflags) = (4, 0x202), 0x62, None),
        (
            "page fault",
            |s| {
                s.events.exception_pending =
                    Some(ExceptionV1 { vector: 14, error_code: Some(4), payload: Some(0x1234_5000) });
            },
            14,
            Some(0x1234_5000),
        ),
        (
            "exception whose delivery has begun",
            |s| {
                s.events.exception_injected =
                    Some(ExceptionV1 { vector: 6, error_code: None, payload: None });
            },
            6,
            None,
        ),
    ];
    for (name, change, vector, address) in cases {
        let rig = Rig::new(plugin);
        rig.fill_long(&program);
        let bytes = assemble(64, code::handler(vector), |a| {
            a.mov(eax, i32::from(vector))?;
            a.out(MARK as i32, al)?;
            a.mov(rbx, cr2)?;
            if vector == 14 {
                a.add(rsp, 8)?;
            }
            a.iretq()
        });
        rig.ram.write(code::handler(vector), &bytes);
        let mut state = code::long_mode(rig.model, 0);
        change(&mut state);
        rig.cpu().load(&state);
        let events = rig.run_to_done();
        assert_eq!(events, [Event::Out(MARK, 1, u64::from(vector))], "{name}");
        rig.stop();
        let after = rig.cpu().save();
        assert_eq!(after.events.activity, ActivityV1::Running);
        if let Some(address) = address {
            assert_eq!(after.regs.gpr[3], address, "{name}");
        }
    }
}

/// The null SS that an exception from ring 3 leaves in long mode is saved in one form, whatever the processor keeps of it.
pub(super) fn null_stack_has_one_form(plugin: Plugin) {
    let rig = Rig::new(plugin);
    let program = assemble(64, CODE, |a| a.ud2());
    let handler = assemble(64, code::handler(6), |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rbx)?;
        a.jmp(top)
    });
    rig.fill_long(&program);
    rig.ram.write(code::handler(6), &handler);
    rig.cpu().load(&code::long_mode(rig.model, 3));
    let stack = rig.run_until(|s| s.regs.gpr[3] > 0).system.ss;
    assert_eq!((stack.selector, stack.access), (0, access::UNUSABLE));
}

/// A program in ring 3 that is interrupted, moved to another VM and back many times comes to the right result.
pub(super) fn interrupted_ring_3_goes_on(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.mov(ecx, 3_000_000)?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.imul_3(rax, rax, 31)?;
        a.add(rax, rcx)?;
        a.dec(ecx)?;
        a.jne(top)?;
        // Into ring 0 by a fault, which does the port I/O.
        a.mov(rbx, 1u64 << 40)?;
        a.mov(byte_ptr(rbx), 1)
    });
    let finish = assemble(64, code::handler(14), code::done);
    let rigs = [Rig::new(plugin), Rig::new(plugin)];
    for rig in &rigs {
        rig.fill_long(&program);
        rig.ram.write(code::handler(14), &finish);
        rig.kick_when_done();
    }
    rigs[0].cpu().load(&code::long_mode(rigs[0].model, 3));
    rigs[0].start(0);
    let mut turn = 0;
    loop {
        let (from, to) = (&rigs[turn % 2], &rigs[(turn + 1) % 2]);
        turn += 1;
        let cpu = from.cpu();
        std::thread::scope(|s| {
            let thread = s.spawn(|| cpu.run());
            std::thread::sleep(Duration::from_micros(500));
            cpu.kick();
            thread.join().expect("no panic").expect("it runs");
        });
        if !from.board.take().is_empty() {
            let expected = (1..=3_000_000u64).rev().fold(0u64, |a, c| a.wrapping_mul(31).wrapping_add(c));
            from.stop();
            assert_eq!(cpu.save().regs.gpr[0], expected);
            return;
        }
        from.stop();
        to.load_raw(&from.save_raw().expect("saved")).expect("loaded");
        to.cpu().load_raw(&cpu.save_raw().expect("saved")).expect("loaded");
        to.start(0);
    }
}
