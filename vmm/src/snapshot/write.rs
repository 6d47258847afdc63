//! Writing a snapshot of a paused machine.

use super::{Paths, SnapshotError, SnapshotMemoryV1, at};
use crate::memory::{self, GuestRam, PAGE_SIZE, PageSet, Region, Run};
use crate::state::{self, MachineSection};
use godwit_state::{RawSection, Section};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

const CHUNK_PAGES: u64 = 256;
const PAGE: usize = PAGE_SIZE as usize;

/// What is written.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// The machine's state container.
    pub container: &'a [u8],
    /// Its memory; nobody writes to it.
    pub ram: &'a GuestRam,
    /// Only these pages: a diff snapshot.
    pub dirty: Option<&'a PageSet>,
}

/// Figures of a written snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Size of the state file.
    pub state_bytes: u64,
    /// Length of the memory file.
    pub memory_bytes: u64,
    /// Bytes of it that are not holes.
    pub data_bytes: u64,
}

/// The name under which `path` is made. The same at every attempt, so that what a killed one has left goes with the next.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Makes what `create` makes at `path` and holds a lock on it while it is open. What is there already is removed if nobody
/// holds one: its maker was killed.
///
/// # Errors
/// Somebody is at it, or the host's.
fn take_over(
    path: &Path,
    create: impl Fn() -> io::Result<File>,
    remove: impl Fn(&Path) -> io::Result<()>,
) -> Result<File, SnapshotError> {
    let made = match create() {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let left = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(path)
                .map_err(at(path, "look at"))?;
            if is_held(&left) {
                let why = "somebody else is writing it: another name, or wait until it is done".to_owned();
                return Err(SnapshotError::Mismatch { path: path.to_owned(), why });
            }
            remove(path).map_err(at(path, "remove"))?;
            create()
        }
        made => made,
    };
    let made = made.map_err(at(path, "create"))?;
    is_held(&made);
    Ok(made)
}

