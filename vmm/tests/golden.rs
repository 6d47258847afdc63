//! Golden bytes of the state container, of the sections of board and devices, and of the migration protocol's offer: frozen, and missing files fail.
//!
//! The procedure for a change is in `docs/STATE-FORMAT.md` and `docs/MIGRATION-PROTOCOL.md`.

use godwit_state::{ClockV1, FpuV1, RawSection, RegsV1, Section, model::Model};
use godwit_vmm::board::clock::BoardClockV1;
use godwit_vmm::board::generation::GenerationV1;
use godwit_vmm::board::i8042::I8042V1;
use godwit_vmm::board::pit::PitV1;
use godwit_vmm::board::rtc::RtcV1;
use godwit_vmm::board::serial::SerialV1;
use godwit_vmm::board::{IoApicV1, PicV1};
use godwit_vmm::control::SnapshotDevicesV1;
use godwit_vmm::machine::{board_kinds, device_kinds};
use godwit_vmm::memory::Region;
use godwit_vmm::migrate::{Offer, OfferedDevice, OfferedSection};
use godwit_vmm::snapshot::SnapshotMemoryV1;
use godwit_vmm::state::{self, BOARD_MICROVM, Header, MachineSection};
use godwit_vmm::virtio::balloon::BalloonV1;
use godwit_vmm::virtio::block::BlockV1;
use godwit_vmm::virtio::net::NetV1;
use godwit_vmm::virtio::rng::RngV1;
use godwit_vmm::virtio::transport::{MmioV1, QueueV1};
use godwit_vmm::virtio::vsock::VsockV1;
use std::path::PathBuf;

fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens").join(name);
    let mut hex = String::new();
    for line in bytes.chunks(32) {
        hex.extend(line.iter().map(|b| format!("{b:02x}")));
        hex.push('\n');
    }
    if std::env::var_os("GODWIT_WRITE_GOLDENS").is_some() && !path.exists() {
        std::fs::write(&path, &hex).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(found, hex, "the bytes differ from {}", path.display());
    let digits: Vec<u8> = found.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

fn header() -> Header {
    Header {
        board: BOARD_MICROVM,
        vcpus: 3,
        memory_bytes: 0x1_2345_6000,
        model: "x86-64-v2".into(),
        producer: "godwit 0.1.0".into(),
    }
}

fn sections() -> Vec<MachineSection> {
    let regs = RegsV1 { rip: 0xffff_8000_1234_5678, rflags: 0x246, ..RegsV1::default() };
    let clock = ClockV1 {
        tsc_khz: 2_600_000,
        tsc: 1 << 40,
        kvmclock_ns: 12_345,
        realtime_ns: 1_700_000_000_000_000_000,
    };
    let unknown =
        RawSection { kind: "test.optional".into(), version: 300, optional: true, data: vec![0xa5; 130] };
    let memory = SnapshotMemoryV1 { bytes: 0x1_2345_6000, diff: Some(vec![(1, 2), (300, 70_000)]) };
    [
        (0, RawSection::mandatory(&regs)),
        (200, RawSection::mandatory(&FpuV1::default())),
        (0, RawSection::mandatory(&clock)),
        (1, unknown),
        (0, RawSection::mandatory(&memory)),
    ]
    .map(|(instance, section)| MachineSection { instance, section })
    .into()
}

#[test]
fn the_container_is_frozen() {
    let bytes = golden("container/v1.hex", &state::write(&header(), &sections()).unwrap());
    assert_eq!(state::read(&bytes).unwrap(), (header(), sections()));
}

#[test]
fn the_offer_is_frozen() {
    let offer = Offer {
        producer: "godwit 0.1.0".into(),
        board: BOARD_MICROVM,
        vcpus: 3,
        regions: vec![Region { gpa: 0, len: 0xd000_0000 }, Region { gpa: 1 << 32, len: 0x5345_6000 }],
        model: "x86-64-v2".into(),
        features: Model::V2.features().unwrap(),
        tsc_khz: 2_600_000,
        allow_tsc_mismatch: true,
        sections: vec![
            OfferedSection { kind: "x86.regs".into(), version: 1, optional: false },
            OfferedSection { kind: "test.optional".into(), version: 300, optional: true },
        ],
        devices: vec![OfferedDevice { kind: "virtio.blk".into(), id: "rootfs".into() }],
        description: b"{\"drives\":[]}".to_vec(),
    };
    let bytes = golden("migration/offer.v1.hex", &offer.encode());
    assert_eq!(Offer::decode(&bytes).unwrap(), offer);
}

fn pit() -> PitV1 {
    let mut pit = PitV1 { speaker: true, line: true, ..PitV1::default() };
    pit.channels[0].count = 0x1_0000;
    pit.channels[2].latched = Some(0x1234);
    pit.channels[2].status = Some(0xb6);
    pit.channels[2].start_ns = 1 << 40;
    pit
}

fn pic() -> PicV1 {
    let mut pic = PicV1::default();
    (pic.master.imr, pic.master.base, pic.master.special_mask) = (0xfb, 0x20, true);
    (pic.slave.irr, pic.slave.base, pic.slave.highest, pic.slave.elcr) = (0x41, 0x28, 7, 0x0e);
    pic
}

fn ioapic() -> IoApicV1 {
    let mut entries = [1 << 16; 24];
    entries[4] = 0x0300_0000_0000_8031;
    entries[23] = 0xff00_0000_0000_0930;
    IoApicV1 { select: 0x10, id: 3, entries, levels: 1 << 4 }
}

fn rtc() -> RtcV1 {
    let memory = (0..128).map(|i| i as u8 ^ 0x5a).collect();
    RtcV1 { index: 13, memory, offset_s: -3600, seen_ns: 123_456_789_012 }
}

fn serial() -> SerialV1 {
    SerialV1 {
        ier: 5,
        lcr: 3,
        mcr: 11,
        msr: 0xb0,
        scr: 0x77,
        fcr: 0xc1,
        divisor: 0x0180,
        overrun: true,
        thr_pending: true,
        input: b"typed".to_vec(),
        output: b"not yet printed".to_vec(),
    }
}

fn mmio() -> MmioV1 {
    MmioV1 {
        device: 2,
        offered: 0x1_3000_0226,
        accepted: 0x1_0000_0200,
        offered_select: 1,
        accepted_select: 1,
        queue_select: 0,
        status: 15,
        interrupt_status: 1,
        config_generation: 4,
        queues: vec![
            QueueV1 {
                size: 256,
                ready: true,
                desc: 0x1_0000_0000,
                avail: 0x1_0000_1000,
                used: 0x1_0000_2000,
                next_avail: 65_535,
                next_used: 65_530,
            },
            QueueV1 { size: 1, ..QueueV1::default() },
        ],
    }
}

/// One sample of every section of the board and of the devices.
fn machine_samples() -> Vec<RawSection> {
    let net = NetV1 { mac: Some([6, 0, 0xac, 16, 0, 2]), seen: None };
    vec![
        RawSection::mandatory(&BoardClockV1 { now_ns: 1 << 50 }),
        RawSection::mandatory(&pic()),
        RawSection::mandatory(&ioapic()),
        RawSection::mandatory(&pit()),
        RawSection::mandatory(&rtc()),
        RawSection::mandatory(&I8042V1 { output: vec![0xfa, 0x45], config: 0x45, port: 3, command: 0xd1 }),
        RawSection::mandatory(&serial()),
        RawSection::optional(&GenerationV1 { id: *b"generation ID 16" }),
        RawSection::mandatory(&mmio()),
        RawSection::mandatory(&BlockV1 {
            sectors: 1 << 33,
            read_only: true,
            serial: *b"rootfs--------------",
        }),
        RawSection::mandatory(&RngV1 {}),
        RawSection::mandatory(&net),
        RawSection::mandatory(&VsockV1 { guest_cid: 300 }),
        RawSection::mandatory(&BalloonV1 { target_pages: 512, actual_pages: 300, stats_head: Some(7) }),
    ]
}

fn still_decodes<S: Section + PartialEq + std::fmt::Debug>(value: &S, data: &[u8]) {
    let raw = RawSection { data: data.to_vec(), ..RawSection::mandatory(value) };
    assert_eq!(godwit_state::decode_section::<S>(&raw).unwrap(), *value, "{}", S::KIND);
}

#[test]
fn the_sections_of_snapshots_are_frozen() {
    let devices = SnapshotDevicesV1 { json: br#"{"drives":[]}"#.to_vec() };
    let bytes = golden("snapshot/snapshot.devices.v1.hex", &RawSection::mandatory(&devices).data);
    still_decodes(&devices, &bytes);
    let memory = SnapshotMemoryV1 { bytes: 0x1_2345_6000, diff: Some(vec![(1, 2), (300, 70_000)]) };
    let bytes = golden("snapshot/snapshot.memory.v1.hex", &RawSection::mandatory(&memory).data);
    still_decodes(&memory, &bytes);
}

#[test]
fn every_section_of_board_and_devices_is_frozen() {
    let samples = machine_samples();
    let mut known = board_kinds();
    known.extend(device_kinds());
    let sampled: Vec<_> = samples.iter().map(|s| (s.kind.clone(), s.version)).collect();
    assert_eq!(sampled, known, "a sample of every kind, in the newest version");
    for s in samples {
        let folder = s.kind.split('.').next().unwrap();
        let bytes = golden(&format!("{folder}/{}.v{}.hex", s.kind, s.version), &s.data);
        match s.kind.as_str() {
            "board.pic" => still_decodes(&pic(), &bytes),
            "board.pit" => still_decodes(&pit(), &bytes),
            "board.ioapic" => still_decodes(&ioapic(), &bytes),
            "board.rtc" => still_decodes(&rtc(), &bytes),
            "board.serial" => still_decodes(&serial(), &bytes),
            "virtio.mmio" => still_decodes(&mmio(), &bytes),
            _ => {}
        }
    }
}
