//! Disks that move with their guest: copied beside its memory, as more pages of the same set.
//!
//! A moved disk gets a region of page numbers far above any memory. So what migration does for memory holds for disks:
//! rounds, holes as zero pages, writes logged and sent again, the last of them while the guest stands still, and a count of
//! what was never sent. Called by `moving`.
//!
//! At the destination a copy grows under the name `PATH.partial`, beside where it belongs, and gets its own name when it is
//! whole and on the disk. Until the guest runs from it, it goes away with whoever received it.

use crate::memory::{GuestRam, PAGE_SIZE, PageSet, Region, ZEROS};
use crate::migrate::{Fault, Memory};
use crate::virtio::block::image::Image;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Memory and disks, told apart by the address.
pub struct Both<D> {
    /// Guest memory.
    pub ram: GuestRam,
    /// Disks.
    pub disks: D,
}

impl Memory for Both<Leaving> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        if self.disks.read(gpa, buf)? { Ok(()) } else { self.ram.read(gpa, buf) }
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), Fault> {
        Err("a guest that leaves is not written to".into())
    }
    fn zero(&self, _: u64, _: u64) -> Result<(), Fault> {
        Err("a guest that leaves is not written to".into())
    }
}

impl Memory for Both<Arc<Arriving>> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.ram.read(gpa, buf)
    }
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Fault> {
        if self.disks.write(gpa, bytes)? { Ok(()) } else { self.ram.write(gpa, bytes) }
    }
    fn zero(&self, gpa: u64, len: u64) -> Result<(), Fault> {
        if self.disks.zero(gpa, len)? { Ok(()) } else { self.ram.zero(gpa, len) }
    }
}

/// Where the first moved disk's pages are; each next one is [`STRIDE`] further.
const FIRST: u64 = 1 << 56;
const STRIDE: u64 = 1 << 48;
/// Largest disk that can be moved, in bytes: 16 TiB.
pub const MAX_BYTES: u64 = 1 << 44;
/// So many bytes are written at most before they are sent to the disk: the last flush must be short.
const FLUSH_BYTES: u64 = 32 << 20;

/// The region of the moved disk number `index`, of `bytes` bytes.
pub fn region(index: usize, bytes: u64) -> Region {
    let len = bytes.clamp(1, MAX_BYTES).next_multiple_of(PAGE_SIZE);
    Region { gpa: FIRST + index as u64 * STRIDE, len }
}

/// Disk number and offset of an address; `None`: it is memory.
fn place(gpa: u64) -> Option<(usize, u64)> {
    let at = gpa.checked_sub(FIRST)?;
    Some(((at / STRIDE) as usize, at % STRIDE))
}

/// The disks that a guest takes along.
#[derive(Debug, Clone, Default)]
pub struct Leaving(Vec<Image>);

impl Leaving {
    /// These, in this order.
    pub fn new(images: Vec<Image>) -> Self {
        Leaving(images)
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their sizes.
    pub fn bytes(&self) -> Vec<u64> {
        self.0.iter().map(Image::bytes).collect()
    }

    /// Their regions.
    pub fn regions(&self) -> Vec<Region> {
        self.0.iter().enumerate().map(|(i, image)| region(i, image.bytes())).collect()
    }

    /// Begins to log what the guest writes.
    pub fn start_log(&self) {
        self.0.iter().for_each(Image::start_log);
    }

    /// Ends that.
    pub fn stop_log(&self) {
        self.0.iter().for_each(Image::stop_log);
    }

    /// Adds what was written since the last call, and clears the logs.
    pub fn take_dirty(&self, pages: &mut PageSet) {
        for (region, words) in pages.bitmaps() {
            if let Some(image) = place(region.gpa).and_then(|(index, _)| self.0.get(index)) {
                image.take_log(words);
            }
        }
    }

    /// Moves pages that are holes from `pages` to `zero`.
    pub fn holes(&self, pages: &mut PageSet, zero: &mut PageSet) {
        for (index, image) in self.0.iter().enumerate() {
            let first = region(index, image.bytes());
            let page = |offset: u64| (first.gpa + offset) / PAGE_SIZE;
            let (mut at, end) = (0, first.len);
            while at < end {
                let (data, data_end) = image.data(at).map_or((end, end), |(from, to)| {
                    (from / PAGE_SIZE * PAGE_SIZE, to.next_multiple_of(PAGE_SIZE).min(end))
                });
                if data > at {
                    pages.remove_where(page(at), (data - at) / PAGE_SIZE, |_| true, zero);
                }
                at = data_end.max(at + PAGE_SIZE);
            }
        }
    }

    /// Copies a disk's pages out; false: the address is memory.
    ///
    /// # Errors
    /// The host's.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<bool, Fault> {
        let Some((index, offset)) = place(gpa) else { return Ok(false) };
        self.0.get(index).ok_or("no such disk")?.read(offset, buf)?;
        Ok(true)
    }
}

