//! The one table of system calls: which kind of thread may make which, with which arguments, and who makes it.
//!
//! Filter, documentation (`docs/SECCOMP.md`) and tests come from it. A call that no row names ends the process. Add a row only with
//! the caller that was seen making the call; take it away with its last caller.

use super::Kind;
use super::bpf::{Answer, Check};

/// A permission.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Name of the system call. A host that has no such call leaves the row out.
    pub call: &'static str,
    /// Who may make it.
    pub kinds: &'static [Kind],
    /// Conditions on its arguments, which must all hold.
    pub checks: &'static [Check],
    /// What happens: `Allow` almost always.
    pub answer: Answer,
    /// Who makes it and what for.
    pub caller: &'static str,
}

use Kind::{Api as A, Control as C, Device as D, Migrate as M, Vcpu as V};
const ALL: &[Kind] = &[C, A, D, V, M];

const fn row(
    call: &'static str,
    kinds: &'static [Kind],
    checks: &'static [Check],
    caller: &'static str,
) -> Row {
    Row { call, kinds, checks, answer: Answer::Allow, caller }
}

const fn eq(index: u8, value: i64) -> Check {
    Check::Eq { index, value: value as u32 }
}

const fn without(index: u8, mask: i64) -> Check {
    Check::Masked { index, mask: mask as u32, value: 0 }
}

const NO_EXEC: &[Check] = &[without(2, libc::PROT_EXEC as i64)];
/// Read only, and neither made nor cut.
const OPEN_READ: &[Check] =
    &[without(2, (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | libc::O_PATH) as i64)];
const OPEN_READ_OLD: &[Check] =
    &[without(1, (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND | libc::O_PATH) as i64)];
/// What clone must share for its child to be a thread of this process and no more.
const THREAD: i64 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as i64;

const fn thread_only(index: u8) -> Check {
    Check::Masked {
        index,
        mask: (THREAD
            | (libc::CLONE_NEWNS | libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNET) as i64)
            as u32,
        value: THREAD as u32,
    }
}

