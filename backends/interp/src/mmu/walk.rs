//! Page walks: all paging modes, permissions, accessed and dirty bits, error codes (SDM vol. 3A, chapter 4).

use super::ram::{self, PAGE_MASK, PAGE_SIZE};
use super::tlb;
use crate::cpu::{Cpu, cr0, cr4, efer};
use crate::op::{Abort, Exec};
use godwit_state::model::{Feature, PHYSICAL_ADDRESS_BITS};

/// What a page is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
    Fetch,
}

/// Who wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    /// CPL 3.
    User,
    /// CPL below 3.
    Supervisor,
    /// Descriptor tables, TSS and the like: supervisor whatever the CPL, RFLAGS.AC does not count.
    Implicit,
}

/// A page found: its guest-physical address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub gpa: u64,
    /// As in `Tlb::held`.
    pub held: u32,
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
/// Bits of an address that the models' processors do not have.
const NO_ADDRESS: u64 = 0x000f_ffff_ffff_ffff & !((1 << PHYSICAL_ADDRESS_BITS) - 1);
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Bits of a page fault's error code.
pub(crate) mod pf {
    pub(crate) const PRESENT: u32 = 1;
    pub(crate) const WRITE: u32 = 2;
    pub(crate) const USER: u32 = 4;
    pub(crate) const RESERVED: u32 = 8;
    pub(crate) const FETCH: u32 = 16;
}

/// One table of the walk.
struct Level {
    shift: u32,
    /// A page may end here.
    page: bool,
    /// Bits that must be 0 in an entry that maps a page here.
    page_reserved: u64,
    /// Bits that must be 0 in any entry here.
    reserved: u64,
}

impl Cpu {
    /// Translates the page of `va`, or raises #PF.
    pub(crate) fn walk(&mut self, va: u64, access: Access, who: Who) -> Exec<Found> {
        if self.sys.cr0 & cr0::PG == 0 {
            return Ok(Found { gpa: va & 0xffff_f000, held: 0 });
        }
        self.counters.walks += 1;
        loop {
            match self.walk_once(va, access, who) {
                Ok(Some(found)) => return Ok(found),
                // An entry changed under us: look again.
                Ok(None) => {}
                Err(code) => return Err(self.page_fault(va, code, access, who)),
            }
        }
    }

    fn page_fault(&mut self, va: u64, mut code: u32, access: Access, who: Who) -> Abort {
        if access == Access::Write {
            code |= pf::WRITE;
        }
        if who == Who::User {
            code |= pf::USER;
        }
        let nx = self.sys.efer & efer::NXE != 0 && self.sys.cr4 & cr4::PAE != 0;
        if access == Access::Fetch && (nx || self.sys.cr4 & cr4::SMEP != 0) {
            code |= pf::FETCH;
        }
        self.raise_page_fault(va, code)
    }

    fn walk_once(&self, va: u64, access: Access, who: Who) -> Result<Option<Found>, u32> {
        let long = self.sys.efer & efer::LMA != 0;
        let pae = self.sys.cr4 & cr4::PAE != 0;
        let nx = if self.sys.efer & efer::NXE != 0 { 0 } else { NX };
        if long {
            let gib = self.features.has(Feature::PDPE1GB);
            let r = NO_ADDRESS | nx;
            let at_1g = if gib { r } else { r | PS };
            let levels = [
                Level { shift: 39, page: false, page_reserved: 0, reserved: r | PS },
                Level { shift: 30, page: gib, page_reserved: 0x3fff_e000, reserved: at_1g },
                Level { shift: 21, page: true, page_reserved: 0x1f_e000, reserved: r },
                Level { shift: 12, page: false, page_reserved: 0, reserved: r },
            ];
            self.descend(va, self.sys.cr3 & FRAME, &levels, true, access, who)
        } else if pae {
            let pdpte = self.sys.pdpte[(va >> 30) as usize & 3];
            if pdpte & P == 0 {
                return Err(0);
            }
            let r = NO_ADDRESS | nx | 0x7ff0_0000_0000_0000;
            let levels = [
                Level { shift: 21, page: true, page_reserved: 0x1f_e000, reserved: r },
                Level { shift: 12, page: false, page_reserved: 0, reserved: r },
            ];
            self.descend(va, pdpte & FRAME, &levels, true, access, who)
        } else {
            let levels = [
                // Bits 13 to 20 of a 4 MiB page's entry are bits 32 to 39 of its address.
                Level {
                    shift: 22,
                    page: self.sys.cr4 & cr4::PSE != 0,
                    page_reserved: 0x20_0000,
                    reserved: 0,
                },
                Level { shift: 12, page: false, page_reserved: 0, reserved: 0 },
            ];
            self.descend(va, self.sys.cr3 & 0xffff_f000, &levels, false, access, who)
        }
    }

