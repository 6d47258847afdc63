//! The I/O APIC (Intel 82093AA): 24 pins, each turned into a message to the local APICs.
//!
//! Owned by `chipset`, which holds the lock.

use super::chipset::Route;
use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};

/// Number of pins.
pub(super) const PINS: usize = 24;
/// Id register, version register, arbitration register, first redirection entry.
const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_TABLE: u8 = 0x10;
/// Version 0x11 with 24 entries.
const VERSION: u32 = 0x11 | (PINS as u32 - 1) << 16;

const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// What a guest may write: all but delivery status, remote IRR and the reserved bits.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// State of the I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicV1 {
    /// Selected register.
    pub select: u8,
    /// The id register's four bits.
    pub id: u8,
    /// Redirection entries as the guest reads them.
    pub entries: [u64; PINS],
    /// Levels of the pins, bit i is pin i.
    pub levels: u32,
}

impl Section for IoApicV1 {
    const KIND: &'static str = "board.ioapic";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        let bad = |what: &str| Err(StateError::invalid::<Self>(what));
        if self.id > 15 {
            return bad("id has more than four bits");
        }
        if self.levels >> PINS != 0 {
            return bad("a line above 23 is high");
        }
        if self.entries.iter().any(|e| e & !(WRITABLE | REMOTE_IRR) != 0) {
            return bad("a redirection entry has reserved bits set");
        }
        Ok(())
    }
}

/// What has to be done after a change, outside of the registers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// Messages to send.
    pub(super) messages: Vec<(u64, u32)>,
    /// The routes have changed.
    pub(super) routes: bool,
}

pub(super) struct IoApic {
    state: IoApicV1,
}

impl IoApic {
    pub(super) fn new() -> Self {
        IoApic { state: IoApicV1 { select: 0, id: 0, entries: [MASKED; PINS], levels: 0 } }
    }

    pub(super) fn state(&self) -> &IoApicV1 {
        &self.state
    }

    pub(super) fn restore(&mut self, state: IoApicV1) {
        self.state = state;
    }

    fn message(entry: u64) -> (u64, u32) {
        let destination = entry >> 56;
        let logical = entry >> 11 & 1;
        let mode = (entry >> 8 & 7) as u32;
        let hint = u64::from(mode == 1);
        let level = if entry & LEVEL != 0 { 0xc000 } else { 0 };
        (
            0xfee0_0000 | destination << 12 | hint << 3 | logical << 2,
            (entry as u32 & 0xff) | mode << 8 | level,
        )
    }

    pub(super) fn routes(&self) -> Vec<Route> {
        let of = |(gsi, entry): (u32, &u64)| {
            let (address, data) = Self::message(*entry);
            Route { gsi, address, data, masked: entry & MASKED != 0 }
        };
        (0..).zip(&self.state.entries).map(of).collect()
    }

    /// Sends what pin `pin` has to say, if it may.
    fn service(&mut self, pin: usize, effects: &mut Effects) {
        let entry = &mut self.state.entries[pin];
        if *entry & MASKED != 0 {
            return;
        }
        if *entry & LEVEL != 0 {
            if *entry & REMOTE_IRR != 0 {
                return;
            }
            *entry |= REMOTE_IRR;
        }
        effects.messages.push(Self::message(*entry));
    }

    pub(super) fn set_level(&mut self, pin: usize, level: bool, effects: &mut Effects) {
        let bit = 1 << pin;
        let was = self.state.levels & bit != 0;
        self.state.levels = self.state.levels & !bit | if level { bit } else { 0 };
        // A level-triggered pin that is high already is pending, not new.
        if level && !was {
            self.service(pin, effects);
        }
    }

