//! SSE and AVX: operations on whole vectors, legacy and VEX, by one table.
//!
//! What is frequent has handlers of its own, for registers and for memory in its quick forms. All the rest shares
//! `any_legacy`, `any128` and `any256`, which find the operation by its number.
//!
//! `imm` of an op: [`bytes`], [`alignment`], [`number`] and the flags beside them.

use super::operand::{Any, Flat, Index, Quick};
use super::outlined;
use crate::cpu::{Cpu, cr4, mode};
use crate::decode::{Form, Lower};
use crate::num::crypto as cr;
use crate::num::simd::{arith as ar, permute as pe, shift as sh, shuffle as su};
use crate::num::sse::scalar::Predicate;
use crate::num::sse::{Context, Mxcsr, Sse, Usual, approx, convert as cv, packed as pk};
use crate::num::vec::{V128, V256};
use crate::op::{Abort, Exec, Flow, Handler, OpPtr, quick};
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

/// Bytes of the memory operand: bits 8 to 15 of `imm`. Zero if there is none.
#[inline(always)]
pub(super) fn bytes(op: OpPtr) -> u64 {
    op.imm >> 8 & 0xff
}

/// Bit 16 of `imm`: a VEX form, which clears the upper half.
pub(super) const VEX: u64 = 1 << 16;

/// The operation's number: bits 32 to 39 of `imm`.
#[inline(always)]
pub(super) fn number(op: OpPtr) -> usize {
    (op.imm >> 32) as u8 as usize
}

/// Bits 40 to 47 of `imm`: those of an address that must be clear.
pub(super) const ALIGNMENT: u64 = 0xff << 40;

#[inline(always)]
pub(super) fn alignment(op: OpPtr) -> u64 {
    (op.imm & ALIGNMENT) >> 40
}

/// The last source of a handler of its own.
pub(super) trait Source {
    fn x(cpu: &mut Cpu, op: OpPtr) -> Exec<V128>;
    fn y(cpu: &mut Cpu, op: OpPtr) -> Exec<V256>;
    /// Its low lane.
    fn lane<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<T>;
}

/// Register `b`.
pub(super) struct Register;
/// Memory, all of it in one page that the TLB has.
pub(super) struct Memory;

impl Source for Register {
    #[inline(always)]
    fn x(cpu: &mut Cpu, op: OpPtr) -> Exec<V128> {
        Ok(cpu.vec[usize::from(op.b & 15)].lo)
    }
    #[inline(always)]
    fn y(cpu: &mut Cpu, op: OpPtr) -> Exec<V256> {
        Ok(cpu.vec[usize::from(op.b & 15)])
    }
    #[inline(always)]
    fn lane<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        Ok(T::new(cpu.vec[usize::from(op.b & 15)].lo.low()))
    }
}

impl Source for Memory {
    #[inline(always)]
    fn x(cpu: &mut Cpu, op: OpPtr) -> Exec<V128> {
        let at = aligned(cpu, op)?;
        Ok(V128::from_u128(cpu.quick_read128(at)?))
    }
    #[inline(always)]
    fn y(cpu: &mut Cpu, op: OpPtr) -> Exec<V256> {
        let at = aligned(cpu, op)?;
        let [lo, hi] = cpu.quick_read256(at)?.map(V128::from_u128);
        Ok(V256 { lo, hi })
    }
    #[inline(always)]
    fn lane<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        Index::read(cpu, op)
    }
}

/// The address of a quick memory operand, if it is aligned as it must be.
#[inline(always)]
pub(super) fn aligned(cpu: &Cpu, op: OpPtr) -> Exec<u64> {
    let at = Index::at(cpu, op);
    if at & alignment(op) == 0 { Ok(at) } else { Err(Abort) }
}

/// The memory operand has handlers of its own: all `full` bytes, in a quick form.
pub(super) fn quick_memory(l: &Lower<'_>, full: u64) -> bool {
    l.form != Form::Any && l.op.imm >> 8 & 0xff == full
}

