//! Whether there is AVX2.

use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

/// AVX2, and an operating system that enabled it.
pub fn has_avx2() -> bool {
    const OSXSAVE_AVX: u32 = 1 << 27 | 1 << 28;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE_AVX != OSXSAVE_AVX {
        return false;
    }
    // SAFETY: OSXSAVE says that XGETBV is there.
    let enabled = unsafe { xcr0() };
    __cpuid_count(7, 0).ebx & 1 << 5 != 0 && enabled & 6 == 6
}

#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: the caller has seen OSXSAVE.
    unsafe { _xgetbv(0) }
}
