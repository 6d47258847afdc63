use super::{reg, status};
use crate::board::bus::BusDevice;
use crate::virtio::fuzz::test_disk;
use crate::virtio::mock::{BUFFERS, Driver, INDIRECT, NEXT, SIZE, WRITE, ram};
use crate::virtio::rng::{EntropyConfig, Rng};
use crate::virtio::{VirtioDevice, feature};
use std::sync::atomic::Ordering::SeqCst;

fn rng() -> Driver<Rng> {
    Driver::new(Rng::new(&EntropyConfig::default()).unwrap(), ram())
}

#[test]
fn identification_and_illegal_accesses() {
    let mut d = rng();
    assert_eq!([reg::MAGIC, reg::VERSION, reg::DEVICE_ID].map(|r| d.get(r)), [0x7472_6976, 2, 4]);
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 1)] {
        assert_eq!(d.mmio.read(offset, width), 0, "{offset} {width}");
        d.mmio.write(offset, width, u64::MAX);
    }
    assert_eq!(d.get(reg::SHM_LEN_LOW), u32::MAX);
    d.set(reg::QUEUE_SEL, 1);
    assert_eq!(d.get(reg::QUEUE_NUM_MAX), 0);
    d.set(reg::QUEUE_SEL, 0);
    assert_eq!(d.get(reg::QUEUE_NUM_MAX), 256);
}

