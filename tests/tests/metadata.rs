//! The metadata service, from the API and the command line to a guest that fetches it over its network card.

use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::net::Namespace;
use godwit_tests::harness::{Process, Scratch, program};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

struct Stage {
    godwit: PathBuf,
    scratch: Scratch,
    space: Namespace,
}

impl Stage {
    fn set(test: &str, backend: &str) -> Result<Stage, String> {
        Plugin::usable(backend)?;
        let godwit = program("godwit")?;
        let space = Namespace::new()?;
        space.tap("tap0", "")?;
        Ok(Stage { godwit, scratch: Scratch::new(test), space })
    }

    fn text(&self, name: &str) -> String {
        self.scratch.path(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, value: &Value) -> String {
        std::fs::write(self.scratch.path(name), value.to_string()).unwrap();
        self.text(name)
    }

    fn start(&self, args: &[&str]) -> Process {
        let mut all = self.space.exec().to_vec();
        all.push(self.godwit.to_str().unwrap());
        all.extend(args);
        Process::start(Path::new("ip"), &all, "")
    }
}

fn guest(stage: &Stage) -> Result<String, String> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tcp-guest");
    let program = godwit_guests::bench::compile_tcp(&dir)?;
    let image = godwit_guests::bench::image(&program).map_err(|e| e.to_string())?;
    std::fs::write(stage.scratch.path("tcp.elf"), image).map_err(|e| e.to_string())?;
    Ok(stage.text("tcp.elf"))
}

fn config(kernel: &str, args: &str, mmds: &Value) -> Value {
    json!({
        "boot-source": { "kernel_image_path": kernel, "boot_args": args },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128, "cpu_model": "x86-64" },
        "network-interfaces": [{ "iface_id": "eth0", "host_dev_name": "tap0" }],
        "mmds-config": mmds
    })
}

/// Runs the guest to its end: what it printed.
fn fetches(stage: &Stage, backend: &str, args: &str, mmds: &Value) -> Result<String, String> {
    let kernel = guest(stage)?;
    let file = stage.write("vm.json", &config(&kernel, args, mmds));
    let data = json!({
        "latest": { "meta-data": { "ami-id": "ami-1", "tags": { "a": "b" } }, "long": "x".repeat(40_000) }, "number": 7
    });
    let data = stage.write("data.json", &data);
    let mut godwit =
        stage.start(&["--no-api", "--config-file", &file, "--metadata", &data, "--backend", backend]);
    assert_eq!(godwit.wait_exit(), Some(0), "{}{}", godwit.text(), godwit.err());
    Ok(godwit.text())
}

