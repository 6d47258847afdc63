//! What goes wrong when people move guests: a device's file or socket that is gone where the guest is to go, wrong words, certificates
//! that are not there, and time that runs out. Each is said in words that help, and the guest goes on where it was.

use godwit_tests::certificates;
use godwit_tests::harness::moves::{Stage, goes_on, said};
use godwit_tests::harness::{Process, ask, check_lines};
use serde_json::json;
use std::os::unix::net::UnixListener;
use std::process::Command;

/// The counter with a disk, a network interface and a vsock device that it does not look at.
fn with_devices(stage: &Stage, backend: &str) -> Process {
    let config = stage.scratch.config("counter", 64, "x86-64", "rate=50 fill=2");
    let mut spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    std::fs::write(stage.scratch.path("disk"), vec![1; 4096]).unwrap();
    spec["drives"] =
        json!([{"drive_id": "data", "path_on_host": stage.text("disk"), "is_root_device": false}]);
    spec["network-interfaces"] = json!([{"iface_id": "eth0", "passt_socket": stage.text("passt")}]);
    spec["machine-config"]["vcpu_count"] = json!(2);
    spec["vsock"] = json!({"guest_cid": 3, "uds_path": stage.text("vsock")});
    std::fs::write(&config, spec.to_string()).unwrap();
    let (config, api) = (config.to_str().unwrap().to_owned(), stage.text("s.api"));
    let source = Process::start(
        &stage.godwit,
        &["--config-file", &config, "--api-sock", &api, "--backend", backend],
        "",
    );
    source.wait_lines(3).expect("the guest runs");
    source
}

#[test]
fn what_is_gone_at_the_destination_is_named_and_the_guest_goes_on() {
    let test = "what_is_gone_at_the_destination_is_named_and_the_guest_goes_on";
    for pair in [["interp", "interp"], ["interp", "kvm"]] {
        let Some(stage) = Stage::set(test, &pair) else { continue };
        let _passt = UnixListener::bind(stage.scratch.path("passt")).unwrap();
        let mut source = with_devices(&stage, pair[0]);
        let (gone, small, taken) = (stage.text("gone"), stage.text("small"), stage.text("taken"));
        std::fs::write(&small, [0; 1024]).unwrap();
        let _other = UnixListener::bind(&taken).unwrap();
        let (here, there) = (stage.text("vsock"), stage.text("there"));
        let nowhere = stage.text("no/where");
        let vsock = ["--vsock-uds", &there];
        let of = |what: &str, path: &str| format!("{what}={path}");
        // What the receiver is told, and what both ends must name.
        let cases: [(&str, Vec<String>, [&str; 2]); 7] = [
            ("disk", vec!["--drive".into(), of("data", &gone)], ["drive data", &gone]),
            ("folder", vec!["--drive".into(), of("data", &nowhere)], ["drive data", &nowhere]),
            ("directory", vec!["--drive".into(), of("data", "/")], ["drive data", "/"]),
            (
                "size",
                vec!["--drive".into(), of("data", &small)],
                ["drive data: 2 sectors here", "8 at the source"],
            ),
            ("passt", vec!["--passt".into(), of("eth0", &gone)], ["eth0", &gone]),
            ("name", vec!["--drive".into(), of("other", &small)], ["other", "no"]),
            ("socket", vec![], ["vsock", &here]),
        ];
        for (name, told, words) in cases {
            let mut more: Vec<&str> = told.iter().map(String::as_str).collect();
            if name != "socket" {
                more.extend(vsock);
            }
            let socket = format!("to-{name}");
            let mut receiver = stage.receiver(pair[1], &socket, &format!("{name}.api"), &more, "");
            let moved = stage.migrate("s.api", &socket, &["--allow-tsc-mismatch"]);
            assert_eq!(
                (moved.status.code(), receiver.wait_exit()),
                (Some(3), Some(3)),
                "{name}: {}",
                said(&moved)
            );
            println!("{test}: {name}: {}", said(&moved).lines().next().unwrap_or_default());
            for text in [said(&moved), receiver.err()] {
                assert!(words.iter().all(|word| text.contains(word)), "{name}: {words:?}: {text}");
            }
            assert!(receiver.text().is_empty(), "{name}: the guest ran");
            goes_on(&mut source);
        }
        let receiver = stage.receiver(pair[1], "good", "good.api", &vsock, "");
        let moved = stage.migrate("s.api", "good", &["--allow-tsc-mismatch"]);
        assert_eq!(moved.status.code(), Some(0), "{}; {}", said(&moved), receiver.err());
        source.wait_exit();
        receiver.wait_lines(3).unwrap();
        check_lines(&[source.text(), receiver.text()]);
    }
}

