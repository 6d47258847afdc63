//! Packed operations: the same rules in every lane. Lanes are first computed on the host
//! with all checks folded into one, so that the compiler vectorises them; if any lane fails
//! the check, every lane is done as a scalar, and flags of all lanes are taken together, as
//! the silicon does.

use super::super::soft;
use super::super::vec::{V128, V256};
use super::scalar::{Add, Binary, Div, FmaSigns, Mul, Predicate, Sub, fma_host, imm_round, plain};
use super::{Context, Float, Mxcsr, Sse};

#[inline(always)]
fn binary<C: Context, F: Float, O: Binary, const N: usize>(
    mx: &mut C,
    a: [F::Bits; N],
    b: [F::Bits; N],
) -> Sse<[F::Bits; N]> {
    if mx.fast() {
        let mut r = [F::FALSE; N];
        let mut ok = F::TRUE;
        for i in 0..N {
            r[i] = O::host(F::of(a[i]), F::of(b[i])).bits();
        }
        for i in 0..N {
            let z = F::above_bit(r[i]) & F::below_bit(r[i]);
            ok = ok & (F::above_bit(a[i]) & F::above_bit(b[i]) & z);
        }
        if F::top(ok) {
            return Ok(r);
        }
    }
    mx.slow(|mx| binary_slow::<F, O, N>(mx, a, b))
}

#[cold]
#[inline(never)]
fn binary_slow<F: Float, O: Binary, const N: usize>(
    mx: &mut Mxcsr,
    a: [F::Bits; N],
    b: [F::Bits; N],
) -> Sse<[F::Bits; N]> {
    let fast = mx.fast();
    let mut r = [F::FALSE; N];
    let mut env = mx.env();
    for i in 0..N {
        if fast && plain::<F>(a[i]) && plain::<F>(b[i]) {
            let z = O::host(F::of(a[i]), F::of(b[i])).bits();
            if F::normal(z) || (F::zero(z) && O::exact_zero::<F>(a[i], b[i])) {
                r[i] = z;
                continue;
            }
        }
        r[i] = O::soft::<F>(&mut env, a[i], b[i]);
    }
    mx.retire(env)?;
    Ok(r)
}

/// Lane by lane in software.
#[inline(always)]
fn each<C: Context, F: Float, const N: usize>(
    mx: &mut C,
    f: impl Fn(&mut soft::Env, usize) -> F::Bits,
) -> Sse<[F::Bits; N]> {
    mx.slow(|mx| each_lane::<F, N>(mx, f))
}

#[cold]
#[inline(never)]
fn each_lane<F: Float, const N: usize>(
    mx: &mut Mxcsr,
    f: impl Fn(&mut soft::Env, usize) -> F::Bits,
) -> Sse<[F::Bits; N]> {
    let mut r = [F::FALSE; N];
    let mut env = mx.env();
    for (i, r) in r.iter_mut().enumerate() {
        *r = f(&mut env, i);
    }
    mx.retire(env)?;
    Ok(r)
}

#[inline(always)]
fn sqrt<C: Context, F: Float, const N: usize>(mx: &mut C, a: [F::Bits; N]) -> Sse<[F::Bits; N]> {
    if mx.fast() {
        let mut r = [F::FALSE; N];
        let mut ok = true;
        for i in 0..N {
            let z = F::of(a[i]).sqrt();
            ok &= F::normal(a[i]) & z.below();
            r[i] = z.bits();
        }
        if ok {
            return Ok(r);
        }
    }
    each::<_, F, N>(mx, move |env, i| F::of_soft(soft::sqrt(env, F::to_soft(a[i]))))
}