fn guest_fetches(test: &str, backend: &str) -> Result<(), String> {
    let stage = Stage::set(test, backend)?;
    let paths = "fetch=/latest/meta-data fetch=/latest/meta-data/ami-id fetch=/number fetch=/none";
    let open = json!({ "network_interfaces": ["eth0"] });
    let said = fetches(&stage, backend, paths, &open)?;
    for line in [
        "http /latest/meta-data 200 ami-id|tags/",
        "http /latest/meta-data/ami-id 200 ami-1",
        "http /number 501 Cannot retrieve value. The value has an unsupported type.",
        "http /none 404 Resource not found: /none.",
    ] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    let said = fetches(&stage, backend, "json=1 fetch=/latest/meta-data fetch=/latest/long", &open)?;
    assert!(said.contains(r#"http /latest/meta-data 200 {"ami-id":"ami-1","tags":{"a":"b"}}"#), "{said}");
    assert!(said.contains(&format!("http /latest/long 200 \"{}\"", "x".repeat(40_000))), "the long one");

    let closed = json!({ "network_interfaces": ["eth0"], "version": "V2", "ipv4_address": "169.254.170.2" });
    let ask = "metadata=169.254.170.2 fetch=/latest/meta-data/ami-id";
    let said = fetches(&stage, backend, ask, &closed)?;
    assert!(said.contains("401 No MMDS token provided."), "{said}");
    let said = fetches(&stage, backend, &format!("token=1 {ask}"), &closed)?;
    assert!(said.contains("http token 200 given"), "{said}");
    assert!(said.contains("http /latest/meta-data/ami-id 200 ami-1"), "{said}");
    Ok(())
}

/// One request: status and body.
fn ask(socket: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut peer = UnixStream::connect(socket).unwrap();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}", body.len());
    peer.write_all(format!("{head}\r\nContent-Type: application/json\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    peer.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

fn api(test: &str, backend: &str) -> Result<(), String> {
    let stage = Stage::set(test, backend)?;
    let kernel = guest(&stage)?;
    let (a, b) = (stage.text("a.api"), stage.text("b.api"));
    let wait = |socket: &str, process: &Process| {
        let end = std::time::Instant::now() + godwit_tests::harness::PATIENCE;
        while UnixStream::connect(socket).is_err() {
            assert!(std::time::Instant::now() < end, "{}", process.err());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let first = stage.start(&["--api-sock", &a, "--backend", backend, "--mmds-size-limit", "60"]);
    wait(&a, &first);
    let fault = |text: &str| format!("{{\"fault_message\":\"{text}\"}}");
    let put = |path: &str, body: Value| ask(&a, "PUT", path, &body.to_string());
    let done = (204, String::new());
    assert_eq!(ask(&a, "GET", "/mmds", ""), (200, "{}".into()));
    let not_yet = fault("The MMDS data store is not initialized.");
    assert_eq!(ask(&a, "PATCH", "/mmds", r#"{"a": 1}"#), (400, not_yet));
    assert_eq!(put("/mmds", json!({ "a": { "b": "c" } })), done);
    assert_eq!(ask(&a, "PATCH", "/mmds", r#"{"a": {"d": "e", "b": null}}"#), done);
    assert_eq!(ask(&a, "GET", "/mmds", ""), (200, r#"{"a":{"d":"e"}}"#.into()));
    let (status, body) = put("/mmds", json!({ "a": "x".repeat(60) }));
    assert_eq!((status, body), (413, fault("The MMDS patch request doesn't fit.")));

    let unknown = "The list of network interface IDs provided contains at least one ID that does not correspond to any \
                   existing network interface.";
    let empty = "The list of network interface IDs that allow forwarding MMDS requests is empty.";
    assert_eq!(put("/mmds/config", json!({ "network_interfaces": ["eth0"] })), (400, fault(unknown)));
    assert_eq!(put("/mmds/config", json!({ "network_interfaces": [] })), (400, fault(empty)));
    let net = json!({ "iface_id": "eth0", "host_dev_name": "tap0" });
    assert_eq!(put("/network-interfaces/eth0", net), done);
    let far = json!({ "network_interfaces": ["eth0"], "ipv4_address": "1.1.1.1" });
    assert_eq!(put("/mmds/config", far), (400, fault("The MMDS IPv4 address is not link local.")));
    let good = json!({ "network_interfaces": ["eth0"], "version": "V2" });
    assert_eq!(put("/mmds/config", good), done);
    let (_, whole) = ask(&a, "GET", "/vm/config", "");
    assert!(whole.contains(r#""mmds-config":{"#) && whole.contains(r#""version":"V2""#), "{whole}");
    assert_eq!(put("/boot-source", json!({ "kernel_image_path": kernel })), done);
    assert_eq!(put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 64 })), done);
    assert_eq!(put("/actions", json!({ "action_type": "InstanceStart" })), done);
    assert_eq!(put("/mmds/config", json!({ "network_interfaces": ["eth0"] })).0, 400);
    assert_eq!(put("/mmds", json!({ "later": "yes" })), done);

    // The configuration goes with a snapshot; the data does not.
    let (state, memory) = (stage.text("s"), stage.text("m"));
    assert_eq!(ask(&a, "PATCH", "/vm", r#"{"state": "Paused"}"#), done);
    assert_eq!(put("/snapshot/create", json!({ "snapshot_path": state, "mem_file_path": memory })), done);
    drop(first);
    let second = stage.start(&["--api-sock", &b, "--backend", backend]);
    wait(&b, &second);
    let load = json!({ "snapshot_path": state, "mem_file_path": memory, "resume_vm": true });
    assert_eq!(ask(&b, "PUT", "/snapshot/load", &load.to_string()), done);
    assert_eq!(ask(&b, "GET", "/mmds", ""), (200, "{}".into()));
    let (_, whole) = ask(&b, "GET", "/vm/config", "");
    assert!(whole.contains(r#""mmds-config":{"#) && whole.contains(r#""version":"V2""#), "{whole}");
    Ok(())
}

fn run(test: &str, outcome: Result<(), String>) {
    if let Err(why) = outcome {
        println!("SKIPPED {test}: {why}");
    }
}

#[test]
fn a_guest_on_kvm_fetches_metadata() {
    let test = "a_guest_on_kvm_fetches_metadata";
    run(test, guest_fetches(test, "kvm"));
}

#[test]
fn a_guest_on_the_interpreter_fetches_metadata() {
    let test = "a_guest_on_the_interpreter_fetches_metadata";
    run(test, guest_fetches(test, "interp"));
}

#[test]
fn metadata_goes_by_the_api_as_firecrackers() {
    let test = "metadata_goes_by_the_api_as_firecrackers";
    run(test, api(test, "interp"));
}
