//! What the benches ask of this host: where the program is that they measure, and what a process of its own holds.

use std::path::{Path, PathBuf};

/// The `godwit` to be measured: `$GODWIT`, else this workspace's release build.
pub fn godwit() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(workspace.join("target"), PathBuf::from);
    std::env::var_os("GODWIT").map_or(target.join("release/godwit"), PathBuf::from)
}

/// The folder in which `scripts/setup` keeps what it fetched and made; it need not exist.
pub fn cache() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    var("GODWIT_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("godwit")))
        .or_else(|| var("HOME").map(|d| d.join(".cache/godwit")))
        .unwrap_or_default()
}

/// QEMU for x86-64 guests: the installed one, else the one in the set-up's cache; or how to get it.
pub fn qemu() -> Result<PathBuf, String> {
    let name = "qemu-system-x86_64";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.push(cache().join("qemu"));
    let found = places.into_iter().map(|d| d.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| format!("no {name} (scripts/setup --peers installs it)"))
}

/// The value in the middle.
pub fn median<T: Ord + Copy + Default>(values: &[T]) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// A process's memory in KiB, without every mapping that is as large as its guest's RAM.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct OwnMemory {
    /// All that is present, shared with others or not.
    pub rss: u64,
    /// Nobody else's.
    pub private: u64,
    /// Nobody else's, and on no disk.
    pub private_dirty: u64,
}

/// What the process holds besides its guest's RAM of `ram_mib`; `None` if it has no such RAM or is gone.
pub fn own_memory(pid: u32, ram_mib: u64) -> Option<OwnMemory> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut own, mut ram, mut seen) = (OwnMemory::default(), false, false);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (name, value) = (words.next()?, words.next().and_then(|v| v.parse::<u64>().ok()));
        match (name, value) {
            ("Size:", Some(kib)) => {
                ram = kib >= ram_mib * 1024;
                seen |= ram;
            }
            ("Rss:", Some(kib)) if !ram => own.rss += kib,
            ("Private_Clean:", Some(kib)) if !ram => own.private += kib,
            ("Private_Dirty:", Some(kib)) if !ram => {
                own.private += kib;
                own.private_dirty += kib;
            }
            _ => {}
        }
    }
    seen.then_some(own)
}
