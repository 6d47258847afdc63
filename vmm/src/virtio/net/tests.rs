use super::*;
use crate::virtio::feature;
use crate::virtio::mock::{Driver, SIZE, ram};
use crate::virtio::transport::reg;
use std::io::{Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

const GUEST: [u8; 6] = [6, 0, 0xac, 0x10, 0, 2];

fn config() -> NetworkInterfaceConfig {
    let json = r#"{"iface_id": "eth0", "passt_socket": "unused", "guest_mac": "06:00:AC:10:00:02"}"#;
    serde_json::from_str(json).unwrap()
}

fn pair() -> (Net, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Net::over(&config(), ours).unwrap(), theirs)
}

fn started(mergeable: bool) -> (Driver<Net>, UnixStream) {
    let (net, peer) = pair();
    let mut d = Driver::new(net, ram());
    d.start(feature::VERSION_1 | bits::MAC | if mergeable { bits::MRG_RXBUF } else { 0 });
    (d, peer)
}

fn frame(len: usize, fill: u8) -> Vec<u8> {
    let mut f = vec![0xff; 6];
    f.extend(GUEST);
    f.extend([8, 0]);
    f.resize(len, fill);
    f
}

fn put(peer: &mut UnixStream, frame: &[u8]) {
    peer.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    peer.write_all(frame).unwrap();
}

