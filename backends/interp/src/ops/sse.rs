//! SSE and AVX: operations on whole vectors, legacy and VEX, by one table.
//!
//! `imm` of an op holds the immediate byte, then the bytes of the memory operand, then whether it must be aligned.

use super::operand::{Addr, Any};
use crate::cpu::{Cpu, cr4, mode};
use crate::decode::Lower;
use crate::num::crypto as cr;
use crate::num::simd::{arith as ar, permute as pe, shift as sh, shuffle as su};
use crate::num::sse::scalar::Predicate;
use crate::num::sse::{Mxcsr, Sse, approx, convert as cv, packed as pk};
use crate::num::vec::{V128, V256};
use crate::op::{Abort, Exec, Flow, Handler, OpPtr, run};
use crate::regs::Int;
use iced_x86::{EncodingKind, Mnemonic as M};

fn not_available(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.raise(7, None);
    cpu.abort(op)
}

/// The handler that refuses an SSE instruction in the current mode, if it must.
pub(super) fn refused(l: &Lower<'_>) -> Option<Handler> {
    if l.mode & mode::EM != 0 || l.mode & mode::FXSR == 0 {
        return Some(super::undefined);
    }
    (l.mode & mode::TS != 0).then_some(not_available as Handler)
}

/// The same for AVX.
pub(super) fn refused_avx(l: &Lower<'_>) -> Option<Handler> {
    if l.mode & mode::AVX == 0 || l.mode & mode::PROTECTED == 0 || l.mode & mode::V86 != 0 {
        return Some(super::undefined);
    }
    (l.mode & mode::TS != 0).then_some(not_available as Handler)
}

/// Linear address of a vector memory operand: the usual forms without a call.
#[inline(always)]
pub(super) fn address(cpu: &mut Cpu, op: OpPtr, bytes: u64, write: bool) -> Exec<u64> {
    if op.seg < 4 && op.asize == 8 && cpu.long_code() {
        Ok(u64::get(cpu, op.base)
            .wrapping_add(u64::get(cpu, op.index) << (op.scale & 3))
            .wrapping_add(i64::from(op.disp) as u64))
    } else {
        Any::at(cpu, op, bytes, write)
    }
}

pub(super) const ALIGNED: u64 = 1 << 16;

/// The memory operand, or register `b`.
#[inline(always)]
pub(super) fn source<const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Exec<V128> {
    if !MEM {
        return Ok(cpu.vec[usize::from(op.b & 15)].lo);
    }
    if op.imm >> 8 & 0xff != 16 {
        return narrow(cpu, op);
    }
    let at = address(cpu, op, 16, false)?;
    if op.imm & ALIGNED != 0 && at & 15 != 0 {
        return Err(cpu.gp(0));
    }
    Ok(V128::from_u128(cpu.read128(at)?))
}

/// A memory operand of less than 16 bytes.
#[inline(never)]
fn narrow(cpu: &mut Cpu, op: OpPtr) -> Exec<V128> {
    let bytes = op.imm >> 8 & 0xff;
    let at = address(cpu, op, bytes, false)?;
    let low = match bytes {
        8 => cpu.read::<u64>(at)?,
        4 => cpu.read::<u32>(at)?.z(),
        2 => cpu.read::<u16>(at)?.z(),
        _ => cpu.read::<u8>(at)?.z(),
    };
    Ok(V128::from_halves(low, 0))
}

/// The low lane of the memory operand, or of register `b`.
#[inline(always)]
pub(super) fn source_low<const MEM: bool, const WIDE: bool>(cpu: &mut Cpu, op: OpPtr) -> Exec<u64> {
    if !MEM {
        return Ok(cpu.vec[usize::from(op.b & 15)].lo.low());
    }
    if WIDE {
        let at = address(cpu, op, 8, false)?;
        cpu.read::<u64>(at)
    } else {
        let at = address(cpu, op, 4, false)?;
        Ok(cpu.read::<u32>(at)?.z())
    }
}

#[inline(always)]
pub(super) fn source256<const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Exec<V256> {
    if !MEM {
        return Ok(cpu.vec[usize::from(op.b & 15)]);
    }
    let bytes = op.imm >> 8 & 0xff;
    if bytes == 32 {
        let at = address(cpu, op, 32, false)?;
        if op.imm & ALIGNED != 0 && at & 31 != 0 {
            return Err(cpu.gp(0));
        }
        return read256(cpu, at);
    }
    Ok(V256 { lo: source::<true>(cpu, op)?, hi: V128::ZERO })
}

