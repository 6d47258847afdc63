//! Balloon (virtio 1.2, 5.5): the guest gives pages it does not need, and the host gets them back at once.

mod config;
mod release;
mod state;
#[cfg(test)]
mod tests;

pub use config::{BalloonConfig, BalloonStats, GuestStats};
pub use state::BalloonV1;

use super::device::{self, Context, DeviceFd, Progress, RestoreError, VirtioDevice};
use super::queue::{QueueError, Served};
use super::stats::{Counted, Stats};
use event_manager::EventSet;
use godwit_state::RawSection;
use release::release;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Feature bits (virtio 1.2, 5.5.3).
mod bits {
    pub(super) const STATS: u64 = 1 << 1;
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(super) const REPORTING: u64 = 1 << 5;
}

/// Bytes of a balloon page, on every guest and host.
const PAGE: u64 = 4096;
const PAGES_PER_MIB: u32 = 256;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Page numbers that are taken from one chain; Linux gives 256.
const MAX_PAGES: usize = 4096;
/// Bytes of statistics that are looked at.
const MAX_STATS: usize = 1024;
/// Chains in one wake-up.
const BUDGET: usize = 16;

/// Why a balloon is refused.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// Larger than the guest.
    #[error("balloon: amount_mib {amount_mib} is more than the guest's {ram_mib} MiB")]
    TooLarge {
        /// What was asked for.
        amount_mib: u32,
        /// The guest's memory.
        ram_mib: u64,
    },
    /// The host gives no timer.
    #[error("balloon: timer: {0}")]
    Timer(#[from] io::Error),
}

/// The device.
#[derive(Debug)]
pub struct Balloon {
    config: BalloonConfig,
    ram_mib: u64,
    target_pages: u32,
    actual_pages: u32,
    features: u64,
    stats: GuestStats,
    stats_head: Option<u16>,
    timer: OwnedFd,
    counts: Stats,
}

impl Balloon {
    /// A balloon for a guest of `ram_mib` MiB.
    ///
    /// # Errors
    /// The target is larger than the guest.
    pub fn new(config: &BalloonConfig, ram_mib: u64) -> Result<Self, BalloonError> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(io::Error::from)?;
        let mut balloon = Balloon {
            config: config.clone(),
            ram_mib,
            target_pages: 0,
            actual_pages: 0,
            features: 0,
            stats: GuestStats::default(),
            stats_head: None,
            timer,
            counts: Stats::new(&[
                "inflate_count",
                "deflate_count",
                "stats_updates_count",
                "free_page_report_count",
            ]),
        };
        balloon.set_target(config.amount_mib)?;
        balloon.set_polling_interval(config.stats_polling_interval_s)?;
        Ok(balloon)
    }

    /// `PATCH /balloon`. The caller tells the driver that the configuration has changed.
    ///
    /// # Errors
    /// Larger than the guest.
    pub fn set_target(&mut self, amount_mib: u32) -> Result<(), BalloonError> {
        if u64::from(amount_mib) > self.ram_mib {
            return Err(BalloonError::TooLarge { amount_mib, ram_mib: self.ram_mib });
        }
        self.config.amount_mib = amount_mib;
        self.target_pages = amount_mib.saturating_mul(PAGES_PER_MIB);
        Ok(())
    }

    /// `PATCH /balloon/statistics`; 0 stops them.
    ///
    /// # Errors
    /// The host refuses the timer.
    pub fn set_polling_interval(&mut self, seconds: u16) -> Result<(), BalloonError> {
        let each = || Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
        let spec = Itimerspec { it_interval: each(), it_value: each() };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec).map_err(io::Error::from)?;
        self.config.stats_polling_interval_s = seconds;
        Ok(())
    }

    /// The configuration as it is now.
    pub fn current_config(&self) -> &BalloonConfig {
        &self.config
    }

    /// `GET /balloon/statistics`; `None` while they are off.
    pub fn statistics(&self) -> Option<BalloonStats> {
        (self.config.stats_polling_interval_s > 0).then_some(BalloonStats {
            target_pages: self.target_pages,
            actual_pages: self.actual_pages,
            target_mib: self.target_pages / PAGES_PER_MIB,
            actual_mib: self.actual_pages / PAGES_PER_MIB,
            guest: self.stats,
        })
    }

    /// Queues that features bring take the next free number.
    fn stats_queue(&self) -> Option<usize> {
        (self.features & bits::STATS != 0).then_some(2)
    }

    fn reporting_queue(&self) -> Option<usize> {
        (self.features & bits::REPORTING != 0).then(|| if self.stats_queue().is_some() { 3 } else { 2 })
    }

    fn inflate(cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let mem = cx.mem;
        cx.queues[INFLATE].serve(mem, cx.interrupt, BUDGET, |chain| {
            let mut bytes = vec![0; (chain.readable.len() as usize).min(MAX_PAGES * 4)];
            chain.readable.read(mem, 0, &mut bytes)?;
            let mut pages: Vec<u64> =
                bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect();
            // Linux gives them from the top down; runs make fewer, larger calls and whole host pages.
            pages.sort_unstable();
            pages.dedup();
            for run in pages.chunk_by(|a, b| a + 1 == *b) {
                release(mem, run[0] * PAGE, run.len() as u64 * PAGE);
            }
            Ok(Served::Used(0))
        })
    }

    fn take_stats(&mut self, queue: usize, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let mem = cx.mem;
        let q = &mut cx.queues[queue];
        // One buffer goes to and fro; a driver that gives more gets the older ones back.
        for _ in 0..BUDGET {
            let Some(chain) = q.pop(mem)? else {
                q.signal(mem, cx.interrupt)?;
                return Ok(if q.ready() && q.listen(mem)? { Progress::More } else { Progress::Idle });
            };
            let mut bytes = vec![0; (chain.readable.len() as usize).min(MAX_STATS)];
            chain.readable.read(mem, 0, &mut bytes)?;
            self.stats = GuestStats::parse(&bytes);
            if let Some(old) = self.stats_head.replace(chain.head()) {
                q.push_used(mem, old, 0)?;
            }
            q.recycle(chain);
        }
        q.signal(mem, cx.interrupt)?;
        Ok(Progress::More)
    }

    fn report(queue: usize, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let mem = cx.mem;
        cx.queues[queue].serve(mem, cx.interrupt, BUDGET, |chain| {
            for (addr, len) in chain.writable.range(0, chain.writable.len()) {
                release(mem, addr.0, len as u64);
            }
            Ok(Served::Used(0))
        })
    }
}

