//! Conversions: CVTxx2yy in all forms.

use super::super::soft::{self, Env, F16, F32, F64};
use super::super::vec::{V128, V256};
use super::scalar::plain;
use super::{Float, Mxcsr, Sse};

/// CVTSS2SD.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn cvtss2sd(mx: &mut Mxcsr, a: u32) -> Sse<u64> {
    if plain::<f32>(a) {
        return Ok(f64::from(f32::from_bits(a)).to_bits());
    }
    mx.soft(move |env| soft::convert::<F32, F64>(env, F32(a)).0)
}

/// CVTSD2SS.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn cvtsd2ss(mx: &mut Mxcsr, a: u64) -> Sse<u32> {
    if mx.fast() && <f64 as Float>::normal(a) {
        let r = (f64::from_bits(a) as f32).to_bits();
        if <f32 as Float>::normal(r) {
            return Ok(r);
        }
    }
    mx.soft(move |env| soft::convert::<F64, F32>(env, F64(a)).0)
}

/// CVTSI2SD with a 32-bit source: always exact.
#[inline(always)]
#[must_use]
pub fn cvtsi2sd32(v: i32) -> u64 {
    f64::from(v).to_bits()
}

/// CVTSI2SD with a 64-bit source.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn cvtsi2sd64(mx: &mut Mxcsr, v: i64) -> Sse<u64> {
    if mx.fast() || v.unsigned_abs() <= 1 << 53 {
        return Ok((v as f64).to_bits());
    }
    mx.soft(move |env| soft::from_i64::<F64>(env, v).0)
}

/// CVTSI2SS with a 32-bit source.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn cvtsi2ss32(mx: &mut Mxcsr, v: i32) -> Sse<u32> {
    if mx.fast() || v.unsigned_abs() <= 1 << 24 {
        return Ok((v as f32).to_bits());
    }
    mx.soft(move |env| soft::from_i32::<F32>(env, v).0)
}

/// CVTSI2SS with a 64-bit source.
///
/// # Errors
/// On an unmasked exception.
#[inline(always)]
pub fn cvtsi2ss64(mx: &mut Mxcsr, v: i64) -> Sse<u32> {
    if mx.fast() || v.unsigned_abs() <= 1 << 24 {
        return Ok((v as f32).to_bits());
    }
    mx.soft(move |env| soft::from_i64::<F32>(env, v).0)
}

#[inline(always)]
fn int32<F: Float + Into<f64>>(mx: &mut Mxcsr, a: F::Bits, truncate: bool) -> Sse<i32> {
    if mx.fast() && plain::<F>(a) {
        let x: f64 = F::of(a).into();
        let x = if truncate { x } else { x.round_ties_even() };
        if x > -2147483649.0 && x < 2147483648.0 {
            return Ok(x as i32);
        }
    }
    mx.soft(move |env| soft::to_i32(env, F::to_soft(a), truncate))
}

#[inline(always)]
fn int64<F: Float + Into<f64>>(mx: &mut Mxcsr, a: F::Bits, truncate: bool) -> Sse<i64> {
    if mx.fast() && plain::<F>(a) {
        let x: f64 = F::of(a).into();
        let x = if truncate { x } else { x.round_ties_even() };
        if x.abs() < 9_223_372_036_854_775_808.0 {
            return Ok(x as i64);
        }
    }
    mx.soft(move |env| soft::to_i64(env, F::to_soft(a), truncate))
}

macro_rules! to_int {
    ($($name:ident $f:ident $t:ty, $bits:ty, $r:ty, $trunc:literal;)*) => {$(
        #[doc = concat!(stringify!($name), ": scalar to integer register.\n\n# Errors\nOn an unmasked exception.")]
        #[inline(always)]
        pub fn $name(mx: &mut Mxcsr, a: $bits) -> Sse<$r> {
            $f::<$t>(mx, a, $trunc)
        }
    )*};
}

