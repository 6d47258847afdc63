//! The system calls that std has no safe name for. All of this crate's `unsafe` is here.
//!
//! Each function makes one call, or one short fixed series, and turns a failure into `io::Error`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_int(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Closes every descriptor but the standard three.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: called first in main, when this program owns no descriptor above 2.
    match check(unsafe {
        libc::syscall(libc::SYS_close_range, 3 as libc::c_uint, libc::c_uint::MAX, 0 as libc::c_uint)
    }) {
        Ok(_) => return Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {}
        Err(e) => return Err(e),
    }
    let fds: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()))
        .filter(|&fd| fd > 2)
        .collect();
    for fd in fds {
        // SAFETY: as above; the one descriptor of ours, read_dir's, is already closed, which is harmless.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Time of a clock in microseconds, 0 if it cannot be read.
pub(crate) fn clock_us(clock: libc::clockid_t) -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is valid for writing.
    if unsafe { libc::clock_gettime(clock, &raw mut t) } != 0 {
        return 0;
    }
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0) / 1000
}

/// Opens `name` in `dir`, close-on-exec and without following a symbolic link in its last component.
pub(crate) fn open_at(
    dir: BorrowedFd<'_>,
    name: &CStr,
    flags: libc::c_int,
    mode: libc::mode_t,
) -> io::Result<OwnedFd> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: `dir` is open and `name` NUL-terminated.
    let fd =
        check_int(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, libc::c_uint::from(mode)) })?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a directory in `dir`; one that exists is fine. Says whether it is new.
pub(crate) fn mkdir_at(dir: BorrowedFd<'_>, name: &CStr, mode: libc::mode_t) -> io::Result<bool> {
    // SAFETY: `dir` is open and `name` NUL-terminated.
    match check_int(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes a character device node in `dir`, readable and writable by its owner only.
pub(crate) fn mknod_at(dir: BorrowedFd<'_>, name: &CStr, device: libc::dev_t) -> io::Result<()> {
    let mode = libc::S_IFCHR | libc::S_IRUSR | libc::S_IWUSR;
    // SAFETY: `dir` is open and `name` NUL-terminated.
    check_int(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device) }).map(drop)
}

/// Owner of `name` in `dir`, not following a symbolic link.
pub(crate) fn chown_at(dir: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: `dir` is open and `name` NUL-terminated.
    check_int(unsafe { libc::fchownat(dir.as_raw_fd(), name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW) })
        .map(drop)
}

/// Owner and mode of an open file or directory.
pub(crate) fn own(fd: impl AsFd, uid: u32, gid: u32, mode: libc::mode_t) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: `fd` is open.
    check_int(unsafe { libc::fchown(fd, uid, gid) })?;
    // SAFETY: `fd` is open.
    check_int(unsafe { libc::fchmod(fd, mode) }).map(drop)
}

/// This process's effective user.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: always succeeds.
    unsafe { libc::geteuid() }
}

/// Number of a device node.
pub(crate) fn device(major: u32, minor: u32) -> libc::dev_t {
    libc::makedev(major, minor)
}

/// Enters the network namespace that `fd` stands for.
pub(crate) fn join_netns(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: `fd` is open.
    check_int(unsafe { libc::setns(fd.as_fd().as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Leaves the namespaces of `flags`.
pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is involved; this program has one thread.
    check_int(unsafe { libc::unshare(flags) }).map(drop)
}

/// Mounts, with no file system type or data: for bind mounts, remounts and propagation.
pub(crate) fn mount(source: &CStr, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: both paths are NUL-terminated; type and data may be null for these flags.
    check_int(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), ptr::null(), flags, ptr::null()) })
        .map(drop)
}

/// Makes the working directory the root and lets go of the old root.
pub(crate) fn pivot_here() -> io::Result<()> {
    // With both places the same the old root comes to lie on top of the new one, so that no
    // directory for it is needed in the jail (pivot_root(2)).
    let dot = c".".as_ptr();
    // SAFETY: constant NUL-terminated paths.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, dot, dot) })?;
    // SAFETY: as above.
    check_int(unsafe { libc::umount2(dot, libc::MNT_DETACH) })?;
    // SAFETY: as above.
    check_int(unsafe { libc::chroot(dot) })?;
    std::env::set_current_dir("/")
}

