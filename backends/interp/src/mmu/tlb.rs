//! Software TLBs: three of them (read, write, fetch), direct-mapped, holding host addresses.
//!
//! An entry's tag is the page's linear address with the *class* in its low bits: who accesses (supervisor, user,
//! supervisor with SMAP lifted) and a generation, so that a flush is a new generation (see `space`). A write entry whose
//! page holds decoded code carries [`CODE`] besides, and so never matches the inlined comparison.

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
        self.hot.fill(Entry::default());
    }

    /// Forgets a page, for everybody.
    pub(crate) fn drop_page(&mut self, va: u64) {
        self.hot[Self::index(va)].tag = 0;
    }

    /// Forgets the parts of the large page that `va` is in.
    pub(crate) fn drop_large(&mut self, va: u64) {
        for (entry, held) in self.hot.iter_mut().zip(&self.held) {
            let shift = match held & (LARGE | HUGE) {
                0 => continue,
                LARGE => 22,
                _ => 30,
            };
            if (entry.tag ^ va) >> shift == 0 {
                entry.tag = 0;
            }
        }
    }

    /// Forgets every linear address of a guest-physical page.
    pub(crate) fn drop_gpa(&mut self, gpa: u64) -> bool {
        let mut any = false;
        for (entry, page) in self.hot.iter_mut().zip(&self.gpa) {
            if *page == gpa >> 12 && entry.tag != 0 {
                entry.tag = 0;
                any = true;
            }
        }
        any
    }
}