/// A receiver takes what its operator allows, of memory, processors, devices and files, and says at both ends what it does not.
#[test]
fn what_the_receiver_does_not_allow_stays_where_it_is() {
    let test = "what_the_receiver_does_not_allow_stays_where_it_is";
    let Some(stage) = Stage::set(test, &["interp"]) else { return };
    let _passt = UnixListener::bind(stage.scratch.path("passt")).unwrap();
    let mut source = with_devices(&stage, "interp");
    let (there, elsewhere, disk) = (stage.text("there"), stage.text("elsewhere"), stage.text("disk"));
    std::fs::create_dir(&elsewhere).unwrap();
    let own = ["--vsock-uds", &there];
    let passt = format!("eth0={}", stage.text("passt"));
    let cases: [(&str, &[&str], &[&str]); 5] = [
        ("memory", &["--max-memory-mib", "32"], &["64 MiB", "at most 32 MiB"]),
        ("vcpus", &["--max-vcpus", "1"], &["2 vCPUs, at most 1"]),
        ("devices", &["--allow-device", "virtio.block"], &["device eth0 (virtio.net)", "device vsock"]),
        ("paths", &["--allow-path", &elsewhere, "--passt", &passt], &["drive data", &disk, "--allow-path"]),
        (
            "sockets",
            &["--allow-path", &elsewhere, "--drive", &format!("data={disk}")],
            &["eth0", "--allow-path"],
        ),
    ];
    for (name, told, words) in cases {
        let (socket, api) = (format!("to-{name}"), format!("{name}.api"));
        let mut receiver = stage.receiver("interp", &socket, &api, &[told, &own].concat(), "");
        let moved = stage.migrate("s.api", &socket, &[]);
        assert_eq!(
            (moved.status.code(), receiver.wait_exit()),
            (Some(3), Some(3)),
            "{name}: {}",
            said(&moved)
        );
        for text in [said(&moved), receiver.err()] {
            assert!(words.iter().all(|word| text.contains(word)), "{name}: {words:?}: {text}");
        }
        assert!(receiver.text().is_empty(), "{name}: the guest ran");
        goes_on(&mut source);
    }
}