fn get(peer: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    peer.read_exact(&mut len).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

#[test]
fn an_mtu_is_told_to_who_asks() {
    let mtu = |text: &str| {
        let json = format!(r#"{{"iface_id": "eth0", "passt_socket": "unused", "mtu": {text}}}"#);
        serde_json::from_str::<NetworkInterfaceConfig>(&json).map_err(|e| e.to_string())
    };
    for bad in ["0", "67", "65536", "-1", "1.5", "18446744073709551615"] {
        assert!(mtu(bad).is_err(), "{bad}");
    }
    assert!(mtu("67").unwrap_err().contains("mtu: 67 is not in 68 to 65535"));
    for (text, value) in [("68", Some(68)), ("1400", Some(1400)), ("65535", Some(65535)), ("null", None)] {
        let config = mtu(text).unwrap();
        assert_eq!(config.mtu, value);
        let net = Net::over(&config, UnixStream::pair().unwrap().0).unwrap();
        assert_eq!(net.features() & 1 << 3 != 0, value.is_some());
        assert_eq!(net.config()[10..], value.unwrap_or(0).to_le_bytes());
    }
}

#[test]
fn macs() {
    assert_eq!(config().guest_mac, Some(Mac(GUEST)));
    assert_eq!(String::from(Mac(GUEST)), "06:00:ac:10:00:02");
    for bad in [
        "",
        "06:00:ac:10:00",
        "06:00:ac:10:00:02:03",
        "6:00:ac:10:00:02",
        "+6:00:ac:10:00:02",
        "g0:0:0:0:0:0",
    ] {
        assert!(Mac::try_from(bad.to_string()).is_err(), "{bad}");
    }
}

#[test]
fn frames_go_out_whole_in_any_framing() {
    let (mut d, mut peer) = started(true);
    let f = frame(1000, 0x5a);
    d.send(1, &[&[0; 5], &[0; 7], &f[..10], &f[10..]], &[]);
    d.send(1, &[&[[0; 12].as_slice(), &f].concat()], &[]);
    assert!(d.run(1, 2));
    assert_eq!((get(&mut peer), get(&mut peer)), (f.clone(), f));
    assert_eq!((d.used(1), d.used(1)), (Some((0, 0)), Some((4, 0))));
    // Too short, too long: dropped, given back.
    d.send(1, &[&[0; 26]], &[]);
    let big = vec![0; 66_000];
    d.send(1, &[&big], &[]);
    assert!(d.run(1, 2));
    assert!(d.used(1).is_some() && d.used(1).is_some() && !d.broken());
    peer.set_nonblocking(true).unwrap();
    assert!(peer.read(&mut [0]).is_err());
}

#[test]
fn a_frame_waits_for_buffers_and_fills_several() {
    let (mut d, mut peer) = started(true);
    let f: Vec<u8> = (0..2000u32).map(|i| i as u8).collect();
    put(&mut peer, &f);
    put(&mut peer, &f[..60]);
    assert!(d.run(0, 2));
    assert_eq!(d.used(0), None);
    // 12 + 2000 bytes need three buffers of 800; two are not enough and stay unused.
    let mut at = d.send(0, &[], &[800]);
    at.extend(d.send(0, &[], &[800]));
    assert!(d.run(0, 2));
    assert_eq!(d.used(0), None);
    at.extend(d.send(0, &[], &[500, 300]));
    at.extend(d.send(0, &[], &[800]));
    assert!(d.run(0, 2));
    let lens: Vec<_> = (0..4).map(|_| d.used(0).unwrap().1).collect();
    assert_eq!(lens, [800, 800, 412, 72]);
    let got = [d.bytes(at[0], 800), d.bytes(at[1], 800), d.bytes(at[2], 412)].concat();
    assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    assert_eq!(got[12..], f);
    assert_eq!(d.bytes(at[4], 72)[10..], [&[1, 0], &f[..60]].concat());
}

#[test]
fn a_guest_that_is_behind_may_put_back_buffers_before_it_is_asked_to_tell() {
    let (mut d, mut peer) = started(true);
    // The used ring's flags: no notification wanted.
    let asked = |d: &Driver<Net>| d.bytes(0x1_2000, 2) == [0, 0];
    put(&mut peer, &frame(60, 1));
    d.run(0, 1);
    for _ in 0..REFILL_WAITS {
        assert!(!asked(&d));
        d.worker.lock().unwrap().run_event(LINK, EventSet::IN);
        d.worker.lock().unwrap().run_event(REFILL_TIMER, EventSet::IN);
    }
    assert!(asked(&d), "it may be at rest");
    d.send(0, &[], &[200]);
    d.run(0, 1);
    assert_eq!(d.used(0), Some((0, 72)));
}

#[test]
fn without_merged_buffers_a_frame_that_does_not_fit_is_dropped() {
    let (mut d, mut peer) = started(false);
    put(&mut peer, &frame(900, 1));
    put(&mut peer, &frame(60, 2));
    d.send(0, &[], &[200]);
    let at = d.send(0, &[], &[200]);
    assert!(d.run(0, 2));
    assert_eq!(d.used(0), Some((0, 72)));
    assert_eq!(d.used(0), None);
    let _ = at;
}

#[test]
fn a_peer_that_breaks_the_protocol_or_leaves_only_kills_the_link() {
    let (mut d, mut peer) = started(true);
    peer.write_all(&[0xff; 8]).unwrap();
    d.send(0, &[], &[2000]);
    assert!(d.run(0, 2));
    drop(peer);
    d.send(1, &[&[0; 12], &frame(60, 0)], &[]);
    assert!(d.run(1, 2));
    assert!(d.used(1).is_some() && !d.broken());
}

#[test]
fn a_slow_peer_holds_the_queue_back_without_loss() {
    let (mut d, mut peer) = started(true);
    let mut sent = 0usize;
    let big = frame(60_000, 7);
    while sent < 100 {
        d.send(1, &[&[0; 12], &big], &[]);
        sent += 1;
        d.run(1, 2);
        if d.used(1).is_none() {
            break;
        }
    }
    assert!(sent < 100, "the socket took everything");
    peer.set_nonblocking(true).unwrap();
    let mut got = vec![0; 4096];
    let mut total = 0;
    for _ in 0..1000 {
        total += peer.read(&mut got).unwrap_or(0);
        d.worker.lock().unwrap().run_event(LINK, EventSet::OUT);
    }
    assert_eq!(total, sent * 60_004);
    assert_eq!(d.used(1).map(|u| u.1), Some(0));
}

#[test]
fn rate_limits_hold_both_ways() {
    let (mut net, mut peer) = pair();
    let ops =
        Some(crate::virtio::ratelimit::TokenBucketConfig { size: 1, one_time_burst: None, refill_time: 10 });
    let limit = RateLimiterConfig { bandwidth: None, ops };
    net.update_limiters(Some(&limit), Some(&limit));
    let mut d = Driver::new(net, ram());
    d.start_plain();
    for _ in 0..2 {
        put(&mut peer, &frame(60, 1));
        d.send(0, &[], &[100]);
        d.send(1, &[&[0; 12], &frame(60, 1)], &[]);
    }
    d.run(0, 2);
    d.run(1, 2);
    for q in [0, 1] {
        assert!(d.used(q).is_some() && d.used(q).is_none(), "queue {q}");
    }
    d.clock.0.store(10_000_000, SeqCst);
    d.worker.lock().unwrap().run_event(RX_TIMER, EventSet::IN);
    d.worker.lock().unwrap().run_event(TX_TIMER, EventSet::IN);
    assert!(d.used(0).is_some() && d.used(1).is_some());
}

#[test]
fn a_moved_guest_keeps_its_mac_and_announces_itself() {
    let (mut d, _peer) = started(true);
    d.send(0, &[], &[2000]);
    d.run(0, 2);
    let (mut other, mut there) = pair();
    other.mac = Some([2; 6]);
    let mut d = d.moved_to(other);
    d.run(0, 2);
    let rarp = get(&mut there);
    assert_eq!((&rarp[6..12], &rarp[12..14], rarp.len()), (&GUEST[..], &[0x80, 0x35][..], 60));
    put(&mut there, &frame(100, 3));
    d.worker.lock().unwrap().run_event(LINK, EventSet::IN);
    assert_eq!(d.used(0), Some((0, 112)));
    assert_eq!(d.get(reg::CONFIG), u32::from_le_bytes([6, 0, 0xac, 0x10]));
}

struct Echo(Arc<Mutex<Vec<Vec<u8>>>>);
impl Detour for Echo {
    fn wants(&self, frame: &[u8]) -> bool {
        frame[14] == 0xaa
    }
    fn take(&mut self, frame: &[u8], _now_ns: u64) {
        self.0.lock().unwrap().push(frame.to_vec());
    }
    fn next(&mut self, frame: &mut Vec<u8>, _now_ns: u64) -> bool {
        match self.0.lock().unwrap().pop() {
            Some(f) => {
                *frame = f;
                true
            }
            None => false,
        }
    }
}

#[test]
fn a_detour_takes_its_frames_and_answers() {
    let (mut net, mut peer) = pair();
    net.set_detour(Box::new(Echo(Arc::default())));
    let mut d = Driver::new(net, ram());
    d.start_plain();
    let at = d.send(0, &[], &[200]);
    d.send(1, &[&[0; 12], &frame(60, 0xaa)], &[]);
    d.send(1, &[&[0; 12], &frame(60, 0xbb)], &[]);
    d.run(1, 2);
    assert_eq!(d.used(0), Some((0, 72)));
    assert_eq!(d.bytes(at[0] + 12, 60), frame(60, 0xaa));
    assert_eq!(get(&mut peer), frame(60, 0xbb));
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let c = NetworkInterfaceConfig { passt_socket: Some("/nowhere/passt.sock".into()), ..config() };
    let error = Net::new(&c).err().unwrap().to_string();
    assert!(error.contains("eth0") && error.contains("/nowhere/passt.sock"), "{error}");
    let c = NetworkInterfaceConfig { host_dev_name: Some("tap0".into()), ..c };
    assert!(matches!(Net::new(&c), Err(NetError::Backend(_))));
}

/// Sends an ARP request through a real TAP, in a network namespace of this thread, and gets the kernel's answer.
#[test]
fn a_tap_carries_frames_both_ways() {
    // SAFETY: moves only this thread, which ends with the test, into a namespace of its own.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return println!("SKIPPED a_tap_carries_frames_both_ways: no right to make a network namespace");
    }
    let json = r#"{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:10:00:02"}"#;
    let net = match Net::new(&serde_json::from_str(json).unwrap()) {
        Ok(net) => net,
        Err(e) => return println!("SKIPPED a_tap_carries_frames_both_ways: {e}"),
    };
    let ip = |args: &str| std::process::Command::new("ip").args(args.split(' ')).status();
    if !ip("addr add 10.99.0.1/24 dev tap0").is_ok_and(|s| s.success()) {
        return println!("SKIPPED a_tap_carries_frames_both_ways: no ip command");
    }
    assert!(ip("link set tap0 up").unwrap().success());
    let mut d = Driver::new(net, ram());
    let offered = d.offered();
    assert_eq!(offered & bits::OFFLOADS, bits::OFFLOADS);
    d.start(offered & !feature::EVENT_IDX);
    let mut arp = vec![0xff; 6];
    arp.extend(GUEST);
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(GUEST);
    arp.extend([10, 99, 0, 2, 0, 0, 0, 0, 0, 0, 10, 99, 0, 1]);
    d.send(1, &[&[0; 12], &arp], &[]);
    assert!(d.run(1, 2));
    assert!(d.used(1).is_some());
    // Among what a new interface says of its own accord.
    let mut answered = false;
    for _ in 0..1000 {
        let at = d.send(0, &[], &[2000]);
        while d.used(0).is_none() {
            d.run(0, 4);
            std::thread::yield_now();
        }
        let frame = d.bytes(at[0] + 12, 42);
        if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] {
            assert_eq!((&frame[..6], &frame[28..32]), (&GUEST[..], &[10, 99, 0, 1][..]));
            answered = true;
            break;
        }
    }
    assert!(answered);
}