/// Linear address of the memory operand; #GP if it is not aligned as it must be.
pub(super) fn address(cpu: &mut Cpu, op: OpPtr, bytes: u64, write: bool) -> Exec<u64> {
    let at = Any::at(cpu, op, bytes, write)?;
    if at & alignment(op) != 0 {
        return Err(cpu.gp(0));
    }
    Ok(at)
}

/// The last source, memory or register, of up to 128 bits.
#[inline(never)]
pub(super) fn low(cpu: &mut Cpu, op: OpPtr) -> Exec<V128> {
    let bytes = bytes(op);
    if bytes == 0 {
        return Register::x(cpu, op);
    }
    let at = address(cpu, op, bytes, false)?;
    let low = match bytes {
        8 => cpu.read::<u64>(at)?,
        4 => cpu.read::<u32>(at)?.z(),
        2 => cpu.read::<u16>(at)?.z(),
        1 => cpu.read::<u8>(at)?.z(),
        _ => return Ok(V128::from_u128(cpu.read128(at)?)),
    };
    Ok(V128::from_halves(low, 0))
}

/// The last source, memory or register, of all bits.
#[inline(never)]
pub(super) fn whole(cpu: &mut Cpu, op: OpPtr) -> Exec<V256> {
    match bytes(op) {
        0 => Register::y(cpu, op),
        32 => {
            let at = address(cpu, op, 32, false)?;
            let mut b = [[0; 16]; 2];
            cpu.read_bytes(at, b.as_flattened_mut())?;
            Ok(V256 { lo: V128(b[0]), hi: V128(b[1]) })
        }
        _ => Ok(V256 { lo: low(cpu, op)?, hi: V128::ZERO }),
    }
}

pub(super) fn write256(cpu: &mut Cpu, at: u64, v: V256) -> Exec {
    let mut b = [0; 32];
    b[..16].copy_from_slice(&v.lo.0);
    b[16..].copy_from_slice(&v.hi.0);
    cpu.write_bytes(at, &b)
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

/// The same where nothing unusual comes up; else nothing happens.
#[inline(always)]
pub(super) fn usual<T>(cpu: &Cpu, f: impl FnOnce(&mut Usual) -> Sse<T>) -> Exec<T> {
    f(&mut Usual(Mxcsr(cpu.fpu.mxcsr))).map_err(|_| Abort)
}

/// An operation of two vectors (`a` unused by those of one) with handlers of its own.
trait Vector {
    const NUMBER: u64;
    fn x<C: Context>(mx: &mut C, a: V128, b: V128, imm: u8) -> Sse<V128>;
    fn y<C: Context>(mx: &mut C, a: V256, b: V256, imm: u8) -> Sse<V256>;
}

fn legacy<O: Vector, S: Source>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any_legacy, {
        let b = S::x(cpu, op)?;
        let d = usize::from(op.a & 15);
        let a = cpu.vec[d].lo;
        cpu.vec[d].lo = usual(cpu, |mx| O::x(mx, a, b, op.imm as u8))?;
        Ok(())
    })
}

fn vex128<O: Vector, S: Source>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any128, {
        let b = S::x(cpu, op)?;
        let a = cpu.vec[usize::from(op.c & 15)].lo;
        let lo = usual(cpu, |mx| O::x(mx, a, b, op.imm as u8))?;
        cpu.vec[usize::from(op.a & 15)] = V256 { lo, hi: V128::ZERO };
        Ok(())
    })
}

fn vex256<O: Vector, S: Source>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    quick!(cpu, op, any256, {
        let b = S::y(cpu, op)?;
        let a = cpu.vec[usize::from(op.c & 15)];
        cpu.vec[usize::from(op.a & 15)] = usual(cpu, |mx| O::y(mx, a, b, op.imm as u8))?;
        Ok(())
    })
}

