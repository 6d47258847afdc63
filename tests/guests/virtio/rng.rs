//! Entropy: two reads that differ from each other and from zeros.

use crate::mmio::{Buffer, Device, Outcome, ensure, read, write};
use crate::rt::Out;

const LEN: u32 = 256;

pub fn check(device: &mut Device) -> Outcome {
    Out.text("virtio rng");
    device.start(0)?;
    let mut queue = device.queue(0)?;
    device.go();
    let at = device.buffers();
    let mut sums = [0u64; 2];
    for sum in &mut sums {
        for i in 0..u64::from(LEN) {
            write(at + i, 0u8);
        }
        queue.add(0, &[Buffer::In(at, LEN)]);
        device.notify(&queue);
        let (_, written) = queue.finished()?;
        ensure(written > 0 && written <= LEN, "no bytes")?;
        for i in 0..u64::from(LEN / 8) {
            *sum = sum.rotate_left(9) ^ read::<u64>(at + i * 8);
        }
    }
    Out.text(" bytes=").decimal(u64::from(LEN));
    ensure(sums[0] != 0 && sums[0] != sums[1], "not random")
}
