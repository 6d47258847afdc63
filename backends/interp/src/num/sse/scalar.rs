//! Scalar operations: ADDSS, ADDSD and so on, generic over `f32` and `f64`.

use super::super::soft::{self, Relation, Round};
use super::{Context, Float, Mxcsr, Sse};

/// The operations of two operands, as types, so that scalar and packed forms share them.
pub trait Binary {
    /// On the host.
    fn host<F: Float>(a: F, b: F) -> F;
    /// In software.
    fn soft<F: Float>(env: &mut soft::Env, a: F::Bits, b: F::Bits) -> F::Bits;
    /// Whether operands that are zero or normal give the exact zero that the host computed.
    fn exact_zero<F: Float>(a: F::Bits, b: F::Bits) -> bool;
}

/// Addition.
pub struct Add;
/// Subtraction.
pub struct Sub;
/// Multiplication.
pub struct Mul;
/// Division.
pub struct Div;

impl Binary for Add {
    #[inline(always)]
    fn host<F: Float>(a: F, b: F) -> F {
        a.add(b)
    }
    fn soft<F: Float>(env: &mut soft::Env, a: F::Bits, b: F::Bits) -> F::Bits {
        F::of_soft(soft::add(env, F::to_soft(a), F::to_soft(b)))
    }
    #[inline(always)]
    fn exact_zero<F: Float>(_: F::Bits, _: F::Bits) -> bool {
        true
    }
}

impl Binary for Sub {
    #[inline(always)]
    fn host<F: Float>(a: F, b: F) -> F {
        a.sub(b)
    }
    fn soft<F: Float>(env: &mut soft::Env, a: F::Bits, b: F::Bits) -> F::Bits {
        F::of_soft(soft::sub(env, F::to_soft(a), F::to_soft(b)))
    }
    #[inline(always)]
    fn exact_zero<F: Float>(_: F::Bits, _: F::Bits) -> bool {
        true
    }
}

impl Binary for Mul {
    #[inline(always)]
    fn host<F: Float>(a: F, b: F) -> F {
        a.mul(b)
    }
    fn soft<F: Float>(env: &mut soft::Env, a: F::Bits, b: F::Bits) -> F::Bits {
        F::of_soft(soft::mul(env, F::to_soft(a), F::to_soft(b)))
    }
    #[inline(always)]
    fn exact_zero<F: Float>(a: F::Bits, b: F::Bits) -> bool {
        F::zero(a) || F::zero(b)
    }
}

impl Binary for Div {
    #[inline(always)]
    fn host<F: Float>(a: F, b: F) -> F {
        a.div(b)
    }
    fn soft<F: Float>(env: &mut soft::Env, a: F::Bits, b: F::Bits) -> F::Bits {
        F::of_soft(soft::div(env, F::to_soft(a), F::to_soft(b)))
    }
    #[inline(always)]
    fn exact_zero<F: Float>(a: F::Bits, _: F::Bits) -> bool {
        F::zero(a)
    }
}

/// One operation of two operands.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn binary<F: Float, O: Binary>(mx: &mut impl Context, a: F::Bits, b: F::Bits) -> Sse<F::Bits> {
    if mx.fast() {
        let r = O::host(F::of(a), F::of(b)).bits();
        if F::normal(a) && F::normal(b) && F::normal(r) {
            return Ok(r);
        }
    }
    mx.slow(|mx| binary_slow::<F, O>(mx, a, b))
}

#[cold]
#[inline(never)]
fn binary_slow<F: Float, O: Binary>(mx: &mut Mxcsr, a: F::Bits, b: F::Bits) -> Sse<F::Bits> {
    if mx.fast() && (F::normal(a) || F::zero(a)) && (F::normal(b) || F::zero(b)) {
        let r = O::host(F::of(a), F::of(b)).bits();
        if F::normal(r) || (F::zero(r) && O::exact_zero::<F>(a, b)) {
            return Ok(r);
        }
    }
    mx.soft(move |env| O::soft::<F>(env, a, b))
}

/// ADDSS, ADDSD.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn add<F: Float>(mx: &mut impl Context, a: F::Bits, b: F::Bits) -> Sse<F::Bits> {
    binary::<F, Add>(mx, a, b)
}

/// SUBSS, SUBSD.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn sub<F: Float>(mx: &mut impl Context, a: F::Bits, b: F::Bits) -> Sse<F::Bits> {
    binary::<F, Sub>(mx, a, b)
}

/// MULSS, MULSD.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn mul<F: Float>(mx: &mut impl Context, a: F::Bits, b: F::Bits) -> Sse<F::Bits> {
    binary::<F, Mul>(mx, a, b)
}

/// DIVSS, DIVSD.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn div<F: Float>(mx: &mut impl Context, a: F::Bits, b: F::Bits) -> Sse<F::Bits> {
    binary::<F, Div>(mx, a, b)
}

/// SQRTSS, SQRTSD.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn sqrt<F: Float>(mx: &mut Mxcsr, a: F::Bits) -> Sse<F::Bits> {
    if mx.fast() && F::normal(a) {
        let r = F::of(a).sqrt().bits();
        if F::normal(r) {
            return Ok(r);
        }
    }
    if F::zero(a) {
        return Ok(a);
    }
    mx.soft(move |env| F::of_soft(soft::sqrt(env, F::to_soft(a))))
}

/// The signs of a fused multiply-add: `±(a*b) ± c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FmaSigns {
    /// Negate the product (FNMADD, FNMSUB).
    pub negate: bool,
    /// Subtract the addend (FMSUB, FNMSUB).
    pub subtract: bool,
}

