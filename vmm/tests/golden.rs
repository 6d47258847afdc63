//! Golden bytes of the state container and of the migration protocol's offer: frozen, and missing files fail.
//!
//! The procedure for a change is in `docs/STATE-FORMAT.md` and `docs/MIGRATION-PROTOCOL.md`.

use godwit_state::{ClockV1, FpuV1, RawSection, RegsV1, model::Model};
use godwit_vmm::memory::Region;
use godwit_vmm::migrate::{Offer, OfferedDevice, OfferedSection};
use godwit_vmm::snapshot::SnapshotMemoryV1;
use godwit_vmm::state::{self, BOARD_MICROVM, Header, MachineSection};
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
