//! `godwit pause`, `resume`, `snapshot` and `restore`: one request each to the API socket of a running godwit.

use super::client;
use super::exit;
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
    /// Directory for the two files; it is made if it is not there.
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
}

fn ask(asked: &Asked, method: &str, path: &str, body: &serde_json::Value) -> Result<client::Answer, String> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client::request(&asked.api_sock, method, path, &body)?;
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
        std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
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

impl Restore {
    /// Does it: the exit code.
    pub fn run(&self) -> u8 {
        code(self.load())
    }

    fn load(&self) -> Result<(), String> {
        let dir = absolute(&self.dir)?;
        let body = json!({
            "snapshot_path": dir.join("state"),
            "mem_backend": { "backend_type": "File", "backend_path": dir.join("memory") },
            "resume_vm": !self.paused,
            "track_dirty_pages": self.track_dirty_pages,
            "allow_tsc_mismatch": self.allow_tsc_mismatch,
        });
        ask(&self.asked, "PUT", "/snapshot/load", &body).map(drop)
    }
}
