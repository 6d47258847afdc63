//! Lane arithmetic, comparison, and the sums across lanes.

use super::super::vec::V128;

macro_rules! zip {
    ($($name:ident $get:ident $from:ident |$a:ident, $b:ident| $e:expr;)*) => {$(
        #[doc = concat!("The lanes of ", stringify!($name), ".")]
        #[inline(always)]
        #[must_use]
        pub fn $name(a: V128, b: V128) -> V128 {
            let (mut a, b) = (a.$get(), b.$get());
            for i in 0..a.len() {
                let ($a, $b) = (a[i], b[i]);
                a[i] = $e;
            }
            V128::$from(a)
        }
    )*};
}

zip! {
    paddb u8s from_u8s |a, b| a.wrapping_add(b);
    paddw u16s from_u16s |a, b| a.wrapping_add(b);
    paddd u32s from_u32s |a, b| a.wrapping_add(b);
    paddq u64s from_u64s |a, b| a.wrapping_add(b);
    psubb u8s from_u8s |a, b| a.wrapping_sub(b);
    psubw u16s from_u16s |a, b| a.wrapping_sub(b);
    psubd u32s from_u32s |a, b| a.wrapping_sub(b);
    psubq u64s from_u64s |a, b| a.wrapping_sub(b);
    paddsb i8s from_i8s |a, b| a.saturating_add(b);
    paddsw i16s from_i16s |a, b| a.saturating_add(b);
    paddusb u8s from_u8s |a, b| a.saturating_add(b);
    paddusw u16s from_u16s |a, b| a.saturating_add(b);
    psubsb i8s from_i8s |a, b| a.saturating_sub(b);
    psubsw i16s from_i16s |a, b| a.saturating_sub(b);
    psubusb u8s from_u8s |a, b| a.saturating_sub(b);
    psubusw u16s from_u16s |a, b| a.saturating_sub(b);
    pmullw u16s from_u16s |a, b| a.wrapping_mul(b);
    pmulld u32s from_u32s |a, b| a.wrapping_mul(b);
    pmulhw i16s from_i16s |a, b| ((i32::from(a) * i32::from(b)) >> 16) as i16;
    pmulhuw u16s from_u16s |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16;
    pmulhrsw i16s from_i16s |a, b| ((((i32::from(a) * i32::from(b)) >> 14) + 1) >> 1) as i16;
    pmuludq u64s from_u64s |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff);
    pmuldq i64s from_i64s |a, b| i64::from(a as i32) * i64::from(b as i32);
    pavgb u8s from_u8s |a, b| ((u16::from(a) + u16::from(b) + 1) >> 1) as u8;
    pavgw u16s from_u16s |a, b| ((u32::from(a) + u32::from(b) + 1) >> 1) as u16;
    pminub u8s from_u8s |a, b| a.min(b);
    pminsb i8s from_i8s |a, b| a.min(b);
    pminuw u16s from_u16s |a, b| a.min(b);
    pminsw i16s from_i16s |a, b| a.min(b);
    pminud u32s from_u32s |a, b| a.min(b);
    pminsd i32s from_i32s |a, b| a.min(b);
    pmaxub u8s from_u8s |a, b| a.max(b);
    pmaxsb i8s from_i8s |a, b| a.max(b);
    pmaxuw u16s from_u16s |a, b| a.max(b);
    pmaxsw i16s from_i16s |a, b| a.max(b);
    pmaxud u32s from_u32s |a, b| a.max(b);
    pmaxsd i32s from_i32s |a, b| a.max(b);
    pcmpeqb i8s from_i8s |a, b| -i8::from(a == b);
    pcmpeqw i16s from_i16s |a, b| -i16::from(a == b);
    pcmpeqd i32s from_i32s |a, b| -i32::from(a == b);
    pcmpeqq i64s from_i64s |a, b| -i64::from(a == b);
    pcmpgtb i8s from_i8s |a, b| -i8::from(a > b);
    pcmpgtw i16s from_i16s |a, b| -i16::from(a > b);
    pcmpgtd i32s from_i32s |a, b| -i32::from(a > b);
    pcmpgtq i64s from_i64s |a, b| -i64::from(a > b);
    psignb i8s from_i8s |a, b| if b < 0 { a.wrapping_neg() } else if b == 0 { 0 } else { a };
    psignw i16s from_i16s |a, b| if b < 0 { a.wrapping_neg() } else if b == 0 { 0 } else { a };
    psignd i32s from_i32s |a, b| if b < 0 { a.wrapping_neg() } else if b == 0 { 0 } else { a };
    pand u64s from_u64s |a, b| a & b;
    pandn u64s from_u64s |a, b| !a & b;
    por u64s from_u64s |a, b| a | b;
    pxor u64s from_u64s |a, b| a ^ b;
}

macro_rules! map {
    ($($name:ident $get:ident $from:ident |$a:ident| $e:expr;)*) => {$(
        #[doc = concat!("The lanes of ", stringify!($name), ".")]
        #[inline(always)]
        #[must_use]
        pub fn $name(a: V128) -> V128 {
            V128::$from(a.$get().map(|$a| $e))
        }
    )*};
}

map! {
    pabsb i8s from_i8s |a| a.wrapping_abs();
    pabsw i16s from_i16s |a| a.wrapping_abs();
    pabsd i32s from_i32s |a| a.wrapping_abs();
}

