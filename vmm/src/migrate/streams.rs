//! Several connections for one migration: pages go over all of them, everything else over the first. At the end of a round each
//! says so, and the destination answers only when all have: no page of one round can overtake one of the next.

use super::error::MigrateError;
use super::fault::Side;
use super::intake::Intake;
use super::link::Link;
use super::machine::Memory;
use super::owed::Token;
use super::progress::Progress;
use super::sender::Sender;
use super::transport::Stream;
use super::wire::{CHUNK_PAGES, Kind};
use crate::memory::{PageSet, Run};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

/// Most connections of one migration, the first included.
pub const MAX_CONNECTIONS: u8 = 16;

fn thread_failed(e: std::io::Error) -> MigrateError {
    MigrateError::Impossible(format!("no thread for another connection: {e}"))
}

/// Whether a round is to end before all of its pages are sent.
pub(super) type Over<'a> = &'a (dyn Fn() -> bool + Sync);

/// Makes another connection to the same destination.
pub type Connect = Box<dyn Fn() -> Result<Link, MigrateError> + Send>;

/// The source's further connections.
#[derive(Default)]
pub(super) struct Outflow {
    streams: Vec<(Link, Sender)>,
}

impl Outflow {
    /// Opens `count` further connections, which belong to the session of `token`.
    pub(super) fn open(
        connect: &Connect,
        token: &Token,
        count: u8,
        first: &Sender,
    ) -> Result<Self, MigrateError> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut link = connect()?;
            // Faults are injected into the first one.
            link.set_plan(None);
            link.hello()?;
            link.send(Kind::Join, token, "joining with another connection")?;
            streams.push((link, first.another()));
        }
        Ok(Outflow { streams })
    }

    /// Sends all of `set`, and of `zero` only that it is zero, over all connections at once; or as much as until it is `over`. Gives
    /// the runs that were not sent.
    pub(super) fn send(
        &mut self,
        (first, link): (&mut Sender, &mut Link),
        memory: &dyn Memory,
        (set, zero): (&PageSet, Option<&PageSet>),
        progress: &Progress,
        over: Over<'_>,
    ) -> Result<Vec<Run>, MigrateError> {
        first.send_zero(zero, link)?;
        let left = Mutex::new(set.runs(CHUNK_PAGES));
        let failed = AtomicBool::new(false);
        let rest = Rest { busy: Mutex::new(self.streams.len() + 1), bell: Condvar::new() };
        let work = |sender: &mut Sender, link: &mut Link| {
            let next = || -> Option<Run> {
                // Who fails stops the others: there is no migration without it.
                if failed.load(Ordering::Relaxed) || over() {
                    return None;
                }
                left.lock().unwrap_or_else(|e| e.into_inner()).next()
            };
            let sent = sender.send_runs(memory, next, link, progress, over);
            failed.fetch_or(sent.is_err(), Ordering::Relaxed);
            rest.wait(link, &failed).and(sent)
        };
        std::thread::scope(|scope| {
            let mut others = Vec::new();
            for (link, sender) in &mut self.streams {
                let builder = std::thread::Builder::new().name("migrate".into());
                others.push(builder.spawn_scoped(scope, || work(sender, link)).map_err(thread_failed)?);
            }
            let mut result = work(first, link);
            for other in others {
                let sent = other.join().unwrap_or_else(|_| {
                    Err(MigrateError::Impossible("the thread of another connection has ended".into()))
                });
                result = result.and(sent);
            }
            result
        })?;
        Ok(left.into_inner().unwrap_or_else(|e| e.into_inner()).collect())
    }

    fn say(&mut self, kind: Kind, number: u32) -> Result<(), MigrateError> {
        self.streams
            .iter_mut()
            .try_for_each(|(link, _)| link.send(kind, &number.to_le_bytes(), "ending a round"))
    }

    /// A round is over.
    pub(super) fn end_round(&mut self, number: u32) -> Result<(), MigrateError> {
        self.say(Kind::RoundEnd, number)
    }

    /// Nothing more goes over these connections.
    pub(super) fn finish(&mut self, rounds: u32) -> Result<(), MigrateError> {
        self.say(Kind::Finish, rounds)
    }

    /// Until when everything has to be sent.
    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.streams.iter_mut().for_each(|(link, _)| link.set_deadline(deadline));
    }

    /// How many there are.
    pub(super) fn len(&self) -> u8 {
        self.streams.len() as u8
    }

    /// Pages sent with contents, pages sent as zero, and bytes.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        let add = |(p, z, b), (link, sender): &(Link, Sender)| {
            (p + sender.pages, z + sender.zero_pages, b + link.sent())
        };
        self.streams.iter().fold((0, 0, 0), add)
    }
}

/// Where those wait that have nothing left to send.
struct Rest {
    busy: Mutex<usize>,
    bell: Condvar,
}

