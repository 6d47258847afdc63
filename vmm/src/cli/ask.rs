//! `godwit pause`, `resume`, `snapshot` and `restore`: one request each to the API socket of a running godwit.

use super::client;
use super::exit;
use crate::control::overrides::Replacement;
use crate::snapshot::{self, AsideDir, Paths};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Which godwit is asked.
#[derive(Debug, clap::Args)]
struct Asked {
    /// API socket of the running godwit (what its --api-sock says).
    #[arg(long, value_name = "PATH")]
    api_sock: PathBuf,
}

/// Holds the guest; nothing is in flight when this returns. `godwit resume` lets it go on.
#[derive(Debug, clap::Args)]
pub struct Pause {
    #[command(flatten)]
    asked: Asked,
}

/// Lets a paused guest go on.
#[derive(Debug, clap::Args)]
pub struct Resume {
    #[command(flatten)]
    asked: Asked,
}

/// Writes DIR/state and DIR/memory, from which `godwit restore` goes on, on any CPU backend that has the guest's model.
///
/// A running guest is paused for it and resumed after it.
#[derive(Debug, clap::Args)]
pub struct Snapshot {
    #[command(flatten)]
    asked: Asked,
    /// Directory for the two files. It appears when both are complete; an older snapshot there is replaced then.
    dir: PathBuf,
    /// Only what was written since the last snapshot (needs track_dirty_pages).
    #[arg(long)]
    diff: bool,
    /// Leave the guest paused.
    #[arg(long)]
    stay_paused: bool,
}

/// Goes on from a snapshot, in a fresh godwit: start one with `godwit --api-sock PATH` first.
#[derive(Debug, clap::Args)]
pub struct Restore {
    #[command(flatten)]
    asked: Asked,
    /// Directory with the two files that `godwit snapshot` wrote.
    dir: PathBuf,
    /// Leave the guest paused.
    #[arg(long)]
    paused: bool,
    /// Keep dirty bits, for diff snapshots.
    #[arg(long)]
    track_dirty_pages: bool,
    /// Accept another TSC frequency than the guest's.
    #[arg(long)]
    allow_tsc_mismatch: bool,
    /// Give drive ID another file; may be repeated.
    #[arg(long, value_name = "ID=FILE")]
    drive: Vec<Replacement>,
    /// Give network interface ID another TAP interface; may be repeated.
    #[arg(long, value_name = "ID=TAP")]
    tap: Vec<Replacement>,
    /// Give the vsock device another Unix socket.
    #[arg(long, value_name = "PATH")]
    vsock_uds: Option<String>,
    /// Have the page fault handler that listens on this Unix socket fill guest memory (Firecracker's Uffd protocol).
    #[arg(long, value_name = "SOCKET")]
    uffd: Option<PathBuf>,
}

fn ask(asked: &Asked, method: &str, path: &str, body: &serde_json::Value) -> Result<client::Answer, String> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client::request(&asked.api_sock, method, path, &body, None)?;
    if answer.is_success() { Ok(answer) } else { Err(answer.fault()) }
}

fn code(done: Result<(), String>) -> u8 {
    match done {
        Ok(()) => exit::OK,
        Err(why) => {
            eprintln!("godwit: {why}");
            exit::ERROR
        }
    }
}

fn set(asked: &Asked, state: &str) -> Result<(), String> {
    ask(asked, "PATCH", "/vm", &json!({ "state": state })).map(drop)
}

/// The server may work in another directory.
fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))
}

impl Pause {
    /// Does it: the exit code.
    pub fn run(&self) -> u8 {
        code(set(&self.asked, "Paused"))
    }
}

impl Resume {
    /// Does it: the exit code.
    pub fn run(&self) -> u8 {
        code(set(&self.asked, "Resumed"))
    }
}

impl Snapshot {
    /// Does it: the exit code.
    pub fn run(&self) -> u8 {
        code(self.write())
    }

