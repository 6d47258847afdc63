//! The two 8259A interrupt controllers, cascaded on line 2.
//!
//! Owned by `chipset`, which holds the lock. After Intel's data sheet; edge/level control registers as on PCs.

use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};

/// One 8259A.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PicChipV1 {
    /// Requests.
    pub irr: u8,
    /// Mask.
    pub imr: u8,
    /// In service.
    pub isr: u8,
    /// Levels of the inputs.
    pub levels: u8,
    /// Lines that are level-triggered (ELCR).
    pub elcr: u8,
    /// Upper five bits of the vectors.
    pub base: u8,
    /// Line of the highest priority.
    pub highest: u8,
    /// Next initialisation word expected: 0 none, 2, 3 or 4.
    pub init: u8,
    /// ICW4 will come.
    pub needs_icw4: bool,
    /// Reads give ISR instead of IRR.
    pub read_isr: bool,
    /// The next read is a poll.
    pub poll: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// End of interrupt by itself.
    pub auto_eoi: bool,
    /// ...with rotation.
    pub rotate_on_auto_eoi: bool,
    /// Special fully nested mode.
    pub nested: bool,
}

/// State of both chips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PicV1 {
    /// Lines 0 to 7.
    pub master: PicChipV1,
    /// Lines 8 to 15.
    pub slave: PicChipV1,
}

impl Section for PicV1 {
    const KIND: &'static str = "board.pic";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        for chip in [&self.master, &self.slave] {
            if chip.highest > 7 || !matches!(chip.init, 0 | 2..=4) || chip.base & 7 != 0 {
                return Err(StateError::invalid::<Self>("impossible priority, initialisation step or base"));
            }
        }
        Ok(())
    }
}

impl PicChipV1 {
    /// The line that has priority among `bits`, and its rank (0 is highest).
    fn first(&self, bits: u8) -> Option<(u8, u8)> {
        (0..8).map(|rank| ((self.highest + rank) & 7, rank)).find(|(line, _)| bits & 1 << line != 0)
    }

    /// The line to be acknowledged, if any.
    fn pending(&self, is_master: bool) -> Option<u8> {
        let (line, rank) = self.first(self.irr & !self.imr)?;
        let mut busy = self.isr;
        if self.special_mask {
            busy &= !self.imr;
        }
        if self.nested && is_master {
            busy &= !(1 << 2);
        }
        self.first(busy).is_none_or(|(_, serving)| rank < serving).then_some(line)
    }

    fn set(&mut self, line: u8, level: bool) {
        let bit = 1u8 << line;
        if self.elcr & bit != 0 {
            if level {
                self.irr |= bit;
            } else {
                self.irr &= !bit;
            }
        } else if level && self.levels & bit == 0 {
            // Kept when the line falls again: devices here pulse their lines.
            self.irr |= bit;
        }
        self.levels = self.levels & !bit | if level { bit } else { 0 };
    }

    fn acknowledge(&mut self, line: u8) {
        let bit = 1 << line;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.highest = (line + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1.
            *self = PicChipV1 {
                levels: self.levels,
                elcr: self.elcr,
                init: 2,
                needs_icw4: value & 1 != 0,
                irr: self.levels & self.elcr,
                ..Default::default()
            };
        } else if value & 8 != 0 {
            // OCW3.
            if value & 4 != 0 {
                self.poll = true;
            }
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            // OCW2.
            let line = value & 7;
            match value >> 5 {
                0 => self.rotate_on_auto_eoi = false,
                4 => self.rotate_on_auto_eoi = true,
                op @ (1 | 5) => {
                    if let Some((served, _)) = self.first(self.isr) {
                        self.isr &= !(1 << served);
                        if op == 5 {
                            self.highest = (served + 1) & 7;
                        }
                    }
                }
                3 => self.isr &= !(1 << line),
                6 => self.highest = (line + 1) & 7,
                7 => {
                    self.isr &= !(1 << line);
                    self.highest = (line + 1) & 7;
                }
                _ => {}
            }
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.init {
            2 => {
                self.base = value & 0xf8;
                self.init = 3;
            }
            3 => self.init = if self.needs_icw4 { 4 } else { 0 },
            4 => {
                self.nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.init = 0;
            }
            _ => self.imr = value,
        }
    }
}

#[derive(Default)]
pub(super) struct Pic {
    state: PicV1,
}

impl Pic {
    pub(super) fn state(&self) -> &PicV1 {
        &self.state
    }

