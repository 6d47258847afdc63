//! Whole migrations of a mock machine over real sockets, and every fault at every step of either side.

use super::fault::{Action, Plan, Side, Step};
use super::offer::sample::{capabilities, offer};
use super::*;
use crate::memory::ram::{Backing, allocate, make_writable};
use crate::memory::{GuestRam, Missing, PAGE_SIZE, PageSet, Region, Run, SharedRam, missing_is_possible};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

const PAGE: usize = PAGE_SIZE as usize;

/// What a test can see from outside of both machines.
#[derive(Default)]
struct World {
    source_runs: AtomicBool,
    destination_runs: AtomicBool,
    advance_ns: AtomicU64,
    /// Memory and blob that the source had when it stopped.
    left: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
    arrived: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
    /// The guest at the destination, while it looks at its memory.
    guest: Mutex<Option<JoinHandle<()>>>,
    throttle: AtomicU64,
}

/// Guest memory of both mocks: real, since it may be handed over.
struct Ram {
    ram: GuestRam,
    len: usize,
}

impl Ram {
    fn new(backing: &Backing) -> Arc<Ram> {
        Arc::new(Ram { ram: allocate(MAPPED, backing).unwrap(), len: MAPPED as usize })
    }

    fn all(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(at as u64)).unwrap();
    }
}

impl Memory for Ram {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        Memory::read(&*self.ram, gpa, buf)
    }
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Fault> {
        Memory::write(&*self.ram, gpa, bytes)
    }
    fn zero(&self, gpa: u64, len: u64) -> Result<(), Fault> {
        Memory::zero(&*self.ram, gpa, len)
    }
}

/// A guest that writes some pages whenever its log is read, as if time had passed.
pub(super) struct MockSource {
    world: Arc<World>,
    offer: Offer,
    memory: Arc<Ram>,
    /// Whether [`Source::hand_over`] gives it away.
    shared: bool,
    logging: bool,
    log: PageSet,
    /// Dirty bits of another reader (a diff snapshot): every page ever written must be here when the guest stays.
    kept: PageSet,
    ever: PageSet,
    pages_a_turn: u64,
    turn: u64,
    fail: Option<&'static str>,
}

impl MockSource {
    fn new(world: &Arc<World>, offer: Offer, pages_a_turn: u64) -> Self {
        world.source_runs.store(true, Ordering::SeqCst);
        let memory = Ram::new(&Backing::Shared);
        let empty = PageSet::empty(&offer.regions);
        let mut machine = MockSource {
            world: Arc::clone(world),
            memory,
            shared: true,
            logging: false,
            log: empty.clone(),
            kept: empty.clone(),
            ever: empty,
            pages_a_turn,
            turn: 0,
            fail: None,
            offer,
        };
        (0..10).for_each(|_| machine.live());
        machine
    }

    fn live(&mut self) {
        let throttle = self.world.throttle.load(Ordering::SeqCst);
        for i in 0..self.pages_a_turn * (1000 - throttle) / 1000 {
            self.turn = self.turn.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407 + i);
            let pages: u64 = self.offer.regions.iter().map(|r| r.len / PAGE_SIZE).sum();
            let page = (self.turn >> 33) % pages;
            let first = self.offer.regions[0].len / PAGE_SIZE;
            let number = if page < first { page } else { HIGH / PAGE_SIZE + page - first };
            // Some writes make a page zero again.
            let value = if page.is_multiple_of(5) { 0 } else { (self.turn >> 20) as u8 };
            self.memory.put(number as usize * PAGE + (self.turn >> 50) as usize % PAGE, &[value]);
            if page.is_multiple_of(7) {
                self.memory.put(number as usize * PAGE, &[0; PAGE]);
            }
            assert!(self.ever.insert(Run { page: number, count: 1 }));
            let log = if self.logging { &mut self.log } else { &mut self.kept };
            assert!(log.insert(Run { page: number, count: 1 }));
        }
    }

    fn may(&self, doing: &'static str) -> Result<(), Fault> {
        if self.fail == Some(doing) { Err(format!("{doing} fails here").into()) } else { Ok(()) }
    }
}

impl Drop for MockSource {
    fn drop(&mut self) {
        self.world.source_runs.store(false, Ordering::SeqCst);
    }
}

