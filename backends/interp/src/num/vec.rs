//! Vector register values. Bytes are kept in the guest's (little-endian) order on every
//! host, so lane `i` of width `w` is bits `i*w ..` of the register, and a load or store is
//! a plain copy. Lane accessors turn into single vector moves on little-endian hosts.

/// The value of an XMM register, as its 16 bytes in memory order.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
#[repr(C, align(16))]
pub struct V128(pub [u8; 16]);

/// The value of a YMM register.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
#[repr(C, align(16))]
pub struct V256 {
    /// Bits 0..128: the XMM register.
    pub lo: V128,
    /// Bits 128..256.
    pub hi: V128,
}

impl core::fmt::Debug for V128 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:032x}", self.to_u128())
    }
}

impl core::fmt::Debug for V256 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}{:?}", self.hi, self.lo)
    }
}

macro_rules! lanes {
    ($($get:ident $from:ident $lane:ident $with:ident $ty:ty, $n:literal, $w:literal;)*) => {$(
        #[doc = concat!("The value as ", stringify!($n), " lanes of `", stringify!($ty), "`.")]
        #[inline(always)]
        #[must_use]
        pub fn $get(self) -> [$ty; $n] {
            let mut r = [<$ty>::default(); $n];
            let mut i = 0;
            while i < $n {
                let mut b = [0u8; $w];
                b.copy_from_slice(&self.0[i * $w..i * $w + $w]);
                r[i] = <$ty>::from_le_bytes(b);
                i += 1;
            }
            r
        }
        #[doc = concat!("A value from ", stringify!($n), " lanes of `", stringify!($ty), "`.")]
        #[inline(always)]
        #[must_use]
        pub fn $from(v: [$ty; $n]) -> V128 {
            let mut r = [0u8; 16];
            let mut i = 0;
            while i < $n {
                r[i * $w..i * $w + $w].copy_from_slice(&v[i].to_le_bytes());
                i += 1;
            }
            V128(r)
        }
        #[doc = concat!("Lane `i` (modulo the lane count) as `", stringify!($ty), "`.")]
        #[inline(always)]
        #[must_use]
        pub fn $lane(self, i: usize) -> $ty {
            let i = (i % $n) * $w;
            let mut b = [0u8; $w];
            b.copy_from_slice(&self.0[i..i + $w]);
            <$ty>::from_le_bytes(b)
        }
        #[doc = concat!("The value with lane `i` (modulo the lane count) replaced, as `", stringify!($ty), "`.")]
        #[inline(always)]
        #[must_use]
        pub fn $with(mut self, i: usize, v: $ty) -> V128 {
            let i = (i % $n) * $w;
            self.0[i..i + $w].copy_from_slice(&v.to_le_bytes());
            self
        }
    )*};
}

impl V128 {
    /// All bits clear.
    pub const ZERO: V128 = V128([0; 16]);

    lanes! {
        u8s from_u8s u8_lane with_u8 u8, 16, 1;
        i8s from_i8s i8_lane with_i8 i8, 16, 1;
        u16s from_u16s u16_lane with_u16 u16, 8, 2;
        i16s from_i16s i16_lane with_i16 i16, 8, 2;
        u32s from_u32s u32_lane with_u32 u32, 4, 4;
        i32s from_i32s i32_lane with_i32 i32, 4, 4;
        u64s from_u64s u64_lane with_u64 u64, 2, 8;
        i64s from_i64s i64_lane with_i64 i64, 2, 8;
        f32s from_f32s f32_lane with_f32 f32, 4, 4;
        f64s from_f64s f64_lane with_f64 f64, 2, 8;
    }

    /// The register as one number.
    #[inline(always)]
    #[must_use]
    pub fn to_u128(self) -> u128 {
        u128::from_le_bytes(self.0)
    }

    /// A register from one number.
    #[inline(always)]
    #[must_use]
    pub fn from_u128(v: u128) -> V128 {
        V128(v.to_le_bytes())
    }

    /// Bits 0..64.
    #[inline(always)]
    #[must_use]
    pub fn low(self) -> u64 {
        self.u64_lane(0)
    }

    /// Bits 64..128.
    #[inline(always)]
    #[must_use]
    pub fn high(self) -> u64 {
        self.u64_lane(1)
    }

    /// A register from its low and high halves.
    #[inline(always)]
    #[must_use]
    pub fn from_halves(low: u64, high: u64) -> V128 {
        V128::from_u64s([low, high])
    }
}

impl V256 {
    /// All bits clear.
    pub const ZERO: V256 = V256 { lo: V128::ZERO, hi: V128::ZERO };

    /// A register from its halves.
    #[inline(always)]
    #[must_use]
    pub fn new(lo: V128, hi: V128) -> V256 {
        V256 { lo, hi }
    }

    /// The same 128-bit function on both halves: how AVX2 widens most of SSE.
    #[inline(always)]
    #[must_use]
    pub fn map(self, f: impl Fn(V128) -> V128) -> V256 {
        V256 { lo: f(self.lo), hi: f(self.hi) }
    }

    /// The same two-operand 128-bit function on both halves.
    #[inline(always)]
    #[must_use]
    pub fn zip(self, b: V256, f: impl Fn(V128, V128) -> V128) -> V256 {
        V256 { lo: f(self.lo, b.lo), hi: f(self.hi, b.hi) }
    }

    /// The register as eight 32-bit lanes.
    #[inline(always)]
    #[must_use]
    pub fn u32s(self) -> [u32; 8] {
        let (a, b) = (self.lo.u32s(), self.hi.u32s());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
    }

    /// A register from eight 32-bit lanes.
    #[inline(always)]
    #[must_use]
    pub fn from_u32s(v: [u32; 8]) -> V256 {
        V256 { lo: V128::from_u32s([v[0], v[1], v[2], v[3]]), hi: V128::from_u32s([v[4], v[5], v[6], v[7]]) }
    }

    /// The register as four 64-bit lanes.
    #[inline(always)]
    #[must_use]
    pub fn u64s(self) -> [u64; 4] {
        [self.lo.low(), self.lo.high(), self.hi.low(), self.hi.high()]
    }

    /// A register from four 64-bit lanes.
    #[inline(always)]
    #[must_use]
    pub fn from_u64s(v: [u64; 4]) -> V256 {
        V256 { lo: V128::from_u64s([v[0], v[1]]), hi: V128::from_u64s([v[2], v[3]]) }
    }
}
