//! Software floating point in x86's manner, written once over every format.
//!
//! A value is unpacked into a [`Num`] (sign, class, exponent, 64-bit significand), an
//! operation computes an exact or sticky 128-bit significand, and [`arith::round`] makes the
//! one rounding decision of the crate: precision, tininess after rounding, flush to zero,
//! overflow, the x87's "rounded up" bit and the biased results of its unmasked exceptions.
//!
//! Exception flags have MXCSR's and the x87 status word's bit numbers. Priority is x86's:
//! unsupported encoding, NaN operand, other invalid or divide by zero, denormal operand,
//! then what rounding finds.

pub mod arith;
pub mod bcd;
pub mod compare;
pub mod convert;
pub mod format;
pub mod rem;

pub use arith::{add, div, fma, mul, sqrt, sub};
pub use compare::{Relation, compare, fxam, max, min};
pub use convert::{convert, from_i32, from_i64, round_to_int, to_i16, to_i32, to_i64, widen};
pub use format::{F16, F32, F64, F80, Format, Kind, Num};

/// Exception flag bits, as in MXCSR bits 0..6 and in the x87 status word.
pub mod flag {
    /// Invalid operation.
    pub const IE: u32 = 1;
    /// Denormal operand.
    pub const DE: u32 = 2;
    /// Divide by zero.
    pub const ZE: u32 = 4;
    /// Overflow.
    pub const OE: u32 = 8;
    /// Underflow.
    pub const UE: u32 = 16;
    /// Inexact result.
    pub const PE: u32 = 32;
    /// The exceptions known before the computation: unmasked, they suppress the result.
    pub const PRE: u32 = IE | DE | ZE;
    /// All six.
    pub const ALL: u32 = 0x3f;
    /// x87 C0, at its place in the status word.
    pub const C0: u32 = 0x100;
    /// x87 C1: the result was rounded away from zero.
    pub const C1: u32 = 0x200;
    /// x87 C2: incomplete reduction, or argument out of range.
    pub const C2: u32 = 0x400;
    /// x87 C3.
    pub const C3: u32 = 0x4000;
}

/// Rounding direction, numbered as in MXCSR.RC and the x87 control word's RC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// Toward minus infinity.
    Down,
    /// Toward plus infinity.
    Up,
    /// Toward zero.
    Zero,
}

impl Round {
    /// From a two-bit RC field; higher bits are ignored.
    #[inline]
    #[must_use]
    pub fn from_rc(rc: u32) -> Round {
        match rc & 3 {
            0 => Round::Nearest,
            1 => Round::Down,
            2 => Round::Up,
            _ => Round::Zero,
        }
    }
}

/// What an operation needs to know, and what it reports.
#[derive(Clone, Copy, Debug)]
pub struct Env {
    /// Rounding direction.
    pub round: Round,
    /// Denormal inputs are zeros (SSE).
    pub daz: bool,
    /// Tiny results are zeros when underflow is masked (SSE).
    pub ftz: bool,
    /// Masked exceptions, as [`flag`] bits.
    pub masks: u32,
    /// Raised exceptions and x87 condition bits, accumulated; see [`flag`].
    pub flags: u32,
    /// Significand bits of x87 arithmetic results (precision control): 24, 53 or 64.
    pub prec: u32,
    /// The memory operand was a denormal of its own format; see [`convert::widen`].
    pub(crate) narrow_denormal: bool,
}

impl Env {
    /// The environment MXCSR describes, with no flag raised yet.
    #[inline]
    #[must_use]
    pub fn from_mxcsr(mxcsr: u32) -> Env {
        Env {
            round: Round::from_rc(mxcsr >> 13),
            daz: mxcsr & 0x40 != 0,
            ftz: mxcsr & 0x8000 != 0,
            masks: (mxcsr >> 7) & flag::ALL,
            flags: 0,
            prec: 64,
            narrow_denormal: false,
        }
    }

