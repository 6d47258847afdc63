//! The 8254 interval timer: channel 0 on line 0, channel 2 with its gate and output at port 0x61.
//!
//! Nothing ticks: a channel's output follows from the guest time at which its count was loaded. The timers' thread
//! calls [`Timed::expire`] when channel 0's output is next to change.

use super::bus::BusDevice;
use super::clock::Clock;
use super::irq::IrqLine;
use super::timers::{Timed, Waker};
use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Input clock in Hz.
const HZ: u64 = 1_193_182;
const NS: u64 = 1_000_000_000;

/// One channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitChannelV1 {
    /// Initial count: 1 to 65536; 0: none was ever loaded.
    pub count: u32,
    /// Mode 0 to 5.
    pub mode: u8,
    /// Counts in BCD.
    pub bcd: bool,
    /// Access: 1 low byte, 2 high byte, 3 low then high.
    pub access: u8,
    /// The next read is of the high byte.
    pub read_high: bool,
    /// The next write is of the high byte; the low one is in `write_latch`.
    pub write_high: bool,
    /// Low byte of a count half written.
    pub write_latch: u8,
    /// Latched count.
    pub latched: Option<u16>,
    /// Latched status.
    pub status: Option<u8>,
    /// Gate input.
    pub gate: bool,
    /// Guest time at which the count was loaded or the gate rose, in ns.
    pub start_ns: u64,
}

impl Default for PitChannelV1 {
    fn default() -> Self {
        PitChannelV1 {
            count: 0,
            mode: 3,
            bcd: false,
            access: 3,
            read_high: false,
            write_high: false,
            write_latch: 0,
            latched: None,
            status: None,
            gate: true,
            start_ns: 0,
        }
    }
}

/// State of the timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PitV1 {
    /// Channels 0 to 2.
    pub channels: [PitChannelV1; 3],
    /// Port 0x61 bit 1: the speaker gets channel 2's output.
    pub speaker: bool,
    /// Level of line 0.
    pub line: bool,
}

impl Section for PitV1 {
    const KIND: &'static str = "board.pit";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        for c in &self.channels {
            if c.count > 0x1_0000 || c.mode > 5 || !(1..=3).contains(&c.access) {
                return Err(StateError::invalid::<Self>("impossible count, mode or access"));
            }
        }
        Ok(())
    }
}

fn from_bcd(v: u32) -> u32 {
    (0..4).fold(0, |sum, i| sum + (v >> (4 * i) & 15) * 10u32.pow(i))
}

fn to_bcd(v: u32) -> u32 {
    (0..4).fold(0, |sum, i| sum | (v / 10u32.pow(i) % 10) << (4 * i))
}

impl PitChannelV1 {
    fn ticks(&self, now_ns: u64) -> u64 {
        let ns = u128::from(now_ns.saturating_sub(self.start_ns));
        (ns * u128::from(HZ) / u128::from(NS)) as u64
    }

    /// Guest time at which `ticks` ticks have passed.
    fn at(&self, ticks: u64) -> u64 {
        let ns = (u128::from(ticks) * u128::from(NS)).div_ceil(u128::from(HZ));
        self.start_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    fn load(&mut self, raw: u32, now_ns: u64) {
        let full = if self.bcd { 10_000 } else { 0x1_0000 };
        let count = if self.bcd { from_bcd(raw) } else { raw };
        self.count = if count == 0 { full } else { count };
        self.start_ns = now_ns;
    }

    fn counter(&self, now_ns: u64) -> u16 {
        let (count, t) = (u64::from(self.count.max(1)), self.ticks(now_ns));
        let full = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.mode {
            0 | 1 | 4 | 5 => (count + full - t % full) % full,
            3 => count - (2 * t) % count,
            _ => count - t % count,
        } as u32;
        (if self.bcd { to_bcd(value) } else { value }) as u16
    }

    fn output(&self, now_ns: u64) -> bool {
        let (count, t) = (u64::from(self.count), self.ticks(now_ns));
        if count == 0 {
            return self.mode != 0;
        }
        match self.mode {
            0 | 1 => t >= count,
            2 => t % count != count - 1 || !self.gate,
            3 => t % count < count.div_ceil(2) || !self.gate,
            _ => t != count,
        }
    }

    /// Guest time at which the output next changes.
    fn next_change(&self, now_ns: u64) -> Option<u64> {
        let (count, t) = (u64::from(self.count), self.ticks(now_ns));
        if count == 0 || (!self.gate && matches!(self.mode, 2 | 3)) {
            return None;
        }
        let (round, phase) = (t / count * count, t % count);
        let next = match self.mode {
            0 | 1 => (t < count).then_some(count)?,
            2 if count == 1 => return None,
            2 if phase < count - 1 => round + count - 1,
            3 if phase < count.div_ceil(2) && count > 1 => round + count.div_ceil(2),
            2 | 3 => round + count,
            _ if t < count => count,
            _ if t == count => count + 1,
            _ => return None,
        };
        Some(self.at(next))
    }

    fn latch_status(&mut self, now_ns: u64) {
        if self.status.is_none() {
            let null = u8::from(self.count == 0);
            self.status = Some(
                u8::from(self.output(now_ns)) << 7
                    | null << 6
                    | self.access << 4
                    | self.mode << 1
                    | u8::from(self.bcd),
            );
        }
    }
}

/// The device; ports 0x40 to 0x43.
pub struct Pit {
    state: PitV1,
    line: IrqLine,
    clock: Arc<dyn Clock>,
    waker: Waker,
}

impl Pit {
    /// A timer as after power-on.
    pub fn new(line: IrqLine, clock: Arc<dyn Clock>, waker: Waker) -> Self {
        let mut state = PitV1::default();
        state.channels[2].gate = false;
        Pit { state, line, clock, waker }
    }

