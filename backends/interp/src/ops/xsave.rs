//! FXSAVE, the XSAVE family, XCR0, MXCSR.

use super::operand::Any;
use super::ops;
use crate::cpu::{Cpu, RAX, RCX, RDX, cr4, mode};
use crate::decode::Lower;
use crate::num::vec::V128;
use crate::op::{Exec, Handler, OpPtr};
use godwit_state::F80;
use godwit_state::model::Feature;
use iced_x86::Mnemonic as M;

const MXCSR_MASK: u32 = 0xffff;

impl Cpu {
    /// The status word with the top of stack in it.
    pub(crate) fn status_word(&self) -> u16 {
        self.fpu.sw & !0x3800 | u16::from(self.fpu.top) << 11
    }

    pub(crate) fn set_status_word(&mut self, v: u16) {
        self.fpu.sw = v & !0x3800;
        self.fpu.top = (v >> 11 & 7) as u8;
    }

    /// #UD and #NM as XSAVE and its like raise them.
    fn xsave_usable(&mut self) -> Exec {
        if self.sys.cr4 & cr4::OSXSAVE == 0 {
            return Err(self.ud());
        }
        if self.tag & mode::TS != 0 {
            return Err(self.raise(7, None));
        }
        Ok(())
    }

    /// The legacy area's x87 part: 160 bytes, of which 24 to 31 are MXCSR's.
    fn legacy_x87(&self, out: &mut [u8], wide: bool) {
        let f = &self.fpu;
        out[..2].copy_from_slice(&f.cw.to_le_bytes());
        out[2..4].copy_from_slice(&self.status_word().to_le_bytes());
        out[4] = f.tags;
        out[5] = 0;
        let pending = f.sw & 0x80 != 0;
        let (fop, fip, fdp) = if pending { (f.fop, f.fip, f.fdp) } else { (0, 0, 0) };
        out[6..8].copy_from_slice(&fop.to_le_bytes());
        out[8..16].copy_from_slice(&fip.to_le_bytes());
        out[16..24].copy_from_slice(&fdp.to_le_bytes());
        if !wide {
            out[12..16].fill(0);
            out[20..24].fill(0);
        }
        for i in 0..8 {
            let r = f.regs[(usize::from(f.top) + i) & 7];
            let at = 32 + i * 16;
            out[at..at + 8].copy_from_slice(&r.frac.to_le_bytes());
            out[at + 8..at + 10].copy_from_slice(&r.se.to_le_bytes());
            out[at + 10..at + 16].fill(0);
        }
    }

    fn load_x87(&mut self, from: &[u8]) {
        let word = |at: usize| u16::from_le_bytes([from[at], from[at + 1]]);
        let quad = |at: usize| {
            let mut b = [0; 8];
            b.copy_from_slice(&from[at..at + 8]);
            u64::from_le_bytes(b)
        };
        self.fpu.cw = word(0) & 0x1f7f | 0x40;
        self.set_status_word(word(2));
        self.fpu.tags = from[4];
        self.fpu.fop = word(6) & 0x7ff;
        self.fpu.fip = quad(8);
        self.fpu.fdp = quad(16);
        for i in 0..8 {
            let at = 32 + i * 16;
            let r = (usize::from(self.fpu.top) + i) & 7;
            self.fpu.regs[r] = F80 { frac: quad(at), se: word(at + 8) };
        }
        self.update_x87_summary();
    }

    /// FSW.ES and B follow from the flags and masks.
    pub(crate) fn update_x87_summary(&mut self) {
        let open = self.fpu.sw & !self.fpu.cw & 0x3f != 0;
        self.fpu.sw = self.fpu.sw & !0x8080 | if open { 0x8080 } else { 0 };
    }

    fn xmm_count(&self) -> usize {
        if self.long_code() { 16 } else { 8 }
    }

    fn store_xmm(&self, out: &mut [u8]) {
        for i in 0..self.xmm_count() {
            out[i * 16..i * 16 + 16].copy_from_slice(&self.vec[i].lo.0);
        }
    }

    fn load_xmm(&mut self, from: &[u8]) {
        for i in 0..self.xmm_count() {
            let mut b = [0; 16];
            b.copy_from_slice(&from[i * 16..i * 16 + 16]);
            self.vec[i].lo = V128(b);
        }
    }

    fn reset_x87(&mut self) {
        self.fpu.cw = 0x37f;
        self.fpu.sw = 0;
        self.fpu.top = 0;
        self.fpu.tags = 0;
        self.fpu.fop = 0;
        self.fpu.fip = 0;
        self.fpu.fdp = 0;
        self.fpu.regs = [F80::default(); 8];
    }

    /// Components that are not in their initial state.
    fn in_use(&self) -> u64 {
        let f = &self.fpu;
        let x87 = f.cw != 0x37f || f.sw != 0 || f.top != 0 || f.tags != 0 || f.regs != [F80::default(); 8];
        let n = self.xmm_count();
        let sse = self.vec[..n].iter().any(|v| v.lo != V128::ZERO);
        let avx = self.vec[..n].iter().any(|v| v.hi != V128::ZERO);
        u64::from(x87) | u64::from(sse) << 1 | u64::from(avx) << 2
    }

