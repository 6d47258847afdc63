//! Rounding, and the operations that need it: add, subtract, multiply, divide, square root,
//! fused multiply-add.

use super::format::{Format, Kind, Num};
use super::{Env, Round, flag, nan1, nan2, operand};

/// Added to or taken from the exponent of an x87 result whose underflow or overflow is
/// unmasked.
const BIAS_ADJUST: i32 = 24576;

/// Right shift that keeps "something was lost" in bit 0.
#[inline(always)]
pub(crate) fn shr_sticky(v: u128, n: u32) -> u128 {
    if n == 0 {
        v
    } else if n >= 128 {
        u128::from(v != 0)
    } else {
        (v >> n) | u128::from(v << (128 - n) != 0)
    }
}

/// Whether the discarded part `rest` (its top bit is the half) rounds the magnitude up.
#[inline(always)]
fn rounds_up(round: Round, sign: bool, odd: bool, rest: u128) -> bool {
    const HALF: u128 = 1 << 127;
    match round {
        Round::Nearest => rest > HALF || (rest == HALF && odd),
        Round::Down => sign && rest != 0,
        Round::Up => !sign && rest != 0,
        Round::Zero => false,
    }
}

/// Rounds `(-1)^sign * sig/2^127 * 2^exp` (bit 127 of `sig` set, bit 0 sticky) into `F`.
/// `prec` is `F::PREC` or less.
#[inline]
pub(crate) fn round<F: Format>(env: &mut Env, prec: u32, sign: bool, exp: i32, sig: u128) -> F {
    debug_assert!(sig >> 127 == 1);
    let keep = (sig >> (128 - prec)) as u64;
    let rest = sig << prec;
    let up = rounds_up(env.round, sign, keep & 1 != 0, rest);
    // `prec` may be 64, so the carry out is a wrap to zero.
    let mut e = exp;
    let mut s = (keep << (64 - prec)).wrapping_add(u64::from(up) << (64 - prec));
    if s == 0 {
        s = 1 << 63;
        e += 1;
    }
    if e < F::EMIN || e > F::EMAX {
        return out_of_range::<F>(env, prec, Exact { sign, exp, sig }, Rounded { e, s, up });
    }
    if rest != 0 {
        env.raise(flag::PE | if up { flag::C1 } else { 0 });
    }
    F::pack(Num { sign, kind: Kind::Normal, exp: e, sig: s })
}

struct Exact {
    sign: bool,
    exp: i32,
    sig: u128,
}

struct Rounded {
    e: i32,
    s: u64,
    up: bool,
}

#[cold]
fn out_of_range<F: Format>(env: &mut Env, prec: u32, x: Exact, r: Rounded) -> F {
    let sign = x.sign;
    let inexact = x.sig << prec != 0;
    let tiny = r.e < F::EMIN;
    let which = if tiny { flag::UE } else { flag::OE };
    if !env.masked(which) {
        env.raise(which);
        if inexact {
            env.raise(flag::PE | if r.up { flag::C1 } else { 0 });
        }
        let exp = if tiny { r.e + BIAS_ADJUST } else { r.e - BIAS_ADJUST };
        // Only scaling gets so far out that the adjusted exponent does not fit either.
        if F::X87 && exp > F::EMAX {
            env.raise(flag::PE | flag::C1);
            return F::pack(Num::inf(sign));
        }
        if F::X87 && exp < F::EMIN {
            env.raise(flag::PE);
            return F::pack(Num::zero(sign));
        }
        return F::pack(Num { sign, kind: Kind::Normal, exp, sig: r.s });
    }
    if tiny {
        if env.ftz {
            env.raise(flag::UE | flag::PE);
            return F::pack(Num::zero(sign));
        }
        let sig = shr_sticky(x.sig, (F::EMIN - x.exp) as u32);
        let keep = (sig >> (128 - prec)) as u64;
        let rest = sig << prec;
        let up = rounds_up(env.round, sign, keep & 1 != 0, rest);
        let s = (keep << (64 - prec)) + (u64::from(up) << (64 - prec));
        if rest != 0 {
            env.raise(flag::UE | flag::PE | if up { flag::C1 } else { 0 });
        }
        return F::pack(Num { sign, kind: Kind::Normal, exp: F::EMIN, sig: s });
    }
    env.raise(flag::OE | flag::PE);
    let to_inf = match env.round {
        Round::Nearest => true,
        Round::Down => sign,
        Round::Up => !sign,
        Round::Zero => false,
    };
    if to_inf {
        env.raise(flag::C1);
        F::pack(Num::inf(sign))
    } else {
        let s = u64::MAX << (64 - prec);
        F::pack(Num { sign, kind: Kind::Normal, exp: F::EMAX, sig: s })
    }
}

