//! The one table of system calls: which kind of thread may make which, with which arguments, and who makes it.
//!
//! Filter, documentation (`docs/SECCOMP.md`) and tests come from it. A call that no row names ends the process. Add a row only with
//! the caller that was seen making the call; take it away with its last caller.

use super::Kind;
use super::bpf::{Answer, Check};
use super::names;

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
    /// Why it stays though the test suite need not show it on x86-64 (`scripts/rules`); empty: the suite must use it.
    pub kept: &'static str,
}

impl Row {
    /// Its numbers on this host: none if the host has no such call.
    pub fn numbers(&self) -> impl Iterator<Item = i64> {
        // The C library takes the older form where there is one.
        let older = match self.call {
            "epoll_pwait" => Some("epoll_wait"),
            "unlinkat" => Some("unlink"),
            "renameat" | "renameat2" => Some("rename"),
            _ => None,
        };
        let replaced = older.is_some_and(|older| names::number(older).is_some());
        names::number(self.call).filter(|_| !replaced).into_iter()
    }
}

use Kind::{Api as A, Control as C, Device as D, Migrate as M, Receive as R, Signals as S, Vcpu as V};
const ALL: &[Kind] = &[C, A, D, V, M, S];

const fn row(
    call: &'static str,
    kinds: &'static [Kind],
    checks: &'static [Check],
    caller: &'static str,
) -> Row {
    Row { call, kinds, checks, answer: Answer::Allow, caller, kept: "" }
}

