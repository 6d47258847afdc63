//! Scalar floating point, conversions with general registers, FMA.
//!
//! `imm` is as in `sse`.

use super::outlined;
use super::sse::{Memory, Register, Source, VEX, bytes, low, number, numeric, quick_memory, usual, whole};
use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::num::sse::scalar::{self as sc, FmaSigns, Predicate};
use crate::num::sse::{Context, Float, Mxcsr, Sse, approx, convert as cv, packed as pk};
use crate::num::vec::{V128, V256};
use crate::op::{Flow, Handler, OpPtr, quick};
use crate::ops::operand::Any;
use crate::regs::Int;
use iced_x86::{EncodingKind, Mnemonic as M};

/// An operation on the lowest lane with handlers of its own: bits in, bits out.
trait Scalar {
    const NUMBER: u64;
    fn run<C: Context>(mx: &mut C, a: u64, b: u64) -> Sse<u64>;
}

/// Writes the lowest lane, the rest from the first source; VEX forms clear the upper half.
#[inline(always)]
fn put(cpu: &mut Cpu, op: OpPtr, low: u64, first: V128, vex: bool) {
    let d = &mut cpu.vec[usize::from(op.a & 15)];
    d.lo = V128::from_halves(low, first.high());
    if vex {
        d.hi = V128::ZERO;
    }
}

fn scalar<T: Int, O: Scalar, S: Source, const VEX: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_scalar, {
        let b = S::lane::<T>(cpu, op)?.z();
        let first = cpu.vec[usize::from(op.c & 15)].lo;
        let r = usual(cpu, |mx| O::run(mx, first.low() & T::MASK, b))?;
        put(cpu, op, r | first.low() & !T::MASK, first, VEX);
        Ok(())
    })
}

/// An operation on the lowest lane: bits in, bits out.
struct Operation {
    /// The lane is 64 bits wide.
    wide: bool,
    run: fn(&mut Mxcsr, u64, u64, u8) -> Sse<u64>,
}

#[inline(never)]
fn any_scalar(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let b = low(cpu, op)?.low();
        let first = cpu.vec[usize::from(op.c & 15)].lo;
        let operation = &OPERATIONS[number(op) % OPERATIONS.len()];
        let mask = if operation.wide { u64::MAX } else { 0xffff_ffff };
        let r = numeric(cpu, |mx| (operation.run)(mx, first.low() & mask, b, op.imm as u8))?;
        put(cpu, op, r & mask | first.low() & !mask, first, op.imm & VEX != 0);
        Ok(())
    })
}

/// The table of operations on the lowest lane. Those that are `hot` have handlers of their own.
macro_rules! scalars {
    (
        hot { $($m:ident $v:ident $t:ident |$mx:ident, $a:ident, $b:ident| $x:expr;)* }
        cold { $($cm:ident $cv:ident $ct:ident |$cmx:ident, $ca:ident, $cb:ident, $ci:ident| $cx:expr;)* }
    ) => {
        #[derive(Clone, Copy)]
        enum Number { $($m,)* $($cm,)* }
        mod hot {
            use super::*;
            $(pub(super) struct $m;
            impl Scalar for $m {
                const NUMBER: u64 = Number::$m as u64;
                #[inline(always)]
                fn run<C: Context>($mx: &mut C, $a: u64, $b: u64) -> Sse<u64> {
                    Ok(u64::from($x))
                }
            })*
        }
        static OPERATIONS: &[Operation] = &[
            $(Operation { wide: $t::BITS == 64, run: |mx, a, b, _| hot::$m::run(mx, a, b) },)*
            $(Operation {
                wide: $ct::BITS == 64,
                run: |$cmx, $ca, $cb, $ci| {
                    let _ = (&$cmx, $ca, $cb, $ci);
                    Ok(u64::from($cx))
                },
            },)*
        ];
        fn lower_scalar(l: &mut Lower<'_>) -> Option<Handler> {
            let number = match l.i.mnemonic() {
                $(M::$m | M::$v => return Some(pick::<$t, hot::$m>(l)),)*
                $(M::$cm | M::$cv => Number::$cm,)*
                _ => return None,
            };
            Some(pick_any(l, number as u64))
        }
    };
}

fn pick_any(l: &mut Lower<'_>, number: u64) -> Handler {
    l.op.imm |= number << 32;
    if l.i.encoding() == EncodingKind::Legacy {
        l.op.c = l.op.a;
    }
    any_scalar
}

fn pick<T: Int, O: Scalar>(l: &mut Lower<'_>) -> Handler {
    let any = pick_any(l, O::NUMBER);
    let memory = l.is_mem(1) || l.i.op_count() > 2 && l.is_mem(2);
    if memory && !quick_memory(l, T::BYTES as u64) {
        return any;
    }
    match (memory, l.i.encoding() != EncodingKind::Legacy) {
        (true, true) => scalar::<T, O, Memory, true>,
        (true, false) => scalar::<T, O, Memory, false>,
        (false, true) => scalar::<T, O, Register, true>,
        (false, false) => scalar::<T, O, Register, false>,
    }
}

