//! Snapshots: a state container beside a sparse memory file.
//!
//! Called by `control`: it writes a paused machine ([`write`], [`write_dir`]) and maps one back in ([`read_state`],
//! [`map_memory`]). The memory file holds guest memory region after region, as Firecracker's does; a page that is zero is
//! a hole. It is mapped copy-on-write, so a restored machine starts at once whatever its size, many may start from one
//! snapshot, and none changes it. The backend that restores may differ from the one that saved.
//!
//! **Complete or absent.** All files are written aside, synced and renamed. A snapshot in a directory appears by one
//! rename. Of Firecracker's two paths the state file comes last and an old one goes first, so that a state file never
//! stands beside another snapshot's memory.

#![forbid(unsafe_code)]

mod lazy;
mod load;
mod merge;
mod write;

pub use lazy::{Served, serve_memory};
pub use load::{Loaded, apply_diff, map_memory, read_state};
pub use merge::merge;
pub(crate) use write::AsideDir;
pub use write::{Image, Written, write, write_dir};

use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Where a snapshot's two files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// State container.
    pub state: PathBuf,
    /// Guest memory.
    pub memory: PathBuf,
}

impl Paths {
    /// The files of a snapshot directory.
    pub fn in_dir(dir: &Path) -> Paths {
        Paths { state: dir.join("state"), memory: dir.join("memory") }
    }
}

/// Section "snapshot.memory": what the memory file beside this state holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMemoryV1 {
    /// Length of the memory file in bytes.
    pub bytes: u64,
    /// `None`: all of memory. Otherwise only these pages (first page's place in the file, count) are meant; the rest is
    /// in the snapshot that this one builds on.
    pub diff: Option<Vec<(u64, u64)>>,
}

impl Section for SnapshotMemoryV1 {
    const KIND: &'static str = "snapshot.memory";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        let pages = self.bytes / crate::memory::PAGE_SIZE;
        let mut end = 0;
        let sound = self.diff.iter().flatten().all(|(first, count)| {
            let apart = *first >= end && *count > 0;
            end = first.saturating_add(*count);
            apart && end <= pages
        });
        if !sound || !self.bytes.is_multiple_of(crate::memory::PAGE_SIZE) {
            return Err(StateError::invalid::<Self>("the list of pages is not sound"));
        }
        Ok(())
    }
}

/// Why a snapshot was not written or not taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file operation failed.
    #[error("{path}: cannot {what}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The state file is damaged or from another time.
    #[error("{path}: {source}")]
    Container {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: crate::state::ContainerError,
    },
    /// A section is damaged or says what cannot be.
    #[error("{path}: {source}")]
    State {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: StateError,
    },
    /// The files do not belong together, or to this use.
    #[error("{path}: {why}")]
    Mismatch {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// Guest memory cannot be read or mapped.
    #[error("guest memory: {0}")]
    Memory(String),
}

fn at<'a>(path: &'a Path, what: &'static str) -> impl FnOnce(std::io::Error) -> SnapshotError + 'a {
    move |source| SnapshotError::File { path: path.to_owned(), what, source }
}

#[cfg(test)]
mod tests;
