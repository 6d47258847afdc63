//! How a vCPU that is anywhere (in the guest, in HLT, in a device callback, outside `run`) is made to notice something.
//!
//! ```text
//!   any thread:   flag |= why;  immediate_exit = 1;  signal to the thread inside `run`, if there is one
//!   vCPU thread:  immediate_exit = 0;  take flags;  …;  KVM_RUN
//! ```
//!
//! A flag set after the vCPU took them is followed by `immediate_exit = 1` before KVM_RUN reads that byte, or by the signal
//! while it is inside: no order of the two threads loses a kick.

use crate::page::RunPage;
use crate::sys;
use godwit_sdk::Kick;
use kvm_ioctls::VcpuFd;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// `run` must return.
pub(crate) const KICK: u32 = 1;
/// The ExtINT level has changed.
pub(crate) const EXTINT: u32 = 2;
/// An NMI is to be raised.
pub(crate) const NMI: u32 = 4;

/// What of a vCPU all threads may touch.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: u32,
    pub(crate) fd: VcpuFd,
    pub(crate) page: RunPage,
    pub(crate) signal: i32,
    flags: AtomicU32,
    /// Thread inside `run`; 0: none.
    tid: AtomicI32,
}

impl Shared {
    pub(crate) fn new(id: u32, fd: VcpuFd, page: RunPage, signal: i32) -> Self {
        Shared { id, fd, page, signal, flags: AtomicU32::new(0), tid: AtomicI32::new(0) }
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The calling thread enters `run`, or leaves it.
    pub(crate) fn enter(&self) {
        self.tid.store(sys::gettid(), Ordering::SeqCst);
    }

    /// See [`Self::enter`].
    pub(crate) fn leave(&self) {
        self.tid.store(0, Ordering::SeqCst);
    }

    /// Makes the vCPU look at its flags soon. Signal-safe.
    pub(crate) fn interrupt(&self, why: u32) {
        let before = self.flags.fetch_or(why, Ordering::SeqCst);
        self.page.set_immediate_exit(true);
        if before & why != 0 {
            // Whoever set it first sends the signal; more would only disturb the board's system calls.
            return;
        }
        let tid = self.tid.load(Ordering::SeqCst);
        if tid != 0 && tid != sys::gettid() {
            sys::tgkill(tid, self.signal);
        }
    }

    /// Takes all flags. Called by the vCPU thread before each KVM_RUN.
    pub(crate) fn take(&self) -> u32 {
        self.page.set_immediate_exit(false);
        self.flags.swap(0, Ordering::SeqCst)
    }

    /// Puts flags back that the vCPU could not act on yet.
    pub(crate) fn put_back(&self, flags: u32) {
        self.flags.fetch_or(flags, Ordering::SeqCst);
    }
}

impl Kick for Shared {
    fn kick(&self) {
        self.interrupt(KICK);
    }
}
