//! Guest RAM as a migration reads and fills it.

use super::machine::{Fault, Memory};
use crate::memory::{WriteTracker, ZEROS};
use std::os::unix::fs::FileExt;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

impl Memory for GuestMemoryMmap<WriteTracker> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        Ok(self.read_slice(buf, GuestAddress(gpa))?)
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Fault> {
        // Into the file, where there is one: that neither maps nor clears a page that is about to be filled, and takes half the
        // time. It is the same memory.
        if let Some(region) = self.find_region(GuestAddress(gpa))
            && let Some(file) = region.file_offset()
            && region.flags() & libc::MAP_SHARED != 0
            && gpa - region.start_addr().0 + bytes.len() as u64 <= region.len()
        {
            let offset = gpa - region.start_addr().0;
            file.file().write_all_at(bytes, file.start() + offset)?;
            region.bitmap().mark_dirty(offset as usize, bytes.len());
            return Ok(());
        }
        Ok(self.write_slice(bytes, GuestAddress(gpa))?)
    }

    fn zero(&self, gpa: u64, len: u64) -> Result<(), Fault> {
        let mut at = 0;
        while at < len {
            let part = (len - at).min(ZEROS.len() as u64);
            self.write_slice(&ZEROS[..part as usize], GuestAddress(gpa + at))?;
            at += part;
        }
        Ok(())
    }
}