    fn descend(
        &self,
        va: u64,
        mut table: u64,
        levels: &[Level],
        wide: bool,
        access: Access,
        who: Who,
    ) -> Result<Option<Found>, u32> {
        let (mut rights, mut no_execute) = (W | U, 0);
        let mut trail = [(0u64, 0u64); 4];
        let mut depth = 0;
        let (frame, leaf) = loop {
            let level = &levels[depth];
            let (mask, size) = if wide { (0x1ff, 8) } else { (0x3ff, 4) };
            let at = table + ((va >> level.shift) & mask) * size;
            let entry = self.read_entry(at, wide);
            if entry & P == 0 {
                return Err(0);
            }
            let page = level.shift == 12 || (level.page && entry & PS != 0);
            let bad = level.reserved | if page && level.shift != 12 { level.page_reserved } else { 0 };
            if entry & bad != 0 {
                return Err(pf::PRESENT | pf::RESERVED);
            }
            rights &= entry;
            no_execute |= entry & NX;
            trail[depth] = (at, entry);
            if page {
                let below = (1u64 << level.shift) - 1;
                let mut frame = (entry & FRAME & !below) | (va & below & !PAGE_MASK);
                if !wide {
                    frame &= 0xffff_f000;
                    if level.shift == 22 {
                        frame |= (entry & 0x1f_e000) << 19;
                    }
                }
                break (frame, depth);
            }
            table = entry & FRAME;
            depth += 1;
        };
        let user_page = rights & U != 0;
        let wp = self.sys.cr0 & cr0::WP != 0;
        let allowed = match (who, access) {
            (Who::User, _) if !user_page => false,
            (_, Access::Fetch) if no_execute != 0 => false,
            (Who::User, Access::Write) => rights & W != 0,
            (Who::User, Access::Read) => true,
            (Who::User, Access::Fetch) => true,
            (_, Access::Fetch) => !(user_page && self.sys.cr4 & cr4::SMEP != 0),
            (_, _) => {
                let lifted = who == Who::Supervisor && self.flags & crate::flags::AC != 0;
                let smap = user_page && self.sys.cr4 & cr4::SMAP != 0 && !lifted;
                !smap && (access == Access::Read || rights & W != 0 || !wp)
            }
        };
        if !allowed {
            return Err(pf::PRESENT);
        }
        for (i, (at, entry)) in trail[..=leaf].iter().enumerate() {
            let want = if i == leaf && access == Access::Write { entry | A | D } else { entry | A };
            if want != *entry && !self.update_entry(*at, wide, *entry, want) {
                return Ok(None);
            }
        }
        let mut held = match levels[leaf].shift {
            30 => tlb::HUGE,
            12 => 0,
            _ => tlb::LARGE,
        };
        if trail[leaf].1 & G != 0 && self.sys.cr4 & cr4::PGE != 0 {
            held |= self.spaces.stamp;
        }
        Ok(Some(Found { gpa: frame, held }))
    }

    fn read_entry(&self, at: u64, wide: bool) -> u64 {
        match self.ram.find(at) {
            Some(r) if wide => ram::load::<u64>(r.host(at)),
            Some(r) => u64::from(ram::load::<u32>(r.host(at))),
            // No RAM there: nothing is present.
            None => 0,
        }
    }

    fn update_entry(&self, at: u64, wide: bool, old: u64, new: u64) -> bool {
        let Some(r) = self.ram.find(at) else { return true };
        if r.read_only {
            return true;
        }
        let host = r.host(at);
        let done = if wide {
            crate::mmu::locked::compare_exchange::<u64>(host, old, new).is_ok()
        } else {
            crate::mmu::locked::compare_exchange::<u32>(host, old as u32, new as u32).is_ok()
        };
        r.mark_dirty(at);
        done
    }

    /// Reads the four PDPTEs from where CR3 points; false if a reserved bit is set.
    pub(crate) fn load_pdptes(&mut self, from: u64) -> bool {
        let base = from & 0xffff_ffe0;
        let mut new = [0; 4];
        for (i, out) in new.iter_mut().enumerate() {
            *out = self.read_entry(base + i as u64 * 8, true);
            // Bits 1, 2, 5 to 8 and above the address.
            if *out & P != 0 && *out & (0x1e6 | NO_ADDRESS | 0xfff0_0000_0000_0000) != 0 {
                return false;
            }
        }
        self.sys.pdpte = new;
        true
    }
}

const _: () = assert!(PAGE_SIZE == 4096);
