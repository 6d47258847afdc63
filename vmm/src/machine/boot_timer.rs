//! Firecracker's boot timer: a guest that has booted writes 123 to a register, and the log says how long it took.
//!
//! No device of the machine: it has no state, is not announced, and does not move. Put on the bus by `control` for
//! `--boot-timer`.

use crate::board::bus::BusDevice;
use std::time::{Duration, Instant};

/// Where Firecracker has it; RAM must end below.
pub(super) const ADDRESS: u64 = 0xc000_0000;
pub(super) const SIZE: u64 = 0x1000;
const BOOTED: u64 = 123;

pub(super) struct BootTimer {
    start: Instant,
    cpu: Duration,
}

/// CPU time of this process.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

impl BootTimer {
    /// Time begins now.
    pub(super) fn new() -> Self {
        BootTimer { start: Instant::now(), cpu: cpu() }
    }
}

impl BusDevice for BootTimer {
    fn read(&mut self, _offset: u64, _width: u32) -> u64 {
        0
    }

    fn write(&mut self, offset: u64, _width: u32, value: u64) {
        if offset == 0 && value & 0xff == BOOTED {
            let (wall, cpu) = (self.start.elapsed().as_micros(), cpu().saturating_sub(self.cpu).as_micros());
            tracing::info!(
                "Guest-boot-time = {wall:6} us {} ms, {cpu:6} CPU us {} CPU ms",
                wall / 1000,
                cpu / 1000
            );
        }
    }
}
