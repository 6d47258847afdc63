//! Network namespaces of a test's own, and what is plugged in between them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A named network namespace, gone with this.
pub struct Namespace(String);

/// Runs `ip` with these words.
fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split(' ')).output().map_err(|e| format!("ip: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// No right to, or no `ip`: the test is to be skipped.
    pub fn new() -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("godwit-test-{}-{number}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let here = Namespace(name);
        here.ip("link set lo up")?;
        Ok(here)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, words: &str) -> Result<(), String> {
        ip(&format!("-n {} {words}", self.0))
    }

    /// A bridge in it.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn bridge(&self, bridge: &str) -> Result<(), String> {
        self.ip(&format!("link add {bridge} type bridge"))?;
        self.ip(&format!("link set {bridge} up"))
    }

    /// A TAP in it; on a bridge, if one is named.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn tap(&self, tap: &str, bridge: &str) -> Result<(), String> {
        self.ip(&format!("tuntap add {tap} mode tap"))?;
        if !bridge.is_empty() {
            self.ip(&format!("link set {tap} master {bridge}"))?;
        }
        self.ip(&format!("link set {tap} up"))
    }

    /// A cable between a bridge here and one there.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cable(&self, name: &str, bridge: &str, there: &Namespace, their: &str) -> Result<(), String> {
        ip(&format!("link add {name} netns {} type veth peer name {name} netns {}", self.0, there.0))?;
        for (space, bridge) in [(self, bridge), (there, their)] {
            space.ip(&format!("link set {name} master {bridge}"))?;
            space.ip(&format!("link set {name} up"))?;
        }
        // A bridge drops what comes before the kernel has looked at a new link, which it does once a second.
        for space in [self, there] {
            for _ in 0..500 {
                if space.shows(&format!("link show {name}"), "state UP") {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }

    fn shows(&self, words: &str, text: &str) -> bool {
        let output = Command::new("ip").args(["-n", &self.0]).args(words.split(' ')).output();
        output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains(text))
    }

    /// The words before a command that is to run in it.
    pub fn exec(&self) -> [&str; 3] {
        ["netns", "exec", &self.0]
    }

    /// Moves the calling thread into it, for good.
    ///
    /// # Errors
    /// The host's answer.
    pub fn enter(&self) -> std::io::Result<()> {
        let space = File::open(format!("/run/netns/{}", self.0))?;
        // SAFETY: moves only the calling thread.
        match unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.0));
    }
}
