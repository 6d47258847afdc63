//! How far a migration is: written by the migrating thread, read by the API, the live bar and the final report.

use super::error::MigrateError;
use super::link::Link;
use super::request::LimitsChange;
use super::switch::Options;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

/// Where a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Connecting, greeting.
    #[default]
    Hello,
    /// The destination judges the offer and builds.
    Preflight,
    /// Pages go over while the guest runs.
    Precopy,
    /// The guest stands still; last pages and state go over.
    Paused,
    /// Given away; the destination has not said yet that it runs.
    Committed,
    /// The guest runs at the destination; the pages that are still here follow.
    Postcopy,
    /// As before, and the connection is broken: the guest stops where it touches a missing page, and each side waits for the source's
    /// operator to connect them again.
    Interrupted,
    /// The guest runs at the destination.
    Done,
    /// It did not happen; the guest runs on at the source.
    Failed,
    /// Given away, and the answer was lost: the guest stands still here and may run there. An operator decides.
    Unconfirmed,
}

/// The figures of a finished (or failed) attempt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// From the first byte to the destination's word that the guest runs, in milliseconds.
    pub total_ms: f64,
    /// From the pause to that word, in milliseconds: as the VMM sees it.
    pub downtime_ms: f64,
    /// What the downtime was made of.
    #[serde(default)]
    pub downtime: Downtime,
    /// Rounds of precopy, the last one (guest paused) included.
    pub rounds: u32,
    /// Pages sent with their contents.
    pub pages: u64,
    /// Pages of which only "zero" was sent.
    pub zero_pages: u64,
    /// Pages sent in the last round.
    pub last_pages: u64,
    /// Bytes sent over the wire, all included.
    pub bytes: u64,
    /// Size of the state container.
    pub blob_bytes: u64,
    /// Highest throttle of the vCPUs: percent of the time that they stood still.
    pub throttle_percent: f64,
    /// Connections over which pages went; 0 where none did.
    #[serde(default)]
    pub connections: u8,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Guest memory itself was handed over: nothing of it was copied.
    #[serde(default)]
    pub handed_over: bool,
    /// Pages that went over after the guest ran at the destination.
    #[serde(default)]
    pub postcopy_pages: u64,
    /// Of these, pages that the guest waited for.
    #[serde(default)]
    pub requested_pages: u64,
    /// From the guest's start at the destination to its last page, in milliseconds.
    #[serde(default)]
    pub postcopy_ms: f64,
    /// How often a broken connection was replaced meanwhile.
    #[serde(default)]
    pub recoveries: u32,
    /// Why it was copied although both ends are on one machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_because: Option<String>,
}

/// What the guest stood still for, in milliseconds, one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Downtime {
    /// Stopping vCPUs, clock and devices.
    pub pause: f64,
    /// Saving the state and sending it.
    pub state: f64,
    /// The last pages, on their way too.
    pub pages: f64,
    /// Verifying and loading the state, as the destination says.
    pub load: f64,
    /// The commit, the guest's start and the word of it.
    pub start: f64,
}

/// Bytes with a unit, for people.
pub fn bytes_text(n: f64) -> String {
    let (mut n, mut unit) = (n, "B");
    for next in ["KiB", "MiB", "GiB"] {
        if n < 1024.0 {
            break;
        }
        (n, unit) = (n / 1024.0, next);
    }
    if unit == "B" { format!("{n:.0} {unit}") } else { format!("{n:.1} {unit}") }
}

/// A moment of a migration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// "source" or "destination".
    pub role: String,
    /// The other end's address.
    pub peer: String,
    /// Where it stands.
    pub phase: Phase,
    /// Why it failed, or what it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Milliseconds since it began.
    pub elapsed_ms: f64,
    /// Round of precopy, from 1.
    pub round: u32,
    /// Pages handled in this round, and of how many.
    pub round_pages_done: u64,
    /// See `round_pages_done`.
    pub round_pages: u64,
    /// Pages sent so far with contents.
    pub pages: u64,
    /// And as zero.
    pub zero_pages: u64,
    /// Bytes sent (or received) so far.
    pub bytes: u64,
    /// Measured speed, in bytes a second: of the last moment or of the last round.
    pub bytes_per_s: f64,
    /// Pages that the guest dirtied a second during the last round.
    pub dirty_pages_per_s: f64,
    /// What a switch-over now would cost, in milliseconds.
    pub expected_downtime_ms: f64,
    /// How much the vCPUs are slowed down: percent of the time that they stand still.
    pub throttle_percent: f64,
    /// After the switch to postcopy: pages still missing at the destination.
    #[serde(default)]
    pub missing_pages: u64,
    /// The figures, once it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
}

