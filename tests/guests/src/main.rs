//! `godwit-guests`: writes the guests' files, checks the counter's output, runs the bench program here.

#![forbid(unsafe_code)]

use godwit_guests::bench::{self, Program};
use godwit_guests::counter::Checker;
use godwit_guests::{GUESTS, build};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage:
  godwit-guests OUTDIR [NAME...]    writes OUTDIR/NAME.elf (all assembled guests by default)
  godwit-guests --list              names the guests and their options
  godwit-guests --bench OUTDIR      compiles the bench program, writes OUTDIR/bench.elf
  godwit-guests --virtio OUTDIR     compiles the virtio program, writes OUTDIR/virtio.elf
  godwit-guests --tcp OUTDIR        compiles the TCP program, writes OUTDIR/tcp.elf
  godwit-guests --native OUTDIR [OPTION...]   runs the bench program in this process
  godwit-guests --check             checks the counter's lines on standard input";

type Outcome = Result<(), Box<dyn Error>>;

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Outcome {
    let path = dir.join(format!("{name}.elf"));
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&path, bytes))
        .map_err(|e| format!("{}: {e}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

fn write_guests(dir: &Path, names: &[String]) -> Outcome {
    let all: Vec<_> = GUESTS.iter().map(|guest| guest.name.to_owned()).collect();
    for name in if names.is_empty() { &all } else { names } {
        write(dir, name, &build(name)?)?;
    }
    Ok(())
}

fn list() {
    for guest in GUESTS {
        println!("{:10} {}", guest.name, guest.about);
    }
}

fn check(input: impl std::io::BufRead) -> Outcome {
    let mut checker = Checker::new();
    for line in input.split(b'\n') {
        checker.check_line(&String::from_utf8_lossy(&line?))?;
    }
    if checker.lines() == 0 {
        return Err("no line of the counter's".into());
    }
    let (lines, gap) = (checker.lines(), checker.max_gap_us());
    println!("{lines} lines, all right; longest silence {gap} us");
    Ok(())
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn run_native(program: &Program, options: &str) -> Outcome {
    print!("{}", godwit_guests::native::run(program, options)?);
    Ok(())
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn run_native(_program: &Program, _options: &str) -> Outcome {
    Err("this host's CPU cannot run the program itself: it is x86-64 code".into())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["--list"] => {
            list();
            Ok(())
        }
        ["-h" | "--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        ["--check"] => check(std::io::stdin().lock()),
        ["--bench", dir] => bench::compile(Path::new(dir))
            .map_err(Into::into)
            .and_then(|program| write(Path::new(dir), "bench", &bench::image(&program)?)),
        ["--virtio", dir] => bench::compile_virtio(Path::new(dir))
            .map_err(Into::into)
            .and_then(|program| write(Path::new(dir), "virtio", &bench::image(&program)?)),
        ["--tcp", dir] => bench::compile_tcp(&Path::new(dir).join("tcp-build"))
            .map_err(Into::into)
            .and_then(|program| write(Path::new(dir), "tcp", &bench::image(&program)?)),
        ["--native", dir, ref options @ ..] => bench::compile(Path::new(dir))
            .map_err(Into::into)
            .and_then(|program| run_native(&program, &options.join(" "))),
        [dir, ..] if !dir.starts_with('-') => write_guests(Path::new(dir), &arguments[1..]),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    outcome.map_or_else(
        |error| {
            eprintln!("godwit-guests: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}