/// A row that the test suite need not use on x86-64.
const fn kept(
    call: &'static str,
    kinds: &'static [Kind],
    checks: &'static [Check],
    caller: &'static str,
    kept: &'static str,
) -> Row {
    Row { call, kinds, checks, answer: Answer::Allow, caller, kept }
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
    row("read", &[C, D, M], &[], "eventfds, timers, sockets, disks, serial input, snapshot files"),
    row("write", ALL, &[], "eventfds, serial output, sockets, disks, log"),
    row("futex", ALL, &[], "std: locks, channels, joins"),
    row("epoll_wait", &[A, D], &[], "event loops (glibc on x86-64)"),
    row("epoll_pwait", &[A, D], &[], "event loops (glibc elsewhere)"),
    row("epoll_ctl", &[A, D], &[], "event loops: a queue, timer or connection comes or goes"),
    row("ppoll", &[C, D, V, M], &[], "serial output: can its reader take it; sockets with a time limit"),
    row("poll", &[C, D, V, M, R], &[], "serial output; std and sockets with a time limit (x86-64)"),
    row("clock_gettime", ALL, &[], "time, where the vDSO cannot tell it"),
    row("timerfd_settime", &[C, D, V], &[eq(1, 0)], "PIT, RTC and rate limiters"),
    row("timerfd_settime", &[C, D, V], &[eq(1, libc::TFD_TIMER_ABSTIME as i64)], "PIT and RTC deadlines"),
    row("pread64", &[C, D, M], &[], "disks, snapshot files"),
    row("pwrite64", &[C, D], &[], "disks, snapshot files"),
    row("preadv", &[D], &[], "disks"),
    row("pwritev", &[D], &[], "disks"),
    row("readv", &[D, M], &[], "tap device, streams"),
    row("writev", &[D, M], &[], "tap device, streams, log lines"),
    row("fdatasync", &[C, D], &[], "disks: flush; a disk that arrives"),
    row("linkat", &[R], &[], "a disk that has arrived whole gets its name"),
    row("fsync", &[C, D], &[], "disks: flush; snapshot files"),
    row(
        "fallocate",
        &[D, R],
        &[],
        "disks: discard, write zeroes; postcopy: pages that are to come again are given back",
    ),
    row("ftruncate", &[C], &[], "snapshot: a sparse memory file"),
    row("lseek", &[C, D, M], &[], "disks: size; snapshot: holes"),
    row("getrandom", ALL, &[], "entropy device; hash maps; TLS"),
    row("recvfrom", &[A, D, M], &[], "sockets"),
    row("sendto", &[C, A, D, V, M], &[], "sockets; serial output to one"),
    row("recvmsg", &[D, M], &[], "sockets"),
    row("sendmsg", &[D, M], &[], "sockets"),
    row("accept4", &[A, D, M], &[], "API connections, vsock, a second migration stream"),
    row("socket", &[D], &[eq(0, libc::AF_UNIX as i64)], "vsock: a guest's connection to a Unix socket"),
    row("socket", &[M], &[eq(0, libc::AF_UNIX as i64)], "migration to unix:PATH"),
    row(
        "socket",
        &[M],
        &[eq(0, libc::AF_INET as i64), eq(1, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as i64)],
        "migration to tcp:HOST:PORT",
    ),
    row(
        "socket",
        &[M],
        &[eq(0, libc::AF_INET6 as i64), eq(1, (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as i64)],
        "migration to tcp:HOST:PORT",
    ),
    row("socket", &[M], &[eq(0, libc::AF_VSOCK as i64)], "migration to vsock:CID:PORT"),
    row("connect", &[D, M], &[], "vsock, migration"),
    row("bind", &[R], &[], "API socket of a guest that has arrived"),
    row("listen", &[R], &[], "API socket of a guest that has arrived"),
    row("rt_sigtimedwait", &[S], &[], "the signals that end the process"),
    row("setsockopt", &[D, M], &[], "time limits, TCP_NODELAY, buffers"),
    row("getsockopt", &[D, M], &[], "outcome of a connect"),
    row("getpeername", &[M], &[], "migration: whom to name in messages"),
    row("getsockname", &[M], &[], "migration: whom to name in messages"),
    row("shutdown", &[A, D, M], &[], "ends of streams; a refused request"),
    row("ioctl", &[A, D, M], &[eq(1, libc::FIONBIO as i64)], "std: non-blocking sockets"),
    row(
        "ioctl",
        &[C, D, V],
        &[eq(1, libc::TUNSETOFFLOAD as i64)],
        "tap device: what the guest's driver accepts",
    ),
    row("ioctl", &[C, S], &[eq(1, libc::TCGETS as i64)], "terminal of the serial port, restored at the end"),
    row("ioctl", ALL, &[eq(1, libc::TCSETS as i64)], "terminal of the serial port, restored at any end"),
    row("ioctl", &[C, S], &[eq(1, libc::TIOCGPGRP as i64)], "terminal: is it ours again"),
    row("getpgid", &[S], &[], "terminal: is it ours again"),
    row("fcntl", &[D, M], &[eq(1, libc::F_GETFL as i64)], "std and sockets"),
    row("fcntl", &[D, M], &[eq(1, libc::F_SETFL as i64)], "std and sockets"),
    row("fcntl", &[C, D, M], &[eq(1, libc::F_DUPFD_CLOEXEC as i64)], "std: File::try_clone"),
    row("fcntl", &[C, A, D, M], &[eq(1, libc::F_GETFD as i64)], "std's check of closed descriptors"),
    row(
        "openat",
        &[C],
        &[without(2, (libc::O_PATH | libc::O_TMPFILE & !libc::O_DIRECTORY) as i64)],
        "drives changed by the API, snapshot files",
    ),
    row("fcntl", &[M], &[eq(1, libc::F_GET_SEALS as i64)], "guest memory handed over: may it still be cut"),
    row("ioctl", &[R], &[eq(1, 0xaa00)], "postcopy: USERFAULTFD_IOC_NEW"),
    row("ioctl", &[R], &[eq(1, 0xc020_aa00)], "postcopy: UFFDIO_REGISTER"),
    row("ioctl", &[M, R], &[eq(1, 0x8010_aa01)], "postcopy: UFFDIO_UNREGISTER"),
    row("ioctl", &[M, R], &[eq(1, 0xc028_aa03)], "postcopy: UFFDIO_COPY"),
    row("ioctl", &[M, R], &[eq(1, 0xc020_aa04)], "postcopy: UFFDIO_ZEROPAGE"),
    row("ioctl", &[R], &[eq(1, 0xc018_aa3f)], "postcopy: UFFDIO_API"),
    row(
        "fcntl",
        &[M],
        &[eq(1, libc::F_ADD_SEALS as i64)],
        "the deed of memory handed over: its size is fixed",
    ),
    row("memfd_create", &[M], &[], "the deed of memory handed over; nothing can be executed from it"),
    row("ftruncate", &[M], &[], "the deed's size"),
    row("openat", &[M], OPEN_READ, "std: available parallelism and the like, read only"),
    row("close", ALL, &[], "whatever is no longer needed"),
    row("fstat", &[C, D, M], &[], "files: kind and size"),
    row("newfstatat", &[C, M], &[], "files: kind and size"),
    row("statx", &[C, D, M], &[], "files: kind and size"),
    row("flock", &[C], &[], "snapshot: a file in the making is held"),
    row("unlink", &[C, S, M], &[], "sockets and half-written snapshot files (x86-64)"),
    row("unlinkat", &[C, S, M], &[], "sockets and half-written snapshot files"),
    row("rename", &[C], &[], "snapshot: put into place when whole (x86-64)"),
    row("renameat2", &[C], &[], "snapshot: put into place when whole"),
    row("renameat", &[C], &[], "snapshot: put into place when whole"),
    row("eventfd2", &[M, R], &[], "wake-ups between threads"),
    row("timerfd_create", &[M], &[], "a device made again after a snapshot"),
    row("epoll_create1", &[R], &[], "event loops"),
    row("userfaultfd", &[R], &[], "postcopy: pages that are waited for"),
    row("mmap", ALL, NO_EXEC, "allocator, thread stacks, guest memory; never executable"),
    row("munmap", ALL, &[], "allocator, thread stacks, guest memory"),
    row("mremap", ALL, &[], "allocator: a large vector grows"),
    row("mprotect", ALL, NO_EXEC, "allocator, thread stacks; never executable"),
    row("madvise", ALL, &[], "thread stacks, balloon, guest memory"),
    row("brk", ALL, &[], "allocator"),
    row("sched_yield", ALL, &[], "std: channels"),
    row("clock_nanosleep", ALL, &[], "std: sleep, and waits with a limit"),
    row("nanosleep", &[M], &[], "std: sleep"),
    row("getpid", ALL, &[], "abort"),
    row("tgkill", ALL, &[eq(2, libc::SIGABRT as i64)], "abort, of this process only"),
    row(
        "tgkill",
        ALL,
        &[eq(2, libc::SIGSEGV as i64)],
        "a crash, once the terminal is restored; this process only",
    ),
    row(
        "tgkill",
        ALL,
        &[eq(2, libc::SIGBUS as i64)],
        "a crash, once the terminal is restored; this process only",
    ),
    row(
        "tgkill",
        ALL,
        &[eq(2, libc::SIGILL as i64)],
        "a crash, once the terminal is restored; this process only",
    ),
    row(
        "tgkill",
        ALL,
        &[eq(2, libc::SIGFPE as i64)],
        "a crash, once the terminal is restored; this process only",
    ),
    row("gettid", ALL, &[], "std: who panicked"),
    row("rt_sigprocmask", ALL, &[], "thread start and end"),
    row("rt_sigreturn", ALL, &[], "return from a signal's handler"),
    row("restart_syscall", ALL, &[], "the kernel's own, after a stop"),
    row("sigaltstack", ALL, &[], "std: end of a thread"),
    row("sched_getaffinity", &[C, M, R], &[], "start of a thread: std asks for its stack"),
    row("set_robust_list", &[C, M], &[], "start of a thread"),
    row("rseq", &[C, M], &[], "start of a thread"),
    row("prctl", &[C, M, R], &[eq(0, libc::PR_SET_NAME as i64)], "start of a thread"),
    row("prctl", &[M, R], &[eq(0, libc::PR_SET_NO_NEW_PRIVS as i64)], "a later thread's own filter"),
    row(
        "seccomp",
        &[M, R],
        &[eq(0, libc::SECCOMP_SET_MODE_FILTER as i64)],
        "a later thread's own filter, on top of this",
    ),
    Row {
        call: "clone3",
        kinds: &[C, M],
        checks: &[],
        answer: Answer::Errno(libc::ENOSYS as u16),
        caller: "C library: told to use clone, whose flags can be checked",
        kept: "",
    },
    row("clone", &[C, M], &[thread_only(CLONE_FLAGS)], "threads of this process, nothing else"),
    row("exit", ALL, &[], "end of a thread"),
    row("exit_group", ALL, &[], "end of the process"),
];

/// s390x alone has the stack first.
const CLONE_FLAGS: u8 = if cfg!(target_arch = "s390x") { 1 } else { 0 };
