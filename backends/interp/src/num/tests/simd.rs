//! Integer SIMD and crypto against the processor.

use super::super::crypto::*;
use super::super::simd::arith::*;
use super::super::simd::mmx;
use super::super::simd::permute;
use super::super::simd::shift::*;
use super::super::simd::shuffle::*;
use super::super::simd::string;
use super::super::vec::{V128, V256};
use super::values::Rng;

/// Lanes with equal, extreme and small values as often as random ones.
pub(super) fn vector(rng: &mut Rng) -> V128 {
    let mut v = [0u8; 16];
    match rng.below(5) {
        0 => v.iter_mut().for_each(|b| *b = rng.next() as u8),
        1 => v.iter_mut().for_each(|b| *b = rng.below(4) as u8),
        2 => v.iter_mut().for_each(|b| *b = [0, 0xff, 0x80, 0x7f][rng.below(4) as usize]),
        3 => {
            for w in v.chunks_exact_mut(2) {
                let x = [0u16, 1, 0x7fff, 0x8000, 0xffff, rng.next() as u16][rng.below(6) as usize];
                w.copy_from_slice(&x.to_le_bytes());
            }
        }
        _ => {
            for w in v.chunks_exact_mut(4) {
                let x = [0u32, 1, 0x7fff_ffff, 0x8000_0000, !0, rng.next() as u32][rng.below(6) as usize];
                w.copy_from_slice(&x.to_le_bytes());
            }
        }
    }
    V128(v)
}

/// One operation: ours, and the processor's where there is one.
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) ours: fn(V128, V128, V128) -> V128,
    #[cfg(target_arch = "x86_64")]
    pub(super) native: fn(V128, V128, V128, u32) -> (V128, u32),
}

