//! `godwit-fuzz FAMILY FIRST COUNT [--record]`: compares sequences on this processor with the interpreter; prints each
//! mismatch, minimised, and a count per mnemonic. With `--record` prints lines for `vectors/oracle.txt` instead.

use godwit_tests::oracle::{self, generate};
use std::collections::BTreeMap;
use std::process::ExitCode;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() -> ExitCode {
    eprintln!("godwit-fuzz compares with an x86-64 processor, and this is none");
    let _ = (BTreeMap::<u8, u8>::new(), generate::FAMILIES, oracle::CODE);
    ExitCode::from(2)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let family = generate::FAMILIES.iter().find(|f| args.first().is_some_and(|a| a == f.0));
    let number = |n: usize| args.get(n).and_then(|a| a.parse::<u64>().ok());
    let (Some((name, family)), Some(first), Some(count)) = (family, number(1), number(2)) else {
        eprintln!("godwit-fuzz integer|x87|sse|avx FIRST COUNT [--record]");
        return ExitCode::from(2);
    };
    let Some(native) = oracle::native::Native::new() else {
        eprintln!("godwit-fuzz: this processor has no AVX2, or its addresses are taken");
        return ExitCode::from(2);
    };
    let machine = oracle::interp::Machine::new();
    let record = args.iter().any(|a| a == "--record");
    let mut seen: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let (mut bad, mut instructions) = (0, 0);
    for seed in first..first.saturating_add(count) {
        let (code, start) = oracle::case(seed, *family);
        let a = native.run(&code.concat(), &start);
        if record {
            println!("{name} {seed} {:016x}", oracle::digest(&code, &a));
            continue;
        }
        for bytes in &code {
            instructions += 1;
            seen.entry(format!("{:?}", generate::decode(bytes).mnemonic())).or_default().0 += 1;
        }
        let b = machine.run(&code.concat(), &start);
        if oracle::differences(&code, &a, &b).is_empty() {
            continue;
        }
        bad += 1;
        let differ = |code: &[Vec<u8>]| {
            let bytes = code.concat();
            !oracle::differences(code, &native.run(&bytes, &start), &machine.run(&bytes, &start)).is_empty()
        };
        let code = oracle::minimise(code, differ);
        let (a, b) = (native.run(&code.concat(), &start), machine.run(&code.concat(), &start));
        let last = code.last().map(|l| format!("{:?}", generate::decode(l).mnemonic())).unwrap_or_default();
        let entry = seen.entry(last).or_default();
        entry.1 += 1;
        if entry.1 <= 2 {
            println!("{name} {seed}:\n{}{}", oracle::listing(&code), oracle::differences(&code, &a, &b));
        }
    }
    if !record {
        for (mnemonic, (times, wrong)) in &seen {
            println!(
                "{mnemonic:16} {times:9} {}",
                if *wrong == 0 { String::new() } else { format!("MISMATCHES {wrong}") }
            );
        }
        println!("{name}: {count} sequences, {instructions} instructions, {bad} mismatches");
    }
    ExitCode::from(u8::from(bad != 0))
}
