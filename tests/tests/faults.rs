//! Never two, never none: real processes, a real guest, and a fault at every step of the protocol.
//!
//! The counter moves from one godwit to another through a proxy (`harness::fault`) that strikes at one frame: kills an end,
//! cuts, stalls, flips a bit. In each case exactly one guest runs on, every register and page of it right; or, only once the
//! commit has left the source and the answer was lost, it stands still at the source, which says so. A guest whose own host
//! is killed dies with it: then none runs, and no second one ever begins. In postcopy a connection that breaks after the commit
//! is replaced, and the guest goes on with every page.
//!
//! A slice runs by default; all of it by `scripts/soak faults`.

use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::fault::{Action, Place, Point, Proxy, Side, wait_until};
use godwit_tests::harness::{Process, Scratch, ask, check_lines, program};
use godwit_vmm::memory::missing_is_possible;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

const fn source(name: &'static str, kind: u16) -> Point {
    Point { name, from: Side::Source, kind, after: 0 }
}
const fn destination(name: &'static str, kind: u16) -> Point {
    Point { name, from: Side::Destination, kind, after: 0 }
}

const STATE: u16 = 8;
const COMMIT: u16 = 11;
const RUNNING: u16 = 12;
const COMPLETE: u16 = 21;
const RECOVER: u16 = 22;

/// Every frame of a migration by precopy, in order.
const PRECOPY: &[Point] = &[
    source("S greets", 0),
    destination("D greets", 0),
    source("Offer", 1),
    destination("Accept", 2),
    source("first Pages", 5),
    source("RoundEnd", 6),
    destination("RoundAck", 7),
    source("State", STATE),
    Point { name: "last Pages", from: Side::Source, kind: 5, after: STATE },
    source("Finish", 9),
    destination("Ready", 10),
    source("Commit", COMMIT),
    destination("Running", RUNNING),
];
/// Where memory is handed over.
const LOCAL: &[Point] = &[
    source("S greets", 0),
    destination("D greets", 0),
    source("Offer", 1),
    source("Memory", 16),
    destination("Accept", 2),
    source("State", STATE),
    source("Finish", 9),
    destination("Ready", 10),
    source("Commit", COMMIT),
    destination("Running", RUNNING),
];
/// Where pages follow the guest. The frames of a second connection come after the first one was cut.
const POSTCOPY: &[Point] = &[
    source("S greets", 0),
    destination("D greets", 0),
    source("Session", 17),
    source("Offer", 1),
    destination("Accept", 2),
    source("Zero", 4),
    source("RoundEnd", 6),
    destination("RoundAck", 7),
    source("State", STATE),
    source("S Missing", 19),
    source("Finish", 9),
    destination("Ready", 10),
    source("Commit", COMMIT),
    destination("Running", RUNNING),
    Point { name: "Request", from: Side::Destination, kind: 20, after: RUNNING },
    LATE,
    Point { name: "Recover", from: Side::Source, kind: RECOVER, after: RUNNING },
    Point { name: "D Missing", from: Side::Destination, kind: 19, after: RECOVER },
    Point { name: "Recovered", from: Side::Destination, kind: 23, after: RECOVER },
    destination("D Complete", COMPLETE),
    source("S Complete", COMPLETE),
];
const LATE: Point = Point { name: "late Pages", from: Side::Source, kind: 5, after: RUNNING };

/// It went otherwise before the frame came that was to be struck.
const MISSED: &str = "the fault never struck";

/// How memory goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Precopy,
    Postcopy,
    Local,
}

impl Mode {
    fn steps(self) -> &'static [Point] {
        match self {
            Mode::Precopy => PRECOPY,
            Mode::Postcopy => POSTCOPY,
            Mode::Local => LOCAL,
        }
    }

    /// What the request says besides.
    fn request(self) -> Value {
        match self {
            Mode::Precopy => json!({"memory": "copy"}),
            // Slowly, so that the guest has to ask.
            Mode::Postcopy => json!({"memory": "copy", "mode": "postcopy", "bandwidth_bytes_per_s": 8 << 20}),
            Mode::Local => json!({"memory": "hand-over"}),
        }
    }
}

