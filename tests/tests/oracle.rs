//! The interpreter against a processor: recorded answers everywhere. Long slices: `godwit-fuzz`.

use godwit_tests::oracle::{self, generate, interp::Machine};

/// What a processor answered, replayed on any host.
#[test]
fn recorded_answers_are_given_again() {
    let machine = Machine::new();
    let mut bad = Vec::new();
    for line in include_str!("../vectors/oracle.txt").lines() {
        let mut words = line.split(' ');
        let (name, seed, want) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        let family = generate::FAMILIES.iter().find(|f| f.0 == name).unwrap().1;
        let (code, start) = oracle::case(seed.parse().unwrap(), family);
        let outcome = machine.run(&code.concat(), &start);
        if format!("{:016x}", oracle::digest(&code, &outcome)) != want {
            bad.push(format!("{name} {seed}\n{}", oracle::listing(&code)));
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
    let mut bad = String::new();
    for (name, family) in generate::FAMILIES {
        for seed in 1_000_000..1_002_000 {
            let (code, start) = oracle::case(seed, family);
            let bytes = code.concat();
            if oracle::native::Native::lacks(&bytes).is_some() {
                continue;
            }
            let (native, interp) = (native.run(&bytes, &start), machine.run(&bytes, &start));
            if !oracle::agree(&code, &native, &interp) {
                let differences = oracle::differences(&code, &native, &interp);
                bad += &format!("{name} {seed}:\n{}{differences}", oracle::listing(&code));
            }
        }
    }
    assert!(bad.is_empty(), "{bad}");
}

/// Any bytes from any state: no panic, and a kick ends whatever runs on.
#[test]
fn arbitrary_bytes_neither_panic_nor_hang() {
    let machine = Machine::new();
    for seed in 0..2000 {
        let mut r = generate::Random::new(seed);
        let bytes: Vec<u8> = (0..1 + r.below(64)).map(|_| r.next() as u8).collect();
        machine.run_anything(&bytes, &generate::state(&mut r));
    }
}
