//! Guest RAM that another process maps too, and the deed that says whose the guest is: what a local move hands over.
//!
//! Used by `ram` (which makes and maps the file) and `migrate` (which sends the descriptors).

use super::{GuestRam, PAGE_SIZE, Region};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion, MmapRegion, VolatileMemory};

/// A memory file of `bytes`, all zero, which nobody can ever make shorter: whoever maps it is safe from that.
pub(super) fn memory_file(name: &str, bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK)?;
    Ok(file)
}

/// A file from another process: is it at least `bytes` long, for good?
fn check(file: &File, bytes: u64) -> Result<(), String> {
    let seals = fcntl_get_seals(file).map_err(|e| format!("what was handed over is no memory file: {e}"))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err("the memory file that was handed over may be cut short".into());
    }
    let found = file.metadata().map_err(|e| e.to_string())?.len();
    if found < bytes {
        return Err(format!("the memory file that was handed over has {found} bytes, not {bytes}"));
    }
    Ok(())
}

/// Guest RAM as a memory file: where in it each region begins.
#[derive(Debug, Clone)]
pub struct SharedRam {
    /// The file.
    pub file: Arc<File>,
    /// Regions, and their offsets in the file.
    pub pieces: Vec<(Region, u64)>,
}

impl SharedRam {
    /// The file behind `ram`.
    ///
    /// # Errors
    /// Why there is none that another process could map and see the same memory.
    pub fn of(ram: &GuestRam) -> Result<Self, &'static str> {
        let mut shared: Option<Arc<File>> = None;
        let mut pieces = Vec::new();
        for region in ram.iter() {
            let file = region.file_offset().ok_or("guest memory is not in a memory file")?;
            if region.flags() & libc::MAP_SHARED == 0 {
                return Err("guest memory came from a snapshot and is this process's private copy");
            }
            match &shared {
                Some(first) if !Arc::ptr_eq(first, file.arc()) => {
                    return Err("guest memory is in more than one file");
                }
                _ => shared = Some(Arc::clone(file.arc())),
            }
            pieces.push((Region { gpa: region.start_addr().0, len: region.len() }, file.start()));
        }
        let file = shared.ok_or("there is no guest memory")?;
        match fcntl_get_seals(&file) {
            Ok(seals) if seals.contains(SealFlags::SHRINK) => Ok(SharedRam { file, pieces }),
            _ => Err("guest memory is in a file that may be cut short"),
        }
    }

    /// What another process handed over, checked: safe to map, and with exactly these regions, none over another.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn received(file: File, pieces: Vec<(Region, u64)>, regions: &[Region]) -> Result<Self, String> {
        if !pieces.iter().map(|(region, _)| *region).eq(regions.iter().copied()) {
            return Err("the memory handed over is not laid out as the offer says".into());
        }
        let page = (rustix::param::page_size() as u64).max(PAGE_SIZE);
        let mut end = 0u64;
        for (region, offset) in &pieces {
            if *offset < end || !offset.is_multiple_of(page) {
                return Err(format!("memory at offset {offset:#x} of the file cannot be mapped here"));
            }
            end = offset.checked_add(region.len).ok_or("memory beyond the end of any file")?;
        }
        check(&file, end)?;
        Ok(SharedRam { file: Arc::new(file), pieces })
    }

    /// Offset of the region that begins at `gpa`.
    pub(super) fn offset(&self, gpa: u64, len: u64) -> Option<u64> {
        self.pieces.iter().find(|(r, _)| (r.gpa, r.len) == (gpa, len)).map(|(_, offset)| *offset)
    }
}

/// Whose a guest is while both sides have its memory: one word that both map. The first to change it decides, so never do
/// both run it, whatever becomes of the connection.
#[derive(Debug)]
pub struct Deed {
    file: Arc<File>,
    map: MmapRegion,
}

/// The same in either byte order: an emulator of another CPU may be on the other side.
const OFFERED: u32 = 0;
const TAKEN: u32 = 0x0101_0101;
const VOID: u32 = 0x0202_0202;
const RETURNED: u32 = 0x0303_0303;

