//! FPREM and FPREM1, and the exponent instructions FSCALE and FXTRACT.

use super::arith::{normal_round, round};
use super::format::{F80, Format, Kind, Num};
use super::{Env, flag, nan1, nan2};

/// FPREM (`nearest` false: quotient truncated) and FPREM1 (`nearest` true: IEEE remainder).
/// C0, C3, C1 get quotient bits 2, 1, 0; C2 is set when the reduction is only partial.
pub fn fprem(env: &mut Env, a: F80, b: F80, nearest: bool) -> F80 {
    let (x, y) = (a.unpack(), b.unpack());
    if let Some(r) = nan2(env, x, y) {
        return r;
    }
    if x.kind == Kind::Inf || y.kind == Kind::Zero {
        return env.invalid();
    }
    env.denormal(x);
    env.denormal(y);
    if x.kind == Kind::Zero || y.kind == Kind::Inf {
        return F80::pack_any(env, x);
    }
    let d = x.exp - y.exp;
    if d < -1 || (d < 0 && !nearest) {
        return F80::pack_any(env, x);
    }
    if d >= 64 {
        // A partial reduction by a multiple of the divisor that lowers the exponent by the
        // amount the silicon chooses: between 32 and 63.
        let n = (d & 31) | 32;
        let (_, r) = divide(x.sig, y.sig, n);
        env.raise(flag::C2);
        return result(env, x.sign, r, x.exp - n);
    }
    if d < 0 {
        // FPREM1 with |y|/2 <= |x| < |y| possible.
        let (xs, ys) = (u128::from(x.sig), u128::from(y.sig) << 1);
        if xs > ys / 2 {
            return finish(env, x.sign, 1, ys - xs, y.exp - 1, true);
        }
        return F80::pack_any(env, x);
    }
    let (q, r) = divide(x.sig, y.sig, d);
    let (r, ys) = (u128::from(r), u128::from(y.sig));
    if nearest && (r * 2 > ys || (r * 2 == ys && q & 1 != 0)) {
        return finish(env, x.sign, q.wrapping_add(1), ys - r, y.exp, true);
    }
    finish(env, x.sign, q, r, y.exp, false)
}

/// Quotient (low 64 bits) and remainder of `a * 2^shift / b`.
fn divide(a: u64, b: u64, shift: i32) -> (u64, u64) {
    let b = u128::from(b);
    let mut q = (u128::from(a) / b) as u64;
    let mut r = u128::from(a) % b;
    let mut left = shift;
    while left > 0 {
        let step = left.min(63);
        let n = r << step;
        q = q.wrapping_shl(step as u32) | (n / b) as u64;
        r = n % b;
        left -= step;
    }
    (q, r as u64)
}

fn finish(env: &mut Env, sign: bool, q: u64, r: u128, exp: i32, flip: bool) -> F80 {
    let bit = |n: u64, f: u32| if q & n != 0 { f } else { 0 };
    let cc = bit(4, flag::C0) | bit(2, flag::C3) | bit(1, flag::C1);
    let x = if r == 0 {
        F80::pack(Num::zero(sign))
    } else {
        let lz = r.leading_zeros();
        exactly(env, sign != flip, exp + 64 - lz as i32, r << lz)
    };
    env.flags = env.flags & !flag::C1 | cc;
    x
}

fn result(env: &mut Env, sign: bool, r: u64, exp: i32) -> F80 {
    if r == 0 {
        return F80::pack(Num::zero(sign));
    }
    let lz = r.leading_zeros();
    exactly(env, sign, exp - lz as i32, u128::from(r) << lz << 64)
}

/// Remainders are exact at full precision, whatever the precision control.
fn exactly(env: &mut Env, sign: bool, exp: i32, sig: u128) -> F80 {
    round(env, 64, sign, exp, sig)
}

impl F80 {
    /// A value passed through unchanged, except that a denormal one underflows if underflow
    /// is unmasked.
    fn pack_any(env: &mut Env, n: Num) -> F80 {
        match n.kind {
            Kind::Denormal | Kind::Normal => round(env, 64, n.sign, n.exp, u128::from(n.sig) << 64),
            _ => F80::pack(n),
        }
    }
}

/// FSCALE: `a * 2^trunc(b)`.
pub fn fscale(env: &mut Env, a: F80, b: F80) -> F80 {
    let (x, y) = (a.unpack(), b.unpack());
    if let Some(r) = nan2(env, x, y) {
        return r;
    }
    if y.kind == Kind::Inf {
        if (y.sign && x.kind == Kind::Inf) || (!y.sign && x.kind == Kind::Zero) {
            return env.invalid();
        }
        env.denormal(x);
        return F80::pack(if y.sign { Num::zero(x.sign) } else { Num::inf(x.sign) });
    }
    env.denormal(x);
    env.denormal(y);
    if x.kind == Kind::Zero || x.kind == Kind::Inf {
        return F80::pack(x);
    }
    if y.kind == Kind::Zero || y.exp < 0 {
        return round(env, 64, x.sign, x.exp, u128::from(x.sig) << 64);
    }
    let n = if y.exp > 16 { 1 << 17 } else { (y.sig >> (63 - y.exp)) as i32 };
    let exp = if y.sign { x.exp - n } else { x.exp + n };
    round(env, 64, x.sign, exp, u128::from(x.sig) << 64)
}

/// FXTRACT: (exponent, significand); the exponent goes to ST(0)'s place, then the
/// significand is pushed.
pub fn fxtract(env: &mut Env, a: F80) -> (F80, F80) {
    let x = a.unpack();
    if let Some(r) = nan1(env, x) {
        return (r, r);
    }
    env.denormal(x);
    match x.kind {
        Kind::Zero => {
            env.raise(flag::ZE);
            (F80::pack(Num::inf(true)), F80::pack(x))
        }
        Kind::Inf => (F80::pack(Num::inf(false)), F80::pack(x)),
        _ => {
            let e = if x.exp == 0 {
                F80::ZERO
            } else {
                let mag = u128::from(x.exp.unsigned_abs()) << 64;
                normal_round(env, 64, x.exp < 0, 63, mag)
            };
            (e, F80::pack(Num { exp: 0, kind: Kind::Normal, ..x }))
        }
    }
}
