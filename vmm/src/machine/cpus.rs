//! vCPU threads: each owns its vCPU while it runs, and parks at the gate otherwise.

use super::{Event, EventSink, MachineError};
use crate::plugin::{BackendVcpu, BackendVm, Exit, Kicker};
use crate::sandbox::{Entering, Entry, Kind, SandboxError};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a vCPU may take to come out of the backend. Nothing there waits for the guest, so this is for bugs.
const PATIENCE: Duration = Duration::from_secs(30);
/// One turn of throttling: the vCPUs run for at most this long, then stand still for their share.
const SLICE: Duration = Duration::from_millis(10);
/// And that is never longer than this: a guest that is slowed down is not to take itself for stopped.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// How long vCPUs run and then stand still in a turn, to stand still for `permille` (1 to 999) thousandths of the time.
fn turn(permille: u32) -> (Duration, Duration) {
    let rest = (SLICE * permille / (1000 - permille)).min(LONGEST_REST);
    (rest * (1000 - permille) / permille, rest)
}

#[derive(Default)]
struct Wanted {
    run: bool,
    end: bool,
    parked: u32,
}

/// What vCPU threads wait at.
#[derive(Default)]
pub(super) struct Gate {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    /// A copy of `run`, for the fast path.
    open: AtomicBool,
    /// In thousandths.
    throttle: AtomicU16,
    /// Taken away at the end: they hold the VM, which holds the devices, whose power switch holds this gate.
    kickers: RwLock<Vec<Kicker>>,
    /// The machine's threads, until it is known whether they are bound by their filters.
    entering: Mutex<Option<Entering>>,
    bound: OnceLock<Result<(), Arc<SandboxError>>>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn set(&self, run: bool) {
        let mut w = self.lock();
        w.run = run;
        self.open.store(run, Ordering::SeqCst);
        // Who is woken wants the lock.
        drop(w);
        self.changed.notify_all();
    }

    fn kick(&self) {
        self.kickers.read().unwrap_or_else(|e| e.into_inner()).iter().for_each(Kicker::kick);
    }

    /// Has all vCPUs park soon. Any thread, also a vCPU's own inside a device access.
    pub(super) fn close(&self) {
        self.set(false);
        self.kick();
    }

    /// The threads for which [`Gate::bound`] waits. Before the gate is first opened.
    pub(super) fn expect(&self, entering: Entering) {
        *self.entering.lock().unwrap_or_else(|e| e.into_inner()) = Some(entering);
    }

    /// Returns when all of the machine's threads are bound by their filters.
    ///
    /// # Errors
    /// One could not be.
    pub(super) fn bound(&self) -> Result<(), Arc<SandboxError>> {
        let wait = || {
            let entering = self.entering.lock().unwrap_or_else(|e| e.into_inner()).take();
            entering.map_or(Ok(()), |e| e.wait().map_err(Arc::new))
        };
        self.bound.get_or_init(wait).clone()
    }

    /// Parks until opened; false: the machine ends.
    fn wait(&self) -> bool {
        let mut w = self.lock();
        w.parked += 1;
        self.changed.notify_all();
        while !w.run && !w.end {
            w = self.changed.wait(w).unwrap_or_else(|e| e.into_inner());
        }
        w.parked -= 1;
        !w.end
    }

    /// Stands still for its share of a throttled slice, or until the gate closes.
    fn rest(&self) {
        let permille = u32::from(self.throttle.load(Ordering::Relaxed));
        if permille == 0 {
            return;
        }
        let until = Instant::now() + turn(permille).1;
        let mut w = self.lock();
        while w.run
            && let Some(left) = until.checked_duration_since(Instant::now())
        {
            w = self.changed.wait_timeout(w, left).unwrap_or_else(|e| e.into_inner()).0;
        }
    }
}

struct Cpu {
    vcpu: Arc<Mutex<BackendVcpu>>,
    thread: Option<JoinHandle<()>>,
}

/// All vCPUs of a machine.
pub(super) struct Cpus {
    gate: Arc<Gate>,
    cpus: Vec<Cpu>,
    throttler: Option<JoinHandle<()>>,
}

/// The signal that backends may use to get vCPU threads out of the kernel, its handler installed.
pub(super) fn kick_signal() -> u32 {
    extern "C" fn nothing(_signal: libc::c_int) {}
    static SIGNAL: OnceLock<u32> = OnceLock::new();
    *SIGNAL.get_or_init(|| {
        let signal = libc::SIGRTMIN() + 1;
        // SAFETY: all zero is a valid sigaction; the handler does nothing; no SA_RESTART, so system calls are cut short.
        let set = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(signal, &action, std::ptr::null_mut())
        };
        if set == 0 { signal as u32 } else { 0 }
    })
}

