//! Moving lanes: shuffles, unpacks, packs, blends, inserts, extensions.

use super::super::vec::V128;

/// PSHUFB: bytes chosen by the low four bits of the mask's, zero where its bit 7 is set.
#[inline(always)]
#[must_use]
pub fn pshufb(a: V128, mask: V128) -> V128 {
    // Bytes are gathered in registers: storing them singly would stall the next whole load.
    let a = a.u8s();
    let half = |m: u64| {
        let mut r = 0u64;
        for i in 0..8 {
            r |= u64::from(a[(m >> (8 * i) & 15) as usize]) << (8 * i);
        }
        let clear = (m >> 7 & 0x0101_0101_0101_0101) * 0xff;
        r & !clear
    };
    V128::from_halves(half(mask.low()), half(mask.high()))
}

#[inline(always)]
fn field(imm: u8, i: usize) -> usize {
    usize::from(imm >> (2 * i) & 3)
}

/// PSHUFD, VPERMILPS by immediate.
#[inline(always)]
#[must_use]
pub fn pshufd(a: V128, imm: u8) -> V128 {
    let a = a.u32s();
    V128::from_u32s([a[field(imm, 0)], a[field(imm, 1)], a[field(imm, 2)], a[field(imm, 3)]])
}

/// PSHUFLW
#[inline(always)]
#[must_use]
pub fn pshuflw(a: V128, imm: u8) -> V128 {
    let a = a.u16s();
    let f = |i| a[field(imm, i)];
    V128::from_u16s([f(0), f(1), f(2), f(3), a[4], a[5], a[6], a[7]])
}

/// PSHUFHW
#[inline(always)]
#[must_use]
pub fn pshufhw(a: V128, imm: u8) -> V128 {
    let a = a.u16s();
    let f = |i| a[4 + field(imm, i)];
    V128::from_u16s([a[0], a[1], a[2], a[3], f(0), f(1), f(2), f(3)])
}

/// SHUFPS
#[inline(always)]
#[must_use]
pub fn shufps(a: V128, b: V128, imm: u8) -> V128 {
    let (a, b) = (a.u32s(), b.u32s());
    V128::from_u32s([a[field(imm, 0)], a[field(imm, 1)], b[field(imm, 2)], b[field(imm, 3)]])
}

/// SHUFPD (VSHUFPD's high half takes `imm >> 2`).
#[inline(always)]
#[must_use]
pub fn shufpd(a: V128, b: V128, imm: u8) -> V128 {
    V128::from_u64s([a.u64_lane(usize::from(imm & 1)), b.u64_lane(usize::from(imm >> 1 & 1))])
}

macro_rules! unpack {
    ($($lo:ident $hi:ident $get:ident $from:ident $n:literal;)*) => {$(
        #[doc = concat!(stringify!($lo), ": lanes of the low halves, interleaved.")]
        #[inline(always)]
        #[must_use]
        pub fn $lo(a: V128, b: V128) -> V128 {
            let (a, b) = (a.$get(), b.$get());
            let mut r = a;
            for i in 0..$n / 2 {
                r[2 * i] = a[i];
                r[2 * i + 1] = b[i];
            }
            V128::$from(r)
        }
        #[doc = concat!(stringify!($hi), ": lanes of the high halves, interleaved.")]
        #[inline(always)]
        #[must_use]
        pub fn $hi(a: V128, b: V128) -> V128 {
            let (a, b) = (a.$get(), b.$get());
            let mut r = a;
            for i in 0..$n / 2 {
                r[2 * i] = a[$n / 2 + i];
                r[2 * i + 1] = b[$n / 2 + i];
            }
            V128::$from(r)
        }
    )*};
}

unpack! {
    punpcklbw punpckhbw u8s from_u8s 16;
    punpcklwd punpckhwd u16s from_u16s 8;
    punpckldq punpckhdq u32s from_u32s 4;
    punpcklqdq punpckhqdq u64s from_u64s 2;
}

macro_rules! pack {
    ($($name:ident $get:ident $from:ident $to:ty, $wide:ty, $n:literal;)*) => {$(
        #[doc = concat!(stringify!($name), ": lanes of `a`, then of `b`, saturated to `", stringify!($to), "`.")]
        #[inline(always)]
        #[must_use]
        pub fn $name(a: V128, b: V128) -> V128 {
            let (a, b) = (a.$get(), b.$get());
            let sat = |v: $wide| v.clamp(<$to>::MIN as $wide, <$to>::MAX as $wide) as $to;
            let mut r = <[$to; $n]>::default();
            for i in 0..$n / 2 {
                r[i] = sat(a[i]);
                r[i + $n / 2] = sat(b[i]);
            }
            V128::$from(r)
        }
    )*};
}

pack! {
    packsswb i16s from_i8s i8, i16, 16;
    packuswb i16s from_u8s u8, i16, 16;
    packssdw i32s from_i16s i16, i32, 8;
    packusdw i32s from_u16s u16, i32, 8;
}

