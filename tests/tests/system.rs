//! `vectors/system.txt`: on the interpreter everywhere, and under QEMU where it is.

use godwit_tests::system::run;
use godwit_tests::system::vector::{self, Vector};
use std::path::Path;

fn vectors() -> Vec<Vector> {
    vector::all(include_str!("../vectors/system.txt"))
}

fn compare(who: &str, vectors: &[Vector], outcomes: &[String]) {
    assert_eq!(vectors.len(), outcomes.len());
    let bad: Vec<String> = vectors
        .iter()
        .zip(outcomes)
        .filter(|(v, is)| v.outcome != **is)
        .map(|(v, is)| format!("{} ({})\n  want {}\n  {who} {is}", v.name, v.mode.name, v.outcome))
        .collect();
    println!("{who}: {} vectors", vectors.len());
    assert!(bad.is_empty(), "{} differ\n{}", bad.len(), bad.join("\n"));
}

#[test]
fn the_interpreter_does_as_every_line_says() {
    let vectors = vectors();
    assert!(vectors.len() > 100 && vectors.iter().all(|v| !v.outcome.is_empty() && !v.oracles.is_empty()));
    compare("interp", &vectors, &run::interp(&vectors));
}

#[test]
fn qemu_does_as_the_lines_say_that_trust_it() {
    let test = "qemu_does_as_the_lines_say_that_trust_it";
    if let Err(why) = godwit_guests::host::qemu() {
        return println!("SKIPPED {test}: {why}");
    }
    let trusted: Vec<Vector> = vectors().into_iter().filter(|v| v.trusts("tcg")).collect();
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let outcomes = run::qemu("tcg", &trusted, dir).expect("QEMU runs");
    let alike = |(v, is): (&Vector, &String)| {
        if run::without_rf(&v.outcome) == run::without_rf(is) { v.outcome.clone() } else { is.clone() }
    };
    let outcomes: Vec<String> = trusted.iter().zip(&outcomes).map(alike).collect();
    compare("tcg", &trusted, &outcomes);
}

#[test]
fn hex_is_what_the_assembly_says() {
    let test = "hex_is_what_the_assembly_says";
    if !cfg!(target_arch = "x86_64") {
        return println!("SKIPPED {test}: no assembler for x86-64 code");
    }
    for v in vectors() {
        match vector::assembled(&v, Path::new(env!("CARGO_TARGET_TMPDIR"))) {
            Ok(code) => assert_eq!([&code[..], &[0xcd, 0x20]].concat(), v.code, "{}", v.name),
            Err(why) if why.starts_with("no ") => return println!("SKIPPED {test}: {why}"),
            Err(why) => panic!("{why}"),
        }
    }
}
