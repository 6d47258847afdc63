//! The dispatcher: finds blocks, runs chains, delivers what is due between them.

use crate::cpu::{CS, Cpu, JUMPS, Jump, PAGE, mode};
use crate::mmu::ram::PAGE_MASK;
use crate::op::{Exec, Flow, OpPtr};
use crate::shared::{Mail, attention, lock};
use crate::wait;
use godwit_sdk::Exit;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Instructions per chain: bounds the stack where calls are not jumps, and how late an interrupt is seen.
const BUDGET: i64 = if cfg!(debug_assertions) { 1000 } else { 4000 };

/// Rounds of the dispatcher after which others see a busy guest's counts: some milliseconds.
const PUBLISHED_EVERY: u64 = 256;

impl Cpu {
    /// Linear address of an instruction pointer.
    pub(crate) fn linear_rip(&self, rip: u64) -> u64 {
        if self.long_code() { rip } else { rip.wrapping_add(self.seg[CS].base) & 0xffff_ffff }
    }

    /// Runs until there is a reason to leave.
    pub(crate) fn run(&mut self) -> Exit {
        self.enter();
        loop {
            if (self.check_events || self.me.attention.load(Ordering::Relaxed) != 0)
                && let Some(exit) = self.events()
            {
                return exit;
            }
            self.timer_tick();
            if self.counters.chains.is_multiple_of(PUBLISHED_EVERY) {
                self.publish();
            }
            match self.round() {
                // The trap after HLT ends it.
                Flow::Halt if self.step_trap => {
                    self.after_step();
                }
                Flow::Halt => {
                    self.counters.halts += 1;
                    if let Some(exit) = self.halt() {
                        return exit;
                    }
                }
                Flow::Fault => {
                    self.counters.exceptions += 1;
                    if self.deliver_exception() == Flow::Shutdown {
                        return Exit::Shutdown;
                    }
                }
                Flow::Shutdown => return Exit::Shutdown,
                _ => {}
            }
        }
    }

    /// Runs chains until the budget is used up or something has to be looked at.
    fn round(&mut self) -> Flow {
        self.counters.chains += 1;
        self.budget = BUDGET;
        let mut flow = Flow::Next;
        let result = loop {
            if self.check_events || self.budget < 0 {
                break Flow::Next;
            }
            let op = match self.find(flow == Flow::Stale) {
                Ok(op) => op,
                Err(_) => break Flow::Fault,
            };
            if let Some(from) = self.link.take()
                && flow == Flow::Link
            {
                self.connect(from, op);
            }
            flow = op.go(self);
            #[cfg(feature = "plain-loop")]
            while flow == Flow::Chain {
                flow = match self.next_op.take() {
                    Some(op) => op.go(self),
                    None => Flow::Next,
                };
            }
            match flow {
                Flow::Next | Flow::Link | Flow::Stale => {}
                other => break other,
            }
            // An instruction that clears the trap flag is still followed by its trap.
            if self.tag & mode::STEP != 0 || self.step_trap {
                break self.after_step();
            }
        };
        self.link = None;
        self.counters.instructions += (BUDGET - self.budget) as u64;
        result
    }

    /// The block at `cpu.rip`.
    #[inline]
    fn find(&mut self, fresh: bool) -> Exec<OpPtr> {
        let rip = self.rip;
        let slot = jump_index(rip);
        let jump = &self.jumps[slot];
        if jump.va == rip
            && jump.tag == self.tag
            && !fresh
            && let Some(op) = jump.op
        {
            self.gpr[PAGE as usize] = jump.page;
            return Ok(op);
        }
        self.find_slow(rip)
    }

    #[cold]
    #[inline(never)]
    fn find_slow(&mut self, rip: u64) -> Exec<OpPtr> {
        self.counters.lookups += 1;
        let linear = self.linear_rip(rip);
        if !self.long_code() && rip > u64::from(self.seg[CS].limit) {
            return Err(self.gp(0));
        }
        let gpa = self.fetch(linear)?;
        let page = rip.wrapping_sub(linear & PAGE_MASK);
        let key = gpa | (self.tag & mode::ALL) << 48;
        let mut found = None;
        if let Some((op, second)) = self.cache.find(key) {
            found = Some(op);
            if let Some(second) = second {
                let next = (linear & !PAGE_MASK).wrapping_add(PAGE_MASK + 1);
                let next = if self.long_code() { next } else { next & 0xffff_ffff };
                if self.fetch(next)? != second {
                    self.cache.invalidate(gpa, 1, false);
                    found = None;
                }
            }
        }
        let op = match found {
            Some(op) => op,
            None => {
                if self.cache.full() {
                    self.empty_cache();
                }
                let draft = self.decode(gpa)?;
                self.cache.insert(key, gpa, &draft)
            }
        };
        self.gpr[PAGE as usize] = page;
        // Those of single steps are not for an indirect branch to run on to.
        if self.tag & mode::STEP == 0 {
            self.jumps[jump_index(rip)] = Jump { va: rip, tag: self.tag, page, op: Some(op) };
        }
        Ok(op)
    }

