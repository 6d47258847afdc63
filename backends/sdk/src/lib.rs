//! Safe traits for authors of CPU backends, and the macro that exports one.
//!
//! A backend implements [`Backend`], [`Vm`] and [`Vcpu`] and its plugin crate says
//! `godwit_sdk::export_backend!(MyBackend);`. This crate turns that into the C table of `godwit-abi`: it checks
//! every size and flag, catches panics, carries errors as text, and moves state as the postcard sections of
//! `godwit-state`. What each method may assume (threads, stopped clocks) is said in `godwit-abi`; the
//! traits repeat it only where the types don't show it.
//!
//! ```text
//!   VMM ── C table ──► table.rs ── &dyn-free calls ──► your Backend/Vm/Vcpu
//!    ▲                                                     │
//!    └────────── HostTable ◄── Host (host.rs) ◄────────────┘
//! ```

mod error;
mod host;
mod table;

pub use error::Error;
pub use godwit_abi as abi;
pub use godwit_state as state;
pub use host::{Host, LogLevel};
pub use table::{entry, guarded, vm_ref};

use godwit_state::{ClockV1, CpuState, Model, model::Features};
use std::sync::Arc;

/// What every fallible method of a backend returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What a backend says of itself, without a VM.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// Short name, `[a-z0-9-]`.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// The backend's own version.
    pub version: &'static str,
    /// CPU models it can offer on some host.
    pub models: &'static [Model],
    /// Linux system calls its threads make once the VM runs, by name.
    pub system_calls: &'static [&'static str],
    /// ioctl requests it makes once the VM runs.
    pub ioctls: &'static [u64],
    /// Those of `system_calls` that its vCPU threads make.
    pub vcpu_calls: &'static [&'static str],
    /// Those of `ioctls` that they make.
    pub vcpu_ioctls: &'static [u64],
    /// Those of `system_calls` that the functions called by the device thread make: MSI, ExtINT, memory written.
    pub device_calls: &'static [&'static str],
    /// Those of `ioctls` that they make.
    pub device_ioctls: &'static [u64],
    /// Device nodes it opens, by absolute path.
    pub device_nodes: &'static [&'static str],
    /// Preference among usable backends, higher first.
    pub rank: u32,
}

/// What a backend can do on this host.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Greatest number of vCPUs in a VM.
    pub max_vcpus: u32,
    /// Models it can offer here, weakest first.
    pub models: Vec<Model>,
    /// Frequency a new guest's TSC would have, in kHz.
    pub tsc_khz: u64,
    /// It can give a guest any other frequency too.
    pub tsc_scaling: bool,
    /// What [`Model::Host`] has here; `None`: it is not on offer.
    pub host_features: Option<Features>,
}

/// How a VM is to be.
#[derive(Debug, Clone, Copy)]
pub struct VmConfig {
    /// Number of vCPUs; ids and APIC ids are 0 to this - 1.
    pub vcpus: u32,
    /// What the guest sees.
    pub model: Model,
    /// Frequency of the guest's TSC in kHz, if it is given.
    pub tsc_khz: Option<u64>,
    /// Take the host's frequency where the given one cannot be had.
    pub allow_tsc_mismatch: bool,
    /// Signal reserved for kicking vCPU threads out of the kernel.
    pub kick_signal: Option<i32>,
}

/// A stretch of guest memory. See [`abi::MemorySlot`] for who owns what `host` points to and how it may be used.
#[derive(Debug, Clone, Copy)]
pub struct MemorySlot {
    /// The VMM's number for it, below 32.
    pub slot: u32,
    /// Guest-physical address, page-aligned.
    pub gpa: u64,
    /// Bytes, a multiple of the guest's page size.
    pub len: u64,
    /// The mapping in this process.
    pub host: *mut u8,
    /// Guest writes go to the MMIO callback.
    pub read_only: bool,
}

// SAFETY: the pointer is only an address; using it is the backend's own unsafe act.
unsafe impl Send for MemorySlot {}
// SAFETY: as above.
unsafe impl Sync for MemorySlot {}

