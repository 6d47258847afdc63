//! The sending side.
//!
//! ```text
//!   Idle ─hello─► Greeted ─offer─► Precopy ─rounds─► Paused ─state, last pages─► StateSent ─Ready, Commit─► Committed ─► Done
//!     │              │  └─offer, memory─► Lent ─────── pause, state ─────────────► │                            │
//!     │              │                │                 │                          │                            │
//!     └──────────────┴────────────────┴── any failure ──┴──────────────────────────┘                            │
//!                                   the guest runs on, dirty bits given back                 answer lost: stays paused
//! ```
//!
//! Each state owns the machine; a transition consumes it. `Committed` holds `Source::Gone`, which cannot be resumed. Where memory was
//! handed over, both sides have a [`Deed`]: a lost answer is settled by it, and only a guest that was taken is gone.

use super::error::MigrateError;
use super::fault::Step;
use super::link::Link;
use super::machine::{Memory, Source};
use super::owed::{Owed, Token, Word, send_missing};
use super::progress::{Downtime, Phase, Progress, Report};
use super::sender::Sender;
use super::streams::{Connect, Outflow, Over};
use super::switch::{MemoryWay, Mode, OnTimeout, Options, Round, Switch, Verdict};
use super::wire::{
    FLAG_COPY, FLAG_GRANTED, FLAG_JOIN, FLAG_MEMORY, FLAG_POSTCOPY, FLAG_REQUIRED, Kind, caps, decode_texts,
    put_pieces,
};
use crate::memory::{Deed, PageSet, Run, SharedRam};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How a migration ended, for the sending side.
#[derive(Debug)]
pub enum Outcome<S: Source> {
    /// The guest runs at the destination.
    Moved(S::Gone, Report),
    /// It did not happen. The machine is as before, its guest running if it was, unless `stuck` says why it could not be resumed.
    Stayed {
        /// The machine.
        machine: S,
        /// Why.
        error: MigrateError,
        /// Why the guest stands still although it was not given away.
        stuck: Option<String>,
    },
    /// Given away, and no word came that it runs there. It stands still here; only an operator knows.
    Unconfirmed(S::Gone, MigrateError),
}

/// Everything but the machine.
struct Context {
    link: Link,
    /// Makes further connections.
    connect: Option<Connect>,
    /// Those that were made.
    streams: Outflow,
    options: Options,
    progress: Progress,
    /// Every page that a dirty log gave away: given back if the guest stays.
    taken: Option<PageSet>,
    report: Report,
    /// Where the next part of the downtime began.
    lap: Instant,
}

/// A failed transition: the machine is still here.
struct Failure<S> {
    machine: S,
    context: Context,
    error: MigrateError,
}

type Next<S, T> = Result<T, Box<Failure<S>>>;

struct Idle<S> {
    machine: S,
    context: Context,
}
struct Greeted<S> {
    machine: S,
    context: Context,
    /// Capabilities of both sides.
    common: u32,
}
/// What the destination has accepted.
enum Accepted<S> {
    Pages(Precopy<S>),
    Memory(Lent<S>),
}
/// Guest memory is mapped at the destination too, which does not touch it before it has the deed.
struct Lent<S> {
    machine: S,
    context: Context,
    deed: Deed,
}
struct Precopy<S> {
    machine: S,
    context: Context,
    sender: Sender,
    /// Pages known to be dirty and not yet sent.
    pending: PageSet,
    /// Pages may go over after the guest, in this session.
    granted: Option<Token>,
}
struct Paused<S> {
    machine: S,
    context: Context,
    sender: Sender,
    pending: PageSet,
    since: Stop,
    /// They do.
    late: Option<Token>,
}
/// When the guest was stopped.
#[derive(Clone, Copy)]
struct Stop {
    /// From here on it may have stood still.
    since: Instant,
    /// And here its clock did. Its time at the destination counts from this one, so that it never gets ahead of the world's: a TSC that
    /// cannot be set would have to go backwards.
    clock: Instant,
}
struct StateSent<S> {
    machine: S,
    context: Context,
    since: Stop,
    deed: Option<Deed>,
    owed: Option<Owed>,
}
struct Committed<G> {
    gone: G,
    context: Context,
    since: Instant,
    owed: Option<Owed>,
    /// The word that the guest runs, or why there will be none; `None`: still to come.
    word: Option<Result<(), MigrateError>>,
}