/// What strikes in a case: a second connection needs a first one that breaks.
fn strikes(point: Point, action: Action) -> Vec<(Point, Action)> {
    let second = point.after == RECOVER || point.kind == RECOVER;
    let first = second.then_some((LATE, Action::Cut));
    first.into_iter().chain([(point, action)]).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Unix,
    Tcp,
}

/// Where the guest is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Runs on at the source, as if nothing had been.
    Source,
    /// Runs at the destination; the source is gone, or knows.
    Destination,
    /// The same, over a second connection.
    Recovered,
    /// Runs at the destination; the source stands still, not knowing it, and says so.
    DestinationUnheard,
    /// Stands still at the source, which says so; an operator resumed it and it ran on.
    Paused,
    /// At the destination, which says that it waits for pages; they died with the source.
    Stranded,
    /// Its host was killed; nothing else began.
    DiedWithHost,
    /// Its new host was killed after it had begun; the old one stands still and says so.
    DiedAfterMove,
}

impl Fate {
    fn text(self) -> &'static str {
        match self {
            Fate::Source => "source",
            Fate::Destination => "destination",
            Fate::Recovered => "dest., recovered",
            Fate::DestinationUnheard => "dest., S waits",
            Fate::Paused => "S waits, resumed",
            Fate::Stranded => "D waits for S",
            Fate::DiedWithHost => "none (killed)",
            Fate::DiedAfterMove => "killed, S waits",
        }
    }

    /// The guest runs, or stands still for want of pages, at the destination.
    fn arrived(self) -> bool {
        matches!(self, Fate::Destination | Fate::Recovered | Fate::DestinationUnheard | Fate::Stranded)
    }
}

fn expected(mode: Mode, point: Point, action: Action) -> Fate {
    let after_commit = point.kind == RUNNING || point.after == RUNNING || point.after == RECOVER;
    match (mode, point.kind, action) {
        // It has all pages, and each end knows it.
        (_, COMPLETE, Action::KillDestination) if point.from == Side::Source => Fate::DiedWithHost,
        (_, COMPLETE, _) if point.from == Side::Source => Fate::Destination,
        (_, COMPLETE, Action::KillSource) => Fate::Destination,
        (_, COMPLETE, Action::KillDestination) => Fate::DiedAfterMove,
        (_, COMPLETE, _) => Fate::Recovered,
        (Mode::Postcopy, COMMIT, Action::KillSource) => Fate::Stranded,
        (Mode::Postcopy, _, _) if after_commit => match action {
            Action::KillSource => Fate::Stranded,
            Action::KillDestination => Fate::DiedAfterMove,
            _ => Fate::Recovered,
        },
        (_, COMMIT | RUNNING, Action::KillSource) => Fate::Destination,
        (_, _, Action::KillSource) => Fate::DiedWithHost,
        // The deed says that it was not taken.
        (Mode::Local, COMMIT, _) => Fate::Source,
        (_, COMMIT, _) => Fate::Paused,
        (_, RUNNING, Action::KillDestination) => Fate::DiedAfterMove,
        (_, RUNNING, _) => Fate::DestinationUnheard,
        _ => Fate::Source,
    }
}

struct Stage {
    godwit: PathBuf,
    scratch: Scratch,
    count: u32,
}

/// A godwit with its API socket.
struct Node {
    process: Process,
    api: PathBuf,
}

impl Node {
    fn migration(&self) -> Option<Value> {
        ask(&self.api, "GET", "/migration", "").ok().filter(|(status, _)| *status == 200).map(|(_, v)| v)
    }

    /// Where it says that its migration is; `None`: it says nothing (any more).
    fn phase(&self) -> Option<String> {
        Some(self.migration()?["phase"].as_str()?.to_owned())
    }

    fn stands_still(&mut self) -> Result<(), String> {
        if !self.process.is_alive() {
            return Err("the waiting source has ended".into());
        }
        // What was on its way to the pipe when the guest stopped comes; nothing after it.
        std::thread::sleep(Duration::from_millis(60));
        let still = self.process.text();
        std::thread::sleep(Duration::from_millis(120));
        if self.process.text() != still {
            return Err("it runs although it was given away".into());
        }
        let said = self.process.err() + &self.migration().map_or(String::new(), |m| m["error"].to_string());
        if ["stands still here", "are only here", "no word came"].iter().any(|t| said.contains(t)) {
            Ok(())
        } else {
            Err(format!("it does not say that it waits: {said}"))
        }
    }
}

