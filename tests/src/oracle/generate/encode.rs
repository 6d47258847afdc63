//! How an instruction is encoded: registers, address forms and prefixes at random.

use super::{Builder, POINTERS, Random, SMALL};
use crate::oracle::table::{Form, decode, head};
use crate::oracle::{CODE, DATA, DATA_LEN};
use iced_x86::{Code, Mnemonic as M};

/// Registers by ModRM and REX.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// A register.
    Register(u8),
    /// Any memory.
    Memory,
    /// Memory at this address.
    At(u64),
}

impl Builder<'_> {
    /// Encodes `f` with random operands. Gives the bytes and the displacement to be counted from the end, if there is one.
    pub(super) fn encode(&mut self, f: &Form, place: Place, immediate: &[u8]) -> Vec<u8> {
        let r = &mut *self.r;
        let long = self.bits == 64;
        let mut rex = r.next() as u8 & 7;
        if r.one_in(2) {
            rex &= 2;
        }
        let vvvv = if f.vvvv { r.next() as u8 & if long { 15 } else { 7 } } else { 0 };
        // Registers that point somewhere are spared, mostly.
        let any = spared(r, self.bits);
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
                let pointer = POINTERS[r.below(if long { 6 } else { 4 }) as usize];
                let index = if !r.one_in(8) { SMALL[r.below(3) as usize] } else { r.next() as u8 & 15 };
                let index = if long { index } else { index & 7 };
                let short = r.next() as u8 & if r.one_in(4) { 0xff } else { 0xf0 };
                let disp32 = (r.below(0x1000) as i32 - 0x800) & if r.one_in(4) { -1 } else { !15 };
                if long && r.one_in(16) {
                    prefix.push(0x67);
                }
                let form =
                    if r.one_in(32) { 14 } else { [0, 1, 2, 7, 9, 10, 11, 12, 13, 15][r.below(10) as usize] };
                if form == 15 {
                    prefix.push(if r.one_in(2) { 0x64 } else { 0x65 });
                }
                // Beyond its own segments and flat ones 32-bit code has addresses of 16 bits.
                let narrow = !long && !f.vsib && (form == 15 || r.one_in(32)) && !r.one_in(4);
                if narrow {
                    prefix.push(0x67);
                }
                let sib = |index: u8, base: u8, scale: u8| scale << 6 | (index & 7) << 3 | base & 7;
                let scale = r.next() as u8 & 3;
                if narrow {
                    // [BX], [SI], [DI], [BP] and sums of two, displacements of 8 and 16 bits, or of 16 alone.
                    let rm = [7, 4, 5, 6, r.next() as u8 & 7][r.below(5) as usize];
                    match r.below(4) {
                        0 => tail.extend([reg << 3 | rm, short, 0]),
                        1 => {
                            tail.push(0x80 | reg << 3 | rm);
                            tail.extend((disp32 as u16).to_le_bytes());
                        }
                        2 => {
                            tail.push(0x06 | reg << 3);
                            tail.extend((r.below(0x2010) as u16).to_le_bytes());
                        }
                        _ => tail.extend([0x40 | reg << 3 | rm, short]),
                    }
                } else if !long && form == 15 {
                    tail.push(0x05 | reg << 3);
                    tail.extend((r.below(0x2010) as u32).to_le_bytes());
                } else if f.vsib {
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
                            tail.extend(disp32.to_le_bytes());
                        }
                        9..=11 if index != 4 => {
                            rex = rex & 4 | (index >> 3) << 1 | pointer >> 3;
                            tail.extend([0x44 | reg << 3, sib(index, pointer, scale), short]);
                        }
                        12 => {
                            tail.push(0x05 | reg << 3);
                            let base = if r.one_in(8) { CODE } else { DATA };
                            let address = base + r.below(0x1000);
                            tail.extend((address as u32).to_le_bytes());
                            relative = long.then_some(address);
                        }
                        13 => {
                            rex &= 4;
                            tail.extend([0x04 | reg << 3, 0x25]);
                            tail.extend(((DATA + 0x800) as i32 + disp32).to_le_bytes());
                        }
                        _ => {
                            // Whatever is in a register.
                            let base = r.next() as u8 & if long { 15 } else { 7 };
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
        if !long {
            rex = 0;
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
        let i = decode(&bytes, self.bits);
        bytes.truncate(i.len().max(1));
        if let Some(address) = relative {
            let end = CODE + (self.at + bytes.len()) as u64;
            let disp = address.wrapping_sub(end) as u32;
            if modrm + 5 <= bytes.len() {
                bytes[modrm + 1..modrm + 5].copy_from_slice(&disp.to_le_bytes());
            }
        }
        if !f.vex && f.map == 0 && matches!(f.opcode, 0xa0..=0xa3) && bytes.len() > self.bits as usize / 8 {
            // MOV with an absolute address.
            let at = bytes.len() - self.bits as usize / 8;
            let address = (DATA + self.r.below(DATA_LEN as u64 - 8)).to_le_bytes();
            bytes[at..].copy_from_slice(&address[..self.bits as usize / 8]);
        }
        if i.mnemonic() == M::Enter {
            let n = bytes.len();
            bytes[n - 3..].copy_from_slice(&[self.r.next() as u8 & 0x7f, 0, self.r.next() as u8 & 3]);
        }
        bytes
    }

    pub(super) fn place(&mut self, f: &Form) -> Place {
        if f.memory {
            Place::Memory
        } else {
            let any = spared(self.r, self.bits);
            Place::Register(f.rm.map_or(any, |rm| rm | any & 8))
        }
    }
}

/// A register, mostly none of [`POINTERS`] and not the stack's.
fn spared(r: &mut Random, bits: u32) -> u8 {
    const OTHERS: [u8; 9] = [0, 1, 2, 8, 9, 10, 11, 12, 15];
    let (all, others) = if bits == 64 { (15, 9) } else { (7, 3) };
    if r.one_in(8) { r.next() as u8 & all } else { OTHERS[r.below(others) as usize] }
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