impl Snapshot {
    /// True when nothing more will happen by itself.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Failed | Phase::Unconfirmed)
    }
}

/// Makes a connection. Called on the migrating thread, whose filter allows it.
pub type Dial = Box<dyn FnOnce() -> Result<Link, MigrateError> + Send>;

/// A new connection in the place of a broken one.
pub(super) struct Redial {
    dial: Dial,
    answer: mpsc::Sender<Result<(), String>>,
}

/// Tells who asked for a new connection how it went.
pub(super) struct Answer(mpsc::Sender<Result<(), String>>);

impl Redial {
    /// The connection, and whom to tell.
    pub(super) fn make(self) -> (Result<Link, MigrateError>, Answer) {
        ((self.dial)(), Answer(self.answer))
    }
}

impl Answer {
    pub(super) fn tell(&self, result: Result<(), &MigrateError>) {
        // Nobody need wait for it.
        let _ = self.0.send(result.map_err(ToString::to_string));
    }
}

/// How a migrating thread with a broken connection gets another one.
#[derive(Default)]
struct Repair {
    waits: bool,
    redial: Option<Redial>,
    given_up: bool,
}

/// Sees how it goes, often enough to draw it.
pub type Observer = Box<dyn FnMut(&Snapshot) + Send>;

/// How often an observer looks, besides at each new phase.
const LOOK: Duration = Duration::from_millis(100);
/// Over so long at least the speed is measured.
const MEASURE: Duration = Duration::from_millis(250);

/// Bytes at a time, to measure the speed from.
struct Meter {
    at: Instant,
    bytes: u64,
}

struct Shared {
    state: Mutex<Snapshot>,
    meter: Mutex<Meter>,
    observer: Mutex<Option<(Observer, Instant)>>,
    started: Mutex<Instant>,
    cancel: AtomicBool,
    postcopy: AtomicBool,
    changes: Mutex<LimitsChange>,
    repair: Mutex<Repair>,
    bell: Condvar,
    /// The guest at the destination has ended: nobody waits for its pages any more.
    ended: AtomicBool,
    /// Wakes who puts the pages there.
    pager: Mutex<Option<Arc<OwnedFd>>>,
}

/// Shared by the migrating thread and whoever looks on.
#[derive(Clone)]
pub struct Progress {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.snapshot().fmt(f)
    }
}

impl Progress {
    /// A migration that begins now.
    pub fn new(role: &str, peer: &str) -> Self {
        let state = Snapshot { role: role.into(), peer: peer.into(), ..Default::default() };
        let shared = Shared {
            state: Mutex::new(state),
            meter: Mutex::new(Meter { at: Instant::now(), bytes: 0 }),
            observer: Mutex::new(None),
            started: Mutex::new(Instant::now()),
            cancel: AtomicBool::new(false),
            postcopy: AtomicBool::new(false),
            changes: Mutex::default(),
            repair: Mutex::default(),
            bell: Condvar::new(),
            ended: AtomicBool::new(false),
            pager: Mutex::new(None),
        };
        Progress { shared: Arc::new(shared) }
    }

    /// As it stands.
    pub fn snapshot(&self) -> Snapshot {
        let mut s = self.shared.state.lock().unwrap_or_else(|e| e.into_inner()).clone();
        if !s.is_over() {
            s.elapsed_ms = self.elapsed().as_secs_f64() * 1e3;
        }
        s
    }

    /// Time since it began.
    pub fn elapsed(&self) -> Duration {
        self.shared.started.lock().unwrap_or_else(|e| e.into_inner()).elapsed()
    }

    /// It begins only now: the time before was waiting.
    pub fn restart(&self) {
        let now = Instant::now();
        *self.shared.started.lock().unwrap_or_else(|e| e.into_inner()) = now;
        self.shared.meter.lock().unwrap_or_else(|e| e.into_inner()).at = now;
    }

