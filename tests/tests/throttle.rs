//! A guest that writes memory faster than the link carries it is slowed down until it can be moved; it misses no page, and runs at full
//! speed afterwards. Without that, it is given up.

use godwit_guests::dirtier::Checker;
use godwit_tests::harness::moves::{Stage, said};
use godwit_tests::harness::{PATIENCE, Process};
use std::time::{Duration, Instant};

/// Lines that the guest has printed in both its lives, each right.
fn lines(lives: &[&Process]) -> u64 {
    let text: String = lives.iter().map(|p| p.text()).collect();
    let whole = text.rfind('\n').map_or(0, |i| i + 1);
    let mut checker = Checker::new();
    for line in text[..whole].lines() {
        checker.check_line(line).unwrap();
    }
    checker.lines()
}

fn wait_lines(lives: &[&Process], more: u64) {
    let (goal, end) = (lines(lives) + more, Instant::now() + PATIENCE);
    while lines(lives) < goal {
        assert!(Instant::now() < end, "the guest is silent: {}", lives.last().unwrap().err());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_guest_that_writes_at_full_speed_is_slowed_down_and_moves() {
    let test = "a_guest_that_writes_at_full_speed_is_slowed_down_and_moves";
    for pair in [["interp", "kvm"], ["kvm", "interp"], ["interp", "interp"]] {
        let Some(stage) = Stage::set(test, &pair) else { continue };
        let config = stage.scratch.config("dirtier", 64, "x86-64", "mib=16 pages_per_s=0");
        let (config, api) = (config.to_str().unwrap(), stage.text("s.api"));
        let args = ["--config-file", config, "--api-sock", &api, "--backend", pair[0]];
        let mut source = Process::start(&stage.godwit, &args, "");
        wait_lines(&[&source], 1);
        // Rounds are long: on a busy machine the guest itself may have no processor for a while, and a short round then finds
        // little that it wrote.
        let common = ["--downtime-ms", "20", "--allow-tsc-mismatch", "--json", "--bandwidth-mib-s"];
        let mut first = stage.receiver(pair[1], "first", "first.api", &[], "");
        let kept = stage.migrate(
            "s.api",
            "first",
            &[&common[..], &["4", "--no-auto-converge", "--timeout-s", "6"]].concat(),
        );
        assert_eq!((kept.status.code(), first.wait_exit()), (Some(3), Some(3)), "{}", said(&kept));
        wait_lines(&[&source], 1);
        let there = stage.receiver(pair[1], "second", "second.api", &[], "");
        let moved = stage.migrate("s.api", "second", &[&common[..], &["16"]].concat());
        assert_eq!(moved.status.code(), Some(0), "{}; {}", said(&moved), there.err());
        let report: serde_json::Value = serde_json::from_slice(&moved.stdout).unwrap();
        println!("{test}: {pair:?}: {}", report["report"]);
        assert!(report["report"]["throttle_percent"].as_f64() > Some(0.0), "{report}");
        assert_eq!(source.wait_exit(), Some(0));
        wait_lines(&[&source, &there], 2);
    }
}
