//! `godwit-demo`: one guest, two CPUs, two live moves, on one terminal. Run by `scripts/demo`.
//!
//! Starts the counter guest on the best backend, moves it to the other one and home again while its output streams by,
//! checks every line from outside, and prints the reports. Where KVM cannot be used both ends are interpreters, and it says so.
//!
//! With `--stop NAME=COMMAND` (as often as wanted; run by `scripts/tour`) the guest goes to the interpreter of each such
//! godwit instead, over TCP: builds for other CPU architectures, under emulation.

use godwit_guests::counter::Checker;
use serde_json::Value;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longer than any step takes on a busy machine, under emulation: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(180);
/// Lines of the guest between two moves.
const LINES_A_STOP: u64 = 12;

type Result<T> = std::result::Result<T, String>;

/// What the guest has said, on whichever backend, and the check of it.
struct Screen {
    partial: Vec<u8>,
    checker: Checker,
    lines: u64,
    wrong: Option<String>,
    last: Instant,
    silence: Duration,
}

impl Screen {
    fn put(&mut self, label: &str, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                self.partial.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
            self.partial.clear();
            say(&format!("[{label:>9}] {line}"));
            match self.checker.check_line(&line) {
                Ok(Some(_)) => {
                    let now = Instant::now();
                    if self.lines > 0 {
                        self.silence = self.silence.max(now - self.last);
                    }
                    self.last = now;
                    self.lines += 1;
                }
                Ok(None) => {}
                Err(e) => self.wrong = Some(e.to_string()),
            }
        }
    }
}

fn say(line: &str) {
    // A closed terminal is no reason to stop in the middle of a move.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn title(text: &str) {
    if std::io::stdout().is_terminal() {
        say(&format!("\n\x1b[1m{text}\x1b[0m"))
    } else {
        say(&format!("\n{text}"))
    }
}

/// Where the guest can live: how godwit is started there, and on which backend.
#[derive(Clone)]
struct Stop {
    name: String,
    command: Vec<String>,
    backend: String,
}

