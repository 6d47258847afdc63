//! What is started and how it is measured.

use crate::client::{PATIENCE, ask, connect};
use crate::table::{Bar, Table, millis};
use clap::Parser;
use godwit_guests::host::{self, own_memory};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const MIB: u64 = 128;
/// RAM of the snapshots that are restored.
const RESTORED: [(u64, &str, &str); 2] = [
    (128, "restore of 128 MiB, granted", "restore of 128 MiB, next line"),
    (4096, "restore of 4 GiB, granted", "restore of 4 GiB, next line"),
];
/// After which a monitor's memory is what it is for the rest of its life.
const SETTLED: Duration = Duration::from_millis(600);
/// What KVM itself takes for the larger of them.
const LARGE_FLOOR: &str = "floor of 4 GiB";
const SOCKET: &str = "exec to API socket";
const FIRST_BYTE: &str = "exec to first serial byte";
const EXIT: &str = "exec to exit";
const SNAPSHOT: &str = "full snapshot of 128 MiB";
const SNAPSHOT_FILE: &str = "its memory file, MiB on tmpfs";
const RSS: &str = "RSS besides guest RAM, MiB";
const DIRTY: &str = "private dirty besides it, MiB";

/// A process with its output on a socket, so that a silent one does not stop the bench. Dropping it ends it.
struct Started {
    child: Child,
    output: UnixStream,
    at: Instant,
}

