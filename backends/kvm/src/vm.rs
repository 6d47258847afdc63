//! A VM: memory slots, interrupt routing, messages. Time is in `time.rs`.

use crate::backend::HostKvm;
use crate::kick::{EXTINT, NMI, Shared};
use crate::page::RunPage;
use crate::sys::{self, failed};
use crate::time::Time;
use crate::vcpu::KvmVcpu;
use crate::{backend, ext};
use godwit_sdk::abi::GUEST_PAGE_SIZE;
use godwit_sdk::state::ClockV1;
use godwit_sdk::state::model::{Feature, Features};
use godwit_sdk::{LogLevel, Error, Host, MemorySlot, MsiRoute, Result, Vm, VmConfig};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES,
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_SPLIT_IRQCHIP,
    KVM_IRQ_ROUTING_MSI, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pins of the board's I/O APIC: routes whose level-triggered vectors KVM reports the EOI of.
const PINS: u64 = 24;

/// What exits are counted as.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) pio: AtomicU64,
    pub(crate) mmio: AtomicU64,
    pub(crate) interrupt_window: AtomicU64,
    pub(crate) eoi: AtomicU64,
    pub(crate) signal: AtomicU64,
    pub(crate) other: AtomicU64,
    pub(crate) kicked: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy)]
struct Slot {
    region: kvm_userspace_memory_region,
    pages: u64,
}

#[derive(Default)]
struct Routing {
    /// As the VMM gave them.
    routes: BTreeMap<u32, MsiRoute>,
    /// Lines that an irqfd raises.
    irqfds: BTreeSet<u32>,
    /// What KVM has: line, address, data.
    given: Vec<(u32, u64, u32)>,
}

/// What VM and vCPUs share. Lock order: `vcpus`, then `time`; the others stand alone. None is held while the host is called.
pub(crate) struct Inner {
    pub(crate) fd: VmFd,
    pub(crate) kvm: &'static HostKvm,
    pub(crate) host: Host,
    pub(crate) vcpu_count: u32,
    pub(crate) features: Features,
    pub(crate) signal: i32,
    /// Level of the 8259s' output.
    pub(crate) extint: AtomicBool,
    pub(crate) counters: Counters,
    pub(crate) vcpus: Mutex<BTreeMap<u32, Arc<Shared>>>,
    pub(crate) time: Mutex<Time>,
    slots: Mutex<BTreeMap<u32, Slot>>,
    routing: Mutex<Routing>,
}

/// A lock whose holder panicked is still good: no invariant spans a panic here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    fn interrupt(&self, vcpu: u32, why: u32) -> bool {
        let shared = lock(&self.vcpus).get(&vcpu).cloned();
        shared.is_some_and(|shared| {
            shared.interrupt(why);
            true
        })
    }

    /// Gives KVM the routes it needs: those of level-triggered pins, for their EOIs, and those of irqfds. All other lines
    /// come as messages from the VMM, and KVM_SET_GSI_ROUTING is slow.
    fn update_routing(&self, routing: &mut Routing) -> Result<()> {
        let wanted: Vec<_> = routing
            .routes
            .values()
            .filter(|r| {
                let raised = routing.irqfds.contains(&r.gsi);
                // A masked level pin keeps its EOI: nothing raises it here. An irqfd's line must be silent while masked.
                if raised { !r.masked } else { u64::from(r.gsi) < PINS && r.data >> 15 & 1 == 1 }
            })
            .map(|r| (r.gsi, r.address, r.data))
            .collect();
        if wanted == routing.given {
            return Ok(());
        }
        let entries: Vec<_> = wanted
            .iter()
            .map(|(gsi, address, data)| {
                let mut e =
                    kvm_irq_routing_entry { gsi: *gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
                e.u.msi.address_lo = *address as u32;
                e.u.msi.address_hi = (*address >> 32) as u32;
                e.u.msi.data = *data;
                e
            })
            .collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|e| Error::Invalid(format!("{} routes: {e:?}", entries.len())))?;
        self.fd.set_gsi_routing(&table).map_err(failed("KVM_SET_GSI_ROUTING"))?;
        routing.given = wanted;
        Ok(())
    }

    /// An irqfd was put on a line, or taken off it.
    pub(crate) fn irqfd_changed(&self, gsi: u32, on: bool) -> Result<()> {
        let mut routing = lock(&self.routing);
        if on {
            routing.irqfds.insert(gsi);
        } else {
            routing.irqfds.remove(&gsi);
        }
        self.update_routing(&mut routing)
    }

    fn set_slot_log(&self, slot: &mut Slot, on: bool) -> Result<()> {
        let flags = if on {
            slot.region.flags | KVM_MEM_LOG_DIRTY_PAGES
        } else {
            slot.region.flags & !KVM_MEM_LOG_DIRTY_PAGES
        };
        let region = kvm_userspace_memory_region { flags, ..slot.region };
        sys::set_memory(self.raw(), &region).map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        slot.region = region;
        Ok(())
    }

    fn read_log(&self, slot: &Slot, bitmap: &mut [u64]) -> Result<()> {
        let number = slot.region.slot;
        sys::dirty_log(self.raw(), number, bitmap).map_err(failed("KVM_GET_DIRTY_LOG"))?;
        // Whoever asked reads the pages after this, so a page written since the line above is still seen as it is.
        if self.kvm.manual_dirty && bitmap.iter().any(|w| *w != 0) {
            let pages = u32::try_from(slot.pages)
                .map_err(|_| Error::Unsupported("dirty log of more than 16 TiB".into()))?;
            sys::clear_dirty_log(self.raw(), number, pages, bitmap)
                .map_err(failed("KVM_CLEAR_DIRTY_LOG"))?;
        }
        Ok(())
    }
}

