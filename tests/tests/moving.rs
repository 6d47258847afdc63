//! The counter guest moves between machines in this process, over a real socket, backend to backend: nothing of it is
//! missing, nothing is there twice, and its registers and memory are its own.
//!
//! The libraries are those that cargo built for this profile (`cargo build --workspace`), or in GODWIT_PLUGIN_DIR.

use godwit_guests::counter::Checker;
use godwit_tests::conformance::plugin::Plugin as Probe;
use godwit_vmm::board::boot::BootSource;
use godwit_vmm::board::serial::Output;
use godwit_vmm::control::moving::{Arrived, Arriving, Leaving, Limits};
use godwit_vmm::machine::{Console, EventSink, Machine, Spec};
use godwit_vmm::migrate::fault::Side;
use godwit_vmm::migrate::{Arrival, Link, MemoryWay, Options, Outcome, Progress, Report, receive, send};
use godwit_vmm::plugin::Plugin;
use godwit_vmm::state;
use godwit_vmm::virtio::slots::DevicesConfig;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the guest prints, on whichever machine.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Output for Screen {
    fn put(&mut self, bytes: &[u8]) -> usize {
        self.0.lock().unwrap().extend_from_slice(bytes);
        bytes.len()
    }
}

impl Screen {
    fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap();
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect()
    }

    /// Waits until the guest has printed `n` lines of its own more.
    fn wait(&self, n: usize) {
        let count = || self.lines().iter().filter(|l| l.starts_with("n=")).count();
        let (begin, end) = (count(), Instant::now() + PATIENCE);
        while count() < begin + n {
            assert!(
                Instant::now() < end,
                "the guest is silent after: {:#?}",
                self.lines().iter().rev().take(3)
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Checks all lines so far.
    fn check(&self) -> Checker {
        let mut checker = Checker::new();
        for line in self.lines() {
            if let Err(e) = checker.check_line(&line) {
                panic!("{e}");
            }
        }
        checker
    }
}

fn plugin(name: &str) -> Result<Arc<Plugin>, String> {
    Probe::usable(name)?;
    let path = Probe::path(name)?;
    Plugin::load(&path, &[]).map_err(|e| e.to_string())
}

fn console(screen: &Screen) -> Console {
    Console { input: None, output: Box::new(screen.clone()), escape: false }
}

fn events() -> EventSink {
    Arc::new(|event| eprintln!("the machine stopped: {event:?}"))
}

fn kernel(test: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("godwit-{test}-{}.elf", std::process::id()));
    std::fs::write(&path, godwit_guests::build("counter").unwrap()).unwrap();
    path
}

fn start(test: &str, plugin: &Arc<Plugin>, screen: &Screen, mib: u64, cmdline: &str) -> Machine {
    let spec = Spec { vcpus: 1, memory_bytes: mib << 20, model: Some("x86-64".into()), ..Spec::default() };
    let mut machine = Machine::build(&spec, plugin, console(screen), events()).unwrap();
    let kernel = kernel(test);
    machine.boot(&BootSource { kernel: kernel.clone(), initrd: None, cmdline: cmdline.into() }).unwrap();
    std::fs::remove_file(kernel).unwrap();
    machine.resume(0).unwrap();
    machine
}

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
    let mut machine = start(test, &plugins[0], &screen, mib, cmdline);
    screen.wait(4);
    for (plugin, name) in plugins.iter().zip(stops).skip(1) {
        let (next, report) = hop(machine, plugin, &screen);
        machine = next;
        println!("{test}: to {name}: {report:?}");
        screen.wait(4);
        let checker = screen.check();
        println!("{test}: {} lines right, longest silence {} us", checker.lines(), checker.max_gap_us());
    }
    machine.pause().unwrap();
    screen.check();
    let sections = machine.save().unwrap();
    let blob = state::write(&godwit_vmm::control::moving::header(&machine), &sections).unwrap();
    for s in &sections {
        println!("{test}: {:16} {} {:4} bytes", s.section.kind, s.instance, s.section.data.len());
    }
    println!("{test}: the state takes {} bytes", blob.len());
    assert!(blob.len() <= 2048, "the state of a one-vCPU guest takes {} bytes", blob.len());
}

#[test]
fn the_counter_moves_from_kvm_to_kvm() {
    tour("the_counter_moves_from_kvm_to_kvm", &["kvm", "kvm", "kvm"], 64, "rate=20");
}
