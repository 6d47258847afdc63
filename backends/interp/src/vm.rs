//! The backend contract: VM and vCPU handles around [`Cpu`].

use crate::clock::Clock;
use crate::counters;
use crate::cpu::{Cpu, Fpu, JUMPS, Jump, REGS, System};
use crate::flags::Lazy;
use crate::lapic::Lapic;
use crate::mmu::ram::Region;
use crate::mmu::tlb::Tlb;
use crate::num::vec::V256;
use crate::shared::{VcpuShared, VmShared, attention, lock};
use godwit_sdk::{
    Backend, Descriptor, Error, Exit, Host, Kick, MemorySlot, MsiRoute, Probe, Result, VmConfig,
};
use godwit_state::model::{self, Features, Model};
use godwit_state::{ActivityV1, ClockV1, CpuState, EventsV1, F80, MsrsV1, SystemV1};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// The interpreter.
pub struct Interp;

/// Most vCPUs of a VM.
const MAX_VCPUS: u32 = 32;
/// Bytes of decoded code that a VM may hold.
const CODE_BYTES: usize = 16 << 20;
/// Least bytes of decoded code a vCPU gets.
const VCPU_CODE_BYTES: usize = 2 << 20;

/// System calls of vCPU threads, and so of the whole process.
const CALLS: &[&str] = &[
    "futex",
    "clock_gettime",
    "clock_nanosleep",
    "getrandom",
    "mmap",
    "munmap",
    "mremap",
    "madvise",
    "brk",
    "sched_yield",
];

impl Backend for Interp {
    type Vm = InterpVm;
    const DESCRIPTOR: Descriptor = Descriptor {
        name: "interp",
        summary: "x86-64 by interpretation, on any host",
        version: env!("CARGO_PKG_VERSION"),
        models: &[Model::X86_64, Model::V2, Model::V3, Model::Host],
        system_calls: CALLS,
        ioctls: &[],
        vcpu_calls: CALLS,
        vcpu_ioctls: &[],
        device_calls: &["futex", "clock_gettime", "sched_yield"],
        device_ioctls: &[],
        device_nodes: &[],
        rank: 10,
    };

    fn probe() -> Result<Probe> {
        Ok(Probe {
            max_vcpus: MAX_VCPUS,
            models: vec![Model::X86_64, Model::V2, Model::V3, Model::Host],
            tsc_khz: crate::host_tsc::khz(),
            tsc_scaling: true,
            host_features: Some(model::all_features()),
        })
    }

    fn create_vm(config: &VmConfig, host: Host) -> Result<InterpVm> {
        if config.vcpus == 0 || config.vcpus > MAX_VCPUS {
            return Err(Error::Unsupported(format!(
                "the interpreter runs 1 to {MAX_VCPUS} vCPUs, not {}",
                config.vcpus
            )));
        }
        let tsc_khz = config.tsc_khz.unwrap_or_else(crate::host_tsc::khz);
        if !(10_000..=100_000_000).contains(&tsc_khz) {
            return Err(Error::Unsupported(format!("a TSC of {tsc_khz} kHz: 10000 to 100000000 can be had")));
        }
        let shared = VmShared {
            host,
            vcpus: (0..config.vcpus).map(|id| Arc::new(VcpuShared::new(id))).collect(),
            ram: RwLock::default(),
            clock: Clock::new(tsc_khz),
            routes: Mutex::default(),
            extint: AtomicBool::new(false),
        };
        let features = config.model.features().unwrap_or_else(model::all_features);
        Ok(InterpVm { shared: Arc::new(shared), features })
    }
}

/// A VM.
pub struct InterpVm {
    shared: Arc<VmShared>,
    features: Features,
}

impl InterpVm {
    fn region(&self, slot: u32) -> Result<Arc<Region>> {
        let ram = self.shared.ram();
        let found = ram.regions.iter().find(|r| r.slot == slot).cloned();
        found.ok_or_else(|| Error::Invalid(format!("no memory slot {slot}")))
    }

    fn attend(&self, bits: u32) {
        self.shared.vcpus.iter().for_each(|v| v.attend(bits));
    }
}

impl godwit_sdk::Vm for InterpVm {
    type Vcpu = InterpVcpu;

