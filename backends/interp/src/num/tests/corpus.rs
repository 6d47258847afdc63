//! The recorded corpus: what the processor answered to seeded operands, replayed on every
//! host architecture.
//!
//! `testdata/num-*.txt` has a line for each operation: its name, then a 64-bit digest of the
//! results and flags of each block of cases. The operands are not stored: they come from
//! [`values`](super::values), so a change there means recording again, on an x86-64 processor
//! with AVX2, AES and SHA, by
//!
//! `cargo test -p godwit-interp record_num_corpus -- --ignored`
//!
//! `num-math.txt` is different: silicon's transcendentals are not correctly rounded and ours
//! are, so it holds our own results, to hold every host to the same bits.

use super::super::soft::{self, Env, F32, F64, F80, bcd, convert as fconv, rem};
use super::super::sse::scalar::{self, FmaSigns, Predicate};
use super::super::sse::{Mxcsr, Sse, approx, convert, packed};
use super::super::vec::V128;
use super::super::x87math;
use super::simd;
use super::values::Rng;

const BLOCKS: usize = 16;
const CASES: usize = 256;

/// A case's operands, and the control word: MXCSR or the x87's.
type Case = (V128, V128, V128, u32);
/// Result and flags.
type Answer = (V128, u32);

struct Op {
    name: &'static str,
    operands: fn(&mut Rng) -> Case,
    ours: Box<dyn Fn(Case) -> Answer>,
    #[cfg(target_arch = "x86_64")]
    native: Option<Box<dyn Fn(Case) -> Answer>>,
}

fn controls(rng: &mut Rng) -> u32 {
    let sticky = [0, 0x20, 0x3f][rng.below(3) as usize];
    let mode = if rng.below(2) == 0 { 0 } else { rng.next() as u32 & 0xe040 };
    0x1f80 | sticky | mode
}

fn singles(rng: &mut Rng) -> Case {
    let mut v = || V128::from_u32s([rng.f32(), rng.f32(), rng.f32(), rng.f32()]);
    let (a, b, c) = (v(), v(), v());
    (a, b, c, controls(rng))
}

fn doubles(rng: &mut Rng) -> Case {
    let mut v = || V128::from_u64s([rng.f64(), rng.f64()]);
    let (a, b, c) = (v(), v(), v());
    (a, b, c, controls(rng))
}

fn integers(rng: &mut Rng) -> Case {
    (simd::vector(rng), simd::vector(rng), simd::vector(rng), 0x1f80)
}

fn extended(rng: &mut Rng) -> Case {
    let mut v = || {
        let (se, frac) = rng.f80();
        V128::from_halves(frac, u64::from(se))
    };
    let (a, b) = (v(), v());
    let pc = [0, 2, 3][rng.below(3) as usize] << 8;
    (a, b, V128::ZERO, 0x3f | pc | (rng.next() as u32 & 3) << 10)
}

fn f80(v: V128) -> F80 {
    F80 { se: v.high() as u16, frac: v.low() }
}

fn v80(v: F80) -> V128 {
    V128::from_halves(v.frac, u64::from(v.se))
}

fn digest(h: &mut u64, a: Answer) {
    for b in a.0.0.into_iter().chain(a.1.to_le_bytes()) {
        *h = (*h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

fn line(op: &Op, answer: &dyn Fn(Case) -> Answer) -> String {
    let mut rng = Rng(op.name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b))));
    let mut s = op.name.to_string();
    for _ in 0..BLOCKS {
        let mut h = 0xcbf2_9ce4_8422_2325;
        for _ in 0..CASES {
            digest(&mut h, answer((op.operands)(&mut rng)));
        }
        s += &format!(" {h:016x}");
    }
    s
}

fn replay(file: &str, recorded: &str, ops: &[Op]) {
    let mut lines = recorded.lines();
    let mut bad = Vec::new();
    for op in ops {
        let Some(want) = lines.next() else {
            panic!("{file} ends before {}: record again", op.name);
        };
        let got = line(op, &*op.ours);
        if got != want {
            let block = got.split(' ').zip(want.split(' ')).position(|(g, w)| g != w);
            bad.push(format!("{} (first in block {block:?})", op.name));
        }
    }
    assert_eq!(lines.next(), None, "{file} has more operations than the tests: record again");
    assert!(bad.is_empty(), "{file}: results differ from the recorded ones: {bad:?}");
}