scalars! {
    hot {
        Addss Vaddss u32 |mx, a, b| sc::add::<f32>(mx, a as u32, b as u32)?;
        Addsd Vaddsd u64 |mx, a, b| sc::add::<f64>(mx, a, b)?;
        Subss Vsubss u32 |mx, a, b| sc::sub::<f32>(mx, a as u32, b as u32)?;
        Subsd Vsubsd u64 |mx, a, b| sc::sub::<f64>(mx, a, b)?;
        Mulss Vmulss u32 |mx, a, b| sc::mul::<f32>(mx, a as u32, b as u32)?;
        Mulsd Vmulsd u64 |mx, a, b| sc::mul::<f64>(mx, a, b)?;
        Divss Vdivss u32 |mx, a, b| sc::div::<f32>(mx, a as u32, b as u32)?;
        Divsd Vdivsd u64 |mx, a, b| sc::div::<f64>(mx, a, b)?;
    }
    cold {
        Minss Vminss u32 |mx, a, b, i| sc::min::<f32>(mx, a as u32, b as u32)?;
        Minsd Vminsd u64 |mx, a, b, i| sc::min::<f64>(mx, a, b)?;
        Maxss Vmaxss u32 |mx, a, b, i| sc::max::<f32>(mx, a as u32, b as u32)?;
        Maxsd Vmaxsd u64 |mx, a, b, i| sc::max::<f64>(mx, a, b)?;
        Sqrtss Vsqrtss u32 |mx, a, b, i| sc::sqrt::<f32>(mx, b as u32)?;
        Sqrtsd Vsqrtsd u64 |mx, a, b, i| sc::sqrt::<f64>(mx, b)?;
        Roundss Vroundss u32 |mx, a, b, i| sc::round::<f32>(mx, b as u32, i)?;
        Roundsd Vroundsd u64 |mx, a, b, i| sc::round::<f64>(mx, b, i)?;
        Cmpss Vcmpss u32 |mx, a, b, i| sc::cmp::<f32>(mx, a as u32, b as u32, Predicate(i & 31))?;
        Cmpsd Vcmpsd u64 |mx, a, b, i| sc::cmp::<f64>(mx, a, b, Predicate(i & 31))?;
        Rcpss Vrcpss u32 |mx, a, b, i| approx::rcp(b as u32);
        Rsqrtss Vrsqrtss u32 |mx, a, b, i| approx::rsqrt(b as u32);
        Cvtss2sd Vcvtss2sd u64 |mx, a, b, i| cv::cvtss2sd(mx, b as u32)?;
        Cvtsd2ss Vcvtsd2ss u32 |mx, a, b, i| cv::cvtsd2ss(mx, b)?;
    }
}

/// COMISx and UCOMISx, which only differ for NaNs.
fn comi<F: Float, T: Int, S: Source>(cpu: &mut Cpu, op: OpPtr) -> Flow
where
    F::Bits: FromLow,
{
    quick!(cpu, op, any_comi, {
        let b = S::lane::<T>(cpu, op)?.z();
        let a = cpu.vec[usize::from(op.a & 15)].lo.low();
        let r = usual(cpu, |mx| sc::comi::<F>(mx, F::Bits::from_low(a), F::Bits::from_low(b), false))?;
        cpu.lazy.put(u64::from(r.eflags()));
        Ok(())
    })
}

/// Bits of `c`: UCOMISx; doubles.
const QUIET: u8 = 1;
const DOUBLE: u8 = 2;

#[inline(never)]
fn any_comi(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let b = low(cpu, op)?.low();
        let a = cpu.vec[usize::from(op.a & 15)].lo.low();
        let quiet = op.c & QUIET != 0;
        let r = numeric(cpu, |mx| {
            if op.c & DOUBLE != 0 {
                sc::comi::<f64>(mx, a, b, quiet)
            } else {
                sc::comi::<f32>(mx, a as u32, b as u32, quiet)
            }
        })?;
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

// Bits of `imm` of a conversion: the float is a double; the integer has 64 bits; truncate.
const TO_DOUBLE: u64 = 1 << 32;
const LONG: u64 = 1 << 33;
const TRUNCATE: u64 = 1 << 34;

/// CVTSI2SS and CVTSI2SD.
fn from_int(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let v = match (bytes(op), op.imm & LONG != 0) {
            (0, true) => cpu.gpr[usize::from(op.b & 15)] as i64,
            (0, false) => i64::from(cpu.gpr[usize::from(op.b & 15)] as i32),
            (_, true) => Any::read::<u64>(cpu, op)? as i64,
            (_, false) => i64::from(Any::read::<u32>(cpu, op)? as i32),
        };
        let first = cpu.vec[usize::from(op.c & 15)].lo;
        // An integer of 32 bits is the same number in 64.
        let r = numeric(cpu, |mx| {
            if op.imm & TO_DOUBLE != 0 {
                cv::cvtsi2sd64(mx, v)
            } else {
                Ok(u64::from(cv::cvtsi2ss64(mx, v)?) | first.low() & !0xffff_ffff)
            }
        })?;
        put(cpu, op, r, first, op.imm & VEX != 0);
        Ok(())
    })
}

