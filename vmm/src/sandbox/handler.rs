//! What happens at a forbidden system call: a line that names call and thread, and the end of the process.
//!
//! Installed once by `main`, before any filter. The handler is only for the message and the terminal: a thread that blocks
//! SIGSYS or has lost its stack is killed by the kernel without it.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::{io, mem, ptr};

use super::{Kind, names};

/// Exit code after a forbidden system call (Firecracker's BadSyscall).
pub const EXIT_BAD_SYSCALL: i32 = 148;

/// What else is put right before the process ends.
static LAST: OnceLock<fn()> = OnceLock::new();

/// Where the line goes besides standard error; -1: nowhere.
static LOG: AtomicI32 = AtomicI32::new(-1);

const LABEL_LEN: usize = 16;

thread_local! {
    /// Kind and name of this thread, for the handler. Without destructor or lazy start, so that a handler may read it.
    static LABEL: Cell<(Option<Kind>, [u8; LABEL_LEN])> = const { Cell::new((None, [0; LABEL_LEN])) };
}

thread_local! {
    /// Set once this thread has a filter.
    static CONFINED: Cell<bool> = const { Cell::new(false) };
}

thread_local! {
    /// Set once this thread has made a forbidden call.
    static ENDING: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn set_confined() {
    CONFINED.set(true);
}

pub(super) fn confined() -> bool {
    CONFINED.get()
}

/// The head of `siginfo_t` for SIGSYS on 64-bit Linux.
#[repr(C)]
struct SigsysInfo {
    signal: [libc::c_int; 4],
    address: *const libc::c_void,
    call: libc::c_int,
    architecture: libc::c_uint,
}

const _: () = assert!(mem::size_of::<SigsysInfo>() <= mem::size_of::<libc::siginfo_t>());

/// Installs the handler. `log` is a descriptor that stays open to the end, for the log file if there is one.
pub fn install(log: Option<i32>) -> io::Result<()> {
    log_to(log);
    let mut action: libc::sigaction = {
        // SAFETY: all-zero is a valid sigaction.
        unsafe { mem::zeroed() }
    };
    action.sa_sigaction = handle as extern "C" fn(_, _, _) as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;
    // SAFETY: `action` is whole, and `handle` is async-signal-safe: it formats on its stack, writes and exits.
    if unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Where the line goes besides standard error from now on.
pub fn log_to(log: Option<i32>) {
    LOG.store(log.unwrap_or(-1), Ordering::Relaxed);
}

/// Has `last` called before the process ends over a forbidden call, by the thread that made it: for what outlives the
/// process, such as a terminal's settings. It must be fit for a handler of signals. The first counts.
pub fn at_end(last: fn()) {
    let _ = LAST.set(last);
}

/// Tells the handler who this thread is.
pub(super) fn label(kind: Kind, name: &str) {
    let mut text = [0; LABEL_LEN];
    let len = name.len().min(LABEL_LEN);
    text[..len].copy_from_slice(&name.as_bytes()[..len]);
    LABEL.set((Some(kind), text));
}

/// A line of bounded length, put together without allocating.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn put(&mut self, text: &[u8]) {
        for &b in text.iter().take(self.bytes.len() - self.len) {
            self.bytes[self.len] = b;
            self.len += 1;
        }
    }

    fn number(&mut self, value: i64) {
        if value < 0 {
            self.put(b"-");
        }
        let mut digits = [0u8; 20];
        let (mut at, mut rest) = (digits.len(), value.unsigned_abs());
        loop {
            at -= 1;
            // A digit fits.
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.put(&digits[at..]);
    }
}

fn compose(call: i64, kind: Option<Kind>, thread: &[u8]) -> Line {
    let mut line = Line { bytes: [0; 256], len: 0 };
    line.put(b"godwit: seccomp: the ");
    line.put(kind.map_or("unknown", Kind::name).as_bytes());
    line.put(b" thread \"");
    line.put(thread);
    line.put(b"\" made the forbidden system call ");
    line.put(names::name(call).unwrap_or("of unknown name").as_bytes());
    line.put(b" (number ");
    line.number(call);
    line.put(b"); ending the process\n");
    line
}

extern "C" fn handle(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    if ENDING.try_with(|e| e.replace(true)).unwrap_or(true) {
        // What is put right at the end was forbidden too.
        // SAFETY: ends the process.
        unsafe { libc::_exit(EXIT_BAD_SYSCALL) }
    }
    // SAFETY: the kernel gives a whole siginfo_t, at least as long as `SigsysInfo` and laid out so for SIGSYS.
    let call = unsafe { (*info.cast::<SigsysInfo>()).call };
    let (kind, name) = LABEL.try_with(Cell::get).unwrap_or((None, [0; LABEL_LEN]));
    let thread = &name[..name.iter().position(|&b| b == 0).unwrap_or(LABEL_LEN)];
    let line = compose(i64::from(call), kind, thread);
    for fd in [2, LOG.load(Ordering::Relaxed)] {
        if fd >= 0 {
            // SAFETY: the bytes are this function's own. Nothing could be done about a failure.
            unsafe { libc::write(fd, line.bytes.as_ptr().cast(), line.len) };
        }
    }
    if let Some(last) = LAST.get() {
        last();
    }
    // SAFETY: ends the process at once, without running anybody's code.
    unsafe { libc::_exit(EXIT_BAD_SYSCALL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_call_and_thread() {
        let line = compose(libc::SYS_execve, Some(Kind::Vcpu), b"vcpu 0");
        let text = std::str::from_utf8(&line.bytes[..line.len]).unwrap();
        assert!(
            text.contains("the vcpu thread \"vcpu 0\" made the forbidden system call execve (number "),
            "{text}"
        );
        let line = compose(-3, None, &[b'x'; 16]);
        let text = std::str::from_utf8(&line.bytes[..line.len]).unwrap();
        assert!(text.contains("of unknown name (number -3)"), "{text}");
    }
}
