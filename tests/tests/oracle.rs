//! The interpreter against a processor: recorded answers everywhere. Long slices: `godwit-fuzz`.

use godwit_interp::vendor::{self, SetAside, Vendor};
use godwit_tests::oracle::{self, generate, interp::Machine};

/// What a processor answered, replayed on any host.
#[test]
fn recorded_answers_are_given_again() {
    let machine = Machine::new();
    let mut bad = Vec::new();
    for line in include_str!("../vectors/oracle.txt").lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split(' ');
        let (name, seed, want) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let family = generate::FAMILIES.iter().find(|f| f.0 == name).unwrap().1;
        let (code, start) = oracle::case(seed.parse().unwrap(), family);
        let outcome = machine.run(&code.concat(), &start);
        if format!("{:016x}", oracle::digest(&code, &outcome)) != want {
            bad.push(format!("{name} {seed}\n{}", oracle::listing(&code, start.bits)));
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// A short slice against the processor that runs the test.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn a_short_slice_agrees_with_this_processor() {
    let native = match oracle::native::Native::new() {
        Ok(native) => native,
        Err(why) => return eprintln!("SKIPPED a_short_slice_agrees_with_this_processor: {why}"),
    };
    let machine = Machine::new();
    let (mut bad, mut compared, mut aside) = (String::new(), 0u64, SetAside::default());
    for (name, family) in generate::FAMILIES {
        for seed in 1_000_000..1_002_000 {
            let (code, start) = oracle::case(seed, family);
            let bytes = code.concat();
            if oracle::native::Native::lacks(&bytes, start.bits).is_some() {
                continue;
            }
            let (native, interp) = (native.run(&bytes, &start), machine.run(&bytes, &start));
            compared += 1;
            if oracle::agree(&code, &native, &interp) {
                continue;
            }
            if let Some(names) = oracle::intel::agrees(&machine, &code, &start, &native) {
                names.iter().for_each(|name| aside.note(name));
            } else {
                let differences = oracle::differences(&code, &native, &interp);
                bad += &format!("{name} {seed}:\n{}{differences}", oracle::listing(&code, start.bits));
            }
        }
    }
    println!("{compared} sequences compared, {aside}");
    assert!(bad.is_empty(), "{bad}");
}

/// Operands of every size over the end of canonical addresses: whether that or the page is met first.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn operands_over_the_canonical_boundary_fault_alike() {
    let native = match oracle::native::Native::new() {
        Ok(native) => native,
        Err(why) => return eprintln!("SKIPPED operands_over_the_canonical_boundary_fault_alike: {why}"),
    };
    let machine = Machine::new();
    // At [RBX] or, where that makes #SS of it, at [RBP].
    let forms: [(&str, &[u8], &[u8]); 12] = [
        ("mov eax, m32", &[0x8b], &[]),
        ("mov m64, rax", &[0x48, 0x89], &[]),
        ("fld m80", &[0xdb], &[5]),
        ("fstp m80", &[0xdb], &[7]),
        ("cmpxchg16b", &[0x48, 0x0f, 0xc7], &[1]),
        ("movups xmm0, m128", &[0x0f, 0x10], &[]),
        ("movups m128, xmm0", &[0x0f, 0x11], &[]),
        ("vmovups ymm0, m256", &[0xc5, 0xfc, 0x10], &[]),
        ("vmovups m256, ymm0", &[0xc5, 0xfc, 0x11], &[]),
        ("vaddps ymm0, ymm0, m256", &[0xc5, 0xfc, 0x58], &[]),
        ("vbroadcasti128 ymm0, m128", &[0xc4, 0xe2, 0x7d, 0x5a], &[]),
        ("fnstenv", &[0xd9], &[6]),
    ];
    let (mut bad, mut aside) = (String::new(), SetAside::default());
    for (name, opcode, extension) in forms {
        for base in [3u8, 5] {
            for back in 1..40u64 {
                for edge in [0x8000_0000_0000u64, 0xffff_8000_0000_0000] {
                    let mut start = oracle::State::new();
                    start.gpr[usize::from(base)] = edge.wrapping_sub(back);
                    let mut code = opcode.to_vec();
                    code.extend([0x40 | extension.first().unwrap_or(&0) << 3 | base, 0]);
                    let (a, b) = (native.run(&code, &start), machine.run(&code, &start));
                    let code = [code];
                    let parts = vendor::host() == Vendor::Intel
                        && matches!(opcode[0], 0xd9 | 0xdb)
                        && (a.fault, a.address) == (Some(14), start.gpr[usize::from(base)]);
                    if !oracle::agree(&code, &a, &b) && parts {
                        aside.note("x87-parts");
                    } else if !oracle::agree(&code, &a, &b) {
                        let differences = oracle::differences(&code, &a, &b);
                        bad += &format!("{name} {back} bytes before {edge:x}:\n{differences}");
                    }
                }
            }
        }
    }
    // REP MOVSD, REP STOSQ, STOSW.
    for code in [&[0xf3, 0xa5][..], &[0xf3, 0x48, 0xab], &[0x66, 0xab]] {
        for back in 1..10 {
            let mut start = oracle::State::new();
            (start.gpr[1], start.gpr[6], start.gpr[7]) = (2, oracle::DATA, (1 << 47) - back);
            let (a, b) = (native.run(code, &start), machine.run(code, &start));
            let code = [code.to_vec()];
            if !oracle::agree(&code, &a, &b) {
                bad += &format!("{code:x?} {back} bytes before:\n{}", oracle::differences(&code, &a, &b));
            }
        }
    }
    println!("operands over the canonical boundary: {aside}");
    assert!(bad.is_empty(), "{bad}");
}

/// A masked move with an address of 32 bits is one operand: it goes on past 4 GiB.
#[test]
fn masked_moves_go_on_past_an_address_of_32_bits() {
    let machine = Machine::new();
    // VPMASKMOVD [EBX], YMM0, YMM1; VMASKMOVPS YMM1, YMM0, [EBX]; VMASKMOVDQU [EDI], XMM0, XMM1 by XMM0.
    let codes: [(&[u8], u32); 3] = [
        (&[0x67, 0xc4, 0xe2, 0x7d, 0x8e, 0x0b], 6),
        (&[0x67, 0xc4, 0xe2, 0x7d, 0x2c, 0x0b], 4),
        (&[0x67, 0xc4, 0xe1, 0x79, 0xf7, 0xc8], 6),
    ];
    for (code, error) in codes {
        let mut start = oracle::State::new();
        (start.gpr[3], start.gpr[7]) = (0xffff_fff0, 0xffff_fff8);
        // Only what lies beyond.
        start.ymm[0] = if code[4] == 0xf7 { [0, 1 << 7, 0, 0] } else { [0, 0, 1 << 31, 0] };
        let end = machine.run(code, &start);
        if code[4] == 0xf7 {
            // Its start is looked at first, as on AMD's.
            assert_eq!((end.fault, end.error, end.address), (Some(14), error, 0xffff_fff8), "{code:x?}");
        } else {
            assert_eq!((end.fault, end.error, end.address), (Some(14), error, 1 << 32), "{code:x?}");
        }
    }
}

/// Any bytes from any state: no panic, and a kick ends whatever runs on.
#[test]
fn arbitrary_bytes_neither_panic_nor_hang() {
    let machine = Machine::new();
    for seed in 0..2000 {
        let mut r = generate::Random::new(seed);
        let bytes: Vec<u8> = (0..1 + r.below(64)).map(|_| r.next() as u8).collect();
        machine.run_anything(&bytes, &generate::state(&mut r, 64));
    }
}
