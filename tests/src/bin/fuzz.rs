//! `godwit-fuzz FAMILY FIRST COUNT [--record]`: compares sequences on this processor with the interpreter; prints each
//! mismatch, minimised, and a count per mnemonic. `all` takes every family in turn. With `--record` prints lines for
//! `vectors/oracle.txt` instead; with `--list` only shows the sequences.
//!
//! It fails if anything differs, and if a mnemonic that a program can run here was never drawn.

use std::process::ExitCode;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() -> ExitCode {
    eprintln!("godwit-fuzz compares with an x86-64 processor, and this is none");
    ExitCode::from(2)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = args.first().map_or("", String::as_str);
    let number = |n: usize| args.get(n).and_then(|a| a.parse::<u64>().ok());
    let families: Vec<_> = compare::FAMILIES.into_iter().filter(|f| name == "all" || name == f.0).collect();
    let (false, Some(first), Some(count)) = (families.is_empty(), number(1), number(2)) else {
        eprintln!("godwit-fuzz integer|x87|sse|avx|all FIRST COUNT [--record]");
        return ExitCode::from(2);
    };
    if args.iter().any(|a| a == "--list") {
        for seed in first..first.saturating_add(count) {
            for (name, family) in &families {
                let (code, _) = godwit_tests::oracle::case(seed, *family);
                println!("{name} {seed}:\n{}", godwit_tests::oracle::listing(&code));
            }
        }
        return ExitCode::SUCCESS;
    }
    compare::run(&families, first, count, args.iter().any(|a| a == "--record"))
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod compare {
    pub(super) use godwit_tests::oracle::generate::FAMILIES;
    use godwit_tests::oracle::{self, CODE, generate::Family, interp::Machine, native::Native, table};
    use iced_x86::Mnemonic;
    use std::collections::{BTreeMap, BTreeSet};
    use std::process::ExitCode;

    /// Mismatches of one mnemonic that are shown whole.
    const SHOWN: u64 = 3;

    #[derive(Default)]
    struct Count {
        drawn: u64,
        wrong: u64,
    }

    pub(super) fn run(families: &[(&str, Family)], first: u64, count: u64, record: bool) -> ExitCode {
        let native = match Native::new() {
            Ok(native) => native,
            Err(why) => {
                eprintln!("godwit-fuzz: {why}");
                return ExitCode::from(2);
            }
        };
        let machine = Machine::new();
        let mut seen: BTreeMap<Mnemonic, Count> = BTreeMap::new();
        let mut lacking: BTreeSet<String> = BTreeSet::new();
        let (mut sequences, mut bad, mut reached, mut faults) = (0u64, 0u64, 0u64, 0u64);
        for seed in first..first.saturating_add(count) {
            for (name, family) in families {
                let (code, start) = oracle::case(seed, *family);
                let bytes = code.concat();
                if let Some(m) = Native::lacks(&bytes) {
                    lacking.insert(format!("{m:?}"));
                    continue;
                }
                let a = native.run(&bytes, &start);
                if record {
                    println!("{name} {seed} {:016x}", oracle::digest(&code, &a));
                    continue;
                }
                sequences += 1;
                faults += u64::from(a.fault.is_some());
                let end = if (CODE..CODE + 0x1000).contains(&a.state.rip) { a.state.rip } else { u64::MAX };
                for i in oracle::instructions(&bytes).iter().take_while(|i| i.ip() <= end) {
                    reached += 1;
                    seen.entry(i.mnemonic()).or_default().drawn += 1;
                }
                let b = machine.run(&bytes, &start);
                if oracle::agree(&code, &a, &b) {
                    continue;
                }
                bad += 1;
                let differ = |code: &[Vec<u8>]| {
                    let bytes = code.concat();
                    !oracle::agree(code, &native.run(&bytes, &start), &machine.run(&bytes, &start))
                };
                let code = oracle::minimise(code, differ);
                let bytes = code.concat();
                let (a, b) = (native.run(&bytes, &start), machine.run(&bytes, &start));
                let last =
                    oracle::instructions(&bytes).iter().rfind(|i| i.mnemonic() != Mnemonic::Nop).copied();
                let entry = seen.entry(last.map_or(Mnemonic::Nop, |i| i.mnemonic())).or_default();
                entry.wrong += 1;
                if entry.wrong <= SHOWN {
                    println!(
                        "{name} {seed}:\n{}{}",
                        oracle::listing(&code),
                        oracle::differences(&code, &a, &b)
                    );
                    println!(
                        "  from gpr {:x?}, flags {:x}, mxcsr {:x}",
                        start.gpr, start.rflags, start.mxcsr
                    );
                    println!("  to   gpr {:x?}", a.state.gpr);
                }
            }
        }
        if record {
            return ExitCode::SUCCESS;
        }
        let mut never = Vec::new();
        for (_, family) in families {
            for e in &table::table().families[*family as usize] {
                if !seen.contains_key(&e.mnemonic) && !lacking.contains(&format!("{:?}", e.mnemonic)) {
                    never.push(format!("{:?}", e.mnemonic));
                }
            }
        }
        for (mnemonic, c) in &seen {
            let wrong = if c.wrong == 0 { String::new() } else { format!(" MISMATCHES {}", c.wrong) };
            println!("{:16} {:9}{wrong}", format!("{mnemonic:?}"), c.drawn);
        }
        for (mnemonic, why) in &table::table().left_out {
            println!("left out: {mnemonic}: {why}");
        }
        println!("this processor lacks: {lacking:?}");
        println!("never drawn: {never:?}");
        println!(
            "{sequences} sequences, {reached} instructions reached, {} mnemonics, {faults} ended by a fault, {bad} mismatches",
            seen.len()
        );
        ExitCode::from(u8::from(bad != 0 || !never.is_empty()))
    }
}