/// Does `work`; on failure packs machine and context up for backing out.
fn step<S, R>(
    mut machine: S,
    mut context: Context,
    work: impl FnOnce(&mut S, &mut Context) -> Result<R, MigrateError>,
) -> Next<S, (S, Context, R)> {
    match work(&mut machine, &mut context) {
        Ok(result) => Ok((machine, context, result)),
        Err(error) => Err(Box::new(Failure { machine, context, error })),
    }
}

fn unexpected(kind: Kind, expected: &'static str) -> MigrateError {
    MigrateError::Unexpected { found: kind.name().into(), expected }
}

impl<S: Source> Idle<S> {
    fn hello(self) -> Next<S, Greeted<S>> {
        let (machine, context, common) = step(self.machine, self.context, |_, c| {
            let (_version, common) = c.link.hello()?;
            Ok(common)
        })?;
        Ok(Greeted { machine, context, common })
    }
}

impl<S: Source> Greeted<S> {
    fn preflight(self) -> Next<S, Accepted<S>> {
        let lz4 = self.context.options.compress && self.common & caps::LZ4 != 0;
        let common = self.common;
        let (machine, context, (deed, all)) = step(self.machine, self.context, |machine, c| {
            const DOING: &str = "waiting for the destination's answer to the offer";
            c.progress.update(|p| p.phase = Phase::Preflight);
            let offer = machine.offer().map_err(MigrateError::machine("describing the machine"))?;
            c.report.memory_bytes = offer.memory_bytes();
            let mut lend = c.lend(machine, common)?;
            let (wanted, token, streams) = c.open_session(common, lend.is_some())?;
            c.link.at(Step::Preflight);
            c.link.begin().extend_from_slice(&offer.encode());
            let flags = wanted | if lend.is_some() { FLAG_MEMORY } else { 0 };
            c.link.send_built(Kind::Offer, flags, "sending the offer")?;
            if let Some((memory, deed)) = &lend {
                c.link.at(Step::HandOver);
                put_pieces(c.link.begin(), &memory.pieces);
                let descriptors = [memory.file.as_fd(), deed.file().as_fd()];
                c.link.send_built_with(Kind::Memory, 0, &descriptors, "handing guest memory over")?;
            }
            let answer = c.link.recv(DOING)?;
            let granted = token.filter(|_| answer.flags & FLAG_GRANTED != 0);
            let joins = token.filter(|_| streams > 0 && answer.flags & FLAG_JOIN != 0);
            match answer.kind {
                Kind::Accept if answer.flags & FLAG_COPY != 0 => {
                    const WHY: &str = "its descriptors were lost on the way";
                    if lend.is_none() || c.options.memory == MemoryWay::HandOver {
                        return Err(MigrateError::Impossible(format!(
                            "guest memory cannot be handed over: {WHY}"
                        )));
                    }
                    lend = None;
                    c.report.copied_because = Some(WHY.into());
                }
                Kind::Accept => {}
                Kind::Refuse => return Err(MigrateError::Refused(decode_texts(answer.payload)?)),
                other => return Err(unexpected(other, "an answer to the offer")),
            }
            let sender = Sender::new(lz4, c.options.bandwidth);
            if let (Some(token), Some(connect)) = (joins, &c.connect) {
                c.streams = Outflow::open(connect, &token, streams, &sender)?;
            }
            c.report.connections = if lend.is_some() { 0 } else { 1 + c.streams.len() };
            c.report.handed_over = lend.is_some();
            let all = [offer.regions, machine.volumes()].concat();
            c.taken = Some(PageSet::empty(&all));
            if lend.is_none() {
                machine.start_logging().map_err(MigrateError::machine("starting the dirty log"))?;
            }
            if granted.is_none() && c.options.mode != Mode::Precopy {
                c.options.mode = Mode::Precopy;
            }
            if granted.is_none() && c.options.on_timeout == OnTimeout::Postcopy {
                c.options.on_timeout = OnTimeout::Cancel;
            }
            Ok((lend.map(|(_, deed)| deed), (sender, PageSet::full(&all), granted)))
        })?;
        Ok(match deed {
            Some(deed) => Accepted::Memory(Lent { machine, context, deed }),
            None => {
                let (sender, pending, granted) = all;
                Accepted::Pages(Precopy { machine, context, sender, pending, granted })
            }
        })
    }
}

