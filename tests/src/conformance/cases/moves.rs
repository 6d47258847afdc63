//! Moves between backends: what one saves and another loads and saves again is the same bytes.

use crate::conformance::code;
use crate::conformance::plugin::Plugin;
use crate::conformance::rig::Rig;
use godwit_abi as abi;
use godwit_state::{
    ActivityV1, CpuState, ExceptionV1, F80, Model, MtrrVarV1, RawSection, SegmentV1, access, lvt,
};
use iced_x86::code_asm::*;

/// Section by section, with the decoded state where it differs.
///
/// # Panics
/// If any section differs.
pub fn assert_same(expected: &[RawSection], found: &[RawSection]) {
    let kinds = |s: &[RawSection]| s.iter().map(|s| s.kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(expected), kinds(found));
    for (e, f) in expected.iter().zip(found) {
        if e != f {
            let whole = |s: &[RawSection]| CpuState::from_sections(s).map(|s| format!("{s:#x?}"));
            if let (Ok(a), Ok(b)) = (whole(expected), whole(found)) {
                for (a, b) in a.lines().zip(b.lines()).filter(|(a, b)| a != b) {
                    println!("expected {a}\n   found {b}");
                }
            }
            panic!("section {} differs:\nexpected {:02x?}\n   found {:02x?}", e.kind, e.data, f.data);
        }
    }
}

/// Loads one of the rich states; false if this host's backend has said that it cannot hold it.
///
/// # Panics
/// If it is refused otherwise.
pub fn load_rich(rig: &Rig, name: &str, sections: &[RawSection]) -> bool {
    match rig.cpu().load_raw(sections) {
        Ok(()) => true,
        Err(e) if e.code == abi::ERR_STATE && e.text.contains("no paging outside long mode") => {
            println!("SKIPPED {name}: {}", e.text);
            false
        }
        Err(e) => panic!("{name}: {e:?}"),
    }
}

/// States with every field at work that a backend can hold, by name.
pub fn rich(model: Model) -> Vec<(&'static str, CpuState)> {
    let mut out = vec![("reset", code::reset(0, model)), ("real mode", code::real_mode(model))];

    let mut s = code::long_mode(model, 3);
    s.regs.gpr = std::array::from_fn(|i| 0x0123_4567_89ab_cdef_u64.rotate_left(i as u32 * 4));
    s.regs.rflags = 0x246;
    s.fpu.xmm = std::array::from_fn(|i| u128::MAX / (i as u128 + 3));
    s.fpu.mxcsr = 0x3f80;
    s.fpu.fcw = 0x27f;
    s.fpu.ftw = 0xc0;
    s.fpu.fsw = 0x3000;
    s.fpu.st = std::array::from_fn(|i| F80 { se: 0x3fff + i as u16, frac: 1 << 63 | i as u64 });
    s.debug.dr = [0x1000, 0x2000, 0x3000, 0x4000];
    s.debug.dr6 = 0xffff_0ff1;
    s.debug.dr7 = 0x455;
    s.system.fs = SegmentV1 { selector: 0, base: 0x7fff_1234_5678, limit: 0, access: access::UNUSABLE };
    s.system.cr2 = 0xdead_beef_f00d;
    s.msrs.sysenter_cs = 8;
    s.msrs.sysenter_esp = 0xffff_8000_0000_1000;
    s.msrs.sysenter_eip = 0xffff_8000_0000_2000;
    s.msrs.star = 0x001b_0008_0000_0000;
    s.msrs.lstar = 0xffff_8000_0000_3000;
    s.msrs.cstar = 0xffff_8000_0000_4000;
    s.msrs.sfmask = 0x4_7700;
    s.msrs.kernel_gs_base = 0xffff_8880_0000_0000;
    s.msrs.pat = 0x0007_0106_0007_0106;
    s.msrs.mtrr_def_type = 0xc06;
    s.msrs.mtrr_fixed = [0x0606_0606_0606_0606; 11];
    s.msrs.mtrr_var[0] = MtrrVarV1 { base: 0xc000_0000, mask: 0xff_c000_0800 };
    s.msrs.kvm_system_time = 0x30_0001;
    s.tsc.offset = -12345;
    s.lapic.tpr = 0x20;
    s.lapic.svr = 0x1ff;
    s.lapic.ldr = 0x0100_0000;
    s.lapic.isr[2] = 1 << 7;
    s.lapic.irr[1] = 1 << 20;
    s.lapic.tmr[1] = 1 << 20;
    s.lapic.icr_low = 0x4_0030;
    s.lapic.icr_high = 0x0100_0000;
    s.lapic.lvt[lvt::TIMER] = 0x2_0040;
    s.lapic.lvt[lvt::LINT0] = 0x700;
    s.lapic.lvt[lvt::LINT1] = 0x400;
    s.lapic.timer_initial = 10_000_000;
    s.lapic.timer_divide = 3;
    s.lapic.timer_deadline_ns = Some(123_456_789);
    out.push(("ring 3, everything set", s.clone()));

    let mut x87 = s.clone();
    x87.fpu.fsw = 0xb881;
    x87.fpu.fcw = 0x37e;
    (x87.fpu.fop, x87.fpu.fip, x87.fpu.fdp) = (0x1c1, 0x1234, 0x5678);
    out.push(("x87 exception waiting", x87));

    let mut x2 = code::long_mode(model, 0);
    x2.msrs.apic_base |= 0x400;
    x2.lapic.ldr = 1;
    x2.lapic.lvt[lvt::TIMER] = 0x4_0040;
    x2.lapic.tsc_deadline = 1 << 60;
    out.push(("x2APIC, TSC deadline", x2));

    let mut spent = code::long_mode(model, 0);
    spent.lapic.lvt[lvt::TIMER] = 0x40;
    spent.lapic.timer_initial = 77;
    out.push(("spent one-shot timer", spent));

    let mut halted = code::long_mode(model, 0);
    halted.regs.rflags = 0x202;
    halted.events.activity = ActivityV1::Halted;
    halted.events.nmi_masked = true;
    out.push(("halted, NMI masked", halted));

    let mut events = code::long_mode(model, 0);
    events.events.interrupt_injected = Some(0x55);
    events.events.nmi_pending = 1;
    events.events.nmi_masked = true;
    out.push(("interrupt injected, NMI waiting", events));

    for (name, after_sti, after_ss) in [("STI shadow", true, false), ("SS shadow", false, true)] {
        let mut shadow = code::long_mode(model, 0);
        shadow.regs.rflags = 0x202;
        (shadow.events.shadow_sti, shadow.events.shadow_ss) = (after_sti, after_ss);
        out.push((name, shadow));
    }

    let mut fault = code::long_mode(model, 0);
    fault.events.exception_pending =
        Some(ExceptionV1 { vector: 14, error_code: Some(2), payload: Some(0xdead_b000) });
    out.push(("page fault pending", fault.clone()));
    fault.events.exception_pending = None;
    fault.events.exception_injected = Some(ExceptionV1 { vector: 13, error_code: Some(0), payload: None });
    out.push(("#GP injected", fault));

    let mut pae = code::long_mode(model, 0);
    pae.system.efer = 0;
    pae.system.cs.access = pae.system.cs.access & !access::L | access::DB;
    pae.system.pdpte = [0x1_1001, 0x1_2001, 0, 0x1_4001];
    out.push(("PAE paging", pae));

    let mut waiting = code::reset(0, model);
    waiting.events.activity = ActivityV1::WaitForSipi;
    out.push(("waiting for SIPI", waiting));
    out
}

