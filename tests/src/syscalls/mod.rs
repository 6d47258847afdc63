//! Which rules of the filters a running godwit uses: a tracer by ptrace, the production filters untouched.
//!
//! With `GODWIT_SYSCALLS=DIR` in its environment the harness puts a tracer beside each godwit that it starts; the tracer
//! writes what it saw to DIR, by rows of the table. A call counts for the kind of thread
//! that made it, from the moment that the thread has its filter. `scripts/rules` runs the suites so and has [`unused`]
//! compare what was seen with the table.

use godwit_vmm::plugin::Descriptor;
use godwit_vmm::sandbox::{Kind, names, table};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::path::Path;

/// Directory for what is seen; the tracer is only there if it is set.
pub const DIR: &str = "GODWIT_SYSCALLS";

/// Stands for the kind of a thread whose name [`kind_of`] does not know.
const UNKNOWN: &str = "unknown";

/// What a thread's name says of its kind, the first thread's aside. A new kind of thread gets a line here.
pub fn kind_of(thread: &str) -> Option<Kind> {
    let begins = |with| thread.starts_with(with);
    match thread {
        "api" => Some(Kind::Api),
        "devices" => Some(Kind::Device),
        "migrate" => Some(Kind::Migrate),
        "signals" => Some(Kind::Signals),
        "receive" => Some(Kind::Receive),
        _ if begins("vcpu") => Some(Kind::Vcpu),
        _ if begins("disk") => Some(Kind::Device),
        _ => None,
    }
}

/// What one process was seen doing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Rows of the table (by index) that a thread of that kind's filter used.
    pub rows: BTreeSet<(String, usize)>,
    /// All calls: kind, name and, for `ioctl`, the request.
    pub calls: BTreeSet<(String, String, u64)>,
    /// Calls that no row of the kind fits: the backend's, or forbidden ones.
    pub others: BTreeSet<(String, String, [u64; 3])>,
}

impl Seen {
    /// Adds what another process did.
    pub fn merge(&mut self, other: Seen) {
        self.rows.extend(other.rows);
        self.calls.extend(other.calls);
        self.others.extend(other.others);
    }

    fn add(&mut self, kind: Kind, number: i64, args: &[u64; 6]) {
        let name = names::name(number).map_or_else(|| format!("number {number}"), str::to_owned);
        let request = if name == "ioctl" { args[1] & 0xffff_ffff } else { 0 };
        let who = kind.name().to_owned();
        self.calls.insert((who.clone(), name.clone(), request));
        let mut fits = false;
        for (at, row) in table::TABLE.iter().enumerate() {
            let its = kind.rows().iter().any(|k| row.kinds.contains(k));
            if its && row.numbers().any(|n| n == number) && row.checks.iter().all(|c| c.holds(args)) {
                fits = true;
                // A kind that has another's rows uses them in the other's name.
                for k in kind.rows().iter().filter(|k| row.kinds.contains(k)) {
                    if kind != Kind::Receive || *k == Kind::Receive {
                        self.rows.insert((k.name().to_owned(), at));
                    }
                }
            }
        }
        if !fits {
            self.others.insert((who, name, [args[0], args[1] & 0xffff_ffff, args[2]]));
        }
    }

    /// As text for a file.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for (kind, row) in &self.rows {
            out.push_str(&format!("row {kind} {row}\n"));
        }
        for (kind, call, request) in &self.calls {
            out.push_str(&format!("call {kind} {call} {request}\n"));
        }
        for (kind, call, a) in &self.others {
            out.push_str(&format!("other {kind} {call} {} {} {}\n", a[0], a[1], a[2]));
        }
        out
    }

    /// Reads such text; what is cut short is left out.
    pub fn from_text(text: &str) -> Self {
        let mut seen = Seen::default();
        for line in text.lines() {
            let f: Vec<&str> = line.split(' ').collect();
            let n = |i: usize| f.get(i).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
            match f[..] {
                ["row", kind, _] => drop(seen.rows.insert((kind.into(), n(2) as usize))),
                ["call", kind, call, _] => drop(seen.calls.insert((kind.into(), call.into(), n(3)))),
                ["other", kind, call, ..] if f.len() == 6 => {
                    seen.others.insert((kind.into(), call.into(), [n(3), n(4), n(5)]));
                }
                _ => {}
            }
        }
        seen
    }

    /// All that was written to a directory.
    pub fn of(dir: &Path) -> Self {
        let mut all = Seen::default();
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            all.merge(Seen::from_text(&std::fs::read_to_string(entry.path()).unwrap_or_default()));
        }
        all
    }
}

