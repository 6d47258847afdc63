//! The jail's directory tree, `<base>/<exec file>/<id>/root`, filled before the root changes.
//!
//! Called by `main`. Everything goes by directory descriptors that never follow a symbolic link, and every
//! file is created new: whoever could write here earlier must not steer what root writes now.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::sys;

/// Why the tree could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("Failed to canonicalize path {path}: {source}", path = .0.display(), source = .1)]
    Canonicalize(PathBuf, io::Error),
    #[error("{path} is not a directory", path = .0.display())]
    NotADirectory(PathBuf),
    #[error(
        "{path} must belong to root and be writable by nobody else (it belongs to user {uid}, mode {mode:o})",
        path = .path.display()
    )]
    Untrusted { path: PathBuf, uid: u32, mode: u32 },
    #[error("Failed to create directory {path}: {source}", path = .0.display(), source = .1)]
    CreateDir(PathBuf, io::Error),
    #[error("{path} already exists: this id has been used before; remove its jail first or choose another id", path = .0.display())]
    Used(PathBuf),
    #[error("Failed to copy {from} to {to}: {source}", from = .0.display(), to = .1.display(), source = .2)]
    Copy(PathBuf, PathBuf, io::Error),
    #[error("Failed to create {path} via mknod inside the jail: {source}", path = .0.display(), source = .1)]
    Mknod(PathBuf, io::Error),
    #[error("{path} is not a character device of this host", path = .0.display())]
    NotADevice(PathBuf),
    #[error("Failed to change owner for {path}: {source}", path = .0.display(), source = .1)]
    Own(PathBuf, io::Error),
    #[error("Failed to enter the jail {path}: {what}: {source}", path = .0.display(), what = .1, source = .2)]
    Enter(PathBuf, &'static str, io::Error),
}

/// A jail under construction.
pub(crate) struct Tree {
    root: OwnedFd,
    path: PathBuf,
}

fn name(part: &std::ffi::OsStr) -> io::Result<std::ffi::CString> {
    sys::c_path(Path::new(part))
}

/// Root's, and writable by nobody else: nobody can exchange what lies in it.
fn trusted(path: &Path, dir: &OwnedFd) -> Result<(), TreeError> {
    let meta = dir
        .try_clone()
        .and_then(|fd| File::from(fd).metadata())
        .map_err(|e| TreeError::CreateDir(path.to_path_buf(), e))?;
    let group_may = meta.mode() & 0o020 != 0 && meta.gid() != 0;
    if meta.uid() != sys::effective_uid() || group_may || meta.mode() & 0o002 != 0 {
        return Err(TreeError::Untrusted {
            path: path.to_path_buf(),
            uid: meta.uid(),
            mode: meta.mode() & 0o7777,
        });
    }
    Ok(())
}

impl Tree {
    /// Makes `<base>/<exec_name>/<id>/root`, or takes one that was prepared.
    pub(crate) fn new(base: &Path, exec_name: &Path, id: &str) -> Result<Self, TreeError> {
        let base = fs::canonicalize(base).map_err(|e| TreeError::Canonicalize(base.to_path_buf(), e))?;
        if !base.is_dir() {
            return Err(TreeError::NotADirectory(base));
        }
        let mut dir: OwnedFd =
            File::open(&base).map_err(|e| TreeError::Canonicalize(base.clone(), e))?.into();
        trusted(&base, &dir)?;
        let mut path = base;
        for (part, checked) in [(exec_name, true), (Path::new(id), true), (Path::new("root"), false)] {
            path.push(part);
            dir = enter(&dir, part.as_os_str(), 0o755, &path)?.0;
            if checked {
                trusted(&path, &dir)?;
            }
        }
        Ok(Self { root: dir, path })
    }

    /// The directory `inside` (absolute in the jail), made with its parents.
    fn dir(&self, inside: &Path) -> Result<OwnedFd, TreeError> {
        let mut dir = self.root.try_clone().map_err(|e| TreeError::CreateDir(self.path.clone(), e))?;
        let mut path = self.path.clone();
        for part in inside.components() {
            let Component::Normal(part) = part else { continue };
            path.push(part);
            dir = enter(&dir, part, 0o755, &path)?.0;
        }
        Ok(dir)
    }

