//! The counter moves between real processes, and goes on whatever goes wrong.

use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::{Process, Scratch, check_lines, program};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Stage {
    godwit: PathBuf,
    scratch: Scratch,
}

impl Stage {
    /// What a test needs; otherwise it is skipped by name.
    fn set(test: &str, backends: &[&str]) -> Option<Stage> {
        let missing = |why| println!("SKIPPED {test}: {why}");
        for backend in backends {
            if let Err(why) = Plugin::usable(backend) {
                missing(why);
                return None;
            }
        }
        match program("godwit") {
            Ok(godwit) => Some(Stage { godwit, scratch: Scratch::new(test) }),
            Err(why) => {
                missing(why);
                None
            }
        }
    }

    fn text(&self, name: &str) -> String {
        self.scratch.path(name).to_str().unwrap().to_owned()
    }

    /// The counter on `backend`, its API socket being `api`.
    fn source(&self, backend: &str, mib: u64, args: &str, api: &str, fault: &str) -> Process {
        let config = self.scratch.config("counter", mib, "x86-64", args);
        let (config, api) = (config.to_str().unwrap(), self.text(api));
        let source = Process::start(
            &self.godwit,
            &["--config-file", config, "--api-sock", &api, "--backend", backend],
            fault,
        );
        source.wait_lines(3).unwrap();
        source
    }

    fn receiver(&self, backend: &str, socket: &str, api: &str, more: &[&str], fault: &str) -> Process {
        let (at, api) = (format!("unix:{}", self.text(socket)), self.text(api));
        let mut args = vec!["receive", at.as_str(), "--backend", backend, "--api-sock", &api];
        args.extend(more);
        let receiver = Process::start(&self.godwit, &args, fault);
        receiver.wait_err("waiting for a guest");
        receiver
    }