macro_rules! against {
    ($test:ident [$($need:tt)*]; $($name:ident $insn:literal |$a:ident, $b:ident, $c:ident| $e:expr;)*) => {
        pub(super) mod $test {
            use super::*;

            #[cfg(target_arch = "x86_64")]
            mod native {
                use super::super::super::native::sse_op;
                use super::V128;
                sse_op! { $($name $insn;)* }
            }

            pub(in super::super) fn entries() -> Vec<Entry> {
                vec![$(Entry {
                    name: stringify!($name),
                    ours: |$a, $b, $c| { let _ = ($a, $b, $c); $e },
                    #[cfg(target_arch = "x86_64")]
                    native: native::$name,
                },)*]
            }

            #[cfg(target_arch = "x86_64")]
            #[test]
            fn agrees_with_silicon() {
                $(if !is_x86_feature_detected!($need) {
                    println!("SKIPPED {}: no {}", stringify!($test), $need);
                    return;
                })*
                agree(&entries());
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
fn agree(entries: &[Entry]) {
    let mut rng = Rng(0x51d);
    for e in entries {
        for _ in 0..3000 {
            let (a, b, c) = (vector(&mut rng), vector(&mut rng), vector(&mut rng));
            let want = (e.native)(a, b, c, 0x1f80).0;
            let got = (e.ours)(a, b, c);
            assert!(got == want, "{} {a:?} {b:?} {c:?}: silicon {want:?}, ours {got:?}", e.name);
        }
    }
}

against! { two_operands ["sse4.2"];
    paddb "paddb xmm0, xmm1" |a, b, _c| paddb(a, b);
    paddw "paddw xmm0, xmm1" |a, b, _c| paddw(a, b);
    paddd "paddd xmm0, xmm1" |a, b, _c| paddd(a, b);
    paddq "paddq xmm0, xmm1" |a, b, _c| paddq(a, b);
    psubb "psubb xmm0, xmm1" |a, b, _c| psubb(a, b);
    psubw "psubw xmm0, xmm1" |a, b, _c| psubw(a, b);
    psubd "psubd xmm0, xmm1" |a, b, _c| psubd(a, b);
    psubq "psubq xmm0, xmm1" |a, b, _c| psubq(a, b);
    paddsb "paddsb xmm0, xmm1" |a, b, _c| paddsb(a, b);
    paddsw "paddsw xmm0, xmm1" |a, b, _c| paddsw(a, b);
    paddusb "paddusb xmm0, xmm1" |a, b, _c| paddusb(a, b);
    paddusw "paddusw xmm0, xmm1" |a, b, _c| paddusw(a, b);
    psubsb "psubsb xmm0, xmm1" |a, b, _c| psubsb(a, b);
    psubsw "psubsw xmm0, xmm1" |a, b, _c| psubsw(a, b);
    psubusb "psubusb xmm0, xmm1" |a, b, _c| psubusb(a, b);
    psubusw "psubusw xmm0, xmm1" |a, b, _c| psubusw(a, b);
    pmullw "pmullw xmm0, xmm1" |a, b, _c| pmullw(a, b);
    pmulld "pmulld xmm0, xmm1" |a, b, _c| pmulld(a, b);
    pmulhw "pmulhw xmm0, xmm1" |a, b, _c| pmulhw(a, b);
    pmulhuw "pmulhuw xmm0, xmm1" |a, b, _c| pmulhuw(a, b);
    pmulhrsw "pmulhrsw xmm0, xmm1" |a, b, _c| pmulhrsw(a, b);
    pmuludq "pmuludq xmm0, xmm1" |a, b, _c| pmuludq(a, b);
    pmuldq "pmuldq xmm0, xmm1" |a, b, _c| pmuldq(a, b);
    pavgb "pavgb xmm0, xmm1" |a, b, _c| pavgb(a, b);
    pavgw "pavgw xmm0, xmm1" |a, b, _c| pavgw(a, b);
    pminub "pminub xmm0, xmm1" |a, b, _c| pminub(a, b);
    pminsb "pminsb xmm0, xmm1" |a, b, _c| pminsb(a, b);
    pminuw "pminuw xmm0, xmm1" |a, b, _c| pminuw(a, b);
    pminsw "pminsw xmm0, xmm1" |a, b, _c| pminsw(a, b);
    pminud "pminud xmm0, xmm1" |a, b, _c| pminud(a, b);
    pminsd "pminsd xmm0, xmm1" |a, b, _c| pminsd(a, b);
    pmaxub "pmaxub xmm0, xmm1" |a, b, _c| pmaxub(a, b);
    pmaxsb "pmaxsb xmm0, xmm1" |a, b, _c| pmaxsb(a, b);
    pmaxuw "pmaxuw xmm0, xmm1" |a, b, _c| pmaxuw(a, b);
    pmaxsw "pmaxsw xmm0, xmm1" |a, b, _c| pmaxsw(a, b);
    pmaxud "pmaxud xmm0, xmm1" |a, b, _c| pmaxud(a, b);
    pmaxsd "pmaxsd xmm0, xmm1" |a, b, _c| pmaxsd(a, b);
    pcmpeqb "pcmpeqb xmm0, xmm1" |a, b, _c| pcmpeqb(a, b);
    pcmpeqw "pcmpeqw xmm0, xmm1" |a, b, _c| pcmpeqw(a, b);
    pcmpeqd "pcmpeqd xmm0, xmm1" |a, b, _c| pcmpeqd(a, b);
    pcmpeqq "pcmpeqq xmm0, xmm1" |a, b, _c| pcmpeqq(a, b);
    pcmpgtb "pcmpgtb xmm0, xmm1" |a, b, _c| pcmpgtb(a, b);
    pcmpgtw "pcmpgtw xmm0, xmm1" |a, b, _c| pcmpgtw(a, b);
    pcmpgtd "pcmpgtd xmm0, xmm1" |a, b, _c| pcmpgtd(a, b);
    pcmpgtq "pcmpgtq xmm0, xmm1" |a, b, _c| pcmpgtq(a, b);
    psignb "psignb xmm0, xmm1" |a, b, _c| psignb(a, b);
    psignw "psignw xmm0, xmm1" |a, b, _c| psignw(a, b);
    psignd "psignd xmm0, xmm1" |a, b, _c| psignd(a, b);
    pand "pand xmm0, xmm1" |a, b, _c| pand(a, b);
    pandn "pandn xmm0, xmm1" |a, b, _c| pandn(a, b);
    por "por xmm0, xmm1" |a, b, _c| por(a, b);
    pxor "pxor xmm0, xmm1" |a, b, _c| pxor(a, b);
    pmaddwd "pmaddwd xmm0, xmm1" |a, b, _c| pmaddwd(a, b);
    pmaddubsw "pmaddubsw xmm0, xmm1" |a, b, _c| pmaddubsw(a, b);
    psadbw "psadbw xmm0, xmm1" |a, b, _c| psadbw(a, b);
    phaddw "phaddw xmm0, xmm1" |a, b, _c| phaddw(a, b);
    phaddd "phaddd xmm0, xmm1" |a, b, _c| phaddd(a, b);
    phaddsw "phaddsw xmm0, xmm1" |a, b, _c| phaddsw(a, b);
    phsubw "phsubw xmm0, xmm1" |a, b, _c| phsubw(a, b);
    phsubd "phsubd xmm0, xmm1" |a, b, _c| phsubd(a, b);
    phsubsw "phsubsw xmm0, xmm1" |a, b, _c| phsubsw(a, b);
    pshufb "pshufb xmm0, xmm1" |a, b, _c| pshufb(a, b);
    punpcklbw "punpcklbw xmm0, xmm1" |a, b, _c| punpcklbw(a, b);
    punpckhbw "punpckhbw xmm0, xmm1" |a, b, _c| punpckhbw(a, b);
    punpcklwd "punpcklwd xmm0, xmm1" |a, b, _c| punpcklwd(a, b);
    punpckhwd "punpckhwd xmm0, xmm1" |a, b, _c| punpckhwd(a, b);
    punpckldq "punpckldq xmm0, xmm1" |a, b, _c| punpckldq(a, b);
    punpckhdq "punpckhdq xmm0, xmm1" |a, b, _c| punpckhdq(a, b);
    punpcklqdq "punpcklqdq xmm0, xmm1" |a, b, _c| punpcklqdq(a, b);
    punpckhqdq "punpckhqdq xmm0, xmm1" |a, b, _c| punpckhqdq(a, b);
    packsswb "packsswb xmm0, xmm1" |a, b, _c| packsswb(a, b);
    packuswb "packuswb xmm0, xmm1" |a, b, _c| packuswb(a, b);
    packssdw "packssdw xmm0, xmm1" |a, b, _c| packssdw(a, b);
    packusdw "packusdw xmm0, xmm1" |a, b, _c| packusdw(a, b);
}

against! { one_operand ["sse4.2"];
    pabsb "pabsb xmm0, xmm1" |_a, b, _c| pabsb(b);
    pabsw "pabsw xmm0, xmm1" |_a, b, _c| pabsw(b);
    pabsd "pabsd xmm0, xmm1" |_a, b, _c| pabsd(b);
    phminposuw "phminposuw xmm0, xmm1" |_a, b, _c| phminposuw(b);
    pmovsxbw "pmovsxbw xmm0, xmm1" |_a, b, _c| pmovsxbw(b);
    pmovsxbd "pmovsxbd xmm0, xmm1" |_a, b, _c| pmovsxbd(b);
    pmovsxbq "pmovsxbq xmm0, xmm1" |_a, b, _c| pmovsxbq(b);
    pmovsxwd "pmovsxwd xmm0, xmm1" |_a, b, _c| pmovsxwd(b);
    pmovsxwq "pmovsxwq xmm0, xmm1" |_a, b, _c| pmovsxwq(b);
    pmovsxdq "pmovsxdq xmm0, xmm1" |_a, b, _c| pmovsxdq(b);
    pmovzxbw "pmovzxbw xmm0, xmm1" |_a, b, _c| pmovzxbw(b);
    pmovzxbd "pmovzxbd xmm0, xmm1" |_a, b, _c| pmovzxbd(b);
    pmovzxbq "pmovzxbq xmm0, xmm1" |_a, b, _c| pmovzxbq(b);
    pmovzxwd "pmovzxwd xmm0, xmm1" |_a, b, _c| pmovzxwd(b);
    pmovzxwq "pmovzxwq xmm0, xmm1" |_a, b, _c| pmovzxwq(b);
    pmovzxdq "pmovzxdq xmm0, xmm1" |_a, b, _c| pmovzxdq(b);
    movddup "movddup xmm0, xmm1" |_a, b, _c| movddup(b);
    movsldup "movsldup xmm0, xmm1" |_a, b, _c| movsldup(b);
    movshdup "movshdup xmm0, xmm1" |_a, b, _c| movshdup(b);
}

against! { immediates ["sse4.2"];
    pshufd_1b "pshufd xmm0, xmm1, 27" |_a, b, _c| pshufd(b, 27);
    pshufd_e4 "pshufd xmm0, xmm1, 228" |_a, b, _c| pshufd(b, 228);
    pshufd_72 "pshufd xmm0, xmm1, 114" |_a, b, _c| pshufd(b, 114);
    pshufd_c9 "pshufd xmm0, xmm1, 201" |_a, b, _c| pshufd(b, 201);
    pshuflw_1b "pshuflw xmm0, xmm1, 27" |_a, b, _c| pshuflw(b, 27);
    pshuflw_e4 "pshuflw xmm0, xmm1, 228" |_a, b, _c| pshuflw(b, 228);
    pshuflw_72 "pshuflw xmm0, xmm1, 114" |_a, b, _c| pshuflw(b, 114);
    pshuflw_c9 "pshuflw xmm0, xmm1, 201" |_a, b, _c| pshuflw(b, 201);
    pshufhw_1b "pshufhw xmm0, xmm1, 27" |_a, b, _c| pshufhw(b, 27);
    pshufhw_e4 "pshufhw xmm0, xmm1, 228" |_a, b, _c| pshufhw(b, 228);
    pshufhw_72 "pshufhw xmm0, xmm1, 114" |_a, b, _c| pshufhw(b, 114);
    pshufhw_c9 "pshufhw xmm0, xmm1, 201" |_a, b, _c| pshufhw(b, 201);
    shufps_1b "shufps xmm0, xmm1, 27" |a, b, _c| shufps(a, b, 27);
    shufps_66 "shufps xmm0, xmm1, 102" |a, b, _c| shufps(a, b, 102);
    shufps_72 "shufps xmm0, xmm1, 114" |a, b, _c| shufps(a, b, 114);
    shufpd_3 "shufpd xmm0, xmm1, 3" |a, b, _c| shufpd(a, b, 3);
    shufpd_2 "shufpd xmm0, xmm1, 2" |a, b, _c| shufpd(a, b, 2);
    pblendw_1b "pblendw xmm0, xmm1, 27" |a, b, _c| pblendw(a, b, 27);
    pblendw_66 "pblendw xmm0, xmm1, 102" |a, b, _c| pblendw(a, b, 102);
    pblendw_72 "pblendw xmm0, xmm1, 114" |a, b, _c| pblendw(a, b, 114);
    blendps_b "blendps xmm0, xmm1, 11" |a, b, _c| blendps(a, b, 11);
    blendps_6 "blendps xmm0, xmm1, 6" |a, b, _c| blendps(a, b, 6);
    blendps_2 "blendps xmm0, xmm1, 2" |a, b, _c| blendps(a, b, 2);
    blendpd_3 "blendpd xmm0, xmm1, 3" |a, b, _c| blendpd(a, b, 3);
    blendpd_2 "blendpd xmm0, xmm1, 2" |a, b, _c| blendpd(a, b, 2);
    mpsadbw_0 "mpsadbw xmm0, xmm1, 0" |a, b, _c| mpsadbw(a, b, 0);
    mpsadbw_1 "mpsadbw xmm0, xmm1, 1" |a, b, _c| mpsadbw(a, b, 1);
    mpsadbw_2 "mpsadbw xmm0, xmm1, 2" |a, b, _c| mpsadbw(a, b, 2);
    mpsadbw_3 "mpsadbw xmm0, xmm1, 3" |a, b, _c| mpsadbw(a, b, 3);
    mpsadbw_4 "mpsadbw xmm0, xmm1, 4" |a, b, _c| mpsadbw(a, b, 4);
    mpsadbw_5 "mpsadbw xmm0, xmm1, 5" |a, b, _c| mpsadbw(a, b, 5);
    mpsadbw_6 "mpsadbw xmm0, xmm1, 6" |a, b, _c| mpsadbw(a, b, 6);
    mpsadbw_7 "mpsadbw xmm0, xmm1, 7" |a, b, _c| mpsadbw(a, b, 7);
    palignr_0 "palignr xmm0, xmm1, 0" |a, b, _c| palignr(a, b, 0);
    palignr_1 "palignr xmm0, xmm1, 1" |a, b, _c| palignr(a, b, 1);
    palignr_7 "palignr xmm0, xmm1, 7" |a, b, _c| palignr(a, b, 7);
    palignr_8 "palignr xmm0, xmm1, 8" |a, b, _c| palignr(a, b, 8);
    palignr_15 "palignr xmm0, xmm1, 15" |a, b, _c| palignr(a, b, 15);
    palignr_16 "palignr xmm0, xmm1, 16" |a, b, _c| palignr(a, b, 16);
    palignr_17 "palignr xmm0, xmm1, 17" |a, b, _c| palignr(a, b, 17);
    palignr_31 "palignr xmm0, xmm1, 31" |a, b, _c| palignr(a, b, 31);
    palignr_32 "palignr xmm0, xmm1, 32" |a, b, _c| palignr(a, b, 32);
    palignr_255 "palignr xmm0, xmm1, 255" |a, b, _c| palignr(a, b, 255);
    pslldq_0 "pslldq xmm0, 0" |a, _b, _c| pslldq(a, 0);
    psrldq_0 "psrldq xmm0, 0" |a, _b, _c| psrldq(a, 0);
    pslldq_1 "pslldq xmm0, 1" |a, _b, _c| pslldq(a, 1);
    psrldq_1 "psrldq xmm0, 1" |a, _b, _c| psrldq(a, 1);
    pslldq_7 "pslldq xmm0, 7" |a, _b, _c| pslldq(a, 7);
    psrldq_7 "psrldq xmm0, 7" |a, _b, _c| psrldq(a, 7);
    pslldq_15 "pslldq xmm0, 15" |a, _b, _c| pslldq(a, 15);
    psrldq_15 "psrldq xmm0, 15" |a, _b, _c| psrldq(a, 15);
    pslldq_16 "pslldq xmm0, 16" |a, _b, _c| pslldq(a, 16);
    psrldq_16 "psrldq xmm0, 16" |a, _b, _c| psrldq(a, 16);
    pslldq_255 "pslldq xmm0, 255" |a, _b, _c| pslldq(a, 255);
    psrldq_255 "psrldq xmm0, 255" |a, _b, _c| psrldq(a, 255);
    psllw_0 "psllw xmm0, 0" |a, _b, _c| psllw(a, 0);
    psllw_1 "psllw xmm0, 1" |a, _b, _c| psllw(a, 1);
    psllw_15 "psllw xmm0, 15" |a, _b, _c| psllw(a, 15);
    psllw_16 "psllw xmm0, 16" |a, _b, _c| psllw(a, 16);
    psllw_255 "psllw xmm0, 255" |a, _b, _c| psllw(a, 255);
    psllw_x "pand xmm1, xmm2\nmovd eax, xmm1\nand eax, 0x7f\nmovd xmm1, eax\npsllw xmm0, xmm1" |a, b, c| psllw(a, pand(b, c).low() & 0x7f);
    psllw_big "psllw xmm0, xmm1" |a, b, _c| psllw(a, b.low());
    psrlw_0 "psrlw xmm0, 0" |a, _b, _c| psrlw(a, 0);
    psrlw_1 "psrlw xmm0, 1" |a, _b, _c| psrlw(a, 1);
    psrlw_15 "psrlw xmm0, 15" |a, _b, _c| psrlw(a, 15);
    psrlw_16 "psrlw xmm0, 16" |a, _b, _c| psrlw(a, 16);
    psrlw_255 "psrlw xmm0, 255" |a, _b, _c| psrlw(a, 255);
    psrlw_x "pand xmm1, xmm2\nmovd eax, xmm1\nand eax, 0x7f\nmovd xmm1, eax\npsrlw xmm0, xmm1" |a, b, c| psrlw(a, pand(b, c).low() & 0x7f);
    psrlw_big "psrlw xmm0, xmm1" |a, b, _c| psrlw(a, b.low());
    psraw_0 "psraw xmm0, 0" |a, _b, _c| psraw(a, 0);
    psraw_1 "psraw xmm0, 1" |a, _b, _c| psraw(a, 1);
    psraw_15 "psraw xmm0, 15" |a, _b, _c| psraw(a, 15);
    psraw_16 "psraw xmm0, 16" |a, _b, _c| psraw(a, 16);
    psraw_255 "psraw xmm0, 255" |a, _b, _c| psraw(a, 255);
    psraw_x "pand xmm1, xmm2\nmovd eax, xmm1\nand eax, 0x7f\nmovd xmm1, eax\npsraw xmm0, xmm1" |a, b, c| psraw(a, pand(b, c).low() & 0x7f);
    psraw_big "psraw xmm0, xmm1" |a, b, _c| psraw(a, b.low());
    pslld_0 "pslld xmm0, 0" |a, _b, _c| pslld(a, 0);
    pslld_1 "pslld xmm0, 1" |a, _b, _c| pslld(a, 1);
    pslld_31 "pslld xmm0, 31" |a, _b, _c| pslld(a, 31);
    pslld_32 "pslld xmm0, 32" |a, _b, _c| pslld(a, 32);
    pslld_255 "pslld xmm0, 255" |a, _b, _c| pslld(a, 255);
    pslld_x "pand xmm1, xmm2\nmovd eax, xmm1\nand eax, 0x7f\nmovd xmm1, eax\npslld xmm0, xmm1" |a, b, c| pslld(a, pand(b, c).low() & 0x7f);
    pslld_big "pslld xmm0, xmm1" |a, b, _c| pslld(a, b.low());
    psrld_0 "psrld xmm0, 0" |a, _b, _c| psrld(a, 0);
    psrld_1 "psrld xmm0, 1" |a, _b, _c| psrld(a, 1);
    psrld_31 "psrld xmm0, 31" |a, _b, _c| psrld(a, 31);
    psrld_32 "psrld xmm0, 32" |a, _b, _c| psrld(a, 32);
    psrld_255 "psrld xmm0, 255" |a, _b, _c| psrld(a, 255);
    psrld_x "pand xmm1, xmm2\nmovd eax, xmm1\nand eax, 0x7f\nmovd xmm1, eax\npsrld xmm0, xmm1" |a, b, c| psrld(a, pand(b, c).low() & 0x7f);
    psrld_big "psrld xmm0, xmm1" |a, b, _c| psrld(a, b.low());
    psrad_0 "psrad xmm0, 0" |a, _b, _c| psrad(a, 0);
    psrad_1 "psrad xmm0, 1" |a, _b, _c| psrad(a, 1);
    psrad_31 "psrad xmm0, 31" |a, _b, _c| psrad(a, 31);
    psrad_32 "psrad xmm0, 32" |a, _b, _c| psrad(a, 32);
    psrad_255 "psrad xmm0, 255" |a, _b, _c| psrad(a, 255);
    psrad_x "pand xmm1, xmm2\nmovd eax, xmm1\nand eax, 0x7f\nmovd xmm1, eax\npsrad xmm0, xmm1" |a, b, c| psrad(a, pand(b, c).low() & 0x7f);
    psrad_big "psrad xmm0, xmm1" |a, b, _c| psrad(a, b.low());
    psllq_0 "psllq xmm0, 0" |a, _b, _c| psllq(a, 0);
    psllq_1 "psllq xmm0, 1" |a, _b, _c| psllq(a, 1);
    psllq_63 "psllq xmm0, 63" |a, _b, _c| psllq(a, 63);
    psllq_64 "psllq xmm0, 64" |a, _b, _c| psllq(a, 64);
    psllq_255 "psllq xmm0, 255" |a, _b, _c| psllq(a, 255);
    psllq_x "pand xmm1, xmm2\nmovd eax, xmm1\nand eax, 0x7f\nmovd xmm1, eax\npsllq xmm0, xmm1" |a, b, c| psllq(a, pand(b, c).low() & 0x7f);
    psllq_big "psllq xmm0, xmm1" |a, b, _c| psllq(a, b.low());
    psrlq_0 "psrlq xmm0, 0" |a, _b, _c| psrlq(a, 0);
    psrlq_1 "psrlq xmm0, 1" |a, _b, _c| psrlq(a, 1);
    psrlq_63 "psrlq xmm0, 63" |a, _b, _c| psrlq(a, 63);
    psrlq_64 "psrlq xmm0, 64" |a, _b, _c| psrlq(a, 64);
    psrlq_255 "psrlq xmm0, 255" |a, _b, _c| psrlq(a, 255);
    psrlq_x "pand xmm1, xmm2\nmovd eax, xmm1\nand eax, 0x7f\nmovd xmm1, eax\npsrlq xmm0, xmm1" |a, b, c| psrlq(a, pand(b, c).low() & 0x7f);
    psrlq_big "psrlq xmm0, xmm1" |a, b, _c| psrlq(a, b.low());
    insertps_0 "insertps xmm0, xmm1, 0" |a, b, _c| insertps(a, b.u32_lane(0), 0);
    insertps_1e "insertps xmm0, xmm1, 30" |a, b, _c| insertps(a, b.u32_lane(0), 30);
    insertps_95 "insertps xmm0, xmm1, 149" |a, b, _c| insertps(a, b.u32_lane(2), 149);
    insertps_ff "insertps xmm0, xmm1, 255" |a, b, _c| insertps(a, b.u32_lane(3), 255);
    insertps_4a "insertps xmm0, xmm1, 74" |a, b, _c| insertps(a, b.u32_lane(1), 74);
    pmovmskb_ "pmovmskb eax, xmm1\nmovd xmm0, eax" |_a, b, _c| V128::from_u64s([u64::from(pmovmskb(b)), 0]);
    movmskps_ "movmskps eax, xmm1\nmovd xmm0, eax" |_a, b, _c| V128::from_u64s([u64::from(movmskps(b)), 0]);
    movmskpd_ "movmskpd eax, xmm1\nmovd xmm0, eax" |_a, b, _c| V128::from_u64s([u64::from(movmskpd(b)), 0]);
    ptest_ "ptest xmm0, xmm1\nlahf\nmovzx eax, ah\nmovd xmm0, eax" |a, b, _c| zc(ptest(a, b));
}

fn zc((z, c): (bool, bool)) -> V128 {
    V128::from_u64s([2 | u64::from(z) << 6 | u64::from(c), 0])
}

against! { avx2_lanes ["avx2"];
    vpsllvd "vmovd xmm2, [rip + 2f]\n jmp 3f\n2: .long 63\n3: vpbroadcastq xmm2, xmm2\nvpand xmm1, xmm1, xmm2\nvpsllvd xmm0, xmm0, xmm1" |a, b, _c| vpsllvd(a, pand(b, V128::from_u64s([63; 2])));
    vpsllvd_any "vpsllvd xmm0, xmm0, xmm1" |a, b, _c| vpsllvd(a, b);
    vpsllvq "vmovd xmm2, [rip + 2f]\n jmp 3f\n2: .long 63\n3: vpbroadcastq xmm2, xmm2\nvpand xmm1, xmm1, xmm2\nvpsllvq xmm0, xmm0, xmm1" |a, b, _c| vpsllvq(a, pand(b, V128::from_u64s([63; 2])));
    vpsllvq_any "vpsllvq xmm0, xmm0, xmm1" |a, b, _c| vpsllvq(a, b);
    vpsrlvd "vmovd xmm2, [rip + 2f]\n jmp 3f\n2: .long 63\n3: vpbroadcastq xmm2, xmm2\nvpand xmm1, xmm1, xmm2\nvpsrlvd xmm0, xmm0, xmm1" |a, b, _c| vpsrlvd(a, pand(b, V128::from_u64s([63; 2])));
    vpsrlvd_any "vpsrlvd xmm0, xmm0, xmm1" |a, b, _c| vpsrlvd(a, b);
    vpsrlvq "vmovd xmm2, [rip + 2f]\n jmp 3f\n2: .long 63\n3: vpbroadcastq xmm2, xmm2\nvpand xmm1, xmm1, xmm2\nvpsrlvq xmm0, xmm0, xmm1" |a, b, _c| vpsrlvq(a, pand(b, V128::from_u64s([63; 2])));
    vpsrlvq_any "vpsrlvq xmm0, xmm0, xmm1" |a, b, _c| vpsrlvq(a, b);
    vpsravd "vmovd xmm2, [rip + 2f]\n jmp 3f\n2: .long 63\n3: vpbroadcastq xmm2, xmm2\nvpand xmm1, xmm1, xmm2\nvpsravd xmm0, xmm0, xmm1" |a, b, _c| vpsravd(a, pand(b, V128::from_u64s([63; 2])));
    vpsravd_any "vpsravd xmm0, xmm0, xmm1" |a, b, _c| vpsravd(a, b);
    vpermilps_r "vpermilps xmm0, xmm0, xmm1" |a, b, _c| vpermilps(a, b);
    vpermilpd_r "vpermilpd xmm0, xmm0, xmm1" |a, b, _c| vpermilpd(a, b);
    vpermilpd_i "vpermilpd xmm0, xmm1, 1" |_a, b, _c| vpermilpd_imm(b, 1);
    vpblendvb_r "vpblendvb xmm0, xmm0, xmm1, xmm2" |a, b, c| pblendvb(a, b, c);
    vblendvps_r "vblendvps xmm0, xmm0, xmm1, xmm2" |a, b, c| blendvps(a, b, c);
    vblendvpd_r "vblendvpd xmm0, xmm0, xmm1, xmm2" |a, b, c| blendvpd(a, b, c);
    vtestps_ "vtestps xmm0, xmm1\nlahf\nmovzx eax, ah\nvmovd xmm0, eax" |a, b, _c| zc(vtestps(a, b));
    vtestpd_ "vtestpd xmm0, xmm1\nlahf\nmovzx eax, ah\nvmovd xmm0, eax" |a, b, _c| zc(vtestpd(a, b));
    vpermd_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpermd ymm3, ymm3, ymm4\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vpermd(p, q).lo };
    vpermd_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpermd ymm3, ymm3, ymm4\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vpermd(p, q).hi };
    vpermq_1b_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpermq ymm3, ymm3, 27\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vpermq(p, 27).lo };
    vpermq_1b_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpermq ymm3, ymm3, 27\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vpermq(p, 27).hi };
    vpermq_d8_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpermq ymm3, ymm3, 216\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vpermq(p, 216).lo };
    vpermq_d8_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpermq ymm3, ymm3, 216\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vpermq(p, 216).hi };
    vperm2i128_20_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvperm2i128 ymm3, ymm3, ymm4, 32\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vperm2f128(p, q, 32).lo };
    vperm2i128_20_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvperm2i128 ymm3, ymm3, ymm4, 32\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vperm2f128(p, q, 32).hi };
    vperm2i128_31_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvperm2i128 ymm3, ymm3, ymm4, 49\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vperm2f128(p, q, 49).lo };
    vperm2i128_31_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvperm2i128 ymm3, ymm3, ymm4, 49\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vperm2f128(p, q, 49).hi };
    vperm2i128_18_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvperm2i128 ymm3, ymm3, ymm4, 24\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vperm2f128(p, q, 24).lo };
    vperm2i128_18_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvperm2i128 ymm3, ymm3, ymm4, 24\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vperm2f128(p, q, 24).hi };
    vperm2i128_83_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvperm2i128 ymm3, ymm3, ymm4, 131\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vperm2f128(p, q, 131).lo };
    vperm2i128_83_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvperm2i128 ymm3, ymm3, ymm4, 131\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vperm2f128(p, q, 131).hi };
    vperm2i128_2_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvperm2i128 ymm3, ymm3, ymm4, 2\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vperm2f128(p, q, 2).lo };
    vperm2i128_2_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvperm2i128 ymm3, ymm3, ymm4, 2\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vperm2f128(p, q, 2).hi };
    vmpsadbw_15_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvmpsadbw ymm3, ymm3, ymm4, 21\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vmpsadbw(p, q, 21).lo };
    vmpsadbw_15_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvmpsadbw ymm3, ymm3, ymm4, 21\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vmpsadbw(p, q, 21).hi };
    vmpsadbw_2a_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvmpsadbw ymm3, ymm3, ymm4, 42\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vmpsadbw(p, q, 42).lo };
    vmpsadbw_2a_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvmpsadbw ymm3, ymm3, ymm4, 42\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vmpsadbw(p, q, 42).hi };
    vshufpd_5_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvshufpd ymm3, ymm3, ymm4, 5\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vshufpd(p, q, 5).lo };
    vshufpd_5_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvshufpd ymm3, ymm3, ymm4, 5\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vshufpd(p, q, 5).hi };
    vshufpd_a_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvshufpd ymm3, ymm3, ymm4, 10\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vshufpd(p, q, 10).lo };
    vshufpd_a_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvshufpd ymm3, ymm3, ymm4, 10\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vshufpd(p, q, 10).hi };
    vshufpd_6_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvshufpd ymm3, ymm3, ymm4, 6\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vshufpd(p, q, 6).lo };
    vshufpd_6_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvshufpd ymm3, ymm3, ymm4, 6\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vshufpd(p, q, 6).hi };
    vpermilpd6_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpermilpd ymm3, ymm3, 6\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vpermilpd_imm(p, 6).lo };
    vpermilpd6_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpermilpd ymm3, ymm3, 6\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vpermilpd_imm(p, 6).hi };
    vblendps_5a_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvblendps ymm3, ymm3, ymm4, 0x5a\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vblendps(p, q, 0x5a).lo };
    vblendps_5a_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvblendps ymm3, ymm3, ymm4, 0x5a\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vblendps(p, q, 0x5a).hi };
    vblendpd_6_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvblendpd ymm3, ymm3, ymm4, 6\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vblendpd(p, q, 6).lo };
    vblendpd_6_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvblendpd ymm3, ymm3, ymm4, 6\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::vblendpd(p, q, 6).hi };
    vpmovsxbw_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpmovsxbw ymm3, xmm1\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::extend(b, 8, pmovsxbw).lo };
    vpmovsxbw_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpmovsxbw ymm3, xmm1\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::extend(b, 8, pmovsxbw).hi };
    vpmovzxbd_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpmovzxbd ymm3, xmm1\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::extend(b, 4, pmovzxbd).lo };
    vpmovzxbd_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpmovzxbd ymm3, xmm1\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::extend(b, 4, pmovzxbd).hi };
    vpmovzxbq_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpmovzxbq ymm3, xmm1\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::extend(b, 2, pmovzxbq).lo };
    vpmovzxbq_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpmovzxbq ymm3, xmm1\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); permute::extend(b, 2, pmovzxbq).hi };
    vpackssdw_lo "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpackssdw ymm3, ymm3, ymm4\nvmovdqa xmm0, xmm3" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); p.zip(q, packssdw).lo };
    vpackssdw_hi "vinserti128 ymm3, ymm0, xmm1, 1\nvinserti128 ymm4, ymm2, xmm0, 1\nvpackssdw ymm3, ymm3, ymm4\nvextracti128 xmm0, ymm3, 1" |a, b, c| { let (p, q) = (V256::new(a, b), V256::new(c, a)); let _ = (p, q); p.zip(q, packssdw).hi };
}