    /// Its state.
    pub fn save(&self) -> PitV1 {
        self.state
    }

    /// Takes it back.
    pub fn restore(&mut self, state: PitV1) {
        self.state = state;
        self.waker.wake();
    }

    fn update_line(&mut self) {
        let level = self.state.channels[0].output(self.clock.now_ns());
        if level != self.state.line {
            self.state.line = level;
            self.line.set(level);
        }
    }

    fn read_speaker(&self) -> u8 {
        let now = self.clock.now_ns();
        let c = &self.state.channels[2];
        // Bit 4 toggles every 15.085 us, the DRAM refresh of old.
        let refresh = ((now / 15_085) & 1) as u8;
        u8::from(c.gate) | u8::from(self.state.speaker) << 1 | refresh << 4 | u8::from(c.output(now)) << 5
    }

    fn write_speaker(&mut self, value: u8) {
        let gate = value & 1 != 0;
        self.state.speaker = value & 2 != 0;
        let c = &mut self.state.channels[2];
        if gate && !c.gate && matches!(c.mode, 1 | 2 | 3 | 5) {
            c.start_ns = self.clock.now_ns();
        }
        c.gate = gate;
    }

    fn control(&mut self, value: u8) {
        let now = self.clock.now_ns();
        if value >> 6 == 3 {
            for (i, c) in self.state.channels.iter_mut().enumerate() {
                if value & 2 << i != 0 {
                    if value & 0x20 == 0 {
                        c.latched.get_or_insert(c.counter(now));
                    }
                    if value & 0x10 == 0 {
                        c.latch_status(now);
                    }
                }
            }
            return;
        }
        let c = &mut self.state.channels[usize::from(value >> 6)];
        let access = value >> 4 & 3;
        if access == 0 {
            c.latched.get_or_insert(c.counter(now));
            return;
        }
        c.access = access;
        c.mode = match value >> 1 & 7 {
            m @ 6..=7 => m - 4,
            m => m,
        };
        c.bcd = value & 1 != 0;
        c.count = 0;
        (c.read_high, c.write_high) = (access == 2, access == 2);
        (c.latched, c.status) = (None, None);
    }
}

impl BusDevice for Pit {
    fn read(&mut self, offset: u64, _width: u32) -> u64 {
        let now = self.clock.now_ns();
        let Some(c) = self.state.channels.get_mut(offset as usize) else { return 0xff };
        if let Some(status) = c.status.take() {
            return status.into();
        }
        let value = c.latched.unwrap_or_else(|| c.counter(now));
        let high = c.read_high;
        if c.access == 3 {
            c.read_high = !high;
        }
        if c.access != 3 || high {
            c.latched = None;
        }
        (if high { value >> 8 } else { value & 0xff }).into()
    }

