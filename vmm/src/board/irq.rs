//! Interrupt lines: how a device raises one without knowing where it goes.

use std::sync::Arc;

/// Where lines end: the 8259s and the I/O APIC together.
pub trait IrqSink: Send + Sync {
    /// Sets the level of line `gsi` (0 to 15 are also the ISA lines).
    fn set_line(&self, gsi: u32, level: bool);
}

/// One device's line. Nothing may be locked by the caller that the I/O APIC or a backend's `signal_msi` needs.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    gsi: u32,
}

impl IrqLine {
    /// A line into `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, gsi: u32) -> Self {
        IrqLine { sink, gsi }
    }

    /// The line's number.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Raises or lowers the line.
    pub fn set(&self, level: bool) {
        self.sink.set_line(self.gsi, level);
    }

    /// An edge: up and down again.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IrqLine({})", self.gsi)
    }
}
