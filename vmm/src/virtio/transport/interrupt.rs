//! A device's interrupt: status register and line.

use crate::board::irq::IrqLine;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Used buffers (InterruptStatus bit 0).
const USED: u32 = 1;
/// Configuration changed (bit 1).
const CONFIG: u32 = 2;

/// Shared by the registers (vCPU threads) and the worker (device thread).
///
/// The line is high while any status bit is set. Firecracker's guests have the line edge-triggered, so when an
/// acknowledgement leaves another bit set, the line goes down and up again: every bit that is set gets its edge
/// after the driver last looked.
#[derive(Debug)]
pub struct Interrupt {
    line: IrqLine,
    /// Held while the line moves, so that the two threads' changes reach it in the order of the bits.
    pending: Mutex<u32>,
    needs_reset: AtomicBool,
    generation: AtomicU32,
}

impl Interrupt {
    /// An idle interrupt on `line`.
    pub fn new(line: IrqLine) -> Self {
        Interrupt {
            line,
            pending: Mutex::new(0),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.pending.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn raise(&self, bit: u32) {
        let mut pending = self.lock();
        if *pending == 0 {
            self.line.set(true);
        }
        *pending |= bit;
    }

    /// The device has given buffers back.
    pub fn used(&self) {
        self.raise(USED);
    }

    /// The configuration space has changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIG);
    }

    /// The device cannot go on: `DEVICE_NEEDS_RESET`.
    pub(super) fn fail(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIG);
    }

    /// Whether [`Self::fail`] was called since the last reset.
    pub(super) fn failed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// InterruptStatus.
    pub(super) fn status(&self) -> u32 {
        *self.lock()
    }

    /// ConfigGeneration.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// InterruptACK.
    pub(super) fn acknowledge(&self, bits: u32) {
        let mut pending = self.lock();
        if *pending & bits == 0 {
            return;
        }
        *pending &= !bits;
        self.line.set(false);
        if *pending != 0 {
            self.line.set(true);
        }
    }

    /// Nothing pending, line low. The configuration's generation goes on counting.
    pub(super) fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.acknowledge(u32::MAX);
    }

    /// Takes on saved values. The line's level is part of the interrupt controllers' state, so it is not touched.
    pub(super) fn restore(&self, pending: u32, generation: u32, needs_reset: bool) {
        *self.lock() = pending;
        self.generation.store(generation, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
    }

    /// Gives the driver an edge for what it has not acknowledged: after a move between machines one interrupt too
    /// many is harmless, one too few hangs the guest.
    pub(super) fn nudge(&self) {
        let pending = self.lock();
        if *pending != 0 {
            self.line.set(false);
            self.line.set(true);
        }
    }
}