impl Source for MockSource {
    type Gone = ();
    fn offer(&self) -> Result<Offer, Fault> {
        Ok(self.offer.clone())
    }
    fn start_logging(&mut self) -> Result<(), Fault> {
        self.logging = true;
        Ok(())
    }
    fn take_dirty(&mut self, pages: &mut PageSet) -> Result<(), Fault> {
        if self.world.source_runs.load(Ordering::SeqCst) {
            self.live();
        }
        pages.merge(&self.log);
        self.log.clear();
        Ok(())
    }
    fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.memory) as _
    }
    fn hand_over(&self) -> Result<SharedRam, Fault> {
        if !self.shared {
            return Err("it is private".into());
        }
        let mut shared = SharedRam::of(&self.memory.ram)?;
        shared.pieces = self.offer.regions.iter().map(|r| (*r, r.gpa)).collect();
        Ok(shared)
    }
    fn throttle(&mut self, permille: u16) -> Result<(), Fault> {
        self.world.throttle.store(permille.into(), Ordering::SeqCst);
        Ok(())
    }
    fn pause(&mut self) -> Result<(), Fault> {
        self.may("pause")?;
        self.live();
        self.world.source_runs.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn save(&mut self) -> Result<Vec<u8>, Fault> {
        self.may("save")?;
        // Saving writes guest memory, as real devices do.
        self.memory.put(3 * PAGE, &[self.memory.all()[3 * PAGE] ^ 0x55]);
        assert!(self.log.insert(Run { page: 3, count: 1 }) && self.ever.insert(Run { page: 3, count: 1 }));
        let blob = format!("state after {}", self.turn).into_bytes();
        *self.world.left.lock().unwrap() = Some((self.memory.all(), blob.clone()));
        Ok(blob)
    }
    fn abandon(&mut self, taken: &PageSet) -> Result<(), Fault> {
        self.kept.merge(taken);
        let rest = std::mem::replace(&mut self.log, PageSet::empty(&self.offer.regions));
        self.kept.merge(&rest);
        self.logging = false;
        self.world.throttle.store(0, Ordering::SeqCst);
        self.world.source_runs.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn commit(self) -> Self::Gone {}
}

struct MockBuilder {
    world: Arc<World>,
    capabilities: Capabilities,
    fail: Option<&'static str>,
}

struct MockTarget {
    world: Arc<World>,
    memory: Arc<Ram>,
    blob: Vec<u8>,
    missing: bool,
    fail: Option<&'static str>,
}

impl Builder for MockBuilder {
    type Target = MockTarget;
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }
    fn build(self, _: &Offer, memory: Option<SharedRam>) -> Result<MockTarget, Fault> {
        if self.fail == Some("build") {
            return Err("no memory".into());
        }
        let backing = memory.map_or(Backing::Shared, |mut shared| {
            // One region here, whatever the offer has: the mock's addresses are offsets.
            shared.pieces = vec![(Region { gpa: 0, len: MAPPED }, 0)];
            Backing::HandedOver(shared)
        });
        let memory = Ram::new(&backing);
        Ok(MockTarget { world: self.world, memory, blob: vec![], missing: false, fail: self.fail })
    }
}

impl Target for MockTarget {
    type Running = ();
    fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.memory) as _
    }
    fn can_miss(&self) -> Result<(), Fault> {
        if self.fail == Some("miss") {
            return Err("userfaultfd is not permitted".into());
        }
        Ok(missing_is_possible()?)
    }
    fn miss(&mut self, absent: &PageSet) -> Result<Missing, Fault> {
        self.missing = true;
        Ok(Missing::begin(&self.memory.ram, absent.runs(u64::MAX))?)
    }
    fn load(&mut self, container: &[u8]) -> Result<(), Fault> {
        if self.missing {
            // As real devices may.
            self.memory.ram.read_slice(&mut [0; 4], GuestAddress(7 * PAGE_SIZE))?;
        }
        if self.fail == Some("load") {
            return Err("the backend refuses x86.regs".into());
        }
        self.blob = container.to_vec();
        Ok(())
    }
    fn run(self, advance_ns: u64) -> Result<(), Fault> {
        if self.fail == Some("run") {
            return Err("no thread".into());
        }
        // Never two: at this instant the source must not run.
        assert!(!self.world.source_runs.load(Ordering::SeqCst), "two guests run");
        self.world.advance_ns.store(advance_ns, Ordering::SeqCst);
        let (world, memory, blob) = (Arc::clone(&self.world), self.memory, self.blob);
        let look = move || {
            // From the back, against the order in which pages come by themselves.
            let mut page = [0; 16];
            for at in (0..memory.len / PAGE).rev() {
                memory.ram.read_slice(&mut page, GuestAddress((at * PAGE) as u64)).unwrap();
            }
            *world.arrived.lock().unwrap() = Some((memory.all(), blob));
            make_writable(&memory.ram).unwrap();
            memory.put(0, b"it runs here");
        };
        if self.missing {
            *self.world.guest.lock().unwrap() = Some(std::thread::spawn(look));
        } else {
            look();
        }
        self.world.destination_runs.store(true, Ordering::SeqCst);
        Ok(())
    }
}

