//! Every queue of every device, given what no driver should: each way to break a queue stops the device until its reset, and sizes
//! that make no sense are answered or left. Nothing crashes, hangs or is written where it was not asked for.

use super::fuzz::{balloon, net, rng, test_disk, test_vsock};
use super::mock::{BUFFERS, Driver, INDIRECT, NEXT, RAM, SIZE, WRITE, ram};
use super::transport::{reg, status};
use super::{VirtioDevice, feature};
use std::any::Any;
use std::io::Write;
use std::os::unix::net::UnixStream;

/// Keeps what a device's other end is made of.
type Peer = Box<dyn Any>;

/// A queue of a device, and a way to have the device take chains from it.
struct Subject<D: VirtioDevice> {
    name: &'static str,
    queue: usize,
    /// The device writes into its buffers.
    fills: bool,
    make: fn() -> (D, Peer),
    /// Once it is started: what makes it want a chain.
    provoke: fn(&mut Driver<D>, &Peer),
}

type Break<D> = fn(&mut Driver<D>, usize, u16);

/// What a queue may not be (virtio 1.2, 2.7): queue, flags of the buffers that the device expects.
fn breaks<D: VirtioDevice + 'static>() -> [(&'static str, Break<D>); 12] {
    [
        ("loop", |d, q, f| {
            d.desc(q, 0, BUFFERS, 16, f | NEXT, 1);
            d.desc(q, 1, BUFFERS, 16, f | NEXT, 0);
        }),
        ("loop of one", |d, q, f| d.desc(q, 0, BUFFERS, 16, f | NEXT, 0)),
        ("next out of range", |d, q, f| d.desc(q, 0, BUFFERS, 16, f | NEXT, SIZE)),
        ("buffer out of RAM", |d, q, f| d.desc(q, 0, 0x1_0000_0000, 16, f, 0)),
        ("buffer over the end", |d, q, f| d.desc(q, 0, BUFFERS, u32::MAX, f, 0)),
        ("address wraps", |d, q, f| d.desc(q, 0, u64::MAX - 3, 16, f, 0)),
        ("readable after writable", |d, q, _| {
            d.desc(q, 0, BUFFERS, 16, WRITE | NEXT, 1);
            d.desc(q, 1, BUFFERS, 16, 0, 0);
        }),
        ("indirect in indirect", |d, q, _| {
            d.desc(q, 0, BUFFERS, 32, INDIRECT, 0);
            d.desc_at(BUFFERS, BUFFERS + 64, 32, INDIRECT, 0);
        }),
        ("indirect of no entries", |d, q, _| d.desc(q, 0, BUFFERS, 0, INDIRECT, 0)),
        ("indirect of odd size", |d, q, _| d.desc(q, 0, BUFFERS, 17, INDIRECT, 0)),
        ("indirect out of RAM", |d, q, _| d.desc(q, 0, 1 << 40, 32, INDIRECT, 0)),
        ("endless indirect", |d, q, f| {
            for i in 0..2000 {
                d.desc_at(BUFFERS + 16 * i, BUFFERS, 16, f | NEXT, i as u16 + 1);
            }
            d.desc(q, 0, BUFFERS, 16 * 2000, INDIRECT, 0);
        }),
    ]
}

fn started<D: VirtioDevice + 'static>(s: &Subject<D>) -> (Driver<D>, Peer) {
    let (device, peer) = (s.make)();
    let mut d = Driver::new(device, ram());
    d.start_plain();
    (d, peer)
}

/// The driver's side of a queue that was broken: nothing came back, and after a reset the device can be started again.
fn needs_a_reset<D: VirtioDevice + 'static>(s: &Subject<D>, what: &str, mut d: Driver<D>) {
    let Subject { name, queue, .. } = s;
    assert!(d.broken(), "{name}, queue {queue}: {what} is taken");
    assert_eq!(d.used(*queue), None, "{name}, queue {queue}: {what} is answered");
    d.start_plain();
    assert!(!d.broken() && d.get(reg::STATUS) & status::DRIVER_OK != 0, "{name}, queue {queue}: {what}");
}

fn broken_queues<D: VirtioDevice + 'static>(s: &Subject<D>) {
    let flags = if s.fills { WRITE } else { 0 };
    for (what, f) in breaks::<D>() {
        let (mut d, peer) = started(s);
        f(&mut d, s.queue, flags);
        d.offer(s.queue, 0);
        (s.provoke)(&mut d, &peer);
        d.run(s.queue, 4);
        needs_a_reset(s, what, d);
    }
    let (mut d, peer) = started(s);
    d.offer(s.queue, SIZE);
    (s.provoke)(&mut d, &peer);
    d.run(s.queue, 4);
    needs_a_reset(s, "a head that does not exist", d);
    let (mut d, peer) = started(s);
    (0..=SIZE).for_each(|_| d.offer(s.queue, 0));
    (s.provoke)(&mut d, &peer);
    d.run(s.queue, 4);
    needs_a_reset(s, "an index that ran away", d);
}