impl Deed {
    /// A new one: the guest is offered.
    ///
    /// # Errors
    /// The host's.
    pub fn new() -> io::Result<Self> {
        let page = rustix::param::page_size();
        Self::map(memory_file("godwit-deed", page as u64)?).map_err(io::Error::other)
    }

    /// The other process's.
    ///
    /// # Errors
    /// It is not one.
    pub fn received(file: File) -> Result<Self, String> {
        check(&file, rustix::param::page_size() as u64)?;
        Self::map(file)
    }

    fn map(file: File) -> Result<Self, String> {
        let file = Arc::new(file);
        let map = MmapRegionBuilder::new(rustix::param::page_size())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), 0))
            .build()
            .map_err(|e| e.to_string())?;
        Ok(Deed { file, map })
    }

    /// The file to hand over.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn change(&self, from: u32, to: u32) -> bool {
        let Ok(word) = self.map.get_atomic_ref::<AtomicU32>(0) else { return false };
        word.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// The destination takes the guest. False: it is no longer offered.
    #[must_use]
    pub fn take(&self) -> bool {
        self.change(OFFERED, TAKEN)
    }

    /// The destination, which has taken the guest and not run a single instruction of it, gives it back.
    pub fn give_back(&self) {
        let _ = self.change(TAKEN, RETURNED);
    }

    /// The source withdraws the offer. False: the guest was taken, and not given back.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        self.change(OFFERED, VOID) || self.change(RETURNED, VOID)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ram::{Backing, allocate, make_writable};
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn a_deed_has_one_holder() {
        let here = Deed::new().unwrap();
        let there = Deed::received(here.file().try_clone().unwrap()).unwrap();
        assert!(there.take() && !there.take() && !here.withdraw());
        there.give_back();
        assert!(here.withdraw() && !there.take() && !here.withdraw());
        let here = Deed::new().unwrap();
        let there = Deed::received(here.file().try_clone().unwrap()).unwrap();
        assert!(here.withdraw() && !there.take());
        assert!(Deed::received(File::open("/dev/null").unwrap()).is_err());
    }

    #[test]
    fn memory_is_the_same_on_both_sides() {
        let ram = allocate(4 << 20, &Backing::Shared).unwrap();
        ram.write_slice(b"here", GuestAddress(0x1234)).unwrap();
        let shared = SharedRam::of(&ram).unwrap();
        let regions: Vec<_> = shared.pieces.iter().map(|(r, _)| *r).collect();
        let file = shared.file.try_clone().unwrap();
        let handed = SharedRam::received(file, shared.pieces.clone(), &regions).unwrap();
        let there = allocate(4 << 20, &Backing::HandedOver(handed)).unwrap();
        let mut seen = [0; 4];
        there.read_slice(&mut seen, GuestAddress(0x1234)).unwrap();
        assert_eq!(&seen, b"here");
        make_writable(&there).unwrap();
        there.write_slice(b"over", GuestAddress(0x1234)).unwrap();
        ram.read_slice(&mut seen, GuestAddress(0x1234)).unwrap();
        assert_eq!(&seen, b"over");
    }

    #[test]
    fn what_cannot_be_mapped_safely_is_refused() {
        let anonymous = allocate(4 << 20, &Backing::Anonymous).unwrap();
        assert!(SharedRam::of(&anonymous).is_err());
        let regions = [Region { gpa: 0, len: 4 << 20 }];
        let given = |file: File, offset| SharedRam::received(file, vec![(regions[0], offset)], &regions);
        let short = memory_file("short", 1 << 20).unwrap();
        assert!(given(short, 0).unwrap_err().contains("bytes"));
        let unsealed = File::from(memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap());
        unsealed.set_len(4 << 20).unwrap();
        assert!(given(unsealed, 0).unwrap_err().contains("cut short"));
        let good = || memory_file("good", 8 << 20).unwrap();
        assert!(
            given(good(), 0).is_ok() && given(good(), 1).is_err() && given(good(), u64::MAX << 16).is_err()
        );
        assert!(SharedRam::received(good(), vec![], &regions).is_err());
    }
}