/// A VM of this backend.
pub struct KvmVm {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for KvmVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmVm").field("vcpus", &self.inner.vcpu_count).finish_non_exhaustive()
    }
}

impl KvmVm {
    pub(crate) fn new(
        kvm: &'static HostKvm,
        fd: VmFd,
        config: &VmConfig,
        host: Host,
        features: Features,
        signal: i32,
        (tsc_khz, scaled, host_khz): (u64, bool, u64),
    ) -> Result<Self> {
        let enable = |cap: u32, argument: u64, name: &'static str| {
            let mut enable = kvm_enable_cap { cap, ..Default::default() };
            enable.args[0] = argument;
            fd.enable_cap(&enable).map_err(failed(name))
        };
        enable(KVM_CAP_SPLIT_IRQCHIP, PINS, "KVM_CAP_SPLIT_IRQCHIP")?;
        if kvm.exception_payload {
            enable(KVM_CAP_EXCEPTION_PAYLOAD, 1, "KVM_CAP_EXCEPTION_PAYLOAD")?;
        }
        if kvm.manual_dirty {
            enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 1, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")?;
        }
        Ok(KvmVm {
            inner: Arc::new(Inner {
                fd,
                kvm,
                host,
                vcpu_count: config.vcpus,
                features,
                signal,
                extint: AtomicBool::new(false),
                counters: Counters::default(),
                vcpus: Mutex::default(),
                time: Mutex::new(Time::new(tsc_khz, scaled, host_khz, config.allow_tsc_mismatch)),
                slots: Mutex::default(),
                routing: Mutex::default(),
            }),
        })
    }
}