/// Lengths of zero and of nearly all memory are within the rules of queues: the device answers, waits, or is broken, and comes to rest.
fn odd_lengths<D: VirtioDevice + 'static>(s: &Subject<D>) {
    let flags = if s.fills { WRITE } else { 0 };
    let huge = (RAM - BUFFERS) as u32;
    for (lengths, indirect) in
        [(vec![0], false), (vec![0; 16], false), (vec![huge; 16], false), (vec![huge; 1024], true)]
    {
        let (mut d, peer) = started(s);
        for (i, len) in (0u16..).zip(&lengths) {
            let more = if usize::from(i) + 1 < lengths.len() { NEXT } else { 0 };
            match indirect {
                true => d.desc_at(0x8_0000 + u64::from(i) * 16, BUFFERS, *len, flags | more, i + 1),
                false => d.desc(s.queue, i, BUFFERS, *len, flags | more, (i + 1) % SIZE),
            }
        }
        if indirect {
            d.desc(s.queue, 0, 0x8_0000, 16 * lengths.len() as u32, INDIRECT, 0);
        }
        d.offer(s.queue, 0);
        (s.provoke)(&mut d, &peer);
        assert!(d.run(s.queue, 64), "{}, queue {}: {} lengths do not end", s.name, s.queue, lengths.len());
        let given: u64 = lengths.iter().map(|len| u64::from(*len)).sum();
        if let Some((_, len)) = d.used(s.queue) {
            assert!(u64::from(len) <= given, "{}: {len} bytes of {given}", s.name);
        }
    }
}

fn check<D: VirtioDevice + 'static>(s: &Subject<D>) {
    broken_queues(s);
    odd_lengths(s);
}

#[test]
fn malformed_queues_of_the_entropy_device() {
    check(&Subject {
        name: "rng",
        queue: 0,
        fills: true,
        make: || (rng(), Box::new(())),
        provoke: |_, _| {},
    });
}

#[test]
fn malformed_queues_of_a_disk() {
    for fills in [false, true] {
        check(&Subject {
            name: "block",
            queue: 0,
            fills,
            make: || {
                let (disk, file) = test_disk(false);
                (disk, Box::new(file))
            },
            provoke: |_, _| {},
        });
    }
}

#[test]
fn malformed_queues_of_the_balloon() {
    for (queue, fills) in [(0, false), (1, false), (2, false), (3, true)] {
        check(&Subject {
            name: "balloon",
            queue,
            fills,
            make: || (balloon(), Box::new(())),
            provoke: |_, _| {},
        });
    }
}

#[test]
fn malformed_queues_of_a_network_interface() {
    let make = || -> (_, Peer) {
        let (net, peer) = net();
        (net, Box::new(peer))
    };
    check(&Subject { name: "net", queue: 1, fills: false, make, provoke: |_, _| {} });
    check(&Subject {
        name: "net",
        queue: 0,
        fills: true,
        make,
        // A frame that has to go somewhere.
        provoke: |_, peer| {
            let mut peer: &UnixStream = peer.downcast_ref().unwrap();
            peer.write_all(&60u32.to_be_bytes()).unwrap();
            peer.write_all(&[7; 60]).unwrap();
        },
    });
}

#[test]
fn malformed_queues_of_the_vsock_device() {
    let make = || -> (_, Peer) {
        let (vsock, dir, path) = test_vsock();
        (vsock, Box::new((dir, UnixStream::connect(path).unwrap())))
    };
    check(&Subject { name: "vsock", queue: 1, fills: false, make, provoke: |_, _| {} });
    check(&Subject {
        name: "vsock",
        queue: 0,
        fills: true,
        make,
        // Somebody who wants to be connected.
        provoke: |d, peer| {
            let (_, host): &(vmm_sys_util::tempdir::TempDir, UnixStream) = peer.downcast_ref().unwrap();
            let mut host = host;
            let _ = host.write(b"CONNECT 7\n");
            for _ in 0..3 {
                d.worker.lock().unwrap().run_event(0, event_manager::EventSet::IN);
            }
        },
    });
    // The event queue is used only after a move.
    let (vsock, _dir, _path) = test_vsock();
    let mut before = Driver::new(vsock, ram());
    before.start_plain();
    before.desc(2, 0, BUFFERS, 16, WRITE | NEXT, 0);
    before.offer(2, 0);
    let (there, _folder, _socket) = test_vsock();
    let mut d = before.moved_to(there);
    d.run(2, 4);
    assert!(d.broken(), "a loop in the event queue is taken");
}

/// The same with the event index, which looks into the rings in other places.
#[test]
fn rings_at_the_end_of_memory_and_past_it() {
    for (desc, driver, device) in [
        (RAM - 16, 0x1_1000, 0x1_2000),
        (0x1_0000, RAM - 2, 0x1_2000),
        (0x1_0000, 0x1_1000, RAM - 4),
        (u64::MAX - 15, 0x1_1000, 0x1_2000),
        (0x1_0000, u64::MAX - 1, 0x1_2000),
        (0x1_0000, 0x1_1000, u64::MAX - 3),
    ] {
        let mut d = Driver::new(rng(), ram());
        let offered = d.offered();
        d.start(offered | feature::EVENT_IDX);
        d.set(reg::STATUS, 0);
        d.set(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        d.set(reg::DRIVER_FEATURES_SEL, 1);
        d.set(reg::DRIVER_FEATURES, 1);
        d.set(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        d.set(reg::QUEUE_SEL, 0);
        d.set(reg::QUEUE_NUM, SIZE.into());
        for (low, high, at) in [
            (reg::QUEUE_DESC_LOW, reg::QUEUE_DESC_HIGH, desc),
            (reg::QUEUE_DRIVER_LOW, reg::QUEUE_DRIVER_HIGH, driver),
            (reg::QUEUE_DEVICE_LOW, reg::QUEUE_DEVICE_HIGH, device),
        ] {
            d.set(low, at as u32);
            d.set(high, (at >> 32) as u32);
        }
        d.set(reg::QUEUE_READY, 1);
        d.set(reg::STATUS, 15);
        d.run(0, 4);
        assert!(d.broken(), "rings at {desc:#x}, {driver:#x}, {device:#x}");
    }
}
