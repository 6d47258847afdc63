//! The x87's constants and transcendental functions.
//!
//! Results are computed to about 125 bits and rounded once, by RC, so they are the correctly
//! rounded ones nearly always. Silicon is not: it rounds an approximation of some 68 bits.
//! Against a Zen 5 processor, over seeded arguments spread evenly over exponents, the results
//! differ by one unit of the last place, never more (share differing, round to nearest):
//! FSIN 0.3 %, FCOS 0.2 %, FSINCOS 0.3 %, FPTAN 1.5 % (8 % in directed modes), FPATAN 1.9 %,
//! F2XM1 2.5 %, FYL2X 2.3 %, FYL2XP1 2.6 %; special operands agree exactly, as do the flags
//! except C1, which says how the result was rounded and so differs where the result's last
//! bits do. Arguments of the trigonometric functions are reduced by the x87's own 66-bit pi,
//! as on silicon. Operands outside a function's documented domain get what that processor
//! returns.

mod wide;

use self::wide::{LN_2, LOG2_10, LOG2_E, LOG10_2, ONE, PI, Wide};
use super::soft::{Env, F80, Format, Kind, Num, flag, nan1, nan2};

/// The x87's constants. They round by RC, and raise nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Constant {
    /// FLD1
    One,
    /// FLDL2T: log2 10
    Log2Ten,
    /// FLDL2E: log2 e
    Log2E,
    /// FLDPI
    Pi,
    /// FLDLG2: log10 2
    Log10Two,
    /// FLDLN2: ln 2
    LnTwo,
    /// FLDZ
    Zero,
}

/// FLD1, FLDL2T, FLDL2E, FLDPI, FLDLG2, FLDLN2, FLDZ.
#[must_use]
pub fn constant(env: &Env, c: Constant) -> F80 {
    let w = match c {
        Constant::One => return F80::ONE,
        Constant::Zero => return F80::ZERO,
        Constant::Log2Ten => LOG2_10,
        Constant::Log2E => LOG2_E,
        Constant::Pi => PI,
        Constant::Log10Two => LOG10_2,
        Constant::LnTwo => LN_2,
    };
    w.to_f80(&mut Env { flags: 0, ..*env }, true)
}

/// Operand of a one-operand function: a finite non-zero number, or the result already.
fn finite(env: &mut Env, x: F80) -> Result<Num, F80> {
    let n = x.unpack();
    if let Some(r) = nan1(env, n) {
        return Err(r);
    }
    env.denormal(n);
    Ok(n)
}

/// F2XM1: `2^x - 1`.
pub fn f2xm1(env: &mut Env, x: F80) -> F80 {
    let n = match finite(env, x) {
        Ok(n) => n,
        Err(r) => return r,
    };
    match n.kind {
        Kind::Zero => return x,
        Kind::Inf => return if n.sign { F80::ONE.negate() } else { x },
        _ => {}
    }
    if n.exp >= 0 {
        // Beyond one the manuals define nothing; the silicon returns the operand.
        env.raise(flag::PE);
        let minus_one = n.sign && n.exp == 0 && n.sig == 1 << 63;
        return if minus_one { F80 { se: 0xbffe, frac: 1 << 63 } } else { x };
    }
    wide::expm1(Wide::of(n).mul(LN_2)).to_f80(env, true)
}

/// log2 of a positive finite number, and whether it is exact.
fn log2(x: Wide) -> (Wide, bool) {
    // Into [1/sqrt 2, sqrt 2).
    const SQRT_2: u128 = 0xb504_f333_f9de_6484 << 64;
    let up = x.sig >= SQRT_2;
    let e = x.exp + i32::from(up);
    let m = Wide { exp: -i32::from(up), ..x };
    let e = Wide::int(i64::from(e));
    let d = m.sub(ONE);
    if d.is_zero() {
        return (e, true);
    }
    let s = d.div(m.add(ONE));
    (e.add(wide::twice_atanh(s).mul(LOG2_E)), false)
}