/// Each of the rich states through `first`, then `second`, gives the bytes that `first` saved.
///
/// # Panics
/// If it does not.
pub fn rich_states_cross(first: Plugin, second: Plugin) {
    let from = Rig::new(first);
    let clock = from.clock();
    let to = Rig::with(second, 1, Model::X86_64, clock.tsc_khz);
    for (name, state) in rich(Model::X86_64) {
        println!("{name}");
        if !load_rich(&from, name, &state.to_sections()) {
            continue;
        }
        let saved = from.cpu().save_raw().expect("saved");
        if !load_rich(&to, name, &saved) {
            continue;
        }
        assert_same(&saved, &to.cpu().save_raw().expect("saved"));
    }
    let clock = from.save_raw().expect("saved");
    to.load_raw(&clock).expect("loaded");
    assert_same(&clock, &to.save_raw().expect("saved"));
}

/// A ring-3 program with live SSE registers and a periodic timer runs on `first`, moves to `second` and runs on there; the
/// state is the same bytes on both sides of the move.
///
/// # Panics
/// If it is not, or the program does not go on.
pub fn running_guest_crosses(first: Plugin, second: Plugin) {
    let program = code::assemble(64, code::CODE, |a| {
        a.pcmpeqb(xmm0, xmm0)?;
        a.movdqa(xmm7, xmm0)?;
        a.mov(dword_ptr(rsp - 8), 0x5f80)?;
        a.ldmxcsr(dword_ptr(rsp - 8))?;
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.inc(rbx)?;
        a.paddq(xmm7, xmm0)?;
        a.jmp(top)
    });
    let handler = code::assemble(64, code::handler(0x40), |a| {
        a.push(rax)?;
        a.inc(dword_ptr(0x3000))?;
        a.mov(eax, code::LAPIC + 0xb0)?;
        a.mov(dword_ptr(rax), 0)?;
        a.pop(rax)?;
        a.iretq()
    });
    let from = Rig::new(first);
    let to = Rig::with(second, 1, Model::X86_64, from.clock().tsc_khz);
    for rig in [&from, &to] {
        rig.fill_long(&program);
        rig.ram.write(code::handler(0x40), &handler);
    }
    let mut state = code::long_mode(from.model, 3);
    state.regs.rflags = 0x202;
    state.lapic.lvt[lvt::TIMER] = 0x2_0040;
    state.lapic.timer_divide = 0xb;
    state.lapic.timer_initial = 1_000_000;
    state.lapic.timer_deadline_ns = Some(1_000_000);
    from.cpu().load(&state);
    let (mut one, mut other) = (&from, &to);
    let mut before = 0;
    for _ in 0..4 {
        let state = one.run_until(|s| s.regs.gpr[3] > before);
        let clock = one.save_raw().expect("saved");
        let saved = one.cpu().save_raw().expect("saved");
        let count = state.regs.gpr[3];
        before = count;
        assert_eq!(state.fpu.mxcsr, 0x5f80);
        assert!(count - (u64::MAX - state.fpu.xmm[7] as u64) <= 1, "registers agree");
        other.ram.write(0x3000, &one.ram.read(0x3000, 4));
        other.ram.write(code::STACK - 4096, &one.ram.read(code::STACK - 4096, 4096));
        other.load_raw(&clock).expect("loaded");
        other.cpu().load_raw(&saved).expect("loaded");
        assert_same(&saved, &other.cpu().save_raw().expect("saved"));
        assert_same(&clock, &other.save_raw().expect("saved"));
        (one, other) = (other, one);
    }
    // And its timer ticks, wherever it is.
    for rig in [one, other] {
        let ticks = |rig: &Rig| rig.ram.read(0x3000, 4);
        let then = ticks(rig);
        rig.run_until(|_| ticks(rig) != then);
    }
}