against! { aes_and_sha ["aes" "pclmulqdq" "sha"];
    aesenc "aesenc xmm0, xmm1" |a, b, _c| aesenc(a, b);
    aesenclast "aesenclast xmm0, xmm1" |a, b, _c| aesenclast(a, b);
    aesdec "aesdec xmm0, xmm1" |a, b, _c| aesdec(a, b);
    aesdeclast "aesdeclast xmm0, xmm1" |a, b, _c| aesdeclast(a, b);
    aesimc "aesimc xmm0, xmm1" |_a, b, _c| aesimc(b);
    keygen_0 "aeskeygenassist xmm0, xmm1, 0" |_a, b, _c| aeskeygenassist(b, 0);
    keygen_1 "aeskeygenassist xmm0, xmm1, 1" |_a, b, _c| aeskeygenassist(b, 1);
    keygen_54 "aeskeygenassist xmm0, xmm1, 54" |_a, b, _c| aeskeygenassist(b, 54);
    clmul_0 "pclmulqdq xmm0, xmm1, 0" |a, b, _c| pclmulqdq(a, b, 0);
    clmul_1 "pclmulqdq xmm0, xmm1, 1" |a, b, _c| pclmulqdq(a, b, 1);
    clmul_16 "pclmulqdq xmm0, xmm1, 16" |a, b, _c| pclmulqdq(a, b, 16);
    clmul_17 "pclmulqdq xmm0, xmm1, 17" |a, b, _c| pclmulqdq(a, b, 17);
    sha1nexte "sha1nexte xmm0, xmm1" |a, b, _c| sha1nexte(a, b);
    sha1msg1 "sha1msg1 xmm0, xmm1" |a, b, _c| sha1msg1(a, b);
    sha1msg2 "sha1msg2 xmm0, xmm1" |a, b, _c| sha1msg2(a, b);
    sha256msg1 "sha256msg1 xmm0, xmm1" |a, b, _c| sha256msg1(a, b);
    sha256msg2 "sha256msg2 xmm0, xmm1" |a, b, _c| sha256msg2(a, b);
    sha1rnds4_0 "sha1rnds4 xmm0, xmm1, 0" |a, b, _c| sha1rnds4(a, b, 0);
    sha1rnds4_1 "sha1rnds4 xmm0, xmm1, 1" |a, b, _c| sha1rnds4(a, b, 1);
    sha1rnds4_2 "sha1rnds4 xmm0, xmm1, 2" |a, b, _c| sha1rnds4(a, b, 2);
    sha1rnds4_3 "sha1rnds4 xmm0, xmm1, 3" |a, b, _c| sha1rnds4(a, b, 3);
    sha256rnds2 "movaps xmm3, xmm0\nmovaps xmm0, xmm2\nsha256rnds2 xmm3, xmm1\nmovaps xmm0, xmm3" |a, b, c| sha256rnds2(a, b, c);
}

