//! The machine's set of virtio devices: each in its slot, with a window, an interrupt line and doorbells.
//!
//! `machine` makes a [`Slots`] from the configuration, puts it on the bus and the device thread, tells the guest of
//! its windows (ACPI and command line), and saves and restores it as a whole.

use super::balloon::{Balloon, BalloonConfig, BalloonError};
use super::block::{Block, DriveConfig, DriveError};
use super::net::{MmdsConfig, Net, NetError, NetworkInterfaceConfig};
use super::rng::{EntropyConfig, Rng};
use super::stats::Counted;
use super::transport::{DeviceSide, Interrupt, Mmio, WINDOW_SIZE, Worker, reg};
use super::vsock::{Vsock, VsockConfig, VsockError};
use super::{RestoreError, VirtioDevice};
use crate::board::bus::{Bus, BusError};
use crate::board::clock::Clock;
use crate::board::irq::{IrqLine, IrqSink};
use crate::memory::GuestRam;
use crate::state::MachineSection;
use event_manager::MutEventSubscriber;
use godwit_state::RawSection;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// Guest-physical address of the first window.
pub const FIRST_WINDOW: u64 = 0xd000_0000;
/// Interrupt line of the first device.
pub const FIRST_GSI: u32 = 5;
/// Devices that there are lines for, up to the I/O APIC's last pin.
pub const MAX_SLOTS: usize = 19;

/// All virtio devices of a machine, as the configuration gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DevicesConfig {
    /// Balloon.
    pub balloon: Option<BalloonConfig>,
    /// Disks; the root device gets the lowest slot of them.
    pub drives: Vec<DriveConfig>,
    /// Network interfaces.
    pub network_interfaces: Vec<NetworkInterfaceConfig>,
    /// The metadata service at some of them; whoever owns the machine puts it there ([`Net::set_detour`]).
    pub mmds: Option<MmdsConfig>,
    /// Sockets between guest and host.
    pub vsock: Option<VsockConfig>,
    /// Entropy device.
    pub entropy: Option<EntropyConfig>,
}

/// Why the devices could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A disk.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// The balloon.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// A network interface.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The vsock device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The entropy device.
    #[error("entropy device: {0}")]
    Entropy(io::Error),
    /// The host gives no more eventfds.
    #[error("{device}: eventfd: {source}")]
    EventFd {
        /// Which device.
        device: String,
        /// The host's answer.
        source: io::Error,
    },
    /// More devices than lines.
    #[error("{0}: there is room for {MAX_SLOTS} virtio devices")]
    TooMany(String),
}

/// Where the guest finds a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// Interrupt line, edge-triggered and active high.
    pub gsi: u32,
}

impl Window {
    /// The window of slot `slot`.
    pub fn of_slot(slot: usize) -> Self {
        let n = slot as u32;
        Window { addr: FIRST_WINDOW + u64::from(n) * WINDOW_SIZE, size: WINDOW_SIZE, gsi: FIRST_GSI + n }
    }

    /// As Linux takes it on its command line, for guests without ACPI.
    pub fn kernel_argument(&self) -> String {
        format!("virtio_mmio.device={}K@{:#x}:{}", self.size / 1024, self.addr, self.gsi)
    }
}

/// A notification register that a backend may turn into an eventfd write.
#[derive(Debug, Clone, Copy)]
pub struct Doorbell<'a> {
    /// Guest-physical address of a 32-bit register.
    pub addr: u64,
    /// The value whose writing is the notification.
    pub queue: u32,
    /// What to write to.
    pub eventfd: &'a EventFd,
}

struct Slot {
    name: String,
    waits: bool,
    window: Window,
    mmio: Arc<Mutex<Mmio>>,
    worker: Arc<Mutex<dyn DeviceSide>>,
    doorbells: Arc<[EventFd]>,
}

fn lock<T: ?Sized>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

/// How long a device may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(10);

/// A device does not come to rest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device} is still busy with a request after {seconds} s: its file does not answer")]
pub struct Busy {
    /// Kind and name.
    pub device: String,
    /// How long it was waited for.
    pub seconds: u64,
}

