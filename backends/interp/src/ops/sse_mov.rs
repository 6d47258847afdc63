//! Moves between vectors, memory and general registers; vector shifts; masks.

use super::ops;
use super::sse::{address, source, source256, write256};
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::num::simd::{arith as ar, shift as sh};
use crate::num::vec::{V128, V256};
use crate::op::{Flow, Handler, OpPtr, run};
use crate::regs::Int;
use iced_x86::{EncodingKind, Mnemonic as M};

/// Writes a destination: legacy forms keep the upper half, VEX forms clear it.
#[inline(always)]
fn put(cpu: &mut Cpu, r: u8, v: V128, vex: bool) {
    let d = &mut cpu.vec[usize::from(r & 15)];
    d.lo = v;
    if vex {
        d.hi = V128::ZERO;
    }
}

fn load<const MEM: bool, const VEX: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = source::<MEM>(cpu, op)?;
        put(cpu, op.a, v, VEX);
        Ok(())
    })
}

fn load256<const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        cpu.vec[usize::from(op.a & 15)] = source256::<MEM>(cpu, op)?;
        Ok(())
    })
}

fn store(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let at = address(cpu, op, 16, true)?;
        if op.imm >> 16 & 1 != 0 && at & 15 != 0 {
            return Err(cpu.gp(0));
        }
        cpu.write128(at, cpu.vec[usize::from(op.b & 15)].lo.to_u128())
    })
}

fn store256(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let at = address(cpu, op, 32, true)?;
        if op.imm >> 16 & 1 != 0 && at & 31 != 0 {
            return Err(cpu.gp(0));
        }
        let v = cpu.vec[usize::from(op.b & 15)];
        write256(cpu, at, v)
    })
}

/// Stores lane 0 (`HIGH`: the upper 64 bits) of 4 or 8 bytes.
fn store_lane<T: Int, const HIGH: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let at = address(cpu, op, T::BYTES as u64, true)?;
        let v = cpu.vec[usize::from(op.b & 15)].lo;
        cpu.write(at, T::new(if HIGH { v.high() } else { v.low() }))
    })
}

/// MOVSS and MOVSD between registers: `c` is the other source (the destination, in legacy forms).
fn merge_lane<T: Int, const VEX: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = cpu.vec[usize::from(op.b & 15)].lo;
        let rest = cpu.vec[usize::from(if VEX { op.c } else { op.a } & 15)].lo;
        let low = b.low() & T::MASK | rest.low() & !T::MASK;
        put(cpu, op.a, V128::from_halves(low, rest.high()), VEX);
        Ok(())
    })
}

fn to_gpr<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = cpu.vec[usize::from(op.b & 15)].lo.low();
        T::set(cpu, op.a, T::new(v));
        Ok(())
    })
}

fn from_gpr<T: Int, const VEX: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = T::get(cpu, op.b).z();
        put(cpu, op.a, V128::from_halves(v, 0), VEX);
        Ok(())
    })
}

/// One half from memory or a register, the other from `c` or the destination.
fn halves<const MEM: bool, const VEX: bool, const TO_HIGH: bool, const FROM_HIGH: bool>(
    cpu: &mut Cpu,
    op: OpPtr,
) -> Flow {
    run!(cpu, op, {
        let b = source::<MEM>(cpu, op)?;
        let rest = cpu.vec[usize::from(if VEX { op.c } else { op.a } & 15)].lo;
        let new = if FROM_HIGH { b.high() } else { b.low() };
        let v =
            if TO_HIGH { V128::from_halves(rest.low(), new) } else { V128::from_halves(new, rest.high()) };
        put(cpu, op.a, v, VEX);
        Ok(())
    })
}