/// FYL2X: `y * log2 x`, with `x` in ST(0) and `y` in ST(1).
pub fn fyl2x(env: &mut Env, x: F80, y: F80) -> F80 {
    let (a, b) = (x.unpack(), y.unpack());
    if let Some(r) = nan2(env, a, b) {
        return r;
    }
    if a.sign && a.kind != Kind::Zero {
        return env.invalid();
    }
    let below_one = a.kind != Kind::Inf && (a.kind == Kind::Zero || a.exp < 0);
    let is_one = a.kind == Kind::Normal && a.exp == 0 && a.sig == 1 << 63;
    match (a.kind, b.kind) {
        (Kind::Zero | Kind::Inf, Kind::Zero) => return env.invalid(),
        (_, Kind::Inf) if is_one => return env.invalid(),
        (Kind::Zero, Kind::Inf) => return F80::pack(Num::inf(!b.sign)),
        (Kind::Zero, _) => {
            env.raise(flag::ZE);
            return F80::pack(Num::inf(!b.sign));
        }
        _ => {}
    }
    env.denormal(a);
    env.denormal(b);
    if a.kind == Kind::Inf || b.kind == Kind::Inf {
        return F80::pack(Num::inf(b.sign != below_one));
    }
    if b.kind == Kind::Zero || is_one {
        return F80::pack(Num::zero(b.sign != below_one));
    }
    times_log(env, b, log2(Wide::of(a)))
}

fn times_log(env: &mut Env, y: Num, (l, exact): (Wide, bool)) -> F80 {
    let r = l.mul(Wide::of(y)).to_f80(env, !exact);
    if exact {
        // Even an exact result is reported as inexact.
        env.raise(flag::PE | if r.se & 0x7fff == 0 { flag::UE } else { 0 });
    }
    r
}

/// FYL2XP1: `y * log2(x + 1)`, with `x` in ST(0) and `y` in ST(1).
pub fn fyl2xp1(env: &mut Env, x: F80, y: F80) -> F80 {
    let (a, b) = (x.unpack(), y.unpack());
    if let Some(r) = nan2(env, a, b) {
        return r;
    }
    if (a.kind == Kind::Inf && (a.sign || b.kind == Kind::Zero))
        || (a.kind == Kind::Zero && b.kind == Kind::Inf)
    {
        return env.invalid();
    }
    env.denormal(a);
    env.denormal(b);
    let sign = a.sign != b.sign;
    if a.kind == Kind::Inf || b.kind == Kind::Inf {
        return F80::pack(Num::inf(sign));
    }
    if a.kind == Kind::Zero || b.kind == Kind::Zero {
        return F80::pack(Num::zero(sign));
    }
    let w = Wide::of(a);
    let l = if a.exp < -2 {
        let s = w.div(w.add(ONE.scale(1)));
        (wide::twice_atanh(s).mul(LOG2_E), false)
    } else {
        let v = w.add(ONE);
        if v.sign || v.is_zero() {
            // Undefined by the manuals; the silicon returns the operand.
            env.raise(flag::PE);
            return x;
        }
        log2(v)
    };
    times_log(env, b, l)
}

/// FPATAN: the angle of the point (`x`, `y`), with `x` in ST(0) and `y` in ST(1).
pub fn fpatan(env: &mut Env, x: F80, y: F80) -> F80 {
    let (a, b) = (x.unpack(), y.unpack());
    if let Some(r) = nan2(env, a, b) {
        return r;
    }
    env.denormal(a);
    env.denormal(b);
    // The whole quadrants and their halves: (multiple of pi/4).
    let part = |env: &mut Env, quarters: u32| {
        let w = match quarters {
            1 => PI.scale(-2),
            2 => PI.scale(-1),
            3 => PI.mul(Wide::int(3)).scale(-2),
            _ => PI,
        };
        Wide { sign: b.sign, ..w }.to_f80(env, true)
    };
    match (a.kind, b.kind) {
        (Kind::Inf, Kind::Inf) => return part(env, if a.sign { 3 } else { 1 }),
        (Kind::Inf, _) | (_, Kind::Zero) => {
            return if a.sign { part(env, 4) } else { F80::pack(Num::zero(b.sign)) };
        }
        (_, Kind::Inf) | (Kind::Zero, _) => return part(env, 2),
        _ => {}
    }
    let mut ax = Wide::of(a);
    let mut ay = Wide::of(b);
    ax.sign = false;
    ay.sign = false;
    let steep = (ay.exp, ay.sig) > (ax.exp, ax.sig);
    let mut r = if steep { wide::atan_ratio(ax, ay) } else { wide::atan_ratio(ay, ax) };
    if steep {
        r = PI.scale(-1).sub(r);
    }
    if a.sign {
        r = PI.sub(r);
    }
    r.sign = b.sign;
    r.to_f80(env, true)
}

