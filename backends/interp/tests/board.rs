//! Runs the guest programs on the interpreter.

mod harness;

use godwit_sdk::abi;
use godwit_sdk::state::Model;
use harness::Vm;
use std::sync::atomic::Ordering;

#[test]
fn hello_prints_and_resets() {
    let vm = Vm::new(Model::X86_64, 0);
    vm.boot("hello", "", false);
    assert_eq!(vm.run(), abi::EXIT_KICKED, "{:?}", vm.serial());
    assert!(vm.board.reset.load(Ordering::SeqCst), "{:?}", vm.serial());
    assert!(!vm.serial().is_empty());
}

#[test]
fn counter_counts_and_its_state_survives() {
    let vm = Vm::new(Model::X86_64, 0);
    vm.boot("counter", "lines=6 rate=50 units=31", false);
    assert_eq!(vm.run(), abi::EXIT_KICKED, "{:?}", vm.serial());
    let out = vm.serial();
    assert!(vm.board.reset.load(Ordering::SeqCst), "{out}");
    assert!(out.contains("bad=0"), "{out}");
    let saved = vm.save();
    vm.load(&saved);
    assert_eq!(vm.save(), saved);
}