to_int! {
    cvtss2si32 int32 f32, u32, i32, false;
    cvtss2si64 int64 f32, u32, i64, false;
    cvttss2si32 int32 f32, u32, i32, true;
    cvttss2si64 int64 f32, u32, i64, true;
    cvtsd2si32 int32 f64, u64, i32, false;
    cvtsd2si64 int64 f64, u64, i64, false;
    cvttsd2si32 int32 f64, u64, i32, true;
    cvttsd2si64 int64 f64, u64, i64, true;
}

/// Lanewise conversion with the flags of all lanes taken together.
#[inline(never)]
fn lanes<A: Copy, B: Copy + Default, const N: usize>(
    mx: &mut Mxcsr,
    a: [A; N],
    f: impl Fn(&mut Env, A) -> B,
) -> Sse<[B; N]> {
    let mut env = mx.env();
    let mut r = [B::default(); N];
    for i in 0..N {
        r[i] = f(&mut env, a[i]);
    }
    mx.retire(env)?;
    Ok(r)
}

/// CVTDQ2PS, CVTPI2PS lanes: 32-bit integers to singles.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn i32_to_f32<const N: usize>(mx: &mut Mxcsr, a: [i32; N]) -> Sse<[u32; N]> {
    if mx.fast() {
        return Ok(a.map(|v| (v as f32).to_bits()));
    }
    lanes(mx, a, move |env, v| soft::from_i32::<F32>(env, v).0)
}

/// CVT(T)PS2DQ, CVT(T)PS2PI lanes: singles to 32-bit integers.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn f32_to_i32<const N: usize>(mx: &mut Mxcsr, a: [u32; N], truncate: bool) -> Sse<[i32; N]> {
    if mx.fast() {
        let mut r = [0; N];
        let mut ok = true;
        for i in 0..N {
            let x = f32::from_bits(a[i]);
            ok &= plain::<f32>(a[i]) & (x.abs() < 2147483648.0);
            r[i] = if truncate { x } else { x.round_ties_even() } as i32;
        }
        if ok {
            return Ok(r);
        }
    }
    lanes(mx, a, move |env, v| soft::to_i32(env, F32(v), truncate))
}

/// CVT(T)PD2DQ, CVT(T)PD2PI lanes: doubles to 32-bit integers.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn f64_to_i32<const N: usize>(mx: &mut Mxcsr, a: [u64; N], truncate: bool) -> Sse<[i32; N]> {
    lanes(mx, a, move |env, v| soft::to_i32(env, F64(v), truncate))
}

/// CVTPS2PD lanes.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn f32_to_f64<const N: usize>(mx: &mut Mxcsr, a: [u32; N]) -> Sse<[u64; N]> {
    if a.iter().all(|&v| plain::<f32>(v)) {
        return Ok(a.map(|v| f64::from(f32::from_bits(v)).to_bits()));
    }
    lanes(mx, a, move |env, v| soft::convert::<F32, F64>(env, F32(v)).0)
}

/// CVTPD2PS lanes.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn f64_to_f32<const N: usize>(mx: &mut Mxcsr, a: [u64; N]) -> Sse<[u32; N]> {
    if mx.fast() {
        let r = a.map(|v| (f64::from_bits(v) as f32).to_bits());
        let ok = |i: usize| <f64 as Float>::normal(a[i]) && <f32 as Float>::normal(r[i]);
        if (0..N).all(ok) {
            return Ok(r);
        }
    }
    lanes(mx, a, move |env, v| soft::convert::<F64, F32>(env, F64(v)).0)
}

/// CVTDQ2PD, CVTPI2PD lanes: always exact.
#[inline]
#[must_use]
pub fn i32_to_f64<const N: usize>(a: [i32; N]) -> [u64; N] {
    a.map(cvtsi2sd32)
}

/// CVTDQ2PS.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn cvtdq2ps(mx: &mut Mxcsr, a: V128) -> Sse<V128> {
    Ok(V128::from_u32s(i32_to_f32(mx, a.i32s())?))
}

