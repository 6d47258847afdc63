//! Which files a program needs to start: its dynamic loader and, recursively, its libraries.
//!
//! Called by `main`, for the exec file and for each plugin. The answer says where each file is on the
//! host and where it must be in the jail, so that the loader finds it there without a cache or variables.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::elf::{self, Elf, ElfError};

/// Why the list could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    #[error("Failed to read {path}: {source}", path = .0.display(), source = .1)]
    Read(PathBuf, io::Error),
    #[error("{path}: {source}", path = .0.display(), source = .1)]
    Elf(PathBuf, ElfError),
    #[error("{path} is for another processor than {program}", path = .0.display(), program = .1.display())]
    OtherMachine(PathBuf, PathBuf),
    #[error("{path} needs the library {name}, which is in none of: {dirs}", path = .0.display(), name = .1, dirs = .2)]
    NotFound(PathBuf, String, String),
    #[error("{path} names a bad loader or library: {name}", path = .0.display(), name = .1)]
    BadName(PathBuf, String),
}

/// Files to bring: where each is on the host, keyed by where it must be in the jail.
pub(crate) type Files = BTreeMap<PathBuf, PathBuf>;

/// What a program needs beside itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Its dynamic loader, which is among the files too.
    pub(crate) loader: Option<PathBuf>,
    pub(crate) files: Files,
}

/// The files that `programs` need beside themselves. The first is the executable; a static one needs none,
/// but then it can load no plugin, so only its own list counts.
pub(crate) fn needed_by(programs: &[PathBuf]) -> Result<Needs, LibraryError> {
    let mut files = Files::new();
    let Some(first) = programs.first() else { return Ok(Needs::default()) };
    let main = match read(first) {
        Ok(elf) => elf,
        // A script or another format is the kernel's business to refuse at exec.
        Err(LibraryError::Elf(_, ElfError::NotElf)) => return Ok(Needs::default()),
        Err(error) => return Err(error),
    };
    let Some(loader) = main.interpreter.clone() else { return Ok(Needs::default()) };
    let loader_path = PathBuf::from(&loader);
    if !loader_path.is_absolute() || loader.split('/').any(|c| c == ".." || c == ".") {
        return Err(LibraryError::BadName(first.clone(), loader));
    }
    let real = fs::canonicalize(&loader_path).map_err(|e| LibraryError::Read(loader_path.clone(), e))?;
    let system = system_dirs(&loader_path, &real);
    let configured = configured_dirs();
    files.insert(loader_path.clone(), real);

    let mut home: Option<PathBuf> = None;
    let mut strays = Vec::new();
    let mut seen = BTreeSet::new();
    let mut queue = Vec::new();
    for program in programs {
        let elf = if program == first { main.clone() } else { read(program)? };
        if !same_machine(&elf, &main) {
            return Err(LibraryError::OtherMachine(program.clone(), first.clone()));
        }
        queue.push((program.clone(), elf));
    }
    while let Some((user, elf)) = queue.pop() {
        let own = own_dirs(&user, &elf);
        for name in &elf.needed {
            // The loader itself is often listed as a library of libc's.
            if files.keys().any(|f| f.file_name().is_some_and(|f| f == name.as_str()))
                || !seen.insert(name.clone())
            {
                continue;
            }
            if name.contains('/') || name == ".." || name.is_empty() {
                return Err(LibraryError::BadName(user, name.clone()));
            }
            let found = own
                .iter()
                .map(|d| (d, false))
                .chain(system.iter().map(|d| (d, true)))
                .chain(configured.iter().map(|d| (d, false)))
                .find_map(|(dir, is_system)| {
                    let path = dir.join(name);
                    let elf = read(&path).ok().filter(|e| same_machine(e, &main))?;
                    Some((path, is_system, elf))
                });
            let Some((path, is_system, elf)) = found else {
                let dirs: Vec<_> =
                    own.iter().chain(&system).chain(&configured).map(|d| d.display().to_string()).collect();
                return Err(LibraryError::NotFound(user, name.clone(), dirs.join(", ")));
            };
            let real = fs::canonicalize(&path).map_err(|e| LibraryError::Read(path.clone(), e))?;
            if is_system {
                if name.starts_with("libc.") {
                    home = path.parent().map(Path::to_path_buf);
                }
                files.insert(path.clone(), real);
            } else {
                strays.push((name.clone(), real));
            }
            queue.push((path, elf));
        }
    }
    // What lay elsewhere goes beside libc, where every loader looks without being told.
    let home = home.or_else(|| system.first().cloned()).unwrap_or_else(|| PathBuf::from("/lib"));
    for (name, real) in strays {
        files.insert(home.join(name), real);
    }
    Ok(Needs { loader: Some(loader_path), files })
}

