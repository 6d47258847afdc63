//! Dirty bits of the VMM's own writes to guest memory.

use super::PAGE_SIZE;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// Told of every write that the VMM makes to guest memory: the plugged-in backend, which drops stale code.
pub trait WriteObserver: Send + Sync {
    /// `len` bytes at guest-physical `gpa` have been (or are just being) written.
    fn memory_written(&self, gpa: u64, len: u64);
}

/// A set of guest pages of one memory region; bit `i % 64` of word `i / 64` is page `i`.
pub type DirtyPages = Vec<u64>;

struct Inner {
    filled_on_touch: AtomicBool,
    logging: AtomicBool,
    pages: u64,
    /// The dirty bits, from when they are first kept on: until then a machine with much memory starts without them.
    words: OnceLock<Box<[AtomicU64]>>,
    observer: OnceLock<(u64, Arc<dyn WriteObserver>)>,
}

impl Inner {
    fn words(&self) -> &[AtomicU64] {
        self.words.get().map_or(&[], |words| words)
    }
}

/// The bitmap that `vm-memory` marks: one a region, shared by all its clones.
#[derive(Clone)]
pub struct WriteTracker {
    inner: Arc<Inner>,
}

/// One, or part of one, in use. Made for every access, so it counts no references.
#[derive(Clone, Copy)]
pub struct TrackedSlice<'a> {
    inner: &'a Inner,
    /// Offset in the region at which it begins.
    base: usize,
}

impl TrackedSlice<'_> {
    /// Names the region's guest-physical start and who is to be told of writes. Once a region; later calls are ignored.
    pub fn observe(&self, gpa: u64, observer: Arc<dyn WriteObserver>) {
        let _ = self.inner.observer.set((gpa, observer));
    }

    /// Notes whether the region's pages are filled by somebody when they are first touched: one that is not there is not zero then.
    pub fn set_filled_on_touch(&self, yes: bool) {
        self.inner.filled_on_touch.store(yes, Ordering::SeqCst);
    }

    /// As last set.
    pub fn is_filled_on_touch(&self) -> bool {
        self.inner.filled_on_touch.load(Ordering::SeqCst)
    }

    /// Starts or stops keeping dirty bits; starting clears them.
    pub fn set_logging(&self, on: bool) {
        if on {
            let words = || (0..self.inner.pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
            self.inner.words.get_or_init(words).iter().for_each(|w| w.store(0, Ordering::Relaxed));
        }
        self.inner.logging.store(on, Ordering::SeqCst);
    }

    /// ORs the dirty bits into `pages` (as long as the region's pages divided by 64, rounded up) and clears them.
    pub fn take(&self, pages: &mut [u64]) {
        for (word, out) in self.inner.words().iter().zip(pages) {
            *out |= word.swap(0, Ordering::AcqRel);
        }
    }
}

impl std::fmt::Debug for WriteTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteTracker").field("pages", &self.inner.pages).finish_non_exhaustive()
    }
}

impl Default for WriteTracker {
    /// A tracker of no pages.
    fn default() -> Self {
        Self::with_len(0)
    }
}

impl std::fmt::Debug for TrackedSlice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrackedSlice").field("base", &self.base).finish_non_exhaustive()
    }
}

impl NewBitmap for WriteTracker {
    fn with_len(len: usize) -> Self {
        let pages = (len as u64).div_ceil(PAGE_SIZE);
        let inner = Inner {
            filled_on_touch: AtomicBool::new(false),
            logging: AtomicBool::new(false),
            pages,
            words: OnceLock::new(),
            observer: OnceLock::new(),
        };
        WriteTracker { inner: Arc::new(inner) }
    }
}

impl<'a> WithBitmapSlice<'a> for WriteTracker {
    type S = TrackedSlice<'a>;
}

impl<'a> WithBitmapSlice<'_> for TrackedSlice<'a> {
    type S = TrackedSlice<'a>;
}

impl BitmapSlice for TrackedSlice<'_> {}

impl Bitmap for WriteTracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(0).mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.slice_at(0).dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> TrackedSlice<'_> {
        TrackedSlice { inner: &self.inner, base: offset }
    }
}

impl<'a> Bitmap for TrackedSlice<'a> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let start = (self.base + offset) as u64;
        // Whoever sees that they are kept sees the bits too.
        if self.inner.logging.load(Ordering::Acquire) {
            for page in start / PAGE_SIZE..=(start + len as u64 - 1) / PAGE_SIZE {
                if let Some(word) = self.inner.words().get((page / 64) as usize) {
                    word.fetch_or(1 << (page % 64), Ordering::Release);
                }
            }
        }
        if let Some((gpa, observer)) = self.inner.observer.get() {
            observer.memory_written(gpa + start, len as u64);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = (self.base + offset) as u64 / PAGE_SIZE;
        let word = self.inner.words().get((page / 64) as usize);
        word.is_some_and(|w| w.load(Ordering::Acquire) & (1 << (page % 64)) != 0)
    }

    fn slice_at(&self, offset: usize) -> TrackedSlice<'a> {
        TrackedSlice { inner: self.inner, base: self.base + offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Seen(Mutex<Vec<(u64, u64)>>);
    impl WriteObserver for Seen {
        fn memory_written(&self, gpa: u64, len: u64) {
            self.0.lock().unwrap().push((gpa, len));
        }
    }

    #[test]
    fn writes_are_logged_once_and_observed() {
        let all = WriteTracker::with_len(1 << 20);
        let t = all.slice_at(0);
        let seen = Arc::new(Seen::default());
        t.observe(0x10_0000, seen.clone());
        t.mark_dirty(0, 1);
        t.set_logging(true);
        t.slice_at(0xfff).mark_dirty(0, 2);
        t.mark_dirty(0xf_ffff, 1);
        let mut pages = vec![0; 4];
        t.take(&mut pages);
        assert_eq!(pages, [3, 0, 0, 1 << 63]);
        pages.fill(0);
        t.take(&mut pages);
        assert_eq!(pages, [0; 4]);
        assert_eq!(*seen.0.lock().unwrap(), [(0x10_0000, 1), (0x10_0fff, 2), (0x1f_ffff, 1)]);
    }
}
