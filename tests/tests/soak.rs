//! One busy guest moves back and forth, again and again: memory, timer, floating point, disk and network going on.
//!
//! Real processes, a disk both can reach, and a TAP for each on one bridge, in a network namespace of its own. The guest
//! (`tests/guests/virtio/busy.rs`) checks itself and says so once a round; here its lines are checked to be consecutive over all
//! its lives, none missing, none twice, none `BAD`. A few moves run by default; a thousand by `scripts/soak moves`.

use godwit_guests::bench;
use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::{PATIENCE, Process, Scratch, ask, program};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// A bridge with the host's address and a TAP for each of two machines, in a namespace of this thread and its children.
fn network() -> Result<(), String> {
    // SAFETY: moves only this thread, which ends with the test, into a namespace of its own.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err("no right to make a network namespace".into());
    }
    let commands = [
        "link add br0 type bridge",
        "addr add 10.0.2.2/24 dev br0",
        "link set br0 up",
        "tuntap add tap0 mode tap",
        "tuntap add tap1 mode tap",
        "link set tap0 master br0 up",
        "link set tap1 master br0 up",
    ];
    for args in commands {
        let status = Command::new("ip").args(args.split(' ')).status().map_err(|e| format!("ip: {e}"))?;
        if !status.success() {
            return Err(format!("ip {args}: {status}"));
        }
    }
    Ok(())
}

/// The guest's lines over all its lives.
#[derive(Default)]
struct Ledger {
    text: String,
    taken: usize,
    rounds: u64,
    last: String,
}

impl Ledger {
    /// Takes what a life has printed since `from`: how much that was.
    fn take(&mut self, text: &str, from: usize) -> Result<usize, String> {
        self.text.push_str(&text[from..]);
        while let Some(len) = self.text[self.taken..].find('\n') {
            let line = &self.text[self.taken..self.taken + len];
            if line.contains("BAD") || line.contains("PANIC") {
                return Err(format!("after round {}: {line}", self.rounds));
            }
            if let Some(rest) = line.strip_prefix("busy n=") {
                let n: u64 =
                    rest.split(' ').next().and_then(|n| n.parse().ok()).ok_or(format!("{line:?}"))?;
                if n != self.rounds + 1 || !line.trim_end().ends_with(" ok") {
                    return Err(format!("after round {}: {line:?}", self.rounds));
                }
                self.rounds = n;
                self.last = line.trim_end().to_owned();
            }
            self.taken += len + 1;
        }
        Ok(text.len())
    }
}

struct Life {
    process: Process,
    api: PathBuf,
    read: usize,
}