against! { crc_and_bits ["sse4.2" "bmi2"];
    crc32_b "push rdx\nmovd edx, xmm1\ncrc32 edx, al\nmovd xmm0, edx\npop rdx" |a, b, _c| V128::from_u64s([u64::from(crc32(b.u32_lane(0), a.low() & 0xff, 1)), 0]);
    crc32_w "push rdx\nmovd edx, xmm1\ncrc32 edx, ax\nmovd xmm0, edx\npop rdx" |a, b, _c| V128::from_u64s([u64::from(crc32(b.u32_lane(0), a.low() & 0xffff, 2)), 0]);
    crc32_d "push rdx\nmovd edx, xmm1\ncrc32 edx, eax\nmovd xmm0, edx\npop rdx" |a, b, _c| V128::from_u64s([u64::from(crc32(b.u32_lane(0), a.low() & 0xffff_ffff, 4)), 0]);
    crc32_q "push rdx\nmovd edx, xmm1\ncrc32 rdx, rax\nmovd xmm0, edx\npop rdx" |a, b, _c| V128::from_u64s([u64::from(crc32(b.u32_lane(0), a.low(), 8)), 0]);
    pdep "push rdx\nmovq rdx, xmm1\npdep rax, rax, rdx\nmovq xmm0, rax\npop rdx" |a, b, _c| V128::from_u64s([pdep(a.low(), b.low()), 0]);
    pext "push rdx\nmovq rdx, xmm1\npext rax, rax, rdx\nmovq xmm0, rax\npop rdx" |a, b, _c| V128::from_u64s([pext(a.low(), b.low()), 0]);
}

