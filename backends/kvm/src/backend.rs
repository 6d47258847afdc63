//! What this backend is, what it can do on this host, and how a VM is made.
//!
//! Start-up counts: a probe keeps the VM it had to make (to learn the TSC's frequency) for the first `create_vm`, and
//! KVM_GET_SUPPORTED_CPUID, the slowest question, is asked once.

use crate::sys::{self, failed};
use crate::vm::KvmVm;
use godwit_sdk::state::model::{CpuidEntry, Feature, Features, all_features};
use godwit_sdk::state::{Model, model};
use godwit_sdk::{Backend, Descriptor, Error, Host, Probe, Result, VmConfig};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The KVM backend.
#[derive(Debug)]
pub struct KvmBackend;

/// VMs are limited by the LAPIC ids and logical clusters that need no x2APIC API.
const MAX_VCPUS: usize = 32;
/// Two clocks that differ by less are the same frequency to KVM (its `tsc_tolerance_ppm`).
pub(crate) const TOLERANCE_PPM: u64 = 250;

/// /dev/kvm and what it said.
pub(crate) struct HostKvm {
    pub(crate) kvm: Kvm,
    pub(crate) features: Features,
    pub(crate) tsc_scaling: bool,
    pub(crate) sregs2: bool,
    pub(crate) exception_payload: bool,
    pub(crate) enforce_pv: bool,
    pub(crate) manual_dirty: bool,
    pub(crate) run_size: usize,
    pub(crate) max_vcpus: u32,
}

/// A VM that was made for the probe, with the process that made it: KVM serves no other.
static SPARE: Mutex<Option<(u32, VmFd)>> = Mutex::new(None);

pub(crate) fn host_kvm() -> Result<&'static HostKvm> {
    static HOST: OnceLock<HostKvm> = OnceLock::new();
    if let Some(host) = HOST.get() {
        return Ok(host);
    }
    let host = open()?;
    Ok(HOST.get_or_init(|| host))
}

fn open() -> Result<HostKvm> {
    let kvm = Kvm::new().map_err(|e| {
        Error::Unusable(match e.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => format!(
                "/dev/kvm is not there ({e}): load the kvm_intel or kvm_amd module, or enable nested virtualisation"
            ),
            libc::EACCES | libc::EPERM => {
                format!("/dev/kvm may not be opened ({e}): add this user to the group that owns it, usually kvm")
            }
            _ => format!("/dev/kvm cannot be opened: {e}"),
        })
    })?;
    let api = kvm.get_api_version();
    if api != 12 {
        return Err(Error::Unusable(format!("/dev/kvm speaks API version {api}; 12 is needed")));
    }
    for (cap, name, since) in [
        (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP", "4.5"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "4.11"),
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "2.6"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(Error::Unusable(format!("this KVM lacks {name}: Linux {since} or newer is needed")));
        }
    }
    let raw = |cap: u32| kvm.check_extension_raw(u64::from(cap)) > 0;
    let cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    let features = host_features(cpuid.as_slice(), raw(kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER));
    Ok(HostKvm {
        features,
        tsc_scaling: raw(kvm_bindings::KVM_CAP_TSC_CONTROL),
        sregs2: raw(kvm_bindings::KVM_CAP_SREGS2),
        exception_payload: raw(kvm_bindings::KVM_CAP_EXCEPTION_PAYLOAD),
        enforce_pv: raw(kvm_bindings::KVM_CAP_ENFORCE_PV_FEATURE_CPUID),
        manual_dirty: raw(kvm_bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
        max_vcpus: kvm.get_max_vcpus().min(MAX_VCPUS) as u32,
        run_size: kvm.get_vcpu_mmap_size().map_err(failed("KVM_GET_VCPU_MMAP_SIZE"))?,
        kvm,
    })
}