/// Asks a real passt for its address, by ARP; it answers for its gateway.
#[test]
fn a_real_passt_answers() {
    let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
    // passt turns into nobody where root starts it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(dir.as_path(), open).unwrap();
    let path = dir.as_path().join("passt.sock").display().to_string();
    let child = std::process::Command::new("passt")
        .args(["--foreground", "--one-off", "--quiet", "--socket", &path])
        .args(["--address", "10.98.0.2", "--netmask", "255.255.255.0", "--gateway", "10.98.0.1"])
        .stderr(std::process::Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        return println!("SKIPPED a_real_passt_answers: passt is not installed");
    };
    let config = NetworkInterfaceConfig { passt_socket: Some(path), ..config() };
    let net = loop {
        match Net::new(&config) {
            Ok(net) => break net,
            Err(_) if child.try_wait().is_ok_and(|s| s.is_none()) => std::thread::yield_now(),
            Err(e) => return println!("SKIPPED a_real_passt_answers: {e}"),
        }
    };
    let mut d = Driver::new(net, ram());
    d.start_plain();
    let mut arp = vec![0xff; 6];
    arp.extend(GUEST);
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend(GUEST);
    arp.extend([10, 98, 0, 2, 0, 0, 0, 0, 0, 0, 10, 98, 0, 1]);
    d.send(1, &[&[0; 12], &arp], &[]);
    d.run(1, 2);
    let frame = loop {
        let at = d.send(0, &[], &[2000]);
        while d.used(0).is_none() {
            d.run(0, 4);
            std::thread::yield_now();
        }
        let frame = d.bytes(at[0] + 12, 42);
        if frame[12..14] == [8, 6] {
            break frame;
        }
    };
    assert_eq!((&frame[..6], &frame[20..22], &frame[28..32]), (&GUEST[..], &[0, 2][..], &[10, 98, 0, 1][..]));
    drop(d);
    let _ = child.wait();
}