impl FmaSigns {
    /// VFMADD
    pub const MADD: FmaSigns = FmaSigns { negate: false, subtract: false };
    /// VFMSUB
    pub const MSUB: FmaSigns = FmaSigns { negate: false, subtract: true };
    /// VFNMADD
    pub const NMADD: FmaSigns = FmaSigns { negate: true, subtract: false };
    /// VFNMSUB
    pub const NMSUB: FmaSigns = FmaSigns { negate: true, subtract: true };
}

#[inline(always)]
pub(super) fn fma_host<F: Float>(a: F, b: F, c: F, s: FmaSigns) -> F {
    let a = if s.negate { a.neg() } else { a };
    let c = if s.subtract { c.neg() } else { c };
    a.fma(b, c)
}

/// VF(N)MADD/SUB scalar: `±(a*b) ± c`, where for the 132, 213 and 231 forms (a, b, c) are
/// operands (1, 3, 2), (2, 1, 3) and (2, 3, 1).
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn fma<F: Float>(mx: &mut Mxcsr, a: F::Bits, b: F::Bits, c: F::Bits, s: FmaSigns) -> Sse<F::Bits> {
    if mx.fast() && F::normal(a) && F::normal(b) && F::normal(c) {
        let r = fma_host(F::of(a), F::of(b), F::of(c), s).bits();
        if F::normal(r) {
            return Ok(r);
        }
    }
    mx.soft(move |env| {
        let (a, b, c) = (F::to_soft(a), F::to_soft(b), F::to_soft(c));
        F::of_soft(soft::fma(env, a, b, c, s.negate, s.subtract))
    })
}

#[inline(always)]
pub(super) fn plain<F: Float>(a: F::Bits) -> bool {
    F::normal(a) || F::zero(a)
}

/// MINSS, MINSD (`a` is the destination).
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn min<F: Float>(mx: &mut Mxcsr, a: F::Bits, b: F::Bits) -> Sse<F::Bits> {
    if plain::<F>(a) && plain::<F>(b) {
        return Ok(if F::of(a) < F::of(b) { a } else { b });
    }
    mx.soft(move |env| F::of_soft(soft::min(env, F::to_soft(a), F::to_soft(b))))
}

/// MAXSS, MAXSD (`a` is the destination).
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn max<F: Float>(mx: &mut Mxcsr, a: F::Bits, b: F::Bits) -> Sse<F::Bits> {
    if plain::<F>(a) && plain::<F>(b) {
        return Ok(if F::of(a) > F::of(b) { a } else { b });
    }
    mx.soft(move |env| F::of_soft(soft::max(env, F::to_soft(a), F::to_soft(b))))
}

/// COMISx (`quiet` false) and UCOMISx (`quiet` true); see [`Relation::eflags`].
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn comi<F: Float>(mx: &mut impl Context, a: F::Bits, b: F::Bits, quiet: bool) -> Sse<Relation> {
    if plain::<F>(a) && plain::<F>(b) {
        let (a, b) = (F::of(a), F::of(b));
        return Ok(if a < b {
            Relation::Less
        } else if a > b {
            Relation::Greater
        } else {
            Relation::Equal
        });
    }
    mx.slow(|mx| mx.soft(move |env| soft::compare(env, F::to_soft(a), F::to_soft(b), quiet)))
}

/// One of the 32 predicates of CMPxx and VCMPxx.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Predicate(pub u8);

impl Predicate {
    /// Which relations hold: bit 0 less, 1 equal, 2 greater, 3 unordered.
    const TRUTH: [u8; 16] = [
        0b0010, 0b0001, 0b0011, 0b1000, 0b1101, 0b1110, 0b1100,
        0b0111, // EQ LT LE UNORD NEQ NLT NLE ORD
        0b1010, 0b1001, 0b1011, 0b0000, 0b0101, 0b0110, 0b0100,
        0b1111, // EQ_U NGE NGT FALSE NEQ_O GE GT TRUE
    ];

    /// Relations for which the predicate is true, as a bit set in the order of [`Relation`].
    #[inline(always)]
    #[must_use]
    pub fn truth(self) -> u8 {
        Predicate::TRUTH[usize::from(self.0 & 15)]
    }

    /// Whether quiet NaNs raise nothing.
    #[inline]
    #[must_use]
    pub fn quiet(self) -> bool {
        // LT, LE, NLT, NLE and NGE, NGT, GE, GT signal; bit 4 reverses.
        let signals = 0x6666u16 >> (self.0 & 15) & 1 != 0;
        signals == (self.0 & 16 != 0)
    }
}

/// CMPSS, CMPSD (imm8 & 7) and VCMPSS, VCMPSD (imm8 & 31): all ones or zero.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn cmp<F: Float>(mx: &mut Mxcsr, a: F::Bits, b: F::Bits, p: Predicate) -> Sse<F::Bits> {
    let r = comi::<F>(mx, a, b, p.quiet())?;
    Ok(if p.truth() >> r as u8 & 1 != 0 { F::TRUE } else { F::FALSE })
}

/// The rounding an ROUNDxx immediate asks for, given MXCSR's.
pub(super) fn imm_round(mx: Mxcsr, imm: u8) -> u32 {
    if imm & 4 != 0 { mx.0 >> 13 & 3 } else { u32::from(imm & 3) }
}

/// ROUNDSS, ROUNDSD.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn round<F: Float>(mx: &mut Mxcsr, a: F::Bits, imm: u8) -> Sse<F::Bits> {
    let rc = imm_round(*mx, imm);
    let report = imm & 8 == 0;
    if plain::<F>(a) && (mx.fast() || !report) {
        return Ok(F::of(a).integral(rc).bits());
    }
    mx.soft(move |env| F::of_soft(soft::round_to_int(env, F::to_soft(a), Round::from_rc(rc), report)))
}
