//! What x86's processors promise each other, tried by a guest with two of them (`tests/guests/src/smp.rs`): atomic
//! operations, stores seen in order, fences. Also on hosts whose own memory order is a weaker one.

use godwit_tests::harness::inside::{Screen, plugin, start};

#[test]
fn two_processors_see_x86s_order() {
    for backend in ["kvm", "interp"] {
        let plugin = match plugin(backend) {
            Ok(plugin) => plugin,
            Err(why) => {
                println!("SKIPPED two_processors_see_x86s_order on {backend}: {why}");
                continue;
            }
        };
        let screen = Screen::default();
        let machine = start("smp", &plugin, &screen, 2, 64, "cpus=2 rounds=3 size=1000");
        screen.wait("smp done", 1);
        drop(machine);
        let said = screen.lines().join("\n");
        println!("{backend}:\n{said}");
        assert!(said.contains("smp: cpus=2 ") && said.contains("smp done: rounds=3 bad=0"), "{said}");
    }
}
