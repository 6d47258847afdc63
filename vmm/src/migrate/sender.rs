//! Turns a set of pages into frames: zero pages as runs, others with their contents.

use super::error::MigrateError;
use super::link::Link;
use super::machine::Memory;
use super::progress::Progress;
use super::streams::Over;
use super::wire::{FLAG_LZ4, HEADER_LEN, Kind, MAX_ZERO_RUNS, put_runs};
use crate::memory::PAGE_SIZE;
use crate::memory::{PageSet, Run, zero_page};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const DOING: &str = "sending pages";
const PAGE: usize = PAGE_SIZE as usize;
/// Pages sent in one frame: so few that they stay in a processor's own cache on their way, and that the last are not waited for long.
const FRAME_PAGES: usize = 64;
/// Room for a frame's header and its runs, before its pages.
const ROOM: usize = HEADER_LEN + 4 + 16 * FRAME_PAGES;

/// Keeps the rate of bytes under a cap.
#[derive(Debug)]
struct Cap {
    bytes_per_s: u64,
    /// When the bytes sent so far may have been sent.
    due: Instant,
}

impl Cap {
    fn sent(&mut self, bytes: u64) {
        // Unused time is not saved up for a burst.
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s.max(1) as f64);
        self.due = self.due.max(Instant::now()) + cost;
    }

    /// How long nothing more should be sent.
    fn left(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }
}

/// Buffers and counters of the sending side.
pub(super) struct Sender {
    /// A frame in the making: [`ROOM`], then the non-zero pages that wait to be sent.
    frame: Vec<u8>,
    /// How many wait, and where they go.
    held: usize,
    runs: Vec<Run>,
    zero: Vec<Run>,
    lz4: bool,
    /// One for all connections.
    cap: Arc<Mutex<Option<Cap>>>,
    pub(super) pages: u64,
    pub(super) zero_pages: u64,
}

impl Sender {
    pub(super) fn new(lz4: bool, bandwidth: Option<u64>) -> Self {
        let sender = Sender {
            frame: vec![0; ROOM + FRAME_PAGES * PAGE],
            held: 0,
            runs: Vec::with_capacity(FRAME_PAGES),
            zero: Vec::new(),
            lz4,
            cap: Arc::default(),
            pages: 0,
            zero_pages: 0,
        };
        sender.set_cap(bandwidth);
        sender
    }

    /// For another connection of the same migration.
    pub(super) fn another(&self) -> Self {
        Sender { cap: Arc::clone(&self.cap), ..Sender::new(self.lz4, None) }
    }

    fn cap(&self) -> MutexGuard<'_, Option<Cap>> {
        self.cap.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn set_cap(&self, bandwidth: Option<u64>) {
        *self.cap() = bandwidth.map(|bytes_per_s| Cap { bytes_per_s, due: Instant::now() });
    }

    /// Takes a new cap, if one was asked for.
    pub(super) fn heed(&self, progress: &Progress) {
        if let Some(bandwidth) = progress.take_bandwidth() {
            self.set_cap((bandwidth != 0).then_some(bandwidth));
        }
    }

    /// The cap holds while the guest runs, not while it stands still.
    pub(super) fn lift_cap(&self) {
        *self.cap() = None;
    }

    /// How long the cap wants nothing more to be sent.
    pub(super) fn rest(&self) -> Duration {
        self.cap().as_ref().map_or(Duration::ZERO, Cap::left)
    }

    /// Says of all of `zero` that it is zero.
    pub(super) fn send_zero(&mut self, zero: Option<&PageSet>, link: &mut Link) -> Result<(), MigrateError> {
        zero.iter().flat_map(|z| z.runs(u64::MAX)).try_for_each(|run| self.put_zero(run, link))?;
        self.flush_zero(link)
    }

    /// Sends runs, each at most [`CHUNK_PAGES`](super::wire::CHUNK_PAGES) long, until there are no more. The cap holds nobody up once it
    /// is `over`.
    pub(super) fn send_runs(
        &mut self,
        memory: &dyn Memory,
        mut next: impl FnMut() -> Option<Run>,
        link: &mut Link,
        progress: &Progress,
        over: Over<'_>,
    ) -> Result<(), MigrateError> {
        while let Some(run) = next() {
            if progress.is_cancelled() {
                return Err(MigrateError::Cancelled);
            }
            let (pages, zero_pages, bytes) = (self.pages, self.zero_pages, link.sent());
            self.chunk(memory, run, link)?;
            self.wait_for_cap(link, progress, over)?;
            progress.update(|p| {
                p.round_pages_done += run.count;
                p.pages += self.pages - pages;
                p.zero_pages += self.zero_pages - zero_pages;
                p.bytes += link.sent() - bytes;
            });
        }
        self.flush_data(link)?;
        self.flush_zero(link)
    }

