//! Random instruction sequences and the states they start from, both from one seed. [`super`] runs them.
//!
//! A mnemonic is drawn first and one of its forms then ([`table`]), so that rare instructions come up as often as
//! common ones. Everything else of the encoding is free: registers, address forms, immediates, prefixes. A step is
//! what is drawn at once: mostly one instruction, with others before or after it where its operands or results need
//! them. Branches go forward, so every sequence ends.

mod encode;
mod steps;

use super::table::{self, Class, Entry, decode};
pub use super::table::{FAMILIES, Family};
use super::undefined::{reads, undefined_after};
use super::{CODE, DATA, DATA_LEN, State};
use encode::Place;
use iced_x86::{Decoder, DecoderOptions, Mnemonic as M};

/// Xorshift64*: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Self {
        let mut r = Random((seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1);
        for _ in 0..8 {
            r.next();
        }
        r
    }

    /// 64 random bits.
    #[inline(always)]
    #[allow(clippy::should_implement_trait, reason = "not an iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    #[inline(always)]
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// True once in `n` times.
    #[inline(always)]
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Registers that point into the buffer at first.
const POINTERS: [u8; 6] = [3, 5, 6, 7, 13, 14];
/// Registers that often hold something small at first.
const SMALL: [u8; 3] = [1, 9, 10];
/// Where state images and operands of steps with their own go: 64 bytes aligned, with room for any.
const AREA: u64 = DATA + 0x1c00;
/// Segment selectors of 64-bit user code and its data.
pub const USER_CS: u8 = 0x33;
/// As above.
pub const USER_SS: u16 = 0x2b;
/// Of 32-bit user code.
pub const USER_CS_32: u8 = 0x23;
/// In 32-bit code FS is the buffer, to its end.
pub const FS: u16 = 0x07;
/// And GS the buffer from [`GS_LIMIT`] on, by a segment that expands down.
pub const GS: u16 = 0x0f;
/// The last offset that GS does not have.
pub const GS_LIMIT: u32 = 0xfff;

/// A branch whose target is not known yet: where its displacement is, how wide, and the step it goes to.
struct Link {
    /// The target's address itself.
    absolute: bool,
    step: usize,
    at: usize,
    bytes: usize,
    /// Where the instruction ends.
    end: usize,
    to: usize,
}

struct Builder<'a> {
    r: &'a mut Random,
    bits: u32,
    steps: Vec<Vec<u8>>,
    /// Bytes before the next step.
    at: usize,
    /// Flags that are undefined here.
    unsure: u64,
    /// And those that become so at a later step, where a branch leads to it.
    joins: Vec<(usize, u64)>,
    links: Vec<Link>,
    /// Where the step being made branches to.
    target: Option<usize>,
    /// A state may be in its first configuration: XSAVEOPT and XSAVEC may or may not leave it out (SDM vol. 1, 13.6).
    initial: bool,
}