/// An operation: of 128 bits, and of 256 where that is not both halves.
struct Operation {
    x: fn(&mut Mxcsr, V128, V128, u8) -> Sse<V128>,
    y: Option<Wide>,
}

type Wide = fn(&mut Mxcsr, V256, V256, u8) -> Sse<V256>;

fn operation(op: OpPtr) -> &'static Operation {
    &OPERATIONS[number(op) % OPERATIONS.len()]
}

#[inline(never)]
fn any_legacy(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let b = low(cpu, op)?;
        let d = usize::from(op.a & 15);
        let a = cpu.vec[d].lo;
        cpu.vec[d].lo = numeric(cpu, |mx| (operation(op).x)(mx, a, b, op.imm as u8))?;
        Ok(())
    })
}

fn any128(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let b = low(cpu, op)?;
        let a = cpu.vec[usize::from(op.c & 15)].lo;
        let lo = numeric(cpu, |mx| (operation(op).x)(mx, a, b, op.imm as u8))?;
        cpu.vec[usize::from(op.a & 15)] = V256 { lo, hi: V128::ZERO };
        Ok(())
    })
}

fn any256(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let b = whole(cpu, op)?;
        let a = cpu.vec[usize::from(op.c & 15)];
        let (run, imm) = (operation(op), op.imm as u8);
        cpu.vec[usize::from(op.a & 15)] = numeric(cpu, |mx| match run.y {
            Some(y) => y(mx, a, b, imm),
            None => Ok(V256 { lo: (run.x)(mx, a.lo, b.lo, imm)?, hi: (run.x)(mx, a.hi, b.hi, imm)? }),
        })?;
        Ok(())
    })
}

/// The last source is in memory.
fn from_memory(l: &Lower<'_>) -> bool {
    l.i.op_count() > 1 && (l.is_mem(1) || l.i.op_count() > 2 && l.is_mem(2))
}

fn pick<O: Vector>(l: &mut Lower<'_>) -> Handler {
    let (memory, ymm) = (from_memory(l), l.reg(0).is_ymm());
    if memory && !quick_memory(l, if ymm { 32 } else { 16 }) {
        return pick_any(l, O::NUMBER);
    }
    l.op.imm |= O::NUMBER << 32;
    match (l.i.encoding() == EncodingKind::Legacy, ymm, memory) {
        (true, _, true) => legacy::<O, Memory>,
        (true, _, false) => legacy::<O, Register>,
        (_, true, true) => vex256::<O, Memory>,
        (_, true, false) => vex256::<O, Register>,
        (_, _, true) => vex128::<O, Memory>,
        (_, _, false) => vex128::<O, Register>,
    }
}

fn pick_any(l: &mut Lower<'_>, number: u64) -> Handler {
    l.op.imm |= number << 32;
    match (l.i.encoding() == EncodingKind::Legacy, l.reg(0).is_ymm()) {
        (true, _) => any_legacy,
        (_, true) => any256,
        _ => any128,
    }
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
    let legacy = l.i.encoding() == EncodingKind::Legacy;
    let strict =
        legacy && bytes == 16 && !matches!(l.i.mnemonic(), M::Lddqu | M::Movups | M::Movupd | M::Movdqu);
    let moves = matches!(
        l.i.mnemonic(),
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
    );
    // SHA's own wait for no alignment, as found on the silicon.
    let sha = matches!(
        l.i.mnemonic(),
        M::Sha1msg1
            | M::Sha1msg2
            | M::Sha1nexte
            | M::Sha1rnds4
            | M::Sha256msg1
            | M::Sha256msg2
            | M::Sha256rnds2
    );
    if (strict || moves && bytes != 0) && !sha {
        l.op.imm |= (bytes - 1) << 40;
    }
    if !legacy {
        l.op.imm |= VEX;
    }
}

