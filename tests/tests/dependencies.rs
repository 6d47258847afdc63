//! `docs/DEPENDENCIES.md` names every direct dependency, who uses it and why, and what these bring along; the lock file holds only
//! crates from the registry, under licences that are allowed, none twice without a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

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

/// What cargo knows of this host's crates, without asking anybody.
fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(root())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Licences under which Godwit may be given away as it is.
const ALLOWED: [&str; 10] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether one of the alternatives of a licence expression is allowed in all its parts.
fn allowed(expression: &str) -> bool {
    let expression = expression.trim();
    // The operators outside of brackets, the loosest first; `/` is an old way to write OR.
    for (operator, all) in [(" OR ", false), ("/", false), (" AND ", true)] {
        let mut depth = 0;
        let mut parts = vec![0];
        for (at, c) in expression.char_indices() {
            depth += i32::from(c == '(') - i32::from(c == ')');
            if depth == 0 && expression[at..].starts_with(operator) {
                parts.push(at);
            }
        }
        if parts.len() > 1 {
            parts.push(expression.len());
            let mut parts = parts.windows(2).map(|w| expression[w[0]..w[1]].trim_start_matches(operator));
            return if all { parts.all(allowed) } else { parts.any(allowed) };
        }
    }
    match expression.strip_prefix('(').and_then(|e| e.strip_suffix(')')) {
        Some(inside) => allowed(inside),
        None => ALLOWED.contains(&expression),
    }
}

#[test]
fn every_licence_is_allowed() {
    for good in ["MIT", "GPL-2.0 OR MIT", "MIT/Apache-2.0", "(MIT OR GPL-3.0) AND ISC", "(MIT)"] {
        assert!(allowed(good), "{good}");
    }
    for bad in ["", "GPL-2.0", "MIT AND GPL-2.0", "(GPL-2.0 OR MPL-2.0) AND MIT", "MITx"] {
        assert!(!allowed(bad), "{bad}");
    }
    let metadata = metadata();
    let foreign = list(&metadata["packages"]).iter().filter(|p| !p["source"].is_null());
    let mut seen = 0;
    for package in foreign {
        seen += 1;
        let licence = text(&package["license"]);
        assert!(allowed(licence), "{} {}: {licence:?}", package["name"], package["version"]);
    }
    assert!(seen > 50, "{seen} crates");
}

/// The programs and plugins that people run.
const SHIPPED: [&str; 4] = ["godwit-vmm", "godwit-jailer", "godwit-plugin-kvm", "godwit-plugin-interp"];

/// What is built into them besides what the manifests name: name and version, and the direct dependencies that bring it.
fn brought_along(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let package = |id: &Value| list(&metadata["packages"]).iter().find(|p| p["id"] == *id).unwrap();
    let name = |id: &Value| text(&package(id)["name"]).to_owned();
    let normal = |id: &Value| -> Vec<Value> {
        let node = list(&metadata["resolve"]["nodes"]).iter().find(|n| n["id"] == *id).unwrap();
        let is_normal = |d: &&Value| list(&d["dep_kinds"]).iter().any(|k| k["kind"].is_null());
        list(&node["deps"]).iter().filter(is_normal).map(|d| d["pkg"].clone()).collect()
    };
    let ours = |id: &Value| package(id)["source"].is_null();
    let mut own: Vec<Value> = list(&metadata["workspace_members"]).to_vec();
    own.retain(|id| SHIPPED.contains(&name(id).as_str()));
    let mut direct = Vec::new();
    let mut at = 0;
    while at < own.len() {
        for dep in normal(&own[at].clone()) {
            let to = if ours(&dep) { &mut own } else { &mut direct };
            if !to.contains(&dep) {
                to.push(dep);
            }
        }
        at += 1;
    }
    let mut brought: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for first in &direct {
        let mut reached = vec![first.clone()];
        let mut at = 0;
        while at < reached.len() {
            for dep in normal(&reached[at].clone()) {
                if !reached.contains(&dep) {
                    reached.push(dep);
                }
            }
            at += 1;
        }
        for id in reached.iter().filter(|id| !direct.contains(id)) {
            let what = format!("{} {}", name(id), text(&package(id)["version"]));
            brought.entry(what).or_default().insert(name(first));
        }
    }
    brought
}

#[test]
fn what_is_brought_along_is_listed() {
    if std::env::consts::ARCH != "x86_64" {
        return eprintln!("SKIPPED what_is_brought_along_is_listed: the page is of x86-64 hosts");
    }
    let mut table = String::from("| crate | brought by |\n|---|---|\n");
    for (what, by) in brought_along(&metadata()) {
        let by: Vec<String> = by.iter().map(|b| format!("`{b}`")).collect();
        table.push_str(&format!("| {what} | {} |\n", by.join(", ")));
    }
    let page = fs::read_to_string(root().join("docs/DEPENDENCIES.md")).unwrap();
    assert!(page.contains(&table), "the table of docs/DEPENDENCIES.md should be:\n{table}");
}

/// Crates of which more than one version is locked, and why that is borne.
const TWICE: [(&str, &str); 4] = [
    ("bitflags", "rust-vmm's crates and smoltcp have not gone on to the second"),
    ("embedded-io", "locked for features of postcard that nothing uses: not built"),
    ("getrandom", "ring has an older one, proptest in tests a newer one"),
    ("syn", "only builds: derives of landlock's flags have an older one"),
];

#[test]
fn no_crate_is_there_twice_without_a_reason() {
    let metadata = metadata();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in list(&metadata["packages"]) {
        versions.entry(text(&package["name"])).or_default().insert(text(&package["version"]));
    }
    let twice: BTreeSet<&str> = versions.iter().filter(|(_, v)| v.len() > 1).map(|(n, _)| *n).collect();
    let known: BTreeSet<&str> = TWICE.iter().map(|(name, _)| *name).collect();
    assert_eq!(twice, known);
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