    fn map_memory(&self, slot: MemorySlot) -> Result<()> {
        let mut ram = self.shared.ram.write().unwrap_or_else(PoisonError::into_inner);
        let end = slot.gpa.checked_add(slot.len);
        let Some(end) = end.filter(|e| *e <= 1 << model::PHYSICAL_ADDRESS_BITS && slot.len != 0) else {
            return Err(Error::Invalid(format!("memory slot {} does not fit below 1 TiB", slot.slot)));
        };
        if (slot.gpa | slot.len) & 0xfff != 0 || slot.host.is_null() {
            return Err(Error::Invalid(format!("memory slot {} is not made of pages", slot.slot)));
        }
        if let Some(other) =
            ram.regions.iter().find(|r| r.slot == slot.slot || (slot.gpa < r.gpa + r.len && r.gpa < end))
        {
            return Err(Error::Invalid(format!("memory slot {} is in the way of {}", other.slot, slot.slot)));
        }
        let mut new = (**ram).clone();
        new.regions.push(Arc::new(Region::new(&slot)));
        // The largest first: most accesses are there.
        new.regions.sort_by_key(|r| std::cmp::Reverse(r.len));
        *ram = Arc::new(new);
        Ok(())
    }

    fn unmap_memory(&self, slot: u32) -> Result<()> {
        self.region(slot)?;
        let mut ram = self.shared.ram.write().unwrap_or_else(PoisonError::into_inner);
        let mut new = (**ram).clone();
        new.regions.retain(|r| r.slot != slot);
        *ram = Arc::new(new);
        Ok(())
    }

    fn set_dirty_log(&self, slot: u32, on: bool) -> Result<()> {
        self.region(slot)?.set_log(on);
        self.attend(attention::DIRTY);
        Ok(())
    }

    fn take_dirty_log(&self, slot: u32, bitmap: &mut [u64]) -> Result<()> {
        let region = self.region(slot)?;
        if bitmap.len() != region.words() {
            return Err(Error::Invalid(format!(
                "the dirty log of slot {slot} has {} words, not {}",
                region.words(),
                bitmap.len()
            )));
        }
        region.take_log(bitmap);
        self.attend(attention::DIRTY);
        Ok(())
    }

    fn memory_written(&self, gpa: u64, len: u64) {
        self.shared.memory_written(gpa, len);
    }

    fn signal_msi(&self, address: u64, data: u32) -> Result<()> {
        self.shared.signal_msi(address, data);
        Ok(())
    }

    fn set_routes(&self, routes: &[MsiRoute]) -> Result<()> {
        *lock(&self.shared.routes) = routes.to_vec();
        Ok(())
    }

    fn set_extint(&self, level: bool) {
        self.shared.extint.store(level, Ordering::SeqCst);
        if level && let Some(v) = self.shared.vcpus.first() {
            v.attend(attention::INTERRUPT);
        }
    }

    fn inject_nmi(&self, vcpu: u32) -> Result<()> {
        match self.shared.vcpus.get(vcpu as usize) {
            Some(v) => {
                v.attend(attention::NMI);
                Ok(())
            }
            None => Err(Error::Invalid(format!("no vCPU {vcpu}"))),
        }
    }

    fn stop_clock(&self) -> Result<()> {
        self.shared.clock.stop();
        self.attend(attention::CLOCK);
        Ok(())
    }

    fn start_clock(&self, advance_ns: u64) -> Result<()> {
        self.shared.clock.start(advance_ns);
        self.attend(attention::CLOCK);
        Ok(())
    }

    fn save_clock(&self) -> Result<ClockV1> {
        Ok(self.shared.clock.save())
    }

    fn load_clock(&self, clock: &ClockV1) -> Result<()> {
        self.shared.clock.load(clock);
        self.attend(attention::CLOCK);
        Ok(())
    }

    fn create_vcpu(&self, id: u32) -> Result<InterpVcpu> {
        let Some(me) = self.shared.vcpus.get(id as usize) else {
            return Err(Error::Invalid(format!("no vCPU {id} in this VM")));
        };
        if me.made.swap(true, Ordering::AcqRel) {
            return Err(Error::Invalid(format!("vCPU {id} is there already")));
        }
        Ok(InterpVcpu { cpu: Box::new(new_cpu(self, id, me.clone())) })
    }

