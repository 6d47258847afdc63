//! The destination between the state and the last page: a thread that owns the connection and puts pages where they are missed.
//!
//! ```text
//!   (state taken) ─► loading ─Ready─► waiting ─Commit─► running ─all pages─► Complete
//!                       └── any failure: nothing has run ──┘        │  ▲
//!                                                     broken connection │
//!                                                                   ▼  │ Recover, with the session's token
//!                                                                interrupted: who touches a missing page stands still
//! ```
//!
//! Whoever touches a missing page, a vCPU or a device, is stopped by the kernel ([`Missing`]) until this thread has put it there.

use super::destination::{Door, unpack};
use super::error::MigrateError;
use super::fault::{Side, Step};
use super::link::Link;
use super::owed::{Token, send_missing};
use super::progress::{Phase, Progress, Report};
use super::wire::{Kind, MAX_REQUESTS, MAX_ZERO_RUNS, put_runs, runs};
use crate::memory::{Missing, PAGE_SIZE, PageSet, Run};
use crate::state::codec::Cursor;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

/// How long a broken connection is waited for before looking elsewhere again.
const LOOK: Duration = Duration::from_millis(100);

/// What the thread is told.
enum Say {
    /// All is loaded, in so many nanoseconds.
    Ready(u64),
    /// The guest runs.
    Running,
    /// Nothing will run: the connection is wanted back.
    Stop,
}

/// What it tells.
enum Heard {
    /// The guest is ours; its time moves on by so many nanoseconds.
    Commit(u64),
    /// It will not be; the connection.
    Over(Box<Link>, MigrateError),
}

/// The way to the thread, for who loads and runs the machine.
pub(super) struct Pager {
    say: Sender<Say>,
    heard: Receiver<Heard>,
    bell: Arc<OwnedFd>,
    progress: Progress,
}

/// What the thread needs.
pub(super) struct Paging {
    pub(super) missing: Missing,
    pub(super) absent: PageSet,
    pub(super) link: Link,
    pub(super) token: Token,
    pub(super) door: Option<Door>,
    pub(super) progress: Progress,
    pub(super) report: Report,
}

impl Pager {
    pub(super) fn start(paging: Paging) -> Result<Self, Box<(Link, MigrateError)>> {
        let failed = |why: std::io::Error| MigrateError::Machine {
            doing: "preparing for pages that come later",
            why: why.to_string(),
        };
        let bell = match eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
            Ok(bell) => Arc::new(bell),
            Err(e) => return Err(Box::new((paging.link, failed(e.into())))),
        };
        let progress = paging.progress.clone();
        let ((say, said), (tell, heard)) = (channel(), channel());
        let requested = {
            let mut set = paging.absent.clone();
            set.clear();
            set
        };
        let now = Instant::now();
        let thread = Thread {
            p: paging,
            said,
            tell,
            bell: Arc::clone(&bell),
            requested,
            wanted: Vec::new(),
            unpacked: Vec::new(),
            committed: false,
            running: None,
            heard: now,
            sent: now,
        };
        // Handed over by a channel, so that a thread that cannot be had does not take the connection with it.
        let (give, take) = channel::<Box<Thread>>();
        let spawned = std::thread::Builder::new().name("migrate".into()).spawn(move || {
            if let Ok(thread) = take.recv() {
                thread.run();
            }
        });
        let thread = Box::new(thread);
        match spawned {
            Ok(_) => match give.send(thread) {
                Ok(()) => Ok(Pager { say, heard, bell, progress }),
                Err(lost) => Err(Box::new((lost.0.p.link, failed(std::io::ErrorKind::BrokenPipe.into())))),
            },
            Err(e) => Err(Box::new((thread.p.link, failed(e)))),
        }
    }

    fn tell(&self, say: Say) {
        // A thread that has ended has said why.
        let _ = self.say.send(say);
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// All is loaded: waits for the commit.
    pub(super) fn ready(&self, took: u64) -> Result<u64, Option<Box<(Link, MigrateError)>>> {
        self.tell(Say::Ready(took));
        match self.heard.recv() {
            Ok(Heard::Commit(advance)) => Ok(advance),
            Ok(Heard::Over(link, error)) => Err(Some(Box::new((*link, error)))),
            Err(_) => Err(None),
        }
    }

    /// The guest runs: the rest is the thread's.
    pub(super) fn running(&self) {
        self.progress.update(|p| p.phase = Phase::Postcopy);
        self.tell(Say::Running);
    }

    /// The guest does not run: the connection.
    pub(super) fn stop(self) -> Option<Link> {
        self.tell(Say::Stop);
        loop {
            match self.heard.recv() {
                Ok(Heard::Over(link, _)) => return Some(*link),
                Ok(Heard::Commit(_)) => {}
                Err(_) => return None,
            }
        }
    }
}