#[test]
fn wrong_words_get_an_answer_that_helps() {
    let test = "wrong_words_get_an_answer_that_helps";
    let Some(stage) = Stage::set(test, &["interp"]) else { return };
    let mut source = stage.source("interp", 16, "rate=50", "s.api", "");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = listener.local_addr().unwrap().port();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (free, busy) = (format!("tcp:127.0.0.1:{free}"), format!("tcp:127.0.0.1:{busy}"));
    let nobody = format!("unix:{}", stage.text("nobody"));
    let pki = |name: &str, files: &[(&str, &str)]| {
        let dir = stage.scratch.path(name);
        certificates::write(&dir, &["127.0.0.1"]).unwrap();
        files.iter().for_each(|(file, text)| std::fs::write(dir.join(file), text).unwrap());
        dir.to_str().unwrap().to_owned()
    };
    let empty = pki("empty", &[("ca-cert.pem", "")]);
    let wrong = pki("wrong", &[("client-key.pem", "nothing"), ("server-cert.pem", "nothing")]);
    let run = |args: &[&str]| Command::new(&stage.godwit).args(args).output().unwrap();
    let api = stage.text("s.api");
    let migrate = |more: &[&str]| run(&[&["migrate", "--api-sock", &api], more].concat());
    let missing = stage.text("missing");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&[&free], 3, &["nobody waits for a guest there", "godwit receive", "runs on here"]),
        (&[&nobody], 3, &["nobody waits for a guest there", "runs on here"]),
        (&["127.0.0.1:5000"], 1, &["tcp:HOST:PORT"]),
        (&["tcp:127.0.0.1"], 1, &["a port is missing"]),
        (&["tcp:192.0.2.1:5"], 1, &["--tls-dir", "--insecure"]),
        (&[&free, "--tls-dir", &missing], 1, &["--tls-dir", "client-cert.pem", "No such file"]),
        (&[&free, "--tls-dir", &empty], 1, &["ca-cert.pem", "holds no certificate"]),
        (&[&free, "--tls-dir", &wrong], 1, &["client-key.pem", "no such thing is in this file"]),
        (&[&nobody, "--tls-dir", &empty], 1, &["TLS is for tcp"]),
        (&[&free, "--connections", "17"], 1, &["1 to 16"]),
        (&[&nobody, "--connections", "2"], 1, &["tcp and vsock"]),
        (&[&free, "--mode", "lazy"], 153, &["precopy", "postcopy", "hybrid"]),
        (&[&free, "--move-disk", "data"], 1, &["no drive data"]),
        (&["--cancel"], 1, &["no migration goes on"]),
        (&["--recover"], 1, &["no migration waits"]),
        (&["--change"], 1, &["name at least one limit"]),
        (&["--change", "--downtime-ms", "5"], 1, &["no guest is being sent"]),
        (&["--switch-to-postcopy"], 1, &["no pages are copied"]),
    ];
    for (args, code, words) in cases {
        let done = migrate(args);
        assert_eq!(done.status.code(), Some(*code), "{args:?}: {}", said(&done));
        assert!(words.iter().all(|w| said(&done).contains(w)), "{args:?}: {words:?}: {}", said(&done));
    }
    let elsewhere = run(&["migrate", "--api-sock", &missing, &free]);
    assert!(
        elsewhere.status.code() == Some(1) && said(&elsewhere).contains("missing"),
        "{}",
        said(&elsewhere)
    );
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&[&busy], 1, &["in use", "choose another address"]),
        (&["tcp:192.0.2.1:0", "--insecure"], 1, &["not an address of this host"]),
        (&["unix:/nowhere/at/all"], 1, &["/nowhere/at/all", "No such file"]),
        (&["tcp:0.0.0.0:0"], 153, &["--tls-dir", "--insecure"]),
        (&[&free, "--tls-dir", &wrong], 153, &["server-cert.pem"]),
        (&[&free, "--allow-device", "floppy"], 153, &["no device is called floppy", "virtio.block"]),
        (&[&free, "--allow-path", &missing], 153, &["allow_paths", "is no directory"]),
        (&[&free, "--drive", "data"], 153, &["ID=WHAT"]),
        (&["vsock:1"], 153, &["a port is missing"]),
    ];
    for (args, code, words) in cases {
        let done = run(&[&["receive", "--backend", "interp"], *args].concat());
        assert_eq!(done.status.code(), Some(*code), "{args:?}: {}", said(&done));
        assert!(words.iter().all(|w| said(&done).contains(w)), "{args:?}: {words:?}: {}", said(&done));
    }
    goes_on(&mut source);
}

