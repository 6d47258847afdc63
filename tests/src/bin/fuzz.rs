//! `godwit-fuzz FAMILY FIRST COUNT`: compares sequences on this processor with the interpreter; prints each mismatch,
//! minimised, and a count per mnemonic. `all` takes every family in turn.
//!
//! - `--keep FILE`: keeps counts there every thousand seeds, goes on from what it finds there, and adds to it: a long
//!   run may be stopped at any time and started again by the same command.
//! - `sum FILE...` instead of all that: the counts of several such files together.
//! - `--record`: prints lines for `vectors/oracle.txt` instead, but for what this processor's vendor does otherwise.
//!   `--list`: only shows the sequences.
//!
//! It fails if anything differs but for what the table of differences between vendors says of this processor, and if a
//! mnemonic that a program can run here was never drawn.

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
    if name == "sum" {
        return compare::sum(&args[1..]).unwrap_or_else(|why| {
            eprintln!("godwit-fuzz: {why}");
            ExitCode::from(2)
        });
    }
    let number = |n: usize| args.get(n).and_then(|a| a.parse::<u64>().ok());
    let families: Vec<_> = compare::FAMILIES.into_iter().filter(|f| name == "all" || name == f.0).collect();
    let (false, Some(first), Some(count)) = (families.is_empty(), number(1), number(2)) else {
        eprintln!(
            "godwit-fuzz integer|x87|sse|avx|integer32|vector32|all FIRST COUNT [--keep FILE | --record | --list]\ngodwit-fuzz sum FILE..."
        );
        return ExitCode::from(2);
    };
    let seeds = first..first.saturating_add(count);
    if args.iter().any(|a| a == "--list") {
        for seed in seeds {
            for (name, family) in &families {
                let (code, start) = godwit_tests::oracle::case(seed, *family);
                println!("{name} {seed}:\n{}", godwit_tests::oracle::listing(&code, start.bits));
            }
        }
        return ExitCode::SUCCESS;
    }
    let keep =
        args.iter().position(|a| a == "--keep").and_then(|n| args.get(n + 1)).map(std::path::Path::new);
    match compare::run(&families, seeds, args.iter().any(|a| a == "--record"), keep) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("godwit-fuzz: {why}");
            ExitCode::from(2)
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod compare {
    use godwit_interp::vendor::{self, SetAside};
    pub(super) use godwit_tests::oracle::generate::FAMILIES;
    use godwit_tests::oracle::{self, CODE, State, generate::Family, interp::Machine, native::Native, table};
    use iced_x86::Mnemonic;
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt::Write as _;
    use std::ops::Range;
    use std::path::Path;
    use std::process::ExitCode;

    /// Mismatches of one mnemonic that are shown whole.
    const SHOWN: u64 = 3;
    /// Seeds between two times that counts are kept.
    const KEPT: u64 = 1000;

    #[derive(Default)]
    struct Count {
        drawn: u64,
        wrong: u64,
    }

    /// What was seen so far.
    #[derive(Default)]
    struct Tally {
        /// The next seed.
        next: u64,
        sequences: u64,
        reached: u64,
        faults: u64,
        bad: u64,
        seen: BTreeMap<Mnemonic, Count>,
        lacking: BTreeSet<String>,
        aside: SetAside,
    }

    impl Tally {
        fn text(&self) -> String {
            let mut out =
                format!("{} {} {} {} {}\n", self.next, self.sequences, self.reached, self.faults, self.bad);
            for (mnemonic, c) in &self.seen {
                let _ = writeln!(out, "mnemonic {mnemonic:?} {} {}", c.drawn, c.wrong);
            }
            self.lacking.iter().for_each(|m| {
                let _ = writeln!(out, "lacks {m}");
            });
            for (name, count) in &self.aside.by_name {
                let _ = writeln!(out, "aside {name} {count}");
            }
            out
        }

        fn parse(text: &str) -> Option<Tally> {
            let mut lines = text.lines();
            let n: Vec<u64> = lines.next()?.split(' ').map(|w| w.parse().ok()).collect::<Option<_>>()?;
            let [next, sequences, reached, faults, bad] = n[..] else { return None };
            let mut tally = Tally { next, sequences, reached, faults, bad, ..Tally::default() };
            let names: BTreeMap<String, Mnemonic> =
                Mnemonic::values().map(|m| (format!("{m:?}"), m)).collect();
            for line in lines {
                match line.split(' ').collect::<Vec<_>>()[..] {
                    ["mnemonic", m, drawn, wrong] => {
                        let count = Count { drawn: drawn.parse().ok()?, wrong: wrong.parse().ok()? };
                        tally.seen.insert(*names.get(m)?, count);
                    }
                    ["lacks", m] => drop(tally.lacking.insert(m.to_owned())),
                    ["aside", name, count] => {
                        tally.aside.by_name.insert(vendor::named(name).name, count.parse().ok()?);
                    }
                    _ => return None,
                }
            }
            Some(tally)
        }
    }

    fn read(path: &Path) -> Result<Tally, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Tally::parse(&text).ok_or_else(|| format!("{} was not kept by this program", path.display()))
    }

    /// Reports what several runs of every family kept.
    pub(super) fn sum(files: &[String]) -> Result<ExitCode, String> {
        let mut all = Tally::default();
        for file in files {
            let t = read(Path::new(file))?;
            all.sequences += t.sequences;
            all.reached += t.reached;
            all.faults += t.faults;
            all.bad += t.bad;
            all.lacking.extend(t.lacking);
            for (m, c) in t.seen {
                let sum = all.count(m);
                (sum.drawn, sum.wrong) = (sum.drawn + c.drawn, sum.wrong + c.wrong);
            }
            for (name, count) in t.aside.by_name {
                *all.aside.by_name.entry(name).or_default() += count;
            }
        }
        Ok(report(&FAMILIES, &all))
    }

    pub(super) fn run(
        families: &[(&str, Family)],
        seeds: Range<u64>,
        record: bool,
        keep: Option<&Path>,
    ) -> Result<ExitCode, String> {
        let native = Native::new()?;
        let machine = Machine::new();
        if record {
            for seed in seeds {
                for (name, family) in families {
                    let (code, start) = oracle::case(seed, *family);
                    let bytes = code.concat();
                    if let Some(m) = Native::lacks(&bytes, start.bits) {
                        return Err(format!("this processor lacks {m:?}: record on another"));
                    }
                    let answer = native.run(&bytes, &start);
                    match oracle::intel::agrees(&machine, &code, &start, &answer) {
                        Some(names) => eprintln!("{name} {seed} is not recorded: {names:?}"),
                        None => println!("{name} {seed} {:016x}", oracle::digest(&code, &answer)),
                    }
                }
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut tally = Tally { next: seeds.start, ..Tally::default() };
        if let Some(path) = keep.filter(|p| p.exists()) {
            tally = read(path)?;
            println!("goes on from seed {}", tally.next);
        }
        while tally.next < seeds.end {
            for (name, family) in families {
                let (code, start) = oracle::case(tally.next, *family);
                one(&native, &machine, &format!("{name} {}", tally.next), code, &start, &mut tally);
            }
            tally.next += 1;
            if let Some(path) = keep.filter(|_| tally.next.is_multiple_of(KEPT) || tally.next == seeds.end) {
                let new = path.with_extension("new");
                std::fs::write(&new, tally.text())
                    .and_then(|()| std::fs::rename(&new, path))
                    .map_err(|e| format!("{}: {e}", path.display()))?;
            }
        }
        Ok(report(families, &tally))
    }

    fn one(native: &Native, machine: &Machine, name: &str, code: Vec<Vec<u8>>, start: &State, t: &mut Tally) {
        let bytes = code.concat();
        let list = oracle::instructions(&bytes, start.bits);
        if let Some(m) = Native::lacks_any(&list) {
            t.lacking.insert(format!("{m:?}"));
            return;
        }
        let a = native.run(&bytes, start);
        t.sequences += 1;
        t.faults += u64::from(a.fault.is_some());
        let end = if (CODE..CODE + 0x1000).contains(&a.state.rip) { a.state.rip } else { u64::MAX };
        for i in list.iter().take_while(|i| i.ip() <= end) {
            t.reached += 1;
            t.count(i.mnemonic()).drawn += 1;
        }
        let b = machine.run(&bytes, start);
        if oracle::agree(&code, &a, &b) {
            return;
        }
        if let Some(names) = oracle::intel::agrees(machine, &code, start, &a) {
            names.iter().for_each(|name| t.aside.note(name));
            return;
        }
        if b.fault == Some(14) && oracle::native::is_own(b.address) {
            return;
        }
        // A processor that is asked by many for random numbers may have none (SDM vol. 1, 7.3.17).
        let draws = |i: &iced_x86::Instruction| matches!(i.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed);
        if list.iter().any(draws)
            && (0..100).any(|_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                oracle::agree(&code, &native.run(&bytes, start), &b)
            })
        {
            return;
        }
        t.bad += 1;
        let code = oracle::minimise(code, |code| {
            let bytes = code.concat();
            let a = native.run(&bytes, start);
            !oracle::agree(code, &a, &machine.run(&bytes, start))
                && oracle::intel::agrees(machine, code, start, &a).is_none()
        });
        let bytes = code.concat();
        let (a, b) = (native.run(&bytes, start), machine.run(&bytes, start));
        let last =
            oracle::instructions(&bytes, start.bits).iter().rfind(|i| i.mnemonic() != Mnemonic::Nop).copied();
        let entry = t.count(last.map_or(Mnemonic::Nop, |i| i.mnemonic()));
        entry.wrong += 1;
        if entry.wrong <= SHOWN {
            println!("{name}:\n{}{}", oracle::listing(&code, start.bits), oracle::differences(&code, &a, &b));
            println!("  from gpr {:x?}, flags {:x}, mxcsr {:x}", start.gpr, start.rflags, start.mxcsr);
            println!("  to   gpr {:x?}", a.state.gpr);
        }
    }

    impl Tally {
        fn count(&mut self, m: Mnemonic) -> &mut Count {
            self.seen.entry(m).or_default()
        }
    }

    /// The processor's own name.
    fn processor() -> String {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(name));
            line.and_then(|l| l.split_once(": ")).map_or("?", |(_, v)| v).to_owned()
        };
        format!("{}, family {} model {}", field("model name"), field("cpu family"), field("model\t"))
    }

    fn report(families: &[(&str, Family)], t: &Tally) -> ExitCode {
        let mut never = Vec::new();
        for (_, family) in families {
            for e in &table::table().families[*family as usize] {
                let name = format!("{:?}", e.mnemonic);
                if !t.seen.contains_key(&e.mnemonic) && !t.lacking.contains(&name) {
                    never.push(name);
                }
            }
        }
        for (mnemonic, c) in &t.seen {
            let wrong = if c.wrong == 0 { String::new() } else { format!(" MISMATCHES {}", c.wrong) };
            println!("{:16} {:9}{wrong}", format!("{mnemonic:?}"), c.drawn);
        }
        for (mnemonic, why) in &table::table().left_out {
            println!("left out: {mnemonic}: {why}");
        }
        println!("this processor lacks: {:?}", t.lacking);
        println!("never drawn: {never:?}");
        for (name, count) in &t.aside.by_name {
            let d = vendor::named(name);
            println!("set aside: {count:8} {name}: {}: {}", d.instructions, d.intel);
        }
        println!("on {} ({:?}): {}", processor(), vendor::host(), t.aside);
        println!(
            "{} sequences, {} instructions reached, {} mnemonics, {} ended by a fault, {} mismatches",
            t.sequences,
            t.reached,
            t.seen.len(),
            t.faults,
            t.bad
        );
        ExitCode::from(u8::from(t.bad != 0 || !never.is_empty()))
    }
}
