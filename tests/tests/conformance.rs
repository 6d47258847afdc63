//! The conformance suite over each backend's library, and moves between them.
//!
//! The libraries are those that cargo built for this profile (`cargo build --workspace`), or in GODWIT_PLUGIN_DIR.

use godwit_tests::conformance::cases::{self, Case, moves};
use godwit_tests::conformance::plugin::Plugin;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs cases one by one, all of them even if some fail.
fn run(name: &str, lists: &[&[Case]]) {
    let plugin = match Plugin::usable(name) {
        Ok(plugin) => plugin,
        Err(why) => return println!("SKIPPED conformance of {name}: {why}"),
    };
    let wanted = std::env::var("GODWIT_CASE").unwrap_or_default();
    let mut failed = Vec::new();
    for (case, f) in lists.iter().flat_map(|l| l.iter()).filter(|(case, _)| case.contains(&wanted)) {
        println!("{name} {case}");
        if catch_unwind(AssertUnwindSafe(|| f(plugin))).is_err() {
            failed.push(*case);
        }
    }
    assert!(failed.is_empty(), "{name} fails {}: {failed:#?}", failed.len());
}

#[test]
fn kvm_conforms() {
    run("kvm", &[cases::ALL, cases::CPU]);
}

#[test]
fn interp_conforms() {
    run("interp", &[cases::ALL, cases::CPU]);
}

#[test]
fn fake_conforms() {
    run("fake", &[cases::ALL, cases::FAKE]);
}

fn pair(test: &str, f: fn(Plugin, Plugin)) {
    match (Plugin::usable("kvm"), Plugin::usable("interp")) {
        (Ok(kvm), Ok(interp)) => {
            f(kvm, interp);
            f(interp, kvm);
        }
        (Err(why), _) | (_, Err(why)) => println!("SKIPPED {test}: {why}"),
    }
}

#[test]
fn rich_states_cross() {
    pair("rich_states_cross", moves::rich_states_cross);
}

#[test]
fn running_guest_crosses() {
    pair("running_guest_crosses", moves::running_guest_crosses);
}
