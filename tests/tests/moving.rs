//! The counter guest moves between machines in this process, over a real socket, backend to backend: nothing of it is
//! missing, nothing is there twice, and its registers and memory are its own.
//!
//! The libraries are those that cargo built for this profile (`cargo build --workspace`), or in GODWIT_PLUGIN_DIR.

use godwit_tests::harness::PATIENCE;
use godwit_tests::harness::inside::{Screen, console, events, plugin, start};
use godwit_vmm::control::moving::{Arrived, Arriving, Leaving, Limits};
use godwit_vmm::machine::Machine;
use godwit_vmm::migrate::fault::Side;
use godwit_vmm::migrate::{Arrival, Link, MemoryWay, Options, Outcome, Progress, Report, receive, send};
use godwit_vmm::plugin::Plugin;
use godwit_vmm::state;
use godwit_vmm::virtio::slots::DevicesConfig;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

fn link(stream: UnixStream, side: Side) -> Link {
    Link::new(Box::new(socket2::Socket::from(OwnedFd::from(stream))), side, PATIENCE)
}

/// Moves a running machine to `plugin`.
fn hop(machine: Machine, plugin: &Arc<Plugin>, screen: &Screen) -> (Machine, Report) {
    let (a, b) = UnixStream::pair().unwrap();
    let arriving = Arriving::new(Arc::clone(plugin), Limits::default(), console(screen), events()).unwrap();
    let destination = std::thread::spawn(move || {
        receive(arriving, link(b, Side::Destination), Progress::new("destination", "test"))
    });
    let door = Arc::new(Mutex::new(machine));
    let leaving = Leaving::new(door, &DevicesConfig::default(), true, false).unwrap();
    let options = Options { memory: MemoryWay::Copy, ..Options::default() };
    let outcome = send(leaving, link(a, Side::Source), options, Progress::new("source", "test"));
    let arrival = destination.join().unwrap();
    match (outcome, arrival) {
        (Outcome::Moved((), report), Arrival::Running(Arrived { machine, .. }, _)) => (machine, report),
        (Outcome::Moved(..), Arrival::Failed(error)) => panic!("moved, but: {error}"),
        (Outcome::Stayed { error, stuck, .. }, _) => panic!("stayed: {error} {stuck:?}"),
        (Outcome::Unconfirmed(_, error), _) => panic!("unconfirmed: {error}"),
    }
}

fn tour(test: &str, stops: &[&str], mib: u64, cmdline: &str) {
    let mut plugins = Vec::new();
    for name in stops {
        match plugin(name) {
            Ok(plugin) => plugins.push(plugin),
            Err(why) => return println!("SKIPPED {test}: {why}"),
        }
    }
    let screen = Screen::default();
    let mut machine = start("counter", &plugins[0], &screen, 1, mib, cmdline);
    screen.wait("n=", 4);
    for (plugin, name) in plugins.iter().zip(stops).skip(1) {
        let (next, report) = hop(machine, plugin, &screen);
        machine = next;
        println!("{test}: to {name}: {report:?}");
        screen.wait("n=", 4);
        let checker = screen.check();
        println!("{test}: {} lines right, longest silence {} us", checker.lines(), checker.max_gap_us());
    }
    machine.pause().unwrap();
    let _ = screen.check();
    let sections = machine.save().unwrap();
    let blob = state::write(&godwit_vmm::control::moving::header(&machine), &sections).unwrap();
    for s in &sections {
        println!("{test}: {:16} {} {:4} bytes", s.section.kind, s.instance, s.section.data.len());
    }
    println!("{test}: the state takes {} bytes", blob.len());
    assert!(blob.len() <= 2048, "the state of a one-vCPU guest takes {} bytes", blob.len());
    for bit in 0..blob.len() * 8 {
        let mut bad = blob.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(state::read(&bad).is_err(), "{test}: bit {bit} of the state flipped and taken");
    }
}

#[test]
fn the_counter_moves_from_kvm_to_kvm() {
    tour("the_counter_moves_from_kvm_to_kvm", &["kvm", "kvm", "kvm"], 64, "rate=20");
}

/// The one move that every host can make, whatever its architecture.
#[test]
fn the_counter_moves_from_interpreter_to_interpreter() {
    let stops = ["interp", "interp", "interp"];
    tour("the_counter_moves_from_interpreter_to_interpreter", &stops, 64, "rate=10");
}