/// Locks as soon as nobody else has it, until a point in time. What holds a lock so long is a file that does not answer.
fn lock_until<T: ?Sized>(m: &Mutex<T>, until: Instant) -> Option<MutexGuard<'_, T>> {
    let mut wait = Duration::from_micros(20);
    loop {
        match m.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(e)) => return Some(e.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(wait),
        }
        wait = (wait * 2).min(Duration::from_millis(2));
    }
}

/// Locks a device for the control thread, which must not wait for long.
///
/// # Errors
/// Its file does not answer.
pub fn lock_device<D: VirtioDevice>(device: &Shared<D>) -> Result<MutexGuard<'_, Worker<D>>, Busy> {
    let busy = Busy { device: "the device".into(), seconds: PATIENCE.as_secs() };
    lock_until(device, Instant::now() + PATIENCE).ok_or(busy)
}

/// What an event manager serves.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// A device that the control thread may reach by its own type.
pub type Shared<D> = Arc<Mutex<Worker<D>>>;

/// The devices of one machine. They are made paused.
#[derive(Default)]
pub struct Slots {
    slots: Vec<Slot>,
    drives: Vec<(String, Shared<Block>)>,
    interfaces: Vec<(String, Shared<Net>)>,
    balloon: Option<Shared<Balloon>>,
}

/// What devices share.
pub struct Board {
    /// Guest memory.
    pub mem: GuestRam,
    /// Where the lines end.
    pub irqs: Arc<dyn IrqSink>,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
}

impl Slots {
    /// Opens everything that `config` names and gives out slots, in a fixed order, so that a machine made from the
    /// same configuration elsewhere has the same map.
    ///
    /// # Errors
    /// Something is not there; the error names it.
    pub fn build(config: &DevicesConfig, board: &Board) -> Result<Self, BuildError> {
        let mut all = Slots::default();
        if let Some(balloon) = &config.balloon {
            let ram: u64 = board.mem.iter().map(|r| r.len()).sum();
            all.balloon = Some(all.add(Balloon::new(balloon, ram >> 20)?, board)?);
        }
        let mut drives: Vec<_> = config.drives.iter().collect();
        drives.sort_by_key(|d| !d.is_root_device);
        for drive in drives {
            let shared = all.add(Block::new(drive)?, board)?;
            all.drives.push((drive.drive_id.clone(), shared));
        }
        for interface in &config.network_interfaces {
            let shared = all.add(Net::new(interface)?, board)?;
            all.interfaces.push((interface.iface_id.clone(), shared));
        }
        if let Some(vsock) = &config.vsock {
            all.add(Vsock::new(vsock)?, board)?;
        }
        if let Some(entropy) = &config.entropy {
            all.add(Rng::new(entropy).map_err(BuildError::Entropy)?, board)?;
        }
        Ok(all)
    }

