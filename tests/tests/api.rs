//! The real binary over its API socket: whole lives of a guest by raw HTTP, on every backend, and what is refused.

use godwit_guests::elf::{self, Segment};
use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::{PATIENCE, Process, Scratch, check_lines, program};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// What a test needs; otherwise it is skipped by name.
fn stage(test: &str, backends: &[&str]) -> Option<(PathBuf, Scratch)> {
    let usable = backends.iter().try_for_each(|b| Plugin::usable(b).map(drop));
    match usable.and_then(|()| program("godwit")) {
        Ok(godwit) => Some((godwit, Scratch::new(test))),
        Err(why) => {
            println!("SKIPPED {test}: {why}");
            None
        }
    }
}

struct Vm {
    process: Process,
    socket: PathBuf,
}

impl Vm {
    fn start(godwit: &std::path::Path, scratch: &Scratch, name: &str, backend: &str) -> Vm {
        let socket = scratch.path(name);
        let process =
            Process::start(godwit, &["--api-sock", socket.to_str().unwrap(), "--backend", backend], "");
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < end, "no API socket: {}", process.err());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        Vm { process, socket }
    }

    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.raw(
            format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, b)| b);
        (status.unwrap_or_else(|| panic!("{answer:?}")), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn does(&self, method: &str, path: &str, body: Value) {
        let (status, answer) = self.ask(method, path, &body);
        assert_eq!(status, 204, "{method} {path} {body}: {answer}; {}", self.process.err());
    }

    fn refuses(&self, method: &str, path: &str, body: Value, why: &str) {
        let (status, answer) = self.ask(method, path, &body);
        let fault = answer["fault_message"].as_str().unwrap_or_default();
        assert!(status == 400 && fault.contains(why), "{method} {path} {body}: {status} {answer}");
    }

    fn state(&self) -> String {
        self.ask("GET", "/", &Value::Null).1["state"].as_str().unwrap_or_default().to_owned()
    }

    /// What a guest that stands still has said: all of it has come through the pipe when no more comes.
    fn settled(&self) -> String {
        loop {
            let before = self.process.text();
            std::thread::sleep(std::time::Duration::from_millis(200));
            if self.process.text() == before {
                return before;
            }
        }
    }

    fn configure(&self, scratch: &Scratch, args: &str) {
        scratch.config("counter", 64, "x86-64", args);
        let kernel = scratch.path("counter.elf");
        self.does("PUT", "/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 32}));
        self.does(
            "PATCH",
            "/machine-config",
            json!({"mem_size_mib": 64, "cpu_model": "x86-64", "track_dirty_pages": true}),
        );
        self.does("PUT", "/boot-source", json!({"kernel_image_path": kernel, "boot_args": args}));
    }
}

/// Configure, boot, pause, snapshot, go on, end; then the snapshot goes on in another process on `second`, twice.
fn life(test: &str, first: &str, second: &str) {
    let Some((godwit, scratch)) = stage(test, &[first, second]) else { return };
    let text = |name: &str| scratch.path(name).to_str().unwrap().to_owned();
    let mut vm = Vm::start(&godwit, &scratch, "a.sock", first);
    assert_eq!(vm.state(), "Not started");
    vm.refuses("PATCH", "/vm", json!({"state": "Paused"}), "Not started");
    vm.refuses("PUT", "/actions", json!({"action_type": "InstanceStart"}), "boot-source");
    let balloon = |mib: u32| json!({"amount_mib": mib, "deflate_on_oom": true});
    vm.refuses("PUT", "/balloon", balloon(129), "amount_mib: the balloon's 129 MiB");
    vm.does("PUT", "/balloon", balloon(100));
    vm.refuses("PATCH", "/machine-config", json!({"mem_size_mib": 99}), "amount_mib: the balloon's 100 MiB");
    vm.does("PUT", "/balloon", balloon(0));
    // Where metrics go nowhere, Firecracker too says that all is well.
    vm.does("PUT", "/actions", json!({"action_type": "FlushMetrics"}));
    vm.does("PUT", "/metrics", json!({"metrics_path": text("metrics")}));
    vm.does("PUT", "/logger", json!({"log_path": text("log"), "level": "Debug", "show_level": true}));
    vm.configure(&scratch, "rate=20");
    let (_, config) = vm.ask("GET", "/vm/config", &Value::Null);
    assert_eq!(config["machine-config"]["mem_size_mib"], 64, "{config}");
    vm.does("PUT", "/actions", json!({"action_type": "InstanceStart"}));
    vm.process.wait_lines(3).unwrap();
    assert_eq!(vm.state(), "Running");
    // Counted while it runs, not when it stops.
    let end = Instant::now() + PATIENCE;
    let counts = || vm.ask("GET", "/backend", &Value::Null).1["counters"].clone();
    while !counts().as_object().is_some_and(|c| c.values().any(|n| n.as_u64() > Some(0))) {
        assert!(Instant::now() < end, "{}", counts());
    }
    vm.refuses("PUT", "/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 32}), "Running");
    let create = json!({"snapshot_path": text("state"), "mem_file_path": text("memory")});
    vm.refuses("PUT", "/snapshot/create", create.clone(), "Running");
    vm.does("PATCH", "/vm", json!({"state": "Paused"}));
    assert_eq!(vm.state(), "Paused");
    vm.does("PUT", "/snapshot/create", create);
    let at_snapshot = vm.settled();
    vm.does("PATCH", "/vm", json!({"state": "Resumed"}));
    vm.process.wait_lines(3).unwrap();
    vm.does("PATCH", "/vm", json!({"state": "Paused"}));
    let diff =
        json!({"snapshot_path": text("dstate"), "mem_file_path": text("dmemory"), "snapshot_type": "Diff"});
    vm.does("PUT", "/snapshot/create", diff);
    let load_diff = json!({"snapshot_path": text("dstate"), "mem_file_path": text("dmemory")});
    vm.does("PATCH", "/vm", json!({"state": "Resumed"}));
    vm.process.wait_lines(2).unwrap();
    vm.does("PUT", "/actions", json!({"action_type": "FlushMetrics"}));
    let metrics = std::fs::read_to_string(scratch.path("metrics")).unwrap();
    let line: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert!(line["utc_timestamp_ms"].is_u64(), "{line}");
    assert_eq!(line["put_api_requests"]["boot_source_count"], 1, "{line}");
    assert_eq!(line["put_api_requests"]["actions_fails"], 1, "{line}");
    assert!(line["latencies_us"]["full_create_snapshot"].is_u64(), "{line}");
    assert!(std::fs::read_to_string(scratch.path("log")).unwrap().contains("snapshot:"));
    let (_, backend) = vm.ask("GET", "/backend", &Value::Null);
    assert_eq!(backend["name"], first, "{backend}");
    check_lines(&[vm.process.text()]);
    assert!(Command::new("kill").arg(vm.process.id().to_string()).status().unwrap().success());
    assert_eq!(vm.process.wait_exit(), Some(0), "{}", vm.process.err());

    for name in ["b.sock", "c.sock"] {
        let vm = Vm::start(&godwit, &scratch, name, second);
        vm.refuses("PUT", "/snapshot/load", load_diff.clone(), "changes since");
        vm.refuses(
            "PUT",
            "/snapshot/load",
            json!({"snapshot_path": text("state"), "mem_backend": {"backend_type": "Uffd", "backend_path": "u"}}),
            "page fault handler",
        );
        let load = json!({
            "snapshot_path": text("state"),
            "mem_backend": {"backend_type": "File", "backend_path": text("memory")},
            "allow_tsc_mismatch": true,
        });
        vm.does("PUT", "/snapshot/load", load.clone());
        assert_eq!(vm.state(), "Paused");
        vm.refuses("PUT", "/snapshot/load", load, "Paused");
        vm.does("PATCH", "/vm", json!({"state": "Resumed"}));
        vm.process.wait_lines(4).unwrap();
        let checker = check_lines(&[at_snapshot.clone(), vm.process.text()]);
        println!("{test}: {} lines right", checker.lines());
    }
}

#[test]
fn a_whole_life_on_kvm() {
    life("a_whole_life_on_kvm", "kvm", "kvm");
}

#[test]
fn a_whole_life_on_the_interpreter() {
    life("a_whole_life_on_the_interpreter", "interp", "interp");
}

#[test]
fn a_snapshot_of_kvm_goes_on_in_the_interpreter() {
    life("a_snapshot_of_kvm_goes_on_in_the_interpreter", "kvm", "interp");
}

#[test]
fn a_snapshot_of_the_interpreter_goes_on_on_kvm() {
    life("a_snapshot_of_the_interpreter_goes_on_on_kvm", "interp", "kvm");
}

#[test]
fn wrong_inputs_hurt_nobody() {
    let test = "wrong_inputs_hurt_nobody";
    let Some((godwit, scratch)) = stage(test, &["interp"]) else { return };
    let vm = Vm::start(&godwit, &scratch, "w.sock", "interp");
    vm.configure(&scratch, "rate=20");
    vm.does("PUT", "/actions", json!({"action_type": "InstanceStart"}));
    vm.process.wait_lines(2).unwrap();
    for (bytes, status) in [
        (&b"BREW / HTTP/1.1\r\n\r\n"[..], " 400 "),
        (b"\x16\x03\x01\x00\x01\x00\r\n\r\n", " 400 "),
        (b"PUT /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", " 400 "),
        (b"PUT /vm HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", " 413 "),
        (b"PATCH /vm HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{]", " 400 "),
    ] {
        let answer = vm.raw(bytes);
        assert!(answer.contains(status), "{answer:?}");
    }
    let mut idle = Vec::new();
    for _ in 0..200 {
        // Those that are pushed out or turned away may already be closed when we write.
        let mut stream = UnixStream::connect(&vm.socket).unwrap();
        let _ = stream.write_all(b"GET / HT");
        idle.push(stream);
    }
    drop(idle);
    assert_eq!(vm.state(), "Running");
    vm.process.wait_lines(3).unwrap();
    check_lines(&[vm.process.text()]);
}

#[test]
fn a_failed_start_and_a_failed_load_can_be_mended() {
    let test = "a_failed_start_and_a_failed_load_can_be_mended";
    let Some((godwit, scratch)) = stage(test, &["interp"]) else { return };
    let vm = Vm::start(&godwit, &scratch, "f.sock", "interp");
    vm.refuses(
        "PUT",
        "/snapshot/load",
        json!({"snapshot_path": scratch.path("none"), "mem_file_path": scratch.path("none")}),
        "none",
    );
    let kernel = |name| json!({"kernel_image_path": scratch.path(name)});
    vm.refuses("PUT", "/boot-source", kernel("none"), "The kernel file cannot be opened");
    let (junk, pipe) = (scratch.path("junk"), scratch.path("pipe"));
    std::fs::write(&junk, "no kernel").unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (path, why) in [(&scratch.path("none"), "No such file"), (&pipe, "neither a file nor a block device")]
    {
        let drive =
            json!({"drive_id": "d", "path_on_host": path, "is_root_device": false, "is_read_only": true});
        vm.refuses("PUT", "/drives/d", drive, why);
    }
    vm.does("PUT", "/boot-source", kernel("junk"));
    vm.refuses(
        "PUT",
        "/actions",
        json!({"action_type": "InstanceStart"}),
        "neither an ELF file nor a bzImage",
    );
    vm.configure(&scratch, "rate=20");
    vm.does("PUT", "/actions", json!({"action_type": "InstanceStart"}));
    vm.process.wait_lines(2).unwrap();
    check_lines(&[vm.process.text()]);
}

#[test]
fn without_an_api_there_is_no_socket() {
    let test = "without_an_api_there_is_no_socket";
    let Some((godwit, scratch)) = stage(test, &["interp"]) else { return };
    let config = scratch.config("counter", 64, "x86-64", "rate=20");
    let process = Process::start(
        &godwit,
        &["--no-api", "--config-file", config.to_str().unwrap(), "--backend", "interp"],
        "",
    );
    process.wait_lines(2).unwrap();
    std::fs::remove_file(scratch.path("counter.elf")).unwrap();
    let config = config.to_str().unwrap();
    let mut lost = Process::start(&godwit, &["--no-api", "--config-file", config, "--backend", "interp"], "");
    assert_eq!(lost.wait_exit(), Some(152), "{}", lost.err());
    assert!(lost.err().contains("counter.elf"), "{}", lost.err());
    let mut refused = Process::start(&godwit, &["--no-api", "--backend", "interp"], "");
    assert_eq!(refused.wait_exit(), Some(153), "{}", refused.err());
}

/// A guest that says it has booted, as Firecracker's does, and resets.
#[test]
fn the_boot_timer_tells_how_long_a_guest_took() {
    let test = "the_boot_timer_tells_how_long_a_guest_took";
    const AT: u64 = 0x20_0000;
    let code = [
        0xc6, 0x05, 0x00, 0x00, 0x00, 0xc0, 123, // mov byte ptr [0xc0000000], 123
        0xb0, 0xfe, // mov al, 0xfe
        0xe6, 0x64, // out 0x64, al: reset
        0xf4, 0xeb, 0xfd, // hlt, and again
    ];
    for backend in ["kvm", "interp"] {
        let Some((godwit, scratch)) = stage(&format!("{test} on {backend}"), &[backend]) else { continue };
        let config = scratch.config("hello", 32, "x86-64", "");
        let segment = Segment { gpa: AT, bytes: code.to_vec(), executable: true };
        std::fs::write(scratch.path("hello.elf"), elf::write(&[segment], AT, AT as u32)).unwrap();
        let config = config.to_str().unwrap();
        let args =
            ["--no-api", "--boot-timer", "--level", "Info", "--backend", backend, "--config-file", config];
        let mut vm = Process::start(&godwit, &args, "");
        assert_eq!(vm.wait_exit(), Some(0), "{}", vm.err());
        vm.wait_err("Guest-boot-time =");
    }
}
