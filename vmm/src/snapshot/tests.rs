use super::*;
use crate::memory::{GuestRam, PAGE_SIZE, PageSet, Region, Run, WriteTracker};
use crate::state::{BOARD_MICROVM, Header};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const REGIONS: [Region; 2] = [Region { gpa: 0, len: 8 << 20 }, Region { gpa: 1 << 32, len: 1 << 20 }];
const LEN: u64 = 9 << 20;

fn ram() -> GuestRam {
    let ranges = REGIONS.map(|r| (GuestAddress(r.gpa), r.len as usize));
    Arc::new(GuestMemoryMmap::<WriteTracker>::from_ranges(&ranges).unwrap())
}

fn container() -> Vec<u8> {
    let header = Header {
        board: BOARD_MICROVM,
        vcpus: 1,
        memory_bytes: LEN,
        model: "x86-64".into(),
        producer: "godwit test".into(),
    };
    crate::state::write(&header, &[]).unwrap()
}

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("godwit-snapshot-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    dir
}

fn byte(ram: &GuestRam, gpa: u64) -> u8 {
    ram.read_obj(GuestAddress(gpa)).unwrap()
}

#[test]
fn a_snapshot_is_sparse_and_maps_back_without_being_changed() {
    let scratch = scratch("full");
    let ram = ram();
    let high = (1 << 32) + 0x1234;
    ram.write_slice(b"low", GuestAddress(0x5000)).unwrap();
    ram.write_slice(b"high", GuestAddress(high)).unwrap();
    let dir = scratch.join("snap");
    let container = container();
    let written = write_dir(&dir, Image { container: &container, ram: &ram, dirty: None }).unwrap();
    assert_eq!((written.memory_bytes, written.data_bytes), (LEN, 2 * PAGE_SIZE));
    let paths = Paths::in_dir(&dir);
    let on_disk = std::fs::metadata(&paths.memory).unwrap();
    assert!(on_disk.len() == LEN && on_disk.blocks() * 512 < LEN / 2, "the memory file is not sparse");

    let loaded = read_state(&paths.state).unwrap();
    assert_eq!(loaded.container().unwrap(), container);
    let (one, two) = (
        map_memory(&loaded, &paths.memory, &REGIONS).unwrap(),
        map_memory(&loaded, &paths.memory, &REGIONS).unwrap(),
    );
    assert_eq!((byte(&one, 0x5000), byte(&one, high + 3), byte(&one, 0x9000)), (b'l', b'h', 0));
    one.write_slice(b"L", GuestAddress(0x5000)).unwrap();
    assert_eq!(byte(&two, 0x5000), b'l', "clones share no writes");

    // A restored machine can be saved again, untouched pages included.
    let again = scratch.join("again");
    write_dir(&again, Image { container: &container, ram: &one, dirty: None }).unwrap();
    let again = map_memory(&loaded, &Paths::in_dir(&again).memory, &REGIONS).unwrap();
    assert_eq!((byte(&again, 0x5000), byte(&again, high)), (b'L', b'h'));
    let error =
        write_dir(&dir, Image { container: &container, ram: &ram, dirty: None }).unwrap_err().to_string();
    assert!(error.contains("is there already"), "{error}");
    std::fs::remove_dir_all(scratch).unwrap();
}

#[test]
fn a_diff_is_refused_alone_and_applies_to_its_base() {
    let dir = scratch("diff");
    let paths =
        |n: &str| Paths { state: dir.join(format!("{n}.state")), memory: dir.join(format!("{n}.mem")) };
    let ram = ram();
    ram.write_slice(b"12", GuestAddress(0x1fff)).unwrap();
    let container = container();
    write(&paths("base"), Image { container: &container, ram: &ram, dirty: None }).unwrap();
    // A page changes, one becomes zero, one stays.
    ram.write_slice(b"3", GuestAddress(1 << 32)).unwrap();
    ram.write_slice(&[0], GuestAddress(0x1fff)).unwrap();
    let mut dirty = PageSet::empty(&REGIONS);
    assert!(
        dirty.insert(Run { page: 1, count: 1 })
            && dirty.insert(Run { page: (1 << 32) / PAGE_SIZE, count: 1 })
    );
    let written =
        write(&paths("diff"), Image { container: &container, ram: &ram, dirty: Some(&dirty) }).unwrap();
    assert_eq!(written.data_bytes, 2 * PAGE_SIZE);

    let loaded = read_state(&paths("diff").state).unwrap();
    let error = map_memory(&loaded, &paths("diff").memory, &REGIONS).unwrap_err().to_string();
    assert!(error.contains("only the changes"), "{error}");
    apply_diff(&paths("diff"), &paths("base").memory).unwrap();
    let base = read_state(&paths("base").state).unwrap();
    let merged = map_memory(&base, &paths("base").memory, &REGIONS).unwrap();
    assert_eq!((byte(&merged, 0x1fff), byte(&merged, 0x2000), byte(&merged, 1 << 32)), (0, b'2', b'3'));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_failed_write_leaves_the_good_one_and_no_litter() {
    let dir = scratch("crash");
    let paths = Paths::in_dir(&dir);
    let (ram, container) = (ram(), container());
    write(&paths, Image { container: &container, ram: &ram, dirty: None }).unwrap();
    let before = std::fs::read(&paths.state).unwrap();
    // A damaged container is noticed after memory was written aside.
    assert!(write(&paths, Image { container: b"damaged", ram: &ram, dirty: None }).is_err());
    assert_eq!(std::fs::read(&paths.state).unwrap(), before);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "temporary files are left");
    // And a good one replaces it.
    ram.write_slice(b"x", GuestAddress(0)).unwrap();
    write(&paths, Image { container: &container, ram: &ram, dirty: None }).unwrap();
    let loaded = read_state(&paths.state).unwrap();
    assert_eq!(byte(&map_memory(&loaded, &paths.memory, &REGIONS).unwrap(), 0), b'x');

    std::fs::OpenOptions::new().write(true).open(&paths.memory).unwrap().set_len(LEN - PAGE_SIZE).unwrap();
    let error = map_memory(&loaded, &paths.memory, &REGIONS).unwrap_err().to_string();
    assert!(error.contains("bytes long"), "{error}");
    std::fs::write(&paths.state, &container).unwrap();
    assert!(read_state(&paths.state).unwrap_err().to_string().contains("not a snapshot"));
    std::fs::remove_dir_all(dir).unwrap();
}
