//! A machine: RAM, board and virtio devices, and a backend's CPUs, put together and run.
//!
//! Owned and changed by one thread (`control`'s). vCPU threads run guest code and touch device registers; the device
//! thread serves queues, timers and the console.
//!
//! ```text
//!             build                 resume                    (guest) reset, off, triple fault
//!   Spec ───────────► Paused ◄──────────────► Running ─────────────────────────► Event, vCPUs parked
//!                       │ boot / save / restore          pause
//! ```
//!
//! Pausing: vCPUs out of the backend; devices drained, so that nothing is in flight and every interrupt has reached the
//! chipset or the CPUs; then both clocks stopped. What is saved after that is complete.

mod boot_timer;
mod console;
mod cpus;
mod devices;
mod dirty;
mod error;
mod kinds;
mod limited;
mod output;
mod sections;
mod wiring;

pub use crate::board::boot::BootSource;
pub use console::Console;
pub use error::MachineError;
pub use kinds::{Kind, board_kinds, device_kinds};
pub use limited::Limited;
pub use output::HostOutput;

use crate::board::boot;
use crate::board::bus::BusError;
use crate::board::clock::BoardClock;
use crate::memory::ram::{self, Backing};
use crate::memory::{GuestRam, PAGE_SIZE};
use crate::plugin::{BackendVm, Plugin, Probe, VmConfig};
use crate::sandbox;
use crate::virtio::slots::DevicesConfig;
use crate::virtio::stats::Counted;
use cpus::Cpus;
use devices::Devices;
use godwit_state::{CpuState, Model, model::Features};
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Most vCPUs.
pub const MAX_VCPUS: u32 = 32;

/// What happened to a machine by itself. Its vCPUs stand still then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest asked for a reset.
    Reset,
    /// The guest switched itself off.
    PowerOff,
    /// A vCPU's triple fault.
    TripleFault {
        /// Which.
        vcpu: u32,
    },
    /// The backend cannot go on.
    Failed {
        /// Which vCPU.
        vcpu: u32,
        /// Its words.
        reason: String,
    },
    /// The escape key was typed on the console.
    Escape,
}

/// Told of [`Event`]s, on any thread; must not wait.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// How a machine is to be.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// CPU model; `None`: the best portable one that the backend offers here.
    pub model: Option<String>,
    /// TSC frequency in kHz; `None`: the backend's own.
    pub tsc_khz: Option<u64>,
    /// Go on where that frequency cannot be had.
    pub allow_tsc_mismatch: bool,
    /// What RAM is made of.
    pub backing: Backing,
    /// virtio devices.
    pub devices: DevicesConfig,
}

/// What a machine is, as far as whoever moves it must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM: (guest-physical start, bytes), in ascending order.
    pub regions: Vec<(u64, u64)>,
    /// CPU model.
    pub model: String,
    /// What the model has; `None`: it is "host", and the backend does not say.
    pub features: Option<Features>,
    /// TSC frequency in kHz.
    pub tsc_khz: u64,
}

/// Whether guest code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Built, booted or paused.
    Paused,
    /// Running (or stopped by itself a moment ago: an [`Event`] says so).
    Running,
}

/// A machine. Dropping it ends it.
pub struct Machine {
    // Order of fields is order of dropping: threads first, RAM last.
    cpus: Cpus,
    devices: Devices,
    vm: BackendVm,
    clock: Arc<BoardClock>,
    ram: GuestRam,
    shape: Shape,
    state: RunState,
}

/// The model to take where none is named: the best portable one.
fn default_model(probe: &Probe) -> Option<&String> {
    let portable = |m: &&String| Model::PORTABLE.iter().any(|p| p.name() == **m);
    probe.models.iter().rev().find(portable)
}

impl Machine {
    /// Builds a machine on `plugin`, paused, RAM all zero, vCPUs as after reset.
    ///
    /// # Errors
    /// Each names what cannot be had.
    pub fn build(
        spec: &Spec,
        plugin: &Arc<Plugin>,
        console: Console,
        events: EventSink,
    ) -> Result<Self, MachineError> {
        let probe = plugin.probe()?;
        let backend = plugin.descriptor().name.clone();
        let max = probe.max_vcpus.min(MAX_VCPUS);
        if !(1..=max).contains(&spec.vcpus) {
            return Err(MachineError::Vcpus { count: spec.vcpus, max, backend });
        }
        let model = match &spec.model {
            Some(m) if probe.models.contains(m) => m.clone(),
            Some(m) => {
                let offered = probe.models.join(", ");
                return Err(MachineError::Model { model: m.clone(), backend, offered });
            }
            None => default_model(&probe).cloned().ok_or(MachineError::NoModel { backend })?,
        };
        let ram = ram::allocate(spec.memory_bytes, &spec.backing)?;
        let clock = Arc::new(BoardClock::default());
        let gate = Arc::new(cpus::Gate::default());
        let power = wiring::power(&gate, &events);
        let (entry, entering) = sandbox::entering();
        let devices = Devices::build(&spec.devices, &ram, &clock, console, power, &events, &entry)?;
        let config = VmConfig {
            vcpus: spec.vcpus,
            model: model.clone(),
            tsc_khz: spec.tsc_khz,
            allow_tsc_mismatch: spec.allow_tsc_mismatch,
            kick_signal: cpus::kick_signal(),
        };
        let vm = plugin.create_vm(&config, wiring::host(&devices))?;
        for (slot, region) in (0..).zip(ram.iter()) {
            let host = region.get_host_address(vm_memory::MemoryRegionAddress(0))?;
            // SAFETY: RAM stays mapped until the machine is gone: `ram` is dropped after `vm` and all vCPUs.
            unsafe { vm.map_memory(slot, region.start_addr().0, region.len(), host)? };
            wiring::observe(region, &vm);
        }
        devices.connect(&vm)?;
        gate.expect(entering);
        let cpus = Cpus::start(&vm, spec.vcpus, gate, events, &entry)?;
        let regions: Vec<_> = ram.iter().map(|r| (r.start_addr().0, r.len())).collect();
        debug_assert!(regions.iter().all(|(gpa, len)| (gpa | len).is_multiple_of(PAGE_SIZE)));
        let named = Model::from_name(&model).filter(|m| *m != Model::Host).and_then(Model::features);
        let features = named.or(probe.host_features);
        let mut shape = Shape { vcpus: spec.vcpus, regions, model, features, tsc_khz: 0 };
        shape.tsc_khz = sections::tsc_khz(&vm)?;
        Ok(Machine { cpus, devices, vm, clock, ram, shape, state: RunState::Paused })
    }

