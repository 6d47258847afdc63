//! File systems of a test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system that only this thread and its children see, gone with this.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Moves this thread into a mount namespace of its own, if it isn't in one, and mounts there what `words` tell mount(8).
    ///
    /// # Errors
    /// No right to, or what mount(8) says: the test is to be skipped.
    pub fn new(words: &[&str], dir: &Path) -> Result<Self, String> {
        // SAFETY: changes only what this thread sees, and a test's thread ends with the test.
        if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } != 0 {
            return Err(format!("no mount namespace: {}", std::io::Error::last_os_error()));
        }
        run(Command::new("mount").args(["--make-rprivate", "/"]))?;
        run(Command::new("mount").args(words).arg(dir)).map(|()| Mounted(dir.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

/// Runs a program that must succeed.
///
/// # Errors
/// What it says on stderr.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    let why = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", why.trim())) }
}