/// What the filters allow and nobody was seen using, each as a line for people; and how many rules there are and how many
/// of them are kept for a reason of their own (see [`table::Row::kept`]).
pub fn unused(seen: &Seen) -> (Vec<String>, usize, usize) {
    let (mut missing, mut rules, mut kept) = (Vec::new(), 0, 0);
    for (_, name, _) in seen.others.iter().filter(|(kind, ..)| kind == UNKNOWN) {
        missing.push(format!("the thread {name}: of which kind is it? (syscalls::kind_of)"));
    }
    for (at, row) in table::TABLE.iter().enumerate().filter(|(_, row)| row.numbers().next().is_some()) {
        for kind in row.kinds {
            rules += 1;
            if row.kept.contains(kind) {
                kept += 1;
            } else if !seen.rows.contains(&(kind.name().to_owned(), at)) {
                missing.push(format!("{}: {} {:x?} ({})", kind.name(), row.call, row.checks, row.caller));
            }
        }
    }
    (missing, rules, kept)
}

/// The same for a backend's calls and requests, as far as they go beyond the table's; and how many those are.
pub fn unused_by_backend(seen: &Seen, backend: &Descriptor) -> (Vec<String>, usize) {
    let (mut missing, mut rules) = (Vec::new(), 0);
    for (kind, calls, ioctls) in [
        (Kind::Control, &backend.system_calls, &backend.ioctls),
        (Kind::Vcpu, &backend.vcpu.system_calls, &backend.vcpu.ioctls),
        (Kind::Device, &backend.device.system_calls, &backend.device.ioctls),
    ] {
        let in_table = |call: &str| {
            table::TABLE.iter().any(|r| r.call == call && r.kinds.contains(&kind) && r.checks.is_empty())
        };
        let beyond = calls.iter().filter(|c| *c != "ioctl" && !in_table(c) && names::number(c).is_some());
        let wanted = beyond.map(|c| (c.clone(), 0)).chain(ioctls.iter().map(|r| ("ioctl".to_owned(), *r)));
        for (call, request) in wanted {
            rules += 1;
            if !seen.calls.contains(&(kind.name().to_owned(), call.clone(), request)) {
                missing.push(format!("{}: {call} {request:#x} (the backend {})", kind.name(), backend.name));
            }
        }
    }
    (missing, rules)
}

/// `struct ptrace_syscall_info` of a call's entry.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    ip: u64,
    sp: u64,
    number: u64,
    args: [u64; 6],
    rest: [u64; 2],
}

const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const ENTRY: u8 = 1;

fn request(request: libc::c_uint, pid: i32, address: usize, data: usize) -> i64 {
    // SAFETY: addresses are null or this function's callers' own.
    i64::from(unsafe { libc::ptrace(request as _, pid, address as *mut c_void, data as *mut c_void) } as i32)
}

/// Follows process `pid`, a stranger that lets itself be traced, to its end. `ready` is called once it is seized.
pub fn follow(pid: i32, ready: impl FnOnce()) -> Seen {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEEXEC;
    let mut seen = Seen::default();
    if request(libc::PTRACE_SEIZE as _, pid, 0, options as usize) != 0 {
        ready();
        return seen;
    }
    request(libc::PTRACE_INTERRUPT as _, pid, 0, 0);
    let mut ready = Some(ready);
    let mut kinds: BTreeMap<i32, Option<Kind>> = BTreeMap::new();
    let mut installs: BTreeSet<i32> = BTreeSet::new();
    loop {
        let mut status = 0;
        // SAFETY: `status` is this function's.
        let tid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
        if tid < 0 {
            return seen;
        }
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        kinds.entry(tid).or_insert(None);
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        let mut pass = 0;
        if signal == (libc::SIGTRAP | 0x80) {
            let mut info = Info::default();
            let size = size_of::<Info>();
            request(GET_SYSCALL_INFO, tid, size, (&raw mut info) as usize);
            if info.op == ENTRY {
                let number = info.number as i64;
                if let Some(kind) = kinds[&tid] {
                    seen.add(kind, number, &info.args);
                }
                if number == libc::SYS_seccomp && info.args[0] == u64::from(libc::SECCOMP_SET_MODE_FILTER) {
                    let name = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"));
                    let receives = std::fs::read(format!("/proc/{pid}/cmdline"))
                        .is_ok_and(|c| c.split(|b| *b == 0).any(|w| w == b"receive"));
                    let first = installs.insert(tid);
                    let main = if receives && first { Kind::Receive } else { Kind::Control };
                    let name = name.unwrap_or_default().trim().replace(' ', "-");
                    let kind = if tid == pid { Some(main) } else { kind_of(&name) };
                    if kind.is_none() {
                        seen.others.insert((UNKNOWN.into(), name, [0; 3]));
                    }
                    kinds.insert(tid, kind);
                }
            }
        } else if event == libc::PTRACE_EVENT_CLONE {
            let mut child: libc::c_ulong = 0;
            request(libc::PTRACE_GETEVENTMSG as _, tid, 0, (&raw mut child) as usize);
            // Its starter's filter binds it from the first.
            let kind = kinds[&tid];
            kinds.insert(child as i32, kind);
        } else if event == libc::PTRACE_EVENT_STOP {
            if let Some(ready) = ready.take() {
                ready();
            }
            if [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal) {
                request(libc::PTRACE_LISTEN as _, tid, 0, 0);
                continue;
            }
        } else if event == 0 {
            pass = signal;
        }
        request(libc::PTRACE_SYSCALL as _, tid, 0, pass as usize);
    }
}