macro_rules! sse_table {
    ($($name:ident $operands:ident |$m:ident, $a:ident, $b:ident, $c:ident| $e:expr;)*) => {
        vec![$(Op {
            name: stringify!($name),
            operands: $operands,
            ours: Box::new(|($a, $b, $c, mx): Case| {
                let mut reg = Mxcsr(mx);
                let $m = &mut reg;
                let _ = ($a, $b, $c, &$m);
                let r: Sse<V128> = $e;
                (r.unwrap_or(V128::ZERO), reg.0)
            }),
            #[cfg(target_arch = "x86_64")]
            native: Some(Box::new(|(a, b, c, mx): Case| super::sse_native::$name(a, b, c, mx))),
        },)*]
    };
}

fn s0(a: V128, r: Sse<u32>) -> Sse<V128> {
    r.map(|v| a.with_u32(0, v))
}

fn d0(a: V128, r: Sse<u64>) -> Sse<V128> {
    r.map(|v| a.with_u64(0, v))
}

fn i0<T: Into<i64>>(r: Sse<T>, mask: u64) -> Sse<V128> {
    r.map(|v| V128::from_halves(v.into() as u64 & mask, 0))
}

fn sse_ops() -> Vec<Op> {
    const LOW: u64 = 0xffff_ffff;
    sse_table! {
        addsd doubles |m, a, b, _c| d0(a, scalar::add::<f64>(m, a.low(), b.low()));
        subsd doubles |m, a, b, _c| d0(a, scalar::sub::<f64>(m, a.low(), b.low()));
        mulsd doubles |m, a, b, _c| d0(a, scalar::mul::<f64>(m, a.low(), b.low()));
        divsd doubles |m, a, b, _c| d0(a, scalar::div::<f64>(m, a.low(), b.low()));
        minsd doubles |m, a, b, _c| d0(a, scalar::min::<f64>(m, a.low(), b.low()));
        maxsd doubles |m, a, b, _c| d0(a, scalar::max::<f64>(m, a.low(), b.low()));
        sqrtsd doubles |m, a, b, _c| d0(a, scalar::sqrt::<f64>(m, b.low()));
        addss singles |m, a, b, _c| s0(a, scalar::add::<f32>(m, a.u32_lane(0), b.u32_lane(0)));
        subss singles |m, a, b, _c| s0(a, scalar::sub::<f32>(m, a.u32_lane(0), b.u32_lane(0)));
        mulss singles |m, a, b, _c| s0(a, scalar::mul::<f32>(m, a.u32_lane(0), b.u32_lane(0)));
        divss singles |m, a, b, _c| s0(a, scalar::div::<f32>(m, a.u32_lane(0), b.u32_lane(0)));
        minss singles |m, a, b, _c| s0(a, scalar::min::<f32>(m, a.u32_lane(0), b.u32_lane(0)));
        maxss singles |m, a, b, _c| s0(a, scalar::max::<f32>(m, a.u32_lane(0), b.u32_lane(0)));
        sqrtss singles |m, a, b, _c| s0(a, scalar::sqrt::<f32>(m, b.u32_lane(0)));
        addps singles |m, a, b, _c| packed::addps(m, a, b);
        subpd doubles |m, a, b, _c| packed::subpd(m, a, b);
        mulps singles |m, a, b, _c| packed::mulps(m, a, b);
        divps singles |m, a, b, _c| packed::divps(m, a, b);
        sqrtps singles |m, _a, b, _c| packed::sqrtps(m, b);
        maxps singles |m, a, b, _c| packed::maxps(m, a, b);
        haddps singles |m, a, b, _c| packed::haddps(m, a, b);
        hsubpd doubles |m, a, b, _c| packed::hsubpd(m, a, b);
        addsubps singles |m, a, b, _c| packed::addsubps(m, a, b);
        dpps_ff singles |m, a, b, _c| packed::dpps(m, a, b, 0xff);
        dpps_b6 singles |m, a, b, _c| packed::dpps(m, a, b, 0xb6);
        dppd_31 doubles |m, a, b, _c| packed::dppd(m, a, b, 0x31);
        cmpps1 singles |m, a, b, _c| packed::cmpps(m, a, b, Predicate(1));
        cmpps6 singles |m, a, b, _c| packed::cmpps(m, a, b, Predicate(6));
        cmp9 doubles |m, a, b, _c| d0(a, scalar::cmp::<f64>(m, a.low(), b.low(), Predicate(9)));
        cmp20 doubles |m, a, b, _c| d0(a, scalar::cmp::<f64>(m, a.low(), b.low(), Predicate(20)));
        cvtss2sd singles |m, a, b, _c| d0(a, convert::cvtss2sd(m, b.u32_lane(0)));
        cvtsd2ss doubles |m, a, b, _c| s0(a, convert::cvtsd2ss(m, b.low()));
        cvtps2pd singles |m, _a, b, _c| convert::cvtps2pd(m, b);
        cvtpd2ps doubles |m, _a, b, _c| convert::cvtpd2ps(m, b);
        cvtdq2ps integers |m, _a, b, _c| convert::cvtdq2ps(m, b);
        cvtdq2pd integers |m, _a, b, _c| Ok(convert::cvtdq2pd(b));
        cvtps2dq singles |m, _a, b, _c| convert::cvtps2dq(m, b, false);
        cvttps2dq singles |m, _a, b, _c| convert::cvtps2dq(m, b, true);
        cvtpd2dq doubles |m, _a, b, _c| convert::cvtpd2dq(m, b, false);
        cvttpd2dq doubles |m, _a, b, _c| convert::cvtpd2dq(m, b, true);
        cvtsd2si32 doubles |m, _a, b, _c| i0(convert::cvtsd2si32(m, b.low()), LOW);
        cvttsd2si64 doubles |m, _a, b, _c| i0(convert::cvttsd2si64(m, b.low()), !0);
        cvtss2si64 singles |m, _a, b, _c| i0(convert::cvtss2si64(m, b.u32_lane(0)), !0);
        cvttss2si32 singles |m, _a, b, _c| i0(convert::cvttss2si32(m, b.u32_lane(0)), LOW);
        cvtsi2sd64 doubles |m, a, _b, _c| d0(a, convert::cvtsi2sd64(m, a.low() as i64));
        cvtsi2ss32 doubles |m, a, _b, _c| s0(a, convert::cvtsi2ss32(m, a.low() as i32));
        cvtsi2ss64 doubles |m, a, _b, _c| s0(a, convert::cvtsi2ss64(m, a.low() as i64));
        roundsd4 doubles |m, a, b, _c| d0(a, scalar::round::<f64>(m, b.low(), 4));
        roundss9 singles |m, a, b, _c| s0(a, scalar::round::<f32>(m, b.u32_lane(0), 9));
        roundps3 singles |m, _a, b, _c| packed::roundps(m, b, 3);
        fmadd231sd doubles |m, a, b, c| d0(a, scalar::fma::<f64>(m, b.low(), c.low(), a.low(), FmaSigns::MADD));
        fnmsub231ss singles |m, a, b, c| s0(a, scalar::fma::<f32>(m, b.u32_lane(0), c.u32_lane(0), a.u32_lane(0), FmaSigns::NMSUB));
        fmaddsub231ps singles |m, a, b, c| packed::fmaps(m, b, c, a, [FmaSigns::MSUB, FmaSigns::MADD]);
        vcvtph2ps integers |m, _a, b, _c| {
            let h = b.u16s();
            convert::f16_to_f32(m, [h[0], h[1], h[2], h[3]]).map(V128::from_u32s)
        };
        vcvtps2ph4 singles |m, _a, b, _c| {
            convert::f32_to_f16(m, b.u32s(), 4).map(|r| V128::from_u16s([r[0], r[1], r[2], r[3], 0, 0, 0, 0]))
        };
        rcpss_native singles |m, a, b, _c| Ok(a.with_u32(0, approx::rcp(b.u32_lane(0))));
        rsqrtss_native singles |m, a, b, _c| Ok(a.with_u32(0, approx::rsqrt(b.u32_lane(0))));
    }
}