/// Sets both the soft and the hard limit.
pub(crate) fn limit(resource: Limit, value: u64) -> io::Result<()> {
    let both = libc::rlimit { rlim_cur: value, rlim_max: value };
    let result = match resource {
        // SAFETY: `both` is valid for reading.
        Limit::FileSize => unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const both) },
        // SAFETY: as above.
        Limit::OpenFiles => unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const both) },
        // SAFETY: as above.
        Limit::CoreDump => unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const both) },
    };
    check_int(result).map(drop)
}

/// A resource that the jailer limits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    FileSize,
    OpenFiles,
    CoreDump,
}

/// Starts a session. A process group's leader cannot: it goes on as its own child.
pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: no memory is involved.
    match check_int(unsafe { libc::setsid() }) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {}
        other => return other.map(drop),
    }
    if fork()?.is_some() {
        std::process::exit(0);
    }
    // SAFETY: no memory is involved.
    check_int(unsafe { libc::setsid() }).map(drop)
}

/// Makes the standard descriptors copies of `fd`.
pub(crate) fn replace_stdio(fd: impl AsFd) -> io::Result<()> {
    for to in 0..=2 {
        // SAFETY: `fd` is open; the standard descriptors are nobody's property in this program.
        check_int(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), to) })?;
    }
    Ok(())
}

/// Forks; the child's PID in the parent, none in the child.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: this program has one thread, so the child may do anything.
    let pid = check_int(unsafe { libc::fork() })?;
    Ok((pid > 0).then_some(pid))
}

/// Takes away every right that an exec or a change of user could bring back, then the users
/// themselves, then what capabilities are left. On an error the process must not go on.
pub(crate) fn drop_privileges(uid: u32, gid: u32) -> Result<(), (&'static str, io::Error)> {
    let named = |name: &'static str| move |e: io::Error| (name, e);
    for cap in 0..=63 as libc::c_ulong {
        // SAFETY: numbers only.
        match check_int(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) }) {
            Ok(_) => {}
            // Past the kernel's last capability.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
            Err(e) => return Err(named("drop a capability of the bounding set")(e)),
        }
    }
    let zero: libc::c_ulong = 0;
    // SAFETY: numbers only.
    check_int(unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, zero, zero, zero)
    })
    .map_err(named("clear ambient capabilities"))?;
    // Even user 0 shall gain nothing by exec.
    // SAFETY: numbers only.
    check_int(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS, zero, zero, zero) })
        .map_err(named("lock the secure bits"))?;
    // SAFETY: an empty list needs no memory.
    check_int(unsafe { libc::setgroups(0, ptr::null()) }).map_err(named("leave the supplementary groups"))?;
    // SAFETY: numbers only.
    check_int(unsafe { libc::setresgid(gid, gid, gid) }).map_err(named("change the group"))?;
    // SAFETY: numbers only.
    check_int(unsafe { libc::setresuid(uid, uid, uid) }).map_err(named("change the user"))?;
    let header = CapHeader { version: CAP_VERSION_3, pid: 0 };
    let none = [CapData::default(); 2];
    // SAFETY: the layouts are those of capset(2) version 3: one header, two data.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) })
        .map_err(named("drop the capabilities"))?;
    // SAFETY: numbers only.
    check_int(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as libc::c_ulong, zero, zero, zero) })
        .map_err(named("set no_new_privs"))?;
    // Proof that the way back is shut.
    // SAFETY: numbers only.
    if uid != 0 && unsafe { libc::setresuid(0, 0, 0) } == 0 {
        return Err(named("stay unprivileged")(io::Error::from(io::ErrorKind::Other)));
    }
    // SAFETY: numbers only.
    if gid != 0 && unsafe { libc::setresgid(0, 0, 0) } == 0 {
        return Err(named("stay unprivileged")(io::Error::from(io::ErrorKind::Other)));
    }
    Ok(())
}

/// securebits(7): NOROOT and NO_CAP_AMBIENT_RAISE on and locked, NO_SETUID_FIXUP and KEEP_CAPS off and locked.
const SECURE_BITS: libc::c_ulong = (1 | 1 << 1) | (1 << 3) | (1 << 5) | (1 << 6 | 1 << 7);
const CAP_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}
