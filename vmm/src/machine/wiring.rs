//! How backend, buses, chipset and RAM hear of each other. The VM is held weakly: it owns its host callbacks.

use super::cpus::Gate;
use super::devices::Devices;
use super::{Event, EventSink};
use crate::board::bus::Bus;
use crate::board::chipset::{Chipset, CpuBus, Route};
use crate::board::{PowerRequest, PowerSink};
use crate::memory::{WriteObserver, WriteTracker};
use crate::plugin::{BackendVm, Host, MsiRoute, WeakVm};
use std::sync::Arc;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

struct Callbacks {
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    chipset: Arc<Chipset>,
}

impl Host for Callbacks {
    fn pio_read(&self, port: u16, width: u32) -> u64 {
        self.ports.read(port.into(), width)
    }

    fn pio_write(&self, port: u16, width: u32, value: u64) {
        self.ports.write(port.into(), width, value);
    }

    fn mmio_read(&self, gpa: u64, width: u32) -> u64 {
        self.memory.read(gpa, width)
    }

    fn mmio_write(&self, gpa: u64, width: u32, value: u64) {
        self.memory.write(gpa, width, value);
    }

    fn eoi(&self, vector: u8) {
        self.chipset.eoi(vector);
    }

    fn extint_ack(&self) -> Option<u8> {
        self.chipset.extint_ack()
    }
}

/// What the backend calls back.
pub(super) fn host(devices: &Devices) -> Box<dyn Host> {
    let (ports, memory, chipset) = devices.buses();
    Box::new(Callbacks { ports, memory, chipset })
}

struct Lapics(WeakVm);

impl CpuBus for Lapics {
    fn signal_msi(&self, address: u64, data: u32) {
        if let Some(vm) = self.0.upgrade()
            && let Err(e) = vm.signal_msi(address, data)
        {
            // The guest wrote the message: a wrong one is lost, as on a real bus.
            tracing::debug!("interrupt message {data:#x} to {address:#x}: {e}");
        }
    }

    fn set_routes(&self, routes: &[Route]) {
        let routes: Vec<MsiRoute> = routes
            .iter()
            .map(|r| MsiRoute { gsi: r.gsi, address: r.address, data: r.data, masked: r.masked })
            .collect();
        if let Some(vm) = self.0.upgrade()
            && let Err(e) = vm.set_routes(&routes)
        {
            tracing::error!("interrupt routes: {e}");
        }
    }

    fn set_extint(&self, level: bool) {
        if let Some(vm) = self.0.upgrade() {
            vm.set_extint(level);
        }
    }
}

/// The backend as the chipset sees it.
pub(super) fn cpu_bus(vm: &BackendVm) -> Arc<dyn CpuBus> {
    Arc::new(Lapics(vm.downgrade()))
}

struct Written(WeakVm);

impl WriteObserver for Written {
    fn memory_written(&self, gpa: u64, len: u64) {
        if let Some(vm) = self.0.upgrade() {
            vm.memory_written(gpa, len);
        }
    }
}

/// Tells the backend of the VMM's writes to a region.
pub(super) fn observe(region: &GuestRegionMmap<WriteTracker>, vm: &BackendVm) {
    region.bitmap().observe(region.start_addr().0, Arc::new(Written(vm.downgrade())));
}

/// What devices do when the guest wants a reset or to be off: the vCPUs stop at once, then the owner is told.
pub(super) fn power(gate: &Arc<Gate>, events: &EventSink) -> PowerSink {
    let (gate, events) = (Arc::clone(gate), Arc::clone(events));
    Arc::new(move |request| {
        gate.close();
        events(match request {
            PowerRequest::Reset => Event::Reset,
            PowerRequest::Off => Event::PowerOff,
        });
    })
}
