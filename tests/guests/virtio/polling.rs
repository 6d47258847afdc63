//! Small queues, and waiting for what is in them.

use crate::mmio::{Device, Failure, Outcome, Queue, write};
use crate::ticks;

const QUEUE_SIZE: u16 = 16;

/// Why a wait for a device ends.
pub const SILENT: &str = "does not answer";

impl Device {
    /// Sets up queue `index` with [`QUEUE_SIZE`] elements.
    pub fn queue(&mut self, index: u32) -> Outcome<Queue> {
        self.queue_of(index, QUEUE_SIZE)
    }

    pub fn set_config<T>(&self, offset: u64, value: T) {
        write(self.base + 0x100 + offset, value);
    }
}

impl Queue {
    /// The next finished chain: its first descriptor and the bytes written; waits for it, some
    /// seconds at most.
    pub fn finished(&mut self) -> Outcome<(u16, u32)> {
        self.finished_within(1000)
    }

    /// The same, waiting for so many timer ticks at most, or failing with [`SILENT`].
    pub fn finished_within(&mut self, ticks: u32) -> Outcome<(u16, u32)> {
        for turn in 0..1000 + ticks {
            if let Some(done) = self.poll() {
                return Ok(done);
            }
            if turn > 1000 {
                ticks::wait();
            } else {
                core::hint::spin_loop();
            }
        }
        Err(Failure(SILENT))
    }

    /// The same without ever resting: for measuring. Gives up after very long.
    pub fn awaited(&mut self) -> Outcome<(u16, u32)> {
        for _ in 0..2_000_000_000u64 {
            if let Some(done) = self.poll() {
                return Ok(done);
            }
            core::hint::spin_loop();
        }
        Err(Failure("does not answer"))
    }
}