/// A copy that is being made.
#[derive(Debug)]
struct Copy {
    file: File,
    bytes: u64,
    partial: PathBuf,
    path: PathBuf,
    /// Bytes since the last flush.
    fresh: AtomicU64,
    /// What to remove if the guest never runs: `None` once it does.
    leftover: Mutex<Option<PathBuf>>,
}

/// Disks that come with a guest. Dropped before [`Arriving::keep`], they take their files away.
#[derive(Debug, Default)]
pub struct Arriving(Vec<Copy>);

impl Arriving {
    /// Makes an empty file of `bytes` bytes for each path, under a name that says that it is not whole.
    ///
    /// # Errors
    /// There is something of that name already, there is no room, or the host's.
    pub fn create(disks: &[(PathBuf, u64)]) -> Result<Self, Fault> {
        let mut all = Arriving::default();
        for (path, bytes) in disks {
            if std::fs::symlink_metadata(path).is_ok() {
                return Err(
                    format!("{} is there already: a moved disk needs a new name", path.display()).into()
                );
            }
            let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let failed = |e: std::io::Error| format!("cannot make {}: {e}", path.display());
            let stat = rustix::fs::statvfs(dir).map_err(|e| failed(e.into()))?;
            let room = stat.f_bavail.saturating_mul(stat.f_frsize);
            if *bytes > room {
                let mib = |n: u64| n >> 20;
                return Err(format!(
                    "{}: {} MiB, there is room for {} MiB",
                    path.display(),
                    mib(*bytes),
                    mib(room)
                )
                .into());
            }
            let mut partial = path.clone().into_os_string();
            partial.push(".partial");
            let partial = PathBuf::from(partial);
            // What an earlier attempt that was killed has left.
            if std::fs::symlink_metadata(&partial).is_ok_and(|m| m.is_file()) {
                std::fs::remove_file(&partial).map_err(failed)?;
            }
            let file =
                OpenOptions::new().read(true).write(true).create_new(true).open(&partial).map_err(failed)?;
            let leftover = Mutex::new(Some(partial.clone()));
            let copy =
                Copy { file, bytes: *bytes, partial, path: path.clone(), fresh: AtomicU64::new(0), leftover };
            all.0.push(copy);
            all.0.iter().try_for_each(|c| c.file.set_len(c.bytes)).map_err(failed)?;
        }
        Ok(all)
    }