ops! {
    fn movq_reg(cpu, op) {
        let v = cpu.vec[usize::from(op.b & 15)].lo.low();
        let vex = op.scale != 0;
        put(cpu, op.a, V128::from_halves(v, 0), vex)
    }

    fn movmskps(cpu, op) { let v = ar::movmskps(cpu.vec[usize::from(op.b & 15)].lo); u32::set(cpu, op.a, v) }
    fn movmskpd(cpu, op) { let v = ar::movmskpd(cpu.vec[usize::from(op.b & 15)].lo); u32::set(cpu, op.a, v) }
    fn pmovmskb(cpu, op) { let v = ar::pmovmskb(cpu.vec[usize::from(op.b & 15)].lo); u32::set(cpu, op.a, v) }
    fn vmovmskps(cpu, op) {
        let v = cpu.vec[usize::from(op.b & 15)];
        u32::set(cpu, op.a, ar::movmskps(v.lo) | ar::movmskps(v.hi) << 4)
    }
    fn vmovmskpd(cpu, op) {
        let v = cpu.vec[usize::from(op.b & 15)];
        u32::set(cpu, op.a, ar::movmskpd(v.lo) | ar::movmskpd(v.hi) << 2)
    }
    fn vpmovmskb(cpu, op) {
        let v = cpu.vec[usize::from(op.b & 15)];
        u32::set(cpu, op.a, ar::pmovmskb(v.lo) | ar::pmovmskb(v.hi) << 16)
    }
    fn vzeroupper(cpu, _op) {
        let n = if cpu.long_code() { 16 } else { 8 };
        cpu.vec[..n].iter_mut().for_each(|v| v.hi = V128::ZERO)
    }
    fn vzeroall(cpu, _op) {
        let n = if cpu.long_code() { 16 } else { 8 };
        cpu.vec[..n].iter_mut().for_each(|v| *v = V256::ZERO)
    }
    fn broadcast<T: Int>(cpu, op) {
        let v = if op.imm >> 8 & 0xff != 0 { source::<true>(cpu, op)? } else { source::<false>(cpu, op)? };
        let x = T::new(v.low()).z();
        let mut q = x;
        let mut bits = T::BITS;
        while bits < 64 {
            q |= q << bits;
            bits *= 2;
        }
        let lane = V128::from_halves(q, q);
        cpu.vec[usize::from(op.a & 15)] = V256 { lo: lane, hi: if op.c != 0 { lane } else { V128::ZERO } }
    }
    fn broadcast128(cpu, op) {
        let v = source::<true>(cpu, op)?;
        cpu.vec[usize::from(op.a & 15)] = V256 { lo: v, hi: v }
    }
    fn extract128_reg(cpu, op) {
        let v = cpu.vec[usize::from(op.b & 15)];
        put(cpu, op.a, if op.imm & 1 != 0 { v.hi } else { v.lo }, true)
    }
    fn extract128_mem(cpu, op) {
        let v = cpu.vec[usize::from(op.b & 15)];
        let at = address(cpu, op, 16, true)?;
        cpu.write128(at, if op.imm & 1 != 0 { v.hi } else { v.lo }.to_u128())?
    }
    fn ptest(cpu, op) {
        let b = if op.imm >> 8 & 0xff != 0 { source256::<true>(cpu, op)? } else { source256::<false>(cpu, op)? };
        let a = cpu.vec[usize::from(op.a & 15)];
        let (z, c) = if op.c != 0 { crate::num::simd::permute::vptest(a, b) } else { ar::ptest(a.lo, b.lo) };
        cpu.lazy.put(u64::from(c) | u64::from(z) << 6)
    }
    /// PINSRx: lane `c` of the destination (or source `scale`... see `lower`).
    fn insert<T: Int>(cpu, op) {
        let v = if op.imm >> 8 & 0xff != 0 {
            let at = address(cpu, op, T::BYTES as u64, false)?;
            cpu.read::<T>(at)?.z()
        } else {
            u64::get(cpu, op.b) & T::MASK
        };
        let vex = op.c & 0x10 != 0;
        let from = if vex { op.c } else { op.a };
        let mut x = cpu.vec[usize::from(from & 15)].lo;
        let at = (op.imm as usize & (16 / T::BYTES - 1)) * T::BYTES;
        x.0[at..at + T::BYTES].copy_from_slice(&v.to_le_bytes()[..T::BYTES]);
        put(cpu, op.a, x, vex)
    }
    fn extract_reg<T: Int>(cpu, op) {
        let x = cpu.vec[usize::from(op.b & 15)].lo.to_u128();
        let at = (op.imm as u32 & (16 / T::BYTES as u32 - 1)) * T::BITS;
        let v = (x >> at) as u64 & T::MASK;
        u64::set(cpu, op.a, v)
    }
    fn extract_mem<T: Int>(cpu, op) {
        let x = cpu.vec[usize::from(op.b & 15)].lo.to_u128();
        let shift = (op.imm as u32 & (16 / T::BYTES as u32 - 1)) * T::BITS;
        let at = address(cpu, op, T::BYTES as u64, true)?;
        cpu.write(at, T::new((x >> shift) as u64))?
    }
}