against! { mmx_forms ["ssse3"];
    mm_paddsb "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npaddsb mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::lanes(x, y, paddsb), 0]) };
    mm_pmaddwd "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npmaddwd mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::lanes(x, y, pmaddwd), 0]) };
    mm_psadbw "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npsadbw mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::lanes(x, y, psadbw), 0]) };
    mm_pmulhrsw "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npmulhrsw mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::lanes(x, y, pmulhrsw), 0]) };
    mm_packsswb "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npacksswb mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::joined(x, y, packsswb), 0]) };
    mm_packssdw "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npackssdw mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::joined(x, y, packssdw), 0]) };
    mm_phaddw "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\nphaddw mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::joined(x, y, phaddw), 0]) };
    mm_phsubd "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\nphsubd mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::joined(x, y, phsubd), 0]) };
    mm_punpcklbw "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npunpcklbw mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::unpack_low(x, y, punpcklbw), 0]) };
    mm_punpckhbw "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npunpckhbw mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::unpack_high(x, y, punpcklbw), 0]) };
    mm_punpckhwd "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npunpckhwd mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::unpack_high(x, y, punpcklwd), 0]) };
    mm_punpckhdq "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npunpckhdq mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::unpack_high(x, y, punpckldq), 0]) };
    mm_pshufb "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npshufb mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::pshufb(x, y), 0]) };
    mm_psrlw "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npsrlw mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::map(x, |v| psrlw(v, y)), 0]) };
    mm_psrad "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npsrad mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::map(x, |v| psrad(v, y)), 0]) };
    mm_pmuludq "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npmuludq mm0, mm1\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::lanes(x, y, pmuludq), 0]) };
    mm_pshufw_27 "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npshufw mm0, mm1, 27\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([{ let _ = x; mmx::pshufw(y, 27) }, 0]) };
    mm_pshufw_198 "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npshufw mm0, mm1, 198\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([{ let _ = x; mmx::pshufw(y, 198) }, 0]) };
    mm_palignr_0 "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npalignr mm0, mm1, 0\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::palignr(x, y, 0), 0]) };
    mm_palignr_3 "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npalignr mm0, mm1, 3\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::palignr(x, y, 3), 0]) };
    mm_palignr_8 "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npalignr mm0, mm1, 8\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::palignr(x, y, 8), 0]) };
    mm_palignr_11 "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npalignr mm0, mm1, 11\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::palignr(x, y, 11), 0]) };
    mm_palignr_16 "movdq2q mm0, xmm0\nmovdq2q mm1, xmm1\npalignr mm0, mm1, 16\nmovq2dq xmm0, mm0\nemms" |a, b, _c| { let (x, y) = (a.low(), b.low()); V128::from_u64s([mmx::palignr(x, y, 16), 0]) };
}

