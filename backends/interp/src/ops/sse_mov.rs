//! Moves between vectors, memory and general registers; vector shifts; masks.

use super::operand::{Any, Index, Quick};
use super::sse::{
    Memory, Register, Source, VEX, address, aligned, bytes, low, number, quick_memory, whole, write256,
};
use super::{ops, outlined};
use crate::cpu::Cpu;
use crate::decode::{Form, Lower};
use crate::num::simd::{arith as ar, shift as sh};
use crate::num::vec::{V128, V256};
use crate::op::{Flow, Handler, OpPtr, next, quick, run};
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

fn load<S: Source, const VEX: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_load, {
        let v = S::x(cpu, op)?;
        put(cpu, op.a, v, VEX);
        Ok(())
    })
}

fn load256<S: Source>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_load256, {
        cpu.vec[usize::from(op.a & 15)] = S::y(cpu, op)?;
        Ok(())
    })
}

/// Loads 4 or 8 bytes, zero-extended.
fn load_lane<T: Int, const VEX: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_load, {
        let v = Memory::lane::<T>(cpu, op)?;
        put(cpu, op.a, V128::from_halves(v.z(), 0), VEX);
        Ok(())
    })
}

fn store(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_store, {
        let at = aligned(cpu, op)?;
        cpu.quick_write128(at, cpu.vec[usize::from(op.b & 15)].lo.to_u128())
    })
}

fn store256(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_store256, {
        let at = aligned(cpu, op)?;
        let v = cpu.vec[usize::from(op.b & 15)];
        cpu.quick_write256(at, [v.lo.to_u128(), v.hi.to_u128()])
    })
}

/// Stores lane 0 of 4 or 8 bytes.
fn store_lane<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_store_lane::<T, false>, {
        let v = cpu.vec[usize::from(op.b & 15)].lo;
        Index::write(cpu, op, T::new(v.low()))
    })
}

/// The same, with `HIGH` of the upper 64 bits.
#[inline(never)]
fn any_store_lane<T: Int, const HIGH: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = cpu.vec[usize::from(op.b & 15)].lo;
        Any::write(cpu, op, T::new(if HIGH { v.high() } else { v.low() }))
    })
}

/// MOVSS and MOVSD between registers: `c` is the other source (the destination, in legacy forms).
fn merge_lane<T: Int, const VEX: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let b = cpu.vec[usize::from(op.b & 15)].lo;
    let rest = cpu.vec[usize::from(if VEX { op.c } else { op.a } & 15)].lo;
    let low = b.low() & T::MASK | rest.low() & !T::MASK;
    put(cpu, op.a, V128::from_halves(low, rest.high()), VEX);
    next(cpu, op)
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

// Bits of `imm` of a move of halves: it goes to the upper half; it comes from there.
const TO_HIGH: u64 = 1 << 32;
const FROM_HIGH: u64 = 1 << 33;

ops! {
    fn any_load(cpu, op) {
        let v = low(cpu, op)?;
        put(cpu, op.a, v, op.imm & VEX != 0)
    }

    fn any_load256(cpu, op) { cpu.vec[usize::from(op.a & 15)] = whole(cpu, op)? }

    fn any_store(cpu, op) {
        let at = address(cpu, op, 16, true)?;
        cpu.write128(at, cpu.vec[usize::from(op.b & 15)].lo.to_u128())?
    }

    fn any_store256(cpu, op) {
        let at = address(cpu, op, 32, true)?;
        let v = cpu.vec[usize::from(op.b & 15)];
        write256(cpu, at, v)?
    }

    /// One half from memory or a register, the other from `c` or the destination.
    fn halves(cpu, op) {
        let vex = op.imm & VEX != 0;
        let b = low(cpu, op)?;
        let rest = cpu.vec[usize::from(if vex { op.c } else { op.a } & 15)].lo;
        let new = if op.imm & FROM_HIGH != 0 { b.high() } else { b.low() };
        let v = if op.imm & TO_HIGH != 0 {
            V128::from_halves(rest.low(), new)
        } else {
            V128::from_halves(new, rest.high())
        };
        put(cpu, op.a, v, vex)
    }
}

ops! {
    direct fn movq_reg(cpu, op) {
        let v = cpu.vec[usize::from(op.b & 15)].lo.low();
        put(cpu, op.a, V128::from_halves(v, 0), op.imm & VEX != 0)
    }

    direct fn movmskps(cpu, op) { let v = ar::movmskps(cpu.vec[usize::from(op.b & 15)].lo); u32::set(cpu, op.a, v) }
    direct fn movmskpd(cpu, op) { let v = ar::movmskpd(cpu.vec[usize::from(op.b & 15)].lo); u32::set(cpu, op.a, v) }
    direct fn pmovmskb(cpu, op) { let v = ar::pmovmskb(cpu.vec[usize::from(op.b & 15)].lo); u32::set(cpu, op.a, v) }
    direct fn vmovmskps(cpu, op) {
        let v = cpu.vec[usize::from(op.b & 15)];
        u32::set(cpu, op.a, ar::movmskps(v.lo) | ar::movmskps(v.hi) << 4)
    }
    direct fn vmovmskpd(cpu, op) {
        let v = cpu.vec[usize::from(op.b & 15)];
        u32::set(cpu, op.a, ar::movmskpd(v.lo) | ar::movmskpd(v.hi) << 2)
    }
    direct fn vpmovmskb(cpu, op) {
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
        let v = low(cpu, op)?;
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
        let v = low(cpu, op)?;
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
        let b = whole(cpu, op)?;
        let a = cpu.vec[usize::from(op.a & 15)];
        let (z, c) = if op.c != 0 { crate::num::simd::permute::vptest(a, b) } else { ar::ptest(a.lo, b.lo) };
        cpu.lazy.put(u64::from(c) | u64::from(z) << 6)
    }
    /// PINSRx: lane `c` of the destination (or source `scale`... see `lower`).
    fn insert<T: Int>(cpu, op) {
        let v = if bytes(op) != 0 {
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
    const NUMBER: u64;
    fn run(a: V128, count: u64) -> V128;
}

// Bits of `imm` of a shift: a whole YMM register; by the immediate.
const YMM: u64 = 1 << 48;
const BY_IMMEDIATE: u64 = 1 << 49;

/// By the immediate, in a legacy form.
fn shift_imm<S: Shift>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let d = &mut cpu.vec[usize::from(op.a & 15)].lo;
    *d = S::run(*d, op.imm & 0xff);
    next(cpu, op)
}

/// Any other: `c` is shifted, by the last source or the immediate.
#[inline(never)]
fn any_shift(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let count = if op.imm & BY_IMMEDIATE != 0 { op.imm & 0xff } else { low(cpu, op)?.low() };
        let run = SHIFTS[number(op) % SHIFTS.len()];
        let a = cpu.vec[usize::from(op.c & 15)];
        put(cpu, op.a, run(a.lo, count), op.imm & VEX != 0);
        if op.imm & YMM != 0 {
            cpu.vec[usize::from(op.a & 15)].hi = run(a.hi, count);
        }
        Ok(())
    })
}