#[inline(always)]
fn fma<C: Context, F: Float, const N: usize>(
    mx: &mut C,
    a: [F::Bits; N],
    b: [F::Bits; N],
    c: [F::Bits; N],
    signs: [FmaSigns; 2],
) -> Sse<[F::Bits; N]> {
    if mx.fast() {
        let mut r = [F::FALSE; N];
        let mut ok = F::TRUE;
        for i in 0..N {
            r[i] = fma_host(F::of(a[i]), F::of(b[i]), F::of(c[i]), signs[i & 1]).bits();
        }
        for i in 0..N {
            let s = F::above_bit(r[i]) & F::below_bit(r[i]);
            ok = ok & (F::above_bit(a[i]) & F::above_bit(b[i]) & F::above_bit(c[i]) & s);
        }
        if F::top(ok) {
            return Ok(r);
        }
    }
    each::<_, F, N>(mx, move |env, i| {
        let (a, b, c) = (F::to_soft(a[i]), F::to_soft(b[i]), F::to_soft(c[i]));
        let s = signs[i & 1];
        F::of_soft(soft::fma(env, a, b, c, s.negate, s.subtract))
    })
}

#[inline(always)]
fn pick<F: Float, const N: usize, const MAX: bool>(
    mx: &mut Mxcsr,
    a: [F::Bits; N],
    b: [F::Bits; N],
) -> Sse<[F::Bits; N]> {
    let mut r = [F::FALSE; N];
    let mut ok = true;
    for i in 0..N {
        let (x, y) = (F::of(a[i]), F::of(b[i]));
        ok &= usual(x) & usual(y);
        let first = if MAX { x > y } else { x < y };
        r[i] = if first { a[i] } else { b[i] };
    }
    if ok {
        return Ok(r);
    }
    each::<_, F, N>(mx, move |env, i| {
        let (a, b) = (F::to_soft(a[i]), F::to_soft(b[i]));
        F::of_soft(if MAX { soft::max(env, a, b) } else { soft::min(env, a, b) })
    })
}

/// Zero or normal, in a form that vectorises.
#[inline(always)]
fn usual<F: Float>(x: F) -> bool {
    (x.above() & x.below()) | (x == F::of(F::FALSE))
}

#[inline(always)]
fn cmp<C: Context, F: Float, const N: usize>(
    mx: &mut C,
    a: [F::Bits; N],
    b: [F::Bits; N],
    p: Predicate,
) -> Sse<[F::Bits; N]> {
    let t = p.truth();
    let (lt, eq, gt) = (t & 1 != 0, t & 2 != 0, t & 4 != 0);
    let mut r = [F::FALSE; N];
    let mut ok = true;
    for i in 0..N {
        let (x, y) = (F::of(a[i]), F::of(b[i]));
        ok &= usual(x) & usual(y);
        let hit = ((x < y) & lt) | ((x == y) & eq) | ((x > y) & gt);
        r[i] = if hit { F::TRUE } else { F::FALSE };
    }
    if ok {
        return Ok(r);
    }
    let quiet = p.quiet();
    each::<_, F, N>(mx, move |env, i| {
        let rel = soft::compare(env, F::to_soft(a[i]), F::to_soft(b[i]), quiet);
        if t >> rel as u8 & 1 != 0 { F::TRUE } else { F::FALSE }
    })
}

#[inline(always)]
fn round<C: Context, F: Float, const N: usize>(mx: &mut C, a: [F::Bits; N], imm: u8) -> Sse<[F::Bits; N]> {
    let rc = imm_round(mx.mxcsr(), imm);
    let report = imm & 8 == 0;
    if (mx.fast() || !report) && a.iter().all(|&x| plain::<F>(x)) {
        return Ok(a.map(|x| F::of(x).integral(rc).bits()));
    }
    let mode = soft::Round::from_rc(rc);
    each::<_, F, N>(mx, move |env, i| F::of_soft(soft::round_to_int(env, F::to_soft(a[i]), mode, report)))
}

/// ADDSUB: subtract in even lanes, add in odd ones.
#[inline(always)]
fn addsub<C: Context, F: Float, const N: usize>(
    mx: &mut C,
    a: [F::Bits; N],
    b: [F::Bits; N],
) -> Sse<[F::Bits; N]> {
    each::<_, F, N>(mx, move |env, i| {
        let (a, b) = (F::to_soft(a[i]), F::to_soft(b[i]));
        F::of_soft(if i & 1 == 0 { soft::sub(env, a, b) } else { soft::add(env, a, b) })
    })
}

