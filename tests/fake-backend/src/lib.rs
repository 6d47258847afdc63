//! A backend without a CPU, for tests of the contract and the VMM.
//!
//! It keeps every state it is given and gives it back, byte for byte. Its vCPUs run a *script* instead of guest code: bytes in
//! guest memory at the vCPU's RIP, while the clock runs. [`Step`] has the language. So a test drives device accesses, halts,
//! panics and errors of a "guest" on any host, through the same contract as real ones.

#![forbid(unsafe_op_in_unsafe_fn)]

mod memory;
mod script;

use godwit_sdk::state::{
    ActivityV1, ClockV1, CpuState, DebugV1, EventsV1, FpuV1, LapicV1, Model, MsrsV1, RegsV1, SystemV1, TscV1,
};
use godwit_sdk::{
    Backend, Descriptor, Error, Exit, Host, Kick, MemorySlot, MsiRoute, Probe, Result, Vcpu, Vm, VmConfig,
};
use memory::Memory;
pub use script::Step;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const TSC_KHZ: u64 = 1_000_000;
const MAX_VCPUS: u32 = 32;

/// The fake backend.
#[derive(Debug)]
pub struct FakeBackend;

struct Clock {
    at: ClockV1,
    /// When it was started, if it runs.
    since: Option<Instant>,
}

impl Clock {
    fn now(&self) -> ClockV1 {
        let ns = self.since.map_or(0, |s| s.elapsed().as_nanos() as u64);
        let ticks = u128::from(ns) * u128::from(self.at.tsc_khz) / 1_000_000;
        ClockV1 {
            tsc: self.at.tsc.wrapping_add(ticks as u64),
            kvmclock_ns: self.at.kvmclock_ns.wrapping_add(ns),
            ..self.at
        }
    }
}

struct Shared {
    host: Host,
    vcpus: u32,
    clock: Mutex<Clock>,
    memory: Memory,
    made: Mutex<Vec<u32>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn utc_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

impl Backend for FakeBackend {
    type Vm = FakeVm;

    const DESCRIPTOR: Descriptor = Descriptor {
        name: "fake",
        summary: "no CPU at all, for tests",
        version: env!("CARGO_PKG_VERSION"),
        models: &[Model::X86_64],
        system_calls: &["futex", "clock_gettime"],
        ioctls: &[],
        vcpu_calls: &["futex", "clock_gettime"],
        vcpu_ioctls: &[],
        device_calls: &["futex"],
        device_ioctls: &[],
        device_nodes: &[],
        rank: 0,
    };

    fn probe() -> Result<Probe> {
        Ok(Probe {
            max_vcpus: MAX_VCPUS,
            models: vec![Model::X86_64],
            tsc_khz: TSC_KHZ,
            tsc_scaling: true,
            host_features: None,
        })
    }

    fn create_vm(config: &VmConfig, host: Host) -> Result<FakeVm> {
        if config.vcpus > MAX_VCPUS {
            return Err(Error::Unsupported(format!("{} vCPUs: there are at most {MAX_VCPUS}", config.vcpus)));
        }
        if config.model != Model::X86_64 {
            return Err(Error::Unsupported(format!("CPU model {}: there is only x86-64 here", config.model)));
        }
        let at = ClockV1 {
            tsc_khz: config.tsc_khz.unwrap_or(TSC_KHZ),
            tsc: 0,
            kvmclock_ns: 0,
            realtime_ns: utc_ns(),
        };
        Ok(FakeVm(Arc::new(Shared {
            host,
            vcpus: config.vcpus,
            clock: Mutex::new(Clock { at, since: None }),
            memory: Memory::default(),
            made: Mutex::default(),
        })))
    }
}

/// A VM: memory and a clock.
pub struct FakeVm(Arc<Shared>);

impl std::fmt::Debug for FakeVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeVm")
    }
}

impl FakeVm {
    fn stopped(&self) -> Result<MutexGuard<'_, Clock>> {
        let clock = lock(&self.0.clock);
        if clock.since.is_some() {
            return Err(Error::Invalid("the clock is running: stop it first".into()));
        }
        Ok(clock)
    }
}

impl Vm for FakeVm {
    type Vcpu = FakeVcpu;

    fn map_memory(&self, slot: MemorySlot) -> Result<()> {
        self.0.memory.map(slot)
    }

    fn unmap_memory(&self, slot: u32) -> Result<()> {
        self.0.memory.unmap(slot)
    }

    fn set_dirty_log(&self, slot: u32, on: bool) -> Result<()> {
        self.0.memory.set_log(slot, on)
    }

    fn take_dirty_log(&self, slot: u32, bitmap: &mut [u64]) -> Result<()> {
        self.0.memory.take_log(slot, bitmap)
    }

    fn memory_written(&self, _: u64, _: u64) {}

    fn signal_msi(&self, _: u64, _: u32) -> Result<()> {
        Ok(())
    }

    fn set_routes(&self, _: &[MsiRoute]) -> Result<()> {
        Ok(())
    }

