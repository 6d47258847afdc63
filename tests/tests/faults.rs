//! Never two, never none: real processes, a real guest, and a fault at every step of the protocol.
//!
//! The counter moves from one godwit to another through a proxy (`harness::fault`) that strikes at one frame: kills an end,
//! cuts, stalls, flips a bit. In each case exactly one guest runs on, every register and page of it right; or, only once the
//! commit has left the source and the answer was lost, it stands still at the source, which says so. A guest whose own host
//! is killed dies with it: then none runs, and no second one ever begins.
//!
//! A slice runs by default; all of it by `scripts/soak faults`.

use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::fault::{Action, Place, Point, Proxy, Side, wait_until};
use godwit_tests::harness::{Process, Scratch, ask, check_lines, program};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

const fn source(name: &'static str, kind: u16) -> Point {
    Point { name, from: Side::Source, kind, after_state: false }
}
const fn destination(name: &'static str, kind: u16) -> Point {
    Point { name, from: Side::Destination, kind, after_state: false }
}

/// Every frame of a migration, in order.
const STEPS: [Point; 13] = [
    source("S greets", 0),
    destination("D greets", 0),
    source("Offer", 1),
    destination("Accept", 2),
    source("first Pages", 5),
    source("RoundEnd", 6),
    destination("RoundAck", 7),
    source("State", 8),
    Point { name: "last Pages", from: Side::Source, kind: 5, after_state: true },
    source("Finish", 9),
    destination("Ready", 10),
    source("Commit", 11),
    destination("Running", 12),
];
const COMMIT: u16 = 11;
const RUNNING: u16 = 12;

/// How memory goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Precopy,
}

impl Mode {
    /// What the request says besides.
    fn request(self) -> Value {
        match self {
            Mode::Precopy => json!({}),
        }
    }
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
    /// Runs at the destination; the source stands still, not knowing it, and says so.
    DestinationUnheard,
    /// Stands still at the source, which says so; an operator resumed it and it ran on.
    Paused,
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
            Fate::DestinationUnheard => "dest., S waits",
            Fate::Paused => "S waits, resumed",
            Fate::DiedWithHost => "none (killed)",
            Fate::DiedAfterMove => "killed, S waits",
        }
    }
}

