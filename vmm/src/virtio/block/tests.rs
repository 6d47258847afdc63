use super::*;
use crate::virtio::fuzz::test_disk;
use crate::virtio::mock::{Driver, ram};
use crate::virtio::transport::reg;
use proptest::prelude::*;
use std::os::unix::fs::FileExt;
use vmm_sys_util::tempfile::TempFile;

fn started() -> (Driver<Block>, TempFile) {
    let (disk, file) = test_disk(false);
    let mut driver = Driver::new(disk, ram());
    driver.start_plain();
    (driver, file)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut h = kind.to_le_bytes().to_vec();
    h.extend([0; 4]);
    h.extend(sector.to_le_bytes());
    h
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut r = sector.to_le_bytes().to_vec();
    r.extend(count.to_le_bytes());
    r.extend(flags.to_le_bytes());
    r
}

/// Sends a request with its status byte; status and used length.
fn request(d: &mut Driver<Block>, out: &[&[u8]], into: &[u32]) -> (u8, u32, Vec<u64>) {
    let mut into = into.to_vec();
    into.push(1);
    let at = d.send(0, out, &into);
    d.mem_poison(*at.last().unwrap());
    assert!(d.run(0, 2));
    let (_, len) = d.used(0).expect("answered");
    (d.bytes(*at.last().unwrap(), 1)[0], len, at)
}

impl Driver<Block> {
    fn mem_poison(&self, at: u64) {
        use vm_memory::{Bytes, GuestAddress};
        self.mem.write_slice(&[0xee], GuestAddress(at)).unwrap();
    }
}

#[test]
fn what_is_written_is_read_back_in_any_framing() {
    let (mut d, file) = started();
    let data: Vec<u8> = (0..2048u32).map(|i| (i * 7) as u8).collect();
    let h = header(1, 3);
    // Header in two pieces, data in three.
    let out: [&[u8]; 5] = [&h[..5], &h[5..], &data[..1], &data[1..700], &data[700..]];
    assert_eq!(request(&mut d, &out, &[]).0, request::OK);
    let mut on_disk = vec![0; 2048];
    file.as_file().read_exact_at(&mut on_disk, 3 * 512).unwrap();
    assert_eq!(on_disk, data);
    let (status, used, at) = request(&mut d, &[&header(0, 3)], &[100, 1000, 948]);
    assert_eq!((status, used), (request::OK, 2049));
    let got = [d.bytes(at[1], 100), d.bytes(at[2], 1000), d.bytes(at[3], 948)].concat();
    assert_eq!(got, data);
    assert_eq!(d.line.edges.load(std::sync::atomic::Ordering::SeqCst), 1, "not acknowledged between");
}

#[test]
fn requests_beyond_the_end_or_not_in_sectors_fail_and_the_next_works() {
    let (mut d, _file) = started();
    for (kind, sector, len) in
        [(0, 64, 512), (0, 63, 1024), (0, u64::MAX, 512), (0, 0, 511), (0, u64::MAX / 512, 512)]
    {
        assert_eq!(request(&mut d, &[&header(kind, sector)], &[len]).0, request::IO_ERROR, "{sector} {len}");
    }
    for (sector, len) in [(64, 512), (u64::MAX, 512), (0, 513)] {
        let data = vec![0; len];
        assert_eq!(request(&mut d, &[&header(1, sector), &data], &[]).0, request::IO_ERROR);
    }
    assert_eq!(request(&mut d, &[&header(77, 0)], &[]).0, request::UNSUPPORTED);
    assert_eq!(request(&mut d, &[&[1, 2, 3]], &[]).0, request::IO_ERROR);
    assert_eq!(request(&mut d, &[&header(0, 63)], &[512]).0, request::OK);
    assert!(!d.broken());
}

