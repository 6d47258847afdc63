//! A backend taken over by its guest: whatever it tries from a vCPU or device thread ends the process and is named in the log.
//!
//! The backend is `tests/hostile-backend`; each attempt is made in a process of its own, by running this test program
//! again.

use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::{Scratch, program};

use godwit_abi::{self as abi, BackendTable, EntryFn, ErrorText, Exit, HostTable, Text, VmConfig};
use godwit_vmm::sandbox::{self, BackendNeeds, Kind, Policy, handler};

const CHILD: &str = "GODWIT_SANDBOX_CHILD";

/// The plugin's file, built if this package is tested alone.
fn plugin() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = program("jail-probe").unwrap().with_file_name("libgodwit_backend_hostile.so");
        if std::env::var_os(CHILD).is_none() {
            let built = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "-p", "godwit-plugin-hostile"])
                .status();
            assert!(path.is_file(), "the hostile backend is not built: {built:?}");
        }
        path
    })
}

unsafe extern "C" fn pio_read(_: *mut c_void, _: u32, _: u32, _: u32) -> u64 {
    0
}
unsafe extern "C" fn write(_: *mut c_void, _: u32, _: u32, _: u32, _: u64) {}
unsafe extern "C" fn mmio_read(_: *mut c_void, _: u32, _: u64, _: u32) -> u64 {
    0
}
unsafe extern "C" fn mmio_write(_: *mut c_void, _: u32, _: u64, _: u32, _: u64) {}
unsafe extern "C" fn eoi(_: *mut c_void, _: u32) {}
unsafe extern "C" fn extint_ack(_: *mut c_void) -> i32 {
    -1
}
unsafe extern "C" fn log(_: *mut c_void, _: u32, _: Text) {}

fn text(t: Text) -> &'static str {
    // SAFETY: texts of the descriptor live as long as the process.
    let bytes = unsafe { std::slice::from_raw_parts(t.ptr, usize::try_from(t.len).unwrap()) };
    std::str::from_utf8(bytes).unwrap()
}

/// What a pointer into the backend needs to go to a thread.
#[derive(Clone, Copy)]
struct Handle(*mut c_void);
// SAFETY: the contract lets one thread at a time use it, which is what is done here.
unsafe impl Send for Handle {}

impl Handle {
    fn get(self) -> *mut c_void {
        self.0
    }
}