    pub(crate) fn empty_cache(&mut self) {
        self.counters.emptied += 1;
        self.cache.empty();
        self.link = None;
        self.jumps.fill(Jump { va: 0, tag: 0, page: 0, op: None });
    }

    /// Links a branch to the block it has led to.
    fn connect(&mut self, from: OpPtr, to: OpPtr) {
        // A link inside a page would not look at the translation of the page that the target crosses into.
        if u64::from(to.off) + u64::from(to.len) > PAGE_MASK + 1 {
            return;
        }
        let slot = from.slot();
        slot.page.set(self.gpr[PAGE as usize]);
        slot.to.set(Some(to));
        slot.from.set(self.link_page);
        slot.tag.set(self.tag);
    }

    /// What has to happen when `run` is entered: memory and time may have changed outside.
    fn enter(&mut self) {
        let ram = self.vm.ram();
        if !std::sync::Arc::ptr_eq(&ram, &self.ram) {
            self.ram = ram;
            self.empty_cache();
            self.flush_tlb();
        }
        self.reload_clock();
        self.check_events = true;
        self.interrupts = true;
    }

    pub(crate) fn reload_clock(&mut self) {
        let now = self.vm.clock.running();
        if now != self.clock {
            self.clock = now;
            self.write_kvmclock();
        }
        self.arm_timer();
    }

    /// Takes what others have sent.
    fn take_attention(&mut self) -> u32 {
        let bits = self.me.attention.load(Ordering::Relaxed);
        if bits == 0 {
            return 0;
        }
        let bits = self.me.attention.swap(0, Ordering::SeqCst);
        if bits & (attention::INTERRUPT | attention::NMI) != 0 {
            self.interrupts = true;
            self.check_events = true;
        }
        if bits & attention::NMI != 0 {
            self.nmi_pending = (self.nmi_pending + 1).min(2);
        }
        if bits & attention::CODE != 0 {
            self.read_mail();
        }
        if bits & attention::DIRTY != 0 {
            self.forget_writes();
        }
        if bits & attention::CLOCK != 0 {
            self.reload_clock();
        }
        bits
    }

    /// Delivers what is due. Gives the reason if the vCPU must leave.
    fn events(&mut self) -> Option<Exit> {
        self.check_events = false;
        let bits = self.take_attention();
        if bits & attention::INIT != 0 && self.init() {
            self.me.attention.fetch_or(bits & (attention::SIPI | attention::KICK), Ordering::SeqCst);
            return self.halt();
        }
        if bits & attention::KICK != 0 {
            self.leave();
            return Some(Exit::Kicked);
        }
        if !self.is_running() {
            self.me.attention.fetch_or(bits & attention::SIPI, Ordering::SeqCst);
            return self.halt();
        }
        if let Some(flow) = self.injected()
            && flow == Flow::Shutdown
        {
            return Some(Exit::Shutdown);
        }
        if self.deliver_debug() == Flow::Shutdown {
            return Some(Exit::Shutdown);
        }
        if self.shadow_sti || self.shadow_ss {
            // One instruction first.
            return self.step_in_shadow();
        }
        if self.interrupt() == Flow::Shutdown {
            return Some(Exit::Shutdown);
        }
        None
    }

    /// Runs one instruction with interrupts held off.
    fn step_in_shadow(&mut self) -> Option<Exit> {
        let tag = self.tag;
        self.tag |= mode::STEP;
        let stepping = tag & mode::STEP != 0;
        let (sti, ss) = (self.shadow_sti, self.shadow_ss);
        self.shadow_sti = false;
        self.shadow_ss = false;
        let flow = match self.find(false) {
            Ok(op) => {
                self.budget = 0;
                let flow = op.go(self);
                #[cfg(feature = "plain-loop")]
                let flow = {
                    let mut flow = flow;
                    while flow == Flow::Chain {
                        flow = self.next_op.take().map_or(Flow::Next, |op| op.go(self));
                    }
                    flow
                };
                flow
            }
            Err(_) => Flow::Fault,
        };
        self.counters.instructions += 1;
        self.link = None;
        self.check_events = true;
        // STI after STI gives no new shadow.
        if sti {
            self.shadow_sti = false;
        }
        if ss {
            self.shadow_ss = false;
        }
        self.update_mode();
        let flow = if stepping && matches!(flow, Flow::Next | Flow::Link | Flow::Stale) {
            self.after_step()
        } else {
            flow
        };
        match flow {
            Flow::Halt if self.step_trap => {
                self.after_step();
                None
            }
            Flow::Halt => {
                self.counters.halts += 1;
                self.halt()
            }
            Flow::Fault => {
                self.counters.exceptions += 1;
                (self.deliver_exception() == Flow::Shutdown).then_some(Exit::Shutdown)
            }
            Flow::Shutdown => Some(Exit::Shutdown),
            _ => None,
        }
    }

