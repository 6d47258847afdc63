//! Scalar floating point, conversions with general registers, FMA.

use super::sse::{numeric, source, source_low, source256};
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::num::sse::scalar::{self as sc, FmaSigns, Predicate};
use crate::num::sse::{Float, Mxcsr, Sse, approx, convert as cv, packed as pk};
use crate::num::vec::{V128, V256};
use crate::op::{Flow, Handler, OpPtr, run};
use crate::regs::Int;
use iced_x86::{EncodingKind, Mnemonic as M, Register};

/// An operation on the lowest lane: bits in, bits out.
trait Scalar {
    /// The lane is 64 bits wide.
    const WIDE: bool;
    /// The source's is.
    const SOURCE_WIDE: bool;
    fn run(mx: &mut Mxcsr, a: u64, b: u64, imm: u8) -> Sse<u64>;
}

fn scalar<O: Scalar, const MEM: bool, const VEX: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = if O::SOURCE_WIDE {
            source_low::<MEM, true>(cpu, op)?
        } else {
            source_low::<MEM, false>(cpu, op)?
        };
        let first = cpu.vec[usize::from(if VEX { op.c } else { op.a } & 15)].lo;
        let mask = if O::WIDE { u64::MAX } else { 0xffff_ffff };
        let r = numeric(cpu, |mx| O::run(mx, first.low() & mask, b, op.imm as u8))?;
        let v = V128::from_halves(r & mask | first.low() & !mask, first.high());
        let d = &mut cpu.vec[usize::from(op.a & 15)];
        d.lo = v;
        if VEX {
            d.hi = V128::ZERO;
        }
        Ok(())
    })
}

macro_rules! scalars {
    ($($m:ident $v:ident $wide:literal |$mx:ident, $a:ident, $b:ident, $i:ident| $x:expr;)*) => {
        mod ops {
            use super::*;
            $(pub(super) struct $m;
            impl Scalar for $m {
                const WIDE: bool = $wide;
                // Only the conversions between the two have different ones.
                const SOURCE_WIDE: bool = $wide != matches!(M::$m, M::Cvtss2sd | M::Cvtsd2ss);
                #[inline(always)]
                fn run($mx: &mut Mxcsr, $a: u64, $b: u64, $i: u8) -> Sse<u64> {
                    let _ = (&$mx, $a, $b, $i);
                    Ok(u64::from($x))
                }
            })*
        }
        fn lower_scalar(l: &mut Lower<'_>) -> Option<Handler> {
            match l.i.mnemonic() {
                $(M::$m | M::$v => Some(pick::<ops::$m>(l)),)*
                _ => None,
            }
        }
    };
}

fn pick<O: Scalar>(l: &mut Lower<'_>) -> Handler {
    let vex = l.i.encoding() != EncodingKind::Legacy;
    let mem = l.is_mem(1) || l.i.op_count() > 2 && l.is_mem(2);
    match (mem, vex) {
        (true, true) => scalar::<O, true, true>,
        (true, false) => scalar::<O, true, false>,
        (false, true) => scalar::<O, false, true>,
        (false, false) => scalar::<O, false, false>,
    }
}