    fn add<D: VirtioDevice + 'static>(&mut self, device: D, board: &Board) -> Result<Shared<D>, BuildError> {
        let name = device.name();
        if self.slots.len() == MAX_SLOTS {
            return Err(BuildError::TooMany(name));
        }
        let window = Window::of_slot(self.slots.len());
        let interrupt = Arc::new(Interrupt::new(IrqLine::new(board.irqs.clone(), window.gsi)));
        let doorbells =
            device.queue_sizes().iter().map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC));
        let doorbells: Arc<[EventFd]> = doorbells
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| BuildError::EventFd { device: name.clone(), source })?
            .into();
        let mut worker =
            Worker::new(device, board.mem.clone(), interrupt.clone(), doorbells.clone(), board.clock.clone());
        worker.pause();
        let worker = Arc::new(Mutex::new(worker));
        let mmio = Arc::new(Mutex::new(Mmio::new(worker.clone(), interrupt, doorbells.clone())));
        self.slots.push(Slot { name, waits: D::WAITS, window, mmio, worker: worker.clone(), doorbells });
        Ok(worker)
    }

    /// The windows in slot order, for ACPI and the command line.
    pub fn windows(&self) -> Vec<Window> {
        self.slots.iter().map(|s| s.window).collect()
    }

    /// Puts all windows on the memory bus.
    ///
    /// # Errors
    /// Something else is there.
    pub fn attach(&self, bus: &Bus) -> Result<(), BusError> {
        self.slots.iter().try_for_each(|s| bus.insert(s.window.addr, s.window.size, s.mmio.clone()))
    }

    /// What the device thread's event manager takes as subscribers.
    pub fn subscribers(&self) -> Vec<Subscriber> {
        self.slots.iter().filter(|s| !s.waits).map(|s| -> Subscriber { s.worker.clone() }).collect()
    }

    /// The subscribers that wait for files, by slot: each gets an event manager of its own.
    pub fn waiting_subscribers(&self) -> Vec<(usize, Subscriber)> {
        let own = self.slots.iter().enumerate().filter(|(_, s)| s.waits);
        own.map(|(slot, s)| -> (usize, Subscriber) { (slot, s.worker.clone()) }).collect()
    }

    /// All notification registers, for backends with doorbells.
    pub fn doorbells(&self) -> Vec<Doorbell<'_>> {
        let of = |s: &'_ Slot| s.window.addr + reg::QUEUE_NOTIFY;
        self.slots
            .iter()
            .flat_map(|s| {
                s.doorbells.iter().zip(0..).map(move |(eventfd, queue)| Doorbell {
                    addr: of(s),
                    queue,
                    eventfd,
                })
            })
            .collect()
    }

    /// Stops all devices with nothing in flight. No vCPU may be running. Guest memory is written by none of them
    /// from the return on. Idempotent.
    ///
    /// # Errors
    /// A file takes longer than [`PATIENCE`] over a request. All devices then run as before.
    pub fn pause(&self) -> Result<(), Busy> {
        let until = Instant::now() + PATIENCE;
        for (n, slot) in self.slots.iter().enumerate() {
            match lock_until(&slot.worker, until) {
                Some(mut worker) => worker.pause(),
                None => {
                    self.slots[..n].iter().for_each(|s| lock(&s.worker).resume());
                    return Err(Busy { device: slot.name.clone(), seconds: PATIENCE.as_secs() });
                }
            }
        }
        Ok(())
    }

    /// Starts them (again).
    pub fn resume(&self) {
        self.slots.iter().for_each(|s| lock(&s.worker).resume());
    }

    /// What the devices have done, in slot order.
    pub fn counted(&self) -> Vec<Counted> {
        // What is busy for long is counted next time.
        let until = Instant::now() + Duration::from_millis(50);
        self.slots.iter().filter_map(|s| lock_until(&s.worker, until)?.counted()).collect()
    }

    /// The sections of all devices, which are paused; the instance is the slot.
    pub fn save(&self) -> Vec<MachineSection> {
        let of = |(slot, s): (u32, &Slot)| {
            let sections = lock(&s.mmio).save();
            sections.into_iter().map(move |section| MachineSection { instance: slot, section })
        };
        (0..).zip(&self.slots).flat_map(of).collect()
    }

    /// Takes the sections of [`Self::save`] into devices that were never started. Guest memory is not touched.
    ///
    /// # Errors
    /// A section is damaged, or a device is not the one that was saved; the error names the device.
    pub fn restore(&self, sections: &[MachineSection]) -> Result<(), RestoreError> {
        let stray = sections.iter().find(|s| s.instance as usize >= self.slots.len());
        if let Some(s) = stray {
            return Err(RestoreError::Mismatch {
                device: format!("virtio slot {}", s.instance),
                what: format!("section {} is there, but no such device is configured", s.section.kind),
            });
        }
        for (slot, s) in (0..).zip(&self.slots) {
            let own: Vec<RawSection> =
                sections.iter().filter(|x| x.instance == slot).map(|x| x.section.clone()).collect();
            lock(&s.mmio).restore(&own)?;
        }
        Ok(())
    }

    /// Whether a section kind belongs here.
    pub fn owns(kind: &str) -> bool {
        kind.starts_with("virtio.")
    }

    /// A disk by its configured name.
    pub fn drive(&self, id: &str) -> Option<&Shared<Block>> {
        self.drives.iter().find(|(name, _)| name == id).map(|(_, d)| d)
    }

    /// The balloon.
    pub fn balloon(&self) -> Option<&Shared<Balloon>> {
        self.balloon.as_ref()
    }

    /// Waits until the host lets frames through every network interface, but no longer than `limit`: for guests that
    /// arrive with open connections.
    pub fn await_links(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let all_up = || self.interfaces.iter().all(|(_, i)| lock(i).device().link_is_up());
        while !all_up() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A network interface by its configured name.
    pub fn interface(&self, id: &str) -> Option<&Shared<Net>> {
        self.interfaces.iter().find(|(name, _)| name == id).map(|(_, d)| d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::mock::{Line, TestClock, ram};
    use event_manager::{EventManager, SubscriberOps};
    use vmm_sys_util::tempfile::TempFile;

    fn board() -> Board {
        Board { mem: ram(), irqs: Arc::new(Line::default()), clock: Arc::new(TestClock::default()) }
    }

    fn drive(id: &str, root: bool, file: &TempFile) -> DriveConfig {
        let json = serde_json::json!({
            "drive_id": id, "path_on_host": file.as_path(), "is_root_device": root, "is_read_only": false
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn slots_windows_and_doorbells() {
        let file = TempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let config = DevicesConfig {
            drives: vec![drive("data", false, &file), drive("root", true, &file)],
            entropy: Some(EntropyConfig::default()),
            ..DevicesConfig::default()
        };
        let all = Slots::build(&config, &board()).unwrap();
        let args: Vec<_> = all.windows().iter().map(Window::kernel_argument).collect();
        assert_eq!(
            args,
            ["0xd0000000:5", "0xd0001000:6", "0xd0002000:7"].map(|a| format!("virtio_mmio.device=4K@{a}"))
        );
        assert_eq!(
            all.doorbells().iter().map(|d| d.addr).collect::<Vec<_>>(),
            [0xd000_0050, 0xd000_1050, 0xd000_2050]
        );
        let bus = Bus::default();
        all.attach(&bus).unwrap();
        assert_eq!(bus.read(0xd000_0000, 4), 0x7472_6976);
        let mut events = EventManager::new().unwrap();
        let own = all.waiting_subscribers();
        assert_eq!(
            own.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(),
            [0, 1],
            "disks have threads of their own"
        );
        all.subscribers().into_iter().chain(own.into_iter().map(|(_, s)| s)).for_each(|s| {
            let _ = events.add_subscriber(s);
        });
        // A disk that does not answer holds up nobody but who needs it at rest.
        {
            let stuck = all.drive("data").unwrap().lock().unwrap();
            let until = Instant::now() + Duration::from_millis(5);
            assert!(lock_until(all.drive("data").unwrap(), until).is_none());
            assert!(lock_until(all.drive("root").unwrap(), until).is_some());
            drop(stuck);
        }
        all.pause().unwrap();
        // A save fits the same machine, and only that.
        let saved = all.save();
        assert_eq!(saved.len(), 6);
        assert!(saved.iter().all(|s| Slots::owns(&s.section.kind)));
        let again = Slots::build(&config, &board()).unwrap();
        again.restore(&saved).unwrap();
        assert_eq!(again.save(), saved);
        let fewer = DevicesConfig { entropy: None, ..config.clone() };
        let error = Slots::build(&fewer, &board()).unwrap().restore(&saved).unwrap_err().to_string();
        assert!(error.contains("slot 2"), "{error}");
        let swapped = DevicesConfig { drives: vec![], ..config };
        assert!(Slots::build(&swapped, &board()).unwrap().restore(&saved[..2]).is_err());
    }
}
