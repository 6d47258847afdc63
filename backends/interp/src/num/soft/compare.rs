//! Comparison, and SSE's minimum and maximum.

use super::format::{F80, Format, Kind, Num};
use super::{Env, flag, operand};

/// How two numbers stand to each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// `a < b`
    Less,
    /// `a == b` (zeros of either sign are equal)
    Equal,
    /// `a > b`
    Greater,
    /// At least one is a NaN (or unsupported).
    Unordered,
}

impl Relation {
    /// C3, C2 and C0 as FCOM, FUCOM and FTST set them (C1 is cleared). They are set even when
    /// an unmasked invalid operation is reported.
    #[inline]
    #[must_use]
    pub fn x87_codes(self) -> u32 {
        match self {
            Relation::Greater => 0,
            Relation::Less => flag::C0,
            Relation::Equal => flag::C3,
            Relation::Unordered => flag::C0 | flag::C2 | flag::C3,
        }
    }
}

/// FXAM's C3, C2, C0 (class) and C1 (sign) for a register's content; `empty` by its tag.
#[must_use]
pub fn fxam(x: F80, empty: bool) -> u32 {
    let n = x.unpack();
    let class = if empty {
        flag::C3 | flag::C0
    } else {
        match n.kind {
            Kind::Unsupported => 0,
            Kind::Qnan | Kind::Snan => flag::C0,
            Kind::Normal => flag::C2,
            Kind::Inf => flag::C2 | flag::C0,
            Kind::Zero => flag::C3,
            Kind::Denormal => flag::C3 | flag::C2,
        }
    };
    class | if n.sign { flag::C1 } else { 0 }
}

/// Compares. With `quiet` (UCOMIS, FUCOM, the quiet predicates) only signalling NaNs are
/// invalid, else every NaN is.
pub fn compare<F: Format>(env: &mut Env, a: F, b: F, quiet: bool) -> Relation {
    let (a, b) = (operand(env, a), operand(env, b));
    if a.kind >= Kind::Qnan || b.kind >= Kind::Qnan {
        if !quiet || a.kind > Kind::Qnan || b.kind > Kind::Qnan {
            env.raise(flag::IE);
        }
        return Relation::Unordered;
    }
    env.denormal(a);
    env.denormal(b);
    order(a, b)
}

/// The relation of two numbers that are no NaNs.
pub(crate) fn order(a: Num, b: Num) -> Relation {
    if a.kind == Kind::Zero && b.kind == Kind::Zero {
        return Relation::Equal;
    }
    // Zero below every finite magnitude, infinity above.
    let rank = |n: Num| match n.kind {
        Kind::Zero => (i32::MIN, 0),
        Kind::Inf => (i32::MAX, 0),
        _ => (n.exp, n.sig),
    };
    if a.sign != b.sign {
        return if a.sign { Relation::Less } else { Relation::Greater };
    }
    let (x, y) = if a.sign { (rank(b), rank(a)) } else { (rank(a), rank(b)) };
    match x.cmp(&y) {
        core::cmp::Ordering::Less => Relation::Less,
        core::cmp::Ordering::Equal => Relation::Equal,
        core::cmp::Ordering::Greater => Relation::Greater,
    }
}

/// MINxx: `b` unless `a < b`. Any NaN is invalid and yields `b` as it is, and so do two
/// zeros.
pub fn min<F: Format>(env: &mut Env, a: F, b: F) -> F {
    pick(env, a, b, Relation::Less)
}

/// MAXxx: `b` unless `a > b`.
pub fn max<F: Format>(env: &mut Env, a: F, b: F) -> F {
    pick(env, a, b, Relation::Greater)
}

fn pick<F: Format>(env: &mut Env, a: F, b: F, want: Relation) -> F {
    let first = compare(env, a, b, false) == want;
    let x = if first { a } else { b };
    // A denormal that DAZ zeroed is returned as that zero.
    let n = operand(env, x);
    if n.kind == Kind::Zero { F::pack(n) } else { x }
}
