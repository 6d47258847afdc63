//! SSE floating point against the processor.

use super::super::soft;
use super::super::sse::scalar::{FmaSigns, Predicate};
use super::super::sse::{Float, Mxcsr, Sse, convert, packed, scalar};
use super::super::vec::V128;
use super::native::sse_op;
use super::values::{F32S, F64S, Rng};
use crate::vendor::{self, SetAside, Vendor};

sse_op! {
    addsd "addsd xmm0, xmm1"; subsd "subsd xmm0, xmm1"; mulsd "mulsd xmm0, xmm1";
    divsd "divsd xmm0, xmm1"; minsd "minsd xmm0, xmm1"; maxsd "maxsd xmm0, xmm1";
    sqrtsd "sqrtsd xmm0, xmm1";
    addss "addss xmm0, xmm1"; subss "subss xmm0, xmm1"; mulss "mulss xmm0, xmm1";
    divss "divss xmm0, xmm1"; minss "minss xmm0, xmm1"; maxss "maxss xmm0, xmm1";
    sqrtss "sqrtss xmm0, xmm1";
    addps "addps xmm0, xmm1"; subpd "subpd xmm0, xmm1"; mulps "mulps xmm0, xmm1";
    divps "divps xmm0, xmm1"; sqrtps "sqrtps xmm0, xmm1"; maxps "maxps xmm0, xmm1";
    haddps "haddps xmm0, xmm1"; hsubpd "hsubpd xmm0, xmm1"; addsubps "addsubps xmm0, xmm1";
    dpps_ff "dpps xmm0, xmm1, 0xff"; dpps_b6 "dpps xmm0, xmm1, 0xb6"; dppd_31 "dppd xmm0, xmm1, 0x31";
    dppd_32 "dppd xmm0, xmm1, 0x32"; dppd_33 "dppd xmm0, xmm1, 0x33";
    cvtss2sd "cvtss2sd xmm0, xmm1"; cvtsd2ss "cvtsd2ss xmm0, xmm1";
    cvtps2pd "cvtps2pd xmm0, xmm1"; cvtpd2ps "cvtpd2ps xmm0, xmm1";
    cvtdq2ps "cvtdq2ps xmm0, xmm1"; cvtdq2pd "cvtdq2pd xmm0, xmm1";
    cvtps2dq "cvtps2dq xmm0, xmm1"; cvttps2dq "cvttps2dq xmm0, xmm1";
    cvtpd2dq "cvtpd2dq xmm0, xmm1"; cvttpd2dq "cvttpd2dq xmm0, xmm1";
    cvtsd2si32 "cvtsd2si eax, xmm1\nmovq xmm0, rax"; cvttsd2si32 "cvttsd2si eax, xmm1\nmovq xmm0, rax";
    cvtsd2si64 "cvtsd2si rax, xmm1\nmovq xmm0, rax"; cvttsd2si64 "cvttsd2si rax, xmm1\nmovq xmm0, rax";
    cvtss2si32 "cvtss2si eax, xmm1\nmovq xmm0, rax"; cvttss2si32 "cvttss2si eax, xmm1\nmovq xmm0, rax";
    cvtss2si64 "cvtss2si rax, xmm1\nmovq xmm0, rax"; cvttss2si64 "cvttss2si rax, xmm1\nmovq xmm0, rax";
    cvtsi2sd32 "cvtsi2sd xmm0, eax"; cvtsi2sd64 "cvtsi2sd xmm0, rax";
    cvtsi2ss32 "cvtsi2ss xmm0, eax"; cvtsi2ss64 "cvtsi2ss xmm0, rax";
    comisd "xor eax, eax\ncomisd xmm0, xmm1\nlahf\nmovzx eax, ah\npinsrq xmm0, rax, 0";
    ucomisd "xor eax, eax\nucomisd xmm0, xmm1\nlahf\nmovzx eax, ah\npinsrq xmm0, rax, 0";
    comiss "xor eax, eax\ncomiss xmm0, xmm1\nlahf\nmovzx eax, ah\npinsrd xmm0, eax, 0";
    ucomiss "xor eax, eax\nucomiss xmm0, xmm1\nlahf\nmovzx eax, ah\npinsrd xmm0, eax, 0";
    roundsd0 "roundsd xmm0, xmm1, 0"; roundsd1 "roundsd xmm0, xmm1, 1"; roundsd2 "roundsd xmm0, xmm1, 2";
    roundsd3 "roundsd xmm0, xmm1, 3"; roundsd4 "roundsd xmm0, xmm1, 4"; roundsd12 "roundsd xmm0, xmm1, 12";
    roundss0 "roundss xmm0, xmm1, 0"; roundss4 "roundss xmm0, xmm1, 4"; roundss9 "roundss xmm0, xmm1, 9";
    roundps3 "roundps xmm0, xmm1, 3";
    fmadd231sd "vfmadd231sd xmm0, xmm1, xmm2"; fmsub213sd "vfmsub213sd xmm0, xmm1, xmm2";
    fnmadd132sd "vfnmadd132sd xmm0, xmm1, xmm2"; fnmsub231ss "vfnmsub231ss xmm0, xmm1, xmm2";
    fmadd132ss "vfmadd132ss xmm0, xmm1, xmm2"; fmadd213ss "vfmadd213ss xmm0, xmm1, xmm2";
    fmaddsub231ps "vfmaddsub231ps xmm0, xmm1, xmm2";
    vcvtph2ps "vcvtph2ps xmm0, xmm1"; vcvtps2ph0 "vcvtps2ph xmm0, xmm1, 0"; vcvtps2ph4 "vcvtps2ph xmm0, xmm1, 4";
    vcvtps2ph3 "vcvtps2ph xmm0, xmm1, 3";
    cmp0 "vcmpsd xmm0, xmm0, xmm1, 0"; cmp1 "vcmpsd xmm0, xmm0, xmm1, 1"; cmp2 "vcmpsd xmm0, xmm0, xmm1, 2";
    cmp3 "vcmpsd xmm0, xmm0, xmm1, 3"; cmp4 "vcmpsd xmm0, xmm0, xmm1, 4"; cmp5 "vcmpsd xmm0, xmm0, xmm1, 5";
    cmp6 "vcmpsd xmm0, xmm0, xmm1, 6"; cmp7 "vcmpsd xmm0, xmm0, xmm1, 7"; cmp8 "vcmpsd xmm0, xmm0, xmm1, 8";
    cmp9 "vcmpsd xmm0, xmm0, xmm1, 9"; cmp10 "vcmpsd xmm0, xmm0, xmm1, 10"; cmp11 "vcmpsd xmm0, xmm0, xmm1, 11";
    cmp12 "vcmpsd xmm0, xmm0, xmm1, 12"; cmp13 "vcmpsd xmm0, xmm0, xmm1, 13"; cmp14 "vcmpsd xmm0, xmm0, xmm1, 14";
    cmp15 "vcmpsd xmm0, xmm0, xmm1, 15"; cmp16 "vcmpsd xmm0, xmm0, xmm1, 16"; cmp17 "vcmpsd xmm0, xmm0, xmm1, 17";
    cmp18 "vcmpsd xmm0, xmm0, xmm1, 18"; cmp19 "vcmpsd xmm0, xmm0, xmm1, 19"; cmp20 "vcmpsd xmm0, xmm0, xmm1, 20";
    cmp21 "vcmpsd xmm0, xmm0, xmm1, 21"; cmp22 "vcmpsd xmm0, xmm0, xmm1, 22"; cmp23 "vcmpsd xmm0, xmm0, xmm1, 23";
    cmp24 "vcmpsd xmm0, xmm0, xmm1, 24"; cmp25 "vcmpsd xmm0, xmm0, xmm1, 25"; cmp26 "vcmpsd xmm0, xmm0, xmm1, 26";
    cmp27 "vcmpsd xmm0, xmm0, xmm1, 27"; cmp28 "vcmpsd xmm0, xmm0, xmm1, 28"; cmp29 "vcmpsd xmm0, xmm0, xmm1, 29";
    cmp30 "vcmpsd xmm0, xmm0, xmm1, 30"; cmp31 "vcmpsd xmm0, xmm0, xmm1, 31";
    cmpps1 "cmpps xmm0, xmm1, 1"; cmpps6 "cmpps xmm0, xmm1, 6";
}