pub(super) struct Case {
    plan: Option<Plan>,
    source_fails: Option<&'static str>,
    destination_fails: Option<&'static str>,
    pub(super) options: Options,
    capabilities: Capabilities,
    pub(super) pages_a_turn: u64,
    /// Memory cannot be handed over.
    private: bool,
    /// Somebody is between the two: descriptors get lost on the way.
    pub(super) relay: Option<Relay>,
}

/// Passes bytes on, and remembers them.
#[derive(Clone, Default)]
pub(super) struct Relay {
    /// A bit that it gets wrong, of what this side sends.
    pub(super) flip: Option<(Side, usize)>,
    /// What went by: the source's bytes, the destination's.
    pub(super) seen: [Arc<Mutex<Vec<u8>>>; 2],
}

impl Relay {
    fn pass(&self, side: Side, mut from: UnixStream, mut to: UnixStream) {
        use std::io::{Read, Write};
        let (seen, mut chunk) = (&self.seen[usize::from(side == Side::Destination)], vec![0; 64 << 10]);
        while let Ok(n @ 1..) = from.read(&mut chunk) {
            let mut seen = seen.lock().unwrap();
            if let Some((wrong, bit)) = self.flip
                && wrong == side
                && (seen.len() * 8..(seen.len() + n) * 8).contains(&bit)
            {
                let at = bit - seen.len() * 8;
                chunk[at / 8] ^= 1 << (at % 8);
            }
            seen.extend_from_slice(&chunk[..n]);
            drop(seen);
            if to.write_all(&chunk[..n]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    }
}

impl Default for Case {
    fn default() -> Self {
        let mut host = capabilities();
        host.max_memory_bytes = 1 << 30;
        let options =
            Options { idle: Duration::from_secs(60), downtime: Duration::ZERO, ..Options::default() };
        let options =
            Options { max_rounds: 4, on_timeout: OnTimeout::Force, memory: MemoryWay::Copy, ..options };
        Case {
            plan: None,
            source_fails: None,
            destination_fails: None,
            options,
            capabilities: host,
            pages_a_turn: 200,
            private: false,
            relay: None,
        }
    }
}

pub(super) struct Ended {
    world: Arc<World>,
    /// `None`: the process was killed.
    pub(super) source: Option<Outcome<MockSource>>,
    destination: Option<Arrival<()>>,
    source_progress: Progress,
    destination_progress: Progress,
    /// One side died while the other had something that it needed: nobody can help.
    lost: bool,
}

impl Ended {
    pub(super) fn runs(&self) -> (bool, bool) {
        let w = &self.world;
        (w.source_runs.load(Ordering::SeqCst), w.destination_runs.load(Ordering::SeqCst))
    }

    fn error(&self) -> String {
        match self.source.as_ref().expect("the source lives") {
            Outcome::Moved(..) => panic!("it moved"),
            Outcome::Stayed { error, .. } | Outcome::Unconfirmed(_, error) => error.to_string(),
        }
    }

    fn destination_error(&self) -> String {
        match self.destination.as_ref().expect("the destination lives") {
            Arrival::Running(..) => panic!("it runs"),
            Arrival::Failed(error) => error.to_string(),
        }
    }
}

/// Where the second region begins: one mapping has both, and a hole that is nobody's between them.
const HIGH: u64 = LOW_LEN + (1 << 20);
const MAPPED: u64 = HIGH + (1 << 20);
const LOW_LEN: u64 = 4 << 20;

fn big_offer() -> Offer {
    let mut o = offer();
    o.regions = vec![Region { gpa: 0, len: LOW_LEN }, Region { gpa: HIGH, len: 1 << 20 }];
    o
}

/// Two ends with somebody between who passes on bytes, not descriptors.
fn relayed(relay: &Relay) -> (UnixStream, UnixStream) {
    let ((a, near), (b, far)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    for (side, from, to) in
        [(Side::Source, near.try_clone().unwrap(), far.try_clone().unwrap()), (Side::Destination, far, near)]
    {
        let relay = relay.clone();
        std::thread::spawn(move || relay.pass(side, from, to));
    }
    (a, b)
}

pub(super) fn migrate(case: Case) -> Ended {
    let world = Arc::new(World::default());
    let (a, b) = case.relay.as_ref().map_or_else(|| UnixStream::pair().unwrap(), relayed);
    let stream = |s: UnixStream| Box::new(socket2::Socket::from(std::os::fd::OwnedFd::from(s)));
    let idle = case.options.idle;
    let mut to = Link::new(stream(a), Side::Source, idle);
    let mut from = Link::new(stream(b), Side::Destination, idle);
    to.set_plan(case.plan);
    from.set_plan(case.plan);
    let builder = MockBuilder {
        world: Arc::clone(&world),
        capabilities: case.capabilities,
        fail: case.destination_fails,
    };
    let destination_progress = Progress::new("destination", "test");
    let shown_there = destination_progress.clone();
    let destination = std::thread::spawn(move || receive(builder, from, shown_there));
    let mut machine = MockSource::new(&world, big_offer(), case.pages_a_turn);
    machine.fail = case.source_fails;
    machine.shared = !case.private;
    let progress = Progress::new("source", "test");
    let (options, shown) = (case.options, progress.clone());
    let source = std::thread::spawn(move || send(machine, to, options, shown));
    // Only a pager's death is not seen by its thread's end.
    let kills = case.plan.filter(|p| p.action == Action::Kill);
    let dead_later = kills.is_some_and(|p| {
        p.side == Side::Destination
            && [Step::Ready, Step::Running, Step::Postcopy, Step::Complete].contains(&p.step)
    });
    let mut lost = false;
    loop {
        let (here, there) = (progress.waits_for_connection(), destination_progress.waits_for_connection());
        let never_ran = destination.is_finished() && !world.destination_runs.load(Ordering::SeqCst);
        let done = destination_progress.snapshot().is_over();
        if here && there {
            let (a, b) = UnixStream::pair().unwrap();
            let patience = Duration::from_secs(60);
            let ends = [(&destination_progress, b, Side::Destination), (&progress, a, Side::Source)];
            let told = ends.map(|(progress, end, side)| {
                let link = Link::new(stream(end), side, patience);
                progress.reconnect(Box::new(|| Ok(link))).unwrap()
            });
            told.iter().for_each(|t| t.recv().unwrap().unwrap());
        } else if here && (never_ran || done || dead_later) {
            lost |= dead_later;
            progress.give_up();
        } else if there && source.is_finished() {
            lost = true;
            destination_progress.give_up();
            break;
        } else if source.is_finished() && (never_ran || done || dead_later) {
            lost |= dead_later;
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let (source, destination) = (source.join().ok(), destination.join().ok());
    if let Some(guest) = world.guest.lock().unwrap().take() {
        guest.join().unwrap();
    }
    Ended { world, source, destination, source_progress: progress, destination_progress, lost }
}

/// What must hold however it ended.
pub(super) fn check(name: &str, e: &Ended) {
    let (at_source, at_destination) = e.runs();
    assert!(!(at_source && at_destination), "{name}: two guests run");
    if at_destination && !e.lost {
        let (left, arrived) = (e.world.left.lock().unwrap(), e.world.arrived.lock().unwrap());
        assert!(*left == *arrived, "{name}: memory or state changed on the way");
    }
    match &e.source {
        None => {}
        Some(Outcome::Moved((), _)) => {
            assert!(at_destination, "{name}: moved to nowhere");
            let there = e.destination_progress.snapshot();
            assert!(
                e.lost || there.phase == Phase::Done || there.role.is_empty(),
                "{name}: {:?}",
                there.phase
            );
        }
        Some(Outcome::Stayed { machine, stuck, .. }) => {
            assert!(at_source && stuck.is_none(), "{name}: the guest should go on");
            let mut all = machine.kept.clone();
            all.merge(&machine.ever);
            assert!(machine.kept == all, "{name}: dirty bits are lost");
            assert_eq!(e.world.throttle.load(Ordering::SeqCst), 0, "{name}: still throttled");
            assert_eq!(e.source_progress.snapshot().phase, Phase::Failed);
            if let Some((left, _)) = &*e.world.left.lock().unwrap() {
                assert!(*left == machine.memory.all(), "{name}: memory changed while the guest stood still");
            }
        }
        Some(Outcome::Unconfirmed((), _)) => {
            assert!(!at_source, "{name}: given away and still running");
            assert_eq!(e.source_progress.snapshot().phase, Phase::Unconfirmed);
        }
    }
}

#[test]
fn a_guest_moves_with_all_its_pages() {
    for compress in [false, true] {
        let mut case = Case::default();
        case.options.compress = compress;
        let e = migrate(case);
        check("plain", &e);
        let Some(Outcome::Moved((), report)) = &e.source else { panic!("{}", e.error()) };
        assert!(report.rounds >= 2 && report.pages > 200 && report.zero_pages > 100, "{report:?}");
        assert_eq!(report.memory_bytes, big_offer().memory_bytes());
        let raw = report.pages * PAGE_SIZE;
        assert!(if compress { report.bytes < raw } else { report.bytes > raw }, "{report:?}");
        assert!(e.world.advance_ns.load(Ordering::SeqCst) > 0, "the guest's clock must go on");
        assert!(
            matches!(&e.destination, Some(Arrival::Running((), r)) if r.bytes == report.bytes),
            "bytes differ"
        );
    }
}

/// Every fault at every step of either side, for one way of moving.
fn every_fault(way: &str, case: impl Fn() -> Case, mut each: impl FnMut(&str, Plan, &Ended)) {
    let mut moved = 0;
    for side in Side::ALL {
        for step in Step::ALL {
            for action in Action::ALL {
                if *step == Step::Pause && *side == Side::Destination {
                    continue;
                }
                let name = format!("{way}: {}:{}:{}", side.name(), step.name(), action.name());
                let kill = || std::panic::resume_unwind(Box::new("killed"));
                let stall = Duration::from_millis(300);
                let plan = Plan { side: *side, step: *step, action: *action, kill, stall };
                let mut case = Case { plan: Some(plan), ..case() };
                if *action == Action::Stall {
                    case.options.idle = Duration::from_millis(100);
                }
                let e = migrate(case);
                check(&name, &e);
                if e.source.is_none() {
                    assert!(*action == Action::Kill && *side == Side::Source, "{name}");
                }
                each(&name, plan, &e);
                moved += u32::from(matches!(e.source, Some(Outcome::Moved(..))));
            }
        }
    }
    assert!(moved > 0, "faults that come too late to matter should let some guests move");
}

#[test]
fn every_fault_at_every_step_leaves_one_guest() {
    every_fault("copied", Case::default, |name, plan, e| {
        let Plan { side, step, action, .. } = plan;
        let (at_source, at_destination) = e.runs();
        // Only after the commit may nobody run, and then the source says what it waits for.
        // A frame sent twice is noticed where the next one is due, and the frame after the source's look at
        // `Ready` is the commit.
        let late = [Step::State, Step::Finish, Step::Ready].contains(&step) && action == Action::Repeat;
        let at_commit = (side, step) == (Side::Source, Step::Ready) && action != Action::Cut;
        let after = [Step::Commit, Step::Running].contains(&step) || late || at_commit;
        match &e.source {
            None => assert!(after || !at_destination, "{name}: the source died and the destination runs"),
            Some(Outcome::Unconfirmed(..)) => assert!(after, "{name}: {}", e.error()),
            Some(_) => assert!(at_source || at_destination, "{name}: nobody runs"),
        }
    });
}

fn lending() -> Case {
    let mut case = Case::default();
    case.options.memory = MemoryWay::HandOver;
    case
}

#[test]
fn a_guest_whose_memory_is_handed_over_runs_on_exactly_one_side_whatever_happens() {
    every_fault("handed over", lending, |name, plan, e| {
        let (at_source, at_destination) = e.runs();
        if e.source.is_some() {
            assert!(at_source || at_destination, "{name}: nobody runs");
        }
        if let Some(Outcome::Unconfirmed(..)) = e.source {
            assert!(at_destination, "{name}: the deed says that it was taken");
        }
        if e.source.is_none() && plan.step != Step::Running {
            let sent = [Step::Commit, Step::Ready].contains(&plan.step);
            assert!(sent || !at_destination, "{name}: the source died and the destination runs");
        }
    });
}

#[test]
fn memory_is_handed_over_where_it_can_be_and_copied_where_not() {
    let e = migrate(lending());
    check("handed over", &e);
    let Some(Outcome::Moved((), report)) = &e.source else { panic!("{}", e.error()) };
    assert!(report.handed_over && report.pages == 0 && report.bytes < 4096, "{report:?}");
    for (way, moves) in [(MemoryWay::Auto, true), (MemoryWay::HandOver, false)] {
        let mut case = Case { private: true, ..Case::default() };
        case.options.memory = way;
        let e = migrate(case);
        check("private", &e);
        match &e.source {
            Some(Outcome::Moved((), report)) => {
                assert!(moves && !report.handed_over && report.pages > 0);
                assert_eq!(report.copied_because.as_deref(), Some("it is private"));
            }
            _ => assert!(!moves && e.error().contains("cannot be handed over: it is private")),
        }
    }
    for (way, moves) in [(MemoryWay::Auto, true), (MemoryWay::HandOver, false)] {
        let mut case = Case { relay: Some(Relay::default()), ..Case::default() };
        case.options.memory = way;
        let e = migrate(case);
        check("relayed", &e);
        assert_eq!(e.runs(), (!moves, moves));
        match &e.source {
            Some(Outcome::Moved((), r)) => assert!(r.copied_because.is_some() && r.pages > 0),
            _ => assert!(e.error().contains("lost on the way"), "{}", e.error()),
        }
    }
    // The machine fails to run with the deed in its hand: it gives the guest back, and nobody is asked.
    let e = migrate(Case { destination_fails: Some("run"), ..lending() });
    check("given back", &e);
    assert_eq!(e.runs(), (true, false));
    assert!(e.error().contains("no thread"), "{}", e.error());
    for fails in ["build", "load"] {
        let e = migrate(Case { destination_fails: Some(fails), ..lending() });
        check(fails, &e);
        assert_eq!(e.runs(), (true, false));
    }
}

pub(super) fn lazy(mode: Mode) -> Case {
    let mut case = Case::default();
    case.options.mode = mode;
    // Even the pages that one round leaves are too many.
    case.options.downtime = Duration::ZERO;
    case
}

#[test]
fn pages_that_come_after_the_guest_are_the_right_ones() {
    let name = "pages_that_come_after_the_guest_are_the_right_ones";
    if let Err(why) = missing_is_possible() {
        return println!("SKIPPED {name}: {why}");
    }
    for (mode, compress) in [(Mode::Postcopy, false), (Mode::Hybrid, false), (Mode::Postcopy, true)] {
        let mut case = lazy(mode);
        case.options.compress = compress;
        // So slowly that the guest has to ask, however late its thread begins.
        case.options.bandwidth = Some(4 << 20);
        let e = migrate(case);
        check("late", &e);
        let Some(Outcome::Moved((), report)) = &e.source else { panic!("{}", e.error()) };
        assert!(report.postcopy_pages > 100 && report.requested_pages > 0, "{report:?}");
        assert_eq!(report.rounds, 2, "{report:?}");
        let there = e.destination_progress.snapshot().report.unwrap();
        assert_eq!((there.bytes, there.recoveries), (report.bytes, 0));
    }
    // The time is over: the rest comes later.
    let mut case = lazy(Mode::Precopy);
    case.options.on_timeout = OnTimeout::Postcopy;
    let e = migrate(case);
    check("timeout", &e);
    assert!(matches!(&e.source, Some(Outcome::Moved((), r)) if r.rounds == 5 && r.postcopy_pages > 0));
}

#[test]
fn a_destination_that_cannot_wait_for_pages_says_so_before_any_goes() {
    for fallback in [false, true] {
        let mut case = Case { destination_fails: Some("miss"), ..lazy(Mode::Postcopy) };
        case.options.postcopy_fallback = fallback;
        let e = migrate(case);
        check("no userfaultfd", &e);
        match &e.source {
            Some(Outcome::Moved((), r)) => assert!(fallback && r.postcopy_pages == 0),
            _ => assert!(!fallback && e.error().contains("userfaultfd is not permitted"), "{}", e.error()),
        }
    }
    // A peer of before.
    for fails in ["build", "load", "run"] {
        if let Err(why) = missing_is_possible() {
            return println!("SKIPPED the rest: {why}");
        }
        let e = migrate(Case { destination_fails: Some(fails), ..lazy(Mode::Postcopy) });
        check(fails, &e);
        assert_eq!(e.runs(), (fails != "run", false), "{fails}");
    }
}

#[test]
fn a_broken_connection_after_the_commit_is_replaced_and_no_page_is_lost() {
    let name = "a_broken_connection_after_the_commit_is_replaced_and_no_page_is_lost";
    if let Err(why) = missing_is_possible() {
        return println!("SKIPPED {name}: {why}");
    }
    let mut recovered = 0;
    for mode in [Mode::Postcopy, Mode::Hybrid] {
        every_fault(
            name,
            || lazy(mode),
            |name, plan, e| {
                let (at_source, at_destination) = e.runs();
                if plan.action == Action::Kill {
                    return;
                }
                match &e.source {
                    Some(Outcome::Unconfirmed(..)) => {
                        // The last word was lost, or never came to be said.
                        let ended = e.destination_progress.snapshot().is_over();
                        assert!(ended, "{name}: {}", e.error());
                    }
                    Some(_) => assert!(at_source || at_destination, "{name}: nobody runs"),
                    None => panic!("{name}: the source is gone"),
                }
                let there = e.destination_progress.snapshot().report.unwrap_or_default();
                recovered += there.recoveries;
            },
        );
    }
    assert!(recovered > 5, "{recovered} recoveries");
}

#[test]
fn preflight_refusals_reach_both_ends_before_any_page() {
    let mut case = Case::default();
    case.capabilities.max_memory_bytes = 1 << 20;
    case.capabilities.models = vec![];
    let e = migrate(case);
    check("refused", &e);
    for text in [e.error(), e.destination_error()] {
        assert!(text.contains("5 MiB") && text.contains("sse2"), "{text}");
    }
    assert_eq!(e.source_progress.snapshot().pages, 0);
}

#[test]
fn failures_of_the_machines_are_told_to_both_ends() {
    for (source_fails, destination_fails, text) in [
        (Some("pause"), None, "pause fails here"),
        (Some("save"), None, "save fails here"),
        (None, Some("build"), "no memory"),
        (None, Some("load"), "the backend refuses x86.regs"),
        (None, Some("run"), "no thread"),
    ] {
        let e = migrate(Case { source_fails, destination_fails, ..Case::default() });
        check(text, &e);
        for error in [e.error(), e.destination_error()] {
            assert!(error.contains(text), "{error:?} should say {text:?}");
        }
        let unconfirmed = matches!(e.source, Some(Outcome::Unconfirmed(..)));
        assert_eq!(unconfirmed, destination_fails == Some("run"), "{text}");
    }
}

#[test]
fn garbage_and_other_versions_are_refused_and_the_guest_goes_on() {
    use std::io::{Read, Write};
    for (answer, text) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "does not speak"),
        (b"GODWITMG\x07\x00\x09\x00\x00\x00\x00\x00", "versions 7 to 9"),
        (b"", "closed the connection"),
        (b"GODWITMG\x01\x00\x01\x00\x00\x00\x00\x00 garbage after the greeting", "checksum"),
    ] {
        let world = Arc::new(World::default());
        let (a, mut b) = UnixStream::pair().unwrap();
        let socket = socket2::Socket::from(std::os::fd::OwnedFd::from(a));
        let peer = std::thread::spawn(move || {
            b.write_all(answer).unwrap();
            let _ = b.shutdown(std::net::Shutdown::Write);
            let mut rest = Vec::new();
            let _ = b.read_to_end(&mut rest);
        });
        let machine = MockSource::new(&world, big_offer(), 10);
        let link = Link::new(Box::new(socket), Side::Source, Duration::from_secs(60));
        let progress = Progress::new("source", "test");
        let source = Some(send(machine, link, Options::default(), progress.clone()));
        peer.join().unwrap();
        let e = Ended {
            world,
            source,
            destination: None,
            source_progress: progress,
            destination_progress: Progress::new("", "test"),
            lost: false,
        };
        check(text, &e);
        assert!(e.error().contains(text), "{:?} should say {text:?}", e.error());
    }
}

#[test]
fn a_guest_that_writes_too_fast_is_throttled_or_given_up() {
    let mut case = Case { pages_a_turn: 3000, ..Case::default() };
    case.options.max_rounds = 8;
    let e = migrate(case);
    check("throttled", &e);
    assert!(matches!(&e.source, Some(Outcome::Moved((), r)) if r.throttle_percent > 0.0));

    let mut case = Case { pages_a_turn: 3000, ..Case::default() };
    case.options.auto_converge = false;
    case.options.on_timeout = OnTimeout::Cancel;
    let e = migrate(case);
    check("given up", &e);
    assert!(e.error().contains("max_rounds"), "{}", e.error());
    assert!(e.destination_error().contains("max_rounds"), "{}", e.destination_error());
}

/// A round that would take hours does not outlast the time limit.
#[test]
fn a_round_without_end_is_left_when_the_time_is_over() {
    for (what, connections) in [
        (OnTimeout::Cancel, 1),
        (OnTimeout::Force, 1),
        (OnTimeout::Force, 3),
        (OnTimeout::Postcopy, 1),
        (OnTimeout::Postcopy, 3),
    ] {
        if what == OnTimeout::Postcopy
            && let Err(why) = missing_is_possible()
        {
            println!("SKIPPED a_round_without_end_is_left_when_the_time_is_over, postcopy: {why}");
            continue;
        }
        let options = Options {
            // One frame takes longer than any test waits, and there is more than one for each connection.
            bandwidth: Some(1000),
            timeout: Some(Duration::from_millis(200)),
            on_timeout: what,
            connections,
            ..Case::default().options
        };
        let address: Address = "tcp:127.0.0.1:0".parse().unwrap();
        let (e, _) = to_a_listener(&address, options, || ());
        check("endless", &e);
        match (what, &e.source) {
            (OnTimeout::Cancel, Some(Outcome::Stayed { .. })) => {
                assert!(e.error().contains("timeout_s"), "{}", e.error());
            }
            (OnTimeout::Force, Some(Outcome::Moved((), r))) => {
                assert!(r.rounds == 2 && r.last_pages > 0, "{r:?}");
            }
            (OnTimeout::Postcopy, Some(Outcome::Moved((), r))) => {
                assert!(r.rounds == 2 && r.postcopy_pages > 0, "{r:?}");
            }
            _ => panic!("{what:?}: {}", e.error()),
        }
    }
}

#[test]
fn a_cancelled_guest_goes_on() {
    let world = Arc::new(World::default());
    let (a, b) = UnixStream::pair().unwrap();
    let link = |s: UnixStream, side| {
        let socket = socket2::Socket::from(std::os::fd::OwnedFd::from(s));
        Link::new(Box::new(socket), side, Duration::from_secs(60))
    };
    let builder =
        MockBuilder { world: Arc::clone(&world), capabilities: Case::default().capabilities, fail: None };
    let from = link(b, Side::Destination);
    let destination =
        std::thread::spawn(move || receive(builder, from, Progress::new("destination", "test")));
    let machine = MockSource::new(&world, big_offer(), 10);
    let progress = Progress::new("source", "test");
    progress.cancel();
    let source = Some(send(machine, link(a, Side::Source), Options::default(), progress.clone()));
    let destination = destination.join().ok();
    let e = Ended {
        world,
        source,
        destination,
        source_progress: progress,
        destination_progress: Progress::new("", "test"),
        lost: false,
    };
    check("cancelled", &e);
    assert_eq!(e.error(), "cancelled");
    assert!(e.destination_error().contains("cancelled"));
}

/// A migration to a real listener, and who was turned away there. `before` is done while it listens.
fn to_a_listener(address: &Address, options: Options, before: impl FnOnce()) -> (Ended, Vec<String>) {
    let listener = Listener::bind(address).unwrap();
    let address = listener.address();
    let world = Arc::new(World::default());
    let builder =
        MockBuilder { world: Arc::clone(&world), capabilities: Case::default().capabilities, fail: None };
    let patience = Duration::from_secs(60);
    let destination_progress = Progress::new("destination", "test");
    let shown = destination_progress.clone();
    let destination = std::thread::spawn(move || {
        let mut away = Vec::new();
        let turned_away = |e: &MigrateError| away.push(e.to_string());
        let arrival = wait_for_guest(listener, None, builder, patience, shown, turned_away).unwrap();
        (arrival, away)
    });
    before();
    let machine = MockSource::new(&world, big_offer(), 200);
    let reach: Connect = Box::new(move || {
        let socket = connect(&address, patience)?;
        Ok(Link::new(Box::new(socket), Side::Source, patience))
    });
    let progress = Progress::new("source", "test");
    let link = reach().unwrap();
    let source = Some(send_over(machine, link, Some(reach), options, progress.clone()));
    let (arrival, away) = destination.join().unwrap();
    if let Some(guest) = world.guest.lock().unwrap().take() {
        guest.join().unwrap();
    }
    // Who puts the last pages there says so a moment later.
    let runs = matches!(arrival, Arrival::Running(..));
    while runs && !destination_progress.snapshot().is_over() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let destination = Some(arrival);
    (Ended { world, source, destination, source_progress: progress, destination_progress, lost: false }, away)
}

#[test]
fn strangers_are_turned_away_and_the_guest_still_arrives() {
    use std::io::{Read, Write};
    let path = std::env::temp_dir().join(format!("godwit-strangers-{}", std::process::id()));
    let (e, away) = to_a_listener(&Address::Unix(path.clone()), Options::default(), || {
        let mut stranger = UnixStream::connect(&path).unwrap();
        stranger.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let _ = stranger.read_to_end(&mut Vec::new());
    });
    assert!(away.len() == 1 && away[0].contains("does not speak"), "{away:?}");
    check("after a stranger", &e);
    assert_eq!(e.runs(), (false, true));
    assert!(!path.exists(), "the socket's file is left");
}

#[test]
fn pages_go_over_several_connections() {
    let address: Address = "tcp:127.0.0.1:0".parse().unwrap();
    let options = Options { connections: 4, compress: true, ..Options::default() };
    let (e, _) = to_a_listener(&address, options, || ());
    check("over four connections", &e);
    assert_eq!(e.runs(), (false, true));
    let (here, there) = (e.source_progress.snapshot(), e.destination_progress.snapshot());
    let (sent, came) = (here.report.unwrap(), there.report.unwrap());
    assert_eq!((sent.pages, sent.zero_pages), (came.pages, came.zero_pages));
    assert_eq!(sent.connections, 4);
}

#[test]
fn pages_owed_after_several_connections_follow_over_the_first() {
    if let Err(why) = missing_is_possible() {
        return println!("SKIPPED pages_owed_after_several_connections_follow_over_the_first: {why}");
    }
    let address: Address = "tcp:127.0.0.1:0".parse().unwrap();
    let options = Options { connections: 3, mode: Mode::Hybrid, ..Options::default() };
    let (e, _) = to_a_listener(&address, options, || ());
    check("hybrid over three connections", &e);
    assert_eq!(e.runs(), (false, true));
}