scalars! {
    Addss Vaddss false |mx, a, b, i| sc::add::<f32>(mx, a as u32, b as u32)?;
    Addsd Vaddsd true |mx, a, b, i| sc::add::<f64>(mx, a, b)?;
    Subss Vsubss false |mx, a, b, i| sc::sub::<f32>(mx, a as u32, b as u32)?;
    Subsd Vsubsd true |mx, a, b, i| sc::sub::<f64>(mx, a, b)?;
    Mulss Vmulss false |mx, a, b, i| sc::mul::<f32>(mx, a as u32, b as u32)?;
    Mulsd Vmulsd true |mx, a, b, i| sc::mul::<f64>(mx, a, b)?;
    Divss Vdivss false |mx, a, b, i| sc::div::<f32>(mx, a as u32, b as u32)?;
    Divsd Vdivsd true |mx, a, b, i| sc::div::<f64>(mx, a, b)?;
    Minss Vminss false |mx, a, b, i| sc::min::<f32>(mx, a as u32, b as u32)?;
    Minsd Vminsd true |mx, a, b, i| sc::min::<f64>(mx, a, b)?;
    Maxss Vmaxss false |mx, a, b, i| sc::max::<f32>(mx, a as u32, b as u32)?;
    Maxsd Vmaxsd true |mx, a, b, i| sc::max::<f64>(mx, a, b)?;
    Sqrtss Vsqrtss false |mx, a, b, i| sc::sqrt::<f32>(mx, b as u32)?;
    Sqrtsd Vsqrtsd true |mx, a, b, i| sc::sqrt::<f64>(mx, b)?;
    Roundss Vroundss false |mx, a, b, i| sc::round::<f32>(mx, b as u32, i)?;
    Roundsd Vroundsd true |mx, a, b, i| sc::round::<f64>(mx, b, i)?;
    Cmpss Vcmpss false |mx, a, b, i| sc::cmp::<f32>(mx, a as u32, b as u32, Predicate(i & 31))?;
    Cmpsd Vcmpsd true |mx, a, b, i| sc::cmp::<f64>(mx, a, b, Predicate(i & 31))?;
    Rcpss Vrcpss false |mx, a, b, i| approx::rcp(b as u32);
    Rsqrtss Vrsqrtss false |mx, a, b, i| approx::rsqrt(b as u32);
    Cvtss2sd Vcvtss2sd true |mx, a, b, i| cv::cvtss2sd(mx, b as u32)?;
    Cvtsd2ss Vcvtsd2ss false |mx, a, b, i| cv::cvtsd2ss(mx, b)?;
}

/// COMISx and UCOMISx.
fn comi<F: Float, const MEM: bool, const QUIET: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow
where
    F::Bits: FromLow,
{
    run!(cpu, op, {
        let b = source::<MEM>(cpu, op)?.low();
        let a = cpu.vec[usize::from(op.a & 15)].lo.low();
        let r = numeric(cpu, |mx| sc::comi::<F>(mx, F::Bits::from_low(a), F::Bits::from_low(b), QUIET))?;
        cpu.lazy.put(u64::from(r.eflags()));
        Ok(())
    })
}

/// The low bits of a lane.
trait FromLow {
    fn from_low(v: u64) -> Self;
}
impl FromLow for u32 {
    #[inline(always)]
    fn from_low(v: u64) -> u32 {
        v as u32
    }
}
impl FromLow for u64 {
    #[inline(always)]
    fn from_low(v: u64) -> u64 {
        v
    }
}

/// CVTSI2SS and CVTSI2SD.
fn from_int<T: Int, const WIDE: bool, const MEM: bool, const VEX: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let v = if MEM {
            let at = super::sse::address(cpu, op, T::BYTES as u64, false)?;
            cpu.read::<T>(at)?
        } else {
            T::get(cpu, op.b)
        };
        let first = cpu.vec[usize::from(if VEX { op.c } else { op.a } & 15)].lo;
        let r = numeric(cpu, |mx| {
            Ok(match (WIDE, T::BITS) {
                (true, 32) => cv::cvtsi2sd32(v.s() as i32),
                (true, _) => cv::cvtsi2sd64(mx, v.s())?,
                (false, 32) => u64::from(cv::cvtsi2ss32(mx, v.s() as i32)?),
                (false, _) => u64::from(cv::cvtsi2ss64(mx, v.s())?),
            })
        })?;
        let low = if WIDE { r } else { r | first.low() & !0xffff_ffff };
        let d = &mut cpu.vec[usize::from(op.a & 15)];
        d.lo = V128::from_halves(low, first.high());
        if VEX {
            d.hi = V128::ZERO;
        }
        Ok(())
    })
}