#[test]
fn the_status_machine_takes_no_short_cuts() {
    let mut d = rng();
    d.set(reg::STATUS, status::DRIVER_OK);
    assert_eq!(d.get(reg::STATUS), 0);
    d.set(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    // Without VERSION_1, and with a feature that is not offered, FEATURES_OK does not stay.
    for (low, high) in [(0, 0), (1, 1), (0, 3)] {
        d.set(reg::DRIVER_FEATURES_SEL, 0);
        d.set(reg::DRIVER_FEATURES, low);
        d.set(reg::DRIVER_FEATURES_SEL, 1);
        d.set(reg::DRIVER_FEATURES, high);
        d.set(reg::STATUS, 11);
        assert_eq!(d.get(reg::STATUS), 3, "{low} {high}");
    }
    d.set(reg::DRIVER_FEATURES, 1);
    d.set(reg::STATUS, 11);
    assert_eq!(d.get(reg::STATUS), 11);
    // Features are fixed now; bits are not taken back.
    d.set(reg::DRIVER_FEATURES, 0);
    d.set(reg::STATUS, 1);
    assert_eq!(d.get(reg::STATUS), 11);
    // Queue set-up: sizes must be powers of two up to the maximum, addresses stay aligned.
    for (num, bad) in [(0, true), (3, true), (512, true), (0x1_0000, true), (64, false)] {
        d.set(reg::QUEUE_NUM, num);
        d.set(reg::QUEUE_READY, 0);
        assert_eq!(d.mmio.save().len(), 2, "{num} {bad}");
    }
    // A queue outside RAM: DRIVER_OK breaks the device, a reset mends it.
    d.set(reg::QUEUE_DESC_HIGH, 0xffff_ffff);
    d.set(reg::QUEUE_DRIVER_LOW, 0x1000);
    d.set(reg::QUEUE_READY, 1);
    d.set(reg::STATUS, 15);
    assert!(d.broken());
    assert_eq!(d.get(reg::INTERRUPT_STATUS), 2);
    d.set(reg::STATUS, 0);
    assert_eq!((d.get(reg::STATUS), d.get(reg::INTERRUPT_STATUS), d.get(reg::QUEUE_READY)), (0, 0, 0));
    assert!(!d.line.level.load(SeqCst));
    d.start_plain();
    d.send(0, &[], &[64]);
    assert!(d.run(0, 2));
    assert_eq!(d.used(0), Some((0, 64)));
}

/// A driver that has asked for what is not there, and was not told yet, moves as any other does.
#[test]
fn features_that_are_not_on_offer_are_saved_as_they_were_written() {
    let mut d = rng();
    d.set(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    d.set(reg::DRIVER_FEATURES, 0x1400);
    d.set(reg::STATUS, 11);
    let mut d = d.moved_to(Rng::new(&EntropyConfig::default()).unwrap());
    assert_eq!(d.get(reg::STATUS), 3);
    d.set(reg::STATUS, 0);
    d.start_plain();
    d.send(0, &[], &[64]);
    assert!(d.run(0, 2));
}

#[test]
fn interrupts_are_edges_for_everything_not_yet_seen() {
    let mut d = rng();
    d.start_plain();
    d.send(0, &[], &[8]);
    d.run(0, 2);
    d.worker.lock().unwrap().config_changed();
    assert_eq!(d.get(reg::INTERRUPT_STATUS), 3);
    assert_eq!(d.line.edges.load(SeqCst), 1);
    d.set(reg::INTERRUPT_ACK, 1);
    assert_eq!((d.line.edges.load(SeqCst), d.line.level.load(SeqCst)), (2, true));
    d.set(reg::INTERRUPT_ACK, 2);
    assert_eq!((d.line.edges.load(SeqCst), d.line.level.load(SeqCst)), (2, false));
}

#[test]
fn the_event_index_saves_interrupts_and_notifications() {
    let mut d = rng();
    let offered = d.offered();
    d.start(offered);
    // used_event 2: an interrupt only for the third buffer.
    use vm_memory::{Bytes, GuestAddress};
    d.mem.write_slice(&2u16.to_le_bytes(), GuestAddress(0x1_1000 + 4 + 2 * u64::from(SIZE))).unwrap();
    for (n, level) in [(1, false), (2, false), (3, true)] {
        d.send(0, &[], &[8]);
        d.run(0, 2);
        assert_eq!(d.line.level.load(SeqCst), level, "{n}");
    }
    let avail_event = d.bytes(0x1_2000 + 4 + 8 * u64::from(SIZE), 2);
    assert_eq!(avail_event, [3, 0]);
    // Without it, VIRTQ_AVAIL_F_NO_INTERRUPT counts.
    d.start(offered & !feature::EVENT_IDX);
    d.mem.write_slice(&1u16.to_le_bytes(), GuestAddress(0x1_1000)).unwrap();
    d.send(0, &[], &[8]);
    d.run(0, 2);
    assert_eq!((d.used(0).is_some(), d.line.level.load(SeqCst)), (true, false));
}

#[test]
fn indirect_chains_work() {
    let mut d = rng();
    d.start_plain();
    d.desc(0, 0, BUFFERS, 32, INDIRECT, 0);
    d.desc_at(BUFFERS, BUFFERS + 0x100, 7, WRITE | NEXT, 1);
    d.desc_at(BUFFERS + 16, BUFFERS + 0x200, 9, WRITE, 0);
    d.offer(0, 0);
    d.run(0, 1);
    assert_eq!(d.used(0), Some((0, 16)));
}

#[test]
fn a_paused_device_touches_nothing_and_goes_on_after() {
    use super::DeviceSide;
    let mut d = rng();
    d.start_plain();
    d.worker.lock().unwrap().pause();
    d.send(0, &[], &[8]);
    d.run(0, 1);
    assert_eq!(d.used(0), None);
    d.worker.lock().unwrap().resume();
    assert_eq!(d.mmio.doorbells()[0].read().unwrap(), 2, "started, resumed");
    d.run(0, 1);
    assert!(d.used(0).is_some());
}

#[test]
fn state_of_another_device_is_refused() {
    let mut disk = Driver::new(test_disk(false).0, ram());
    let error = disk.mmio.restore(&rng().mmio.save()).unwrap_err().to_string();
    assert_eq!(error, "drive fuzz: the state is of virtio device type 4, here is type 2");
    assert!(disk.mmio.restore(&[]).is_err());
    let _ = disk.worker.lock().unwrap().device().name();
}