impl Life {
    /// Waits for `more` rounds.
    fn rounds(&mut self, ledger: &mut Ledger, more: u64) -> Result<(), String> {
        let (goal, end) = (ledger.rounds + more, Instant::now() + PATIENCE);
        while ledger.rounds < goal {
            self.read = ledger.take(&self.process.text(), self.read)?;
            if Instant::now() > end {
                return Err(format!("silent after {:?}: {}", ledger.last, self.process.err()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

fn migrate(from: &Life, target: &str, disks: &[&str]) -> Result<Value, String> {
    migrate_by(from, target, disks, "precopy")
}

fn migrate_by(from: &Life, target: &str, disks: &[&str], mode: &str) -> Result<Value, String> {
    let mut body =
        json!({"action": "send", "target": target, "allow_tsc_mismatch": true, "move_disks": disks});
    if mode != "precopy" {
        (body["mode"], body["memory"]) = (mode.into(), "copy".into());
    }
    let body = body.to_string();
    let asked = ask(&from.api, "PUT", "/migration", &body)?;
    if asked.0 != 204 {
        return Err(format!("refused: {asked:?}"));
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let now = ask(&from.api, "GET", "/migration", "")?.1;
        match now["phase"].as_str() {
            Some("done") => return Ok(now["report"].clone()),
            Some("failed" | "unconfirmed") => return Err(format!("{now}; {}", from.process.err())),
            _ if Instant::now() > end => return Err(format!("endless: {now}")),
            _ => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

struct Stage {
    godwit: PathBuf,
    scratch: Scratch,
    with_net: bool,
    /// The disk goes along: each life has a copy of its own.
    moves_disk: bool,
    transports: Vec<&'static str>,
}

impl Stage {
    fn set(test: &str, backends: &[&str]) -> Result<Stage, String> {
        let godwit = program("godwit")?;
        for backend in backends {
            Plugin::usable(backend)?;
        }
        let scratch = Scratch::new(test);
        let program = match bench::compile_virtio(&scratch.path("")) {
            Err(why) if cfg!(target_arch = "x86_64") => panic!("{why}"),
            compiled => compiled?,
        };
        std::fs::write(scratch.path("busy.elf"), bench::image(&program).expect("assembles"))
            .expect("written");
        std::fs::write(scratch.path("disk.img"), vec![0; 1 << 20]).expect("written");
        let net = network();
        if let Err(why) = &net {
            println!("SKIPPED the network of {test}: {why}");
        }
        // In a new network namespace even the loopback is down.
        let _ = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        let transports = vec!["unix", "tcp"];
        Ok(Stage { godwit, scratch, with_net: net.is_ok(), moves_disk: false, transports })
    }

    fn text(&self, name: &str) -> String {
        self.scratch.path(name).to_string_lossy().into_owned()
    }

    fn start(&self, backend: &str) -> Life {
        let mut config = json!({
            "boot-source": {"kernel_image_path": self.text("busy.elf"), "boot_args": "busy=1 gateway=10.0.2.2 address=10.0.2.15"},
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 128, "cpu_model": "x86-64"},
            "drives": [{"drive_id": "d", "path_on_host": self.text("disk.img"), "is_root_device": false, "cache_type": "Writeback"}],
        });
        if self.with_net {
            config["network-interfaces"] =
                json!([{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:0a:00:02:0f"}]);
        }
        let path = self.scratch.path("busy.json");
        std::fs::write(&path, config.to_string()).expect("written");
        let api = self.scratch.path("0.api");
        let args = [
            "--config-file",
            path.to_str().unwrap(),
            "--api-sock",
            api.to_str().unwrap(),
            "--backend",
            backend,
        ];
        Life { process: Process::start(&self.godwit, &args, ""), api, read: 0 }
    }

    fn receive(&self, backend: &str, number: usize, more: &[&str]) -> Result<(Life, String), String> {
        self.receive_with(backend, number, more, "")
    }

    fn receive_with(
        &self,
        backend: &str,
        number: usize,
        more: &[&str],
        fault: &str,
    ) -> Result<(Life, String), String> {
        let api = self.scratch.path(&format!("{number}.api"));
        let at = match self.transports[number % self.transports.len()] {
            "tcp" => "tcp:127.0.0.1:0".to_owned(),
            _ => format!("unix:{}", self.text(&format!("{number}.move"))),
        };
        let tap = format!("eth0=tap{}", number % 2);
        let mut args = vec!["receive", &at, "--backend", backend, "--api-sock", api.to_str().unwrap()];
        if self.with_net {
            args.extend(["--tap", &tap]);
        }
        let disk = format!("d={}", self.text(&format!("disk{number}.img")));
        if self.moves_disk {
            args.extend(["--drive", &disk]);
        }
        args.extend(more);
        let process = Process::start(&self.godwit, &args, fault);
        let place = process.wait_place()?;
        Ok((Life { process, api, read: 0 }, place))
    }
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * percent / 100).min(values.len() - 1)]
}

fn back_and_forth(test: &str, backends: &[&str], moves: usize, moves_disk: bool) {
    back_and_forth_by(test, backends, moves, moves_disk, "precopy");
}

fn back_and_forth_by(test: &str, backends: &[&str], moves: usize, moves_disk: bool, mode: &str) {
    let mut stage = match Stage::set(test, backends) {
        Ok(stage) => stage,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    stage.moves_disk = moves_disk;
    let disks: &[&str] = if moves_disk { &["d"] } else { &[] };
    let (mut ledger, mut downtimes) = (Ledger::default(), Vec::new());
    let mut here = stage.start(backends[0]);
    here.rounds(&mut ledger, 3).unwrap();
    assert!(here.process.text().contains("disk=1"), "{}", here.process.text());
    assert!(!stage.with_net || here.process.text().contains("net=1"), "{}", here.process.text());
    for number in 1..=moves {
        let backend = backends[number % backends.len()];
        let fail = |why: String| -> ! { panic!("move {number} to {backend}: {why}") };
        let (mut next, place) = stage.receive(backend, number, &[]).unwrap_or_else(|e| fail(e));
        let report = migrate_by(&here, &place, disks, mode)
            .unwrap_or_else(|e| fail(format!("{e}; there: {}", next.process.err())));
        if here.process.wait_exit() != Some(0) {
            fail(here.process.err());
        }
        ledger.take(&here.process.text(), here.read).unwrap_or_else(|e| fail(e));
        let _ = std::fs::remove_file(&here.api);
        if moves_disk {
            // What is left at the source is stale: nobody may need it any more.
            let name = if number == 1 { "disk.img".into() } else { format!("disk{}.img", number - 1) };
            std::fs::remove_file(stage.scratch.path(&name)).unwrap();
            assert!(!stage.scratch.path(&format!("disk{number}.img.partial")).exists());
        }
        downtimes.push(report["downtime_ms"].as_f64().unwrap_or(f64::NAN));
        next.rounds(&mut ledger, 2).unwrap_or_else(|e| fail(e));
        here = next;
        if number.is_multiple_of(50) || number == moves {
            println!("{test}: {number} moves; {}", ledger.last);
        }
    }
    here.rounds(&mut ledger, 10).unwrap();
    println!(
        "{test}: {moves} moves between {}, {} rounds right; pause median {:.2} ms, 99th percentile {:.2} ms",
        backends.join(" and "),
        ledger.rounds,
        percentile(&mut downtimes, 50),
        percentile(&mut downtimes, 99)
    );
}

#[test]
fn a_busy_guest_moves_back_and_forth() {
    back_and_forth("a_busy_guest_moves_back_and_forth", &["kvm", "interp"], 6, false);
}

#[test]
fn a_busy_guest_moves_between_interpreters() {
    back_and_forth("a_busy_guest_moves_between_interpreters", &["interp", "interp"], 2, false);
}

#[test]
fn a_busy_guest_moves_before_its_pages() {
    let test = "a_busy_guest_moves_before_its_pages";
    if let Err(why) = godwit_vmm::memory::missing_is_possible() {
        return println!("SKIPPED {test}: {why}");
    }
    back_and_forth_by(test, &["kvm", "interp"], 4, false, "postcopy");
    back_and_forth_by(test, &["interp", "interp"], 2, false, "hybrid");
}

#[test]
fn a_busy_guests_disk_moves_with_it() {
    back_and_forth("a_busy_guests_disk_moves_with_it", &["interp", "interp"], 3, true);
}

#[test]
fn a_disk_that_cannot_move_stays_the_truth_and_leaves_nothing_behind() {
    let test = "a_disk_that_cannot_move_stays_the_truth_and_leaves_nothing_behind";
    let mut stage = match Stage::set(test, &["interp"]) {
        Ok(stage) => stage,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let mut ledger = Ledger::default();
    let mut here = stage.start("interp");
    here.rounds(&mut ledger, 3).unwrap();
    let leftovers = |stage: &Stage, number: usize| {
        let name = format!("disk{number}.img");
        [name.clone(), format!("{name}.partial")].iter().any(|n| stage.scratch.path(n).exists())
    };
    // The receiver does not say where to; there is something already.
    let (there, place) = stage.receive("interp", 1, &[]).unwrap();
    let error = migrate(&here, &place, &["d"]).unwrap_err();
    assert!(error.contains("--drive d=PATH"), "{error}");
    drop(there);
    stage.moves_disk = true;
    std::fs::write(stage.scratch.path("disk2.img"), "mine").unwrap();
    let (there, place) = stage.receive("interp", 2, &[]).unwrap();
    let error = migrate(&here, &place, &["d"]).unwrap_err();
    assert!(error.contains("there already"), "{error}");
    drop(there);
    assert_eq!(std::fs::read(stage.scratch.path("disk2.img")).unwrap(), b"mine");
    std::fs::remove_file(stage.scratch.path("disk2.img")).unwrap();
    // Faults on the way: the destination dies or cannot load; then a move that is left to succeed.
    for (number, fault) in
        [(4, "destination:round:cut"), (5, "destination:ready:cut"), (6, "destination:commit:cut")]
    {
        let (there, place) = stage.receive_with("interp", number, &[], fault).unwrap();
        let outcome = migrate(&here, &place, &["d"]);
        assert!(outcome.is_err(), "{fault}: {outcome:?}");
        let mut there = there;
        assert_ne!(there.process.wait_exit(), Some(0), "{fault}");
        assert!(!leftovers(&stage, number), "{fault}: something is left of the copy");
        if outcome.is_err_and(|e| e.contains("unconfirmed")) {
            let answer = ask(&here.api, "PUT", "/migration", r#"{"action":"resume"}"#).unwrap();
            assert_eq!(answer.0, 204, "{answer:?}");
        }
        here.rounds(&mut ledger, 30).unwrap_or_else(|e| panic!("{fault}: {e}"));
    }
    let (mut there, place) = stage.receive("interp", 7, &[]).unwrap();
    migrate(&here, &place, &["d"]).unwrap();
    here.process.wait_exit();
    ledger.take(&here.process.text(), here.read).unwrap();
    there.rounds(&mut ledger, 30).unwrap();
    assert!(stage.scratch.path("disk7.img").exists());
}

#[test]
#[ignore = "minutes: scripts/soak moves"]
fn a_thousand_moves_of_a_busy_guest() {
    let count = std::env::var("GODWIT_MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let test = "a_thousand_moves_of_a_busy_guest";
    let backends: &[&str] =
        if Plugin::usable("kvm").is_ok() { &["kvm", "interp"] } else { &["interp", "interp"] };
    back_and_forth(test, backends, count, false);
}
