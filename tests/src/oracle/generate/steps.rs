//! Steps that take more than one instruction: what asks the machine, state images, branches.

use super::encode::Place;
use super::{AREA, Builder, Link, USER_CS, USER_CS_32, USER_SS};
use crate::oracle::DATA;
use crate::oracle::table::{Form, decode};
use iced_x86::{Code, Mnemonic as M};

impl Builder<'_> {
    /// Asks the machine, and forgets the answer.
    pub(super) fn blind(&mut self, f: &Form, place: Place) -> Option<Vec<u8>> {
        let mut step = Vec::new();
        let mnemonic = f.code.mnemonic();
        match mnemonic {
            M::Cpuid => {
                let leaf = [0, 1, 7, 13, 0x80][self.r.below(5) as usize];
                step.extend(self.load_immediate(0, leaf));
            }
            M::Xgetbv => {
                let register = self.r.below(3) as u32;
                step.extend(self.load_immediate(1, register));
            }
            _ => {}
        }
        let place = match place {
            // Not what the buffer is found by.
            Place::Register(_) => {
                let choices = if self.bits == 64 { 6 } else { 3 };
                Place::Register([0, 1, 2, 8, 12, 15][self.r.below(choices) as usize])
            }
            other => other,
        };
        let bytes = self.encode(f, place, &[]);
        let i = decode(&bytes, self.bits);
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
            step.extend(self.load_immediate(*r, value));
        }
        Some(step)
    }

    /// Saves or restores x87 and vector state in the buffer.
    pub(super) fn environment(&mut self, f: &Form) -> Option<Vec<u8>> {
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
            let mask = [7, 7, 3, 2, 6][b.r.below(5) as usize];
            step.extend(b.load_immediate(0, mask));
            step.extend(b.load_immediate(2, 0));
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
            (decode(&bytes, b.bits).code() == f.code).then_some(bytes)
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
    pub(super) fn branch(&mut self, f: &Form) -> Option<Vec<u8>> {
        let to = self.steps.len() + 1 + self.r.below(4) as usize;
        let step_number = self.steps.len();
        let mut step = Vec::new();
        let link = |step: &[u8], at: usize, bytes: usize| Link {
            absolute: false,
            step: step_number,
            at,
            bytes,
            end: step.len(),
            to,
        };
        let long = self.bits == 64;
        let user_cs = if long { USER_CS } else { USER_CS_32 };
        // LEA scratch, [RIP + target]; in 32-bit code MOV scratch, target
        let scratch = [0u8, 2, 8, 11, 12, 15][self.r.below(if long { 6 } else { 2 }) as usize];
        let lea = |b: &mut Self, step: &mut Vec<u8>| {
            if !long {
                step.extend([0xb8 | scratch, 0, 0, 0, 0]);
                b.links.push(Link { absolute: true, ..link(step, step.len() - 4, 4) });
                return;
            }
            step.extend([0x48 | (scratch >> 3) << 2, 0x8d, 0x05 | (scratch & 7) << 3, 0, 0, 0, 0]);
            b.links.push(link(step, step.len() - 4, 4));
        };
        let store = |step: &mut Vec<u8>, wide: bool| {
            // MOV [AREA], scratch
            if !long {
                step.extend([0x89, 0x04 | scratch << 3, 0x25]);
                step.extend((AREA as u32).to_le_bytes());
                return;
            }
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
                let i = decode(&bytes, self.bits);
                if i.code() != f.code || i.len() != bytes.len() {
                    return None;
                }
                step.extend(bytes);
                let at = step.len() - width;
                self.links.push(link(&step, at, width));
            }
            (
                Code::Retnq
                | Code::Retnq_imm16
                | Code::Retfq
                | Code::Retfq_imm16
                | Code::Retnd
                | Code::Retnd_imm16
                | Code::Retfd
                | Code::Retfd_imm16,
                _,
            ) => {
                lea(self, &mut step);
                if matches!(f.code, Code::Retfq | Code::Retfq_imm16 | Code::Retfd | Code::Retfd_imm16) {
                    step.extend([0x6a, user_cs]);
                }
                push(&mut step, scratch);
                let extra = [self.r.next() as u8 & 0x78, 0];
                step.extend(self.encode(f, Place::Register(0), &[]));
                if matches!(
                    f.code,
                    Code::Retnq_imm16 | Code::Retfq_imm16 | Code::Retnd_imm16 | Code::Retfd_imm16
                ) {
                    let n = step.len();
                    step[n - 2..].copy_from_slice(&extra);
                }
            }
            (Code::Iretq, _) => {
                // MOV scratch, RSP; PUSH SS, RSP, flags, CS, target
                step.extend([0x48 | scratch >> 3, 0x89, 0xe0 | scratch & 7, 0x6a, USER_SS as u8]);
                push(&mut step, scratch);
                step.push(0x68);
                step.extend((0x202 | self.r.next() as u32 & 0xcd5).to_le_bytes());
                step.extend([0x6a, USER_CS]);
                lea(self, &mut step);
                push(&mut step, scratch);
                step.extend([0x48, 0xcf]);
            }
            (Code::Iretd, _) => {
                // PUSH flags, CS, target
                step.push(0x68);
                step.extend((0x202 | self.r.next() as u32 & 0xcd5).to_le_bytes());
                step.extend([0x6a, user_cs]);
                lea(self, &mut step);
                push(&mut step, scratch);
                step.push(0xcf);
            }
            (Code::Jmp_ptr1632 | Code::Call_ptr1632, _) => {
                step.extend([f.opcode, 0, 0, 0, 0, user_cs, 0]);
                self.links.push(Link { absolute: true, ..link(&step, 1, 4) });
            }
            (Code::Jmp_rm64 | Code::Call_rm64 | Code::Jmp_rm32 | Code::Call_rm32, _) => {
                lea(self, &mut step);
                if f.memory {
                    store(&mut step, long);
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
                step.extend([user_cs, 0]);
                step.extend(self.encode(f, Place::At(AREA), &[]));
            }
            _ => return None,
        }
        self.target = Some(to);
        Some(step)
    }
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
