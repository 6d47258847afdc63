use super::*;
use crate::virtio::mock::{BUFFERS, Driver, ram};
use crate::virtio::transport::reg;
use std::sync::atomic::Ordering::SeqCst;
use vm_memory::{Bytes, GuestAddress};

fn config() -> BalloonConfig {
    serde_json::from_str(r#"{"amount_mib": 2, "deflate_on_oom": true, "free_page_reporting": true, "stats_polling_interval_s": 60}"#)
        .unwrap()
}

fn started() -> Driver<Balloon> {
    let mut d = Driver::new(Balloon::new(&config(), 4).unwrap(), ram());
    d.start_plain();
    d
}

#[test]
fn inflated_pages_lose_their_contents_and_no_others() {
    let mut d = started();
    assert_eq!(d.get(reg::CONFIG), 512);
    // Whole 64 KiB, so that hosts with large pages release them too.
    let first = (BUFFERS + 0x10_0000) / PAGE;
    d.mem.write_slice(&[9; 0x3_0000], GuestAddress(first * PAGE - 0x1_0000)).unwrap();
    let pages: Vec<u8> = (0..16).rev().flat_map(|i| (first as u32 + i).to_le_bytes()).collect();
    // With it page numbers that are no RAM.
    d.send(0, &[&pages, &u32::MAX.to_le_bytes(), &[1, 2]], &[]);
    assert!(d.run(0, 2));
    assert!(d.used(0).is_some() && !d.broken());
    assert!(d.bytes(first * PAGE, 0x1_0000).iter().all(|b| *b == 0));
    assert!(d.bytes(first * PAGE - 0x1_0000, 0x1_0000).iter().all(|b| *b == 9));
    assert!(d.bytes(first * PAGE + 0x1_0000, 0x1_0000).iter().all(|b| *b == 9));
    d.set(reg::CONFIG + 4, 16);
    assert_eq!(d.worker.lock().unwrap().device().statistics().unwrap().actual_pages, 16);
    d.send(1, &[&pages], &[]);
    d.run(1, 2);
    assert!(d.used(1).is_some());
    // Reported pages go the same way.
    let at = first * PAGE + 0x1_0000;
    d.desc(3, 0, at, 0x1_0000, crate::virtio::mock::WRITE, 0);
    d.offer(3, 0);
    d.run(3, 2);
    assert!(d.bytes(at, 0x1_0000).iter().all(|b| *b == 0));
}

#[test]
fn statistics_go_to_and_fro_and_survive_a_move() {
    let mut d = started();
    let mut entry = 4u16.to_le_bytes().to_vec();
    entry.extend(12345u64.to_le_bytes());
    entry.extend([0xff; 10]);
    d.send(2, &[&entry], &[]);
    d.run(2, 2);
    assert_eq!(d.used(2), None, "kept until it is asked for");
    assert_eq!(d.worker.lock().unwrap().device().statistics().unwrap().guest.free_memory, Some(12345));
    d.set(reg::CONFIG + 4, 7);
    let mut d = d.moved_to(Balloon::new(&BalloonConfig { amount_mib: 0, ..config() }, 4).unwrap());
    assert_eq!((d.get(reg::CONFIG), d.get(reg::CONFIG + 4)), (512, 7));
    d.worker.lock().unwrap().run_event(0, EventSet::IN);
    assert_eq!(d.used(2), Some((0, 0)));
    d.worker.lock().unwrap().run_event(0, EventSet::IN);
    assert_eq!(d.used(2), None);
}

#[test]
fn a_new_target_interrupts_and_too_large_a_one_is_refused() {
    let mut d = started();
    let generation = d.get(reg::CONFIG_GENERATION);
    {
        let mut worker = d.worker.lock().unwrap();
        worker.device_mut().set_target(3).unwrap();
        worker.config_changed();
        assert!(worker.device_mut().set_target(5).is_err());
    }
    assert_eq!(d.get(reg::CONFIG), 768);
    assert_eq!((d.get(reg::INTERRUPT_STATUS), d.line.edges.load(SeqCst)), (2, 1));
    assert_ne!(d.get(reg::CONFIG_GENERATION), generation);
}
