//! `PUT /snapshot/create` and `PUT /snapshot/load`.

use super::Invalid;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How much of memory is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All of it.
    #[default]
    Full,
    /// What was written since the last snapshot; needs `track_dirty_pages`.
    Diff,
}

/// Where a snapshot goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Guest memory.
    pub mem_file_path: PathBuf,
    /// All other state.
    pub snapshot_path: PathBuf,
    /// Full unless said.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
}

/// Who serves guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemBackendType {
    /// A file, mapped copy-on-write.
    File,
    /// A handler of page faults, in another process.
    Uffd,
}

/// Where guest memory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemBackend {
    /// Who serves it.
    pub backend_type: MemBackendType,
    /// The file, or the handler's Unix socket.
    pub backend_path: PathBuf,
}

/// Another TAP interface than the one that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// Which interface.
    pub iface_id: String,
    /// The TAP interface here.
    pub host_dev_name: String,
}

/// Another socket than the one that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// The socket here.
    pub uds_path: String,
}

/// Godwit's own: another file than the one that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveOverride {
    /// Which drive.
    pub drive_id: String,
    /// The file here.
    pub path_on_host: String,
}

/// What to restore, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// The state file.
    pub snapshot_path: PathBuf,
    /// Guest memory; exactly one of this and `mem_file_path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemBackend>,
    /// The older way to name the memory file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<PathBuf>,
    /// Let the guest run at once.
    #[serde(default)]
    pub resume_vm: bool,
    /// Keep dirty bits, for diff snapshots.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// The older name of `track_dirty_pages`.
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    /// Other TAP interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another vsock path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Godwit's own: other disk files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drive_overrides: Vec<DriveOverride>,
    /// The guest's clock goes on as if it had run all the time; otherwise where it stopped.
    #[serde(default)]
    pub clock_realtime: bool,
    /// Godwit's own: accept another TSC frequency than the guest's.
    #[serde(default)]
    pub allow_tsc_mismatch: bool,
}

impl SnapshotLoad {
    /// Who serves memory, and where.
    ///
    /// # Errors
    /// Named twice, or not at all.
    pub fn memory(&self) -> Result<(MemBackendType, &PathBuf), Invalid> {
        match (&self.mem_backend, &self.mem_file_path) {
            (Some(b), None) => Ok((b.backend_type, &b.backend_path)),
            (None, Some(path)) => Ok((MemBackendType::File, path)),
            (Some(_), Some(_)) => {
                Err(Invalid::new("mem_backend", "give either this or mem_file_path, not both"))
            }
            (None, None) => Err(Invalid::new("mem_backend", "missing: where is guest memory?")),
        }
    }
}
