//! Snapshots of real guests, from outside: with devices and from one CPU backend to the other, merged, cloned, served by a page
//! fault handler, and written on the edge of a disaster.

use godwit_guests::bench;
use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::mount::{Mounted, run};
use godwit_tests::harness::{PATIENCE, Process, Scratch, ask, check_lines, program, room};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

struct Stage {
    godwit: PathBuf,
    scratch: Scratch,
}

impl Stage {
    fn set(test: &str, backends: &[&str]) -> Option<Stage> {
        let usable = backends.iter().try_for_each(|b| Plugin::usable(b).map(drop));
        match usable.and_then(|()| program("godwit")) {
            Ok(godwit) => Some(Stage { godwit, scratch: Scratch::new(test) }),
            Err(why) => {
                println!("SKIPPED {test}: {why}");
                None
            }
        }
    }

    fn text(&self, name: &str) -> String {
        self.scratch.path(name).to_str().unwrap().to_owned()
    }

    fn fresh(&self, name: &str, backend: &str) -> Vm {
        self.start(name, backend, &[])
    }

    /// A counter that runs, with `mib` of memory.
    fn counter(&self, name: &str, backend: &str, mib: u64, args: &str) -> Vm {
        let config = self.scratch.config("counter", mib, "x86-64", args);
        let mut spec: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
        spec["machine-config"]["track_dirty_pages"] = true.into();
        std::fs::write(&config, spec.to_string()).unwrap();
        let vm = self.start(name, backend, &["--config-file", config.to_str().unwrap()]);
        vm.process.wait_lines(3).unwrap();
        vm
    }

    fn start(&self, name: &str, backend: &str, more: &[&str]) -> Vm {
        let socket = self.scratch.path(name);
        let mut args = vec!["--api-sock", socket.to_str().unwrap(), "--backend", backend];
        args.extend(more);
        let process = Process::start(&self.godwit, &args, "");
        let end = Instant::now() + PATIENCE;
        while ask(&socket, "GET", "/", "").is_err() {
            assert!(Instant::now() < end, "no API: {}", process.err());
            std::thread::sleep(Duration::from_millis(2));
        }
        Vm { process, socket }
    }

    /// Makes `busy.elf`, or says that the test is skipped.
    fn busy_kernel(&self, test: &str) -> bool {
        let program = match bench::compile_virtio(&self.scratch.path("")) {
            Ok(program) => program,
            Err(why) if cfg!(target_arch = "x86_64") => panic!("{why}"),
            Err(why) => {
                println!("SKIPPED {test}: {why}");
                return false;
            }
        };
        std::fs::write(self.text("busy.elf"), bench::image(&program).unwrap()).unwrap();
        true
    }

    fn files(&self, name: &str) -> Value {
        json!({"snapshot_path": self.text(&format!("{name}.state")), "mem_file_path": self.text(&format!("{name}.memory"))})
    }

    fn cli(&self, args: &[&str]) -> std::process::Output {
        Command::new(&self.godwit).args(args).output().unwrap()
    }
}

struct Vm {
    process: Process,
    socket: PathBuf,
}

impl Vm {
    fn does(&self, method: &str, path: &str, body: Value) {
        let (status, answer) = ask(&self.socket, method, path, &body.to_string()).unwrap();
        assert_eq!(status, 204, "{method} {path} {body}: {answer}; {}", self.process.err());
    }

    fn fault(&self, method: &str, path: &str, body: &Value) -> String {
        let (status, answer) = ask(&self.socket, method, path, &body.to_string()).unwrap();
        assert_eq!(status, 400, "{method} {path} {body}: {answer}");
        answer["fault_message"].as_str().unwrap().to_owned()
    }

    fn pause(&self) -> String {
        self.does("PATCH", "/vm", json!({"state": "Paused"}));
        // What a guest that stands still has said has come through the pipe when no more comes.
        loop {
            let before = self.process.text();
            std::thread::sleep(Duration::from_millis(200));
            if self.process.text() == before {
                return before;
            }
        }
    }