struct Thread {
    p: Paging,
    said: Receiver<Say>,
    tell: Sender<Heard>,
    bell: Arc<OwnedFd>,
    /// Pages asked for, of which some may still be missing.
    requested: PageSet,
    wanted: Vec<Run>,
    unpacked: Vec<u8>,
    committed: bool,
    /// Since when the guest runs.
    running: Option<Instant>,
    /// When the source was last heard, and when it last heard from here.
    heard: Instant,
    sent: Instant,
}

enum Flow {
    On,
    Stopped,
    Complete,
}

impl Thread {
    fn run(mut self: Box<Self>) {
        loop {
            match self.turn() {
                Ok(Flow::On) => {}
                Ok(Flow::Complete) => return self.complete(),
                Ok(Flow::Stopped) => return self.over(MigrateError::Cancelled),
                Err(error) if !self.committed => return self.over(error),
                Err(error) => match self.interrupted(error) {
                    Flow::On => {}
                    _ => return self.over(MigrateError::Cancelled),
                },
            }
        }
    }

    /// Nothing runs here and nothing will. Whoever waits for a page goes on with zeros, in a machine that is about to be dropped.
    fn over(self, error: MigrateError) {
        let Paging { missing, link, .. } = self.p;
        drop(missing);
        let _ = self.tell.send(Heard::Over(Box::new(link), error));
    }

    fn turn(&mut self) -> Result<Flow, MigrateError> {
        let idle = self.p.link.idle();
        let pulse = (idle / 3).max(Duration::from_millis(1));
        let (readable, others) = {
            let Paging { link, missing, .. } = &mut self.p;
            link.wait(&[missing.as_fd(), self.bell.as_fd()], pulse)?
        };
        if others[1] && matches!(self.listen()?, Flow::Stopped) {
            return Ok(Flow::Stopped);
        }
        if others[0] {
            self.faults()?;
        }
        if readable {
            self.frame()?;
            self.heard = Instant::now();
        }
        if self.running.is_some() && self.p.absent.is_empty() {
            return Ok(Flow::Complete);
        }
        if self.heard.elapsed() > idle && self.committed {
            return Err(MigrateError::Timeout { doing: "waiting for pages", limit: idle });
        }
        if self.sent.elapsed() > pulse {
            self.send(Kind::KeepAlive, &[])?;
        }
        Ok(Flow::On)
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) -> Result<(), MigrateError> {
        self.sent = Instant::now();
        self.p.link.send(kind, payload, "answering the source")
    }

    /// What this side's other thread says.
    fn listen(&mut self) -> Result<Flow, MigrateError> {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        loop {
            match self.said.try_recv() {
                Ok(Say::Ready(took)) => {
                    self.p.link.at(Step::Ready);
                    self.send(Kind::Ready, &took.to_le_bytes())?;
                }
                Ok(Say::Running) => {
                    self.running = Some(Instant::now());
                    self.p.link.at(Step::Running);
                    self.send(Kind::Running, &[])?;
                    self.p.link.at(Step::Postcopy);
                }
                // Dropped before the guest ran: as if it had been said.
                Ok(Say::Stop) => return Ok(Flow::Stopped),
                Err(TryRecvError::Disconnected) if self.running.is_none() => return Ok(Flow::Stopped),
                Err(_) => return Ok(Flow::On),
            }
        }
    }