/// One line's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiRoute {
    /// Line number.
    pub gsi: u32,
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// The line is masked.
    pub masked: bool,
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Its [`Kick`] was used.
    Kicked,
    /// Triple fault.
    Shutdown,
}

/// A CPU backend.
pub trait Backend: 'static {
    /// Its VMs.
    type Vm: Vm;
    /// What it is.
    const DESCRIPTOR: Descriptor;
    /// What it can do on this host.
    ///
    /// # Errors
    /// [`Error::Unusable`] with what is missing and what to do about it.
    fn probe() -> Result<Probe>;
    /// Makes a VM, its clock stopped at zero.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names a model, count or frequency that cannot be had here.
    fn create_vm(config: &VmConfig, host: Host) -> Result<Self::Vm>;
}

/// A VM: memory, interrupt routing and time. All methods take `&self`: they come from several threads.
pub trait Vm: Send + Sync + 'static {
    /// Its vCPUs.
    type Vcpu: Vcpu;
    /// Adds a slot; no vCPU is running.
    fn map_memory(&self, slot: MemorySlot) -> Result<()>;
    /// Removes a slot; no vCPU is running.
    fn unmap_memory(&self, slot: u32) -> Result<()>;
    /// Starts or stops logging guest writes to a slot.
    fn set_dirty_log(&self, slot: u32, on: bool) -> Result<()>;
    /// ORs the slot's log into `bitmap` and clears it.
    fn take_dirty_log(&self, slot: u32, bitmap: &mut [u64]) -> Result<()>;
    /// A device has written guest memory.
    fn memory_written(&self, gpa: u64, len: u64);
    /// Delivers a message to the LAPICs.
    fn signal_msi(&self, address: u64, data: u32) -> Result<()>;
    /// Replaces the routes.
    fn set_routes(&self, routes: &[MsiRoute]) -> Result<()>;
    /// Level of the 8259s' output.
    fn set_extint(&self, level: bool);
    /// Raises NMI on a vCPU.
    fn inject_nmi(&self, vcpu: u32) -> Result<()>;
    /// Stops guest time.
    fn stop_clock(&self) -> Result<()>;
    /// Starts guest time again, `advance_ns` later than it was stopped.
    fn start_clock(&self, advance_ns: u64) -> Result<()>;
    /// The clock at the instant it was stopped.
    fn save_clock(&self) -> Result<ClockV1>;
    /// Sets the stopped clock.
    fn load_clock(&self, clock: &ClockV1) -> Result<()>;
    /// Makes a vCPU.
    fn create_vcpu(&self, id: u32) -> Result<Self::Vcpu>;
    /// The C table of an extension, or null.
    fn extension(&self, name: &str) -> *const core::ffi::c_void {
        let _ = name;
        core::ptr::null()
    }
}

/// A vCPU.
pub trait Vcpu: Send + 'static {
    /// Runs guest code until kicked or shut down. See `vcpu_run` of [`abi::BackendTable`].
    fn run(&mut self) -> Result<Exit>;
    /// What kicks it: asked for once, when it is made.
    fn kicker(&self) -> Arc<dyn Kick>;
    /// All of its state.
    fn save(&mut self) -> Result<CpuState>;
    /// Replaces all of its state. It has been validated section by section, not against this backend's model.
    fn load(&mut self, state: &CpuState) -> Result<()>;
}

/// Makes a vCPU's `run` return, from any thread or a signal handler, stickily.
pub trait Kick: Send + Sync {
    /// Signal-safe: atomics and plain system calls only.
    fn kick(&self);
}

/// Exports a type that implements [`Backend`] as this library's backend.
#[macro_export]
macro_rules! export_backend {
    ($backend:ty) => {
        /// The entry symbol of the backend contract.
        // SAFETY: the symbol's name is the contract's own and no other crate here exports it.
        #[unsafe(no_mangle)]
        pub extern "C" fn godwit_backend_entry() -> *const $crate::abi::BackendTable {
            $crate::entry::<$backend>()
        }
    };
}
