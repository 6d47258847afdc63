//! Started by `godwit-jailer` in place of godwit: writes what it sees and may do to `/report`, as `key=value` lines.
//!
//! Arguments after the jailer's own: `--exec PATH` tries to execute a file. `--serve PATH` answers one connection.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn walk(dir: &Path, out: &mut String) {
    let mut entries: Vec<_> = match fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
        Err(e) => {
            let _ = writeln!(out, "unreadable={} {e}", dir.display());
            return;
        }
    };
    entries.sort();
    for path in entries {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let kind = match meta.file_type() {
            t if t.is_dir() => "dir",
            t if t.is_char_device() => "node",
            t if t.is_symlink() => "link",
            t if t.is_file() => "file",
            _ => "other",
        };
        let _ = writeln!(
            out,
            "{kind}={} {}:{} {:o}",
            path.display(),
            meta.uid(),
            meta.gid(),
            meta.mode() & 0o7777
        );
        if meta.is_dir() {
            walk(&path, out);
        }
    }
}

fn errno(result: i64) -> i32 {
    if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

fn capabilities() -> String {
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut data = [0u32; 6];
    // SAFETY: capget(2) version 3 reads one header of 8 bytes and writes two records of 12.
    let result = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) };
    let mut bounding = 0u64;
    for cap in 0..64u64 {
        // SAFETY: numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_READ, cap, 0, 0, 0) } == 1 {
            bounding |= 1 << cap;
        }
    }
    format!("{} {} bounding {bounding:x}", errno(result), data.iter().all(|&d| d == 0))
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1)).cloned();
    let mut out = String::new();
    let _ = writeln!(out, "args={}", args.join(" "));
    let _ = writeln!(out, "env={}", std::env::vars_os().count());
    let _ =
        writeln!(out, "cwd={}", std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default());
    // SAFETY: these take no arguments and cannot fail.
    let ids = unsafe { [libc::getuid(), libc::geteuid(), libc::getgid(), libc::getegid()] };
    let _ = writeln!(out, "ids={ids:?}");
    // SAFETY: with 0 the list is not written.
    let _ = writeln!(out, "groups={}", unsafe { libc::getgroups(0, std::ptr::null_mut()) });
    let _ = writeln!(out, "caps={}", capabilities());
    // SAFETY: numbers only.
    let _ = writeln!(out, "no_new_privs={}", unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) });
    // SAFETY: numbers only.
    let fds: Vec<i32> = (0..4096).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0).collect();
    let _ = writeln!(out, "fds={fds:?}");
    let nulls = (0..3).filter(|fd| fs::metadata(format!("/proc/self/fd/{fd}")).is_ok()).count();
    let _ = writeln!(out, "proc_fds={nulls}");
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: fstat writes one stat; all-zero is a valid one.
    let rdev = unsafe {
        libc::fstat(0, stat.as_mut_ptr());
        stat.assume_init().st_rdev
    };
    let _ = writeln!(out, "stdin={}:{}", libc::major(rdev), libc::minor(rdev));
    // SAFETY: numbers only.
    let (pid, sid) = unsafe { (libc::getpid(), libc::getsid(0)) };
    let _ = writeln!(out, "pid={pid}\nsession_leader={}", pid == sid);
    for (name, which) in
        [("no-file", libc::RLIMIT_NOFILE), ("fsize", libc::RLIMIT_FSIZE), ("core", libc::RLIMIT_CORE)]
    {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is valid for writing.
        unsafe { libc::getrlimit(which, &raw mut limit) };
        let _ = writeln!(out, "limit-{name}={} {}", limit.rlim_cur, limit.rlim_max);
    }
    // SAFETY: numbers and constant paths only, from here to the end of the list.
    let tries = unsafe {
        [
            ("setuid", errno(libc::setresuid(0, 0, 0).into())),
            ("setgid", errno(libc::setresgid(0, 0, 0).into())),
            ("mknod", errno(libc::mknod(c"/n".as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3)).into())),
            ("chroot", errno(libc::chroot(c"/dev".as_ptr()).into())),
            (
                "mount",
                errno(
                    libc::mount(
                        c"/".as_ptr(),
                        c"/run".as_ptr(),
                        std::ptr::null(),
                        libc::MS_BIND,
                        std::ptr::null(),
                    )
                    .into(),
                ),
            ),
            ("unshare", errno(libc::unshare(libc::CLONE_NEWNS).into())),
            (
                "kill-parent",
                errno(if libc::getppid() == 0 { -1 } else { libc::kill(libc::getppid(), 0) }.into()),
            ),
            ("kvm", errno(libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR).into())),
            ("urandom", errno(libc::open(c"/dev/urandom".as_ptr(), libc::O_RDONLY).into())),
        ]
    };
    for (name, error) in tries {
        let _ = writeln!(out, "try-{name}={error}");
    }
    let own = format!("/{}", args[0].rsplit('/').next().unwrap_or_default());
    for (name, path) in [("own", own.as_str()), ("lib", "/lib"), ("lib64", "/lib64")] {
        if Path::new(path).exists() {
            let result = if name == "own" {
                fs::remove_file(path).err()
            } else {
                fs::write(format!("{path}/new"), "x").err()
            };
            let _ = writeln!(out, "write-{name}={}", result.map_or(0, |e| e.raw_os_error().unwrap_or(-1)));
        }
    }
    let interfaces: Vec<String> = {
        // SAFETY: returns a list ended by a zero index, freed below.
        let list = unsafe { libc::if_nameindex() };
        let mut names = Vec::new();
        let mut at = list;
        // SAFETY: within the list, up to its end.
        while !list.is_null() && unsafe { (*at).if_index } != 0 {
            // SAFETY: each entry's name is NUL-terminated.
            names.push(unsafe { std::ffi::CStr::from_ptr((*at).if_name) }.to_string_lossy().into_owned());
            // SAFETY: the list goes on up to the zero index.
            at = unsafe { at.add(1) };
        }
        if !list.is_null() {
            // SAFETY: from if_nameindex, once.
            unsafe { libc::if_freenameindex(list) };
        }
        names
    };
    let _ = writeln!(out, "interfaces={}", interfaces.join(","));
    walk(Path::new("/"), &mut out);
    if let Some(path) = value("--exec") {
        let error = Command::new(&path).exec();
        let _ = writeln!(out, "exec={}", error.raw_os_error().unwrap_or(-1));
    }
    out.push_str("end\n");
    if let Err(e) = fs::write("/report", &out) {
        eprintln!("no report: {e}\n{out}");
        std::process::exit(3);
    }
    if let Some(path) = value("--serve") {
        match UnixListener::bind(path).and_then(|l| l.accept()) {
            // Whoever only knocks is gone before the answer.
            Ok((mut client, _)) => drop(client.write_all(b"hello")),
            Err(e) => {
                eprintln!("not served: {e}");
                std::process::exit(4);
            }
        }
    }
}
