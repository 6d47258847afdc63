//! Busy for ever, with everything at once: what a guest may be doing when it is moved.
//!
//! Each round verifies and rewrites 256 KiB of 8 MiB of memory; computes in SSE and x87 registers, which must give what they
//! gave the first time, wherever that was; writes a stretch of the disk and verifies one that an earlier round wrote; has
//! pings answered, byte for byte; and looks whether timer interrupts and the time-stamp counter go on. Then it prints
//!
//! ```text
//! busy n=000017 ticks=00412 pings=34 lost=0 sectors=1088 ok
//! ```
//!
//! or `BAD` and why, and goes on. A ping that is not answered in a second was lost on the way, as on any network; one that
//! is answered wrongly is `BAD`, as are ten lost in a row.

use crate::block::Disk;
use crate::data::Random;
use crate::mmio::{Failure, Outcome, ensure};
use crate::net::Card;
use crate::rt::{self, Out};
use crate::ticks;
use core::arch::asm;

const SLICES: u64 = 32;
const SLICE_WORDS: u64 = 32 * 1024;
/// After the devices' memory.
const MEMORY: u64 = 0x100_0000 + (32 << 20);
/// Stretches of the disk, each of at most this many sectors.
const STRETCHES: u64 = 24;
const STRETCH: u64 = 64;
const FIRST: u64 = 8;
const SEEDS: usize = 8;
const LOST_IN_A_ROW: u32 = 10;

