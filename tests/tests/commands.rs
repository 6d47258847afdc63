//! The project's own commands: what they name exists, and what they leave out they say.

use godwit_tests::harness::Scratch;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A command that names a test which is no more fails before it has run any.
#[test]
fn commands_name_tests_that_exist() {
    let root = root();
    let files = |dir: &str| {
        let entries = fs::read_dir(root.join(dir)).unwrap_or_else(|e| panic!("{dir}: {e}"));
        entries.map(|e| e.unwrap().path()).filter(|p| p.is_file())
    };
    let mut named = 0;
    let commands = ["scripts", "docs"].into_iter().flat_map(files);
    for file in commands.chain([root.join("README.md"), root.join("CONTRIBUTING.md")]) {
        let text = fs::read_to_string(&file).unwrap();
        for rest in text.split("--test ").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
            let name = &rest[..end.unwrap_or(rest.len())];
            if name.is_empty() {
                continue;
            }
            let homes = ["tests/tests", "tests/guests/tests", "vmm/tests", "backends/state/tests"];
            let there = homes.iter().any(|home| {
                let home = root.join(home);
                home.join(name).join("main.rs").is_file() || home.join(format!("{name}.rs")).is_file()
            });
            assert!(there, "{}: there is no test {name}", file.display());
            named += 1;
        }
    }
    assert!(named > 5, "only {named} found");
}

/// Without the tools for other architectures the test command says so, target by target, and how to get them.
#[test]
fn what_is_not_set_up_is_skipped_by_name() {
    let scratch = Scratch::new("commands");
    // Everything else passes at once.
    let cargo = scratch.path("cargo");
    fs::write(&cargo, "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let out = Command::new(root().join("scripts/test"))
        .args(["--no-setup", "--cross", "all"])
        .env("PATH", format!("{}:{path}", cargo.parent().unwrap().display()))
        .env("GODWIT_CACHE", scratch.path("empty"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    let (_, skipped) = text.split_once("== Skipped").unwrap();
    for target in ["aarch64", "riscv64", "s390x", "powerpc64", "powerpc64le", "sparc64"] {
        for what in [format!("cross-architecture tests for {target}"), format!("the tour's stop on {target}")]
        {
            let line = format!("SKIPPED {what}: not set up (run scripts/setup --cross {target})");
            assert!(skipped.lines().any(|l| l == line), "{line} is not said: {skipped}");
        }
    }
}
