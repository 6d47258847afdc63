//! vsock: a stream to the host that it sends back, then one from the host that is sent back to it; with credit both ways.

use crate::mmio::{Buffer, Device, Failure, Outcome, Queue, ensure, read, write};
use crate::rt::{Out, number, option};

const HEADER: u64 = 44;
const HOST: u64 = 2;
const STREAM: u16 = 1;
const OWN_PORT: u32 = 1234;
/// What either side may have on its way to us.
const WINDOW: u32 = 64 << 10;
/// Most bytes of payload in a packet.
const CHUNK: u32 = 4096;
/// Buffers for packets to us.
const BUFFERS: u16 = 8;
const SLOT: u64 = 0x2000;
/// Bytes each way, several times the windows.
const TOTAL: u32 = 300_000;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

struct Socket<'a> {
    device: &'a mut Device,
    receive: Queue,
    send: Queue,
    cid: u64,
    own_port: u32,
    port: u32,
    /// The peer's buffer, what it has taken out of it, and what we have sent.
    peer: (u32, u32),
    sent: u32,
    /// What came, and how much of it the peer knows to be taken.
    taken: u32,
    told: u32,
}

struct Packet {
    op: u16,
    src_port: u32,
    dst_port: u32,
    len: u32,
    payload: u64,
    slot: u16,
}

fn pattern(at: u32) -> u8 {
    (at.wrapping_mul(0x9e37_79b1) >> 23) as u8
}

impl Socket<'_> {
    fn slot(&self, slot: u16) -> u64 {
        self.device.buffers() + 0x1_0000 + u64::from(slot) * SLOT
    }

    fn offer(&mut self, slot: u16) {
        let at = self.slot(slot);
        self.receive.add(slot, &[Buffer::In(at, HEADER as u32 + CHUNK)]);
        self.device.notify(&self.receive);
    }

    /// Sends a packet; its payload, if any, is already behind the header.
    fn packet(&mut self, op: u16, flags: u32, len: u32) -> Outcome {
        let at = self.device.buffers();
        write(at, self.cid);
        write(at + 8, HOST);
        write(at + 16, self.own_port);
        write(at + 20, self.port);
        write(at + 24, len);
        write(at + 28, STREAM);
        write(at + 30, op);
        write(at + 32, flags);
        write(at + 36, WINDOW);
        write(at + 40, self.taken);
        self.told = self.taken;
        let header = Buffer::Out(at, HEADER as u32);
        if len > 0 {
            self.send.add(0, &[header, Buffer::Out(at + HEADER, len)]);
        } else {
            self.send.add(0, &[header]);
        }
        self.device.notify(&self.send);
        self.send.finished().map(|_| ())
    }

    fn take(&mut self, (slot, written): (u16, u32)) -> Outcome<Packet> {
        let at = self.slot(slot);
        let len = read::<u32>(at + 24);
        ensure(u64::from(written) == HEADER + u64::from(len), "a packet's length is not what was written")?;
        ensure(read::<u64>(at) == HOST && read::<u64>(at + 8) == self.cid, "a packet of other CIDs")?;
        let (src_port, dst_port) = (read(at + 16), read(at + 20));
        if dst_port == self.own_port {
            self.peer = (read(at + 36), read(at + 40));
        }
        Ok(Packet { op: read(at + 30), src_port, dst_port, len, payload: at + HEADER, slot })
    }

    fn next(&mut self) -> Outcome<Packet> {
        let done = self.receive.finished()?;
        self.take(done)
    }

    fn credit(&self) -> u32 {
        self.peer.0.saturating_sub(self.sent.wrapping_sub(self.peer.1))
    }

    fn data(&mut self, from: impl Fn(u32) -> u8, len: u32) -> Outcome {
        let at = self.device.buffers() + HEADER;
        for i in 0..len {
            write(at + u64::from(i), from(self.sent.wrapping_add(i)));
        }
        self.packet(RW, 0, len)?;
        self.sent = self.sent.wrapping_add(len);
        Ok(())
    }

    fn tell_credit(&mut self) -> Outcome {
        if self.taken.wrapping_sub(self.told) >= WINDOW / 4 {
            self.packet(CREDIT_UPDATE, 0, 0)?;
        }
        Ok(())
    }

    /// To the host's listener, which sends all back.
    fn connect(&mut self, port: u32) -> Outcome<u32> {
        (self.own_port, self.port) = (OWN_PORT, port);
        self.packet(REQUEST, 0, 0)?;
        let answer = self.next()?;
        self.offer(answer.slot);
        ensure(answer.op == RESPONSE && answer.src_port == port, "no connection to the host")?;
        while self.taken < TOTAL {
            let ahead = self.sent - self.taken;
            let len = CHUNK.min(TOTAL - self.sent).min(self.credit()).min(WINDOW - ahead);
            // Odd sizes: pieces do not keep their borders.
            let len = len.min(1 + self.sent % 4093);
            if len > 0 {
                self.data(pattern, len)?;
                if let Some(done) = self.receive.poll() {
                    self.check(done)?;
                }
            } else {
                let done = self.receive.finished()?;
                self.check(done)?;
            }
        }
        self.packet(SHUTDOWN, 3, 0)?;
        loop {
            let p = self.next()?;
            self.offer(p.slot);
            match p.op {
                RST => return Ok(self.taken),
                SHUTDOWN | CREDIT_UPDATE | CREDIT_REQUEST => {}
                _ => return Err(Failure("data after the end")),
            }
        }
    }

    fn check(&mut self, done: (u16, u32)) -> Outcome {
        let p = self.take(done)?;
        match p.op {
            RW => {
                for i in 0..p.len {
                    let same = read::<u8>(p.payload + u64::from(i)) == pattern(self.taken.wrapping_add(i));
                    ensure(same, "comes back changed")?;
                }
                self.taken = self.taken.wrapping_add(p.len);
            }
            CREDIT_UPDATE => {}
            CREDIT_REQUEST => self.packet(CREDIT_UPDATE, 0, 0)?,
            _ => return Err(Failure("the connection ends early")),
        }
        self.offer(p.slot);
        self.tell_credit()
    }

    /// Waits for the host to connect to `port`, and sends all that comes back to it.
    fn listen(&mut self, port: u32) -> Outcome<u32> {
        self.own_port = port;
        let mut turns = 0;
        let request = loop {
            match self.receive.finished() {
                Ok(done) => {
                    let p = self.take(done)?;
                    self.offer(p.slot);
                    if p.op == REQUEST && p.dst_port == port {
                        break p;
                    }
                }
                Err(_) if turns < 6 => turns += 1,
                Err(e) => return Err(e),
            }
        };
        self.port = request.src_port;
        (self.sent, self.taken, self.told) = (0, 0, 0);
        self.packet(RESPONSE, 0, 0)?;
        loop {
            let p = self.next()?;
            match p.op {
                RW => {
                    self.taken = self.taken.wrapping_add(p.len);
                    let payload = p.payload;
                    while self.credit() < p.len {
                        let done = self.receive.finished()?;
                        let other = self.take(done)?;
                        ensure(other.op == CREDIT_UPDATE, "more than its own window holds")?;
                        self.offer(other.slot);
                    }
                    let start = self.sent;
                    self.data(|at| read(payload + u64::from(at.wrapping_sub(start))), p.len)?;
                }
                CREDIT_UPDATE => {}
                CREDIT_REQUEST => self.packet(CREDIT_UPDATE, 0, 0)?,
                SHUTDOWN => {
                    self.offer(p.slot);
                    self.packet(RST, 0, 0)?;
                    return Ok(self.taken);
                }
                RST => return Ok(self.taken),
                _ => return Err(Failure("a packet that makes no sense")),
            }
            self.offer(p.slot);
            self.tell_credit()?;
        }
    }
}

