//! Rate limiters: token buckets for bytes and for operations, in Firecracker's configuration form.
//!
//! A bucket holds at most `size` tokens and fills up in `refill_time`; `one_time_burst` are extra tokens that are
//! spent first and never come back. A request passes while there is at least one token and may take the bucket into
//! debt, so that a request larger than the bucket is not starved; the rate over time is exact.

use super::timer::OneShot;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::RawFd;

/// One bucket, as the API and the configuration file give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucketConfig {
    /// Tokens it holds (bytes or operations); 0: no limit.
    pub size: u64,
    /// Extra tokens at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills up; 0: no limit.
    pub refill_time: u64,
}

/// Both buckets; a missing one does not limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucketConfig>,
    /// Operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucketConfig>,
}

#[derive(Debug)]
struct Bucket {
    size: u64,
    refill_ns: u64,
    burst: u64,
    /// Negative: debt.
    tokens: i128,
    /// Guest time up to which tokens were added.
    filled_ns: Option<u64>,
}

impl Bucket {
    fn new(c: &TokenBucketConfig) -> Option<Self> {
        (c.size > 0 && c.refill_time > 0).then(|| Bucket {
            size: c.size,
            refill_ns: c.refill_time.saturating_mul(1_000_000),
            burst: c.one_time_burst.unwrap_or(0),
            tokens: c.size.into(),
            filled_ns: None,
        })
    }

    fn fill(&mut self, now_ns: u64) {
        let from = *self.filled_ns.get_or_insert(now_ns);
        let elapsed = now_ns.saturating_sub(from);
        let new = u128::from(elapsed) * u128::from(self.size) / u128::from(self.refill_ns);
        let room = i128::from(self.size) - self.tokens;
        if new as i128 >= room {
            self.tokens = self.size.into();
            self.filled_ns = Some(now_ns);
        } else if new > 0 {
            self.tokens += new as i128;
            // Only the time that these tokens stand for: fractions are not lost.
            let used = (new * u128::from(self.refill_ns)).div_ceil(u128::from(self.size));
            self.filled_ns = Some(from.saturating_add(used as u64).min(now_ns));
        }
    }

    /// Nanoseconds until a request may pass; 0: now.
    fn wait_ns(&self) -> u64 {
        if self.tokens > 0 || self.burst > 0 {
            return 0;
        }
        let missing = (1 - self.tokens) as u128;
        u64::try_from((missing * u128::from(self.refill_ns)).div_ceil(u128::from(self.size)))
            .unwrap_or(u64::MAX)
    }

    fn take(&mut self, tokens: u64) {
        let from_burst = self.burst.min(tokens);
        self.burst -= from_burst;
        self.tokens -= i128::from(tokens - from_burst);
    }
}

/// A bucket for what is left out rather than made to wait.
#[derive(Debug)]
pub struct Allowance(Bucket);

impl Allowance {
    /// A full one; none where the configuration does not limit.
    pub fn new(config: &TokenBucketConfig) -> Option<Self> {
        Bucket::new(config).map(Allowance)
    }

    /// How many of `wanted` tokens there are at `now_ns`: they are spent.
    pub fn spend(&mut self, wanted: u64, now_ns: u64) -> u64 {
        self.0.fill(now_ns);
        let there = u64::try_from(self.0.tokens).unwrap_or(0).saturating_add(self.0.burst);
        let spent = wanted.min(there);
        self.0.take(spent);
        spent
    }
}

/// A limiter with the timer that wakes its device.
#[derive(Debug)]
pub struct RateLimiter {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
    timer: OneShot,
}

impl RateLimiter {
    /// A limiter with full buckets.
    ///
    /// # Errors
    /// The host gives no timer.
    pub fn new(config: &RateLimiterConfig) -> io::Result<Self> {
        let mut limiter = RateLimiter { bandwidth: None, ops: None, timer: OneShot::new()? };
        limiter.update(config);
        Ok(limiter)
    }

    /// Replaces the buckets that `config` has; one of size 0 is taken away.
    pub fn update(&mut self, config: &RateLimiterConfig) {
        if let Some(c) = &config.bandwidth {
            self.bandwidth = Bucket::new(c);
        }
        if let Some(c) = &config.ops {
            self.ops = Bucket::new(c);
        }
    }