fn memory(round: u64) -> Outcome {
    let at = (MEMORY + round % SLICES * SLICE_WORDS * 8) as *mut u64;
    let word = |i: u64, round: u64| (i ^ round << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut same = true;
    for i in 0..SLICE_WORDS {
        // SAFETY: nobody else uses this memory.
        unsafe {
            let place = at.add(i as usize);
            same &= round <= SLICES || place.read_volatile() == word(i, round - SLICES);
            place.write_volatile(word(i, round));
        }
    }
    ensure(same, "memory is not what was written")
}

/// Sixteen XMM registers hold and compute under another rounding than the usual one.
fn sse(seed: u64) -> u64 {
    let (mxcsr, usual) = (0x1f80u32 | (seed as u32 & 3) << 13, 0x1f80u32);
    let mut values = [0f64; 8];
    values.iter_mut().enumerate().for_each(|(i, v)| *v = 1.0 / (3.0 + seed as f64 + i as f64));
    // SAFETY: reads and writes `values` only, and puts MXCSR back.
    unsafe {
        asm!(
            "ldmxcsr [{mxcsr}]",
            "movupd xmm0, [{v}]", "movupd xmm1, [{v} + 16]", "movupd xmm2, [{v} + 32]", "movupd xmm3, [{v} + 48]",
            "2:",
            "movapd xmm4, xmm0", "mulpd xmm4, xmm1", "addpd xmm4, xmm2", "sqrtpd xmm4, xmm4",
            "movapd xmm5, xmm3", "divpd xmm5, xmm4", "addpd xmm5, xmm1",
            "movapd xmm3, xmm2", "movapd xmm2, xmm1", "movapd xmm1, xmm0", "movapd xmm0, xmm5",
            "dec {n}", "jnz 2b",
            "movupd [{v}], xmm0", "movupd [{v} + 16], xmm1", "movupd [{v} + 32], xmm2", "movupd [{v} + 48], xmm3",
            "ldmxcsr [{usual}]",
            mxcsr = in(reg) &mxcsr, usual = in(reg) &usual, v = in(reg) &mut values, n = inout(reg) 2000u64 => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
        );
    }
    values.iter().fold(seed, |sum, v| sum.rotate_left(7) ^ v.to_bits())
}

/// Five x87 registers, 64-bit precision.
fn x87(seed: u64) -> u64 {
    let start = seed + 2;
    let mut out = [0u64; 2];
    // SAFETY: leaves the x87 stack empty; writes the ten bytes of `out` only.
    unsafe {
        asm!(
            "fninit", "fild qword ptr [{start}]", "fldpi", "fldl2e", "fld1", "fldln2",
            "2:",
            "fadd st, st(2)", "fmul st, st(1)", "fsqrt", "fxch st(3)", "fdiv st, st(4)", "fadd st, st(1)", "fxch st(1)",
            "dec {n}", "jnz 2b",
            "fstp st(1)", "fstp st(1)", "fadd", "fadd", "fstp tbyte ptr [{out}]",
            start = in(reg) &start, out = in(reg) &mut out, n = inout(reg) 2000u64 => _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    out[0] ^ out[1].rotate_left(40)
}

struct Busy<'a> {
    round: u64,
    disk: Option<(Disk<'a>, u64)>,
    card: Option<(Card<'a>, [u8; 4], [u8; 6])>,
    known: [Option<(u64, u64)>; SEEDS],
    ticks: u64,
    tsc: u64,
    pings: u64,
    lost: u64,
    silent: u32,
    sectors: u64,
}

impl Busy<'_> {
    fn floats(&mut self) -> Outcome {
        let seed = self.round as usize % SEEDS;
        let now = (sse(seed as u64), x87(seed as u64));
        let before = *self.known[seed].get_or_insert(now);
        ensure(now.0 == before.0, "SSE computes something else than before")?;
        ensure(now.1 == before.1, "x87 computes something else than before")
    }

    fn time(&mut self) -> Outcome {
        let (ticks, tsc) = (ticks::ticks(), rt::tsc());
        ensure(tsc > self.tsc, "the time-stamp counter went back")?;
        let stood = ticks == self.ticks && rt::micros(tsc - self.tsc) > 5_000_000;
        (self.ticks, self.tsc) = (ticks, tsc);
        ensure(!stood, "five seconds without a timer interrupt")
    }

    fn disk(&mut self) -> Outcome {
        let round = self.round;
        let Some((disk, capacity)) = &mut self.disk else { return Ok(()) };
        let place = |round: u64| {
            let sectors = 1 + Random(round | 1 << 40).next() % STRETCH;
            (FIRST + round % STRETCHES * STRETCH, sectors)
        };
        if FIRST + STRETCHES * STRETCH > *capacity {
            return Err(Failure("the disk is too small"));
        }
        let (first, sectors) = place(round);
        if round > STRETCHES {
            let (first, sectors) = place(round - STRETCHES);
            disk.pattern(false, round - STRETCHES, first, sectors)?;
        }
        disk.pattern(true, round, first, sectors)?;
        self.sectors += sectors;
        if round.is_multiple_of(8) {
            disk.flush()?;
        }
        disk.pattern(false, round, first, sectors)
    }

    fn net(&mut self) -> Outcome {
        let Some((card, whom, mac)) = &mut self.card else { return Ok(()) };
        for _ in 0..2 {
            self.pings += 1;
            if card.ping(*mac, *whom, self.pings)? {
                self.silent = 0;
            } else {
                self.lost += 1;
                self.silent += 1;
                ensure(self.silent < LOST_IN_A_ROW, "nobody answers pings any more")?;
            }
        }
        Ok(())
    }

    fn round(&mut self) -> Outcome {
        self.round += 1;
        memory(self.round)?;
        self.floats()?;
        self.disk()?;
        self.net()?;
        self.time()
    }
}

/// Finds a disk and a card, and never ends.
pub fn run() {
    let mut found = [const { None }; 4];
    crate::devices().zip(&mut found).for_each(|(device, slot)| *slot = Some(device));
    let (mut disk, mut card) = (None, None);
    for device in found.iter_mut().flatten() {
        let bad = match device.id {
            1 => match Card::start(device) {
                Ok(Some((mut found, whom))) => {
                    // The first frames may be lost: a bridge takes a moment to see a new port.
                    if let Some(mac) = (0..LOST_IN_A_ROW).find_map(|_| found.arp(whom).ok()) {
                        card = Some((found, whom, mac));
                        continue;
                    }
                    "the neighbour is silent"
                }
                Ok(None) => continue,
                Err(Failure(why)) => why,
            },
            2 => match Disk::start(device) {
                Ok(found) => {
                    disk = Some(found);
                    continue;
                }
                Err(Failure(why)) => why,
            },
            _ => continue,
        };
        Out.text("busy BAD setting up: ").text(bad).text("\n");
    }
    let (ticks, tsc) = (ticks::ticks(), rt::tsc());
    let mut busy = Busy {
        round: 0,
        disk,
        card,
        known: [None; SEEDS],
        ticks,
        tsc,
        pings: 0,
        lost: 0,
        silent: 0,
        sectors: 0,
    };
    Out.text("busy begins disk=").decimal(busy.disk.is_some().into());
    Out.text(" net=").decimal(busy.card.is_some().into()).text("\n");
    loop {
        let outcome = busy.round();
        Out.text("busy n=").decimal(busy.round).text(" ticks=").decimal(busy.ticks);
        Out.text(" pings=").decimal(busy.pings).text(" lost=").decimal(busy.lost);
        Out.text(" sectors=").decimal(busy.sectors);
        match outcome {
            Ok(()) => Out.text(" ok\n"),
            Err(Failure(why)) => Out.text(" BAD ").text(why).text("\n"),
        };
        Out.flush();
    }
}
