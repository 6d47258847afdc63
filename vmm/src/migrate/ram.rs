//! The memory half of a moving machine: guest RAM with its two dirty logs, the backend's and the VMM's own.
//!
//! [`Live`] makes a [`Source`] of guest RAM and an [`Owner`]: `control`'s handle to the thread that owns the machine.

use super::machine::{Fault, Source};
use super::offer::Offer;
use crate::memory::{GuestRam, PageSet, Region, untouched};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// The machine without its memory. Memory slot `i` is region `i`. What each method must do is said at [`Source`].
pub trait Owner: Send {
    /// The machine after the commit.
    type Gone: Send;
    /// See [`Source::offer`].
    #[allow(clippy::missing_errors_doc)]
    fn offer(&self) -> Result<Offer, Fault>;
    /// Starts or stops the backend's log of all slots.
    #[allow(clippy::missing_errors_doc)]
    fn set_dirty_log(&mut self, on: bool) -> Result<(), Fault>;
    /// ORs the backend's log of a slot into `bitmap` and clears it.
    #[allow(clippy::missing_errors_doc)]
    fn take_dirty_log(&mut self, slot: u32, bitmap: &mut [u64]) -> Result<(), Fault>;
    /// See [`Source::throttle`].
    #[allow(clippy::missing_errors_doc)]
    fn throttle(&mut self, percent: u8) -> Result<(), Fault>;
    /// See [`Source::pause`].
    #[allow(clippy::missing_errors_doc)]
    fn pause(&mut self) -> Result<(), Fault>;
    /// See [`Source::save`].
    #[allow(clippy::missing_errors_doc)]
    fn save(&mut self) -> Result<Vec<u8>, Fault>;
    /// Runs the guest again if it ran before [`Owner::pause`]. Also called when `pause` failed or was never called.
    #[allow(clippy::missing_errors_doc)]
    fn resume(&mut self) -> Result<(), Fault>;
    /// See [`Source::commit`].
    fn commit(self) -> Self::Gone;
}

/// The regions of guest RAM.
pub fn regions(ram: &GuestRam) -> Vec<Region> {
    ram.iter().map(|r| Region { gpa: r.start_addr().raw_value(), len: r.len() }).collect()
}

/// A running machine about to move.
#[derive(Debug)]
pub struct Live<O> {
    owner: O,
    ram: GuestRam,
    /// Somebody else (diff snapshots) has the logs on all the time.
    keep_logs: bool,
}

impl<O: Owner> Live<O> {
    /// `keep_logs`: dirty logs are on already and stay on if the guest stays.
    pub fn new(owner: O, ram: GuestRam, keep_logs: bool) -> Self {
        Live { owner, ram, keep_logs }
    }
}

impl<O: Owner> Source for Live<O> {
    type Gone = O::Gone;

    fn offer(&self) -> Result<Offer, Fault> {
        self.owner.offer()
    }

    fn start_logging(&mut self) -> Result<(), Fault> {
        if !self.keep_logs {
            self.ram.iter().for_each(|r| r.bitmap().set_logging(true));
            self.owner.set_dirty_log(true)?;
        }
        Ok(())
    }

    fn take_dirty(&mut self, pages: &mut PageSet) -> Result<(), Fault> {
        // The backend's log first: what a device writes after that is in the next one at the latest.
        for (slot, (_, words)) in pages.bitmaps().enumerate() {
            self.owner.take_dirty_log(slot as u32, words)?;
        }
        for (region, (_, words)) in self.ram.iter().zip(pages.bitmaps()) {
            region.bitmap().take(words);
        }
        Ok(())
    }

    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        Ok(self.ram.read_slice(buf, GuestAddress(gpa))?)
    }

    fn untouched(&self, pages: &mut PageSet, zero: &mut PageSet) {
        untouched(&self.ram, pages, zero);
    }

    fn throttle(&mut self, percent: u8) -> Result<(), Fault> {
        self.owner.throttle(percent)
    }

    fn pause(&mut self) -> Result<(), Fault> {
        self.owner.pause()
    }

    fn save(&mut self) -> Result<Vec<u8>, Fault> {
        self.owner.save()
    }

    fn abandon(&mut self, taken: &PageSet) -> Result<(), Fault> {
        // The guest runs again before anything else is put in order.
        let throttled = self.owner.throttle(0);
        self.owner.resume()?;
        throttled?;
        if self.keep_logs {
            for (region, r) in self.ram.iter().zip(regions(&self.ram)) {
                let inside = |gpa: u64| gpa >= r.gpa && gpa - r.gpa < r.len;
                for run in taken.runs(u64::MAX).filter(|run| inside(run.gpa())) {
                    region.bitmap().mark_dirty((run.gpa() - r.gpa) as usize, run.len() as usize);
                }
            }
            return Ok(());
        }
        self.ram.iter().for_each(|r| r.bitmap().set_logging(false));
        self.owner.set_dirty_log(false)
    }

    fn commit(self) -> O::Gone {
        self.owner.commit()
    }
}

