//! Names of system calls: for the table, for `--seccomp-filter` and for the message that names an offender.

use std::cmp::Ordering;

macro_rules! names {
    ($($name:ident = $number:ident,)*) => {
        /// Calls that every Linux has under these names, in alphabetical order; the others follow.
        const NAMES: &[(&str, i64)] = &[$((stringify!($name), libc::$number),)*];
    };
}

names! {
    accept4 = SYS_accept4,
    bind = SYS_bind,
    bpf = SYS_bpf,
    brk = SYS_brk,
    capget = SYS_capget,
    capset = SYS_capset,
    chdir = SYS_chdir,
    chroot = SYS_chroot,
    clock_adjtime = SYS_clock_adjtime,
    clock_getres = SYS_clock_getres,
    clock_gettime = SYS_clock_gettime,
    clock_nanosleep = SYS_clock_nanosleep,
    clock_settime = SYS_clock_settime,
    clone = SYS_clone,
    clone3 = SYS_clone3,
    close = SYS_close,
    close_range = SYS_close_range,
    connect = SYS_connect,
    copy_file_range = SYS_copy_file_range,
    delete_module = SYS_delete_module,
    dup = SYS_dup,
    dup3 = SYS_dup3,
    epoll_create1 = SYS_epoll_create1,
    epoll_ctl = SYS_epoll_ctl,
    epoll_pwait = SYS_epoll_pwait,
    eventfd2 = SYS_eventfd2,
    execve = SYS_execve,
    execveat = SYS_execveat,
    exit = SYS_exit,
    exit_group = SYS_exit_group,
    faccessat = SYS_faccessat,
    faccessat2 = SYS_faccessat2,
    fallocate = SYS_fallocate,
    fchdir = SYS_fchdir,
    fchmod = SYS_fchmod,
    fchmodat = SYS_fchmodat,
    fchown = SYS_fchown,
    fchownat = SYS_fchownat,
    fcntl = SYS_fcntl,
    fdatasync = SYS_fdatasync,
    finit_module = SYS_finit_module,
    flock = SYS_flock,
    fstatfs = SYS_fstatfs,
    fsync = SYS_fsync,
    ftruncate = SYS_ftruncate,
    futex = SYS_futex,
    getcwd = SYS_getcwd,
    getdents64 = SYS_getdents64,
    getegid = SYS_getegid,
    geteuid = SYS_geteuid,
    getgid = SYS_getgid,
    getgroups = SYS_getgroups,
    getitimer = SYS_getitimer,
    getpeername = SYS_getpeername,
    getpgid = SYS_getpgid,
    getpid = SYS_getpid,
    getppid = SYS_getppid,
    getpriority = SYS_getpriority,
    getrandom = SYS_getrandom,
    getresgid = SYS_getresgid,
    getresuid = SYS_getresuid,
    getrusage = SYS_getrusage,
    getsid = SYS_getsid,
    getsockname = SYS_getsockname,
    getsockopt = SYS_getsockopt,
    gettid = SYS_gettid,
    gettimeofday = SYS_gettimeofday,
    getuid = SYS_getuid,
    init_module = SYS_init_module,
    inotify_add_watch = SYS_inotify_add_watch,
    inotify_init1 = SYS_inotify_init1,
    io_uring_enter = SYS_io_uring_enter,
    io_uring_register = SYS_io_uring_register,
    io_uring_setup = SYS_io_uring_setup,
    ioctl = SYS_ioctl,
    kcmp = SYS_kcmp,
    kexec_load = SYS_kexec_load,
    keyctl = SYS_keyctl,
    kill = SYS_kill,
    landlock_create_ruleset = SYS_landlock_create_ruleset,
    linkat = SYS_linkat,
    listen = SYS_listen,
    lseek = SYS_lseek,
    madvise = SYS_madvise,
    membarrier = SYS_membarrier,
    memfd_create = SYS_memfd_create,
    mincore = SYS_mincore,
    mkdirat = SYS_mkdirat,
    mknodat = SYS_mknodat,
    mlock = SYS_mlock,
    mlockall = SYS_mlockall,
    mmap = SYS_mmap,
    mount = SYS_mount,
    mprotect = SYS_mprotect,
    mremap = SYS_mremap,
    msync = SYS_msync,
    munlock = SYS_munlock,
    munmap = SYS_munmap,
    name_to_handle_at = SYS_name_to_handle_at,
    nanosleep = SYS_nanosleep,
    open_by_handle_at = SYS_open_by_handle_at,
    openat = SYS_openat,
    openat2 = SYS_openat2,
    perf_event_open = SYS_perf_event_open,
    personality = SYS_personality,
    pidfd_getfd = SYS_pidfd_getfd,
    pidfd_open = SYS_pidfd_open,
    pidfd_send_signal = SYS_pidfd_send_signal,
    pipe2 = SYS_pipe2,
    pivot_root = SYS_pivot_root,
    ppoll = SYS_ppoll,
    prctl = SYS_prctl,
    pread64 = SYS_pread64,
    preadv = SYS_preadv,
    preadv2 = SYS_preadv2,
    prlimit64 = SYS_prlimit64,
    process_vm_readv = SYS_process_vm_readv,
    process_vm_writev = SYS_process_vm_writev,
    pselect6 = SYS_pselect6,
    ptrace = SYS_ptrace,
    pwrite64 = SYS_pwrite64,
    pwritev = SYS_pwritev,
    pwritev2 = SYS_pwritev2,
    quotactl = SYS_quotactl,
    read = SYS_read,
    readahead = SYS_readahead,
    readlinkat = SYS_readlinkat,
    readv = SYS_readv,
    reboot = SYS_reboot,
    recvfrom = SYS_recvfrom,
    recvmmsg = SYS_recvmmsg,
    recvmsg = SYS_recvmsg,
    renameat2 = SYS_renameat2,
    restart_syscall = SYS_restart_syscall,
    rseq = SYS_rseq,
    rt_sigaction = SYS_rt_sigaction,
    rt_sigpending = SYS_rt_sigpending,
    rt_sigprocmask = SYS_rt_sigprocmask,
    rt_sigqueueinfo = SYS_rt_sigqueueinfo,
    rt_sigreturn = SYS_rt_sigreturn,
    rt_sigsuspend = SYS_rt_sigsuspend,
    rt_sigtimedwait = SYS_rt_sigtimedwait,
    rt_tgsigqueueinfo = SYS_rt_tgsigqueueinfo,
    sched_getaffinity = SYS_sched_getaffinity,
    sched_getparam = SYS_sched_getparam,
    sched_getscheduler = SYS_sched_getscheduler,
    sched_setaffinity = SYS_sched_setaffinity,
    sched_setparam = SYS_sched_setparam,
    sched_setscheduler = SYS_sched_setscheduler,
    sched_yield = SYS_sched_yield,
    seccomp = SYS_seccomp,
    sendmmsg = SYS_sendmmsg,
    sendmsg = SYS_sendmsg,
    sendto = SYS_sendto,
    set_robust_list = SYS_set_robust_list,
    set_tid_address = SYS_set_tid_address,
    setdomainname = SYS_setdomainname,
    setgid = SYS_setgid,
    setgroups = SYS_setgroups,
    sethostname = SYS_sethostname,
    setitimer = SYS_setitimer,
    setns = SYS_setns,
    setpgid = SYS_setpgid,
    setpriority = SYS_setpriority,
    setregid = SYS_setregid,
    setresgid = SYS_setresgid,
    setresuid = SYS_setresuid,
    setreuid = SYS_setreuid,
    setsid = SYS_setsid,
    setsockopt = SYS_setsockopt,
    settimeofday = SYS_settimeofday,
    setuid = SYS_setuid,
    shutdown = SYS_shutdown,
    sigaltstack = SYS_sigaltstack,
    signalfd4 = SYS_signalfd4,
    socket = SYS_socket,
    socketpair = SYS_socketpair,
    splice = SYS_splice,
    statfs = SYS_statfs,
    statx = SYS_statx,
    swapoff = SYS_swapoff,
    swapon = SYS_swapon,
    symlinkat = SYS_symlinkat,
    sync = SYS_sync,
    syncfs = SYS_syncfs,
    sysinfo = SYS_sysinfo,
    syslog = SYS_syslog,
    tee = SYS_tee,
    tgkill = SYS_tgkill,
    timer_create = SYS_timer_create,
    timer_delete = SYS_timer_delete,
    timer_settime = SYS_timer_settime,
    timerfd_create = SYS_timerfd_create,
    timerfd_gettime = SYS_timerfd_gettime,
    timerfd_settime = SYS_timerfd_settime,
    times = SYS_times,
    tkill = SYS_tkill,
    truncate = SYS_truncate,
    umask = SYS_umask,
    umount2 = SYS_umount2,
    uname = SYS_uname,
    unlinkat = SYS_unlinkat,
    unshare = SYS_unshare,
    userfaultfd = SYS_userfaultfd,
    utimensat = SYS_utimensat,
    vmsplice = SYS_vmsplice,
    wait4 = SYS_wait4,
    waitid = SYS_waitid,
    write = SYS_write,
    writev = SYS_writev,
}

