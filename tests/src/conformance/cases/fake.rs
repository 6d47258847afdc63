//! What only a scripted backend can show: panics, errors, and every kind of access in a known order.

use crate::conformance::board::Event;
use crate::conformance::code::CODE;
use crate::conformance::plugin::Plugin;
use crate::conformance::rig::{Ended, Rig};
use godwit_abi as abi;

fn rig(plugin: Plugin, script: &[u8]) -> Rig {
    let rig = Rig::new(plugin);
    rig.ram.write(CODE, script);
    let mut state = rig.cpu().save();
    state.regs.rip = CODE;
    rig.cpu().load(&state);
    rig.start(0);
    rig
}

pub(super) fn panics_stay_inside(plugin: Plugin) {
    let rig = rig(plugin, &[7]);
    let error = rig.cpu().run().expect_err("a panic");
    assert_eq!(error.code, abi::ERR_PANIC);
    assert!(error.text.contains("the script panics at 0x1000"), "{error:?}");
}

pub(super) fn errors_come_out(plugin: Plugin) {
    let rig = rig(plugin, &[6]);
    let error = rig.cpu().run().expect_err("an error");
    assert_eq!((error.code, error.text.as_str()), (abi::ERR_GUEST, "the script fails at 0x1000"));
}

pub(super) fn scripts_run(plugin: Plugin) {
    let script = [1, 0x80, 0, 9, 2, 0x71, 0, 3, 0, 0, 0x10, 0, 5, 3, 0, 0, 0, 0xd0, 6, 5];
    let rig = rig(plugin, &script);
    rig.log(true).expect("the log starts");
    assert_eq!(rig.cpu().run(), Ok(Ended::Shutdown));
    let events = [Event::Out(0x80, 1, 9), Event::In(0x71, 1), Event::Write(0xd000_0000, 1, 6)];
    assert_eq!(rig.board.take(), events);
    assert_eq!(rig.ram.read(0x10_0000, 1), [5]);
    assert_eq!(rig.dirty(), [0x100]);
    rig.log(true).expect("the log starts again");
    assert_eq!(rig.dirty(), [0u64; 0]);
}
