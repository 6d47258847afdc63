//! SSE, AVX and FMA floating point.
//!
//! The host's own arithmetic is used only where IEEE 754 leaves no choice and x86 adds none:
//! rounding to nearest with all exceptions masked and the inexact flag already sticky, every
//! operand normal (or an exact zero) and the result normal or exact. There every host gives
//! the same bits and MXCSR does not change. Everything else goes the soft path, which raises
//! the flags.
//!
//! Functions take encodings (`u32`/`u64`, [`V128`](super::vec::V128)) and update [`Mxcsr`]; an
//! unmasked exception is `Err(Unmasked)`: the flags are set, and the caller raises #XM (#UD
//! without CR4.OSXMMEXCPT) and writes no result.

pub mod approx;
pub mod convert;
pub mod packed;
pub mod scalar;

use super::soft::{Env, F32, F64, Format, Relation, flag};

/// The MXCSR register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mxcsr(pub u32);

/// An unmasked floating-point exception: #XM is due and nothing is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unmasked;

/// Result of an SSE floating-point operation.
pub type Sse<T> = Result<T, Unmasked>;

/// What an operation runs under: an [`Mxcsr`], or [`Usual`].
pub trait Context {
    /// The register as it is before.
    fn mxcsr(&self) -> Mxcsr;
    /// Does what is not for the host's arithmetic.
    ///
    /// # Errors
    /// On an unmasked exception.
    fn slow<T>(&mut self, f: impl FnOnce(&mut Mxcsr) -> Sse<T>) -> Sse<T>;
    /// As [`Mxcsr::fast`].
    #[inline(always)]
    fn fast(&self) -> bool {
        self.mxcsr().fast()
    }
}

impl Context for Mxcsr {
    #[inline(always)]
    fn mxcsr(&self) -> Mxcsr {
        *self
    }
    #[inline(always)]
    fn slow<T>(&mut self, f: impl FnOnce(&mut Mxcsr) -> Sse<T>) -> Sse<T> {
        f(self)
    }
}

/// Does only what is for the host's arithmetic, and gives up on everything else: `Unmasked` then means that nothing has been
/// done. Code under it has no call in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usual(pub Mxcsr);

impl Context for Usual {
    #[inline(always)]
    fn mxcsr(&self) -> Mxcsr {
        self.0
    }
    #[inline(always)]
    fn slow<T>(&mut self, _f: impl FnOnce(&mut Mxcsr) -> Sse<T>) -> Sse<T> {
        Err(Unmasked)
    }
}

impl Default for Mxcsr {
    fn default() -> Self {
        Mxcsr(Mxcsr::RESET)
    }
}

impl Mxcsr {
    /// Value after reset.
    pub const RESET: u32 = 0x1f80;

    /// Whether host arithmetic on normal numbers leaves MXCSR as it is: nearest, all masked,
    /// inexact sticky.
    #[inline(always)]
    #[must_use]
    pub fn fast(self) -> bool {
        self.0 & 0x7fa0 == 0x1fa0
    }

    /// The soft environment with no flags raised.
    #[inline]
    #[must_use]
    pub fn env(self) -> Env {
        Env::from_mxcsr(self.0)
    }

    /// Takes over the flags an operation raised.
    ///
    /// # Errors
    /// If any of them is unmasked.
    #[inline]
    pub fn retire(&mut self, mut env: Env) -> Sse<()> {
        env.suppressed();
        let f = env.flags & flag::ALL;
        self.0 |= f;
        if f & !env.masks == 0 { Ok(()) } else { Err(Unmasked) }
    }

    /// Runs a soft operation and takes over its flags. Out of line, to keep the fast paths
    /// around it small.
    #[cold]
    #[inline(never)]
    pub(crate) fn soft<T>(&mut self, f: impl FnOnce(&mut Env) -> T) -> Sse<T> {
        let mut env = self.env();
        let r = f(&mut env);
        self.retire(env)?;
        Ok(r)
    }
}

impl Relation {
    /// ZF, PF and CF as COMIS and UCOMIS set them, at their places in RFLAGS; OF, SF and AF
    /// are cleared.
    #[inline]
    #[must_use]
    pub fn eflags(self) -> u32 {
        match self {
            Relation::Greater => 0,
            Relation::Less => 1,
            Relation::Equal => 0x40,
            Relation::Unordered => 0x45,
        }
    }
}