    fn write(&self) -> Result<(), String> {
        let dir = absolute(&self.dir)?;
        dir.file_name().ok_or("the directory needs a name")?;
        let at = |path: &Path| {
            let path = path.display().to_string();
            move |e: std::io::Error| format!("{path}: {e}")
        };
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).map_err(at(parent))?;
        }
        let old = dir.exists();
        if old && !is_replaceable(&dir) {
            let why =
                "is there and is no snapshot: name a new directory, or an older snapshot's to replace it";
            return Err(format!("{}: {why}", dir.display()));
        }
        let aside = AsideDir::new(&dir).map_err(|e| e.to_string())?;
        self.write_to(aside.temporary())?;
        if old { aside.replace() } else { aside.place() }.map_err(at(&dir))
    }

    fn write_to(&self, dir: &Path) -> Result<(), String> {
        let instance = ask(&self.asked, "GET", "/", &serde_json::Value::Null)?;
        let instance: serde_json::Value = serde_json::from_str(&instance.body).unwrap_or_default();
        let running = instance["state"] == "Running";
        if running {
            set(&self.asked, "Paused")?;
        }
        let body = json!({
            "snapshot_path": dir.join("state"),
            "mem_file_path": dir.join("memory"),
            "snapshot_type": if self.diff { "Diff" } else { "Full" },
        });
        let written = ask(&self.asked, "PUT", "/snapshot/create", &body).map(drop);
        if running && !self.stay_paused {
            // Also after a failure: the guest is as it was.
            set(&self.asked, "Resumed")?;
        }
        written
    }
}

/// An empty directory, or one with nothing in it but what this command writes.
fn is_replaceable(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.all(|e| e.is_ok_and(|e| e.file_name() == "state" || e.file_name() == "memory"))
    })
}

/// Puts Diff snapshots over the full one that they build on: a full snapshot, in a new directory, that can be restored.
#[derive(Debug, clap::Args)]
pub struct Merge {
    /// Directory of the full snapshot.
    base: PathBuf,
    /// Directories of the Diff snapshots, oldest first, and then the new directory.
    #[arg(required = true, num_args = 2.., value_name = "DIFF... INTO")]
    rest: Vec<PathBuf>,
}

impl Merge {
    /// Does it: the exit code.
    pub fn run(&self) -> u8 {
        let Some((into, diffs)) = self.rest.split_last() else { return exit::ARGUMENTS };
        let diffs: Vec<Paths> = diffs.iter().map(|d| Paths::in_dir(d)).collect();
        code(snapshot::merge(&Paths::in_dir(&self.base), &diffs, into).map_err(|e| e.to_string()))
    }
}

impl Restore {
    /// Does it: the exit code.
    pub fn run(&self) -> u8 {
        code(self.load())
    }

    fn load(&self) -> Result<(), String> {
        let dir = absolute(&self.dir)?;
        let memory = match &self.uffd {
            Some(socket) => json!({ "backend_type": "Uffd", "backend_path": absolute(socket)? }),
            None => json!({ "backend_type": "File", "backend_path": dir.join("memory") }),
        };
        let all = |list: &[Replacement], id: &str, with: &str| -> serde_json::Value {
            list.iter().map(|r| json!({ id: r.id, with: r.with })).collect()
        };
        let mut body = json!({
            "snapshot_path": dir.join("state"),
            "mem_backend": memory,
            "resume_vm": !self.paused,
            "track_dirty_pages": self.track_dirty_pages,
            "allow_tsc_mismatch": self.allow_tsc_mismatch,
            "drive_overrides": all(&self.drive, "drive_id", "path_on_host"),
            "network_overrides": all(&self.tap, "iface_id", "host_dev_name"),
        });
        if let Some(path) = &self.vsock_uds {
            body["vsock_override"] = json!({ "uds_path": path });
        }
        ask(&self.asked, "PUT", "/snapshot/load", &body).map(drop)
    }
}
