//! The source after the guest has gone: the pages that it still owes the destination.
//!
//! Pages that the guest waits for go first, with their neighbours; meanwhile the others follow, on from the last place at which the
//! guest waited.

use super::error::MigrateError;
use super::fault::Step;
use super::link::Link;
use super::machine::Memory;
use super::progress::{Phase, Progress, Report};
use super::sender::Sender;
use super::wire::{CHUNK_PAGES, Kind, MAX_REQUESTS, MAX_ZERO_RUNS, TOKEN_LEN, decode_texts, put_runs, runs};
use crate::memory::{PageSet, Run};
use crate::state::codec::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What belongs to one migration shows this: random, so that nobody else can.
pub(super) type Token = [u8; TOKEN_LEN];

/// Pages sent at once when nobody waits for one: few, since a request waits behind them.
const BACKGROUND: u64 = 32;
/// Pages sent with one that somebody waits for.
const AHEAD: u64 = 8;

/// Tells which pages are missing.
pub(super) fn send_missing(pages: &PageSet, link: &mut Link) -> Result<(), MigrateError> {
    let all: Vec<_> = pages.runs(u64::MAX).collect();
    for list in all.chunks(MAX_ZERO_RUNS) {
        put_runs(link.begin(), list);
        link.send_built(Kind::Missing, 0, "telling which pages are missing")?;
    }
    Ok(())
}

/// Adds a [`Kind::Missing`] frame's pages to `pages`.
pub(super) fn take_missing(payload: &[u8], pages: &mut PageSet) -> Result<(), MigrateError> {
    let c = &mut Cursor::new(payload);
    let list = runs(c, MAX_ZERO_RUNS)?;
    c.end("missing pages")?;
    match list.iter().find(|run| run.is_empty() || !pages.covers(**run) || !pages.insert(**run)) {
        Some(run) => Err(MigrateError::Frame(format!("page {:#x} is not guest memory", run.page))),
        None => Ok(()),
    }
}

/// The pages, and where they are read from.
pub(super) struct Owed {
    pub(super) pages: PageSet,
    pub(super) memory: Arc<dyn Memory>,
    pub(super) sender: Sender,
    pub(super) token: Token,
    cursor: u64,
    requested: u64,
    /// What `sender` had sent before: pages with contents or as zero.
    before: u64,
    /// Pages with contents, pages as zero and bytes that went over further connections before.
    others: (u64, u64, u64),
}

impl Owed {
    pub(super) fn new(
        pages: PageSet,
        memory: Arc<dyn Memory>,
        sender: Sender,
        token: Token,
        others: (u64, u64, u64),
    ) -> Self {
        let before = sender.pages + sender.zero_pages;
        Owed { pages, memory, sender, token, cursor: 0, requested: 0, before, others }
    }

    fn send(&mut self, run: Run, link: &mut Link) -> Result<(), MigrateError> {
        self.pages.remove(run);
        self.cursor = run.page + run.count;
        self.sender.send_run(&*self.memory, run, link)
    }

    /// Somebody waits for pages.
    pub(super) fn answer(&mut self, payload: &[u8], link: &mut Link) -> Result<(), MigrateError> {
        let c = &mut Cursor::new(payload);
        let list = runs(c, MAX_REQUESTS)?;
        c.end("a request for pages")?;
        for run in list {
            if run.is_empty() || run.count > CHUNK_PAGES || !self.pages.covers(run) {
                return Err(MigrateError::Frame(format!("page {:#x} is not guest memory", run.page)));
            }
            self.requested += run.count;
            // Those that are on their way already are not sent twice.
            let end = run.page + run.count;
            while let Some(next) = self.pages.next_run(run.page, AHEAD).filter(|n| n.page < end) {
                self.send(next, link)?;
            }
        }
        Ok(())
    }

    /// Waits for a frame that is no request, answering those.
    pub(super) fn recv(
        this: &mut Option<Owed>,
        link: &mut Link,
        doing: &'static str,
    ) -> Result<(Kind, Vec<u8>), MigrateError> {
        loop {
            let frame = link.recv(doing)?;
            let (kind, payload) = (frame.kind, frame.payload.to_vec());
            match (kind, &mut *this) {
                (Kind::Request, Some(owed)) => owed.answer(&payload, link)?,
                _ => return Ok((kind, payload)),
            }
        }
    }