against! { strings ["sse4.2"];
    pcmpistri_00 "push rcx\npcmpistri xmm0, xmm1, 0\nmovd xmm0, ecx\npop rcx" |a, b, _c| V128::from_halves(u64::from(string::implicit(a, b, 0).index()), 0);
    pcmpistrm_00 "pcmpistrm xmm0, xmm1, 0" |a, b, _c| string::implicit(a, b, 0).mask();
    pcmpistri_05 "push rcx\npcmpistri xmm0, xmm1, 5\nmovd xmm0, ecx\npop rcx" |a, b, _c| V128::from_halves(u64::from(string::implicit(a, b, 5).index()), 0);
    pcmpistrm_05 "pcmpistrm xmm0, xmm1, 5" |a, b, _c| string::implicit(a, b, 5).mask();
    pcmpistri_08 "push rcx\npcmpistri xmm0, xmm1, 8\nmovd xmm0, ecx\npop rcx" |a, b, _c| V128::from_halves(u64::from(string::implicit(a, b, 8).index()), 0);
    pcmpistrm_08 "pcmpistrm xmm0, xmm1, 8" |a, b, _c| string::implicit(a, b, 8).mask();
    pcmpistri_0c "push rcx\npcmpistri xmm0, xmm1, 12\nmovd xmm0, ecx\npop rcx" |a, b, _c| V128::from_halves(u64::from(string::implicit(a, b, 12).index()), 0);
    pcmpistrm_0c "pcmpistrm xmm0, xmm1, 12" |a, b, _c| string::implicit(a, b, 12).mask();
    pcmpistri_12 "push rcx\npcmpistri xmm0, xmm1, 18\nmovd xmm0, ecx\npop rcx" |a, b, _c| V128::from_halves(u64::from(string::implicit(a, b, 18).index()), 0);
    pcmpistrm_12 "pcmpistrm xmm0, xmm1, 18" |a, b, _c| string::implicit(a, b, 18).mask();
    pcmpistri_1d "push rcx\npcmpistri xmm0, xmm1, 29\nmovd xmm0, ecx\npop rcx" |a, b, _c| V128::from_halves(u64::from(string::implicit(a, b, 29).index()), 0);
    pcmpistrm_1d "pcmpistrm xmm0, xmm1, 29" |a, b, _c| string::implicit(a, b, 29).mask();
    pcmpistri_38 "push rcx\npcmpistri xmm0, xmm1, 56\nmovd xmm0, ecx\npop rcx" |a, b, _c| V128::from_halves(u64::from(string::implicit(a, b, 56).index()), 0);
    pcmpistrm_38 "pcmpistrm xmm0, xmm1, 56" |a, b, _c| string::implicit(a, b, 56).mask();
    pcmpistri_4e "push rcx\npcmpistri xmm0, xmm1, 78\nmovd xmm0, ecx\npop rcx" |a, b, _c| V128::from_halves(u64::from(string::implicit(a, b, 78).index()), 0);
    pcmpistrm_4e "pcmpistrm xmm0, xmm1, 78" |a, b, _c| string::implicit(a, b, 78).mask();
    pcmpistri_5b "push rcx\npcmpistri xmm0, xmm1, 91\nmovd xmm0, ecx\npop rcx" |a, b, _c| V128::from_halves(u64::from(string::implicit(a, b, 91).index()), 0);
    pcmpistrm_5b "pcmpistrm xmm0, xmm1, 91" |a, b, _c| string::implicit(a, b, 91).mask();
    pcmpistri_77 "push rcx\npcmpistri xmm0, xmm1, 119\nmovd xmm0, ecx\npop rcx" |a, b, _c| V128::from_halves(u64::from(string::implicit(a, b, 119).index()), 0);
    pcmpistrm_77 "pcmpistrm xmm0, xmm1, 119" |a, b, _c| string::implicit(a, b, 119).mask();
}

