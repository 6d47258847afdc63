//! Port and memory buses: address ranges to devices.
//!
//! Called from vCPU threads through the backend's callbacks. What nobody claims is answered here, once, for every backend.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};

/// A device on a bus. Values are numbers; `width` is 1, 2, 4 or 8 bytes.
pub trait BusDevice: Send {
    /// Reads `width` bytes at `offset` into the device's range.
    fn read(&mut self, offset: u64, width: u32) -> u64;
    /// Writes them.
    fn write(&mut self, offset: u64, width: u32, value: u64);
}

/// A range that is already taken, or empty.
#[derive(Debug, thiserror::Error)]
#[error("bus range {start:#x}+{len:#x} is empty or overlaps another device's")]
pub struct BusError {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

type Entry = (u64, Arc<Mutex<dyn BusDevice>>);

/// Port bus or memory bus.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, Entry>>,
}

impl Bus {
    /// Gives `device` the addresses from `start`.
    ///
    /// # Errors
    /// The range is empty or overlaps another.
    pub fn insert(&self, start: u64, len: u64, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), BusError> {
        let mut ranges = self.ranges.write().unwrap_or_else(|e| e.into_inner());
        let end = start.checked_add(len).filter(|_| len > 0).ok_or(BusError { start, len })?;
        let before = ranges.range(..end).next_back();
        if before.is_some_and(|(s, (l, _))| s + l > start) {
            return Err(BusError { start, len });
        }
        ranges.insert(start, (len, device));
        Ok(())
    }

    fn find(&self, addr: u64) -> Option<(u64, Arc<Mutex<dyn BusDevice>>)> {
        let ranges = self.ranges.read().unwrap_or_else(|e| e.into_inner());
        let (start, (len, device)) = ranges.range(..=addr).next_back()?;
        (addr - start < *len).then(|| (addr - start, Arc::clone(device)))
    }

    /// A guest's read. Nobody there: all ones.
    pub fn read(&self, addr: u64, width: u32) -> u64 {
        let mask = u64::MAX >> (64 - 8 * width.clamp(1, 8));
        match self.find(addr) {
            Some((offset, device)) => {
                device.lock().unwrap_or_else(|e| e.into_inner()).read(offset, width) & mask
            }
            None => mask,
        }
    }

    /// A guest's write. Nobody there: ignored.
    pub fn write(&self, addr: u64, width: u32, value: u64) {
        if let Some((offset, device)) = self.find(addr) {
            device.lock().unwrap_or_else(|e| e.into_inner()).write(offset, width, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u64);
    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, _width: u32) -> u64 {
            self.0 + offset
        }
        fn write(&mut self, _offset: u64, _width: u32, value: u64) {
            self.0 = value;
        }
    }

    #[test]
    fn ranges_do_not_overlap_and_holes_read_as_ones() {
        let bus = Bus::default();
        bus.insert(0x100, 0x10, Arc::new(Mutex::new(Echo(0)))).unwrap();
        for (start, len) in [(0x100, 1), (0xf8, 9), (0x10f, 1), (0xf0, 0x40), (0x200, 0), (u64::MAX, 2)] {
            assert!(bus.insert(start, len, Arc::new(Mutex::new(Echo(0)))).is_err(), "{start:#x}+{len:#x}");
        }
        bus.insert(0xf8, 8, Arc::new(Mutex::new(Echo(0)))).unwrap();
        bus.insert(0x110, 8, Arc::new(Mutex::new(Echo(0)))).unwrap();
        bus.write(0x105, 4, 0x1_2345_6700);
        assert_eq!(bus.read(0x101, 1), 1);
        assert_eq!(bus.read(0x102, 8), 0x1_2345_6702);
        assert_eq!((bus.read(0x200, 1), bus.read(0, 2), bus.read(0x200, 8)), (0xff, 0xffff, u64::MAX));
    }
}