/// Features that both this KVM and the models know.
fn host_features(cpuid: &[kvm_cpuid_entry2], tsc_deadline: bool) -> Features {
    let leaf = |function: u32, index: u32| {
        cpuid
            .iter()
            .find(|e| e.function == function && e.index == index)
            .map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    };
    let (one, seven, xsave, ext) = (leaf(1, 0), leaf(7, 0), leaf(0xd, 1), leaf(0x8000_0001, 0));
    let mut f = Features {
        leaf1_edx: one[3],
        leaf1_ecx: one[2],
        leaf7_ebx: seven[1],
        leaf7_ecx: seven[2],
        xsave_eax: xsave[0],
        ext1_edx: ext[3],
        ext1_ecx: ext[2],
    };
    // The LAPIC is in the kernel, so x2APIC is there whatever the processor; the hypervisor bit is ours to set.
    f = f.union(Features::of(&[Feature::X2APIC, Feature::HYPERVISOR]));
    if tsc_deadline {
        f = f.union(Features::of(&[Feature::TSC_DEADLINE]));
    }
    // AVX without its state in XCR0 cannot be used.
    if !f.has(Feature::XSAVE) || leaf(0xd, 0)[0] & 7 != 7 {
        f.leaf1_ecx &= !Features::of(&[Feature::AVX, Feature::FMA, Feature::F16C]).leaf1_ecx;
        f.leaf7_ebx &= !Features::of(&[Feature::AVX2]).leaf7_ebx;
    }
    if !f.has(Feature::XSAVE) {
        f.xsave_eax = 0;
    }
    let known = all_features();
    Features {
        leaf1_edx: f.leaf1_edx & known.leaf1_edx,
        leaf1_ecx: f.leaf1_ecx & known.leaf1_ecx,
        leaf7_ebx: f.leaf7_ebx & known.leaf7_ebx,
        leaf7_ecx: f.leaf7_ecx & known.leaf7_ecx,
        xsave_eax: f.xsave_eax & known.xsave_eax,
        ext1_edx: f.ext1_edx & known.ext1_edx,
        ext1_ecx: f.ext1_ecx & known.ext1_ecx,
    }
}

/// The features a guest of `model` gets, or which are missing here.
fn model_features(model: Model, host: Features) -> Result<Features> {
    let Some(wanted) = model.features() else { return Ok(host) };
    let missing = wanted.missing_in(host);
    if missing.is_empty() {
        return Ok(wanted);
    }
    let names: Vec<_> = missing.iter().map(|f| f.name()).collect();
    let best = Model::PORTABLE
        .into_iter()
        .rev()
        .find(|m| m.features().is_some_and(|f| f.missing_in(host).is_empty()))
        .map_or(String::new(), |m| format!("; the best portable model here is {m}"));
    Err(Error::Unsupported(format!("CPU model {model}: this host's KVM lacks {}{best}", names.join(", "))))
}

/// The model's table in KVM's form.
pub(crate) fn cpuid(features: Features, vcpu: u32, vcpus: u32, tsc_khz: u64) -> Result<CpuId> {
    let entries: Vec<_> = model::cpuid_table(features, vcpu, vcpus, tsc_khz)
        .into_iter()
        .map(|CpuidEntry { leaf, subleaf, regs: [eax, ebx, ecx, edx] }| kvm_cpuid_entry2 {
            function: leaf,
            index: subleaf.unwrap_or(0),
            flags: if subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|e| Error::Host(format!("CPUID table: {e:?}")))
}

/// What the log says of a KVM that shows the guest features beyond those it was given; none is as it should be.
pub(crate) fn beyond(shown: &CpuId, features: Features) -> Option<String> {
    let extra = host_features(shown.as_slice(), false).missing_in(features);
    let names: Vec<_> = extra.iter().map(|f| f.name()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "this host's KVM shows the guest CPU features beyond its model: {}; a guest that uses them goes on nowhere else",
            names.join(", ")
        )
    })
}

fn spare_vm(host: &HostKvm) -> Result<VmFd> {
    let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).take();
    match spare {
        Some((pid, vm)) if pid == std::process::id() => Ok(vm),
        _ => host.kvm.create_vm().map_err(failed("KVM_CREATE_VM")),
    }
}