impl<S: Source> Accepted<S> {
    fn go(self) -> Next<S, StateSent<S>> {
        match self {
            Accepted::Pages(precopy) => precopy.rounds().and_then(Paused::state),
            Accepted::Memory(lent) => lent.state(),
        }
    }
}

impl Context {
    /// Guest memory and a deed for it, if they are to be handed over.
    fn lend<S: Source>(
        &mut self,
        machine: &S,
        common: u32,
    ) -> Result<Option<(SharedRam, Deed)>, MigrateError> {
        let way = self.options.memory;
        if way == MemoryWay::Copy {
            return Ok(None);
        }
        let could = if !self.link.carries_descriptors() {
            Err("only unix: carries descriptors".to_owned())
        } else if common & caps::MEMORY == 0 {
            Err("the destination does not know how".to_owned())
        } else {
            let deed = || Deed::new().map_err(|e| format!("no deed could be made: {e}"));
            machine.hand_over().map_err(|e| e.to_string()).and_then(|memory| Ok((memory, deed()?)))
        };
        match could {
            Ok(lend) => Ok(Some(lend)),
            Err(why) if way == MemoryWay::HandOver => {
                Err(MigrateError::Impossible(format!("guest memory cannot be handed over: {why}")))
            }
            Err(why) => {
                self.report.copied_because = self.link.carries_descriptors().then_some(why);
                Ok(None)
            }
        }
    }