    fn resume(&self, lines: usize) {
        self.does("PATCH", "/vm", json!({"state": "Resumed"}));
        self.process.wait_lines(lines).unwrap();
    }

    fn load(&self, mut files: Value, more: Value) {
        files["resume_vm"] = true.into();
        files["allow_tsc_mismatch"] = true.into();
        for (name, value) in more.as_object().into_iter().flatten() {
            files[name] = value.clone();
        }
        self.does("PUT", "/snapshot/load", files);
    }
}

fn best() -> &'static str {
    if Plugin::usable("kvm").is_ok() { "kvm" } else { "interp" }
}

/// Diffs over a base, put together by the program, go on on either backend.
fn diffs(test: &str, first: &str, second: &str) {
    let Some(stage) = Stage::set(test, &[first, second]) else { return };
    let vm = stage.counter("a.sock", first, 64, "rate=20");
    let mut said = String::new();
    for name in ["base", "one", "two"] {
        std::fs::create_dir(stage.scratch.path(name)).unwrap();
        said = vm.pause();
        let kind = if name == "base" { "Full" } else { "Diff" };
        let (state, memory) = (stage.text(&format!("{name}/state")), stage.text(&format!("{name}/memory")));
        let create = json!({"snapshot_path": state, "mem_file_path": memory, "snapshot_type": kind});
        vm.does("PUT", "/snapshot/create", create);
        vm.resume(2);
    }
    let used = |name: &str| std::fs::metadata(stage.scratch.path(name)).unwrap().blocks() * 512;
    assert!(used("one/memory") < 8 << 20, "a diff is small: {}", used("one/memory"));
    let [base, one, two, all] = ["base", "one", "two", "all"].map(|n| stage.text(n));
    let refused = stage.cli(&["merge", &one, &two, &all]);
    assert!(!refused.status.success() && !Path::new(&all).exists());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Diff snapshot itself"), "{refused:?}");
    let merged = stage.cli(&["merge", &base, &one, &two, &all]);
    assert!(merged.status.success(), "{merged:?}");
    assert_eq!(std::fs::read_dir(&all).unwrap().count(), 2);
    assert!(used("all/memory") < 48 << 20, "holes stay holes: {}", used("all/memory"));
    drop(vm);
    let next = stage.fresh("b.sock", second);
    let restored = stage.cli(&["restore", "--api-sock", &stage.text("b.sock"), "--allow-tsc-mismatch", &all]);
    assert!(restored.status.success(), "{restored:?}");
    next.process.wait_lines(3).unwrap();
    check_lines(&[said, next.process.text()]);
}

#[test]
fn merged_diffs_of_kvm_go_on_in_the_interpreter() {
    diffs("merged_diffs_of_kvm_go_on_in_the_interpreter", "kvm", "interp");
}

#[test]
fn merged_diffs_of_the_interpreter_go_on_on_kvm() {
    diffs("merged_diffs_of_the_interpreter_go_on_on_kvm", "interp", "kvm");
}

#[test]
fn merged_diffs_go_on_in_the_interpreter() {
    diffs("merged_diffs_go_on_in_the_interpreter", "interp", "interp");
}

#[test]
fn twenty_clones_of_one_snapshot_run_at_once() {
    let test = "twenty_clones_of_one_snapshot_run_at_once";
    let backend = best();
    let Some(stage) = Stage::set(test, &[backend]) else { return };
    let vm = stage.counter("a.sock", backend, 64, "rate=5");
    let said = vm.pause();
    vm.does("PUT", "/snapshot/create", stage.files("s"));
    drop(vm);
    let before = std::fs::read(stage.text("s.memory")).unwrap();
    let clones: Vec<Vm> = (0..20).map(|i| stage.fresh(&format!("{i}.sock"), backend)).collect();
    clones.iter().for_each(|vm| vm.load(stage.files("s"), Value::Null));
    for vm in &clones {
        vm.process.wait_lines(3).unwrap();
        check_lines(&[said.clone(), vm.process.text()]);
    }
    assert!(std::fs::read(stage.text("s.memory")).unwrap() == before, "a clone has written to the snapshot");
}

