//! Which guest pages were never touched: they read as zeros, and need be neither read, sent nor stored.
//!
//! The kernel knows: a page that is neither present nor swapped out (`/proc/self/pagemap`, bits 63 and 62) and, where a
//! file lies underneath, in one of its holes. Reading such a page would make it exist. Where the kernel does not tell (or
//! tells of other addresses, as under user-mode emulation), every page counts as touched.

use super::{GuestRam, PAGE_SIZE, PageSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

const PRESENT_OR_SWAPPED: u64 = 3 << 62;

/// Takes out of `set` the pages that were never touched, and adds them to `zero`. Both are sets of `ram`'s regions.
///
/// Writes that happen meanwhile must be in a dirty log that was started before.
pub fn untouched(ram: &GuestRam, set: &mut PageSet, zero: &mut PageSet) {
    let map = PageMap::open();
    for region in ram.iter().filter(|r| !r.bitmap().is_filled_on_touch()) {
        let first = region.start_addr().raw_value() / PAGE_SIZE;
        let pages = region.len() / PAGE_SIZE;
        // Shared memory is in its file, whether this process has looked at it or not.
        let in_file = region.file_offset().is_some() && region.flags() & libc::MAP_SHARED != 0;
        let touched = match &map {
            _ if in_file => Some(vec![false; pages as usize]),
            Some(map) => map.touched(region.as_ptr() as u64, pages),
            None => None,
        };
        let Some(mut touched) = touched else { continue };
        if let Some(file) = region.file_offset()
            && !mark_data(file.file(), file.start(), region.len(), &mut touched)
        {
            continue;
        }
        set.remove_where(first, pages, |page| !touched[page as usize], zero);
    }
}

/// Marks the pages over which `file` has data. False: the file system does not tell.
fn mark_data(file: &File, start: u64, len: u64, touched: &mut [bool]) -> bool {
    use rustix::fs::{SeekFrom, seek};
    let end = start.saturating_add(len);
    let mut at = start;
    while at < end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return true,
            Err(_) => return false,
        };
        let Ok(hole) = seek(file, SeekFrom::Hole(data)) else { return false };
        let from = (data.min(end) - start) / PAGE_SIZE;
        let to = (hole.min(end) - start).div_ceil(PAGE_SIZE);
        touched.iter_mut().take(to as usize).skip(from as usize).for_each(|t| *t = true);
        at = hole;
    }
    true
}

struct PageMap {
    file: File,
    host_page: u64,
}

impl PageMap {
    /// Opens the map and tries it on pages of known state.
    fn open() -> Option<Self> {
        let map = PageMap {
            file: File::open("/proc/self/pagemap").ok()?,
            host_page: rustix::param::page_size() as u64,
        };
        // Every second page of many: an emulator that shows other addresses or another byte order does not pass.
        let (pages, host_page) = (128, map.host_page as usize);
        let probe = vm_memory::MmapRegion::<()>::new(pages * host_page).ok()?;
        for page in (1..pages).step_by(2) {
            vm_memory::VolatileMemory::get_slice(&probe, page * host_page, 1).ok()?.copy_from(&[1u8]);
        }
        let entries = map.entries(probe.as_ptr() as u64, pages as u64)?;
        entries.iter().enumerate().all(|(page, there)| *there == (page % 2 == 1)).then_some(map)
    }

    /// For `n` host pages from `address`: is there anything?
    fn entries(&self, address: u64, n: u64) -> Option<Vec<bool>> {
        let mut bytes = vec![0; usize::try_from(n).ok()? * 8];
        self.file.read_exact_at(&mut bytes, address / self.host_page * 8).ok()?;
        let entry = |b: &[u8]| u64::from_ne_bytes(b.try_into().unwrap_or_default()) & PRESENT_OR_SWAPPED != 0;
        Some(bytes.chunks_exact(8).map(entry).collect())
    }

    /// For `pages` guest pages from `address`: was it ever touched?
    fn touched(&self, address: u64, pages: u64) -> Option<Vec<bool>> {
        let each = self.host_page / PAGE_SIZE;
        if each == 0 || !address.is_multiple_of(self.host_page) {
            return None;
        }
        let entries = self.entries(address, pages.div_ceil(each))?;
        Some((0..pages).map(|page| entries[(page / each) as usize]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Region, WriteTracker};
    use super::*;
    use std::sync::Arc;
    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

    const LEN: u64 = 4 << 20;

    fn touch_and_ask(ram: GuestRam) -> Option<Vec<u64>> {
        ram.write_slice(&[1], GuestAddress(5 * PAGE_SIZE)).unwrap();
        ram.write_slice(&[1], GuestAddress(LEN - 1)).unwrap();
        let regions = [Region { gpa: 0, len: LEN }];
        let (mut set, mut zero) = (PageSet::full(&regions), PageSet::empty(&regions));
        untouched(&ram, &mut set, &mut zero);
        assert_eq!(set.count() + zero.count(), LEN / PAGE_SIZE);
        assert!(set.contains(5) && set.contains(LEN / PAGE_SIZE - 1));
        (zero.count() > 0).then(|| set.runs(1).map(|r| r.page).collect())
    }

    #[test]
    fn only_touched_pages_remain() {
        let name = "only_touched_pages_remain";
        let anonymous: GuestMemoryMmap<WriteTracker> =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), LEN as usize)]).unwrap();
        let each = rustix::param::page_size() as u64 / PAGE_SIZE;
        match touch_and_ask(Arc::new(anonymous)) {
            // Huge pages may make more of them exist, never fewer.
            Some(pages) => assert!(pages.len() as u64 >= 2 * each.min(2)),
            None => eprintln!("SKIPPED {name}: the kernel does not tell which pages exist"),
        }
        let file = tempfile(b"");
        file.set_len(LEN).unwrap();
        file.write_all_at(&[7; 10], 100 * PAGE_SIZE).unwrap();
        let ranges = [(GuestAddress(0), LEN as usize, Some(FileOffset::new(file, 0)))];
        let shared: GuestMemoryMmap<WriteTracker> = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        if let Some(pages) = touch_and_ask(Arc::new(shared)) {
            assert!(pages.contains(&100), "data in the file is not zero");
        }
    }

    fn tempfile(bytes: &[u8]) -> File {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.write_all_at(bytes, 0).unwrap();
        file
    }
}