    /// Names a session where one is needed. Gives the offer's flags about pages that come later, the token, and how many
    /// further connections are to join.
    fn open_session(&mut self, common: u32, lent: bool) -> Result<(u16, Option<Token>, u8), MigrateError> {
        let several = !lent && self.connect.is_some() && common & caps::STREAMS != 0;
        let streams = if several { self.options.connections.saturating_sub(1) } else { 0 };
        let required = !self.options.postcopy_fallback;
        let mut late = self.options.wants_postcopy() && !lent;
        if late && common & caps::POSTCOPY == 0 {
            if required {
                return Err(MigrateError::Impossible("the destination does not know postcopy".into()));
            }
            late = false;
        }
        if !late && streams == 0 {
            return Ok((0, None, 0));
        }
        let mut token = Token::default();
        let got = rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty());
        if got != Ok(token.len()) {
            return Err(MigrateError::Impossible("there is no randomness for a session's token".into()));
        }
        self.link.send(Kind::Session, &token, "naming the session")?;
        if streams > 0 {
            self.link.send(Kind::Streams, &[streams], "asking for several connections")?;
        }
        let wanted = match late {
            true => FLAG_POSTCOPY | if required { FLAG_REQUIRED } else { 0 },
            false => 0,
        };
        Ok((wanted, Some(token), streams))
    }

    /// Stops the guest; from here on the blackout counts.
    fn stop<S: Source>(&mut self, machine: &mut S) -> Result<Stop, MigrateError> {
        if self.progress.is_cancelled() {
            return Err(MigrateError::Cancelled);
        }
        self.link.at(Step::Pause);
        let since = Instant::now();
        self.link.set_deadline(Some(since + self.options.blackout));
        self.streams.set_deadline(Some(since + self.options.blackout));
        machine.pause().map_err(MigrateError::machine("pausing the guest"))?;
        let clock = Instant::now();
        self.lap = since;
        self.lap(|d| &mut d.pause);
        self.progress.update(|p| p.phase = Phase::Paused);
        Ok(Stop { since, clock })
    }

    /// A part of the downtime is over.
    fn lap(&mut self, part: fn(&mut Downtime) -> &mut f64) {
        let began = std::mem::replace(&mut self.lap, Instant::now());
        *part(&mut self.report.downtime) += (self.lap - began).as_secs_f64() * 1e3;
    }

    /// Puts the pages sent so far into the report.
    fn count(&mut self, sender: &Sender) {
        let (pages, zero_pages, _) = self.streams.totals();
        self.report.pages = sender.pages + pages;
        self.report.zero_pages = sender.zero_pages + zero_pages;
    }

    /// Sends pages over all connections until it is `over`: the runs that are left.
    fn send(
        &mut self,
        sender: &mut Sender,
        memory: &dyn Memory,
        pages: (&PageSet, Option<&PageSet>),
        over: Over<'_>,
    ) -> Result<Vec<Run>, MigrateError> {
        self.streams.send((sender, &mut self.link), memory, pages, &self.progress, over)
    }

    fn send_state<S: Source>(&mut self, machine: &mut S) -> Result<(), MigrateError> {
        let blob = machine.save().map_err(MigrateError::machine("saving the state"))?;
        self.report.blob_bytes = blob.len() as u64;
        self.link.at(Step::State);
        self.link.send(Kind::State, &blob, "sending the state")?;
        self.lap(|d| &mut d.state);
        Ok(())
    }

    fn send_finish(&mut self) -> Result<(), MigrateError> {
        self.link.at(Step::Finish);
        self.streams.finish(self.report.rounds)?;
        self.link.send(Kind::Finish, &self.report.rounds.to_le_bytes(), "finishing")
    }

    /// Waits for the word that the guest runs.
    fn hear(&mut self, owed: &mut Option<Owed>) -> Result<(), MigrateError> {
        self.link.at(Step::Running);
        let (kind, payload) = Owed::recv(owed, &mut self.link, "waiting for the word that the guest runs")?;
        match kind {
            Kind::Running => Ok(()),
            Kind::NotRunning => {
                let why = decode_texts(&payload)?.join("; ");
                Err(MigrateError::NotRunning(why))
            }
            other => Err(unexpected(other, "the word that the guest runs")),
        }
    }
}

impl<S: Source> Lent<S> {
    fn state(self) -> Next<S, StateSent<S>> {
        let (machine, context, since) = step(self.machine, self.context, |machine, c| {
            let since = c.stop(machine)?;
            c.send_state(machine)?;
            c.send_finish()?;
            Ok(since)
        })?;
        Ok(StateSent { machine, context, since, deed: Some(self.deed), owed: None })
    }
}

impl Context {
    /// Moves the log's pages into `pending`, remembering them.
    fn fetch<S: Source>(&mut self, machine: &mut S, pending: &mut PageSet) -> Result<(), MigrateError> {
        let mut log = pending.clone();
        log.clear();
        let result = machine.take_dirty(&mut log).map_err(MigrateError::machine("reading the dirty log"));
        // Also after a failure: what was given away must be given back.
        self.taken.iter_mut().for_each(|t| t.merge(&log));
        pending.merge(&log);
        result
    }
}