fn simd_ops() -> Vec<Op> {
    let groups = [
        simd::two_operands::entries(),
        simd::one_operand::entries(),
        simd::immediates::entries(),
        simd::avx2_lanes::entries(),
        simd::aes_and_sha::entries(),
        simd::crc_and_bits::entries(),
        simd::mmx_forms::entries(),
        simd::strings::entries(),
    ];
    groups
        .into_iter()
        .flatten()
        .map(|e| Op {
            name: e.name,
            operands: integers,
            ours: Box::new(move |(a, b, c, _)| ((e.ours)(a, b, c), 0)),
            #[cfg(target_arch = "x86_64")]
            native: Some(Box::new(move |(a, b, c, mx)| ((e.native)(a, b, c, mx).0, 0))),
        })
        .collect()
}

const X87_FLAGS: u32 = 0x473f;

macro_rules! x87_table {
    ($($name:ident $path:ident |$v:ident, $a:ident, $b:ident| $e:expr;)*) => {
        vec![$(Op {
            name: stringify!($name),
            operands: extended,
            ours: Box::new(|(a, b, _, cw): Case| {
                let mut env = Env::from_cw(cw as u16);
                let ($v, $a, $b) = (&mut env, f80(a), f80(b));
                let _ = $b;
                let r: F80 = $e;
                (v80(r), env.flags & X87_FLAGS)
            }),
            #[cfg(target_arch = "x86_64")]
            native: x87_table!(@native $path $name),
        },)*]
    };
    (@native silicon $name:ident) => {
        Some(Box::new(|(a, b, _, cw): Case| {
            let (r, _, sw) = super::x87_native::$name(f80(a), f80(b), cw as u16);
            (v80(r), u32::from(sw) & X87_FLAGS)
        }))
    };
    (@native ours $name:ident) => { None };
}

