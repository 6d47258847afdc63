//! `godwit-syscalls PROGRAM ARGUMENT...`: becomes PROGRAM, with a tracer beside it that notes which rules of the seccomp filters
//! it uses, into the directory `GODWIT_SYSCALLS`. The harness puts it before godwit when that variable is set.

use godwit_tests::syscalls::{DIR, follow};
use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [program, rest @ ..] = args.as_slice() else {
        eprintln!("usage: godwit-syscalls PROGRAM ARGUMENT...");
        std::process::exit(2);
    };
    if let Some(dir) = std::env::var_os(DIR) {
        trace(std::path::Path::new(&dir));
    }
    let error = Command::new(program).args(rest).env_remove(DIR).exec();
    eprintln!("{}: {error}", program.display());
    std::process::exit(127);
}

/// Puts a tracer beside this process: a grandchild, so that the program has no child that it knows nothing of.
fn trace(dir: &std::path::Path) {
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