/// In the child: load the backend as the VMM does, then run it on a thread with its filter.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn child() {
    let Ok(kind) = std::env::var(CHILD) else { return };
    // SAFETY: a plugin of ours.
    let library = unsafe { libloading::Library::new(plugin()) }.unwrap();
    // SAFETY: the symbol's type is the contract's.
    let entry = unsafe { library.get::<EntryFn>(abi::ENTRY_SYMBOL.to_bytes_with_nul()) }.unwrap();
    // SAFETY: the entry point takes nothing; its table lives as long as the process.
    let table: &'static BackendTable = unsafe { &*entry() };
    // SAFETY: so does the descriptor and all it points to.
    let (calls, ioctls) = unsafe {
        let d = &*table.descriptor;
        let calls =
            std::slice::from_raw_parts(d.system_calls.ptr, usize::try_from(d.system_calls.len).unwrap());
        let ioctls: &[u64] = match d.ioctls_len {
            0 => &[],
            n => std::slice::from_raw_parts(d.ioctls, usize::try_from(n).unwrap()),
        };
        (calls, ioctls)
    };
    let needs = match BackendNeeds::new(calls.iter().map(|t| text(*t)), ioctls) {
        Ok(needs) => needs,
        Err(error) => {
            eprintln!("refused: {error}");
            std::process::exit(2);
        }
    };
    sandbox::prepare(None).unwrap();
    assert!(sandbox::choose(Policy::builtin(&needs).unwrap()));
    let host = HostTable {
        size: u32::try_from(size_of::<HostTable>()).unwrap(),
        reserved: 0,
        ctx: std::ptr::null_mut(),
        pio_read: Some(pio_read),
        pio_write: Some(write),
        mmio_read: Some(mmio_read),
        mmio_write: Some(mmio_write),
        eoi: Some(eoi),
        extint_ack: Some(extint_ack),
        log: Some(log),
    };
    let model = "x86-64";
    let config = VmConfig {
        size: u32::try_from(size_of::<VmConfig>()).unwrap(),
        vcpus: 1,
        model: Text { ptr: model.as_ptr(), len: model.len() as u64 },
        tsc_khz: 0,
        flags: 0,
        kick_signal: 0,
        reserved: 0,
    };
    let mut buffer = [0u8; 256];
    let mut error = ErrorText {
        size: u32::try_from(size_of::<ErrorText>()).unwrap(),
        reserved: 0,
        ptr: buffer.as_mut_ptr(),
        cap: 256,
        len: 0,
    };
    let (mut vm, mut vcpu) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: as the contract says, from one thread, with live arguments.
    unsafe {
        assert_eq!(
            table.vm_create.unwrap()(&raw const config, &raw const host, &raw mut vm, &raw mut error),
            abi::OK
        );
        assert_eq!(table.vcpu_create.unwrap()(vm, 0, &raw mut vcpu, &raw mut error), abi::OK);
        // Sticky: an honest run comes back at once.
        table.vcpu_kick.unwrap()(vcpu);
    }
    let (vm, vcpu) = (Handle(vm), Handle(vcpu));
    let device = kind == "device";
    let (signal_msi, run) = (table.vm_signal_msi.unwrap(), table.vcpu_run.unwrap());
    std::thread::spawn(move || {
        let (kind, name) = if device { (Kind::Device, "devices") } else { (Kind::Vcpu, "vcpu 0") };
        sandbox::enter(kind, name).unwrap();
        let mut error = ErrorText { size: 32, reserved: 0, ptr: std::ptr::null_mut(), cap: 0, len: 0 };
        let mut exit = Exit { size: 8, reason: 0 };
        // SAFETY: as the contract says for each of the two threads.
        let result = unsafe {
            if device {
                signal_msi(vm.get(), 0xfee0_0000, 0x41, &raw mut error)
            } else {
                run(vcpu.get(), &raw mut exit, &raw mut error)
            }
        };
        // SAFETY: ends the process, past the test runner.
        unsafe { libc::_exit(if result == abi::OK { 77 } else { 78 }) }
    })
    .join()
    .unwrap();
}

fn attempt(thread: &str, told: &str) -> Output {
    plugin();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, thread)
        .env("GODWIT_HOSTILE", told)
        .output()
        .unwrap()
}

fn available(test: &str) -> bool {
    let out = attempt("vcpu", "");
    if out.status.code() != Some(77) {
        eprintln!("SKIPPED {test}: no seccomp filters here: {}", String::from_utf8_lossy(&out.stderr));
        return false;
    }
    true
}

#[test]
fn whatever_a_stolen_thread_tries_ends_the_process_and_is_named() {
    if !available("whatever_a_stolen_thread_tries_ends_the_process_and_is_named") {
        return;
    }
    let table = [
        ("execve", "execve"),
        ("open", "openat"),
        ("socket", "socket"),
        ("ptrace", "ptrace"),
        ("mprotect", "mprotect"),
        ("mmap", "mmap"),
        ("kill", "kill"),
        ("tgkill", "tgkill"),
        ("ioctl", "ioctl"),
        ("ioctl-tty", "ioctl"),
    ];
    for (thread, entry, name) in [("vcpu", "run", "vcpu 0"), ("device", "msi", "devices")] {
        for (what, call) in table {
            let out = attempt(thread, &format!("{entry}:{what}"));
            let text = String::from_utf8_lossy(&out.stderr).into_owned();
            assert_eq!(out.status.code(), Some(handler::EXIT_BAD_SYSCALL), "{thread} {what}: {text}");
            let wanted =
                format!("the {thread} thread \"{name}\" made the forbidden system call {call} (number ");
            assert!(text.contains(&wanted), "{thread} {what}: {text}");
        }
    }
}