impl<S: Source> Precopy<S> {
    fn rounds(self) -> Next<S, Paused<S>> {
        let Precopy { machine, context, mut sender, mut pending, granted } = self;
        let (machine, context, (since, late)) = step(machine, context, |machine, c| {
            c.progress.update(|p| p.phase = Phase::Precopy);
            let mut switch = Switch::new(c.options.clone());
            let mut zero = pending.clone();
            zero.clear();
            machine.untouched(&mut pending, &mut zero);
            let mut late = c.options.mode == Mode::Postcopy;
            if late {
                // Only which pages are zero: that costs nothing.
                let mut none = pending.clone();
                none.clear();
                c.report.rounds = 1;
                Self::round((&*machine, c), &mut sender, (&mut none, &mut zero), 1, &|| false)?;
            }
            for number in 1.. {
                if late {
                    break;
                }
                c.report.rounds = number;
                // Also in the midst of a round, which may take hours: the time is over, or postcopy is asked for.
                let (progress, limit) = (c.progress.clone(), switch.timeout());
                let wanted = granted.is_some();
                let over = move || progress.is_over(limit) || wanted && progress.wants_postcopy();
                let took =
                    Self::round((&*machine, c), &mut sender, (&mut pending, &mut zero), number, &over)?;
                let pages = took.1;
                c.fetch(machine, &mut pending)?;
                let dirtied = pending.count();
                let elapsed = c.progress.elapsed();
                switch.change(&c.progress.take_changes());
                let verdict = switch.judge(Round { number, pages, took: took.0, dirtied, elapsed });
                c.report.throttle_percent = c.report.throttle_percent.max(switch.percent());
                c.progress.update(|p| {
                    p.dirty_pages_per_s = dirtied as f64 / took.0.as_secs_f64().max(1e-9);
                    p.expected_downtime_ms = switch.expected.as_secs_f64() * 1e3;
                    p.throttle_percent = switch.percent();
                });
                match verdict {
                    Verdict::Switch => break,
                    Verdict::Postcopy => late = true,
                    Verdict::Again { .. } if granted.is_some() && c.progress.wants_postcopy() => late = true,
                    Verdict::GiveUp(why) => return Err(MigrateError::NotConverging(why.into())),
                    Verdict::Again { throttle } => {
                        machine
                            .throttle(throttle)
                            .map_err(MigrateError::machine("slowing the vCPUs down"))?;
                    }
                }
            }
            Ok((c.stop(machine)?, late))
        })?;
        Ok(Paused { machine, context, sender, pending, since, late: granted.filter(|_| late) })
    }

    /// Sends `pending` until it is `over`, and waits until the destination has what was sent; the rest stays in `pending`. Gives the time
    /// it took and the pages it handled.
    fn round(
        (machine, c): (&S, &mut Context),
        sender: &mut Sender,
        (pending, zero): (&mut PageSet, &mut PageSet),
        number: u32,
        over: Over<'_>,
    ) -> Result<(Duration, u64), MigrateError> {
        let (begun, sent_before) = (Instant::now(), c.link.sent() + c.streams.totals().2);
        let pages = pending.count();
        c.progress.update(|p| (p.round, p.round_pages, p.round_pages_done) = (number, pages, 0));
        c.link.at(Step::Precopy);
        let left = c.send(sender, &*machine.memory(), (pending, Some(zero)), over)?;
        pending.clear();
        // They were in it: nothing is refused.
        for run in left {
            let _ = pending.insert(run);
        }
        zero.clear();
        c.link.at(Step::Round);
        c.streams.end_round(number)?;
        c.link.send(Kind::RoundEnd, &number.to_le_bytes(), "ending a round")?;
        let ack = c.link.recv("waiting for a round's acknowledgement")?;
        if ack.kind != Kind::RoundAck || ack.payload != number.to_le_bytes() {
            return Err(unexpected(ack.kind, "this round's acknowledgement"));
        }
        let took = begun.elapsed();
        let rate = (c.link.sent() + c.streams.totals().2 - sent_before) as f64 / took.as_secs_f64().max(1e-9);
        c.progress.update(|p| p.bytes_per_s = rate);
        Ok((took, pages - pending.count()))
    }
}

impl<S: Source> Paused<S> {
    fn state(self) -> Next<S, StateSent<S>> {
        let Paused { machine, context, mut sender, mut pending, since, late } = self;
        let (machine, context, owed) = step(machine, context, |machine, c| {
            c.send_state(machine)?;
            // Saving may have written guest memory: the last log comes after it.
            c.fetch(machine, &mut pending)?;
            c.report.last_pages = pending.count();
            c.report.rounds += 1;
            let owed = match late {
                Some(token) => {
                    send_missing(&pending, &mut c.link)?;
                    let others = c.streams.totals();
                    Some(Owed::new(pending, machine.memory(), sender, token, others))
                }
                None => {
                    sender.lift_cap();
                    c.send(&mut sender, &*machine.memory(), (&pending, None), &|| false)?;
                    c.count(&sender);
                    None
                }
            };
            c.send_finish()?;
            Ok(owed)
        })?;
        Ok(StateSent { machine, context, since, deed: None, owed })
    }
}

