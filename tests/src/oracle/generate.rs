//! Random instruction sequences and the states they start from, both from one seed. [`super`] runs them.
//!
//! A mnemonic is drawn first and one of its forms then ([`table`]), so that rare instructions come up as often as
//! common ones. Everything else of the encoding is free: registers, address forms, immediates, prefixes. A step is
//! what is drawn at once: mostly one instruction, with others before or after it where its operands or results need
//! them. Branches go forward, so every sequence ends.

use super::table::{self, Class, Entry, Form, decode, head};
pub use super::table::{FAMILIES, Family};
use super::undefined::{reads, undefined_after};
use super::{CODE, DATA, DATA_LEN, State};
use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic as M};

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
    #[allow(clippy::should_implement_trait, reason = "not an iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// True once in `n` times.
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
pub const USER_SS: u8 = 0x2b;

/// A branch whose target is not known yet: where its displacement is, how wide, and the step it goes to.
struct Link {
    step: usize,
    at: usize,
    bytes: usize,
    /// Where the instruction ends.
    end: usize,
    to: usize,
}

struct Builder<'a> {
    r: &'a mut Random,
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

/// Registers by ModRM and REX.
#[derive(Clone, Copy)]
enum Place {
    /// A register.
    Register(u8),
    /// Any memory.
    Memory,
    /// Memory at this address.
    At(u64),
}