    /// Waits as long as the cap wants, without being taken for dead.
    fn wait_for_cap(&self, link: &mut Link, progress: &Progress, over: Over<'_>) -> Result<(), MigrateError> {
        let (pulse, mut spoke) = (link.idle() / 3, Instant::now());
        loop {
            self.heed(progress);
            let rest = self.rest();
            if rest.is_zero() || over() {
                return Ok(());
            }
            if progress.is_cancelled() {
                return Err(MigrateError::Cancelled);
            }
            if spoke.elapsed() > pulse {
                spoke = Instant::now();
                link.send(Kind::KeepAlive, &[], DOING)?;
            }
            std::thread::sleep(rest.min(Duration::from_millis(100)));
        }
    }

    /// Sends one run, at most [`CHUNK_PAGES`](super::wire::CHUNK_PAGES) long, at once: the cap counts it and does not hold it up.
    pub(super) fn send_run(
        &mut self,
        memory: &dyn Memory,
        run: Run,
        link: &mut Link,
    ) -> Result<(), MigrateError> {
        self.chunk(memory, run, link)?;
        self.flush_data(link)?;
        self.flush_zero(link)
    }

    fn chunk(&mut self, memory: &dyn Memory, mut run: Run, link: &mut Link) -> Result<(), MigrateError> {
        while run.count > 0 {
            let part = Run { page: run.page, count: run.count.min((FRAME_PAGES - self.held) as u64) };
            self.part(memory, part, link)?;
            if self.held == FRAME_PAGES {
                self.flush_data(link)?;
            }
            run = Run { page: run.page + part.count, count: run.count - part.count };
        }
        Ok(())
    }

    /// Reads pages to where they are sent from, and closes the gaps that zero pages leave.
    fn part(&mut self, memory: &dyn Memory, run: Run, link: &mut Link) -> Result<(), MigrateError> {
        let (start, pages) = (ROOM + self.held * PAGE, run.count as usize);
        let bytes = &mut self.frame[start..start + pages * PAGE];
        memory.read(run.gpa(), bytes).map_err(MigrateError::machine("reading guest memory"))?;
        let (mut at, mut kept) = (0, 0);
        while at < pages {
            let bytes = &mut self.frame[start..];
            let is_zero = |i: usize| bytes[i * PAGE..(i + 1) * PAGE] == *zero_page();
            let zero = is_zero(at);
            let end = (at + 1..pages).find(|i| is_zero(*i) != zero).unwrap_or(pages);
            let part = Run { page: run.page + at as u64, count: (end - at) as u64 };
            if zero {
                self.put_zero(part, link)?;
            } else {
                if kept != at {
                    bytes.copy_within(at * PAGE..end * PAGE, kept * PAGE);
                }
                kept += end - at;
                match self.runs.last_mut() {
                    Some(last) if last.page + last.count == part.page => last.count += part.count,
                    _ => self.runs.push(part),
                }
            }
            at = end;
        }
        self.held += kept;
        self.pages += kept as u64;
        Ok(())
    }

    fn put_zero(&mut self, run: Run, link: &mut Link) -> Result<(), MigrateError> {
        self.zero_pages += run.count;
        match self.zero.last_mut() {
            Some(last) if last.page + last.count == run.page => last.count += run.count,
            _ => self.zero.push(run),
        }
        if self.zero.len() >= MAX_ZERO_RUNS { self.flush_zero(link) } else { Ok(()) }
    }

    fn flush_data(&mut self, link: &mut Link) -> Result<(), MigrateError> {
        if self.runs.is_empty() {
            return Ok(());
        }
        let mut runs = Vec::with_capacity(ROOM);
        put_runs(&mut runs, &self.runs);
        self.runs.clear();
        let end = ROOM + std::mem::take(&mut self.held) * PAGE;
        let mut packed = None;
        if self.lz4 {
            let (data, out) = (&self.frame[ROOM..end], link.begin());
            out.extend_from_slice(&runs);
            let from = out.len();
            out.resize(from + lz4_flex::block::get_maximum_output_size(data.len()), 0);
            if let Ok(n) = lz4_flex::block::compress_into(data, &mut out[from..])
                && n < data.len()
            {
                out.truncate(from + n);
                packed = Some(out.len());
            }
        }
        let len = match packed {
            Some(len) => {
                link.send_built(Kind::Pages, FLAG_LZ4, DOING)?;
                len
            }
            None => {
                let start = ROOM - runs.len() - HEADER_LEN;
                self.frame[ROOM - runs.len()..ROOM].copy_from_slice(&runs);
                link.send_frame(Kind::Pages, 0, &mut self.frame[start..end], DOING)?;
                end - start
            }
        };
        self.cap().iter_mut().for_each(|cap| cap.sent(len as u64));
        Ok(())
    }

    fn flush_zero(&mut self, link: &mut Link) -> Result<(), MigrateError> {
        if self.zero.is_empty() {
            return Ok(());
        }
        put_runs(link.begin(), &self.zero);
        self.zero.clear();
        link.send_built(Kind::Zero, 0, DOING)
    }
}
