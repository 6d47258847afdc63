//! The filters at work: each forbidden thing is tried in a process of its own, by running this test program again.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use super::*;

const TRY: &str = "GODWIT_SANDBOX_TRY";

/// In the child: install the filter, then do the forbidden thing.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn child() {
    let Ok(what) = std::env::var(TRY) else { return };
    let (kind, what) = what.split_once(' ').unwrap();
    let kind = Kind::ALL.into_iter().find(|k| k.name() == kind).unwrap();
    handler::install(None).unwrap();
    let needs = BackendNeeds::new(["ioctl"], &[0xae80]).unwrap();
    Policy::builtin(&needs).unwrap().install(kind, "offender").unwrap();
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: harmless if allowed; each is expected to end the process.
    unsafe {
        match what {
            "nothing" => 0,
            "run" => i64::from(libc::ioctl(-1, 0xae80)),
            "execve" => i64::from(libc::execve(c"/bin/true".as_ptr(), [null].as_ptr(), [null].as_ptr())),
            "openat" => i64::from(libc::openat(libc::AT_FDCWD, c"/etc/passwd".as_ptr(), libc::O_RDWR)),
            "socket" => i64::from(libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
            "ptrace" => libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0),
            "kill" => i64::from(libc::kill(libc::getpid(), 0)),
            "ioctl" => i64::from(libc::ioctl(-1, 0xae01)),
            "mprotect" => {
                i64::from(libc::mprotect(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_EXEC))
            }
            "mmap" => libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            ) as i64,
            "fork" => i64::from(libc::fork()),
            "prctl" => i64::from(libc::prctl(libc::PR_SET_DUMPABLE, 1 as libc::c_ulong)),
            "thread" => {
                std::thread::spawn(|| ()).join().unwrap();
                0
            }
            other => panic!("{other}"),
        }
    };
    // Without std's way out, which is the test runner's and not ours.
    // SAFETY: ends the process.
    unsafe { libc::_exit(77) }
}

fn attempt(kind: Kind, what: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::tests::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(TRY, format!("{} {what}", kind.name()))
        .output()
        .unwrap()
}

/// Whether this kernel takes filters at all; qemu-user does not.
fn available(test: &str) -> bool {
    match super::available() {
        Ok(()) => true,
        Err(why) => {
            println!("SKIPPED {test}: {why}");
            false
        }
    }
}

#[test]
fn each_forbidden_call_ends_the_process_and_is_named() {
    if !available("each_forbidden_call_ends_the_process_and_is_named") {
        return;
    }
    let all = ["execve", "socket", "ptrace", "kill", "ioctl", "mprotect", "mmap", "prctl"];
    for kind in [Kind::Vcpu, Kind::Device, Kind::Api, Kind::Control, Kind::Migrate] {
        for what in all {
            let in_call = table::SOCKETCALL.iter().any(|(call, _)| *call == what);
            let granted = table::TABLE.iter().any(|r| r.call == what && r.kinds.contains(&kind));
            if table::ARGUMENTS_IN_MEMORY.contains(&what) || in_call && granted {
                println!(
                    "SKIPPED forbidden {what} of {kind:?}: this host's filters do not see its arguments"
                );
                continue;
            }
            let out = attempt(kind, what);
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            let made = if in_call && text.contains("socketcall") { "socketcall" } else { what };
            let wanted = format!(
                "the {} thread \"offender\" made the forbidden system call {made} (number ",
                kind.name()
            );
            assert_eq!(out.status.code(), Some(handler::EXIT_BAD_SYSCALL), "{kind:?} {what}: {text}");
            assert!(text.contains(&wanted), "{kind:?} {what}: {text}");
        }
    }
    for (kind, what, call) in [
        (Kind::Vcpu, "openat", "openat"),
        (Kind::Device, "openat", "openat"),
        (Kind::Vcpu, "fork", "clone"),
        (Kind::Control, "fork", "clone"),
    ] {
        let out = attempt(kind, what);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(handler::EXIT_BAD_SYSCALL), "{kind:?} {what}: {text}");
        assert!(text.contains(&format!("system call {call} ")), "{kind:?} {what}: {text}");
    }
    // The C library starts a thread with all signals blocked: the kernel then kills without the handler.
    let out = attempt(Kind::Vcpu, "thread");
    assert_eq!(out.status.signal(), Some(libc::SIGSYS), "{out:?}");
}

#[test]
fn what_is_granted_still_works() {
    if !available("what_is_granted_still_works") {
        return;
    }
    for (kind, what) in [(Kind::Vcpu, "run"), (Kind::Device, "run"), (Kind::Control, "thread")] {
        let out = attempt(kind, what);
        assert_eq!(out.status.code(), Some(77), "{kind:?} {what}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn whoever_starts_threads_may_do_what_they_may() {
    // While a guest arrives the first thread starts the API's and the sender's; their filters lie on top of its own.
    let of = |kind| rules(kind, &BackendNeeds::default());
    let receive = of(Kind::Receive);
    for kind in [Kind::Api, Kind::Migrate, Kind::Control] {
        for rule in of(kind) {
            assert!(receive.contains(&rule), "{kind:?}: {:?}", names::name(rule.number));
        }
    }
}

#[test]
fn no_list_is_longer_than_firecrackers() {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("SKIPPED no_list_is_longer_than_firecrackers: its published counts are those of x86-64");
        return;
    }
    for (kind, firecracker) in FIRECRACKERS {
        let rules = rules(kind, &BackendNeeds::default());
        let calls: std::collections::BTreeSet<i64> = rules.iter().map(|r| r.number).collect();
        println!(
            "{}: {} system calls without the backend's; Firecracker {firecracker}",
            kind.name(),
            calls.len()
        );
        assert!(calls.len() <= firecracker, "{kind:?}: {}", calls.len());
    }
}

#[test]
fn nobody_is_granted_the_dangerous_ones() {
    let never = [
        "execve",
        "execveat",
        "ptrace",
        "kill",
        "fork",
        "vfork",
        "process_vm_readv",
        "process_vm_writev",
        "mount",
        "setns",
        "unshare",
        "bpf",
        "init_module",
        "kexec_load",
        "keyctl",
        "pidfd_getfd",
        "open_by_handle_at",
    ];
    for row in table::TABLE {
        assert!(!never.contains(&row.call), "{}", row.call);
        assert!(!row.caller.is_empty() && !row.kinds.is_empty());
        if ["ioctl", "mmap", "mprotect", "socket", "openat", "prctl", "clone", "seccomp"].contains(&row.call)
        {
            assert!(!row.checks.is_empty(), "{} without conditions", row.call);
        }
    }
}

#[test]
fn every_row_names_a_call_of_some_host() {
    for row in table::TABLE {
        let older =
            ["open", "poll", "epoll_wait", "unlink", "rename", "newfstatat", "mkdir", "renameat", "fstat"];
        assert!(names::number(row.call).is_some() || older.contains(&row.call), "{}", row.call);
    }
}

#[test]
fn the_documentation_is_the_table() {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("SKIPPED the_documentation_is_the_table: it shows the numbers of x86-64");
        return;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/SECCOMP.md");
    if std::env::var_os("GODWIT_WRITE_DOCS").is_some() {
        std::fs::write(path, describe()).unwrap();
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        text == describe(),
        "docs/SECCOMP.md is not what the table says: run this test with GODWIT_WRITE_DOCS=1"
    );
}