macro_rules! shifts {
    ($($m:ident $v:ident $f:path;)*) => {
        #[derive(Clone, Copy)]
        enum Number { $($m,)* }
        mod shifts {
            use super::*;
            $(pub(super) struct $m;
            impl Shift for $m {
                const NUMBER: u64 = Number::$m as u64;
                #[inline(always)]
                fn run(a: V128, count: u64) -> V128 {
                    $f(a, count.try_into().unwrap_or(u8::MAX.into()))
                }
            })*
        }
        static SHIFTS: &[fn(V128, u64) -> V128] = &[$(shifts::$m::run,)*];
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
    let by_imm = l.is_imm(l.i.op_count() - 1);
    if by_imm && !vex {
        return shift_imm::<S>;
    }
    // The shifted one is the second operand of every VEX form.
    l.op.c = if vex { l.number(1) & 15 } else { l.op.a };
    l.op.imm |= S::NUMBER << 32;
    l.op.imm |= if l.reg(0).is_ymm() { YMM } else { 0 };
    l.op.imm |= if by_imm { BY_IMMEDIATE } else { 0 };
    any_shift
}

/// A load or store of the lowest lane, of 4 or 8 bytes.
fn lane(l: &Lower<'_>, store: bool, vex: bool) -> Handler {
    let wide = l.i.memory_size().size() == 8;
    let quick = l.form != Form::Any;
    match (store, quick, wide) {
        (true, true, true) => store_lane::<u64>,
        (true, true, false) => store_lane::<u32>,
        (true, false, true) => any_store_lane::<u64, false>,
        (true, false, false) => any_store_lane::<u32, false>,
        (false, false, _) => any_load,
        (false, _, true) if vex => load_lane::<u64, true>,
        (false, _, true) => load_lane::<u64, false>,
        (false, _, false) if vex => load_lane::<u32, true>,
        (false, _, false) => load_lane::<u32, false>,
    }
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
    let half = |l: &mut Lower<'_>, to_high: bool, from_high: bool| {
        l.op.imm |= if to_high { TO_HIGH } else { 0 } | if from_high { FROM_HIGH } else { 0 };
        halves
    };
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
        | M::Vmovntdq => {
            let quick = quick_memory(l, if ymm { 32 } else { 16 });
            match (to_mem, from_mem, ymm) {
                (true, _, true) if quick => store256,
                (true, _, true) => any_store256,
                (true, _, false) if quick => store,
                (true, _, false) => any_store,
                (_, true, true) if quick => load256::<Memory>,
                (_, true, true) => any_load256,
                (_, false, true) => load256::<Register>,
                (_, true, false) if quick && vex => load::<Memory, true>,
                (_, true, false) if quick => load::<Memory, false>,
                (_, true, false) => any_load,
                (_, false, false) if vex => load::<Register, true>,
                (_, false, false) => load::<Register, false>,
            }
        }
        M::Movss | M::Vmovss | M::Movsd | M::Vmovsd if to_mem || from_mem => lane(l, to_mem, vex),
        M::Movss => merge_lane::<u32, false>,
        M::Movsd => merge_lane::<u64, false>,
        M::Vmovss => merge_lane::<u32, true>,
        M::Vmovsd => merge_lane::<u64, true>,
        M::Movd | M::Vmovd | M::Movq | M::Vmovq => {
            let xmm = |l: &Lower<'_>, n| l.is_reg(n) && l.reg(n).is_xmm();
            if l.is_reg(0) && l.reg(0).is_mm() || l.is_reg(1) && l.reg(1).is_mm() {
                return None;
            }
            if to_mem || from_mem && xmm(l, 0) {
                lane(l, to_mem, vex)
            } else if !xmm(l, 0) {
                l.op.a = l.number(0);
                if l.width(0) == 64 { to_gpr::<u64> } else { to_gpr::<u32> }
            } else if xmm(l, 1) {
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
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd if to_mem => lane(l, true, vex),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd if to_mem => any_store_lane::<u64, true>,
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => half(l, false, false),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => half(l, true, false),
        M::Movlhps | M::Vmovlhps => half(l, true, false),
        M::Movhlps | M::Vmovhlps => half(l, false, true),
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