#[inline(never)]
pub(super) fn read256(cpu: &mut Cpu, at: u64) -> Exec<V256> {
    if at & 0xfff > 0xfe0 {
        let mut b = [[0; 16]; 2];
        cpu.read_bytes(at, b.as_flattened_mut())?;
        return Ok(V256 { lo: V128(b[0]), hi: V128(b[1]) });
    }
    let lo = cpu.read128(at)?;
    let hi = cpu.read128(at.wrapping_add(16))?;
    Ok(V256 { lo: V128::from_u128(lo), hi: V128::from_u128(hi) })
}

pub(super) fn write256(cpu: &mut Cpu, at: u64, v: V256) -> Exec {
    let mut b = [0; 32];
    b[..16].copy_from_slice(&v.lo.0);
    b[16..].copy_from_slice(&v.hi.0);
    if at & 0xfff > 0xfe0 {
        return cpu.write_bytes(at, &b);
    }
    cpu.write128(at, v.lo.to_u128())?;
    cpu.write128(at.wrapping_add(16), v.hi.to_u128())
}

/// Runs an operation under MXCSR; #XM, or #UD where the guest does not expect it.
#[inline(always)]
pub(super) fn numeric<T>(cpu: &mut Cpu, f: impl FnOnce(&mut Mxcsr) -> Sse<T>) -> Exec<T> {
    let mut mx = Mxcsr(cpu.fpu.mxcsr);
    let r = f(&mut mx);
    cpu.fpu.mxcsr = mx.0;
    r.map_err(|_| unmasked(cpu))
}

#[cold]
fn unmasked(cpu: &mut Cpu) -> Abort {
    if cpu.sys.cr4 & cr4::OSXMMEXCPT != 0 { cpu.raise(19, None) } else { cpu.ud() }
}

/// An operation of two vectors (`a` unused by those of one).
trait Vector {
    fn x(mx: &mut Mxcsr, a: V128, b: V128, imm: u8) -> Sse<V128>;
    fn y(mx: &mut Mxcsr, a: V256, b: V256, imm: u8) -> Sse<V256>;
}

fn legacy<O: Vector, const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = source::<MEM>(cpu, op)?;
        let d = usize::from(op.a & 15);
        let a = cpu.vec[d].lo;
        cpu.vec[d].lo = numeric(cpu, |mx| O::x(mx, a, b, op.imm as u8))?;
        Ok(())
    })
}

fn vex128<O: Vector, const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = source::<MEM>(cpu, op)?;
        let a = cpu.vec[usize::from(op.c & 15)].lo;
        let r = numeric(cpu, |mx| O::x(mx, a, b, op.imm as u8))?;
        cpu.vec[usize::from(op.a & 15)] = V256 { lo: r, hi: V128::ZERO };
        Ok(())
    })
}

fn vex256<O: Vector, const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let b = source256::<MEM>(cpu, op)?;
        let a = cpu.vec[usize::from(op.c & 15)];
        cpu.vec[usize::from(op.a & 15)] = numeric(cpu, |mx| O::y(mx, a, b, op.imm as u8))?;
        Ok(())
    })
}

fn pick<O: Vector>(l: &mut Lower<'_>) -> Option<Handler> {
    let mem = from_memory(l);
    Some(if l.i.encoding() == EncodingKind::Legacy {
        if mem { legacy::<O, true> } else { legacy::<O, false> }
    } else if l.reg(0).is_ymm() {
        if mem { vex256::<O, true> } else { vex256::<O, false> }
    } else if mem {
        vex128::<O, true>
    } else {
        vex128::<O, false>
    })
}

/// Fills in the operands of a vector instruction: destination `a`, first source `c`, last `b`.
pub(super) fn operands(l: &mut Lower<'_>) {
    let count = l.i.op_count();
    let mut n = count;
    if n > 1 && l.is_imm(n - 1) {
        n -= 1;
        l.op.imm = l.i.immediate(n) & 0xff;
    }
    if l.is_reg(0) {
        l.op.a = l.number(0) & 15;
    }
    let last = n.saturating_sub(1);
    if n > 1 && l.is_reg(last) {
        l.op.b = l.number(last) & 15;
    }
    if n > 2 && l.is_reg(1) {
        l.op.c = l.number(1) & 15;
    }
    // The size is the form's, also where the operand is a register.
    let memory = (0..count).any(|n| l.is_mem(n));
    let bytes = if memory { l.i.memory_size().size() as u64 } else { 0 };
    l.op.imm |= (bytes & 0xff) << 8;
    let strict = l.i.encoding() == EncodingKind::Legacy
        && bytes == 16
        && !matches!(l.i.mnemonic(), M::Lddqu | M::Movups | M::Movupd | M::Movdqu);
    let moves = matches!(
        l.i.mnemonic(),
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
    );
    // SHA's own wait for no alignment, as found on the silicon.
    let sha = l.i.cpuid_features().contains(&iced_x86::CpuidFeature::SHA);
    if (strict || moves) && !sha {
        l.op.imm |= ALIGNED;
    }
}

