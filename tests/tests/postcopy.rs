//! Pages that follow the guest: between real processes and both backends, over broken connections, and refused where the host cannot.

use godwit_tests::harness::fault::{Action, Place, Point, Proxy, Side, wait_until};
use godwit_tests::harness::moves::{Stage, goes_on, said};
use godwit_tests::harness::{ask, check_lines};
use godwit_vmm::memory::missing_is_possible;
use serde_json::Value;
use std::process::{Command, Output};

fn stage(test: &str, backends: &[&str]) -> Option<Stage> {
    if let Err(why) = missing_is_possible() {
        println!("SKIPPED {test}: {why}");
        return None;
    }
    Stage::set(test, backends)
}

/// The report that `--json` printed.
fn report(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["report"].clone()
}

#[test]
fn the_counter_moves_before_its_pages_between_all_backends() {
    let test = "the_counter_moves_before_its_pages_between_all_backends";
    for pair in [["kvm", "interp"], ["interp", "kvm"], ["interp", "interp"]] {
        let Some(stage) = stage(test, &pair) else { continue };
        for (i, mode) in ["postcopy", "hybrid"].iter().enumerate() {
            let api = format!("s{i}.api");
            let mut source = stage.source(pair[0], 64, "rate=50 fill=20", &api, "");
            let socket = format!("{i}.sock");
            let there = stage.receiver(pair[1], &socket, &format!("d{i}.api"), &[], "");
            // Not one page may be left for the pause: what the last round leaves comes later.
            let more = ["--mode", mode, "--downtime-ms", "0", "--allow-tsc-mismatch", "--json"];
            let report = report(&stage.migrate(&api, &socket, &more));
            assert_eq!(source.wait_exit(), Some(0), "{}", source.err());
            there.wait_lines(20).unwrap();
            check_lines(&[source.text(), there.text()]);
            let late = report["postcopy_pages"].as_u64().unwrap();
            println!("{test}: {pair:?} {mode}: {report}");
            // A guest that dirtied nothing during the one round has nothing to be sent after it.
            assert!(late > 0 || *mode == "hybrid", "{report}");
            let arrived = stage.scratch.path(&format!("d{i}.api"));
            let there = ask(&arrived, "GET", "/migration", "").unwrap().1;
            assert_eq!((&there["phase"], &there["missing_pages"]), (&"done".into(), &0.into()), "{there}");
        }
    }
}

#[test]
fn the_time_being_over_pages_follow() {
    let test = "the_time_being_over_pages_follow";
    let Some(stage) = stage(test, &["interp"]) else { return };
    let mut source = stage.source("interp", 64, "rate=50 fill=20", "s.api", "");
    // So slow that the first round takes longer than it may, and never within the pause.
    let slow = ["--bandwidth-mib-s", "16", "--downtime-ms", "0", "--no-auto-converge", "--json"];
    let there = stage.receiver("interp", "d.sock", "d.api", &[], "");
    let more = [&slow[..], &["--timeout-s", "1", "--on-timeout", "postcopy"]].concat();
    let moved = report(&stage.migrate("s.api", "d.sock", &more));
    assert!(moved["postcopy_pages"].as_u64().unwrap() > 0, "{moved}");
    assert_eq!(source.wait_exit(), Some(0));
    there.wait_lines(3).unwrap();
    check_lines(&[source.text(), there.text()]);
    // And on an operator's word.
    let (godwit, from, target) =
        (stage.godwit.clone(), stage.text("d.api"), format!("unix:{}", stage.text("e.sock")));
    let next = stage.receiver("interp", "e.sock", "e.api", &[], "");
    let mover = std::thread::spawn(move || {
        let args = ["migrate", "--api-sock", &from, &target, "--memory", "copy", "--on-timeout", "postcopy"];
        Command::new(godwit).args(args).args(slow).output().unwrap()
    });
    let at = stage.scratch.path("d.api");
    assert!(wait_until(|| {
        let body = r#"{"action":"postcopy"}"#;
        ask(&at, "PUT", "/migration", body).is_ok_and(|(status, _)| status == 204)
    }));
    let moved = report(&mover.join().unwrap());
    assert!(moved["postcopy_pages"].as_u64().unwrap() > 0, "{moved}");
    next.wait_lines(3).unwrap();
    check_lines(&[source.text(), there.text(), next.text()]);
}

