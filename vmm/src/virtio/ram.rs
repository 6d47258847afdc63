//! Guest memory as devices see it: `vm-memory`'s, with a short way for what nearly every access is, bytes of one region.

use crate::memory::{GuestRam, TrackedSlice, WriteTracker};
use std::iter::FusedIterator;
use std::ops::Deref;
use vm_memory::guest_memory::{GuestMemoryBackendSliceIterator, GuestMemorySliceIterator, Result};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, Permissions,
    VolatileSlice,
};

type Map = GuestMemoryMmap<WriteTracker>;
type Slice<'a> = VolatileSlice<'a, TrackedSlice<'a>>;

/// Guest memory.
#[derive(Debug, Clone)]
pub struct Ram(GuestRam);

impl From<GuestRam> for Ram {
    fn from(ram: GuestRam) -> Self {
        Ram(ram)
    }
}

impl Deref for Ram {
    type Target = Map;

    fn deref(&self) -> &Map {
        &self.0
    }
}

impl Ram {
    /// The bytes, if they all lie in one region.
    pub(super) fn slice(&self, addr: GuestAddress, count: usize) -> Option<Slice<'_>> {
        let (region, start) = self.0.to_region_addr(addr)?;
        region.get_slice(start, count).ok()
    }
}

impl GuestMemory for Ram {
    type PhysicalMemory = Map;
    type Bitmap = WriteTracker;

    fn check_range(&self, addr: GuestAddress, count: usize, _: Permissions) -> bool {
        self.slice(addr, count).is_some() || GuestMemoryBackend::check_range(&*self.0, addr, count)
    }

    #[allow(refining_impl_trait)]
    fn get_slices(&self, addr: GuestAddress, count: usize, _: Permissions) -> Result<Slices<'_>> {
        if count == 0 {
            return Ok(Slices::One(None));
        }
        Ok(match self.slice(addr, count) {
            Some(slice) => Slices::One(Some(slice)),
            None => Slices::Many(GuestMemoryBackend::get_slices(&*self.0, addr, count)),
        })
    }

    fn physical_memory(&self) -> Option<&Map> {
        Some(&self.0)
    }
}

/// Pieces of guest memory that follow each other.
#[derive(Debug)]
pub enum Slices<'a> {
    /// All of it, or nothing any more.
    One(Option<Slice<'a>>),
    /// One in each region.
    Many(GuestMemoryBackendSliceIterator<'a, Map>),
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<Slice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Slices::One(slice) => slice.take().map(Ok),
            Slices::Many(slices) => slices.next(),
        }
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, TrackedSlice<'a>> for Slices<'a> {
    #[allow(refining_impl_trait)]
    fn stop_on_error(mut self) -> Result<Sound<'a>> {
        match self.next() {
            Some(Err(e)) => Err(e),
            first => Ok(Sound { first: first.and_then(Result::ok), rest: self }),
        }
    }
}

/// Those before the first that is not RAM.
#[derive(Debug)]
pub struct Sound<'a> {
    first: Option<Slice<'a>>,
    rest: Slices<'a>,
}

impl<'a> Iterator for Sound<'a> {
    type Item = Slice<'a>;

    fn next(&mut self) -> Option<Slice<'a>> {
        self.first.take().or_else(|| self.rest.next().and_then(Result::ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::{Segments, iov};
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{Bytes, GuestMemoryError};
    use vmm_sys_util::tempfile::TempFile;

    /// Two regions side by side, then a hole.
    fn ram() -> Ram {
        let ranges = [(GuestAddress(0x1000), 0x4000), (GuestAddress(0x5000), 0x4000)];
        Arc::new(Map::from_ranges(&ranges).unwrap()).into()
    }

    /// Which pages are dirty, by their number.
    fn dirty(ram: &Ram) -> Vec<u64> {
        let page = |n: &u64| {
            let (region, start) = ram.to_region_addr(GuestAddress(n << 12)).unwrap();
            region.bitmap().dirty_at(start.0 as usize)
        };
        (1..9).filter(page).collect()
    }

    fn start_log(ram: &Ram) {
        ram.iter().for_each(|r| r.bitmap().set_logging(true));
    }

    #[test]
    fn every_write_is_logged_wherever_it_lies() {
        for (addr, len, pages) in [
            (0x2ff8, 16, [2, 3].as_slice()),
            (0x4ff8, 16, &[4, 5]),
            (0x5000, 1, &[5]),
            (0x1000, 0x8000, &[1, 2, 3, 4, 5, 6, 7, 8]),
            (0x8fff, 1, &[8]),
            (0x5000, 0, &[]),
        ] {
            let mem = ram();
            start_log(&mem);
            let addr = GuestAddress(addr);
            let bytes: Vec<u8> = (1..=255).cycle().take(len).collect();
            mem.write_slice(&bytes, addr).unwrap();
            assert_eq!(dirty(&mem), pages, "{addr:?} {len:#x}");
            let mut back = vec![0; len];
            mem.read_slice(&mut back, addr).unwrap();
            assert_eq!(back, bytes);
        }
    }

    #[test]
    fn what_a_file_is_read_into_is_logged() {
        let mut file = TempFile::new().unwrap().into_file();
        file.write_all(&[7; 0x3000]).unwrap();
        for (list, pages) in [
            ([(0x2ff0, 32)].as_slice(), [2, 3].as_slice()),
            (&[(0x4f00, 0x200)], &[4, 5]),
            (&[(0x1000, 16), (0x8000, 0x1000)], &[1, 8]),
        ] {
            let mem = ram();
            start_log(&mem);
            let mut segments = Segments::default();
            list.iter().for_each(|&(addr, len)| segments.push(GuestAddress(addr), len));
            let all = segments.len();
            iov::read_at(file.as_fd(), 0, &mem, &segments, all).unwrap();
            assert_eq!(dirty(&mem), pages);
            let mut back = vec![0; all as usize];
            assert_eq!(segments.read(&mem, 0, &mut back).unwrap() as u64, all);
            assert!(back.iter().all(|&b| b == 7));
            // Nothing that is only read is.
            let before = dirty(&mem);
            iov::write_at(file.as_fd(), 0, &mem, &segments, all).unwrap();
            assert_eq!(dirty(&mem), before);
        }
    }

    #[test]
    fn what_is_not_ram_is_refused() {
        let mem = ram();
        let fits = |addr, len| GuestMemory::check_range(&mem, GuestAddress(addr), len, Permissions::Write);
        assert!(fits(0x1000, 0x8000) && fits(0x4fff, 2) && fits(0x8fff, 1));
        assert!(!fits(0xfff, 2) && !fits(0x8fff, 2) && !fits(u64::MAX, 1) && !fits(0x1000, usize::MAX));
        let error = mem.write_slice(&[0; 2], GuestAddress(0x8fff)).unwrap_err();
        assert!(matches!(error, GuestMemoryError::PartialBuffer { .. }), "{error}");
        assert!(mem.write_slice(&[0; 2], GuestAddress(0x9000)).is_err());
    }
}