/// True if KVM takes the two frequencies, in kHz, as one.
pub(crate) fn same_frequency(a: u64, b: u64) -> bool {
    u128::from(a.abs_diff(b)) * 1_000_000 <= u128::from(b) * u128::from(TOLERANCE_PPM)
}

/// What a guest's TSC runs at (as it is told), and whether KVM must scale for that.
fn frequency(config: &VmConfig, host_khz: u64, scaling: bool) -> Result<(u64, bool)> {
    match config.tsc_khz {
        None => Ok((host_khz, false)),
        Some(khz) if same_frequency(khz, host_khz) => Ok((khz, false)),
        Some(khz) if scaling && u32::try_from(khz).is_ok() => Ok((khz, true)),
        Some(_) if config.allow_tsc_mismatch => Ok((host_khz, false)),
        Some(khz) => Err(Error::Unsupported(format!(
            "the guest's TSC runs at {khz} kHz and this host's at {host_khz} kHz, and its KVM cannot scale: \
             set allow_tsc_mismatch to go on with the host's frequency"
        ))),
    }
}

/// A list of system calls: what running, kicking and dropping a vCPU makes, and then what is named.
macro_rules! with_vcpu_calls {
    ($($more:literal),*) => {
        &[
            "ioctl",
            "gettid",
            "getpid",
            "tgkill",
            "rt_sigprocmask",
            "rt_sigtimedwait",
            "rt_sigreturn",
            "clock_gettime",
            "futex",
            "mmap",
            "mprotect",
            "madvise",
            "munmap",
            "brk",
            "close",
            "fcntl",
            $($more),*
        ]
    };
}
/// What the control thread makes once the VM runs. ioctl: all of it. gettid, tgkill, getpid: kicks. clock_gettime: where the
/// vDSO has none. clock_nanosleep: a TSC that must not go back (time.rs). munmap, close, fcntl (std's check of what it
/// closes, in debug builds): the end of a vCPU or VM. mmap, mprotect, madvise, brk: the allocator.
const CALLS: &[&str] = with_vcpu_calls!["clock_nanosleep"];
/// rt_sig*: taking a kick's signal in.
const VCPU_CALLS: &[&str] = with_vcpu_calls![];
/// An interrupt line kicks a vCPU.
const DEVICE_CALLS: &[&str] = &["ioctl", "gettid", "getpid", "tgkill", "futex"];
/// A list of ioctl requests: running a vCPU, raising its interrupts, its state; and then what is named.
macro_rules! with_vcpu_requests {
    ($($more:ident),*) => {
        &[
            sys::RUN,
            sys::SET_SIGNAL_MASK,
            sys::SIGNAL_MSI,
            sys::SET_GSI_ROUTING,
            sys::NMI,
            sys::GET_REGS,
            sys::SET_REGS,
            sys::GET_SREGS,
            sys::SET_SREGS,
            sys::GET_SREGS2,
            sys::SET_SREGS2,
            sys::GET_MSRS,
            sys::SET_MSRS,
            sys::GET_LAPIC,
            sys::SET_LAPIC,
            sys::GET_MP_STATE,
            sys::SET_MP_STATE,
            sys::GET_VCPU_EVENTS,
            sys::SET_VCPU_EVENTS,
            sys::GET_DEBUGREGS,
            sys::SET_DEBUGREGS,
            sys::GET_XSAVE,
            sys::SET_XSAVE,
            sys::GET_XCRS,
            sys::SET_XCRS,
            sys::GET_TSC_KHZ,
            sys::SET_TSC_KHZ,
            $(sys::$more),*
        ]
    };
}
const REQUESTS: &[u64] = with_vcpu_requests![
    GET_DIRTY_LOG,
    CLEAR_DIRTY_LOG,
    SET_USER_MEMORY_REGION,
    IRQFD,
    IOEVENTFD,
    GET_CLOCK,
    SET_CLOCK,
    GET_DEVICE_ATTR,
    SET_DEVICE_ATTR
];
/// RUN and the state of vCPUs; a device's register may raise an interrupt or move its route. Nothing of the VM's memory.
const VCPU_REQUESTS: &[u64] = with_vcpu_requests![];
const DEVICE_REQUESTS: &[u64] = &[sys::SIGNAL_MSI, sys::SET_GSI_ROUTING, sys::NMI];

