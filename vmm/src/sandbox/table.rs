//! The one table of system calls: which kind of thread may make which, with which arguments, and who makes it.
//!
//! Filter, documentation (`docs/SECCOMP.md`) and tests come from it. A call that no row names ends the process. Add a row only with
//! the caller that was seen making the call; take it away with its last caller.

use super::Kind;
use super::bpf::{Answer, Check, Rule};
use super::names;
use rustix::ioctl::{Direction, opcode};

/// A permission.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Name of the system call. A host that has no such call leaves the row out.
    pub call: &'static str,
    /// Its number on this host; none if the host has no such call, or the C library takes an older one.
    pub number: Option<i64>,
    /// Who may make it.
    pub kinds: &'static [Kind],
    /// Conditions on its arguments, which must all hold.
    pub checks: &'static [Check],
    /// What happens: `Allow` almost always.
    pub answer: Answer,
    /// Who makes it and what for.
    pub caller: &'static str,
    /// For which kinds it stays though the test suites need not use it on x86-64 (`scripts/rules`).
    pub kept: &'static [Kind],
    /// Why it stays for those.
    pub because: &'static str,
}

impl Row {
    /// Exempts these kinds from the rule that the test suites use every row.
    const fn kept(self, kept: &'static [Kind], because: &'static str) -> Self {
        Row { kept, because, ..self }
    }

    /// [`Row::number`], for whoever goes through many.
    pub fn numbers(&self) -> impl Iterator<Item = i64> {
        self.number.into_iter()
    }

    /// What it comes to on this host.
    pub fn rules(&self) -> impl Iterator<Item = Rule> {
        let rule = |number, checks: &[Check]| Rule { number, checks: checks.to_vec(), answer: self.answer };
        let checks = if ARGUMENTS_IN_MEMORY.contains(&self.call) { &[] } else { self.checks };
        let own = self.numbers().map(move |number| rule(number, checks));
        let inside = SOCKETCALL.iter().filter(|(call, _)| *call == self.call).flat_map(|(_, ops)| *ops);
        let inside = inside.filter_map(move |op| Some(rule(names::number("socketcall")?, &[eq(0, *op)])));
        own.chain(inside)
    }
}

/// Calls whose arguments a filter cannot see, since the kernel is given the address of them: they have no conditions.
pub(super) const ARGUMENTS_IN_MEMORY: &[&str] = if cfg!(target_arch = "s390x") { &["mmap"] } else { &[] };

/// Calls that glibc makes through `socketcall`, with their numbers there (linux/net.h) and, so, without conditions of their own.
pub(super) const SOCKETCALL: &[(&str, &[i64])] = if cfg!(target_arch = "s390x") {
    &[
        ("socket", &[1]),
        ("bind", &[2]),
        ("connect", &[3]),
        ("listen", &[4]),
        ("getsockname", &[6]),
        ("getpeername", &[7]),
        // send, sendto
        ("sendto", &[9, 11]),
        // recv, recvfrom
        ("recvfrom", &[10, 12]),
        ("shutdown", &[13]),
        ("setsockopt", &[14]),
        ("getsockopt", &[15]),
        ("sendmsg", &[16]),
        ("recvmsg", &[17]),
        ("accept4", &[18]),
    ]
} else {
    &[]
};

/// A request of userfaultfd: its encoding differs between hosts.
const fn uffd(direction: Direction, number: u8, bytes: usize) -> Check {
    eq(1, opcode::from_components(direction, 0xaa, number, bytes) as i64)
}

/// The number that the C library calls it by. Known when this is compiled: to look names up would take every thread's start a while.
const fn number(call: &str) -> Option<i64> {
    let older = match call.as_bytes() {
        b"epoll_pwait" => names::number("epoll_wait"),
        b"unlinkat" => names::number("unlink"),
        b"renameat" | b"renameat2" => names::number("rename"),
        _ => None,
    };
    if older.is_some() { None } else { names::number(call) }
}

use Kind::{Api as A, Control as C, Device as D, Migrate as M, Receive as R, Signals as S, Vcpu as V};
const ALL: &[Kind] = &[C, A, D, V, M, S];