fn expected(point: Point, action: Action) -> Fate {
    match (point.kind, action) {
        (COMMIT | RUNNING, Action::KillSource) => Fate::Destination,
        (_, Action::KillSource) => Fate::DiedWithHost,
        (COMMIT, _) => Fate::Paused,
        (RUNNING, Action::KillDestination) => Fate::DiedAfterMove,
        (RUNNING, _) => Fate::DestinationUnheard,
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
        let said = self.process.err();
        if said.contains("stands still here") {
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
        process.wait_err("waiting for a guest on");
        if !wait_until(|| process.err().contains('\n')) {
            return Err("half a line".into());
        }
        let line = process.err();
        let place =
            line.lines().find_map(|l| l.split_once("waiting for a guest on ")).ok_or("where?")?.1.parse()?;
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
        let mut source = match kept.take() {
            Some(node) => node,
            None => self.source(here)?,
        };
        let (mut target, place) = self.destination(there, over)?;
        let at = self.name("p");
        let pids = (source.process.id(), target.process.id());
        let proxy = Proxy::start(&place, &at, (point, action), pids).map_err(|e| e.to_string())?;
        let mut body = json!({"action": "send", "target": proxy.place().to_string(), "idle_s": 1, "allow_tsc_mismatch": true});
        body.as_object_mut().unwrap().extend(mode.request().as_object().cloned().unwrap_or_default());
        let asked = ask(&source.api, "PUT", "/migration", &body.to_string())?;
        if asked.0 != 204 {
            return Err(format!("the request is refused: {asked:?}"));
        }
        let mut phase = String::new();
        let decided = wait_until(|| {
            match source.migration() {
                Some(now) => phase = now["phase"].as_str().unwrap_or_default().to_owned(),
                None if !source.process.is_alive() => phase = "killed".into(),
                None => {}
            }
            ["done", "failed", "unconfirmed", "killed"].contains(&phase.as_str())
        });
        if !decided {
            return Err(format!("undecided in phase {phase:?}: {}", source.process.err()));
        }
        if !proxy.fired() {
            return Err(format!("the fault never struck: {phase}, {}", source.process.err()));
        }
        let arrived = matches!((point.kind, action), (COMMIT, Action::KillSource))
            || (point.kind == RUNNING && action != Action::KillDestination);
        if arrived {
            target.process.wait_lines(3)?;
        } else if point.kind != 0 || action == Action::KillDestination {
            // Whom nobody greeted whole goes on waiting for somebody who does.
            let code = target.process.wait_exit();
            let wanted = if action == Action::KillDestination { None } else { Some(3) };
            if code != wanted {
                return Err(format!("the receiver ends with {code:?}: {}", target.process.err()));
            }
        }
        let began = !target.process.text().is_empty();
        if began != arrived && !(point.kind == RUNNING && action == Action::KillDestination) {
            return Err(format!("the destination's guest {}", if began { "ran" } else { "did not run" }));
        }
        let lives =
            |source: &Node, target: &Node| check_lines(&[source.process.text(), target.process.text()]);
        match phase.as_str() {
            "killed" => {
                lives(&source, &target);
                Ok(if arrived { Fate::Destination } else { Fate::DiedWithHost })
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
            "unconfirmed" => {
                source.stands_still()?;
                if arrived {
                    target.process.wait_lines(1)?;
                    lives(&source, &target);
                    return Ok(Fate::DestinationUnheard);
                }
                if point.kind == RUNNING {
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
    for backend in [pair.0, pair.1] {
        if let Err(why) = Plugin::usable(backend) {
            return println!("SKIPPED {test} {} to {}: {why}", pair.0, pair.1);
        }
    }
    let godwit = match program("godwit") {
        Ok(godwit) => godwit,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let name = format!("{test}-{}-{}-{over:?}", pair.0, pair.1);
    let mut stage = Stage { godwit, scratch: Scratch::new(&name), count: 0 };
    let (mut kept, mut wrong) = (None, Vec::new());
    println!("\n{mode:?} over {over:?}, {} to {}: where the guest is in the end", pair.0, pair.1);
    print!("| struck at    |");
    actions.iter().for_each(|(name, _)| print!(" {name:16} |"));
    println!();
    for point in steps {
        let mut row = format!("| {:12} |", point.name);
        for (name, action) in actions {
            let fate = stage.case(pair, (over, mode), (*point, *action), &mut kept);
            let text = match &fate {
                Ok(fate) => fate.text(),
                Err(_) => "WRONG",
            };
            row += &format!(" {text:16} |");
            if fate != Ok(expected(*point, *action)) {
                wrong.push(format!("{}, {name}: {fate:?}", point.name));
                kept = None;
            }
        }
        println!("{row}");
    }
    assert!(wrong.is_empty(), "{pair:?} over {over:?}: {wrong:#?}");
}

#[test]
fn a_fault_at_every_step_leaves_one_guest() {
    let test = "a_fault_at_every_step_leaves_one_guest";
    let quick = [ALL[0], ALL[1], ALL[2], ALL[5]];
    matrix(test, ("interp", "interp"), Over::Unix, Mode::Precopy, &STEPS, &quick);
    let late = [STEPS[4], STEPS[10], STEPS[11], STEPS[12]];
    matrix(test, ("kvm", "interp"), Over::Tcp, Mode::Precopy, &late, &[ALL[1], ALL[3]]);
}

#[test]
#[ignore = "minutes: scripts/soak faults"]
fn every_fault_at_every_step_between_all_backends() {
    let test = "every_fault_at_every_step_between_all_backends";
    for pair in [("interp", "interp"), ("kvm", "interp"), ("interp", "kvm")] {
        for over in [Over::Unix, Over::Tcp] {
            matrix(test, pair, over, Mode::Precopy, &STEPS, &ALL);
        }
    }
}