    /// Loads a kernel and points vCPU 0 at it. Only for a machine that has not run.
    ///
    /// # Errors
    /// The kernel's, or the backend's refusal of the state.
    pub fn boot(&mut self, source: &BootSource) -> Result<(), MachineError> {
        let mut source = source.clone();
        for window in self.devices.slots().windows() {
            source.cmdline.push(' ');
            source.cmdline.push_str(&window.kernel_argument());
        }
        let tables = self.devices.acpi_tables(self.shape.vcpus);
        let first = boot::load(&self.ram, &source, &tables)?;
        let generation = &self.devices.generation;
        devices::lock(generation).boot(&self.ram).map_err(MachineError::host("VM generation ID"))?;
        let mut cpu = self.cpus.lock(0);
        let mut state = CpuState::from_sections(&cpu.save()?)?;
        state.regs = first.regs;
        state.system = first.system;
        cpu.load(&state.to_sections())?;
        Ok(())
    }

    /// Runs the guest, its time `advance_ns` later than when it was stopped. Nothing if it runs.
    ///
    /// # Errors
    /// The backend could not start its clock; the machine stays paused.
    pub fn resume(&mut self, advance_ns: u64) -> Result<(), MachineError> {
        if self.state == RunState::Running {
            return Ok(());
        }
        self.vm.start_clock(advance_ns)?;
        self.clock.start(advance_ns);
        let timers = self.devices.resume();
        self.cpus.resume();
        // Last: the device thread would take a processor that a vCPU wants, at a start.
        timers.wake();
        self.state = RunState::Running;
        Ok(())
    }

    /// Returns when all threads are bound by their filters. A guest that is resumed waits for that by itself; this is for
    /// whoever must know before.
    ///
    /// # Errors
    /// One could not be bound.
    pub fn bound(&self) -> Result<(), MachineError> {
        Ok(self.cpus.bound()?)
    }

    /// Stops the guest with nothing in flight. Nothing if it is paused.
    ///
    /// # Errors
    /// A disk's file does not answer: the machine runs on. A vCPU does not come back, or the backend could not stop its
    /// clock: the machine is as paused as it can be.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        if self.state == RunState::Paused {
            return Ok(());
        }
        self.cpus.pause()?;
        if let Err(busy) = self.devices.pause() {
            self.cpus.resume();
            return Err(busy.into());
        }
        self.state = RunState::Paused;
        self.clock.stop();
        self.vm.stop_clock()?;
        Ok(())
    }

    /// Running or paused.
    pub fn run_state(&self) -> RunState {
        self.state
    }

    /// What it is.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Its memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The backend.
    pub fn plugin(&self) -> &Arc<Plugin> {
        self.vm.plugin()
    }

    /// The backend's counters.
    pub fn counters(&self) -> Vec<(String, u64)> {
        self.vm.counters()
    }

    /// Has the log say how long the guest takes until it writes 123 to 0xc0000000.
    ///
    /// # Errors
    /// RAM is there.
    pub fn time_boot(&self) -> Result<(), MachineError> {
        use boot_timer::{ADDRESS, BootTimer, SIZE};
        if self.shape.regions.iter().any(|(start, len)| *start < ADDRESS + SIZE && start + len > ADDRESS) {
            return Err(MachineError::Bus(BusError { start: ADDRESS, len: SIZE }));
        }
        self.devices.add_memory(ADDRESS, SIZE, BootTimer::new())
    }

    /// What the devices have done.
    pub fn counted(&self) -> Vec<Counted> {
        let serial = devices::lock(&self.devices.serial).counts();
        let counts = vec![
            ("read_count", serial.read),
            ("write_count", serial.written),
            ("missed_write_count", serial.lost),
            ("rate_limiter_dropped_bytes", serial.dropped),
        ];
        let mut all = self.devices.slots().counted();
        all.push(Counted { group: "uart".into(), kind: "", counts });
        all
    }

    /// Lets vCPUs stand still for `permille` (0 to 999) thousandths of the time.
    pub fn throttle(&mut self, permille: u16) {
        self.cpus.throttle(permille.min(999));
    }

    /// Types Ctrl-Alt-Del. False: the guest has not taken the last one.
    pub fn ctrl_alt_del(&self) -> bool {
        self.devices.ctrl_alt_del()
    }

    /// virtio devices.
    pub fn slots(&self) -> &crate::virtio::slots::Slots {
        self.devices.slots()
    }
}
