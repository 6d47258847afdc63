//! Golden bytes of every section's frozen layout, and what a decoder must refuse.
//!
//! `tests/goldens/x86/<kind>.v<version>.hex` holds the encoding of the sample below. A missing or different file fails: a
//! stored layout never changes silently. The procedure for a new version is in `docs/STATE-FORMAT.md`.

use godwit_state::*;
use std::path::PathBuf;

fn segment(n: u16) -> SegmentV1 {
    SegmentV1 { selector: n * 8, base: u64::from(n) << 33, limit: 0xffff_0000 | u32::from(n), access: 0xa09b }
}

/// No two fields alike, none at its default.
fn sample() -> CpuState {
    CpuState {
        regs: RegsV1 {
            gpr: std::array::from_fn(|i| 0x1111_1111_1111_1110 * i as u64 + 1),
            rip: 0xffff_8000_1234_5678,
            rflags: 0x246,
        },
        system: SystemV1 {
            cs: segment(1),
            ds: segment(2),
            es: segment(3),
            fs: segment(4),
            gs: segment(5),
            ss: segment(6),
            tr: segment(7),
            ldtr: segment(8),
            gdtr: TableV1 { base: 0xffff_fe00_0000_1000, limit: 127 },
            idtr: TableV1 { base: 0xffff_fe00_0000_0000, limit: 4095 },
            cr0: 0x8005_0033,
            cr2: 0x7f00_dead_b000,
            cr3: 0x10_a000,
            cr4: 0x6f0,
            efer: 0xd01,
            xcr0: 7,
            pdpte: [0x1001, 0x2001, 0x3001, 0x4001],
        },
        msrs: MsrsV1 {
            apic_base: 0xfee0_0d00,
            sysenter_cs: 0x10,
            sysenter_esp: 0x11,
            sysenter_eip: 0x12,
            star: 0x13,
            lstar: 0x14,
            cstar: 0x15,
            sfmask: 0x16,
            kernel_gs_base: 0x17,
            tsc_aux: 0x18,
            pat: 0x0007_0406_0007_0401,
            misc_enable: 0x1801,
            mtrr_def_type: 0xc06,
            mtrr_fixed: std::array::from_fn(|i| 0x0606_0606_0606_0600 + i as u64),
            mtrr_var: std::array::from_fn(|i| MtrrVarV1 { base: (i as u64) << 12, mask: 0x800 + i as u64 }),
            kvm_wall_clock: 0x5000,
            kvm_system_time: 0x6001,
        },
        debug: DebugV1 { dr: [1, 2, 3, 4], dr6: 0xffff_0ff1, dr7: 0x401 },
        fpu: FpuV1 {
            fcw: 0x27f,
            fsw: 0xb881,
            ftw: 0xff,
            fop: 0x7ab,
            fip: 0x40_1000,
            fdp: 0x60_2000,
            st: std::array::from_fn(|i| F80 {
                se: 0x4000 + i as u16,
                frac: 0xc90f_daa2_2168_c235 + i as u64,
            }),
            mxcsr: 0xdf80,
            xmm: std::array::from_fn(|i| 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210 + i as u128),
        },
        avx: Some(AvxV1 { ymm_high: std::array::from_fn(|i| u128::MAX - i as u128) }),
        events: EventsV1 {
            activity: ActivityV1::Halted,
            exception_pending: Some(ExceptionV1 {
                vector: 14,
                error_code: Some(6),
                payload: Some(0xdead_b000),
            }),
            exception_injected: Some(ExceptionV1 { vector: 13, error_code: Some(0), payload: None }),
            interrupt_injected: Some(0x80),
            interrupt_soft: true,
            shadow_sti: true,
            shadow_ss: false,
            nmi_injected: true,
            nmi_pending: 2,
            nmi_masked: true,
            sipi: Some(0x9a),
        },
        lapic: LapicV1 {
            id: 3,
            tpr: 0x20,
            ldr: 0x0800_0000,
            dfr: 0xffff_ffff,
            svr: 0x1ff,
            isr: std::array::from_fn(|i| 0x10_0000 << i),
            tmr: std::array::from_fn(|i| 0x20_0000 << i),
            irr: std::array::from_fn(|i| 0x40_0000 << i),
            esr: 0x40,
            icr_low: 0xc_4611,
            icr_high: 0x0200_0000,
            lvt: [0x2_00ec, 0x1_00fa, 0x1_0400, 0x700, 0x400, 0xfe],
            timer_initial: 0x9896_8001,
            timer_divide: 3,
            timer_deadline_ns: Some(1_234_567_890_123),
            tsc_deadline: 0x1234_5678_9abc,
        },
        tsc: TscV1 { offset: -5_000_000_000, adjust: 77 },
    }
}

const CLOCK: ClockV1 = ClockV1 {
    tsc_khz: 2_595_124,
    tsc: 0x1234_5678_9abc_def0,
    kvmclock_ns: 987_654_321_987,
    realtime_ns: 1_790_000_000_000_000_000,
};

fn raw_sections() -> Vec<RawSection> {
    let mut all = sample().to_sections();
    all.push(RawSection::mandatory(&CLOCK));
    all
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::new();
    for line in bytes.chunks(32) {
        out.extend(line.iter().map(|b| format!("{b:02x}")));
        out.push('\n');
    }
    out
}

#[test]
fn every_section_has_its_golden_bytes() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/x86");
    let sections = raw_sections();
    assert_eq!(
        sections.iter().map(|s| (s.kind.as_str(), s.version)).collect::<Vec<_>>(),
        SECTIONS,
        "the sample has every section of the newest version"
    );
    for s in sections {
        let path = dir.join(format!("{}.v{}.hex", s.kind, s.version));
        if std::env::var_os("GODWIT_WRITE_GOLDENS").is_some() {
            assert!(!path.exists(), "{} exists: a released layout is never rewritten", path.display());
            std::fs::write(&path, hex(&s.data)).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(golden, hex(&s.data), "{} does not encode to {}", s.kind, path.display());
    }
}

