//! Guest RAM: where it is mapped, and every access to it. Little-endian, whatever the host.
//!
//! The VMM, devices and other vCPUs write the same memory, so no reference into it is ever formed; aligned
//! accesses are single host accesses.
//!
//! # Memory order
//!
//! x86 promises its programs: loads happen in order, stores are seen in order, a store is not seen before an earlier load has
//! happened; all processors see the stores of two others in one order. Only a load may pass an earlier store, and none
//! passes LOCK, XCHG with memory, MFENCE or a serializing instruction.
//!
//! | guest | x86 host | other hosts |
//! |---|---|---|
//! | load | load | load that acquires |
//! | store | store | store that releases |
//! | a long string instruction, vectors, FXSAVE ... | a copy | a copy between fences that order it against all others: within it x86 promises no order either |
//! | LOCK, XCHG | compare and exchange, which is a fence here | the same between two full fences: Rust's own orders such an operation only against others of its kind |
//! | MFENCE, serializing instructions | a full fence | the same |
//!
//! One order of two others' stores comes with acquiring loads where a store reaches all other processors at once: Armv8,
//! RISC-V, z/Architecture, SPARC's TSO. Power promises that only to loads with a full fence in front of each,
//! which `seen_alike` puts there as soon as a machine has two vCPUs.
//!
//! A misaligned access is one access on x86 hosts if it lies within a cache line, and byte by byte elsewhere (AMD's manual
//! promises no more than 8 aligned bytes); a LOCKed one is whole everywhere (`locked`). A guest with one vCPU needs all this
//! too: its devices are other threads.

use crate::regs::Int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// log2 of the guest's page size.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// The guest's page size.
pub(crate) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Selects the offset in a page.
pub(crate) const PAGE_MASK: u64 = PAGE_SIZE - 1;

/// A slot of guest memory.
#[derive(Debug)]
pub(crate) struct Region {
    pub slot: u32,
    pub gpa: u64,
    pub len: u64,
    host: usize,
    pub read_only: bool,
    dirty_on: AtomicBool,
    /// One bit a page.
    dirty: Box<[AtomicU64]>,
    /// One word a page: bit i says that some vCPU has decoded code from its i-th 64 bytes.
    code: Box<[AtomicU64]>,
}

fn zeroed(words: u64) -> Box<[AtomicU64]> {
    // A zeroed vector of u64 comes from the kernel untouched, and an AtomicU64 has u64's layout.
    let words = vec![0u64; words as usize].into_boxed_slice();
    // SAFETY: u64 and AtomicU64 have the same size, alignment and validity on all 64-bit hosts.
    unsafe { Box::from_raw(Box::into_raw(words) as *mut [AtomicU64]) }
}

impl Region {
    pub(crate) fn new(slot: &godwit_sdk::MemorySlot) -> Self {
        let pages = slot.len >> PAGE_SHIFT;
        Region {
            slot: slot.slot,
            gpa: slot.gpa,
            len: slot.len,
            host: slot.host.expose_provenance(),
            read_only: slot.read_only,
            dirty_on: AtomicBool::new(false),
            dirty: zeroed(pages.div_ceil(64)),
            code: zeroed(pages),
        }
    }

    /// Marks the page that holds `gpa`, if its writes are logged.
    #[inline]
    pub(crate) fn mark_dirty(&self, gpa: u64) {
        if self.dirty_on.load(Ordering::Relaxed) {
            let page = (gpa - self.gpa) >> PAGE_SHIFT;
            if let Some(word) = self.dirty.get((page / 64) as usize) {
                word.fetch_or(1 << (page % 64), Ordering::AcqRel);
            }
        }
    }

    pub(crate) fn set_log(&self, on: bool) {
        if on {
            self.dirty.iter().for_each(|w| w.store(0, Ordering::Relaxed));
        }
        self.dirty_on.store(on, Ordering::SeqCst);
    }

    pub(crate) fn take_log(&self, into: &mut [u64]) {
        for (out, word) in into.iter_mut().zip(&self.dirty) {
            if word.load(Ordering::Relaxed) != 0 {
                *out |= word.swap(0, Ordering::AcqRel);
            }
        }
    }

    pub(crate) fn words(&self) -> usize {
        self.dirty.len()
    }

    /// The code lines of the page that holds `gpa`.
    #[inline]
    pub(crate) fn code(&self, gpa: u64) -> &AtomicU64 {
        // `find` gives a region only for addresses inside it.
        &self.code[((gpa - self.gpa) >> PAGE_SHIFT) as usize]
    }

    /// Host address of `gpa`.
    #[inline]
    pub(crate) fn host(&self, gpa: u64) -> usize {
        self.host + (gpa - self.gpa) as usize
    }
}

