//! The board: every device that is not in the CPU package, and how it is wired.
//!
//! A device knows its own registers, guest memory, an interrupt line and a clock. It does not know the backend, threads,
//! other devices or the real time.

pub mod bus;
pub mod clock;
pub mod irq;
