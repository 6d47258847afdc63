//! Software TLBs: three of them (read, write, fetch), direct-mapped, holding host addresses.
//!
//! An entry's tag is the page's linear address with the *class* in its low bits: who accesses (supervisor, user,
//! supervisor with SMAP lifted) and a generation, so that a flush is a new generation (see `space`). A write entry whose
//! page holds decoded code carries [`CODE`] besides, and so never matches the inlined comparison.
//!
//! A write entry is also the promise to log its page: it is written without a word to the dirty log, however often that is
//! taken. So no write entry goes, by replacement either, without its page going to `gone` (`RamMap::write_entry_gone`).

/// Entries in each.
pub(crate) const ENTRIES: usize = 512;
/// User access.
pub(crate) const USER: u64 = 1;
/// Supervisor access with RFLAGS.AC set.
pub(crate) const LIFTED: u64 = 2;
/// One generation.
pub(crate) const GENERATION: u64 = 4;
/// Last generation.
pub(crate) const LAST_GENERATION: u64 = 0x7fc;
/// In a write entry's tag: the page holds code.
pub(crate) const CODE: u64 = 0x800;

/// In what an entry is held by: part of a page of 2 or 4 MiB.
pub(crate) const LARGE: u32 = 1;
/// Part of a page of 1 GiB.
pub(crate) const HUGE: u32 = 2;
/// One stamp of global entries.
pub(crate) const STAMP: u32 = 4;

/// What the inlined lookup needs.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Entry {
    /// Page and class; 0 matches nothing.
    pub tag: u64,
    /// Host address minus linear address.
    pub bias: u64,
}

/// One TLB.
#[derive(Debug)]
pub(crate) struct Tlb {
    pub hot: [Entry; ENTRIES],
    /// Guest-physical page of each entry.
    pub gpa: [u64; ENTRIES],
    /// How each entry came to be: [`LARGE`], [`HUGE`], and a stamp if its page is global.
    pub held: [u32; ENTRIES],
}

impl Tlb {
    pub(crate) const fn new() -> Self {
        Tlb { hot: [Entry { tag: 0, bias: 0 }; ENTRIES], gpa: [0; ENTRIES], held: [0; ENTRIES] }
    }

    /// Where `va`'s entry is.
    #[inline(always)]
    pub(crate) fn index(va: u64) -> usize {
        (va >> 12) as usize & (ENTRIES - 1)
    }

    pub(crate) fn clear(&mut self) {
        self.drop_all(|_| ());
    }

    fn drop_if(
        &mut self,
        mut which: impl FnMut(&Entry, u64, u32) -> bool,
        mut gone: impl FnMut(u64),
    ) -> bool {
        let mut any = false;
        for ((entry, page), held) in self.hot.iter_mut().zip(&self.gpa).zip(&self.held) {
            if entry.tag != 0 && which(entry, *page, *held) {
                entry.tag = 0;
                gone(page << 12);
                any = true;
            }
        }
        any
    }

    /// Forgets everything.
    pub(crate) fn drop_all(&mut self, gone: impl FnMut(u64)) {
        self.drop_if(|_, _, _| true, gone);
    }

    /// Forgets a page, for everybody, and whatever else has its place.
    #[inline]
    pub(crate) fn drop_page(&mut self, va: u64, mut gone: impl FnMut(u64)) {
        let i = Self::index(va);
        if self.hot[i].tag != 0 {
            self.hot[i].tag = 0;
            gone(self.gpa[i] << 12);
        }
    }

    /// Forgets the parts of the large page that `va` is in.
    pub(crate) fn drop_large(&mut self, va: u64, gone: impl FnMut(u64)) {
        let part = |entry: &Entry, _, held: u32| match held & (LARGE | HUGE) {
            0 => false,
            LARGE => (entry.tag ^ va) >> 22 == 0,
            _ => (entry.tag ^ va) >> 30 == 0,
        };
        self.drop_if(part, gone);
    }

    /// Forgets every linear address of a guest-physical page. True if there was one.
    pub(crate) fn drop_gpa(&mut self, gpa: u64, gone: impl FnMut(u64)) -> bool {
        self.drop_if(|_, page, _| page == gpa >> 12, gone)
    }
}
