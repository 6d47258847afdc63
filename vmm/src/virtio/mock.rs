//! A driver for tests and fuzzing: sets a device up through its registers and builds chains in guest memory.

use super::transport::{DeviceSide, Interrupt, Mmio, Worker, reg, status};
use super::{VirtioDevice, feature};
use crate::board::bus::BusDevice;
use crate::board::clock::Clock;
use crate::board::irq::{IrqLine, IrqSink};
use crate::memory::GuestRam;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// Bytes of the guest's memory.
pub const RAM: u64 = 4 << 20;
/// Where buffers go: the lower half is for rings and tables.
pub const BUFFERS: u64 = 1 << 20;
/// Elements in each queue.
pub const SIZE: u16 = 16;
/// Descriptor flags.
pub const NEXT: u16 = 1;
#[allow(missing_docs)]
pub const WRITE: u16 = 2;
#[allow(missing_docs)]
pub const INDIRECT: u16 = 4;

/// Counts edges and keeps the level.
#[derive(Default)]
pub struct Line {
    /// Low to high so far.
    pub edges: AtomicU32,
    /// Now.
    pub level: AtomicBool,
}

impl IrqSink for Line {
    fn set_line(&self, _gsi: u32, level: bool) {
        if level && !self.level.swap(level, Ordering::SeqCst) {
            self.edges.fetch_add(1, Ordering::SeqCst);
        }
        self.level.store(level, Ordering::SeqCst);
    }
}

/// A clock that a test moves.
#[derive(Default)]
pub struct TestClock(pub AtomicU64);

impl Clock for TestClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    fn utc_ns(&self) -> u64 {
        self.now_ns()
    }
}

/// A device with its window, and a driver's view of it.
pub struct Driver<D: VirtioDevice> {
    /// Guest memory.
    pub mem: GuestRam,
    /// The window.
    pub mmio: Mmio,
    /// The worker behind it.
    pub worker: Arc<Mutex<Worker<D>>>,
    /// The interrupt line.
    pub line: Arc<Line>,
    /// Guest time.
    pub clock: Arc<TestClock>,
    queues: usize,
    avail: Vec<u16>,
    used: Vec<u16>,
    next_desc: Vec<u16>,
    next_buffer: u64,
}

/// New guest memory.
pub fn ram() -> GuestRam {
    Arc::new(
        vm_memory::GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("test memory"),
    )
}

fn table(queue: usize) -> u64 {
    0x1_0000 + queue as u64 * 0x1_0000
}

