//! The network device as smoltcp's: packets stay where the device reads and writes them.

use crate::mmio::{Buffer, Device, Outcome, Queue, write};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

const MAC: u64 = 1 << 5;
/// `struct virtio_net_hdr_v1`.
const HEADER: u64 = 12;
/// Bytes for a packet with its header.
const SLOT: u64 = 2048;
const SLOTS: u16 = 128;
const FRAME: usize = 1514;

pub struct Nic {
    device: Device,
    receive: Queue,
    send: Queue,
    mac: [u8; 6],
    /// Free slots for sending, the last ones of the list.
    free: [u16; SLOTS as usize],
    free_count: usize,
    /// Packets put into a queue since the device was told.
    sent: bool,
    offered: u16,
    /// The slot whose packet was handed out last: the device gets it back when that has been looked at.
    looked_at: Option<u16>,
    /// Frames that came or went.
    pub frames: u64,
}

impl Nic {
    pub fn start(mut device: Device) -> Outcome<Self> {
        let features = device.start(MAC)?;
        let (receive, send) = (device.queue_of(0, SLOTS)?, device.queue_of(1, SLOTS)?);
        device.go();
        let mut mac = [2, 0, 0, 0, 0, 1];
        if features & MAC != 0 {
            for (i, byte) in (0..).zip(&mut mac) {
                *byte = device.config(i);
            }
        }
        let mut free = [0; SLOTS as usize];
        for (i, slot) in (0..).zip(&mut free) {
            *slot = i;
        }
        let free_count = free.len();
        let mut nic = Nic {
            device,
            receive,
            send,
            mac,
            free,
            free_count,
            sent: false,
            offered: 0,
            looked_at: None,
            frames: 0,
        };
        for slot in 0..SLOTS {
            nic.offer(slot);
        }
        nic.flush();
        Ok(nic)
    }

    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn receive_slot(&self, slot: u16) -> u64 {
        self.device.buffers() + u64::from(slot) * SLOT
    }

    fn send_slot(&self, slot: u16) -> u64 {
        self.receive_slot(SLOTS + slot)
    }

    fn offer(&mut self, slot: u16) {
        let at = self.receive_slot(slot);
        self.receive.add(slot, &[Buffer::In(at, SLOT as u32)]);
        self.offered += 1;
    }

    fn give_back(&mut self) {
        if let Some(slot) = self.looked_at.take() {
            self.offer(slot);
        }
    }

    /// Tells the device of what was put into its queues.
    pub fn flush(&mut self) {
        self.give_back();
        if core::mem::take(&mut self.sent) && self.send.wants_notification() {
            self.device.notify(&self.send);
        }
        if self.offered >= SLOTS / 4 {
            self.offered = 0;
            if self.receive.wants_notification() {
                self.device.notify(&self.receive);
            }
        }
    }

    fn collect(&mut self) {
        while let Some((slot, _)) = self.send.poll() {
            self.free[self.free_count] = slot;
            self.free_count += 1;
        }
    }
}

/// A packet that came.
pub struct Received {
    at: u64,
    len: usize,
}

/// Room for a packet.
pub struct Room<'a>(&'a mut Nic);

impl phy::Device for Nic {
    type RxToken<'a> = Received;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Room<'_>)> {
        self.give_back();
        self.collect();
        if self.free_count == 0 {
            self.flush();
            return None;
        }
        let (slot, written) = self.receive.poll()?;
        let at = self.receive_slot(slot);
        let len = (u64::from(written).saturating_sub(HEADER) as usize).min((SLOT - HEADER) as usize);
        self.looked_at = Some(slot);
        self.frames += 1;
        Some((Received { at: at + HEADER, len }, Room(self)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Room<'_>> {
        self.collect();
        if self.free_count == 0 {
            self.flush();
            return None;
        }
        Some(Room(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ethernet;
        c.max_transmission_unit = FRAME;
        c.max_burst_size = Some(usize::from(SLOTS) / 2);
        c.checksum = ChecksumCapabilities::default();
        c
    }
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        // SAFETY: the device wrote these bytes into our slot; whatever they are, they are bytes.
        f(unsafe { core::slice::from_raw_parts(self.at as *const u8, self.len) })
    }
}

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let nic = self.0;
        nic.free_count -= 1;
        let slot = nic.free[nic.free_count];
        let at = nic.send_slot(slot);
        write(at, 0u64);
        write(at + 8, 0u32);
        // SAFETY: a slot of ours that the device does not have; frames are shorter than slots.
        let result = f(unsafe { core::slice::from_raw_parts_mut((at + HEADER) as *mut u8, len) });
        nic.send.add(slot, &[Buffer::Out(at, HEADER as u32 + len as u32)]);
        nic.sent = true;
        nic.frames += 1;
        result
    }
}