/// Puts bytes of a migration into guest RAM.
///
/// # Errors
/// The range is not guest memory.
pub fn write(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), Fault> {
    Ok(ram.write_slice(bytes, GuestAddress(gpa))?)
}

/// Makes guest RAM zero.
///
/// # Errors
/// The range is not guest memory.
pub fn zero(ram: &GuestRam, gpa: u64, len: u64) -> Result<(), Fault> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = 0;
    while at < len {
        let part = (len - at).min(ZEROS.len() as u64);
        ram.write_slice(&ZEROS[..part as usize], GuestAddress(gpa + at))?;
        at += part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::offer::tests::offer;
    use super::*;
    use crate::memory::{PAGE_SIZE, WriteTracker};
    use std::sync::Arc;
    use vm_memory::GuestMemoryMmap;

    /// A backend that has always just written page 2 of slot 1.
    #[derive(Default)]
    struct Fake {
        logging: bool,
        runs: bool,
        percent: u8,
    }
    impl Owner for Fake {
        type Gone = ();
        fn offer(&self) -> Result<Offer, Fault> {
            Ok(offer())
        }
        fn set_dirty_log(&mut self, on: bool) -> Result<(), Fault> {
            self.logging = on;
            Ok(())
        }
        fn take_dirty_log(&mut self, slot: u32, bitmap: &mut [u64]) -> Result<(), Fault> {
            if slot == 1 && self.logging {
                bitmap[0] |= 4;
            }
            Ok(())
        }
        fn throttle(&mut self, percent: u8) -> Result<(), Fault> {
            self.percent = percent;
            Ok(())
        }
        fn pause(&mut self) -> Result<(), Fault> {
            self.runs = false;
            Ok(())
        }
        fn save(&mut self) -> Result<Vec<u8>, Fault> {
            Ok(vec![])
        }
        fn resume(&mut self) -> Result<(), Fault> {
            self.runs = true;
            Ok(())
        }
        fn commit(self) {}
    }

    fn ram() -> GuestRam {
        let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 16)];
        Arc::new(GuestMemoryMmap::<WriteTracker>::from_ranges(&ranges).unwrap())
    }

    #[test]
    fn both_logs_are_taken_and_given_back() {
        for keep_logs in [false, true] {
            let ram = ram();
            if keep_logs {
                ram.iter().for_each(|r| r.bitmap().set_logging(true));
            }
            let owner = Fake { logging: keep_logs, runs: true, percent: 0 };
            let mut live = Live::new(owner, Arc::clone(&ram), keep_logs);
            live.start_logging().unwrap();
            write(&ram, 5 * PAGE_SIZE + 1, b"x").unwrap();
            zero(&ram, 9 * PAGE_SIZE, 2 * PAGE_SIZE).unwrap();
            let mut taken = PageSet::empty(&regions(&ram));
            live.take_dirty(&mut taken).unwrap();
            let high = (1u64 << 32) / PAGE_SIZE;
            let pages: Vec<u64> = taken.runs(1).map(|r| r.page).collect();
            assert_eq!(pages, [5, 9, 10, high + 2]);

            live.throttle(50).unwrap();
            live.pause().unwrap();
            live.abandon(&taken).unwrap();
            assert!(live.owner.runs && live.owner.percent == 0 && live.owner.logging == keep_logs);
            let mut again = PageSet::empty(&regions(&ram));
            live.take_dirty(&mut again).unwrap();
            assert_eq!(again.count(), if keep_logs { 4 } else { 0 });
        }
    }
}
