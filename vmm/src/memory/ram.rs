//! Where guest RAM lies in the guest's address space, and how it is mapped in this process.

use super::shared::{SharedRam, memory_file};
use super::{GuestRam, PAGE_SIZE, WriteTracker};
use rustix::mm::{MprotectFlags, mprotect};
use std::fs::File;
use std::sync::Arc;
use vm_memory::bitmap::NewBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// First address of the gap below 4 GiB, which holds the devices' windows.
pub const GAP_START: u64 = 0xd000_0000;
/// First address above the gap.
pub const GAP_END: u64 = 1 << 32;
/// Least RAM: 1 MiB.
pub const MIN_RAM: u64 = 1 << 20;
/// Most RAM: 64 GiB.
pub const MAX_RAM: u64 = 64 << 30;

/// What RAM is made of.
#[derive(Debug, Clone, Default)]
pub enum Backing {
    /// Anonymous memory.
    #[default]
    Anonymous,
    /// A memory file, which another process may map too.
    Shared,
    /// A snapshot's memory file, mapped copy-on-write: the regions one after the other from its beginning.
    Private(Arc<File>),
    /// Already mapped, with the regions of [`layout`].
    Mapped(GuestRam),
    /// Another process's, whose guest it still is: readable only, until [`make_writable`].
    HandedOver(SharedRam),
}

/// Why RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// An impossible size.
    #[error("guest memory of {bytes} bytes: it must be a multiple of 1 MiB, from 1 MiB to 64 GiB")]
    Size {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The memory file could not be made.
    #[error("guest memory: no memory file: {0}")]
    File(std::io::Error),
    /// It could not be mapped.
    #[error("guest memory: {len} bytes at {gpa:#x} could not be mapped: {reason}")]
    Map {
        /// Guest-physical start.
        gpa: u64,
        /// Bytes.
        len: u64,
        /// The host's reason.
        reason: String,
    },
}

/// The regions of `bytes` of RAM: (guest-physical start, length).
///
/// # Errors
/// An impossible size.
pub fn layout(bytes: u64) -> Result<Vec<(u64, u64)>, RamError> {
    if !(MIN_RAM..=MAX_RAM).contains(&bytes) || !bytes.is_multiple_of(MIN_RAM) {
        return Err(RamError::Size { bytes });
    }
    let low = bytes.min(GAP_START);
    let high = bytes - low;
    Ok(std::iter::once((0, low)).chain((high > 0).then_some((GAP_END, high))).collect())
}

/// Maps `bytes` of RAM.
///
/// # Errors
/// An impossible size, or the host's refusal.
pub fn allocate(bytes: u64, backing: &Backing) -> Result<GuestRam, RamError> {
    if let Backing::Mapped(ram) = backing {
        let found: Vec<_> = ram.iter().map(|r| (r.start_addr().0, r.len())).collect();
        return if found == layout(bytes)? { Ok(ram.clone()) } else { Err(RamError::Size { bytes }) };
    }
    let mut regions = Vec::new();
    let shared = match backing {
        Backing::Shared => Some(Arc::new(memory_file("godwit-ram", bytes).map_err(RamError::File)?)),
        _ => None,
    };
    let mut offset = 0;
    for (gpa, len) in layout(bytes)? {
        let fail = |reason: String| RamError::Map { gpa, len, reason };
        let size = usize::try_from(len).map_err(|e| fail(e.to_string()))?;
        debug_assert!(len.is_multiple_of(PAGE_SIZE));
        let builder = MmapRegionBuilder::new_with_bitmap(size, WriteTracker::with_len(size))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        let mapping = match (backing, &shared) {
            (Backing::Private(file), _) => builder
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset)),
            (Backing::HandedOver(shared), _) => {
                let at = shared.offset(gpa, len).ok_or_else(|| fail("it was not handed over".into()))?;
                builder
                    .with_mmap_prot(libc::PROT_READ)
                    .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                    .with_file_offset(FileOffset::from_arc(Arc::clone(&shared.file), at))
            }
            (_, Some(file)) => builder
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset)),
            _ => builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
        }
        .build()
        .map_err(|e| fail(e.to_string()))?;
        offset += len;
        let region = GuestRegionMmap::new(mapping, GuestAddress(gpa))
            .ok_or_else(|| fail("it does not fit the guest's address space".into()))?;
        regions.push(region);
    }
    let ram = GuestMemoryMmap::from_regions(regions).map_err(|e| RamError::Map {
        gpa: 0,
        len: bytes,
        reason: e.to_string(),
    })?;
    Ok(Arc::new(ram))
}

/// RAM that was handed over ([`Backing::HandedOver`]) is this process's from here on. Until then a write to it ends this
/// process: better that than a guest at the source whose memory has changed under it.
///
/// # Errors
/// The host's.
pub fn make_writable(ram: &GuestRam) -> std::io::Result<()> {
    for region in ram.iter() {
        let flags = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the range is one whole mapping of `ram`, which keeps it mapped; more access breaks no one's assumption.
        unsafe { mprotect(region.as_ptr().cast(), region.len() as usize, flags)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn ram_leaves_the_gap_free() {
        assert_eq!(layout(1 << 20).unwrap(), [(0, 1 << 20)]);
        assert_eq!(layout(GAP_START).unwrap(), [(0, GAP_START)]);
        assert_eq!(layout(4 << 30).unwrap(), [(0, GAP_START), (GAP_END, (4 << 30) - GAP_START)]);
        for bytes in [0, 1 << 19, (1 << 20) + 4096, (64 << 30) + (1 << 20)] {
            assert!(layout(bytes).is_err(), "{bytes}");
        }
    }

    #[test]
    fn every_backing_reads_as_zero_and_holds_what_is_written() {
        for backing in [Backing::Anonymous, Backing::Shared] {
            let ram = allocate(4 << 20, &backing).unwrap();
            let at = GuestAddress(0x12_3456);
            ram.write_slice(b"abc", at).unwrap();
            let mut buf = [0xff; 4];
            ram.read_slice(&mut buf, at).unwrap();
            assert_eq!(&buf, b"abc\0");
            assert_eq!(ram.num_regions(), 1);
        }
    }
}