const fn row(
    call: &'static str,
    kinds: &'static [Kind],
    checks: &'static [Check],
    caller: &'static str,
) -> Row {
    let number = number(call);
    Row { call, number, kinds, checks, answer: Answer::Allow, caller, kept: &[], because: "" }
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

/// Reasons for rows that stay though the suites need not use them.
const LAST_WORDS: &str =
    "a forbidden call, of which the thread makes none in tests, is named, and the process ends";
const NO_VDSO: &str = "hosts whose clock the vDSO cannot read";
const NO_STATX: &str = "std falls back to it where there is no statx";
const ALLOCATOR: &str = "the allocator takes it by sizes and history";
const CHANGED: &str = "a limit or an interval is changed by the API";
const MOVED_DISK: &str = "only where the disk's folder takes files without names";
const POSTCOPY: &str = "postcopy, whose suite needs the host's leave for userfaultfd";
const THREADS: &str = "threads started late: one that slows vCPUs down, streams of a migration";
const STREAMS: &str = "certificates, and several connections of one migration";
const LATE_API: &str =
    "a receiver makes what it needs before it has its filter, unless it is asked by the API";

/// The rows, most called first within a thread's life.
pub const TABLE: &[Row] = &[
    row("read", &[C, D, M], &[], "eventfds, timers, sockets, disks, serial input, snapshot files")
        .kept(&[C], CHANGED),
    row("write", ALL, &[], "eventfds, serial output, sockets, disks, log").kept(&[A, S], LAST_WORDS),
    row("futex", ALL, &[], "std: locks, channels, joins"),
    row("epoll_wait", &[A, D], &[], "event loops (glibc on x86-64)"),
    row("epoll_pwait", &[A, D], &[], "event loops (glibc elsewhere)"),
    row("epoll_ctl", &[A, D], &[], "event loops: a queue, timer or connection comes or goes"),
    row("ppoll", &[C, D, V, M], &[], "serial output: can its reader take it; sockets with a time limit")
        .kept(
            &[C, M],
            "what the guest printed last is written as the process ends; std takes it where there is no poll",
        ),
    row("poll", &[M, R], &[], "serial output; std and sockets with a time limit (x86-64)")
        .kept(&[R], "a receiver waits with a limit"),
    row("clock_gettime", ALL, &[], "time, where the vDSO cannot tell it").kept(ALL, NO_VDSO),
    row("timerfd_settime", &[C, D], &[eq(1, 0)], "PIT, RTC and rate limiters").kept(&[C], CHANGED),
    row("pread64", &[C, M], &[], "disks, snapshot files"),
    row("pwrite64", &[C], &[], "disks, snapshot files"),
    row("preadv", &[D], &[], "disks"),
    row("pwritev", &[D], &[], "disks"),
    row("readv", &[D], &[], "tap device, streams")
        .kept(&[D], "a TAP that hands packets over in parts; passt"),
    row("writev", &[D, M], &[], "tap device, streams, log lines").kept(&[M], STREAMS),
    row("fdatasync", &[D, R], &[], "disks: flush; a disk that arrives").kept(&[R], MOVED_DISK),
    row("linkat", &[R], &[], "a disk that has arrived whole gets its name"),
    row("fsync", &[C], &[], "disks: flush; snapshot files"),
    row(
        "fallocate",
        &[D, R],
        &[],
        "disks: discard, write zeroes; postcopy: pages that are to come again are given back",
    )
    .kept(&[R], POSTCOPY),
    row("ftruncate", &[C], &[], "snapshot: a sparse memory file"),
    row("lseek", &[C, M], &[], "disks: size; snapshot: holes"),
    row("getrandom", ALL, &[], "entropy device; hash maps; TLS")
        .kept(&[C, A, V, S], "std seeds a thread's hash maps by it, once; few threads have any"),
    row("recvfrom", &[A, D, M], &[], "sockets"),
    row("sendto", &[C, A, D, V, M], &[], "sockets; serial output to one")
        .kept(&[C, V], "serial output to a socket"),
    row("recvmsg", &[M, R], &[], "sockets")
        .kept(&[M, R], "memory handed over: mostly before the receiver has its filter"),
    row("sendmsg", &[M], &[], "sockets"),
    row("accept4", &[A, D, M], &[], "API connections, vsock, a second migration stream").kept(&[M], STREAMS),
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
    row("bind", &[R], &[], "API socket of a guest that has arrived").kept(&[R], LATE_API),
    row("listen", &[R], &[], "API socket of a guest that has arrived").kept(&[R], LATE_API),
    row("rt_sigtimedwait", &[S], &[], "the signals that end the process"),
    row("setsockopt", &[M], &[], "time limits, TCP_NODELAY, buffers"),
    row("getsockopt", &[M], &[], "outcome of a connect"),
    row("getpeername", &[M], &[], "migration: whom to name in messages").kept(&[M], STREAMS),
    row("getsockname", &[M], &[], "migration: whom to name in messages"),
    row("shutdown", &[A, D, M], &[], "ends of streams; a refused request"),
    row("ioctl", &[A, D], &[eq(1, libc::FIONBIO as i64)], "std: non-blocking sockets"),
    row(
        "ioctl",
        &[V, R],
        &[eq(1, libc::TUNSETOFFLOAD as i64)],
        "tap device: what the guest's driver accepts",
    )
    .kept(&[R], "only a guest that arrives with a TAP has it set"),
    row("ioctl", ALL, &[eq(1, libc::TCGETS as i64)], "glibc's look at whether the terminal was set"),
    row("ioctl", ALL, &[eq(1, libc::TCSETS as i64)], "terminal of the serial port, restored at any end"),
    row("ioctl", &[S], &[eq(1, libc::TIOCGPGRP as i64)], "terminal: is it ours again"),
    row("getpgid", &[S], &[], "terminal: is it ours again"),
    row("fcntl", &[M], &[eq(1, libc::F_GETFL as i64)], "std and sockets"),
    row("fcntl", &[M], &[eq(1, libc::F_SETFL as i64)], "std and sockets"),
    row("fcntl", &[C, M], &[eq(1, libc::F_DUPFD_CLOEXEC as i64)], "std: File::try_clone")
        .kept(&[C, M], "File::try_clone of a disk that moves, of a file that the API changes"),
    row("fcntl", &[C, A, D, M], &[eq(1, libc::F_GETFD as i64)], "std's check of closed descriptors"),
    row(
        "openat",
        &[C],
        &[without(2, (libc::O_PATH | libc::O_TMPFILE & !libc::O_DIRECTORY) as i64)],
        "drives changed by the API, snapshot files",
    ),
    row("fcntl", &[M], &[eq(1, libc::F_GET_SEALS as i64)], "guest memory handed over: may it still be cut"),
    row("ioctl", &[R], &[uffd(Direction::None, 0, 0)], "postcopy: USERFAULTFD_IOC_NEW").kept(&[R], POSTCOPY),
    row("ioctl", &[R], &[uffd(Direction::ReadWrite, 0, 32)], "postcopy: UFFDIO_REGISTER")
        .kept(&[R], POSTCOPY),
    row("ioctl", &[M, R], &[uffd(Direction::Read, 1, 16)], "postcopy: UFFDIO_UNREGISTER")
        .kept(&[M, R], POSTCOPY),
    row("ioctl", &[M, R], &[uffd(Direction::ReadWrite, 3, 40)], "postcopy: UFFDIO_COPY")
        .kept(&[M, R], POSTCOPY),
    row("ioctl", &[M, R], &[uffd(Direction::ReadWrite, 4, 32)], "postcopy: UFFDIO_ZEROPAGE")
        .kept(&[M, R], POSTCOPY),
    row("ioctl", &[R], &[uffd(Direction::ReadWrite, 0x3f, 24)], "postcopy: UFFDIO_API").kept(&[R], POSTCOPY),
    row(
        "fcntl",
        &[M],
        &[eq(1, libc::F_ADD_SEALS as i64)],
        "the deed of memory handed over: its size is fixed",
    ),
    row("memfd_create", &[M], &[], "the deed of memory handed over; nothing can be executed from it"),
    row("ftruncate", &[M], &[], "the deed's size"),
    row("openat", &[M], OPEN_READ, "std: available parallelism and the like, read only"),
    row("close", ALL, &[], "whatever is no longer needed")
        .kept(&[V, S], "whoever drops the last reference closes"),
    row("fstat", &[C, D, M], &[], "files: kind and size").kept(&[C, D, M], NO_STATX),
    row("newfstatat", &[C, M], &[], "files: kind and size").kept(&[C, M], NO_STATX),
    row("statx", &[C, M], &[], "files: kind and size").kept(&[M], STREAMS),
    row("flock", &[C], &[], "snapshot: a file in the making is held"),
    row("unlink", &[C, S, M], &[], "sockets and half-written snapshot files (x86-64)").kept(&[M], MOVED_DISK),
    row("unlinkat", &[C, S, M], &[], "sockets and half-written snapshot files"),
    row("rename", &[C], &[], "snapshot: put into place when whole (x86-64)"),
    row("renameat2", &[C], &[], "snapshot: put into place when whole"),
    row("renameat", &[C], &[], "snapshot: put into place when whole"),
    row("eventfd2", &[M, R], &[], "wake-ups between threads").kept(&[M, R], LATE_API),
    row("timerfd_create", &[R], &[], "a device made again after a snapshot").kept(&[R], LATE_API),
    row("epoll_create1", &[R], &[], "event loops").kept(&[R], LATE_API),
    row("userfaultfd", &[R], &[], "postcopy: pages that are waited for").kept(&[R], POSTCOPY),
    row("mmap", ALL, NO_EXEC, "allocator, thread stacks, guest memory; never executable")
        .kept(&[A, D, S], ALLOCATOR),
    row("munmap", ALL, &[], "allocator, thread stacks, guest memory").kept(&[S], ALLOCATOR),
    row("mremap", ALL, &[], "allocator: a large vector grows").kept(ALL, ALLOCATOR),
    row("mprotect", ALL, NO_EXEC, "allocator, thread stacks; never executable").kept(ALL, ALLOCATOR),
    row("madvise", ALL, &[], "thread stacks, balloon, guest memory").kept(&[C, S], ALLOCATOR),
    row("brk", ALL, &[], "allocator").kept(&[A, D, M, S], ALLOCATOR),
    row("sched_yield", ALL, &[], "std: channels")
        .kept(ALL, "std yields only if two threads meet at a channel"),
    row("clock_nanosleep", &[C, M], &[], "std: sleep, and waits with a limit"),
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
    row("rt_sigprocmask", ALL, &[], "thread start and end").kept(&[C, S], "a thread that starts, or ends"),
    row("rt_sigreturn", ALL, &[], "return from a signal's handler"),
    row("restart_syscall", ALL, &[], "the kernel's own, after a stop")
        .kept(ALL, "the kernel makes it for a thread that was stopped in a wait"),
    row("sigaltstack", ALL, &[], "std: end of a thread"),
    row("sched_getaffinity", &[C, M, R], &[], "start of a thread: std asks for its stack")
        .kept(&[C, M], THREADS),
    row("set_robust_list", &[C, M], &[], "start of a thread").kept(&[C, M], THREADS),
    row("rseq", &[C, M], &[], "start of a thread").kept(&[C, M], THREADS),
    row("prctl", &[C, M, R], &[eq(0, libc::PR_SET_NAME as i64)], "start of a thread").kept(&[C, M], THREADS),
    row("prctl", &[M, R], &[eq(0, libc::PR_SET_NO_NEW_PRIVS as i64)], "a later thread's own filter")
        .kept(&[M, R], THREADS),
    row(
        "seccomp",
        &[M, R],
        &[eq(0, libc::SECCOMP_SET_MODE_FILTER as i64)],
        "a later thread's own filter, on top of this",
    )
    .kept(&[M, R], THREADS),
    Row {
        call: "clone3",
        number: number("clone3"),
        kinds: &[C, M],
        checks: &[],
        answer: Answer::Errno(libc::ENOSYS as u16),
        caller: "C library: told to use clone, whose flags can be checked",
        kept: &[C, M],
        because: THREADS,
    },
    row("clone", &[C, M], &[thread_only(CLONE_FLAGS)], "threads of this process, nothing else")
        .kept(&[C, M], THREADS),
    row("exit", ALL, &[], "end of a thread")
        .kept(&[C, S], "the thread that slows vCPUs down ends; should waiting for signals fail"),
    row("exit_group", ALL, &[], "end of the process").kept(&[A, M], LAST_WORDS),
];

/// s390x alone has the stack first.
const CLONE_FLAGS: u8 = if cfg!(target_arch = "s390x") { 1 } else { 0 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_the_hosts_kernel() {
        // As linux/userfaultfd.h comes out by asm/ioctl.h: UFFDIO_REGISTER, UFFDIO_UNREGISTER, USERFAULTFD_IOC_NEW.
        let wanted = if cfg!(any(target_arch = "powerpc64", target_arch = "sparc64")) {
            [0xc020_aa00, 0x4010_aa01, 0x2000_aa00]
        } else {
            [0xc020_aa00, 0x8010_aa01, 0xaa00]
        };
        for value in wanted {
            let check = Check::Eq { index: 1, value };
            assert!(TABLE.iter().any(|r| r.call == "ioctl" && r.checks.contains(&check)), "{value:#x}");
        }
    }
}
