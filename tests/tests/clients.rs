//! Clients that others wrote for Firecracker drive the real program: curl as in Firecracker's guides, the Python library
//! `firecracker-python`, and the client of the manager `bandsox`.

use godwit_guests::host;
use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::{PATIENCE, Process, Scratch, check_lines, program};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn works(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

fn godwit() -> Result<PathBuf, String> {
    let usable = ["kvm", "interp"].iter().any(|b| Plugin::usable(b).is_ok());
    if usable { program("godwit") } else { Err("no CPU backend is of use here".into()) }
}

/// What `scripts/make-client-venv` has made.
fn python(module: &str) -> Result<PathBuf, String> {
    let python = host::cache().join("clients/bin/python");
    if works(Command::new(&python).arg("-c").arg(format!("import {module}"))) {
        Ok(python)
    } else {
        Err(format!("no Python module {module} (scripts/make-client-venv)"))
    }
}

#[test]
fn bandsox_drives_a_whole_life() {
    let test = "bandsox_drives_a_whole_life";
    let (godwit, python) = match godwit().and_then(|g| Ok((g, python("bandsox.firecracker")?))) {
        Ok(found) => found,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let scratch = Scratch::new(test);
    scratch.config("counter", 128, "x86-64", "");
    let disk = scratch.path("disk.img");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/bandsox_life.py");
    let mut command = Command::new("timeout");
    command.arg("300").arg(python).arg(script).arg(godwit);
    command.args([scratch.path("counter.elf"), disk, scratch.path("")]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    let report: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let text = |name: &str| report[name].as_str().unwrap().to_owned();
    check_lines(&[text("first")]);
    let checker = check_lines(&[text("held"), text("second")]);
    assert!(text("refusal").contains("not supported after starting the microVM"), "{report}");
    assert_eq!(report["ends"], serde_json::json!([0, 0]));
    println!("{test}: {} lines right", checker.lines());
}

#[test]
fn firecracker_python_drives_a_whole_life() {
    let test = "firecracker_python_drives_a_whole_life";
    let namespace = || match works(Command::new("unshare").args(["-n", "ip", "link", "show", "lo"])) {
        true => Ok(()),
        false => Err("no right to make a network namespace, or no iproute2".to_owned()),
    };
    let (godwit, python) =
        match godwit().and_then(|g| Ok((g, python("firecracker")?))).and_then(|p| namespace().map(|()| p)) {
            Ok(found) => found,
            Err(why) => return println!("SKIPPED {test}: {why}"),
        };
    let scratch = Scratch::new(test);
    scratch.config("counter", 128, "x86-64", "");
    // The library finds its processes by this name.
    let binary = scratch.path("firecracker");
    std::os::unix::fs::symlink(godwit, &binary).unwrap();
    let disk = scratch.path("disk.img");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    std::fs::create_dir(scratch.path("data")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/firecracker_python_life.py");
    // The library asks for the interface of the default route; nothing leaves this namespace.
    let network = "set -e; ip link set lo up; ip tuntap add up0 mode tap; ip addr add 10.77.0.1/24 dev up0; \
                   ip link set up0 up; ip route add default via 10.77.0.2; exec timeout 300 \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-n", "sh", "-c", network, "sh"]).arg(python).arg(script);
    command.args([binary, scratch.path("counter.elf"), disk, scratch.path("data")]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    let report: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let text = |name: &str| report[name].as_str().unwrap().to_owned();
    check_lines(&[text("first")]);
    let checker = check_lines(&[text("held"), text("second")]);
    println!("{test}: {} lines right; version {}", checker.lines(), text("version"));
}

#[test]
fn schemathesis_finds_nothing() {
    let test = "schemathesis_finds_nothing";
    let (godwit, python) = match godwit().and_then(|g| Ok((g, python("firecracker")?))) {
        Ok(found) => found,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/schemathesis");
    if !python.with_file_name("st").exists() || !works(Command::new("curl").arg("--version")) {
        return println!("SKIPPED {test}: no schemathesis (scripts/make-client-venv) or no curl");
    }
    let mut command = Command::new(script);
    command.args(["--stage", "running", "--examples", "3"]).env("GODWIT_BIN", godwit.parent().unwrap());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    for line in text.lines().filter(|l| l.contains(" generated,") || l.starts_with("guest:")) {
        println!("{test}: {}", line.trim());
    }
}

struct Curl {
    socket: PathBuf,
}

impl Curl {
    /// A request as the guides write it: the body, if the status is `wanted`.
    fn ask(&self, wanted: &str, method: &str, path: &str, body: &str) -> Value {
        let mut command = Command::new("curl");
        command
            .args(["-s", "-S", "-i", "--max-time", "100", "-X", method])
            .arg("--unix-socket")
            .arg(&self.socket);
        command.args(["-H", "Accept: application/json", "-H", "Content-Type: application/json"]);
        if !body.is_empty() {
            command.args(["-d", body]);
        }
        let output = command.arg(format!("http://localhost{path}")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("HTTP/1.1 {wanted} ")), "{method} {path} {body}: {text:?} {output:?}");
        let body = text.rsplit("\r\n\r\n").next().unwrap_or_default();
        serde_json::from_str(body).unwrap_or(Value::Null)
    }

    fn start(program: &Path, dir: &Scratch, name: &str) -> (Process, Curl) {
        let socket = dir.path(name);
        let process = Process::start(program, &["--api-sock", socket.to_str().unwrap()], "");
        let end = Instant::now() + PATIENCE;
        while !socket.exists() {
            assert!(Instant::now() < end, "no API socket: {}", process.err());
            std::thread::sleep(Duration::from_millis(2));
        }
        (process, Curl { socket })
    }
}

#[test]
fn curl_goes_through_firecrackers_guides() {
    let test = "curl_goes_through_firecrackers_guides";
    let curl =
        || if works(Command::new("curl").arg("--version")) { Ok(()) } else { Err("no curl".to_owned()) };
    let godwit = match godwit().and_then(|g| curl().map(|()| g)) {
        Ok(godwit) => godwit,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let scratch = Scratch::new(test);
    scratch.config("counter", 128, "x86-64", "");
    let at = |name: &str| scratch.path(name).to_str().unwrap().to_owned();
    std::fs::write(at("rootfs.ext4"), vec![0; 1 << 20]).unwrap();

    // "Getting started", with the network left out.
    let (first, vm) = Curl::start(&godwit, &scratch, "first.sock");
    let log = at("firecracker.log");
    std::fs::write(&log, "").unwrap();
    let logger = format!(
        r#"{{ "log_path": "{log}", "level": "Debug", "show_level": true, "show_log_origin": true }}"#
    );
    vm.ask("204", "PUT", "/logger", &logger);
    let kernel = at("counter.elf");
    let args = "console=ttyS0 reboot=k panic=1";
    vm.ask(
        "204",
        "PUT",
        "/boot-source",
        &format!(r#"{{ "kernel_image_path": "{kernel}", "boot_args": "{args}" }}"#),
    );
    let drive = format!(
        r#"{{ "drive_id": "rootfs", "path_on_host": "{}", "is_root_device": true, "is_read_only": false }}"#,
        at("rootfs.ext4")
    );
    vm.ask("204", "PUT", "/drives/rootfs", &drive);
    vm.ask(
        "204",
        "PUT",
        "/machine-config",
        r#"{ "vcpu_count": 1, "mem_size_mib": 128, "track_dirty_pages": true }"#,
    );
    vm.ask("204", "PUT", "/actions", r#"{ "action_type": "InstanceStart" }"#);
    first.wait_lines(3).unwrap();
    let fault = vm.ask("400", "PUT", "/actions", r#"{ "action_type": "InstanceStart" }"#);
    let sentence = "The requested operation is not supported after starting the microVM.";
    assert!(fault["fault_message"].as_str().unwrap().starts_with(sentence), "clients look for this: {fault}");

    // "Snapshotting": pause, create, resume; full and diff.
    vm.ask("204", "PATCH", "/vm", r#"{ "state": "Paused" }"#);
    let create = |kind: &str, name: &str| {
        format!(
            r#"{{ "snapshot_type": "{kind}", "snapshot_path": "{}", "mem_file_path": "{}" }}"#,
            at(&format!("{name}_file")),
            at(&format!("{name}_mem"))
        )
    };
    vm.ask("204", "PUT", "/snapshot/create", &create("Full", "snapshot"));
    let until_then = settled(&first);
    vm.ask("204", "PATCH", "/vm", r#"{ "state": "Resumed" }"#);
    first.wait_lines(2).unwrap();
    vm.ask("204", "PATCH", "/vm", r#"{ "state": "Paused" }"#);
    vm.ask("204", "PUT", "/snapshot/create", &create("Diff", "diff"));
    check_lines(&[first.text()]);
    drop(first);

    let (second, vm) = Curl::start(&godwit, &scratch, "second.sock");
    let load = format!(
        r#"{{ "snapshot_path": "{}", "mem_backend": {{ "backend_path": "{}", "backend_type": "File" }},
             "enable_diff_snapshots": true, "resume_vm": true }}"#,
        at("snapshot_file"),
        at("snapshot_mem")
    );
    vm.ask("204", "PUT", "/snapshot/load", &load);
    assert_eq!(vm.ask("200", "GET", "/", "")["state"], "Running");
    second.wait_lines(3).unwrap();
    check_lines(&[until_then, second.text()]);
    assert!(std::fs::read_to_string(&log).unwrap().contains("[anonymous-instance:"), "the log's form");
}

/// What a guest that stands still has said: all of it has come through the pipe when no more comes.
fn settled(process: &Process) -> String {
    loop {
        let before = process.text();
        std::thread::sleep(Duration::from_millis(200));
        if process.text() == before {
            return before;
        }
    }
}
