//! The servers.

use crate::mmio::Outcome;
use crate::nic::Nic;
use crate::rt::{self, Out, number, option};
use crate::{memory, now};
use smoltcp::iface::{Interface, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

/// A ring-0 service: rests until the next interrupt.
const WAIT: u8 = 2;

const NUMBERS: u16 = 7;
const SINK: u16 = 9;
const SOURCE: u16 = 19;
const PORTS: [u16; 3] = [NUMBERS, SINK, SOURCE];
/// Bytes of a socket's buffer, each way.
const BUFFER: usize = 256 << 10;
/// Turns without any news before the processor rests until the next tick.
const IDLE_TURNS: u32 = 20_000;

/// What has gone each way over one connection.
#[derive(Default, Clone, Copy)]
struct Counts {
    sent: u64,
    received: u64,
    bad: bool,
    /// Somebody is or was there.
    open: bool,
}

/// Byte `at` of the stream of 32-bit big-endian numbers.
fn number_byte(at: u64) -> u8 {
    ((at / 4) as u32).to_be_bytes()[(at % 4) as usize]
}

impl Counts {
    fn check(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte != number_byte(self.received) && !self.bad {
                self.bad = true;
                Out.text("tcp BAD byte at ").decimal(self.received).text("\n").flush();
            }
            self.received += 1;
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = number_byte(self.sent);
            self.sent += 1;
        }
    }

    fn end(&mut self, port: u16) {
        let name = match port {
            NUMBERS => "numbers",
            SINK => "sink",
            _ => "source",
        };
        Out.text("tcp ").text(name).text(" sent=").decimal(self.sent);
        Out.text(" received=").decimal(self.received).text(if self.bad { " BAD\n" } else { " ok\n" }).flush();
        *self = Counts::default();
    }
}

fn serve(socket: &mut Socket<'_>, port: u16, c: &mut Counts, batch: usize) {
    if !socket.is_open() {
        if c.open {
            c.end(port);
        }
        let _ = socket.listen(port);
        return;
    }
    if socket.state() == State::Listen || socket.state() == State::SynReceived {
        return;
    }
    c.open = true;
    while socket.can_recv() {
        let taken = socket.recv(|bytes| {
            if port == NUMBERS {
                c.check(bytes);
            } else {
                c.received += bytes.len() as u64;
            }
            (bytes.len(), ())
        });
        if taken.is_err() {
            break;
        }
    }
    // The peer has nothing more to say: neither have we.
    if !socket.may_recv() && socket.may_send() {
        socket.close();
    }
    if port != SINK && socket.may_send() && socket.send_capacity() - socket.send_queue() >= batch {
        let _ = socket.send(|bytes| {
            if port == NUMBERS {
                let len = bytes.len().min(batch);
                c.fill(&mut bytes[..len]);
                (len, ())
            } else {
                c.sent += bytes.len() as u64;
                (bytes.len(), ())
            }
        });
    }
}

pub fn run(interface: &mut Interface, nic: &mut Nic) -> Outcome {
    let batch = option("batch").map_or(256, number) as usize * 4;
    let mut storage = [const { SocketStorage::EMPTY }; PORTS.len()];
    let mut sockets = SocketSet::new(&mut storage[..]);
    let handles = PORTS.map(|_| {
        let buffer = || SocketBuffer::new(memory(BUFFER));
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        sockets.add(socket)
    });
    let mut counts = [Counts::default(); PORTS.len()];
    Out.text("tcp ready\n").flush();
    let (mut idle, mut seen) = (0, 0);
    loop {
        interface.poll(now(), nic, &mut sockets);
        for ((handle, port), c) in handles.into_iter().zip(PORTS).zip(&mut counts) {
            serve(sockets.get_mut(handle), port, c, batch);
        }
        nic.flush();
        idle = if nic.frames == seen { idle + 1 } else { 0 };
        seen = nic.frames;
        if idle > IDLE_TURNS {
            rt::service(WAIT, 0);
        }
    }
}
