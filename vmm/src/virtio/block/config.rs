//! `PUT /drives/{id}` in Firecracker's form.

use crate::virtio::ratelimit::RateLimiterConfig;
use serde::{Deserialize, Serialize};

/// Whether a guest's flush reaches the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// No flush is offered: fast, and what was written is lost if the host fails.
    #[default]
    Unsafe,
    /// A flush returns when the data is on the disk.
    Writeback,
}

/// How the file is accessed. Both are the same here: a thread of the disk's own waits for it, and nobody else does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileEngine {
    /// Firecracker's device thread waits.
    #[default]
    Sync,
    /// Firecracker's device thread does not wait.
    Async,
}

/// What becomes of the disk when its guest moves to another host. Godwit's own; Firecracker moves no guests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnMigration {
    /// Both hosts reach it, at the same path or another that the receiver is told.
    #[default]
    Shared,
    /// It is copied to the destination while the guest runs.
    Moved,
}

impl OnMigration {
    fn is_default(&self) -> bool {
        *self == OnMigration::default()
    }
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// Name of the drive; also its serial number (20 bytes of it).
    pub drive_id: String,
    /// Raw image or block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// The guest boots from it.
    pub is_root_device: bool,
    /// With `is_root_device`: the partition that is the root file system, by UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// The guest may not write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_read_only: Option<bool>,
    /// Flush semantics.
    #[serde(default)]
    pub cache_type: CacheType,
    /// Limits requests and bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
    /// I/O engine; absent: [`FileEngine::Sync`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<FileEngine>,
    /// What becomes of it when its guest moves.
    #[serde(default, skip_serializing_if = "OnMigration::is_default")]
    pub on_migration: OnMigration,
    /// vhost-user backend; refused by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}
