//! Starts the real program, reads what its guest prints, and ends it: for the end-to-end tests.
//!
//! The program and its plugins are those that cargo built for this profile (`cargo build --workspace`).

pub mod fault;
pub mod inside;
pub mod jail;
pub mod mount;
pub mod moves;
pub mod net;

use godwit_guests::counter::Checker;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine: only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A program that cargo built beside the tests, or why there is none.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let found = exe.ancestors().skip(2).take(1).map(|d| d.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| format!("{name} is not built: cargo build --workspace"))
}

/// Files in the cache folder of the set-up; `part` of `scripts/setup` brings them.
pub fn cached<const N: usize>(names: [&str; N], part: &str) -> Result<[PathBuf; N], String> {
    let cache = godwit_guests::host::cache();
    let paths = names.map(|n| cache.join(n));
    match paths.iter().find(|p| !p.is_file()) {
        Some(missing) => Err(format!("{} is missing: scripts/setup {part}", missing.display())),
        None => Ok(paths),
    }
}

/// Whether scratch directories have room for a test that writes so many MiB, and for its neighbours.
///
/// # Errors
/// There is less: the test is to be skipped.
pub fn room(mib: u64) -> Result<(), String> {
    let dir = std::env::temp_dir();
    let disk = rustix::fs::statvfs(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let (free, wanted) = (disk.f_bavail.saturating_mul(disk.f_frsize) >> 20, 4 * mib);
    if free < wanted {
        return Err(format!("{} has {free} MiB free of {wanted} wanted (set TMPDIR)", dir.display()));
    }
    Ok(())
}

/// A directory of a test's own, gone with it.
pub struct Scratch(PathBuf);

impl Scratch {
    /// For the test of this name.
    pub fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("godwit-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).expect("a scratch directory");
        Scratch(dir)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a guest and a config file that boots it: the config's path.
    pub fn config(&self, guest: &str, mib: u64, model: &str, args: &str) -> PathBuf {
        let kernel = self.path(&format!("{guest}.elf"));
        std::fs::write(&kernel, godwit_guests::build(guest).expect("the guest assembles")).expect("written");
        let config = self.path(&format!("{guest}.json"));
        let text = format!(
            r#"{{"boot-source":{{"kernel_image_path":{kernel:?},"boot_args":{args:?}}},
               "machine-config":{{"vcpu_count":1,"mem_size_mib":{mib},"cpu_model":{model:?}}}}}"#
        );
        std::fs::write(&config, text).expect("written");
        config
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The command that starts `program`, with a tracer if `GODWIT_SYSCALLS` says so.
pub fn traced(program: &Path) -> Command {
    match (std::env::var_os(crate::syscalls::DIR), self::program("godwit-syscalls")) {
        (Some(_), Ok(tracer)) => {
            let mut command = Command::new(tracer);
            command.arg(program);
            command
        }
        _ => Command::new(program),
    }
}

/// Where a receiver waits for a guest, of what it has said on stderr: lines come in pieces.
pub fn place(said: &str) -> Option<&str> {
    let (place, _) = said.split_once("waiting for a guest on ")?.1.split_once('\n')?;
    place.split_whitespace().next()
}

/// A running program. Dropping it kills it.
pub struct Process {
    child: Child,
    out: Arc<Mutex<Vec<u8>>>,
    err: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts it, with an injected fault if `fault` is not empty.
    pub fn start(program: &Path, args: &[&str], fault: &str) -> Self {
        // Whoever starts it may be `ip netns exec`, and what is started so may be another program.
        let all = args.iter().map(Path::new).chain([program]).filter_map(Path::file_name);
        let ours = all.filter_map(|n| n.to_str()).any(|n| n == "godwit" || n == "godwit-jailer");
        let mut command = if ours { traced(program) } else { Command::new(program) };
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if !fault.is_empty() {
            command.env("GODWIT_FAULT", fault);
        }
        let mut child = command.spawn().expect("the program starts");
        let (out, err) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(String::new())));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let lines = Arc::clone(&out);
        let out_reader = std::thread::spawn(move || {
            let mut stdout = stdout.expect("piped");
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = stdout.read(&mut chunk) {
                lines.lock().expect("not poisoned").extend_from_slice(&chunk[..n]);
            }
        });
        let text = Arc::clone(&err);
        let err_reader = std::thread::spawn(move || {
            let mut stderr = stderr.expect("piped");
            let mut chunk = [0; 1024];
            while let Ok(n @ 1..) = stderr.read(&mut chunk) {
                text.lock().expect("not poisoned").push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        });
        Process { child, out, err, readers: vec![out_reader, err_reader] }
    }

    /// Whole lines of standard output so far.
    pub fn lines(&self) -> Vec<String> {
        let mut text = self.text();
        text.truncate(text.rfind('\n').map_or(0, |i| i + 1));
        text.lines().map(str::to_owned).collect()
    }

    /// Standard output so far. A guest that has moved away may have stopped in the middle of a line.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out.lock().expect("not poisoned")).into_owned()
    }

    /// Standard error so far.
    pub fn err(&self) -> String {
        self.err.lock().expect("not poisoned").clone()
    }

    /// Waits until `n` more lines of the counter have come; `Err` if the program ends before.
    pub fn wait_lines(&self, n: usize) -> Result<(), String> {
        let count = || self.lines().iter().filter(|l| l.starts_with("n=")).count();
        let (begin, end) = (count(), Instant::now() + PATIENCE);
        while count() < begin + n {
            let err = self.err();
            if Instant::now() > end || err.contains("is not implemented") {
                return Err(format!("the guest is silent; standard error: {err}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until standard error says `text`.
    pub fn wait_err(&self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.err().contains(text) {
            assert!(Instant::now() < end, "standard error does not say {text:?} but: {}", self.err());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it says where it waits for a guest: the address, of a line that has come whole.
    ///
    /// # Errors
    /// It ends before, or says nothing in all patience.
    pub fn wait_place(&self) -> Result<String, String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let ended = self.readers.iter().all(JoinHandle::is_finished);
            let said = self.err();
            if let Some(place) = place(&said) {
                return Ok(place.to_owned());
            }
            if ended || Instant::now() > end {
                return Err(format!("it waits for no guest: {said}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end and for all of its output: the exit code; `None` if a signal ended it.
    pub fn wait_exit(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                // All that it said is to be seen from here on.
                self.readers.drain(..).for_each(|reader| drop(reader.join()));
                return status.code();
            }
            assert!(Instant::now() < end, "it does not end; standard error: {}", self.err());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True while it runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|s| s.is_none())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request to a godwit's API socket: the status, and the body as JSON.
///
/// # Errors
/// Nobody answers there any more.
pub fn ask(socket: &Path, method: &str, path: &str, body: &str) -> Result<(u16, Value), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", socket.display());
    let mut peer = UnixStream::connect(socket).map_err(failed)?;
    peer.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}", body.len());
    peer.write_all(format!("{head}\r\nContent-Type: application/json\r\n\r\n{body}").as_bytes())
        .map_err(failed)?;
    let mut answer = String::new();
    peer.read_to_string(&mut answer).map_err(failed)?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no HTTP answer")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// Checks the counter's lines over all the processes it has lived in, in order. The last line of each may go on in the next.
pub fn check_lines(lives: &[String]) -> Checker {
    let mut checker = Checker::new();
    let all = lives.concat();
    // The last line may be half printed.
    let whole = all.rfind('\n').map_or(0, |i| i + 1);
    for line in all[..whole].lines() {
        if let Err(e) = checker.check_line(line) {
            panic!("{e}");
        }
    }
    checker
}
