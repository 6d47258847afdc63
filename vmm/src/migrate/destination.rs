//! The receiving side. Every byte that comes is hostile until checked.
//!
//! ```text
//!   Listening ─hello─► Greeted ─offer taken, machine built─► Receiving ─pages, state─► Ready ─Commit─► running
//!        │                │  └─memory taken, machine built─► Lent ─state─────────────► │
//!        └────────────────┴──────────── any failure ───────────────────────────────────┘
//!                              the machine is dropped, nothing has run
//! ```

use super::error::MigrateError;
use super::fault::{Side, Step};
use super::link::Link;
use super::machine::{Builder, Memory, Target};
use super::offer::{Offer, preflight};
use super::progress::{Phase, Progress, Report};
use super::tls::Tls;
use super::transport::{Listener, Stream};
use super::wire::{
    CHUNK_PAGES, FLAG_COPY, FLAG_LZ4, FLAG_MEMORY, Kind, MAX_ZERO_RUNS, encode_texts, pieces, runs,
};
use crate::memory::{Deed, PAGE_SIZE, PageSet, Run, SharedRam};
use crate::state::codec::Cursor;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The guest's time is moved on by at most this when it arrives.
const MAX_ADVANCE: Duration = Duration::from_secs(3600);

/// How a migration ended, for the receiving side.
#[derive(Debug)]
pub enum Arrival<R> {
    /// The guest runs here.
    Running(R, Report),
    /// Nothing runs here.
    Failed(MigrateError),
}

struct Greeted<B> {
    builder: B,
    link: Link,
    progress: Progress,
}

struct Receiving<T> {
    target: T,
    memory: Arc<dyn Memory>,
    link: Link,
    progress: Progress,
    /// Pages of which the source has said what they hold.
    known: PageSet,
    /// Pages that were ever written: others are still zero.
    written: PageSet,
    unpacked: Vec<u8>,
    report: Report,
}

/// Guest memory is the source's own, mapped here and not to be touched.
struct Lent<T> {
    target: T,
    link: Link,
    progress: Progress,
    report: Report,
    deed: Deed,
}

/// A machine was built for the guest.
enum Prepared<T> {
    Pages(Receiving<T>),
    Memory(Lent<T>),
}

struct Ready<T> {
    target: T,
    link: Link,
    progress: Progress,
    report: Report,
    deed: Option<Deed>,
}

struct Failure {
    link: Link,
    progress: Progress,
    error: MigrateError,
    /// How the peer is told.
    answer: Kind,
}

type Next<T> = Result<T, Box<Failure>>;

fn unexpected(kind: Kind, expected: &'static str) -> MigrateError {
    MigrateError::Unexpected { found: kind.name().into(), expected }
}

impl<B: Builder> Greeted<B> {
    fn prepare(self) -> Next<Prepared<B::Target>> {
        let Greeted { builder, mut link, progress } = self;
        let fail = |link, progress, error, answer| Err(Box::new(Failure { link, progress, error, answer }));
        progress.update(|p| p.phase = Phase::Preflight);
        let (offer, flags, memory) = match take_offer(&mut link) {
            Ok(taken) => taken,
            Err(error) => return fail(link, progress, error, Kind::Abort),
        };
        let refusals = preflight(&offer, &builder.capabilities());
        if !refusals.is_empty() {
            return fail(link, progress, MigrateError::Refused(refusals), Kind::Refuse);
        }
        let (memory, deed) = memory.unzip();
        let target = match builder.build(&offer, memory) {
            Ok(target) => target,
            Err(why) => {
                let error = MigrateError::Refused(vec![format!("cannot build the machine: {why}")]);
                return fail(link, progress, error, Kind::Refuse);
            }
        };
        link.at(Step::Preflight);
        if let Err(error) = link.send_flagged(Kind::Accept, flags, &[], "accepting the offer") {
            return fail(link, progress, error, Kind::Abort);
        }
        let mut report = Report { memory_bytes: offer.memory_bytes(), ..Report::default() };
        if let Some(deed) = deed {
            report.handed_over = true;
            return Ok(Prepared::Memory(Lent { target, link, progress, report, deed }));
        }
        let all = [offer.regions, target.volumes()].concat();
        let (known, written) = (PageSet::empty(&all), PageSet::empty(&all));
        let memory = target.memory();
        let receiving =
            Receiving { target, memory, link, progress, known, written, unpacked: Vec::new(), report };
        Ok(Prepared::Pages(receiving))
    }
}