/// Calls that only older architectures have: newer ones do with their `*at` forms.
#[cfg(any(
    target_arch = "x86_64",
    target_arch = "s390x",
    target_arch = "sparc64",
    target_arch = "powerpc64"
))]
const OLDER: &[(&str, i64)] = &[
    ("open", libc::SYS_open),
    ("stat", libc::SYS_stat),
    ("lstat", libc::SYS_lstat),
    ("poll", libc::SYS_poll),
    ("access", libc::SYS_access),
    ("pipe", libc::SYS_pipe),
    ("select", libc::SYS_select),
    ("dup2", libc::SYS_dup2),
    ("pause", libc::SYS_pause),
    ("alarm", libc::SYS_alarm),
    ("fork", libc::SYS_fork),
    ("vfork", libc::SYS_vfork),
    ("rename", libc::SYS_rename),
    ("mkdir", libc::SYS_mkdir),
    ("rmdir", libc::SYS_rmdir),
    ("creat", libc::SYS_creat),
    ("link", libc::SYS_link),
    ("unlink", libc::SYS_unlink),
    ("symlink", libc::SYS_symlink),
    ("readlink", libc::SYS_readlink),
    ("chmod", libc::SYS_chmod),
    ("chown", libc::SYS_chown),
    ("lchown", libc::SYS_lchown),
    ("mknod", libc::SYS_mknod),
    ("epoll_create", libc::SYS_epoll_create),
    ("epoll_wait", libc::SYS_epoll_wait),
    ("getdents", libc::SYS_getdents),
    ("eventfd", libc::SYS_eventfd),
];
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "s390x",
    target_arch = "sparc64",
    target_arch = "powerpc64"
)))]
const OLDER: &[(&str, i64)] = &[];

