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
use super::intake::Intake;
use super::link::Link;
use super::machine::{Builder, Target};
use super::offer::{Offer, preflight};
use super::owed::{Token, take_missing};
use super::pager::{Pager, Paging};
use super::progress::{Phase, Progress, Report};
use super::streams::{Inflow, MAX_CONNECTIONS};
use super::tls::Tls;
use super::transport::{Listener, Stream};
use super::wire::{
    FLAG_COPY, FLAG_GRANTED, FLAG_JOIN, FLAG_MEMORY, FLAG_POSTCOPY, FLAG_REQUIRED, Kind, encode_texts, pieces,
};
use crate::memory::{Deed, PageSet, SharedRam};
use crate::state::codec::Cursor;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// The guest's time is moved on by at most this when it arrives.
const MAX_ADVANCE: Duration = Duration::from_secs(3600);

/// Whoever waits for a peer sees so soon that the wait was cancelled.
const LOOK_UP: Duration = Duration::from_millis(200);

/// How a migration ended, for the receiving side.
#[derive(Debug)]
pub enum Arrival<R> {
    /// The guest runs here.
    Running(R, Report),
    /// Nothing runs here.
    Failed(MigrateError),
}

/// Where the one peer came in, kept while it may have to come again.
pub(super) struct Door {
    listener: Listener,
    tls: Option<Tls>,
}

impl Door {
    /// The next who connects, within `limit`; a handshake may take `idle`.
    pub(super) fn accept(
        &self,
        idle: Duration,
        limit: Duration,
    ) -> Result<Option<Box<dyn Stream>>, MigrateError> {
        let Some(socket) = self.listener.accept(Some(limit))? else { return Ok(None) };
        let stream: Box<dyn Stream> = match &self.tls {
            Some(tls) => tls.wrap(socket, &self.listener.address())?,
            None => Box::new(socket),
        };
        let failed = |source| MigrateError::Io { doing: "taking a connection", source };
        stream.set_idle_limit(idle).map_err(failed)?;
        Ok(Some(stream))
    }
}

struct Greeted<B> {
    builder: B,
    link: Link,
    progress: Progress,
    door: Option<Door>,
}

struct Receiving<T> {
    target: T,
    intake: Intake,
    link: Link,
    /// Further connections.
    streams: Option<Inflow>,
    progress: Progress,
    report: Report,
    /// Pages may come after the commit, in this session.
    granted: Option<Token>,
    /// And these do.
    absent: PageSet,
    door: Option<Door>,
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

/// The same, with pages that come later: the connection is the pager's.
struct Lacking<T> {
    target: T,
    pager: Pager,
    advance: u64,
    progress: Progress,
    report: Report,
}

/// What is left to do is run.
enum Loaded<T> {
    All(Box<Ready<T>>),
    Some(Box<Lacking<T>>),
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
        let Greeted { builder, mut link, progress, door } = self;
        let fail = |link, progress, error, answer| Err(Box::new(Failure { link, progress, error, answer }));
        progress.update(|p| p.phase = Phase::Preflight);
        let Taken { offer, mut flags, memory, token, wanted, streams } = match take_offer(&mut link) {
            Ok(taken) => taken,
            Err(error) => return fail(link, progress, error, Kind::Abort),
        };
        let refusals = preflight(&offer, &builder.capabilities());
        if !refusals.is_empty() {
            return fail(link, progress, MigrateError::Refused(refusals), Kind::Refuse);
        }
        let (memory, deed) = memory.unzip();
        let memory_here = memory.is_some();
        let target = match builder.build(&offer, memory) {
            Ok(target) => target,
            Err(why) => {
                let error = MigrateError::Refused(vec![format!("cannot build the machine: {why}")]);
                return fail(link, progress, error, Kind::Refuse);
            }
        };
        // Where memory is handed over nothing is left to come.
        let whole = match target.volumes().is_empty() {
            true => target.can_miss(),
            false => Err("disks that move with the guest must be whole before it runs".into()),
        };
        let granted = match whole {
            _ if wanted == 0 || memory_here => None,
            Ok(()) => token,
            Err(why) if wanted & FLAG_REQUIRED != 0 => {
                let error = MigrateError::Refused(vec![format!("postcopy is not possible here: {why}")]);
                return fail(link, progress, error, Kind::Refuse);
            }
            Err(_) => None,
        };
        if granted.is_some() {
            flags |= FLAG_GRANTED;
        }
        let joins = token.filter(|_| streams > 0 && door.is_some() && !memory_here);
        if joins.is_some() {
            flags |= FLAG_JOIN;
        }
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
        let mut intake = Intake::new(target.memory(), &all);
        let absent = intake.none();
        let streams = match (joins, &door) {
            (Some(token), Some(door)) => {
                let idle = link.idle();
                match Inflow::accept(streams, &token, idle, |limit| door.accept(idle, limit), &intake) {
                    Ok(streams) => Some(streams),
                    Err(error) => return fail(link, progress, error, Kind::Abort),
                }
            }
            _ => None,
        };
        if streams.is_none() {
            intake.write_aside();
        }
        let door = door.filter(|_| granted.is_some());
        Ok(Prepared::Pages(Receiving {
            target,
            intake,
            link,
            streams,
            progress,
            report,
            granted,
            absent,
            door,
        }))
    }
}