/// Guest memory, and the deed for it.
type Handed = (SharedRam, Deed);

/// The offer, and what else came with it: the flags of the answer, guest memory.
fn take_offer(link: &mut Link) -> Result<(Offer, u16, Option<Handed>), MigrateError> {
    let frame = link.recv("waiting for the offer")?;
    if frame.kind != Kind::Offer {
        return Err(unexpected(frame.kind, "an offer"));
    }
    let handed_over = frame.flags & FLAG_MEMORY != 0;
    let offer = Offer::decode(frame.payload)?;
    let memory = if handed_over { take_memory(link, &offer)? } else { None };
    let flags = if handed_over && memory.is_none() { FLAG_COPY } else { 0 };
    Ok((offer, flags, memory))
}

/// `None`: somebody between the two sides passes bytes on and descriptors not.
fn take_memory(link: &mut Link, offer: &Offer) -> Result<Option<Handed>, MigrateError> {
    link.at(Step::HandOver);
    let (frame, descriptors) = link.recv_with_descriptors("waiting for guest memory")?;
    if frame.kind != Kind::Memory {
        return Err(unexpected(frame.kind, "the memory's descriptors"));
    }
    let Ok([memory, deed]) = <[OwnedFd; 2]>::try_from(descriptors) else { return Ok(None) };
    let memory = SharedRam::received(memory.into(), pieces(frame.payload)?, &offer.regions);
    let deed = Deed::received(deed.into());
    memory.and_then(|memory| Ok(Some((memory, deed?)))).map_err(MigrateError::Impossible)
}

impl<T: Target> Prepared<T> {
    fn receive(self) -> Next<Ready<T>> {
        match self {
            Prepared::Pages(receiving) => receiving.receive(),
            Prepared::Memory(lent) => lent.receive(),
        }
    }
}

/// Loads the state and says so.
fn load<T: Target>(
    target: &mut T,
    link: &mut Link,
    report: &mut Report,
    blob: &[u8],
) -> Result<(), MigrateError> {
    report.blob_bytes = blob.len() as u64;
    let begun = Instant::now();
    target.load(blob).map_err(MigrateError::machine("loading the state"))?;
    let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    link.at(Step::Ready);
    link.send(Kind::Ready, &took.to_le_bytes(), "saying that all is loaded")
}

impl<T: Target> Lent<T> {
    fn receive(mut self) -> Next<Ready<T>> {
        match self.take_state() {
            Ok(()) => {
                let Lent { target, link, progress, report, deed } = self;
                Ok(Ready { target, link, progress, report, deed: Some(deed) })
            }
            Err(error) => {
                let Lent { link, progress, .. } = self;
                Err(Box::new(Failure { link, progress, error, answer: Kind::Abort }))
            }
        }
    }

    fn take_state(&mut self) -> Result<(), MigrateError> {
        let Lent { target, link, progress, report, .. } = self;
        link.at(Step::State);
        let frame = link.recv("waiting for the state")?;
        if frame.kind != Kind::State {
            return Err(unexpected(frame.kind, "the state"));
        }
        let blob = frame.payload.to_vec();
        progress.update(|p| p.phase = Phase::Paused);
        link.at(Step::Finish);
        let finish = link.recv("waiting for the finish")?;
        if finish.kind != Kind::Finish {
            return Err(unexpected(finish.kind, "the finish"));
        }
        load(target, link, report, &blob)
    }
}

impl<T: Target> Receiving<T> {
    fn receive(mut self) -> Next<Ready<T>> {
        match self.take_all() {
            Ok(()) => {
                let Receiving { target, link, progress, report, .. } = self;
                Ok(Ready { target, link, progress, report, deed: None })
            }
            Err(error) => {
                let Receiving { link, progress, .. } = self;
                Err(Box::new(Failure { link, progress, error, answer: Kind::Abort }))
            }
        }
    }