    /// Changes it.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut s = self.shared.state.lock().unwrap_or_else(|e| e.into_inner());
        let before = s.phase;
        change(&mut s);
        self.measure(&mut s);
        if s.is_over() && s.elapsed_ms == 0.0 {
            s.elapsed_ms = self.elapsed().as_secs_f64() * 1e3;
        }
        let new_phase = s.phase != before;
        drop(s);
        self.look(new_phase);
    }

    /// The speed over the last moment.
    fn measure(&self, s: &mut Snapshot) {
        let mut meter = self.shared.meter.lock().unwrap_or_else(|e| e.into_inner());
        let took = meter.at.elapsed();
        if s.bytes < meter.bytes {
            *meter = Meter { at: Instant::now(), bytes: s.bytes };
        } else if took >= MEASURE {
            s.bytes_per_s = (s.bytes - meter.bytes) as f64 / took.as_secs_f64();
            *meter = Meter { at: Instant::now(), bytes: s.bytes };
        }
    }

    /// Has `observer` look from here on. Called by whoever changes something, in between.
    pub fn observe(&self, observer: Observer) {
        *self.shared.observer.lock().unwrap_or_else(|e| e.into_inner()) = Some((observer, Instant::now()));
    }

    fn look(&self, now: bool) {
        let mut observer = self.shared.observer.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((observer, at)) = observer.as_mut().filter(|(_, at)| now || at.elapsed() >= LOOK) {
            observer(&self.snapshot());
            *at = Instant::now();
        }
    }

    fn changes(&self) -> MutexGuard<'_, LimitsChange> {
        self.shared.changes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Asks for other limits: of the bandwidth from now on, of the others after this round.
    pub fn change(&self, change: LimitsChange) {
        self.changes().merge(change);
    }

    /// A new cap of the bandwidth, if one was asked for since the last time; 0: none.
    pub(super) fn take_bandwidth(&self) -> Option<u64> {
        self.changes().bandwidth_bytes_per_s.take()
    }

    /// The other limits that were asked for since the last time.
    pub(super) fn take_changes(&self) -> LimitsChange {
        let mut changes = self.changes();
        let bandwidth_bytes_per_s = changes.bandwidth_bytes_per_s;
        std::mem::replace(&mut changes, LimitsChange { bandwidth_bytes_per_s, ..LimitsChange::default() })
    }

    /// True if more time than `limit`, or than was asked for since, has passed.
    pub(super) fn is_over(&self, limit: Option<Duration>) -> bool {
        let mut options = Options { timeout: limit, ..Options::default() };
        self.changes().apply(&mut options);
        options.timeout.is_some_and(|limit| self.elapsed() >= limit)
    }

    /// Asks for the switch to postcopy now, where the destination agreed to that.
    pub fn ask_postcopy(&self) {
        self.shared.postcopy.store(true, Ordering::SeqCst);
    }

    pub(super) fn wants_postcopy(&self) -> bool {
        self.shared.postcopy.load(Ordering::SeqCst)
    }

    fn repair(&self) -> MutexGuard<'_, Repair> {
        self.shared.repair.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Has a migration whose connection is broken make a new one, on which nothing has been said yet, and go on. `None`: it waits for
    /// none; otherwise where it says whether it goes on.
    pub fn reconnect(&self, dial: Dial) -> Option<mpsc::Receiver<Result<(), String>>> {
        let mut repair = self.repair();
        if !repair.waits || repair.redial.is_some() {
            return None;
        }
        let (answer, told) = mpsc::channel();
        repair.waits = false;
        repair.redial = Some(Redial { dial, answer });
        self.shared.bell.notify_all();
        Some(told)
    }

    /// True while the migrating thread waits for a new connection.
    pub fn waits_for_connection(&self) -> bool {
        self.repair().waits
    }

    /// No new connection will come.
    pub fn give_up(&self) {
        self.repair().given_up = true;
        self.shared.bell.notify_all();
    }

    /// Waits for a new connection. `Err`: none will come; `None`: none for so long.
    pub(super) fn wait_for_redial(&self, limit: Option<Duration>) -> Result<Option<Redial>, ()> {
        let mut repair = self.repair();
        repair.waits = repair.redial.is_none();
        let end = limit.map(|l| Instant::now() + l);
        loop {
            if repair.given_up {
                repair.waits = false;
                return Err(());
            }
            if let Some(redial) = repair.redial.take() {
                repair.waits = false;
                return Ok(Some(redial));
            }
            let left = end.map(|e| e.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            let left = left.unwrap_or(Duration::from_secs(3600));
            repair = self.shared.bell.wait_timeout(repair, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }

    /// Who puts missing pages there is woken by this.
    pub(super) fn set_pager(&self, bell: Arc<OwnedFd>) {
        *self.shared.pager.lock().unwrap_or_else(|e| e.into_inner()) = Some(bell);
    }

    /// The guest at the destination has ended: pages that are still missing are not needed. Waits, at most `limit`, until the source
    /// has been told so.
    pub fn guest_ended(&self, limit: Duration) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let bell = self.shared.pager.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let Some(bell) = bell else { return };
        let _ = rustix::io::write(&bell, &1u64.to_ne_bytes());
        let end = Instant::now() + limit;
        while !self.snapshot().is_over() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(super) fn has_guest_ended(&self) -> bool {
        self.shared.ended.load(Ordering::SeqCst)
    }

    /// Asks the migrating thread to stop. Without effect after the commit.
    pub fn cancel(&self) {
        self.shared.cancel.store(true, Ordering::SeqCst);
    }

    /// True if somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancel.load(Ordering::SeqCst)
    }
}
