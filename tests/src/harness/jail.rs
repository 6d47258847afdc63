//! Jails for tests: a chroot base of the test's own, and programs that the jailer starts in it.

use super::{PATIENCE, Process, program};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// User of the jailed programs; nobody else's.
pub const UID: u32 = 61_234;
/// Their group.
pub const GID: u32 = 61_235;

/// True if the jailer may be started: it wants root.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// A chroot base directory that goes away with the test.
pub struct Base(PathBuf);

impl Base {
    /// An empty one, root's.
    pub fn create() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("godwit-jails-{}-{n}", std::process::id()));
        fs::create_dir(&dir).expect("a chroot base");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("its mode");
        Self(dir.canonicalize().expect("its path"))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// The root of the jail `id` of the program `name`.
    pub fn root(&self, name: &str, id: &str) -> PathBuf {
        self.0.join(name).join(id).join("root")
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A godwit in a jail. Dropping it kills it.
pub struct Jailed {
    /// The jailer; without `--new-pid-ns` it became godwit.
    pub process: Process,
    root: PathBuf,
    pid: u32,
}

impl Jailed {
    /// Jails godwit with the jailer's `flags` and its own `args`; `files` lie in the jail's root before that.
    pub fn start(
        base: &Base,
        id: &str,
        files: &[&Path],
        flags: &[&str],
        args: &[&str],
    ) -> Result<Self, String> {
        let (jailer, godwit) = (program("godwit-jailer")?, program("godwit")?);
        let root = base.root("godwit", id);
        let failed = |e: std::io::Error| format!("{}: {e}", root.display());
        fs::create_dir_all(&root).map_err(failed)?;
        for file in files {
            let to = root.join(file.file_name().ok_or("a file's name")?);
            fs::copy(file, &to).map_err(failed)?;
            // Readable in the jail, and written only by root.
            fs::set_permissions(&to, fs::Permissions::from_mode(0o644)).map_err(failed)?;
        }
        let (uid, gid, base) = (UID.to_string(), GID.to_string(), base.dir().to_string_lossy().into_owned());
        let godwit = godwit.to_string_lossy().into_owned();
        let mut all = vec!["--id", id, "--uid", &uid, "--gid", &gid, "--chroot-base-dir", &base];
        all.extend(["--exec-file", &godwit]);
        all.extend(flags);
        all.push("--");
        all.extend(args);
        let process = Process::start(&jailer, &all, "");
        let mut jailed = Jailed { process, root, pid: 0 };
        let end = Instant::now() + PATIENCE;
        while jailed.pid == 0 {
            let text = fs::read_to_string(jailed.root.join("godwit.pid")).unwrap_or_default();
            jailed.pid = text.parse().unwrap_or(0);
            if Instant::now() > end || jailed.process.err().contains("Jailer error") {
                return Err(jailed.process.err());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(jailed)
    }

    /// The jail's root, seen from outside.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the jailed godwit calls `/name`, seen from outside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The jailed godwit's process id, outside its PID namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        // SAFETY: plain system call on a process that this test had started.
        unsafe { libc::kill(self.pid as i32, libc::SIGKILL) };
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        if self.pid != 0 && self.pid != self.process.id() {
            self.kill();
        }
    }
}