/// The rows, most called first within a thread's life.
pub const TABLE: &[Row] = &[
    row("read", ALL, &[], "eventfds, timers, sockets, disks, serial input, snapshot files"),
    row("write", ALL, &[], "eventfds, serial output, sockets, disks, log"),
    row("futex", ALL, &[], "std: locks, channels, joins"),
    row("epoll_wait", &[C, A, D], &[], "event loops (glibc on x86-64)"),
    row("epoll_pwait", &[C, A, D], &[], "event loops (glibc elsewhere)"),
    row("epoll_ctl", &[C, A, D], &[], "event loops: a queue, timer or connection comes or goes"),
    row("ppoll", &[C, D, V, M], &[], "std and sockets with a time limit; serial output"),
    row("poll", &[C, D, V, M], &[], "std and sockets with a time limit; serial output (x86-64)"),
    row("clock_gettime", ALL, &[], "time, where the vDSO cannot tell it"),
    row("timerfd_settime", &[C, D, V], &[eq(1, 0)], "PIT, RTC and rate limiters"),
    row("timerfd_settime", &[C, D, V], &[eq(1, libc::TFD_TIMER_ABSTIME as i64)], "PIT and RTC deadlines"),
    row("pread64", &[C, D, M], &[], "disks, snapshot files"),
    row("pwrite64", &[C, D, M], &[], "disks, snapshot files"),
    row("preadv", &[D], &[], "disks"),
    row("pwritev", &[D], &[], "disks"),
    row("readv", &[D, M], &[], "tap device, streams"),
    row("writev", &[C, D, M], &[], "tap device, streams, log lines"),
    row("fdatasync", &[C, D], &[], "disks: flush; snapshot files"),
    row("fsync", &[C, D], &[], "disks: flush; snapshot files"),
    row("fallocate", &[D], &[], "disks: discard, write zeroes"),
    row("ftruncate", &[C], &[], "snapshot: a sparse memory file"),
    row("lseek", &[C, D, M], &[], "disks: size; snapshot: holes"),
    row("getrandom", &[C, A, D, M], &[], "entropy device; hash maps; TLS"),
    row("recvfrom", &[C, A, D, M], &[], "sockets"),
    row("sendto", &[C, A, D, V, M], &[], "sockets; serial output to one"),
    row("recvmsg", &[D, M], &[], "sockets"),
    row("sendmsg", &[D, M], &[], "sockets"),
    row("accept4", &[C, A, D, M], &[], "API connections, vsock, a second migration stream"),
    row("socket", &[D], &[eq(0, libc::AF_UNIX as i64)], "vsock: a guest's connection to a Unix socket"),
    row("socket", &[C, M], &[eq(0, libc::AF_UNIX as i64)], "migration to unix:PATH"),
    row(
        "socket",
        &[C, M],
        &[eq(0, libc::AF_INET as i64), eq(1, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as i64)],
        "migration to tcp:HOST:PORT",
    ),
    row(
        "socket",
        &[C, M],
        &[eq(0, libc::AF_INET6 as i64), eq(1, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as i64)],
        "migration to tcp:HOST:PORT",
    ),
    row("socket", &[C, M], &[eq(0, libc::AF_VSOCK as i64)], "migration to vsock:CID:PORT"),
    row("connect", &[C, D, M], &[], "vsock, migration"),
    row("bind", &[D], &[], "vsock: a listening socket"),
    row("listen", &[D], &[], "vsock: a listening socket"),
    row("setsockopt", &[C, D, M], &[], "time limits, TCP_NODELAY, buffers"),
    row("getsockopt", &[C, D, M], &[], "outcome of a connect"),
    row("getpeername", &[C, M], &[], "migration: whom to name in messages"),
    row("getsockname", &[C, M], &[], "migration: whom to name in messages"),
    row("shutdown", &[C, D, M], &[], "ends of streams"),
    row("ioctl", &[C, A, D, M], &[eq(1, libc::FIONBIO as i64)], "std: non-blocking sockets"),
    row(
        "ioctl",
        &[C, D, V],
        &[eq(1, libc::TUNSETOFFLOAD as i64)],
        "tap device: what the guest's driver accepts",
    ),
    row("ioctl", &[C, D], &[eq(1, libc::TCGETS as i64)], "terminal of the serial port, restored at the end"),
    row("ioctl", &[C, D], &[eq(1, libc::TCSETS as i64)], "terminal of the serial port, restored at the end"),
    row("fcntl", &[C, D, M], &[eq(1, libc::F_GETFL as i64)], "std and sockets"),
    row("fcntl", &[C, D, M], &[eq(1, libc::F_SETFL as i64)], "std and sockets"),
    row("fcntl", &[C, D, M], &[eq(1, libc::F_DUPFD_CLOEXEC as i64)], "std: File::try_clone"),
    row("fcntl", &[C, A, D, M], &[eq(1, libc::F_GETFD as i64)], "std's check of closed descriptors"),
    row(
        "openat",
        &[C],
        &[without(2, (libc::O_PATH | libc::O_TMPFILE & !libc::O_DIRECTORY) as i64)],
        "drives changed by the API, snapshot files",
    ),
    row("openat", &[M], OPEN_READ, "std: available parallelism and the like, read only"),
    row("open", &[M], OPEN_READ_OLD, "C library, read only"),
    row("close", ALL, &[], "whatever is no longer needed"),
    row("fstat", &[C, D, M], &[], "files: kind and size"),
    row("newfstatat", &[C, M], &[], "files: kind and size"),
    row("statx", &[C, D, M], &[], "files: kind and size"),
    row("unlink", &[C], &[], "sockets and half-written snapshot files (x86-64)"),
    row("unlinkat", &[C], &[], "sockets and half-written snapshot files"),
    row("rename", &[C], &[], "snapshot: put into place when whole (x86-64)"),
    row("renameat2", &[C], &[], "snapshot: put into place when whole"),
    row("renameat", &[C], &[], "snapshot: put into place when whole"),
    row("mkdir", &[C], &[], "snapshot: its directory (x86-64)"),
    row("mkdirat", &[C], &[], "snapshot: its directory"),
    row("getdents64", &[C], &[], "snapshot: what is left of one cut short"),
    row("eventfd2", &[C, M], &[], "wake-ups between threads"),
    row("timerfd_create", &[C, M], &[], "a device made again after a snapshot"),
    row("epoll_create1", &[C], &[], "event loops"),
    row("userfaultfd", &[C, M], &[], "postcopy"),
    row("mmap", ALL, NO_EXEC, "allocator, thread stacks, guest memory; never executable"),
    row("munmap", ALL, &[], "allocator, thread stacks, guest memory"),
    row("mremap", ALL, &[], "allocator: a large vector grows"),
    row("mprotect", ALL, NO_EXEC, "allocator, thread stacks; never executable"),
    row("madvise", ALL, &[], "thread stacks, balloon, guest memory"),
    row("brk", ALL, &[], "allocator"),
    row("sched_yield", ALL, &[], "std: channels"),
    row("clock_nanosleep", ALL, &[], "std: sleep, and waits with a limit"),
    row("nanosleep", &[C, M], &[], "std: sleep"),
    row("tgkill", &[C, D, V], &[], "kick of a vCPU; `rules` adds that it is one of this process"),
    row("gettid", ALL, &[], "std: thread ids; abort"),
    row("getpid", ALL, &[], "kick of a vCPU; abort"),
    row("rt_sigprocmask", ALL, &[], "thread start and end; abort"),
    row("rt_sigaction", ALL, &[eq(0, libc::SIGABRT as i64)], "abort after a panic"),
    row("rt_sigreturn", ALL, &[], "return from the kick's handler"),
    row("restart_syscall", ALL, &[], "the kernel's own, after a stop"),
    row("sigaltstack", ALL, &[], "std: end of a thread"),
    row("set_robust_list", &[C, M], &[], "start of a thread"),
    row("rseq", &[C, M], &[], "start of a thread"),
    row("sched_getaffinity", &[C, M], &[], "start of a thread; available parallelism"),
    row("prctl", ALL, &[eq(0, libc::PR_SET_NAME as i64)], "start of a thread"),
    row("prctl", &[C, M], &[eq(0, libc::PR_SET_NO_NEW_PRIVS as i64)], "a later thread's own filter"),
    row(
        "seccomp",
        &[C, M],
        &[eq(0, libc::SECCOMP_SET_MODE_FILTER as i64)],
        "a later thread's own filter, on top of this",
    ),
    Row {
        call: "clone3",
        kinds: &[C, M],
        checks: &[],
        answer: Answer::Errno(libc::ENOSYS as u16),
        caller: "C library: told to use clone, whose flags can be checked",
    },
    row("clone", &[C, M], &[thread_only(CLONE_FLAGS)], "threads of this process, nothing else"),
    row("exit", ALL, &[], "end of a thread"),
    row("exit_group", ALL, &[], "end of the process"),
];

/// s390x alone has the stack first.
const CLONE_FLAGS: u8 = if cfg!(target_arch = "s390x") { 1 } else { 0 };
