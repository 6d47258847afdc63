//! How fast the CPU backends are: the bench program on Godwit, on QEMU's TCG, and natively.
//!
//!     cargo bench -p godwit-guests --bench cpu [-- --runs N] [--scale PERCENT] [--only NAME,NAME]
//!
//! Every subject runs the same bytes, in turn, `runs` times (5); the table gives medians in
//! microseconds, and Godwit's interpreter relative to TCG (above 1: faster). Checksums must agree.
//! The `godwit` binary is `$GODWIT`, else the release build of this workspace; subjects that are
//! not there are left out by name.

use clap::Parser;
use godwit_guests::bench;
use godwit_guests::host::median;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// Kernels over which the geometric mean is taken.
const MEAN: [&str; 12] = [
    "integer",
    "coremark",
    "sha256",
    "rep_movsb",
    "rep_stosb",
    "sse_copy",
    "pointer_chase",
    "nbody",
    "mandelbrot_sse2",
    "mandelbrot_avx2",
    "bytecode",
    "sort",
];

struct Subject {
    name: &'static str,
    command: Command,
}

/// What one kernel gave under one subject.
#[derive(Default)]
struct Result {
    micros: Vec<u64>,
    checksum: String,
}

/// `kernel NAME iterations N cycles C us U checksum X`
fn parse(line: &str) -> Option<(&str, u64, &str)> {
    let mut words = line.split_whitespace();
    (words.next()? == "kernel").then_some(())?;
    let name = words.next()?;
    let micros = words.nth(5)?.parse().ok()?;
    Some((name, micros, words.nth(1)?))
}

fn qemu(binary: &Path, elf: &Path, options: &str) -> Command {
    let mut command = Command::new(binary);
    command
        .args(["-M", "microvm", "-m", "256", "-cpu", "max", "-accel", "tcg", "-nographic"])
        .args(["-no-reboot", "-append", options, "-kernel"])
        .arg(elf);
    command
}

fn godwit(binary: &Path, backend: &str, dir: &Path, elf: &Path, options: &str) -> Command {
    let config = dir.join("bench.json");
    let text = format!(
        "{{\"boot-source\": {{\"kernel_image_path\": {:?}, \"boot_args\": {options:?}}},\n \
         \"machine-config\": {{\"vcpu_count\": 1, \"mem_size_mib\": 256}}}}\n",
        elf.display().to_string()
    );
    std::fs::write(&config, text).expect("the config file");
    let mut command = Command::new(binary);
    command.args(["--no-api", "--backend", backend, "--config-file"]).arg(config);
    command
}

fn subjects(dir: &Path, options: &str) -> Vec<Subject> {
    let program = bench::compile(dir).unwrap_or_else(|error| panic!("{error}"));
    let elf = dir.join("bench.elf");
    std::fs::write(&elf, bench::image(&program).expect("assembles")).expect("the guest's file");
    let mut out = Vec::new();
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-guests"));
        command.arg("--native").arg(dir).args(options.split(' '));
        out.push(Subject { name: "native", command });
    } else {
        println!("left out: native (this host is no x86-64)");
    }
    match godwit_guests::host::qemu() {
        Ok(binary) => out.push(Subject { name: "tcg", command: qemu(&binary, &elf, options) }),
        Err(why) => println!("left out: tcg ({why})"),
    }
    let binary = godwit_guests::host::godwit();
    if binary.exists() {
        let command = godwit(&binary, "interp", dir, &elf, options);
        out.push(Subject { name: "interp", command });
    } else {
        println!("left out: interp (no {}; cargo build --release --workspace)", binary.display());
    }
    out
}

fn run(
    subject: &mut Subject,
    results: &mut BTreeMap<(String, &'static str), Result>,
    order: &mut Vec<String>,
) {
    let output = subject.command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{}: {e}", subject.name));
    let printed = String::from_utf8_lossy(&output.stdout);
    if !printed.contains("bench done") {
        println!(
            "{} did not finish ({}):\n{printed}{}",
            subject.name,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for (kernel, micros, checksum) in printed.lines().filter_map(parse) {
        if !order.iter().any(|known| known == kernel) {
            order.push(kernel.to_owned());
        }
        let result = results.entry((kernel.to_owned(), subject.name)).or_default();
        result.micros.push(micros);
        result.checksum = checksum.to_owned();
    }
}

/// How fast the CPU backends are: the bench program on Godwit, on QEMU's TCG, and natively.
#[derive(Parser)]
struct Arguments {
    /// Runs of each subject; the table has their medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How much each kernel does, in percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 100)]
    scale: u32,
    /// Only these kernels.
    #[arg(long, value_name = "NAME,NAME")]
    only: Option<String>,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let Arguments { runs, scale, only, .. } = Arguments::parse();
    let only = only.map(|names| format!(" only={names}"));
    let options = format!("scale={scale}{}", only.unwrap_or_default());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut subjects = subjects(dir, &options);
    let (mut results, mut order) = (BTreeMap::new(), Vec::new());
    for _ in 0..runs {
        for subject in &mut subjects {
            run(subject, &mut results, &mut order);
        }
    }

    print!("{:18}", "kernel");
    for subject in &subjects {
        print!("{:>12}", subject.name);
    }
    println!("{:>14}{:>14}", "tcg/interp", "native/tcg");
    let (mut log_sum, mut count, mut disagree) = (0.0, 0, false);
    for kernel in &order {
        let get = |subject| results.get(&(kernel.clone(), subject));
        print!("{kernel:18}");
        for subject in &subjects {
            match get(subject.name) {
                Some(result) => print!("{:>12}", median(&result.micros)),
                None => print!("{:>12}", "-"),
            }
        }
        let ratio = |a, b| -> Option<f64> {
            let (a, b) = (median(&get(a)?.micros), median(&get(b)?.micros));
            (a > 0 && b > 0).then(|| a as f64 / b as f64)
        };
        let relative = ratio("tcg", "interp");
        for value in [relative, ratio("native", "tcg")] {
            print!("{:>14}", value.map_or("-".to_owned(), |value| format!("{value:.3}")));
        }
        if let Some(relative) = relative.filter(|_| MEAN.contains(&kernel.as_str())) {
            log_sum += relative.ln();
            count += 1;
        }
        let sums: Vec<_> = subjects.iter().filter_map(|s| Some(&get(s.name)?.checksum)).collect();
        let same = sums.windows(2).all(|pair| pair[0] == pair[1]);
        disagree |= !same;
        println!("{}", if same { "" } else { "  CHECKSUMS DIFFER" });
    }
    if count > 0 {
        println!(
            "geometric mean of {count}, integer to sort, tcg/interp: {:.3}",
            (log_sum / f64::from(count)).exp()
        );
    }
    assert!(!disagree, "the subjects do not compute the same");
}