impl Backend for KvmBackend {
    type Vm = KvmVm;

    const DESCRIPTOR: Descriptor = Descriptor {
        name: "kvm",
        summary: "Linux KVM with split irqchip",
        version: env!("CARGO_PKG_VERSION"),
        models: &[Model::X86_64, Model::V2, Model::V3, Model::Host],
        system_calls: CALLS,
        ioctls: REQUESTS,
        vcpu_calls: VCPU_CALLS,
        vcpu_ioctls: VCPU_REQUESTS,
        device_calls: DEVICE_CALLS,
        device_ioctls: DEVICE_REQUESTS,
        device_nodes: &["/dev/kvm"],
        rank: 100,
    };

    fn probe() -> Result<Probe> {
        let host = host_kvm()?;
        let vm = spare_vm(host)?;
        let tsc_khz = sys::tsc_khz(vm.as_raw_fd()).map_err(failed("KVM_GET_TSC_KHZ"))?;
        *SPARE.lock().unwrap_or_else(PoisonError::into_inner) = Some((std::process::id(), vm));
        let models = Model::PORTABLE
            .into_iter()
            .chain([Model::Host])
            .filter(|m| model_features(*m, host.features).is_ok())
            .collect();
        Ok(Probe {
            max_vcpus: host.max_vcpus,
            models,
            tsc_khz,
            tsc_scaling: host.tsc_scaling,
            host_features: model_features(Model::Host, host.features).ok(),
        })
    }

    fn create_vm(config: &VmConfig, host: Host) -> Result<KvmVm> {
        let kvm = host_kvm()?;
        let most = kvm.max_vcpus;
        if config.vcpus > most {
            return Err(Error::Unsupported(format!("{} vCPUs: KVM has at most {most} here", config.vcpus)));
        }
        let signal = config.kick_signal.ok_or_else(|| {
            Error::Unsupported(
                "KVM needs a signal to get a vCPU out of the guest: reserve one in VmConfig.kick_signal"
                    .into(),
            )
        })?;
        if !(1..=64).contains(&signal) {
            return Err(Error::Invalid(format!("kick_signal {signal} is no signal")));
        }
        let features = model_features(config.model, kvm.features)?;
        let fd = spare_vm(kvm)?;
        let host_khz = sys::tsc_khz(fd.as_raw_fd()).map_err(failed("KVM_GET_TSC_KHZ"))?;
        let (tsc_khz, scaled) = frequency(config, host_khz, kvm.tsc_scaling)?;
        KvmVm::new(kvm, fd, config, host, features, signal, (tsc_khz, scaled, host_khz))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_features_are_named() {
        let host = Model::X86_64.features().unwrap();
        let text = model_features(Model::V2, host).unwrap_err().to_string();
        assert!(text.contains("sse4.2") && text.contains("best portable model here is x86-64"), "{text}");
        assert!(model_features(Model::X86_64, host).is_ok());
    }

    #[test]
    fn another_frequency_names_both_and_the_flag() {
        let mut config = VmConfig {
            vcpus: 1,
            model: Model::X86_64,
            tsc_khz: Some(1_000_000),
            allow_tsc_mismatch: false,
            kick_signal: None,
        };
        let text = frequency(&config, 2_600_000, false).unwrap_err().to_string();
        assert!(
            text.contains("1000000") && text.contains("2600000") && text.contains("allow_tsc_mismatch"),
            "{text}"
        );
        assert!(matches!(frequency(&config, 2_600_000, true), Ok((1_000_000, true))));
        config.allow_tsc_mismatch = true;
        assert!(matches!(frequency(&config, 2_600_000, false), Ok((2_600_000, false))));
        config.tsc_khz = Some(2_600_100);
        assert!(matches!(frequency(&config, 2_600_000, false), Ok((2_600_100, false))));
    }
}
