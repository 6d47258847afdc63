//! Clones of one snapshot: Linux hears that it was forked, and the clones draw different random numbers.

use crate::guest::{Debian, until};
use godwit_tests::harness::Scratch;
use serde_json::json;

const SCRIPT: &str = r#"
echo "CHECK device $(ls -d /sys/bus/platform/drivers/vmgenid/*:* | wc -l)"
n=0
while :; do
    n=$((n + 1))
    echo "CHECK tick$n $(dmesg | grep -c 'due to virtual machine fork') $(od -An -N16 -tx8 /dev/urandom)"
    sleep 0.1
done
"#;

#[test]
fn clones_of_a_snapshot_draw_different_random_numbers() {
    let name = "clones_of_a_snapshot_draw_different_random_numbers";
    let debian = match Debian::find() {
        Ok(debian) => debian,
        Err(why) => return println!("SKIPPED {name}: {why}"),
    };
    let scratch = Scratch::new(name);
    let config = debian.config(&scratch, SCRIPT, &[], 192, json!({}));
    let mut vm = debian.start(&scratch, "first.sock", Some(&config));
    if vm.hear("device") == "0" {
        return println!("SKIPPED {name}: this kernel has no driver for the VM generation ID");
    }
    assert!(vm.hear("tick2").starts_with("0 "), "not forked yet");
    let (state, memory) = (scratch.path("state"), scratch.path("memory"));
    vm.ask("PATCH", "/vm", json!({"state": "Paused"}));
    vm.ask("PUT", "/snapshot/create", json!({"snapshot_path": state, "mem_file_path": memory}));
    drop(vm);

    let load = || {
        json!({"snapshot_path": state, "resume_vm": true,
               "mem_backend": {"backend_type": "File", "backend_path": memory}})
    };
    let forked = |clone: &str| {
        let vm = debian.start(&scratch, clone, None);
        // A disk that is gone is named, and nothing is lost: with it the same process takes the guest.
        let (root, away) = (scratch.path("root.ext4"), scratch.path("away"));
        std::fs::rename(&root, &away).unwrap();
        let why = vm.refused("PUT", "/snapshot/load", load());
        assert!(why.contains("drive root") && why.contains("root.ext4"), "{why}");
        std::fs::rename(&away, &root).unwrap();
        vm.ask("PUT", "/snapshot/load", load());
        let mut drawn = String::new();
        until("the clone says that it knows of the fork", || {
            let lines = vm.process.lines();
            let tick = |l: &&String| l.contains("CHECK tick") && l.split(' ').nth(2) == Some("1");
            drawn = lines.iter().find(tick).cloned().unwrap_or_default();
            !drawn.is_empty()
        });
        drawn.split_once("tick").unwrap().1.split_once(' ').unwrap().1.to_owned()
    };
    let (one, two) = (forked("one.sock"), forked("two.sock"));
    assert!(one != two, "both clones drew {one}");
}
