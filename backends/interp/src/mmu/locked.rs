//! LOCKed accesses: compare and exchange, as one access for all vCPUs. Every locked instruction comes through here.
//!
//! | access | hosts with a 16-byte compare and exchange (x86-64, aarch64, s390x, some riscv64) | others |
//! |---|---|---|
//! | 1 to 8 bytes, aligned | the host's own | the host's own, under its line's lock |
//! | 16 bytes, aligned | the host's own | both halves by the host's own, under its line's lock |
//! | misaligned, inside 16 aligned bytes | the host's 16-byte one | plain, under its line's lock |
//! | misaligned, across them | plain, under the locks | plain, under the locks of both lines |
//!
//! A *line* is 16 aligned bytes; lines share a fixed number of locks. So on the other hosts, too, no LOCKed access of any size
//! comes between the halves of CMPXCHG16B. A plain store there is never lost: it makes a half's exchange fail,
//! and the half already exchanged is put back; a plain load may see one half before the other.

use super::ram::{load, load128, store};
use crate::regs::Int;
use portable_atomic::AtomicU128;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const LOCKS: usize = 64;
static LINES: [Mutex<()>; LOCKS] = [const { Mutex::new(()) }; LOCKS];

fn line(at: usize) -> usize {
    (at >> 4) % LOCKS
}

fn hold(line: usize) -> MutexGuard<'static, ()> {
    LINES[line].lock().unwrap_or_else(PoisonError::into_inner)
}

/// True if the host has no 16-byte compare and exchange, or none to count on.
#[inline(always)]
fn by_lock() -> bool {
    match () {
        // The first has one since 2005; asking costs on every locked instruction.
        () if cfg!(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "s390x")) => false,
        // POWER8 and up have one, but under QEMU 7.2 its store never succeeds (`lqarx`, `stqcx.`): a loop without end.
        () if cfg!(target_arch = "powerpc64") => true,
        () => !AtomicU128::is_lock_free(),
    }
}

/// Compare and exchange; on failure what was there.
#[inline]
pub(crate) fn compare_exchange<T: Int>(at: usize, old: T, new: T) -> Result<(), T> {
    if at & (T::BYTES - 1) != 0 {
        return misaligned(at, old, new);
    }
    if by_lock() { narrow_by_lock(at, old, new) } else { narrow(at, old, new) }
}

#[inline]
fn narrow<T: Int>(at: usize, old: T, new: T) -> Result<(), T> {
    macro_rules! cas {
        ($a:ty, $u:ty) => {{
            // SAFETY: aligned guest RAM, writable (see `ram::load`).
            let a = unsafe { <$a>::from_ptr(std::ptr::with_exposed_provenance_mut(at)) };
            a.compare_exchange(
                (old.z() as $u).to_le(),
                (new.z() as $u).to_le(),
                Ordering::SeqCst,
                Ordering::SeqCst,
            )
            .map(|_| ())
            .map_err(|v| T::new(u64::from(<$u>::from_le(v))))
        }};
    }
    match T::BYTES {
        1 => cas!(AtomicU8, u8),
        2 => cas!(AtomicU16, u16),
        4 => cas!(AtomicU32, u32),
        _ => cas!(AtomicU64, u64),
    }
}

#[cold]
#[inline(never)]
fn narrow_by_lock<T: Int>(at: usize, old: T, new: T) -> Result<(), T> {
    let _held = hold(line(at));
    narrow(at, old, new)
}

#[cold]
#[inline(never)]
fn misaligned<T: Int>(at: usize, old: T, new: T) -> Result<(), T> {
    let (first, last) = (line(at), line(at + T::BYTES - 1));
    if first == last && !by_lock() {
        let (start, shift) = (at & !15, (at & 15) * 8);
        let mask = u128::from(T::MASK) << shift;
        let mut was = load128(start);
        loop {
            let now = T::new((was >> shift) as u64);
            if now != old {
                return Err(now);
            }
            match compare_exchange128(start, was, was & !mask | u128::from(new.z()) << shift) {
                Ok(()) => return Ok(()),
                Err(seen) => was = seen,
            }
        }
    }
    // In one order, so that two of them never wait for each other.
    let _low = hold(first.min(last));
    let _high = (first != last).then(|| hold(first.max(last)));
    let was = load::<T>(at);
    if was != old {
        return Err(was);
    }
    store(at, new);
    Ok(())
}

