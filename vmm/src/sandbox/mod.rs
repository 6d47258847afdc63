//! seccomp: what each kind of thread may ask of the host's kernel.
//!
//! `main` calls [`prepare`], and [`choose`]s a [`Policy`] once the backend is loaded; each thread calls
//! [`enter`] as its first act, the control thread when the machine is built and all its threads run. No guest
//! instruction runs before its vCPU's thread has its filter.
//!
//! ```text
//!   table (who may do what) ─┐
//!   ceiling ∩ descriptor ────┼─► Policy ─► bpf ─► seccomp(2) per thread
//!   json, compiled (a file) ─┘                     └─ forbidden: SIGSYS ─► handler: name it, exit 148
//! ```
//!
//! A filter also binds the threads that its thread starts later, and filters only add up: what a migration thread may
//! do, the control thread that starts it must be allowed too.

pub mod bpf;
pub mod ceiling;
mod compiled;
pub mod handler;
mod json;
mod layout;
pub mod names;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{OnceLock, mpsc};

use bpf::{Answer, Instruction, Rule, Target};
pub use ceiling::{BackendNeeds, CeilingError};
pub use compiled::CompiledError;
pub use json::JsonError;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Owns the machine; the process's first thread too.
    Control,
    /// Serves the API socket.
    Api,
    /// Runs the devices' event loop.
    Device,
    /// Runs guest code.
    Vcpu,
    /// Sends the guest away, and each stream of a migration.
    Migrate,
    /// Waits for SIGTERM and its kin.
    Signals,
    /// The first thread while a guest arrives: what `Control`, `Migrate` and `Api` may, for it starts threads of those
    /// kinds and becomes the control thread, whose filter then lies on top.
    Receive,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 7] =
        [Kind::Control, Kind::Api, Kind::Device, Kind::Vcpu, Kind::Migrate, Kind::Signals, Kind::Receive];

    /// Its name in messages and documentation.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Control => "control",
            Kind::Api => "api",
            Kind::Device => "device",
            Kind::Vcpu => "vcpu",
            Kind::Migrate => "migrate",
            Kind::Signals => "signals",
            Kind::Receive => "receive",
        }
    }

    /// The kinds whose rows of the table it has.
    #[must_use]
    pub fn rows(self) -> &'static [Kind] {
        match self {
            Kind::Control => &[Kind::Control],
            Kind::Api => &[Kind::Api],
            Kind::Device => &[Kind::Device],
            Kind::Vcpu => &[Kind::Vcpu],
            Kind::Migrate => &[Kind::Migrate],
            Kind::Signals => &[Kind::Signals],
            Kind::Receive => &[Kind::Receive, Kind::Control, Kind::Migrate, Kind::Api],
        }
    }
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Not an architecture whose number for filters is known.
    #[error("no seccomp filters for this host's architecture ({0}); --no-seccomp runs without them")]
    Architecture(&'static str),
    /// The file of `--seccomp-filter` is no good.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The compiled file of `--seccomp-filter` is no good.
    #[error(transparent)]
    Compiled(#[from] CompiledError),
    /// More rules than the kernel takes.
    #[error("the filter of the {0} threads is too long")]
    TooLong(&'static str),
    /// No filters on this host at all.
    #[error(
        "this host takes no seccomp filters ({0}): a guest that broke out could ask anything of the kernel. \
         Say --no-seccomp to run without them"
    )]
    Unavailable(io::Error),
    /// The kernel refused.
    #[error("the kernel refused the seccomp filter of a {0} thread: {1}; --no-seccomp runs without")]
    Install(&'static str, io::Error),
}

/// Rules of one kind of thread, before compiling.
#[derive(Clone, Debug)]
pub struct Filter {
    rules: Vec<Rule>,
    default: Answer,
}

fn target() -> Result<Target, SandboxError> {
    Target::host().ok_or(SandboxError::Architecture(std::env::consts::ARCH))
}

/// The filters of all kinds of thread. Each is compiled by the threads that install it: few kinds ever run.
#[derive(Clone, Debug, Default)]
pub enum Policy {
    /// None are installed.
    #[default]
    Off,
    /// The table's, and what the backend asks for.
    Builtin(BackendNeeds, Target),
    /// A file's, as the kernel takes them. A kind that is not there, or whose program is empty, is not bound.
    Given(BTreeMap<Kind, Vec<Instruction>>),
}

impl Policy {
    /// The filters of the table and of this backend.
    pub fn builtin(needs: &BackendNeeds) -> Result<Self, SandboxError> {
        Ok(Policy::Builtin(needs.clone(), target()?))
    }

    /// The filters of a file (`--seccomp-filter`), nothing added to them: JSON, or what Firecracker's compiler made of it.
    pub fn from_file(bytes: &[u8]) -> Result<Self, SandboxError> {
        // JSON has no zero bytes, and numbers of eight bytes have.
        let Some(text) = std::str::from_utf8(bytes).ok().filter(|t| !t.contains('\0')) else {
            return Ok(Policy::Given(compiled::parse(bytes)?));
        };
        let target = target()?;
        // What is wrong with any of them is said now.
        let programs = json::parse(text)?.into_iter().map(|(kind, filter)| {
            let code = bpf::compile(&filter.rules, filter.default, target);
            code.map(|code| (kind, code)).ok_or(SandboxError::TooLong(kind.name()))
        });
        Ok(Policy::Given(programs.collect::<Result<_, _>>()?))
    }

    /// The program for a kind of thread; `None`: it is not bound.
    fn program(&self, kind: Kind) -> Result<Option<Vec<Instruction>>, SandboxError> {
        match self {
            Policy::Off => Ok(None),
            Policy::Builtin(needs, target) => {
                let code = bpf::compile(&rules(kind, needs), Answer::Trap, *target);
                code.map(Some).ok_or(SandboxError::TooLong(kind.name()))
            }
            Policy::Given(programs) => Ok(programs.get(&kind).filter(|code| !code.is_empty()).cloned()),
        }
    }

    /// Whether there are filters at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !matches!(self, Policy::Off)
    }

    /// Binds the calling thread, for good, and all that it starts from now on. `name` is shown if it oversteps.
    pub fn install(&self, kind: Kind, name: &str) -> Result<(), SandboxError> {
        handler::label(kind, name);
        let Some(program) = self.program(kind)? else { return Ok(()) };
        let failed = |e| SandboxError::Install(kind.name(), e);
        let len = libc::c_ushort::try_from(program.len()).map_err(|_| SandboxError::TooLong(kind.name()))?;
        // The kernel only reads it.
        let fprog = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
        let (one, zero): (libc::c_ulong, libc::c_ulong) = (1, 0);
        // SAFETY: numbers only.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, one, zero, zero, zero) } != 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: `fprog` describes `program`, which lives through the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0 as libc::c_uint,
                &raw const fprog,
            )
        };
        if result != 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        handler::set_confined();
        Ok(())
    }
}