#[test]
fn discard_and_write_zeroes_touch_exactly_their_range() {
    let (mut d, file) = started();
    for (kind, flags) in [(11, 0), (13, 0), (13, 1)] {
        file.as_file().write_all_at(&[0xff; 64 * 512], 0).unwrap();
        let r = range(5, 3, flags);
        assert_eq!(request(&mut d, &[&header(kind, 0), &r], &[]).0, request::OK);
        let mut all = vec![0; 64 * 512];
        file.as_file().read_exact_at(&mut all, 0).unwrap();
        let zeros: Vec<_> = all.iter().enumerate().filter(|(_, b)| **b == 0).map(|(i, _)| i).collect();
        assert_eq!((zeros.first(), zeros.len()), (Some(&(5 * 512)), 3 * 512), "{kind} {flags}");
    }
    assert_eq!(request(&mut d, &[&header(11, 0), &range(62, 3, 0)], &[]).0, request::IO_ERROR);
    assert_eq!(request(&mut d, &[&header(11, 0), &range(0, 1, 1)], &[]).0, request::UNSUPPORTED);
    assert_eq!(request(&mut d, &[&header(13, 0), &range(0, u32::MAX, 0)], &[]).0, request::IO_ERROR);
    assert_eq!(file.as_file().metadata().unwrap().len(), 64 * 512);
}