pub fn check(device: &mut Device) -> Outcome {
    Out.text("virtio vsock");
    device.start(0)?;
    let (receive, send, _events) = (device.queue(0)?, device.queue(1)?, device.queue(2)?);
    device.go();
    let cid = u64::from(device.config::<u32>(0)) | u64::from(device.config::<u32>(4)) << 32;
    Out.text(" cid=").decimal(cid);
    let (peer, sent, taken, told) = ((0, 0), 0, 0, 0);
    let mut socket =
        Socket { device, receive, send, cid, own_port: OWN_PORT, port: 0, peer, sent, taken, told };
    for slot in 0..BUFFERS {
        socket.offer(slot);
    }
    let Some(port) = option("vsock_port") else { return Ok(()) };
    // Nobody listens there: refused, not forgotten.
    (socket.own_port, socket.port) = (99, 1);
    socket.packet(REQUEST, 0, 0)?;
    let answer = socket.next()?;
    socket.offer(answer.slot);
    ensure(answer.op == RST && answer.dst_port == 99, "no refusal of a port without a listener")?;
    let there = socket.connect(number(port) as u32)?;
    Out.text(" there=").decimal(u64::from(there));
    if let Some(port) = option("vsock_listen") {
        Out.text(" listening\n").flush();
        crate::ticks::wait();
        let back = socket.listen(number(port) as u32)?;
        Out.text("virtio vsock back=").decimal(u64::from(back));
    }
    Ok(())
}
