//! The console on a terminal and behind a pipe: raw while the guest lives, as it was after every end, and nothing lost.

use godwit_tests::harness::{PATIENCE, Process, Scratch, program, traced};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn needed() -> Result<(PathBuf, PathBuf), String> {
    Ok((program("godwit")?, program("libgodwit_backend_interp.so")?))
}

/// Its threads: id and name.
fn threads(pid: u32) -> Vec<(i32, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let named = tasks.filter_map(|t| {
        let name = std::fs::read_to_string(t.path().join("comm")).ok()?;
        Some((t.file_name().to_str()?.parse().ok()?, name.trim().to_owned()))
    });
    named.collect()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A terminal, with a program on it.
struct Terminal {
    master: File,
    slave: File,
    said: Arc<Mutex<Vec<u8>>>,
    child: Child,
    /// What ended it.
    signal: Option<i32>,
}

fn cooked(terminal: &File) -> bool {
    // SAFETY: all zero is a valid termios, filled by tcgetattr.
    let settings = unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &mut settings), 0);
        settings
    };
    let all = libc::ICANON | libc::ECHO | libc::ISIG;
    settings.c_lflag & all == all
}

impl Terminal {
    fn start(command: &mut Command) -> Self {
        let (mut master, mut slave) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: both are written; no name, settings or size are asked for.
        let made = unsafe { libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast()) };
        assert_eq!(made, 0, "a pseudo-terminal");
        // SAFETY: fresh descriptors, owned by nobody else.
        let [master, slave] = [master, slave].map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        let stdio = || std::process::Stdio::from(slave.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: a session of its own, with the terminal as its own: both calls are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            })
        };
        assert!(cooked(&slave), "a fresh terminal");
        let child = command.spawn().expect("the program starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, text) = (master.try_clone().unwrap(), Arc::clone(&said));
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut chunk) {
                text.lock().unwrap().extend_from_slice(&chunk[..n]);
            }
        });
        Terminal { master, slave, said, child, signal: None }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned()
    }

    /// Whether a line is edited and echoed by the terminal, and keys send signals.
    fn cooked(&self) -> bool {
        cooked(&self.slave)
    }

    fn send(&self, signal: i32) {
        // SAFETY: plain system call on a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    fn end(&mut self) -> Option<i32> {
        let mut status = None;
        until("the program ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        self.signal = status.unwrap().signal();
        status.unwrap().code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_terminal_is_raw_while_the_guest_lives_and_as_before_after_every_end() {
    let name = "a_terminal_is_raw_while_the_guest_lives_and_as_before_after_every_end";
    let (godwit, plugin) = match needed() {
        Ok(found) => found,
        Err(why) => return println!("SKIPPED {name}: {why}"),
    };
    let scratch = Scratch::new("console");
    let config = scratch.config("counter", 64, "x86-64", "rate=50");
    type Ending = (&'static str, fn(&mut Terminal), Option<i32>);
    let endings: [Ending; 6] = [
        ("Ctrl-A x", |t| t.master.write_all(b"\x01x").unwrap(), Some(0)),
        ("SIGTERM", |t| t.send(libc::SIGTERM), Some(0)),
        ("SIGHUP", |t| t.send(libc::SIGHUP), Some(0)),
        ("SIGABRT", |t| t.send(libc::SIGABRT), None),
        ("SIGSEGV", |t| t.send(libc::SIGSEGV), None),
        ("SIGQUIT", |t| t.send(libc::SIGQUIT), Some(0)),
    ];
    for (how, end, code) in endings {
        let mut command = traced(&godwit);
        command.args(["--no-api", "--config-file"]).arg(&config).arg("--backend").arg(&plugin);
        let mut terminal = Terminal::start(&mut command);
        until("the guest prints", || terminal.text().lines().filter(|l| l.starts_with("n=")).count() > 3);
        assert!(!terminal.cooked(), "{how}: raw while it lives");
        // The shell may have had it meanwhile.
        terminal.send(libc::SIGCONT);
        // Ctrl-C is the guest's.
        terminal.master.write_all(b"\x03").unwrap();
        let seen = terminal.text().len();
        until("the guest goes on", || terminal.text().len() > seen + 200);
        end(&mut terminal);
        assert_eq!(terminal.end(), code, "{how}: {}", terminal.text());
        assert!(terminal.cooked(), "{how}: the terminal is as it was");
    }
}

/// A crash of any thread, which its filter must allow to end.
#[test]
fn a_deadly_signal_on_any_thread_leaves_the_terminal_as_it_was() {
    let name = "a_deadly_signal_on_any_thread_leaves_the_terminal_as_it_was";
    let (godwit, plugin) = match needed() {
        Ok(found) => found,
        Err(why) => return println!("SKIPPED {name}: {why}"),
    };
    let scratch = Scratch::new("deadly");
    let config = scratch.config("counter", 16, "x86-64", "rate=100");
    let mut done = 0;
    for thread in ["godwit", "api", "devices", "vcpu0", "migrate", "signals"] {
        for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE] {
            done += 1;
            let mut command = traced(&godwit);
            command.arg("--config-file").arg(&config).arg("--backend").arg(&plugin);
            command.arg("--api-sock").arg(scratch.path(&format!("{done}.sock")));
            let mut terminal = Terminal::start(&mut command);
            until("the guest prints", || terminal.text().contains("n="));
            assert!(!terminal.cooked(), "{thread}: raw while it lives");
            let pid = terminal.child.id();
            let (tid, _) = threads(pid).into_iter().find(|(_, n)| n == thread).expect(thread);
            // SAFETY: plain system call on a child that has not been waited for.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
            let text = terminal.text();
            assert_eq!((terminal.end(), terminal.signal), (None, Some(signal)), "{thread}: {text}");
            assert!(terminal.cooked(), "{thread}, signal {signal}: the terminal is as it was");
        }
    }
}

/// Threads that a guest has taken over, in the real program: the filter ends it, and still the terminal is put back.
#[test]
fn a_stolen_thread_is_named_in_the_log_and_leaves_the_terminal_as_it_was() {
    let name = "a_stolen_thread_is_named_in_the_log_and_leaves_the_terminal_as_it_was";
    let found = needed().and_then(|(godwit, _)| Ok((godwit, program("libgodwit_backend_hostile.so")?)));
    let (godwit, plugin) = match found {
        Ok(found) => found,
        Err(why) => return println!("SKIPPED {name}: {why}"),
    };
    let scratch = Scratch::new("stolen");
    let config = scratch.config("counter", 16, "x86-64", "");
    let calls =
        ["execve", "open", "socket", "ptrace", "mprotect", "mmap", "kill", "tgkill", "ioctl", "ioctl-tty"];
    for (entry, thread) in [("run", "the vcpu thread \"vcpu0\""), ("msi", "the device thread \"devices\"")] {
        for told in calls {
            let log = scratch.path(&format!("{entry}-{told}.log"));
            let mut command = traced(&godwit);
            command.args(["--no-api", "--config-file"]).arg(&config).arg("--backend").arg(&plugin);
            command.arg("--log-path").arg(&log).env("GODWIT_HOSTILE", format!("{entry}:{told}"));
            let mut terminal = Terminal::start(&mut command);
            if entry == "msi" {
                // What is typed before the port is set up raises no interrupt: type on.
                until("it ends", || {
                    let _ = terminal.master.write_all(b"x");
                    terminal.child.try_wait().unwrap().is_some()
                });
            }
            assert_eq!(terminal.end(), Some(148), "{entry} {told}: {}", terminal.text());
            let call = match told {
                "open" => "openat",
                "ioctl-tty" => "ioctl",
                other => other,
            };
            let wanted = format!("{thread} made the forbidden system call {call} (number ");
            until(&wanted, || terminal.text().contains(&wanted));
            let text = std::fs::read_to_string(&log).unwrap();
            assert!(text.contains(&wanted), "{entry} {told}: {text}");
            assert!(terminal.cooked(), "{entry} {told}: the terminal is as it was");
        }
    }
}

#[test]
fn a_signal_ends_what_is_still_being_built() {
    let name = "a_signal_ends_what_is_still_being_built";
    let (godwit, plugin) = match needed() {
        Ok(found) => found,
        Err(why) => return println!("SKIPPED {name}: {why}"),
    };
    let scratch = Scratch::new("building");
    // A kernel that never comes: opening a pipe waits for its other end.
    let kernel = scratch.path("kernel");
    assert!(Command::new("mkfifo").arg(&kernel).status().is_ok_and(|s| s.success()));
    let config = scratch.path("vm.json");
    let text = format!(
        r#"{{"boot-source":{{"kernel_image_path":{kernel:?}}},"machine-config":{{"vcpu_count":1,"mem_size_mib":64}}}}"#
    );
    std::fs::write(&config, text).unwrap();
    let socket = scratch.path("api.sock");
    let paths = [&config, &plugin, &socket].map(|p| p.to_str().unwrap().to_owned());
    let args = ["--config-file", &paths[0], "--backend", &paths[1], "--api-sock", &paths[2]];
    let mut godwit = Process::start(&godwit, &args, "");
    until("it waits for the kernel", || {
        socket.exists()
            && std::fs::read_to_string(format!("/proc/{}/wchan", godwit.id())).is_ok_and(|w| !w.is_empty())
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(godwit.is_alive(), "{}", godwit.err());
    // SAFETY: plain system call on a child that has not been waited for.
    unsafe { libc::kill(godwit.id() as i32, libc::SIGTERM) };
    assert_eq!(godwit.wait_exit(), Some(0), "{}", godwit.err());
    assert!(!socket.exists(), "the API socket is gone");
}

#[test]
fn a_pipe_that_is_read_slowly_gets_every_byte() {
    let name = "a_pipe_that_is_read_slowly_gets_every_byte";
    let (godwit, plugin) = match needed() {
        Ok(found) => found,
        Err(why) => return println!("SKIPPED {name}: {why}"),
    };
    let scratch = Scratch::new("pipe");
    let config = scratch.config("counter", 64, "x86-64", "rate=2000");
    let mut child = traced(&godwit)
        .args(["--no-api", "--config-file"])
        .arg(&config)
        .arg("--backend")
        .arg(&plugin)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let mut text = Vec::new();
    let mut chunk = [0; 777];
    // Nobody reads for a while, so the pipe is full; then small pieces.
    std::thread::sleep(Duration::from_millis(1500));
    while text.len() < 150_000 {
        let n = pipe.read(&mut chunk).unwrap();
        assert!(n > 0, "it ended");
        text.extend_from_slice(&chunk[..n]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    godwit_tests::harness::check_lines(&[String::from_utf8(text).unwrap()]);
}

/// Whoever sends a guest and whoever waits for it sees how it goes, and then what the guest says.
#[test]
fn a_move_is_drawn_on_the_terminals_of_both_ends() {
    let name = "a_move_is_drawn_on_the_terminals_of_both_ends";
    let (godwit, plugin) = match needed() {
        Ok(found) => found,
        Err(why) => return println!("SKIPPED {name}: {why}"),
    };
    let scratch = Scratch::new("drawn");
    let config = scratch.config("counter", 64, "x86-64", "rate=50 fill=20");
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let (api, at) = (text(scratch.path("s.api")), format!("unix:{}", text(scratch.path("move"))));
    let plugin = text(plugin);
    let args = ["--config-file", &text(config), "--api-sock", &api, "--backend", &plugin];
    let mut source = Process::start(&godwit, &args, "");
    source.wait_lines(3).unwrap();
    let mut receive = traced(&godwit);
    receive.args(["receive", &at, "--backend", &plugin]);
    let mut there = Terminal::start(&mut receive);
    until("it waits", || there.text().contains("waiting for a guest"));
    let mut migrate = traced(&godwit);
    migrate.args(["migrate", "--api-sock", &api, &at, "--memory", "copy", "--bandwidth-mib-s", "16"]);
    let mut here = Terminal::start(&mut migrate);
    assert_eq!(here.end(), Some(0), "{}", here.text());
    assert_eq!(source.wait_exit(), Some(0));
    until("all is said", || here.text().contains("state  "));
    for part in ["round  1 [#", "MiB/s", "moved to unix:", "downtime ", "loading ", "rounds "] {
        assert!(here.text().contains(part), "no {part:?}: {}", here.text());
    }
    until("the guest goes on", || there.text().lines().filter(|l| l.starts_with("n=")).count() > 3);
    let seen = there.text();
    let (before, after) = seen.split_once("godwit: the guest has arrived: ").expect("it is said");
    for part in ["precopy   round  1 [#", "MiB  ", "MiB/s"] {
        assert!(before.contains(part), "no {part:?}: {before}");
    }
    // The bar is gone when the guest may speak.
    assert!(before.rsplit("\x1b[K").next().is_some_and(|rest| !rest.contains("round")), "{before:?}");
    assert!(after.contains("of memory") && !after.contains("\x1b[K"), "{after:?}");
    there.master.write_all(b"\x01x").unwrap();
    assert_eq!(there.end(), Some(0), "{}", there.text());
    assert!(there.cooked() && here.cooked());
}
