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

/// Counts ticks over a moment, and rounds to what oscillators are made for. Each end is the best of some readings, so that
/// the moment can be short: a start waits for it.
#[cfg(target_arch = "x86_64")]
fn measure() -> Option<u64> {
    use std::time::{Duration, Instant};
    let tick = || {
        // SAFETY: RDTSC is there on every x86-64 and has no effect but its result.
        unsafe { std::arch::x86_64::_rdtsc() }
    };
    let read = || {
        let once = |_| {
            let (before, at, after) = (tick(), Instant::now(), tick());
            let width = after.wrapping_sub(before);
            (width, at, before.wrapping_add(width / 2))
        };
        (0..16).map(once).min_by_key(|(width, ..)| *width).map(|(_, at, ticks)| (at, ticks))
    };
    let (t0, c0) = read()?;
    while t0.elapsed() < Duration::from_micros(1500) {
        std::hint::spin_loop();
    }
    let (t, c) = read()?;
    let ns = t.saturating_duration_since(t0).as_nanos().max(1);
    let khz = u128::from(c.wrapping_sub(c0)) * 1_000_000 / ns;
    Some((khz as u64 + 50) / 100 * 100)
}
