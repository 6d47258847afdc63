//! `docs/DEPENDENCIES.md` names every direct dependency, who uses it and why; and the lock file holds only crates from
//! the registry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn members(manifest: &str) -> Vec<String> {
    let list = manifest.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    list.split(',').map(|m| m.trim().trim_matches('"').to_owned()).filter(|m| !m.is_empty()).collect()
}

/// Names of the dependencies in a manifest that are not crates of ours.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if let Some(header) = line.strip_prefix('[') {
            inside = header.trim_end().trim_end_matches(']').ends_with("dependencies")
                && !header.starts_with("workspace");
            continue;
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if inside && !name.is_empty() && !name.starts_with('#') && !name.starts_with("godwit-") {
            found.insert(name.to_owned());
        }
    }
    found
}

#[test]
fn each_dependency_is_listed_with_a_reason() {
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for member in members(&fs::read_to_string(root().join("Cargo.toml")).unwrap()) {
        let manifest = fs::read_to_string(root().join(&member).join("Cargo.toml")).unwrap();
        for name in dependencies(&manifest) {
            used.entry(name).or_default().insert(member.clone());
        }
    }
    let page = fs::read_to_string(root().join("docs/DEPENDENCIES.md")).unwrap();
    let mut listed = BTreeMap::new();
    for line in page.lines().filter(|l| l.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert!(cells.len() == 5 && cells[3].len() > 10, "a row without a reason: {line}");
        let members: BTreeSet<String> =
            cells[2].split(", ").map(|m| m.trim_matches('`').to_owned()).collect();
        assert!(listed.insert(cells[1].trim_matches('`').to_owned(), members).is_none(), "twice: {line}");
    }
    for (name, members) in &used {
        assert_eq!(listed.get(name), Some(members), "docs/DEPENDENCIES.md: row of `{name}`");
    }
    for name in listed.keys() {
        assert!(used.contains_key(name), "docs/DEPENDENCIES.md lists `{name}`, which nothing uses");
    }
}

#[test]
fn every_locked_crate_has_a_hash() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for package in lock.split("[[package]]").skip(1) {
        let from_registry = package.contains("source = \"registry+");
        assert!(!package.contains("source = \"git+"), "a crate from git: {package}");
        assert_eq!(from_registry, package.contains("checksum = "), "{package}");
    }
}

/// Known vulnerabilities, where cargo-audit and its database can be had.
#[test]
fn no_known_vulnerability() {
    let test = "no_known_vulnerability";
    let home =
        std::env::var_os("CARGO_HOME").map_or_else(|| Path::new("/nowhere").to_path_buf(), PathBuf::from);
    let database =
        std::env::var_os("GODWIT_ADVISORY_DB").map_or_else(|| home.join("advisory-db"), PathBuf::from);
    if !database.join("crates").is_dir() {
        eprintln!(
            "SKIPPED {test}: no advisory database (set GODWIT_ADVISORY_DB to a copy of rustsec/advisory-db)"
        );
        return;
    }
    let audit = Command::new("cargo")
        .args(["audit", "--no-fetch", "--stale", "--deny", "warnings", "--db"])
        .arg(&database)
        .current_dir(root())
        .output();
    match audit {
        Ok(out) if out.status.success() => {}
        Ok(out) if String::from_utf8_lossy(&out.stderr).contains("no such command") => {
            eprintln!("SKIPPED {test}: cargo-audit is not installed (cargo install --locked cargo-audit)");
        }
        Ok(out) => panic!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)),
        Err(error) => eprintln!("SKIPPED {test}: cargo cannot be started: {error}"),
    }
}
