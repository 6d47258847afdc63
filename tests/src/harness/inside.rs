//! Machines inside the test's own process: also where the tests run under user-mode emulation, which starts no other program.

use super::PATIENCE;
use crate::conformance::plugin::Plugin as Probe;
use godwit_guests::counter::Checker;
use godwit_vmm::board::boot::BootSource;
use godwit_vmm::board::serial::Output;
use godwit_vmm::machine::{Console, EventSink, Machine, Spec};
use godwit_vmm::plugin::Plugin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the guest prints, on whichever machine.
#[derive(Clone, Default)]
pub struct Screen(Arc<Mutex<Vec<u8>>>);

impl Output for Screen {
    fn put(&mut self, bytes: &[u8]) -> usize {
        self.0.lock().unwrap().extend_from_slice(bytes);
        bytes.len()
    }
}

impl Screen {
    /// Whole lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap();
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect()
    }

    /// Waits until the guest has printed `n` lines more that begin with `start`.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    pub fn wait(&self, start: &str, n: usize) {
        let count = || self.lines().iter().filter(|l| l.starts_with(start)).count();
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

    /// Checks all lines of the counter so far.
    ///
    /// # Panics
    /// If one is wrong.
    #[must_use]
    pub fn check(&self) -> Checker {
        let mut checker = Checker::new();
        for line in self.lines() {
            if let Err(e) = checker.check_line(&line) {
                panic!("{e}");
            }
        }
        checker
    }
}

/// A backend that works here, or why there is none.
///
/// # Errors
/// It is not built, or of no use on this host.
pub fn plugin(name: &str) -> Result<Arc<Plugin>, String> {
    Probe::usable(name)?;
    let path = Probe::path(name)?;
    Plugin::load(&path, &[]).map_err(|e| e.to_string())
}

/// A console without a keyboard.
#[must_use]
pub fn console(screen: &Screen) -> Console {
    Console { input: None, output: Box::new(screen.clone()), escape: false }
}

/// Says why a machine stopped.
#[must_use]
pub fn events() -> EventSink {
    Arc::new(|event| eprintln!("the machine stopped: {event:?}"))
}

/// A machine with the CPU x86-64 that runs one of our guests.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn start(
    guest: &str,
    plugin: &Arc<Plugin>,
    screen: &Screen,
    vcpus: u32,
    mib: u64,
    cmdline: &str,
) -> Machine {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let spec = Spec { vcpus, memory_bytes: mib << 20, model: Some("x86-64".into()), ..Spec::default() };
    let mut machine = Machine::build(&spec, plugin, console(screen), events()).expect("a machine");
    let name = format!("godwit-{guest}-{}-{}.elf", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let kernel = std::env::temp_dir().join(name);
    std::fs::write(&kernel, godwit_guests::build(guest).expect("the guest assembles")).expect("written");
    let source = BootSource { kernel: kernel.clone(), initrd: None, cmdline: cmdline.into() };
    machine.boot(&source).expect("it boots");
    let _ = std::fs::remove_file(kernel);
    machine.resume(0).expect("it runs");
    machine
}