/// VCTDQ2PS on 256 bits.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn vcvtdq2ps(mx: &mut Mxcsr, a: V256) -> Sse<V256> {
    Ok(V256::from_u32s(i32_to_f32(mx, a.u32s().map(|v| v as i32))?))
}

/// CVT(T)PS2DQ.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn cvtps2dq(mx: &mut Mxcsr, a: V128, truncate: bool) -> Sse<V128> {
    Ok(V128::from_i32s(f32_to_i32(mx, a.u32s(), truncate)?))
}

/// VCVT(T)PS2DQ on 256 bits.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn vcvtps2dq(mx: &mut Mxcsr, a: V256, truncate: bool) -> Sse<V256> {
    Ok(V256::from_u32s(f32_to_i32(mx, a.u32s(), truncate)?.map(|v| v as u32)))
}

/// CVTDQ2PD (low two integers).
#[inline]
#[must_use]
pub fn cvtdq2pd(a: V128) -> V128 {
    V128::from_u64s(i32_to_f64([a.i32_lane(0), a.i32_lane(1)]))
}

/// VCVTDQ2PD to 256 bits.
#[inline]
#[must_use]
pub fn vcvtdq2pd(a: V128) -> V256 {
    V256::from_u64s(i32_to_f64(a.i32s()))
}

/// CVT(T)PD2DQ; the upper half is zeroed.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn cvtpd2dq(mx: &mut Mxcsr, a: V128, truncate: bool) -> Sse<V128> {
    let r = f64_to_i32(mx, a.u64s(), truncate)?;
    Ok(V128::from_i32s([r[0], r[1], 0, 0]))
}

/// VCVT(T)PD2DQ from 256 bits.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn vcvtpd2dq(mx: &mut Mxcsr, a: V256, truncate: bool) -> Sse<V128> {
    Ok(V128::from_i32s(f64_to_i32(mx, a.u64s(), truncate)?))
}

/// CVTPS2PD (low two singles).
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn cvtps2pd(mx: &mut Mxcsr, a: V128) -> Sse<V128> {
    Ok(V128::from_u64s(f32_to_f64(mx, [a.u32_lane(0), a.u32_lane(1)])?))
}

/// VCVTPS2PD to 256 bits.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn vcvtps2pd(mx: &mut Mxcsr, a: V128) -> Sse<V256> {
    Ok(V256::from_u64s(f32_to_f64(mx, a.u32s())?))
}

/// CVTPD2PS; the upper half is zeroed.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn cvtpd2ps(mx: &mut Mxcsr, a: V128) -> Sse<V128> {
    let r = f64_to_f32(mx, a.u64s())?;
    Ok(V128::from_u32s([r[0], r[1], 0, 0]))
}

/// VCVTPD2PS from 256 bits.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn vcvtpd2ps(mx: &mut Mxcsr, a: V256) -> Sse<V128> {
    Ok(V128::from_u32s(f64_to_f32(mx, a.u64s())?))
}

/// VCVTPH2PS lanes.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn f16_to_f32<const N: usize>(mx: &mut Mxcsr, a: [u16; N]) -> Sse<[u32; N]> {
    lanes(mx, a, move |env, v| soft::convert::f16_to::<F32>(env, F16(v)).0)
}

/// VCVTPS2PH lanes; `imm` bit 2 takes MXCSR's rounding, else bits 0 and 1 do.
///
/// # Errors
/// On an unmasked exception.
#[inline]
pub fn f32_to_f16<const N: usize>(mx: &mut Mxcsr, a: [u32; N], imm: u8) -> Sse<[u16; N]> {
    lanes(mx, a, move |env, v| {
        if imm & 4 == 0 {
            env.round = soft::Round::from_rc(u32::from(imm));
        }
        soft::convert::to_f16(env, F32(v)).0
    })
}
