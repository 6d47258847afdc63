//! The board's devices on their buses, and the device thread.

use super::console::{Console, ConsoleInput};
use super::{EventSink, MachineError, wiring};
use crate::board::boot::acpi;
use crate::board::bus::{Bus, BusDevice};
use crate::board::chipset::{Chipset, ElcrPorts, IOAPIC_BASE, IOAPIC_SIZE, IoApicWindow, PicPorts};
use crate::board::clock::BoardClock;
use crate::board::generation::{self, Generation};
use crate::board::i8042::I8042;
use crate::board::irq::IrqLine;
use crate::board::pit::{Pit, SpeakerPort};
use crate::board::rtc::Rtc;
use crate::board::serial::{COM1, COM1_LINE, Serial};
use crate::board::timers::{Timed, Timers, Waker};
use crate::board::{PowerSink, pm};
use crate::memory::GuestRam;
use crate::plugin::BackendVm;
use crate::sandbox::{Entry, Kind};
use crate::virtio::slots::{Board, Busy, DevicesConfig, Slots, Subscriber};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// How long a device's thread may take to end. Only a file that does not answer takes longer.
const FAREWELL: Duration = Duration::from_secs(5);

/// A thread that serves devices by their events: one for all that never wait, one for each disk.
struct Loop {
    end: Arc<AtomicBool>,
    bell: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// Everything on the board but the CPUs.
pub(super) struct Devices {
    _loops: Vec<Loop>,
    ports: Arc<Bus>,
    memory: Arc<Bus>,
    pub(super) chipset: Arc<Chipset>,
    pub(super) serial: Arc<Mutex<Serial>>,
    pub(super) i8042: Arc<Mutex<I8042>>,
    pub(super) pit: Arc<Mutex<Pit>>,
    pub(super) rtc: Arc<Mutex<Rtc>>,
    pub(super) generation: Mutex<Generation>,
    timers: Arc<Mutex<Timers>>,
    slots: Slots,
}

pub(super) fn lock<T: ?Sized>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

fn shared<T>(device: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(device))
}

impl Devices {
    pub(super) fn build(
        config: &DevicesConfig,
        ram: &GuestRam,
        clock: &Arc<BoardClock>,
        console: Console,
        power: PowerSink,
        events: &EventSink,
        entry: &Entry,
    ) -> Result<Self, MachineError> {
        let chipset = Chipset::new();
        let line = |gsi| IrqLine::new(chipset.clone(), gsi);
        let waker = Waker::new().map_err(MachineError::host("board timers"))?;
        let serial = shared(Serial::new(line(COM1_LINE), console.output));
        let i8042 = shared(I8042::new(line(1), Arc::clone(&power)));
        let pit = shared(Pit::new(line(0), clock.clone(), waker.clone()));
        let rtc = shared(Rtc::new(line(8), clock.clone(), waker.clone()));

        let generation = Mutex::new(Generation::new(line(generation::LINE)));

        let ports = Arc::new(Bus::default());
        let add =
            |start: u16, len, device: Arc<Mutex<dyn BusDevice>>| ports.insert(start.into(), len, device);
        add(0x20, 2, shared(PicPorts { chipset: chipset.clone(), base: 0x20 }))?;
        add(0xa0, 2, shared(PicPorts { chipset: chipset.clone(), base: 0xa0 }))?;
        add(0x4d0, 2, shared(ElcrPorts(chipset.clone())))?;
        add(0x40, 4, pit.clone())?;
        add(0x60, 1, i8042.clone())?;
        add(0x61, 1, shared(SpeakerPort(pit.clone())))?;
        add(0x64, 1, shared(Shifted(i8042.clone(), 4)))?;
        add(0x70, 2, rtc.clone())?;
        add(COM1, 8, serial.clone())?;
        add(pm::PORT, 2, shared(pm::Sleep(power)))?;
        let memory = Arc::new(Bus::default());
        memory.insert(IOAPIC_BASE, IOAPIC_SIZE, shared(IoApicWindow(chipset.clone())))?;

        let board = Board { mem: ram.clone(), irqs: chipset.clone(), clock: clock.clone() };
        let slots = Slots::build(config, &board)?;
        slots.attach(&memory)?;

        let timed: Vec<Arc<Mutex<dyn Timed>>> = vec![pit.clone(), rtc.clone()];
        let timers = Timers::new(timed, clock.clone(), waker).map_err(MachineError::host("board timers"))?;
        let timers = shared(timers);
        let input = ConsoleInput::new(console.input, console.escape, serial.clone(), events.clone())
            .map_err(MachineError::host("console"))?;
        let mut subscribers: Vec<Subscriber> = vec![timers.clone(), shared(input)];
        subscribers.extend(slots.subscribers());
        let mut loops = vec![Loop::start("devices".into(), subscribers, entry)?];
        for (slot, disk) in slots.waiting_subscribers() {
            loops.push(Loop::start(format!("disk{slot}"), vec![disk], entry)?);
        }
        Ok(Devices {
            _loops: loops,
            ports,
            memory,
            chipset,
            serial,
            i8042,
            pit,
            rtc,
            generation,
            timers,
            slots,
        })
    }