/// Two seconds of a move that would take half a minute: it is given up, or forced.
#[test]
fn when_the_time_is_over_it_is_given_up_or_forced_in_the_midst_of_a_round() {
    let test = "when_the_time_is_over_it_is_given_up_or_forced_in_the_midst_of_a_round";
    let Some(stage) = Stage::set(test, &["interp"]) else { return };
    let mut source = stage.source("interp", 64, "rate=50 fill=30", "s.api", "");
    let slow = ["--bandwidth-mib-s", "1", "--timeout-s", "2"];
    let mut receiver = stage.receiver("interp", "first", "first.api", &[], "");
    let moved = stage.migrate("s.api", "first", &slow);
    assert_eq!((moved.status.code(), receiver.wait_exit()), (Some(3), Some(3)), "{}", said(&moved));
    for text in [said(&moved), receiver.err()] {
        assert!(text.contains("the time limit is over (timeout_s)"), "{text}");
    }
    goes_on(&mut source);
    let receiver = stage.receiver("interp", "second", "second.api", &[], "");
    let moved = stage.migrate("s.api", "second", &[&slow[..], &["--on-timeout", "force", "--json"]].concat());
    assert_eq!(moved.status.code(), Some(0), "{}; {}", said(&moved), receiver.err());
    let report: serde_json::Value = serde_json::from_slice(&moved.stdout).unwrap();
    let (all, last) = (report["report"]["pages"].as_u64(), report["report"]["last_pages"].as_u64());
    // Most of it while the guest stood still.
    assert!(last > all.map(|n| n / 2), "{report}");
    let part = |name: &str| report["report"]["downtime"][name].as_f64().unwrap();
    let parts: f64 = ["pause", "state", "pages", "load", "start"].map(part).iter().sum();
    let whole = report["report"]["downtime_ms"].as_f64().unwrap();
    assert!((parts - whole).abs() < whole * 0.1, "{report}");
    source.wait_exit();
    receiver.wait_lines(3).unwrap();
    check_lines(&[source.text(), receiver.text()]);
}

/// A guest's TSC keeps its frequency: scaled where that can be done, refused before any page where not, or let be by a flag.
#[test]
fn another_tsc_frequency_is_had_refused_or_allowed() {
    let test = "another_tsc_frequency_is_had_refused_or_allowed";
    for there in ["interp", "kvm"] {
        let Some(stage) = Stage::set(test, &["interp", there]) else { continue };
        let offers = Command::new(&stage.godwit).args(["backends", "--json"]).output().unwrap();
        let offers: serde_json::Value = serde_json::from_slice(&offers.stdout).unwrap();
        let probe = offers.as_array().unwrap().iter().find(|b| b["descriptor"]["name"] == there).unwrap();
        let scales = probe["probe"]["tsc_scaling"] == true;
        assert!(scales || there == "kvm", "the interpreter gives any frequency: {probe}");
        let config = stage.scratch.config("counter", 16, "x86-64", "rate=50");
        let mut spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        spec["machine-config"]["tsc_khz"] = json!(1_000_000);
        std::fs::write(&config, spec.to_string()).unwrap();
        let args = ["--config-file", config.to_str().unwrap(), "--backend", "interp", "--api-sock"];
        let mut source = Process::start(&stage.godwit, &[&args[..], &[&stage.text("s.api")]].concat(), "");
        source.wait_lines(3).unwrap();
        if !scales {
            let mut receiver = stage.receiver(there, "strict", "strict.api", &[], "");
            let moved = stage.migrate("s.api", "strict", &[]);
            assert_eq!((moved.status.code(), receiver.wait_exit()), (Some(3), Some(3)), "{}", said(&moved));
            for text in [said(&moved), receiver.err()] {
                assert!(
                    text.contains("TSC runs at 1000000 kHz") && text.contains("--allow-tsc-mismatch"),
                    "{text}"
                );
            }
            goes_on(&mut source);
        }
        let allowed: &[&str] = if scales { &[] } else { &["--allow-tsc-mismatch"] };
        let receiver = stage.receiver(there, "taken", "taken.api", allowed, "");
        let moved = stage.migrate("s.api", "taken", &[]);
        assert_eq!(moved.status.code(), Some(0), "{}; {}", said(&moved), receiver.err());
        source.wait_exit();
        receiver.wait_lines(3).unwrap();
        check_lines(&[source.text(), receiver.text()]);
        let (_, config) = ask(&stage.scratch.path("taken.api"), "GET", "/machine-config", "").unwrap();
        assert!(!scales || config["tsc_khz"] == 1_000_000, "{config}");
    }
}