/// A page fault handler as Firecracker's users write them: another process, the memory file, one page a fault.
struct Handler {
    end: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Handler {
    fn start(socket: &str, memory: &str) -> Handler {
        let listener = UnixListener::bind(socket).unwrap();
        let memory = File::open(memory).unwrap();
        let (end, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, count) = (Arc::clone(&end), Arc::clone(&served));
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut message = vec![0; 4096];
            let (n, uffd) = stream.recv_with_fd(&mut message).unwrap();
            serve(&mut uffd.expect("a descriptor"), &message[..n], &memory, &ended, &count);
        });
        Handler { end, served, thread: Some(thread) }
    }

    fn stop(mut self) -> u64 {
        self.end.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.served.load(Ordering::SeqCst)
    }
}

fn serve(uffd: &mut File, message: &[u8], memory: &File, end: &AtomicBool, served: &AtomicU64) {
    use std::os::fd::AsRawFd;
    // UFFDIO_COPY: destination, source, length, mode, result.
    const COPY: libc::c_ulong = 0xc028_aa03;
    let mappings: Value = serde_json::from_slice(message).unwrap();
    let number = |m: &Value, name: &str| m[name].as_u64().unwrap_or_else(|| panic!("{name} in {m}"));
    while !end.load(Ordering::SeqCst) {
        let mut poll = libc::pollfd { fd: uffd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        if unsafe { libc::poll(&mut poll, 1, 50) } < 1 {
            continue;
        }
        let mut event = [0u8; 32];
        match uffd.read(&mut event) {
            Ok(32) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
            // The guest has ended.
            _ => return,
        }
        assert_eq!(event[0], 0x12, "no page fault");
        let word = |at: usize| u64::from_ne_bytes(event[at..at + 8].try_into().unwrap());
        let found = mappings.as_array().unwrap().iter().find(|m| {
            let start = number(m, "base_host_virt_addr");
            (start..start + number(m, "size")).contains(&word(16))
        });
        let mapping = found.expect("a fault in guest memory");
        let page = number(mapping, "page_size");
        assert_eq!(number(mapping, "page_size_kib"), page);
        let address = word(16) & !(page - 1);
        let mut bytes = vec![0u8; page as usize];
        let offset = number(mapping, "offset") + address - number(mapping, "base_host_virt_addr");
        memory.read_exact_at(&mut bytes, offset).unwrap();
        let mut copy = [address, bytes.as_ptr() as u64, page, 0, 0];
        // SAFETY: the kernel reads `bytes` and writes the result into `copy`.
        let done = unsafe { libc::ioctl(uffd.as_raw_fd(), COPY as _, copy.as_mut_ptr()) };
        let error = std::io::Error::last_os_error();
        // Two vCPUs may want the same page.
        assert!(done == 0 || error.raw_os_error() == Some(libc::EEXIST), "UFFDIO_COPY: {error}");
        served.fetch_add(1, Ordering::SeqCst);
    }
}

fn by_page_faults(test: &str, backend: &str) {
    let Some(stage) = Stage::set(test, &[backend]) else { return };
    let vm = stage.counter("a.sock", backend, 64, "rate=20 fill=8");
    let said = vm.pause();
    vm.does("PUT", "/snapshot/create", stage.files("s"));
    drop(vm);
    let vm = stage.fresh("b.sock", backend);
    let uffd = |path: &str| {
        json!({"snapshot_path": stage.text("s.state"), "resume_vm": true,
               "mem_backend": {"backend_type": "Uffd", "backend_path": path}})
    };
    let why = vm.fault("PUT", "/snapshot/load", &uffd(&stage.text("nobody")));
    assert!(why.contains("nobody") && why.contains("page fault handler"), "{why}");
    let handler = Handler::start(&stage.text("h.sock"), &stage.text("s.memory"));
    let (status, answer) =
        ask(&vm.socket, "PUT", "/snapshot/load", &uffd(&stage.text("h.sock")).to_string()).unwrap();
    let fault = answer["fault_message"].as_str().unwrap_or_default();
    if fault.contains("userfaultfd") {
        return println!("SKIPPED {test}: {fault}");
    }
    assert_eq!(status, 204, "{answer}");
    vm.process.wait_lines(4).unwrap();
    check_lines(&[said.clone(), vm.process.text()]);
    // What was never touched is not zero: a snapshot of this one has all of it.
    let later = vm.pause();
    let touched = handler.served.load(Ordering::SeqCst);
    vm.does("PUT", "/snapshot/create", stage.files("t"));
    drop(vm);
    let served = handler.stop();
    assert!(touched > 0 && served > touched, "{touched} {served}");
    let vm = stage.fresh("c.sock", backend);
    vm.load(stage.files("t"), Value::Null);
    vm.process.wait_lines(4).unwrap();
    check_lines(&[said, later, vm.process.text()]);
    println!("{test}: {touched} pages were touched, {served} served");
}

#[test]
fn a_page_fault_handler_serves_memory_on_kvm() {
    by_page_faults("a_page_fault_handler_serves_memory_on_kvm", "kvm");
}

#[test]
fn a_page_fault_handler_serves_memory_of_the_interpreter() {
    by_page_faults("a_page_fault_handler_serves_memory_of_the_interpreter", "interp");
}

#[test]
fn a_writer_that_is_killed_leaves_the_good_snapshot() {
    let test = "a_writer_that_is_killed_leaves_the_good_snapshot";
    if let Err(why) = room(512) {
        return println!("SKIPPED {test}: {why}");
    }
    let backend = best();
    let Some(stage) = Stage::set(test, &[backend]) else { return };
    let vm = stage.counter("a.sock", backend, 512, "rate=20 fill=256");
    let said = vm.pause();
    vm.does("PUT", "/snapshot/create", stage.files("s"));
    let good = std::fs::read(stage.text("s.state")).unwrap();
    vm.resume(2);
    vm.pause();
    let (socket, body) = (vm.socket.clone(), stage.files("s").to_string());
    let writer = std::thread::spawn(move || ask(&socket, "PUT", "/snapshot/create", &body));
    let aside = stage.text("s.memory.tmp");
    let end = Instant::now() + PATIENCE;
    while std::fs::metadata(&aside).map_or(0, |m| m.blocks()) == 0 {
        assert!(
            Instant::now() < end && !writer.is_finished(),
            "the snapshot was written before it could be killed"
        );
    }
    drop(vm);
    let _ = writer.join();
    assert_eq!(std::fs::read(stage.text("s.state")).unwrap(), good, "the old state file is not what it was");
    let vm = stage.fresh("b.sock", backend);
    vm.load(stage.files("s"), Value::Null);
    vm.process.wait_lines(3).unwrap();
    vm.pause();
    check_lines(&[said, vm.process.text()]);
    // What the killed one has left goes with the next.
    assert!(Path::new(&aside).exists());
    vm.does("PUT", "/snapshot/create", stage.files("s"));
    assert!(!Path::new(&aside).exists() && stage.scratch.path("s.memory").exists());
}

#[test]
fn a_full_disk_leaves_the_good_snapshot_and_the_guest() {
    let test = "a_full_disk_leaves_the_good_snapshot_and_the_guest";
    let backend = best();
    let Some(stage) = Stage::set(test, &[backend]) else { return };
    let disk = stage.text("disk");
    std::fs::create_dir(&disk).unwrap();
    let _mounted = match Mounted::new(&["-t", "tmpfs", "-o", "size=40m", "godwit-test"], Path::new(&disk)) {
        Ok(mounted) => mounted,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let vm = stage.counter("a.sock", backend, 64, "rate=20 fill=24");
    let said = vm.pause();
    vm.does("PUT", "/snapshot/create", stage.files("disk/s"));
    vm.resume(2);
    vm.pause();
    let why = vm.fault("PUT", "/snapshot/create", &stage.files("disk/s"));
    assert!(why.contains("No space left") && why.contains("s.memory"), "{why}");
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 2, "litter");
    vm.resume(3);
    check_lines(&[vm.process.text()]);
    let clone = stage.fresh("b.sock", backend);
    clone.load(stage.files("disk/s"), Value::Null);
    clone.process.wait_lines(3).unwrap();
    check_lines(&[said, clone.process.text()]);
}

#[test]
fn people_have_commands_for_it() {
    let test = "people_have_commands_for_it";
    let backend = best();
    let Some(stage) = Stage::set(test, &[backend]) else { return };
    let vm = stage.counter("a.sock", backend, 64, "rate=20");
    let sock = stage.text("a.sock");
    let done = |args: &[&str]| {
        let output = stage.cli(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let listed: Value = serde_json::from_str(&done(&["ps", "--json"])).unwrap();
    let ours = listed.as_array().unwrap().iter().find(|v| v["pid"] == vm.process.id()).expect("listed");
    assert_eq!(
        (&ours["state"], &ours["backend"], &ours["mem_size_mib"]),
        (&json!("Running"), &json!(backend), &json!(64))
    );
    assert!(done(&["ps"]).contains(&sock) && done(&["ps", "-q"]).lines().any(|l| l == sock));
    let dir = stage.text("snap");
    done(&["pause", "--api-sock", &sock]);
    done(&["resume", "--api-sock", &sock]);
    for _ in 0..2 {
        // The second takes the place of the first.
        vm.process.wait_lines(1).unwrap();
        done(&["snapshot", "--api-sock", &sock, "--stay-paused", &dir]);
        done(&["resume", "--api-sock", &sock]);
    }
    std::fs::create_dir(stage.scratch.path("other")).unwrap();
    std::fs::write(stage.scratch.path("other/precious"), "").unwrap();
    let refused = stage.cli(&["snapshot", "--api-sock", &sock, &stage.text("other")]);
    assert!(!refused.status.success() && stage.scratch.path("other/precious").exists(), "{refused:?}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
    assert!(done(&["inspect", &dir]).contains("snapshot.devices"));
    assert!(done(&["--describe-snapshot", &format!("{dir}/state")]).starts_with('v'));
    assert!(done(&["--snapshot-version"]).starts_with('v'));
    let theirs = stage.text("firecrackers");
    std::fs::write(&theirs, [&0x0710_1984_8664_0000u64.to_le_bytes()[..], &[0; 64]].concat()).unwrap();
    let output = stage.cli(&["--describe-snapshot", &theirs]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("Firecracker"), "{output:?}");
    let next = stage.fresh("b.sock", backend);
    done(&["restore", "--api-sock", &stage.text("b.sock"), &dir]);
    next.process.wait_lines(2).unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = done(&["completions", shell]);
        assert!(script.contains("describe-snapshot") && script.contains("migrate"), "{shell}");
    }
    let script = stage.text("completions.bash");
    std::fs::write(&script, done(&["completions", "bash"])).unwrap();
    assert!(Command::new("bash").args(["-n", &script]).status().is_ok_and(|s| s.success()));
}

/// A busy guest with every device goes from one backend to the other by snapshots, to other paths each time.
fn busy(test: &str, backends: &[&str]) {
    let Some(stage) = Stage::set(test, backends) else { return };
    if !stage.busy_kernel(test) {
        return;
    }
    std::fs::write(stage.text("0.disk"), vec![0; 1 << 20]).unwrap();
    // SAFETY: moves only this thread, which ends with the test, into a network namespace of its own.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return println!("SKIPPED {test}: no right to make a network namespace");
    }
    let mut commands = vec![
        "link add br0 type bridge".to_owned(),
        "addr add 10.0.2.2/24 dev br0".into(),
        "link set br0 up".into(),
    ];
    for i in 0..=backends.len() {
        commands.extend([format!("tuntap add tap{i} mode tap"), format!("link set tap{i} master br0 up")]);
    }
    for args in commands {
        let done = Command::new("ip").args(args.split(' ')).status().is_ok_and(|s| s.success());
        if !done {
            return println!("SKIPPED {test}: ip {args}");
        }
    }
    let config = json!({
        "boot-source": {"kernel_image_path": stage.text("busy.elf"), "boot_args": "busy=1 gateway=10.0.2.2 address=10.0.2.15"},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128, "cpu_model": "x86-64"},
        "drives": [{"drive_id": "d", "path_on_host": stage.text("0.disk"), "is_root_device": false}],
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:0a:00:02:0f"}],
        "vsock": {"guest_cid": 3, "uds_path": stage.text("0.vsock")},
        "entropy": {},
        "balloon": {"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 1},
    });
    let mut config = config;
    config["metrics"] = json!({"metrics_path": stage.text("metrics")});
    std::fs::write(stage.text("busy.json"), config.to_string()).unwrap();
    let mut vm = stage.start("0.sock", backends[0], &["--config-file", &stage.text("busy.json")]);
    let (mut all, mut rounds) = (String::new(), 0);
    let wait = |vm: &Vm| {
        let end = Instant::now() + PATIENCE;
        while vm.process.text().matches("busy n=").count() < 4 {
            assert!(Instant::now() < end, "silent: {}; {}", vm.process.text(), vm.process.err());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    for (i, backend) in (1..).zip(backends.iter().cycle().skip(1).take(backends.len())) {
        wait(&vm);
        if i == 1 {
            vm.does("PUT", "/actions", json!({"action_type": "FlushMetrics"}));
            let metrics = std::fs::read_to_string(stage.text("metrics")).unwrap();
            let line: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
            for (group, name) in [
                ("net_eth0", "tx_packets_count"),
                ("net", "rx_bytes_count"),
                ("block_d", "write_bytes"),
                ("block", "read_count"),
                ("uart", "write_count"),
            ] {
                assert!(line[group][name].as_u64() > Some(0), "{group} {name}: {line}");
            }
            assert!(line["vsock"].is_object() && line["balloon"].is_object() && line["entropy"].is_object());
        }
        all.push_str(&vm.pause());
        vm.does("PUT", "/snapshot/create", stage.files(&i.to_string()));
        std::fs::copy(stage.text(&format!("{}.disk", i - 1)), stage.text(&format!("{i}.disk"))).unwrap();
        drop(vm);
        vm = stage.fresh(&format!("{i}.sock"), backend);
        let there = json!({
            "network_overrides": [{"iface_id": "eth0", "host_dev_name": format!("tap{i}")}],
            "drive_overrides": [{"drive_id": "d", "path_on_host": stage.text(&format!("{i}.disk"))}],
            "vsock_override": {"uds_path": stage.text(&format!("{i}.vsock"))},
        });
        let mut wrong = stage.files(&i.to_string());
        wrong["network_overrides"] = json!([{"iface_id": "eth7", "host_dev_name": "tap0"}]);
        assert!(vm.fault("PUT", "/snapshot/load", &wrong).contains("eth7"));
        vm.load(stage.files(&i.to_string()), there);
        let now = ask(&vm.socket, "GET", "/vm/config", "").unwrap().1;
        assert_eq!(now["network-interfaces"][0]["host_dev_name"], format!("tap{i}"));
        assert!(Path::new(&stage.text(&format!("{i}.vsock"))).exists());
    }
    wait(&vm);
    all.push_str(&vm.process.text());
    assert!(all.contains("disk=1") && all.contains("net=1"), "{all}");
    for line in all[..all.rfind('\n').unwrap()].lines() {
        assert!(!line.contains("BAD") && !line.contains("PANIC"), "{test}: {line}");
        if let Some(n) = line.strip_prefix("busy n=").and_then(|l| l.split(' ').next()?.parse::<u64>().ok()) {
            assert!(n == rounds + 1 && line.trim_end().ends_with(" ok"), "{test}: after {rounds}: {line}");
            rounds = n;
        }
    }
    println!("{test}: {rounds} rounds right");
}

#[test]
fn a_busy_guest_with_all_devices_goes_from_kvm_to_the_interpreter_and_back() {
    busy("a_busy_guest_with_all_devices_goes_from_kvm_to_the_interpreter_and_back", &["kvm", "interp"]);
}

#[test]
fn a_busy_guest_with_all_devices_goes_on_in_the_interpreter() {
    busy("a_busy_guest_with_all_devices_goes_on_in_the_interpreter", &["interp"]);
}

/// A file system that takes no writes until this is gone.
struct Frozen<'a>(&'a str);

impl<'a> Frozen<'a> {
    fn new(dir: &'a str) -> Result<Self, String> {
        run(Command::new("fsfreeze").args(["--freeze", dir])).map(|()| Frozen(dir))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = run(Command::new("fsfreeze").args(["--unfreeze", self.0]));
    }
}

/// Whether a thread of the process has been waiting for a disk each time for a second.
fn is_stuck(pid: u32) -> bool {
    let mut waiting: Option<Vec<PathBuf>> = None;
    for _ in 0..20 {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let stuck = tasks.filter_map(|t| {
            let path = t.ok()?.path();
            let stat = std::fs::read_to_string(path.join("stat")).ok()?;
            stat.rsplit_once(") ")?.1.starts_with('D').then_some(path)
        });
        let stuck: Vec<_> = stuck.filter(|t| waiting.as_ref().is_none_or(|w| w.contains(t))).collect();
        if stuck.is_empty() {
            return false;
        }
        waiting = Some(stuck);
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

#[test]
fn a_disk_that_hangs_is_named_and_the_guest_goes_on_when_it_is_back() {
    let test = "a_disk_that_hangs_is_named_and_the_guest_goes_on_when_it_is_back";
    let Some(stage) = Stage::set(test, &["interp"]) else { return };
    if !stage.busy_kernel(test) {
        return;
    }
    let (image, dir) = (stage.text("fs.img"), stage.text("fs"));
    std::fs::create_dir(&dir).unwrap();
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let mounted = run(Command::new("mkfs.ext4").args(["-q", "-F", &image]))
        .and_then(|()| Mounted::new(&["-o", "loop", &image], Path::new(&dir)));
    let _mounted = match mounted {
        Ok(mounted) => mounted,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let disk = format!("{dir}/disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let config = json!({
        "boot-source": {"kernel_image_path": stage.text("busy.elf"), "boot_args": "busy=1"},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
        "drives": [{"drive_id": "slow", "path_on_host": disk, "is_root_device": false}],
    });
    std::fs::write(stage.text("busy.json"), config.to_string()).unwrap();
    let vm = stage.start("0.sock", "interp", &["--config-file", &stage.text("busy.json")]);
    let rounds = || vm.process.text().matches("busy n=").count();
    let await_rounds = |more: usize| {
        let (goal, end) = (rounds() + more, Instant::now() + PATIENCE);
        while rounds() < goal {
            assert!(Instant::now() < end, "silent: {}; {}", vm.process.text(), vm.process.err());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    await_rounds(2);

    let frozen = Frozen::new(&dir).expect("ext4 can be frozen");
    let end = Instant::now() + PATIENCE;
    while !is_stuck(vm.process.id()) {
        assert!(Instant::now() < end, "the disk does not hang: {}", vm.process.text());
    }
    // The rest of the program answers; a pause ends, and says what it is that hangs.
    assert_eq!(ask(&vm.socket, "GET", "/", "").unwrap().1["state"], "Running");
    let why = vm.fault("PATCH", "/vm", &json!({"state": "Paused"}));
    assert!(why.contains("drive slow is still busy") && why.contains("does not answer"), "{why}");
    assert_eq!(ask(&vm.socket, "GET", "/", "").unwrap().1["state"], "Running");

    drop(frozen);
    await_rounds(2);
    let said = vm.pause();
    vm.does("PUT", "/snapshot/create", stage.files("after"));
    assert!(!said.contains("BAD") && !said.contains("PANIC"), "{said}");
}