#[test]
fn a_vcpu_comes_back_whole_from_sections_in_any_order() {
    let mut sections = sample().to_sections();
    sections.reverse();
    assert_eq!(CpuState::from_sections(&sections).unwrap(), sample());
}

#[test]
fn wrong_sets_of_sections_are_refused_by_name() {
    let all = sample().to_sections();
    for i in 0..all.len() {
        let mut less = all.clone();
        let gone = less.remove(i);
        match CpuState::from_sections(&less) {
            Ok(state) => assert!(gone.kind == "x86.avx" && state.avx.is_none()),
            Err(e) => assert_eq!(e, StateError::Missing { kind: gone.kind }),
        }
    }
    let mut twice = all.clone();
    twice.push(all[2].clone());
    assert_eq!(CpuState::from_sections(&twice), Err(StateError::Twice { kind: "x86.msrs".into() }));

    let mut future = all.clone();
    future[0].version = 2;
    let e = CpuState::from_sections(&future).unwrap_err();
    assert_eq!(e, StateError::Version { kind: "x86.regs".into(), found: 2, known: 1 });

    let mut unknown = all;
    unknown.push(RawSection { kind: "x86.amx".into(), version: 1, optional: true, data: vec![1, 2, 3] });
    assert!(CpuState::from_sections(&unknown).is_ok());
    unknown.last_mut().unwrap().optional = false;
    let e = CpuState::from_sections(&unknown).unwrap_err();
    assert_eq!(e, StateError::Unknown { kind: "x86.amx".into(), version: 1 });
}

#[test]
fn damaged_bytes_are_refused_and_never_panic() {
    for s in raw_sections() {
        let decodes = |version, data: &[u8]| {
            let raw = RawSection { version, data: data.to_vec(), ..s.clone() };
            if s.kind == ClockV1::KIND {
                decode_section::<ClockV1>(&raw).is_ok()
            } else {
                let mut all = sample().to_sections();
                *all.iter_mut().find(|o| o.kind == s.kind).unwrap() = raw;
                CpuState::from_sections(&all).is_ok()
            }
        };
        assert!(decodes(s.version, &s.data), "{}", s.kind);
        for cut in 0..s.data.len() {
            assert!(!decodes(s.version, &s.data[..cut]), "{} cut to {cut}", s.kind);
        }
        let mut longer = s.data.clone();
        longer.push(0);
        assert!(!decodes(s.version, &longer), "{} with a trailing byte", s.kind);
        // A flip may give another legal state; it must not panic, and what decodes is canonical.
        for bit in 0..s.data.len() * 8 {
            let mut flipped = s.data.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            decodes(s.version, &flipped);
        }
    }
}

#[test]
fn a_longer_spelling_of_a_number_is_not_canonical() {
    let tsc = TscV1 { offset: 0, adjust: 5 };
    let bytes = encode(&tsc);
    assert_eq!(bytes, [0, 5]);
    assert!(matches!(decode::<TscV1>(1, &[0, 0x85, 0]), Err(StateError::Damaged { .. })));
}

#[test]
fn impossible_states_are_refused() {
    let invalid = |r: Result<(), StateError>| matches!(r, Err(StateError::Invalid { .. }));
    let s = sample();
    assert!(s.regs.validate().is_ok() && s.system.validate().is_ok() && s.events.validate().is_ok());
    assert!(invalid(RegsV1 { rflags: 0, ..s.regs }.validate()));
    assert!(invalid(RegsV1 { rflags: 0x8002, ..s.regs }.validate()));
    assert!(invalid(FpuV1 { mxcsr: 0x1_0000, ..s.fpu }.validate()));
    assert!(invalid(FpuV1 { fsw: 0, ..s.fpu }.validate()));
    assert!(invalid(SystemV1 { efer: 0x101, ..s.system }.validate()));
    assert!(invalid(SystemV1 { cr0: 0x8000_0000, ..s.system }.validate()));
    assert!(invalid(SystemV1 { cr4: 0, ..s.system }.validate()));
    assert!(invalid(SystemV1 { xcr0: 5, ..s.system }.validate()));
    assert!(invalid(MsrsV1 { pat: 2, ..s.msrs }.validate()));
    assert!(invalid(MsrsV1 { apic_base: 0xfee0_0400, ..s.msrs }.validate()));
    assert!(invalid(EventsV1 { nmi_pending: 3, ..s.events }.validate()));
    assert!(invalid(EventsV1 { interrupt_injected: None, ..s.events }.validate()));
    assert!(invalid(LapicV1 { timer_initial: 0, ..s.lapic }.validate()));
    assert!(invalid(LapicV1 { irr: [1, 0, 0, 0, 0, 0, 0, 0], ..s.lapic }.validate()));
    assert!(invalid(ClockV1 { tsc_khz: 0, ..CLOCK }.validate()));
}

#[test]
fn an_idle_vcpu_is_small() {
    let idle = CpuState {
        regs: RegsV1 { gpr: [0x7fff_ffff_f000; 16], rip: 0x40_1000, rflags: 2 },
        system: SystemV1::reset(),
        msrs: MsrsV1::reset(true),
        debug: DebugV1::default(),
        fpu: FpuV1::default(),
        avx: None,
        events: EventsV1::default(),
        lapic: LapicV1::reset(0),
        tsc: TscV1::default(),
    };
    let size: usize = idle.to_sections().iter().map(|s| s.data.len()).sum();
    assert!(size < 600, "{size} bytes");
}
