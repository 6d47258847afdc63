//! The keyboard controller, as far as PCs need one without a keyboard: the reset line, and Ctrl-Alt-Del.

use super::bus::BusDevice;
use super::irq::IrqLine;
use super::{PowerRequest, PowerSink};
use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};

const OUTPUT_FULL: u8 = 1;
const SYSTEM: u8 = 4;
const FROM_COMMAND: u8 = 8;
/// Room in the output buffer: Ctrl-Alt-Del is nine bytes.
const CAPACITY: usize = 16;

/// State of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042V1 {
    /// Bytes waiting for the guest.
    pub output: Vec<u8>,
    /// Configuration byte.
    pub config: u8,
    /// Output port.
    pub port: u8,
    /// Command whose argument comes next at port 0x60; 0: none.
    pub command: u8,
}

impl Section for I8042V1 {
    const KIND: &'static str = "board.i8042";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        if self.output.len() > CAPACITY {
            return Err(StateError::invalid::<Self>("more than 16 bytes of output"));
        }
        Ok(())
    }
}

/// The device: offset 0 is port 0x60, offset 4 port 0x64.
pub struct I8042 {
    state: I8042V1,
    line: IrqLine,
    power: PowerSink,
}

impl I8042 {
    /// A controller whose keyboard interrupts on `line`.
    pub fn new(line: IrqLine, power: PowerSink) -> Self {
        // Keyboard interrupt and translation on, self-test passed; reset line high.
        let state = I8042V1 { output: Vec::new(), config: 0x45, port: 3, command: 0 };
        I8042 { state, line, power }
    }

    /// Its state.
    pub fn save(&self) -> I8042V1 {
        self.state.clone()
    }

    /// Takes it back.
    pub fn restore(&mut self, state: I8042V1) {
        self.state = state;
    }

    fn give(&mut self, bytes: &[u8]) {
        let room = CAPACITY - self.state.output.len();
        self.state.output.extend(bytes.iter().take(room));
        self.nudge();
    }

    fn nudge(&self) {
        if self.state.config & 1 != 0 && !self.state.output.is_empty() {
            self.line.pulse();
        }
    }

    /// Presses and releases Ctrl-Alt-Del: what asks Linux for a clean reboot. False: no room.
    pub fn ctrl_alt_del(&mut self) -> bool {
        if !self.state.output.is_empty() {
            return false;
        }
        // Scan code set 2, or set 1 if the controller translates.
        if self.state.config & 0x40 != 0 {
            self.give(&[0x1d, 0x38, 0xe0, 0x53]);
        } else {
            self.give(&[0x14, 0x11, 0xe0, 0x71]);
        }
        true
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, _width: u32) -> u64 {
        match offset {
            0 => {
                if self.state.output.is_empty() {
                    return 0;
                }
                let byte = self.state.output.remove(0);
                self.nudge();
                byte.into()
            }
            4 => {
                let full = if self.state.output.is_empty() { 0 } else { OUTPUT_FULL };
                let command = if self.state.command != 0 { FROM_COMMAND } else { 0 };
                (full | command | SYSTEM).into()
            }
            _ => 0xff,
        }
    }

    fn write(&mut self, offset: u64, _width: u32, value: u64) {
        let value = value as u8;
        match (offset, std::mem::take(&mut self.state.command)) {
            (4, _) => match value {
                0xfe => (self.power)(PowerRequest::Reset),
                0x20 => self.give(&[self.state.config]),
                0xd0 => self.give(&[self.state.port]),
                0x60 | 0xd1 | 0xd2 => self.state.command = value,
                0xaa => self.give(&[0x55]),
                0xab => self.give(&[0]),
                // No mouse, so its test fails.
                0xa9 => self.give(&[1]),
                _ => {}
            },
            (0, 0x60) => self.state.config = value,
            (0, 0xd1) => {
                self.state.port = value;
                if value & 1 == 0 {
                    (self.power)(PowerRequest::Reset);
                }
            }
            (0, 0xd2) => self.give(&[value]),
            // To the keyboard: acknowledged; after a reset its self-test passes; asked for its name, it gives it.
            (0, 0) => match value {
                0xff => self.give(&[0xfa, 0xaa]),
                0xf2 => self.give(&[0xfa, 0xab, 0x83]),
                _ => self.give(&[0xfa]),
            },
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::chipset::Chipset;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn reset_by_command_and_by_the_output_port() {
        let resets = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&resets);
        let power: PowerSink = Arc::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let mut d = I8042::new(IrqLine::new(Chipset::new(), 1), power);
        d.write(4, 1, 0xfe);
        d.write(4, 1, 0xd1);
        d.write(0, 1, 0xfe);
        assert_eq!(resets.load(Ordering::Relaxed), 2);
        d.write(4, 1, 0xaa);
        assert_eq!((d.read(4, 1) & 1, d.read(0, 1), d.read(4, 1) & 1), (1, 0x55, 0));
        assert!(d.ctrl_alt_del() && !d.ctrl_alt_del());
        let s = d.save();
        assert_eq!(godwit_state::decode::<I8042V1>(1, &godwit_state::encode(&s)), Ok(s));
        for _ in 0..100 {
            d.write(0, 1, 0xff);
        }
        assert!(d.save().validate().is_ok());
    }
}
