//! What the vCPUs of a VM share with each other and with the VMM's threads: attention, mail, interrupt requests.

use crate::clock::Clock;
use crate::mmu::ram::RamMap;
use crate::wait;
use godwit_sdk::{Host, Kick, MsiRoute};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Bits of a vCPU's attention word.
pub(crate) mod attention {
    /// `run` is to return.
    pub(crate) const KICK: u32 = 1;
    /// Look at the interrupt requests.
    pub(crate) const INTERRUPT: u32 = 2;
    /// There is mail about code.
    pub(crate) const CODE: u32 = 4;
    /// The dirty log was taken or turned on: forget write translations.
    pub(crate) const DIRTY: u32 = 8;
    /// NMI.
    pub(crate) const NMI: u32 = 16;
    /// INIT.
    pub(crate) const INIT: u32 = 32;
    /// SIPI, its vector in `VcpuShared::sipi`.
    pub(crate) const SIPI: u32 = 64;
    /// Guest time was started or stopped.
    pub(crate) const CLOCK: u32 = 128;
}

/// Mail about code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mail {
    /// Bytes have been overwritten.
    Written { gpa: u64, len: u64 },
    /// A page has been given up as code.
    Page { gpa: u64 },
    /// A page holds code now: stores to it must be watched.
    Code { gpa: u64 },
    /// Everything may have changed.
    All,
}

/// One vCPU, as others see it.
#[derive(Debug)]
pub(crate) struct VcpuShared {
    pub id: u32,
    /// Its vCPU has been made.
    pub made: AtomicBool,
    /// Polled between chains; also what a halted vCPU sleeps on.
    pub attention: AtomicU32,
    /// Requested vectors.
    pub irr: [AtomicU32; 8],
    /// Which of them are level-triggered.
    pub tmr: [AtomicU32; 8],
    pub sipi: AtomicU32,
    /// For matching destinations: id, logical destination, format, and enabled/x2APIC.
    pub apic_id: AtomicU32,
    pub apic_ldr: AtomicU32,
    pub apic_dfr: AtomicU32,
    pub apic_on: AtomicBool,
    pub apic_x2: AtomicBool,
    /// Task priority, for lowest-priority delivery.
    pub mail: Mutex<Vec<Mail>>,
    /// Instructions and the like, for the counters extension.
    pub counters: crate::counters::Published,
}

impl VcpuShared {
    pub(crate) fn new(id: u32) -> Self {
        VcpuShared {
            id,
            made: AtomicBool::new(false),
            attention: AtomicU32::new(0),
            irr: Default::default(),
            tmr: Default::default(),
            sipi: AtomicU32::new(0),
            apic_id: AtomicU32::new(id),
            apic_ldr: AtomicU32::new(0),
            apic_dfr: AtomicU32::new(u32::MAX),
            apic_on: AtomicBool::new(true),
            apic_x2: AtomicBool::new(false),
            mail: Mutex::default(),
            counters: Default::default(),
        }
    }

    /// Has the vCPU look up soon, also out of HLT.
    pub(crate) fn attend(&self, bits: u32) {
        self.attention.fetch_or(bits, Ordering::SeqCst);
        wait::wake(&self.attention);
    }

    pub(crate) fn post(&self, mail: Mail) {
        let mut box_ = lock(&self.mail);
        if box_.len() >= 256 {
            box_.clear();
            box_.push(Mail::All);
        } else if box_.last() != Some(&mail) {
            box_.push(mail);
        }
        drop(box_);
        self.attend(attention::CODE);
    }

    /// Requests a vector.
    pub(crate) fn request(&self, vector: u8, level: bool) {
        let (word, bit) = (usize::from(vector / 32), 1u32 << (vector % 32));
        if level {
            self.tmr[word].fetch_or(bit, Ordering::SeqCst);
        } else {
            self.tmr[word].fetch_and(!bit, Ordering::SeqCst);
        }
        self.irr[word].fetch_or(bit, Ordering::SeqCst);
        self.attend(attention::INTERRUPT);
    }
}

impl Kick for VcpuShared {
    fn kick(&self) {
        self.attend(attention::KICK);
    }
}

/// One VM.
pub(crate) struct VmShared {
    pub host: Host,
    pub vcpus: Vec<Arc<VcpuShared>>,
    pub ram: RwLock<Arc<RamMap>>,
    pub clock: Clock,
    pub routes: Mutex<Vec<MsiRoute>>,
    /// Output of the 8259s.
    pub extint: AtomicBool,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VmShared {
    pub(crate) fn ram(&self) -> Arc<RamMap> {
        self.ram.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells all vCPUs but `except` about code.
    pub(crate) fn post_code(&self, mail: Mail, except: Option<u32>) {
        for vcpu in self.vcpus.iter().filter(|v| Some(v.id) != except) {
            vcpu.post(mail);
        }
    }

    /// Something outside the vCPUs has written guest memory.
    pub(crate) fn memory_written(&self, gpa: u64, len: u64) {
        let ram = self.ram();
        let end = gpa.saturating_add(len);
        let mut at = gpa;
        while at < end {
            let next = (at | 0xfff) + 1;
            let Some(region) = ram.find(at) else {
                // On to the next region, if the range reaches it.
                match ram.regions.iter().map(|r| r.gpa).filter(|g| *g > at && *g < end).min() {
                    Some(g) => at = g,
                    None => return,
                }
                continue;
            };
            if region.code(at).load(Ordering::SeqCst) != 0 {
                let part = next.min(end) - at;
                self.post_code(Mail::Written { gpa: at, len: part }, None);
            }
            at = next;
        }
    }
}