    fn requested(&self) -> u64 {
        (self.gpr[RDX] << 32 | self.gpr[RAX] & 0xffff_ffff) & self.sys.xcr0
    }
}

fn xsave_any(cpu: &mut Cpu, op: OpPtr) -> Exec {
    let (wide, compact, optimised) = (op.c & 1 != 0, op.c & 2 != 0, op.c & 4 != 0);
    cpu.xsave_usable()?;
    let rfbm = cpu.requested();
    let size = if rfbm & 4 != 0 { 832 } else { 576 };
    let at = Any::at(cpu, op, size, true)?;
    if at & 63 != 0 {
        return Err(cpu.gp(0));
    }
    let mut area = [0u8; 832];
    // What is not written stays.
    cpu.check_write(at, 1)?;
    cpu.read_area(at, &mut area[..size as usize])?;
    let used = cpu.in_use();
    let write = if compact || optimised { rfbm & used } else { rfbm };
    if write & 1 != 0 {
        let mut x87 = [0; 160];
        cpu.legacy_x87(&mut x87, wide);
        area[..24].copy_from_slice(&x87[..24]);
        area[32..160].copy_from_slice(&x87[32..]);
    }
    if rfbm & 6 != 0 && (!compact || rfbm & 2 != 0) {
        area[24..28].copy_from_slice(&cpu.fpu.mxcsr.to_le_bytes());
        area[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    }
    if write & 2 != 0 {
        cpu.store_xmm(&mut area[160..416]);
    }
    if write & 4 != 0 {
        for i in 0..cpu.xmm_count() {
            area[576 + i * 16..592 + i * 16].copy_from_slice(&cpu.vec[i].hi.0);
        }
    }
    let mut bv = [0; 8];
    bv.copy_from_slice(&area[512..520]);
    let bv = if compact { rfbm & used } else { u64::from_le_bytes(bv) & !rfbm | rfbm & used };
    area[512..520].copy_from_slice(&bv.to_le_bytes());
    if compact {
        area[520..528].copy_from_slice(&(rfbm | 1 << 63).to_le_bytes());
    }
    cpu.write_area(at, &area[..size as usize])
}

fn xrstor_any(cpu: &mut Cpu, op: OpPtr) -> Exec {
    cpu.xsave_usable()?;
    let rfbm = cpu.requested();
    let at = Any::at(cpu, op, 576, false)?;
    if at & 63 != 0 {
        return Err(cpu.gp(0));
    }
    let mut area = [0u8; 832];
    cpu.read_area(at, &mut area[..576])?;
    let quad = |a: &[u8], at: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&a[at..at + 8]);
        u64::from_le_bytes(b)
    };
    let (bv, comp) = (quad(&area, 512), quad(&area, 520));
    let compact = comp >> 63 != 0;
    let xcr0 = cpu.sys.xcr0;
    let bad = if compact {
        !cpu.features.has(Feature::XSAVEC) || comp & !(1 << 63) & !xcr0 != 0 || bv & !comp != 0
    } else {
        bv & !xcr0 != 0 || comp != 0 || quad(&area, 528) != 0
    };
    if bad || area[536..576].iter().any(|b| *b != 0) && compact {
        return Err(cpu.gp(0));
    }
    let mut mxcsr = [0; 4];
    mxcsr.copy_from_slice(&area[24..28]);
    let mxcsr = u32::from_le_bytes(mxcsr);
    let from_memory = rfbm & bv;
    let takes_mxcsr = if compact { from_memory & 2 != 0 } else { rfbm & 6 != 0 };
    if takes_mxcsr && mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    if from_memory & 4 != 0 {
        cpu.read_area(at.wrapping_add(576), &mut area[576..])?;
    }
    if rfbm & 1 != 0 {
        if from_memory & 1 != 0 { cpu.load_x87(&area[..160]) } else { cpu.reset_x87() }
    }
    if rfbm & 2 != 0 {
        if from_memory & 2 != 0 {
            cpu.load_xmm(&area[160..416]);
        } else {
            let n = cpu.xmm_count();
            cpu.vec[..n].iter_mut().for_each(|v| v.lo = V128::ZERO);
        }
    }
    if rfbm & 4 != 0 {
        for i in 0..cpu.xmm_count() {
            let mut b = [0; 16];
            if from_memory & 4 != 0 {
                b.copy_from_slice(&area[576 + i * 16..592 + i * 16]);
            }
            cpu.vec[i].hi = V128(b);
        }
    }
    if takes_mxcsr {
        cpu.fpu.mxcsr = mxcsr;
    } else if compact && rfbm & 2 != 0 {
        cpu.fpu.mxcsr = 0x1f80;
    }
    Ok(())
}

impl Cpu {
    /// Reads up to two pages' worth.
    fn read_area(&mut self, at: u64, into: &mut [u8]) -> Exec {
        self.read_bytes(at, into)
    }