macro_rules! table {
    ($lower:ident, $ops:ident, $($m:ident $(, $v:ident)? : |$mx:ident, $a:ident, $b:ident, $i:ident| $x:expr $(=> $y:expr)?;)*) => {
        mod $ops {
            use super::*;
            $(pub(super) struct $m;
            impl Vector for $m {
                #[inline(always)]
                fn x($mx: &mut Mxcsr, $a: V128, $b: V128, $i: u8) -> Sse<V128> {
                    let _ = (&$mx, $a, $b, $i);
                    table!(@result $x)
                }
                #[inline(always)]
                fn y($mx: &mut Mxcsr, $a: V256, $b: V256, $i: u8) -> Sse<V256> {
                    table!(@wide $m, $mx, $a, $b, $i $(, $y)?)
                }
            })*
        }
        fn $lower(l: &mut Lower<'_>) -> Option<Handler> {
            match l.i.mnemonic() {
                $(M::$m $(| M::$v)? => pick::<$ops::$m>(l),)*
                _ => None,
            }
        }
    };
    (@result $x:expr) => { { let r: Sse<V128> = Out::out($x); r } };
    (@wide $m:ident, $mx:ident, $a:ident, $b:ident, $i:ident) => {
        Ok(V256 { lo: $m::x($mx, $a.lo, $b.lo, $i)?, hi: $m::x($mx, $a.hi, $b.hi, $i)? })
    };
    (@wide $m:ident, $mx:ident, $a:ident, $b:ident, $i:ident, $y:expr) => {
        { let _ = (&$mx, $a, $b, $i); let r: Sse<V256> = Out::out($y); r }
    };
}

/// The same table, for operations that share their handlers: each is two functions, found by the number in bits
/// 32 and up of `imm`.
macro_rules! cold_table {
    ($($m:ident $(, $v:ident)? : |$mx:ident, $a:ident, $b:ident, $i:ident| $x:expr $(=> $y:expr)?;)*) => {
        #[derive(Clone, Copy)]
        enum Number { $($m,)* }
        static COLD: &[Cold] = &[$(Cold {
            x: |$mx, $a, $b, $i| {
                let _ = (&$mx, &$a, &$b, $i);
                table!(@result $x)
            },
            y: cold_table!(@wide $mx, $a, $b, $i $(, $y)?),
        },)*];
        fn cold_table(l: &mut Lower<'_>) -> Option<Handler> {
            let number = match l.i.mnemonic() {
                $(M::$m $(| M::$v)? => Number::$m,)*
                _ => return None,
            };
            Some(pick_cold(l, number as u64))
        }
    };
    (@wide $mx:ident, $a:ident, $b:ident, $i:ident) => { None };
    (@wide $mx:ident, $a:ident, $b:ident, $i:ident, $y:expr) => {
        Some(|$mx, $a, $b, $i| {
            let _ = (&$mx, &$a, &$b, $i);
            let r: Sse<V256> = Out::out($y);
            r
        })
    };
}

/// An operation without handlers of its own: of 128 bits, and of 256 where that is not both halves.
struct Cold {
    x: fn(&mut Mxcsr, V128, V128, u8) -> Sse<V128>,
    y: Option<WideFn>,
}

type WideFn = fn(&mut Mxcsr, V256, V256, u8) -> Sse<V256>;

fn cold(op: OpPtr) -> &'static Cold {
    &COLD[(op.imm >> 32) as usize % COLD.len()]
}

fn cold_legacy<const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    super::outlined(cpu, op, |cpu, op| {
        let b = source::<MEM>(cpu, op)?;
        let d = usize::from(op.a & 15);
        let a = cpu.vec[d].lo;
        cpu.vec[d].lo = numeric(cpu, |mx| (cold(op).x)(mx, a, b, op.imm as u8))?;
        Ok(())
    })
}

fn cold128<const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    super::outlined(cpu, op, |cpu, op| {
        let b = source::<MEM>(cpu, op)?;
        let a = cpu.vec[usize::from(op.c & 15)].lo;
        let lo = numeric(cpu, |mx| (cold(op).x)(mx, a, b, op.imm as u8))?;
        cpu.vec[usize::from(op.a & 15)] = V256 { lo, hi: V128::ZERO };
        Ok(())
    })
}

