//! The device-thread side: a device with its queues, as the event manager's subscriber.

use super::Interrupt;
use crate::board::clock::Clock;
use crate::memory::GuestRam;
use crate::virtio::Ram;
use crate::virtio::device::{Context, Progress, RestoreError, VirtioDevice};
use crate::virtio::queue::{QueueError, VirtQueue};
use crate::virtio::stats::Counted;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use godwit_state::RawSection;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

/// Event data from here on are the device's own tokens; below are queue numbers.
const TOKEN_BASE: u32 = 0x100;

/// A queue as the driver has described it, and where the device stands in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueSetup {
    /// Elements.
    pub size: u16,
    /// QueueReady.
    pub ready: bool,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// Next available index; 0 but for a restored queue.
    pub next_avail: u16,
    /// Next used index.
    pub next_used: u16,
}

/// What the registers need of a worker, whatever its device is.
pub trait DeviceSide: MutEventSubscriber + Send {
    /// Kind and name, for messages.
    fn name(&self) -> String;
    /// Device type.
    fn device_type(&self) -> u32;
    /// Device features on offer.
    fn features(&self) -> u64;
    /// Greatest queue sizes.
    fn queue_sizes(&self) -> Vec<u16>;
    /// Configuration space.
    fn config(&self) -> Vec<u8>;
    /// A driver's write to it.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// Starts the device; false if a queue that is ready is not in RAM.
    fn activate(&mut self, features: u64, queues: &[QueueSetup], event_idx: bool) -> bool;
    /// Stops it and makes it new.
    fn reset(&mut self);
    /// Stops touching guest memory, with nothing left in flight. Idempotent.
    fn pause(&mut self);
    /// Goes on.
    fn resume(&mut self);
    /// (next available, next used) of each queue of a device that is running.
    fn positions(&self) -> Option<Vec<(u16, u16)>>;
    /// What the device has done.
    fn counted(&self) -> Option<Counted>;
    /// The device's section.
    fn save(&self) -> RawSection;
    /// Restores the device's section into a device that was never started.
    ///
    /// # Errors
    /// The device's.
    fn restore(&mut self, section: &RawSection, active: bool) -> Result<(), RestoreError>;
}

/// A device, its queues and what it may touch.
pub struct Worker<D> {
    device: D,
    mem: Ram,
    interrupt: Arc<Interrupt>,
    doorbells: Arc<[EventFd]>,
    clock: Arc<dyn Clock>,
    queues: Vec<VirtQueue>,
    features: u64,
    active: bool,
    paused: bool,
}

impl<D: VirtioDevice> Worker<D> {
    /// A worker for `device`; `doorbells` has one eventfd a queue.
    pub fn new(
        device: D,
        mem: GuestRam,
        interrupt: Arc<Interrupt>,
        doorbells: Arc<[EventFd]>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Worker {
            device,
            mem: mem.into(),
            interrupt,
            doorbells,
            clock,
            queues: Vec::new(),
            features: 0,
            active: false,
            paused: false,
        }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, for the control thread to reconfigure.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Tells the driver that the configuration space has changed.
    pub fn config_changed(&self) {
        if self.active {
            self.interrupt.config_changed();
        }
    }

    /// Has the device look at all its queues.
    pub fn kick(&self) {
        self.doorbells.iter().for_each(|d| drop(d.write(1)));
    }

    fn running(&self) -> bool {
        self.active && !self.paused && !self.interrupt.failed()
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut D, &mut Context<'_>) -> Result<R, QueueError>) -> Option<R> {
        let mut cx = Context {
            mem: &self.mem,
            queues: &mut self.queues,
            interrupt: &self.interrupt,
            features: self.features,
            now_ns: self.clock.now_ns(),
        };
        match f(&mut self.device, &mut cx) {
            Ok(r) => Some(r),
            Err(e) => {
                tracing::warn!("{}: {e}; the driver must reset the device", self.device.name());
                self.interrupt.fail();
                None
            }
        }
    }

    /// Serves queue `index` once; true if it has more to do. What an event does, for tests without an event loop.
    pub fn run_queue(&mut self, index: usize) -> bool {
        self.running()
            && index < self.queues.len()
            && self.with(|d, cx| d.queue_event(index, cx)) == Some(Progress::More)
    }

    /// Handles a device event.
    pub fn run_event(&mut self, token: u32, events: EventSet) {
        if self.running() {
            if self.with(|d, cx| d.event(token, events, cx)) == Some(Progress::More) {
                self.kick();
            }
        } else {
            self.device.event_ignored(token);
        }
    }
}

impl<D: VirtioDevice> DeviceSide for Worker<D> {
    fn name(&self) -> String {
        self.device.name()
    }

