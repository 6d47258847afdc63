//! Address spaces: what of the TLBs outlives a load of CR3, INVLPG and INVPCID (SDM vol. 3A, 4.10).
//!
//! A generation of TLB entries belongs to one PCID. Coming back to a PCID whose translations are kept brings back its
//! generation, and the epoch for which links and jump cache entries are good. Global entries carry a stamp: a miss finds
//! one of another generation by it and takes it over (`Cpu::adopt`).

use super::tlb::{self, Tlb};
use crate::cpu::{Cpu, cr4};

/// PCIDs whose translations are kept; Linux uses six.
const KEPT: usize = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Space {
    pcid: u64,
    /// 0: nothing is kept here.
    generation: u64,
    /// 0: links and jump cache entries are no longer good.
    epoch: u64,
}

/// The address spaces of a vCPU.
#[derive(Debug)]
pub(crate) struct Spaces {
    kept: [Space; KEPT],
    /// Where the one that runs is.
    current: usize,
    /// Last generation given out.
    newest: u64,
    /// Last epoch given out.
    epochs: u64,
    /// Of global entries that are good. Never 0.
    pub stamp: u32,
    /// A page larger than 4 KiB has been translated.
    pub large: bool,
}

impl Spaces {
    pub(crate) fn new() -> Self {
        Spaces {
            kept: [Space::default(); KEPT],
            current: 0,
            newest: tlb::GENERATION,
            epochs: 1,
            stamp: tlb::STAMP,
            large: false,
        }
    }

    fn find(&self, pcid: u64) -> Option<usize> {
        self.kept.iter().position(|s| s.generation != 0 && s.pcid == pcid)
    }
}

impl Cpu {
    fn empty_tlbs(&mut self) {
        self.forget_writes();
        [&mut self.rtlb, &mut self.ftlb].into_iter().for_each(Tlb::clear);
    }

    fn pcid(&self) -> u64 {
        if self.sys.cr4 & cr4::PCIDE != 0 { self.sys.cr3 & 0xfff } else { 0 }
    }

    /// Takes links and jump cache entries out of use, in every space.
    fn new_epoch(&mut self) {
        self.spaces.kept.iter_mut().for_each(|s| s.epoch = 0);
        self.spaces.epochs += 1;
        self.epoch = self.spaces.epochs;
    }

    /// Gives the space that runs a generation without entries.
    fn new_generation(&mut self) {
        self.counters.tlb_flushes += 1;
        if self.spaces.newest == tlb::LAST_GENERATION {
            self.empty_tlbs();
            self.spaces.kept = Default::default();
            self.spaces.newest = 0;
        }
        self.spaces.newest += tlb::GENERATION;
        self.generation = self.spaces.newest;
        self.spaces.epochs += 1;
        self.epoch = self.spaces.epochs;
        self.spaces.kept[self.spaces.current] =
            Space { pcid: self.pcid(), generation: self.generation, epoch: self.epoch };
        self.update_mode();
    }

    /// Forgets all translations, global ones and those of other PCIDs too.
    pub(crate) fn flush_tlb(&mut self) {
        self.spaces.kept = Default::default();
        if self.spaces.stamp > u32::MAX - tlb::STAMP {
            self.empty_tlbs();
            self.spaces.stamp = 0;
        }
        self.spaces.stamp += tlb::STAMP;
        self.new_generation();
    }

    /// Forgets all but global translations.
    pub(crate) fn flush_local(&mut self) {
        self.spaces.kept = Default::default();
        self.new_generation();
    }

    /// CR3 has been loaded; `keep` if what is known of its PCID is still good.
    pub(crate) fn switch_space(&mut self, keep: bool) {
        let s = &mut self.spaces;
        s.kept[s.current].epoch = self.epoch;
        let pcid = self.pcid();
        let s = &mut self.spaces;
        match s.find(pcid) {
            Some(n) if keep => {
                s.current = n;
                let space = s.kept[n];
                self.generation = space.generation;
                self.epoch = space.epoch;
                if space.epoch == 0 {
                    s.epochs += 1;
                    self.epoch = s.epochs;
                }
                self.update_mode();
            }
            found => {
                s.current = found.unwrap_or((s.current + 1) % KEPT);
                self.new_generation();
            }
        }
    }

    /// Forgets what is known of a PCID, global translations aside.
    pub(crate) fn flush_pcid(&mut self, pcid: u64) {
        if pcid == self.pcid() {
            self.new_generation();
        } else if let Some(n) = self.spaces.find(pcid) {
            self.spaces.kept[n] = Space::default();
        }
    }

    /// Forgets the translation of one page.
    pub(crate) fn flush_page(&mut self, va: u64) {
        let large = self.spaces.large;
        for tlb in [&mut self.rtlb, &mut self.ftlb] {
            tlb.drop_page(va, |_| ());
            if large {
                tlb.drop_large(va, |_| ());
            }
        }
        self.wtlb.drop_page(va, |gpa| self.ram.write_entry_gone(gpa));
        if large {
            self.wtlb.drop_large(va, |gpa| self.ram.write_entry_gone(gpa));
        }
        self.new_epoch();
        self.update_mode();
    }

    /// The same for a PCID.
    pub(crate) fn flush_page_of(&mut self, pcid: u64, va: u64) {
        if pcid == self.pcid() { self.flush_page(va) } else { self.flush_pcid(pcid) }
    }
}
