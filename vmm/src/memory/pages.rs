//! Sets of guest pages, as dirty logs give them: what migration and snapshots count in.

use super::PAGE_SIZE;

/// A stretch of guest-physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First address; a multiple of [`PAGE_SIZE`].
    pub gpa: u64,
    /// Bytes; a multiple of [`PAGE_SIZE`].
    pub len: u64,
}

/// Most regions that a machine may have.
pub const MAX_REGIONS: u32 = 32;

/// True if regions are aligned, not empty, in ascending order and apart.
pub fn regions_are_sound(regions: &[Region]) -> bool {
    let mut end = 0;
    regions.iter().all(|r| {
        let aligned = r.len > 0 && r.gpa.is_multiple_of(PAGE_SIZE) && r.len.is_multiple_of(PAGE_SIZE);
        let apart = r.gpa >= end;
        end = r.gpa.saturating_add(r.len);
        aligned && apart && r.gpa.checked_add(r.len).is_some()
    })
}

/// A set of pages of a machine's regions. Page numbers are guest-physical addresses divided by [`PAGE_SIZE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    regions: Vec<(Region, Vec<u64>)>,
}

/// Neighbouring pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first page.
    pub page: u64,
    /// How many.
    pub count: u64,
}

impl Run {
    /// Guest-physical address of the first byte.
    pub fn gpa(&self) -> u64 {
        self.page * PAGE_SIZE
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.count * PAGE_SIZE
    }

    /// True for no page at all.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The words that bits `first..first + count` are in, and which of each.
fn masks(first: usize, count: usize) -> impl Iterator<Item = (usize, u64)> {
    let end = first + count;
    (first / 64..end.div_ceil(64)).map(move |word| {
        let (from, to) = (first.max(word * 64) - word * 64, end.min(word * 64 + 64) - word * 64);
        (word, (u64::MAX << from) & (u64::MAX >> (64 - to)))
    })
}

impl PageSet {
    /// No page of these regions.
    pub fn empty(regions: &[Region]) -> Self {
        let words = |r: &Region| vec![0; (r.len / PAGE_SIZE).div_ceil(64) as usize];
        PageSet { regions: regions.iter().map(|r| (*r, words(r))).collect() }
    }

    /// Every page of these regions.
    pub fn full(regions: &[Region]) -> Self {
        let mut set = Self::empty(regions);
        for (region, words) in &mut set.regions {
            words.fill(u64::MAX);
            let tail = (region.len / PAGE_SIZE) % 64;
            if let (Some(last), true) = (words.last_mut(), tail != 0) {
                *last = (1 << tail) - 1;
            }
        }
        set
    }

    /// The regions with their bitmaps: bit `i % 64` of word `i / 64` is page `i` of the region. Bits beyond a region's end are
    /// the caller's to leave clear.
    pub fn bitmaps(&mut self) -> impl Iterator<Item = (Region, &mut Vec<u64>)> {
        self.regions.iter_mut().map(|(r, w)| (*r, w))
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        self.regions.iter().flat_map(|(_, w)| w).map(|w| u64::from(w.count_ones())).sum()
    }

    /// Takes all pages out.
    pub fn clear(&mut self) {
        self.regions.iter_mut().for_each(|(_, w)| w.fill(0));
    }

    /// Adds the pages of `other`, a set of the same regions.
    pub fn merge(&mut self, other: &PageSet) {
        for ((_, into), (_, from)) in self.regions.iter_mut().zip(&other.regions) {
            into.iter_mut().zip(from).for_each(|(a, b)| *a |= b);
        }
    }

    fn place(&mut self, run: Run) -> Option<(usize, &mut Vec<u64>)> {
        let end = run.page.checked_add(run.count)?;
        self.regions.iter_mut().find_map(|(r, words)| {
            let (first, pages) = (r.gpa / PAGE_SIZE, r.len / PAGE_SIZE);
            (run.page >= first && end <= first + pages).then(|| ((run.page - first) as usize, words))
        })
    }

    /// Adds a run; false if it is not inside one region.
    #[must_use]
    pub fn insert(&mut self, run: Run) -> bool {
        let Some((first, words)) = self.place(run) else { return false };
        masks(first, run.count as usize).for_each(|(word, mask)| words[word] |= mask);
        true
    }

    /// Takes a run out; pages outside of the regions are not there anyway.
    pub fn remove(&mut self, run: Run) {
        let Some((first, words)) = self.place(run) else { return };
        masks(first, run.count as usize).for_each(|(word, mask)| words[word] &= !mask);
    }

    /// The first pages of the set from page number `from` on, at most `max` neighbours.
    pub fn next_run(&self, from: u64, max: u64) -> Option<Run> {
        self.regions.iter().find_map(|(region, words)| {
            let (first, pages) = (region.gpa / PAGE_SIZE, region.len / PAGE_SIZE);
            let at = from.saturating_sub(first).min(pages);
            Runs { first, pages, words, at, max }.next()
        })
    }

    /// True if there is no page in it.
    pub fn is_empty(&self) -> bool {
        self.regions.iter().all(|(_, words)| words.iter().all(|w| *w == 0))
    }

