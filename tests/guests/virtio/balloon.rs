//! Balloon: gives the pages that are asked for, takes half of them back, and tells statistics when asked again.

use crate::mmio::{Buffer, Device, Outcome, ensure, read, write};
use crate::rt::{Out, number, option};

const STATS: u64 = 1 << 1;
const PAGE: u64 = 4096;
/// Pages in one request.
const BATCH: u64 = 256;
/// RAM that nothing else uses.
const GIVEN: u64 = 0x1000_0000;

const FREE_MEMORY: u16 = 4;
const TOTAL_MEMORY: u16 = 5;
/// What is told as free memory.
const FREE: u64 = 123_456_789;

pub fn check(device: &mut Device) -> Outcome {
    Out.text("virtio balloon");
    let features = device.start(STATS)?;
    let (mut inflate, mut deflate) = (device.queue(0)?, device.queue(1)?);
    let mut stats = if features & STATS != 0 { Some(device.queue(2)?) } else { None };
    device.go();
    let target = u64::from(device.config::<u32>(0)).min(0x4000);
    Out.text(" target=").decimal(target);
    for page in 0..target {
        write(GIVEN + page * PAGE, !page);
    }
    let list = device.buffers();
    let mut give = |device: &Device, first: u64, count: u64, inflating: bool| -> Outcome {
        let queue = if inflating { &mut inflate } else { &mut deflate };
        for i in 0..count {
            write(list + i * 4, (GIVEN / PAGE + first + i) as u32);
        }
        queue.add(0, &[Buffer::Out(list, count as u32 * 4)]);
        device.notify(queue);
        queue.finished().map(|_| ())
    };
    for first in (0..target).step_by(BATCH as usize) {
        give(device, first, BATCH.min(target - first), true)?;
    }
    device.set_config(4, target as u32);
    ensure(device.config::<u32>(4) == target as u32, "does not know what it was given")?;
    for first in (0..target / 2).step_by(BATCH as usize) {
        give(device, first, BATCH.min(target / 2 - first), false)?;
    }
    device.set_config(4, (target - target / 2) as u32);
    let zeros = (0..target / 2).all(|page| read::<u64>(GIVEN + page * PAGE) == 0);
    ensure(zeros, "given pages have kept their contents")?;
    Out.text(" back=").decimal(target / 2);

    if let (Some(queue), Some(rounds)) = (&mut stats, option("stats")) {
        let entry = |at: u64, tag: u16, value: u64| {
            write(at, tag);
            write::<[u8; 8]>(at + 2, value.to_le_bytes());
        };
        // Each comes back when the host wants new ones.
        for round in 0..number(rounds) {
            entry(list, FREE_MEMORY, FREE + round);
            entry(list + 10, TOTAL_MEMORY, 512 << 20);
            queue.add(0, &[Buffer::Out(list, 20)]);
            device.notify(queue);
            queue.finished()?;
        }
        queue.add(0, &[Buffer::Out(list, 20)]);
        device.notify(queue);
        Out.text(" stats=").decimal(number(rounds));
    }
    Ok(())
}