macro_rules! extend {
    ($($name:ident $lane:ident $from:ident $to:ty, $n:literal;)*) => {$(
        #[doc = concat!(stringify!($name), " of the low lanes.")]
        #[inline(always)]
        #[must_use]
        pub fn $name(a: V128) -> V128 {
            let mut r = <[$to; $n]>::default();
            for (i, r) in r.iter_mut().enumerate() {
                *r = <$to>::from(a.$lane(i));
            }
            V128::$from(r)
        }
    )*};
}

extend! {
    pmovsxbw i8_lane from_i16s i16, 8;
    pmovsxbd i8_lane from_i32s i32, 4;
    pmovsxbq i8_lane from_i64s i64, 2;
    pmovsxwd i16_lane from_i32s i32, 4;
    pmovsxwq i16_lane from_i64s i64, 2;
    pmovsxdq i32_lane from_i64s i64, 2;
    pmovzxbw u8_lane from_u16s u16, 8;
    pmovzxbd u8_lane from_u32s u32, 4;
    pmovzxbq u8_lane from_u64s u64, 2;
    pmovzxwd u16_lane from_u32s u32, 4;
    pmovzxwq u16_lane from_u64s u64, 2;
    pmovzxdq u32_lane from_u64s u64, 2;
}

/// PBLENDW: words of `b` where `imm` has a one.
#[inline(always)]
#[must_use]
pub fn pblendw(a: V128, b: V128, imm: u8) -> V128 {
    let (mut a, b) = (a.u16s(), b.u16s());
    for i in 0..8 {
        a[i] = if imm >> i & 1 != 0 { b[i] } else { a[i] };
    }
    V128::from_u16s(a)
}

/// BLENDPS, VPBLENDD: 32-bit lanes of `b` where `imm` has a one.
#[inline(always)]
#[must_use]
pub fn blendps(a: V128, b: V128, imm: u8) -> V128 {
    let (mut a, b) = (a.u32s(), b.u32s());
    for i in 0..4 {
        a[i] = if imm >> i & 1 != 0 { b[i] } else { a[i] };
    }
    V128::from_u32s(a)
}

/// BLENDPD
#[inline(always)]
#[must_use]
pub fn blendpd(a: V128, b: V128, imm: u8) -> V128 {
    V128::from_u64s([
        if imm & 1 != 0 { b.low() } else { a.low() },
        if imm & 2 != 0 { b.high() } else { a.high() },
    ])
}

macro_rules! blendv {
    ($($name:ident $get:ident $from:ident $sget:ident;)*) => {$(
        #[doc = concat!(stringify!($name), ": lanes of `b` where the mask lane's top bit is set.")]
        #[inline(always)]
        #[must_use]
        pub fn $name(a: V128, b: V128, mask: V128) -> V128 {
            let (mut a, b, m) = (a.$get(), b.$get(), mask.$sget());
            for i in 0..a.len() {
                a[i] = if m[i] < 0 { b[i] } else { a[i] };
            }
            V128::$from(a)
        }
    )*};
}

blendv! {
    pblendvb u8s from_u8s i8s;
    blendvps u32s from_u32s i32s;
    blendvpd u64s from_u64s i64s;
}

/// INSERTPS with its source lane already chosen (`imm` bits 6 and 7 choose it from a
/// register; a memory source is the lane itself): the lane goes to position `imm` bits 4
/// and 5, then lanes are zeroed by bits 0 to 3.
#[inline]
#[must_use]
pub fn insertps(a: V128, lane: u32, imm: u8) -> V128 {
    let mut r = a.u32s();
    r[usize::from(imm >> 4 & 3)] = lane;
    for (i, r) in r.iter_mut().enumerate() {
        if imm >> i & 1 != 0 {
            *r = 0;
        }
    }
    V128::from_u32s(r)
}

/// MOVDDUP
#[inline(always)]
#[must_use]
pub fn movddup(a: V128) -> V128 {
    V128::from_halves(a.low(), a.low())
}

/// MOVSLDUP
#[inline(always)]
#[must_use]
pub fn movsldup(a: V128) -> V128 {
    pshufd(a, 0xa0)
}

/// MOVSHDUP
#[inline(always)]
#[must_use]
pub fn movshdup(a: V128) -> V128 {
    pshufd(a, 0xf5)
}

/// VPERMILPS by register: each 32-bit lane chosen by the low two bits of the control's.
#[inline(always)]
#[must_use]
pub fn vpermilps(a: V128, control: V128) -> V128 {
    let a = a.u32s();
    V128::from_u32s(control.u32s().map(|c| a[(c & 3) as usize]))
}

/// VPERMILPD by register: each 64-bit lane chosen by bit 1 of the control's.
#[inline(always)]
#[must_use]
pub fn vpermilpd(a: V128, control: V128) -> V128 {
    let a = a.u64s();
    V128::from_u64s(control.u64s().map(|c| a[(c >> 1 & 1) as usize]))
}

/// VPERMILPD by immediate (the high half of 256 bits takes `imm >> 2`).
#[inline(always)]
#[must_use]
pub fn vpermilpd_imm(a: V128, imm: u8) -> V128 {
    shufpd(a, a, imm)
}

/// MASKMOVDQU: the bytes to be stored, those whose
/// mask byte has bit 7 set, as a bit set.
#[inline(always)]
#[must_use]
pub fn byte_mask(mask: V128) -> u32 {
    super::arith::pmovmskb(mask)
}