    fn set_extint(&self, _: bool) {}

    fn inject_nmi(&self, vcpu: u32) -> Result<()> {
        if vcpu < self.0.vcpus {
            return Ok(());
        }
        Err(Error::Invalid(format!("there is no vCPU {vcpu}")))
    }

    fn stop_clock(&self) -> Result<()> {
        let mut clock = lock(&self.0.clock);
        if clock.since.is_none() {
            return Err(Error::Invalid("the clock is stopped already".into()));
        }
        clock.at = ClockV1 { realtime_ns: utc_ns(), ..clock.now() };
        clock.since = None;
        Ok(())
    }

    fn start_clock(&self, advance_ns: u64) -> Result<()> {
        let mut clock = self.stopped()?;
        let ticks = u128::from(advance_ns) * u128::from(clock.at.tsc_khz) / 1_000_000;
        clock.at.tsc = clock.at.tsc.wrapping_add(ticks as u64);
        clock.at.kvmclock_ns = clock.at.kvmclock_ns.wrapping_add(advance_ns);
        clock.since = Some(Instant::now());
        Ok(())
    }

    fn save_clock(&self) -> Result<ClockV1> {
        Ok(self.stopped()?.at)
    }

    fn load_clock(&self, at: &ClockV1) -> Result<()> {
        self.stopped()?.at = *at;
        Ok(())
    }

    fn create_vcpu(&self, id: u32) -> Result<FakeVcpu> {
        let mut made = lock(&self.0.made);
        if id >= self.0.vcpus || made.contains(&id) {
            return Err(Error::Invalid(format!("vCPU {id} is one too many, or there already")));
        }
        made.push(id);
        let state = CpuState {
            regs: RegsV1 { rip: 0xfff0, rflags: 2, ..Default::default() },
            system: SystemV1::reset(),
            msrs: MsrsV1::reset(id == 0),
            debug: DebugV1::default(),
            fpu: FpuV1::default(),
            avx: None,
            events: EventsV1 {
                activity: if id == 0 { ActivityV1::Running } else { ActivityV1::Uninitialized },
                ..Default::default()
            },
            lapic: LapicV1::reset(id),
            tsc: TscV1::default(),
        };
        Ok(FakeVcpu { vm: self.0.clone(), id, state, kick: Arc::default() })
    }
}

/// A vCPU: a state, and whether it has been kicked.
pub struct FakeVcpu {
    vm: Arc<Shared>,
    id: u32,
    state: CpuState,
    kick: Arc<FakeKick>,
}

impl std::fmt::Debug for FakeVcpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeVcpu").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Not signal-safe, which no test of this backend needs.
#[derive(Default)]
struct FakeKick {
    kicked: Mutex<bool>,
    changed: Condvar,
}

impl FakeKick {
    fn take(&self) -> bool {
        std::mem::take(&mut *lock(&self.kicked))
    }

    fn wait(&self) {
        let mut kicked = lock(&self.kicked);
        while !*kicked {
            kicked = self.changed.wait(kicked).unwrap_or_else(PoisonError::into_inner);
        }
        *kicked = false;
    }
}

impl Kick for FakeKick {
    fn kick(&self) {
        *lock(&self.kicked) = true;
        self.changed.notify_all();
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> Result<Exit> {
        while !self.kick.take() {
            if self.state.events.activity != ActivityV1::Running {
                self.kick.wait();
                return Ok(Exit::Kicked);
            }
            let rip = self.state.regs.rip;
            let (step, len) = self.vm.memory.step(rip);
            self.state.regs.rip = rip + len;
            match step {
                Step::Halt => self.state.events.activity = ActivityV1::Halted,
                Step::Out { port, value } => {
                    self.vm.host.pio_write(self.id, port, 1, u64::from(value));
                }
                Step::In { port } => {
                    self.state.regs.gpr[0] = self.vm.host.pio_read(self.id, port, 1);
                }
                Step::Store { gpa, value } => {
                    if !self.vm.memory.store(u64::from(gpa), value) {
                        self.vm.host.mmio_write(self.id, u64::from(gpa), 1, u64::from(value));
                    }
                }
                Step::Jump { to } => self.state.regs.rip = u64::from(to),
                Step::Shutdown => return Ok(Exit::Shutdown),
                Step::Fail => return Err(Error::Guest(format!("the script fails at {rip:#x}"))),
                Step::Panic => panic!("the script panics at {rip:#x}"),
            }
        }
        Ok(Exit::Kicked)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }

    fn save(&mut self) -> Result<CpuState> {
        Ok(self.state.clone())
    }

    fn load(&mut self, state: &CpuState) -> Result<()> {
        if state.avx.is_some() {
            return Err(Error::State("section x86.avx is there, but the CPU model lacks AVX".into()));
        }
        self.state = state.clone();
        Ok(())
    }
}

impl Drop for FakeVcpu {
    fn drop(&mut self) {
        lock(&self.vm.made).retain(|id| *id != self.id);
    }
}

godwit_sdk::export_backend!(FakeBackend);