/// CVT(T)SS2SI and CVT(T)SD2SI.
fn to_int<T: Int, const WIDE: bool, const TRUNCATE: bool, const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = source_low::<MEM, WIDE>(cpu, op)?;
        let r = numeric(cpu, |mx| {
            Ok(match (WIDE, TRUNCATE, T::BITS) {
                (false, false, 32) => cv::cvtss2si32(mx, b as u32)? as u64,
                (false, false, _) => cv::cvtss2si64(mx, b as u32)? as u64,
                (false, true, 32) => cv::cvttss2si32(mx, b as u32)? as u64,
                (false, true, _) => cv::cvttss2si64(mx, b as u32)? as u64,
                (true, false, 32) => cv::cvtsd2si32(mx, b)? as u64,
                (true, false, _) => cv::cvtsd2si64(mx, b)? as u64,
                (true, true, 32) => cv::cvttsd2si32(mx, b)? as u64,
                (true, true, _) => cv::cvttsd2si64(mx, b)? as u64,
            })
        })?;
        T::set(cpu, op.a, T::new(r));
        Ok(())
    })
}

/// SHA256RNDS2 reads XMM0 besides.
fn sha256rnds2<const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = source::<MEM>(cpu, op)?;
        let d = usize::from(op.a & 15);
        cpu.vec[d].lo = crate::num::crypto::sha256rnds2(cpu.vec[d].lo, b, cpu.vec[0].lo);
        Ok(())
    })
}

/// Which operands are (multiplicand, multiplier, addend), 1-based, packed in `asize`-free `imm` bits 24 to 31;
/// signs in bits 32 and 33 (even lanes), 34 and 35 (odd lanes); bit 36: 64-bit lanes.
fn fma_operands(op: OpPtr, x1: V256, x2: V256, x3: V256) -> (V256, V256, V256) {
    match op.imm >> 24 & 3 {
        0 => (x1, x3, x2),
        1 => (x2, x1, x3),
        _ => (x2, x3, x1),
    }
}

fn fma_signs(op: OpPtr) -> [FmaSigns; 2] {
    let bit = |n: u32| op.imm >> n & 1 != 0;
    [FmaSigns { negate: bit(32), subtract: bit(33) }, FmaSigns { negate: bit(34), subtract: bit(35) }]
}

fn fma_packed<const MEM: bool, const YMM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let x3 = if YMM {
            source256::<MEM>(cpu, op)?
        } else {
            V256 { lo: source::<MEM>(cpu, op)?, hi: V128::ZERO }
        };
        let (x1, x2) = (cpu.vec[usize::from(op.a & 15)], cpu.vec[usize::from(op.c & 15)]);
        let (a, b, c) = fma_operands(op, x1, x2, x3);
        let signs = fma_signs(op);
        let wide = op.imm >> 36 & 1 != 0;
        let r = numeric(cpu, |mx| match (wide, YMM) {
            (true, true) => pk::vfmapd(mx, a, b, c, signs),
            (false, true) => pk::vfmaps(mx, a, b, c, signs),
            (true, false) => Ok(V256 { lo: pk::fmapd(mx, a.lo, b.lo, c.lo, signs)?, hi: V128::ZERO }),
            (false, false) => Ok(V256 { lo: pk::fmaps(mx, a.lo, b.lo, c.lo, signs)?, hi: V128::ZERO }),
        })?;
        cpu.vec[usize::from(op.a & 15)] = r;
        Ok(())
    })
}