impl Builder<'_> {
    /// One step with `e`; none if it did not come out.
    fn step(&mut self, e: &Entry) -> Option<Vec<u8>> {
        let f = &e.forms[self.r.below(e.forms.len() as u64) as usize];
        let place = self.place(f);
        match e.class {
            Class::Plain | Class::Approximate | Class::Fatal => {
                let bytes = self.encode(f, place, &[]);
                let i = decode(&bytes, self.bits);
                // INT 0x80 calls the kernel; the vectors of INT3 and INTO have gates for programs.
                let call = i.mnemonic() == M::Int && matches!(i.immediate(0), 3 | 4 | 0x80);
                // PAUSE with a REX prefix is XCHG with R8 to some processors.
                let rex = i.mnemonic() == M::Pause && bytes.len() > 2;
                (i.code() == f.code && !call && !rex).then_some(bytes)
            }
            Class::Blind => self.blind(f, place),
            Class::Flags => {
                // AND qword [RSP], without TF, NT and AC
                let mut step = if self.bits == 64 { vec![0x48] } else { vec![] };
                step.extend([0x81, 0x24, 0x24]);
                step.extend(0x20_0ed5u32.to_le_bytes());
                let bytes = self.encode(f, place, &[]);
                step.extend((decode(&bytes, self.bits).code() == f.code).then_some(bytes)?);
                Some(step)
            }
            Class::Selector => {
                // Null, or beyond the end of either table.
                // In 32-bit code, its own too.
                let choices = if self.bits == 64 { 5 } else { 7 };
                let selector = [0u16, 3, 0xfff8, 0xffff, 0xfff7, FS, GS][self.r.below(choices) as usize];
                let mut step;
                if f.memory {
                    // MOV word [AREA], selector
                    step = vec![0x66, 0xc7, 0x04, 0x25];
                    step.extend((AREA as u32).to_le_bytes());
                    step.extend(selector.to_le_bytes());
                    step.extend(self.encode(f, Place::At(AREA), &[]));
                } else {
                    let rm = [0, 1, 2, 8, 12][self.r.below(if self.bits == 64 { 5 } else { 3 }) as usize];
                    step = self.load_immediate(rm, selector.into());
                    step.extend(self.encode(f, Place::Register(rm), &[]));
                }
                Some(step)
            }
            Class::Environment => self.environment(f),
            Class::Branch => self.branch(f),
        }
    }

    /// MOV register, 32 bits, in 64-bit code sign-extended.
    fn load_immediate(&self, register: u8, value: u32) -> Vec<u8> {
        let mut out = if self.bits == 64 { vec![0x48 | register >> 3] } else { vec![] };
        out.extend([0xc7, 0xc0 | register & 7]);
        out.extend(value.to_le_bytes());
        out
    }

    /// Takes a step if it reads no undefined flag.
    fn take(&mut self, step: Vec<u8>) {
        let number = self.steps.len();
        let before = self.joins.iter().filter(|j| j.0 == number).fold(self.unsure, |all, j| all | j.1);
        let mut unsure = before;
        let mut decoder = Decoder::with_ip(self.bits, &step, CODE, DecoderOptions::NONE);
        while decoder.can_decode() {
            let i = decoder.decode();
            if i.is_invalid() || reads(&i, unsure) {
                return;
            }
            unsure = undefined_after(unsure, &i);
            self.initial |= matches!(
                i.mnemonic(),
                M::Xrstor | M::Xrstor64 | M::Fninit | M::Fnsave | M::Vzeroupper | M::Vzeroall
            );
        }
        if let Some(to) = self.target {
            self.joins.push((to, before | unsure));
        }
        self.unsure = unsure;
        self.at += step.len();
        self.steps.push(step);
    }

    fn patch(&mut self) {
        let mut starts = vec![0];
        for s in &self.steps {
            starts.push(starts[starts.len() - 1] + s.len());
        }
        for l in &self.links {
            let to = starts[l.to.min(self.steps.len())];
            let from = starts[l.step] + l.end;
            let mut distance = if l.absolute { CODE as u32 + to as u32 } else { (to - from) as u32 };
            if l.bytes == 1 && distance > 127 {
                // Too far: to the next step.
                distance = (starts[l.step + 1] - from) as u32;
            }
            let field = &mut self.steps[l.step][l.at..l.at + l.bytes];
            field.copy_from_slice(&distance.to_le_bytes()[..l.bytes]);
        }
    }
}

/// A sequence of 1 to 24 steps.
pub fn sequence(r: &mut Random, family: Family) -> Vec<Vec<u8>> {
    let want = 1 + r.below(24) as usize;
    let families = &table::table().families;
    let mut b = Builder {
        r,
        bits: family.bits(),
        steps: Vec::new(),
        at: 0,
        unsure: 0,
        joins: Vec::new(),
        links: Vec::new(),
        target: None,
        initial: false,
    };
    while b.steps.len() < want {
        // Other families set the stage.
        let integer = if family.bits() == 64 { Family::Integer } else { Family::Integer32 };
        let from = if b.r.one_in(8) { integer } else { family };
        let entries = &families[from as usize];
        let e = &entries[b.r.below(entries.len() as u64) as usize];
        let last = b.steps.len() + 1 == want;
        let rare = match e.class {
            Class::Fatal => !b.r.one_in(if last { 4 } else { 64 }),
            Class::Approximate => !last,
            _ => false,
        };
        if rare {
            continue;
        }
        b.target = None;
        let number = b.steps.len();
        if let Some(step) = b.step(e) {
            b.take(step);
        }
        if b.steps.len() == number {
            b.links.retain(|l| l.step != number);
        }
    }
    b.patch();
    b.steps
}

