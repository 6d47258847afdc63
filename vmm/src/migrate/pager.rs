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
//! A connection that breaks between Commit and Running is replaced in the same way: starting the guest may wait for a page.
//!
//! Whoever touches a missing page, a vCPU or a device, is stopped by the kernel ([`Missing`]) until this thread has put it there.

use super::destination::Door;
use super::error::MigrateError;
use super::fault::{Side, Step};
use super::intake::unpack;
use super::link::Link;
use super::owed::{Token, send_missing};
use super::progress::{Answer, Phase, Progress, Report};
use super::wire::{Kind, MAX_REQUESTS, MAX_ZERO_RUNS, put_runs, runs};
use crate::memory::{Missing, PAGE_SIZE, PageSet, Run};
use crate::sandbox;
use crate::state::codec::Cursor;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

/// How long a broken connection is waited for before looking elsewhere again.
const LOOK: Duration = Duration::from_millis(100);
/// How long a peer who comes while a connection is broken may take to show that it is the source.
const GREETING: Duration = Duration::from_secs(5);
/// How long a source that has not heard of the last page may come again to hear it.
const AFTERWARDS: Duration = Duration::from_secs(60);

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
        progress.set_pager(Arc::clone(&bell));
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
            ready: false,
            committed: false,
            running: None,
            heard: now,
            sent: now,
            asked: now,
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
        self.progress.update(|p| {
            if p.phase != Phase::Interrupted {
                p.phase = Phase::Postcopy;
            }
        });
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
    /// All is loaded, and the source knows it.
    ready: bool,
    committed: bool,
    /// Since when the guest runs.
    running: Option<Instant>,
    /// When the source was last heard, and when it last heard from here.
    heard: Instant,
    sent: Instant,
    /// When pages were last asked for.
    asked: Instant,
}

/// A connection that was made, or not, and whom to tell what became of it.
type Made = (Result<Link, MigrateError>, Option<Answer>);

enum Flow {
    On,
    Stopped,
    Complete,
}

