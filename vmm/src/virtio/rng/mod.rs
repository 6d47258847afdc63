//! Entropy device (virtio 1.2, 5.4): the host kernel's random numbers.

use super::device::{self, Context, DeviceFd, Progress, RestoreError, VirtioDevice};
use super::queue::{QueueError, Served};
use super::ratelimit::{RateLimiter, RateLimiterConfig};
use super::stats::{Counted, Stats};
use event_manager::EventSet;
use godwit_state::{RawSection, Section, StateError};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use std::io;

/// Most bytes for one request; drivers ask for a cache line or a page.
const MAX_REQUEST: u64 = 64 * 1024;
/// Requests in one wake-up.
const BUDGET: usize = 64;

/// `PUT /entropy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {
    /// Limits requests and bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

/// The device remembers nothing; the section says that it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngV1 {}

impl Section for RngV1 {
    const KIND: &'static str = "virtio.rng";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), StateError> {
        Ok(())
    }
}

/// The device.
#[derive(Debug)]
pub struct Rng {
    limiter: RateLimiter,
    stats: Stats,
}

impl Rng {
    /// Makes it.
    ///
    /// # Errors
    /// The host gives no timer for the rate limiter.
    pub fn new(config: &EntropyConfig) -> io::Result<Self> {
        let limiter = RateLimiter::new(&config.rate_limiter.unwrap_or_default())?;
        let counted = ["entropy_event_count", "entropy_bytes", "entropy_rate_limiter_throttled"];
        Ok(Rng { limiter, stats: Stats::new(&counted) })
    }
}

impl VirtioDevice for Rng {
    const TYPE: u32 = 4;

    fn name(&self) -> String {
        "entropy".into()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn fds(&self) -> Vec<DeviceFd> {
        vec![DeviceFd { fd: self.limiter.fd(), events: EventSet::IN, token: 0 }]
    }

    fn queue_event(&mut self, queue: usize, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let (mem, now_ns) = (cx.mem, cx.now_ns);
        cx.queues[queue].serve(mem, cx.interrupt, BUDGET, |chain| {
            let want = chain.writable.len().min(MAX_REQUEST);
            if !self.limiter.allow(want, now_ns) {
                self.stats.count("entropy_rate_limiter_throttled");
                return Ok(Served::Later);
            }
            let mut bytes = vec![0; want as usize];
            // Short only before the host's pool is first seeded; the driver asks again.
            let got = getrandom(&mut bytes[..], GetRandomFlags::NONBLOCK).unwrap_or(0);
            self.stats.count("entropy_event_count");
            self.stats.add("entropy_bytes", got as u64);
            Ok(Served::Used(chain.writable.write(mem, 0, &bytes[..got])? as u32))
        })
    }

    fn event(&mut self, token: u32, _events: EventSet, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        self.event_ignored(token);
        self.queue_event(0, cx)
    }

    fn event_ignored(&mut self, _token: u32) {
        self.limiter.fired();
    }

    fn counted(&self) -> Option<Counted> {
        Some(Counted { group: "entropy".into(), kind: "", counts: self.stats.all().to_vec() })
    }

    fn save(&self) -> RawSection {
        RawSection::mandatory(&RngV1 {})
    }

    fn restore(&mut self, section: &RawSection, _active: bool) -> Result<(), RestoreError> {
        device::section::<RngV1>(section)?;
        Ok(())
    }
}
