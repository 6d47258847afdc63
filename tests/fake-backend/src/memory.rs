//! Memory slots of the fake VM, with their dirty logs.

use crate::lock;
use crate::script::Step;
use godwit_sdk::abi::GUEST_PAGE_SIZE;
use godwit_sdk::{Error, MemorySlot, Result};
use std::collections::BTreeMap;
use std::sync::Mutex;

struct Slot {
    slot: MemorySlot,
    log: Option<Vec<u64>>,
}

/// All slots.
#[derive(Default)]
pub(crate) struct Memory(Mutex<BTreeMap<u32, Slot>>);

fn unknown(slot: u32) -> Error {
    Error::Invalid(format!("memory slot {slot} is not mapped"))
}

fn words(slot: &MemorySlot) -> usize {
    (slot.len / GUEST_PAGE_SIZE).div_ceil(64) as usize
}

impl Memory {
    pub(crate) fn map(&self, slot: MemorySlot) -> Result<()> {
        let mut slots = lock(&self.0);
        let overlaps = |s: &MemorySlot| s.gpa < slot.gpa + slot.len && slot.gpa < s.gpa + s.len;
        if slots.contains_key(&slot.slot) || slots.values().any(|s| overlaps(&s.slot)) {
            return Err(Error::Invalid(format!("memory slot {} is mapped, or overlaps another", slot.slot)));
        }
        slots.insert(slot.slot, Slot { slot, log: None });
        Ok(())
    }

    pub(crate) fn unmap(&self, slot: u32) -> Result<()> {
        lock(&self.0).remove(&slot).map(drop).ok_or_else(|| unknown(slot))
    }

    pub(crate) fn set_log(&self, slot: u32, on: bool) -> Result<()> {
        let mut slots = lock(&self.0);
        let s = slots.get_mut(&slot).ok_or_else(|| unknown(slot))?;
        s.log = on.then(|| vec![0; words(&s.slot)]);
        Ok(())
    }

    pub(crate) fn take_log(&self, slot: u32, bitmap: &mut [u64]) -> Result<()> {
        let mut slots = lock(&self.0);
        let s = slots.get_mut(&slot).ok_or_else(|| unknown(slot))?;
        let log = s.log.as_mut().ok_or_else(|| Error::Invalid(format!("slot {slot} does not log writes")))?;
        if bitmap.len() != log.len() {
            return Err(Error::Invalid(format!("dirty log of slot {slot}: {} words are needed", log.len())));
        }
        for (to, from) in bitmap.iter_mut().zip(log) {
            *to |= std::mem::take(from);
        }
        Ok(())
    }

    /// The step at an address.
    pub(crate) fn step(&self, at: u64) -> (Step, u64) {
        let slots = lock(&self.0);
        let mut bytes = [0; Step::LONGEST];
        for (i, byte) in (0..).zip(&mut bytes) {
            let gpa = at.wrapping_add(i);
            let found = slots.values().find(|s| gpa.wrapping_sub(s.slot.gpa) < s.slot.len);
            if let Some(s) = found {
                // SAFETY: inside the slot, which the contract keeps mapped; volatile, because others write it.
                *byte = unsafe { s.slot.host.add((gpa - s.slot.gpa) as usize).read_volatile() };
            }
        }
        Step::decode(&bytes)
    }

    /// Stores a byte and logs it; false where there is no writable memory.
    pub(crate) fn store(&self, gpa: u64, value: u8) -> bool {
        let mut slots = lock(&self.0);
        let found = slots.values_mut().find(|s| gpa.wrapping_sub(s.slot.gpa) < s.slot.len);
        let Some(s) = found.filter(|s| !s.slot.read_only) else { return false };
        let offset = gpa - s.slot.gpa;
        // SAFETY: as above.
        unsafe { s.slot.host.add(offset as usize).write_volatile(value) };
        if let Some(log) = &mut s.log {
            let page = offset / GUEST_PAGE_SIZE;
            log[(page / 64) as usize] |= 1 << (page % 64);
        }
        true
    }
}
