//! Why a machine could not be built, booted, run, saved or restored.

use crate::board::boot::BootError;
use crate::board::bus::BusError;
use crate::memory::ram::RamError;
use crate::plugin::BackendError;
use crate::virtio::RestoreError;
use crate::virtio::slots::BuildError;
use godwit_state::StateError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Too many or no vCPUs.
    #[error("{count} vCPUs: the backend {backend} runs 1 to {max} here")]
    Vcpus {
        /// Asked for.
        count: u32,
        /// Most.
        max: u32,
        /// Which backend.
        backend: String,
    },
    /// No such model here.
    #[error("CPU model {model}: the backend {backend} offers on this host: {offered}")]
    Model {
        /// Asked for.
        model: String,
        /// Which backend.
        backend: String,
        /// What there is.
        offered: String,
    },
    /// No portable model at all.
    #[error("the backend {backend} offers no portable CPU model on this host; name one with cpu_model")]
    NoModel {
        /// Which backend.
        backend: String,
    },
    /// RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// RAM has no address in this process.
    #[error("guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The backend's refusal or failure.
    #[error("backend: {0}")]
    Backend(#[from] BackendError),
    /// virtio devices.
    #[error(transparent)]
    Devices(#[from] BuildError),
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A state section.
    #[error(transparent)]
    State(#[from] StateError),
    /// A virtio device's section.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A section of a vCPU that is not there.
    #[error("section {kind} is of vCPU {instance}, but there are {vcpus}")]
    Instance {
        /// Kind of the section.
        kind: String,
        /// Its instance.
        instance: u32,
        /// Number of vCPUs.
        vcpus: u32,
    },
    /// Only a paused machine can do it.
    #[error("the machine is running; pause it first")]
    Running,
    /// A vCPU does not leave the guest.
    #[error("vCPU {vcpu} did not come out of the backend within {seconds} s")]
    Stuck {
        /// Which.
        vcpu: u32,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A device does not come to rest.
    #[error(transparent)]
    Busy(#[from] crate::virtio::slots::Busy),
    /// A thread got no filter.
    #[error(transparent)]
    Sandbox(#[from] std::sync::Arc<crate::sandbox::SandboxError>),
    /// The host refused something.
    #[error("{what}: {source}")]
    Host {
        /// What was wanted.
        what: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
}

impl MachineError {
    /// For `map_err`.
    pub(super) fn host(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| MachineError::Host { what, source }
    }
}