/// For `main`, before there is another thread and before a plugin is loaded: makes forbidden calls name themselves (see
/// [`handler::install`] for `log`), and keeps panics from reading symbol files, for which the filter would end the
/// process: the plugins' copies of std heed only the environment.
pub fn prepare(log: Option<i32>) -> io::Result<()> {
    for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        // SAFETY: no other thread is there to read the environment.
        unsafe { std::env::remove_var(name) };
    }
    // One heap: the C library need not count processors at some thread's first allocation, nor make a heap for each thread,
    // which would cost every start four calls and some pages a thread. And it is not cut shorter: the library would read the
    // kernel's overcommit setting first.
    #[cfg(target_env = "gnu")]
    // SAFETY: two numbers, before there is another thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
    // The auxiliary vector, where they find the vDSO: read once, now, and not by whoever comes first.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let _ = rustix::param::page_size();
    handler::install(log)
}

/// The process's filters: one process runs one guest.
static POLICY: OnceLock<Policy> = OnceLock::new();

/// Settles the filters of all threads that [`enter`] from now on. Once: false if they were settled before.
pub fn choose(policy: Policy) -> bool {
    POLICY.set(policy).is_ok()
}

/// Whether this kernel takes filters. User-mode emulators do not, nor does Linux on sparc64.
pub fn available() -> Result<(), SandboxError> {
    // Where there are filters, the one at no address is missed.
    let nothing: *const libc::sock_fprog = std::ptr::null();
    // SAFETY: the kernel refuses to read at null, and so changes nothing.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0 as libc::c_uint, nothing)
    };
    match io::Error::last_os_error() {
        e if result == -1 && e.raw_os_error() == Some(libc::EFAULT) => Ok(()),
        e => Err(SandboxError::Unavailable(e)),
    }
}

/// Binds the calling thread to the filter of its kind, if filters were chosen: see [`Policy::install`]. A thread's first
/// act, except the control thread's, which enters when its machine is built.
pub fn enter(kind: Kind, name: &str) -> Result<(), SandboxError> {
    POLICY.get().map_or(Ok(()), |policy| policy.install(kind, name))
}

/// A thread's promise to bind itself first; a clone for each of several.
#[derive(Clone)]
pub struct Entry(mpsc::Sender<Result<(), SandboxError>>);

/// Where the threads say whether they are bound.
pub struct Entering(mpsc::Receiver<Result<(), SandboxError>>);

/// What is given to threads that are started, and what to wait at for them.
#[must_use]
pub fn entering() -> (Entry, Entering) {
    let (tell, told) = mpsc::channel();
    (Entry(tell), Entering(told))
}

impl Entry {
    /// See [`enter`]. False: it could not, and the thread must end.
    pub fn enter(self, kind: Kind, name: &str) -> bool {
        let filter = enter(kind, name);
        let bound = filter.is_ok();
        // Nobody may wait for it any more.
        let _ = self.0.send(filter);
        bound
    }
}

impl Entering {
    /// Returns when all threads that have an [`Entry`] are bound.
    pub fn wait(self) -> Result<(), SandboxError> {
        self.0.iter().collect()
    }
}