impl Stage {
    fn name(&mut self, what: &str) -> PathBuf {
        self.count += 1;
        self.scratch.path(&format!("{what}{}", self.count))
    }

    fn source(&mut self, backend: &str) -> Result<Node, String> {
        let config = self.scratch.config("counter", 64, "x86-64", "rate=50 fill=2");
        let api = self.name("s");
        let args = [
            "--config-file",
            config.to_str().unwrap(),
            "--api-sock",
            api.to_str().unwrap(),
            "--backend",
            backend,
        ];
        let process = Process::start(&self.godwit, &args, "");
        process.wait_lines(3)?;
        Ok(Node { process, api })
    }

    fn destination(&mut self, backend: &str, over: Over) -> Result<(Node, Place), String> {
        let (api, socket) = (self.name("d"), self.name("m"));
        let at = match over {
            Over::Unix => format!("unix:{}", socket.display()),
            Over::Tcp => "tcp:127.0.0.1:0".into(),
        };
        let args =
            ["receive", &at, "--backend", backend, "--api-sock", api.to_str().unwrap(), "--idle-s", "1"];
        let process = Process::start(&self.godwit, &args, "");
        let place = process.wait_place()?.parse()?;
        Ok((Node { process, api }, place))
    }

    /// One case: where the guest is in the end. `here` is a running source, taken away if it is used up.
    fn case(
        &mut self,
        (here, there): (&str, &str),
        (over, mode): (Over, Mode),
        (point, action): (Point, Action),
        kept: &mut Option<Node>,
    ) -> Result<Fate, String> {
        let want = expected(mode, point, action);
        let mut source = match kept.take() {
            Some(node) => node,
            None => self.source(here)?,
        };
        let (mut target, place) = self.destination(there, over)?;
        let at = self.name("p");
        let pids = (source.process.id(), target.process.id());
        let proxy = Proxy::start(&place, &at, strikes(point, action), pids).map_err(|e| e.to_string())?;
        let mut body = json!({"action": "send", "target": proxy.place().to_string(), "idle_s": 1, "allow_tsc_mismatch": true});
        body.as_object_mut().unwrap().extend(mode.request().as_object().cloned().unwrap_or_default());
        match ask(&source.api, "PUT", "/migration", &body.to_string()) {
            Ok((204, _)) => {}
            // Killed before it could answer.
            Err(_) if action == Action::KillSource => {}
            other => return Err(format!("the request is refused: {other:?}")),
        }
        let phase = Self::settle(&mut source, &mut target, mode)?;
        let recovered = source.migration().map_or(0, |m| m["report"]["recoveries"].as_u64().unwrap_or(0)) > 0;
        if !proxy.fired() {
            let why = format!("{MISSED}: {phase}, {}", source.process.err());
            *kept = (phase == "failed").then_some(source);
            return Err(why);
        }
        let arrived = want.arrived();
        let alone = point.kind == 0 && action != Action::KillDestination;
        if want == Fate::Stranded {
            if !wait_until(|| target.phase().as_deref() == Some("interrupted")) {
                return Err(format!("the destination waits for nothing: {:?}", target.migration()));
            }
        } else if arrived {
            target.process.wait_lines(3)?;
        } else if !alone {
            // Whom nobody greeted whole goes on waiting for somebody who does.
            let code = target.process.wait_exit();
            let wanted = if action == Action::KillDestination { None } else { Some(3) };
            if code != wanted {
                return Err(format!("the receiver ends with {code:?}: {}", target.process.err()));
            }
        }
        let began = !target.process.text().is_empty();
        let may_have_begun = [Fate::Stranded, Fate::DiedAfterMove].contains(&want) || point.kind == COMPLETE;
        if began != arrived && !may_have_begun {
            return Err(format!("the destination's guest {}", if began { "ran" } else { "did not run" }));
        }
        let lives =
            |source: &Node, target: &Node| check_lines(&[source.process.text(), target.process.text()]);
        match phase.as_str() {
            "killed" => {
                lives(&source, &target);
                Ok(match want {
                    Fate::Stranded | Fate::Destination => want,
                    _ => Fate::DiedWithHost,
                })
            }
            "done" if mode == Mode::Postcopy => {
                source.process.wait_exit();
                lives(&source, &target);
                Ok(match (arrived, recovered) {
                    (true, true) => Fate::Recovered,
                    (true, false) => Fate::Destination,
                    _ => Fate::DiedWithHost,
                })
            }
            "failed" => {
                source.process.wait_lines(3)?;
                if !source.process.is_alive() || arrived {
                    return Err("two guests, or none".into());
                }
                check_lines(&[source.process.text()]);
                *kept = Some(source);
                Ok(Fate::Source)
            }
            "unconfirmed" | "interrupted" => {
                source.stands_still()?;
                if arrived {
                    target.process.wait_lines(1)?;
                    lives(&source, &target);
                    return Ok(Fate::DestinationUnheard);
                }
                if phase == "interrupted" || want == Fate::DiedAfterMove {
                    return Ok(Fate::DiedAfterMove);
                }
                let answer = ask(&source.api, "PUT", "/migration", r#"{"action":"resume"}"#)?;
                source.process.wait_lines(3).map_err(|e| format!("resumed ({answer:?}) and {e}"))?;
                check_lines(&[source.process.text()]);
                *kept = Some(source);
                Ok(Fate::Paused)
            }
            other => Err(format!("the migration ends {other} in spite of the fault")),
        }
    }

    /// Waits until nothing more happens by itself, and has connections replaced that can be: the source's phase, or `killed`.
    fn settle(source: &mut Node, target: &mut Node, mode: Mode) -> Result<String, String> {
        const OVER: [&str; 5] = ["done", "failed", "unconfirmed", "interrupted", "killed"];
        // Recoveries that fail too: each of the two faults spoils one at most, and the destination may be late to notice.
        for _ in 0..100 {
            let mut phase = String::new();
            let decided = wait_until(|| {
                match source.phase() {
                    Some(now) => phase = now,
                    None if !source.process.is_alive() => phase = "killed".into(),
                    None => {}
                }
                OVER.contains(&phase.as_str())
            });
            if !decided {
                return Err(format!("undecided in phase {phase:?}: {}", source.process.err()));
            }
            let broken = ["unconfirmed", "interrupted"].contains(&phase.as_str());
            if mode != Mode::Postcopy || !broken {
                return Ok(phase);
            }
            let noticed = wait_until(|| {
                !target.process.is_alive()
                    || target.phase().is_some_and(|p| ["interrupted", "done", "failed"].contains(&p.as_str()))
            });
            if !noticed {
                return Err(format!("the destination does not notice: {:?}", target.migration()));
            }
            if !target.process.is_alive() || target.phase().as_deref() == Some("failed") {
                return Ok(phase);
            }
            // Whatever comes of it, or of the source meanwhile, shows in the next turn.
            let _ = ask(&source.api, "PUT", "/migration", r#"{"action":"recover"}"#);
        }
        Err(format!("no new connection comes about: {:?}, {:?}", source.migration(), target.migration()))
    }
}

const ALL: [(&str, Action); 7] = [
    ("kill -9 source", Action::KillSource),
    ("kill -9 dest.", Action::KillDestination),
    ("cut", Action::Cut),
    ("stall", Action::Stall),
    ("flip header", Action::Flip(10)),
    ("flip middle", Action::Flip(500)),
    ("flip last bit", Action::Flip(1000)),
];

fn matrix(
    test: &str,
    pair: (&str, &str),
    over: Over,
    mode: Mode,
    steps: &[Point],
    actions: &[(&str, Action)],
) {
    if let (Mode::Postcopy, Err(why)) = (mode, missing_is_possible()) {
        return println!("SKIPPED {test}, {mode:?}: {why}");
    }
    for backend in [pair.0, pair.1] {
        if let Err(why) = Plugin::usable(backend) {
            return println!("SKIPPED {test} {} to {}: {why}", pair.0, pair.1);
        }
    }
    let godwit = match program("godwit") {
        Ok(godwit) => godwit,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let name = format!("{test}-{}-{}-{over:?}-{mode:?}", pair.0, pair.1);
    let mut stage = Stage { godwit, scratch: Scratch::new(&name), count: 0 };
    let (mut kept, mut wrong, mut cases) = (None, Vec::new(), 0);
    // Shown whole: several tables may be made at once.
    let mut table =
        format!("\n{mode:?} over {over:?}, {} to {}: where the guest is in the end\n", pair.0, pair.1);
    table += "| struck at    |";
    actions.iter().for_each(|(name, _)| table += &format!(" {name:16} |"));
    for point in steps {
        table += &format!("\n| {:12} |", point.name);
        for (name, action) in actions {
            let mut fate = stage.case(pair, (over, mode), (*point, *action), &mut kept);
            // On a busy machine a second's silence may end it before; and a guest may need no page that it would have to ask for.
            for _ in 0..9 {
                if fate.as_ref().is_err_and(|why| why.starts_with(MISSED)) {
                    fate = stage.case(pair, (over, mode), (*point, *action), &mut kept);
                }
            }
            let text = match &fate {
                Ok(fate) => fate.text(),
                Err(_) => "WRONG",
            };
            table += &format!(" {text:16} |");
            cases += 1;
            if fate != Ok(expected(mode, *point, *action)) {
                wrong.push(format!("{}, {name}: {fate:?}", point.name));
                kept = None;
            }
        }
    }
    println!("{table}\n{cases} cases, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{pair:?} over {over:?}, {mode:?}: {wrong:#?}");
}

#[test]
fn a_fault_at_every_step_leaves_one_guest() {
    let test = "a_fault_at_every_step_leaves_one_guest";
    let quick = [ALL[0], ALL[1], ALL[2], ALL[5]];
    matrix(test, ("interp", "interp"), Over::Unix, Mode::Precopy, PRECOPY, &quick);
    let late = [PRECOPY[4], PRECOPY[10], PRECOPY[11], PRECOPY[12]];
    matrix(test, ("kvm", "interp"), Over::Tcp, Mode::Precopy, &late, &[ALL[1], ALL[3]]);
}

#[test]
fn a_fault_while_memory_is_handed_over_leaves_one_guest() {
    let test = "a_fault_while_memory_is_handed_over_leaves_one_guest";
    let late = [LOCAL[3], LOCAL[7], LOCAL[8], LOCAL[9]];
    matrix(test, ("interp", "interp"), Over::Unix, Mode::Local, &late, &[ALL[0], ALL[1], ALL[2], ALL[5]]);
}

#[test]
fn a_fault_while_pages_follow_the_guest_loses_none() {
    let test = "a_fault_while_pages_follow_the_guest_loses_none";
    let late: Vec<Point> = POSTCOPY.iter().copied().filter(|p| p.kind >= COMMIT || p.after != 0).collect();
    matrix(test, ("interp", "interp"), Over::Unix, Mode::Postcopy, &late, &[ALL[2]]);
    let some = [POSTCOPY[9], POSTCOPY[13], POSTCOPY[15], POSTCOPY[19]];
    matrix(test, ("kvm", "interp"), Over::Tcp, Mode::Postcopy, &some, &[ALL[0], ALL[1], ALL[5]]);
}

macro_rules! every_fault {
    ($($name:ident: $mode:ident, $from:literal, $to:literal;)*) => {$(
        #[test]
        #[ignore = "minutes each: scripts/soak faults"]
        fn $name() {
            let transports: &[Over] = if Mode::$mode == Mode::Local { &[Over::Unix] } else { &[Over::Unix, Over::Tcp] };
            for over in transports {
                matrix(stringify!($name), ($from, $to), *over, Mode::$mode, Mode::$mode.steps(), &ALL);
            }
        }
    )*};
}

every_fault! {
    every_fault_precopy_interp_interp: Precopy, "interp", "interp";
    every_fault_precopy_kvm_interp: Precopy, "kvm", "interp";
    every_fault_precopy_interp_kvm: Precopy, "interp", "kvm";
    every_fault_postcopy_interp_interp: Postcopy, "interp", "interp";
    every_fault_postcopy_kvm_interp: Postcopy, "kvm", "interp";
    every_fault_postcopy_interp_kvm: Postcopy, "interp", "kvm";
    every_fault_local_interp_interp: Local, "interp", "interp";
    every_fault_local_kvm_interp: Local, "kvm", "interp";
    every_fault_local_interp_kvm: Local, "interp", "kvm";
}
