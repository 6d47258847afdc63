//! Time as devices see it: nanoseconds that stand still while the machine is paused.

use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A device's only clock.
pub trait Clock: Send + Sync {
    /// Nanoseconds of guest time since the machine was first made, on any host. Never goes back.
    fn now_ns(&self) -> u64;
    /// UTC in nanoseconds since 1970, for the RTC.
    fn utc_ns(&self) -> u64;
}

/// Guest time at the instant the clock was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoardClockV1 {
    /// Nanoseconds since the machine was first made.
    pub now_ns: u64,
}

impl Section for BoardClockV1 {
    const KIND: &'static str = "board.clock";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        // Half the range: two and a half centuries of up-time, and room to add.
        if self.now_ns >> 63 != 0 {
            return Err(StateError::invalid::<Self>("now_ns is out of range"));
        }
        Ok(())
    }
}

struct Running {
    /// Guest time when it was last started or stopped.
    base_ns: u64,
    /// Host time when it was started; `None` while stopped.
    since: Option<Instant>,
}

/// The machine's clock. New ones are stopped at 0.
pub struct BoardClock {
    inner: Mutex<Running>,
}

impl Default for BoardClock {
    fn default() -> Self {
        BoardClock { inner: Mutex::new(Running { base_ns: 0, since: None }) }
    }
}

impl BoardClock {
    fn lock(&self) -> MutexGuard<'_, Running> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs it, `advance_ns` later than it stopped.
    pub fn start(&self, advance_ns: u64) {
        let mut r = self.lock();
        if r.since.is_none() {
            r.base_ns = r.base_ns.saturating_add(advance_ns);
            r.since = Some(Instant::now());
        }
    }

    /// Stops it.
    pub fn stop(&self) {
        let mut r = self.lock();
        if let Some(since) = r.since.take() {
            r.base_ns = r.base_ns.saturating_add(since.elapsed().as_nanos() as u64);
        }
    }

    /// Its state, when stopped.
    pub fn save(&self) -> BoardClockV1 {
        BoardClockV1 { now_ns: self.now_ns() }
    }

    /// Sets the stopped clock.
    pub fn restore(&self, state: BoardClockV1) {
        *self.lock() = Running { base_ns: state.now_ns, since: None };
    }
}

impl Clock for BoardClock {
    fn now_ns(&self) -> u64 {
        let r = self.lock();
        r.base_ns.saturating_add(r.since.map_or(0, |s| s.elapsed().as_nanos() as u64))
    }

    fn utc_ns(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_still_while_stopped() {
        let c = BoardClock::default();
        assert_eq!(c.now_ns(), 0);
        c.start(5);
        assert!(c.now_ns() >= 5);
        c.stop();
        let at = c.now_ns();
        assert_eq!(c.save().now_ns, at);
        c.restore(BoardClockV1 { now_ns: 100 });
        assert_eq!(c.now_ns(), 100);
    }
}