/// A shift of every lane.
trait Shift {
    fn run(a: V128, count: u64) -> V128;
}

fn shift_by<S: Shift>(cpu: &mut Cpu, op: OpPtr, count: u64, from: u8) {
    let a = cpu.vec[usize::from(from & 15)];
    match op.asize & 0x30 {
        0x20 => cpu.vec[usize::from(op.a & 15)] = V256 { lo: S::run(a.lo, count), hi: S::run(a.hi, count) },
        form => put(cpu, op.a, S::run(a.lo, count), form != 0),
    }
}

fn shift_imm<S: Shift>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    shift_by::<S>(cpu, op, op.imm & 0xff, op.b);
    crate::op::next(cpu, op)
}

fn shift_reg<S: Shift>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let n = cpu.vec[usize::from(op.b & 15)].lo.low();
        let from = if op.asize & 0x30 == 0 { op.a } else { op.c };
        shift_by::<S>(cpu, op, n, from);
        Ok(())
    })
}

fn shift_mem<S: Shift, const VEX: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let n = source::<true>(cpu, op)?.low();
        let d = usize::from(op.a & 15);
        match VEX {
            0 => cpu.vec[d].lo = S::run(cpu.vec[d].lo, n),
            1 => cpu.vec[d] = V256 { lo: S::run(cpu.vec[usize::from(op.c & 15)].lo, n), hi: V128::ZERO },
            _ => {
                let a = cpu.vec[usize::from(op.c & 15)];
                cpu.vec[d] = V256 { lo: S::run(a.lo, n), hi: S::run(a.hi, n) };
            }
        }
        Ok(())
    })
}

macro_rules! shifts {
    ($($m:ident $v:ident $f:path;)*) => {
        mod shifts {
            use super::*;
            $(pub(super) struct $m;
            impl Shift for $m {
                #[inline(always)]
                fn run(a: V128, count: u64) -> V128 {
                    let f: fn(V128, u64) -> V128 = |a, n| $f(a, n.try_into().unwrap_or(u8::MAX.into()));
                    f(a, count)
                }
            })*
        }
        fn lower_shift(l: &mut Lower<'_>) -> Option<Handler> {
            match l.i.mnemonic() {
                $(M::$m | M::$v => Some(pick_shift::<shifts::$m>(l)),)*
                _ => None,
            }
        }
    };
}

shifts! {
    Psllw Vpsllw sh::psllw;
    Pslld Vpslld sh::pslld;
    Psllq Vpsllq sh::psllq;
    Psrlw Vpsrlw sh::psrlw;
    Psrld Vpsrld sh::psrld;
    Psrlq Vpsrlq sh::psrlq;
    Psraw Vpsraw sh::psraw;
    Psrad Vpsrad sh::psrad;
    Pslldq Vpslldq sh::pslldq;
    Psrldq Vpsrldq sh::psrldq;
}