    pub(super) fn eoi(&mut self, vector: u8, effects: &mut Effects) {
        for pin in 0..PINS {
            let entry = self.state.entries[pin];
            if entry & LEVEL != 0 && entry & REMOTE_IRR != 0 && entry as u8 == vector {
                self.state.entries[pin] &= !REMOTE_IRR;
                if self.state.levels & 1 << pin != 0 {
                    self.service(pin, effects);
                }
            }
        }
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            0 => self.state.select.into(),
            0x10 => match self.state.select {
                REG_ID | REG_ARBITRATION => u32::from(self.state.id) << 24,
                REG_VERSION => VERSION,
                r => {
                    let index = usize::from(r.wrapping_sub(REG_TABLE));
                    let entry = self.state.entries.get(index / 2).copied();
                    entry.map_or(0, |e| (e >> (32 * (index & 1))) as u32)
                }
            },
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32, effects: &mut Effects) {
        match offset {
            0 => self.state.select = value as u8,
            0x10 => match self.state.select {
                REG_ID => self.state.id = (value >> 24) as u8 & 15,
                REG_VERSION | REG_ARBITRATION => {}
                r => {
                    let index = usize::from(r.wrapping_sub(REG_TABLE));
                    let pin = index / 2;
                    let Some(entry) = self.state.entries.get_mut(pin) else { return };
                    let old = *entry;
                    let shift = 32 * (index & 1);
                    let written = old & !(0xffff_ffff << shift) | u64::from(value) << shift;
                    *entry = written & WRITABLE | old & REMOTE_IRR;
                    if *entry & LEVEL == 0 {
                        *entry &= !REMOTE_IRR;
                    }
                    let high = self.state.levels & 1 << pin != 0;
                    let level = *entry & LEVEL != 0;
                    effects.routes = *entry != old;
                    if high && level {
                        self.service(pin, effects);
                    }
                }
            },
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(a: &mut IoApic, pin: u8, entry: u64) -> Effects {
        let mut e = Effects::default();
        a.write(0, u32::from(0x11 + 2 * pin), &mut e);
        a.write(0x10, (entry >> 32) as u32, &mut e);
        a.write(0, u32::from(0x10 + 2 * pin), &mut e);
        a.write(0x10, entry as u32, &mut e);
        e
    }

    #[test]
    fn an_edge_is_one_message() {
        let mut a = IoApic::new();
        assert!(program(&mut a, 4, 3 << 56 | 0x31).routes);
        let mut e = Effects::default();
        a.set_level(4, true, &mut e);
        a.set_level(4, true, &mut e);
        a.set_level(4, false, &mut e);
        assert_eq!(e.messages, [(0xfee0_3000, 0x31)]);
        a.set_level(5, true, &mut e);
        assert_eq!(e.messages.len(), 1, "a masked pin is silent");
    }

    #[test]
    fn a_level_comes_again_after_its_eoi_while_it_is_high() {
        let mut a = IoApic::new();
        program(&mut a, 9, LEVEL | 0x51);
        let mut e = Effects::default();
        a.set_level(9, true, &mut e);
        a.set_level(9, false, &mut e);
        a.set_level(9, true, &mut e);
        assert_eq!(e.messages.len(), 1);
        a.eoi(0x50, &mut e);
        assert_eq!(e.messages.len(), 1);
        a.eoi(0x51, &mut e);
        assert_eq!(e.messages.len(), 2);
        a.set_level(9, false, &mut e);
        a.eoi(0x51, &mut e);
        assert_eq!((e.messages.len(), a.state.entries[9] & REMOTE_IRR), (2, 0));
        // High while masked: it comes when unmasked.
        program(&mut a, 9, LEVEL | MASKED | 0x51);
        a.set_level(9, true, &mut e);
        assert_eq!(program(&mut a, 9, LEVEL | 0x51).messages, [(0xfee0_0000, 0xc051)]);
    }

    #[test]
    fn registers_read_back() {
        let mut a = IoApic::new();
        program(&mut a, 23, u64::MAX);
        assert_eq!(a.state.entries[23], WRITABLE);
        let mut e = Effects::default();
        a.write(0, 1, &mut e);
        assert_eq!(a.read(0x10), 0x17_0011);
        a.write(0, 0x40, &mut e);
        a.write(0x10, 1, &mut e);
        assert_eq!(a.read(0x10), 0);
        let s = a.state.clone();
        assert!(s.validate().is_ok());
        assert_eq!(godwit_state::decode::<IoApicV1>(1, &godwit_state::encode(&s)), Ok(s));
    }
}
