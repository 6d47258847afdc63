//! Unmasked SSE exceptions against the processor: whether an operation traps, and what it
//! leaves in MXCSR when it does. The SIGFPE handler notes MXCSR as the fault left it and masks
//! everything, so that the instruction then completes.

use std::sync::atomic::{AtomicU32, Ordering};

use super::super::sse::scalar::{self, FmaSigns, Predicate};
use super::super::sse::{Mxcsr, Sse, convert, packed};
use super::super::vec::V128;
use super::sse_native as native;
use super::values::Rng;
use crate::vendor::{self, SetAside, Vendor};

static AT_FAULT: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_fpe(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext whose floating-point state is valid.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let fp = &mut *context.uc_mcontext.fpregs;
        AT_FAULT.store(fp.mxcsr, Ordering::Relaxed);
        fp.mxcsr |= 0x1f80;
    }
}

fn catch_fpe() {
    // SAFETY: the handler only touches its context and an atomic.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = on_fpe as extern "C" fn(_, _, _) as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGFPE, &action, core::ptr::null_mut()), 0);
    }
}

type Native = fn(V128, V128, V128, u32) -> (V128, u32);
type Ours = fn(&mut Mxcsr, V128, V128, V128) -> Sse<V128>;

fn d(a: V128, r: Sse<u64>) -> Sse<V128> {
    r.map(|v| a.with_u64(0, v))
}

/// What an Intel processor does otherwise: the difference's name, where its result, and MXCSR after the instruction or
/// as a fault left it, are those.
fn of_intel(
    name: &str,
    [a, b]: [V128; 2],
    mx: u32,
    (result, after, fault): (V128, u32, u32),
    (ours, m): (Sse<V128>, u32),
) -> Option<&'static str> {
    const UNMASKED: u32 = 1 << 11;
    const DAZ: u32 = 1 << 6;
    if vendor::host() != Vendor::Intel {
        return None;
    }
    let denormal = |v: u32| v << 1 != 0 && v << 1 >> 24 == 0;
    match (name, ours) {
        ("dpps", Ok(_)) if fault == 0 && m == after && native::dpps_of_intel(mx, a, b, 0xff) == result => {
            Some("dpps-nan")
        }
        // PE beside UE.
        ("vcvtps2ph", Err(_)) if mx & (UNMASKED | DAZ) == 0 && b.u32s().into_iter().any(denormal) => {
            (m & 0x10 != 0 && fault == m | 0x20).then_some("vcvtps2ph-denormal")
        }
        _ => None,
    }
}

#[test]
fn unmasked_exceptions() {
    if !is_x86_feature_detected!("fma") || !is_x86_feature_detected!("f16c") {
        println!("SKIPPED unmasked_exceptions: no FMA or F16C");
        return;
    }
    catch_fpe();
    let list: [(&str, bool, Native, Ours); 19] = [
        ("addsd", true, native::addsd, |m, a, b, _| d(a, scalar::add::<f64>(m, a.low(), b.low()))),
        ("mulsd", true, native::mulsd, |m, a, b, _| d(a, scalar::mul::<f64>(m, a.low(), b.low()))),
        ("divsd", true, native::divsd, |m, a, b, _| d(a, scalar::div::<f64>(m, a.low(), b.low()))),
        ("sqrtsd", true, native::sqrtsd, |m, a, b, _| d(a, scalar::sqrt::<f64>(m, b.low()))),
        ("minsd", true, native::minsd, |m, a, b, _| d(a, scalar::min::<f64>(m, a.low(), b.low()))),
        ("roundsd", true, native::roundsd4, |m, a, b, _| d(a, scalar::round::<f64>(m, b.low(), 4))),
        ("fmadd231sd", true, native::fmadd231sd, |m, a, b, c| {
            d(a, scalar::fma::<f64>(m, b.low(), c.low(), a.low(), FmaSigns::MADD))
        }),
        ("cvtsd2ss", true, native::cvtsd2ss, |m, a, b, _| {
            convert::cvtsd2ss(m, b.low()).map(|v| a.with_u32(0, v))
        }),
        ("cvtsd2si", true, native::cvtsd2si64, |m, _, b, _| {
            convert::cvtsd2si64(m, b.low()).map(|v| V128::from_halves(v as u64, 0))
        }),
        ("cvtpd2ps", true, native::cvtpd2ps, |m, _, b, _| convert::cvtpd2ps(m, b)),
        ("cvtps2dq", false, native::cvtps2dq, |m, _, b, _| convert::cvtps2dq(m, b, false)),
        ("addps", false, native::addps, |m, a, b, _| packed::addps(m, a, b)),
        ("mulps", false, native::mulps, |m, a, b, _| packed::mulps(m, a, b)),
        ("divps", false, native::divps, |m, a, b, _| packed::divps(m, a, b)),
        ("haddps", false, native::haddps, |m, a, b, _| packed::haddps(m, a, b)),
        ("cmpps", false, native::cmpps1, |m, a, b, _| packed::cmpps(m, a, b, Predicate(1))),
        ("dpps", false, native::dpps_ff, |m, a, b, _| packed::dpps(m, a, b, 0xff)),
        ("dppd", true, native::dppd_31, |m, a, b, _| packed::dppd(m, a, b, 0x31)),
        ("vcvtps2ph", false, native::vcvtps2ph4, |m, _, b, _| {
            convert::f32_to_f16(m, b.u32s(), 4).map(|r| V128::from_u16s([r[0], r[1], r[2], r[3], 0, 0, 0, 0]))
        }),
    ];
    let mut rng = Rng(0xfee);
    let (mut bad, mut compared, mut aside) = (0, 0, SetAside::default());
    for (name, double, native, ours) in list {
        let mut here = 0;
        for _ in 0..4000 {
            let mut v = || {
                if double {
                    V128::from_u64s([rng.f64(), rng.f64()])
                } else {
                    V128::from_u32s([rng.f32(), rng.f32(), rng.f32(), rng.f32()])
                }
            };
            let (a, b, c) = (v(), v(), v());
            let r = rng.next() as u32;
            // Any masks, rounding, DAZ, FTZ and sticky flags (which alone never trap).
            let mx = r & 0xffff;
            AT_FAULT.store(0, Ordering::Relaxed);
            let (result, after) = native(a, b, c, mx);
            let fault = AT_FAULT.load(Ordering::Relaxed);
            let mut m = Mxcsr(mx);
            let got = ours(&mut m, a, b, c);
            let same = match got {
                Ok(v) => fault == 0 && v == result && m.0 == after,
                Err(_) => m.0 == fault,
            };
            compared += 1;
            if same {
                continue;
            }
            if let Some(difference) = of_intel(name, [a, b], mx, (result, after, fault), (got, m.0)) {
                aside.note(difference);
            } else {
                here += 1;
                if here <= 5 {
                    println!(
                        "{name} {a:?} {b:?} {c:?} mxcsr {mx:04x}: silicon {result:?} {after:04x} fault {fault:04x}, ours {got:?} {:04x}",
                        m.0
                    );
                }
            }
        }
        println!("{name}: {here} differ");
        bad += here;
    }
    println!("{compared} operations compared, {aside}");
    assert_eq!(bad, 0);
}