/// Guest memory, and the deed for it.
type Handed = (SharedRam, Deed);

/// The offer, and what else came with it.
struct Taken {
    offer: Offer,
    /// Flags of the answer.
    flags: u16,
    memory: Option<Handed>,
    token: Option<Token>,
    /// The offer's flags about pages that come later.
    wanted: u16,
    /// Connections that the source would open besides this one.
    streams: u8,
}

fn take_offer(link: &mut Link) -> Result<Taken, MigrateError> {
    const DOING: &str = "waiting for the offer";
    let mut frame = link.recv(DOING)?;
    let mut token = None;
    if frame.kind == Kind::Session {
        let named = Token::try_from(frame.payload);
        token = Some(named.map_err(|_| MigrateError::Frame("a session without a token".into()))?);
        frame = link.recv(DOING)?;
    }
    let mut streams = 0;
    if frame.kind == Kind::Streams {
        match (frame.payload, &token) {
            ([n @ 1..MAX_CONNECTIONS], Some(_)) => streams = *n,
            _ => return Err(MigrateError::Frame("a senseless number of connections".into())),
        }
        frame = link.recv(DOING)?;
    }
    if frame.kind != Kind::Offer {
        return Err(unexpected(frame.kind, "an offer"));
    }
    let handed_over = frame.flags & FLAG_MEMORY != 0;
    let wanted = frame.flags & (FLAG_POSTCOPY | FLAG_REQUIRED);
    if wanted != 0 && token.is_none() {
        return Err(MigrateError::Frame("postcopy without a session".into()));
    }
    let offer = Offer::decode(frame.payload)?;
    let memory = if handed_over { take_memory(link, &offer)? } else { None };
    let flags = if handed_over && memory.is_none() { FLAG_COPY } else { 0 };
    Ok(Taken { offer, flags, memory, token, wanted, streams })
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
    fn receive(self) -> Next<Loaded<T>> {
        match self {
            Prepared::Pages(receiving) => receiving.receive(),
            Prepared::Memory(lent) => lent.receive().map(|ready| Loaded::All(Box::new(ready))),
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
    fn receive(mut self) -> Next<Loaded<T>> {
        let taken = self.take_all().and_then(|blob| {
            // With pages missing the connection is the pager's before the state is loaded: loading may touch memory.
            if self.absent.is_empty() {
                load(&mut self.target, &mut self.link, &mut self.report, &blob)?;
            }
            Ok(blob)
        });
        let blob = match taken {
            Ok(blob) => blob,
            Err(error) => {
                let Receiving { link, progress, .. } = self;
                return Err(Box::new(Failure { link, progress, error, answer: Kind::Abort }));
            }
        };
        match self.granted {
            Some(token) if !self.absent.is_empty() => {
                self.lack(token, &blob).map(|lacking| Loaded::Some(Box::new(lacking)))
            }
            _ => {
                let Receiving { target, link, progress, report, .. } = self;
                Ok(Loaded::All(Box::new(Ready { target, link, progress, report, deed: None })))
            }
        }
    }

    /// Loads the state with pages missing, and waits for the commit.
    fn lack(self, token: Token, blob: &[u8]) -> Next<Lacking<T>> {
        let Receiving { mut target, intake, link, progress, mut report, absent, door, .. } = self;
        let fail =
            |link, progress, error| Err(Box::new(Failure { link, progress, error, answer: Kind::Abort }));
        report.blob_bytes = blob.len() as u64;
        drop(intake);
        let missing = match target.miss(&absent) {
            Ok(missing) => missing,
            Err(why) => {
                let doing = "preparing for pages that come later";
                return fail(link, progress, MigrateError::Machine { doing, why: why.to_string() });
            }
        };
        let paging =
            Paging { missing, absent, link, token, door, progress: progress.clone(), report: report.clone() };
        let pager = match Pager::start(paging) {
            Ok(pager) => pager,
            Err(failed) => return fail(failed.0, progress, failed.1),
        };
        let begun = Instant::now();
        if let Err(why) = target.load(blob) {
            let error = MigrateError::Machine { doing: "loading the state", why: why.to_string() };
            return match pager.stop() {
                Some(link) => fail(link, progress, error),
                None => Err(Box::new(Failure::without_link(progress, error))),
            };
        }
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match pager.ready(took) {
            Ok(advance) => {
                let advance = advance.min(MAX_ADVANCE.as_nanos() as u64);
                Ok(Lacking { target, pager, advance, progress, report })
            }
            Err(Some(failed)) => fail(failed.0, progress, failed.1),
            Err(None) => Err(Box::new(Failure::without_link(progress, MigrateError::Cancelled))),
        }
    }

    /// Every page that comes before the commit, and the state.
    fn take_all(&mut self) -> Result<Vec<u8>, MigrateError> {
        const DOING: &str = "receiving pages";
        let all = self.intake.pages();
        self.progress.update(|p| (p.phase, p.round, p.round_pages) = (Phase::Precopy, 1, all));
        let mut blob: Option<Vec<u8>> = None;
        let mut round = 0u32;
        self.link.at(Step::Precopy);
        loop {
            if self.progress.is_cancelled() {
                return Err(MigrateError::Cancelled);
            }
            let frame = self.link.recv(DOING)?;
            match frame.kind {
                kind if self.intake.take(kind, frame.flags, frame.payload)? => self.show(round + 1),
                Kind::RoundEnd if blob.is_none() => {
                    round = round.saturating_add(1);
                    if frame.payload != round.to_le_bytes() {
                        return Err(MigrateError::Frame(format!("the end of another round than {round}")));
                    }
                    self.intake.settle()?;
                    self.streams.iter().try_for_each(|s| s.end_round(round, self.link.idle()))?;
                    self.link.at(Step::Round);
                    self.link.send(Kind::RoundAck, &round.to_le_bytes(), "acknowledging a round")?;
                    self.show(round);
                }
                Kind::State if blob.is_none() => {
                    self.progress.update(|p| p.phase = Phase::Paused);
                    blob = Some(frame.payload.to_vec());
                    self.link.at(Step::State);
                }
                Kind::Finish => {
                    self.intake.settle()?;
                    self.streams.iter().try_for_each(|s| s.finish(self.link.idle()))?;
                    self.link.at(Step::Finish);
                    let Some(blob) = blob else { return Err(unexpected(Kind::Finish, "the state")) };
                    if !self.intake.is_full() {
                        return Err(MigrateError::Frame("some pages were never sent".into()));
                    }
                    self.report.rounds = round + 1;
                    (self.report.pages, self.report.zero_pages) = self.intake.counts();
                    self.report.connections = 1 + self.streams.as_ref().map_or(0, Inflow::count);
                    self.report.bytes = self.streams.as_ref().map_or(0, Inflow::received);
                    return Ok(blob);
                }
                Kind::Missing if blob.is_some() && self.granted.is_some() => {
                    take_missing(frame.payload, &mut self.absent)?;
                    self.intake.settle()?;
                    self.intake.owe(&self.absent);
                }
                other => return Err(unexpected(other, "pages or the state")),
            }
        }
    }
}

impl<T: Target> Receiving<T> {
    /// How far it is. How many pages a round has is known of the first one only: all.
    fn show(&self, round: u32) {
        let bytes = self.link.received() + self.streams.as_ref().map_or(0, Inflow::received);
        let (pages, zero_pages) = self.intake.counts();
        self.progress.update(|p| {
            (p.round, p.pages, p.zero_pages, p.bytes) = (round, pages, zero_pages, bytes);
            p.round_pages_done = (pages + zero_pages).min(p.round_pages);
        });
    }
}

impl<T: Target> Loaded<T> {
    fn run(self) -> Next<(T::Running, Report)> {
        match self {
            Loaded::All(ready) => ready.run(),
            Loaded::Some(lacking) => lacking.run(),
        }
    }
}

impl<T: Target> Lacking<T> {
    fn run(self) -> Next<(T::Running, Report)> {
        let Lacking { target, pager, advance, progress, report } = self;
        match target.run(advance) {
            Ok(running) => {
                pager.running();
                Ok((running, report))
            }
            Err(why) => {
                let error = MigrateError::Machine { doing: "starting the guest", why: why.to_string() };
                Err(Box::new(match pager.stop() {
                    Some(link) => Failure { link, progress, error, answer: Kind::NotRunning },
                    None => Failure::without_link(progress, error),
                }))
            }
        }
    }
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
        report.bytes += link.received();
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
    /// The connection went with a thread that is no more.
    fn without_link(progress: Progress, error: MigrateError) -> Self {
        Failure { link: Link::broken(Side::Destination), progress, error, answer: Kind::Abort }
    }

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
        Ok(_) => receive_greeted(Greeted { builder, link, progress, door: None }),
        Err(error) => Arrival::Failed(Failure { link, progress, error, answer: Kind::Abort }.give_up()),
    }
}

fn receive_greeted<B: Builder>(greeted: Greeted<B>) -> Arrival<<B::Target as Target>::Running> {
    match greeted.prepare().and_then(Prepared::receive).and_then(Loaded::run) {
        Ok((running, report)) => Arrival::Running(running, report),
        Err(failure) => Arrival::Failed(failure.give_up()),
    }
}

/// Waits for the one peer whose guest is to run here, and receives it.
///
/// Who connects and does not greet as a godwit with the right certificate is told so, named to `turned_away`, and does not
/// end the wait. The first one who does is the only one: the socket is closed behind it, or, where pages may come after the guest, kept
/// for it alone.
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
        if progress.is_cancelled() {
            return Err(MigrateError::Cancelled);
        }
        let Some(socket) = listener.accept(Some(LOOK_UP))? else { continue };
        let stream: Box<dyn Stream> = match tls {
            Some(tls) => tls.wrap(socket, &address)?,
            None => Box::new(socket),
        };
        let mut link = Link::new(stream, Side::Destination, idle);
        match link.hello() {
            Ok(_) => {
                progress.restart();
                // Nobody is listened to from here on, unless this peer may have to come again.
                let door = Some(Door { listener, tls: tls.cloned() });
                return Ok(receive_greeted(Greeted { builder, link, progress, door }));
            }
            Err(error) => {
                turned_away(&error);
                link.abort(&error);
            }
        }
    }
}