    /// Where they grow.
    pub fn partial_paths(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|c| c.partial.to_string_lossy().into_owned())
    }

    /// Their regions.
    pub fn regions(&self) -> Vec<Region> {
        self.0.iter().enumerate().map(|(i, copy)| region(i, copy.bytes)).collect()
    }

    /// Puts pages of a disk in; false: the address is memory.
    ///
    /// # Errors
    /// The host's, or outside of the disk.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<bool, Fault> {
        let Some((index, offset)) = place(gpa) else { return Ok(false) };
        let copy = self.0.get(index).ok_or("no such disk")?;
        let there = copy.bytes.checked_sub(offset).ok_or("past the end of the disk")?.min(bytes.len() as u64);
        copy.file.write_all_at(&bytes[..there as usize], offset)?;
        if copy.fresh.fetch_add(there, Ordering::Relaxed) + there >= FLUSH_BYTES {
            copy.fresh.store(0, Ordering::Relaxed);
            copy.file.sync_data()?;
        }
        Ok(true)
    }

    /// Makes pages of a disk zero; false: the address is memory.
    ///
    /// # Errors
    /// As [`Arriving::write`].
    pub fn zero(&self, gpa: u64, len: u64) -> Result<bool, Fault> {
        let mut at = 0;
        while at < len {
            let part = (len - at).min(ZEROS.len() as u64);
            if !self.write(gpa + at, &ZEROS[..part as usize])? {
                return Ok(false);
            }
            at += part;
        }
        Ok(place(gpa).is_some())
    }

    /// All is there: has it reach the disk, under its own name.
    ///
    /// # Errors
    /// The host's; or somebody has taken the name meanwhile.
    pub fn finish(&self) -> Result<(), Fault> {
        for copy in &self.0 {
            copy.file.sync_all()?;
            // A link, not a rename: what has come by that name meanwhile must not be replaced.
            std::fs::hard_link(&copy.partial, &copy.path)
                .or_else(|e| match e.kind() {
                    std::io::ErrorKind::AlreadyExists => Err(e),
                    // File systems without links.
                    _ => std::fs::rename(&copy.partial, &copy.path),
                })
                .map_err(|e| format!("{}: {e}", copy.path.display()))?;
            *copy.leftover.lock().unwrap_or_else(|e| e.into_inner()) = Some(copy.path.clone());
            let _ = std::fs::remove_file(&copy.partial);
            if let Some(dir) = copy.path.parent().and_then(|d| File::open(d).ok()) {
                let _ = dir.sync_all();
            }
        }
        Ok(())
    }

    /// The guest runs from them: they stay.
    pub fn keep(&self) {
        for copy in &self.0 {
            *copy.leftover.lock().unwrap_or_else(|e| e.into_inner()) = None;
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        for copy in &mut self.0 {
            if let Some(path) = copy.leftover.get_mut().unwrap_or_else(|e| e.into_inner()).take() {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempdir::TempDir;

    #[test]
    fn a_copy_has_its_name_only_when_whole_and_goes_unless_kept() {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("disk");
        let partial = dir.as_path().join("disk.partial");
        let make = || Arriving::create(&[(path.clone(), 5000)]).unwrap();
        let copy = make();
        assert!(partial.exists() && !path.exists());
        let at = region(0, 5000);
        assert_eq!(at.len, 8192);
        assert!(copy.write(at.gpa + 4096, &[9; 4096]).unwrap() && !copy.write(0, &[9; 4096]).unwrap());
        assert!(
            copy.write(at.gpa + STRIDE, &[0; 4096]).is_err() && copy.write(at.gpa + 8192, &[0; 1]).is_err()
        );
        drop(copy);
        assert!(!partial.exists() && !path.exists());
        let copy = make();
        copy.write(at.gpa, &[1; 4096]).unwrap();
        copy.write(at.gpa + 4096, &[9; 4096]).unwrap();
        copy.finish().unwrap();
        assert!(!partial.exists() && path.exists());
        copy.keep();
        drop(copy);
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() == 5000 && bytes[0] == 1 && bytes[4096..] == [9; 904]);
        let error = Arriving::create(&[(path.clone(), 5000)]).unwrap_err().to_string();
        assert!(error.contains("there already"), "{error}");
        let error = Arriving::create(&[(dir.as_path().join("x"), 1 << 60)]).unwrap_err().to_string();
        assert!(error.contains("room"), "{error}");
        let copy = Arriving::create(&[(dir.as_path().join("y"), 4096)]).unwrap();
        copy.finish().unwrap();
        drop(copy);
        assert!(!dir.as_path().join("y").exists(), "the guest never ran from it");
    }
}