    fn write(&mut self, offset: u64, _width: u32, value: u64) {
        let (now, value) = (self.clock.now_ns(), value as u8);
        match self.state.channels.get_mut(offset as usize) {
            None => self.control(value),
            Some(c) => match (c.access, c.write_high) {
                (1, _) => c.load(value.into(), now),
                (2, _) => c.load(u32::from(value) << 8, now),
                (_, false) => {
                    c.write_latch = value;
                    c.write_high = true;
                }
                (_, true) => {
                    c.write_high = false;
                    c.load(u32::from(value) << 8 | u32::from(c.write_latch), now);
                }
            },
        }
        self.update_line();
        self.waker.wake();
    }
}

impl Timed for Pit {
    fn deadline_ns(&self) -> Option<u64> {
        // Far too fast for anybody to want each edge: 20 us is the floor.
        let now = self.clock.now_ns();
        self.state.channels[0].next_change(now).map(|t| t.max(now + 20_000))
    }

    fn expire(&mut self, now_ns: u64) {
        // Both edges may have passed since: the guest is owed the rising one.
        let c = &self.state.channels[0];
        let level = c.output(now_ns);
        if level == self.state.line && level && matches!(c.mode, 2 | 3) && c.count != 0 {
            self.line.set(false);
            self.line.set(true);
        }
        self.update_line();
    }
}

/// Port 0x61.
pub struct SpeakerPort(pub Arc<std::sync::Mutex<Pit>>);

impl BusDevice for SpeakerPort {
    fn read(&mut self, _offset: u64, _width: u32) -> u64 {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).read_speaker().into()
    }

    fn write(&mut self, _offset: u64, _width: u32, value: u64) {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).write_speaker(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::irq::IrqSink;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Default)]
    struct Now(AtomicU64);
    impl Clock for Now {
        fn now_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
        fn utc_ns(&self) -> u64 {
            0
        }
    }
    #[derive(Default)]
    struct Edges(Mutex<Vec<bool>>);
    impl IrqSink for Edges {
        fn set_line(&self, _gsi: u32, level: bool) {
            self.0.lock().unwrap().push(level);
        }
    }

    fn pit() -> (Pit, Arc<Now>, Arc<Edges>) {
        let (now, edges) = (Arc::new(Now::default()), Arc::new(Edges::default()));
        (Pit::new(IrqLine::new(edges.clone(), 0), now.clone(), Waker::new().unwrap()), now, edges)
    }

    #[test]
    fn a_periodic_timer_ticks_on_time() {
        let (mut p, now, edges) = pit();
        p.write(3, 1, 0x34);
        p.write(0, 1, 0x9c);
        p.write(0, 1, 0x2e); // 11932: 100 Hz
        edges.0.lock().unwrap().clear();
        let mut rises = 0;
        while now.0.load(Ordering::Relaxed) < NS / 2 {
            let next = p.deadline_ns().unwrap();
            now.0.store(next, Ordering::Relaxed);
            p.expire(next);
        }
        for level in edges.0.lock().unwrap().iter() {
            rises += u32::from(*level);
        }
        assert!((49..=51).contains(&rises), "{rises}");
    }

    #[test]
    fn channel_2_counts_down_to_its_output() {
        let (p, now, _) = pit();
        let p = Arc::new(Mutex::new(p));
        let mut port = SpeakerPort(p.clone());
        port.write(0, 1, 1);
        let mut d = p.lock().unwrap();
        d.write(3, 1, 0xb0);
        d.write(2, 1, 0x00);
        d.write(2, 1, 0x10);
        assert_eq!(d.read_speaker() & 0x20, 0);
        now.0.store(1_000_000, Ordering::Relaxed);
        d.write(3, 1, 0x80);
        let (low, high) = (d.read(2, 1), d.read(2, 1));
        assert_eq!(high << 8 | low, 0x1000 - 1193);
        now.0.store(4_000_000, Ordering::Relaxed);
        assert_eq!(d.read_speaker() & 0x20, 0x20);
        let s = d.save();
        assert_eq!(godwit_state::decode::<PitV1>(1, &godwit_state::encode(&s)), Ok(s));
    }

    #[test]
    fn bcd_and_odd_counts_do_not_break_it() {
        let (mut p, now, _) = pit();
        for control in 0..=255u64 {
            for count in [0u64, 1, 2, 0xff] {
                p.write(3, 1, control);
                for channel in 0..3 {
                    p.write(channel, 1, count);
                    p.write(channel, 1, count);
                    p.read(channel, 1);
                    p.read(channel, 1);
                }
                now.0.fetch_add(12_345, Ordering::Relaxed);
                p.deadline_ns();
                p.expire(now.0.load(Ordering::Relaxed));
                assert!(p.save().validate().is_ok());
            }
        }
    }
}