impl<D: VirtioDevice + 'static> Driver<D> {
    /// Wires `device` up, not started.
    pub fn new(device: D, mem: GuestRam) -> Self {
        let line = Arc::new(Line::default());
        let clock = Arc::new(TestClock::default());
        let interrupt = Arc::new(Interrupt::new(IrqLine::new(line.clone(), 5)));
        let queues = device.queue_sizes().len();
        let doorbells: Arc<[EventFd]> =
            (0..queues).map(|_| EventFd::new(libc::EFD_NONBLOCK).expect("eventfd")).collect();
        let worker = Worker::new(device, mem.clone(), interrupt.clone(), doorbells.clone(), clock.clone());
        let worker = Arc::new(Mutex::new(worker));
        let mmio = Mmio::new(worker.clone(), interrupt, doorbells);
        Driver {
            mem,
            mmio,
            worker,
            line,
            clock,
            queues,
            avail: vec![0; queues],
            used: vec![0; queues],
            next_desc: vec![0; queues],
            next_buffer: BUFFERS,
        }
    }

    /// Reads a register.
    pub fn get(&mut self, register: u64) -> u32 {
        self.mmio.read(register, 4) as u32
    }

    /// Writes one.
    pub fn set(&mut self, register: u64, value: u32) {
        self.mmio.write(register, 4, value.into());
    }

    /// The features on offer.
    pub fn offered(&mut self) -> u64 {
        self.set(reg::DEVICE_FEATURES_SEL, 1);
        let high = u64::from(self.get(reg::DEVICE_FEATURES)) << 32;
        self.set(reg::DEVICE_FEATURES_SEL, 0);
        high | u64::from(self.get(reg::DEVICE_FEATURES))
    }

    /// Takes `features` and starts the device with all queues.
    pub fn start(&mut self, features: u64) {
        self.set(reg::STATUS, 0);
        self.set(reg::STATUS, status::ACKNOWLEDGE);
        self.set(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(reg::DRIVER_FEATURES_SEL, select);
            self.set(reg::DRIVER_FEATURES, half);
        }
        let so_far = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set(reg::STATUS, so_far);
        for q in 0..self.queues {
            let at = table(q);
            let _ = self.mem.write_slice(&[0; 0x3000], GuestAddress(at));
            self.set(reg::QUEUE_SEL, q as u32);
            self.set(reg::QUEUE_NUM, SIZE.into());
            self.set(reg::QUEUE_DESC_LOW, at as u32);
            self.set(reg::QUEUE_DRIVER_LOW, at as u32 + 0x1000);
            self.set(reg::QUEUE_DEVICE_LOW, at as u32 + 0x2000);
            self.set(reg::QUEUE_READY, 1);
        }
        self.set(reg::STATUS, so_far | status::DRIVER_OK);
        self.avail.fill(0);
        self.used.fill(0);
        self.next_desc.fill(0);
        self.next_buffer = BUFFERS;
    }

    /// Starts with everything that is offered but the event index.
    pub fn start_plain(&mut self) {
        let offered = self.offered();
        self.start(offered & !feature::EVENT_IDX);
    }

    /// Writes one descriptor.
    pub fn desc(&self, queue: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.desc_at(table(queue) + u64::from(index) * 16, addr, len, flags, next);
    }

    /// Writes a descriptor anywhere, for indirect tables.
    pub fn desc_at(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let _ = self.mem.write_slice(&bytes, GuestAddress(at));
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = table(queue) + 0x1000;
        let slot = ring + 4 + 2 * u64::from(self.avail[queue] % SIZE);
        let _ = self.mem.write_slice(&head.to_le_bytes(), GuestAddress(slot));
        self.avail[queue] = self.avail[queue].wrapping_add(1);
        let _ = self.mem.write_slice(&self.avail[queue].to_le_bytes(), GuestAddress(ring + 2));
    }

    /// Builds a chain of `out` buffers and room for `into` lengths, and offers it. Returns the addresses of all.
    pub fn send(&mut self, queue: usize, out: &[&[u8]], into: &[u32]) -> Vec<u64> {
        let pieces: Vec<_> = out
            .iter()
            .map(|b| (b.len() as u32, Some(*b)))
            .chain(into.iter().map(|&len| (len, None)))
            .collect();
        let head = self.next_desc[queue] % SIZE;
        let mut addresses = Vec::new();
        for (i, (len, bytes)) in pieces.iter().enumerate() {
            if self.next_buffer + u64::from(*len) > RAM {
                self.next_buffer = BUFFERS;
            }
            let addr = self.next_buffer;
            self.next_buffer += u64::from(*len).next_multiple_of(16);
            if let Some(bytes) = bytes {
                self.mem.write_slice(bytes, GuestAddress(addr)).expect("buffer");
            }
            let index = self.next_desc[queue] % SIZE;
            self.next_desc[queue] = self.next_desc[queue].wrapping_add(1);
            let more = i + 1 < pieces.len();
            let flags = if bytes.is_none() { WRITE } else { 0 } | if more { NEXT } else { 0 };
            self.desc(queue, index, addr, *len, flags, (index + 1) % SIZE);
            addresses.push(addr);
        }
        self.offer(queue, head);
        addresses
    }

    /// What the event loop does for a notified queue, at most `turns` times; true if it came to rest.
    pub fn run(&mut self, queue: usize, turns: usize) -> bool {
        let mut worker = self.worker.lock().expect("worker");
        (0..turns).any(|_| !worker.run_queue(queue))
    }

    /// The next used element: chain head and length.
    pub fn used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = table(queue) + 0x2000;
        let mut idx = [0; 2];
        self.mem.read_slice(&mut idx, GuestAddress(ring + 2)).expect("used ring");
        if u16::from_le_bytes(idx) == self.used[queue] {
            return None;
        }
        let mut elem = [0; 8];
        let at = ring + 4 + 8 * u64::from(self.used[queue] % SIZE);
        self.mem.read_slice(&mut elem, GuestAddress(at)).expect("used ring");
        self.used[queue] = self.used[queue].wrapping_add(1);
        let word = |i: usize| u32::from_le_bytes(std::array::from_fn(|k| elem[i + k]));
        Some((word(0), word(4)))
    }

    /// Chains offered and not yet seen used.
    pub fn outstanding(&self, queue: usize) -> u16 {
        self.avail[queue].wrapping_sub(self.used[queue])
    }

    /// Reads guest memory.
    pub fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.mem.read_slice(&mut out, GuestAddress(addr)).expect("guest memory");
        out
    }

    /// The device has asked for a reset.
    pub fn broken(&mut self) -> bool {
        self.get(reg::STATUS) & status::NEEDS_RESET != 0
    }

    /// The state of this paused device is that of `fresh` once it has taken it on.
    pub fn saved_as(self, fresh: D) {
        let sections = self.mmio.save();
        let mut there = Driver::new(fresh, self.mem.clone());
        there.worker.lock().expect("worker").pause();
        there.mmio.restore(&sections).expect("what was saved can be restored");
        assert_eq!(there.mmio.save(), sections, "a restored device saves the same");
    }

    /// Saves this device and restores it into `fresh` over the same memory, as a move does; the driver goes on.
    pub fn moved_to(self, fresh: D) -> Self {
        self.worker.lock().expect("worker").pause();
        let sections = self.mmio.save();
        let mut there = Driver::new(fresh, self.mem.clone());
        there.worker.lock().expect("worker").pause();
        there.mmio.restore(&sections).expect("restore");
        assert_eq!(there.mmio.save(), sections, "a restored device saves the same");
        there.worker.lock().expect("worker").resume();
        there.avail = self.avail;
        there.used = self.used;
        there.next_desc = self.next_desc;
        there.next_buffer = self.next_buffer;
        there
    }
}

