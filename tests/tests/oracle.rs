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
    for family in ["x87", "sse", "avx"] {
        eprintln!("SKIPPED recorded_answers {family}: no recorded answers of this family");
    }
}
