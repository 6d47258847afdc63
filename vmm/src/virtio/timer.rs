//! A timer of the host's for devices: a descriptor that the device thread watches.

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Fires once after each time that it is set.
#[derive(Debug)]
pub(super) struct OneShot(OwnedFd);

impl OneShot {
    /// One that is not set.
    ///
    /// # Errors
    /// The host gives no timer.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(OneShot(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// The descriptor: readable once the time has come.
    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Has it fire `ns` nanoseconds from now; 0 takes that back.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn set_ns(&self, ns: u64) -> io::Result<()> {
        let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as _ };
        let once = Itimerspec { it_interval: nothing, it_value: value };
        Ok(timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).map(drop)?)
    }

    /// Empties the descriptor: whether the time had come.
    pub(super) fn fired(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for OneShot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