impl<S: Source> StateSent<S> {
    fn commit(self) -> Next<S, Committed<S::Gone>> {
        let StateSent { machine, context, since, deed, mut owed } = self;
        let (machine, mut context, sent) = step(machine, context, |_, c| {
            c.link.at(Step::Ready);
            let (kind, payload) =
                Owed::recv(&mut owed, &mut c.link, "waiting for the destination to load the state")?;
            let took = <[u8; 8]>::try_from(payload).ok().filter(|_| kind == Kind::Ready);
            let took = took.ok_or_else(|| unexpected(kind, "readiness"))?;
            c.lap(|d| &mut d.pages);
            // Of that, what the destination says that loading took.
            let down = &mut c.report.downtime;
            down.load = (u64::from_le_bytes(took) as f64 / 1e6).min(down.pages);
            down.pages -= down.load;
            if c.progress.is_cancelled() {
                return Err(MigrateError::Cancelled);
            }
            c.link.set_deadline(Some(Instant::now() + c.options.blackout));
            c.link.at(Step::Commit);
            let paused_ns = u64::try_from(since.clock.elapsed().as_nanos()).unwrap_or(u64::MAX);
            match c.link.send_surely(Kind::Commit, &paused_ns.to_le_bytes(), "giving the guest away") {
                // Not a byte has left: nothing was committed.
                Err(Ok(error)) => Err(error),
                Err(Err(error)) => Ok(Err(error)),
                Ok(()) => Ok(Ok(())),
            }
        })?;
        context.progress.update(|p| p.phase = Phase::Committed);
        let word = match (deed, sent) {
            // From here on the guest is the destination's: whether the message arrives or not, it may run there.
            (None, Ok(())) => None,
            (None, Err(error)) => Some(Err(error)),
            // Whoever changes the deed first has the guest.
            (Some(deed), sent) => match sent.and_then(|()| context.hear(&mut None)) {
                Err(error) if deed.withdraw() => {
                    return Err(Box::new(Failure { machine, context, error }));
                }
                word => Some(word),
            },
        };
        Ok(Committed { gone: machine.commit(), context, since: since.since, owed, word })
    }
}

impl<G> Committed<G> {
    /// Waits for the word that the guest runs, and sends the pages that are owed. Whatever comes of it, it is given away.
    fn finish(self) -> (G, Context, Result<(), MigrateError>) {
        let Committed { gone, context: mut c, since, mut owed, word } = self;
        let mut confirmed = word.unwrap_or_else(|| c.hear(&mut owed));
        c.report.downtime_ms = since.elapsed().as_secs_f64() * 1e3;
        c.lap(|d| &mut d.start);
        // A guest that certainly does not run there needs no pages.
        if let Some(owed) = owed.filter(|_| !matches!(confirmed, Err(MigrateError::NotRunning(_)))) {
            let begun = Instant::now();
            confirmed = c.settle(owed, confirmed, since);
            c.report.postcopy_ms = begun.elapsed().as_secs_f64() * 1e3;
        }
        c.report.total_ms = c.progress.elapsed().as_secs_f64() * 1e3;
        c.report.bytes = c.link.sent() + c.streams.totals().2;
        (gone, c, confirmed)
    }
}

