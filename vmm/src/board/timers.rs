//! Timers of board devices, on the device thread: one timerfd for whoever expires next.

use super::clock::BoardClock;
use super::clock::Clock;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// A timer of the host's, watched by the device thread. Nobody waits at it: whoever was told that it has fired may come when it
/// has been set anew, by what was told in the same breath, and then it has not.
pub struct Alarm(OwnedFd);

impl Alarm {
    /// One that is not set.
    ///
    /// # Errors
    /// The host gives no timerfd.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Alarm(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Has it fire once, so much later; `None` takes that back.
    ///
    /// # Errors
    /// The host's.
    pub fn set(&self, after: Option<Duration>) -> io::Result<()> {
        // No time at all would take it back.
        let after = after.map_or(Duration::ZERO, |d| d.max(Duration::from_nanos(1)));
        let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
        let seconds = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
        let value = Timespec { tv_sec: seconds, tv_nsec: after.subsec_nanos().into() };
        let once = Itimerspec { it_interval: nothing, it_value: value };
        Ok(timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).map(drop)?)
    }

    /// Whether it has fired since it was set.
    pub fn fired(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

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
    timer: Alarm,
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
        Ok(Timers { devices, clock, waker, timer: Alarm::new()?, running: false })
    }

    /// Lets them run, or holds them. The clock is started before and stopped after. Who is returned has the deadlines looked
    /// at, once the lock on these timers is given up, for which its thread would wait.
    #[must_use]
    pub fn set_running(&mut self, running: bool) -> Waker {
        self.running = running;
        self.waker.clone()
    }

    /// The waker's or the timer's descriptor has something to say, or had when its turn was settled.
    fn told(&mut self, fd: RawFd) {
        if fd == self.waker.0.as_raw_fd() {
            let _ = self.waker.0.read();
        } else if self.timer.fired() && self.running {
            let now = self.clock.now_ns();
            for device in &self.devices {
                let mut device = device.lock().unwrap_or_else(|e| e.into_inner());
                device.expire(now);
            }
        }
        self.look();
    }

    fn look(&mut self) {
        if !self.running {
            let _ = self.timer.set(None);
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
        let after = next.map(|at| Duration::from_nanos(at.saturating_sub(now)));
        if let Err(e) = self.timer.set(after) {
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
        self.told(events.fd());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expires once.
    struct Once(Option<u64>);

    impl Timed for Once {
        fn deadline_ns(&self) -> Option<u64> {
            self.0
        }

        fn expire(&mut self, now_ns: u64) {
            assert!(self.0.take().is_some_and(|d| d <= now_ns), "too early, or nothing to expire");
        }
    }

    #[test]
    fn news_of_a_timer_that_was_set_anew_is_not_waited_for() {
        let clock = Arc::new(BoardClock::default());
        clock.start(0);
        let device = Arc::new(Mutex::new(Once(None)));
        let mut timers = Timers::new(vec![device.clone()], clock, Waker::new().unwrap()).unwrap();
        let (timer, waker) = (timers.timer.as_raw_fd(), timers.waker.0.as_raw_fd());
        timers.set_running(true).wake();
        device.lock().unwrap().0 = Some(1);
        timers.told(waker);
        assert_eq!(device.lock().unwrap().0, None, "its time has come");
        // Taken back, and far away: both are told of all the same, if they were due when the news was gathered.
        timers.told(timer);
        device.lock().unwrap().0 = Some(u64::MAX);
        timers.told(waker);
        timers.told(timer);
        assert_eq!(device.lock().unwrap().0, Some(u64::MAX));
    }

    #[test]
    fn an_alarm_fires_once() {
        let alarm = Alarm::new().unwrap();
        assert!(!alarm.fired());
        for after in [Duration::ZERO, Duration::from_nanos(1), Duration::from_millis(1)] {
            alarm.set(Some(after)).unwrap();
            while !alarm.fired() {
                std::thread::yield_now();
            }
            assert!(!alarm.fired());
        }
        alarm.set(Some(Duration::MAX)).unwrap();
        assert!(!alarm.fired());
        alarm.set(None).unwrap();
        assert!(!alarm.fired());
    }
}