    fn take_all(&mut self) -> Result<(), MigrateError> {
        const DOING: &str = "receiving pages";
        self.progress.update(|p| p.phase = Phase::Precopy);
        let mut blob: Option<Vec<u8>> = None;
        let mut round = 0u32;
        self.link.at(Step::Precopy);
        loop {
            let frame = self.link.recv(DOING)?;
            match frame.kind {
                Kind::Zero => {
                    let c = &mut Cursor::new(frame.payload);
                    let list = runs(c, MAX_ZERO_RUNS)?;
                    c.end("zero pages")?;
                    self.zero(&list)?;
                }
                Kind::Pages => {
                    let c = &mut Cursor::new(frame.payload);
                    let list = runs(c, CHUNK_PAGES as usize)?;
                    let packed = frame.flags & FLAG_LZ4 != 0;
                    let Receiving { memory, known, written, unpacked, report, .. } = self;
                    report.pages +=
                        put_pages(&**memory, (known, written), &list, c.rest(), packed, unpacked)?;
                }
                Kind::RoundEnd if blob.is_none() => {
                    round = round.saturating_add(1);
                    if frame.payload != round.to_le_bytes() {
                        return Err(MigrateError::Frame(format!("the end of another round than {round}")));
                    }
                    self.link.at(Step::Round);
                    self.link.send(Kind::RoundAck, &round.to_le_bytes(), "acknowledging a round")?;
                    let (report, bytes) = (&self.report, self.link.received());
                    self.progress.update(|p| {
                        p.round = round;
                        (p.pages, p.zero_pages, p.bytes) = (report.pages, report.zero_pages, bytes);
                    });
                }
                Kind::State if blob.is_none() => {
                    self.progress.update(|p| p.phase = Phase::Paused);
                    blob = Some(frame.payload.to_vec());
                    self.link.at(Step::State);
                }
                Kind::Finish => {
                    self.link.at(Step::Finish);
                    let Some(blob) = blob else { return Err(unexpected(Kind::Finish, "the state")) };
                    return self.load(&blob, round + 1);
                }
                other => return Err(unexpected(other, "pages or the state")),
            }
        }
    }

    fn zero(&mut self, list: &[Run]) -> Result<(), MigrateError> {
        for run in list {
            if !self.known.covers(*run) || !self.known.insert(*run) {
                return Err(MigrateError::Frame(format!("page {:#x} is not guest memory", run.page)));
            }
            self.report.zero_pages += run.count;
            // Fresh memory is zero: touching it would only use up memory.
            let end = run.page + run.count;
            let mut page = run.page;
            while page < end {
                if self.written.contains(page) {
                    let from = page;
                    while page < end && self.written.contains(page) {
                        page += 1;
                    }
                    let len = (page - from) * PAGE_SIZE;
                    let done = self.memory.zero(from * PAGE_SIZE, len);
                    done.map_err(MigrateError::machine("clearing guest memory"))?;
                } else {
                    page += 1;
                }
            }
        }
        Ok(())
    }

    fn load(&mut self, blob: &[u8], rounds: u32) -> Result<(), MigrateError> {
        if !self.known.is_full() {
            return Err(MigrateError::Frame("some pages were never sent".into()));
        }
        self.report.rounds = rounds;
        load(&mut self.target, &mut self.link, &mut self.report, blob)
    }
}

fn put_pages(
    memory: &dyn Memory,
    (known, written): (&mut PageSet, &mut PageSet),
    list: &[Run],
    data: &[u8],
    packed: bool,
    unpacked: &mut Vec<u8>,
) -> Result<u64, MigrateError> {
    let mut pages = 0u64;
    for run in list {
        if run.is_empty() || run.count > CHUNK_PAGES || !known.covers(*run) {
            return Err(MigrateError::Frame(format!(
                "pages {:#x}+{} are not guest memory",
                run.page, run.count
            )));
        }
        pages += run.count;
    }
    if pages > CHUNK_PAGES {
        return Err(MigrateError::Frame(format!("{pages} pages in one frame")));
    }
    let len = (pages * PAGE_SIZE) as usize;
    let data = if packed {
        unpacked.resize(len, 0);
        let n = lz4_flex::block::decompress_into(data, unpacked)
            .map_err(|e| MigrateError::Frame(format!("pages do not decompress: {e}")))?;
        &unpacked[..n]
    } else {
        data
    };
    if data.len() != len {
        return Err(MigrateError::Frame(format!("{} bytes for {pages} pages", data.len())));
    }
    let mut at = 0;
    for run in list {
        let part = &data[at..at + run.len() as usize];
        memory.write(run.gpa(), part).map_err(MigrateError::machine("writing guest memory"))?;
        let _ = known.insert(*run) && written.insert(*run);
        at += part.len();
    }
    Ok(pages)
}