impl Thread {
    fn run(mut self: Box<Self>) {
        if let Err(e) = sandbox::enter(sandbox::Kind::Migrate, "pager") {
            return self.over(MigrateError::Impossible(e.to_string()));
        }
        loop {
            let flow = match self.turn() {
                Err(error) if !self.committed => return self.over(error),
                Err(error) => self.interrupted(error),
                Ok(flow) => flow,
            };
            match flow {
                Flow::On => {}
                Flow::Complete => return self.complete(),
                Flow::Stopped => return self.over(MigrateError::Cancelled),
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
        if self.running.is_some() && (self.p.absent.is_empty() || self.p.progress.has_guest_ended()) {
            return Ok(Flow::Complete);
        }
        if self.heard.elapsed() > idle && self.is_due(idle) {
            return Err(MigrateError::Timeout { doing: "waiting for pages", limit: idle });
        }
        if self.sent.elapsed() > pulse {
            self.send(Kind::KeepAlive, &[])?;
        }
        Ok(Flow::On)
    }

    /// Whether the source has something to say: it has nothing while the state is being loaded and no page is waited for.
    fn is_due(&self, idle: Duration) -> bool {
        self.ready
            || self.committed
            || (self.asked.elapsed() > idle
                && self.requested.runs(1).any(|run| self.p.absent.contains(run.page)))
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
                    (self.ready, self.heard) = (true, Instant::now());
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

    /// The same while there is no connection: the source is told on the next one.
    fn listen_alone(&mut self) -> Flow {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        loop {
            match self.said.try_recv() {
                Ok(Say::Running) => self.running = Some(Instant::now()),
                Ok(Say::Ready(_)) => {}
                Ok(Say::Stop) => return Flow::Stopped,
                Err(TryRecvError::Disconnected) if self.running.is_none() => return Flow::Stopped,
                Err(_) if self.running.is_some() && self.p.progress.has_guest_ended() => {
                    return Flow::Complete;
                }
                Err(_) => return Flow::On,
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
            (self.sent, self.asked) = (Instant::now(), Instant::now());
            self.p.link.send_built(Kind::Request, 0, "asking for pages")?;
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), MigrateError> {
        let Paging { missing, absent, link, report, progress, .. } = &mut self.p;
        let frame = link.recv_any("receiving pages")?;
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
        report.postcopy_pages += there;
        let (left, bytes) = (absent.count(), link.received());
        progress.update(|p| {
            p.missing_pages = left;
            (p.pages, p.zero_pages, p.bytes) = (report.pages, report.zero_pages, bytes);
        });
        Ok(())
    }

    /// The guest is here and some of its pages are not, and nobody sends them: waits for the source to come back.
    fn interrupted(&mut self, mut error: MigrateError) -> Flow {
        self.p.link.cut();
        loop {
            let missing = self.p.absent.count();
            let text = format!(
                "{error}; {missing} pages are missing: the guest stands still where it needs one, until the source connects again \
                 (there: godwit migrate --recover)"
            );
            tracing::warn!("{text}");
            self.p.progress.update(|p| (p.phase, p.error) = (Phase::Interrupted, Some(text)));
            let (link, answer) = loop {
                match self.listen_alone() {
                    Flow::On => {}
                    other => return other,
                }
                match self.next_link() {
                    Ok(Some(link)) => break link,
                    Ok(None) => {}
                    Err(()) => return Flow::Stopped,
                }
            };
            let joined = link.and_then(|link| self.rejoined(link));
            if let Some(answer) = answer {
                answer.tell(joined.as_ref().copied());
            }
            match joined {
                Ok(()) => break,
                Err(e) => error = e,
            }
        }
        self.p.report.recoveries += 1;
        let phase = if self.running.is_some() { Phase::Postcopy } else { Phase::Committed };
        self.p.progress.update(|p| (p.phase, p.error) = (phase, None));
        Flow::On
    }

    /// The next connection that somebody makes or is told to make. `None`: nobody has for a moment; an error: nobody will.
    fn next_link(&self) -> Result<Option<Made>, ()> {
        if let Some(redial) = self.p.progress.wait_for_redial(Some(LOOK))? {
            let (link, answer) = redial.make();
            return Ok(Some((link, Some(answer))));
        }
        let Some(door) = &self.p.door else { return Ok(None) };
        match door.accept(GREETING, LOOK) {
            Ok(Some(stream)) => Ok(Some((Ok(Link::new(stream, Side::Destination, GREETING)), None))),
            Ok(None) => Ok(None),
            Err(e) => {
                tracing::warn!("{e}");
                Ok(None)
            }
        }
    }

    /// Goes on over `link`, if the source is at its other end.
    fn rejoined(&mut self, mut link: Link) -> Result<(), MigrateError> {
        if let Err(e) = self.greet_again(&mut link) {
            let e = link.why(e);
            link.abort(&e);
            return Err(e);
        }
        link.set_idle(self.p.link.idle());
        self.p.link = link;
        if self.running.is_some() {
            self.send(Kind::Running, &[])?;
        }
        // What was asked for was lost with the old connection.
        self.wanted = self.requested.runs(1).filter(|run| self.p.absent.contains(run.page)).collect();
        (self.heard, self.sent) = (Instant::now(), Instant::now());
        self.ask()
    }

    fn greet_again(&self, link: &mut Link) -> Result<(), MigrateError> {
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
        link.send(Kind::Recovered, &self.p.absent.count().to_le_bytes(), "naming the missing pages")
    }

    /// Every page is here, or the guest has ended.
    fn complete(mut self: Box<Self>) {
        if let Err(e) = self.p.missing.end() {
            tracing::warn!("userfaultfd: {e}");
        }
        self.p.absent.clear();
        self.p.link.at(Step::Complete);
        let told = self.tell_complete();
        let Paging { link, progress, report, .. } = &mut self.p;
        report.bytes += link.received();
        report.total_ms = progress.elapsed().as_secs_f64() * 1e3;
        report.postcopy_ms = self.running.map_or(0.0, |at| at.elapsed().as_secs_f64() * 1e3);
        progress.update(|p| {
            (p.phase, p.missing_pages, p.error) = (Phase::Done, 0, None);
            p.report = Some(report.clone());
        });
        if let Err(e) = told {
            self.tell_again(e);
        }
    }

    /// Says that no page is needed any more, and waits until the source has heard it.
    fn tell_complete(&mut self) -> Result<(), MigrateError> {
        let link = &mut self.p.link;
        link.send(Kind::Complete, &[], "saying that all pages are there")?;
        loop {
            match link.recv("waiting for the source to know that all pages are there")?.kind {
                Kind::Complete => break,
                // What was on its way.
                Kind::Pages | Kind::Zero => {}
                other => {
                    let found = other.name().into();
                    return Err(MigrateError::Unexpected { found, expected: "the last word" });
                }
            }
        }
        link.drain();
        Ok(())
    }

    /// The source may not know that it is not needed any more: for a while it may come again to hear it.
    fn tell_again(&mut self, error: MigrateError) {
        self.p.link.cut();
        tracing::warn!("{error}; all pages are here, and the source may not know it");
        let end = Instant::now() + AFTERWARDS;
        while self.p.door.is_some() && Instant::now() < end && !self.p.progress.has_guest_ended() {
            match self.next_link() {
                Ok(Some((link, _))) => match link.and_then(|link| self.rejoined(link)) {
                    Ok(()) if self.tell_complete().is_ok() => return,
                    Ok(()) => self.p.link.cut(),
                    Err(e) => tracing::warn!("{e}"),
                },
                Ok(None) => {}
                Err(()) => return,
            }
        }
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
