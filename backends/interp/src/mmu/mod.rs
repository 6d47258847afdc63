//! Guest memory as instructions see it: linear addresses, translated, checked, watched for code.
//!
//! ```text
//! quick handler ── quick_read/quick_write::<T>(va) ──► TLB entry matches ──► host access        (inlined)
//!                                                  └─► nothing: the op's general handler
//! general one ──── read/write::<T>(va) ──► the same, else walk ──► fill ──► RAM, MMIO, code page, page crossing
//! ```
//! Callers: the handlers in `ops`; the segment and exception code through the `system_*` functions, which access
//! as supervisor.

pub(crate) mod locked;
pub(crate) mod ram;
pub(crate) mod space;
pub(crate) mod tlb;
pub(crate) mod walk;

use crate::cpu::Cpu;
use crate::op::{Abort, Exec};
use crate::regs::Int;
use ram::{PAGE_MASK, PAGE_SIZE};
use tlb::{CODE, Entry, Tlb};
use walk::{Access, Found, Who};

/// A place to access: RAM by host address, or a guest-physical address for the board.
#[derive(Clone, Copy, Debug)]
enum Place {
    Ram { host: usize, gpa: u64 },
    Device { gpa: u64 },
}

impl Cpu {
    #[inline(always)]
    fn hit(&self, tlb: &Tlb, va: u64, bytes: u64) -> Option<usize> {
        let entry: &Entry = &tlb.hot[Tlb::index(va)];
        // SAFETY: a reference's own field. Volatile, so that it is loaded beside the tag: left alone, the compiler loads
        // it behind the comparison, and works the entry's address out once more for it.
        let bias = unsafe { (&raw const entry.bias).read_volatile() };
        let tag = (va.wrapping_add(bytes - 1) & !PAGE_MASK) | self.class;
        if entry.tag == tag { Some(va.wrapping_add(bias) as usize) } else { None }
    }

    /// The host's address of a linear one, if the TLB has all of `bytes` bytes there.
    #[inline(always)]
    pub(crate) fn quick_place(&self, va: u64, bytes: u64, write: bool) -> Exec<usize> {
        self.hit(if write { &self.wtlb } else { &self.rtlb }, va, bytes).ok_or(Abort)
    }

    /// Reads at a linear address if the TLB has its page; if not, nothing happens.
    #[inline(always)]
    pub(crate) fn quick_read<T: Int>(&mut self, va: u64) -> Exec<T> {
        self.hit(&self.rtlb, va, T::BYTES as u64).map(ram::load).ok_or(Abort)
    }

    /// Writes at a linear address if the TLB has its page; if not, nothing happens.
    #[inline(always)]
    pub(crate) fn quick_write<T: Int>(&mut self, va: u64, v: T) -> Exec {
        self.hit(&self.wtlb, va, T::BYTES as u64).map(|host| ram::store(host, v)).ok_or(Abort)
    }

    /// Reads, and writes back what `f` makes of it, if the TLB has the page; if not, nothing happens.
    #[inline(always)]
    pub(crate) fn quick_rmw<T: Int>(&mut self, va: u64, f: impl FnOnce(&mut Cpu, T) -> T) -> Exec {
        let host = self.hit(&self.wtlb, va, T::BYTES as u64).ok_or(Abort)?;
        let v = f(self, ram::load(host));
        ram::store(host, v);
        Ok(())
    }

    /// Reads 16 bytes if the TLB has their page; if not, nothing happens.
    #[inline(always)]
    pub(crate) fn quick_read128(&mut self, va: u64) -> Exec<u128> {
        self.hit(&self.rtlb, va, 16).map(ram::load128).ok_or(Abort)
    }

    /// Reads 32 bytes if the TLB has their page; if not, nothing happens.
    #[inline(always)]
    pub(crate) fn quick_read256(&mut self, va: u64) -> Exec<[u128; 2]> {
        let host = self.hit(&self.rtlb, va, 32).ok_or(Abort)?;
        Ok([ram::load128(host), ram::load128(host + 16)])
    }

