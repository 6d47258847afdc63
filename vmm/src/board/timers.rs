//! Timers of board devices, on the device thread: one timerfd for whoever expires next.

use super::clock::BoardClock;
use super::clock::Clock;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

/// A device that something happens to by itself.
pub trait Timed: Send {
    /// Guest time of the next event, if there is one.
    fn deadline_ns(&self) -> Option<u64>;
    /// It is at least that late.
    fn expire(&mut self, now_ns: u64);
}

/// Says that a deadline has changed. Cheap to clone.
#[derive(Clone)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// A waker for one set of timers.
    ///
    /// # Errors
    /// The host gives no eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(Waker(Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?)))
    }

    /// Has the deadlines looked at again.
    pub fn wake(&self) {
        // Full means that a wake-up is due anyway.
        let _ = self.0.write(1);
    }
}

/// The event manager's subscriber.
pub struct Timers {
    devices: Vec<Arc<Mutex<dyn Timed>>>,
    clock: Arc<BoardClock>,
    waker: Waker,
    timer: TimerFd,
    running: bool,
}

impl Timers {
    /// Timers of `devices`, stopped.
    ///
    /// # Errors
    /// The host gives no timerfd.
    pub fn new(
        devices: Vec<Arc<Mutex<dyn Timed>>>,
        clock: Arc<BoardClock>,
        waker: Waker,
    ) -> io::Result<Self> {
        Ok(Timers { devices, clock, waker, timer: TimerFd::new()?, running: false })
    }

    /// Lets them run, or holds them. The clock is started before and stopped after.
    pub fn set_running(&mut self, running: bool) {
        self.running = running;
        self.waker.wake();
    }

    fn look(&mut self) {
        if !self.running {
            let _ = self.timer.clear();
            return;
        }
        let mut next: Option<u64> = None;
        let now = self.clock.now_ns();
        for device in &self.devices {
            let mut device = device.lock().unwrap_or_else(|e| e.into_inner());
            if device.deadline_ns().is_some_and(|d| d <= now) {
                device.expire(now);
            }
            next = next.into_iter().chain(device.deadline_ns()).min();
        }
        let set = match next {
            Some(at) => self.timer.reset(Duration::from_nanos(at.saturating_sub(now).max(1)), None),
            None => self.timer.clear(),
        };
        if let Err(e) = set {
            tracing::error!("board timers: {e}");
        }
    }
}

impl MutEventSubscriber for Timers {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in [self.timer.as_raw_fd(), self.waker.0.as_raw_fd()] {
            if let Err(e) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!("board timers: {e}");
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if events.fd() == self.waker.0.as_raw_fd() {
            let _ = self.waker.0.read();
        } else {
            let _ = self.timer.wait();
            let now = self.clock.now_ns();
            if self.running {
                for device in &self.devices {
                    let mut device = device.lock().unwrap_or_else(|e| e.into_inner());
                    device.expire(now);
                }
            }
        }
        self.look();
    }
}
