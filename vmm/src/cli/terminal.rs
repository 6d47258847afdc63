//! The terminal as the guest's console: raw while the machine lives, as it was afterwards, however the process ends.

use rustix::termios::{isatty, tcgetpgrp};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The terminal and its settings: before, and raw. Set once, so that a signal's handler may read it.
static TERMINAL: OnceLock<(File, libc::termios, libc::termios)> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// Signals that end the process without unwinding. What ends it cleanly is `signals`' business.
const DEADLY: [libc::c_int; 5] = [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

/// Puts the terminal back when dropped.
pub(super) struct Raw(());

fn set(file: &File, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: the descriptor is open and the settings are whole.
    match unsafe { libc::tcsetattr(file.as_raw_fd(), libc::TCSANOW, settings) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts the terminal back if it is raw. For any thread, and for handlers of signals.
pub(super) fn restore() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some((file, before, _)) = TERMINAL.get()
    {
        let _ = set(file, before);
    }
}

/// The same for a process that ends without unwinding, unless this thread's filter is a user's own, which may forbid it: that
/// would end the process for another reason than the one it dies of.
fn restore_at_end() {
    if crate::sandbox::may_set_terminal() {
        restore();
    }
}

/// Makes it raw again after the shell had it: the process was stopped, and goes on in the foreground.
pub(super) fn again() {
    if RAW.load(Ordering::SeqCst)
        && let Some((file, _, raw)) = TERMINAL.get()
        && in_foreground(file)
    {
        let _ = set(file, raw);
    }
}

/// A process in the background would be stopped for touching the terminal.
fn in_foreground(terminal: &File) -> bool {
    // SAFETY: has no arguments and cannot fail.
    let own = unsafe { libc::getpgid(0) };
    tcgetpgrp(terminal).is_ok_and(|group| group.as_raw_pid() == own)
}

extern "C" fn last_words(signal: libc::c_int) {
    restore_at_end();
    // The disposition is the default again. A fault would come anew by itself, somebody's signal would not.
    // SAFETY: plain system call, which every filter allows for these signals.
    unsafe { libc::raise(signal) };
}

fn on_deadly_signals() {
    crate::sandbox::handler::at_end(restore_at_end);
    for signal in DEADLY {
        // SAFETY: all zero is a valid sigaction; the handler calls only tcsetattr, raise and atomics. It runs once
        // (SA_RESETHAND), on the alternative stack if there is one.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = last_words as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

impl Raw {
    /// Makes standard input raw, if it is a terminal and this process has it.
    pub(super) fn enter() -> io::Result<Option<Raw>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let file = File::from(stdin.as_fd().try_clone_to_owned()?);
        if !in_foreground(&file) {
            return Ok(None);
        }
        // SAFETY: all zero is a valid termios, filled by tcgetattr.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open.
        if unsafe { libc::tcgetattr(file.as_raw_fd(), &mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut raw = before;
        // SAFETY: the settings are whole.
        unsafe { libc::cfmakeraw(&mut raw) };
        // Output goes on as usual: messages of ours stay readable.
        raw.c_oflag = before.c_oflag;
        let (file, _, raw) = TERMINAL.get_or_init(|| (file, before, raw));
        on_deadly_signals();
        RAW.store(true, Ordering::SeqCst);
        set(file, raw)?;
        Ok(Some(Raw(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}