/// Used elements go back several at a time, from any place in the ring, in order, and the driver hears of the one it asked for.
#[test]
fn batches_go_round_the_ring_and_interrupt_where_they_pass_what_the_driver_waits_for() {
    use vm_memory::{Bytes, GuestAddress};
    let (net, mut peer) = pair();
    let mut d = Driver::new(net, ram());
    let offered = d.offered();
    d.start(offered);
    let mut seen = 0u16;
    for round in 0..40u16 {
        let count = 1 + round * 7 % SIZE;
        // Tells where the used index must come past for an interrupt; every third time not in this batch.
        let (event, wanted) =
            if round % 3 == 2 { (seen + count, false) } else { (seen + round % count, true) };
        for queue in [0x1_0000, 0x2_0000u64] {
            let place = GuestAddress(queue + 0x1000 + 4 + 2 * u64::from(SIZE));
            d.mem.write_slice(&event.to_le_bytes(), place).unwrap();
        }
        for n in 0..count {
            put(&mut peer, &frame(60 + usize::from(n), n as u8));
            d.send(0, &[], &[200]);
        }
        d.worker.lock().unwrap().run_event(LINK, EventSet::IN);
        let level = |d: &Driver<Net>| d.line.level.load(SeqCst);
        assert_eq!(level(&d), wanted, "round {round}, receiving");
        d.set(reg::INTERRUPT_ACK, 1);
        for n in 0..count {
            let len = u32::from(12 + 60 + n);
            assert_eq!(d.used(0), Some((u32::from((seen + n) % SIZE), len)), "round {round}, receiving");
        }
        for n in 0..count {
            d.send(1, &[&[[0; 12].as_slice(), &frame(60, n as u8)].concat()], &[]);
        }
        assert!(d.run(1, 2));
        assert_eq!(level(&d), wanted, "round {round}, sending");
        d.set(reg::INTERRUPT_ACK, 1);
        for n in 0..count {
            assert_eq!(d.used(1), Some((u32::from((seen + n) % SIZE), 0)), "round {round}, sending");
            // Among what says where the guest is now.
            let frames = std::iter::from_fn(|| Some(get(&mut peer)));
            let sent = { frames }.find(|f| f[12..14] != [0x80, 0x35]);
            assert_eq!(sent, Some(frame(60, n as u8)));
        }
        assert_eq!((d.used(0), d.used(1)), (None, None));
        seen += count;
        if round % 8 == 7 {
            let (net, there) = pair();
            (d, peer) = (d.moved_to(net), there);
        }
    }
}