#[test]
fn a_backend_that_asks_for_too_much_is_refused() {
    for (told, wanted) in [
        ("greedy-call", "refused: the backend asks for the system call execve"),
        ("greedy-ioctl", "refused: the backend asks for the ioctl request 0x5412"),
    ] {
        let out = attempt("vcpu", told);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(2) && text.contains(wanted), "{told}: {text}");
    }
}

#[test]
fn a_panic_in_the_backend_is_an_error_and_no_crash() {
    if !available("a_panic_in_the_backend_is_an_error_and_no_crash") {
        return;
    }
    // Under the filter: printing the panic and unwinding must be possible there.
    for (thread, told) in [("vcpu", "panic:run"), ("device", "panic:signal_msi")] {
        let out = attempt(thread, told);
        assert_eq!(out.status.code(), Some(78), "{told}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

/// Firecracker's compiled form: programs of one instruction that answers every call alike.
fn compiled(answers: [(&str, u32); 3]) -> Vec<u8> {
    let mut out = 3u64.to_le_bytes().to_vec();
    for (name, answer) in answers {
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(1u64.to_le_bytes());
        // BPF_RET | BPF_K
        out.extend((u64::from(answer) << 32 | 6).to_le_bytes());
    }
    out
}

#[test]
fn filters_of_ones_own_are_taken_as_json_and_compiled() {
    use std::os::unix::process::ExitStatusExt;
    let test = "filters_of_ones_own_are_taken_as_json_and_compiled";
    if !available(test) {
        return;
    }
    let godwit = match program("godwit").and_then(|g| Plugin::usable("interp").map(|_| g)) {
        Ok(godwit) => godwit,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let scratch = Scratch::new(test);
    let config = scratch.config("hello", 16, "x86-64", "");
    let filter = scratch.path("filter");
    let run = |bytes: &[u8]| {
        std::fs::write(&filter, bytes).unwrap();
        let mut command = Command::new(&godwit);
        command.args(["--no-api", "--backend", "interp", "--config-file"]).arg(&config);
        command.arg("--seccomp-filter").arg(&filter).output().unwrap()
    };
    // What naming a forbidden call takes is always allowed.
    let end = r#"{"syscall":"write"},{"syscall":"exit_group"}"#;
    let thread =
        |answer: &str| format!(r#"{{"default_action":"{answer}","filter_action":"allow","filter":[{end}]}}"#);
    let json = |vcpu: &str| {
        format!(r#"{{"vmm":{},"api":{},"vcpu":{}}}"#, thread("allow"), thread("allow"), thread(vcpu))
    };
    let said = |out: &Output| String::from_utf8_lossy(&[&out.stdout[..], &out.stderr].concat()).into_owned();
    let open = run(json("allow").as_bytes());
    assert!(open.status.success() && said(&open).contains("Hello"), "{}", said(&open));
    let trap = run(json("trap").as_bytes());
    assert_eq!(trap.status.code(), Some(handler::EXIT_BAD_SYSCALL), "{}", said(&trap));
    assert!(
        said(&trap).contains("the vcpu thread \"vcpu0\" made the forbidden system call"),
        "{}",
        said(&trap)
    );

    if cfg!(target_endian = "big") {
        return println!("SKIPPED {test}, compiled: it is for little-endian hosts");
    }
    let allow = libc::SECCOMP_RET_ALLOW;
    let open = run(&compiled([("vmm", allow), ("api", allow), ("vcpu", allow)]));
    assert!(open.status.success() && said(&open).contains("Hello"), "{}", said(&open));
    let kill = run(&compiled([("vmm", allow), ("api", allow), ("vcpu", libc::SECCOMP_RET_KILL_PROCESS)]));
    assert_eq!(kill.status.signal(), Some(libc::SIGSYS), "{}", said(&kill));
    let cut = run(&compiled([("vmm", allow), ("api", allow), ("vcpu", allow)])[..40]);
    assert!(cut.status.code() == Some(1) && said(&cut).contains("it is cut short"), "{}", said(&cut));
}