    fn device_type(&self) -> u32 {
        D::TYPE
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.device.queue_sizes().to_vec()
    }

    fn config(&self) -> Vec<u8> {
        self.device.config()
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    fn activate(&mut self, features: u64, setups: &[QueueSetup], event_idx: bool) -> bool {
        let mut queues = Vec::with_capacity(setups.len());
        for (setup, &max) in setups.iter().zip(self.device.queue_sizes()) {
            let Ok(mut q) = Queue::new(max) else { return false };
            if setup.ready {
                let set = q.try_set_size(setup.size).is_ok()
                    && q.try_set_desc_table_address(GuestAddress(setup.desc)).is_ok()
                    && q.try_set_avail_ring_address(GuestAddress(setup.avail)).is_ok()
                    && q.try_set_used_ring_address(GuestAddress(setup.used)).is_ok();
                q.set_event_idx(event_idx);
                q.set_next_avail(setup.next_avail);
                q.set_next_used(setup.next_used);
                q.set_ready(true);
                // virtio-queue takes an available ring at address 0 for one that is not set up.
                if !set || setup.avail == 0 || !q.is_valid(&self.mem) {
                    return false;
                }
            }
            queues.push(VirtQueue::new(q));
        }
        self.queues = queues;
        self.features = features;
        self.active = true;
        self.device.activate(features);
        self.kick();
        true
    }

    fn reset(&mut self) {
        self.active = false;
        self.queues.clear();
        self.features = 0;
        self.device.reset();
    }

    fn pause(&mut self) {
        if self.running() {
            self.with(|d, cx| d.drain(cx));
        }
        self.paused = true;
    }

    fn resume(&mut self) {
        self.paused = false;
        self.interrupt.nudge();
        self.kick();
    }

    fn positions(&self) -> Option<Vec<(u16, u16)>> {
        self.active.then(|| self.queues.iter().map(VirtQueue::position).collect())
    }

    fn counted(&self) -> Option<Counted> {
        self.device.counted()
    }

    fn save(&self) -> RawSection {
        self.device.save()
    }

    fn restore(&mut self, section: &RawSection, active: bool) -> Result<(), RestoreError> {
        self.device.restore(section, active)
    }
}

impl<D: VirtioDevice> MutEventSubscriber for Worker<D> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let doorbells = self.doorbells.iter().zip(0..);
        let queues = doorbells.map(|(fd, i)| Events::with_data(fd, i, EventSet::IN));
        let own = self.device.fds();
        let own = own.iter().map(|d| Events::with_data_raw(d.fd, TOKEN_BASE + d.token, d.events));
        for events in queues.chain(own) {
            if let Err(e) = ops.add(events) {
                tracing::error!("{}: cannot watch fd {}: {e}", self.device.name(), events.fd());
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let data = events.data();
        if data >= TOKEN_BASE {
            return self.run_event(data - TOKEN_BASE, events.event_set());
        }
        let Some(doorbell) = self.doorbells.get(data as usize) else { return };
        debug_assert_eq!(doorbell.as_raw_fd(), events.fd());
        // Emptied first: a notification from now on is a new event.
        let _ = doorbell.read();
        if self.run_queue(data as usize) {
            let _ = self.doorbells[data as usize].write(1);
        }
    }
}