/// CVT(T)SS2SI and CVT(T)SD2SI.
fn to_int(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let b = low(cpu, op)?.low();
        let (double, long) = (op.imm & TO_DOUBLE != 0, op.imm & LONG != 0);
        let r = numeric(cpu, |mx| {
            Ok(match (double, op.imm & TRUNCATE != 0, long) {
                (false, false, false) => cv::cvtss2si32(mx, b as u32)? as u64,
                (false, false, true) => cv::cvtss2si64(mx, b as u32)? as u64,
                (false, true, false) => cv::cvttss2si32(mx, b as u32)? as u64,
                (false, true, true) => cv::cvttss2si64(mx, b as u32)? as u64,
                (true, false, false) => cv::cvtsd2si32(mx, b)? as u64,
                (true, false, true) => cv::cvtsd2si64(mx, b)? as u64,
                (true, true, false) => cv::cvttsd2si32(mx, b)? as u64,
                (true, true, true) => cv::cvttsd2si64(mx, b)? as u64,
            })
        })?;
        cpu.gpr[usize::from(op.a & 15)] = if long { r } else { r & 0xffff_ffff };
        Ok(())
    })
}

/// SHA256RNDS2 reads XMM0 besides.
fn sha256rnds2(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let b = low(cpu, op)?;
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

fn fma_packed<const YMM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let x3 = whole(cpu, op)?;
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

fn fma_scalar<const WIDE: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let x3 = V256 { lo: low(cpu, op)?, hi: V128::ZERO };
        let (x1, x2) = (cpu.vec[usize::from(op.a & 15)], cpu.vec[usize::from(op.c & 15)]);
        let (a, b, c) = fma_operands(op, x1, x2, x3);
        let (a, b, c) = (a.lo.low(), b.lo.low(), c.lo.low());
        let signs = fma_signs(op)[0];
        let r = numeric(cpu, |mx| {
            if WIDE {
                sc::fma::<f64>(mx, a, b, c, signs)
            } else {
                let r = sc::fma::<f32>(mx, a as u32, b as u32, c as u32, signs)?;
                Ok(u64::from(r) | x1.lo.low() & !0xffff_ffff)
            }
        })?;
        put(cpu, op, r, x1.lo, true);
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
    l.op.imm |= bit(kind == Lanes::Pd, 36);
    Some(match (kind, l.reg(0).is_ymm()) {
        (Lanes::Ss, _) => fma_scalar::<false>,
        (Lanes::Sd, _) => fma_scalar::<true>,
        (_, true) => fma_packed::<true>,
        (_, false) => fma_packed::<false>,
    })
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    let vex = l.i.encoding() != EncodingKind::Legacy;
    let last = l.i.op_count().saturating_sub(1);
    if (0..l.i.op_count()).any(|n| l.is_reg(n) && l.reg(n).is_mm()) {
        return None;
    }
    match m {
        M::Comiss
        | M::Vcomiss
        | M::Ucomiss
        | M::Vucomiss
        | M::Comisd
        | M::Vcomisd
        | M::Ucomisd
        | M::Vucomisd => {
            let double = matches!(m, M::Comisd | M::Vcomisd | M::Ucomisd | M::Vucomisd);
            let quiet = matches!(m, M::Ucomiss | M::Vucomiss | M::Ucomisd | M::Vucomisd);
            l.op.c = if double { DOUBLE } else { 0 } | if quiet { QUIET } else { 0 };
            let memory = l.is_mem(last);
            if memory && !quick_memory(l, if double { 8 } else { 4 }) {
                return Some(any_comi);
            }
            Some(match (double, memory) {
                (true, true) => comi::<f64, u64, Memory>,
                (true, false) => comi::<f64, u64, Register>,
                (false, true) => comi::<f32, u32, Memory>,
                (false, false) => comi::<f32, u32, Register>,
            })
        }
        M::Cvtsi2ss | M::Vcvtsi2ss | M::Cvtsi2sd | M::Vcvtsi2sd => {
            if l.is_reg(last) {
                l.op.b = l.number(last);
            }
            if !vex {
                l.op.c = l.op.a;
            }
            l.op.imm |= if matches!(m, M::Cvtsi2sd | M::Vcvtsi2sd) { TO_DOUBLE } else { 0 };
            l.op.imm |= if l.width(last) == 64 { LONG } else { 0 };
            Some(from_int)
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
            let double = matches!(m, M::Cvtsd2si | M::Vcvtsd2si | M::Cvttsd2si | M::Vcvttsd2si);
            let truncate = matches!(m, M::Cvttss2si | M::Vcvttss2si | M::Cvttsd2si | M::Vcvttsd2si);
            l.op.imm |= if double { TO_DOUBLE } else { 0 };
            l.op.imm |= if l.width(0) == 64 { LONG } else { 0 };
            l.op.imm |= if truncate { TRUNCATE } else { 0 };
            Some(to_int)
        }
        M::Sha256rnds2 => {
            if l.is_reg(1) {
                l.op.b = l.number(1) & 15;
            }
            Some(sha256rnds2)
        }
        _ => lower_scalar(l).or_else(|| lower_fma(l)),
    }
}
