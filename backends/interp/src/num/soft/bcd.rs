//! Packed decimal: FBLD and FBSTP.

use super::convert::integer;
use super::format::{F80, Format, Kind, Num};
use super::{Env, flag};

const LIMIT: u64 = 1_000_000_000_000_000_000;

/// FBLD: eighteen decimal digits and a sign. Digits above nine (undefined by the manuals)
/// count with their binary value, as on the silicon.
#[must_use]
pub fn fbld(b: [u8; 10]) -> F80 {
    let mut v = 0u64;
    for &d in b[..9].iter().rev() {
        v = v * 100 + u64::from(d >> 4) * 10 + u64::from(d & 15);
    }
    let sign = b[9] & 0x80 != 0;
    if v == 0 {
        return F80::pack(Num::zero(sign));
    }
    let lz = v.leading_zeros();
    F80::pack(Num { sign, kind: Kind::Normal, exp: 63 - lz as i32, sig: v << lz })
}

/// FBSTP's ten bytes; out of range is invalid and yields the packed indefinite.
pub fn fbstp(env: &mut Env, x: F80) -> [u8; 10] {
    let n = x.unpack();
    if n.kind < Kind::Inf
        && let Some((v, inexact, up)) = integer(n, env.round)
        && v < LIMIT
    {
        if inexact {
            env.raise(flag::PE | if up { flag::C1 } else { 0 });
        }
        let mut b = [0; 10];
        let mut rest = v;
        for d in &mut b[..9] {
            *d = (rest % 10 + (rest / 10 % 10) * 16) as u8;
            rest /= 100;
        }
        b[9] = u8::from(n.sign) << 7;
        return b;
    }
    env.raise(flag::IE);
    [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff]
}