    fn on_host(&self, inside: &Path) -> PathBuf {
        self.path.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Copies a file in, readable and executable by everybody and writable by nobody.
    pub(crate) fn copy(&self, from: &Path, inside: &Path) -> Result<(), TreeError> {
        let to = self.on_host(inside);
        let (Some(parent), Some(file)) = (inside.parent(), inside.file_name()) else {
            return Err(TreeError::NotADirectory(to));
        };
        let dir = self.dir(parent)?;
        let copy = || -> io::Result<()> {
            let mut source = File::open(from)?;
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
            let mut target = File::from(sys::open_at(dir.as_fd(), &name(file)?, flags, 0o500)?);
            io::copy(&mut source, &mut target)?;
            sys::own(&target, sys::effective_uid(), 0, 0o555)
        };
        copy().map_err(|e| match e.raw_os_error() {
            Some(libc::EEXIST | libc::ELOOP) => TreeError::Used(to.clone()),
            _ => TreeError::Copy(from.to_path_buf(), to, e),
        })
    }

    /// Makes a device node and gives it to the jailed user. `number` none: as on the host.
    pub(crate) fn node(
        &self,
        inside: &Path,
        number: Option<(u32, u32)>,
        uid: u32,
        gid: u32,
    ) -> Result<(), TreeError> {
        let path = self.on_host(inside);
        let device = match number {
            Some((major, minor)) => sys::device(major, minor),
            None => match fs::metadata(inside) {
                Ok(meta) if meta.file_type().is_char_device() => meta.rdev(),
                _ => return Err(TreeError::NotADevice(inside.to_path_buf())),
            },
        };
        let (Some(parent), Some(file)) = (inside.parent(), inside.file_name()) else {
            return Err(TreeError::NotADirectory(path));
        };
        let dir = self.dir(parent)?;
        let file = name(file).map_err(|e| TreeError::Mknod(path.clone(), e))?;
        sys::mknod_at(dir.as_fd(), &file, device).map_err(|e| match e.raw_os_error() {
            Some(libc::EEXIST) => TreeError::Used(path.clone()),
            _ => TreeError::Mknod(inside.to_path_buf(), e),
        })?;
        sys::chown_at(dir.as_fd(), &file, uid, gid).map_err(|e| TreeError::Own(path, e))
    }

    /// Gives a directory, made if need be, to the jailed user and closes it to all others.
    pub(crate) fn give(&self, inside: &Path, uid: u32, gid: u32) -> Result<(), TreeError> {
        let dir = self.dir(inside)?;
        sys::own(&dir, uid, gid, 0o700).map_err(|e| TreeError::Own(self.on_host(inside), e))
    }

    /// Makes the tree this process's root, in namespaces of its own. `read_only` are files and directories
    /// of the jail that nobody in it may change.
    pub(crate) fn become_root(self, read_only: &[PathBuf]) -> Result<(), TreeError> {
        let enter = || -> Result<(), (&'static str, io::Error)> {
            let at = |what: &'static str| move |e| (what, e);
            sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS)
                .map_err(at("unshare"))?;
            // Nothing mounted here may show on the host.
            sys::mount(c"none", c"/", libc::MS_SLAVE | libc::MS_REC)
                .map_err(at("change the mount propagation"))?;
            let root = sys::c_path(&self.path).map_err(at("path"))?;
            sys::mount(&root, &root, libc::MS_BIND | libc::MS_REC).map_err(at("bind mount the jail"))?;
            // Device nodes must work here even where the host's file system is mounted without them.
            sys::mount(c"none", &root, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_NOSUID)
                .map_err(at("set the mount's flags"))?;
            std::env::set_current_dir(&self.path).map_err(at("change the working directory"))?;
            let here = fs::metadata(".").map_err(at("stat"))?;
            let made = self.root.try_clone().and_then(|f| File::from(f).metadata()).map_err(at("stat"))?;
            if (here.dev(), here.ino()) != (made.dev(), made.ino()) {
                return Err((
                    "it was exchanged for another directory",
                    io::Error::from(io::ErrorKind::Other),
                ));
            }
            sys::pivot_here().map_err(at("pivot the root"))?;
            for path in read_only {
                let path = sys::c_path(path).map_err(at("path"))?;
                sys::mount(&path, &path, libc::MS_BIND).map_err(at("bind mount a read-only part"))?;
                let flags =
                    libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
                sys::mount(c"none", &path, flags).map_err(at("make a part read-only"))?;
            }
            Ok(())
        };
        enter().map_err(|(what, e)| TreeError::Enter(self.path.clone(), what, e))
    }
}

/// Makes and opens one directory; says whether it is new.
fn enter(
    dir: &OwnedFd,
    part: &std::ffi::OsStr,
    mode: u32,
    path: &Path,
) -> Result<(OwnedFd, bool), TreeError> {
    let failed = |e| TreeError::CreateDir(path.to_path_buf(), e);
    let part = name(part).map_err(failed)?;
    let new = sys::mkdir_at(dir.as_fd(), &part, mode).map_err(failed)?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let opened = sys::open_at(dir.as_fd(), &part, flags, 0).map_err(|e| match e.raw_os_error() {
        Some(libc::ELOOP | libc::ENOTDIR) => TreeError::NotADirectory(path.to_path_buf()),
        _ => failed(e),
    })?;
    if new {
        // Whatever the umask is, the way to what is given to the jailed user stays open to it.
        sys::own(&opened, sys::effective_uid(), 0, mode).map_err(failed)?;
    }
    Ok((opened, new))
}
