//! Fuzz targets of the board's registers: any accesses at any guest times. No panic, no endless loop, bounded memory; and
//! what a chip then saves is what a new one saves that took it on.

use super::bus::BusDevice;
use super::chipset::{Chipset, ElcrPorts, IoApicWindow, PicPorts};
use super::clock::Clock;
use super::i8042::I8042;
use super::irq::{IrqLine, IrqSink};
use super::pit::{Pit, SpeakerPort};
use super::rtc::Rtc;
use super::serial::{Output, Serial};
use super::timers::{Timed, Waker};
use godwit_state::Section;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    fn utc_ns(&self) -> u64 {
        1_700_000_000_000_000_000u64.wrapping_add(self.now_ns())
    }
}

struct NoLines;

impl IrqSink for NoLines {
    fn set_line(&self, _gsi: u32, _level: bool) {}
}

/// Takes as many bytes as the fuzzer last said.
struct Sluggish(Arc<AtomicU64>);

impl Output for Sluggish {
    fn put(&mut self, bytes: &[u8]) -> usize {
        bytes.len().min(self.0.load(Ordering::SeqCst) as usize)
    }
}

fn line() -> IrqLine {
    IrqLine::new(Arc::new(NoLines), 3)
}

fn waker() -> Waker {
    Waker::new().expect("eventfd")
}

/// A section out of its own bytes.
fn through_bytes<S: Section>(section: &S) -> S {
    godwit_state::decode(S::VERSION, &godwit_state::encode(section)).expect("a chip's own state is valid")
}

/// One access or step of eight bytes.
struct Step<'a>(&'a [u8]);

impl Step<'_> {
    fn value(&self) -> u64 {
        u32::from_le_bytes(std::array::from_fn(|i| self.0[4 + i])).into()
    }

    fn access(&self, device: &mut dyn BusDevice, window: u64) {
        let offset = u64::from(u16::from_le_bytes([self.0[2], self.0[3]])) % window;
        let width = [1, 1, 1, 2, 4, 8, 3, 0][usize::from(self.0[1] & 7)];
        if self.0[1] & 8 == 0 {
            device.write(offset, width, self.value());
        } else {
            device.read(offset, width);
        }
    }
}

fn steps(data: &[u8]) -> impl Iterator<Item = Step<'_>> {
    data.chunks_exact(8).map(Step)
}

/// 16550.
pub fn fuzz_serial(data: &[u8]) {
    let room = Arc::new(AtomicU64::new(0));
    let new = || Serial::new(line(), Box::new(Sluggish(room.clone())));
    let mut serial = new();
    for step in steps(data) {
        match step.0[0] % 4 {
            0 => room.store(step.value() % 32, Ordering::SeqCst),
            1 => {
                let n = serial.room().min(usize::from(step.0[1]));
                serial.receive(&step.0[..8].repeat(8)[..n.min(64)]);
            }
            2 => serial.flush(),
            _ => step.access(&mut serial, 8),
        }
    }
    let saved = serial.save();
    let mut other = new();
    other.restore(through_bytes(&saved));
    assert_eq!(other.save(), saved);
}

fn play_timed<T: Timed>(clock: &TestClock, device: &mut T, step: &Step<'_>) {
    let now = clock.0.fetch_add(step.value() << (step.0[1] % 20), Ordering::SeqCst);
    let now = now.saturating_add(step.value());
    // As the device thread does it: once for what is due, and then by the next deadline.
    if device.deadline_ns().is_some_and(|at| at <= now) {
        device.expire(now);
    }
}

/// 8254 and port 0x61.
pub fn fuzz_pit(data: &[u8]) {
    let clock = Arc::new(TestClock::default());
    let new = || Pit::new(line(), clock.clone(), waker());
    let pit = Arc::new(Mutex::new(new()));
    let mut speaker = SpeakerPort(pit.clone());
    for step in steps(data) {
        match step.0[0] % 4 {
            0 => play_timed(&clock, &mut *pit.lock().expect("pit"), &step),
            1 => step.access(&mut speaker, 1),
            _ => step.access(&mut *pit.lock().expect("pit"), 4),
        }
    }
    let saved = pit.lock().expect("pit").save();
    let mut other = new();
    other.restore(through_bytes(&saved));
    assert_eq!(other.save(), saved);
}

/// CMOS clock.
pub fn fuzz_rtc(data: &[u8]) {
    let clock = Arc::new(TestClock::default());
    let new = || Rtc::new(line(), clock.clone(), waker());
    let mut rtc = new();
    for step in steps(data) {
        match step.0[0] % 4 {
            0 => play_timed(&clock, &mut rtc, &step),
            _ => step.access(&mut rtc, 2),
        }
    }
    let saved = rtc.save();
    let mut other = new();
    other.restore(through_bytes(&saved));
    assert_eq!(other.save(), saved);
}

/// Keyboard controller.
pub fn fuzz_i8042(data: &[u8]) {
    let new = || I8042::new(line(), Arc::new(|_| {}));
    let mut chip = new();
    for step in steps(data) {
        match step.0[0] % 16 {
            0 => drop(chip.ctrl_alt_del()),
            _ => step.access(&mut chip, 5),
        }
    }
    let saved = chip.save();
    let mut other = new();
    other.restore(through_bytes(&saved));
    assert_eq!(other.save(), saved);
}

/// Two 8259s, their edge registers and the I/O APIC, with lines that move.
pub fn fuzz_chipset(data: &[u8]) {
    let chipset = Chipset::new();
    let mut pics = [0x20, 0xa0].map(|base| PicPorts { chipset: chipset.clone(), base });
    let mut elcr = ElcrPorts(chipset.clone());
    let mut ioapic = IoApicWindow(chipset.clone());
    for step in steps(data) {
        match step.0[0] % 8 {
            0 | 1 => chipset.set_line(u32::from(step.0[2] % 26), step.0[3] & 1 != 0),
            2 => drop(chipset.extint_ack()),
            3 => chipset.eoi(step.0[2]),
            4 => step.access(&mut elcr, 2),
            5 => step.access(&mut ioapic, 0x100),
            n => step.access(&mut pics[usize::from(n) - 6], 2),
        }
    }
    let (pic, apic) = chipset.save();
    let other = Chipset::new();
    other.restore(through_bytes(&pic), through_bytes(&apic));
    assert_eq!(other.save(), (pic, apic));
}