    /// Writes 32 bytes if the TLB has their page; if not, nothing happens.
    #[inline(always)]
    pub(crate) fn quick_write256(&mut self, va: u64, v: [u128; 2]) -> Exec {
        let host = self.hit(&self.wtlb, va, 32).ok_or(Abort)?;
        ram::store128(host, v[0]);
        ram::store128(host + 16, v[1]);
        Ok(())
    }

    /// Writes 16 bytes if the TLB has their page; if not, nothing happens.
    #[inline(always)]
    pub(crate) fn quick_write128(&mut self, va: u64, v: u128) -> Exec {
        self.hit(&self.wtlb, va, 16).map(|host| ram::store128(host, v)).ok_or(Abort)
    }

    /// Reads at a linear address.
    #[inline(never)]
    pub(crate) fn read<T: Int>(&mut self, va: u64) -> Exec<T> {
        match self.quick_read(va) {
            Ok(v) => Ok(v),
            Err(_) => self.read_slow(va, T::BYTES).map(T::new),
        }
    }

    /// Writes at a linear address.
    #[inline(never)]
    pub(crate) fn write<T: Int>(&mut self, va: u64, v: T) -> Exec {
        match self.quick_write(va, v) {
            Ok(()) => Ok(()),
            Err(_) => self.write_slow(va, T::BYTES, v.z()),
        }
    }

    /// Reads, and writes back what `f` makes of it.
    #[inline(always)]
    pub(crate) fn rmw<T: Int>(&mut self, va: u64, f: impl FnOnce(&mut Cpu, T) -> T) -> Exec {
        let old = self.read_to_write(va)?;
        let v = f(self, old);
        self.write(va, v)
    }

    /// Reads what will be written: whatever a write would raise comes first.
    #[inline(never)]
    fn read_to_write<T: Int>(&mut self, va: u64) -> Exec<T> {
        match self.hit(&self.wtlb, va, T::BYTES as u64) {
            Some(host) => Ok(ram::load(host)),
            None => {
                self.check_write(va, T::BYTES as u64)?;
                self.read_slow(va, T::BYTES).map(T::new)
            }
        }
    }

    /// As [`Cpu::rmw`], as one access for all vCPUs and devices, which no other access passes. `f` may be called more than once.
    #[inline]
    pub(crate) fn locked<T: Int, R>(&mut self, va: u64, f: impl Fn(T) -> (T, R)) -> Exec<R> {
        let host = match self.hit(&self.wtlb, va, T::BYTES as u64) {
            Some(host) => host,
            None => match self.writable_host(va, T::BYTES)? {
                Some(host) => host,
                None => {
                    // Device memory, or RAM across two pages.
                    self.check_write(va, T::BYTES as u64)?;
                    ram::fence();
                    let old = self.read_slow(va, T::BYTES)?;
                    let (new, r) = f(T::new(old));
                    self.write_slow(va, T::BYTES, new.z())?;
                    ram::fence();
                    return Ok(r);
                }
            },
        };
        ram::fence_beside_atomic();
        let mut old = ram::load::<T>(host);
        loop {
            let (new, r) = f(old);
            match crate::mmu::locked::compare_exchange(host, old, new) {
                Ok(()) => {
                    ram::fence_beside_atomic();
                    return Ok(r);
                }
                Err(now) => old = now,
            }
        }
    }

    /// Reads 16 bytes.
    #[inline(never)]
    pub(crate) fn read128(&mut self, va: u64) -> Exec<u128> {
        if let Ok(v) = self.quick_read128(va) {
            return Ok(v);
        }
        let mut b = [0; 16];
        self.read_bytes(va, &mut b)?;
        Ok(u128::from_le_bytes(b))
    }

    /// Writes 16 bytes.
    #[inline(never)]
    pub(crate) fn write128(&mut self, va: u64, v: u128) -> Exec {
        match self.quick_write128(va, v) {
            Ok(()) => Ok(()),
            Err(_) => self.write_bytes(va, &v.to_le_bytes()),
        }
    }

    pub(crate) fn who(&self) -> Who {
        match (self.implicit, self.cpl) {
            (true, _) => Who::Implicit,
            (_, 3) => Who::User,
            _ => Who::Supervisor,
        }
    }

