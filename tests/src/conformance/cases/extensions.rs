//! Extensions, where the backend has them.

use super::interrupts::put_handler;
use crate::conformance::board::Event;
use crate::conformance::code::{self, CODE, DEVICE, MARK, assemble};
use crate::conformance::plugin::{Plugin, call, read};
use crate::conformance::rig::Rig;
use godwit_abi::{Counters1, Doorbell1, EXT_COUNTERS_1, EXT_DOORBELL_1, EXT_IRQFD_1, Irqfd1, Text};
use iced_x86::code_asm::*;
use std::ffi::c_void;

struct EventFd(i32);

impl EventFd {
    fn new() -> Self {
        // SAFETY: plain numbers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        assert!(fd >= 0);
        EventFd(fd)
    }

    fn signal(&self) {
        let one = 1u64;
        // SAFETY: eight readable bytes.
        assert_eq!(unsafe { libc::write(self.0, (&raw const one).cast(), 8) }, 8);
    }

    /// How often it was signalled since the last time.
    fn count(&self) -> u64 {
        let mut count = 0u64;
        // SAFETY: eight writable bytes.
        match unsafe { libc::read(self.0, (&raw mut count).cast(), 8) } {
            8 => count,
            _ => 0,
        }
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: our own descriptor.
        unsafe { libc::close(self.0) };
    }
}

fn table<T>(rig: &Rig, name: &str) -> Option<&'static T> {
    // SAFETY: the contract: null, or the table of that name, which lives as long as the process.
    let found = unsafe { rig.extension(name).cast::<T>().as_ref() };
    if found.is_none() {
        println!("SKIPPED {name}: this backend has it not");
    }
    found
}

pub(super) fn doorbells_ring(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.mov(ebx, DEVICE as u32)?;
        a.mov(dword_ptr(rbx + 0x50), 0)?;
        a.mov(dword_ptr(rbx + 0x50), 1)?;
        a.mov(dword_ptr(rbx + 0x50), 1)?;
        a.mov(word_ptr(rbx + 0x60), 7)?;
        code::done(a)?;
        a.jmp(CODE)
    });
    let (one, any) = (EventFd::new(), EventFd::new());
    let rig = Rig::long(plugin, 0, &program);
    let Some(bell) = table::<Doorbell1>(&rig, EXT_DOORBELL_1) else { return };
    let (add, remove) = (bell.add.expect("mandatory"), bell.remove.expect("mandatory"));
    let vm = rig.handle();
    // SAFETY: a live VM; the descriptors outlive it.
    unsafe {
        call(|err| add(vm, DEVICE + 0x50, 4, 1, 1, one.0, err)).expect("added");
        call(|err| add(vm, DEVICE + 0x60, 0, 0, 0, any.0, err)).expect("added");
        call(|err| add(vm, DEVICE + 0x70, 3, 0, 0, any.0, err)).expect_err("no access is three bytes wide");
    }
    assert_eq!(rig.run_to_done(), [Event::Write(DEVICE + 0x50, 4, 0)]);
    assert_eq!((one.count(), any.count()), (2, 1));
    // SAFETY: as above.
    unsafe {
        call(|err| remove(vm, DEVICE + 0x50, 4, 1, 1, one.0, err)).expect("removed");
        call(|err| remove(vm, DEVICE + 0x60, 0, 0, 0, any.0, err)).expect("removed");
        call(|err| remove(vm, DEVICE + 0x60, 0, 0, 0, any.0, err)).expect_err("it is gone");
    }
    assert_eq!(rig.run_more().len(), 4);
    assert_eq!((one.count(), any.count()), (0, 0));
}

pub(super) fn irqfds_interrupt(plugin: Plugin) {
    const LINE: u32 = 30;
    let program = assemble(64, CODE, |a| {
        let mut top = a.create_label();
        a.mov(al, 1)?;
        a.out(MARK as i32, al)?;
        a.sti()?;
        a.set_label(&mut top)?;
        a.cmp(byte_ptr(0x3000), 0)?;
        a.je(top)?;
        a.cli()?;
        a.mov(byte_ptr(0x3000), 0)?;
        code::done(a)?;
        a.jmp(CODE)
    });
    let fd = EventFd::new();
    let rig = Rig::long(plugin, 0, &program);
    let Some(irqfd) = table::<Irqfd1>(&rig, EXT_IRQFD_1) else { return };
    put_handler(&rig, 0x50, true);
    put_handler(&rig, 0x51, true);
    let vm = rig.handle();
    rig.routes(&[(LINE, 0xfee0_0000, 0x50, false)]);
    // SAFETY: a live VM; the descriptor outlives it.
    call(|err| unsafe { irqfd.add.expect("mandatory")(vm, LINE, fd.0, err) }).expect("added");
    let mark = |v: u64| Event::Out(MARK, 1, v);
    fd.signal();
    assert_eq!(rig.run_to_done(), [mark(1), mark(0x50)]);
    rig.routes(&[(LINE, 0xfee0_0000, 0x51, false)]);
    fd.signal();
    assert_eq!(rig.run_more(), [mark(1), mark(0x51)], "the route has changed");
    // Masked: nothing comes, and the program waits until another interrupt ends it.
    rig.routes(&[(LINE, 0xfee0_0000, 0x51, true)]);
    fd.signal();
    rig.vm.msi(0xfee0_0000, 0x50);
    assert_eq!(rig.run_more(), [mark(1), mark(0x50)]);
    // SAFETY: as above.
    call(|err| unsafe { irqfd.remove.expect("mandatory")(vm, LINE, fd.0, err) }).expect("removed");
}

pub(super) fn counters_count(plugin: Plugin) {
    unsafe extern "C" fn each(ctx: *mut c_void, name: Text, value: u64) {
        // SAFETY: the list below.
        unsafe { &mut *ctx.cast::<Vec<(String, u64)>>() }.push((read(name), value));
    }
    let program = assemble(64, CODE, |a| {
        a.out(MARK as i32, al)?;
        code::done(a)
    });
    let rig = Rig::long(plugin, 0, &program);
    let Some(counters) = table::<Counters1>(&rig, EXT_COUNTERS_1) else { return };
    assert!(counters.size as usize >= size_of::<Counters1>());
    rig.run_to_done();
    let mut list: Vec<(String, u64)> = Vec::new();
    // SAFETY: a live VM; `each` gets the list it expects.
    unsafe { counters.read.expect("mandatory")(rig.handle(), (&raw mut list).cast(), each) };
    assert!(!list.is_empty() && list.iter().any(|(_, value)| *value > 0), "{list:?}");
}
