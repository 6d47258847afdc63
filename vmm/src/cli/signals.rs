//! SIGINT, SIGTERM, SIGQUIT and SIGHUP end the machine cleanly; after SIGCONT the terminal is made raw again. A thread of their
//! own waits for them.

use crate::sandbox;
use std::io;

const SIGNALS: [libc::c_int; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP, libc::SIGCONT];

fn set() -> libc::sigset_t {
    // SAFETY: an all-zero set is valid memory, and sigemptyset makes it an empty set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in SIGNALS {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// Blocks them in this thread and all that it starts. Call before the first thread is started.
pub(super) fn block() -> io::Result<()> {
    let set = set();
    // SAFETY: the set is valid.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(e)),
    }
}

/// Calls `quit` at each that is to end the machine.
pub(super) fn watch(quit: impl Fn() + Send + 'static) -> io::Result<()> {
    let wait = move || {
        if let Err(e) = sandbox::enter(sandbox::Kind::Signals, "signals") {
            // Nobody waits for this thread, which would cost every start; and without it nothing ends cleanly.
            super::terminal::restore();
            eprintln!("godwit: {e}");
            std::process::exit(super::exit::ERROR.into());
        }
        let set = set();
        let mut signal = 0;
        // SAFETY: both are valid; the signals are blocked in all threads.
        while unsafe { libc::sigwait(&set, &mut signal) } == 0 {
            match signal {
                libc::SIGCONT => super::terminal::again(),
                _ => quit(),
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}
