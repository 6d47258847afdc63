//! The register window (virtio 1.2, 4.2.2), on the vCPUs' side.

use super::state::{MmioV1, QueueV1};
use super::{DeviceSide, Interrupt, QueueSetup};
use crate::board::bus::BusDevice;
use crate::virtio::{RestoreError, feature};
use godwit_state::RawSection;
use std::sync::{Arc, Mutex, MutexGuard};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of a device's window.
pub const WINDOW_SIZE: u64 = 0x1000;

/// Register offsets.
#[allow(missing_docs)]
pub mod reg {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Bits of the status register (virtio 1.2, 2.1).
#[allow(missing_docs)]
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
    /// Every bit that means something.
    pub const ALL: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | NEEDS_RESET | FAILED;
}

/// "virt".
const MAGIC: u32 = 0x7472_6976;

/// One device's window.
pub struct Mmio {
    worker: Arc<Mutex<dyn DeviceSide>>,
    interrupt: Arc<Interrupt>,
    doorbells: Arc<[EventFd]>,
    device_type: u32,
    max_sizes: Vec<u16>,
    offered: u64,
    accepted: u64,
    offered_select: u32,
    accepted_select: u32,
    queue_select: u32,
    status: u32,
    queues: Vec<QueueSetup>,
}

fn fresh_queues(max_sizes: &[u16]) -> Vec<QueueSetup> {
    max_sizes.iter().map(|&size| QueueSetup { size, ..QueueSetup::default() }).collect()
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn with_half(whole: u64, high: bool, value: u32) -> u64 {
    if high { whole & 0xffff_ffff | u64::from(value) << 32 } else { whole & !0xffff_ffff | u64::from(value) }
}

impl Mmio {
    /// Registers for `worker`, which shares `interrupt` and `doorbells`.
    pub fn new(
        worker: Arc<Mutex<dyn DeviceSide>>,
        interrupt: Arc<Interrupt>,
        doorbells: Arc<[EventFd]>,
    ) -> Self {
        let (device_type, max_sizes, offered) = {
            let w = worker.lock().unwrap_or_else(|e| e.into_inner());
            (w.device_type(), w.queue_sizes(), w.features() | feature::TRANSPORT)
        };
        let queues = fresh_queues(&max_sizes);
        Mmio {
            worker,
            interrupt,
            doorbells,
            device_type,
            max_sizes,
            offered,
            accepted: 0,
            offered_select: 0,
            accepted_select: 0,
            queue_select: 0,
            status: 0,
            queues,
        }
    }

    fn worker(&self) -> MutexGuard<'_, dyn DeviceSide + 'static> {
        self.worker.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn status(&self) -> u32 {
        self.status | if self.interrupt.failed() { status::NEEDS_RESET } else { 0 }
    }

    fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    fn reset(&mut self) {
        self.worker().reset();
        self.interrupt.reset();
        (self.accepted, self.offered_select, self.accepted_select) = (0, 0, 0);
        (self.queue_select, self.status) = (0, 0);
        self.queues = fresh_queues(&self.max_sizes);
    }

    /// Status writes only add bits; zero resets.
    fn write_status(&mut self, value: u32) {
        let value = value & status::ALL & !status::NEEDS_RESET;
        if value == 0 {
            return self.reset();
        }
        let new = value & !self.status;
        if self.status & !value != 0 {
            tracing::debug!("driver takes status bits {:#x} back; ignored", self.status & !value);
        }
        self.status |= new & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if new & status::FEATURES_OK != 0
            && self.has(status::ACKNOWLEDGE | status::DRIVER)
            && self.accepted & !self.offered == 0
            && self.accepted & feature::VERSION_1 != 0
        {
            self.status |= status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0 && self.has(status::FEATURES_OK) && !self.has(status::FAILED) {
            self.status |= status::DRIVER_OK;
            let event_idx = self.accepted & feature::EVENT_IDX != 0;
            let started = self.worker().activate(self.accepted, &self.queues, event_idx);
            if !started {
                tracing::warn!("{}: a queue is not in RAM; the driver must reset it", self.worker().name());
                self.interrupt.fail();
            }
        }
    }

    fn accept(&mut self, value: u32) {
        if self.has(status::DRIVER) && !self.has(status::FEATURES_OK) && self.accepted_select < 2 {
            self.accepted = with_half(self.accepted, self.accepted_select == 1, value);
        }
    }

    fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(self.queue_select as usize)
    }

    /// Queues may be set up between FEATURES_OK and DRIVER_OK, and each only until it is ready.
    fn set_queue(&mut self, f: impl FnOnce(&mut QueueSetup, u16)) {
        if !self.has(status::FEATURES_OK) || self.has(status::DRIVER_OK) {
            return;
        }
        let i = self.queue_select as usize;
        if let (Some(q), Some(&max)) = (self.queues.get_mut(i), self.max_sizes.get(i)) {
            f(q, max);
        }
    }

    fn set_ring(&mut self, high: bool, value: u32, ring: impl FnOnce(&mut QueueSetup) -> &mut u64) {
        self.set_queue(|q, _| {
            if !q.ready {
                let address = ring(q);
                *address = with_half(*address, high, value);
            }
        });
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC => MAGIC,
            reg::VERSION => 2,
            reg::DEVICE_ID => self.device_type,
            reg::DEVICE_FEATURES => half(self.offered, self.offered_select),
            reg::QUEUE_NUM_MAX => self.max_sizes.get(self.queue_select as usize).copied().unwrap_or(0).into(),
            reg::QUEUE_READY => self.selected().is_some_and(|q| q.ready).into(),
            reg::INTERRUPT_STATUS => self.interrupt.status(),
            reg::STATUS => self.status(),
            // No shared memory regions: length and base read as all ones.
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.offered_select = value,
            reg::DRIVER_FEATURES_SEL => self.accepted_select = value,
            reg::DRIVER_FEATURES => self.accept(value),
            reg::QUEUE_SEL => self.queue_select = value,
            reg::QUEUE_NUM => self.set_queue(|q, max| {
                let size = u16::try_from(value).unwrap_or(0);
                if !q.ready && size.is_power_of_two() && size <= max {
                    q.size = size;
                }
            }),
            reg::QUEUE_READY => self.set_queue(|q, _| q.ready = value & 1 != 0),
            reg::QUEUE_NOTIFY => {
                if let Some(doorbell) = self.doorbells.get(value as usize) {
                    let _ = doorbell.write(1);
                }
            }
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::STATUS => self.write_status(value),
            reg::QUEUE_DESC_LOW => self.set_ring(false, value & !15, |q| &mut q.desc),
            reg::QUEUE_DESC_HIGH => self.set_ring(true, value, |q| &mut q.desc),
            reg::QUEUE_DRIVER_LOW => self.set_ring(false, value & !1, |q| &mut q.avail),
            reg::QUEUE_DRIVER_HIGH => self.set_ring(true, value, |q| &mut q.avail),
            reg::QUEUE_DEVICE_LOW => self.set_ring(false, value & !3, |q| &mut q.used),
            reg::QUEUE_DEVICE_HIGH => self.set_ring(true, value, |q| &mut q.used),
            _ => {}
        }
    }

    /// Eventfds that a notification of each queue writes to; for a backend's doorbells at
    /// [`reg::QUEUE_NOTIFY`], matched by queue number.
    pub fn doorbells(&self) -> &Arc<[EventFd]> {
        &self.doorbells
    }

    /// The two sections of a paused device: the transport's and the device's.
    pub fn save(&self) -> Vec<RawSection> {
        let worker = self.worker();
        let positions = worker.positions().unwrap_or_default();
        let queues = self.queues.iter().enumerate().map(|(i, q)| {
            let (next_avail, next_used) = positions.get(i).copied().unwrap_or((q.next_avail, q.next_used));
            let QueueSetup { size, ready, desc, avail, used, .. } = *q;
            QueueV1 { size, ready, desc, avail, used, next_avail, next_used }
        });
        let transport = MmioV1 {
            device: self.device_type,
            offered: self.offered,
            accepted: self.accepted,
            offered_select: self.offered_select,
            accepted_select: self.accepted_select,
            queue_select: self.queue_select,
            status: self.status(),
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            queues: queues.collect(),
        };
        vec![RawSection::mandatory(&transport), worker.save()]
    }

    /// Restores the sections of [`Self::save`] into a new, paused window over a device of the same kind. Guest
    /// memory must be there already; nothing of it is touched before [`DeviceSide::resume`].
    ///
    /// # Errors
    /// Damaged, impossible, or not what is configured here: another device, fewer features, other queues.
    pub fn restore(&mut self, sections: &[RawSection]) -> Result<(), RestoreError> {
        let name = self.worker().name();
        let mismatch = |what: String| RestoreError::Mismatch { device: name.clone(), what };
        let [transport, device] = sections else {
            return Err(mismatch(format!("{} sections instead of 2", sections.len())));
        };
        let s: MmioV1 = godwit_state::decode_section(transport)?;
        if s.device != self.device_type {
            return Err(mismatch(format!(
                "the state is of virtio device type {}, here is type {}",
                s.device, self.device_type
            )));
        }
        if s.status & status::FEATURES_OK != 0 && s.accepted & !self.offered != 0 {
            let missing = s.accepted & !self.offered;
            return Err(mismatch(format!("the guest uses features {missing:#x} which are not offered here")));
        }
        if s.queues.len() != self.max_sizes.len()
            || s.queues.iter().zip(&self.max_sizes).any(|(q, &max)| q.size > max)
        {
            return Err(mismatch("number or sizes of queues".into()));
        }
        let queues: Vec<_> = s
            .queues
            .iter()
            .map(|q| {
                let QueueV1 { size, ready, desc, avail, used, next_avail, next_used } = *q;
                QueueSetup { size, ready, desc, avail, used, next_avail, next_used }
            })
            .collect();
        let active = s.status & status::DRIVER_OK != 0;
        let broken = s.status & status::NEEDS_RESET != 0;
        {
            let mut worker = self.worker();
            worker.restore(device, active)?;
            let event_idx = s.accepted & feature::EVENT_IDX != 0;
            if active && !worker.activate(s.accepted, &queues, event_idx) && !broken {
                return Err(mismatch("a queue is not in guest memory".into()));
            }
        }
        self.interrupt.restore(s.interrupt_status, s.config_generation, broken);
        // What was offered stays offered: the driver may yet be reading it, bit by bit.
        self.offered &= s.offered;
        self.accepted = s.accepted;
        self.offered_select = s.offered_select;
        self.accepted_select = s.accepted_select;
        self.queue_select = s.queue_select;
        self.status = s.status & !status::NEEDS_RESET;
        self.queues = queues;
        Ok(())
    }
}

impl BusDevice for Mmio {
    /// Registers answer aligned 32-bit reads, the configuration space aligned reads of any width; all else reads 0.
    fn read(&mut self, offset: u64, width: u32) -> u64 {
        if offset < reg::CONFIG {
            return if width == 4 && offset & 3 == 0 { self.read_register(offset).into() } else { 0 };
        }
        if !matches!(width, 1 | 2 | 4 | 8) || !offset.is_multiple_of(width.into()) {
            return 0;
        }
        let config = self.worker().config();
        let at = (offset - reg::CONFIG) as usize;
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(config.iter().skip(at)).take(width as usize) {
            *to = *from;
        }
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, width: u32, value: u64) {
        if offset < reg::CONFIG {
            if width == 4 && offset & 3 == 0 {
                self.write_register(offset, value as u32);
            }
            return;
        }
        if matches!(width, 1 | 2 | 4 | 8) && offset.is_multiple_of(width.into()) && self.has(status::DRIVER) {
            let at = (offset - reg::CONFIG) as usize;
            self.worker().write_config(at, &value.to_le_bytes()[..width as usize]);
        }
    }
}
