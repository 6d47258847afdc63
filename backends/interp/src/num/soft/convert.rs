//! Conversions between formats, to and from integers, and rounding to an integral value.

use super::arith::{normal_round, round};
use super::format::{F16, F80, Format, Kind, Num};
use super::{Env, Round, flag, nan1, operand};

/// Converts to another format: CVTSS2SD, CVTSD2SS, FLD and FST of memory reals.
/// FST does not report denormal operands; the others do.
pub fn convert<S: Format, D: Format>(env: &mut Env, x: S) -> D {
    let n = operand(env, x);
    if let Some(r) = nan1(env, n) {
        return r;
    }
    if !S::X87 {
        env.denormal(n);
    }
    match n.kind {
        Kind::Normal | Kind::Denormal => round(env, D::PREC, n.sign, n.exp, u128::from(n.sig) << 64),
        _ => D::pack(n),
    }
}

/// The m32 or m64 operand of an x87 arithmetic instruction or comparison (FADD m32 and so
/// on, not FLD), exactly. A signalling NaN stays one, and a denormal is remembered in `env`, so
/// that the operation done next with the same `env` reports both as its own operand's.
pub fn widen<S: Format>(env: &mut Env, x: S) -> F80 {
    let mut n = x.unpack();
    env.narrow_denormal = n.kind == Kind::Denormal;
    if env.narrow_denormal {
        n.kind = Kind::Normal;
    }
    F80::pack(n)
}

/// VCVTPH2PS: denormals are numbers whatever DAZ says, and raise nothing.
pub fn f16_to<D: Format>(env: &mut Env, x: F16) -> D {
    let n = x.unpack();
    if let Some(r) = nan1(env, n) {
        return r;
    }
    match n.kind {
        Kind::Normal | Kind::Denormal => round(env, D::PREC, n.sign, n.exp, u128::from(n.sig) << 64),
        _ => D::pack(n),
    }
}

/// VCVTPS2PH: honours DAZ for its source, ignores FTZ.
pub fn to_f16<S: Format>(env: &mut Env, x: S) -> F16 {
    let ftz = core::mem::replace(&mut env.ftz, false);
    let r = convert(env, x);
    env.ftz = ftz;
    r
}

/// CVTSI2SS and SD with a 32-bit source, FILD m16 and m32.
pub fn from_i32<D: Format>(env: &mut Env, v: i32) -> D {
    from_i64(env, i64::from(v))
}

/// CVTSI2SS and SD with a 64-bit source, FILD m64.
pub fn from_i64<D: Format>(env: &mut Env, v: i64) -> D {
    if v == 0 {
        return D::pack(Num::zero(false));
    }
    normal_round(env, D::PREC, v < 0, 63, u128::from(v.unsigned_abs()) << 64)
}

/// The magnitude of a finite number rounded to an integer, with (inexact, rounded up).
/// Magnitudes from `2^64` on are reported as `None`.
pub(crate) fn integer(n: Num, mode: Round) -> Option<(u64, bool, bool)> {
    if n.kind == Kind::Zero {
        return Some((0, false, false));
    }
    if n.exp > 63 {
        return None;
    }
    // Fixed point with 64 fraction bits.
    let fixed = super::arith::shr_sticky(u128::from(n.sig) << 64, (63 - n.exp) as u32);
    let (int, frac) = ((fixed >> 64) as u64, fixed as u64);
    const HALF: u64 = 1 << 63;
    let up = match mode {
        Round::Nearest => frac > HALF || (frac == HALF && int & 1 != 0),
        Round::Down => n.sign && frac != 0,
        Round::Up => !n.sign && frac != 0,
        Round::Zero => false,
    };
    int.checked_add(u64::from(up)).map(|i| (i, frac != 0, up))
}

fn to_int<S: Format>(env: &mut Env, x: S, bits: u32, mode: Round) -> i64 {
    let indefinite = i64::MIN >> (64 - bits);
    let n = operand(env, x);
    if n.kind >= Kind::Inf {
        env.raise(flag::IE);
        return indefinite;
    }
    let limit = (1u64 << (bits - 1)) - u64::from(!n.sign);
    match integer(n, mode) {
        Some((i, inexact, up)) if i <= limit => {
            if inexact {
                env.raise(flag::PE | if up { flag::C1 } else { 0 });
            }
            if n.sign { (i as i64).wrapping_neg() } else { i as i64 }
        }
        _ => {
            env.raise(flag::IE);
            indefinite
        }
    }
}

/// FIST m16. `truncate` for FISTTP, else the environment's rounding.
pub fn to_i16<S: Format>(env: &mut Env, x: S, truncate: bool) -> i16 {
    let mode = if truncate { Round::Zero } else { env.round };
    to_int(env, x, 16, mode) as i16
}

/// CVT(T)Sx2SI with a 32-bit destination, FIST m32.
pub fn to_i32<S: Format>(env: &mut Env, x: S, truncate: bool) -> i32 {
    let mode = if truncate { Round::Zero } else { env.round };
    to_int(env, x, 32, mode) as i32
}

/// CVT(T)Sx2SI with a 64-bit destination, FIST m64.
pub fn to_i64<S: Format>(env: &mut Env, x: S, truncate: bool) -> i64 {
    let mode = if truncate { Round::Zero } else { env.round };
    to_int(env, x, 64, mode)
}

/// Rounds to an integral value in the same format: ROUNDxx (which never reports a denormal,
/// and inexact only if `report`).
pub fn round_to_int<F: Format>(env: &mut Env, x: F, mode: Round, report: bool) -> F {
    let n = operand(env, x);
    if let Some(r) = nan1(env, n) {
        return r;
    }
    integral(env, n, mode, report)
}

/// FRNDINT.
pub fn frndint(env: &mut Env, x: F80) -> F80 {
    let n = x.unpack();
    if let Some(r) = nan1(env, n) {
        return r;
    }
    env.denormal(n);
    let mode = env.round;
    integral(env, n, mode, true)
}

fn integral<F: Format>(env: &mut Env, n: Num, mode: Round, report: bool) -> F {
    if n.kind == Kind::Zero || n.kind == Kind::Inf || n.exp >= F::PREC as i32 - 1 {
        return F::pack(n);
    }
    let (i, inexact, up) = integer(n, mode).unwrap_or((0, false, false));
    if inexact && report {
        env.raise(flag::PE | if up { flag::C1 } else { 0 });
    }
    if i == 0 {
        return F::pack(Num::zero(n.sign));
    }
    let lz = i.leading_zeros();
    F::pack(Num { sign: n.sign, kind: Kind::Normal, exp: 63 - lz as i32, sig: i << lz })
}