    pub(super) fn restore(&mut self, state: PicV1) {
        self.state = state;
    }

    /// Passes the slave's output to the master; then the INTR output.
    pub(super) fn output(&mut self) -> bool {
        let slave = self.state.slave.pending(false).is_some();
        let master = &mut self.state.master;
        master.irr = master.irr & !4 | u8::from(slave) << 2;
        self.state.master.pending(true).is_some()
    }

    pub(super) fn set_level(&mut self, line: u8, level: bool) {
        match line {
            0..8 => self.state.master.set(line, level),
            _ => self.state.slave.set(line & 7, level),
        }
    }

    /// INTA: the vector; a spurious one if the request has gone away.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let PicV1 { master, slave } = &mut self.state;
        match master.pending(true) {
            Some(2) => {
                master.acknowledge(2);
                match slave.pending(false) {
                    Some(line) => {
                        slave.acknowledge(line);
                        slave.base + line
                    }
                    None => slave.base + 7,
                }
            }
            Some(line) => {
                master.acknowledge(line);
                master.base + line
            }
            None => master.base + 7,
        }
    }

    pub(super) fn read(&mut self, port: u16) -> u8 {
        let is_master = port & 0x80 == 0;
        let chip = if is_master { &mut self.state.master } else { &mut self.state.slave };
        if std::mem::take(&mut chip.poll) {
            return match chip.pending(is_master) {
                Some(line) => {
                    chip.acknowledge(line);
                    0x80 | line
                }
                None => 7,
            };
        }
        match (port & 1, chip.read_isr) {
            (1, _) => chip.imr,
            (_, true) => chip.isr,
            _ => chip.irr,
        }
    }

    pub(super) fn write(&mut self, port: u16, value: u8) {
        let chip = if port & 0x80 == 0 { &mut self.state.master } else { &mut self.state.slave };
        match port & 1 {
            0 => chip.write_command(value),
            _ => chip.write_data(value),
        }
    }

    /// ELCR ports 0x4d0 and 0x4d1.
    pub(super) fn read_elcr(&self, second: bool) -> u8 {
        if second { self.state.slave.elcr } else { self.state.master.elcr }
    }

    pub(super) fn write_elcr(&mut self, second: bool, value: u8) {
        // Lines 0, 1, 2, 8 and 13 cannot be level-triggered.
        if second {
            self.state.slave.elcr = value & 0xde;
        } else {
            self.state.master.elcr = value & 0xf8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> Pic {
        let mut p = Pic::default();
        for (port, base) in [(0x20, 0x20), (0xa0, 0x28)] {
            p.write(port, 0x11);
            p.write(port + 1, base);
            p.write(port + 1, 4);
            p.write(port + 1, 1);
        }
        p
    }

    #[test]
    fn priorities_and_the_cascade() {
        let mut p = ready();
        p.set_level(12, true);
        p.set_level(4, true);
        assert!(p.output());
        assert_eq!(p.acknowledge(), 0x2c, "the slave sits on line 2, above line 4");
        assert!(!p.output());
        p.write(0xa0, 0x20);
        p.write(0x20, 0x20);
        assert!(p.output());
        assert_eq!(p.acknowledge(), 0x24);
        p.write(0x20, 0x20);
        assert!(!p.output());
        assert_eq!(p.acknowledge(), 0x27, "spurious");
    }

    #[test]
    fn a_masked_line_waits() {
        let mut p = ready();
        p.write(0x21, 0x10);
        p.set_level(4, true);
        assert!(!p.output());
        p.write(0x21, 0);
        assert!(p.output());
        assert_eq!((p.read(0x21), p.read(0x20)), (0, 0x10));
        assert!(p.state().validate().is_ok());
        assert_eq!(godwit_state::decode::<PicV1>(1, &godwit_state::encode(p.state())), Ok(*p.state()));
    }
}