#[cfg(target_arch = "x86_64")]
#[test]
fn string_comparisons() {
    if !is_x86_feature_detected!("sse4.2") {
        println!("SKIPPED string_comparisons: no SSE4.2");
        return;
    }
    // Small alphabets, so that matches happen; zeros end strings.
    fn word(rng: &mut Rng) -> V128 {
        let mut v = [0u8; 16];
        let k = rng.below(3);
        for (i, b) in v.iter_mut().enumerate() {
            *b = match k {
                0 => b'a' + rng.below(3) as u8,
                1 => [0x80, 0x7f, 1, 0, 0xff, 2][rng.below(6) as usize],
                _ => {
                    if i & 1 == 1 {
                        [0, 0xff][usize::from(rng.below(8) == 0)]
                    } else {
                        rng.below(4) as u8
                    }
                }
            };
            if rng.below(24) == 0 {
                *b = 0;
            }
        }
        V128(v)
    }
    macro_rules! modes {
        ($($imm:literal)*) => {$({
            const IMM: i32 = $imm;
            use core::arch::x86_64::*;
            let mut rng = Rng(IMM as u64);
            for _ in 0..400 {
                let (a, b) = (word(&mut rng), word(&mut rng));
                let la = [rng.below(20) as i32, -(rng.below(20) as i32), i32::MIN][usize::from(rng.below(10) as u8 / 5 + rng.below(20) as u8 / 19)];
                let lb = rng.below(40) as i32 - 20;
                // SAFETY: SSE4.2 was detected above.
                let (ei, em, ef, ii, im, if_) = unsafe {
                    let (x, y) = (_mm_loadu_si128(a.0.as_ptr().cast()), _mm_loadu_si128(b.0.as_ptr().cast()));
                    (
                        _mm_cmpestri::<IMM>(x, la, y, lb),
                        _mm_cmpestrm::<IMM>(x, la, y, lb),
                        [_mm_cmpestrc::<IMM>(x, la, y, lb), _mm_cmpestrz::<IMM>(x, la, y, lb), _mm_cmpestrs::<IMM>(x, la, y, lb), _mm_cmpestro::<IMM>(x, la, y, lb)],
                        _mm_cmpistri::<IMM>(x, y),
                        _mm_cmpistrm::<IMM>(x, y),
                        [_mm_cmpistrc::<IMM>(x, y), _mm_cmpistrz::<IMM>(x, y), _mm_cmpistrs::<IMM>(x, y), _mm_cmpistro::<IMM>(x, y)],
                    )
                };
                let check = |m: string::Match, i: i32, mask: __m128i, f: [i32; 4], what: &str| {
                    let flags = (f[0] | f[1] << 6 | f[2] << 7 | f[3] << 11) as u32;
                    let mut v = V128::ZERO;
                    // SAFETY: sixteen bytes of a local.
                    unsafe { _mm_storeu_si128(v.0.as_mut_ptr().cast(), mask) };
                    assert_eq!((m.index(), m.mask(), m.eflags), (i as u32, v, flags), "{what} {IMM:#x} {a:?} {la} {b:?} {lb}");
                };
                check(string::explicit(a, i64::from(la), b, i64::from(lb), IMM as u8), ei, em, ef, "pcmpestr");
                check(string::implicit(a, b, IMM as u8), ii, im, if_, "pcmpistr");
            }
        })*};
    }
    modes! { 0x0 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8 0x9 0xa 0xb 0xc 0xd 0xe 0xf 0x10 0x11 0x12 0x13 0x14 0x15 0x16 0x17 0x18 0x19 0x1a 0x1b 0x1c 0x1d 0x1e 0x1f 0x20 0x21 0x22 0x23 0x24 0x25 0x26 0x27 0x28 0x29 0x2a 0x2b 0x2c 0x2d 0x2e 0x2f 0x30 0x31 0x32 0x33 0x34 0x35 0x36 0x37 0x38 0x39 0x3a 0x3b 0x3c 0x3d 0x3e 0x3f 0x40 0x41 0x42 0x43 0x44 0x45 0x46 0x47 0x48 0x49 0x4a 0x4b 0x4c 0x4d 0x4e 0x4f 0x50 0x51 0x52 0x53 0x54 0x55 0x56 0x57 0x58 0x59 0x5a 0x5b 0x5c 0x5d 0x5e 0x5f 0x60 0x61 0x62 0x63 0x64 0x65 0x66 0x67 0x68 0x69 0x6a 0x6b 0x6c 0x6d 0x6e 0x6f 0x70 0x71 0x72 0x73 0x74 0x75 0x76 0x77 0x78 0x79 0x7a 0x7b 0x7c 0x7d 0x7e 0x7f }
}
