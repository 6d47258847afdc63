//! The serial port (16550A) with FIFOs and interrupts.
//!
//! Output goes out as the host takes it, which may gather a stream of bytes for a moment; what it does not take waits here,
//! and the transmitter then reads as busy, so that a guest that looks waits and a guest that does not loses nothing within
//! reason.

use super::bus::BusDevice;
use super::irq::IrqLine;
use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// First port of COM1.
pub const COM1: u16 = 0x3f8;
/// COM1's line.
pub const COM1_LINE: u32 = 4;
/// Size of each FIFO.
const FIFO: usize = 16;
/// Input that waits beyond the FIFO is left with whoever sends it.
const MAX_INPUT: usize = 64;
/// Output that may wait for the host.
const MAX_OUTPUT: usize = 64 << 10;

const LCR_DLAB: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;
const IER_MASK: u8 = 0xf;
const LSR_DATA: u8 = 1;
const LSR_OVERRUN: u8 = 2;
const LSR_THR_EMPTY: u8 = 0x20;
const LSR_IDLE: u8 = 0x40;
const FCR_ENABLE: u8 = 1;

/// State of the port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialV1 {
    /// Interrupt enable.
    pub ier: u8,
    /// Line control.
    pub lcr: u8,
    /// Modem control.
    pub mcr: u8,
    /// Modem status.
    pub msr: u8,
    /// Scratch.
    pub scr: u8,
    /// FIFO control as written, without the reset bits.
    pub fcr: u8,
    /// Divisor latch.
    pub divisor: u16,
    /// Overrun error not yet read.
    pub overrun: bool,
    /// "Transmitter empty" interrupt not yet acknowledged.
    pub thr_pending: bool,
    /// Received bytes.
    pub input: Vec<u8>,
    /// Sent bytes that the host has not taken.
    pub output: Vec<u8>,
}

impl Section for SerialV1 {
    const KIND: &'static str = "board.serial";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        let bad = |what: &str| Err(StateError::invalid::<Self>(what));
        if self.input.len() > MAX_INPUT {
            return bad("more than 64 bytes of input");
        }
        if self.output.len() > MAX_OUTPUT {
            return bad("more than 64 KiB of output");
        }
        Ok(())
    }
}

/// Where output goes.
pub trait Output: Send {
    /// Takes bytes from the front without waiting: how many.
    fn put(&mut self, bytes: &[u8]) -> usize;

    /// Some of what it took is gathered, and waits for [`Self::flush`].
    fn gathered(&self) -> bool {
        false
    }

    /// Passes on what is gathered, as far as that goes without waiting.
    fn flush(&mut self) {}

    /// Gives back what it took and has not passed on.
    fn give_back(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// Bytes that it took and left out, because they were more than its limit.
    fn dropped(&self) -> u64 {
        0
    }
}

/// Output that goes nowhere.
pub struct Nowhere;

impl Output for Nowhere {
    fn put(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }
}

/// The device.
pub struct Serial {
    ier: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    fcr: u8,
    divisor: u16,
    overrun: bool,
    thr_pending: bool,
    input: VecDeque<u8>,
    pending: VecDeque<u8>,
    output: Box<dyn Output>,
    line: IrqLine,
    level: bool,
    room: Option<Box<dyn Fn() + Send>>,
    counts: SerialCounts,
}

/// Bytes since the port was made; no state.
#[derive(Debug, Clone, Copy, Default)]
pub struct SerialCounts {
    /// That the guest has read.
    pub read: u64,
    /// That it has written.
    pub written: u64,
    /// Of these, what nobody took in time.
    pub lost: u64,
    /// Of these, what was more than the output's limit.
    pub dropped: u64,
}

impl Serial {
    /// What has gone through it.
    pub fn counts(&self) -> SerialCounts {
        SerialCounts { dropped: self.output.dropped(), ..self.counts }
    }

    /// A port with nothing in it.
    pub fn new(line: IrqLine, output: Box<dyn Output>) -> Self {
        Serial {
            ier: 0,
            lcr: 3,
            mcr: 8,
            // Clear to send, data set ready, carrier.
            msr: 0xb0,
            scr: 0,
            fcr: 0,
            divisor: 12,
            overrun: false,
            thr_pending: false,
            input: VecDeque::new(),
            pending: VecDeque::new(),
            output,
            line,
            level: false,
            counts: SerialCounts::default(),
            room: None,
        }
    }

    /// `call` is called when there is room for input again, or output waits for the host.
    pub fn on_attention(&mut self, call: Box<dyn Fn() + Send>) {
        self.room = Some(call);
    }