    /// Refuses an address that cannot be used in long mode. Raises #GP, or #SS where the handler knows better.
    fn bad_address(&mut self, va: u64) -> Exec {
        if self.long_code() && va.wrapping_add(1 << 47) >> 48 != 0 {
            self.raise(13, Some(0));
            self.exception.non_canonical = true;
            return Err(Abort);
        }
        Ok(())
    }

    /// The same for an access that ends in another page than it begins in: both ends count before any translation.
    pub(crate) fn bad_span(&mut self, va: u64, bytes: usize) -> Exec {
        self.bad_address(va)?;
        self.bad_address(va.wrapping_add(bytes as u64 - 1))
    }

    /// Wraps what leaves 32 bits outside of 64-bit code.
    fn wrap(&self, va: u64) -> u64 {
        if self.long_code() { va } else { va & 0xffff_ffff }
    }

    /// Finds the place of `va`, which must not reach into the next page, and fills the TLB.
    fn place(&mut self, va: u64, access: Access, who: Who) -> Exec<Place> {
        self.bad_address(va)?;
        if let Some((host, gpa)) = self.adopt(va, access) {
            return Ok(Place::Ram { host, gpa });
        }
        let found = self.walk(va, access, who)?;
        self.counters.tlb_misses += 1;
        let gpa = found.gpa | (va & PAGE_MASK);
        let Some(region) = self.ram.find(gpa) else { return Ok(Place::Device { gpa }) };
        let write = access == Access::Write;
        if write && region.read_only {
            return Ok(Place::Device { gpa });
        }
        let host = region.host(gpa);
        if write {
            region.mark_dirty(gpa);
        }
        let code = region.code(gpa).load(std::sync::atomic::Ordering::SeqCst) != 0;
        if !self.slow_memory {
            self.fill(va, host, found, access, code);
        } else if write {
            self.promise_write(va, gpa);
        }
        Ok(Place::Ram { host, gpa })
    }

    fn fill(&mut self, va: u64, host: usize, found: Found, access: Access, code: bool) {
        let class = self.class;
        if access == Access::Write {
            self.wtlb.drop_page(va, |gpa| self.ram.write_entry_gone(gpa));
        }
        let tlb = match access {
            Access::Read => &mut self.rtlb,
            Access::Write => &mut self.wtlb,
            Access::Fetch => &mut self.ftlb,
        };
        let i = Tlb::index(va);
        let code = if code && access == Access::Write { CODE } else { 0 };
        tlb.hot[i] = Entry { tag: (va & !PAGE_MASK) | class | code, bias: (host as u64).wrapping_sub(va) };
        tlb.gpa[i] = found.gpa >> ram::PAGE_SHIFT;
        tlb.held[i] = found.held;
        self.spaces.large |= found.held & (tlb::LARGE | tlb::HUGE) != 0;
    }

    /// For a page that is written without a translation being kept: an entry of no generation, which matches nothing. The log may be
    /// taken before the bytes are there.
    fn promise_write(&mut self, va: u64, gpa: u64) {
        self.wtlb.drop_page(va, |gpa| self.ram.write_entry_gone(gpa));
        let i = Tlb::index(va);
        self.wtlb.hot[i] = Entry { tag: (va & !PAGE_MASK) | CODE, bias: 0 };
        self.wtlb.gpa[i] = gpa >> ram::PAGE_SHIFT;
        self.wtlb.held[i] = 0;
    }

    /// Takes over the entry of a global page from another generation: its host address and guest-physical one.
    fn adopt(&mut self, va: u64, access: Access) -> Option<(usize, u64)> {
        let (mut class, stamp) = (self.class, self.spaces.stamp);
        let tlb = match access {
            Access::Read => &mut self.rtlb,
            Access::Write => &mut self.wtlb,
            Access::Fetch => {
                class &= !tlb::LIFTED;
                &mut self.ftlb
            }
        };
        let i = Tlb::index(va);
        let entry = &mut tlb.hot[i];
        let who = (va & !PAGE_MASK) | class & !tlb::LAST_GENERATION;
        let global = entry.tag != 0 && tlb.held[i] & !(tlb::LARGE | tlb::HUGE) == stamp;
        if !global || entry.tag & !(tlb::LAST_GENERATION | CODE) != who {
            return None;
        }
        entry.tag = who | class | entry.tag & CODE;
        let gpa = tlb.gpa[i] << ram::PAGE_SHIFT | (va & PAGE_MASK);
        Some((va.wrapping_add(entry.bias) as usize, gpa))
    }