    fn extension(&self, name: &str) -> *const core::ffi::c_void {
        counters::extension(name)
    }
}

impl InterpVm {
    /// Every counter's name and sum over the vCPUs.
    pub fn counters(&self, mut each: impl FnMut(&'static str, u64)) {
        let mut sums: Vec<(&'static str, u64)> = Vec::new();
        for v in &self.shared.vcpus {
            v.counters.each(|name, value| match sums.iter_mut().find(|(n, _)| *n == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name, value)),
            });
        }
        sums.into_iter().for_each(|(n, v)| each(n, v));
    }
}

fn new_cpu(vm: &InterpVm, id: u32, me: Arc<VcpuShared>) -> Cpu {
    let s = SystemV1::reset();
    let shared = &vm.shared;
    let vcpus = shared.vcpus.len() as u32;
    if vcpus > 1 {
        crate::mmu::ram::share();
    }
    let clock = shared.clock.running();
    let code = (CODE_BYTES / vcpus as usize).max(VCPU_CODE_BYTES);
    let mut cpu = Cpu {
        gpr: [0; REGS],
        lazy: Lazy::NONE,
        budget: 0,
        class: 0,
        tag: 0,
        rip: 0,
        rip_mask: u64::MAX,
        flags: 0,
        link: None,
        link_page: 0,
        seg: [s.es, s.cs, s.ss, s.ds, s.fs, s.gs],
        vec: [V256::ZERO; 16],
        fpu: Fpu {
            cw: 0x37f,
            sw: 0,
            top: 0,
            tags: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            regs: [F80::default(); 8],
            mxcsr: 0x1f80,
        },
        rtlb: Tlb::new(),
        wtlb: Tlb::new(),
        ftlb: Tlb::new(),
        jumps: Box::new([Jump { va: 0, tag: 0, page: 0, op: None }; JUMPS]),
        #[cfg(feature = "plain-loop")]
        next_op: None,
        cpl: 0,
        implicit: false,
        activity: ActivityV1::Running,
        inject: EventsV1::default(),
        timer_due: None,
        slow_memory: false,
        check_events: true,
        interrupts: true,
        shadow_sti: false,
        shadow_ss: false,
        nmi_masked: false,
        nmi_pending: 0,
        debug_pending: 0,
        step_trap: false,
        generation: crate::mmu::tlb::GENERATION,
        epoch: 1,
        spaces: crate::mmu::space::Spaces::new(),
        exception: Default::default(),
        sys: System {
            tr: s.tr,
            ldtr: s.ldtr,
            gdtr: s.gdtr,
            idtr: s.idtr,
            cr0: s.cr0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            pdpte: [0; 4],
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        },
        msrs: MsrsV1::reset(id == 0),
        lapic: Lapic::new(id),
        tsc_offset: 0,
        tsc_adjust: 0,
        clock,
        cache: crate::cache::Cache::new(code),
        counters: Default::default(),
        features: vm.features,
        cpuid: model::cpuid_table(vm.features, id, vcpus, clock.tsc_khz),
        random: crate::random::Random::new(),
        smp: vcpus > 1,
        id,
        host: shared.host,
        ram: shared.ram(),
        vm: shared.clone(),
        me,
    };
    cpu.reset(true);
    if id != 0 {
        cpu.activity = ActivityV1::Uninitialized;
    }
    cpu
}

/// A vCPU.
pub struct InterpVcpu {
    pub(crate) cpu: Box<Cpu>,
}

// SAFETY: raw pointers in it are to the block cache's own cells, which move with it, and to guest RAM, which any
// thread may use.
unsafe impl Send for InterpVcpu {}

impl godwit_sdk::Vcpu for InterpVcpu {
    fn run(&mut self) -> Result<Exit> {
        Ok(self.cpu.run())
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.cpu.me.clone()
    }

    fn save(&mut self) -> Result<CpuState> {
        Ok(self.cpu.save())
    }

    fn load(&mut self, state: &CpuState) -> Result<()> {
        self.cpu.load(state)
    }
}
