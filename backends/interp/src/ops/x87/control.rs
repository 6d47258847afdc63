//! Control: FLDCW, FNSTCW, FNSTSW, FNINIT, FNCLEX, the environment and state images, FFREE, FINCSTP, FDECSTP.

use super::{C1, ES, last_st};
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::num::soft::format::Format;
use crate::num::soft::{F80, Kind};
use crate::op::{Exec, Handler};
use crate::ops::operand::Any;
use crate::ops::ops;
use crate::regs::Int;
use iced_x86::Mnemonic as M;

/// Layouts of the environment: bits of `op.c`.
const WIDE: u8 = 1;
/// Linear addresses with the opcode between them, instead of offsets.
const REAL: u8 = 2;

/// Bytes of an environment.
fn env_size(layout: u8) -> usize {
    if layout & WIDE != 0 { 28 } else { 14 }
}

impl Cpu {
    fn set_control_word(&mut self, v: u16) {
        let pending = self.fpu.sw & ES != 0;
        self.fpu.cw = v & 0x1f7f | 0x40;
        self.update_x87_summary();
        if !pending {
            // An exception unmasked after the fact has no instruction.
            (self.fpu.fop, self.fpu.fip, self.fpu.fdp) = (0, 0, 0);
        }
    }

    /// The tag word as the 8087 had it: two bits a register, by physical number.
    fn full_tags(&self) -> u16 {
        (0..8).fold(0, |word, i| {
            let r = self.fpu.regs[i];
            let tag = if self.fpu.tags & 1 << i == 0 {
                3
            } else {
                match (F80 { se: r.se, frac: r.frac }).unpack().kind {
                    Kind::Normal => 0,
                    Kind::Zero => 1,
                    _ => 2,
                }
            };
            word | tag << (2 * i)
        })
    }

    fn set_full_tags(&mut self, word: u16) {
        self.fpu.tags = (0..8).fold(0, |tags, i| tags | u8::from(word >> (2 * i) & 3 != 3) << i);
    }

    fn x87_environment(&self, layout: u8) -> Vec<u8> {
        let f = &self.fpu;
        let (fop, fip, fdp) = if f.sw & ES != 0 { (f.fop, f.fip as u32, f.fdp as u32) } else { (0, 0, 0) };
        let (cw, sw, tw) = (f.cw, self.status_word(), self.full_tags());
        if layout & WIDE != 0 {
            let word = |v: u16| 0xffff_0000 | u32::from(v);
            let (b, d, e) = if layout & REAL != 0 {
                (fip >> 16 << 12 | u32::from(fop), fdp, fdp >> 16 << 12)
            } else {
                (u32::from(fop) << 16, fdp, 0xffff_0000)
            };
            let (fip, d) = if layout & REAL != 0 { (fip & 0xffff, d & 0xffff) } else { (fip, d) };
            [word(cw), word(sw), word(tw), fip, b, d, e].into_iter().flat_map(u32::to_le_bytes).collect()
        } else {
            let (b, d) = if layout & REAL != 0 {
                ((fip >> 4 & 0xf000) as u16 | fop, (fdp >> 4 & 0xf000) as u16)
            } else {
                (0, 0)
            };
            [cw, sw, tw, fip as u16, b, fdp as u16, d].into_iter().flat_map(u16::to_le_bytes).collect()
        }
    }

    fn set_x87_environment(&mut self, from: &[u8], layout: u8) {
        let word = |at: usize| u16::from_le_bytes([from[at], from[at + 1]]);
        let dword = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let step = if layout & WIDE != 0 { 4 } else { 2 };
        let (fop, fip, fdp) = match (layout & WIDE != 0, layout & REAL != 0) {
            (true, false) => (word(18), dword(12), dword(20)),
            (true, true) => (
                word(16),
                u32::from(word(12)) | dword(16) >> 12 << 16,
                u32::from(word(20)) | dword(24) >> 12 << 16,
            ),
            (false, false) => (0, u32::from(word(6)), u32::from(word(10))),
            (false, true) => (
                word(8),
                u32::from(word(6)) | u32::from(word(8) & 0xf000) << 4,
                u32::from(word(10)) | u32::from(word(12) & 0xf000) << 4,
            ),
        };
        self.fpu.cw = word(0) & 0x1f7f | 0x40;
        self.set_status_word(word(step));
        self.set_full_tags(word(2 * step));
        self.update_x87_summary();
        (self.fpu.fop, self.fpu.fip, self.fpu.fdp) = (fop & 0x7ff, u64::from(fip), u64::from(fdp));
    }

    fn x87_init(&mut self) {
        let f = &mut self.fpu;
        (f.cw, f.sw, f.top, f.tags) = (0x37f, 0, 0, 0);
        (f.fop, f.fip, f.fdp) = (0, 0, 0);
    }

