//! KVM's XSAVE image (SDM vol. 1, 13.4: standard form) to and from x87, SSE and AVX state.
//!
//! The kernel fills the bytes of components in their initial state too, so XSTATE_BV need not be asked.

use godwit_sdk::state::{AvxV1, F80, FpuV1};
use kvm_bindings::kvm_xsave;

const ST: usize = 32;
const XMM: usize = 160;
const XSTATE_BV: usize = 512;
/// The same on every processor: the first component after header and legacy region.
const YMM_HIGH: usize = 576;
/// FSW: an unmasked exception is pending.
const ES: u16 = 0x80;

fn bytes(image: &kvm_xsave) -> [u8; 4096] {
    let mut out = [0; 4096];
    for (to, from) in out.chunks_exact_mut(4).zip(image.region) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    out
}

fn take<const N: usize>(b: &[u8; 4096], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&b[at..at + N]);
    out
}

/// What the image holds.
pub(crate) fn from_kvm(image: &kvm_xsave, avx: bool) -> (FpuV1, Option<AvxV1>) {
    let b = bytes(image);
    let fsw = u16::from_le_bytes(take(&b, 2));
    // Some processors (AMD's) keep these only while an exception is pending: nobody may rely on them otherwise.
    let pending = fsw & ES != 0;
    let keep = |v: u64| if pending { v } else { 0 };
    let fpu = FpuV1 {
        fcw: u16::from_le_bytes(take(&b, 0)),
        fsw,
        ftw: b[4],
        fop: keep(u64::from(u16::from_le_bytes(take(&b, 6)) & 0x7ff)) as u16,
        fip: keep(u64::from_le_bytes(take(&b, 8))),
        fdp: keep(u64::from_le_bytes(take(&b, 16))),
        st: std::array::from_fn(|i| F80 {
            frac: u64::from_le_bytes(take(&b, ST + 16 * i)),
            se: u16::from_le_bytes(take(&b, ST + 16 * i + 8)),
        }),
        mxcsr: u32::from_le_bytes(take(&b, 24)),
        xmm: std::array::from_fn(|i| u128::from_le_bytes(take(&b, XMM + 16 * i))),
    };
    let avx = avx.then(|| AvxV1 {
        ymm_high: std::array::from_fn(|i| u128::from_le_bytes(take(&b, YMM_HIGH + 16 * i))),
    });
    (fpu, avx)
}

/// The image of that state.
pub(crate) fn to_kvm(fpu: &FpuV1, avx: Option<&AvxV1>) -> kvm_xsave {
    let mut b = [0u8; 4096];
    let mut put = |at: usize, v: &[u8]| b[at..at + v.len()].copy_from_slice(v);
    put(0, &fpu.fcw.to_le_bytes());
    put(2, &fpu.fsw.to_le_bytes());
    put(4, &[fpu.ftw]);
    put(6, &fpu.fop.to_le_bytes());
    put(8, &fpu.fip.to_le_bytes());
    put(16, &fpu.fdp.to_le_bytes());
    put(24, &fpu.mxcsr.to_le_bytes());
    for (i, st) in fpu.st.iter().enumerate() {
        put(ST + 16 * i, &st.frac.to_le_bytes());
        put(ST + 16 * i + 8, &st.se.to_le_bytes());
    }
    for (i, x) in fpu.xmm.iter().enumerate() {
        put(XMM + 16 * i, &x.to_le_bytes());
    }
    if let Some(avx) = avx {
        for (i, y) in avx.ymm_high.iter().enumerate() {
            put(YMM_HIGH + 16 * i, &y.to_le_bytes());
        }
    }
    put(XSTATE_BV, &(if avx.is_some() { 7u64 } else { 3 }).to_le_bytes());
    let mut image = kvm_xsave::default();
    for (to, from) in image.region.iter_mut().zip(b.chunks_exact(4)) {
        *to = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let mut fpu = FpuV1 { mxcsr: 0x3f80, fcw: 0x27f, ftw: 3, ..Default::default() };
        fpu.xmm[15] = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
        fpu.st[7] = F80 { se: 0xbfff, frac: 1 << 63 };
        let avx = AvxV1 { ymm_high: std::array::from_fn(|i| i as u128 | 1 << 127) };
        assert_eq!(from_kvm(&to_kvm(&fpu, Some(&avx)), true), (fpu, Some(avx)));
        assert_eq!(from_kvm(&to_kvm(&fpu, None), false), (fpu, None));
    }

    #[test]
    fn pointers_count_only_with_an_exception_pending() {
        let mut fpu = FpuV1 { fop: 5, fip: 6, fdp: 7, ..Default::default() };
        assert_eq!(from_kvm(&to_kvm(&fpu, None), false).0.fip, 0);
        fpu.fsw = ES;
        assert_eq!(from_kvm(&to_kvm(&fpu, None), false).0, fpu);
    }
}