/// 16-byte compare and exchange, for CMPXCHG16B: `at` is aligned. On failure what was there.
pub(crate) fn compare_exchange128(at: usize, old: u128, new: u128) -> Result<(), u128> {
    if by_lock() {
        return wide_by_lock(at, old, new);
    }
    // SAFETY: 16 aligned bytes of guest RAM, writable (see `ram::load`).
    let a = unsafe { AtomicU128::from_ptr(std::ptr::with_exposed_provenance_mut(at)) };
    a.compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst)
        .map(|_| ())
        .map_err(u128::from_le)
}

fn wide_by_lock(at: usize, old: u128, new: u128) -> Result<(), u128> {
    let halves = |v: u128| (v as u64, (v >> 64) as u64);
    let (old_low, old_high) = halves(old);
    let (new_low, new_high) = halves(new);
    let _held = hold(line(at));
    loop {
        let was = load128(at);
        if was != old {
            return Err(was);
        }
        if narrow(at, old_low, new_low).is_err() {
            continue;
        }
        if narrow(at + 8, old_high, new_high).is_ok() {
            return Ok(());
        }
        // A plain store came to the other half: as if it had come before all this. One that has come to this
        // half as well stays.
        let _ = narrow(at, new_low, old_low);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(16))]
    struct Line(std::cell::UnsafeCell<[u8; 32]>);
    // SAFETY: only accessed atomically, by address.
    unsafe impl Sync for Line {}

    type Wide = fn(usize, u128, u128) -> Result<(), u128>;
    type Narrow = fn(usize, u64, u64) -> Result<(), u64>;

    /// Threads add to the halves, some by 16 bytes at once, some to one half: no addition may be lost.
    fn race(wide: Wide, narrow: Narrow) {
        let memory = Line(std::cell::UnsafeCell::new([0; 32]));
        let at = memory.0.get().expose_provenance();
        const EACH: u64 = 20_000;
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(move || {
                    for _ in 0..EACH {
                        let mut was = load128(at);
                        while let Err(now) = wide(at, was, was + (1 | 1 << 64)) {
                            was = now;
                        }
                    }
                });
                for half in [at, at + 8] {
                    s.spawn(move || {
                        for _ in 0..EACH {
                            let mut was = load::<u64>(half);
                            while let Err(now) = narrow(half, was, was + 1) {
                                was = now;
                            }
                        }
                    });
                }
            }
        });
        assert_eq!(load128(at), u128::from(EACH * 4) << 64 | u128::from(EACH * 4));
    }

    #[test]
    fn sixteen_bytes_and_halves_lose_no_update() {
        race(compare_exchange128, compare_exchange::<u64>);
    }

    #[test]
    fn without_a_16_byte_instruction_they_lose_none_either() {
        race(wide_by_lock, narrow_by_lock::<u64>);
    }

    #[test]
    fn misaligned_ones_change_what_they_should() {
        let memory = Line(std::cell::UnsafeCell::new(std::array::from_fn(|i| i as u8)));
        let at = memory.0.get().expose_provenance();
        for off in [1, 3, 5, 11, 13, 15, 17] {
            let was = load::<u32>(at + off);
            assert_eq!(compare_exchange(at + off, was ^ 1, 7u32), Err(was));
            assert_eq!(compare_exchange(at + off, was, 0x8899_aabbu32), Ok(()));
            assert_eq!(load::<u32>(at + off), 0x8899_aabb);
            assert_eq!(load::<u8>(at + off - 1), (off - 1) as u8);
            store(at + off, was);
        }
    }
}
