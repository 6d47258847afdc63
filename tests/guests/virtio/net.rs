//! Net: ARP and pings of many sizes to a neighbour that answers like any host.

use crate::mmio::{Buffer, Device, Failure, Outcome, Queue, ensure, read, write};
use crate::polling::SILENT;
use crate::rt::{Out, number, option};

const MAC: u64 = 1 << 5;
const HEADER: u64 = 12;
const FRAME: u32 = 1600;
const PINGS: u64 = 16;
/// Timer ticks after which an answer will not come any more.
const ANSWER_TICKS: u32 = 100;

pub struct Card<'a> {
    device: &'a mut Device,
    receive: Queue,
    send: Queue,
    mac: [u8; 6],
    own: [u8; 4],
}

fn address(text: &[u8]) -> [u8; 4] {
    let mut out = [0; 4];
    for (byte, part) in out.iter_mut().zip(text.split(|c| *c == b'.')) {
        *byte = number(part) as u8;
    }
    out
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !sum as u16
}

impl<'a> Card<'a> {
    /// Sets a card up, if the command line says whom to talk to.
    pub fn start(device: &'a mut Device) -> Outcome<Option<(Self, [u8; 4])>> {
        let features = device.start(MAC)?;
        let (receive, send) = (device.queue(0)?, device.queue(1)?);
        device.go();
        let mut mac = [2, 0, 0, 0, 0, 1];
        if features & MAC != 0 {
            for (i, byte) in (0..).zip(&mut mac) {
                *byte = device.config(i);
            }
        }
        let (Some(gateway), Some(own)) = (option("gateway"), option("address")) else { return Ok(None) };
        let mut card = Card { device, receive, send, mac, own: address(own) };
        card.offer();
        Ok(Some((card, address(gateway))))
    }

    fn receive_buffer(&self) -> u64 {
        self.device.buffers() + 0x1000
    }

    fn offer(&mut self) {
        let at = self.receive_buffer();
        self.receive.add(0, &[Buffer::In(at, FRAME)]);
        self.device.notify(&self.receive);
    }

    fn transmit(&mut self, frame: &[u8]) -> Outcome {
        let at = self.device.buffers();
        for i in 0..HEADER {
            write(at + i, 0u8);
        }
        for (i, byte) in (HEADER..).zip(frame) {
            write(at + i, *byte);
        }
        let len = frame.len() as u32;
        let body = Buffer::Out(at + HEADER, len);
        self.send.add(0, &[Buffer::Out(at, HEADER as u32), body]);
        self.device.notify(&self.send);
        self.send.finished().map(|_| ())
    }

    /// Says where this card is to who asked.
    fn answer(&mut self, question: &[u8]) -> Outcome {
        let mut frame = [0u8; 60];
        frame[..6].copy_from_slice(&question[22..28]);
        frame[6..12].copy_from_slice(&self.mac);
        frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        frame[22..28].copy_from_slice(&self.mac);
        frame[28..32].copy_from_slice(&self.own);
        frame[32..42].copy_from_slice(&question[22..32]);
        self.transmit(&frame)
    }

    /// The next frame for which `wanted` holds; others are let go.
    fn await_frame(&mut self, frame: &mut [u8], wanted: impl Fn(&[u8]) -> bool) -> Outcome<usize> {
        for _ in 0..64 {
            let (_, written) = self.receive.finished_within(ANSWER_TICKS)?;
            let len = (u64::from(written).saturating_sub(HEADER) as usize).min(frame.len());
            let from = self.receive_buffer() + HEADER;
            for (i, byte) in (0..).zip(&mut frame[..len]) {
                *byte = read(from + i);
            }
            self.offer();
            // A host asks again and again where its neighbours are, and stops sending to one that is silent.
            if len >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1] && frame[38..42] == self.own {
                self.answer(&frame[..len])?;
                continue;
            }
            if len >= 34 && wanted(&frame[..len]) {
                return Ok(len);
            }
        }
        Err(Failure("only strangers' frames"))
    }

    /// The hardware address of a neighbour.
    pub fn arp(&mut self, whom: [u8; 4]) -> Outcome<[u8; 6]> {
        let mut frame = [0u8; 60];
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&self.mac);
        frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame[22..28].copy_from_slice(&self.mac);
        frame[28..32].copy_from_slice(&self.own);
        frame[38..42].copy_from_slice(&whom);
        self.transmit(&frame)?;
        let mut answer = [0u8; FRAME as usize];
        self.await_frame(&mut answer, |f| f[12..14] == [8, 6] && f[20..22] == [0, 2] && f[28..32] == whom)?;
        let mut mac = [0; 6];
        mac.copy_from_slice(&answer[22..28]);
        Ok(mac)
    }

    /// Sends a ping and waits for the answer: false if none comes, as when a frame is lost.
    pub fn ping(&mut self, mac: [u8; 6], whom: [u8; 4], number: u64) -> Outcome<bool> {
        let payload = 56 + (number as usize * 91) % 1400;
        let mut frame = [0u8; FRAME as usize];
        let len = 42 + payload;
        frame[..6].copy_from_slice(&mac);
        frame[6..12].copy_from_slice(&self.mac);
        frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        frame[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
        frame[18] = number as u8;
        frame[22] = 64;
        frame[23] = 1;
        frame[26..30].copy_from_slice(&self.own);
        frame[30..34].copy_from_slice(&whom);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame[34] = 8;
        frame[38..40].copy_from_slice(b"gw");
        frame[40..42].copy_from_slice(&(number as u16).to_be_bytes());
        for (i, byte) in frame[42..len].iter_mut().enumerate() {
            *byte = (i * 7 + number as usize) as u8;
        }
        let sum = checksum(&frame[34..len]);
        frame[36..38].copy_from_slice(&sum.to_be_bytes());
        self.transmit(&frame[..len])?;
        let mut answer = [0u8; FRAME as usize];
        let id = [b'g', b'w', frame[40], frame[41]];
        let got = self.await_frame(&mut answer, |f| {
            let ping = f[12..14] == [8, 0] && f[23] == 1 && f[26..30] == whom;
            ping && f.len() >= 42 && f[34] == 0 && f[38..42] == id
        });
        match got {
            Ok(got) => {
                ensure(got >= len && answer[38..len] == frame[38..len], "a ping comes back changed")?;
                Ok(true)
            }
            Err(Failure(why)) if why == SILENT => Ok(false),
            Err(failure) => Err(failure),
        }
    }
}

pub fn check(device: &mut Device) -> Outcome {
    Out.text("virtio net");
    let features = device.start(MAC)?;
    let (receive, send) = (device.queue(0)?, device.queue(1)?);
    device.go();
    let mut mac = [2, 0, 0, 0, 0, 1];
    if features & MAC != 0 {
        for (i, byte) in (0..).zip(&mut mac) {
            *byte = device.config(i);
        }
    }
    Out.text(" mac=");
    let number = mac.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    Out.hex(number);
    let (Some(gateway), Some(own)) = (option("gateway"), option("address")) else {
        return Ok(());
    };
    let gateway = address(gateway);
    let mut card = Card { device, receive, send, mac, own: address(own) };
    card.offer();
    let neighbour = card.arp(gateway)?;
    Out.text(" arp=ok");
    for number in 0..PINGS {
        ensure(card.ping(neighbour, gateway, number)?, "a ping is not answered")?;
    }
    Out.text(" pings=").decimal(PINGS);
    Ok(())
}
