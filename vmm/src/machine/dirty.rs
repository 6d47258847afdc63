//! Which pages were written: the backend's log and the VMM's own writes, merged behind one method.

use super::{Machine, MachineError};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::{DirtyPages, PAGE_SIZE};

impl Machine {
    /// Bitmaps for [`Self::take_dirty_log`], one a region of [`super::Shape`], all clear.
    pub fn clean_bitmaps(&self) -> Vec<DirtyPages> {
        let words = |(_, len): &(u64, u64)| vec![0; (len / PAGE_SIZE).div_ceil(64) as usize];
        self.shape.regions.iter().map(words).collect()
    }

    /// Begins logging writes, of vCPUs and of devices. Every write from here on is in some later log.
    ///
    /// # Errors
    /// The backend's; nothing is logged then.
    pub fn start_dirty_log(&mut self) -> Result<(), MachineError> {
        self.ram.iter().for_each(|r| r.bitmap().set_logging(true));
        for slot in 0..self.shape.regions.len() as u32 {
            if let Err(e) = self.vm.set_dirty_log(slot, true) {
                self.stop_dirty_log();
                return Err(e.into());
            }
        }
        Ok(())
    }

    /// Ends it.
    pub fn stop_dirty_log(&mut self) {
        for slot in 0..self.shape.regions.len() as u32 {
            if let Err(e) = self.vm.set_dirty_log(slot, false) {
                tracing::warn!("the dirty log of slot {slot} goes on: {e}");
            }
        }
        self.ram.iter().for_each(|r| r.bitmap().set_logging(false));
    }

    /// ORs the pages written since the last call into `bitmaps` and clears the log. The guest may be running.
    ///
    /// # Errors
    /// The backend's.
    pub fn take_dirty_log(&mut self, bitmaps: &mut [DirtyPages]) -> Result<(), MachineError> {
        for ((slot, region), bitmap) in (0..).zip(self.ram.iter()).zip(bitmaps) {
            self.vm.take_dirty_log(slot, bitmap)?;
            region.bitmap().take(bitmap);
        }
        Ok(())
    }
}
