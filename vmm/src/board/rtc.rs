//! The CMOS clock (Motorola MC146818): date and time, alarm, periodic and update interrupts on line 8, NVRAM.

use super::bus::BusDevice;
use super::clock::Clock;
use super::irq::IrqLine;
use super::timers::{Timed, Waker};
use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const NS: u64 = 1_000_000_000;
const REG_A: u8 = 10;
const REG_B: u8 = 11;
const REG_C: u8 = 12;
const REG_D: u8 = 13;
const CENTURY: u8 = 0x32;
/// Interrupt enables and flags in registers B and C.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const ANY: u8 = 0x80;
/// Register B: binary, 24 hours, hold.
const SET: u8 = 0x80;
const BINARY: u8 = 4;
const HOURS_24: u8 = 2;

/// State of the clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcV1 {
    /// Selected register.
    pub index: u8,
    /// Registers and NVRAM; the date and time among them are only what was last written.
    pub memory: Vec<u8>,
    /// The guest's time less UTC, in seconds.
    pub offset_s: i64,
    /// Guest time of the last look at periodic and update events, in ns.
    pub seen_ns: u64,
}

impl Section for RtcV1 {
    const KIND: &'static str = "board.rtc";
    const VERSION: u32 = 1;
    fn validate(&self) -> Result<(), StateError> {
        let bad = |what: &str| Err(StateError::invalid::<Self>(what));
        if self.memory.len() != 128 || self.index > 127 {
            return bad("there are 128 registers");
        }
        if self.offset_s.unsigned_abs() > 1 << 40 {
            return bad("offset_s is out of range");
        }
        Ok(())
    }
}

/// The device: offset 0 is port 0x70, offset 1 port 0x71.
pub struct Rtc {
    state: RtcV1,
    line: IrqLine,
    clock: Arc<dyn Clock>,
    waker: Waker,
}

/// Days since 1970-01-01 to (year, month, day), after Howard Hinnant's civil_from_days.
fn civil(days: i64) -> (i64, u8, u8) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month as u8, (doy - (153 * mp + 2) / 5 + 1) as u8)
}

/// And back.
fn days(year: i64, month: u8, day: u8) -> i64 {
    let (m, d) = (i64::from(month), i64::from(day));
    let y = year - i64::from(m <= 2);
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (if m > 2 { m - 3 } else { m + 9 }) + 2) / 5 + d - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

impl Rtc {
    /// A clock set to UTC.
    pub fn new(line: IrqLine, clock: Arc<dyn Clock>, waker: Waker) -> Self {
        let mut memory = vec![0; 128];
        memory[usize::from(REG_A)] = 0x26;
        memory[usize::from(REG_B)] = HOURS_24;
        let state = RtcV1 { index: 0, memory, offset_s: 0, seen_ns: 0 };
        Rtc { state, line, clock, waker }
    }

    /// Its state.
    pub fn save(&self) -> RtcV1 {
        self.state.clone()
    }

    /// Takes it back.
    pub fn restore(&mut self, state: RtcV1) {
        self.state = state;
        self.waker.wake();
    }

    fn reg(&self, r: u8) -> u8 {
        self.state.memory[usize::from(r & 127)]
    }

    fn seconds(&self) -> i64 {
        ((self.clock.utc_ns() / NS) as i64).saturating_add(self.state.offset_s)
    }

    fn encoded(&self, v: u8) -> u8 {
        if self.reg(REG_B) & BINARY != 0 { v } else { ((v / 10) << 4) | (v % 10) }
    }

    fn decoded(&self, v: u8) -> u8 {
        if self.reg(REG_B) & BINARY != 0 { v } else { (v >> 4).wrapping_mul(10).wrapping_add(v & 15) }
    }