/// Whether the calling thread has a filter. What a filter would end the process for is then better refused.
#[must_use]
pub fn confined() -> bool {
    handler::confined()
}

/// Whether the calling thread may set the terminal: always with the table's filters, perhaps not with a user's own. For
/// handlers of signals too.
#[must_use]
pub fn may_set_terminal() -> bool {
    !confined() || POLICY.get().is_some_and(|policy| matches!(policy, Policy::Builtin(..)))
}

fn rules(kind: Kind, needs: &BackendNeeds) -> Vec<Rule> {
    // The backend's first: KVM_RUN is the most frequent of all.
    let mut all = needs.rules(kind).to_vec();
    let own = table::TABLE.iter().filter(|r| kind.rows().iter().any(|k| r.kinds.contains(k)));
    all.extend(own.flat_map(table::Row::rules).filter(|rule| !needs.rules(kind).contains(rule)));
    let own_process = bpf::Check::Eq { index: 0, value: std::process::id() };
    for rule in all.iter_mut().filter(|rule| rule.number == libc::SYS_tgkill) {
        rule.checks.push(own_process);
    }
    all
}

/// The table as a page of documentation.
#[must_use]
pub fn describe() -> String {
    let mut out = String::from(HEAD);
    let mut counts = BTreeMap::new();
    for row in table::TABLE {
        let kinds: Vec<&str> = row.kinds.iter().map(|k| k.name()).collect();
        let kinds = if kinds.len() == Kind::ALL.len() { "all".to_owned() } else { kinds.join(", ") };
        let mut conditions: Vec<String> = row
            .checks
            .iter()
            .map(|c| match *c {
                bpf::Check::Eq { index, value } => format!("arg{index} = {value:#x}"),
                bpf::Check::Eq64 { index, value } => format!("arg{index} = {value:#x}"),
                bpf::Check::Ne { index, value } => format!("arg{index} ≠ {value:#x}"),
                bpf::Check::Masked { index, mask, value } => format!("arg{index} & {mask:#x} = {value:#x}"),
                // Only a user's own filters have these.
                other => format!("{other:?}"),
            })
            .collect();
        if let Answer::Errno(n) = row.answer {
            conditions.push(format!("fails with error {n}"));
        }
        let conditions = conditions.join(", ");
        let exempt: Vec<&str> = row.kept.iter().map(|k| k.name()).collect();
        let exempt = match exempt.len() {
            0 => String::new(),
            n if n == row.kinds.len() => row.because.to_owned(),
            _ => format!("{}: {}", exempt.join(", "), row.because),
        };
        out.push_str(&format!("| `{}` | {kinds} | {conditions} | {} | {exempt} |\n", row.call, row.caller));
        if row.numbers().next().is_none() {
            continue;
        }
        for kind in row.kinds {
            let (all, used) = counts.entry(*kind).or_insert((BTreeSet::new(), BTreeSet::new()));
            all.insert(row.call);
            if !row.kept.contains(kind) {
                used.insert(row.call);
            }
        }
    }
    out.push_str("\n| thread | system calls, without the backend's | of them only kept | Firecracker's |\n|---|---|---|---|\n");
    for (kind, (all, used)) in counts {
        let theirs =
            FIRECRACKERS.iter().find(|(k, _)| *k == kind).map_or("".to_owned(), |(_, n)| n.to_string());
        out.push_str(&format!(
            "| {} | {} | {} | {theirs} |\n",
            kind.name(),
            all.len(),
            all.len() - used.len()
        ));
    }
    out
}

/// How many system calls Firecracker's published filters for x86-64 have, by the kind of thread that does the same.
const FIRECRACKERS: [(Kind, usize); 3] = [(Kind::Control, 50), (Kind::Api, 31), (Kind::Vcpu, 27)];

const HEAD: &str = "\
# System calls of each thread

Made from `vmm/src/sandbox/table.rs` by its test; numbers are those of x86-64. A call that is not here ends the process with code 148
and a line that names it. The backend's own calls come on top for the control, device and vcpu threads: what its descriptor asks for
on that kind of thread, as far as `vmm/src/sandbox/ceiling.rs` allows it. While a guest arrives the first thread has the kind `receive`: the
rows of control, migrate and api, and those that name it; then control's filter comes on top. To add a call: one row with its
caller, nothing else; what is missing is named with its thread as the process ends.

On s390x the kernel finds some calls' arguments in memory, where no filter sees them: there `mmap` has no condition, and the C library makes
the calls about sockets through `socketcall`, of which a filter sees only which it is: `socket` has no condition either. Linux on
sparc64 takes no filters at all; godwit says so there, and starts only with `--no-seccomp`.

`scripts/rules` runs the test suites with a tracer beside each godwit, and fails if a rule of the table was not
used. Exempt is only a rule whose last column says why, for the threads that it names (without names: for all of them). It lists which of a backend's
requests were not used: of KVM's that do the same, a host has some.

| call | threads | only if | who makes it | kept, though not always seen, because |
|---|---|---|---|---|
";

#[cfg(test)]
mod tests;