#[test]
fn a_broken_connection_is_replaced_by_the_command_line() {
    let test = "a_broken_connection_is_replaced_by_the_command_line";
    let Some(stage) = stage(test, &["interp"]) else { return };
    let mut source = stage.source("interp", 64, "rate=50 fill=20", "s.api", "");
    let (there, place) = stage.receiver_at("interp", "tcp:127.0.0.1:0", "d.api", &["--idle-s", "2"], "");
    let late = Point { name: "late Pages", from: Side::Source, kind: 5, after: 12 };
    let to: Place = place.parse().unwrap();
    let proxy = Proxy::start(&to, &stage.scratch.path("p"), vec![(late, Action::Cut)], (0, 0)).unwrap();
    let moved =
        stage.migrate_to("s.api", &proxy.place().to_string(), &["--postcopy", "--bandwidth-mib-s", "8"]);
    assert_eq!(moved.status.code(), Some(5), "{}", said(&moved));
    assert!(
        said(&moved).contains("--recover") && said(&moved).contains("Don't end this one"),
        "{}",
        said(&moved)
    );
    // Nothing else may be done with either end meanwhile.
    let elsewhere = stage.migrate("d.api", "nowhere", &[]);
    assert!(said(&elsewhere).contains("pages are still missing"), "{}", said(&elsewhere));
    there.wait_err("the guest stands still where it needs one");
    // A stranger without the token changes nothing.
    let mut stranger = std::net::TcpStream::connect(place.trim_start_matches("tcp:")).unwrap();
    std::io::Write::write_all(&mut stranger, b"GODWITMG\x01\x00\x01\x00\x07\x00\x00\x00").unwrap();
    drop(stranger);
    let again = stage.again("s.api", "--recover");
    assert_eq!(again.status.code(), Some(0), "{}; {}", said(&again), there.err());
    assert!(said(&again).contains("1 new connections"), "{}", said(&again));
    assert_eq!(source.wait_exit(), Some(0));
    there.wait_lines(20).unwrap();
    check_lines(&[source.text(), there.text()]);
}

#[test]
fn a_host_without_userfaultfd_says_so_before_any_page() {
    let test = "a_host_without_userfaultfd_says_so_before_any_page";
    let Some(stage) = stage(test, &["interp"]) else { return };
    let allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    if allowed.is_ok_and(|text| text.trim() == "1") {
        return println!("SKIPPED {test}: anybody may use userfaultfd here");
    }
    // Nobody's capabilities, and nobody's right to the device.
    let nobody = Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", "--bounding-set=-all"])
        .arg(&stage.godwit)
        .arg("--version")
        .output();
    if !nobody.is_ok_and(|o| o.status.success()) {
        return println!("SKIPPED {test}: cannot start a godwit as nobody");
    }
    let dir = stage.text("open");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut source = stage.source("interp", 64, "rate=50", "s.api", "");
    for fallback in [false, true] {
        let at = format!("unix:{dir}/{fallback}.sock");
        let godwit = stage.text("as-nobody");
        std::fs::write(
            &godwit,
            format!(
                "#!/bin/sh\nexec setpriv --reuid=65534 --clear-groups --bounding-set=-all {} \"$@\"\n",
                stage.godwit.display()
            ),
        )
        .unwrap();
        std::fs::set_permissions(&godwit, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut there = godwit_tests::harness::Process::start(
            godwit.as_ref(),
            &["receive", &at, "--backend", "interp"],
            "",
        );
        there.wait_place().unwrap();
        let mut more = vec!["--postcopy"];
        more.extend(fallback.then_some("--postcopy-fallback"));
        let moved = stage.migrate_to("s.api", &at, &more);
        if fallback {
            assert_eq!(moved.status.code(), Some(0), "{}; {}", said(&moved), there.err());
            there.wait_lines(3).unwrap();
            source.wait_exit();
            check_lines(&[source.text(), there.text()]);
        } else {
            assert_eq!((moved.status.code(), there.wait_exit()), (Some(3), Some(3)), "{}", said(&moved));
            for text in [said(&moved), there.err()] {
                assert!(
                    text.contains("userfaultfd is not permitted")
                        && text.contains("unprivileged_userfaultfd"),
                    "{text}"
                );
            }
            goes_on(&mut source);
        }
    }
}
