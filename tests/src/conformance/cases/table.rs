//! The table itself: descriptor, probe, refusals, lifecycles.

use crate::conformance::board::Board;
use crate::conformance::plugin::{Plugin, call};
use crate::conformance::rig::{Rig, config};
use godwit_abi as abi;
use godwit_state::{Model, SECTIONS};

pub(super) fn descriptor_is_sane(plugin: Plugin) {
    let d = plugin.descriptor();
    let name = crate::conformance::plugin::read(d.name);
    assert!(
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    );
    assert!(d.size as usize >= size_of::<abi::Descriptor>());
    let models = plugin.models();
    assert!(!models.is_empty());
    for model in models {
        model.parse::<Model>().expect("a model that is known");
    }
    for (kind, version) in plugin.sections() {
        assert!(SECTIONS.contains(&(kind.as_str(), version)), "{kind} {version}");
    }
    let (calls, nodes) = plugin.needs();
    assert!(nodes.iter().all(|n| n.starts_with('/')));
    assert!(
        calls.iter().all(|c| c.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
    );
    assert_eq!(calls.contains(&"ioctl".to_owned()), d.ioctls_len != 0, "ioctl is declared with its requests");
}

pub(super) fn probe_is_sane(plugin: Plugin) {
    let (probe, models) = plugin.probe().expect("usable, as the suite has found");
    assert!(probe.max_vcpus >= 1);
    assert!((10_000..=100_000_000).contains(&probe.tsc_khz));
    let known = plugin.models();
    assert!(!models.is_empty() && models.iter().all(|m| known.contains(m)), "{models:?} of {known:?}");
    let again = plugin.probe().expect("still usable");
    assert_eq!((again.0.max_vcpus, again.0.tsc_khz, again.1), (probe.max_vcpus, probe.tsc_khz, models));
}

fn create(plugin: Plugin, config: &abi::VmConfig, host: *const abi::HostTable) -> Result<(), (i32, String)> {
    let mut handle = std::ptr::null_mut();
    let create = plugin.table.vm_create.expect("mandatory");
    // SAFETY: what is passed is readable as far as its size says, or null.
    call(|err| unsafe { create(config, host, &mut handle, err) }).map_err(|f| (f.code, f.text))?;
    // SAFETY: the VM just made.
    unsafe { plugin.table.vm_destroy.expect("mandatory")(handle) };
    Ok(())
}

pub(super) fn bad_configurations_are_refused(plugin: Plugin) {
    #[repr(C)]
    struct Longer {
        config: abi::VmConfig,
        tail: u64,
    }
    let board = Board::default();
    let host = board.table();
    let good = config(1, "x86-64");
    assert_eq!(create(plugin, &good, &host), Ok(()));
    let refused = |config: &abi::VmConfig, code: i32, word: &str| {
        let (got, text) = create(plugin, config, &host).expect_err("refused");
        assert_eq!(got, code, "{text}");
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    };
    refused(&abi::VmConfig { size: 8, ..good }, abi::ERR_INVALID, "8");
    refused(&abi::VmConfig { flags: 1 << 63, ..good }, abi::ERR_INVALID, "flags");
    refused(&abi::VmConfig { vcpus: 0, ..good }, abi::ERR_INVALID, "vCPU");
    refused(&abi::VmConfig { vcpus: 1_000_000, ..good }, abi::ERR_UNSUPPORTED, "1000000");
    refused(&config(1, "i486"), abi::ERR_UNSUPPORTED, "i486");
    let size = size_of::<Longer>() as u32;
    let mut longer = Longer { config: abi::VmConfig { size, ..good }, tail: 0 };
    let as_config = |l: &Longer| std::ptr::from_ref(l).cast::<abi::VmConfig>();
    // SAFETY: a `Longer` begins with a config.
    assert_eq!(create(plugin, unsafe { &*as_config(&longer) }, &host), Ok(()), "a zero tail is as before");
    longer.tail = 1;
    // SAFETY: as above.
    let (code, _) = create(plugin, unsafe { &*as_config(&longer) }, &host).expect_err("a tail is refused");
    assert_eq!(code, abi::ERR_INVALID);
}

pub(super) fn bad_hosts_are_refused(plugin: Plugin) {
    let board = Board::default();
    let good = config(1, "x86-64");
    let invalid = |host: *const abi::HostTable| {
        assert_eq!(create(plugin, &good, host).expect_err("refused").0, abi::ERR_INVALID);
    };
    invalid(std::ptr::null());
    invalid(&abi::HostTable { size: 16, ..board.table() });
    invalid(&abi::HostTable { mmio_read: None, ..board.table() });
}

pub(super) fn bad_slots_are_refused(plugin: Plugin) {
    let rig = Rig::new(plugin);
    let page = abi::GUEST_PAGE_SIZE;
    let host = rig.ram_ptr();
    let invalid = |slot, gpa, len, host, flags| {
        let error = rig.map(slot, gpa, len, host, flags).expect_err("refused");
        assert_eq!(error.code, abi::ERR_INVALID, "{error:?}");
    };
    let free = 1 << 30;
    invalid(1, free + 1, page, host, 0);
    invalid(1, free, page + 1, host, 0);
    invalid(1, free, 0, host, 0);
    invalid(1, free, page, std::ptr::null_mut(), 0);
    invalid(1, free, page, host, 1 << 40);
    invalid(32, free, page, host, 0);
    invalid(1, u64::MAX - page + 1, 2 * page, host, 0);
    invalid(0, free, page, host, 0);
    rig.map(1, 0, page, host, 0).expect_err("two slots at one address");
    assert_eq!(rig.unmap(5).expect_err("not mapped").code, abi::ERR_INVALID);
    rig.map(1, free, page, host, abi::SLOT_READ_ONLY).expect("a good slot is still taken");
    rig.unmap(1).expect("and given back");
    rig.map(1, free, page, host, 0).expect("and taken again");
}

pub(super) fn bad_vcpus_are_refused(plugin: Plugin) {
    let rig = Rig::new(plugin);
    assert!(rig.create_vcpu(0).is_err(), "vCPU 0 is there already");
    assert!(rig.create_vcpu(1).is_err(), "the VM has one vCPU");
    assert!(rig.vm.nmi(7).is_err(), "there is no vCPU 7");
    assert!(rig.extension("godwit.nothing/9").is_null());
}

pub(super) fn errors_fit_a_short_buffer(plugin: Plugin) {
    let rig = Rig::new(plugin);
    let unmap = plugin.table.vm_unmap_memory.expect("mandatory");
    let mut buffer = [0xeeu8; 8];
    let mut err = abi::ErrorText {
        size: size_of::<abi::ErrorText>() as u32,
        reserved: 0,
        ptr: buffer.as_mut_ptr(),
        cap: 5,
        len: 0,
    };
    // SAFETY: a live handle; the error text is ours, and may be null.
    unsafe {
        assert_ne!(unmap(rig.handle(), 9, &mut err), abi::OK);
        assert_ne!(unmap(rig.handle(), 9, std::ptr::null_mut()), abi::OK);
    }
    assert!(err.len <= 5);
    assert_eq!(buffer[5..], [0xee; 3]);
}

pub(super) fn machines_come_and_go(plugin: Plugin) {
    let most = plugin.probe().expect("usable").0.max_vcpus.min(4);
    for vcpus in 1..=most {
        let rig = Rig::with(plugin, vcpus, Model::X86_64, 0);
        assert_eq!(rig.vcpus.len(), vcpus as usize);
        for (id, vcpu) in rig.vcpus.iter().enumerate() {
            assert_eq!(vcpu.save().lapic.id as usize, id);
        }
    }
}

pub(super) fn short_structs_are_refused(plugin: Plugin) {
    let rig = Rig::new(plugin);
    let (vm, vcpu, t) = (rig.handle(), rig.cpu().handle(), plugin.table);
    let invalid = |what: &str, f: &mut dyn FnMut(*mut abi::ErrorText) -> i32| {
        let error = call(f).expect_err(what);
        assert_eq!(error.code, abi::ERR_INVALID, "{what}: {error:?}");
        assert!(!error.text.is_empty(), "{what}");
    };
    let slot = abi::MemorySlot {
        size: 8,
        slot: 1,
        gpa: 1 << 30,
        len: abi::GUEST_PAGE_SIZE,
        host: rig.ram_ptr(),
        flags: 0,
    };
    let route = abi::MsiRoute { size: 8, gsi: 1, address: 0xfee0_0000, data: 0x30, flags: 0 };
    let odd = abi::MsiRoute { size: size_of::<abi::MsiRoute>() as u32, flags: 1 << 31, ..route };
    let kind = crate::conformance::plugin::text("x86.regs");
    let section = abi::Section { size: 8, version: 1, kind, data: kind, flags: 0, reserved: 0 };
    let loud = abi::Section { size: size_of::<abi::Section>() as u32, flags: 1 << 31, ..section };
    let mut exit = abi::Exit { size: 4, reason: 0 };
    let sink = abi::Sink { size: 8, reserved: 0, ctx: std::ptr::null_mut(), put: None };
    let mute = abi::Sink { size: size_of::<abi::Sink>() as u32, ..sink };
    let words = [0u64; 3];
    // SAFETY: live handles; each struct is readable as far as its size says, or null.
    unsafe {
        let map = t.vm_map_memory.expect("mandatory");
        invalid("a short slot", &mut |err| map(vm, &slot, err));
        invalid("no slot", &mut |err| map(vm, std::ptr::null(), err));
        let routes = t.vm_set_routes.expect("mandatory");
        invalid("a short route", &mut |err| routes(vm, &route, 1, err));
        invalid("a route with unknown flags", &mut |err| routes(vm, &odd, 1, err));
        invalid("no routes where there should be", &mut |err| routes(vm, std::ptr::null(), 1, err));
        let load = t.vcpu_load.expect("mandatory");
        invalid("a short section", &mut |err| load(vcpu, &section, 1, err));
        invalid("a section with unknown flags", &mut |err| load(vcpu, &loud, 1, err));
        let save = t.vcpu_save.expect("mandatory");
        invalid("no sink", &mut |err| save(vcpu, std::ptr::null(), err));
        invalid("a short sink", &mut |err| save(vcpu, &sink, err));
        invalid("a sink without a function", &mut |err| save(vcpu, &mute, err));
        let run = t.vcpu_run.expect("mandatory");
        invalid("a short exit", &mut |err| run(vcpu, &mut exit, err));
        rig.log(true).expect("the log starts");
        let take = t.vm_take_dirty_log.expect("mandatory");
        let mut bitmap = words;
        invalid("a bitmap of another length", &mut |err| take(vm, 0, bitmap.as_mut_ptr(), 3, err));
        invalid("no bitmap", &mut |err| take(vm, 0, std::ptr::null_mut(), 16, err));
    }
}