impl Stop {
    fn here(program: &Path, backend: &str) -> Self {
        Stop {
            name: backend.to_owned(),
            command: vec![program.display().to_string()],
            backend: backend.to_owned(),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let (name, command) = text.split_once('=').ok_or(format!("--stop {text}: not NAME=COMMAND"))?;
        let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if command.is_empty() {
            return Err(format!("--stop {text}: no command"));
        }
        Ok(Stop { name: name.to_owned(), command, backend: "interp".into() })
    }
}

/// A godwit with a guest in it. Dropping it ends it.
struct Host {
    child: Child,
    name: String,
    api: PathBuf,
    errors: Arc<Mutex<String>>,
}

impl Host {
    fn start(stop: &Stop, api: PathBuf, args: &[&str], screen: &Arc<Mutex<Screen>>) -> Result<Self> {
        let mut child = Command::new(&stop.command[0])
            .args(&stop.command[1..])
            .args(args)
            .args(["--backend", &stop.backend, "--api-sock"])
            .arg(&api)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", stop.command[0]))?;
        let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err("no pipes".into());
        };
        let (screen, label) = (Arc::clone(screen), stop.name.clone());
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut chunk) {
                lock(&screen).put(&label, &chunk[..n]);
            }
        });
        let errors = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&errors);
        std::thread::spawn(move || {
            let mut chunk = [0; 1024];
            while let Ok(n @ 1..) = stderr.read(&mut chunk) {
                lock(&kept).push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        });
        Ok(Host { child, name: stop.name.clone(), api, errors })
    }

    fn wait(&mut self, what: &str, done: impl Fn(&str) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let done = || done(&lock(&self.errors));
        while !done() {
            let ended = self.child.try_wait().map_err(|e| e.to_string())?;
            if let Some(status) = ended.filter(|_| !done()) {
                return Err(format!(
                    "godwit on {} ended ({status}) {what}:\n{}",
                    self.name,
                    lock(&self.errors)
                ));
            }
            if Instant::now() > end {
                return Err(format!("nothing happened on {} {what}:\n{}", self.name, lock(&self.errors)));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock<T: ?Sized>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

/// Names of the usable backends among KVM and the interpreter, best first.
fn backends(program: &Path) -> Result<Vec<String>> {
    let out = Command::new(program).args(["backends", "--json"]).output().map_err(|e| e.to_string())?;
    let list: Value =
        serde_json::from_slice(&out.stdout).map_err(|e| format!("godwit backends --json: {e}"))?;
    let usable = |name: &str| {
        let mine = list.as_array().into_iter().flatten().find(|b| b["descriptor"]["name"] == name);
        match mine {
            Some(b) if b["usable"] == Value::Bool(true) => true,
            Some(b) => {
                say(&format!(
                    "Backend {name} cannot be used here: {}",
                    b["reason"].as_str().unwrap_or("no reason given")
                ));
                false
            }
            None => false,
        }
    };
    Ok(["kvm", "interp"].into_iter().filter(|n| usable(n)).map(str::to_owned).collect())
}

/// What a receiver says before the address it listens on.
const WAITING: &str = "waiting for a guest on ";

/// One hop: a receiver at `stop`, and the guest sent there.
fn hop(
    program: &Path,
    from: Host,
    stop: &Stop,
    tcp: bool,
    dir: &Path,
    n: usize,
    screen: &Arc<Mutex<Screen>>,
) -> Result<(Host, Value)> {
    let wanted = match tcp {
        true => "tcp:127.0.0.1:0".into(),
        false => format!("unix:{}", dir.join(format!("hop{n}.sock")).display()),
    };
    let api = dir.join(format!("api{n}.sock"));
    let mut to = Host::start(stop, api, &["receive", &wanted], screen)?;
    let address = |said: &str| {
        let line = said.split_once(WAITING)?.1;
        line.split_once('\n').map(|(address, _)| address.trim().to_owned())
    };
    to.wait("while it was to listen", |said| address(said).is_some())?;
    let target = address(&lock(&to.errors)).ok_or("no address")?;
    let out = Command::new(program)
        .args(["migrate", "--json", "--api-sock"])
        .arg(&from.api)
        .arg(&target)
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        return Err(format!(
            "godwit migrate: {}\n{text}{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        ));
    }
    let report = serde_json::from_str(&text).map_err(|e| format!("the report is not JSON: {e}: {text}"))?;
    Ok((to, report))
}

fn demo(dir: &Path, stops: &[Stop]) -> Result<()> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?.with_file_name("godwit");
    let usable = backends(&program)?;
    let (first, second) = match usable.as_slice() {
        [best, other, ..] => (best.clone(), other.clone()),
        [only] => {
            say(&format!("Only {only} can be used here: the guest moves between two processes of it."));
            (only.clone(), only.clone())
        }
        [] => return Err("no backend can be used here; see godwit backends".into()),
    };
    let kernel = dir.join("counter.elf");
    std::fs::write(&kernel, godwit_guests::build("counter").map_err(|e| e.to_string())?)
        .map_err(|e| e.to_string())?;
    let config = dir.join("counter.json");
    let text = serde_json::json!({
        "boot-source": { "kernel_image_path": kernel, "boot_args": "" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128, "cpu_model": "x86-64" }
    });
    std::fs::write(&config, text.to_string()).map_err(|e| e.to_string())?;

    let screen = Arc::new(Mutex::new(Screen {
        partial: Vec::new(),
        checker: Checker::new(),
        lines: 0,
        wrong: None,
        last: Instant::now(),
        silence: Duration::ZERO,
    }));
    let lines = |n: u64| {
        let screen = Arc::clone(&screen);
        let until = lock(&screen).lines + n;
        move |_: &str| lock(&screen).lines >= until || lock(&screen).wrong.is_some()
    };
    let path = config.display().to_string();
    let first = Stop::here(&program, &first);
    title(&format!("The guest starts on {}", first.name));
    let mut route = stops.to_vec();
    if stops.is_empty() {
        route.push(Stop::here(&program, &second));
    }
    route.push(first.clone());
    let mut host = Host::start(&first, dir.join("api0.sock"), &["--config-file", &path], &screen)?;
    host.wait("while the guest was to count", lines(LINES_A_STOP))?;
    let mut reports = Vec::new();
    for (n, stop) in route.iter().enumerate() {
        title(&format!("It moves to {}", stop.name));
        let from = host.name.clone();
        let (next, report) = hop(&program, host, stop, !stops.is_empty(), dir, n + 1, &screen)?;
        host = next;
        reports.push((format!("{from} -> {}", stop.name), report));
        host.wait("while the guest was to count on", lines(LINES_A_STOP))?;
    }
    drop(host);

    let screen = lock(&screen);
    title("Reports");
    say(&format!(
        "{:24} {:>10} {:>11} {:>7} {:>8} {:>10} {:>7}",
        "hop", "total", "VMM pause", "rounds", "pages", "bytes", "state"
    ));
    for (name, r) in &reports {
        let r = &r["report"];
        let number = |key: &str| r[key].as_f64().unwrap_or(f64::NAN);
        say(&format!(
            "{name:24} {:>7.1} ms {:>8.2} ms {:>7} {:>8} {:>10} {:>5} B",
            number("total_ms"),
            number("downtime_ms"),
            number("rounds"),
            number("pages"),
            number("bytes"),
            number("blob_bytes")
        ));
    }
    say(&format!(
        "The guest prints a line every 100 ms. Its longest silence between two lines: {} ms by its own clock, {} ms as seen here.",
        screen.checker.max_gap_us() / 1000,
        screen.silence.as_millis()
    ));
    if let Some(wrong) = &screen.wrong {
        return Err(format!("the guest was disturbed: {wrong}"));
    }
    say(&format!("{} lines: none missing, none twice, every checksum right.", screen.checker.lines()));
    Ok(())
}

fn main() -> ExitCode {
    let mut stops = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let stop = match (arg.as_str(), args.next()) {
            ("--stop", Some(text)) => Stop::parse(&text),
            _ => Err("usage: godwit-demo [--stop NAME=COMMAND]...\n\
                Moves a guest live between CPU backends; scripts/demo and scripts/tour build everything and run it."
                .into()),
        };
        match stop {
            Ok(stop) => stops.push(stop),
            Err(e) => {
                eprintln!("{e}");
                return ExitCode::from(2);
            }
        }
    }
    let dir = std::env::temp_dir().join(format!("godwit-demo-{}", std::process::id()));
    let result = std::fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display())).and_then(|()| {
        let result = demo(&dir, &stops);
        let _ = std::fs::remove_dir_all(&dir);
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("godwit-demo: {e}");
            ExitCode::FAILURE
        }
    }
}