impl Context {
    /// Sends all pages that are owed, over as many connections as that takes. An error: it was never said that the guest runs, and no
    /// connection will come; or that it does not.
    fn settle(
        &mut self,
        mut owed: Owed,
        confirmed: Result<(), MigrateError>,
        since: Instant,
    ) -> Result<(), MigrateError> {
        let mut word = Word { said: confirmed.is_ok(), since };
        let mut broken = confirmed.err();
        self.count(&owed.sender);
        loop {
            let error = match broken.take() {
                Some(error) => error,
                None => {
                    self.progress.update(|p| (p.phase, p.error) = (word.phase(), None));
                    match owed.serve(&mut self.link, &self.progress, &mut self.report, &mut word) {
                        Ok(()) => {
                            self.count(&owed.sender);
                            return Ok(());
                        }
                        Err(error @ MigrateError::NotRunning(_)) => return Err(error),
                        Err(error) => self.link.why(error),
                    }
                }
            };
            self.link.cut();
            let phase = if word.said { Phase::Interrupted } else { Phase::Unconfirmed };
            let text = match (owed.pages.count(), word.said) {
                (0, true) => format!(
                    "{error}; all pages were sent, and no word came that they arrived: connect again (godwit migrate --recover), \
                     or look there whether the guest has them all"
                ),
                (left, _) => format!(
                    "{error}; at least {left} pages of the guest are only here: connect again (godwit migrate --recover)"
                ),
            };
            tracing::warn!("{text}");
            self.progress.update(|p| (p.phase, p.error) = (phase, Some(text)));
            let Ok(Some(redial)) = self.progress.wait_for_redial(None) else { return Err(error) };
            let (link, answer) = redial.make();
            match link.and_then(|link| owed.rejoin(link)) {
                Ok(link) => {
                    self.report.recoveries += 1;
                    self.link = link;
                    self.progress.update(|p| (p.phase, p.error) = (word.phase(), None));
                    answer.tell(Ok(()));
                }
                Err(e) => {
                    answer.tell(Err(&e));
                    broken = Some(e);
                }
            }
        }
    }
}

impl<S: Source> Failure<S> {
    fn back_out(self) -> Outcome<S> {
        let Failure { mut machine, mut context, error } = self;
        // The guest first: the peer's reason can wait, the guest cannot.
        let stuck = match &context.taken {
            Some(taken) => machine.abandon(taken).err().map(|e| e.to_string()),
            None => None,
        };
        let error = context.link.why(error);
        context.link.abort(&error);
        context.progress.update(|p| {
            p.phase = Phase::Failed;
            p.error = Some(match &stuck {
                None => error.to_string(),
                Some(why) => format!("{error}; and the guest could not be resumed: {why}"),
            });
            p.report = Some(context.report.clone());
        });
        Outcome::Stayed { machine, error, stuck }
    }
}

/// Sends a running machine over a connected link. Comes back when it is decided where the guest runs.
pub fn send<S: Source>(machine: S, link: Link, options: Options, progress: Progress) -> Outcome<S> {
    send_over(machine, link, None, options, progress)
}

/// The same; `connect` makes the further connections that `options` asks for.
pub fn send_over<S: Source>(
    machine: S,
    link: Link,
    connect: Option<Connect>,
    options: Options,
    progress: Progress,
) -> Outcome<S> {
    let (streams, report) = (Outflow::default(), Report::default());
    let lap = Instant::now();
    let context = Context { link, connect, streams, options, progress, taken: None, report, lap };
    let committed = Idle { machine, context }
        .hello()
        .and_then(Greeted::preflight)
        .and_then(Accepted::go)
        .and_then(StateSent::commit);
    let committed = match committed {
        Ok(committed) => committed,
        Err(failure) => return failure.back_out(),
    };
    let (gone, context, confirmed) = committed.finish();
    let Context { progress, report, .. } = context;
    progress.update(|p| {
        p.phase = if confirmed.is_ok() { Phase::Done } else { Phase::Unconfirmed };
        p.error = confirmed.as_ref().err().map(|e| e.to_string());
        p.bytes = report.bytes;
        p.report = Some(report.clone());
    });
    match confirmed {
        Ok(()) => Outcome::Moved(gone, report),
        Err(error) => Outcome::Unconfirmed(gone, error),
    }
}

/// What to tell the operator of an [`Outcome::Unconfirmed`].
pub fn unconfirmed_advice(peer: &str, error: &MigrateError) -> String {
    format!(
        "the guest was given to {peer} and no word came that it runs there ({error}); it stands still here. \
         Look there: if it runs, end this process; only if it certainly does not, resume it here"
    )
}
