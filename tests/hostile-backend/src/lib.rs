//! A backend that misbehaves as the environment variable `GODWIT_HOSTILE` tells it: it stands for a vCPU or device thread that a
//! guest has taken over.
//!
//! - `run:CALL` makes a forbidden system call from `vcpu_run`, `msi:CALL` from `vm_signal_msi`: then the vCPU has set the serial
//!   port up so that what is typed comes as a message-signalled interrupt, from the device thread;
//! - `panic:ENTRY` panics in that entry point;
//! - `greedy-call`, `greedy-ioctl` declare more than the ceiling allows;
//! - nothing: an idle CPU that waits for its kick.

use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use godwit_sdk::state::{
    ActivityV1, ClockV1, CpuState, DebugV1, EventsV1, FpuV1, LapicV1, Model, MsrsV1, RegsV1, SystemV1, TscV1,
};
use godwit_sdk::{
    Backend, Descriptor, Exit, Host, Kick, MemorySlot, MsiRoute, Probe, Result, Vcpu, Vm, VmConfig, abi,
};

fn told(prefix: &str) -> Option<&'static str> {
    static TOLD: OnceLock<String> = OnceLock::new();
    TOLD.get_or_init(|| std::env::var("GODWIT_HOSTILE").unwrap_or_default()).strip_prefix(prefix)
}

fn panic_if(entry: &str) {
    assert!(told("panic:") != Some(entry), "told to panic in {entry}");
}

/// Makes the forbidden call. Comes back only if it was allowed, which is what the test must not see.
fn misbehave(call: &str) {
    let null = ptr::null::<libc::c_char>();
    // SAFETY: each call is harmless if allowed; all memory it is given is constant.
    unsafe {
        match call {
            "execve" => drop(libc::execve(c"/bin/true".as_ptr(), [null].as_ptr(), [null].as_ptr())),
            "open" => drop(libc::syscall(
                libc::SYS_openat,
                libc::AT_FDCWD,
                c"/etc/passwd".as_ptr(),
                libc::O_RDWR,
                0,
            )),
            "socket" => drop(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)),
            "ptrace" => drop(libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0)),
            "mprotect" => drop(libc::mprotect(ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_EXEC)),
            "mmap" => {
                let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
                libc::mmap(ptr::null_mut(), 4096, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            }
            "kill" => drop(libc::kill(1, 0)),
            "tgkill" => drop(libc::syscall(libc::SYS_tgkill, 1, 1, 0)),
            // KVM_CREATE_VM: never granted to a plugin's threads. TIOCSTI: types into the terminal.
            "ioctl" => drop(libc::ioctl(0, 0xae01)),
            "ioctl-tty" => drop(libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr())),
            other => panic!("no such misbehaviour: {other}"),
        }
    }
}

struct Hostile;

impl Backend for Hostile {
    type Vm = HostileVm;

    const DESCRIPTOR: Descriptor = Descriptor {
        name: "hostile",
        summary: "misbehaves as it is told",
        version: env!("CARGO_PKG_VERSION"),
        models: &[Model::X86_64],
        system_calls: &["futex", "nanosleep", "clock_nanosleep", "ioctl"],
        // KVM_RUN.
        ioctls: &[0xae80],
        vcpu_calls: &["futex", "nanosleep", "clock_nanosleep", "ioctl"],
        vcpu_ioctls: &[0xae80],
        device_calls: &["futex"],
        device_ioctls: &[],
        device_nodes: &[],
        rank: 0,
    };

    fn probe() -> Result<Probe> {
        panic_if("probe");
        Ok(Probe {
            max_vcpus: 32,
            models: vec![Model::X86_64],
            tsc_khz: 1_000_000,
            tsc_scaling: true,
            host_features: None,
        })
    }

    fn create_vm(_: &VmConfig, host: Host) -> Result<HostileVm> {
        panic_if("create");
        Ok(HostileVm { host })
    }
}

/// Asks for more than any plugin may have; otherwise the same.
struct Greedy<const IOCTL: bool>;

impl<const IOCTL: bool> Backend for Greedy<IOCTL> {
    type Vm = HostileVm;

    const DESCRIPTOR: Descriptor = Descriptor {
        system_calls: if IOCTL { &["ioctl"] } else { &["futex", "execve"] },
        ioctls: if IOCTL { &[0x5412] } else { &[] },
        ..Hostile::DESCRIPTOR
    };

    fn probe() -> Result<Probe> {
        Hostile::probe()
    }

    fn create_vm(config: &VmConfig, host: Host) -> Result<HostileVm> {
        Hostile::create_vm(config, host)
    }
}

