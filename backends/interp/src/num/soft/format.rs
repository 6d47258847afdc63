//! The formats, and the one unpacked form that every operation works on.

/// Class of an unpacked number. The order matters: everything from `Qnan` on is no number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Either zero.
    Zero,
    /// A non-zero number whose exponent field is zero (pseudo-denormals too).
    Denormal,
    /// A normal number.
    Normal,
    /// Either infinity.
    Inf,
    /// Quiet NaN.
    Qnan,
    /// Signalling NaN.
    Snan,
    /// An 80-bit encoding the x87 refuses: unnormal, pseudo-infinity, pseudo-NaN.
    Unsupported,
}

/// An unpacked number: `(-1)^sign * sig/2^63 * 2^exp`.
#[derive(Clone, Copy, Debug)]
pub struct Num {
    /// Negative.
    pub sign: bool,
    /// Class.
    pub kind: Kind,
    /// Unbiased exponent, of numbers.
    pub exp: i32,
    /// Significand with bit 63 set, of numbers (a denormal is normalised when unpacked;
    /// one to be packed has bit 63 clear and the format's least exponent). A NaN's payload
    /// is here left-aligned, quiet bit at 62.
    pub sig: u64,
}

impl Num {
    /// The quiet NaN of an invalid operation.
    pub const DEFAULT_NAN: Num = Num { sign: true, kind: Kind::Qnan, exp: 0, sig: 0xc000_0000_0000_0000 };

    /// A zero.
    #[inline]
    #[must_use]
    pub fn zero(sign: bool) -> Num {
        Num { sign, kind: Kind::Zero, exp: 0, sig: 0 }
    }

    /// An infinity.
    #[inline]
    #[must_use]
    pub fn inf(sign: bool) -> Num {
        Num { sign, kind: Kind::Inf, exp: 0, sig: 1 << 63 }
    }

    /// Whether it is a NaN of either sort.
    #[inline]
    #[must_use]
    pub fn is_nan(&self) -> bool {
        matches!(self.kind, Kind::Qnan | Kind::Snan)
    }

    /// The NaN made quiet.
    #[inline]
    #[must_use]
    pub fn quiet(mut self) -> Num {
        self.kind = Kind::Qnan;
        self.sig |= 0xc000_0000_0000_0000;
        self
    }
}

/// A floating-point format.
pub trait Format: Copy {
    /// Significand bits, the integer bit included.
    const PREC: u32;
    /// Exponent of the least normal number.
    const EMIN: i32;
    /// Exponent of the greatest finite numbers.
    const EMAX: i32;
    /// Whether operations in this format follow the x87's NaN rules.
    const X87: bool;
    /// Takes the encoding apart.
    fn unpack(self) -> Num;
    /// Makes an encoding of a number already rounded to this format.
    fn pack(n: Num) -> Self;
}

/// Half precision (F16C), as its encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct F16(pub u16);
/// Single precision, as its encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct F32(pub u32);
/// Double precision, as its encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct F64(pub u64);

/// Double extended precision, the x87's own format.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct F80 {
    /// Sign (bit 15) and biased exponent.
    pub se: u16,
    /// Significand with its explicit integer bit (63).
    pub frac: u64,
}

impl core::fmt::Debug for F80 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:04x}.{:016x}", self.se, self.frac)
    }
}

impl F80 {
    /// +0.0
    pub const ZERO: F80 = F80 { se: 0, frac: 0 };
    /// +1.0
    pub const ONE: F80 = F80 { se: 0x3fff, frac: 1 << 63 };
    /// The "real indefinite", the masked response to an invalid operation.
    pub const INDEFINITE: F80 = F80 { se: 0xffff, frac: 0xc000_0000_0000_0000 };

    /// From the ten bytes of its memory form.
    #[must_use]
    pub fn from_bytes(b: [u8; 10]) -> F80 {
        let [f0, f1, f2, f3, f4, f5, f6, f7, s0, s1] = b;
        F80 { se: u16::from_le_bytes([s0, s1]), frac: u64::from_le_bytes([f0, f1, f2, f3, f4, f5, f6, f7]) }
    }

    /// The ten bytes of its memory form.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 10] {
        let mut b = [0; 10];
        b[..8].copy_from_slice(&self.frac.to_le_bytes());
        b[8..].copy_from_slice(&self.se.to_le_bytes());
        b
    }

    /// FABS: never raises anything, NaNs included.
    #[inline]
    #[must_use]
    pub fn abs(self) -> F80 {
        F80 { se: self.se & 0x7fff, ..self }
    }

    /// FCHS: never raises anything, NaNs included.
    #[inline]
    #[must_use]
    pub fn negate(self) -> F80 {
        F80 { se: self.se ^ 0x8000, ..self }
    }
}