    fn load_image(&mut self, op: crate::op::OpPtr, registers: bool) -> Exec {
        self.x87_wait()?;
        let size = env_size(op.c) + if registers { 80 } else { 0 };
        let at = Any::at(self, op, size as u64, false)?;
        let mut image = [0; 108];
        self.read_bytes(at, &mut image[..size])?;
        let (env, rest) = image.split_at(env_size(op.c));
        self.set_x87_environment(env, op.c);
        if registers {
            let tags = self.fpu.tags;
            for (i, b) in rest.as_chunks::<10>().0.iter().take(8).enumerate() {
                self.set_st(i as u8, F80::from_bytes(*b));
            }
            self.fpu.tags = tags;
        }
        Ok(())
    }
}

ops! {
    fn fldcw(cpu, op) {
        cpu.x87_wait()?;
        let at = Any::at(cpu, op, 2, false)?;
        let v = cpu.read::<u16>(at)?;
        cpu.set_control_word(v)
    }

    fn fnstcw(cpu, op) {
        let at = Any::at(cpu, op, 2, true)?;
        cpu.write(at, cpu.fpu.cw)?
    }

    fn fnstsw(cpu, op) {
        let at = Any::at(cpu, op, 2, true)?;
        cpu.write(at, cpu.status_word())?
    }

    fn fnstsw_ax(cpu, _op) {
        let v = cpu.status_word();
        u16::set(cpu, 0, v)
    }

    fn fninit(cpu, _op) { cpu.x87_init() }

    fn fnclex(cpu, _op) { cpu.fpu.sw &= 0x7f00 }

    fn fnstenv(cpu, op) {
        let at = Any::at(cpu, op, env_size(op.c) as u64, true)?;
        let image = cpu.x87_environment(op.c);
        cpu.write_bytes(at, &image)?;
        cpu.fpu.cw |= 0x3f;
        cpu.update_x87_summary()
    }

    fn fnsave(cpu, op) {
        let at = Any::at(cpu, op, env_size(op.c) as u64 + 80, true)?;
        let mut image = cpu.x87_environment(op.c);
        for i in 0..8 {
            image.extend(cpu.st(i).to_bytes());
        }
        cpu.write_bytes(at, &image)?;
        cpu.x87_init()
    }

    fn fldenv(cpu, op) { cpu.load_image(op, false)? }
    fn frstor(cpu, op) { cpu.load_image(op, true)? }

    fn ffree(cpu, op) {
        cpu.x87_wait()?;
        cpu.clear_c1();
        cpu.free_st(op.b)
    }

    fn ffreep(cpu, op) {
        cpu.x87_wait()?;
        cpu.clear_c1();
        cpu.free_st(op.b);
        cpu.pop_st()
    }

    fn fincstp(cpu, _op) {
        cpu.x87_wait()?;
        cpu.fpu.sw &= !C1;
        cpu.fpu.top = cpu.fpu.top.wrapping_add(1) & 7
    }

    fn fdecstp(cpu, _op) {
        cpu.x87_wait()?;
        cpu.fpu.sw &= !C1;
        cpu.fpu.top = cpu.fpu.top.wrapping_sub(1) & 7
    }

    fn fnop(cpu, _op) { cpu.x87_wait()? }

    /// FENI, FDISI, FSETPM: nothing since the 387.
    fn nothing(_cpu, _op) {}
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    if matches!(m, M::Fldenv | M::Fnstenv | M::Fnsave | M::Frstor) {
        let wide = matches!(l.i.memory_size().size(), 28 | 108);
        let real = !l.protected() || l.mode & crate::cpu::mode::V86 != 0;
        l.op.c = if wide { WIDE } else { 0 } | if real { REAL } else { 0 };
    }
    if matches!(m, M::Ffree | M::Ffreep) {
        l.op.b = last_st(l, 0);
    }
    Some(match m {
        M::Fldcw => fldcw,
        M::Fnstcw => fnstcw,
        M::Fnstsw if l.is_reg(0) => fnstsw_ax,
        M::Fnstsw => fnstsw,
        M::Fninit => fninit,
        M::Fnclex => fnclex,
        M::Fnstenv => fnstenv,
        M::Fnsave => fnsave,
        M::Fldenv => fldenv,
        M::Frstor => frstor,
        M::Ffree => ffree,
        M::Ffreep => ffreep,
        M::Fincstp => fincstp,
        M::Fdecstp => fdecstp,
        M::Fnop => fnop,
        M::Fneni | M::Fndisi | M::Fnsetpm => nothing,
        _ => return None,
    })
}
