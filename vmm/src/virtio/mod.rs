//! virtio 1.2 devices over MMIO: block, network, vsock, entropy and balloon.
//!
//! Used by `machine`, which builds the devices from their configuration, puts their windows on the memory bus and
//! their workers on the device thread.
//!
//! ```text
//!   vCPU threads ── registers ──► transport::Mmio ── eventfd a queue ──┐
//!                                     │ status, ISR, config            │  (a backend's doorbells write the same fds)
//!                                     ▼                                ▼
//!                          transport::Interrupt ◄── used ── transport::Worker<D>  (device thread)
//!                                                              D: VirtioDevice, its queues, guest memory
//! ```
//!
//! A device is one implementation of [`VirtioDevice`]; it sees its queues, guest memory and a clock, and nothing
//! else. What the guest puts into a queue is hostile: a chain that breaks the queue's rules stops the device until
//! the driver resets it (`DEVICE_NEEDS_RESET`), a request that breaks the device's rules gets an error, and one
//! wake-up does a bounded amount of work.

pub mod balloon;
pub mod block;
mod device;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod iov;
#[cfg(test)]
mod malformed;
#[cfg(any(test, fuzzing))]
pub mod mock;
pub mod net;
mod queue;
mod ram;
pub mod ratelimit;
pub mod rng;
pub mod slots;
pub mod stats;
mod timer;
pub mod transport;
pub mod vsock;

pub use device::{Context, DeviceFd, Progress, RestoreError, VirtioDevice};
pub use queue::{Chain, QueueError, Segments, Served, VirtQueue};
pub use ram::Ram;

/// Feature bits that belong to the transport and the queues, not to a device (virtio 1.2, 6).
pub mod feature {
    /// Chains may lie in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are suppressed by index instead of by flag.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// virtio 1.0 or later; every driver must take it.
    pub const VERSION_1: u64 = 1 << 32;
    /// What every device here offers.
    pub const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}