fn no_slot(slot: u32) -> Error {
    Error::Invalid(format!("memory slot {slot} is not mapped"))
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    fn map_memory(&self, slot: MemorySlot) -> Result<()> {
        let mut slots = lock(&self.inner.slots);
        if slots.contains_key(&slot.slot) {
            return Err(Error::Invalid(format!("memory slot {} is mapped already", slot.slot)));
        }
        let region = kvm_userspace_memory_region {
            slot: slot.slot,
            flags: if slot.read_only { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: slot.gpa,
            memory_size: slot.len,
            userspace_addr: slot.host as u64,
        };
        sys::set_memory(self.inner.raw(), &region).map_err(|e| {
            Error::Host(format!(
                "KVM_SET_USER_MEMORY_REGION: slot {} ({:#x} bytes at {:#x}): {e}",
                slot.slot, slot.len, slot.gpa
            ))
        })?;
        slots.insert(slot.slot, Slot { region, pages: slot.len / GUEST_PAGE_SIZE });
        Ok(())
    }

    fn unmap_memory(&self, slot: u32) -> Result<()> {
        let mut slots = lock(&self.inner.slots);
        let s = slots.get(&slot).ok_or_else(|| no_slot(slot))?;
        let region = kvm_userspace_memory_region { memory_size: 0, ..s.region };
        sys::set_memory(self.inner.raw(), &region).map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        slots.remove(&slot);
        Ok(())
    }

    fn set_dirty_log(&self, slot: u32, on: bool) -> Result<()> {
        let mut slots = lock(&self.inner.slots);
        let s = slots.get_mut(&slot).ok_or_else(|| no_slot(slot))?;
        let logging = s.region.flags & KVM_MEM_LOG_DIRTY_PAGES != 0;
        if on && logging {
            let mut rest = vec![0; s.pages.div_ceil(64) as usize];
            return self.inner.read_log(s, &mut rest);
        }
        if on != logging {
            self.inner.set_slot_log(s, on)?;
        }
        Ok(())
    }

    fn take_dirty_log(&self, slot: u32, bitmap: &mut [u64]) -> Result<()> {
        let slots = lock(&self.inner.slots);
        let s = slots.get(&slot).ok_or_else(|| no_slot(slot))?;
        let words = s.pages.div_ceil(64) as usize;
        if bitmap.len() != words {
            return Err(Error::Invalid(format!(
                "dirty log of slot {slot}: {} words, {words} are needed",
                bitmap.len()
            )));
        }
        if s.region.flags & KVM_MEM_LOG_DIRTY_PAGES == 0 {
            return Err(Error::Invalid(format!("slot {slot} does not log writes")));
        }
        let mut log = vec![0; words];
        self.inner.read_log(s, &mut log)?;
        for (to, from) in bitmap.iter_mut().zip(log) {
            *to |= from;
        }
        Ok(())
    }

    // The processor sees writes by itself.
    fn memory_written(&self, _: u64, _: u64) {}

    fn signal_msi(&self, address: u64, data: u32) -> Result<()> {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        match self.inner.fd.signal_msi(msi) {
            Ok(_) => Ok(()),
            // No LAPIC has that address: on a real bus the message is lost too.
            Err(e) if e.errno() == libc::EPERM => Ok(()),
            Err(e) => Err(failed("KVM_SIGNAL_MSI")(e)),
        }
    }

    fn set_routes(&self, routes: &[MsiRoute]) -> Result<()> {
        let mut new = BTreeMap::new();
        for r in routes {
            if new.insert(r.gsi, *r).is_some() {
                return Err(Error::Invalid(format!("line {} has two routes", r.gsi)));
            }
        }
        let mut routing = lock(&self.inner.routing);
        routing.routes = new;
        self.inner.update_routing(&mut routing)
    }

    fn set_extint(&self, level: bool) {
        if self.inner.extint.swap(level, Ordering::SeqCst) != level && level {
            self.inner.interrupt(0, EXTINT);
        }
    }

    fn inject_nmi(&self, vcpu: u32) -> Result<()> {
        if self.inner.interrupt(vcpu, NMI) {
            return Ok(());
        }
        Err(Error::Invalid(format!("there is no vCPU {vcpu}")))
    }

    fn stop_clock(&self) -> Result<()> {
        self.inner.stop_clock()
    }

    fn start_clock(&self, advance_ns: u64) -> Result<()> {
        self.inner.start_clock(advance_ns)
    }

    fn save_clock(&self) -> Result<ClockV1> {
        lock(&self.inner.time).stopped()
    }

    fn load_clock(&self, clock: &ClockV1) -> Result<()> {
        self.inner.load_clock(clock)
    }

    fn create_vcpu(&self, id: u32) -> Result<KvmVcpu> {
        let inner = &self.inner;
        if id >= inner.vcpu_count {
            return Err(Error::Invalid(format!(
                "vCPU {id}: the VM was made for {} vCPUs",
                inner.vcpu_count
            )));
        }
        if lock(&inner.vcpus).contains_key(&id) {
            return Err(Error::Invalid(format!("there is a vCPU {id} already")));
        }
        let fd = inner.fd.create_vcpu(u64::from(id)).map_err(failed("KVM_CREATE_VCPU"))?;
        let tsc_khz = lock(&inner.time).announced_khz();
        let table = backend::cpuid(inner.features, id, inner.vcpu_count, tsc_khz)?;
        fd.set_cpuid2(&table).map_err(failed("KVM_SET_CPUID2"))?;
        if id == 0 {
            let shown = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_CPUID2"))?;
            if let Some(warning) = backend::beyond(&shown, inner.features) {
                inner.host.log(LogLevel::Warn, &warning);
            }
        }
        if inner.kvm.enforce_pv {
            // Else a guest could turn on paravirtual features whose state nobody saves.
            let mut enable =
                kvm_enable_cap { cap: kvm_bindings::KVM_CAP_ENFORCE_PV_FEATURE_CPUID, ..Default::default() };
            enable.args[0] = 1;
            fd.enable_cap(&enable).map_err(failed("KVM_CAP_ENFORCE_PV_FEATURE_CPUID"))?;
        }
        let page = RunPage::new(fd.as_raw_fd(), inner.kvm.run_size)?;
        let shared = Arc::new(Shared::new(id, fd, page, inner.signal));
        lock(&inner.time).add_vcpu(&shared, &inner.host)?;
        lock(&inner.vcpus).insert(id, shared.clone());
        Ok(KvmVcpu::new(inner.clone(), shared))
    }

    fn extension(&self, name: &str) -> *const core::ffi::c_void {
        ext::table(name)
    }
}