macro_rules! forms {
    ($($ps:ident $pd:ident $yps:ident $ypd:ident = $f:ident $([$($g:tt),*])? ($($arg:ident),*) ($($x:ident: $t:ty),*) $doc:literal;)*) => {$(
        forms!(@one $ps $f f32, $($($g,)*)? 4; V128 u32s from_u32s ($($arg),*) ($($x: $t),*) $doc, "packed single");
        forms!(@one $pd $f f64, $($($g,)*)? 2; V128 u64s from_u64s ($($arg),*) ($($x: $t),*) $doc, "packed double");
        forms!(@one $yps $f f32, $($($g,)*)? 8; V256 u32s from_u32s ($($arg),*) ($($x: $t),*) $doc, "eight packed singles");
        forms!(@one $ypd $f f64, $($($g,)*)? 4; V256 u64s from_u64s ($($arg),*) ($($x: $t),*) $doc, "four packed doubles");
    )*};
    (@one $name:ident $f:ident $ty:ty, $($g:tt),+; $v:ident $get:ident $from:ident ($($arg:ident),*) ($($x:ident: $t:ty),*) $doc:literal, $kind:literal) => {
        #[doc = concat!($doc, ", ", $kind, ".\n\n# Errors\nOn an unmasked exception.")]
        #[inline]
        pub fn $name<C: Context>(mx: &mut C, $($arg: $v,)* $($x: $t),*) -> Sse<$v> {
            Ok($v::$from($f::<C, $ty, $($g),+>(mx, $($arg.$get(),)* $($x),*)?))
        }
    };
}

forms! {
    addps addpd vaddps vaddpd = binary [Add] (a, b) () "Add";
    subps subpd vsubps vsubpd = binary [Sub] (a, b) () "Subtract";
    mulps mulpd vmulps vmulpd = binary [Mul] (a, b) () "Multiply";
    divps divpd vdivps vdivpd = binary [Div] (a, b) () "Divide";
    sqrtps sqrtpd vsqrtps vsqrtpd = sqrt (a) () "Square root";
    addsubps addsubpd vaddsubps vaddsubpd = addsub (a, b) () "Subtract in even lanes, add in odd";
    cmpps cmppd vcmpps vcmppd = cmp (a, b) (p: Predicate) "Compare by predicate";
    roundps roundpd vroundps vroundpd = round (a) (imm: u8) "Round to integral";
    fmaps fmapd vfmaps vfmapd = fma (a, b, c) (signs: [FmaSigns; 2]) "Fused multiply-add; signs of even and odd lanes (operand order as in the scalar form)";
}

macro_rules! minmax {
    ($($name:ident $ty:ty, $n:literal, $max:literal, $v:ident $get:ident $from:ident $doc:literal;)*) => {$(
        #[doc = concat!($doc, " (`a` is the first source).\n\n# Errors\nOn an unmasked exception.")]
        #[inline]
        pub fn $name(mx: &mut Mxcsr, a: $v, b: $v) -> Sse<$v> {
            Ok($v::$from(pick::<$ty, $n, $max>(mx, a.$get(), b.$get())?))
        }
    )*};
}

minmax! {
    minps f32, 4, false, V128 u32s from_u32s "Minimum, packed single";
    minpd f64, 2, false, V128 u64s from_u64s "Minimum, packed double";
    vminps f32, 8, false, V256 u32s from_u32s "Minimum, eight packed singles";
    vminpd f64, 4, false, V256 u64s from_u64s "Minimum, four packed doubles";
    maxps f32, 4, true, V128 u32s from_u32s "Maximum, packed single";
    maxpd f64, 2, true, V128 u64s from_u64s "Maximum, packed double";
    vmaxps f32, 8, true, V256 u32s from_u32s "Maximum, eight packed singles";
    vmaxpd f64, 4, true, V256 u64s from_u64s "Maximum, four packed doubles";
}

