//! The interrupt chipset: where lines end. Two 8259s and the I/O APIC behind one lock, in front of the CPUs.
//!
//! ISA line n goes to 8259 input n and I/O APIC pin n, but line 0 (the PIT) to pin 2: ACPI says so with an override.

use super::bus::BusDevice;
use super::ioapic::{Effects, IoApic, IoApicV1, PINS};
use super::irq::IrqSink;
use super::pic::{Pic, PicV1};
use std::sync::{Arc, Mutex, MutexGuard};

/// Where I/O APIC pin `gsi` sends its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Pin.
    pub gsi: u32,
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// No message is sent.
    pub masked: bool,
}

/// The CPUs as the chipset sees them. Called with the chipset's lock held: must not come back to it.
pub trait CpuBus: Send + Sync {
    /// A message to the local APICs.
    fn signal_msi(&self, address: u64, data: u32);
    /// All pins' routes, after a change.
    fn set_routes(&self, routes: &[Route]);
    /// Level of the 8259s' output.
    fn set_extint(&self, level: bool);
}

struct Inner {
    pic: Pic,
    ioapic: IoApic,
    extint: bool,
    cpus: Option<Arc<dyn CpuBus>>,
}

/// Both kinds of controllers.
pub struct Chipset {
    inner: Mutex<Inner>,
}

impl Chipset {
    /// A chipset as after power-on, not connected yet.
    pub fn new() -> Arc<Self> {
        let inner = Inner { pic: Pic::default(), ioapic: IoApic::new(), extint: false, cpus: None };
        Arc::new(Chipset { inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Connects the CPUs.
    pub fn connect(&self, cpus: Arc<dyn CpuBus>) {
        let mut inner = self.lock();
        cpus.set_routes(&inner.ioapic.routes());
        inner.cpus = Some(cpus);
    }

    /// A CPU has ended a level-triggered interrupt.
    pub fn eoi(&self, vector: u8) {
        let mut inner = self.lock();
        let mut effects = Effects::default();
        inner.ioapic.eoi(vector, &mut effects);
        inner.apply(&effects);
    }

    /// A CPU acknowledges the 8259s' request, if it is still there.
    pub fn extint_ack(&self) -> Option<u8> {
        let mut inner = self.lock();
        if !inner.pic.output() {
            inner.update_extint();
            return None;
        }
        let vector = inner.pic.acknowledge();
        inner.update_extint();
        Some(vector)
    }

    /// Both controllers' state.
    pub fn save(&self) -> (PicV1, IoApicV1) {
        let inner = self.lock();
        (*inner.pic.state(), inner.ioapic.state().clone())
    }

    /// Takes it back and tells the CPUs of routes and output. Pending messages are the CPUs' own state.
    pub fn restore(&self, pic: PicV1, ioapic: IoApicV1) {
        let mut inner = self.lock();
        inner.pic.restore(pic);
        inner.ioapic.restore(ioapic);
        inner.apply(&Effects { messages: Vec::new(), routes: true });
        inner.extint = inner.pic.output();
        if let Some(cpus) = &inner.cpus {
            cpus.set_extint(inner.extint);
        }
    }
}

impl Inner {
    fn apply(&mut self, effects: &Effects) {
        let Some(cpus) = &self.cpus else { return };
        if effects.routes {
            cpus.set_routes(&self.ioapic.routes());
        }
        for (address, data) in &effects.messages {
            cpus.signal_msi(*address, *data);
        }
    }

    fn update_extint(&mut self) {
        let level = self.pic.output();
        if level != self.extint {
            self.extint = level;
            if let Some(cpus) = &self.cpus {
                cpus.set_extint(level);
            }
        }
    }
}

impl IrqSink for Chipset {
    fn set_line(&self, gsi: u32, level: bool) {
        let mut inner = self.lock();
        if gsi < 16 && gsi != 2 {
            inner.pic.set_level(gsi as u8, level);
            inner.update_extint();
        }
        let pin = if gsi == 0 { 2 } else { gsi as usize };
        if pin < PINS {
            let mut effects = Effects::default();
            inner.ioapic.set_level(pin, level, &mut effects);
            inner.apply(&effects);
        }
    }
}

/// The I/O APIC's registers on the memory bus.
pub struct IoApicWindow(pub Arc<Chipset>);

/// Where they are.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Their size.
pub const IOAPIC_SIZE: u64 = 0x1000;

impl BusDevice for IoApicWindow {
    fn read(&mut self, offset: u64, _width: u32) -> u64 {
        self.0.lock().ioapic.read(offset).into()
    }

    fn write(&mut self, offset: u64, _width: u32, value: u64) {
        let mut inner = self.0.lock();
        let mut effects = Effects::default();
        inner.ioapic.write(offset, value as u32, &mut effects);
        inner.apply(&effects);
    }
}

/// Ports of one 8259 (`base` 0x20 or 0xa0).
pub struct PicPorts {
    /// The chipset.
    pub chipset: Arc<Chipset>,
    /// First port.
    pub base: u16,
}

impl BusDevice for PicPorts {
    fn read(&mut self, offset: u64, _width: u32) -> u64 {
        let mut inner = self.chipset.lock();
        let value = inner.pic.read(self.base + offset as u16);
        inner.update_extint();
        value.into()
    }

    fn write(&mut self, offset: u64, _width: u32, value: u64) {
        let mut inner = self.chipset.lock();
        inner.pic.write(self.base + offset as u16, value as u8);
        inner.update_extint();
    }
}

/// Edge/level control, ports 0x4d0 and 0x4d1.
pub struct ElcrPorts(pub Arc<Chipset>);

impl BusDevice for ElcrPorts {
    fn read(&mut self, offset: u64, _width: u32) -> u64 {
        self.0.lock().pic.read_elcr(offset == 1).into()
    }

    fn write(&mut self, offset: u64, width: u32, value: u64) {
        let mut inner = self.0.lock();
        inner.pic.write_elcr(offset == 1, value as u8);
        if width == 2 && offset == 0 {
            inner.pic.write_elcr(true, (value >> 8) as u8);
        }
        inner.update_extint();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Cpus(Mutex<(Vec<(u64, u32)>, bool)>);
    impl CpuBus for Cpus {
        fn signal_msi(&self, address: u64, data: u32) {
            self.0.lock().unwrap().0.push((address, data));
        }
        fn set_routes(&self, _routes: &[Route]) {}
        fn set_extint(&self, level: bool) {
            self.0.lock().unwrap().1 = level;
        }
    }

    #[test]
    fn line_0_is_pin_2_and_the_8259s_hear_it_too() {
        let chipset = Chipset::new();
        let cpus = Arc::new(Cpus::default());
        chipset.connect(cpus.clone());
        let mut window = IoApicWindow(chipset.clone());
        window.write(0, 4, 0x14);
        window.write(0x10, 4, 0x30);
        chipset.set_line(0, true);
        assert_eq!(*cpus.0.lock().unwrap(), (vec![(0xfee0_0000, 0x30)], true));
        assert_eq!(chipset.extint_ack(), Some(0));
        assert!(!cpus.0.lock().unwrap().1);
        assert_eq!(chipset.extint_ack(), None);
        let (pic, ioapic) = chipset.save();
        let other = Chipset::new();
        other.restore(pic, ioapic.clone());
        assert_eq!(other.save(), (pic, ioapic));
    }
}