    /// Its state.
    pub fn save(&self) -> SerialV1 {
        SerialV1 {
            ier: self.ier,
            lcr: self.lcr,
            mcr: self.mcr,
            msr: self.msr,
            scr: self.scr,
            fcr: self.fcr,
            divisor: self.divisor,
            overrun: self.overrun,
            thr_pending: self.thr_pending,
            input: self.input.iter().copied().collect(),
            output: self.pending.iter().copied().collect(),
        }
    }

    /// Takes it back. The line's level is the chipset's state.
    pub fn restore(&mut self, s: SerialV1) {
        (self.ier, self.lcr, self.mcr, self.msr) = (s.ier, s.lcr, s.mcr, s.msr);
        (self.scr, self.fcr, self.divisor) = (s.scr, s.fcr, s.divisor);
        (self.overrun, self.thr_pending) = (s.overrun, s.thr_pending);
        self.input = s.input.into();
        self.pending = s.output.into();
        self.level = self.cause().is_some();
    }

    /// Offers received bytes: how many were taken.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(MAX_INPUT - self.input.len().min(MAX_INPUT));
        self.input.extend(&bytes[..n]);
        self.update();
        n
    }

    /// Room for input, in bytes.
    pub fn room(&self) -> usize {
        MAX_INPUT.saturating_sub(self.input.len())
    }

    /// Output waits for the host.
    pub fn blocked(&self) -> bool {
        !self.pending.is_empty() || self.output.gathered()
    }

    /// The host does not keep up: more is not gathered but held here.
    pub fn stalled(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Nothing is gathered any more: what the host has not taken is part of the port's state from now on.
    pub fn settle(&mut self) {
        self.flush();
        for byte in self.output.give_back().into_iter().rev() {
            self.pending.push_front(byte);
        }
        self.pending.truncate(MAX_OUTPUT);
    }

    /// Gives the host what it will take now.
    pub fn flush(&mut self) {
        self.output.flush();
        while !self.pending.is_empty() {
            let n = self.output.put(self.pending.as_slices().0);
            if n == 0 {
                return;
            }
            self.pending.drain(..n);
            if self.pending.is_empty() {
                self.thr_pending = true;
            }
        }
        self.update();
    }

    fn send(&mut self, byte: u8) {
        self.counts.written += 1;
        if self.mcr & MCR_LOOP != 0 {
            if self.input.len() < FIFO {
                self.input.push_back(byte);
            } else {
                self.overrun = true;
            }
        } else {
            let gathered = self.output.gathered();
            let stalled = self.stalled() || self.output.put(&[byte]) == 0;
            if stalled && self.pending.len() < MAX_OUTPUT {
                self.pending.push_back(byte);
            } else {
                self.counts.lost += 1;
            }
            if (stalled || (!gathered && self.output.gathered()))
                && let Some(call) = &self.room
            {
                call();
            }
        }
        self.thr_pending = self.pending.is_empty();
        self.update();
    }

    /// The interrupt that has priority: its id (bits 1 to 3 of IIR).
    fn cause(&self) -> Option<u8> {
        if self.ier & 4 != 0 && self.overrun {
            Some(6)
        } else if self.ier & 1 != 0 && !self.input.is_empty() {
            let trigger = match (self.fcr & FCR_ENABLE, self.fcr >> 6) {
                (0, _) | (_, 0) => 1,
                (_, 1) => 4,
                (_, 2) => 8,
                _ => 14,
            };
            // Below the trigger it is the time-out's interrupt: the sender is always done.
            Some(if self.input.len() >= trigger { 4 } else { 12 })
        } else if self.ier & 2 != 0 && self.thr_pending {
            Some(2)
        } else {
            None
        }
    }

    fn update(&mut self) {
        let level = self.cause().is_some();
        if level != self.level {
            self.level = level;
            self.line.set(level);
        }
    }

    fn iir(&mut self) -> u8 {
        let fifo = if self.fcr & FCR_ENABLE != 0 { 0xc0 } else { 0 };
        match self.cause() {
            Some(id) => {
                if id == 2 {
                    self.thr_pending = false;
                }
                fifo | id
            }
            None => fifo | 1,
        }
    }

    fn lsr(&mut self) -> u8 {
        if self.stalled() {
            self.flush();
        }
        let data = if self.input.is_empty() { 0 } else { LSR_DATA };
        let overrun = if std::mem::take(&mut self.overrun) { LSR_OVERRUN } else { 0 };
        let empty = if self.pending.is_empty() { LSR_THR_EMPTY | LSR_IDLE } else { 0 };
        data | overrun | empty
    }

    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return self.msr;
        }
        // Looped back: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        let m = self.mcr;
        (m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, _width: u32) -> u64 {
        let latch = self.lcr & LCR_DLAB != 0;
        let value = match offset {
            0 if latch => self.divisor as u8,
            1 if latch => (self.divisor >> 8) as u8,
            0 => {
                let was_full = self.room() == 0;
                self.counts.read += u64::from(!self.input.is_empty());
                let byte = self.input.pop_front().unwrap_or(0);
                if was_full && let Some(call) = &self.room {
                    call();
                }
                byte
            }
            1 => self.ier,
            2 => self.iir(),
            3 => self.lcr,
            4 => self.mcr,
            5 => self.lsr(),
            6 => self.modem_status(),
            _ => self.scr,
        };
        self.update();
        value.into()
    }