fn run(id: u32, gate: &Gate, vcpu: &Mutex<BackendVcpu>, events: &EventSink) {
    while gate.wait() {
        // No guest instruction before all threads have their filters. Waited for here and not by whoever opens the gate: a
        // start has one turn fewer of threads that wait for each other.
        if let Err(why) = gate.bound() {
            gate.close();
            events(Event::Failed { vcpu: id, reason: why.to_string() });
            continue;
        }
        let mut vcpu = vcpu.lock().unwrap_or_else(|e| e.into_inner());
        while gate.open.load(Ordering::SeqCst) {
            let event = match vcpu.run() {
                Ok(Exit::Kicked) => {
                    gate.rest();
                    continue;
                }
                Ok(Exit::Shutdown) => Event::TripleFault { vcpu: id },
                Err(e) => Event::Failed { vcpu: id, reason: e.to_string() },
            };
            // A reset that came first has been told already; whoever hears a second event ignores it.
            gate.close();
            events(event);
        }
    }
}

impl Cpus {
    /// Makes the vCPUs and their threads, parked.
    pub(super) fn start(
        vm: &BackendVm,
        count: u32,
        gate: Arc<Gate>,
        events: EventSink,
        entry: &Entry,
    ) -> Result<Self, MachineError> {
        let made: Vec<BackendVcpu> = (0..count).map(|id| vm.create_vcpu(id)).collect::<Result<_, _>>()?;
        *gate.kickers.write().unwrap_or_else(|e| e.into_inner()) =
            made.iter().map(BackendVcpu::kicker).collect();
        let mut all = Cpus { gate, cpus: Vec::new(), throttler: None };
        for (id, vcpu) in (0..).zip(made) {
            let vcpu = Arc::new(Mutex::new(vcpu));
            let (gate, theirs, events) = (Arc::clone(&all.gate), Arc::clone(&vcpu), Arc::clone(&events));
            let (name, entry) = (format!("vcpu{id}"), entry.clone());
            let thread = std::thread::Builder::new()
                .name(name.clone())
                .spawn(move || {
                    if entry.enter(Kind::Vcpu, &name) {
                        run(id, &gate, &theirs, &events);
                    }
                })
                .map_err(MachineError::host("vCPU thread"))?;
            all.cpus.push(Cpu { vcpu, thread: Some(thread) });
        }
        Ok(all)
    }

    /// A parked vCPU.
    pub(super) fn lock(&self, id: usize) -> MutexGuard<'_, BackendVcpu> {
        self.cpus[id].vcpu.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn len(&self) -> usize {
        self.cpus.len()
    }

    /// See [`Gate::bound`].
    pub(super) fn bound(&self) -> Result<(), Arc<SandboxError>> {
        self.gate.bound()
    }

    pub(super) fn resume(&self) {
        self.gate.set(true);
    }

    /// Returns with all vCPUs parked.
    pub(super) fn pause(&self) -> Result<(), MachineError> {
        self.gate.close();
        let until = Instant::now() + PATIENCE;
        let mut w = self.gate.lock();
        while (w.parked as usize) < self.cpus.len() {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                drop(w);
                let busy = self.cpus.iter().position(|c| c.vcpu.try_lock().is_err()).unwrap_or(0);
                return Err(MachineError::Stuck { vcpu: busy as u32, seconds: PATIENCE.as_secs() });
            };
            w = self.gate.changed.wait_timeout(w, left).unwrap_or_else(|e| e.into_inner()).0;
        }
        Ok(())
    }

    pub(super) fn throttle(&mut self, permille: u16) {
        self.gate.throttle.store(permille, Ordering::SeqCst);
        if permille == 0 || self.throttler.as_ref().is_some_and(|t| !t.is_finished()) {
            return;
        }
        let gate = Arc::clone(&self.gate);
        let slices = move || {
            loop {
                let permille = u32::from(gate.throttle.load(Ordering::SeqCst));
                if permille == 0 {
                    return;
                }
                let (run, rest) = turn(permille);
                std::thread::sleep(run + rest);
                gate.kick();
            }
        };
        match std::thread::Builder::new().name("throttle".into()).spawn(slices) {
            Ok(thread) => self.throttler = Some(thread),
            Err(e) => tracing::warn!("vCPUs cannot be slowed down: {e}"),
        }
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        self.gate.throttle.store(0, Ordering::SeqCst);
        self.gate.lock().end = true;
        self.gate.close();
        for thread in self.cpus.iter_mut().filter_map(|c| c.thread.take()).chain(self.throttler.take()) {
            let _ = thread.join();
        }
        drop(std::mem::take(&mut *self.gate.kickers.write().unwrap_or_else(|e| e.into_inner())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn no_guest_runs_before_the_last_thread_is_bound() {
        let (entry, entering) = crate::sandbox::entering();
        let gate = Gate::default();
        gate.expect(entering);
        let late = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let vcpus = [(); 2].map(|()| {
                threads.spawn(|| {
                    gate.bound().unwrap();
                    assert!(late.load(Ordering::SeqCst));
                })
            });
            std::thread::sleep(Duration::from_millis(20));
            assert!(vcpus.iter().all(|v| !v.is_finished()));
            late.store(true, Ordering::SeqCst);
            assert!(entry.enter(Kind::Device, "test"));
        });
        gate.bound().unwrap();
    }
}