impl<T: Target> Ready<T> {
    fn run(mut self) -> Next<(T::Running, Report)> {
        let advance = match self.take_commit() {
            Ok(advance) => advance,
            Err(error) => {
                let Ready { link, progress, .. } = self;
                return Err(Box::new(Failure { link, progress, error, answer: Kind::Abort }));
            }
        };
        let Ready { target, mut link, progress, mut report, deed } = self;
        if deed.as_ref().is_some_and(|deed| !deed.take()) {
            let error = MigrateError::Withdrawn;
            return Err(Box::new(Failure { link, progress, error, answer: Kind::Abort }));
        }
        let running = match target.run(advance) {
            Ok(running) => running,
            Err(why) => {
                deed.iter().for_each(Deed::give_back);
                let error = MigrateError::Machine { doing: "starting the guest", why: why.to_string() };
                return Err(Box::new(Failure { link, progress, error, answer: Kind::NotRunning }));
            }
        };
        link.at(Step::Running);
        // The guest runs here whether the source hears it or not.
        if link.send(Kind::Running, &[], "saying that the guest runs").is_err() {
            tracing::warn!("the source could not be told that the guest runs here");
        }
        link.drain();
        report.bytes = link.received();
        report.total_ms = progress.elapsed().as_secs_f64() * 1e3;
        progress.update(|p| {
            p.phase = Phase::Done;
            p.report = Some(report.clone());
        });
        Ok((running, report))
    }

    fn take_commit(&mut self) -> Result<u64, MigrateError> {
        self.link.at(Step::Commit);
        let commit = self.link.recv("waiting for the commit")?;
        if commit.kind != Kind::Commit {
            return Err(unexpected(commit.kind, "the commit"));
        }
        let mut c = Cursor::new(commit.payload);
        let paused_ns = c.u64("pause")?;
        c.end("the commit")?;
        Ok(paused_ns.min(MAX_ADVANCE.as_nanos() as u64))
    }
}

impl Failure {
    fn give_up(mut self) -> MigrateError {
        let error = self.link.why(self.error);
        match (self.answer, &error) {
            (Kind::Refuse, MigrateError::Refused(reasons)) => {
                let _ = self.link.send(Kind::Refuse, &encode_texts(reasons), "refusing the offer");
                self.link.drain();
            }
            (Kind::NotRunning, _) => {
                let text = encode_texts(&[error.to_string()]);
                let _ = self.link.send(Kind::NotRunning, &text, "reporting a failed start");
                self.link.drain();
            }
            _ => self.link.abort(&error),
        }
        self.progress.update(|p| {
            p.phase = Phase::Failed;
            p.error = Some(error.to_string());
        });
        error
    }
}

/// Receives one guest over a connected link, and runs it.
pub fn receive<B: Builder>(
    builder: B,
    mut link: Link,
    progress: Progress,
) -> Arrival<<B::Target as Target>::Running> {
    match link.hello() {
        Ok(_) => receive_greeted(Greeted { builder, link, progress }),
        Err(error) => Arrival::Failed(Failure { link, progress, error, answer: Kind::Abort }.give_up()),
    }
}

fn receive_greeted<B: Builder>(greeted: Greeted<B>) -> Arrival<<B::Target as Target>::Running> {
    match greeted.prepare().and_then(Prepared::receive).and_then(Ready::run) {
        Ok((running, report)) => Arrival::Running(running, report),
        Err(failure) => Arrival::Failed(failure.give_up()),
    }
}

/// Waits for the one peer whose guest is to run here, and receives it.
///
/// Who connects and does not greet as a godwit with the right certificate is told so, named to `turned_away`, and does not
/// end the wait. The first one who does is the only one: the socket is closed behind it.
///
/// # Errors
/// Nobody can be waited for: the socket failed.
pub fn wait_for_guest<B: Builder>(
    listener: Listener,
    tls: Option<&Tls>,
    builder: B,
    idle: Duration,
    progress: Progress,
    mut turned_away: impl FnMut(&MigrateError),
) -> Result<Arrival<<B::Target as Target>::Running>, MigrateError> {
    let address = listener.address();
    loop {
        let Some(socket) = listener.accept(None)? else { continue };
        let stream: Box<dyn Stream> = match tls {
            Some(tls) => tls.wrap(socket, &address)?,
            None => Box::new(socket),
        };
        let mut link = Link::new(stream, Side::Destination, idle);
        match link.hello() {
            Ok(_) => {
                drop(listener);
                progress.restart();
                return Ok(receive_greeted(Greeted { builder, link, progress }));
            }
            Err(error) => {
                turned_away(&error);
                link.abort(&error);
            }
        }
    }
}