/// Whether somebody else has the lock; else it is taken. A file system without locks has nobody.
fn is_held(file: &File) -> bool {
    use rustix::fs::{FlockOperation, flock};
    flock(file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// A file under a temporary name, gone unless [`Aside::place`] is called.
struct Aside {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    placed: bool,
}

impl Aside {
    fn new(path: &Path) -> Result<Self, SnapshotError> {
        let temporary = temporary(path);
        let create =
            || OpenOptions::new().write(true).read(true).create_new(true).mode(0o600).open(&temporary);
        let file = take_over(&temporary, create, |left| fs::remove_file(left))?;
        Ok(Aside { file, temporary, path: path.to_owned(), placed: false })
    }

    fn sync(&self) -> Result<(), SnapshotError> {
        self.file.sync_all().map_err(at(&self.temporary, "sync"))
    }

    fn place(&mut self) -> Result<(), SnapshotError> {
        fs::rename(&self.temporary, &self.path).map_err(at(&self.path, "put into place"))?;
        self.placed = true;
        sync_parent(&self.path)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A directory under a temporary name, gone with all in it when this is dropped.
pub(crate) struct AsideDir {
    temporary: PathBuf,
    path: PathBuf,
    placed: bool,
    _held: File,
}

impl AsideDir {
    /// To become `path`.
    ///
    /// # Errors
    /// Somebody else is making it, or the host's.
    pub(crate) fn new(path: &Path) -> Result<Self, SnapshotError> {
        let temporary = temporary(path);
        let create = || fs::create_dir(&temporary).and_then(|()| File::open(&temporary));
        let held = take_over(&temporary, create, |left| fs::remove_dir_all(left))?;
        Ok(AsideDir { temporary, path: path.to_owned(), placed: false, _held: held })
    }

    /// Where it is for now.
    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Gives it its name, which nothing has yet.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn place(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.placed = true;
        Ok(())
    }

    /// Lets it and what has its name change names in one step: there is an old or a new one at any moment, never half of one.
    /// The old one goes.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn replace(self) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        Ok(renameat_with(CWD, &self.temporary, CWD, &self.path, RenameFlags::EXCHANGE)?)
    }
}

impl Drop for AsideDir {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

fn sync_parent(path: &Path) -> Result<(), SnapshotError> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(at(parent, "sync"))
}

/// Writes a snapshot to two files.
///
/// # Errors
/// Nothing has changed, or (after the old state file was removed) no snapshot is there.
pub fn write(paths: &Paths, image: Image<'_>) -> Result<Written, SnapshotError> {
    let mut memory = Aside::new(&paths.memory)?;
    let mut state = Aside::new(&paths.state)?;
    let (data_bytes, section) = write_memory(&memory, image)?;
    let memory_bytes = section.bytes;
    let container = with_section(image.container, &section, &paths.state)?;
    state.file.write_all(&container).map_err(at(&state.temporary, "write"))?;
    memory.sync()?;
    state.sync()?;
    if paths.memory.exists() {
        match fs::remove_file(&paths.state) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(at(&paths.state, "replace")(e)),
            _ => sync_parent(&paths.state)?,
        }
    }
    memory.place()?;
    state.place()?;
    Ok(Written { state_bytes: container.len() as u64, memory_bytes, data_bytes })
}

/// Writes a snapshot into a new directory, which appears whole or not at all.
///
/// # Errors
/// The directory exists, or a file operation failed; nothing has changed.
pub fn write_dir(dir: &Path, image: Image<'_>) -> Result<Written, SnapshotError> {
    in_new_dir(dir, |paths| write(paths, image))
}

/// Has `fill` write both files of a directory that appears whole or not at all.
pub(super) fn in_new_dir<R>(
    dir: &Path,
    fill: impl FnOnce(&Paths) -> Result<R, SnapshotError>,
) -> Result<R, SnapshotError> {
    if dir.exists() {
        let why = "is there already; name a new directory".to_owned();
        return Err(SnapshotError::Mismatch { path: dir.to_owned(), why });
    }
    let aside = AsideDir::new(dir)?;
    let written = fill(&Paths::in_dir(aside.temporary()))?;
    aside.place().map_err(at(dir, "put into place"))?;
    sync_parent(dir).map(|()| written)
}

/// The container with the section that describes the memory file.
pub(super) fn with_section(
    container: &[u8],
    section: &SnapshotMemoryV1,
    path: &Path,
) -> Result<Vec<u8>, SnapshotError> {
    let refused = |source| SnapshotError::Container { path: path.to_owned(), source };
    let (header, mut sections) = state::read(container).map_err(refused)?;
    sections.retain(|s| s.section.kind != SnapshotMemoryV1::KIND);
    sections.push(MachineSection { instance: 0, section: RawSection::mandatory(section) });
    state::write(&header, &sections).map_err(refused)
}

fn write_memory(out: &Aside, image: Image<'_>) -> Result<(u64, SnapshotMemoryV1), SnapshotError> {
    let regions: Vec<Region> =
        image.ram.iter().map(|r| Region { gpa: r.start_addr().raw_value(), len: r.len() }).collect();
    let bytes = regions.iter().map(|r| r.len).sum();
    out.file.set_len(bytes).map_err(at(&out.temporary, "extend"))?;
    let place = |page: u64| {
        let mut offset = 0;
        for r in &regions {
            let gpa = page * PAGE_SIZE;
            if gpa >= r.gpa && gpa - r.gpa < r.len {
                return Some(offset + gpa - r.gpa);
            }
            offset += r.len;
        }
        None
    };
    let mut pages = PageSet::full(&regions);
    match image.dirty {
        Some(dirty) => pages = dirty.clone(),
        None => memory::untouched(image.ram, &mut pages, &mut PageSet::empty(&regions)),
    }
    let mut buf = vec![0; CHUNK_PAGES as usize * PAGE];
    let mut data_bytes = 0;
    for run in pages.runs(CHUNK_PAGES) {
        let offset =
            place(run.page).ok_or_else(|| SnapshotError::Memory(format!("no page {:#x}", run.page)))?;
        let chunk = &mut buf[..run.len() as usize];
        image
            .ram
            .read_slice(chunk, GuestAddress(run.gpa()))
            .map_err(|e| SnapshotError::Memory(format!("{:#x}: {e}", run.gpa())))?;
        for (from, part) in parts(chunk, image.dirty.is_none()) {
            out.file.write_all_at(part, offset + from as u64).map_err(at(&out.temporary, "write"))?;
            data_bytes += part.len() as u64;
        }
    }
    let diff = image.dirty.map(|dirty| {
        let in_file = |r: Run| Some((place(r.page)? / PAGE_SIZE, r.count));
        dirty.runs(u64::MAX).filter_map(in_file).collect()
    });
    Ok((data_bytes, SnapshotMemoryV1 { bytes, diff }))
}

/// The stretches of `chunk` to write: all of it, or (`sparse`) what is not zero, by pages.
fn parts(chunk: &[u8], sparse: bool) -> Vec<(usize, &[u8])> {
    if !sparse {
        return vec![(0, chunk)];
    }
    let mut out: Vec<(usize, &[u8])> = Vec::new();
    for (i, page) in chunk.chunks_exact(PAGE).enumerate() {
        if page == memory::zero_page() {
            continue;
        }
        match out.last_mut() {
            Some((from, part)) if *from + part.len() == i * PAGE => *part = &chunk[*from..(i + 1) * PAGE],
            _ => out.push((i * PAGE, page)),
        }
    }
    out
}
