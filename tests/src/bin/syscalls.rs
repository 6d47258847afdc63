//! `godwit-syscalls PROGRAM ARGUMENT...`: becomes PROGRAM, with a tracer beside it that notes which rules of the seccomp filters
//! it uses, into the directory `GODWIT_SYSCALLS`. The harness puts it before godwit when that variable is set.
//!
//! `godwit-syscalls --unused DIR` compares what is in such a directory with the filters; it fails if a rule of the table was
//! not used, unless the machine lacks what the suites that use it need.
//! `--seen DIR` prints what was used.

use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::cached;
use godwit_tests::harness::jail::is_root;
use godwit_tests::syscalls::{DIR, Seen, follow, unused, unused_by_backend};
use godwit_vmm::sandbox::table;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn main() {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [program, rest @ ..] = args.as_slice() else {
        eprintln!("usage: godwit-syscalls PROGRAM ARGUMENT... | --unused DIR | --seen DIR");
        std::process::exit(2);
    };
    match (program.to_str(), rest) {
        (Some("--unused"), [dir]) => std::process::exit(report(&Seen::of(dir.as_ref()))),
        (Some("--seen"), [dir]) => return print(&Seen::of(dir.as_ref())),
        _ => {}
    }
    if let Some(dir) = std::env::var_os(DIR) {
        trace(Path::new(&dir));
    }
    let error = Command::new(program).args(rest).env_remove(DIR).exec();
    eprintln!("{}: {error}", program.display());
    std::process::exit(127);
}

/// Prints what was used, by rows and calls.
fn print(seen: &Seen) {
    for (kind, at) in &seen.rows {
        if let Some(row) = table::TABLE.get(*at) {
            println!("{kind}: {} {:x?} ({})", row.call, row.checks, row.caller);
        }
    }
    for (kind, call, [a, b, c]) in &seen.others {
        println!("{kind}: {call}({a:#x}, {b:#x}, {c:#x}) by the backend");
    }
}

/// Prints which rules were not used: the exit code.
fn report(seen: &Seen) -> i32 {
    if !cfg!(target_arch = "x86_64") {
        println!("SKIPPED unused rules: what the suites use is known for x86-64 only");
        return 0;
    }
    let (missing, rules, kept) = unused(seen);
    println!(
        "the table: {rules} rules (row and kind of thread), {kept} of them kept for a reason given there"
    );
    for name in ["kvm", "interp"] {
        let loaded = Plugin::path(name)
            .and_then(|path| godwit_vmm::plugin::Plugin::load(&path, &[]).map_err(|e| e.to_string()))
            .and_then(|plugin| plugin.probe().map(|_| plugin).map_err(|e| e.to_string()));
        match loaded {
            Ok(plugin) => {
                let (more, rules) = unused_by_backend(seen, plugin.descriptor());
                println!(
                    "the backend {name}: {rules} calls and requests beyond the table, {} not used:",
                    more.len()
                );
                // Which of KVM's requests are used for the same thing depends on the host's KVM.
                more.iter().for_each(|line| println!("not used on this host: {line}"));
            }
            Err(why) => println!("SKIPPED unused rules of the backend {name}: {why}"),
        }
    }
    for line in &missing {
        println!("never used: {line}");
    }
    match (missing.len(), lacking()) {
        (0, _) => println!("every rule was used"),
        (n, None) => {
            println!("{n} rules were not used: take them from the table, or have a test use them");
            return 1;
        }
        (n, Some(why)) => println!("SKIPPED unused rules, {n} of them: tests were skipped because {why}"),
    }
    0
}

/// Why some suites were skipped here, if they were: what each needs who uses a rule that nobody else does.
fn lacking() -> Option<String> {
    if !is_root() {
        return Some("root is needed".into());
    }
    let tun =
        || Path::new("/dev/net/tun").exists().then_some(()).ok_or("there is no /dev/net/tun".to_owned());
    let debian = ["debian.bzImage", "debian.initramfs.cpio.gz", "debian.ext4"];
    let all = Plugin::usable("kvm")
        .map(drop)
        .and_then(|()| tun())
        .and_then(|()| cached(debian, "--rootfs").map(drop));
    all.err()
}

/// Puts a tracer beside this process: a grandchild, so that the program has no child that it knows nothing of.
fn trace(dir: &Path) {
    let mut pipe = [0; 2];
    // SAFETY: one thread here; the children use only what they have, and end by _exit.
    unsafe {
        let me = libc::getpid();
        // Any tracer; -1 is the kernel's word for it.
        libc::prctl(libc::PR_SET_PTRACER, -1i64 as libc::c_ulong, 0, 0, 0);
        assert_eq!(libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC), 0);
        let child = libc::fork();
        if child == 0 {
            if libc::fork() == 0 {
                libc::setsid();
                let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
                for fd in 0..3 {
                    libc::dup2(null, fd);
                }
                let seen = follow(me, || {
                    libc::close(pipe[0]);
                    libc::close(pipe[1]);
                });
                // Renamed when whole, for whoever reads the directory.
                let (part, whole) = (dir.join(format!(".{me}")), dir.join(format!("{me}.txt")));
                let _ = std::fs::write(&part, seen.to_text()).and_then(|()| std::fs::rename(&part, &whole));
            }
            libc::_exit(0);
        }
        libc::close(pipe[1]);
        let mut status = 0;
        libc::waitpid(child, &raw mut status, 0);
        let mut byte = 0u8;
        // Ends when the tracer has closed its end, or died.
        libc::read(pipe[0], (&raw mut byte).cast(), 1);
        libc::close(pipe[0]);
    }
}