    /// The environment an x87 control word describes, with no flag raised yet.
    #[inline]
    #[must_use]
    pub fn from_cw(cw: u16) -> Env {
        let cw = u32::from(cw);
        Env {
            round: Round::from_rc(cw >> 10),
            daz: false,
            ftz: false,
            masks: cw & flag::ALL,
            flags: 0,
            prec: match (cw >> 8) & 3 {
                0 => 24,
                2 => 53,
                _ => 64,
            },
            narrow_denormal: false,
        }
    }

    /// Raise flags.
    #[inline]
    pub fn raise(&mut self, f: u32) {
        self.flags |= f;
    }

    /// Whether every flag in `f` is masked.
    #[inline]
    #[must_use]
    pub fn masked(&self, f: u32) -> bool {
        self.masks & f == f
    }

    /// Whether an unmasked exception forbids writing the result: invalid, denormal or
    /// divide by zero. When it does, what rounding would have raised is withdrawn, as the
    /// silicon never gets that far. (Unmasked overflow, underflow and inexact do write x87
    /// register results, but not x87 memory results and not SSE results.)
    #[inline]
    pub fn suppressed(&mut self) -> bool {
        if self.flags & flag::PRE & !self.masks == 0 {
            return false;
        }
        self.flags &= flag::PRE;
        true
    }

    /// Whether any raised exception is unmasked.
    #[inline]
    #[must_use]
    pub fn trapped(&self) -> bool {
        self.flags & flag::ALL & !self.masks != 0
    }

    pub(crate) fn invalid<F: Format>(&mut self) -> F {
        self.raise(flag::IE);
        F::pack(Num::DEFAULT_NAN)
    }

    /// Raises the denormal flag if the operand is one.
    #[inline]
    pub(crate) fn denormal(&mut self, n: Num) {
        if n.kind == Kind::Denormal || self.narrow_denormal {
            self.raise(flag::DE);
        }
    }
}

/// Unpacks an operand, honouring denormals-are-zeros.
#[inline]
pub(crate) fn operand<F: Format>(env: &Env, x: F) -> Num {
    let mut n = x.unpack();
    if env.daz && n.kind == Kind::Denormal {
        n.kind = Kind::Zero;
        n.sig = 0;
    }
    n
}

/// The NaN a two-operand operation returns, if any operand is a NaN (or unsupported).
#[inline]
pub(crate) fn nan2<F: Format>(env: &mut Env, a: Num, b: Num) -> Option<F> {
    if a.kind < Kind::Qnan && b.kind < Kind::Qnan {
        return None;
    }
    Some(nan2_slow::<F>(env, a, b))
}

#[cold]
fn nan2_slow<F: Format>(env: &mut Env, a: Num, b: Num) -> F {
    if a.kind == Kind::Unsupported || b.kind == Kind::Unsupported {
        return env.invalid();
    }
    if a.kind == Kind::Snan || b.kind == Kind::Snan {
        env.raise(flag::IE);
    }
    let pick = if !F::X87 {
        if a.is_nan() { a } else { b }
    } else if !b.is_nan() {
        a
    } else if !a.is_nan() {
        b
    } else if a.kind != b.kind {
        // A signalling and a quiet NaN: the quiet one.
        if a.kind == Kind::Qnan { a } else { b }
    } else if a.sig != b.sig {
        if a.sig > b.sig { a } else { b }
    } else if b.sign {
        a
    } else {
        b
    };
    F::pack(pick.quiet())
}

/// The NaN a one-operand operation returns, if the operand is a NaN (or unsupported).
#[inline]
pub(crate) fn nan1<F: Format>(env: &mut Env, a: Num) -> Option<F> {
    match a.kind {
        Kind::Unsupported => Some(env.invalid()),
        Kind::Snan => {
            env.raise(flag::IE);
            Some(F::pack(a.quiet()))
        }
        Kind::Qnan => Some(F::pack(a)),
        _ => None,
    }
}
