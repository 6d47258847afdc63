//! The VM generation ID: 16 bytes in RAM that are new whenever the guest goes on from a snapshot, and an interrupt that
//! says so (Microsoft's "Virtual Machine Generation ID"; ACPI 6.5, 5.6.9 for the event device).
//!
//! A guest that hears of it throws its random seeds away, so that clones of one snapshot do not share secrets. A live
//! move is no fork: the ID goes along in RAM.

use super::boot::layout;
use super::irq::IrqLine;
use crate::memory::GuestRam;
use godwit_state::{Section, StateError};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

/// Line of the ACPI event device: an ISA line that no device of this board has.
pub const LINE: u32 = 3;

/// The guest was told of the device when it booted. What it reads is in RAM; this is what was put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationV1 {
    /// The ID.
    pub id: [u8; 16],
}

impl Section for GenerationV1 {
    const KIND: &'static str = "board.generation";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), StateError> {
        Ok(())
    }
}

/// The device.
#[derive(Debug)]
pub struct Generation {
    line: IrqLine,
    id: Option<[u8; 16]>,
}

fn put(ram: &GuestRam) -> std::io::Result<[u8; 16]> {
    let mut id = [0; 16];
    // So few bytes come whole.
    let n = getrandom(&mut id, GetRandomFlags::empty())?;
    debug_assert_eq!(n, id.len());
    ram.write_slice(&id, GuestAddress(layout::GENERATION)).map_err(std::io::Error::other)?;
    Ok(id)
}

impl Generation {
    /// A device that the guest does not know of.
    pub fn new(line: IrqLine) -> Self {
        Generation { line, id: None }
    }

    /// Puts a first ID into RAM: the guest is about to boot.
    ///
    /// # Errors
    /// No random numbers, or no RAM there.
    pub fn boot(&mut self, ram: &GuestRam) -> std::io::Result<()> {
        self.id = Some(put(ram)?);
        Ok(())
    }

    /// A new ID, and the guest is told: it is about to go on from a snapshot. Nothing if it knows of no such device.
    ///
    /// # Errors
    /// As for [`Self::boot`].
    pub fn renew(&mut self, ram: &GuestRam) -> std::io::Result<()> {
        if self.id.is_some() {
            self.id = Some(put(ram)?);
            self.line.pulse();
        }
        Ok(())
    }

    /// Its state; none where the guest knows of no such device.
    pub fn save(&self) -> Option<GenerationV1> {
        self.id.map(|id| GenerationV1 { id })
    }

    /// Takes it back. RAM has come by itself.
    pub fn restore(&mut self, state: Option<GenerationV1>) {
        self.id = state.map(|s| s.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::irq::IrqSink;
    use crate::memory::ram::{Backing, allocate};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Edges(AtomicU32, Mutex<bool>);
    impl IrqSink for Edges {
        fn set_line(&self, gsi: u32, level: bool) {
            assert_eq!(gsi, LINE);
            if level && !std::mem::replace(&mut self.1.lock().unwrap(), level) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
            *self.1.lock().unwrap() = level;
        }
    }

    #[test]
    fn a_restored_guest_gets_a_new_id_and_an_interrupt() {
        let ram = allocate(1 << 20, &Backing::Anonymous).unwrap();
        let edges = Arc::new(Edges::default());
        let seen = || {
            let mut id = [0; 16];
            ram.read_slice(&mut id, GuestAddress(layout::GENERATION)).unwrap();
            id
        };
        let mut device = Generation::new(IrqLine::new(edges.clone(), LINE));
        device.renew(&ram).unwrap();
        assert_eq!((seen(), device.save()), ([0; 16], None), "a guest that was not told is left alone");
        device.boot(&ram).unwrap();
        let first = seen();
        assert_eq!(device.save(), Some(GenerationV1 { id: first }));
        let mut clone = Generation::new(IrqLine::new(edges.clone(), LINE));
        clone.restore(device.save());
        assert_eq!((seen(), clone.save(), edges.0.load(Ordering::SeqCst)), (first, device.save(), 0));
        clone.renew(&ram).unwrap();
        assert!(seen() != first && first != [0; 16]);
        assert_eq!(edges.0.load(Ordering::SeqCst), 1);
        assert_eq!(clone.save(), Some(GenerationV1 { id: seen() }));
    }
}