macro_rules! x87_store_table {
    ($($name:ident |$v:ident, $a:ident| $e:expr;)*) => {
        vec![$(Op {
            name: stringify!($name),
            operands: extended,
            ours: Box::new(|(a, _, _, cw): Case| {
                let mut env = Env::from_cw(cw as u16);
                let ($v, $a) = (&mut env, f80(a));
                let mut r = V128::ZERO;
                let bytes = $e;
                r.0[..bytes.len()].copy_from_slice(&bytes);
                (r, env.flags & 0x23f)
            }),
            #[cfg(target_arch = "x86_64")]
            native: Some(Box::new(|(a, _, _, cw): Case| {
                let (_, r, sw) = super::x87_native::$name(f80(a), [0; 16], cw as u16);
                (V128(r), u32::from(sw) & 0x23f)
            })),
        },)*]
    };
}

fn x87_ops() -> Vec<Op> {
    let mut ops = x87_table! {
        fadd silicon |v, a, b| soft::add(v, a, b);
        fsub silicon |v, a, b| soft::sub(v, a, b);
        fmul silicon |v, a, b| soft::mul(v, a, b);
        fdiv silicon |v, a, b| soft::div(v, a, b);
        fsqrt silicon |v, a, b| soft::sqrt(v, a);
        frndint silicon |v, a, b| fconv::frndint(v, a);
        fscale silicon |v, a, b| rem::fscale(v, a, b);
        fprem silicon |v, a, b| rem::fprem(v, a, b, false);
        fprem1 silicon |v, a, b| rem::fprem(v, a, b, true);
        fxtract silicon |v, a, b| rem::fxtract(v, a).0;
    };
    ops.extend(x87_store_table! {
        st32 |v, a| soft::convert::<F80, F32>(v, a).0.to_le_bytes();
        st64 |v, a| soft::convert::<F80, F64>(v, a).0.to_le_bytes();
        ist16 |v, a| soft::to_i16(v, a, false).to_le_bytes();
        ist32 |v, a| soft::to_i32(v, a, false).to_le_bytes();
        ist64 |v, a| soft::to_i64(v, a, false).to_le_bytes();
        istt32 |v, a| soft::to_i32(v, a, true).to_le_bytes();
        bstp |v, a| bcd::fbstp(v, a);
    });
    ops
}

fn math_ops() -> Vec<Op> {
    x87_table! {
        f2xm1 ours |v, a, b| x87math::f2xm1(v, a);
        fyl2x ours |v, a, b| x87math::fyl2x(v, a, b);
        fyl2xp1 ours |v, a, b| x87math::fyl2xp1(v, a, b);
        fpatan ours |v, a, b| x87math::fpatan(v, a, b);
        fsin ours |v, a, b| x87math::fsin(v, a);
        fcos ours |v, a, b| x87math::fcos(v, a);
        fptan ours |v, a, b| x87math::fptan(v, a).0;
    }
}

#[test]
fn replay_sse() {
    replay("num-sse.txt", include_str!("../../../testdata/num-sse.txt"), &sse_ops());
}

#[test]
fn replay_simd() {
    replay("num-simd.txt", include_str!("../../../testdata/num-simd.txt"), &simd_ops());
}

#[test]
fn replay_x87() {
    replay("num-x87.txt", include_str!("../../../testdata/num-x87.txt"), &x87_ops());
}

#[test]
fn replay_math() {
    replay("num-math.txt", include_str!("../../../testdata/num-math.txt"), &math_ops());
}

#[cfg(target_arch = "x86_64")]
#[test]
#[ignore = "rewrites the corpus"]
fn record_num_corpus() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let files = [("sse", sse_ops()), ("simd", simd_ops()), ("x87", x87_ops()), ("math", math_ops())];
    for (name, ops) in files {
        let text: String =
            ops.iter().map(|op| line(op, op.native.as_deref().unwrap_or(&*op.ours)) + "\n").collect();
        std::fs::write(dir.join(format!("num-{name}.txt")), text).unwrap();
    }
}