    fn machine(e: std::io::Error) -> MigrateError {
        MigrateError::machine("putting pages where they are missed")(e)
    }

    /// Somebody touched pages that are not there.
    fn faults(&mut self) -> Result<(), MigrateError> {
        while let Some(page) = self.p.missing.next().map_err(Self::machine)? {
            let run = Run { page, count: 1 };
            if !self.p.absent.contains(page) {
                // Known to be zero, or on its way to whoever asked twice.
                self.p.missing.zero(run.gpa(), PAGE_SIZE).map_err(Self::machine)?;
            } else if !self.requested.contains(page) {
                let _ = self.requested.insert(run);
                self.p.report.requested_pages += 1;
                self.wanted.push(run);
            }
        }
        self.ask()
    }

    fn ask(&mut self) -> Result<(), MigrateError> {
        while !self.wanted.is_empty() {
            let n = self.wanted.len().min(MAX_REQUESTS);
            put_runs(self.p.link.begin(), &self.wanted[..n]);
            self.wanted.drain(..n);
            self.sent = Instant::now();
            self.p.link.send_built(Kind::Request, 0, "asking for pages")?;
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), MigrateError> {
        let Paging { missing, absent, link, report, progress, .. } = &mut self.p;
        let (idle, frame) = (link.idle(), link.recv_any("receiving pages")?);
        let mut there = 0;
        match frame.kind {
            Kind::KeepAlive => {}
            Kind::Zero => {
                let c = &mut Cursor::new(frame.payload);
                for run in runs(c, MAX_ZERO_RUNS)? {
                    there += each_missing(absent, run, |run| missing.zero(run.gpa(), run.len()))?;
                }
                report.zero_pages += there;
            }
            Kind::Pages => {
                let (list, data) = unpack(frame.payload, frame.flags, &mut self.unpacked)?;
                let mut at = 0;
                for run in list {
                    there += each_missing(absent, run, |part| {
                        let from = at + ((part.page - run.page) * PAGE_SIZE) as usize;
                        missing.put(part.gpa(), &data[from..from + part.len() as usize])
                    })?;
                    at += run.len() as usize;
                }
                report.pages += there;
            }
            Kind::Commit if !self.committed => {
                let mut c = Cursor::new(frame.payload);
                let paused_ns = c.u64("pause")?;
                c.end("the commit")?;
                self.committed = true;
                let _ = self.tell.send(Heard::Commit(paused_ns));
            }
            other => {
                let found = other.name().into();
                return Err(MigrateError::Unexpected { found, expected: "pages" });
            }
        }
        let _ = idle;
        report.postcopy_pages += there;
        let (left, bytes) = (absent.count(), link.received());
        progress.update(|p| {
            p.missing_pages = left;
            (p.pages, p.zero_pages, p.bytes) = (report.pages, report.zero_pages, bytes);
        });
        Ok(())
    }

    /// The guest is here and some of its pages are not, and nobody sends them: waits for the source to come back.
    fn interrupted(&mut self, error: MigrateError) -> Flow {
        // Who loads and runs the machine comes first: only a guest that runs can be waited for.
        while self.running.is_none() {
            match self.said.recv() {
                Ok(Say::Running) => self.running = Some(Instant::now()),
                Ok(Say::Ready(_)) => {}
                Ok(Say::Stop) | Err(_) => return Flow::Stopped,
            }
        }
        self.p.link.cut();
        let mut error = error;
        loop {
            let missing = self.p.absent.count();
            let text = format!(
                "{error}; {missing} pages are missing: the guest stands still where it needs one, until the source connects again \
                 (there: godwit migrate --recover)"
            );
            tracing::warn!("{text}");
            self.p.progress.update(|p| (p.phase, p.error) = (Phase::Interrupted, Some(text)));
            let Some(mut link) = self.next_link() else { return Flow::Stopped };
            match self.rejoined(&mut link) {
                Ok(()) => break,
                Err(e) => {
                    link.abort(&e);
                    error = e;
                }
            }
        }
        self.p.report.recoveries += 1;
        self.p.progress.update(|p| (p.phase, p.error) = (Phase::Postcopy, None));
        Flow::On
    }

    fn next_link(&mut self) -> Option<Link> {
        let idle = self.p.link.idle();
        loop {
            match self.p.progress.wait_for_link(self.p.door.is_some().then_some(LOOK)) {
                Ok(Some(link)) => return Some(link),
                Ok(None) => {}
                Err(()) => return None,
            }
            if let Some(door) = &self.p.door {
                match door.accept(idle, LOOK) {
                    Ok(Some(stream)) => return Some(Link::new(stream, Side::Destination, idle)),
                    Ok(None) => {}
                    Err(e) => tracing::warn!("{e}"),
                }
            }
        }
    }

    fn rejoined(&mut self, link: &mut Link) -> Result<(), MigrateError> {
        link.hello()?;
        let frame = link.recv("waiting for the source to name its session")?;
        // Of equal length; every byte is looked at, so that the time tells nothing.
        let same = frame.kind == Kind::Recover
            && frame.payload.len() == self.p.token.len()
            && frame.payload.iter().zip(self.p.token).fold(0, |d, (a, b)| d | (a ^ b)) == 0;
        if !same {
            return Err(MigrateError::Unexpected {
                found: frame.kind.name().into(),
                expected: "this migration's session",
            });
        }
        send_missing(&self.p.absent, link)?;
        link.send(Kind::Recovered, &self.p.absent.count().to_le_bytes(), "naming the missing pages")?;
        std::mem::swap(&mut self.p.link, link);
        // What was asked for was lost with the old connection.
        self.wanted = self.requested.runs(1).filter(|run| self.p.absent.contains(run.page)).collect();
        (self.heard, self.sent) = (Instant::now(), Instant::now());
        self.ask()
    }

    /// Every page is here.
    fn complete(self) {
        let Paging { missing, mut link, progress, mut report, door, .. } = self.p;
        drop(door);
        if let Err(e) = missing.end() {
            tracing::warn!("userfaultfd: {e}");
        }
        link.at(Step::Complete);
        if link.send(Kind::Complete, &[], "saying that all pages are there").is_err() {
            tracing::warn!("the source could not be told that all pages are here");
        }
        link.drain();
        report.bytes = link.received();
        report.total_ms = progress.elapsed().as_secs_f64() * 1e3;
        report.postcopy_ms = self.running.map_or(0.0, |at| at.elapsed().as_secs_f64() * 1e3);
        progress.update(|p| {
            p.phase = Phase::Done;
            p.report = Some(report.clone());
        });
    }
}

/// Does `put` with the parts of `run` that are missing, and takes them out. Gives their number.
fn each_missing(
    absent: &mut PageSet,
    run: Run,
    mut put: impl FnMut(Run) -> std::io::Result<()>,
) -> Result<u64, MigrateError> {
    if run.is_empty() || !absent.covers(run) {
        return Err(MigrateError::Frame(format!("page {:#x} is not guest memory", run.page)));
    }
    let (mut from, end, mut done) = (run.page, run.page + run.count, 0);
    while let Some(part) = absent.next_run(from, end - from).filter(|p| p.page < end) {
        let part = Run { page: part.page, count: part.count.min(end - part.page) };
        put(part).map_err(Thread::machine)?;
        absent.remove(part);
        done += part.count;
        from = part.page + part.count;
        if from >= end {
            break;
        }
    }
    Ok(done)
}
