//! KVM's LAPIC page to and from [`LapicV1`], apart from time, which is `time.rs`'s.

use godwit_sdk::state::{LapicV1, lvt};
use kvm_bindings::kvm_lapic_state;

const ID: usize = 0x20;
const TPR: usize = 0x80;
const LDR: usize = 0xd0;
const DFR: usize = 0xe0;
const SVR: usize = 0xf0;
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;
const ESR: usize = 0x280;
const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;
/// In the order of [`lvt`].
const LVT: [usize; 6] = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370];
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

const APIC_ENABLE: u64 = 1 << 11;
const X2APIC_ENABLE: u64 = 1 << 10;

/// IA32_APIC_BASE says x2APIC mode.
pub(crate) fn is_x2apic(apic_base: u64) -> bool {
    apic_base & (APIC_ENABLE | X2APIC_ENABLE) == APIC_ENABLE | X2APIC_ENABLE
}

/// What the timer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

/// A LAPIC page with its registers by number.
#[derive(Clone, Copy)]
pub(crate) struct Page(pub(crate) kvm_lapic_state);

impl Page {
    fn get(&self, at: usize) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|i| self.0.regs[at + i] as u8))
    }

    fn set(&mut self, at: usize, value: u32) {
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            self.0.regs[at + i] = byte as _;
        }
    }

    /// The registers, with the timer at rest.
    pub(crate) fn to_state(self, apic_base: u64) -> LapicV1 {
        let x2 = is_x2apic(apic_base);
        let block = |at: usize| std::array::from_fn(|i| self.get(at + 16 * i));
        LapicV1 {
            // KVM gives the id shifted in both modes unless KVM_CAP_X2APIC_API is enabled, which 32 vCPUs don't need.
            id: self.get(ID) >> 24,
            tpr: self.get(TPR) as u8,
            ldr: self.get(LDR),
            dfr: if x2 { u32::MAX } else { self.get(DFR) },
            svr: self.get(SVR),
            isr: block(ISR),
            tmr: block(TMR),
            irr: block(IRR),
            esr: self.get(ESR),
            icr_low: self.get(ICR_LOW),
            icr_high: self.get(ICR_HIGH),
            lvt: LVT.map(|at| self.get(at)),
            timer_initial: self.get(TIMER_INITIAL),
            timer_divide: self.get(TIMER_DIVIDE),
            timer_deadline_ns: None,
            tsc_deadline: 0,
        }
    }

    /// The page of those registers, its timer with nothing left to count.
    pub(crate) fn from_state(s: &LapicV1) -> Self {
        let mut page = Page(kvm_lapic_state { regs: [0; 1024] });
        page.set(ID, s.id << 24);
        page.set(TPR, u32::from(s.tpr));
        page.set(LDR, s.ldr);
        page.set(DFR, s.dfr);
        page.set(SVR, s.svr);
        for i in 0..8 {
            page.set(ISR + 16 * i, s.isr[i]);
            page.set(TMR + 16 * i, s.tmr[i]);
            page.set(IRR + 16 * i, s.irr[i]);
        }
        page.set(ESR, s.esr);
        page.set(ICR_LOW, s.icr_low);
        page.set(ICR_HIGH, s.icr_high);
        for (at, value) in LVT.into_iter().zip(s.lvt) {
            page.set(at, value);
        }
        page.set(TIMER_INITIAL, s.timer_initial);
        page.set(TIMER_DIVIDE, s.timer_divide);
        page
    }

    /// Mode of the timer.
    pub(crate) fn timer_mode(&self) -> TimerMode {
        match self.get(LVT[lvt::TIMER]) >> 17 & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            _ => TimerMode::TscDeadline,
        }
    }

    /// Nanoseconds in a timer tick.
    pub(crate) fn tick_ns(&self) -> u64 {
        let d = self.get(TIMER_DIVIDE);
        1 << ((((d & 3) | (d >> 1 & 4)) + 1) & 7)
    }

    /// The one-shot or periodic timer is counting.
    pub(crate) fn runs(&self) -> bool {
        self.left_ns().is_some()
    }

    /// Nanoseconds until the one-shot or periodic timer runs out; `None` if it does not run.
    pub(crate) fn left_ns(&self) -> Option<u64> {
        let counting =
            self.timer_mode() != TimerMode::TscDeadline && self.initial() != 0 && self.current() != 0;
        counting.then(|| u64::from(self.current()) * self.tick_ns())
    }

    fn has(&self, block: usize, vector: u8) -> bool {
        self.get(block + 16 * usize::from(vector / 32)) >> (vector % 32) & 1 == 1
    }

    /// Between `earlier` and this page, with no guest code run, the vector was requested.
    pub(crate) fn requested_since(&self, earlier: &Page, vector: u8) -> bool {
        self.has(IRR, vector) || self.has(ISR, vector) && !earlier.has(ISR, vector)
    }

    /// What the count starts from.
    pub(crate) fn initial(&self) -> u32 {
        self.get(TIMER_INITIAL)
    }

    /// Sets [`Self::initial`].
    pub(crate) fn set_initial(&mut self, count: u32) {
        self.set(TIMER_INITIAL, count);
    }

    /// Ticks left.
    pub(crate) fn current(&self) -> u32 {
        self.get(TIMER_CURRENT)
    }

    /// Sets [`Self::current`].
    pub(crate) fn set_current(&mut self, count: u32) {
        self.set(TIMER_CURRENT, count);
    }

    /// The vector that an expiry requests, if it does.
    pub(crate) fn timer_vector(&self) -> Option<u8> {
        const MASKED: u32 = 1 << 16;
        const SOFTWARE_ENABLE: u32 = 1 << 8;
        let entry = self.get(LVT[lvt::TIMER]);
        let on = entry & MASKED == 0 && self.get(SVR) & SOFTWARE_ENABLE != 0;
        (on && entry & 0xff >= 16).then_some(entry as u8)
    }

    /// Requests an edge-triggered vector.
    pub(crate) fn request(&mut self, vector: u8) {
        let (word, bit) = (16 * usize::from(vector / 32), 1 << (vector % 32));
        self.set(IRR + word, self.get(IRR + word) | bit);
        self.set(TMR + word, self.get(TMR + word) & !bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_round_trip() {
        let mut s = LapicV1::reset(3);
        s.irr[1] = 0x8000_0001;
        s.lvt[lvt::TIMER] = 0x2_0040;
        s.timer_initial = 77;
        s.timer_divide = 0xb;
        let page = Page::from_state(&s);
        assert_eq!(page.to_state(0xfee0_0800), s);
        assert_eq!((page.timer_mode(), page.tick_ns()), (TimerMode::Periodic, 1));
    }
}