/// Normalises and rounds; `sig` must not be zero, its bit 127 has weight `2^exp`.
#[inline(always)]
pub(crate) fn normal_round<F: Format>(env: &mut Env, prec: u32, sign: bool, exp: i32, sig: u128) -> F {
    let lz = sig.leading_zeros();
    round(env, prec, sign, exp - lz as i32, sig << lz)
}

#[inline(always)]
pub(crate) fn prec<F: Format>(env: &Env) -> u32 {
    if F::X87 { env.prec } else { F::PREC }
}

/// `a + b`.
pub fn add<F: Format>(env: &mut Env, a: F, b: F) -> F {
    let (a, b) = (operand(env, a), operand(env, b));
    add_num(env, a, b, b.sign)
}

/// `a - b`.
pub fn sub<F: Format>(env: &mut Env, a: F, b: F) -> F {
    let (a, b) = (operand(env, a), operand(env, b));
    add_num(env, a, b, !b.sign)
}

#[inline]
fn add_num<F: Format>(env: &mut Env, a: Num, mut b: Num, b_sign: bool) -> F {
    if let Some(r) = nan2(env, a, b) {
        return r;
    }
    b.sign = b_sign;
    if a.kind == Kind::Inf || b.kind == Kind::Inf {
        if a.kind == b.kind && a.sign != b.sign {
            return env.invalid();
        }
        env.denormal(a);
        env.denormal(b);
        return F::pack(Num::inf(if a.kind == Kind::Inf { a.sign } else { b.sign }));
    }
    env.denormal(a);
    env.denormal(b);
    let p = prec::<F>(env);
    if a.kind == Kind::Zero && b.kind == Kind::Zero {
        let sign = if a.sign == b.sign { a.sign } else { env.round == Round::Down };
        return F::pack(Num::zero(sign));
    }
    if b.kind == Kind::Zero {
        return round(env, p, a.sign, a.exp, u128::from(a.sig) << 64);
    }
    if a.kind == Kind::Zero {
        return round(env, p, b.sign, b.exp, u128::from(b.sig) << 64);
    }
    match sum(a.sign, a.exp, u128::from(a.sig) << 63, b.sign, b.exp, u128::from(b.sig) << 63) {
        None => F::pack(Num::zero(env.round == Round::Down)),
        Some((sign, exp, sig)) => normal_round(env, p, sign, exp + 1, sig),
    }
}

/// Sum of two numbers given with bit 126 set (weight `2^exp`), or `None` for an exact zero.
/// Bit 126 of the result has weight `2^` of the returned exponent.
#[inline(always)]
fn sum(a_sign: bool, a_exp: i32, a: u128, b_sign: bool, b_exp: i32, b: u128) -> Option<(bool, i32, u128)> {
    let a_bigger = a_exp > b_exp || (a_exp == b_exp && a >= b);
    let (s, e, x, y, d) =
        if a_bigger { (a_sign, a_exp, a, b, a_exp - b_exp) } else { (b_sign, b_exp, b, a, b_exp - a_exp) };
    let y = shr_sticky(y, d as u32);
    if a_sign == b_sign {
        return Some((s, e, x + y));
    }
    let r = x - y;
    if r == 0 { None } else { Some((s, e, r)) }
}

/// `a * b`.
pub fn mul<F: Format>(env: &mut Env, a: F, b: F) -> F {
    let (a, b) = (operand(env, a), operand(env, b));
    if let Some(r) = nan2(env, a, b) {
        return r;
    }
    let sign = a.sign != b.sign;
    let zero = a.kind == Kind::Zero || b.kind == Kind::Zero;
    let inf = a.kind == Kind::Inf || b.kind == Kind::Inf;
    if zero && inf {
        return env.invalid();
    }
    env.denormal(a);
    env.denormal(b);
    if inf {
        return F::pack(Num::inf(sign));
    }
    if zero {
        return F::pack(Num::zero(sign));
    }
    let p = prec::<F>(env);
    normal_round(env, p, sign, a.exp + b.exp + 1, u128::from(a.sig) * u128::from(b.sig))
}