/// All of guest memory. Replaced whole when a slot comes or goes, while no vCPU runs.
#[derive(Debug, Default, Clone)]
pub(crate) struct RamMap {
    pub regions: Vec<Arc<Region>>,
}

impl RamMap {
    /// The region that holds `gpa`.
    #[inline]
    pub(crate) fn find(&self, gpa: u64) -> Option<&Region> {
        self.regions.iter().find(|r| gpa.wrapping_sub(r.gpa) < r.len).map(|r| &**r)
    }

    /// A write entry of a TLB goes: its page counts as written now. The log may have been started or taken since the entry was made,
    /// and the page written since.
    pub(crate) fn write_entry_gone(&self, gpa: u64) {
        self.write_entries_gone()(gpa);
    }

    /// The same for several.
    pub(crate) fn write_entries_gone(&self) -> impl Fn(u64) {
        // Either what follows sees that there is a log, or who started it sees what was written.
        std::sync::atomic::fence(Ordering::SeqCst);
        |gpa| {
            if let Some(region) = self.find(gpa) {
                region.mark_dirty(gpa);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod raw {
    use super::*;
    use std::arch::asm;
    #[repr(C, packed)]
    #[derive(Clone, Copy)]
    struct Any<T>(T);

    macro_rules! by_size {
        ($t:ident, $u:ident => $e:expr) => {
            match $t::BYTES {
                1 => {
                    type $u = u8;
                    $e
                }
                2 => {
                    type $u = u16;
                    $e
                }
                4 => {
                    type $u = u32;
                    $e
                }
                _ => {
                    type $u = u64;
                    $e
                }
            }
        };
    }

    #[inline(always)]
    // Not useless for the narrower types that the macro goes through.
    #[allow(clippy::useless_conversion)]
    pub(crate) fn load<T: Int>(at: usize) -> T {
        // SAFETY: `at` is a host address that the TLB or a region gave for T::BYTES bytes of guest RAM, which
        // stay mapped while vCPUs run. The type has alignment 1; x86 makes an aligned access atomic.
        by_size!(T, U => T::new(u64::from(unsafe { std::ptr::with_exposed_provenance::<Any<U>>(at).read_volatile() }.0)))
    }

    /// One instruction each: a volatile write of less alignment than the type's goes through the stack.
    #[inline(always)]
    pub(crate) fn store<T: Int>(at: usize, v: T) {
        let v = v.z();
        // SAFETY: as `load`; a writable region.
        unsafe {
            match T::BYTES {
                1 => {
                    asm!("mov byte ptr [{}], {}", in(reg) at, in(reg_byte) v as u8, options(nostack, preserves_flags))
                }
                2 => {
                    asm!("mov word ptr [{}], {:x}", in(reg) at, in(reg) v as u16, options(nostack, preserves_flags))
                }
                4 => {
                    asm!("mov dword ptr [{}], {:e}", in(reg) at, in(reg) v as u32, options(nostack, preserves_flags))
                }
                _ => asm!("mov qword ptr [{}], {}", in(reg) at, in(reg) v, options(nostack, preserves_flags)),
            }
        }
    }

    #[inline(always)]
    pub(crate) fn load128(at: usize) -> u128 {
        // SAFETY: as `load`, for 16 bytes.
        unsafe { std::ptr::with_exposed_provenance::<Any<u128>>(at).read_volatile() }.0
    }

    #[inline(always)]
    pub(crate) fn store128(at: usize, v: u128) {
        // SAFETY: both types are 16 bytes of any value.
        let v: std::arch::x86_64::__m128i = unsafe { std::mem::transmute(v) };
        // SAFETY: as `store`, for 16 bytes.
        unsafe {
            asm!("movups xmmword ptr [{}], {}", in(reg) at, in(xmm_reg) v, options(nostack, preserves_flags))
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod raw {
    use super::*;
    use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32};

    /// Before each load, for Power: see the head of this file.
    #[inline(always)]
    fn seen_alike() {
        if cfg!(target_arch = "powerpc64") && SHARED.load(Ordering::Relaxed) {
            super::fence();
        }
    }

    #[inline(always)]
    pub(crate) fn load<T: Int>(at: usize) -> T {
        if at & (T::BYTES - 1) == 0 {
            seen_alike();
            macro_rules! get {
                ($a:ty, $u:ty) => {{
                    // SAFETY: aligned, and a host address that the TLB or a region gave for guest RAM.
                    let a = unsafe { <$a>::from_ptr(std::ptr::with_exposed_provenance_mut(at)) };
                    T::new(u64::from(<$u>::from_le(a.load(Ordering::Acquire))))
                }};
            }
            return match T::BYTES {
                1 => get!(AtomicU8, u8),
                2 => get!(AtomicU16, u16),
                4 => get!(AtomicU32, u32),
                _ => get!(AtomicU64, u64),
            };
        }
        let mut v = 0;
        for i in 0..T::BYTES {
            v |= u64::from(load::<u8>(at + i)) << (8 * i);
        }
        T::new(v)
    }

    #[inline(always)]
    pub(crate) fn store<T: Int>(at: usize, v: T) {
        macro_rules! put {
            ($a:ty, $u:ty) => {{
                // SAFETY: as `load`; a writable region.
                let a = unsafe { <$a>::from_ptr(std::ptr::with_exposed_provenance_mut(at)) };
                a.store((v.z() as $u).to_le(), Ordering::Release)
            }};
        }
        if at & (T::BYTES - 1) == 0 {
            return match T::BYTES {
                1 => put!(AtomicU8, u8),
                2 => put!(AtomicU16, u16),
                4 => put!(AtomicU32, u32),
                _ => put!(AtomicU64, u64),
            };
        }
        for i in 0..T::BYTES {
            store::<u8>(at + i, (v.z() >> (8 * i)) as u8);
        }
    }

    pub(crate) fn load128(at: usize) -> u128 {
        u128::from(load::<u64>(at)) | u128::from(load::<u64>(at + 8)) << 64
    }

    pub(crate) fn store128(at: usize, v: u128) {
        store::<u64>(at, v as u64);
        store::<u64>(at + 8, (v >> 64) as u64);
    }
}

pub(crate) use raw::{load, load128, store, store128};

/// A machine with several vCPUs runs in this process.
static SHARED: AtomicBool = AtomicBool::new(false);

/// Several vCPUs will use guest memory.
pub(crate) fn share() {
    SHARED.store(true, Ordering::SeqCst);
}

/// No access passes this.
#[inline(always)]
pub(crate) fn fence() {
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// The same, before and after an atomic operation on guest memory: which is itself one on x86.
#[inline(always)]
pub(crate) fn fence_beside_atomic() {
    if cfg!(not(any(target_arch = "x86_64", target_arch = "x86"))) {
        fence();
    }
}

/// Before bytes are written by a plain copy: earlier accesses stay in front of it. No instruction on x86.
#[inline(always)]
fn before_copy_in() {
    std::sync::atomic::fence(Ordering::Release);
}

/// After bytes were read by a plain copy: later accesses stay behind it. No instruction on x86.
#[inline(always)]
fn after_copy_out() {
    std::sync::atomic::fence(Ordering::Acquire);
}

/// Copies `len` bytes inside guest RAM, upwards, as if byte by byte where they overlap.
pub(crate) fn copy_up(from: usize, to: usize, len: usize) {
    before_copy_in();
    if to.wrapping_sub(from) >= len || to <= from {
        // SAFETY: both are guest RAM of `len` bytes (see `load`); a forward copy onto a lower or separate place
        // is what memmove gives.
        unsafe {
            std::ptr::copy(
                std::ptr::with_exposed_provenance::<u8>(from),
                std::ptr::with_exposed_provenance_mut::<u8>(to),
                len,
            );
        }
    } else {
        // The destination starts inside the source: the bytes in between repeat.
        for i in 0..len {
            store::<u8>(to + i, load::<u8>(from + i));
        }
    }
    after_copy_out();
}

/// Fills guest RAM with a byte.
pub(crate) fn fill(to: usize, value: u8, len: usize) {
    before_copy_in();
    // SAFETY: guest RAM of `len` bytes, writable (see `load`).
    unsafe { std::ptr::write_bytes(std::ptr::with_exposed_provenance_mut::<u8>(to), value, len) };
}

/// Reads guest RAM into `into`.
pub(crate) fn read_bytes(at: usize, into: &mut [u8]) {
    // SAFETY: guest RAM of that length (see `load`); `into` is ours and elsewhere.
    unsafe {
        std::ptr::copy_nonoverlapping(
            std::ptr::with_exposed_provenance::<u8>(at),
            into.as_mut_ptr(),
            into.len(),
        );
    }
    after_copy_out();
}

/// Writes `from` to guest RAM.
pub(crate) fn write_bytes(at: usize, from: &[u8]) {
    before_copy_in();
    // SAFETY: guest RAM of that length, writable (see `load`); `from` is ours and elsewhere.
    unsafe {
        std::ptr::copy_nonoverlapping(
            from.as_ptr(),
            std::ptr::with_exposed_provenance_mut::<u8>(at),
            from.len(),
        );
    }
}