    fn migrate(&self, api: &str, socket: &str, more: &[&str]) -> Output {
        let (api, target) = (self.text(api), format!("unix:{}", self.text(socket)));
        let mut args = vec!["migrate", "--api-sock", &api, &target];
        args.extend(more);
        Command::new(&self.godwit).args(args).output().unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The guest goes on at the source, undisturbed.
fn goes_on(source: &mut Process) {
    source.wait_lines(4).unwrap();
    assert!(source.is_alive());
    check_lines(&[source.text()]);
}

fn tour(test: &str, stops: &[&str], mib: u64, args: &str) {
    let Some(stage) = Stage::set(test, stops) else { return };
    let mut lives = Vec::new();
    let mut here = stage.source(stops[0], mib, args, "0.api", "");
    for (i, backend) in stops.iter().enumerate().skip(1) {
        let socket = format!("{i}.sock");
        let next = stage.receiver(backend, &socket, &format!("{i}.api"), &[], "");
        let moved = stage.migrate(&format!("{}.api", i - 1), &socket, &["--allow-tsc-mismatch"]);
        assert_eq!(moved.status.code(), Some(0), "{}; {}", said(&moved), next.err());
        println!("{test}: to {backend}: {}", said(&moved));
        assert_eq!(here.wait_exit(), Some(0), "{}", here.err());
        lives.push(here.text());
        next.wait_lines(4).unwrap();
        here = next;
    }
    lives.push(here.text());
    let checker = check_lines(&lives);
    println!("{test}: {} lines right, longest silence {} us", checker.lines(), checker.max_gap_us());
}

#[test]
fn the_counter_lives_in_three_processes_on_kvm() {
    tour("the_counter_lives_in_three_processes_on_kvm", &["kvm", "kvm", "kvm"], 64, "rate=20");
}

#[test]
fn the_counter_crosses_from_kvm_to_the_interpreter_and_back() {
    let stops = ["kvm", "interp", "kvm"];
    tour("the_counter_crosses_from_kvm_to_the_interpreter_and_back", &stops, 64, "rate=10");
}

#[test]
fn half_a_gigabyte_crosses_half_filled() {
    let stops = ["kvm", "interp", "kvm"];
    tour("half_a_gigabyte_crosses_half_filled", &stops, 512, "rate=10 fill=240");
}

#[test]
fn a_destination_that_dies_costs_nothing() {
    let test = "a_destination_that_dies_costs_nothing";
    let Some(stage) = Stage::set(test, &["kvm"]) else { return };
    let mut source = stage.source("kvm", 64, "rate=20", "s.api", "");
    for step in ["hello", "preflight", "precopy", "round", "state", "finish", "ready"] {
        let fault = format!("destination:{step}:kill");
        let mut receiver = stage.receiver("kvm", step, &format!("{step}.api"), &[], &fault);
        let moved = stage.migrate("s.api", step, &[]);
        assert_eq!(moved.status.code(), Some(3), "{step}: {}", said(&moved));
        assert!(said(&moved).contains("runs on here"), "{step}: {}", said(&moved));
        assert_ne!(receiver.wait_exit(), Some(0));
        assert!(receiver.lines().is_empty(), "{step}: the dead destination's guest ran");
        goes_on(&mut source);
    }
    // And after all that it can still move.
    let receiver = stage.receiver("kvm", "last", "last.api", &[], "");
    assert_eq!(stage.migrate("s.api", "last", &[]).status.code(), Some(0));
    assert_eq!(source.wait_exit(), Some(0));
    receiver.wait_lines(3).unwrap();
    check_lines(&[source.text(), receiver.text()]);
}

#[test]
fn a_source_that_dies_leaves_a_destination_that_never_runs() {
    let test = "a_source_that_dies_leaves_a_destination_that_never_runs";
    let Some(stage) = Stage::set(test, &["kvm"]) else { return };
    for step in ["hello", "preflight", "precopy", "round", "pause", "state", "finish", "ready", "commit"] {
        let api = format!("{step}.api");
        let mut source = stage.source("kvm", 64, "rate=20", &api, &format!("source:{step}:kill"));
        let mut receiver = stage.receiver("kvm", step, &format!("{step}-r.api"), &["--idle-s", "2"], "");
        let moved = stage.migrate(&api, step, &[]);
        assert_ne!(moved.status.code(), Some(0), "{step}: {}", said(&moved));
        assert_ne!(source.wait_exit(), Some(0));
        if step != "hello" {
            assert_eq!(receiver.wait_exit(), Some(3), "{step}: {}", receiver.err());
        }
        assert!(
            receiver.lines().is_empty(),
            "{step}: the guest ran although its source died before the commit"
        );
    }
}

fn impostor(path: &Path, answer: &'static [u8]) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(answer).unwrap();
        let _ = peer.shutdown(std::net::Shutdown::Write);
        let _ = peer.read_to_end(&mut Vec::new());
    })
}

#[test]
fn refusals_are_clear_at_both_ends_and_the_guest_goes_on() {
    let test = "refusals_are_clear_at_both_ends_and_the_guest_goes_on";
    let Some(stage) = Stage::set(test, &["kvm"]) else { return };
    let mut source = stage.source("kvm", 64, "rate=20", "s.api", "");

    let answers: [(&str, &'static [u8], &str); 2] = [
        ("garbage", b"SSH-2.0-OpenSSH_9.2\r\n and more", "does not speak"),
        ("version", b"GODWITMG\x07\x00\x09\x00\x00\x00\x00\x00", "versions 7 to 9"),
    ];
    for (name, answer, text) in answers {
        let peer = impostor(&stage.scratch.path(name), answer);
        let moved = stage.migrate("s.api", name, &[]);
        peer.join().unwrap();
        assert_eq!(moved.status.code(), Some(3), "{name}: {}", said(&moved));
        assert!(said(&moved).contains(text), "{name}: {}", said(&moved));
        goes_on(&mut source);
    }

    let nobody = stage.migrate("s.api", "nobody", &[]);
    assert_eq!(nobody.status.code(), Some(3), "{}", said(&nobody));
    goes_on(&mut source);

    let mut small = stage.receiver("kvm", "small", "small.api", &["--max-memory-mib", "32"], "");
    let moved = stage.migrate("s.api", "small", &[]);
    assert_eq!((moved.status.code(), small.wait_exit()), (Some(3), Some(3)), "{}", said(&moved));
    for text in [said(&moved), small.err()] {
        assert!(text.contains("64 MiB") && text.contains("32 MiB"), "{text}");
    }
    goes_on(&mut source);
}
