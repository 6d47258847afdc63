//! A float with a 128-bit significand, and the series the transcendentals are made of. Errors
//! are some units of 2^-125, so that a result rounded to 64 bits is nearly always the
//! correctly rounded one, and the same on every host.

use super::super::soft::arith::{round, shr_sticky};
use super::super::soft::{Env, F80, Num};

/// `(-1)^sign * sig/2^127 * 2^exp`; bit 127 of `sig` is set, or `sig` is zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wide {
    pub(super) sign: bool,
    pub(super) exp: i32,
    pub(super) sig: u128,
}

const fn constant(exp: i32, sig: u128) -> Wide {
    Wide { sign: false, exp, sig }
}

pub(super) const ONE: Wide = constant(0, 1 << 127);
pub(super) const PI: Wide = constant(1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1);
pub(super) const LN_2: Wide = constant(-1, 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af);
pub(super) const LOG2_E: Wide = constant(0, 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89);
pub(super) const LOG2_10: Wide = constant(1, 0xd49a_784b_cd1b_8afe_492b_f6ff_4daf_db4d);
pub(super) const LOG10_2: Wide = constant(-2, 0x9a20_9a84_fbcf_f798_8f89_59ac_0b7c_9178);

/// atan(k/8) for k from 1 to 8.
const ATAN_EIGHTHS: [Wide; 8] = [
    constant(-4, 0xfead_d4d5_617b_6e32_c897_989f_3e88_8ef8),
    constant(-3, 0xfadb_afc9_6406_eb15_6dc7_9ef5_f7a2_17e6),
    constant(-2, 0xb7b0_ca0f_26f7_8473_8aa3_2122_dcfe_4483),
    constant(-2, 0xed63_382b_0dda_7b45_6fe4_45ec_bc3a_8d03),
    constant(-1, 0x8f00_5d5e_f7f5_9f9b_5c83_5e16_65c4_3748),
    constant(-1, 0xa4bc_7d19_34f7_0924_19a8_7f2a_457d_ac9f),
    constant(-1, 0xb805_3e2b_c231_9e73_cb2d_a552_10a4_443d),
    constant(-1, 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1),
];

fn mul_full(a: u128, b: u128) -> (u128, u128) {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let low = a0 * b0;
    let mid = a1 * b0 + (low >> 64);
    let mid2 = a0 * b1 + (mid & LOW);
    (a1 * b1 + (mid >> 64) + (mid2 >> 64), mid2 << 64 | (low & LOW))
}

impl Wide {
    pub(super) const ZERO: Wide = constant(0, 0);

    /// A finite number.
    pub(super) fn of(n: Num) -> Wide {
        Wide { sign: n.sign, exp: n.exp, sig: u128::from(n.sig) << 64 }
    }

    pub(super) fn int(v: i64) -> Wide {
        Wide::fixed(v < 0, 127, u128::from(v.unsigned_abs()))
    }

    /// `sig/2^127 * 2^exp` with any `sig`.
    pub(super) fn fixed(sign: bool, exp: i32, sig: u128) -> Wide {
        if sig == 0 {
            return Wide::ZERO;
        }
        let lz = sig.leading_zeros();
        Wide { sign, exp: exp - lz as i32, sig: sig << lz }
    }

    pub(super) fn is_zero(self) -> bool {
        self.sig == 0
    }

    pub(super) fn neg(self) -> Wide {
        Wide { sign: !self.sign, ..self }
    }

    /// Times a power of two.
    pub(super) fn scale(self, by: i32) -> Wide {
        Wide { exp: self.exp + by, ..self }
    }

    pub(super) fn mul(self, b: Wide) -> Wide {
        if self.is_zero() || b.is_zero() {
            return Wide::ZERO;
        }
        let (hi, lo) = mul_full(self.sig, b.sig);
        let sign = self.sign != b.sign;
        let exp = self.exp + b.exp;
        if hi >> 127 != 0 {
            Wide { sign, exp: exp + 1, sig: hi | u128::from(lo != 0) }
        } else {
            Wide { sign, exp, sig: hi << 1 | lo >> 127 | u128::from(lo << 1 != 0) }
        }
    }

