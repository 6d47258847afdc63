//! Reading a snapshot: the state, verified, and memory mapped copy-on-write.

use super::{Paths, SnapshotError, SnapshotMemoryV1, at};
use crate::memory::{GuestRam, PAGE_SIZE, Region, WriteTracker};
use crate::state::{self, Header, MAX_CONTAINER, MachineSection};
use godwit_state::{Section, decode_section};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use vm_memory::bitmap::NewBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// A verified state file.
#[derive(Debug)]
pub struct Loaded {
    /// What the machine is.
    pub header: Header,
    /// Its sections, [`SnapshotMemoryV1`] taken out.
    pub sections: Vec<MachineSection>,
    /// What the memory file holds.
    pub memory: SnapshotMemoryV1,
}

impl Loaded {
    /// The machine's container, as it was before the snapshot.
    ///
    /// # Errors
    /// It does not fit, which a file that was read does.
    pub fn container(&self) -> Result<Vec<u8>, state::ContainerError> {
        state::write(&self.header, &self.sections)
    }
}

/// Reads and verifies a state file.
///
/// # Errors
/// It is no state, damaged, or not a snapshot's.
pub fn read_state(path: &Path) -> Result<Loaded, SnapshotError> {
    let file = File::open(path).map_err(at(path, "open"))?;
    let len = file.metadata().map_err(at(path, "read"))?.len().min(MAX_CONTAINER as u64);
    let mut bytes = Vec::with_capacity(len as usize + 1);
    file.take(MAX_CONTAINER as u64 + 1).read_to_end(&mut bytes).map_err(at(path, "read"))?;
    let container = |source| SnapshotError::Container { path: path.to_owned(), source };
    let (header, mut sections) = state::read(&bytes).map_err(container)?;
    let place = sections.iter().position(|s| s.section.kind == SnapshotMemoryV1::KIND);
    let mismatch = |why: &str| SnapshotError::Mismatch { path: path.to_owned(), why: why.to_owned() };
    let place = place.ok_or_else(|| mismatch("a state without a memory file: not a snapshot"))?;
    let memory: SnapshotMemoryV1 = decode_section(&sections.remove(place).section)
        .map_err(|source| SnapshotError::State { path: path.to_owned(), source })?;
    if memory.bytes != header.memory_bytes {
        return Err(mismatch("the sizes of memory in header and section differ"));
    }
    Ok(Loaded { header, sections, memory })
}

/// Maps the memory file of `loaded` copy-on-write as guest memory of these regions.
///
/// # Errors
/// A diff snapshot, a file of another length, regions of another size, or the system's refusal.
pub fn map_memory(loaded: &Loaded, path: &Path, regions: &[Region]) -> Result<GuestRam, SnapshotError> {
    let mismatch = |why: String| SnapshotError::Mismatch { path: path.to_owned(), why };
    if loaded.memory.diff.is_some() {
        let why = "holds only the changes since another snapshot: put it over that one first (godwit merge)";
        return Err(mismatch(why.into()));
    }
    let file = File::open(path).map_err(at(path, "open"))?;
    let len = file.metadata().map_err(at(path, "read"))?.len();
    if len != loaded.memory.bytes {
        return Err(mismatch(format!("is {len} bytes long, the state belongs to {}", loaded.memory.bytes)));
    }
    if regions.iter().map(|r| r.len).sum::<u64>() != len {
        return Err(mismatch("does not fill this machine's memory".into()));
    }
    let file = Arc::new(file);
    let mut offset = 0;
    let mut mapped = Vec::new();
    for region in regions {
        let memory = |e: &dyn std::fmt::Display| SnapshotError::Memory(format!("{}: {e}", path.display()));
        let len = usize::try_from(region.len).map_err(|e| memory(&e))?;
        let map = MmapRegionBuilder::new_with_bitmap(len, WriteTracker::with_len(len))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), offset))
            .build()
            .map_err(|e| memory(&e))?;
        let guest = GuestRegionMmap::new(map, GuestAddress(region.gpa));
        mapped.push(guest.ok_or_else(|| SnapshotError::Memory(format!("{:#x} is too high", region.gpa)))?);
        offset += region.len;
    }
    GuestMemoryMmap::from_regions(mapped).map(Arc::new).map_err(|e| SnapshotError::Memory(e.to_string()))
}

/// Writes the pages of a diff snapshot over a copy of the memory file it builds on.
///
/// # Errors
/// Not a diff snapshot, or a file operation failed.
pub fn apply_diff(diff: &Paths, base_memory: &Path) -> Result<(), SnapshotError> {
    let loaded = read_state(&diff.state)?;
    let Some(runs) = &loaded.memory.diff else {
        let why = "is a full snapshot: there is nothing to apply".to_owned();
        return Err(SnapshotError::Mismatch { path: diff.state.clone(), why });
    };
    let from = File::open(&diff.memory).map_err(at(&diff.memory, "open"))?;
    let to = OpenOptions::new().write(true).open(base_memory).map_err(at(base_memory, "open"))?;
    let len = to.metadata().map_err(at(base_memory, "read"))?.len();
    if len != loaded.memory.bytes {
        let why = format!("is {len} bytes long, the changes are of one of {}", loaded.memory.bytes);
        return Err(SnapshotError::Mismatch { path: base_memory.to_owned(), why });
    }
    let mut buf = vec![0; 1 << 20];
    for (first, count) in runs {
        let (mut offset, end) = (first * PAGE_SIZE, (first + count) * PAGE_SIZE);
        while offset < end {
            let part = &mut buf[..(end - offset).min(1 << 20) as usize];
            from.read_exact_at(part, offset).map_err(at(&diff.memory, "read"))?;
            to.write_all_at(part, offset).map_err(at(base_memory, "write"))?;
            offset += part.len() as u64;
        }
    }
    to.sync_all().map_err(at(base_memory, "sync"))
}