fn cold256<const MEM: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    super::outlined(cpu, op, |cpu, op| {
        let b = source256::<MEM>(cpu, op)?;
        let a = cpu.vec[usize::from(op.c & 15)];
        let (cold, imm) = (cold(op), op.imm as u8);
        cpu.vec[usize::from(op.a & 15)] = numeric(cpu, |mx| match cold.y {
            Some(y) => y(mx, a, b, imm),
            None => Ok(V256 { lo: (cold.x)(mx, a.lo, b.lo, imm)?, hi: (cold.x)(mx, a.hi, b.hi, imm)? }),
        })?;
        Ok(())
    })
}

/// The last source is in memory.
fn from_memory(l: &Lower<'_>) -> bool {
    l.i.op_count() > 1 && (l.is_mem(1) || l.i.op_count() > 2 && l.is_mem(2))
}

fn pick_cold(l: &mut Lower<'_>, number: u64) -> Handler {
    l.op.imm |= number << 32;
    let mem = from_memory(l);
    match (l.i.encoding() == EncodingKind::Legacy, l.reg(0).is_ymm()) {
        (true, _) => {
            if mem {
                cold_legacy::<true>
            } else {
                cold_legacy::<false>
            }
        }
        (_, true) => {
            if mem {
                cold256::<true>
            } else {
                cold256::<false>
            }
        }
        _ => {
            if mem {
                cold128::<true>
            } else {
                cold128::<false>
            }
        }
    }
}

/// Lets the table name functions with and without exceptions.
trait Out<T> {
    fn out(self) -> Sse<T>;
}
impl Out<V128> for V128 {
    #[inline(always)]
    fn out(self) -> Sse<V128> {
        Ok(self)
    }
}
impl Out<V256> for V256 {
    #[inline(always)]
    fn out(self) -> Sse<V256> {
        Ok(self)
    }
}
impl<T> Out<T> for Sse<T> {
    #[inline(always)]
    fn out(self) -> Sse<T> {
        self
    }
}

// With handlers of their own.
table! {
    hot_table, ops,
    Paddb, Vpaddb: |mx, a, b, i| ar::paddb(a, b);
    Paddd, Vpaddd: |mx, a, b, i| ar::paddd(a, b);
    Paddq, Vpaddq: |mx, a, b, i| ar::paddq(a, b);
    Psubb, Vpsubb: |mx, a, b, i| ar::psubb(a, b);
    Psubd, Vpsubd: |mx, a, b, i| ar::psubd(a, b);
    Psubq, Vpsubq: |mx, a, b, i| ar::psubq(a, b);
    Pminub, Vpminub: |mx, a, b, i| ar::pminub(a, b);
    Pcmpeqb, Vpcmpeqb: |mx, a, b, i| ar::pcmpeqb(a, b);
    Pcmpeqd, Vpcmpeqd: |mx, a, b, i| ar::pcmpeqd(a, b);
    Pand, Vpand: |mx, a, b, i| ar::pand(a, b);
    Pandn, Vpandn: |mx, a, b, i| ar::pandn(a, b);
    Por, Vpor: |mx, a, b, i| ar::por(a, b);
    Pxor, Vpxor: |mx, a, b, i| ar::pxor(a, b);
    Andps, Vandps: |mx, a, b, i| ar::pand(a, b);
    Andpd, Vandpd: |mx, a, b, i| ar::pand(a, b);
    Andnps, Vandnps: |mx, a, b, i| ar::pandn(a, b);
    Andnpd, Vandnpd: |mx, a, b, i| ar::pandn(a, b);
    Orps, Vorps: |mx, a, b, i| ar::por(a, b);
    Orpd, Vorpd: |mx, a, b, i| ar::por(a, b);
    Xorps, Vxorps: |mx, a, b, i| ar::pxor(a, b);
    Xorpd, Vxorpd: |mx, a, b, i| ar::pxor(a, b);
    Pshufb, Vpshufb: |mx, a, b, i| su::pshufb(a, b);
    Pshufd, Vpshufd: |mx, a, b, i| su::pshufd(b, i);
    Shufps, Vshufps: |mx, a, b, i| su::shufps(a, b, i);
    Punpcklbw, Vpunpcklbw: |mx, a, b, i| su::punpcklbw(a, b);
    Punpckldq, Vpunpckldq: |mx, a, b, i| su::punpckldq(a, b);
    Punpcklqdq, Vpunpcklqdq: |mx, a, b, i| su::punpcklqdq(a, b);
    Unpcklps, Vunpcklps: |mx, a, b, i| su::punpckldq(a, b);
    Unpcklpd, Vunpcklpd: |mx, a, b, i| su::punpcklqdq(a, b);
    Unpckhpd, Vunpckhpd: |mx, a, b, i| su::punpckhqdq(a, b);
    Addps, Vaddps: |mx, a, b, i| pk::addps(mx, a, b) => pk::vaddps(mx, a, b);
    Addpd, Vaddpd: |mx, a, b, i| pk::addpd(mx, a, b) => pk::vaddpd(mx, a, b);
    Subps, Vsubps: |mx, a, b, i| pk::subps(mx, a, b) => pk::vsubps(mx, a, b);
    Subpd, Vsubpd: |mx, a, b, i| pk::subpd(mx, a, b) => pk::vsubpd(mx, a, b);
    Mulps, Vmulps: |mx, a, b, i| pk::mulps(mx, a, b) => pk::vmulps(mx, a, b);
    Mulpd, Vmulpd: |mx, a, b, i| pk::mulpd(mx, a, b) => pk::vmulpd(mx, a, b);
    Cmpps, Vcmpps: |mx, a, b, i| pk::cmpps(mx, a, b, Predicate(i & 31)) => pk::vcmpps(mx, a, b, Predicate(i & 31));
    Cmppd, Vcmppd: |mx, a, b, i| pk::cmppd(mx, a, b, Predicate(i & 31)) => pk::vcmppd(mx, a, b, Predicate(i & 31));
}