fn pick_shift<S: Shift>(l: &mut Lower<'_>) -> Handler {
    let vex = l.i.encoding() != EncodingKind::Legacy;
    let form: u8 = match (vex, l.reg(0).is_ymm()) {
        (false, _) => 0,
        (_, false) => 1,
        _ => 2,
    };
    let last = l.i.op_count() - 1;
    if l.is_imm(last) {
        l.op.b = if vex { l.number(1) & 15 } else { l.op.a };
        l.op.asize = form * 0x10;
        return shift_imm::<S>;
    }
    if l.is_mem(last) {
        return match form {
            0 => shift_mem::<S, 0>,
            1 => shift_mem::<S, 1>,
            _ => shift_mem::<S, 2>,
        };
    }
    l.op.asize = form * 0x10;
    shift_reg::<S>
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    if let Some(h) = lower_shift(l) {
        return Some(h);
    }
    let m = l.i.mnemonic();
    let vex = l.i.encoding() != EncodingKind::Legacy;
    let ymm = (0..l.i.op_count()).any(|n| l.is_reg(n) && l.reg(n).is_ymm());
    let to_mem = l.is_mem(0);
    let from_mem = l.i.op_count() > 1 && (l.is_mem(1) || l.i.op_count() > 2 && l.is_mem(2));
    macro_rules! half {
        ($to:literal, $from:literal) => {
            match (from_mem, vex) {
                (false, false) => halves::<false, false, $to, $from>,
                (false, true) => halves::<false, true, $to, $from>,
                (true, false) => halves::<true, false, $to, false>,
                (true, true) => halves::<true, true, $to, false>,
            }
        };
    }
    Some(match m {
        M::Movaps
        | M::Movapd
        | M::Movups
        | M::Movupd
        | M::Movdqa
        | M::Movdqu
        | M::Lddqu
        | M::Movntdqa
        | M::Movntps
        | M::Movntpd
        | M::Movntdq
        | M::Vmovaps
        | M::Vmovapd
        | M::Vmovups
        | M::Vmovupd
        | M::Vmovdqa
        | M::Vmovdqu
        | M::Vlddqu
        | M::Vmovntdqa
        | M::Vmovntps
        | M::Vmovntpd
        | M::Vmovntdq => match (to_mem, ymm, from_mem, vex) {
            (true, true, ..) => store256,
            (true, false, ..) => store,
            (_, true, true, _) => load256::<true>,
            (_, true, false, _) => load256::<false>,
            (_, _, true, true) => load::<true, true>,
            (_, _, true, false) => load::<true, false>,
            (_, _, false, true) => load::<false, true>,
            (_, _, false, false) => load::<false, false>,
        },
        M::Movss | M::Vmovss | M::Movsd | M::Vmovsd => {
            let single = matches!(m, M::Movss | M::Vmovss);
            match (to_mem, from_mem, vex) {
                (true, ..) if single => store_lane::<u32, false>,
                (true, ..) => store_lane::<u64, false>,
                (_, true, true) => load::<true, true>,
                (_, true, false) => load::<true, false>,
                (_, _, true) if single => merge_lane::<u32, true>,
                (_, _, true) => merge_lane::<u64, true>,
                (_, _, false) if single => merge_lane::<u32, false>,
                _ => merge_lane::<u64, false>,
            }
        }
        M::Movd | M::Vmovd | M::Movq | M::Vmovq => {
            let xmm = |l: &Lower<'_>, n| l.is_reg(n) && l.reg(n).is_xmm();
            if l.is_reg(0) && l.reg(0).is_mm() || l.is_reg(1) && l.reg(1).is_mm() {
                return None;
            }
            if to_mem {
                if l.i.memory_size().size() == 8 {
                    store_lane::<u64, false>
                } else {
                    store_lane::<u32, false>
                }
            } else if !xmm(l, 0) {
                l.op.a = l.number(0);
                if l.width(0) == 64 { to_gpr::<u64> } else { to_gpr::<u32> }
            } else if from_mem {
                if vex { load::<true, true> } else { load::<true, false> }
            } else if xmm(l, 1) {
                l.op.scale = u8::from(vex);
                movq_reg
            } else {
                l.op.b = l.number(1);
                match (l.width(1), vex) {
                    (64, true) => from_gpr::<u64, true>,
                    (64, false) => from_gpr::<u64, false>,
                    (_, true) => from_gpr::<u32, true>,
                    _ => from_gpr::<u32, false>,
                }
            }
        }
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd if to_mem => store_lane::<u64, false>,
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd if to_mem => store_lane::<u64, true>,
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => half!(false, false),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => half!(true, false),
        M::Movlhps | M::Vmovlhps => half!(true, false),
        M::Movhlps | M::Vmovhlps => half!(false, true),
        M::Movmskps | M::Movmskpd | M::Pmovmskb | M::Vmovmskps | M::Vmovmskpd | M::Vpmovmskb => {
            if l.is_reg(1) && l.reg(1).is_mm() {
                return None;
            }
            l.op.a = l.number(0);
            match (m, ymm) {
                (M::Vmovmskps, true) => vmovmskps,
                (M::Vmovmskpd, true) => vmovmskpd,
                (M::Vpmovmskb, true) => vpmovmskb,
                (M::Movmskps | M::Vmovmskps, _) => movmskps,
                (M::Movmskpd | M::Vmovmskpd, _) => movmskpd,
                _ => pmovmskb,
            }
        }
        M::Vzeroupper => vzeroupper,
        M::Vzeroall => vzeroall,
        M::Vbroadcastss
        | M::Vpbroadcastd
        | M::Vbroadcastsd
        | M::Vpbroadcastq
        | M::Vpbroadcastb
        | M::Vpbroadcastw => {
            l.op.c = u8::from(ymm);
            match m {
                M::Vpbroadcastb => broadcast::<u8>,
                M::Vpbroadcastw => broadcast::<u16>,
                M::Vbroadcastss | M::Vpbroadcastd => broadcast::<u32>,
                _ => broadcast::<u64>,
            }
        }
        M::Vbroadcastf128 | M::Vbroadcasti128 => broadcast128,
        M::Vextractf128 | M::Vextracti128 => {
            l.op.b = l.number(1) & 15;
            if to_mem { extract128_mem } else { extract128_reg }
        }
        M::Ptest | M::Vptest => {
            l.op.c = u8::from(ymm);
            ptest
        }
        M::Pinsrb | M::Pinsrw | M::Pinsrd | M::Pinsrq | M::Vpinsrb | M::Vpinsrw | M::Vpinsrd | M::Vpinsrq => {
            if l.is_reg(0) && l.reg(0).is_mm() {
                return None;
            }
            let n = if vex { 2 } else { 1 };
            if l.is_reg(n) {
                l.op.b = l.reg(n).full_register().number() as u8;
            }
            if vex {
                l.op.c |= 0x10;
            }
            match m {
                M::Pinsrb | M::Vpinsrb => insert::<u8>,
                M::Pinsrw | M::Vpinsrw => insert::<u16>,
                M::Pinsrd | M::Vpinsrd => insert::<u32>,
                _ => insert::<u64>,
            }
        }
        M::Pextrb
        | M::Pextrw
        | M::Pextrd
        | M::Pextrq
        | M::Extractps
        | M::Vpextrb
        | M::Vpextrw
        | M::Vpextrd
        | M::Vpextrq
        | M::Vextractps => {
            if l.is_reg(1) && l.reg(1).is_mm() {
                return None;
            }
            l.op.b = l.number(1) & 15;
            if !to_mem {
                l.op.a = l.reg(0).full_register().number() as u8;
            }
            match (m, to_mem) {
                (M::Pextrb | M::Vpextrb, true) => extract_mem::<u8>,
                (M::Pextrw | M::Vpextrw, true) => extract_mem::<u16>,
                (M::Pextrq | M::Vpextrq, true) => extract_mem::<u64>,
                (_, true) => extract_mem::<u32>,
                (M::Pextrb | M::Vpextrb, _) => extract_reg::<u8>,
                (M::Pextrw | M::Vpextrw, _) => extract_reg::<u16>,
                (M::Pextrq | M::Vpextrq, _) => extract_reg::<u64>,
                _ => extract_reg::<u32>,
            }
        }
        _ => return None,
    })
}
