//! `godwit-guests OUTDIR [NAME...]` writes the guests' ELF files; `--list` names them.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: godwit-guests OUTDIR [NAME...]   writes OUTDIR/NAME.elf (all guests by default)
       godwit-guests --list             names the guests and their options";

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

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("--list") => {
            for guest in godwit_guests::GUESTS {
                println!("{:10} {}", guest.name, guest.about);
            }
            ExitCode::SUCCESS
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