impl VirtioDevice for Balloon {
    const TYPE: u32 = 5;

    fn name(&self) -> String {
        "balloon".into()
    }

    fn features(&self) -> u64 {
        let oom = if self.config.deflate_on_oom { bits::DEFLATE_ON_OOM } else { 0 };
        let report = if self.config.free_page_reporting { bits::REPORTING } else { 0 };
        bits::STATS | oom | report
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256; 4]
    }

    /// `num_pages`, `actual`.
    fn config(&self) -> Vec<u8> {
        [self.target_pages.to_le_bytes(), self.actual_pages.to_le_bytes()].concat()
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (4, Some(bytes)) = (offset, data.first_chunk()) {
            self.actual_pages = u32::from_le_bytes(*bytes);
        }
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn reset(&mut self) {
        self.features = 0;
        self.actual_pages = 0;
        self.stats_head = None;
        self.stats = GuestStats::default();
    }

    fn fds(&self) -> Vec<DeviceFd> {
        vec![DeviceFd { fd: self.timer.as_raw_fd(), events: EventSet::IN, token: 0 }]
    }

    fn queue_event(&mut self, queue: usize, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        match queue {
            INFLATE => self.counts.count("inflate_count"),
            DEFLATE => self.counts.count("deflate_count"),
            q if Some(q) == self.stats_queue() => self.counts.count("stats_updates_count"),
            q if Some(q) == self.reporting_queue() => self.counts.count("free_page_report_count"),
            _ => {}
        }
        match queue {
            INFLATE => Self::inflate(cx),
            DEFLATE => cx.queues[DEFLATE].serve(cx.mem, cx.interrupt, BUDGET, |_| Ok(Served::Used(0))),
            q if Some(q) == self.stats_queue() => self.take_stats(q, cx),
            q if Some(q) == self.reporting_queue() => Self::report(q, cx),
            _ => Ok(Progress::Idle),
        }
    }

    /// Time for new statistics: the guest gets its buffer back and fills it.
    fn event(&mut self, token: u32, _events: EventSet, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        self.event_ignored(token);
        if let (Some(q), Some(head)) = (self.stats_queue(), self.stats_head.take()) {
            let q = &mut cx.queues[q];
            q.push_used(cx.mem, head, 0)?;
            q.signal(cx.mem, cx.interrupt)?;
        }
        Ok(Progress::Idle)
    }

    fn event_ignored(&mut self, _token: u32) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
    }

    fn counted(&self) -> Option<Counted> {
        Some(Counted { group: "balloon".into(), kind: "", counts: self.counts.all().to_vec() })
    }

    fn save(&self) -> RawSection {
        let (target_pages, actual_pages) = (self.target_pages, self.actual_pages);
        RawSection::mandatory(&BalloonV1 { target_pages, actual_pages, stats_head: self.stats_head })
    }

    fn restore(&mut self, section: &RawSection, _active: bool) -> Result<(), RestoreError> {
        let state: BalloonV1 = device::section(section)?;
        self.target_pages = state.target_pages;
        self.config.amount_mib = state.target_pages / PAGES_PER_MIB;
        self.actual_pages = state.actual_pages;
        self.stats_head = state.stats_head;
        Ok(())
    }
}
