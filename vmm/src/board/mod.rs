//! The board: every device that is not in the CPU package, and how it is wired.
//!
//! A device knows its own registers, guest memory, an interrupt line and a clock. It does not know the backend, threads,
//! other devices or the real time.
//!
//! ```text
//!   port bus ─► serial  i8042  rtc  pit  pm          memory bus ─► ioapic   (virtio windows)
//!                 └──────┴── lines ──┴───┴──► chipset: two 8259s and the I/O APIC ──► CpuBus (the backend)
//! ```

pub mod boot;
pub mod bus;
pub mod chipset;
pub mod clock;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod generation;
pub mod i8042;
mod ioapic;
pub mod irq;
mod pic;
pub mod pit;
pub mod pm;
pub mod rtc;
pub mod serial;
pub mod timers;

pub use ioapic::IoApicV1;
pub use pic::PicV1;

/// What a guest may ask of the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Start over.
    Reset,
    /// Switch off.
    Off,
}

/// Where a device says that the guest wants a reset or to be switched off. Called from vCPU threads.
pub type PowerSink = std::sync::Arc<dyn Fn(PowerRequest) + Send + Sync>;