    fn write(&mut self, offset: u64, _width: u32, value: u64) {
        let value = value as u8;
        let latch = self.lcr & LCR_DLAB != 0;
        match offset {
            0 if latch => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if latch => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            0 => return self.send(value),
            1 => {
                // Turning the transmitter's interrupt on raises it if there is room.
                if value & 2 != 0 && self.ier & 2 == 0 {
                    self.thr_pending = self.pending.is_empty();
                }
                self.ier = value & IER_MASK;
            }
            2 => {
                if value & 2 != 0 {
                    self.input.clear();
                }
                self.fcr = value & 0xc9;
            }
            3 => self.lcr = value,
            4 => self.mcr = value & 0x1f,
            7 => self.scr = value,
            _ => {}
        }
        self.update();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::irq::IrqSink;
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Level(Mutex<bool>);
    impl IrqSink for Level {
        fn set_line(&self, _gsi: u32, level: bool) {
            *self.0.lock().unwrap() = level;
        }
    }
    #[derive(Clone, Default)]
    struct Tap(Arc<Mutex<(Vec<u8>, usize)>>);
    impl Output for Tap {
        fn put(&mut self, bytes: &[u8]) -> usize {
            let mut t = self.0.lock().unwrap();
            let n = bytes.len().min(t.1);
            t.1 -= n;
            t.0.extend(&bytes[..n]);
            n
        }
    }

    #[test]
    fn output_waits_for_the_host_and_nothing_is_lost() {
        let (tap, level) = (Tap::default(), Arc::new(Level::default()));
        tap.0.lock().unwrap().1 = 2;
        let mut s = Serial::new(IrqLine::new(level.clone(), 4), Box::new(tap.clone()));
        s.write(1, 1, 2);
        assert!(*level.0.lock().unwrap());
        assert_eq!(s.read(2, 1), 2);
        assert!(!*level.0.lock().unwrap());
        for b in b"hello" {
            s.write(0, 1, u64::from(*b));
        }
        assert_eq!(s.read(5, 1) & 0x20, 0);
        let saved = s.save();
        assert_eq!(saved.output, b"llo");
        let mut t = Serial::new(IrqLine::new(level.clone(), 4), Box::new(tap.clone()));
        t.restore(saved.clone());
        assert_eq!(t.save(), saved);
        tap.0.lock().unwrap().1 = 100;
        t.flush();
        assert_eq!(tap.0.lock().unwrap().0, b"hello");
        assert_eq!((t.read(5, 1), *level.0.lock().unwrap()), (0x60, true));
    }

    #[test]
    fn input_interrupts_until_it_is_read() {
        let level = Arc::new(Level::default());
        let mut s = Serial::new(IrqLine::new(level.clone(), 4), Box::new(Nowhere));
        s.write(2, 1, 0x81);
        s.write(1, 1, 1);
        assert_eq!(s.receive(b"ab"), 2);
        assert!(*level.0.lock().unwrap());
        assert_eq!((s.read(2, 1), s.read(0, 1), s.read(0, 1)), (0xcc, b'a'.into(), b'b'.into()));
        assert!(!*level.0.lock().unwrap());
        assert_eq!(s.receive(&[0; 1000]), MAX_INPUT);
        assert_eq!(s.read(2, 1), 0xc4);
        assert!(s.save().validate().is_ok());
    }

    #[test]
    fn loopback_and_the_divisor() {
        let mut s = Serial::new(IrqLine::new(Arc::new(Level::default()), 4), Box::new(Nowhere));
        s.write(4, 1, 0x1f);
        s.write(0, 1, 0x55);
        assert_eq!((s.read(0, 1), s.read(6, 1)), (0x55, 0xf0));
        s.write(3, 1, 0x83);
        s.write(0, 1, 1);
        s.write(1, 1, 2);
        assert_eq!((s.read(0, 1), s.read(1, 1), s.save().divisor), (1, 2, 0x201));
    }
}