type Native = fn(V128, V128, V128, u32) -> (V128, u32);

/// Every rounding, DAZ, FTZ, with the inexact flag clear, sticky, or all flags sticky.
fn controls() -> Vec<u32> {
    let mut v = Vec::new();
    for rc in 0..4 {
        for (daz, ftz) in [(0, 0), (0x40, 0), (0, 0x8000), (0x40, 0x8000)] {
            for sticky in [0, 0x20, 0x3f] {
                v.push(0x1f80 | rc << 13 | daz | ftz | sticky);
            }
        }
    }
    v
}

fn fma_available() -> bool {
    is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

fn check(
    name: &str,
    native: Native,
    ours: impl Fn(&mut Mxcsr, V128, V128, V128) -> Sse<V128>,
    args: [V128; 3],
) {
    for mx in controls() {
        one(name, native, &ours, args, mx);
    }
}

fn one(
    name: &str,
    native: Native,
    ours: &impl Fn(&mut Mxcsr, V128, V128, V128) -> Sse<V128>,
    [a, b, c]: [V128; 3],
    mx: u32,
) {
    let want = native(a, b, c, mx);
    let mut m = Mxcsr(mx);
    let got = ours(&mut m, a, b, c);
    assert!(
        got == Ok(want.0) && m.0 == want.1,
        "{name} {a:?} {b:?} {c:?} mxcsr {mx:04x}: silicon {:?} {:04x}, ours {got:?} {:04x}",
        want.0,
        want.1,
        m.0
    );
}

fn d(v: u64) -> V128 {
    V128::from_halves(v, 0x3ff0_0000_0000_0000)
}

fn s(v: u32) -> V128 {
    V128::from_u32s([v, 0x3f80_0000, 0x4000_0000, 0x4040_0000])
}

fn pairs64(name: &str, native: Native, f: impl Fn(&mut Mxcsr, u64, u64) -> Sse<u64>) {
    let ours = |m: &mut Mxcsr, a: V128, b: V128, _: V128| Ok(a.with_u64(0, f(m, a.low(), b.low())?));
    for &a in F64S {
        for &b in F64S {
            check(name, native, ours, [d(a), d(b), d(0)]);
        }
    }
    let mut rng = Rng(1);
    let all = controls();
    for _ in 0..100_000 {
        let (a, b) = (rng.f64(), rng.f64());
        let mx = all[rng.below(all.len() as u64) as usize];
        one(name, native, &ours, [d(a), d(b), d(0)], mx);
    }
}

fn pairs32(name: &str, native: Native, f: impl Fn(&mut Mxcsr, u32, u32) -> Sse<u32>) {
    let ours =
        |m: &mut Mxcsr, a: V128, b: V128, _: V128| Ok(a.with_u32(0, f(m, a.u32_lane(0), b.u32_lane(0))?));
    for &a in F32S {
        for &b in F32S {
            check(name, native, ours, [s(a), s(b), s(0)]);
        }
    }
    let mut rng = Rng(2);
    let all = controls();
    for _ in 0..100_000 {
        let (a, b) = (rng.f32(), rng.f32());
        let mx = all[rng.below(all.len() as u64) as usize];
        one(name, native, &ours, [s(a), s(b), s(0)], mx);
    }
}

fn vectors(
    name: &str,
    native: Native,
    double: bool,
    ours: impl Fn(&mut Mxcsr, V128, V128, V128) -> Sse<V128>,
) {
    let mut rng = Rng(3);
    let all = controls();
    for i in 0..60_000u32 {
        let mut v = || {
            if double {
                V128::from_u64s([rng.f64(), rng.f64()])
            } else {
                V128::from_u32s([rng.f32(), rng.f32(), rng.f32(), rng.f32()])
            }
        };
        let args = [v(), v(), v()];
        one(name, native, &ours, args, all[i as usize % all.len()]);
    }
}

#[test]
fn scalar_arithmetic() {
    pairs64("addsd", addsd, |m, a, b| scalar::add::<f64>(m, a, b));
    pairs64("subsd", subsd, |m, a, b| scalar::sub::<f64>(m, a, b));
    pairs64("mulsd", mulsd, |m, a, b| scalar::mul::<f64>(m, a, b));
    pairs64("divsd", divsd, |m, a, b| scalar::div::<f64>(m, a, b));
    pairs64("minsd", minsd, |m, a, b| scalar::min::<f64>(m, a, b));
    pairs64("maxsd", maxsd, |m, a, b| scalar::max::<f64>(m, a, b));
    pairs64("sqrtsd", sqrtsd, |m, _, b| scalar::sqrt::<f64>(m, b));
    pairs32("addss", addss, |m, a, b| scalar::add::<f32>(m, a, b));
    pairs32("subss", subss, |m, a, b| scalar::sub::<f32>(m, a, b));
    pairs32("mulss", mulss, |m, a, b| scalar::mul::<f32>(m, a, b));
    pairs32("divss", divss, |m, a, b| scalar::div::<f32>(m, a, b));
    pairs32("minss", minss, |m, a, b| scalar::min::<f32>(m, a, b));
    pairs32("maxss", maxss, |m, a, b| scalar::max::<f32>(m, a, b));
    pairs32("sqrtss", sqrtss, |m, _, b| scalar::sqrt::<f32>(m, b));
}

#[test]
fn comparisons() {
    let flags = |r: Sse<soft::Relation>| r.map(|r| u64::from(r.eflags() | 2));
    pairs64("comisd", comisd, |m, a, b| flags(scalar::comi::<f64>(m, a, b, false)));
    pairs64("ucomisd", ucomisd, |m, a, b| flags(scalar::comi::<f64>(m, a, b, true)));
    pairs32("comiss", comiss, |m, a, b| flags(scalar::comi::<f32>(m, a, b, false)).map(|v| v as u32));
    pairs32("ucomiss", ucomiss, |m, a, b| flags(scalar::comi::<f32>(m, a, b, true)).map(|v| v as u32));
    if !is_x86_feature_detected!("avx") {
        println!("SKIPPED comparisons by AVX predicate: no AVX");
        return;
    }
    let natives: [Native; 32] = [
        cmp0, cmp1, cmp2, cmp3, cmp4, cmp5, cmp6, cmp7, cmp8, cmp9, cmp10, cmp11, cmp12, cmp13, cmp14, cmp15,
        cmp16, cmp17, cmp18, cmp19, cmp20, cmp21, cmp22, cmp23, cmp24, cmp25, cmp26, cmp27, cmp28, cmp29,
        cmp30, cmp31,
    ];
    for (p, &native) in natives.iter().enumerate() {
        for &a in F64S.iter().step_by(3) {
            for &b in F64S {
                check(
                    &format!("cmpsd {p}"),
                    native,
                    |m, a, b, _| {
                        Ok(a.with_u64(0, scalar::cmp::<f64>(m, a.low(), b.low(), Predicate(p as u8))?))
                    },
                    [d(a), d(b), d(0)],
                );
            }
        }
    }
    vectors("cmpltps", cmpps1, false, |m, a, b, _| packed::cmpps(m, a, b, Predicate(1)));
    vectors("cmpnleps", cmpps6, false, |m, a, b, _| packed::cmpps(m, a, b, Predicate(6)));
}

#[test]
fn conversions() {
    pairs64("cvtss2sd", cvtss2sd, |m, _, b| convert::cvtss2sd(m, b as u32));
    pairs32(
        "cvtss2sd'",
        |a, b, c, m| {
            let (r, m) = cvtss2sd(a, b, c, m);
            (a.with_u32(0, (r.low() >> 32 ^ r.low()) as u32), m)
        },
        |m, _, b| convert::cvtss2sd(m, b).map(|v| (v >> 32 ^ v) as u32),
    );
    pairs64(
        "cvtsd2ss",
        |a, b, c, m| {
            let (r, m) = cvtsd2ss(a, b, c, m);
            (a.with_u64(0, u64::from(r.u32_lane(0))), m)
        },
        |m, _, b| convert::cvtsd2ss(m, b).map(u64::from),
    );
    macro_rules! ints {
        ($($n:ident $f:ident $u:ty, $pairs:ident;)*) => {$(
            $pairs(stringify!($n), |a, b, c, m| {
                let (r, m) = $n(a, b, c, m);
                (fold(a, r), m)
            }, |m, _, b| convert::$n(m, b).map(|v| mix(v as $u as u64) as _));
        )*};
    }
    fn mix(v: u64) -> u64 {
        v ^ v >> 32 << 7
    }
    fn fold(a: V128, r: V128) -> V128 {
        if a.u32_lane(2) == 0x4000_0000 {
            a.with_u32(0, mix(r.low()) as u32)
        } else {
            a.with_u64(0, mix(r.low()))
        }
    }
    ints! {
        cvtsd2si32 f64 u32, pairs64; cvttsd2si32 f64 u32, pairs64; cvtsd2si64 f64 u64, pairs64;
        cvttsd2si64 f64 u64, pairs64; cvtss2si32 f32 u32, pairs32; cvttss2si32 f32 u32, pairs32;
        cvtss2si64 f32 u64, pairs32; cvttss2si64 f32 u64, pairs32;
    }
    pairs64("cvtsi2sd32", cvtsi2sd32, |_, a, _| Ok(convert::cvtsi2sd32(a as i32)));
    pairs64("cvtsi2sd64", cvtsi2sd64, |m, a, _| convert::cvtsi2sd64(m, a as i64));
    fn ss(a: V128, r: V128) -> V128 {
        a.with_u64(0, u64::from(r.u32_lane(0)))
    }
    pairs64(
        "cvtsi2ss32",
        |a, b, c, m| {
            let r = cvtsi2ss32(a, b, c, m);
            (ss(a, r.0), r.1)
        },
        |m, a, _| convert::cvtsi2ss32(m, a as i32).map(u64::from),
    );
    pairs64(
        "cvtsi2ss64",
        |a, b, c, m| {
            let r = cvtsi2ss64(a, b, c, m);
            (ss(a, r.0), r.1)
        },
        |m, a, _| convert::cvtsi2ss64(m, a as i64).map(u64::from),
    );
    vectors("cvtps2pd", cvtps2pd, false, |m, _, b, _| convert::cvtps2pd(m, b));
    vectors("cvtpd2ps", cvtpd2ps, true, |m, _, b, _| convert::cvtpd2ps(m, b));
    vectors("cvtdq2ps", cvtdq2ps, false, |m, _, b, _| convert::cvtdq2ps(m, b));
    vectors("cvtdq2pd", cvtdq2pd, false, |_, _, b, _| Ok(convert::cvtdq2pd(b)));
    vectors("cvtps2dq", cvtps2dq, false, |m, _, b, _| convert::cvtps2dq(m, b, false));
    vectors("cvttps2dq", cvttps2dq, false, |m, _, b, _| convert::cvtps2dq(m, b, true));
    vectors("cvtpd2dq", cvtpd2dq, true, |m, _, b, _| convert::cvtpd2dq(m, b, false));
    vectors("cvttpd2dq", cvttpd2dq, true, |m, _, b, _| convert::cvtpd2dq(m, b, true));
}

#[test]
fn half_precision() {
    if !fma_available() {
        println!("SKIPPED half_precision: no F16C");
        return;
    }
    for h in 0..=0xffffu16 {
        let b = V128::ZERO.with_u16(0, h);
        for mx in [0x1f80, 0x1fc0, 0x9fc0] {
            one(
                "vcvtph2ps",
                vcvtph2ps,
                &|m: &mut Mxcsr, _: V128, b: V128, _: V128| {
                    let h = b.u16s();
                    Ok(V128::from_u32s(convert::f16_to_f32(m, [h[0], h[1], h[2], h[3]])?))
                },
                [b, b, b],
                mx,
            );
        }
    }
    let to = |imm: u8| {
        move |m: &mut Mxcsr, _: V128, b: V128, _: V128| {
            let r = convert::f32_to_f16(m, b.u32s(), imm)?;
            Ok(V128::from_u16s([r[0], r[1], r[2], r[3], 0, 0, 0, 0]))
        }
    };
    let half_range = |rng: &mut Rng| {
        let e = 127 - 28 + rng.below(48);
        (rng.below(2) << 31 | e << 23 | rng.frac() >> 41) as u32
    };
    let mut rng = Rng(9);
    for _ in 0..50_000 {
        let v =
            V128::from_u32s([half_range(&mut rng), rng.f32(), half_range(&mut rng), half_range(&mut rng)]);
        for mx in [0x1f80, 0x3fc0, 0xffc0, 0xdf80] {
            one("vcvtps2ph 0", vcvtps2ph0, &to(0), [v, v, v], mx);
            one("vcvtps2ph 3", vcvtps2ph3, &to(3), [v, v, v], mx);
            one("vcvtps2ph 4", vcvtps2ph4, &to(4), [v, v, v], mx);
        }
    }
}

#[test]
fn rounding_to_integral() {
    macro_rules! r {
        ($($n:ident $imm:literal $f:ty, $pairs:ident;)*) => {$(
            $pairs(stringify!($n), $n, |m, _, b| scalar::round::<$f>(m, b, $imm));
        )*};
    }
    r! {
        roundsd0 0 f64, pairs64; roundsd1 1 f64, pairs64; roundsd2 2 f64, pairs64; roundsd3 3 f64, pairs64;
        roundsd4 4 f64, pairs64; roundsd12 12 f64, pairs64; roundss0 0 f32, pairs32; roundss4 4 f32, pairs32;
        roundss9 9 f32, pairs32;
    }
    vectors("roundps", roundps3, false, |m, _, b, _| packed::roundps(m, b, 3));
}

#[test]
fn packed_arithmetic() {
    vectors("addps", addps, false, |m, a, b, _| packed::addps(m, a, b));
    vectors("subpd", subpd, true, |m, a, b, _| packed::subpd(m, a, b));
    vectors("mulps", mulps, false, |m, a, b, _| packed::mulps(m, a, b));
    vectors("divps", divps, false, |m, a, b, _| packed::divps(m, a, b));
    vectors("sqrtps", sqrtps, false, |m, _, b, _| packed::sqrtps(m, b));
    vectors("maxps", maxps, false, |m, a, b, _| packed::maxps(m, a, b));
    vectors("haddps", haddps, false, |m, a, b, _| packed::haddps(m, a, b));
    vectors("hsubpd", hsubpd, true, |m, a, b, _| packed::hsubpd(m, a, b));
    vectors("addsubps", addsubps, false, |m, a, b, _| packed::addsubps(m, a, b));
}

/// DPPS on an Intel processor, but for exceptions: NaNs go by the order in which it adds.
pub(super) fn dpps_of_intel(mx: u32, a: V128, b: V128, imm: u8) -> V128 {
    let env = &mut soft::Env::from_mxcsr(mx | 0x1f80);
    let (x, y) = (a.u32s(), b.u32s());
    let product = |env: &mut soft::Env, n: usize| {
        if imm >> (4 + n) & 1 != 0 { soft::mul(env, soft::F32(x[n]), soft::F32(y[n])) } else { soft::F32(0) }
    };
    let p: [soft::F32; 4] = core::array::from_fn(|n| product(env, n));
    let s: [soft::F32; 4] = core::array::from_fn(|n| soft::add(env, p[n ^ 1], p[n]));
    V128::from_u32s(core::array::from_fn(|n| {
        let total = soft::add(env, s[n], s[n ^ 2]).0;
        if imm >> n & 1 != 0 { total } else { 0 }
    }))
}

/// DPPD likewise.
fn dppd_of_intel(mx: u32, a: V128, b: V128, imm: u8) -> V128 {
    let env = &mut soft::Env::from_mxcsr(mx | 0x1f80);
    let (x, y) = (a.u64s(), b.u64s());
    let product = |env: &mut soft::Env, n: usize| {
        if imm >> (4 + n) & 1 != 0 { soft::mul(env, soft::F64(x[n]), soft::F64(y[n])) } else { soft::F64(0) }
    };
    let p: [soft::F64; 2] = core::array::from_fn(|n| product(env, n));
    V128::from_u64s(core::array::from_fn(|n| {
        let total = soft::add(env, p[n], p[n ^ 1]).0;
        if imm >> n & 1 != 0 { total } else { 0 }
    }))
}

#[test]
fn dot_products() {
    type Dot = fn(&mut Mxcsr, V128, V128, u8) -> Sse<V128>;
    type Intel = fn(u32, V128, V128, u8) -> V128;
    let list: [(&str, Native, bool, Dot, Intel, u8); 5] = [
        ("dpps ff", dpps_ff, false, packed::dpps, dpps_of_intel, 0xff),
        ("dpps b6", dpps_b6, false, packed::dpps, dpps_of_intel, 0xb6),
        ("dppd 31", dppd_31, true, packed::dppd, dppd_of_intel, 0x31),
        ("dppd 32", dppd_32, true, packed::dppd, dppd_of_intel, 0x32),
        ("dppd 33", dppd_33, true, packed::dppd, dppd_of_intel, 0x33),
    ];
    let mut aside = SetAside::default();
    let mut compared = 0;
    for (name, native, double, ours, intel, imm) in list {
        let mut rng = Rng(3);
        let all = controls();
        for i in 0..60_000usize {
            let mut v = || {
                if double {
                    V128::from_u64s([rng.f64(), rng.f64()])
                } else {
                    V128::from_u32s([rng.f32(), rng.f32(), rng.f32(), rng.f32()])
                }
            };
            let (a, b, mx) = (v(), v(), all[i % all.len()]);
            compared += 1;
            let (want, after) = native(a, b, V128::ZERO, mx);
            let mut m = Mxcsr(mx);
            let got = ours(&mut m, a, b, imm);
            if got == Ok(want) && m.0 == after {
                continue;
            }
            let theirs = vendor::host() == Vendor::Intel && intel(mx, a, b, imm) == want && m.0 == after;
            assert!(
                theirs,
                "{name} {a:?} {b:?} mxcsr {mx:04x}: silicon {want:?} {after:04x}, ours {got:?} {:04x}",
                m.0
            );
            aside.note("dpps-nan");
        }
    }
    println!("{compared} dot products compared, {aside}");
}

#[test]
fn fused_multiply_add() {
    if !fma_available() {
        println!("SKIPPED fused_multiply_add: no FMA");
        return;
    }
    fn run<F: Float>(name: &str, native: Native, order: [usize; 3], signs: FmaSigns)
    where
        F::Bits: TryFrom<u64>,
    {
        let wide = size_of::<F::Bits>() == 8;
        let conv = |v: u64| F::Bits::try_from(v).ok().unwrap_or_default();
        let ours = |m: &mut Mxcsr, a: V128, b: V128, c: V128| {
            let v = [a, b, c].map(|v| if wide { conv(v.low()) } else { conv(u64::from(v.u32_lane(0))) });
            let r = scalar::fma::<F>(m, v[order[0]], v[order[1]], v[order[2]], signs)?;
            let r64: u64 = r.into();
            Ok(if wide { a.with_u64(0, r64) } else { a.with_u32(0, r64 as u32) })
        };
        let mut rng = Rng(4);
        let all = controls();
        for i in 0..300_000usize {
            let mut v = || if wide { d(rng.f64()) } else { s(rng.f32()) };
            one(name, native, &ours, [v(), v(), v()], all[i % all.len()]);
        }
        let list: Vec<V128> =
            if wide { F64S.iter().map(|&v| d(v)).collect() } else { F32S.iter().map(|&v| s(v)).collect() };
        for &a in &list {
            for &b in list.iter().step_by(2) {
                for &c in &list {
                    one(name, native, &ours, [a, b, c], 0x1f80);
                }
            }
        }
    }
    run::<f64>("fmadd231sd", fmadd231sd, [1, 2, 0], FmaSigns::MADD);
    run::<f64>("fmsub213sd", fmsub213sd, [1, 0, 2], FmaSigns::MSUB);
    run::<f64>("fnmadd132sd", fnmadd132sd, [0, 2, 1], FmaSigns::NMADD);
    run::<f32>("fnmsub231ss", fnmsub231ss, [1, 2, 0], FmaSigns::NMSUB);
    run::<f32>("fmadd132ss", fmadd132ss, [0, 2, 1], FmaSigns::MADD);
    run::<f32>("fmadd213ss", fmadd213ss, [1, 0, 2], FmaSigns::MADD);
    vectors("fmaddsub231ps", fmaddsub231ps, false, |m, a, b, c| {
        packed::fmaps(m, b, c, a, [FmaSigns::MSUB, FmaSigns::MADD])
    });
}

sse_op! { rcpss_native "rcpss xmm0, xmm1"; rsqrtss_native "rsqrtss xmm0, xmm1"; }

#[test]
fn approximations() {
    use super::super::sse::approx;
    // The tables are those of AMD's Zen family; others are as close as the manuals demand.
    let exact = vendor::host() == Vendor::Amd;
    let mut aside = SetAside::default();
    let mut same = |what: &str, x: u32, got: u32, want: u32| {
        if got == want {
            return;
        }
        let (g, w) = (f64::from(f32::from_bits(got)), f64::from(f32::from_bits(want)));
        let near = g.is_finite() && w.is_finite() && (g - w).abs() <= 3.0 / 4096.0 * g.abs().min(w.abs());
        assert!(!exact && near, "{what} {x:08x}: silicon {want:08x}, ours {got:08x}");
        aside.note("approximation");
    };
    let mut see = |x: u32| {
        let want = rcpss_native(s(x), s(x), s(x), 0x1f80).0.u32_lane(0);
        same("rcpss", x, approx::rcp(x), want);
        let want = rsqrtss_native(s(x), s(x), s(x), 0x1f80).0.u32_lane(0);
        same("rsqrtss", x, approx::rsqrt(x), want);
    };
    for &x in F32S {
        see(x);
    }
    for i in 0..1 << 21 {
        // Every exponent and sign, and every table index.
        see((i as u32) << 11 | (i as u32).wrapping_mul(0x9e37) & 0x7ff);
    }
    println!("{} approximations compared, {aside}", 2 * ((1 << 21) + F32S.len()));
}
