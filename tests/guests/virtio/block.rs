//! Block: read, write and read back in requests of many sizes, flush, serial number, bad requests.

use crate::data::Random;
use crate::mmio::{Buffer, Device, Outcome, Queue, ensure, read, write};
use crate::rt::{Out, number, option};

const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;

const OP_READ: u32 = 0;
const OP_WRITE: u32 = 1;
const OP_FLUSH: u32 = 4;
const OP_ID: u32 = 8;

const SECTOR: u64 = 512;
const FIRST: u64 = 8;
const LARGEST: u64 = 128;

pub struct Disk<'a> {
    device: &'a mut Device,
    queue: Queue,
    header: u64,
    data: u64,
}

impl<'a> Disk<'a> {
    /// Sets a disk up, and gives its size in sectors.
    pub fn start(device: &'a mut Device) -> Outcome<(Self, u64)> {
        device.start(FLUSH)?;
        let queue = device.queue(0)?;
        device.go();
        let capacity = u64::from(device.config::<u32>(0)) | u64::from(device.config::<u32>(4)) << 32;
        let (header, data) = (device.buffers(), device.buffers() + 0x1000);
        Ok((Disk { device, queue, header, data }, capacity))
    }

    /// Writes `sectors` sectors from `first`, or reads and verifies them: their contents follow from `seed`.
    pub fn pattern(&mut self, write_it: bool, seed: u64, first: u64, sectors: u64) -> Outcome {
        let words = sectors * SECTOR / 8;
        let word = |i: u64| (i ^ first << 32 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..words).for_each(|i| write(self.data + i * 8, if write_it { word(i) } else { 0 }));
        self.transfer(if write_it { OP_WRITE } else { OP_READ }, first, sectors, 1 + seed as u32 % 4)?;
        let same = (0..words).all(|i| read::<u64>(self.data + i * 8) == word(i));
        ensure(same, "the disk reads back something else")
    }

    /// Has what was written reach the disk.
    pub fn flush(&mut self) -> Outcome {
        ensure(self.request(OP_FLUSH, 0, 0, 0)? == 0, "flush fails")
    }

    /// One request over `parts` buffers; returns the status byte.
    fn request(&mut self, op: u32, sector: u64, len: u32, parts: u32) -> Outcome<u8> {
        let status = self.header + 16;
        write(self.header, op);
        write(self.header + 4, 0u32);
        write(self.header + 8, sector);
        write(status, 0xffu8);
        let into = op == OP_READ || op == OP_ID;
        let mut buffers = [const { Buffer::Out(0, 0) }; 6];
        buffers[0] = Buffer::Out(self.header, 16);
        let (mut used, mut at, mut left) = (1, self.data, len);
        for part in 0..parts {
            let size = if part + 1 == parts { left } else { left / 2 };
            if size == 0 {
                continue;
            }
            buffers[used] = if into { Buffer::In(at, size) } else { Buffer::Out(at, size) };
            used += 1;
            at += u64::from(size);
            left -= size;
        }
        buffers[used] = Buffer::In(status, 1);
        self.queue.add(0, &buffers[..=used]);
        self.device.notify(&self.queue);
        let (head, written) = self.queue.finished()?;
        ensure(head == 0, "another request than ours is done")?;
        let status = read::<u8>(status);
        if status == 0 && op == OP_READ {
            ensure(written == len + 1, "wrong length of what was read")?;
        }
        Ok(status)
    }

    fn transfer(&mut self, op: u32, sector: u64, sectors: u64, parts: u32) -> Outcome {
        let status = self.request(op, sector, (sectors * SECTOR) as u32, parts)?;
        ensure(status == 0, if op == OP_READ { "read fails" } else { "write fails" })
    }

    fn hash(&self, len: u64) -> u64 {
        let bytes = (0..len).map(|i| read::<u8>(self.data + i));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    }

    /// Writes a pattern over `sectors`, then reads it back, with requests cut differently.
    fn round(&mut self, seed: u64, sectors: u64) -> Outcome {
        let word = |at: u64| (at ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for op in [OP_WRITE, OP_READ] {
            let mut random = Random(seed * 2 + u64::from(op) + 1);
            let mut done = 0;
            while done < sectors {
                let count = (1 + random.next() % LARGEST).min(sectors - done);
                let first = (FIRST + done) * SECTOR / 8;
                let words = count * SECTOR / 8;
                if op == OP_WRITE {
                    (0..words).for_each(|i| write(self.data + i * 8, word(first + i)));
                } else {
                    (0..words).for_each(|i| write(self.data + i * 8, 0u64));
                }
                self.transfer(op, FIRST + done, count, 1 + random.next() as u32 % 4)?;
                if op == OP_READ {
                    let same = (0..words).all(|i| read::<u64>(self.data + i * 8) == word(first + i));
                    ensure(same, "reads back something else")?;
                }
                done += count;
            }
        }
        Ok(())
    }
}

pub fn check(device: &mut Device) -> Outcome {
    Out.text("virtio block");
    let features = device.start(READ_ONLY | FLUSH)?;
    let queue = device.queue(0)?;
    device.go();
    let capacity: u64 = u64::from(device.config::<u32>(0)) | u64::from(device.config::<u32>(4)) << 32;
    let read_only = features & READ_ONLY != 0;
    Out.text(" sectors=").decimal(capacity).text(" readonly=").decimal(u64::from(read_only));
    let (header, data) = (device.buffers(), device.buffers() + 0x1000);
    let mut disk = Disk { device, queue, header, data };

    if disk.request(OP_ID, 0, 20, 1)? == 0 {
        Out.text(" serial=");
        for byte in (0..20).map(|i| read::<u8>(data + i)).take_while(|byte| *byte != 0) {
            let shown = [if byte.is_ascii_graphic() { byte } else { b'?' }];
            Out.text(core::str::from_utf8(&shown).unwrap_or("?"));
        }
    }
    let first = FIRST.min(capacity);
    disk.transfer(OP_READ, 0, first, 1)?;
    Out.text(" first=").hex(disk.hash(first * SECTOR));

    ensure(disk.request(OP_READ, capacity, 512, 1)? != 0, "reads past its end")?;
    ensure(disk.request(99, 0, 512, 1)? == 2, "does not call an unknown request unsupported")?;
    if read_only {
        ensure(disk.request(OP_WRITE, 0, 512, 1)? != 0, "writes although read-only")?;
        return Ok(());
    }
    let sectors = option("sectors").map_or(1024, number).min(capacity.saturating_sub(FIRST));
    for round in 0..option("rounds").map_or(1, number) {
        disk.round(round + 1, sectors)?;
    }
    if features & FLUSH != 0 {
        ensure(disk.request(OP_FLUSH, 0, 0, 0)? == 0, "flush fails")?;
    }
    Out.text(" written=").decimal(sectors);
    Ok(())
}