#[test]
fn serial_flush_and_configuration() {
    let (mut d, _file) = started();
    let (status, used, at) = request(&mut d, &[&header(8, 0)], &[20]);
    assert_eq!((status, used), (request::OK, 21));
    assert_eq!(d.bytes(at[1], 20), *b"fuzz\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(request(&mut d, &[&header(4, 0)], &[]).0, request::OK);
    assert_eq!((d.get(reg::CONFIG), d.get(reg::CONFIG + 4)), (64, 0));
    assert_eq!(d.get(reg::CONFIG + 0x100), 0);
}

#[test]
fn read_only_disks_refuse_writes() {
    let (disk, _file) = test_disk(true);
    let mut d = Driver::new(disk, ram());
    d.start_plain();
    assert_ne!(d.offered() & bits::RO, 0);
    assert_eq!(request(&mut d, &[&header(1, 0), &[1; 512]], &[]).0, request::IO_ERROR);
    assert_eq!(request(&mut d, &[&header(13, 0), &range(0, 1, 0)], &[]).0, request::IO_ERROR);
    assert_eq!(request(&mut d, &[&header(0, 0)], &[512]).0, request::OK);
}

#[test]
fn a_disk_that_moves_in_mid_queue_goes_on_there() {
    let (mut d, file) = started();
    d.send(0, &[&header(1, 0), &[7; 512]], &[1]);
    assert!(d.run(0, 2));
    d.send(0, &[&header(1, 1), &[8; 512]], &[1]);
    // Not yet run: the second request moves in the ring.
    let path = file.as_path().display().to_string();
    let (fresh, _other) = test_disk(false);
    drop(fresh);
    let config = DriveConfig {
        drive_id: "elsewhere".into(),
        path_on_host: Some(path),
        is_root_device: false,
        partuuid: None,
        is_read_only: None,
        cache_type: CacheType::Writeback,
        rate_limiter: None,
        io_engine: None,
        on_migration: Default::default(),
        socket: None,
    };
    let mut d = d.moved_to(Block::new(&config).unwrap());
    assert!(d.run(0, 2));
    assert_eq!((d.used(0).is_some(), d.used(0).is_some(), d.used(0)), (true, true, None));
    let mut both = [0; 1024];
    file.as_file().read_exact_at(&mut both, 0).unwrap();
    assert_eq!((both[0], both[512]), (7, 8));
    let (_, _, at) = request(&mut d, &[&header(8, 0)], &[20]);
    assert_eq!(d.bytes(at[1], 4), *b"fuzz", "the serial number is the guest's");
    // Another size is refused by name.
    let worker = d.worker.lock().unwrap();
    let section = worker.device().save();
    drop(worker);
    file.as_file().set_len(1024).unwrap();
    let error = Block::new(&config).unwrap().restore(&section, true).unwrap_err().to_string();
    assert_eq!(error, "drive elsewhere: 2 sectors here, 64 when saved");
    let gone = DriveConfig { path_on_host: Some("/nowhere/disk.img".into()), ..config };
    let error = Block::new(&gone).unwrap_err().to_string();
    assert!(error.contains("drive elsewhere") && error.contains("/nowhere/disk.img"), "{error}");
}

#[test]
fn a_rate_limited_disk_waits_and_goes_on() {
    let (mut disk, _file) = test_disk(false);
    let ops = crate::virtio::ratelimit::TokenBucketConfig { size: 2, one_time_burst: None, refill_time: 100 };
    disk.update_limiter(&RateLimiterConfig { bandwidth: None, ops: Some(ops) });
    let mut d = Driver::new(disk, ram());
    d.start_plain();
    for _ in 0..3 {
        d.send(0, &[&header(0, 0)], &[512, 1]);
    }
    assert!(d.run(0, 1));
    assert_eq!((0..9).filter_map(|_| d.used(0)).count(), 2);
    d.clock.0.store(60_000_000, std::sync::atomic::Ordering::SeqCst);
    d.worker.lock().unwrap().run_event(0, EventSet::IN);
    assert_eq!((0..9).filter_map(|_| d.used(0)).count(), 1);
}

/// Bytes that a driver which always wants more gets in ten seconds of guest time.
fn ten_seconds(d: &mut Driver<Block>) -> u64 {
    let mut bytes = 0;
    for _ in 0..1000 {
        d.clock.0.fetch_add(10_000_000, std::sync::atomic::Ordering::SeqCst);
        d.worker.lock().unwrap().run_event(0, EventSet::IN);
        loop {
            while d.outstanding(0) < 5 {
                d.send(0, &[&header(0, 0)], &[512, 1]);
            }
            assert!(d.run(0, 1));
            let done = (0..9).filter_map(|_| d.used(0)).count() as u64;
            bytes += done * 512;
            if done == 0 {
                break;
            }
        }
    }
    bytes
}

#[test]
fn a_limited_disk_gives_what_is_configured_and_a_change_counts() {
    let (mut disk, _file) = test_disk(false);
    let limit = |size, one_time_burst, refill_time| RateLimiterConfig {
        bandwidth: Some(crate::virtio::ratelimit::TokenBucketConfig { size, one_time_burst, refill_time }),
        ops: None,
    };
    disk.update_limiter(&limit(4096, Some(8192), 100));
    let mut d = Driver::new(disk, ram());
    d.start_plain();
    // A full bucket, the burst once, then 40,960 bytes a second; the last request of each turn may overdraw.
    let got = ten_seconds(&mut d);
    assert!((421_888 - 512..=421_888 + 1024).contains(&got), "{got}");
    d.worker.lock().unwrap().device_mut().update_limiter(&limit(8192, None, 100));
    let got = ten_seconds(&mut d);
    assert!((827_392 - 512..=827_392 + 1024).contains(&got), "{got}");
    // Only operations are named: bandwidth stays as it is.
    let ops =
        crate::virtio::ratelimit::TokenBucketConfig { size: 100, one_time_burst: None, refill_time: 1000 };
    d.worker
        .lock()
        .unwrap()
        .device_mut()
        .update_limiter(&RateLimiterConfig { bandwidth: None, ops: Some(ops) });
    let got = ten_seconds(&mut d) / 512;
    assert!((1099..=1101).contains(&got), "{got}");
}

proptest! {
    #[test]
    fn any_write_then_read_agrees(sector in 0u64..60, cut in 1usize..511, fill: u8) {
        let (mut d, _file) = started();
        let data = vec![fill; 1024];
        let status = request(&mut d, &[&header(1, sector), &data[..cut], &data[cut..]], &[]).0;
        prop_assert_eq!(status, request::OK);
        let (status, _, at) = request(&mut d, &[&header(0, sector)], &[1024]);
        prop_assert_eq!(status, request::OK);
        prop_assert_eq!(d.bytes(at[1], 1024), data);
    }
}