impl Started {
    fn new(program: &Path, args: &[String]) -> Option<Self> {
        let (output, theirs) = UnixStream::pair().ok()?;
        output.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).stdout(OwnedFd::from(theirs));
        let at = Instant::now();
        let child = command.spawn().ok()?;
        Some(Started { child, output, at })
    }

    /// Since its start, once there is a byte of output.
    fn byte(&mut self) -> Option<Duration> {
        self.output.read_exact(&mut [0]).ok()?;
        Some(self.at.elapsed())
    }

    fn line(&mut self) -> Option<()> {
        let mut byte = [0];
        while byte != *b"\n" {
            self.output.read_exact(&mut byte).ok()?;
        }
        Some(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Sample = Vec<(&'static str, f64)>;
type Trial = dyn Fn(usize) -> Option<Sample> + Send + Sync;

struct Subject {
    name: String,
    trial: Arc<Trial>,
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Boots the hello guest: its first byte and the end of its process.
fn boots(program: PathBuf, args: Vec<String>) -> Arc<Trial> {
    Arc::new(move |_| {
        let mut guest = Started::new(&program, &args)?;
        let first = guest.byte()?;
        let mut text = vec![godwit_guests::hello::TEXT.as_bytes()[0]];
        guest.output.read_to_end(&mut text).ok()?;
        guest.child.wait().ok()?;
        let end = guest.at.elapsed();
        let said = String::from_utf8_lossy(&text);
        if !said.contains(godwit_guests::hello::TEXT.trim_end()) {
            println!("{}: the guest said {said:?}", program.display());
            return None;
        }
        Some(vec![(FIRST_BYTE, millis(first)), (EXIT, millis(end))])
    })
}

/// Where things are, and how many run at once.
struct Stage {
    godwit: PathBuf,
    dir: PathBuf,
    pause: Duration,
}

impl Stage {
    fn socket(&self, tag: &str, number: usize) -> PathBuf {
        self.dir.join(format!("{tag}{number}.sock"))
    }

    fn start(&self, backend: &str, socket: &Path, more: &[&str]) -> Option<(Started, UnixStream)> {
        let _ = std::fs::remove_file(socket);
        let mut args = words(&format!("--backend {backend} --api-sock"));
        args.push(socket.display().to_string());
        args.extend(more.iter().map(|&a| a.to_owned()));
        let started = Started::new(&self.godwit, &args)?;
        let peer = connect(socket, self.pause)?;
        Some((started, peer))
    }

    fn config(&self, guest: &str, mib: u64, args: &str) -> String {
        let kernel = self.dir.join(format!("{guest}.elf"));
        std::fs::write(&kernel, godwit_guests::build(guest).expect("builds")).expect("the guest's file");
        let path = self.dir.join(format!("{guest}{mib}.json")).display().to_string();
        let text = format!(
            "{{\"boot-source\": {{\"kernel_image_path\": {kernel:?}, \"boot_args\": {args:?}}},\n \
             \"machine-config\": {{\"vcpu_count\": 1, \"mem_size_mib\": {mib}}}}}\n"
        );
        std::fs::write(&path, text).expect("the config file");
        path
    }

    fn files(&self, tag: &str) -> (PathBuf, PathBuf) {
        (self.dir.join(format!("{tag}.state")), self.dir.join(format!("{tag}.memory")))
    }

    /// A counter that has run and stands still.
    fn paused(&self, backend: &str, socket: &Path, mib: u64) -> Option<(Started, UnixStream)> {
        let config = self.dir.join(format!("counter{mib}.json")).display().to_string();
        let (mut guest, mut peer) = self.start(backend, socket, &["--config-file", &config])?;
        guest.line()?;
        guest.line()?;
        ask(&mut peer, "PATCH", "/vm", r#"{"state": "Paused"}"#)?;
        Some((guest, peer))
    }

    fn write(&self, peer: &mut UnixStream, tag: &str) -> Option<Duration> {
        let (state, memory) = self.files(tag);
        let body = format!(r#"{{"snapshot_path": {state:?}, "mem_file_path": {memory:?}}}"#);
        let begin = Instant::now();
        ask(peer, "PUT", "/snapshot/create", &body)?;
        Some(begin.elapsed())
    }

    fn socket_trial(self: Arc<Self>, backend: String) -> Arc<Trial> {
        Arc::new(move |i| {
            let (started, _peer) = self.start(&backend, &self.socket("a", i), &[])?;
            Some(vec![(SOCKET, millis(started.at.elapsed()))])
        })
    }

    fn restore_trial(self: Arc<Self>, backend: String, which: usize) -> Arc<Trial> {
        let (mib, granted, line) = RESTORED[which];
        let (state, memory) = self.files(&format!("{backend}{mib}"));
        let body = format!(
            r#"{{"snapshot_path": {state:?}, "mem_backend": {{"backend_type": "File", "backend_path": {memory:?}}}, "resume_vm": true}}"#
        );
        Arc::new(move |i| {
            let (mut guest, mut peer) = self.start(&backend, &self.socket("r", i), &[])?;
            ask(&mut peer, "PUT", "/snapshot/load", &body)?;
            let resumed = guest.at.elapsed();
            guest.line()?;
            Some(vec![(granted, millis(resumed)), (line, millis(guest.at.elapsed()))])
        })
    }

    fn hold_trial(self: Arc<Self>, backend: String) -> Arc<Trial> {
        Arc::new(move |i| {
            let (guest, mut peer) = self.paused(&backend, &self.socket("h", i), MIB)?;
            // Once it is past its start.
            std::thread::sleep(SETTLED);
            let own = own_memory(guest.child.id(), MIB)?;
            let tag = format!("h{i}");
            let time = self.write(&mut peer, &tag)?;
            let (state, memory) = self.files(&tag);
            let used = std::fs::metadata(&memory).ok()?.blocks() * 512;
            let _ = std::fs::remove_file(state);
            let _ = std::fs::remove_file(memory);
            let mib = |kib: u64| kib as f64 / 1024.0;
            Some(vec![
                (SNAPSHOT, millis(time)),
                (SNAPSHOT_FILE, mib(used / 1024)),
                (RSS, mib(own.rss)),
                (DIRTY, mib(own.private_dirty)),
            ])
        })
    }
}

fn qemu(accelerator: &str, elf: &Path) -> Arc<Trial> {
    let mut args = words(&format!("-M microvm -m {MIB} -accel {accelerator} -nographic -no-reboot"));
    args.extend(words("-nodefaults -serial stdio -kernel"));
    args.push(elf.display().to_string());
    boots(host::qemu().unwrap_or_default(), args)
}

/// Firecracker, where it is installed, with the same config file.
fn firecracker(config: &str) -> Arc<Trial> {
    boots("firecracker".into(), words(&format!("--no-api --config-file {config}")))
}

/// All subjects for `at_once` microVMs; what is not there is left out by name.
fn subjects(dir: &Path, at_once: usize) -> Vec<Subject> {
    let pause = Duration::from_micros(if at_once == 1 { 50 } else { 2000 });
    let stage = Arc::new(Stage { godwit: host::godwit(), dir: dir.into(), pause });
    let hello = stage.config("hello", MIB, "");
    let elf = dir.join("hello.elf");
    let mut all: Vec<Subject> = Vec::new();
    let mut add = |name: &str, trial| all.push(Subject { name: name.to_owned(), trial });
    let kvm = Path::new("/dev/kvm").exists();
    if kvm {
        let bench = std::env::current_exe().expect("a path");
        let floor = |mib: u64| {
            let args = vec!["--floor".into(), elf.display().to_string(), mib.to_string()];
            boots(bench.clone(), args)
        };
        add("floor", floor(MIB));
        add(LARGE_FLOOR, floor(RESTORED[1].0));
        add("qemu kvm", qemu("kvm", &elf));
        add("firecracker", firecracker(&hello));
    } else {
        println!("left out: KVM (no /dev/kvm)");
    }
    add("qemu tcg", qemu("tcg", &elf));
    for backend in ["kvm", "interp"].into_iter().filter(|b| kvm || *b != "kvm") {
        let name = format!("godwit {backend}");
        let args = words(&format!("--no-api --backend {backend} --config-file {hello}"));
        add(&name, boots(stage.godwit.clone(), args));
        add(&name, stage.clone().socket_trial(backend.into()));
        add(&name, stage.clone().hold_trial(backend.into()));
        for (which, (mib, ..)) in RESTORED.iter().enumerate() {
            // A line a tick, so that the next is never far.
            stage.config("counter", *mib, "rate=100");
            let Some((_guest, mut peer)) = stage.paused(backend, &stage.socket("s", 0), *mib) else {
                println!("left out: {name}'s snapshots (its guest does not run)");
                continue;
            };
            if stage.write(&mut peer, &format!("{backend}{mib}")).is_some() {
                add(&name, stage.clone().restore_trial(backend.into(), which));
            }
        }
    }
    all
}

/// `at_once` trials, each in its thread, all let go together. `None` if one failed.
fn all_at_once(trial: &Arc<Trial>, at_once: usize) -> Option<Vec<Sample>> {
    let gate = Arc::new(Barrier::new(at_once));
    let threads: Vec<_> = (0..at_once)
        .map(|i| {
            let (trial, gate) = (Arc::clone(trial), Arc::clone(&gate));
            std::thread::spawn(move || {
                gate.wait();
                trial(i)
            })
        })
        .collect();
    // All are waited for, whatever one of them says.
    let samples: Vec<_> = threads.into_iter().map(|t| t.join().ok().flatten()).collect();
    samples.into_iter().collect()
}

fn bar(subject: &str, measure: &str) -> Bar {
    match (subject, measure) {
        ("godwit kvm", FIRST_BYTE) => Bar::MostOfFloor(4.0, 1.8),
        ("godwit kvm", EXIT) => Bar::Most(6.0),
        ("godwit kvm", m) if RESTORED.iter().any(|(_, granted, _)| *granted == m) => Bar::Most(5.0),
        ("godwit kvm", SNAPSHOT) => Bar::Most(10.0),
        ("godwit kvm", RSS) => Bar::Most(5.0),
        ("godwit kvm", DIRTY) => Bar::Most(1.0),
        _ => Bar::None,
    }
}

fn sizes() {
    println!("\n{:32}{:>10}  bar", "file", "MiB");
    let godwit = host::godwit();
    let dir = godwit.parent().unwrap_or(Path::new("."));
    for (name, most) in
        [("godwit", 5.0), ("libgodwit_backend_kvm.so", 1.5), ("libgodwit_backend_interp.so", 1.5)]
    {
        let Ok(file) = std::fs::metadata(dir.join(name)) else {
            println!("left out: {name} (not in {})", dir.display());
            continue;
        };
        let mib = file.len() as f64 / f64::from(1 << 20);
        println!("{name:32}{mib:>10.2}  {most}: {}", if mib <= most { "met" } else { "MISSED" });
    }
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// How soon a microVM is there, and what it costs to have one: beside a bare KVM VM and QEMU.
#[derive(Parser)]
struct Arguments {
    /// Runs of each subject; the table has their medians.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How many microVMs at once, a table for each number.
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_values_t = [1, 100])]
    at_once: Vec<usize>,
    /// Only these subjects, by the names in the table.
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

pub(crate) fn bench() {
    let Arguments { runs, at_once, only, .. } = Arguments::parse();
    let place = [Path::new("/dev/shm"), Path::new(env!("CARGO_TARGET_TMPDIR"))];
    let place = place.into_iter().find(|p| p.is_dir()).unwrap_or(Path::new("."));
    let dir = place.join(format!("godwit-startup-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    println!("load {} at the start, milliseconds", load());
    let mut table = Table::default();
    for &n in &at_once {
        let mut subjects = subjects(&dir, n);
        subjects.retain(|s| only.is_empty() || only.contains(&s.name));
        for _ in 0..runs {
            subjects.retain(|subject| match all_at_once(&subject.trial, n) {
                Some(samples) => {
                    let values = samples.into_iter().flatten();
                    values.for_each(|(measure, value)| table.add(&subject.name, measure, n, value));
                    true
                }
                None => {
                    println!("left out: {} (a run failed, or it is not installed)", subject.name);
                    false
                }
            });
        }
        table.print(n, bar);
        let granted = |which: usize| table.median("godwit kvm", RESTORED[which].1, n);
        if let (Some(small), Some(large)) = (granted(0), granted(1)) {
            println!("restore of 4 GiB by restore of 128 MiB, KVM: {:.2}", large / small);
            let floors = [LARGE_FLOOR, "floor"].map(|f| table.median(f, FIRST_BYTE, n).unwrap_or(f64::NAN));
            println!(
                "of the difference of {:.2} ms the floors of both sizes differ by {:.2} ms",
                large - small,
                floors[0] - floors[1]
            );
        }
    }
    sizes();
    println!("load {} at the end", load());
    let _ = std::fs::remove_dir_all(&dir);
}