    /// Forgets write translations; their pages count as written now.
    pub(crate) fn forget_writes(&mut self) {
        self.wtlb.drop_all(self.ram.write_entries_gone());
    }

    /// Forgets the write translations of a guest-physical page. True if there was one.
    pub(crate) fn forget_writes_to(&mut self, gpa: u64) -> bool {
        self.wtlb.drop_gpa(gpa, |gpa| self.ram.write_entry_gone(gpa))
    }

    /// Host address to write at, if it is plain RAM in one page. Code there is invalidated beforehand.
    fn writable_host(&mut self, va: u64, bytes: usize) -> Exec<Option<usize>> {
        self.check_alignment(va, bytes)?;
        self.data_breakpoint(va, bytes, true);
        let bytes = bytes as u64;
        if (va & PAGE_MASK) + bytes > PAGE_SIZE {
            return Ok(None);
        }
        match self.place(va, Access::Write, self.who())? {
            Place::Ram { host, gpa } => {
                self.code_written(gpa, bytes);
                Ok(Some(host))
            }
            Place::Device { .. } => Ok(None),
        }
    }

    /// Raises what a write would, without writing.
    pub(crate) fn check_write(&mut self, va: u64, bytes: u64) -> Exec {
        let who = self.who();
        self.bad_span(va, bytes as usize)?;
        self.place(va, Access::Write, who)?;
        if (va & PAGE_MASK) + bytes > PAGE_SIZE {
            let next = self.wrap((va & !PAGE_MASK).wrapping_add(PAGE_SIZE));
            self.place(next, Access::Write, who)?;
        }
        Ok(())
    }