    pub(super) fn add(self, b: Wide) -> Wide {
        if self.is_zero() {
            return b;
        }
        if b.is_zero() {
            return self;
        }
        let (x, y) = if (self.exp, self.sig) >= (b.exp, b.sig) { (self, b) } else { (b, self) };
        let small = shr_sticky(y.sig, (x.exp - y.exp) as u32);
        if x.sign == y.sign {
            let (s, carry) = x.sig.overflowing_add(small);
            if carry {
                return Wide { exp: x.exp + 1, sig: s >> 1 | (s & 1) | 1 << 127, ..x };
            }
            return Wide { sig: s, ..x };
        }
        Wide::fixed(x.sign, x.exp, x.sig - small)
    }

    pub(super) fn sub(self, b: Wide) -> Wide {
        self.add(b.neg())
    }

    pub(super) fn div(self, b: Wide) -> Wide {
        if self.is_zero() {
            return self;
        }
        // One bit at a time; the remainder stays below the divisor, so it never overflows
        // unseen.
        let (mut r, mut q, mut exp) = (self.sig, 0u128, self.exp - b.exp);
        if r < b.sig {
            exp -= 1;
            let (s, c) = (r << 1, r >> 127 != 0);
            r = if c || s >= b.sig { s.wrapping_sub(b.sig) } else { s };
        } else {
            r -= b.sig;
        }
        q |= 1;
        for _ in 0..127 {
            let (s, c) = (r << 1, r >> 127 != 0);
            let fits = c || s >= b.sig;
            r = if fits { s.wrapping_sub(b.sig) } else { s };
            q = q << 1 | u128::from(fits);
        }
        Wide { sign: self.sign != b.sign, exp, sig: q | u128::from(r != 0) }
    }

    fn div_small(self, n: u64) -> Wide {
        Wide::fixed(self.sign, self.exp, self.sig / u128::from(n))
    }

    /// Rounds to 64 bits by the environment. `inexact` says that the true value lies off
    /// this one by less than a unit of the last place.
    pub(super) fn to_f80(self, env: &mut Env, inexact: bool) -> F80 {
        round(env, 64, self.sign, self.exp, self.sig | u128::from(inexact))
    }
}

/// `c0 - u/(d1)*(c0 - u/(d2)*(...))`, the shape of the sine and cosine series.
fn alternating(u: Wide, first: u64) -> Wide {
    let mut p = ONE;
    for k in (0..15).rev() {
        let n = first + 2 * k;
        p = ONE.sub(u.mul(p).div_small(n * (n + 1)));
    }
    p
}

/// sin(r) for |r| up to pi/4.
pub(super) fn sin(r: Wide) -> Wide {
    r.mul(alternating(r.mul(r), 2))
}

/// cos(r) for |r| up to pi/4.
pub(super) fn cos(r: Wide) -> Wide {
    alternating(r.mul(r), 1)
}

/// e^t - 1 for |t| up to ln 2.
pub(super) fn expm1(t: Wide) -> Wide {
    let mut p = ONE;
    for n in (2..=34).rev() {
        p = ONE.add(t.mul(p).div_small(n));
    }
    t.mul(p)
}

/// 2 atanh(s) for |s| up to 0.1716.
pub(super) fn twice_atanh(s: Wide) -> Wide {
    odd_powers(s, 26, false).scale(1)
}

/// `s ± s^3/3 + s^5/5 ± ...`
fn odd_powers(s: Wide, terms: u64, alternate: bool) -> Wide {
    let mut u = s.mul(s);
    u.sign = alternate && !u.is_zero();
    let mut p = ONE.div_small(2 * terms + 1);
    for k in (0..terms).rev() {
        p = ONE.div_small(2 * k + 1).add(u.mul(p));
    }
    s.mul(p)
}

/// atan(y/x) for 0 < y <= x.
pub(super) fn atan_ratio(y: Wide, x: Wide) -> Wide {
    let r = y.div(x);
    // The nearest eighth.
    let k = if r.exp < -4 { 0 } else { ((r.sig >> (123 - r.exp)) + 1) >> 1 };
    if k == 0 {
        return odd_powers(r, 17, true);
    }
    // atan(y/x) = atan(c) + atan((y - cx) / (x + cy))
    let c = Wide::int(k as i64).scale(-3);
    let t = y.sub(c.mul(x)).div(x.add(c.mul(y)));
    ATAN_EIGHTHS[(k as usize).clamp(1, 8) - 1].add(odd_powers(t, 17, true))
}
