//! `godwit-vectors FILE [--kvm]`: completes `vectors/system.txt`.

use clap::Parser;
use godwit_tests::system::run;
use godwit_tests::system::vector::{Vector, is_vector};
use std::path::PathBuf;
use std::process::ExitCode;

/// Completes vectors of system instructions, and shows who says otherwise than they do. Prints the file.
///
/// A line without hex is assembled, one without outcome gets what QEMU's TCG says. Where anybody, the interpreter too, says
/// otherwise than the line, standard error shows it.
#[derive(Parser)]
struct Arguments {
    /// The vectors: tests/vectors/system.txt.
    file: PathBuf,
    /// Show KVM's answers too, which need a processor with VMX or SVM.
    #[arg(long)]
    kvm: bool,
}

fn main() -> ExitCode {
    match complete(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("godwit-vectors: {why}");
            ExitCode::from(2)
        }
    }
}

fn complete(arguments: Arguments) -> Result<(), String> {
    let path = &arguments.file;
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let dir = std::env::temp_dir();
    let (mut vectors, mut bad) = (Vec::new(), String::new());
    for line in text.lines().filter(|l| is_vector(l)) {
        let mut v = Vector::parse(line)?;
        if let Err(why) = run::complete(&mut v, &dir) {
            bad += &why;
        }
        vectors.push(v);
    }
    if !bad.is_empty() {
        return Err(bad);
    }
    let interp = run::interp(&vectors);
    // What TCG does otherwise than the manuals it may do for ever.
    let asks_tcg = |v: &Vector| v.outcome.is_empty() || v.trusts("tcg");
    let asked: Vec<_> = vectors.iter().filter(|v| asks_tcg(v)).cloned().collect();
    let mut tcg = run::qemu("tcg", &asked, &dir)?.into_iter();
    let kvm = arguments.kvm.then(|| run::qemu("kvm", &vectors, &dir)).transpose()?;
    let mut lines = Vec::new();
    for (n, v) in vectors.iter_mut().enumerate() {
        let kvm = kvm.as_ref().map(|k| &k[n]);
        let tcg = asks_tcg(v).then(|| tcg.next()).flatten();
        if let Some(tcg) = tcg.as_ref().filter(|_| v.outcome.is_empty()) {
            // RF only from the interpreter: TCG does not set it.
            let alike = run::without_rf(tcg) == run::without_rf(&interp[n]);
            v.outcome.clone_from(if alike { &interp[n] } else { tcg });
            v.oracles = "tcg".into();
        }
        for (who, says) in [("interp", Some(&interp[n])), ("tcg", tcg.as_ref()), ("kvm", kvm)] {
            if let Some(says) = says.filter(|s| run::without_rf(s) != run::without_rf(&v.outcome)) {
                eprintln!("{}: {who} says\n  {says}\nnot\n  {}", v.name, v.outcome);
            }
        }
        lines.push(v.line());
    }
    let mut lines = lines.into_iter();
    for line in text.lines() {
        println!("{}", if is_vector(line) { lines.next().unwrap_or_default() } else { line.into() });
    }
    Ok(())
}