impl Rest {
    /// Waits for the last, without being taken for dead.
    fn wait(&self, link: &mut Link, failed: &AtomicBool) -> Result<(), MigrateError> {
        let mut busy = self.busy.lock().unwrap_or_else(|e| e.into_inner());
        *busy -= 1;
        self.bell.notify_all();
        while *busy > 0 && !failed.load(Ordering::Relaxed) {
            let (left, waited) =
                self.bell.wait_timeout(busy, link.idle() / 3).unwrap_or_else(|e| e.into_inner());
            busy = left;
            if waited.timed_out() {
                drop(busy);
                link.send(Kind::KeepAlive, &[], "sending pages")?;
                busy = self.busy.lock().unwrap_or_else(|e| e.into_inner());
            }
        }
        Ok(())
    }
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Round(u32),
    End,
}

/// The destination's further connections, each read by a thread of its own until the pages' end.
pub(super) struct Inflow {
    count: usize,
    marks: mpsc::Receiver<Result<Mark, MigrateError>>,
    received: Arc<AtomicU64>,
}

impl Inflow {
    /// Takes `count` connections that show `token`, from whatever `accept` gives (`None`: nobody came in that time). Others are turned away.
    pub(super) fn accept(
        count: u8,
        token: &Token,
        idle: Duration,
        mut accept: impl FnMut(Duration) -> Result<Option<Box<dyn Stream>>, MigrateError>,
        intake: &Intake,
    ) -> Result<Self, MigrateError> {
        const DOING: &str = "waiting for another connection of the source";
        let (tell, marks) = mpsc::channel();
        let received = Arc::new(AtomicU64::new(0));
        let end = Instant::now() + idle;
        let mut joined = 0;
        while joined < count {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(MigrateError::Timeout { doing: DOING, limit: idle });
            }
            let Some(stream) = accept(left)? else { continue };
            let mut link = Link::new(stream, Side::Destination, idle);
            link.set_plan(None);
            let ours = link.hello().and_then(|_| {
                let frame = link.recv(DOING)?;
                Ok(frame.kind == Kind::Join && frame.payload == token)
            });
            if !matches!(ours, Ok(true)) {
                link.abort(&MigrateError::Frame("another guest is being received here".into()));
                continue;
            }
            let (tell, received, intake) = (tell.clone(), Arc::clone(&received), intake.another());
            std::thread::Builder::new()
                .name("receive".into())
                .spawn(move || read(link, intake, &received, &tell))
                .map_err(thread_failed)?;
            joined += 1;
        }
        Ok(Inflow { count: count.into(), marks, received })
    }

    fn wait(&self, mark: Mark, limit: Duration) -> Result<(), MigrateError> {
        for _ in 0..self.count {
            match self.marks.recv_timeout(limit) {
                Ok(Ok(came)) if came == mark => {}
                Ok(Ok(came)) => {
                    return Err(MigrateError::Frame(format!("{came:?} in the place of {mark:?}")));
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(MigrateError::Timeout { doing: "receiving pages", limit }),
            }
        }
        Ok(())
    }

    /// Waits until all have brought every page of a round.
    pub(super) fn end_round(&self, number: u32, limit: Duration) -> Result<(), MigrateError> {
        self.wait(Mark::Round(number), limit)
    }

    /// Waits until all have brought everything. No thread touches guest memory after this.
    pub(super) fn finish(&self, limit: Duration) -> Result<(), MigrateError> {
        self.wait(Mark::End, limit)
    }

    /// How many there are.
    pub(super) fn count(&self) -> u8 {
        self.count as u8
    }

    /// Bytes received so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// One connection's pages, to their end or to its first error.
fn read(
    mut link: Link,
    mut intake: Intake,
    received: &AtomicU64,
    tell: &mpsc::Sender<Result<Mark, MigrateError>>,
) {
    let (mut round, mut counted) = (0u32, 0);
    loop {
        let mark = link.recv("receiving pages").and_then(|frame| {
            if intake.take(frame.kind, frame.flags, frame.payload)? {
                return Ok(None);
            }
            match frame.kind {
                Kind::RoundEnd => {
                    round = round.saturating_add(1);
                    if frame.payload != round.to_le_bytes() {
                        return Err(MigrateError::Frame(format!("the end of another round than {round}")));
                    }
                    Ok(Some(Mark::Round(round)))
                }
                Kind::Finish => Ok(Some(Mark::End)),
                other => Err(MigrateError::Unexpected { found: other.name().into(), expected: "pages" }),
            }
        });
        received.fetch_add(link.received() - counted, Ordering::Relaxed);
        counted = link.received();
        let Some(mark) = mark.transpose() else { continue };
        if !matches!(mark, Ok(Mark::Round(_))) {
            // Whoever hears the end counts on nobody else having guest memory.
            drop(intake);
            let _ = tell.send(mark);
            return;
        }
        if tell.send(mark).is_err() {
            return;
        }
    }
}