impl Builder<'_> {
    /// Encodes `f` with random operands. Gives the bytes and the displacement to be counted from the end, if there is one.
    fn encode(&mut self, f: &Form, place: Place, immediate: &[u8]) -> Vec<u8> {
        let r = &mut *self.r;
        let mut rex = r.next() as u8 & 7;
        if r.one_in(2) {
            rex &= 2;
        }
        let vvvv = if f.vvvv { r.next() as u8 & 15 } else { 0 };
        // Registers that point somewhere are spared, mostly.
        let any = spared(r);
        let reg = f.reg.unwrap_or(any & 7);
        if f.reg.is_none() {
            rex = rex & !4 | (any >> 3) << 2;
        }
        let mut f = f.clone();
        // W and L are often without meaning.
        if f.vex && r.one_in(4) {
            f.w ^= r.one_in(2);
            f.l ^= r.one_in(2);
        }
        let mut prefix = Vec::new();
        let mut tail = Vec::new();
        let mut relative = None;
        match place {
            Place::Register(rm) => {
                rex = rex & !1 | rm >> 3;
                tail.push(0xc0 | reg << 3 | rm & 7);
            }
            Place::At(address) => {
                rex &= 4;
                tail.extend([0x04 | reg << 3, 0x25]);
                tail.extend((address as u32).to_le_bytes());
            }
            Place::Memory => {
                let pointer = POINTERS[r.below(6) as usize];
                let index = if !r.one_in(8) { SMALL[r.below(3) as usize] } else { r.next() as u8 & 15 };
                let short = r.next() as u8 & if r.one_in(4) { 0xff } else { 0xf0 };
                let long = (r.below(0x1000) as i32 - 0x800) & if r.one_in(4) { -1 } else { !15 };
                if r.one_in(16) {
                    prefix.push(0x67);
                }
                let form =
                    if r.one_in(32) { 14 } else { [0, 1, 2, 7, 9, 10, 11, 12, 13, 15][r.below(10) as usize] };
                if form == 15 {
                    prefix.push(if r.one_in(2) { 0x64 } else { 0x65 });
                }
                let sib = |index: u8, base: u8, scale: u8| scale << 6 | (index & 7) << 3 | base & 7;
                let scale = r.next() as u8 & 3;
                if f.vsib {
                    rex = rex & 4 | (index >> 3) << 1 | pointer >> 3;
                    tail.extend([0x44 | reg << 3, sib(index, pointer, scale), short]);
                } else {
                    match form {
                        0..=2 | 15 => {
                            rex = rex & 4 | pointer >> 3;
                            tail.extend([0x40 | reg << 3 | pointer & 7, short]);
                        }
                        7 => {
                            rex = rex & 4 | pointer >> 3;
                            tail.push(0x80 | reg << 3 | pointer & 7);
                            tail.extend(long.to_le_bytes());
                        }
                        9..=11 if index != 4 => {
                            rex = rex & 4 | (index >> 3) << 1 | pointer >> 3;
                            tail.extend([0x44 | reg << 3, sib(index, pointer, scale), short]);
                        }
                        12 => {
                            tail.push(0x05 | reg << 3);
                            let base = if r.one_in(8) { CODE } else { DATA };
                            relative = Some(base + r.below(0x1000));
                            tail.extend([0; 4]);
                        }
                        13 => {
                            rex &= 4;
                            tail.extend([0x04 | reg << 3, 0x25]);
                            tail.extend(((DATA + 0x800) as i32 + long).to_le_bytes());
                        }
                        _ => {
                            // Whatever is in a register.
                            let base = r.next() as u8 & 15;
                            rex = rex & 4 | (index >> 3) << 1 | base >> 3;
                            tail.extend([0x44 | reg << 3, sib(index, base, scale), short]);
                        }
                    }
                }
            }
        }
        let mut bytes = prefix;
        if f.map == 0 && is_string(&f) && r.one_in(2) {
            bytes.push(if r.one_in(3) { 0xf2 } else { 0xf3 });
        }
        if f.memory && !f.vex && r.one_in(8) && lockable(f.code) {
            bytes.push(0xf0);
        }
        if !f.vex && r.one_in(32) {
            // Without meaning for most.
            bytes.push([0x2e, 0x3e, 0x26, 0x36][r.below(4) as usize]);
        }
        head(&f, rex, vvvv, &mut bytes);
        let modrm = bytes.len();
        bytes.extend(tail);
        bytes.extend_from_slice(immediate);
        bytes.extend(r.next().to_le_bytes());
        bytes.extend(r.next().to_le_bytes());
        let i = decode(&bytes);
        bytes.truncate(i.len().max(1));
        if let Some(address) = relative {
            let end = CODE + (self.at + bytes.len()) as u64;
            let disp = address.wrapping_sub(end) as u32;
            if modrm + 5 <= bytes.len() {
                bytes[modrm + 1..modrm + 5].copy_from_slice(&disp.to_le_bytes());
            }
        }
        if !f.vex && f.map == 0 && matches!(f.opcode, 0xa0..=0xa3) && bytes.len() > 8 {
            // MOV with an absolute address.
            let n = bytes.len();
            bytes[n - 8..].copy_from_slice(&(DATA + self.r.below(DATA_LEN as u64 - 8)).to_le_bytes());
        }
        if i.mnemonic() == M::Enter {
            let n = bytes.len();
            bytes[n - 3..].copy_from_slice(&[self.r.next() as u8 & 0x7f, 0, self.r.next() as u8 & 3]);
        }
        bytes
    }

    fn place(&mut self, f: &Form) -> Place {
        if f.memory {
            Place::Memory
        } else {
            let any = spared(self.r);
            Place::Register(f.rm.map_or(any, |rm| rm | any & 8))
        }
    }

    /// One step with `e`; none if it did not come out.
    fn step(&mut self, e: &Entry) -> Option<Vec<u8>> {
        let f = &e.forms[self.r.below(e.forms.len() as u64) as usize];
        let place = self.place(f);
        match e.class {
            Class::Plain | Class::Approximate | Class::Fatal => {
                let bytes = self.encode(f, place, &[]);
                let i = decode(&bytes);
                // INT 0x80 calls the kernel; the vectors of INT3 and INTO have gates for programs.
                let call = i.mnemonic() == M::Int && matches!(i.immediate(0), 3 | 4 | 0x80);
                // PAUSE with a REX prefix is XCHG with R8 to some processors.
                let rex = i.mnemonic() == M::Pause && bytes.len() > 2;
                (i.code() == f.code && !call && !rex).then_some(bytes)
            }
            Class::Blind => self.blind(f, place),
            Class::Flags => {
                // AND qword [RSP], without TF, NT and AC
                let mut step = vec![0x48, 0x81, 0x24, 0x24];
                step.extend(0x20_0ed5u32.to_le_bytes());
                let bytes = self.encode(f, place, &[]);
                step.extend((decode(&bytes).code() == f.code).then_some(bytes)?);
                Some(step)
            }
            Class::Selector => {
                // Null, or beyond the end of either table.
                let selector = [0u16, 3, 0xfff8, 0xffff, 0xfff7][self.r.below(5) as usize];
                let mut step;
                if f.memory {
                    // MOV word [AREA], selector
                    step = vec![0x66, 0xc7, 0x04, 0x25];
                    step.extend((AREA as u32).to_le_bytes());
                    step.extend(selector.to_le_bytes());
                    step.extend(self.encode(f, Place::At(AREA), &[]));
                } else {
                    let rm = [0, 1, 2, 8, 12][self.r.below(5) as usize];
                    step = load_immediate(rm, selector.into());
                    step.extend(self.encode(f, Place::Register(rm), &[]));
                }
                Some(step)
            }
            Class::Environment => self.environment(f),
            Class::Branch => self.branch(f),
        }
    }

    /// Asks the machine, and forgets the answer.
    fn blind(&mut self, f: &Form, place: Place) -> Option<Vec<u8>> {
        let mut step = Vec::new();
        let mnemonic = f.code.mnemonic();
        match mnemonic {
            M::Cpuid => step.extend(load_immediate(0, [0, 1, 7, 13, 0x80][self.r.below(5) as usize])),
            M::Xgetbv => step.extend(load_immediate(1, self.r.below(3) as u32)),
            _ => {}
        }
        let place = match place {
            // Not what the buffer is found by.
            Place::Register(_) => Place::Register([0, 1, 2, 8, 12, 15][self.r.below(6) as usize]),
            other => other,
        };
        let bytes = self.encode(f, place, &[]);
        let i = decode(&bytes);
        if i.code() != f.code {
            return None;
        }
        step.extend(bytes);
        let results: &[u8] = match mnemonic {
            M::Cpuid => &[0, 1, 2, 3],
            M::Rdtscp => &[0, 1, 2],
            M::Rdtsc | M::Xgetbv => &[0, 2],
            _ => &[i.op0_register().full_register().number() as u8],
        };
        for r in results {
            let value = if *r == 3 { (DATA + 0x900) as u32 } else { 5 };
            step.extend(load_immediate(*r, value));
        }
        Some(step)
    }

    /// Saves or restores x87 and vector state in the buffer.
    fn environment(&mut self, f: &Form) -> Option<Vec<u8>> {
        let mut step = Vec::new();
        let m = f.code.mnemonic();
        // Each has its own place: XSAVEOPT may leave out what XRSTOR has just read from there.
        let area = match m {
            M::Xrstor | M::Xrstor64 => AREA - 0x400,
            _ => AREA,
        };
        let narrow = f.pp == 1;
        let clear = |step: &mut Vec<u8>, offsets: &[(u64, usize)]| {
            for (offset, bytes) in offsets {
                // MOV [area + offset], 0
                if *bytes == 2 {
                    step.push(0x66);
                }
                step.extend([0xc7, 0x04, 0x25]);
                step.extend(((area + offset) as u32).to_le_bytes());
                step.extend(&[0; 4][..*bytes]);
            }
        };
        // FOP, FIP, FDP and their selectors: `x87-pointers` in the vendors' table.
        let env: &[(u64, usize)] =
            if narrow { &[(6, 4), (10, 4)] } else { &[(12, 4), (16, 4), (20, 4), (24, 4)] };
        let fx = [(6, 2), (8, 4), (12, 4), (16, 4), (20, 4), (28, 4)];
        let masks = |b: &mut Self, step: &mut Vec<u8>| {
            // EDX:EAX; what the processor has beyond AVX stays out.
            step.extend(load_immediate(0, [7, 7, 3, 2, 6][b.r.below(5) as usize]));
            step.extend(load_immediate(2, 0));
        };
        let image = |step: &mut Vec<u8>, xsave: bool, bv: u32| {
            // A legal MXCSR, XSTATE_BV and an empty rest of the header.
            step.extend([0xc7, 0x04, 0x25]);
            step.extend(((area + 24) as u32).to_le_bytes());
            step.extend(0x1fa0u32.to_le_bytes());
            if xsave {
                clear(step, &(516..576).step_by(4).map(|o| (o, 4)).collect::<Vec<_>>());
                step.extend([0xc7, 0x04, 0x25]);
                step.extend(((area + 512) as u32).to_le_bytes());
                step.extend(bv.to_le_bytes());
            }
        };
        let one = |b: &mut Self| {
            let bytes = b.encode(f, Place::At(area), &[]);
            (decode(&bytes).code() == f.code).then_some(bytes)
        };
        match m {
            M::Fnstenv | M::Fnsave => {
                step.extend(one(self)?);
                clear(&mut step, env);
            }
            M::Fxsave | M::Fxsave64 => {
                step.extend(one(self)?);
                clear(&mut step, &fx);
            }
            M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 if self.initial => return None,
            M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 => {
                masks(self, &mut step);
                step.extend(one(self)?);
                clear(&mut step, &fx);
                // Which states are in their first one is for the processor to track (SDM vol. 1, 13.6).
                clear(&mut step, &[(512, 4), (516, 4)]);
            }
            M::Fldenv | M::Frstor => step.extend(one(self)?),
            M::Fxrstor | M::Fxrstor64 => {
                if !self.r.one_in(8) {
                    image(&mut step, false, 0);
                }
                step.extend(one(self)?);
            }
            _ => {
                masks(self, &mut step);
                if !self.r.one_in(8) {
                    let bv = [7, 7, 3, 6, 2, 0][self.r.below(6) as usize];
                    image(&mut step, true, bv);
                }
                step.extend(one(self)?);
            }
        }
        Some(step)
    }

    /// A branch forward.
    fn branch(&mut self, f: &Form) -> Option<Vec<u8>> {
        let to = self.steps.len() + 1 + self.r.below(4) as usize;
        let step_number = self.steps.len();
        let mut step = Vec::new();
        let link =
            |step: &[u8], at: usize, bytes: usize| Link { step: step_number, at, bytes, end: step.len(), to };
        // LEA scratch, [RIP + target]
        let scratch = [0u8, 2, 8, 11, 12, 15][self.r.below(6) as usize];
        let lea = |b: &mut Self, step: &mut Vec<u8>| {
            step.extend([0x48 | (scratch >> 3) << 2, 0x8d, 0x05 | (scratch & 7) << 3, 0, 0, 0, 0]);
            b.links.push(link(step, step.len() - 4, 4));
        };
        let store = |step: &mut Vec<u8>, wide: bool| {
            // MOV [AREA], scratch
            step.extend([
                0x40 | u8::from(wide) << 3 | (scratch >> 3) << 2,
                0x89,
                0x04 | (scratch & 7) << 3,
                0x25,
            ]);
            step.extend((AREA as u32).to_le_bytes());
        };
        let push = |step: &mut Vec<u8>, r: u8| {
            if r > 7 {
                step.push(0x41);
            }
            step.push(0x50 | r & 7);
        };
        let direct = probe_kind(f);
        match (f.code, direct) {
            (_, Some(width)) => {
                let bytes = self.encode(f, Place::Register(0), &[]);
                let i = decode(&bytes);
                if i.code() != f.code || i.len() != bytes.len() {
                    return None;
                }
                step.extend(bytes);
                let at = step.len() - width;
                self.links.push(link(&step, at, width));
            }
            (Code::Retnq | Code::Retnq_imm16 | Code::Retfq | Code::Retfq_imm16, _) => {
                lea(self, &mut step);
                if matches!(f.code, Code::Retfq | Code::Retfq_imm16) {
                    step.extend([0x6a, USER_CS]);
                }
                push(&mut step, scratch);
                let extra = [self.r.next() as u8 & 0x78, 0];
                step.extend(self.encode(f, Place::Register(0), &[]));
                if matches!(f.code, Code::Retnq_imm16 | Code::Retfq_imm16) {
                    let n = step.len();
                    step[n - 2..].copy_from_slice(&extra);
                }
            }
            (Code::Iretq, _) => {
                // MOV scratch, RSP; PUSH SS, RSP, flags, CS, target
                step.extend([0x48 | scratch >> 3, 0x89, 0xe0 | scratch & 7, 0x6a, USER_SS]);
                push(&mut step, scratch);
                step.push(0x68);
                step.extend((0x202 | self.r.next() as u32 & 0xcd5).to_le_bytes());
                step.extend([0x6a, USER_CS]);
                lea(self, &mut step);
                push(&mut step, scratch);
                step.extend([0x48, 0xcf]);
            }
            (Code::Jmp_rm64 | Code::Call_rm64, _) => {
                lea(self, &mut step);
                if f.memory {
                    store(&mut step, true);
                    step.extend(self.encode(f, Place::At(AREA), &[]));
                } else {
                    step.extend(self.encode(f, Place::Register(scratch), &[]));
                }
            }
            (Code::Jmp_m1632 | Code::Call_m1632, _) => {
                lea(self, &mut step);
                store(&mut step, false);
                // MOV word [AREA + 4], CS
                step.extend([0x66, 0xc7, 0x04, 0x25]);
                step.extend((AREA as u32 + 4).to_le_bytes());
                step.extend([USER_CS, 0]);
                step.extend(self.encode(f, Place::At(AREA), &[]));
            }
            _ => return None,
        }
        self.target = Some(to);
        Some(step)
    }

    /// Takes a step if it reads no undefined flag.
    fn take(&mut self, step: Vec<u8>) {
        let number = self.steps.len();
        let before = self.joins.iter().filter(|j| j.0 == number).fold(self.unsure, |all, j| all | j.1);
        let mut unsure = before;
        let mut decoder = Decoder::with_ip(64, &step, CODE, DecoderOptions::NONE);
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
            let mut distance = (to - from) as u32;
            if l.bytes == 1 && distance > 127 {
                // Too far: to the next step.
                distance = (starts[l.step + 1] - from) as u32;
            }
            let field = &mut self.steps[l.step][l.at..l.at + l.bytes];
            field.copy_from_slice(&distance.to_le_bytes()[..l.bytes]);
        }
    }
}

