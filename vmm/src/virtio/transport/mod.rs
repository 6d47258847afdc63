//! The MMIO transport: registers on the vCPUs' side, a worker on the device thread, an interrupt between them.
//!
//! **Lock order**: registers, then worker, then interrupt. The device thread takes the last two only. A queue
//! notification, an ISR read and an acknowledgement, which drivers do all the time, never wait for the worker.

mod interrupt;
mod mmio;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub use interrupt::Interrupt;
pub use mmio::{Mmio, WINDOW_SIZE, reg, status};
pub use state::{MmioV1, QueueV1};
pub use worker::{DeviceSide, QueueSetup, Worker};