/// The entry symbol of the backend contract.
// SAFETY: the symbol's name is the contract's own and nothing else here exports it.
#[unsafe(no_mangle)]
pub extern "C" fn godwit_backend_entry() -> *const abi::BackendTable {
    match told("") {
        Some("greedy-call") => godwit_sdk::entry::<Greedy<false>>(),
        Some("greedy-ioctl") => godwit_sdk::entry::<Greedy<true>>(),
        _ => godwit_sdk::entry::<Hostile>(),
    }
}

struct HostileVm {
    host: Host,
}

impl Vm for HostileVm {
    type Vcpu = HostileVcpu;

    fn map_memory(&self, _: MemorySlot) -> Result<()> {
        panic_if("map_memory");
        Ok(())
    }

    fn unmap_memory(&self, _: u32) -> Result<()> {
        Ok(())
    }

    fn set_dirty_log(&self, _: u32, _: bool) -> Result<()> {
        panic_if("set_dirty_log");
        Ok(())
    }

    fn take_dirty_log(&self, _: u32, _: &mut [u64]) -> Result<()> {
        panic_if("take_dirty_log");
        Ok(())
    }

    fn memory_written(&self, _: u64, _: u64) {
        panic_if("memory_written");
    }

    fn signal_msi(&self, _: u64, _: u32) -> Result<()> {
        panic_if("signal_msi");
        if let Some(call) = told("msi:") {
            misbehave(call);
        }
        Ok(())
    }

    fn set_routes(&self, _: &[MsiRoute]) -> Result<()> {
        panic_if("set_routes");
        Ok(())
    }

    fn set_extint(&self, _: bool) {
        panic_if("set_extint");
    }

    fn inject_nmi(&self, _: u32) -> Result<()> {
        panic_if("inject_nmi");
        Ok(())
    }

    fn stop_clock(&self) -> Result<()> {
        panic_if("stop_clock");
        Ok(())
    }

    fn start_clock(&self, _: u64) -> Result<()> {
        panic_if("start_clock");
        Ok(())
    }

    fn save_clock(&self) -> Result<ClockV1> {
        panic_if("save_clock");
        Ok(ClockV1 { tsc_khz: 1_000_000, tsc: 0, kvmclock_ns: 0, realtime_ns: 0 })
    }

    fn load_clock(&self, _: &ClockV1) -> Result<()> {
        panic_if("load_clock");
        Ok(())
    }

    fn create_vcpu(&self, id: u32) -> Result<HostileVcpu> {
        panic_if("create_vcpu");
        let activity = if id == 0 { ActivityV1::Running } else { ActivityV1::Uninitialized };
        let state = CpuState {
            regs: RegsV1 { rip: 0xfff0, rflags: 2, ..Default::default() },
            system: SystemV1::reset(),
            msrs: MsrsV1::reset(id == 0),
            debug: DebugV1::default(),
            fpu: FpuV1::default(),
            avx: None,
            events: EventsV1 { activity, ..Default::default() },
            lapic: LapicV1::reset(id),
            tsc: TscV1::default(),
        };
        Ok(HostileVcpu { kick: Arc::default(), host: self.host, listens: told("msi:").is_none(), state })
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Kick for Flag {
    fn kick(&self) {
        self.0.store(true, Ordering::Release);
    }
}

struct HostileVcpu {
    kick: Arc<Flag>,
    host: Host,
    state: CpuState,
    /// The serial port is set up.
    listens: bool,
}

impl HostileVcpu {
    /// What a guest's driver does to hear of each character: the UART's interrupt on, and the I/O APIC's pin 4 unmasked.
    fn listen(&mut self) {
        const IOAPIC: u64 = 0xfec0_0000;
        self.host.pio_write(0, 0x3f9, 1, 1);
        for (register, value) in [(0x19, 0), (0x18, 0x41)] {
            self.host.mmio_write(0, IOAPIC, 4, register);
            self.host.mmio_write(0, IOAPIC + 0x10, 4, value);
        }
        self.listens = true;
    }
}

impl Vcpu for HostileVcpu {
    fn run(&mut self) -> Result<Exit> {
        panic_if("run");
        if let Some(call) = told("run:") {
            misbehave(call);
        }
        if !self.listens {
            self.listen();
        }
        while !self.kick.0.swap(false, Ordering::Acquire) {
            if told("msi:").is_some() {
                // What came before it listened would hold the line up for good.
                self.host.pio_read(0, 0x3f8, 1);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(Exit::Kicked)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        panic_if("kicker");
        self.kick.clone()
    }

    fn save(&mut self) -> Result<CpuState> {
        panic_if("save");
        Ok(self.state.clone())
    }

    fn load(&mut self, state: &CpuState) -> Result<()> {
        panic_if("load");
        self.state = state.clone();
        Ok(())
    }
}