fn read(path: &Path) -> Result<Elf, LibraryError> {
    let bytes = fs::read(path).map_err(|e| LibraryError::Read(path.to_path_buf(), e))?;
    elf::read(&bytes).map_err(|e| LibraryError::Elf(path.to_path_buf(), e))
}

fn same_machine(a: &Elf, b: &Elf) -> bool {
    a.machine == b.machine && a.big_endian == b.big_endian
}

/// `DT_RUNPATH` with `$ORIGIN` filled in; parts with other variables are left out.
fn own_dirs(user: &Path, elf: &Elf) -> Vec<PathBuf> {
    let origin = user.parent().map(|p| p.display().to_string()).unwrap_or_default();
    elf.search
        .iter()
        .map(|s| s.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
        .filter(|s| s.starts_with('/') && !s.contains('$'))
        .map(PathBuf::from)
        .collect()
}

/// Directories that loaders know by themselves: multi-architecture ones first, as Debian's does.
fn system_dirs(loader: &Path, real_loader: &Path) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    for top in ["/lib", "/usr/lib"] {
        let mut triplets: Vec<_> = fs::read_dir(top)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().contains("-linux-")) && p.is_dir())
            .collect();
        triplets.sort();
        dirs.extend(triplets);
    }
    dirs.extend(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from));
    dirs.extend([loader, real_loader].into_iter().filter_map(|p| p.parent().map(Path::to_path_buf)));
    let mut seen = BTreeSet::new();
    dirs.retain(|d| d.is_dir() && seen.insert(d.clone()));
    dirs
}

/// Directories of `/etc/ld.so.conf` and the files that it includes.
fn configured_dirs() -> Vec<PathBuf> {
    let mut texts: Vec<String> = fs::read_to_string("/etc/ld.so.conf").into_iter().collect();
    let mut parts: Vec<_> =
        fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten().flatten().map(|e| e.path()).collect();
    parts.sort();
    texts.extend(parts.iter().filter_map(|p| fs::read_to_string(p).ok()));
    texts
        .iter()
        .flat_map(|t| t.lines())
        .map(str::trim)
        .filter(|l| l.starts_with('/'))
        .map(PathBuf::from)
        .filter(|d| d.is_dir())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_needs_a_loader_and_a_libc() {
        let exe = std::env::current_exe().unwrap();
        let needs = needed_by(std::slice::from_ref(&exe)).unwrap();
        let files = &needs.files;
        if cfg!(target_env = "gnu") {
            assert!(files.keys().any(|f| f.to_string_lossy().contains("/ld")), "{files:?}");
            assert!(
                files.keys().any(|f| f.ends_with("libc.so.6") || f.ends_with("libc.so.6.1")),
                "{files:?}"
            );
            // Under user-mode emulation the host's paths are the emulator's business.
            assert!(files.values().all(|f| f.is_absolute()), "{files:?}");
        }
        // Twice the same program needs the same files.
        assert_eq!(needed_by(&[exe.clone(), exe]).unwrap(), needs);
    }

    #[test]
    fn no_list_for_a_script() {
        let dir = std::env::temp_dir().join(format!("godwit-libraries-{}", std::process::id()));
        fs::write(&dir, "#!/bin/sh\n").unwrap();
        assert!(needed_by(std::slice::from_ref(&dir)).unwrap().files.is_empty());
        fs::remove_file(dir).unwrap();
    }
}