fn fma_scalar<const MEM: bool, const WIDE: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let x3 = V256 { lo: source::<MEM>(cpu, op)?, hi: V128::ZERO };
        let (x1, x2) = (cpu.vec[usize::from(op.a & 15)], cpu.vec[usize::from(op.c & 15)]);
        let (a, b, c) = fma_operands(op, x1, x2, x3);
        let (a, b, c) = (a.lo.low(), b.lo.low(), c.lo.low());
        let signs = fma_signs(op)[0];
        let r = numeric(cpu, |mx| {
            if WIDE {
                sc::fma::<f64>(mx, a, b, c, signs)
            } else {
                Ok(u64::from(sc::fma::<f32>(mx, a as u32, b as u32, c as u32, signs)?))
            }
        })?;
        let low = if WIDE { r } else { r | x1.lo.low() & !0xffff_ffff };
        let lo = V128::from_halves(low, x1.lo.high());
        cpu.vec[usize::from(op.a & 15)] = V256 { lo, hi: V128::ZERO };
        Ok(())
    })
}

/// An FMA mnemonic taken apart: negated product, whether even and odd lanes subtract, order of operands, kind.
fn fma_parts(m: M) -> Option<(bool, bool, bool, u64, Lanes)> {
    macro_rules! parts {
        ($(($product:literal, $even:literal, $odd:literal): [$($m0:ident $m1:ident $m2:ident $lanes:ident),*];)*) => {
            Some(match m {
                $($(
                    M::$m0 => ($product, $even, $odd, 0, Lanes::$lanes),
                    M::$m1 => ($product, $even, $odd, 1, Lanes::$lanes),
                    M::$m2 => ($product, $even, $odd, 2, Lanes::$lanes),
                )*)*
                _ => return None,
            })
        };
    }
    parts! {
        (false, false, false): [
            Vfmadd132ps Vfmadd213ps Vfmadd231ps Ps,
            Vfmadd132pd Vfmadd213pd Vfmadd231pd Pd,
            Vfmadd132ss Vfmadd213ss Vfmadd231ss Ss,
            Vfmadd132sd Vfmadd213sd Vfmadd231sd Sd
        ];
        (false, true, true): [
            Vfmsub132ps Vfmsub213ps Vfmsub231ps Ps,
            Vfmsub132pd Vfmsub213pd Vfmsub231pd Pd,
            Vfmsub132ss Vfmsub213ss Vfmsub231ss Ss,
            Vfmsub132sd Vfmsub213sd Vfmsub231sd Sd
        ];
        (true, false, false): [
            Vfnmadd132ps Vfnmadd213ps Vfnmadd231ps Ps,
            Vfnmadd132pd Vfnmadd213pd Vfnmadd231pd Pd,
            Vfnmadd132ss Vfnmadd213ss Vfnmadd231ss Ss,
            Vfnmadd132sd Vfnmadd213sd Vfnmadd231sd Sd
        ];
        (true, true, true): [
            Vfnmsub132ps Vfnmsub213ps Vfnmsub231ps Ps,
            Vfnmsub132pd Vfnmsub213pd Vfnmsub231pd Pd,
            Vfnmsub132ss Vfnmsub213ss Vfnmsub231ss Ss,
            Vfnmsub132sd Vfnmsub213sd Vfnmsub231sd Sd
        ];
        (false, true, false): [
            Vfmaddsub132ps Vfmaddsub213ps Vfmaddsub231ps Ps,
            Vfmaddsub132pd Vfmaddsub213pd Vfmaddsub231pd Pd
        ];
        (false, false, true): [
            Vfmsubadd132ps Vfmsubadd213ps Vfmsubadd231ps Ps,
            Vfmsubadd132pd Vfmsubadd213pd Vfmsubadd231pd Pd
        ];
    }
}

/// What an FMA works on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lanes {
    Ps,
    Pd,
    Ss,
    Sd,
}

