//! Where a guest can live, a godwit there, and what the guest says through it.

use godwit_guests::counter::Checker;
use serde_json::Value;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longer than any step takes on a busy machine, under emulation: only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
pub(crate) type Result<T> = std::result::Result<T, String>;

/// The check of a guest's lines.
pub(crate) enum Check {
    Counter(Checker),
    Busy,
}

impl Check {
    /// Whether this is a line of the guest's work; all of those must be right and in order, `before` being how many there were.
    pub(crate) fn line(&mut self, line: &str, before: u64) -> Result<bool> {
        match self {
            Check::Counter(checker) => {
                checker.check_line(line).map(|l| l.is_some()).map_err(|e| e.to_string())
            }
            Check::Busy if line.contains("BAD") => Err(line.to_owned()),
            Check::Busy if line.starts_with("busy n=") => {
                let due = format!("busy n={} ", before + 1);
                match line.starts_with(&due) && line.ends_with(" ok") {
                    true => Ok(true),
                    false => Err(format!("{line:?} where {due:?} was due")),
                }
            }
            Check::Busy => Ok(false),
        }
    }
}

/// What the guest has said, on whichever backend, and the check of it.
pub(crate) struct Screen {
    partial: Vec<u8>,
    pub(crate) check: Check,
    pub(crate) lines: u64,
    pub(crate) wrong: Option<String>,
    last: Instant,
    pub(crate) silence: Duration,
}

impl Screen {
    pub(crate) fn new(check: Check) -> Self {
        Screen {
            partial: Vec::new(),
            check,
            lines: 0,
            wrong: None,
            last: Instant::now(),
            silence: Duration::ZERO,
        }
    }
}

/// Whoever listens to a guest.
pub(crate) trait Hears: Send {
    /// The guest at `label` said `bytes`.
    fn put(&mut self, label: &str, bytes: &[u8]);
}

impl Hears for Screen {
    fn put(&mut self, label: &str, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                self.partial.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
            self.partial.clear();
            say(&format!("[{label:>9}] {line}"));
            match self.check.line(&line, self.lines) {
                Ok(true) => {
                    let now = Instant::now();
                    if self.lines > 0 {
                        self.silence = self.silence.max(now - self.last);
                    }
                    self.last = now;
                    self.lines += 1;
                }
                Ok(false) => {}
                Err(e) => self.wrong = Some(e),
            }
        }
    }
}

pub(crate) fn say(line: &str) {
    // A closed terminal is no reason to stop in the middle of a move.
    let _ = writeln!(std::io::stdout(), "{line}");
}

pub(crate) fn title(text: &str) {
    if std::io::stdout().is_terminal() {
        say(&format!("\n\x1b[1m{text}\x1b[0m"))
    } else {
        say(&format!("\n{text}"))
    }
}

/// Where the guest can live: how godwit is started there, and on which backend.
#[derive(Clone)]
pub(crate) struct Stop {
    pub(crate) name: String,
    command: Vec<String>,
    backend: String,
    /// Under user-mode emulation there are no seccomp filters, and godwit wants to be told so.
    emulated: bool,
}

impl Stop {
    pub(crate) fn here(program: &Path, backend: &str) -> Self {
        Stop {
            name: backend.to_owned(),
            command: vec![program.display().to_string()],
            backend: backend.to_owned(),
            emulated: false,
        }
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (name, command) = text.split_once('=').ok_or(format!("--stop {text}: not NAME=COMMAND"))?;
        let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if command.is_empty() {
            return Err(format!("--stop {text}: no command"));
        }
        Ok(Stop { name: name.to_owned(), command, backend: "interp".into(), emulated: true })
    }
}

/// A godwit with a guest in it. Dropping it ends it.
pub(crate) struct Host {
    child: Child,
    stdin: Option<ChildStdin>,
    pub(crate) name: String,
    pub(crate) api: PathBuf,
    pub(crate) errors: Arc<Mutex<String>>,
}

impl Host {
    pub(crate) fn start<H: Hears + 'static>(
        stop: &Stop,
        api: PathBuf,
        args: &[&str],
        ear: &Arc<Mutex<H>>,
    ) -> Result<Self> {
        let mut child = Command::new(&stop.command[0])
            .args(&stop.command[1..])
            .args(args)
            .args(stop.emulated.then_some("--no-seccomp"))
            .args(["--backend", &stop.backend, "--api-sock"])
            .arg(&api)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", stop.command[0]))?;
        let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err("no pipes".into());
        };
        let (ear, label) = (Arc::clone(ear), stop.name.clone());
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut chunk) {
                lock(&ear).put(&label, &chunk[..n]);
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
        let stdin = child.stdin.take();
        Ok(Host { child, stdin, name: stop.name.clone(), api, errors })
    }

    /// Types at the guest's serial console.
    pub(crate) fn type_in(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().ok_or("no console")?;
        stdin
            .write_all(text.as_bytes())
            .and_then(|()| stdin.flush())
            .map_err(|e| format!("{}: {e}", self.name))
    }

    pub(crate) fn wait(&mut self, what: &str, done: impl Fn(&str) -> bool) -> Result<()> {
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

pub(crate) fn lock<T: ?Sized>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

/// Names of the backends among KVM and the interpreter that can run such a CPU here, best first.
pub(crate) fn backends(program: &Path, model: &str) -> Result<Vec<String>> {
    let out = Command::new(program).args(["backends", "--json"]).output().map_err(|e| e.to_string())?;
    let list: Value =
        serde_json::from_slice(&out.stdout).map_err(|e| format!("godwit backends --json: {e}"))?;
    let usable = |name: &str| {
        let mine = list.as_array().into_iter().flatten().find(|b| b["descriptor"]["name"] == name);
        let models =
            |b: &Value| b["probe"]["models"].as_array().is_some_and(|m| m.iter().any(|m| m == model));
        match mine {
            Some(b) if b["usable"] == Value::Bool(true) && models(b) => true,
            Some(b) if b["usable"] == Value::Bool(true) => {
                say(&format!("Backend {name} has no CPU {model} here."));
                false
            }
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