/// The table of operations: the first ones with handlers of their own, and every one by number, for `any_*`.
macro_rules! table {
    (
        hot { $($m:ident $(, $v:ident)*: |$mx:ident, $a:ident, $b:ident, $i:ident| $x:expr $(=> $y:expr)?;)* }
        cold { $($cm:ident $(, $cv:ident)*: |$cmx:ident, $ca:ident, $cb:ident, $ci:ident| $cx:expr $(=> $cy:expr)?;)* }
    ) => {
        #[derive(Clone, Copy)]
        enum Number { $($m,)* $($cm,)* }
        mod hot {
            use super::*;
            $(pub(super) struct $m;
            impl Vector for $m {
                const NUMBER: u64 = Number::$m as u64;
                #[inline(always)]
                fn x<C: Context>($mx: &mut C, $a: V128, $b: V128, $i: u8) -> Sse<V128> {
                    let _ = (&$mx, $a, $b, $i);
                    Out::out($x)
                }
                #[inline(always)]
                fn y<C: Context>($mx: &mut C, $a: V256, $b: V256, $i: u8) -> Sse<V256> {
                    table!(@wide $m, $mx, $a, $b, $i $(, $y)?)
                }
            })*
        }
        static OPERATIONS: &[Operation] = &[
            $(Operation {
                x: hot::$m::x,
                y: table!(@function |$mx, $a, $b, $i| $(hot::$m::y, $y)?),
            },)*
            $(Operation {
                x: |$cmx, $ca, $cb, $ci| {
                    let _ = (&$cmx, &$ca, &$cb, $ci);
                    Out::out($cx)
                },
                y: table!(@closure |$cmx, $ca, $cb, $ci| $($cy)?),
            },)*
        ];
        fn lower_table(l: &mut Lower<'_>) -> Option<Handler> {
            let number = match l.i.mnemonic() {
                $(M::$m $(| M::$v)* => return Some(pick::<hot::$m>(l)),)*
                $(M::$cm $(| M::$cv)* => Number::$cm,)*
                _ => return None,
            };
            Some(pick_any(l, number as u64))
        }
    };
    (@wide $m:ident, $mx:ident, $a:ident, $b:ident, $i:ident) => {
        Ok(V256 { lo: $m::x($mx, $a.lo, $b.lo, $i)?, hi: $m::x($mx, $a.hi, $b.hi, $i)? })
    };
    (@wide $m:ident, $mx:ident, $a:ident, $b:ident, $i:ident, $y:expr) => {
        { let _ = (&$mx, $a, $b, $i); Out::out($y) }
    };
    (@function |$mx:ident, $a:ident, $b:ident, $i:ident|) => { None };
    (@function |$mx:ident, $a:ident, $b:ident, $i:ident| $f:expr, $y:expr) => { Some($f) };
    (@closure |$mx:ident, $a:ident, $b:ident, $i:ident|) => { None };
    (@closure |$mx:ident, $a:ident, $b:ident, $i:ident| $y:expr) => {
        Some(|$mx, $a, $b, $i| {
            let _ = (&$mx, &$a, &$b, $i);
            Out::out($y)
        })
    };
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

table! {
    hot {
        Paddb, Vpaddb: |mx, a, b, i| ar::paddb(a, b);
        Paddd, Vpaddd: |mx, a, b, i| ar::paddd(a, b);
        Paddq, Vpaddq: |mx, a, b, i| ar::paddq(a, b);
        Psubb, Vpsubb: |mx, a, b, i| ar::psubb(a, b);
        Psubd, Vpsubd: |mx, a, b, i| ar::psubd(a, b);
        Psubq, Vpsubq: |mx, a, b, i| ar::psubq(a, b);
        Pminub, Vpminub: |mx, a, b, i| ar::pminub(a, b);
        Pcmpeqb, Vpcmpeqb: |mx, a, b, i| ar::pcmpeqb(a, b);
        Pcmpeqd, Vpcmpeqd: |mx, a, b, i| ar::pcmpeqd(a, b);
        Pand, Vpand, Andps, Vandps, Andpd, Vandpd: |mx, a, b, i| ar::pand(a, b);
        Pandn, Vpandn, Andnps, Vandnps, Andnpd, Vandnpd: |mx, a, b, i| ar::pandn(a, b);
        Por, Vpor, Orps, Vorps, Orpd, Vorpd: |mx, a, b, i| ar::por(a, b);
        Pxor, Vpxor, Xorps, Vxorps, Xorpd, Vxorpd: |mx, a, b, i| ar::pxor(a, b);
        Pshufb, Vpshufb: |mx, a, b, i| su::pshufb(a, b);
        Pshufd, Vpshufd: |mx, a, b, i| su::pshufd(b, i);
        Shufps, Vshufps: |mx, a, b, i| su::shufps(a, b, i);
        Punpcklbw, Vpunpcklbw: |mx, a, b, i| su::punpcklbw(a, b);
        Punpckldq, Vpunpckldq, Unpcklps, Vunpcklps: |mx, a, b, i| su::punpckldq(a, b);
        Punpcklqdq, Vpunpcklqdq, Unpcklpd, Vunpcklpd: |mx, a, b, i| su::punpcklqdq(a, b);
        Addps, Vaddps: |mx, a, b, i| pk::addps(mx, a, b) => pk::vaddps(mx, a, b);
        Addpd, Vaddpd: |mx, a, b, i| pk::addpd(mx, a, b) => pk::vaddpd(mx, a, b);
        Subps, Vsubps: |mx, a, b, i| pk::subps(mx, a, b) => pk::vsubps(mx, a, b);
        Subpd, Vsubpd: |mx, a, b, i| pk::subpd(mx, a, b) => pk::vsubpd(mx, a, b);
        Mulps, Vmulps: |mx, a, b, i| pk::mulps(mx, a, b) => pk::vmulps(mx, a, b);
        Mulpd, Vmulpd: |mx, a, b, i| pk::mulpd(mx, a, b) => pk::vmulpd(mx, a, b);
        Cmpps, Vcmpps: |mx, a, b, i| pk::cmpps(mx, a, b, Predicate(i & 31)) => pk::vcmpps(mx, a, b, Predicate(i & 31));
        Cmppd, Vcmppd: |mx, a, b, i| pk::cmppd(mx, a, b, Predicate(i & 31)) => pk::vcmppd(mx, a, b, Predicate(i & 31));
        Punpckhqdq, Vpunpckhqdq, Unpckhpd, Vunpckhpd: |mx, a, b, i| su::punpckhqdq(a, b);
    }
    cold {
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
        Punpckhdq, Vpunpckhdq, Unpckhps, Vunpckhps: |mx, a, b, i| su::punpckhdq(a, b);
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
        Blendps, Vblendps, Vpblendd: |mx, a, b, i| su::blendps(a, b, i) => pe::vblendps(a, b, i);
        Blendpd, Vblendpd: |mx, a, b, i| su::blendpd(a, b, i) => pe::vblendpd(a, b, i);
        Palignr, Vpalignr: |mx, a, b, i| sh::palignr(a, b, i);
        Vpsllvd: |mx, a, b, i| sh::vpsllvd(a, b);
        Vpsllvq: |mx, a, b, i| sh::vpsllvq(a, b);
        Vpsrlvd: |mx, a, b, i| sh::vpsrlvd(a, b);
        Vpsrlvq: |mx, a, b, i| sh::vpsrlvq(a, b);
        Vpsravd: |mx, a, b, i| sh::vpsravd(a, b);
        Vpermd, Vpermps: |mx, a, b, i| b => pe::vpermd(a, b);
        Vpermq, Vpermpd: |mx, a, b, i| b => pe::vpermq(b, i);
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
        .or_else(|| lower_table(l))
}