// By number, through `cold_*`.
cold_table! {
    Paddw, Vpaddw: |mx, a, b, i| ar::paddw(a, b);
    Psubw, Vpsubw: |mx, a, b, i| ar::psubw(a, b);
    Paddsb, Vpaddsb: |mx, a, b, i| ar::paddsb(a, b);
    Paddsw, Vpaddsw: |mx, a, b, i| ar::paddsw(a, b);
    Paddusb, Vpaddusb: |mx, a, b, i| ar::paddusb(a, b);
    Paddusw, Vpaddusw: |mx, a, b, i| ar::paddusw(a, b);
    Psubsb, Vpsubsb: |mx, a, b, i| ar::psubsb(a, b);
    Psubsw, Vpsubsw: |mx, a, b, i| ar::psubsw(a, b);
    Psubusb, Vpsubusb: |mx, a, b, i| ar::psubusb(a, b);
    Psubusw, Vpsubusw: |mx, a, b, i| ar::psubusw(a, b);
    Pmullw, Vpmullw: |mx, a, b, i| ar::pmullw(a, b);
    Pmulld, Vpmulld: |mx, a, b, i| ar::pmulld(a, b);
    Pmulhw, Vpmulhw: |mx, a, b, i| ar::pmulhw(a, b);
    Pmulhuw, Vpmulhuw: |mx, a, b, i| ar::pmulhuw(a, b);
    Pmulhrsw, Vpmulhrsw: |mx, a, b, i| ar::pmulhrsw(a, b);
    Pmuludq, Vpmuludq: |mx, a, b, i| ar::pmuludq(a, b);
    Pmuldq, Vpmuldq: |mx, a, b, i| ar::pmuldq(a, b);
    Pavgb, Vpavgb: |mx, a, b, i| ar::pavgb(a, b);
    Pavgw, Vpavgw: |mx, a, b, i| ar::pavgw(a, b);
    Pminsb, Vpminsb: |mx, a, b, i| ar::pminsb(a, b);
    Pminuw, Vpminuw: |mx, a, b, i| ar::pminuw(a, b);
    Pminsw, Vpminsw: |mx, a, b, i| ar::pminsw(a, b);
    Pminud, Vpminud: |mx, a, b, i| ar::pminud(a, b);
    Pminsd, Vpminsd: |mx, a, b, i| ar::pminsd(a, b);
    Pmaxub, Vpmaxub: |mx, a, b, i| ar::pmaxub(a, b);
    Pmaxsb, Vpmaxsb: |mx, a, b, i| ar::pmaxsb(a, b);
    Pmaxuw, Vpmaxuw: |mx, a, b, i| ar::pmaxuw(a, b);
    Pmaxsw, Vpmaxsw: |mx, a, b, i| ar::pmaxsw(a, b);
    Pmaxud, Vpmaxud: |mx, a, b, i| ar::pmaxud(a, b);
    Pmaxsd, Vpmaxsd: |mx, a, b, i| ar::pmaxsd(a, b);
    Pcmpeqw, Vpcmpeqw: |mx, a, b, i| ar::pcmpeqw(a, b);
    Pcmpeqq, Vpcmpeqq: |mx, a, b, i| ar::pcmpeqq(a, b);
    Pcmpgtb, Vpcmpgtb: |mx, a, b, i| ar::pcmpgtb(a, b);
    Pcmpgtw, Vpcmpgtw: |mx, a, b, i| ar::pcmpgtw(a, b);
    Pcmpgtd, Vpcmpgtd: |mx, a, b, i| ar::pcmpgtd(a, b);
    Pcmpgtq, Vpcmpgtq: |mx, a, b, i| ar::pcmpgtq(a, b);
    Psignb, Vpsignb: |mx, a, b, i| ar::psignb(a, b);
    Psignw, Vpsignw: |mx, a, b, i| ar::psignw(a, b);
    Psignd, Vpsignd: |mx, a, b, i| ar::psignd(a, b);
    Pabsb, Vpabsb: |mx, a, b, i| ar::pabsb(b);
    Pabsw, Vpabsw: |mx, a, b, i| ar::pabsw(b);
    Pabsd, Vpabsd: |mx, a, b, i| ar::pabsd(b);
    Pmaddwd, Vpmaddwd: |mx, a, b, i| ar::pmaddwd(a, b);
    Pmaddubsw, Vpmaddubsw: |mx, a, b, i| ar::pmaddubsw(a, b);
    Psadbw, Vpsadbw: |mx, a, b, i| ar::psadbw(a, b);
    Phaddw, Vphaddw: |mx, a, b, i| ar::phaddw(a, b);
    Phaddd, Vphaddd: |mx, a, b, i| ar::phaddd(a, b);
    Phaddsw, Vphaddsw: |mx, a, b, i| ar::phaddsw(a, b);
    Phsubw, Vphsubw: |mx, a, b, i| ar::phsubw(a, b);
    Phsubd, Vphsubd: |mx, a, b, i| ar::phsubd(a, b);
    Phsubsw, Vphsubsw: |mx, a, b, i| ar::phsubsw(a, b);
    Mpsadbw, Vmpsadbw: |mx, a, b, i| ar::mpsadbw(a, b, i) => pe::vmpsadbw(a, b, i);
    Phminposuw, Vphminposuw: |mx, a, b, i| ar::phminposuw(b);
    Pshuflw, Vpshuflw: |mx, a, b, i| su::pshuflw(b, i);
    Pshufhw, Vpshufhw: |mx, a, b, i| su::pshufhw(b, i);
    Shufpd, Vshufpd: |mx, a, b, i| su::shufpd(a, b, i) => pe::vshufpd(a, b, i);
    Punpckhbw, Vpunpckhbw: |mx, a, b, i| su::punpckhbw(a, b);
    Punpcklwd, Vpunpcklwd: |mx, a, b, i| su::punpcklwd(a, b);
    Punpckhwd, Vpunpckhwd: |mx, a, b, i| su::punpckhwd(a, b);
    Punpckhdq, Vpunpckhdq: |mx, a, b, i| su::punpckhdq(a, b);
    Punpckhqdq, Vpunpckhqdq: |mx, a, b, i| su::punpckhqdq(a, b);
    Unpckhps, Vunpckhps: |mx, a, b, i| su::punpckhdq(a, b);
    Packsswb, Vpacksswb: |mx, a, b, i| su::packsswb(a, b);
    Packuswb, Vpackuswb: |mx, a, b, i| su::packuswb(a, b);
    Packssdw, Vpackssdw: |mx, a, b, i| su::packssdw(a, b);
    Packusdw, Vpackusdw: |mx, a, b, i| su::packusdw(a, b);
    Pmovsxbw, Vpmovsxbw: |mx, a, b, i| su::pmovsxbw(b) => pe::extend(b.lo, 8, su::pmovsxbw);
    Pmovsxbd, Vpmovsxbd: |mx, a, b, i| su::pmovsxbd(b) => pe::extend(b.lo, 4, su::pmovsxbd);
    Pmovsxbq, Vpmovsxbq: |mx, a, b, i| su::pmovsxbq(b) => pe::extend(b.lo, 2, su::pmovsxbq);
    Pmovsxwd, Vpmovsxwd: |mx, a, b, i| su::pmovsxwd(b) => pe::extend(b.lo, 8, su::pmovsxwd);
    Pmovsxwq, Vpmovsxwq: |mx, a, b, i| su::pmovsxwq(b) => pe::extend(b.lo, 4, su::pmovsxwq);
    Pmovsxdq, Vpmovsxdq: |mx, a, b, i| su::pmovsxdq(b) => pe::extend(b.lo, 8, su::pmovsxdq);
    Pmovzxbw, Vpmovzxbw: |mx, a, b, i| su::pmovzxbw(b) => pe::extend(b.lo, 8, su::pmovzxbw);
    Pmovzxbd, Vpmovzxbd: |mx, a, b, i| su::pmovzxbd(b) => pe::extend(b.lo, 4, su::pmovzxbd);
    Pmovzxbq, Vpmovzxbq: |mx, a, b, i| su::pmovzxbq(b) => pe::extend(b.lo, 2, su::pmovzxbq);
    Pmovzxwd, Vpmovzxwd: |mx, a, b, i| su::pmovzxwd(b) => pe::extend(b.lo, 8, su::pmovzxwd);
    Pmovzxwq, Vpmovzxwq: |mx, a, b, i| su::pmovzxwq(b) => pe::extend(b.lo, 4, su::pmovzxwq);
    Pmovzxdq, Vpmovzxdq: |mx, a, b, i| su::pmovzxdq(b) => pe::extend(b.lo, 8, su::pmovzxdq);
    Pblendw, Vpblendw: |mx, a, b, i| su::pblendw(a, b, i);
    Blendps, Vblendps: |mx, a, b, i| su::blendps(a, b, i) => pe::vblendps(a, b, i);
    Vpblendd: |mx, a, b, i| su::blendps(a, b, i) => pe::vblendps(a, b, i);
    Blendpd, Vblendpd: |mx, a, b, i| su::blendpd(a, b, i) => pe::vblendpd(a, b, i);
    Palignr, Vpalignr: |mx, a, b, i| sh::palignr(a, b, i);
    Vpsllvd: |mx, a, b, i| sh::vpsllvd(a, b);
    Vpsllvq: |mx, a, b, i| sh::vpsllvq(a, b);
    Vpsrlvd: |mx, a, b, i| sh::vpsrlvd(a, b);
    Vpsrlvq: |mx, a, b, i| sh::vpsrlvq(a, b);
    Vpsravd: |mx, a, b, i| sh::vpsravd(a, b);
    Vpermd: |mx, a, b, i| b => pe::vpermd(a, b);
    Vpermps: |mx, a, b, i| b => pe::vpermd(a, b);
    Vpermq: |mx, a, b, i| b => pe::vpermq(b, i);
    Vpermpd: |mx, a, b, i| b => pe::vpermq(b, i);
    Vperm2f128, Vperm2i128: |mx, a, b, i| b => pe::vperm2f128(a, b, i);
    Vinsertf128, Vinserti128: |mx, a, b, i| b => pe::vinsertf128(a, b.lo, i);
    Movddup, Vmovddup: |mx, a, b, i| su::movddup(b);
    Movsldup, Vmovsldup: |mx, a, b, i| su::movsldup(b);
    Movshdup, Vmovshdup: |mx, a, b, i| su::movshdup(b);
    Aesenc, Vaesenc: |mx, a, b, i| cr::aesenc(a, b);
    Aesenclast, Vaesenclast: |mx, a, b, i| cr::aesenclast(a, b);
    Aesdec, Vaesdec: |mx, a, b, i| cr::aesdec(a, b);
    Aesdeclast, Vaesdeclast: |mx, a, b, i| cr::aesdeclast(a, b);
    Aesimc, Vaesimc: |mx, a, b, i| cr::aesimc(b);
    Aeskeygenassist, Vaeskeygenassist: |mx, a, b, i| cr::aeskeygenassist(b, i);
    Pclmulqdq, Vpclmulqdq: |mx, a, b, i| cr::pclmulqdq(a, b, i);
    Sha1rnds4: |mx, a, b, i| cr::sha1rnds4(a, b, i);
    Sha1nexte: |mx, a, b, i| cr::sha1nexte(a, b);
    Sha1msg1: |mx, a, b, i| cr::sha1msg1(a, b);
    Sha1msg2: |mx, a, b, i| cr::sha1msg2(a, b);
    Sha256msg1: |mx, a, b, i| cr::sha256msg1(a, b);
    Sha256msg2: |mx, a, b, i| cr::sha256msg2(a, b);
    Divps, Vdivps: |mx, a, b, i| pk::divps(mx, a, b) => pk::vdivps(mx, a, b);
    Divpd, Vdivpd: |mx, a, b, i| pk::divpd(mx, a, b) => pk::vdivpd(mx, a, b);
    Minps, Vminps: |mx, a, b, i| pk::minps(mx, a, b) => pk::vminps(mx, a, b);
    Minpd, Vminpd: |mx, a, b, i| pk::minpd(mx, a, b) => pk::vminpd(mx, a, b);
    Maxps, Vmaxps: |mx, a, b, i| pk::maxps(mx, a, b) => pk::vmaxps(mx, a, b);
    Maxpd, Vmaxpd: |mx, a, b, i| pk::maxpd(mx, a, b) => pk::vmaxpd(mx, a, b);
    Sqrtps, Vsqrtps: |mx, a, b, i| pk::sqrtps(mx, b) => pk::vsqrtps(mx, b);
    Sqrtpd, Vsqrtpd: |mx, a, b, i| pk::sqrtpd(mx, b) => pk::vsqrtpd(mx, b);
    Addsubps, Vaddsubps: |mx, a, b, i| pk::addsubps(mx, a, b) => pk::vaddsubps(mx, a, b);
    Addsubpd, Vaddsubpd: |mx, a, b, i| pk::addsubpd(mx, a, b) => pk::vaddsubpd(mx, a, b);
    Haddps, Vhaddps: |mx, a, b, i| pk::haddps(mx, a, b) => pk::vhaddps(mx, a, b);
    Haddpd, Vhaddpd: |mx, a, b, i| pk::haddpd(mx, a, b) => pk::vhaddpd(mx, a, b);
    Hsubps, Vhsubps: |mx, a, b, i| pk::hsubps(mx, a, b) => pk::vhsubps(mx, a, b);
    Hsubpd, Vhsubpd: |mx, a, b, i| pk::hsubpd(mx, a, b) => pk::vhsubpd(mx, a, b);
    Roundps, Vroundps: |mx, a, b, i| pk::roundps(mx, b, i) => pk::vroundps(mx, b, i);
    Roundpd, Vroundpd: |mx, a, b, i| pk::roundpd(mx, b, i) => pk::vroundpd(mx, b, i);
    Dpps, Vdpps: |mx, a, b, i| pk::dpps(mx, a, b, i) => pk::vdpps(mx, a, b, i);
    Dppd, Vdppd: |mx, a, b, i| pk::dppd(mx, a, b, i);
    Rcpps, Vrcpps: |mx, a, b, i| approx::rcpps(b);
    Rsqrtps, Vrsqrtps: |mx, a, b, i| approx::rsqrtps(b);
    Cvtdq2ps, Vcvtdq2ps: |mx, a, b, i| cv::cvtdq2ps(mx, b) => cv::vcvtdq2ps(mx, b);
    Cvtps2dq, Vcvtps2dq: |mx, a, b, i| cv::cvtps2dq(mx, b, false) => cv::vcvtps2dq(mx, b, false);
    Cvttps2dq, Vcvttps2dq: |mx, a, b, i| cv::cvtps2dq(mx, b, true) => cv::vcvtps2dq(mx, b, true);
    Cvtdq2pd, Vcvtdq2pd: |mx, a, b, i| cv::cvtdq2pd(b) => cv::vcvtdq2pd(b.lo);
    Cvtps2pd, Vcvtps2pd: |mx, a, b, i| cv::cvtps2pd(mx, b) => cv::vcvtps2pd(mx, b.lo);
    Cvtpd2ps: |mx, a, b, i| cv::cvtpd2ps(mx, b);
    Cvtpd2dq: |mx, a, b, i| cv::cvtpd2dq(mx, b, false);
    Cvttpd2dq: |mx, a, b, i| cv::cvtpd2dq(mx, b, true);
    Vpermilps: |mx, a, b, i| su::vpermilps(a, b);
    Vpermilpd: |mx, a, b, i| su::vpermilpd(a, b);
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let vex = l.i.encoding() != EncodingKind::Legacy;
    let vector = |r: iced_x86::Register| r.is_xmm() || r.is_ymm();
    // From memory to a general register no operand is a vector.
    let to_integer = matches!(
        l.i.mnemonic(),
        M::Cvtss2si
            | M::Cvtsd2si
            | M::Cvttss2si
            | M::Cvttsd2si
            | M::Vcvtss2si
            | M::Vcvtsd2si
            | M::Vcvttss2si
            | M::Vcvttsd2si
    );
    let any_vector = to_integer || (0..l.i.op_count()).any(|n| l.is_reg(n) && vector(l.reg(n)));
    if vex {
        if let Some(r) = refused_avx(l) {
            return Some(r);
        }
    } else if any_vector && let Some(r) = refused(l) {
        return Some(r);
    }
    if !any_vector && !matches!(l.i.mnemonic(), M::Vzeroupper | M::Vzeroall) {
        return None;
    }
    operands(l);
    // Without VEX there are 8 predicates, and the bits above them are ignored.
    if !vex && matches!(l.i.mnemonic(), M::Cmpps | M::Cmppd | M::Cmpss | M::Cmpsd) {
        l.op.imm &= !0xf8;
    }
    // Forms with an immediate control are other operations under the same name: first the special ones.
    super::sse_select::lower(l)
        .or_else(|| super::sse_mov::lower(l))
        .or_else(|| super::sse_scalar::lower(l))
        .or_else(|| hot_table(l))
        .or_else(|| cold_table(l))
}