fn number(r: &mut Random) -> u64 {
    const DOUBLES: [f64; 8] = [0.0, -0.0, 1.0, -1.5, f64::INFINITY, 1e300, 1e-310, 3.7e5];
    const SINGLES: [f32; 8] = [0.0, -0.0, 1.0, -1.5, f32::INFINITY, 1e38, 1e-40, 7.25];
    match r.below(6) {
        0 => DOUBLES[r.below(8) as usize].to_bits(),
        1 => {
            let pair = [SINGLES[r.below(8) as usize], SINGLES[r.below(8) as usize]];
            u64::from(pair[0].to_bits()) << 32 | u64::from(pair[1].to_bits())
        }
        2 => 1u64.wrapping_shl(r.next() as u32).wrapping_sub(r.below(2)),
        3 => r.below(256),
        _ => r.next(),
    }
}

/// A state to start from.
pub fn state(r: &mut Random, bits: u32) -> State {
    let mut s = State::new();
    s.bits = bits;
    for g in &mut s.gpr {
        *g = number(r);
    }
    for pointer in POINTERS {
        s.gpr[usize::from(pointer)] = DATA + 0x400 + r.below(0x180) * 16;
    }
    s.gpr[4] = DATA + DATA_LEN as u64 / 2;
    for small in SMALL {
        if r.one_in(2) {
            s.gpr[usize::from(small)] = r.below(5) * 16;
        } else if !r.one_in(4) {
            s.gpr[usize::from(small)] = r.below(70);
        }
    }
    s.fs_base = (r.below(0x20) * 16).wrapping_sub(0x100);
    s.gs_base = r.below(16) * if r.one_in(2) { 1 } else { 16 };
    if bits == 32 {
        s.gpr[..8].iter_mut().for_each(|g| *g &= 0xffff_ffff);
        s.gpr[8..].fill(0);
        (s.fs_base, s.gs_base) = (DATA, DATA);
    }
    s.rflags = 0x202 | r.next() & 0x8d5 | if r.one_in(8) { 0x400 } else { 0 };
    for x in &mut s.ymm {
        // Gathers need indices.
        let narrow = r.one_in(4);
        *x = [0; 4].map(|_| if narrow { r.next() & 0x1f_0000_001f } else { number(r) });
    }
    s.mxcsr = 0x1f80 | (r.next() as u32 & 0xe07f) & if r.one_in(2) { 0 } else { !0 };
    if r.one_in(8) {
        s.mxcsr &= !(r.next() as u32 & 0x1f80) & !0x3f;
    }
    let depth = r.below(9);
    s.fsw = ((8 - depth) as u16 & 7) << 11;
    s.ftw = (0xffu32 << (8 - depth)) as u8;
    s.fcw = 0x7f | (r.next() as u16 & 0xf00);
    if s.fcw & 0x300 == 0x100 {
        s.fcw |= 0x300;
    }
    if r.one_in(16) {
        s.fcw &= !(r.next() as u16 & 0x3f);
    }
    for st in &mut s.st {
        let exponent = [0x3fff, 0xbffe, 0x4004, 0x7ffe, 1, 0x3fd0][r.below(6) as usize];
        *st = (exponent, r.next() | 1 << 63);
        if r.one_in(8) {
            *st =
                [(0, 0), (0x8000, 0), (0x7fff, 1 << 63), (0x7fff, 3 << 62), (0, 12345)][r.below(5) as usize];
        }
    }
    for chunk in s.memory.chunks_exact_mut(8) {
        chunk.copy_from_slice(&number(r).to_le_bytes());
    }
    s
}
