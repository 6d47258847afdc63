//! What a machine must be able to do to leave, and to arrive. `control` implements these over the real one.

use super::offer::{Capabilities, Offer};
use crate::memory::{Missing, PageSet, Region, SharedRam};
use std::sync::Arc;

/// A machine's reason for not doing its part: text for the operator.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Guest memory: what pages are copied from and to, by any thread.
pub trait Memory: Send + Sync {
    /// Copies out. The guest may be writing it at the same time.
    ///
    /// # Errors
    /// The range is not guest memory.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault>;
    /// Puts bytes in.
    ///
    /// # Errors
    /// The range is not guest memory.
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Fault>;
    /// Makes it zero.
    ///
    /// # Errors
    /// The range is not guest memory.
    fn zero(&self, gpa: u64, len: u64) -> Result<(), Fault>;
}

/// A running machine that can be sent.
///
/// The order of calls where memory is copied: `offer`, `start_logging`, then `take_dirty` many times while `memory` is read, `pause`,
/// `save`, a last `take_dirty`, `commit`. Where it is handed over: `offer`, `hand_over`, `pause`, `save`, `commit`. Until `commit`,
/// `abandon` may come at any point and must leave the guest running as if nothing had been.
pub trait Source: Send {
    /// The machine after [`Source::commit`]: it can be described and ended, not resumed.
    type Gone: Send;

    /// What the destination needs to know to judge and to build.
    ///
    /// # Errors
    /// Something in this machine cannot be moved; the text names it.
    fn offer(&self) -> Result<Offer, Fault>;
    /// Begins logging which pages are written, by vCPUs and by devices. From here on every write is in some later log.
    ///
    /// # Errors
    /// The backend's.
    fn start_logging(&mut self) -> Result<(), Fault>;
    /// Adds the pages written since the last call (or since `start_logging`) to `pages`, and clears the log.
    ///
    /// # Errors
    /// The backend's.
    fn take_dirty(&mut self, pages: &mut PageSet) -> Result<(), Fault>;
    /// What goes along besides memory and is copied like it, as regions of addresses above any memory: disks. Its pages are in
    /// [`Source::memory`], [`Source::take_dirty`] and [`Source::untouched`] too. The destination's machine has the same.
    fn volumes(&self) -> Vec<Region> {
        Vec::new()
    }
    /// Its memory, to read from.
    fn memory(&self) -> Arc<dyn Memory>;
    /// Its memory for another process on this machine to map.
    ///
    /// # Errors
    /// Why that cannot be done: it is copied then.
    fn hand_over(&self) -> Result<SharedRam, Fault> {
        Err("this machine's memory cannot be shared".into())
    }
    /// Pages of `pages` that have never been touched and so are known to read as zeros may be taken out of the set and added
    /// to `zero`: they are not read at all.
    fn untouched(&self, pages: &mut PageSet, zero: &mut PageSet) {
        let _ = (pages, zero);
    }
    /// Slows the vCPUs down: `permille` (0 to 999) thousandths of the time they stand still.
    ///
    /// # Errors
    /// The machine's.
    fn throttle(&mut self, permille: u16) -> Result<(), Fault>;
    /// Stops vCPUs, then the clock, and drains devices.
    ///
    /// # Errors
    /// The guest still runs, or `abandon` will make it run.
    fn pause(&mut self) -> Result<(), Fault>;
    /// The state container of the paused machine. May write guest memory: the last dirty log is taken after it.
    ///
    /// # Errors
    /// Something cannot be saved.
    fn save(&mut self) -> Result<Vec<u8>, Fault>;
    /// Ends an attempt that did not come to `commit`: no throttle, logging as it was, `taken` (all pages that `take_dirty`
    /// gave away) marked dirty again for whoever else keeps dirty bits, and the guest running if it was.
    ///
    /// # Errors
    /// The guest could not be made to run: it stays paused and this says why.
    fn abandon(&mut self, taken: &PageSet) -> Result<(), Fault>;
    /// Gives the guest away.
    fn commit(self) -> Self::Gone;
}

/// Makes the machine that a guest will arrive in.
pub trait Builder {
    /// What it makes.
    type Target: Target;
    /// What this end can take.
    fn capabilities(&self) -> Capabilities;
    /// Builds the machine, nothing running, its memory all zero or the one that was handed over: the source's guest runs in that
    /// until [`Target::run`], and nothing here may write it before.
    ///
    /// # Errors
    /// Sent to the source as a refusal.
    fn build(self, offer: &Offer, memory: Option<SharedRam>) -> Result<Self::Target, Fault>;
}

/// A machine that is being filled.
pub trait Target {
    /// The machine with its guest running.
    type Running;
    /// What comes along besides memory: see [`Source::volumes`].
    fn volumes(&self) -> Vec<Region> {
        Vec::new()
    }
    /// Its memory, to fill.
    fn memory(&self) -> Arc<dyn Memory>;
    /// Whether pages may come after [`Target::run`].
    ///
    /// # Errors
    /// Why not: sent to the source.
    fn can_miss(&self) -> Result<(), Fault> {
        Err("pages cannot come later here".into())
    }
    /// From here on the pages of `absent`, whatever was written there, and all that were never written are missing: who touches
    /// one waits for it.
    ///
    /// # Errors
    /// The host's.
    fn miss(&mut self, absent: &PageSet) -> Result<Missing, Fault> {
        let _ = absent;
        Err("pages cannot come later here".into())
    }
    /// Verifies a state container and loads it into the backend and the devices, all of it. All pages are in place, or
    /// missing in the sense of [`Target::miss`].
    ///
    /// # Errors
    /// The state is refused; nothing runs.
    fn load(&mut self, container: &[u8]) -> Result<(), Fault>;
    /// Runs the guest, its time `advance_ns` later than when it was stopped. Everything that may fail should have
    /// failed in `load`.
    ///
    /// # Errors
    /// The guest does not run and will not.
    fn run(self, advance_ns: u64) -> Result<Self::Running, Fault>;
}
