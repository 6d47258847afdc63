//! Guest time: the TSC and kvmclock, two readings of one monotonic clock that can be stopped.

use crate::shared::lock;
use godwit_state::ClockV1;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The VM's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    running: Running,
    realtime_ns: u64,
}

/// A copy of the clock that a vCPU reads without locks while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Running {
    pub tsc_khz: u64,
    tsc: u64,
    kvmclock_ns: u64,
    /// When it was started; none while it stands still.
    since: Option<Instant>,
}

fn scale(ns: u64, khz: u64) -> u64 {
    (u128::from(ns) * u128::from(khz) / 1_000_000) as u64
}

impl Running {
    fn elapsed(&self) -> u64 {
        self.since.map_or(0, |t| t.elapsed().as_nanos() as u64)
    }

    /// kvmclock in nanoseconds.
    pub(crate) fn now_ns(&self) -> u64 {
        self.kvmclock_ns.wrapping_add(self.elapsed())
    }

    /// The VM's TSC.
    pub(crate) fn tsc(&self) -> u64 {
        self.tsc.wrapping_add(scale(self.elapsed(), self.tsc_khz))
    }

    /// Both, at one instant.
    pub(crate) fn both(&self) -> (u64, u64) {
        let e = self.elapsed();
        (self.tsc.wrapping_add(scale(e, self.tsc_khz)), self.kvmclock_ns.wrapping_add(e))
    }

    /// When the TSC will read `tsc`, on kvmclock.
    pub(crate) fn ns_of_tsc(&self, tsc: u64) -> u64 {
        let ahead = tsc.wrapping_sub(self.tsc) as i64;
        if ahead <= 0 {
            return self.kvmclock_ns;
        }
        let ns = u128::from(ahead as u64) * 1_000_000;
        let ns = u64::try_from(ns.div_ceil(u128::from(self.tsc_khz))).unwrap_or(u64::MAX);
        self.kvmclock_ns.saturating_add(ns)
    }
}

impl Clock {
    pub(crate) fn new(tsc_khz: u64) -> Self {
        let running = Running { tsc_khz, tsc: 0, kvmclock_ns: 0, since: None };
        Clock { state: Mutex::new(State { running, realtime_ns: 0 }) }
    }

    pub(crate) fn running(&self) -> Running {
        lock(&self.state).running
    }

    pub(crate) fn stop(&self) {
        let mut s = lock(&self.state);
        if s.running.since.is_some() {
            let (tsc, ns) = s.running.both();
            s.running = Running { tsc, kvmclock_ns: ns, since: None, ..s.running };
            s.realtime_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        }
    }

    pub(crate) fn start(&self, advance_ns: u64) {
        let mut s = lock(&self.state);
        if s.running.since.is_none() {
            s.running.tsc = s.running.tsc.wrapping_add(scale(advance_ns, s.running.tsc_khz));
            s.running.kvmclock_ns = s.running.kvmclock_ns.wrapping_add(advance_ns);
            s.running.since = Some(Instant::now());
        }
    }

    pub(crate) fn save(&self) -> ClockV1 {
        let s = lock(&self.state);
        let (tsc, kvmclock_ns) = s.running.both();
        ClockV1 { tsc_khz: s.running.tsc_khz, tsc, kvmclock_ns, realtime_ns: s.realtime_ns }
    }

    pub(crate) fn load(&self, c: &ClockV1) {
        *lock(&self.state) = State {
            running: Running { tsc_khz: c.tsc_khz, tsc: c.tsc, kvmclock_ns: c.kvmclock_ns, since: None },
            realtime_ns: c.realtime_ns,
        };
    }
}

/// Multiplier and shift by which a guest turns TSC ticks into nanoseconds (Linux, pvclock-abi.h).
pub(crate) fn pvclock_scale(tsc_khz: u64) -> (u32, i8) {
    // ns = ((ticks << shift) * mul) >> 32, with mul's top bit set.
    let mut mul = (1_000_000u128 << 64) / u128::from(tsc_khz.max(1));
    let mut shift = 0i8;
    while mul >= 1 << 64 {
        mul >>= 1;
        shift += 1;
    }
    while mul < 1 << 63 {
        mul <<= 1;
        shift -= 1;
    }
    ((mul >> 32) as u32, shift)
}