/// `a / b`.
pub fn div<F: Format>(env: &mut Env, a: F, b: F) -> F {
    let (a, b) = (operand(env, a), operand(env, b));
    if let Some(r) = nan2(env, a, b) {
        return r;
    }
    let sign = a.sign != b.sign;
    match (a.kind, b.kind) {
        (Kind::Inf, Kind::Inf) | (Kind::Zero, Kind::Zero) => return env.invalid(),
        (Kind::Inf, _) => {
            env.denormal(b);
            return F::pack(Num::inf(sign));
        }
        (_, Kind::Inf) => {
            env.denormal(a);
            return F::pack(Num::zero(sign));
        }
        (Kind::Zero, _) => {
            env.denormal(b);
            return F::pack(Num::zero(sign));
        }
        (_, Kind::Zero) => {
            env.raise(flag::ZE);
            return F::pack(Num::inf(sign));
        }
        _ => {}
    }
    env.denormal(a);
    env.denormal(b);
    let (x, y) = (u128::from(a.sig), u128::from(b.sig));
    let (q1, r1) = ((x << 63) / y, (x << 63) % y);
    let (q2, r2) = ((r1 << 64) / y, (r1 << 64) % y);
    let p = prec::<F>(env);
    normal_round(env, p, sign, a.exp - b.exp, q1 << 64 | q2 | u128::from(r2 != 0))
}

/// Square root.
pub fn sqrt<F: Format>(env: &mut Env, a: F) -> F {
    let a = operand(env, a);
    if let Some(r) = nan1(env, a) {
        return r;
    }
    if a.kind == Kind::Zero {
        return F::pack(a);
    }
    if a.sign {
        return env.invalid();
    }
    env.denormal(a);
    if a.kind == Kind::Inf {
        return F::pack(a);
    }
    let odd = a.exp & 1 != 0;
    let n = u128::from(a.sig) << if odd { 64 } else { 63 };
    let root = n.isqrt();
    let rem = n - root * root;
    // The next bit of the root is set just when the remainder exceeds it.
    let sig = root << 64 | u128::from(rem > root) << 63 | u128::from(rem != 0);
    let p = prec::<F>(env);
    round(env, p, false, (a.exp - i32::from(odd)) / 2, sig)
}

/// `a * b + c` with one rounding, for formats of at most 53 significand bits. `a` is the
/// multiplicand: NaNs are preferred in the order `a`, `b`, `c`. `negate` flips the sign of
/// the product, and `subtract` that of `c`, as FNMADD and FMSUB do (after NaN selection).
pub fn fma<F: Format>(env: &mut Env, a: F, b: F, c: F, negate: bool, subtract: bool) -> F {
    let (a, b, mut c) = (operand(env, a), operand(env, b), operand(env, c));
    let zero = a.kind == Kind::Zero || b.kind == Kind::Zero;
    let inf = a.kind == Kind::Inf || b.kind == Kind::Inf;
    if a.is_nan() || b.is_nan() || c.is_nan() {
        if a.kind == Kind::Snan || b.kind == Kind::Snan || c.kind == Kind::Snan {
            env.raise(flag::IE);
        }
        let pick = if a.is_nan() {
            a
        } else if b.is_nan() {
            b
        } else {
            c
        };
        return F::pack(pick.quiet());
    }
    let sign = a.sign ^ b.sign ^ negate;
    c.sign ^= subtract;
    if (zero && inf) || (inf && c.kind == Kind::Inf && sign != c.sign) {
        return env.invalid();
    }
    env.denormal(a);
    env.denormal(b);
    env.denormal(c);
    if inf {
        return F::pack(Num::inf(sign));
    }
    if c.kind == Kind::Inf {
        return F::pack(c);
    }
    if zero {
        if c.kind == Kind::Zero {
            let s = if sign == c.sign { sign } else { env.round == Round::Down };
            return F::pack(Num::zero(s));
        }
        return round(env, F::PREC, c.sign, c.exp, u128::from(c.sig) << 64);
    }
    // The product has at most 106 significant bits, so its low bits here are zeros.
    let mut p = u128::from(a.sig) * u128::from(b.sig);
    let lz = p.leading_zeros();
    p <<= lz;
    let p_exp = a.exp + b.exp + 1 - lz as i32;
    if c.kind == Kind::Zero {
        return round(env, F::PREC, sign, p_exp, p);
    }
    match sum(sign, p_exp, p >> 1, c.sign, c.exp, u128::from(c.sig) << 63) {
        None => F::pack(Num::zero(env.round == Round::Down)),
        Some((s, e, sig)) => normal_round(env, F::PREC, s, e + 1, sig),
    }
}