    /// The timer's descriptor: readable when a request that had to wait may be tried again.
    pub fn fd(&self) -> RawFd {
        self.timer.fd()
    }

    /// May one operation of `bytes` bytes go ahead at guest time `now_ns`? If not, the timer is set.
    pub fn allow(&mut self, bytes: u64, now_ns: u64) -> bool {
        let buckets = || [&self.bandwidth, &self.ops].into_iter().flatten();
        if buckets().next().is_none() {
            return true;
        }
        for bucket in [&mut self.bandwidth, &mut self.ops].into_iter().flatten() {
            bucket.fill(now_ns);
        }
        let wait_ns =
            [&self.bandwidth, &self.ops].into_iter().flatten().map(Bucket::wait_ns).max().unwrap_or(0);
        if wait_ns > 0 {
            self.set_timer(wait_ns);
            return false;
        }
        if let Some(b) = &mut self.bandwidth {
            b.take(bytes);
        }
        if let Some(b) = &mut self.ops {
            b.take(1);
        }
        true
    }

    fn set_timer(&self, wait_ns: u64) {
        // Never so far ahead that a limiter which is changed meanwhile would be noticed late.
        if let Err(e) = self.timer.set_ns(wait_ns.min(1_000_000_000)) {
            tracing::error!("rate limiter's timer: {e}");
        }
    }

    /// Empties the timer's descriptor after it was readable.
    pub fn fired(&self) {
        self.timer.fired();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(size: u64, burst: u64, ms: u64) -> Option<TokenBucketConfig> {
        Some(TokenBucketConfig { size, one_time_burst: Some(burst), refill_time: ms })
    }

    #[test]
    fn the_rate_over_time_is_exact_whatever_the_request_sizes() {
        let mut l =
            RateLimiter::new(&RateLimiterConfig { bandwidth: bucket(1000, 0, 100), ops: None }).unwrap();
        let (mut now, mut bytes) = (5_000_000, 0u64);
        for step in 0..100_000u64 {
            let request = [1, 7, 333, 5000][(step % 4) as usize];
            if l.allow(request, now) {
                bytes += request;
            } else {
                now += 37_000;
            }
        }
        // 1000 bytes at the start, then 10,000 a second.
        let due = 1000 + (now - 5_000_000) / 100_000;
        assert!(bytes <= due + 5000 && bytes + 5000 >= due, "{bytes} of {due}");
    }

    #[test]
    fn a_burst_is_spent_once_and_size_zero_lifts_the_limit() {
        let config = RateLimiterConfig { bandwidth: None, ops: bucket(2, 3, 10) };
        let mut l = RateLimiter::new(&config).unwrap();
        assert_eq!((0..20).filter(|_| l.allow(1, 0)).count(), 5);
        assert_eq!((0..20).filter(|_| l.allow(1, 1_000_000_000)).count(), 2);
        l.update(&RateLimiterConfig { bandwidth: None, ops: bucket(0, 0, 0) });
        assert_eq!((0..20).filter(|_| l.allow(1, 0)).count(), 20);
    }

    #[test]
    fn an_allowance_is_spent_and_comes_back_with_time() {
        let config = TokenBucketConfig { size: 10, one_time_burst: Some(5), refill_time: 1000 };
        let mut a = Allowance::new(&config).unwrap();
        assert_eq!([a.spend(4, 7), a.spend(100, 7), a.spend(1, 7)], [4, 11, 0]);
        assert_eq!([a.spend(9, 300_000_007), a.spend(9, 300_000_007)], [3, 0]);
        assert_eq!(a.spend(u64::MAX, u64::MAX), 10);
        for unlimited in [(0, 5), (5, 0)] {
            let (size, refill_time) = unlimited;
            assert!(Allowance::new(&TokenBucketConfig { size, one_time_burst: None, refill_time }).is_none());
        }
    }

    #[test]
    fn extreme_configurations_do_not_overflow() {
        let all = bucket(u64::MAX, u64::MAX, u64::MAX);
        let mut l = RateLimiter::new(&RateLimiterConfig { bandwidth: all, ops: all }).unwrap();
        for now in [0, 1, u64::MAX, 0] {
            for bytes in [0, u64::MAX, u64::MAX] {
                l.allow(bytes, now);
            }
        }
    }
}
