//! How fast: the same work on every VMM, between two lines that the host times. Asked for by `speed=1`.

use crate::data::Random;
use crate::mmio::{Buffer, Device, Failure, Outcome, Queue, ensure, write};
use crate::rt::{Out, number, option};

/// Requests on their way at a time.
const DEPTH: u16 = 8;
const QUEUE: u16 = 64;
const SEQUENTIAL: u64 = 128 << 10;
const RANDOM: u64 = 4 << 10;
const FLUSH: u64 = 1 << 9;
const OP_READ: u32 = 0;
const OP_WRITE: u32 = 1;

const HEADER: u64 = 12;
const FRAME: u64 = 1514;
const FRAMES: u16 = 256;
const SLOT: u64 = 2048;

fn begin(what: &str) {
    Out.text("speed ").text(what).text(" begin\n").flush();
}

fn done(what: &str, amount: u64) {
    Out.text("speed ").text(what).text(" done ").decimal(amount).text("\n").flush();
}

/// The disk's queue with several requests in it.
struct Pipe<'a> {
    device: &'a mut Device,
    queue: Queue,
    at: u64,
}

impl Pipe<'_> {
    fn submit(&mut self, slot: u16, op: u32, byte: u64, len: u64) {
        let head = self.at + u64::from(slot) * 64;
        let data = self.at + 0x1000 + u64::from(slot) * SEQUENTIAL;
        write(head, op);
        write(head + 4, 0u32);
        write(head + 8, byte / 512);
        let body = if op == OP_READ { Buffer::In(data, len as u32) } else { Buffer::Out(data, len as u32) };
        self.queue.add(slot * 3, &[Buffer::Out(head, 16), body, Buffer::In(head + 16, 1)]);
    }

    /// `count` requests of `len` bytes at `place(i)`.
    fn run(&mut self, op: u32, count: u64, len: u64, mut place: impl FnMut(u64) -> u64) -> Outcome {
        let first = count.min(DEPTH.into());
        for i in 0..first {
            self.submit(i as u16, op, place(i), len);
        }
        if self.queue.wants_notification() {
            self.device.notify(&self.queue);
        }
        let (mut next, mut finished) = (first, 0);
        while finished < count {
            let (head, _) = self.queue.awaited()?;
            let slot = head / 3;
            ensure(crate::mmio::read::<u8>(self.at + u64::from(slot) * 64 + 16) == 0, "a request fails")?;
            finished += 1;
            if next < count {
                self.submit(slot, op, place(next), len);
                next += 1;
                if self.queue.wants_notification() {
                    self.device.notify(&self.queue);
                }
            }
        }
        Ok(())
    }
}

pub fn disk(device: &mut Device) -> Outcome {
    // Without it each write would have to be flushed.
    device.start(FLUSH)?;
    let queue = device.queue_of(0, QUEUE)?;
    device.go();
    let bytes = u64::from(device.config::<u32>(0)) * 512;
    ensure(bytes >= 1 << 20, "the disk is too small")?;
    let at = device.buffers();
    let mut pipe = Pipe { device, queue, at };
    let mib = option("mib").map_or(256, number);
    let requests = (mib << 20) / SEQUENTIAL;
    let around = |i: u64| i * SEQUENTIAL % (bytes / SEQUENTIAL * SEQUENTIAL);
    for (name, op) in [("disk-write", OP_WRITE), ("disk-read", OP_READ)] {
        begin(name);
        pipe.run(op, requests, SEQUENTIAL, around)?;
        done(name, mib << 20);
    }
    let count = option("ios").map_or(20_000, number);
    for (name, op) in [("disk-random-read", OP_READ), ("disk-random-write", OP_WRITE)] {
        let mut random = Random(0x1234_5678_9abc_def1);
        begin(name);
        pipe.run(op, count, RANDOM, |_| random.next() % (bytes / RANDOM) * RANDOM)?;
        done(name, count);
    }
    Ok(())
}

pub fn net(device: &mut Device) -> Outcome {
    device.start(0)?;
    let (mut receive, mut send) = (device.queue_of(0, FRAMES)?, device.queue_of(1, FRAMES)?);
    device.go();
    let at = device.buffers();
    for slot in 0..u64::from(FRAMES) {
        for i in 0..HEADER / 4 {
            write(at + slot * SLOT + i * 4, 0u32);
        }
        let frame = at + slot * SLOT + HEADER;
        // To everybody, of a kind that nobody takes.
        write(frame, [0xffu8; 6]);
        write(frame + 6, [2u8, 0, 0, 0, 0, 1]);
        write(frame + 12, [0x88u8, 0xb5]);
    }
    let count = option("frames").map_or(200_000, number);
    begin("net-send");
    let (mut given, mut taken) = (0u64, 0u64);
    for slot in 0..FRAMES {
        send.add(slot, &[Buffer::Out(at + u64::from(slot) * SLOT, (HEADER + FRAME) as u32)]);
        given += 1;
    }
    device.notify(&send);
    while taken < count {
        let (mut slot, _) = send.awaited()?;
        loop {
            taken += 1;
            if given < count {
                send.add(slot, &[Buffer::Out(at + u64::from(slot) * SLOT, (HEADER + FRAME) as u32)]);
                given += 1;
            }
            match send.poll() {
                Some((next, _)) => slot = next,
                None => break,
            }
        }
        if send.wants_notification() {
            device.notify(&send);
        }
    }
    done("net-send", count * FRAME);

    let at = at + u64::from(FRAMES) * SLOT;
    for slot in 0..FRAMES {
        receive.add(slot, &[Buffer::In(at + u64::from(slot) * SLOT, SLOT as u32)]);
    }
    device.notify(&receive);
    // The host begins to send at this line.
    Out.text("speed net-receive ready\n").flush();
    let mut bytes = 0;
    for number in 0..count {
        let (slot, len) = receive.awaited().map_err(|_| Failure("frames are lost"))?;
        if number == 0 {
            begin("net-receive");
        }
        bytes += u64::from(len).saturating_sub(HEADER);
        receive.add(slot, &[Buffer::In(at + u64::from(slot) * SLOT, SLOT as u32)]);
        if receive.wants_notification() {
            device.notify(&receive);
        }
    }
    done("net-receive", bytes);
    Ok(())
}
