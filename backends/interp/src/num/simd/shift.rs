//! Shifts: by one count for all lanes (a register's low 64 bits, or an immediate), by a count
//! for each lane (AVX2), and of the whole register by bytes.

use super::super::vec::V128;
use super::arith::por;

macro_rules! logical {
    ($($name:ident $get:ident $from:ident $bits:literal $op:tt;)*) => {$(
        #[doc = concat!(stringify!($name), " by an immediate or by the low 64 bits of a register.")]
        #[inline(always)]
        #[must_use]
        pub fn $name(a: V128, count: u64) -> V128 {
            if count >= $bits {
                return V128::ZERO;
            }
            V128::$from(a.$get().map(|v| v $op count as u32))
        }
    )*};
}

logical! {
    psllw u16s from_u16s 16 <<;
    pslld u32s from_u32s 32 <<;
    psllq u64s from_u64s 64 <<;
    psrlw u16s from_u16s 16 >>;
    psrld u32s from_u32s 32 >>;
    psrlq u64s from_u64s 64 >>;
}

/// PSRAW by an immediate or by the low 64 bits of a register.
#[inline(always)]
#[must_use]
pub fn psraw(a: V128, count: u64) -> V128 {
    let n = count.min(15) as u32;
    V128::from_i16s(a.i16s().map(|v| v >> n))
}

/// PSRAD by an immediate or by the low 64 bits of a register.
#[inline(always)]
#[must_use]
pub fn psrad(a: V128, count: u64) -> V128 {
    let n = count.min(31) as u32;
    V128::from_i32s(a.i32s().map(|v| v >> n))
}

macro_rules! variable {
    ($($name:ident $get:ident $from:ident $cget:ident $bits:literal |$v:ident, $n:ident| $in:expr, $out:expr;)*) => {$(
        #[doc = concat!("The lanes of ", stringify!($name), ".")]
        #[inline(always)]
        #[must_use]
        pub fn $name(a: V128, counts: V128) -> V128 {
            let (mut a, c) = (a.$get(), counts.$cget());
            for i in 0..a.len() {
                let ($v, $n) = (a[i], c[i] as u32 & ($bits - 1));
                a[i] = if c[i] < $bits { $in } else { $out };
            }
            V128::$from(a)
        }
    )*};
}

variable! {
    vpsllvd u32s from_u32s u32s 32 |v, n| v << n, 0;
    vpsllvq u64s from_u64s u64s 64 |v, n| v << n, 0;
    vpsrlvd u32s from_u32s u32s 32 |v, n| v >> n, 0;
    vpsrlvq u64s from_u64s u64s 64 |v, n| v >> n, 0;
    vpsravd i32s from_i32s u32s 32 |v, n| v >> n, v >> 31;
}

/// PSLLDQ: left by bytes.
#[inline(always)]
#[must_use]
pub fn pslldq(a: V128, bytes: u8) -> V128 {
    V128::from_u128(if bytes < 16 { a.to_u128() << (u32::from(bytes) * 8) } else { 0 })
}

/// PSRLDQ: right by bytes.
#[inline(always)]
#[must_use]
pub fn psrldq(a: V128, bytes: u8) -> V128 {
    V128::from_u128(if bytes < 16 { a.to_u128() >> (u32::from(bytes) * 8) } else { 0 })
}

/// PALIGNR: bytes `imm ..` of `a:b` (`a`, the destination, is the high part).
#[inline(always)]
#[must_use]
pub fn palignr(a: V128, b: V128, imm: u8) -> V128 {
    if imm < 16 { por(psrldq(b, imm), pslldq(a, 16 - imm)) } else { psrldq(a, imm - 16) }
}