/// A register, mostly none of [`POINTERS`] and not the stack's.
fn spared(r: &mut Random) -> u8 {
    const OTHERS: [u8; 9] = [0, 1, 2, 8, 9, 10, 11, 12, 15];
    if r.one_in(8) { r.next() as u8 & 15 } else { OTHERS[r.below(9) as usize] }
}

/// Bytes of a direct branch's displacement.
fn probe_kind(f: &Form) -> Option<usize> {
    let name = format!("{:?}", f.code);
    if name.contains("_rel8") {
        Some(1)
    } else if name.contains("_rel32") {
        Some(4)
    } else {
        None
    }
}

fn is_string(f: &Form) -> bool {
    matches!(f.opcode, 0xa4..=0xa7 | 0xaa..=0xaf)
}

/// Instructions that take LOCK.
fn lockable(code: Code) -> bool {
    matches!(
        code.mnemonic(),
        M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
    )
}

/// MOV register, 32 bits sign-extended.
fn load_immediate(register: u8, value: u32) -> Vec<u8> {
    let mut out = vec![0x48 | register >> 3, 0xc7, 0xc0 | register & 7];
    out.extend(value.to_le_bytes());
    out
}

/// A sequence of 1 to 24 steps.
pub fn sequence(r: &mut Random, family: Family) -> Vec<Vec<u8>> {
    let want = 1 + r.below(24) as usize;
    let families = &table::table().families;
    let mut b = Builder {
        r,
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
        let from = if b.r.one_in(8) { Family::Integer } else { family };
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
pub fn state(r: &mut Random) -> State {
    let mut s = State::new();
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