/// PMADDWD: signed products summed in pairs.
#[inline(always)]
#[must_use]
pub fn pmaddwd(a: V128, b: V128) -> V128 {
    let (a, b) = (a.i16s(), b.i16s());
    let mut r = [0i32; 4];
    for i in 0..4 {
        let p = |j: usize| i32::from(a[j]) * i32::from(b[j]);
        r[i] = p(2 * i).wrapping_add(p(2 * i + 1));
    }
    V128::from_i32s(r)
}

/// PMADDUBSW: unsigned bytes of `a` by signed bytes of `b`, summed in pairs with saturation.
#[inline(always)]
#[must_use]
pub fn pmaddubsw(a: V128, b: V128) -> V128 {
    let (a, b) = (a.u8s(), b.i8s());
    let mut r = [0i16; 8];
    for i in 0..8 {
        let p = |j: usize| i16::from(a[j]) * i16::from(b[j]);
        r[i] = p(2 * i).saturating_add(p(2 * i + 1));
    }
    V128::from_i16s(r)
}

/// PSADBW: sum of absolute differences of each eight bytes.
#[inline(always)]
#[must_use]
pub fn psadbw(a: V128, b: V128) -> V128 {
    let (a, b) = (a.u8s(), b.u8s());
    let mut r = [0u64; 2];
    for i in 0..16 {
        r[i / 8] += u64::from(a[i].abs_diff(b[i]));
    }
    V128::from_u64s(r)
}

macro_rules! horizontal {
    ($($name:ident $get:ident $from:ident $ty:ty, $n:literal, $f:ident;)*) => {$(
        #[doc = concat!(stringify!($name), ": neighbours of `a`, then of `b`.")]
        #[inline(always)]
        #[must_use]
        pub fn $name(a: V128, b: V128) -> V128 {
            let (a, b) = (a.$get(), b.$get());
            let mut r = <[$ty; $n]>::default();
            for i in 0..$n / 2 {
                r[i] = a[2 * i].$f(a[2 * i + 1]);
                r[i + $n / 2] = b[2 * i].$f(b[2 * i + 1]);
            }
            V128::$from(r)
        }
    )*};
}

horizontal! {
    phaddw i16s from_i16s i16, 8, wrapping_add;
    phaddd i32s from_i32s i32, 4, wrapping_add;
    phaddsw i16s from_i16s i16, 8, saturating_add;
    phsubw i16s from_i16s i16, 8, wrapping_sub;
    phsubd i32s from_i32s i32, 4, wrapping_sub;
    phsubsw i16s from_i16s i16, 8, saturating_sub;
}

/// MPSADBW (VMPSADBW's high half takes `imm >> 3`): eight sums of absolute differences of
/// four bytes of `b` with sliding groups of `a`.
#[inline]
#[must_use]
pub fn mpsadbw(a: V128, b: V128, imm: u8) -> V128 {
    let (a, b) = (a.u8s(), b.u8s());
    let (at, bt) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    let mut r = [0u16; 8];
    for (i, r) in r.iter_mut().enumerate() {
        for j in 0..4 {
            *r += u16::from(a[at + i + j].abs_diff(b[bt + j]));
        }
    }
    V128::from_u16s(r)
}

/// PHMINPOSUW: the least word and its index.
#[inline]
#[must_use]
pub fn phminposuw(a: V128) -> V128 {
    let a = a.u16s();
    let (mut least, mut at) = (a[0], 0u16);
    for (i, &v) in a.iter().enumerate() {
        if v < least {
            (least, at) = (v, i as u16);
        }
    }
    V128::from_u16s([least, at, 0, 0, 0, 0, 0, 0])
}

/// PMOVMSKB
#[inline(always)]
#[must_use]
pub fn pmovmskb(a: V128) -> u32 {
    // The multiplication gathers the eight top bits into the top byte, without carries.
    let gather = |v: u64| ((v >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u32;
    gather(a.low()) | gather(a.high()) << 8
}

/// MOVMSKPS
#[inline(always)]
#[must_use]
pub fn movmskps(a: V128) -> u32 {
    let a = a.u32s();
    a[0] >> 31 | a[1] >> 31 << 1 | a[2] >> 31 << 2 | a[3] >> 31 << 3
}

/// MOVMSKPD
#[inline(always)]
#[must_use]
pub fn movmskpd(a: V128) -> u32 {
    (a.low() >> 63 | a.high() >> 63 << 1) as u32
}

/// PTEST: (ZF, CF) = (`a & b` is zero, `!a & b` is zero). `a` is the first operand.
#[inline(always)]
#[must_use]
pub fn ptest(a: V128, b: V128) -> (bool, bool) {
    (pand(a, b) == V128::ZERO, pandn(a, b) == V128::ZERO)
}

/// VTESTPS: as PTEST, of the 32-bit lanes' sign bits.
#[inline]
#[must_use]
pub fn vtestps(a: V128, b: V128) -> (bool, bool) {
    (movmskps(pand(a, b)) == 0, movmskps(pandn(a, b)) == 0)
}

/// VTESTPD: as PTEST, of the 64-bit lanes' sign bits.
#[inline]
#[must_use]
pub fn vtestpd(a: V128, b: V128) -> (bool, bool) {
    (movmskpd(pand(a, b)) == 0, movmskpd(pandn(a, b)) == 0)
}