    pub(super) fn buses(&self) -> (Arc<Bus>, Arc<Bus>, Arc<Chipset>) {
        (self.ports.clone(), self.memory.clone(), self.chipset.clone())
    }

    /// Puts one more device on the memory bus.
    pub(super) fn add_memory(
        &self,
        start: u64,
        len: u64,
        device: impl BusDevice + 'static,
    ) -> Result<(), MachineError> {
        Ok(self.memory.insert(start, len, shared(device))?)
    }

    /// Joins the devices to the CPUs.
    pub(super) fn connect(&self, vm: &BackendVm) -> Result<(), MachineError> {
        self.chipset.connect(wiring::cpu_bus(vm));
        for bell in self.slots.doorbells() {
            if !vm.add_doorbell(bell.addr, bell.queue, bell.eventfd.as_raw_fd())? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    pub(super) fn acpi_tables(&self, vcpus: u32) -> Vec<u8> {
        let windows: Vec<acpi::Window> = self
            .slots
            .windows()
            .iter()
            .map(|w| acpi::Window { addr: w.addr, size: w.size, gsi: w.gsi })
            .collect();
        acpi::tables(vcpus, &windows)
    }

    pub(super) fn ctrl_alt_del(&self) -> bool {
        lock(&self.i8042).ctrl_alt_del()
    }

    /// Everything still, nothing in flight.
    pub(super) fn pause(&self) -> Result<(), Busy> {
        self.slots.pause()?;
        let timers = lock(&self.timers).set_running(false);
        timers.wake();
        lock(&self.serial).settle();
        Ok(())
    }

    /// Goes on. Who is returned sets the timers, once the vCPUs run.
    #[must_use]
    pub(super) fn resume(&self) -> Waker {
        let timers = lock(&self.timers).set_running(true);
        self.slots.resume();
        lock(&self.serial).flush();
        timers
    }
}

/// A device whose second port is not next to its first.
struct Shifted<D>(Arc<Mutex<D>>, u64);

impl<D: BusDevice> BusDevice for Shifted<D> {
    fn read(&mut self, offset: u64, width: u32) -> u64 {
        lock(&self.0).read(offset + self.1, width)
    }

    fn write(&mut self, offset: u64, width: u32, value: u64) {
        lock(&self.0).write(offset + self.1, width, value);
    }
}

impl Loop {
    fn start(name: String, subscribers: Vec<Subscriber>, entry: &Entry) -> Result<Self, MachineError> {
        let failed = |e: event_manager::Error| MachineError::Host {
            what: "device thread",
            source: std::io::Error::other(format!("{e:?}")),
        };
        let mut manager = EventManager::<Subscriber>::new().map_err(failed)?;
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(MachineError::host("device thread"))?;
        manager.add_subscriber(shared(Bell(bell.try_clone().map_err(MachineError::host("device thread"))?)));
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let (label, entry) = (name.clone(), entry.clone());
        let serve = move || {
            if !entry.enter(Kind::Device, &label) {
                return;
            }
            while !ended.load(Ordering::Acquire) {
                if let Err(e) = manager.run() {
                    tracing::error!("device thread: {e:?}");
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(serve)
            .map_err(MachineError::host("device thread"))?;
        Ok(Loop { end, bell, thread: Some(thread) })
    }
}

/// Wakes the device thread up to look whether it is to end.
struct Bell(EventFd);

impl MutEventSubscriber for Bell {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(e) = ops.add(Events::new(&self.0, EventSet::IN)) {
            tracing::error!("device thread: {e:?}");
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        let _ = self.0.read();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        let _ = self.bell.write(1);
        let until = Instant::now() + FAREWELL;
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_micros(100));
            }
            if thread.is_finished() {
                let _ = thread.join();
            } else {
                // It has its own hold on all that it uses, guest memory too.
                tracing::warn!("a disk's file does not answer; its thread is left behind");
            }
        }
    }
}
