//! A virtio 1.x device over MMIO, and split queues driven by polling. Also the `tcp` program's.

use core::sync::atomic::{Ordering, fence};

/// Memory that a device gets: queues first, then buffers.
pub const MEMORY: u64 = 4 << 20;
const QUEUE_MEMORY: u64 = 0x4000;
const BUFFERS: u64 = 0x4_0000;

const VERSION_1: u64 = 1 << 32;
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// What went wrong.
pub struct Failure(pub &'static str);
pub type Outcome<T = ()> = Result<T, Failure>;

/// Fails with `why` unless `condition`.
pub fn ensure(condition: bool, why: &'static str) -> Outcome {
    if condition { Ok(()) } else { Err(Failure(why)) }
}

pub fn write<T>(at: u64, value: T) {
    // SAFETY: drivers name their device's registers and memory only.
    unsafe { (at as *mut T).write_volatile(value) }
}

pub fn read<T>(at: u64) -> T {
    // SAFETY: drivers name their device's registers and memory only.
    unsafe { (at as *const T).read_volatile() }
}

/// One device at its window.
pub struct Device {
    pub base: u64,
    memory: u64,
    pub id: u32,
}

/// A buffer for the device to read, or to write.
pub enum Buffer {
    Out(u64, u32),
    In(u64, u32),
}

/// A split queue.
pub struct Queue {
    index: u32,
    at: u64,
    size: u16,
    seen: u16,
}

impl Device {
    /// The device at `base`, if there is one of version 1.x.
    pub fn probe(base: u64, memory: u64) -> Option<Self> {
        let id = read::<u32>(base + 8);
        let there = read::<u32>(base) == 0x7472_6976 && read::<u32>(base + 4) == 2 && id != 0;
        there.then_some(Self { base, memory, id })
    }

    /// Memory for buffers.
    pub fn buffers(&self) -> u64 {
        self.memory + BUFFERS
    }

    pub fn reset(&mut self) {
        write(self.base + 0x70, 0u32);
    }

    /// Negotiates those of `wanted` that are offered; returns them.
    pub fn start(&mut self, wanted: u64) -> Outcome<u64> {
        self.reset();
        ensure(read::<u32>(self.base + 0x70) == 0, "does not reset")?;
        write(self.base + 0x70, ACKNOWLEDGE);
        write(self.base + 0x70, ACKNOWLEDGE | DRIVER);
        let mut offered = 0;
        for word in 0..2u32 {
            write(self.base + 0x14, word);
            offered |= u64::from(read::<u32>(self.base + 0x10)) << (32 * word);
        }
        ensure(offered & VERSION_1 != 0, "no version 1")?;
        let taken = offered & (wanted | VERSION_1);
        for word in 0..2u32 {
            write(self.base + 0x24, word);
            write(self.base + 0x20, (taken >> (32 * word)) as u32);
        }
        write(self.base + 0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        ensure(read::<u32>(self.base + 0x70) & FEATURES_OK != 0, "refuses its own features")?;
        Ok(taken)
    }

    /// Sets up queue `index` with `size` elements, at most 256.
    pub fn queue_of(&mut self, index: u32, size: u16) -> Outcome<Queue> {
        let at = self.memory + u64::from(index) * QUEUE_MEMORY;
        write(self.base + 0x30, index);
        ensure(read::<u32>(self.base + 0x44) == 0, "queue in use after reset")?;
        ensure(read::<u32>(self.base + 0x34) >= u32::from(size), "queue too small")?;
        write(self.base + 0x38, u32::from(size));
        for (register, address) in [(0x80, at), (0x90, at + 0x1000), (0xa0, at + 0x2000)] {
            write(self.base + register, address as u32);
            write(self.base + register + 4, (address >> 32) as u32);
        }
        write(at + 0x1000, 1u16); // no interrupts: we poll
        write(at + 0x1002, 0u16);
        write(at + 0x2002, 0u16);
        write(self.base + 0x44, 1u32);
        ensure(read::<u32>(self.base + 0x44) == 1, "queue does not become ready")?;
        Ok(Queue { index, at, size, seen: 0 })
    }

    /// All queues are there: the device may work.
    pub fn go(&mut self) {
        write(self.base + 0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    pub fn config<T>(&self, offset: u64) -> T {
        read(self.base + 0x100 + offset)
    }

    pub fn notify(&self, queue: &Queue) {
        fence(Ordering::SeqCst);
        write(self.base + 0x50, queue.index);
    }
}

impl Queue {
    /// Offers a chain whose descriptors start at `first`; returns the number of descriptors.
    pub fn add(&mut self, first: u16, buffers: &[Buffer]) -> u16 {
        let count = buffers.len() as u16;
        for (i, buffer) in (0u16..).zip(buffers) {
            let (address, len, mut flags) = match *buffer {
                Buffer::Out(address, len) => (address, len, 0),
                Buffer::In(address, len) => (address, len, WRITE),
            };
            if i + 1 < count {
                flags |= NEXT;
            }
            let slot = self.at + u64::from(first + i) * 16;
            write(slot, address);
            write(slot + 8, len);
            write(slot + 12, flags);
            write(slot + 14, first + i + 1);
        }
        let available = self.at + 0x1000;
        let index = read::<u16>(available + 2);
        write(available + 4 + u64::from(index % self.size) * 2, first);
        fence(Ordering::SeqCst);
        write(available + 2, index.wrapping_add(1));
        count
    }

    /// Whether the device wants to hear of what was added.
    pub fn wants_notification(&self) -> bool {
        fence(Ordering::SeqCst);
        read::<u16>(self.at + 0x2000) & 1 == 0
    }

    /// The next finished chain: its first descriptor and the bytes written; `None` if there is none yet.
    pub fn poll(&mut self) -> Option<(u16, u32)> {
        let used = self.at + 0x2000;
        if read::<u16>(used + 2) == self.seen {
            return None;
        }
        fence(Ordering::SeqCst);
        let slot = used + 4 + u64::from(self.seen % self.size) * 8;
        self.seen = self.seen.wrapping_add(1);
        Some((read::<u32>(slot) as u16, read::<u32>(slot + 4)))
    }
}
