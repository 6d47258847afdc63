//! The walls of docs/ARCHITECTURE.md, held up by reading manifests and `use` lines: who may depend on whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Which of our crates each crate may use, tests of its own included.
const CRATES: &[(&str, &[&str])] = &[
    ("backends/abi", &[]),
    ("backends/state", &[]),
    ("backends/sdk", &["godwit-abi", "godwit-state"]),
    ("backends/kvm", &["godwit-sdk", "godwit-state"]),
    ("backends/interp", &["godwit-sdk", "godwit-state"]),
    ("plugins/kvm", &["godwit-sdk", "godwit-kvm"]),
    ("plugins/interp", &["godwit-sdk", "godwit-interp"]),
    // The last three only behind the feature that links backends in.
    ("vmm", &["godwit-abi", "godwit-state", "godwit-sdk", "godwit-kvm", "godwit-interp"]),
    ("jailer", &[]),
];

/// Which rooms of the VMM each room may use.
const ROOMS: &[(&str, &[&str])] = &[
    ("memory", &[]),
    ("plugin", &["memory"]),
    ("state", &[]),
    ("board", &["memory", "state"]),
    ("virtio", &["memory", "state", "board"]),
    ("mmds", &["virtio"]),
    ("machine", &["board", "virtio", "memory", "plugin", "state", "config", "sandbox"]),
    ("snapshot", &["machine", "state", "memory"]),
    ("migrate", &["machine", "state", "memory", "sandbox"]),
    ("config", &["virtio", "state"]),
    (
        "control",
        &[
            "machine", "snapshot", "migrate", "config", "plugin", "state", "virtio", "sandbox", "memory",
            "mmds",
        ],
    ),
    ("api", &["control", "config", "migrate", "sandbox"]),
    ("sandbox", &["plugin"]),
    (
        "cli",
        &[
            "api", "config", "control", "machine", "migrate", "plugin", "sandbox", "snapshot", "state",
            "board", "virtio",
        ],
    ),
];

/// Names of dependency tables' keys that are crates of ours.
fn our_dependencies(manifest: &str, section: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            inside = section(header.trim_end_matches(']'));
        } else if inside && line.starts_with("godwit-") {
            found.extend(line.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    found
}

#[test]
fn crates_depend_only_downwards() {
    let mut bad = Vec::new();
    for (dir, allowed) in CRATES {
        let path = root().join(dir).join("Cargo.toml");
        let manifest = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        // Guest programs are test data: any crate's tests may run them.
        let tests = our_dependencies(&manifest, |h| h.ends_with("dev-dependencies"));
        let uses =
            our_dependencies(&manifest, |h| h.ends_with("dependencies") && !h.ends_with("dev-dependencies"));
        for dep in uses.into_iter().chain(tests.into_iter().filter(|d| d != "godwit-guests")) {
            if !allowed.contains(&dep.as_str()) {
                bad.push(format!("{dir} uses {dep}"));
            }
        }
        if *dir == "vmm" {
            for line in manifest.lines() {
                let backend =
                    ["godwit-sdk", "godwit-kvm", "godwit-interp"].iter().any(|b| line.trim().starts_with(b));
                if backend && !line.contains("optional = true") {
                    bad.push(format!("vmm uses a backend unconditionally: {line}"));
                }
            }
        }
    }
    assert!(bad.is_empty(), "forbidden arrows between crates:\n  {}", bad.join("\n  "));
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            sources(&entry.path(), out);
        } else if entry.path().extension().is_some_and(|e| e == "rs") {
            out.push(entry.path());
        }
    }
}

/// The rooms named after `crate::` in code (comments left out), with the line.
fn rooms_used(text: &str) -> Vec<(String, usize)> {
    let mut used = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("");
        for (at, _) in code.match_indices("crate::") {
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let rest = &code[at + "crate::".len()..];
            if let Some(group) = rest.strip_prefix('{') {
                // use crate::{a::B, c::D}: top-level names only.
                let mut depth = 0;
                let mut name = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => used.push((std::mem::take(&mut name), number + 1)),
                        c if depth == 0 => name.push(c),
                        _ => {}
                    }
                }
                used.push((name, number + 1));
            } else {
                used.push((rest.to_owned(), number + 1));
            }
        }
    }
    let word =
        |s: &str| s.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    used.into_iter().map(|(s, n)| (word(&s), n)).filter(|(s, _)| !s.is_empty()).collect()
}

#[test]
fn rooms_of_the_vmm_use_only_what_they_may() {
    let rooms: BTreeMap<_, _> = ROOMS.iter().copied().collect();
    let src = root().join("vmm/src");
    let mut bad = Vec::new();
    for entry in fs::read_dir(&src).unwrap().map(Result::unwrap).filter(|e| e.path().is_dir()) {
        let room = entry.file_name().into_string().unwrap();
        let Some(allowed) = rooms.get(room.as_str()) else {
            bad.push(format!("vmm/src/{room} is a room this test does not know"));
            continue;
        };
        let mut files = Vec::new();
        sources(&entry.path(), &mut files);
        for file in files {
            for (used, line) in rooms_used(&fs::read_to_string(&file).unwrap()) {
                if rooms.contains_key(used.as_str()) && used != room && !allowed.contains(&used.as_str()) {
                    bad.push(format!(
                        "{}:{line}: {room} uses {used}",
                        file.strip_prefix(root()).unwrap().display()
                    ));
                }
            }
        }
    }
    assert!(bad.is_empty(), "forbidden arrows inside vmm:\n  {}", bad.join("\n  "));
}

#[test]
fn the_reader_of_use_lines_sees_what_it_should() {
    let names = |text| rooms_used(text).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
    assert_eq!(names("use crate::board::bus::Bus;"), ["board"]);
    assert_eq!(names("use crate::{board::{a, b}, memory::X, state};"), ["board", "memory", "state"]);
    assert_eq!(names("let x = crate::machine::f(crate::api::g());"), ["machine", "api"]);
    assert_eq!(names("// use crate::api;\nuse mycrate::api;"), Vec::<String>::new());
    assert_eq!(
        our_dependencies(
            "[dependencies]\ngodwit-abi.workspace = true\nlibc = \"1\"\n[lib]\ngodwit-x = 1",
            |h| h.ends_with("dependencies")
        ),
        BTreeSet::from(["godwit-abi".to_owned()])
    );
}
