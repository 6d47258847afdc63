//! The timer's interrupts, counted and awaited.

use crate::rt::service;

// As in layout.rs and `Service` of the guests' crate.
const TICKS: *const u64 = 0x60_0000 as *const u64;
const WAIT: u8 = 2;

/// Timer interrupts so far.
pub fn ticks() -> u64 {
    // SAFETY: the shared page is always mapped.
    unsafe { TICKS.read_volatile() }
}

/// Rests until the next interrupt.
pub fn wait() {
    service(WAIT, 0);
}