    fn hour_encoded(&self, hour: u8) -> u8 {
        if self.reg(REG_B) & HOURS_24 != 0 {
            return self.encoded(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encoded(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    /// Date and time register `r` at `seconds`; `None` if it is no such register.
    fn field(&self, r: u8, seconds: i64) -> Option<u8> {
        let (day, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, date) = civil(day);
        Some(match r {
            0 => self.encoded((time % 60) as u8),
            2 => self.encoded((time / 60 % 60) as u8),
            4 => self.hour_encoded((time / 3600) as u8),
            6 => self.encoded(((day + 4).rem_euclid(7) + 1) as u8),
            7 => self.encoded(date),
            8 => self.encoded(month),
            9 => self.encoded(year.rem_euclid(100) as u8),
            CENTURY => self.encoded((year.div_euclid(100)).rem_euclid(100) as u8),
            _ => return None,
        })
    }

    /// Sets the clock to the date and time registers as written.
    fn set_clock(&mut self) {
        let get = |r: u8| i64::from(self.decoded(self.reg(r)));
        let raw_hour = self.reg(4);
        let hour = if self.reg(REG_B) & HOURS_24 != 0 {
            get(4)
        } else {
            i64::from(self.decoded(raw_hour & 0x7f)) % 12 + if raw_hour & 0x80 != 0 { 12 } else { 0 }
        };
        let month = get(8).clamp(1, 12) as u8;
        let date = get(7).clamp(1, 31) as u8;
        let day = days(get(CENTURY) * 100 + get(9), month, date);
        let wanted = day * 86_400 + hour * 3600 + get(2) * 60 + get(0);
        self.state.offset_s = wanted - (self.clock.utc_ns() / NS) as i64;
    }

    fn period_ns(&self) -> Option<u64> {
        let rate = match self.reg(REG_A) & 15 {
            0 => return None,
            r @ 1..=2 => r + 7,
            r => r,
        };
        Some((1 << (rate - 1)) * NS / 32_768)
    }

    /// Sets the flags of what has happened since the last look; raises the line if one is enabled.
    fn look(&mut self) {
        let now = self.clock.now_ns();
        let before = std::mem::replace(&mut self.state.seen_ns, now);
        let mut flags = 0;
        if self.period_ns().is_some_and(|p| before / p != now / p) {
            flags |= PERIODIC;
        }
        if before / NS != now / NS && self.reg(REG_B) & SET == 0 {
            flags |= UPDATE;
            let seconds = self.seconds();
            let matches = |alarm: u8, r: u8| {
                let a = self.reg(alarm);
                a & 0xc0 == 0xc0 || Some(a) == self.field(r, seconds)
            };
            if matches(1, 0) && matches(3, 2) && matches(5, 4) {
                flags |= ALARM;
            }
        }
        let c = &mut self.state.memory[usize::from(REG_C)];
        *c |= flags;
        let enabled = *c & self.state.memory[usize::from(REG_B)] & (PERIODIC | ALARM | UPDATE);
        let c = &mut self.state.memory[usize::from(REG_C)];
        if enabled != 0 && *c & ANY == 0 {
            *c |= ANY;
            self.line.set(true);
        }
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, _width: u32) -> u64 {
        if offset == 0 {
            return 0xff;
        }
        let r = self.state.index;
        let held = self.reg(REG_B) & SET != 0;
        let value = match self.field(r, self.seconds()).filter(|_| !held) {
            Some(v) => v,
            None => match r {
                // Update in progress: for the last 244 us of a second.
                REG_A => {
                    let busy = self.clock.now_ns() % NS >= NS - 244_000;
                    self.reg(r) & 0x7f | u8::from(busy && !held) << 7
                }
                REG_C => {
                    self.look();
                    let flags = std::mem::take(&mut self.state.memory[usize::from(REG_C)]);
                    if flags & ANY != 0 {
                        self.line.set(false);
                        self.waker.wake();
                    }
                    flags
                }
                // Battery good.
                REG_D => 0x80,
                _ => self.reg(r),
            },
        };
        value.into()
    }

    fn write(&mut self, offset: u64, _width: u32, value: u64) {
        let value = value as u8;
        if offset == 0 {
            // Bit 7 masks NMIs on PCs; there is no source of them here.
            self.state.index = value & 0x7f;
            return;
        }
        let r = self.state.index;
        match r {
            REG_C | REG_D => return,
            0 | 2 | 4 | 6..=9 | CENTURY => {
                if self.reg(REG_B) & SET == 0 {
                    self.hold();
                    self.state.memory[usize::from(r)] = value;
                    self.set_clock();
                } else {
                    self.state.memory[usize::from(r)] = value;
                }
            }
            REG_B => {
                let was = self.reg(REG_B);
                if value & SET != 0 && was & SET == 0 {
                    self.hold();
                }
                self.state.memory[usize::from(r)] = value;
                if value & SET == 0 && was & SET != 0 {
                    self.set_clock();
                }
                self.look();
            }
            _ => self.state.memory[usize::from(r)] = value,
        }
        self.waker.wake();
    }
}

impl Rtc {
    /// Freezes the date and time into the registers.
    fn hold(&mut self) {
        let seconds = self.seconds();
        for r in [0, 2, 4, 6, 7, 8, 9, CENTURY] {
            if let Some(v) = self.field(r, seconds) {
                self.state.memory[usize::from(r)] = v;
            }
        }
    }
}

impl Timed for Rtc {
    fn deadline_ns(&self) -> Option<u64> {
        let (b, now) = (self.reg(REG_B), self.clock.now_ns());
        // Once the line is up nothing changes until register C is read.
        if self.reg(REG_C) & ANY != 0 {
            return None;
        }
        let periodic = self.period_ns().filter(|_| b & PERIODIC != 0).map(|p| (now / p + 1) * p);
        let second = (b & (ALARM | UPDATE) != 0).then(|| (now / NS + 1) * NS);
        periodic.into_iter().chain(second).min()
    }

    fn expire(&mut self, _now_ns: u64) {
        if self.reg(REG_B) & (PERIODIC | ALARM | UPDATE) != 0 {
            self.look();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::chipset::Chipset;

    struct At(u64);
    impl Clock for At {
        fn now_ns(&self) -> u64 {
            0
        }
        fn utc_ns(&self) -> u64 {
            self.0 * NS
        }
    }

    fn rtc(at: u64) -> Rtc {
        Rtc::new(IrqLine::new(Chipset::new(), 8), Arc::new(At(at)), Waker::new().unwrap())
    }

    fn get(d: &mut Rtc, r: u8) -> u8 {
        d.write(0, 1, r.into());
        d.read(1, 1) as u8
    }

    fn put(d: &mut Rtc, r: u8, v: u8) {
        d.write(0, 1, r.into());
        d.write(1, 1, v.into());
    }

    #[test]
    fn the_date_is_right() {
        // 2024-02-29 23:59:58 UTC, a Thursday.
        let mut d = rtc(1_709_251_198);
        let all = [CENTURY, 9, 8, 7, 6, 4, 2, 0].map(|r| get(&mut d, r));
        assert_eq!(all, [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]);
        put(&mut d, REG_B, 0);
        assert_eq!(get(&mut d, 4), 0x91, "11 p.m.");
        for day in (-200_000..200_000).step_by(997) {
            let (y, m, dd) = civil(day);
            assert_eq!(days(y, m, dd), day);
        }
    }

    #[test]
    fn it_can_be_set() {
        let mut d = rtc(1_000_000_000);
        put(&mut d, REG_B, SET | HOURS_24);
        for (r, v) in [(CENTURY, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)] {
            put(&mut d, r, v);
        }
        put(&mut d, REG_B, HOURS_24);
        assert_eq!(d.seconds(), 946_684_799);
        assert_eq!(get(&mut d, 9), 0x99);
        let s = d.save();
        assert!(s.validate().is_ok());
        assert_eq!(godwit_state::decode::<RtcV1>(1, &godwit_state::encode(&s)), Ok(s));
    }
}