    /// Sends until the destination says that it has every page. `word` may come meanwhile, if it has not yet.
    pub(super) fn serve(
        &mut self,
        link: &mut Link,
        progress: &Progress,
        report: &mut Report,
        word: &mut Word,
    ) -> Result<(), MigrateError> {
        const DOING: &str = "waiting for the destination to have all pages";
        let idle = link.idle();
        let pulse = (idle / 3).max(Duration::from_millis(1));
        link.set_deadline(None);
        link.be_prompt();
        link.at(Step::Postcopy);
        let (mut heard, mut spoke, mut shown) = (Instant::now(), Instant::now(), None);
        loop {
            let next =
                self.pages.next_run(self.cursor, BACKGROUND).or_else(|| self.pages.next_run(0, BACKGROUND));
            // Only what nobody waits for is held up by the cap.
            let patience = if next.is_some() { self.sender.rest() } else { pulse };
            let (readable, _) = link.wait(&[], patience.min(pulse))?;
            if readable {
                let frame = link.recv_any(DOING)?;
                heard = Instant::now();
                match frame.kind {
                    Kind::Request => {
                        let payload = frame.payload.to_vec();
                        self.answer(&payload, link)?;
                        spoke = heard;
                    }
                    Kind::KeepAlive => {}
                    Kind::Running => word.running(progress, report),
                    Kind::NotRunning => {
                        return Err(MigrateError::NotRunning(decode_texts(frame.payload)?.join("; ")));
                    }
                    Kind::Complete => {
                        self.show(link, progress, report);
                        link.at(Step::Complete);
                        word.running(progress, report);
                        // It has all, whether it hears that this is known or not.
                        if link.send(Kind::Complete, &[], DOING).is_ok() {
                            link.drain();
                        }
                        return Ok(());
                    }
                    other => {
                        let found = other.name().into();
                        return Err(MigrateError::Unexpected { found, expected: "a request for pages" });
                    }
                }
            } else if let Some(run) = next
                && self.sender.rest().is_zero()
            {
                self.send(run, link)?;
                spoke = Instant::now();
            } else if spoke.elapsed() >= pulse {
                link.send(Kind::KeepAlive, &[], DOING)?;
                spoke = Instant::now();
            }
            if heard.elapsed() > idle {
                return Err(MigrateError::Timeout { doing: DOING, limit: idle });
            }
            if shown.is_none_or(|at: Instant| at.elapsed() > Duration::from_millis(20)) {
                shown = Some(Instant::now());
                self.sender.heed(progress);
                self.show(link, progress, report);
            }
        }
    }

    fn show(&self, link: &Link, progress: &Progress, report: &mut Report) {
        let (pages, zero) = (self.sender.pages, self.sender.zero_pages);
        report.requested_pages = self.requested;
        report.postcopy_pages = pages + zero - self.before;
        let (missing, others) = (self.pages.count(), self.others);
        progress.update(|p| {
            (p.pages, p.zero_pages, p.missing_pages) = (pages + others.0, zero + others.1, missing);
            p.bytes = link.sent() + others.2;
        });
    }

    /// Begins again on a new connection, with the pages that the destination says it misses.
    pub(super) fn rejoin(&mut self, mut link: Link) -> Result<Link, MigrateError> {
        match self.ask_again(&mut link) {
            Ok(()) => Ok(link),
            Err(e) => {
                let e = link.why(e);
                link.abort(&e);
                Err(e)
            }
        }
    }

    fn ask_again(&mut self, link: &mut Link) -> Result<(), MigrateError> {
        const DOING: &str = "joining the destination again";
        link.hello()?;
        link.send(Kind::Recover, &self.token, DOING)?;
        let mut pages = self.pages.clone();
        pages.clear();
        loop {
            let frame = link.recv(DOING)?;
            match frame.kind {
                Kind::Missing => take_missing(frame.payload, &mut pages)?,
                Kind::Recovered if frame.payload == pages.count().to_le_bytes() => break,
                other => {
                    let found = other.name().into();
                    return Err(MigrateError::Unexpected { found, expected: "missing pages" });
                }
            }
        }
        (self.pages, self.cursor) = (pages, 0);
        Ok(())
    }
}

/// Whether it was said that the guest runs.
pub(super) struct Word {
    pub(super) said: bool,
    /// When the guest was stopped.
    pub(super) since: Instant,
}

impl Word {
    fn running(&mut self, progress: &Progress, report: &mut Report) {
        if !std::mem::replace(&mut self.said, true) {
            report.downtime_ms = self.since.elapsed().as_secs_f64() * 1e3;
            progress.update(|p| p.phase = self.phase());
        }
    }

    /// Where a migration stands whose pages follow.
    pub(super) fn phase(&self) -> Phase {
        if self.said { Phase::Postcopy } else { Phase::Committed }
    }
}
