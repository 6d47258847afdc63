//! Diff snapshots put over the full one they build on: a full snapshot again, in a new directory.

use super::load::apply_diff;
use super::write::{in_new_dir, with_section};
use super::{Paths, SnapshotError, SnapshotMemoryV1, at, read_state};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Writes the snapshot that `diffs`, oldest first, make of `base` into the new directory `into`. None of them is changed.
///
/// # Errors
/// The base is no full snapshot, one of the others no diff, they are of different machines, or a file operation failed;
/// `into` is not there then.
pub fn merge(base: &Paths, diffs: &[Paths], into: &Path) -> Result<(), SnapshotError> {
    let full = read_state(&base.state)?;
    let mismatch = |path: &Path, why: String| SnapshotError::Mismatch { path: path.to_owned(), why };
    if full.memory.diff.is_some() {
        return Err(mismatch(&base.state, "is a Diff snapshot itself: the first must be a full one".into()));
    }
    let mut last = None;
    for diff in diffs {
        let loaded = read_state(&diff.state)?;
        let same = |a: &crate::state::Header, b: &crate::state::Header| {
            (a.vcpus, a.memory_bytes, &a.model) == (b.vcpus, b.memory_bytes, &b.model)
        };
        if loaded.memory.diff.is_none() || !same(&loaded.header, &full.header) {
            let why = "is no Diff snapshot of the machine that the first one is of".to_owned();
            return Err(mismatch(&diff.state, why));
        }
        last = Some((loaded, &diff.state));
    }
    let Some((last, state_path)) = last else {
        return Err(mismatch(into, "nothing to merge: name a Diff snapshot".into()));
    };
    let container = |source| SnapshotError::Container { path: state_path.clone(), source };
    let whole = SnapshotMemoryV1 { bytes: last.memory.bytes, diff: None };
    let state = with_section(&last.container().map_err(container)?, &whole, state_path)?;
    in_new_dir(into, |paths| {
        copy_sparse(&base.memory, &paths.memory)?;
        for diff in diffs {
            apply_diff(diff, &paths.memory)?;
        }
        let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&paths.state);
        let mut file = open.map_err(at(&paths.state, "create"))?;
        file.write_all(&state).map_err(at(&paths.state, "write"))?;
        file.sync_all().map_err(at(&paths.state, "sync"))
    })
}

/// Copies a file, holes as holes.
fn copy_sparse(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    use rustix::fs::{SeekFrom, seek};
    let source = File::open(from).map_err(at(from, "open"))?;
    let len = source.metadata().map_err(at(from, "read"))?.len();
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let target = target.map_err(at(to, "create"))?;
    target.set_len(len).map_err(at(to, "extend"))?;
    let mut buf = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < len {
        let (data, end) = match seek(&source, SeekFrom::Data(offset)) {
            Ok(data) => (data, seek(&source, SeekFrom::Hole(data)).unwrap_or(len)),
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that does not tell: all of it is data.
            Err(_) => (offset, len),
        };
        let mut at_byte = data;
        while at_byte < end {
            let part = &mut buf[..(end - at_byte).min(1 << 20) as usize];
            source.read_exact_at(part, at_byte).map_err(at(from, "read"))?;
            target.write_all_at(part, at_byte).map_err(at(to, "write"))?;
            at_byte += part.len() as u64;
        }
        offset = end;
    }
    Ok(())
}