/// Where each architecture has its own ways.
#[cfg(target_arch = "x86_64")]
const OWN: &[(&str, i64)] = &[
    ("fstat", libc::SYS_fstat),
    ("newfstatat", libc::SYS_newfstatat),
    ("renameat", libc::SYS_renameat),
    ("arch_prctl", libc::SYS_arch_prctl),
    ("iopl", libc::SYS_iopl),
    ("ioperm", libc::SYS_ioperm),
    ("modify_ldt", libc::SYS_modify_ldt),
    ("time", libc::SYS_time),
];
#[cfg(any(target_arch = "aarch64", target_arch = "powerpc64"))]
const OWN: &[(&str, i64)] =
    &[("fstat", libc::SYS_fstat), ("newfstatat", libc::SYS_newfstatat), ("renameat", libc::SYS_renameat)];
#[cfg(target_arch = "s390x")]
const OWN: &[(&str, i64)] = &[
    ("fstat", libc::SYS_fstat),
    ("newfstatat", libc::SYS_newfstatat),
    ("renameat", libc::SYS_renameat),
    ("socketcall", libc::SYS_socketcall),
];
#[cfg(target_arch = "riscv64")]
const OWN: &[(&str, i64)] = &[("fstat", libc::SYS_fstat), ("newfstatat", libc::SYS_newfstatat)];
#[cfg(target_arch = "sparc64")]
const OWN: &[(&str, i64)] =
    &[("fstat", libc::SYS_fstat), ("newfstatat", libc::SYS_fstatat64), ("renameat", libc::SYS_renameat)];
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "s390x",
    target_arch = "powerpc64",
    target_arch = "riscv64",
    target_arch = "sparc64"
)))]
const OWN: &[(&str, i64)] = &[];

/// The number of a call on this architecture; none if it has no such call.
#[must_use]
pub const fn number(name: &str) -> Option<i64> {
    let (mut low, mut high) = (0, NAMES.len());
    while low < high {
        let middle = (low + high) / 2;
        match order(NAMES[middle].0, name) {
            Ordering::Less => low = middle + 1,
            Ordering::Equal => return Some(NAMES[middle].1),
            Ordering::Greater => high = middle,
        }
    }
    let (older, own) = (find(OLDER, name), find(OWN, name));
    if older.is_some() { older } else { own }
}

const fn find(list: &[(&str, i64)], name: &str) -> Option<i64> {
    let mut at = 0;
    while at < list.len() {
        if let Ordering::Equal = order(list[at].0, name) {
            return Some(list[at].1);
        }
        at += 1;
    }
    None
}

/// As `cmp`, at compile time.
const fn order(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut at = 0;
    while at < a.len() && at < b.len() {
        if a[at] != b[at] {
            return if a[at] < b[at] { Ordering::Less } else { Ordering::Greater };
        }
        at += 1;
    }
    if a.len() < b.len() {
        Ordering::Less
    } else if a.len() == b.len() {
        Ordering::Equal
    } else {
        Ordering::Greater
    }
}

/// The name of a call; allocates nothing, so that a signal handler may use it.
#[must_use]
pub fn name(number: i64) -> Option<&'static str> {
    NAMES.iter().chain(OLDER).chain(OWN).find(|(_, n)| *n == number).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        assert!(NAMES.is_sorted_by_key(|(name, _)| *name));
        for (text, n) in NAMES.iter().chain(OLDER).chain(OWN) {
            assert_eq!(name(*n), Some(*text));
            assert_eq!(number(text), Some(*n));
        }
        assert_eq!(number("no_such_call"), None);
        assert_eq!(name(-1), None);
    }
}