    fn write_area(&mut self, at: u64, from: &[u8]) -> Exec {
        self.write_bytes(at, from)
    }
}

ops! {
    fn fxsave(cpu, op) {
        if cpu.tag & (mode::TS | mode::EM) != 0 {
            return Err(cpu.raise(7, None));
        }
        let at = Any::at(cpu, op, 512, true)?;
        if at & 15 != 0 {
            return Err(cpu.gp(0));
        }
        let mut area = [0u8; 416];
        cpu.legacy_x87(&mut area[..160], op.c & 1 != 0);
        area[24..28].copy_from_slice(&cpu.fpu.mxcsr.to_le_bytes());
        area[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        let fast = cpu.sys.efer & crate::cpu::efer::FFXSR != 0 && cpu.long_code() && cpu.cpl == 0;
        let len = if fast { 160 } else { 160 + 16 * cpu.xmm_count() };
        if !fast {
            cpu.store_xmm(&mut area[160..]);
        }
        cpu.write_bytes(at, &area[..len])?
    }

    fn fxrstor(cpu, op) {
        if cpu.tag & (mode::TS | mode::EM) != 0 {
            return Err(cpu.raise(7, None));
        }
        let at = Any::at(cpu, op, 512, false)?;
        if at & 15 != 0 {
            return Err(cpu.gp(0));
        }
        let mut area = [0u8; 416];
        cpu.read_bytes(at, &mut area)?;
        let mxcsr = u32::from_le_bytes([area[24], area[25], area[26], area[27]]);
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(cpu.gp(0));
        }
        cpu.load_x87(&area[..160]);
        cpu.fpu.mxcsr = mxcsr;
        let fast = cpu.sys.efer & crate::cpu::efer::FFXSR != 0 && cpu.long_code() && cpu.cpl == 0;
        if !fast {
            cpu.load_xmm(&area[160..]);
        }
    }

    fn xsave(cpu, op) { xsave_any(cpu, op)? }
    pause fn xrstor(cpu, op) { xrstor_any(cpu, op)? }

    fn xgetbv(cpu, _op) {
        if cpu.sys.cr4 & cr4::OSXSAVE == 0 {
            return Err(cpu.ud());
        }
        let v = match cpu.gpr[RCX] as u32 {
            0 => cpu.sys.xcr0,
            1 if cpu.features.has(Feature::XGETBV1) => cpu.sys.xcr0 & cpu.in_use(),
            _ => return Err(cpu.gp(0)),
        };
        cpu.gpr[RAX] = v;
        cpu.gpr[RDX] = 0
    }

    pause fn xsetbv(cpu, _op) {
        if cpu.sys.cr4 & cr4::OSXSAVE == 0 {
            return Err(cpu.ud());
        }
        cpu.privileged()?;
        let v = cpu.gpr[RDX] << 32 | cpu.gpr[RAX] & 0xffff_ffff;
        let known = if cpu.features.has(Feature::AVX) { 7 } else { 3 };
        if cpu.gpr[RCX] as u32 != 0 || v & 1 == 0 || v & !known != 0 || v & 6 == 4 {
            return Err(cpu.gp(0));
        }
        cpu.sys.xcr0 = v;
        cpu.update_mode()
    }

    fn ldmxcsr(cpu, op) {
        let at = Any::at(cpu, op, 4, false)?;
        let v = cpu.read::<u32>(at)?;
        if v & !MXCSR_MASK != 0 {
            return Err(cpu.gp(0));
        }
        cpu.fpu.mxcsr = v
    }

    fn stmxcsr(cpu, op) {
        let at = Any::at(cpu, op, 4, true)?;
        cpu.write(at, cpu.fpu.mxcsr)?
    }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    Some(match l.i.mnemonic() {
        M::Fxsave => fxsave,
        M::Fxsave64 => {
            l.op.c = 1;
            fxsave
        }
        M::Fxrstor | M::Fxrstor64 => fxrstor,
        M::Xsave => xsave,
        M::Xsave64 => {
            l.op.c = 1;
            xsave
        }
        M::Xsaveopt => {
            l.op.c = 4;
            xsave
        }
        M::Xsaveopt64 => {
            l.op.c = 5;
            xsave
        }
        M::Xsavec => {
            l.op.c = 2;
            xsave
        }
        M::Xsavec64 => {
            l.op.c = 3;
            xsave
        }
        M::Xrstor | M::Xrstor64 => xrstor,
        M::Xgetbv => xgetbv,
        M::Xsetbv => xsetbv,
        m @ (M::Ldmxcsr | M::Stmxcsr) => {
            if let Some(refused) = super::sse::refused(l) {
                return Some(refused);
            }
            if m == M::Ldmxcsr { ldmxcsr } else { stmxcsr }
        }
        m @ (M::Vldmxcsr | M::Vstmxcsr) => {
            if let Some(refused) = super::sse::refused_avx(l) {
                return Some(refused);
            }
            if m == M::Vldmxcsr { ldmxcsr } else { stmxcsr }
        }
        _ => return None,
    })
}