    /// Sleeps in HLT or waiting for SIPI. Gives the reason if the vCPU must leave instead.
    fn halt(&mut self) -> Option<Exit> {
        self.set_halted();
        loop {
            let bits = self.take_attention();
            if bits & attention::INIT != 0 {
                self.init();
            }
            if bits & attention::SIPI != 0 && self.sipi() {
                self.me.attention.fetch_or(bits & attention::KICK, Ordering::SeqCst);
                return None;
            }
            if bits & attention::KICK != 0 {
                self.leave();
                return Some(Exit::Kicked);
            }
            let left = self.timer_tick();
            if self.wakes() {
                self.set_running();
                self.check_events = true;
                return None;
            }
            self.publish();
            wait::sleep(&self.me.attention, left.map(Duration::from_nanos));
        }
    }

    /// `run` returns: the log must not miss what was written through the TLB.
    fn leave(&mut self) {
        self.forget_writes();
        self.publish();
    }

    /// Lets other threads see the counts.
    fn publish(&mut self) {
        self.counters.invalidated = self.cache.invalidations;
        self.me.counters.publish(&self.counters);
    }

    fn read_mail(&mut self) {
        let mail = std::mem::take(&mut *lock(&self.me.mail));
        for m in mail {
            match m {
                Mail::Written { gpa, len } => {
                    self.cache.invalidate(gpa, len, false);
                }
                Mail::Page { gpa } => {
                    self.cache.invalidate(gpa, 1, true);
                    self.forget_writes_to(gpa);
                }
                Mail::Code { gpa } => {
                    if self.forget_writes_to(gpa) {
                        // It may have been written since the other vCPU read it.
                        self.vm.post_code(Mail::Written { gpa, len: 4096 }, Some(self.id));
                    }
                }
                Mail::All => {
                    self.cache.invalidate_all();
                    self.forget_writes();
                }
            }
        }
    }

    /// Code will be decoded from here: stores to it must be seen.
    pub(crate) fn watch_code(&mut self, gpa: u64, len: u64) {
        let ram = self.ram.clone();
        let Some(region) = ram.find(gpa) else { return };
        let first = (gpa & PAGE_MASK) / 64;
        let last = ((gpa & PAGE_MASK) + len - 1).min(PAGE_MASK) / 64;
        let lines = (u64::MAX >> (63 - (last - first))) << first;
        let old = region.code(gpa).fetch_or(lines, Ordering::SeqCst);
        if old == 0 {
            self.forget_writes_to(gpa);
            if self.smp {
                self.vm.post_code(Mail::Code { gpa: gpa & !PAGE_MASK }, Some(self.id));
            }
        }
    }

    /// Bytes in one page have been written, and the page may hold code.
    #[inline]
    pub(crate) fn code_written(&mut self, gpa: u64, len: u64) {
        let Some(region) = self.ram.find(gpa) else { return };
        let mask = region.code(gpa).load(Ordering::SeqCst);
        if mask == 0 {
            return;
        }
        let first = (gpa & PAGE_MASK) / 64;
        let last = ((gpa & PAGE_MASK) + len.max(1) - 1).min(PAGE_MASK) / 64;
        let lines = (u64::MAX >> (63 - (last - first))) << first;
        if mask & lines != 0 {
            self.code_hit(gpa, len);
        }
    }

    #[cold]
    fn code_hit(&mut self, gpa: u64, len: u64) {
        let gone = self.cache.invalidate(gpa, len, false);
        if gone == crate::cache::Gone::Page {
            if let Some(region) = self.ram.find(gpa) {
                region.code(gpa).store(0, Ordering::SeqCst);
            }
            self.forget_writes_to(gpa);
            if self.smp {
                self.vm.post_code(Mail::Page { gpa: gpa & !PAGE_MASK }, Some(self.id));
            }
        } else if self.smp {
            self.vm.post_code(Mail::Written { gpa, len }, Some(self.id));
        }
    }
}

/// Where an instruction pointer's jump cache entry is.
#[inline(always)]
pub(crate) fn jump_index(rip: u64) -> usize {
    (rip ^ (rip >> 12)) as usize & (JUMPS - 1)
}