macro_rules! horizontal {
    ($($ps:ident $yps:ident $op:ident $yop:ident $get:ident $from:ident ($($ev:ident),*) $doc:literal;)*) => {$(
        #[doc = concat!($doc, ".\n\n# Errors\nOn an unmasked exception.")]
        #[inline]
        pub fn $ps(mx: &mut Mxcsr, a: V128, b: V128) -> Sse<V128> {
            let (x, y) = $($ev)*(a, b);
            $op(mx, x, y)
        }
        #[doc = concat!($doc, ", in each 128-bit half.\n\n# Errors\nOn an unmasked exception.")]
        #[inline]
        pub fn $yps(mx: &mut Mxcsr, a: V256, b: V256) -> Sse<V256> {
            let ((x0, y0), (x1, y1)) = ($($ev)*(a.lo, b.lo), $($ev)*(a.hi, b.hi));
            $yop(mx, V256::new(x0, x1), V256::new(y0, y1))
        }
    )*};
}

#[inline(always)]
fn pairs32(a: V128, b: V128) -> (V128, V128) {
    let (a, b) = (a.u32s(), b.u32s());
    (V128::from_u32s([a[0], a[2], b[0], b[2]]), V128::from_u32s([a[1], a[3], b[1], b[3]]))
}

#[inline(always)]
fn pairs64(a: V128, b: V128) -> (V128, V128) {
    (V128::from_halves(a.low(), b.low()), V128::from_halves(a.high(), b.high()))
}

horizontal! {
    haddps vhaddps addps vaddps u32s from_u32s (pairs32) "HADDPS";
    hsubps vhsubps subps vsubps u32s from_u32s (pairs32) "HSUBPS";
    haddpd vhaddpd addpd vaddpd u64s from_u64s (pairs64) "HADDPD";
    hsubpd vhsubpd subpd vsubpd u64s from_u64s (pairs64) "HSUBPD";
}

/// DPPS: products selected by the high half of `imm`, summed pairwise, stored where the low
/// half says.
///
/// # Errors
/// On an unmasked exception.
pub fn dpps(mx: &mut Mxcsr, a: V128, b: V128, imm: u8) -> Sse<V128> {
    Ok(vdpps(mx, V256::new(a, V128::ZERO), V256::new(b, V128::ZERO), imm)?.lo)
}

/// VDPPS on 256 bits: DPPS in each half.
///
/// # Errors
/// On an unmasked exception.
pub fn vdpps(mx: &mut Mxcsr, a: V256, b: V256, imm: u8) -> Sse<V256> {
    let (x, y) = (a.u32s(), b.u32s());
    // Each stage is an operation of its own: its unmasked exceptions end the instruction.
    let products = each::<_, f32, 8>(mx, move |env, i| {
        if imm >> (4 + (i & 3)) & 1 == 0 {
            return 0;
        }
        soft::mul(env, soft::F32(x[i]), soft::F32(y[i])).0
    })?;
    let sums = each::<_, f32, 4>(mx, move |env, i| {
        soft::add(env, soft::F32(products[2 * i]), soft::F32(products[2 * i + 1])).0
    })?;
    let totals = each::<_, f32, 2>(mx, move |env, i| {
        soft::add(env, soft::F32(sums[2 * i]), soft::F32(sums[2 * i + 1])).0
    })?;
    let mut r = [0; 8];
    for (i, r) in r.iter_mut().enumerate() {
        *r = if imm >> (i & 3) & 1 != 0 { totals[i / 4] } else { 0 };
    }
    Ok(V256::from_u32s(r))
}

/// DPPD.
///
/// # Errors
/// On an unmasked exception.
pub fn dppd(mx: &mut Mxcsr, a: V128, b: V128, imm: u8) -> Sse<V128> {
    let (x, y) = (a.u64s(), b.u64s());
    let p = each::<_, f64, 2>(mx, move |env, i| {
        if imm >> (4 + i) & 1 == 0 {
            return 0;
        }
        soft::mul(env, soft::F64(x[i]), soft::F64(y[i])).0
    })?;
    let s = mx.soft(move |env| soft::add(env, soft::F64(p[0]), soft::F64(p[1])).0)?;
    Ok(V128::from_u64s([if imm & 1 != 0 { s } else { 0 }, if imm & 2 != 0 { s } else { 0 }]))
}