/// A host floating-point type standing for a guest format of the same encoding.
pub trait Float: Copy + PartialOrd {
    /// The encoding's integer type.
    type Bits: Copy
        + PartialEq
        + Default
        + Into<u64>
        + core::ops::BitAnd<Output = Self::Bits>
        + core::fmt::Debug;
    /// The soft format.
    type Soft: Format;
    /// All ones, as compares yield.
    const TRUE: Self::Bits;
    /// All zeros.
    const FALSE: Self::Bits;
    /// From the encoding.
    fn of(b: Self::Bits) -> Self;
    /// To the encoding.
    fn bits(self) -> Self::Bits;
    /// The encoding as a soft value.
    fn to_soft(b: Self::Bits) -> Self::Soft;
    /// The encoding of a soft value.
    fn of_soft(s: Self::Soft) -> Self::Bits;
    /// Exponent neither zero nor all ones, and above the least normal number: an operation
    /// with such a result rounds as if the exponent range were unbounded. Integer form, for
    /// scalars.
    fn normal(b: Self::Bits) -> bool;
    /// Either zero.
    fn zero(b: Self::Bits) -> bool;
    /// As [`Float::normal`] without the upper limit, in a form that vectorises.
    fn above(self) -> bool;
    /// Top bit set if the magnitude is above the least normal number: [`Float::above`] by
    /// subtraction alone, which vectorises everywhere.
    fn above_bit(b: Self::Bits) -> Self::Bits;
    /// Top bit set if the magnitude is below infinity.
    fn below_bit(b: Self::Bits) -> Self::Bits;
    /// Whether the top bit is set.
    fn top(b: Self::Bits) -> bool;
    /// Below infinity (false for NaN), in a form that vectorises.
    fn below(self) -> bool;
    /// `self + b`
    fn add(self, b: Self) -> Self;
    /// `self - b`
    fn sub(self, b: Self) -> Self;
    /// `self * b`
    fn mul(self, b: Self) -> Self;
    /// `self / b`
    fn div(self, b: Self) -> Self;
    /// `self * b + c`, fused
    fn fma(self, b: Self, c: Self) -> Self;
    /// Square root
    fn sqrt(self) -> Self;
    /// `-self`
    fn neg(self) -> Self;
    /// Rounded to an integral value by RC.
    fn integral(self, rc: u32) -> Self;
}

macro_rules! float {
    ($f:ident, $b:ident, $soft:ident, $frac:literal, $inf:literal) => {
        impl Float for $f {
            type Bits = $b;
            type Soft = $soft;
            const TRUE: $b = $b::MAX;
            const FALSE: $b = 0;
            #[inline(always)]
            fn of(b: $b) -> $f {
                $f::from_bits(b)
            }
            #[inline(always)]
            fn bits(self) -> $b {
                self.to_bits()
            }
            #[inline(always)]
            fn to_soft(b: $b) -> $soft {
                $soft(b)
            }
            #[inline(always)]
            fn of_soft(s: $soft) -> $b {
                s.0
            }
            #[inline(always)]
            fn normal(b: $b) -> bool {
                // Twice the encoding drops the sign.
                const LEAST: $b = (1 << ($frac + 1)) + 1;
                (b << 1).wrapping_sub(LEAST) < $inf - LEAST
            }
            #[inline(always)]
            fn zero(b: $b) -> bool {
                b << 1 == 0
            }
            #[inline(always)]
            fn above(self) -> bool {
                self.abs() > $f::MIN_POSITIVE
            }
            #[inline(always)]
            fn above_bit(b: $b) -> $b {
                ((1 as $b) << $frac).wrapping_sub(b & $b::MAX >> 1)
            }
            #[inline(always)]
            fn below_bit(b: $b) -> $b {
                (b & $b::MAX >> 1).wrapping_sub($inf >> 1)
            }
            #[inline(always)]
            fn top(b: $b) -> bool {
                b > $b::MAX >> 1
            }
            #[inline(always)]
            fn below(self) -> bool {
                self.abs() < $f::INFINITY
            }
            #[inline(always)]
            fn add(self, b: $f) -> $f {
                self + b
            }
            #[inline(always)]
            fn sub(self, b: $f) -> $f {
                self - b
            }
            #[inline(always)]
            fn mul(self, b: $f) -> $f {
                self * b
            }
            #[inline(always)]
            fn div(self, b: $f) -> $f {
                self / b
            }
            #[inline(always)]
            fn fma(self, b: $f, c: $f) -> $f {
                self.mul_add(b, c)
            }
            #[inline(always)]
            fn sqrt(self) -> $f {
                $f::sqrt(self)
            }
            #[inline(always)]
            fn neg(self) -> $f {
                -self
            }
            #[inline(always)]
            fn integral(self, rc: u32) -> $f {
                match rc & 3 {
                    0 => self.round_ties_even(),
                    1 => self.floor(),
                    2 => self.ceil(),
                    _ => self.trunc(),
                }
            }
        }
    };
}

float!(f32, u32, F32, 23, 0xff00_0000);
float!(f64, u64, F64, 52, 0xffe0_0000_0000_0000);
