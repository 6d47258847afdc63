//! `godwit-guests OUTDIR [NAME...]` writes the guests' ELF files; `--list` names them.

#![forbid(unsafe_code)]

use godwit_guests::counter::Checker;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: godwit-guests OUTDIR [NAME...]   writes OUTDIR/NAME.elf (all guests by default)
       godwit-guests --list             names the guests and their options
       godwit-guests --bench OUTDIR     compiles the bench program, writes OUTDIR/bench.elf
       godwit-guests --native OUTDIR [OPTION...]   runs the bench program in this process
       godwit-guests --check            checks the counter's lines on standard input";

fn write(dir: &Path, names: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let all: Vec<_> = godwit_guests::GUESTS.iter().map(|guest| guest.name.to_owned()).collect();
    for name in if names.is_empty() { &all } else { names } {
        let path = dir.join(format!("{name}.elf"));
        std::fs::write(&path, godwit_guests::build(name)?).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn check(input: impl std::io::BufRead) -> Result<Checker, Box<dyn std::error::Error>> {
    let mut checker = Checker::new();
    for line in input.split(b'\n') {
        checker.check_line(&String::from_utf8_lossy(&line?))?;
    }
    Ok(checker)
}

/// Compiles the bench program, and writes its guest or runs it here with options.
fn bench(dir: &Path, native: Option<&String>) -> Result<(), Box<dyn std::error::Error>> {
    let program = godwit_guests::bench::compile(dir)?;
    if let Some(options) = native {
        return run_native(&program, options);
    }
    let path = dir.join("bench.elf");
    std::fs::write(&path, godwit_guests::bench::image(&program)?)
        .map_err(|e| format!("{}: {e}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn run_native(
    program: &godwit_guests::bench::Program,
    options: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    print!("{}", godwit_guests::native::run(program, options)?);
    Ok(())
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn run_native(
    _program: &godwit_guests::bench::Program,
    _options: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    Err("this host's CPU cannot run the program itself: it is x86-64 code".into())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("--list") => {
            for guest in godwit_guests::GUESTS {
                println!("{:10} {}", guest.name, guest.about);
            }
            ExitCode::SUCCESS
        }
        Some("--check") => match check(std::io::stdin().lock()) {
            Ok(checker) if checker.lines() > 0 => {
                let (lines, gap) = (checker.lines(), checker.max_gap_us());
                println!("{lines} lines, all right; longest silence {gap} us");
                ExitCode::SUCCESS
            }
            Ok(_) => {
                eprintln!("godwit-guests: no line of the counter's");
                ExitCode::FAILURE
            }
            Err(error) => {
                eprintln!("godwit-guests: {error}");
                ExitCode::FAILURE
            }
        },
        Some(which @ ("--bench" | "--native")) => {
            let Some(dir) = arguments.next() else {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            };
            let options = arguments.collect::<Vec<_>>().join(" ");
            match bench(Path::new(&dir), (which == "--native").then_some(&options)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("godwit-guests: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Some("-h" | "--help") => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        Some(dir) if !dir.starts_with('-') => match write(Path::new(dir), &arguments.collect::<Vec<_>>()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("godwit-guests: {error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
