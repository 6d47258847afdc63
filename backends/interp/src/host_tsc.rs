//! The TSC frequency that a new guest gets: the host's where it has one and says it, else 1 GHz.

use std::sync::OnceLock;

const ELSEWHERE_KHZ: u64 = 1_000_000;

/// In kHz.
pub(crate) fn khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| learn().filter(|k| (10_000..=100_000_000).contains(k)).unwrap_or(ELSEWHERE_KHZ))
}

#[cfg(not(target_arch = "x86_64"))]
fn learn() -> Option<u64> {
    None
}

#[cfg(target_arch = "x86_64")]
fn learn() -> Option<u64> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let invariant = __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0;
    if !invariant {
        return None;
    }
    let max = __cpuid(0).eax;
    if max >= 0x15 {
        let r = __cpuid_count(0x15, 0);
        if r.eax != 0 && r.ebx != 0 && r.ecx != 0 {
            return Some(u64::from(r.ecx) * u64::from(r.ebx) / u64::from(r.eax) / 1000);
        }
    }
    if __cpuid(1).ecx & 1 << 31 != 0 && __cpuid(0x4000_0000).eax >= 0x4000_0010 {
        let khz = __cpuid(0x4000_0010).eax;
        if khz != 0 {
            return Some(u64::from(khz));
        }
    }
    measure()
}

/// Counts ticks over a few milliseconds, and rounds to what oscillators are made for.
#[cfg(target_arch = "x86_64")]
fn measure() -> Option<u64> {
    use std::time::{Duration, Instant};
    let tick = || {
        // SAFETY: RDTSC is there on every x86-64 and has no effect but its result.
        unsafe { std::arch::x86_64::_rdtsc() }
    };
    let (t0, c0) = (Instant::now(), tick());
    while t0.elapsed() < Duration::from_millis(5) {
        std::hint::spin_loop();
    }
    let (t, c) = (t0.elapsed().as_nanos() as u64, tick());
    let khz = u128::from(c.wrapping_sub(c0)) * 1_000_000 / u128::from(t.max(1));
    Some((khz as u64 + 50) / 100 * 100)
}
