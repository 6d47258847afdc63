//! ACPI's hardware-reduced sleep registers: power-off by the guest (ACPI 6.5, 4.8.3.7).

use super::bus::BusDevice;
use super::{PowerRequest, PowerSink};

/// Port of the sleep control register; the sleep status register follows it.
pub const PORT: u16 = 0x600;
/// SLP_TYP of S5, soft off: DSDT's `_S5_` says it too.
pub const S5: u8 = 5;

/// The device. It remembers nothing.
pub struct Sleep(pub PowerSink);

impl BusDevice for Sleep {
    fn read(&mut self, _offset: u64, _width: u32) -> u64 {
        0
    }

    fn write(&mut self, offset: u64, _width: u32, value: u64) {
        // SLP_EN is bit 5, SLP_TYP bits 2 to 4.
        if offset == 0 && value & 0x20 != 0 && (value >> 2 & 7) as u8 == S5 {
            (self.0)(PowerRequest::Off);
        }
    }
}