/// FMA. `None` if it is none.
fn lower_fma(l: &mut Lower<'_>) -> Option<Handler> {
    let (product, even, odd, order, kind) = fma_parts(l.i.mnemonic())?;
    let bit = |on: bool, n: u32| u64::from(on) << n;
    l.op.imm |= order << 24 | bit(product, 32) | bit(even, 33) | bit(product, 34) | bit(odd, 35);
    let mem = l.is_mem(2);
    l.op.imm |= bit(kind == Lanes::Pd, 36);
    Some(match (kind, mem, l.reg(0).is_ymm()) {
        (Lanes::Ss, true, _) => fma_scalar::<true, false>,
        (Lanes::Ss, false, _) => fma_scalar::<false, false>,
        (Lanes::Sd, true, _) => fma_scalar::<true, true>,
        (Lanes::Sd, false, _) => fma_scalar::<false, true>,
        (_, true, true) => fma_packed::<true, true>,
        (_, true, false) => fma_packed::<true, false>,
        (_, false, true) => fma_packed::<false, true>,
        (_, false, false) => fma_packed::<false, false>,
    })
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    let vex = l.i.encoding() != EncodingKind::Legacy;
    let last = l.i.op_count().saturating_sub(1);
    let mem = l.is_mem(last) || last > 0 && l.is_mem(last - 1);
    let is_mm = |r: Register| r.is_mm();
    if (0..l.i.op_count()).any(|n| l.is_reg(n) && is_mm(l.reg(n))) {
        return None;
    }
    match m {
        M::Comiss | M::Vcomiss => {
            Some(if mem { comi::<f32, true, false> } else { comi::<f32, false, false> })
        }
        M::Ucomiss | M::Vucomiss => {
            Some(if mem { comi::<f32, true, true> } else { comi::<f32, false, true> })
        }
        M::Comisd | M::Vcomisd => {
            Some(if mem { comi::<f64, true, false> } else { comi::<f64, false, false> })
        }
        M::Ucomisd | M::Vucomisd => {
            Some(if mem { comi::<f64, true, true> } else { comi::<f64, false, true> })
        }
        M::Cvtsi2ss | M::Vcvtsi2ss | M::Cvtsi2sd | M::Vcvtsi2sd => {
            let wide = matches!(m, M::Cvtsi2sd | M::Vcvtsi2sd);
            if !mem {
                l.op.b = l.number(last);
            }
            let w64 = l.width(last) == 64;
            macro_rules! go {
                ($t:ty, $w:literal) => {
                    match (mem, vex) {
                        (true, true) => from_int::<$t, $w, true, true>,
                        (true, false) => from_int::<$t, $w, true, false>,
                        (false, true) => from_int::<$t, $w, false, true>,
                        (false, false) => from_int::<$t, $w, false, false>,
                    }
                };
            }
            Some(match (w64, wide) {
                (true, true) => go!(u64, true),
                (true, false) => go!(u64, false),
                (false, true) => go!(u32, true),
                (false, false) => go!(u32, false),
            })
        }
        M::Cvtss2si
        | M::Vcvtss2si
        | M::Cvttss2si
        | M::Vcvttss2si
        | M::Cvtsd2si
        | M::Vcvtsd2si
        | M::Cvttsd2si
        | M::Vcvttsd2si => {
            l.op.a = l.number(0);
            let w64 = l.width(0) == 64;
            macro_rules! go {
                ($wide:literal, $trunc:literal) => {
                    match (w64, mem) {
                        (true, true) => to_int::<u64, $wide, $trunc, true>,
                        (true, false) => to_int::<u64, $wide, $trunc, false>,
                        (false, true) => to_int::<u32, $wide, $trunc, true>,
                        (false, false) => to_int::<u32, $wide, $trunc, false>,
                    }
                };
            }
            Some(match m {
                M::Cvtss2si | M::Vcvtss2si => go!(false, false),
                M::Cvttss2si | M::Vcvttss2si => go!(false, true),
                M::Cvtsd2si | M::Vcvtsd2si => go!(true, false),
                _ => go!(true, true),
            })
        }
        M::Sha256rnds2 => Some(if l.is_mem(1) {
            sha256rnds2::<true>
        } else {
            l.op.b = l.number(1) & 15;
            sha256rnds2::<false>
        }),
        _ => lower_scalar(l).or_else(|| lower_fma(l)),
    }
}
