//! Control groups of both versions: found by `/proc/mounts`, made, filled and joined.
//!
//! Called by `main` before the root changes, because `/sys` is out of reach afterwards. Layout as
//! Firecracker's: `<hierarchy>/<parent cgroup>/<id>`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::args::CgroupValue;

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("Failed to read {path}: {source}", path = .0.display(), source = .1)]
    Read(PathBuf, io::Error),
    #[error("Failed to write {value} to {path}: {source}", path = .0.display(), value = .1, source = .2)]
    Write(PathBuf, String, io::Error),
    #[error("Failed to create directory {path}: {source}", path = .0.display(), source = .1)]
    Create(PathBuf, io::Error),
    #[error("Hierarchy not found: no cgroup version {0} is mounted on this host")]
    NoHierarchy(u8),
    #[error("Controller {0} is unavailable on this host (cgroup version {1})")]
    NoController(String, u8),
    #[error("{path} does not exist: the controller {controller} has no such file", path = .0.display(), controller = .1)]
    NoFile(PathBuf, String),
    #[error("Failed to inherit {file} for {path}: it is empty in every parent", path = .0.display(), file = .1)]
    Inherit(PathBuf, &'static str),
}

struct Mount {
    dir: PathBuf,
    options: String,
}

/// Mount points of one cgroup version, in the format of `/proc/mounts`.
fn mounts(text: &str, version: u8) -> Vec<Mount> {
    let kind = if version == 2 { "cgroup2" } else { "cgroup" };
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, dir, fs, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            // The kernel writes blanks as octal.
            let dir = dir.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
            (fs == kind).then(|| Mount { dir: PathBuf::from(dir), options: options.to_owned() })
        })
        .collect()
}

/// Where the process is to go, decided before anything is changed.
pub(crate) struct Plan {
    version: u8,
    /// Directories below the mount point, the jail's own last, by mount point.
    groups: Vec<(PathBuf, PathBuf)>,
    values: Vec<(usize, CgroupValue)>,
}

/// Finds the hierarchies for `values`; refuses what the host does not have.
///
/// Without values nothing is made, but with version 2 and a parent named the process joins that parent.
pub(crate) fn plan(
    version: u8,
    values: &[CgroupValue],
    named_parent: Option<&Path>,
    default_parent: &Path,
    id: &str,
) -> Result<Option<Plan>, CgroupError> {
    let join_parent = if values.is_empty() { named_parent.filter(|_| version == 2) } else { None };
    if values.is_empty() && join_parent.is_none() {
        return Ok(None);
    }
    let table = PathBuf::from("/proc/mounts");
    let text = fs::read_to_string(&table).map_err(|e| CgroupError::Read(table, e))?;
    let mounts = mounts(&text, version);
    if mounts.is_empty() {
        return Err(CgroupError::NoHierarchy(version));
    }
    let group = match join_parent {
        Some(parent) => parent.to_path_buf(),
        None => named_parent.unwrap_or(default_parent).join(id),
    };
    let mut plan = Plan { version, groups: Vec::new(), values: Vec::new() };
    if version == 2 {
        let root = mounts[0].dir.clone();
        let path = root.join("cgroup.controllers");
        let there = fs::read_to_string(&path).map_err(|e| CgroupError::Read(path, e))?;
        if let Some(missing) = values.iter().find(|v| !there.split_whitespace().any(|c| c == v.controller)) {
            return Err(CgroupError::NoController(missing.controller.clone(), version));
        }
        plan.groups.push((root, group));
        plan.values = values.iter().map(|v| (0, v.clone())).collect();
        return Ok(Some(plan));
    }
    for value in values {
        let mount = mounts
            .iter()
            .find(|m| m.options.split(',').any(|o| o == value.controller))
            .ok_or_else(|| CgroupError::NoController(value.controller.clone(), version))?;
        let at = plan.groups.iter().position(|(root, _)| *root == mount.dir).unwrap_or_else(|| {
            plan.groups.push((mount.dir.clone(), group.clone()));
            plan.groups.len() - 1
        });
        plan.values.push((at, value.clone()));
    }
    Ok(Some(plan))
}

impl Plan {
    /// Makes the groups, writes the values, then moves this process into each group.
    pub(crate) fn carry_out(&self) -> Result<(), CgroupError> {
        let controllers: BTreeSet<&str> = self.values.iter().map(|(_, v)| v.controller.as_str()).collect();
        for (root, group) in &self.groups {
            let mut dir = root.clone();
            for part in group.components() {
                if self.version == 2 {
                    for controller in &controllers {
                        enable(&dir, controller)?;
                    }
                }
                dir.push(part);
                match fs::create_dir(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(CgroupError::Create(dir, e));
                    }
                    _ => {}
                }
                // A new version 1 cpuset is empty and lets nobody in.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if self.version == 1 && dir.join(file).exists() {
                        inherit(&dir, file)?;
                    }
                }
            }
        }
        for (at, value) in &self.values {
            let (root, group) = &self.groups[*at];
            let path = root.join(group).join(&value.file);
            if !path.exists() {
                return Err(CgroupError::NoFile(path, value.controller.clone()));
            }
            write(&path, &value.value)?;
        }
        for (root, group) in &self.groups {
            let tasks = if self.version == 2 { "cgroup.procs" } else { "tasks" };
            write(&root.join(group).join(tasks), &std::process::id().to_string())?;
        }
        Ok(())
    }
}

/// Lets the children of `dir` use a version 2 controller.
fn enable(dir: &Path, controller: &str) -> Result<(), CgroupError> {
    let path = dir.join("cgroup.subtree_control");
    let now = fs::read_to_string(&path).map_err(|e| CgroupError::Read(path.clone(), e))?;
    if now.split_whitespace().any(|c| c == controller) {
        return Ok(());
    }
    write(&path, &format!("+{controller}"))
}

fn inherit(dir: &Path, file: &'static str) -> Result<(), CgroupError> {
    let path = dir.join(file);
    let read = |p: &Path| fs::read_to_string(p).map_err(|e| CgroupError::Read(p.to_path_buf(), e));
    if !read(&path)?.trim().is_empty() {
        return Ok(());
    }
    let parent =
        dir.parent().map(|p| p.join(file)).ok_or_else(|| CgroupError::Inherit(dir.to_path_buf(), file))?;
    let value = read(&parent)?;
    if value.trim().is_empty() {
        return Err(CgroupError::Inherit(dir.to_path_buf(), file));
    }
    write(&path, value.trim())
}

/// One write call with a newline: the kernel takes each write as a whole.
fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let line = format!("{value}\n");
    let result = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut f| io::Write::write_all(&mut f, line.as_bytes()));
    result.map_err(|e| CgroupError::Write(path.to_path_buf(), value.to_owned(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_tables_are_read() {
        let text = "proc /proc proc rw 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid,nsdelegate 0 0\n\
            cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
            cgroup /odd\\040place cgroup rw,memory 0 0\n";
        let v1 = mounts(text, 1);
        assert_eq!(v1.len(), 2);
        assert_eq!(v1[1].dir, Path::new("/odd place"));
        assert!(v1[0].options.split(',').any(|o| o == "cpuacct"));
        assert_eq!(mounts(text, 2)[0].dir, Path::new("/sys/fs/cgroup/unified"));
        assert!(mounts("", 1).is_empty() && mounts("short line", 2).is_empty());
    }

    #[test]
    fn nothing_asked_nothing_done() {
        assert!(plan(1, &[], Some(Path::new("p")), Path::new("godwit"), "x").unwrap().is_none());
        assert!(plan(2, &[], None, Path::new("godwit"), "x").unwrap().is_none());
    }
}