/// Plays `data` as a hostile driver: registers, rings, descriptors and notifications in any order. Always ends.
pub fn play<D: VirtioDevice + 'static>(device: D, data: &[u8]) -> Driver<D> {
    let mut d = Driver::new(device, ram());
    let offered = d.offered();
    d.start(offered);
    let mut ops = data.chunks_exact(12);
    for op in &mut ops {
        let word = |i: usize| u32::from_le_bytes(std::array::from_fn(|k| op[i + k]));
        let (q, value) = (usize::from(op[1]) % d.queues.max(1), word(4));
        match op[0] % 12 {
            0 => d.mmio.write(u64::from(word(8) % 0x200), u32::from(op[2] % 9), value.into()),
            1 => drop(d.mmio.read(u64::from(word(8) % 0x200), u32::from(op[2] % 9))),
            2 => d.offer(q, value as u16 % (SIZE + 1)),
            3 => {
                let ring = table(q) + 0x1000;
                let _ = d.mem.write_slice(&op[4..8], GuestAddress(ring + u64::from(op[2] % 40)));
            }
            4 => {
                let features = offered & !(u64::from(word(4)) | u64::from(word(8) & 0x0fff_ffff) << 32);
                d.start(features | feature::VERSION_1);
            }
            // Descriptors: mostly small, in RAM, one after the other.
            5..=7 => {
                let addr = BUFFERS + u64::from(value % 0x1_0000);
                let next = (u16::from(op[2]) + 1) % SIZE;
                d.desc(q, u16::from(op[2]) % SIZE, addr, word(8) % 0x4000, u16::from(op[3]) & 3, next);
            }
            8 => {
                let addr = u64::from(value) << (op[3] % 33);
                d.desc(
                    q,
                    u16::from(op[2]) % SIZE,
                    addr,
                    word(8),
                    u16::from(op[3] % 8),
                    u16::from(op[3]) % 20,
                );
            }
            9 => {
                let at = BUFFERS + u64::from(value % 0x1_0000);
                let _ = d.mem.write_slice(&op[8..12], GuestAddress(at));
            }
            _ => {
                d.clock.0.fetch_add(value.into(), Ordering::SeqCst);
                d.run(q, 4);
            }
        }
    }
    for q in 0..d.queues {
        d.run(q, 4);
    }
    let mut worker = d.worker.lock().expect("worker");
    worker.pause();
    drop(worker);
    let _ = d.mmio.save();
    d
}

/// Feeds hostile bytes to a device's restore; whatever comes out may be refused, and must not panic.
pub fn restore_hostile<D: VirtioDevice + 'static>(device: D, data: &[u8]) {
    let mut d = Driver::new(device, ram());
    let mut sections = d.mmio.save();
    let (which, data) = data.split_first().unwrap_or((&0, &[]));
    if let Some(section) = sections.get_mut(usize::from(which & 1)) {
        if which & 2 == 0 {
            section.data = data.to_vec();
        } else {
            for pair in data.chunks_exact(2) {
                let at = usize::from(pair[0]) % section.data.len().max(1);
                if let Some(byte) = section.data.get_mut(at) {
                    *byte = pair[1];
                }
            }
        }
    }
    d.worker.lock().expect("worker").pause();
    if d.mmio.restore(&sections).is_ok() {
        d.worker.lock().expect("worker").resume();
        for q in 0..d.queues {
            d.run(q, 4);
        }
    }
}