    fn check_alignment(&mut self, va: u64, bytes: usize) -> Exec {
        if self.alignment_checked() && !self.implicit && va & (bytes as u64 - 1) != 0 && bytes <= 8 {
            self.raise(17, Some(0));
            return Err(Abort);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn read_slow(&mut self, va: u64, bytes: usize) -> Exec<u64> {
        self.check_alignment(va, bytes)?;
        self.data_breakpoint(va, bytes, false);
        if (va & PAGE_MASK) + bytes as u64 > PAGE_SIZE {
            let mut b = [0; 8];
            self.read_across(va, &mut b[..bytes], self.who())?;
            return Ok(u64::from_le_bytes(b));
        }
        match self.place(va, Access::Read, self.who())? {
            Place::Ram { host, .. } => Ok(load_sized(host, bytes)),
            Place::Device { gpa } => Ok(self.device_read(gpa, bytes)),
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn write_slow(&mut self, va: u64, bytes: usize, v: u64) -> Exec {
        // Most often: a page that holds code besides data.
        let i = Tlb::index(va);
        let entry = self.wtlb.hot[i];
        let last = va.wrapping_add(bytes as u64 - 1);
        if entry.tag == (last & !PAGE_MASK) | self.class | CODE {
            let gpa = (self.wtlb.gpa[i] << ram::PAGE_SHIFT) | (va & PAGE_MASK);
            store_sized(va.wrapping_add(entry.bias) as usize, bytes, v);
            self.code_written(gpa, bytes as u64);
            return Ok(());
        }
        self.check_alignment(va, bytes)?;
        self.data_breakpoint(va, bytes, true);
        if (va & PAGE_MASK) + bytes as u64 > PAGE_SIZE {
            return self.write_across(va, &v.to_le_bytes()[..bytes], self.who());
        }
        match self.place(va, Access::Write, self.who())? {
            Place::Ram { host, gpa } => {
                store_sized(host, bytes, v);
                self.code_written(gpa, bytes as u64);
            }
            Place::Device { gpa } => self.device_write(gpa, bytes, v),
        }
        Ok(())
    }

    /// Reads any number of bytes up to a page.
    pub(crate) fn read_bytes(&mut self, va: u64, into: &mut [u8]) -> Exec {
        self.data_breakpoint(va, into.len(), false);
        self.read_across(va, into, self.who())
    }

    /// Writes any number of bytes up to a page: all, or none if it faults.
    pub(crate) fn write_bytes(&mut self, va: u64, from: &[u8]) -> Exec {
        self.data_breakpoint(va, from.len(), true);
        self.write_across(va, from, self.who())
    }

    fn split(&self, va: u64, len: usize) -> (usize, u64) {
        let first = len.min((PAGE_SIZE - (va & PAGE_MASK)) as usize);
        (first, self.wrap(va.wrapping_add(first as u64)))
    }

    fn read_across(&mut self, va: u64, into: &mut [u8], who: Who) -> Exec {
        let (first, next) = self.split(va, into.len());
        self.bad_span(va, into.len().max(1))?;
        let a = self.place(va, Access::Read, who)?;
        let (head, tail) = into.split_at_mut(first);
        if tail.is_empty() {
            self.read_place(a, head);
        } else {
            let b = self.place(next, Access::Read, who)?;
            self.read_place(a, head);
            self.read_place(b, tail);
        }
        Ok(())
    }

    fn write_across(&mut self, va: u64, from: &[u8], who: Who) -> Exec {
        let (first, next) = self.split(va, from.len());
        self.bad_span(va, from.len().max(1))?;
        let a = self.place(va, Access::Write, who)?;
        let (head, tail) = from.split_at(first);
        if tail.is_empty() {
            self.write_place(a, head);
        } else {
            let b = self.place(next, Access::Write, who)?;
            self.write_place(a, head);
            self.write_place(b, tail);
        }
        Ok(())
    }

    fn read_place(&mut self, place: Place, into: &mut [u8]) {
        match place {
            Place::Ram { host, .. } => match into.len() {
                // The usual sizes are single accesses where aligned.
                n @ (1 | 2 | 4 | 8) => into.copy_from_slice(&load_sized(host, n).to_le_bytes()[..n]),
                _ => ram::read_bytes(host, into),
            },
            Place::Device { gpa } => {
                let mut at = gpa;
                for chunk in into.chunks_mut(8) {
                    let v = self.device_read(at, chunk.len()).to_le_bytes();
                    chunk.copy_from_slice(&v[..chunk.len()]);
                    at += chunk.len() as u64;
                }
            }
        }
    }

    fn write_place(&mut self, place: Place, from: &[u8]) {
        match place {
            Place::Ram { host, gpa } => {
                match from.len() {
                    n @ (1 | 2 | 4 | 8) => {
                        let mut v = [0; 8];
                        v[..n].copy_from_slice(from);
                        store_sized(host, n, u64::from_le_bytes(v));
                    }
                    _ => ram::write_bytes(host, from),
                }
                self.code_written(gpa, from.len() as u64);
            }
            Place::Device { gpa } => {
                let mut at = gpa;
                for chunk in from.chunks(8) {
                    let mut v = [0; 8];
                    v[..chunk.len()].copy_from_slice(chunk);
                    self.device_write(at, chunk.len(), u64::from_le_bytes(v));
                    at += chunk.len() as u64;
                }
            }
        }
    }

    /// Does something with CPL 0's rights, RFLAGS.AC not counting: descriptor tables, the TSS, new stacks.
    pub(crate) fn implicitly<R>(&mut self, f: impl FnOnce(&mut Cpu) -> R) -> R {
        let (class, implicit) = (self.class, self.implicit);
        self.class = self.generation;
        self.implicit = true;
        let r = f(self);
        self.class = class;
        self.implicit = implicit;
        r
    }

    /// Reads as supervisor.
    pub(crate) fn system_read<T: Int>(&mut self, va: u64) -> Exec<T> {
        self.implicitly(|cpu| cpu.read(va))
    }

    /// Writes as supervisor.
    pub(crate) fn system_write<T: Int>(&mut self, va: u64, v: T) -> Exec {
        self.implicitly(|cpu| cpu.write(va, v))
    }

    /// For string instructions: the host address of `va` and how many bytes from there on, upwards, are in its page.
    /// None where device memory or a watched page wants single accesses.
    pub(crate) fn run_of(&mut self, va: u64, write: bool) -> Exec<Option<(usize, u64)>> {
        if self.slow_memory {
            return Ok(None);
        }
        let room = PAGE_SIZE - (va & PAGE_MASK);
        let tlb = if write { &self.wtlb } else { &self.rtlb };
        if let Some(host) = self.hit(tlb, va, 1) {
            return Ok(Some((host, room)));
        }
        let access = if write { Access::Write } else { Access::Read };
        match self.place(va, access, self.who())? {
            Place::Ram { host, gpa } => {
                let region = self.ram.find(gpa);
                let code = region.is_some_and(|r| r.code(gpa).load(std::sync::atomic::Ordering::SeqCst) != 0);
                if write && code { Ok(None) } else { Ok(Some((host, room))) }
            }
            Place::Device { .. } => Ok(None),
        }
    }

    /// Guest-physical address of an instruction.
    pub(crate) fn fetch(&mut self, va: u64) -> Exec<u64> {
        let i = Tlb::index(va);
        if self.ftlb.hot[i].tag == (va & !PAGE_MASK) | (self.class & !tlb::LIFTED) {
            return Ok((self.ftlb.gpa[i] << ram::PAGE_SHIFT) | (va & PAGE_MASK));
        }
        self.bad_address(va)?;
        if let Some((_, gpa)) = self.adopt(va, Access::Fetch) {
            return Ok(gpa);
        }
        let found = self.walk(va, Access::Fetch, self.who())?;
        self.ftlb.hot[i] = Entry { tag: (va & !PAGE_MASK) | (self.class & !tlb::LIFTED), bias: 0 };
        self.ftlb.gpa[i] = found.gpa >> ram::PAGE_SHIFT;
        self.ftlb.held[i] = found.held;
        self.spaces.large |= found.held & (tlb::LARGE | tlb::HUGE) != 0;
        Ok(found.gpa | (va & PAGE_MASK))
    }

    /// Reads guest-physical memory; outside RAM all ones.
    pub(crate) fn read_physical(&self, gpa: u64, into: &mut [u8]) {
        match self.ram.find(gpa) {
            Some(r) if gpa - r.gpa + into.len() as u64 <= r.len => ram::read_bytes(r.host(gpa), into),
            _ => into.fill(0xff),
        }
    }

    /// Writes guest-physical memory inside one page; dropped outside RAM.
    pub(crate) fn write_physical(&mut self, gpa: u64, from: &[u8]) {
        let map = self.ram.clone();
        if let Some(r) = map.find(gpa)
            && gpa - r.gpa + from.len() as u64 <= r.len
            && !r.read_only
        {
            ram::write_bytes(r.host(gpa), from);
            r.mark_dirty(gpa);
            self.code_written(gpa, from.len() as u64);
        }
    }

    fn device_read(&mut self, gpa: u64, bytes: usize) -> u64 {
        self.counters.mmio += 1;
        if self.lapic.owns(gpa, self.msrs.apic_base) {
            return self.lapic_mmio_read(gpa, bytes);
        }
        self.host.mmio_read(self.id, gpa, bytes as u32)
    }

    fn device_write(&mut self, gpa: u64, bytes: usize, v: u64) {
        self.counters.mmio += 1;
        if self.lapic.owns(gpa, self.msrs.apic_base) {
            self.lapic_mmio_write(gpa, bytes, v);
            return;
        }
        self.host.mmio_write(self.id, gpa, bytes as u32, v);
    }
}

fn load_sized(host: usize, bytes: usize) -> u64 {
    match bytes {
        1 => ram::load::<u8>(host).z(),
        2 => ram::load::<u16>(host).z(),
        4 => ram::load::<u32>(host).z(),
        8 => ram::load::<u64>(host),
        _ => {
            let mut b = [0; 8];
            ram::read_bytes(host, &mut b[..bytes]);
            u64::from_le_bytes(b)
        }
    }
}

fn store_sized(host: usize, bytes: usize, v: u64) {
    match bytes {
        1 => ram::store(host, v as u8),
        2 => ram::store(host, v as u16),
        4 => ram::store(host, v as u32),
        8 => ram::store(host, v),
        _ => ram::write_bytes(host, &v.to_le_bytes()[..bytes]),
    }
}
