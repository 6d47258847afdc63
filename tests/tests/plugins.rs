//! Plugins that are none: each is refused with the file's name and the reason, by `godwit backends` and at start.

use godwit_tests::harness::{Scratch, program};
use std::path::Path;
use std::process::{Command, Output};

/// A library in C whose table begins with these; `None`: without the entry symbol.
fn library(dir: &Scratch, name: &str, table: Option<(u64, u32)>) -> Option<()> {
    let source = dir.path("plugin.c");
    let code = match table {
        None => "int nothing_of_interest;\n".to_owned(),
        Some((magic, major)) => format!(
            "static const struct {{ unsigned long long magic; unsigned major, minor, size, reserved; void *rest[64]; }} \
             table = {{ {magic}ull, {major}, 0, 216, 0 }};\nconst void *godwit_backend_entry(void) {{ return &table; }}\n"
        ),
    };
    std::fs::write(&source, code).unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(dir.path(name)).arg(&source).status();
    made.ok().filter(|s| s.success()).map(|_| ())
}

/// An ELF header of another machine, enough for whoever looks before loading.
fn foreign(path: &Path) {
    let mut elf = std::fs::read(program("godwit").unwrap()).unwrap();
    elf.truncate(4096);
    // e_machine: s390x is 22, x86-64 is 62; on a big-endian host it lies the other way round.
    let other: u16 = if cfg!(target_arch = "s390x") { 62 } else { 22 };
    elf[18..20].copy_from_slice(&other.to_ne_bytes());
    std::fs::write(path, elf).unwrap();
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn what_is_no_plugin_is_refused_by_name_and_reason() {
    let test = "what_is_no_plugin_is_refused_by_name_and_reason";
    let godwit = match program("godwit") {
        Ok(godwit) => godwit,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let cases: [(&str, &[&str]); 6] = [
        ("text", &["ELF"]),
        ("empty", &["ELF"]),
        ("foreign", &["machine"]),
        ("symbol", &["godwit_backend_entry"]),
        ("magic", &["magic"]),
        ("major", &["77", "1"]),
    ];
    let dir = Scratch::new(test);
    let file = |name: &str| format!("libgodwit_backend_{name}.so");
    std::fs::write(dir.path(&file("text")), "I am no library\n").unwrap();
    std::fs::write(dir.path(&file("empty")), "").unwrap();
    foreign(&dir.path(&file("foreign")));
    let magic = 0x474f_4457_4954_4245;
    for (name, table) in [("symbol", None), ("magic", Some((12345, 1))), ("major", Some((magic, 77)))] {
        if library(&dir, &file(name), table).is_none() {
            return println!("SKIPPED {test}: no C compiler (cc)");
        }
    }
    let place = dir.path("");
    let listed = Command::new(&godwit).args(["backends", "--backend-dir"]).arg(&place).output().unwrap();
    assert_eq!(listed.status.code(), Some(1), "none of them is usable: {}", said(&listed));
    let config = dir.config("hello", 16, "x86-64", "");
    for (name, words) in cases {
        let path = dir.path(&file(name));
        let run = Command::new(&godwit)
            .args(["--no-api", "--config-file"])
            .arg(&config)
            .arg("--backend")
            .arg(&path)
            .output()
            .unwrap();
        assert_ne!(run.status.code(), Some(0), "{name}: {}", said(&run));
        assert!(run.status.code().is_some(), "{name} ended it by a signal");
        for text in [said(&run), said(&listed)] {
            assert!(text.contains(&file(name)), "{name} is not named: {text}");
        }
        let run = said(&run);
        for word in words {
            assert!(run.to_lowercase().contains(&word.to_lowercase()), "{name}: no {word:?} in: {run}");
        }
        println!("{name}: {}", run.trim());
    }
}