    /// Moves pages from here to `other` (a set of the same regions): those among the `pages` from page number `first` for
    /// which `which`, asked with the place counted from `first`, says so.
    pub fn remove_where(&mut self, first: u64, pages: u64, which: impl Fn(u64) -> bool, other: &mut PageSet) {
        let run = Run { page: first, count: pages };
        let (Some((at, from)), Some((_, to))) = (self.place(run), other.place(run)) else { return };
        for i in (0..pages).filter(|i| which(*i)) {
            let (word, bit) = ((at + i as usize) / 64, 1u64 << ((at + i as usize) % 64));
            to[word] |= from[word] & bit;
            from[word] &= !bit;
        }
    }

    /// True if every page of `run` lies in one region.
    pub fn covers(&mut self, run: Run) -> bool {
        self.place(run).is_some()
    }

    /// True if `page` is in the set.
    pub fn contains(&self, page: u64) -> bool {
        self.regions.iter().any(|(r, words)| {
            let (first, pages) = (r.gpa / PAGE_SIZE, r.len / PAGE_SIZE);
            page >= first && page < first + pages && {
                let i = (page - first) as usize;
                words[i / 64] >> (i % 64) & 1 == 1
            }
        })
    }

    /// True if the set has every page of its regions.
    pub fn is_full(&self) -> bool {
        self.regions.iter().all(|(r, words)| {
            words.iter().map(|w| u64::from(w.count_ones())).sum::<u64>() == r.len / PAGE_SIZE
        })
    }

    /// The pages in ascending order, in runs of at most `max`.
    pub fn runs(&self, max: u64) -> impl Iterator<Item = Run> + '_ {
        self.regions.iter().flat_map(move |(region, words)| Runs {
            first: region.gpa / PAGE_SIZE,
            pages: region.len / PAGE_SIZE,
            words,
            at: 0,
            max,
        })
    }
}

struct Runs<'a> {
    first: u64,
    pages: u64,
    words: &'a [u64],
    at: u64,
    max: u64,
}

impl Runs<'_> {
    /// Next position from `at` whose bit is `set`, or the end.
    fn seek(&self, mut at: u64, set: bool) -> u64 {
        while at < self.pages {
            let word = self.words[(at / 64) as usize];
            let word = (if set { word } else { !word }) >> (at % 64);
            if word != 0 {
                return (at + u64::from(word.trailing_zeros())).min(self.pages);
            }
            at = (at / 64 + 1) * 64;
        }
        self.pages
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;
    fn next(&mut self) -> Option<Run> {
        let start = self.seek(self.at, true);
        if start >= self.pages {
            return None;
        }
        let end = self.seek(start, false).min(start.saturating_add(self.max));
        self.at = end;
        Some(Run { page: self.first + start, count: end - start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REGIONS: [Region; 2] =
        [Region { gpa: 0, len: 100 * PAGE_SIZE }, Region { gpa: 1 << 32, len: 64 * PAGE_SIZE }];

    #[test]
    fn full_is_every_page_and_no_more() {
        let mut set = PageSet::full(&REGIONS);
        assert_eq!(set.count(), 164);
        assert!(set.is_full());
        let runs: Vec<_> = set.runs(60).collect();
        let high = (1 << 32) / PAGE_SIZE;
        let want = [(0, 60), (60, 40), (high, 60), (high + 60, 4)];
        assert_eq!(runs, want.map(|(page, count)| Run { page, count }));
        assert!(set.covers(Run { page: high, count: 64 }) && !set.covers(Run { page: high, count: 65 }));
        assert!(!set.insert(Run { page: 99, count: 2 }) && !set.insert(Run { page: u64::MAX, count: 2 }));
    }

    #[test]
    fn runs_are_found_and_taken_out() {
        let mut set = PageSet::full(&REGIONS);
        let high = (1 << 32) / PAGE_SIZE;
        assert_eq!(set.next_run(90, 60), Some(Run { page: 90, count: 10 }));
        assert_eq!(set.next_run(100, 60), Some(Run { page: high, count: 60 }));
        assert_eq!(set.next_run(high + 64, 1), None);
        set.remove(Run { page: 0, count: 99 });
        set.remove(Run { page: high, count: 64 });
        assert_eq!(set.runs(9).collect::<Vec<_>>(), [Run { page: 99, count: 1 }]);
        set.remove(Run { page: 99, count: 1 });
        assert!(set.is_empty());
    }

    #[test]
    fn malformed_regions_are_refused() {
        assert!(regions_are_sound(&REGIONS));
        for bad in [(1, PAGE_SIZE), (0, 1), (0, 0), (u64::MAX - PAGE_SIZE + 1, PAGE_SIZE * 2)] {
            assert!(!regions_are_sound(&[Region { gpa: bad.0, len: bad.1 }]));
        }
        assert!(!regions_are_sound(&[REGIONS[1], REGIONS[0]]));
    }

    proptest! {
        #[test]
        fn runs_are_the_set(pages in proptest::collection::btree_set(0u64..100, 0..100), max in proptest::prop_oneof![1u64..200, Just(u64::MAX)]) {
            let mut set = PageSet::empty(&REGIONS);
            for page in &pages {
                let inside = set.insert(Run { page: *page, count: 1 });
                prop_assert!(inside);
            }
            let found: std::collections::BTreeSet<u64> =
                set.runs(max).flat_map(|r| r.page..r.page + r.count).collect();
            prop_assert_eq!(&found, &pages);
            prop_assert_eq!(set.count(), pages.len() as u64);
            prop_assert!(set.runs(max).all(|r| r.count <= max && r.count > 0));
        }
    }
}