/// The argument less the nearest multiple of the x87's pi/2 (66 significant bits), and the
/// quadrant. `None` from 2^63 on.
fn reduce(n: Num) -> Option<(Wide, u32)> {
    if n.exp >= 63 {
        return None;
    }
    if n.exp < -1 {
        return Some((Wide::of(n), 0));
    }
    // pi/2 * 2^65, rounded down: 66 bits.
    const HALF_PI: u128 = 0x3_243f_6a88_85a3_08d3;
    // The magnitude is sig * 2^(exp-63); count in units of 2^-65, 128 of which may not be
    // enough, so bits of the argument are brought in one by one.
    let mut r = u128::from(n.sig) << 2;
    let mut q = r / HALF_PI;
    r %= HALF_PI;
    let mut shift = n.exp;
    let mut below = 0;
    if shift < 0 {
        below = -shift;
        shift = 0;
        r = u128::from(n.sig) << 2;
        q = 0;
    }
    for _ in 0..shift {
        r <<= 1;
        q <<= 1;
        if r >= HALF_PI {
            r -= HALF_PI;
            q |= 1;
        }
    }
    // A number below one: work in finer units.
    let unit = HALF_PI << below;
    if r * 2 > unit {
        q += 1;
        let w = Wide::fixed(!n.sign, 127 - 65 - below, unit - r);
        return Some((w, quadrant(q, n.sign)));
    }
    Some((Wide::fixed(n.sign, 127 - 65 - below, r), quadrant(q, n.sign)))
}

fn quadrant(q: u128, negative: bool) -> u32 {
    let q = q as u32 & 3;
    if negative { q.wrapping_neg() & 3 } else { q }
}

fn sin_of((r, q): (Wide, u32)) -> Wide {
    let mut w = if q & 1 == 0 { wide::sin(r) } else { wide::cos(r) };
    w.sign ^= q & 2 != 0;
    w
}

fn cos_of((r, q): (Wide, u32)) -> Wide {
    sin_of((r, (q + 1) & 3))
}

/// What FSIN, FCOS, FSINCOS and FPTAN do alike: NaNs, infinities, and arguments out of range,
/// which are left as they are with C2 set.
fn angle(env: &mut Env, x: F80) -> Result<Num, F80> {
    let n = x.unpack();
    if let Some(r) = nan1(env, n) {
        return Err(r);
    }
    if n.kind == Kind::Inf {
        return Err(env.invalid());
    }
    if n.kind != Kind::Zero && n.exp >= 63 {
        env.raise(flag::C2);
        return Err(x);
    }
    env.denormal(n);
    Ok(n)
}

/// FSIN. With C2 in the flags the operand was out of range and is returned as it is.
pub fn fsin(env: &mut Env, x: F80) -> F80 {
    let n = match angle(env, x) {
        Ok(n) => n,
        Err(r) => return r,
    };
    match reduce(n) {
        Some(rq) if n.kind != Kind::Zero => sin_of(rq).to_f80(env, true),
        _ => x,
    }
}

/// FCOS. With C2 in the flags the operand was out of range and is returned as it is.
pub fn fcos(env: &mut Env, x: F80) -> F80 {
    let n = match angle(env, x) {
        Ok(n) => n,
        Err(r) => return r,
    };
    match reduce(n) {
        Some(rq) if n.kind != Kind::Zero => cos_of(rq).to_f80(env, true),
        _ => F80::ONE,
    }
}

/// FSINCOS: (sine, cosine); the cosine is pushed. With C2 in the flags nothing is to be done.
pub fn fsincos(env: &mut Env, x: F80) -> (F80, F80) {
    let n = match angle(env, x) {
        Ok(n) => n,
        Err(r) => return (r, r),
    };
    match reduce(n) {
        Some(rq) if n.kind != Kind::Zero => {
            let r = (sin_of(rq).to_f80(env, true), cos_of(rq).to_f80(env, true));
            // The push clears it.
            env.flags &= !flag::C1;
            r
        }
        _ => (x, F80::ONE),
    }
}

/// FPTAN: (tangent, the value pushed after it: one, or the NaN again). With C2 in the flags
/// nothing is to be done.
pub fn fptan(env: &mut Env, x: F80) -> (F80, F80) {
    let n = match angle(env, x) {
        Ok(n) => n,
        Err(r) => return (r, r),
    };
    match reduce(n) {
        Some(rq) if n.kind != Kind::Zero => {
            let t = sin_of(rq).div(cos_of(rq)).to_f80(env, true);
            // The push clears it.
            env.flags &= !flag::C1;
            (t, F80::ONE)
        }
        _ => (x, F80::ONE),
    }
}