#[inline(always)]
fn unpack_ieee(bits: u64, frac_bits: u32, exp_bits: u32) -> Num {
    let top = (1u64 << exp_bits) - 1;
    let sign = (bits >> (frac_bits + exp_bits)) & 1 != 0;
    let e = (bits >> frac_bits) & top;
    let frac = bits & ((1 << frac_bits) - 1);
    let emin = 2 - (1 << (exp_bits - 1));
    let sig = frac << (63 - frac_bits);
    if e == 0 {
        if frac == 0 {
            return Num::zero(sign);
        }
        let lz = sig.leading_zeros();
        return Num { sign, kind: Kind::Denormal, exp: emin - lz as i32, sig: sig << lz };
    }
    let sig = sig | 1 << 63;
    let kind = if e != top {
        Kind::Normal
    } else if frac == 0 {
        Kind::Inf
    } else if sig & (1 << 62) != 0 {
        Kind::Qnan
    } else {
        Kind::Snan
    };
    Num { sign, kind, exp: e as i32 - 1 + emin, sig }
}

#[inline(always)]
fn pack_ieee(n: Num, frac_bits: u32, exp_bits: u32) -> u64 {
    let top = (1u64 << exp_bits) - 1;
    let s = u64::from(n.sign) << (frac_bits + exp_bits);
    let frac = (n.sig & !(1 << 63)) >> (63 - frac_bits);
    match n.kind {
        Kind::Zero => s,
        Kind::Inf => s | top << frac_bits,
        Kind::Qnan | Kind::Snan | Kind::Unsupported => s | top << frac_bits | frac,
        Kind::Normal | Kind::Denormal => {
            let emin = 2 - (1 << (exp_bits - 1));
            let e = if n.sig >> 63 == 0 { 0 } else { (n.exp - emin + 1) as u64 };
            s | (e & top) << frac_bits | frac
        }
    }
}

macro_rules! ieee {
    ($t:ident, $bits:ty, $frac:literal, $exp:literal) => {
        impl Format for $t {
            const PREC: u32 = $frac + 1;
            const EMIN: i32 = 2 - (1 << ($exp - 1));
            const EMAX: i32 = (1 << ($exp - 1)) - 1;
            const X87: bool = false;
            #[inline]
            fn unpack(self) -> Num {
                unpack_ieee(u64::from(self.0), $frac, $exp)
            }
            #[inline]
            fn pack(n: Num) -> Self {
                $t(pack_ieee(n, $frac, $exp) as $bits)
            }
        }
    };
}

ieee!(F16, u16, 10, 5);
ieee!(F32, u32, 23, 8);
ieee!(F64, u64, 52, 11);

impl Format for F80 {
    const PREC: u32 = 64;
    const EMIN: i32 = -16382;
    const EMAX: i32 = 16383;
    const X87: bool = true;

    #[inline]
    fn unpack(self) -> Num {
        let sign = self.se >> 15 != 0;
        let e = i32::from(self.se & 0x7fff);
        let sig = self.frac;
        if e == 0 {
            if sig == 0 {
                return Num::zero(sign);
            }
            let lz = sig.leading_zeros();
            return Num { sign, kind: Kind::Denormal, exp: -16382 - lz as i32, sig: sig << lz };
        }
        let kind = if sig >> 63 == 0 {
            Kind::Unsupported
        } else if e != 0x7fff {
            Kind::Normal
        } else if sig == 1 << 63 {
            Kind::Inf
        } else if sig & (1 << 62) != 0 {
            Kind::Qnan
        } else {
            Kind::Snan
        };
        Num { sign, kind, exp: e - 16383, sig }
    }

    #[inline]
    fn pack(n: Num) -> F80 {
        let s = u16::from(n.sign) << 15;
        match n.kind {
            Kind::Zero => F80 { se: s, frac: 0 },
            Kind::Inf | Kind::Qnan | Kind::Snan | Kind::Unsupported => F80 { se: s | 0x7fff, frac: n.sig },
            Kind::Normal | Kind::Denormal => {
                let e = if n.sig >> 63 == 0 { 0 } else { (n.exp + 16383) as u16 & 0x7fff };
                F80 { se: s | e, frac: n.sig }
            }
        }
    }
}
