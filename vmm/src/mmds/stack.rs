//! The guest's way in: ARP by hand, IPv4 and TCP by smoltcp, one [`http`] conversation a connection.
//!
//! The guest is hostile and can only harm itself: connections are few, the oldest makes room for a new one, and what
//! waits for the guest is bounded. It is driven by the guest's frames alone; there is no timer.

use super::Service;
use super::http::{self, Heard};
use crate::virtio::net::Detour;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;

/// The service's own address on the link, Firecracker's.
const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
const PORT: u16 = 80;
/// Connections, one of them listening.
const CONNECTIONS: usize = 8;
const RECEIVE: usize = 4096;
const SEND: usize = 16 * 1024;
/// Frames that wait for the guest.
const MAX_FRAMES: usize = 64;
const MTU: usize = 1500;
const ETHERNET: usize = 14;
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
/// Ethernet, IPv4, request.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const ARP_LEN: usize = ETHERNET + 28;

/// The wire between smoltcp and the frames.
struct Wire {
    incoming: Option<Vec<u8>>,
    /// Whole frames.
    outgoing: VecDeque<Vec<u8>>,
    guest: [u8; 6],
}

struct In(Vec<u8>);
struct Out<'a>(&'a mut Wire);

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = [self.0.guest, MAC].concat();
        frame.extend(IPV4);
        frame.resize(ETHERNET + len, 0);
        let result = f(&mut frame[ETHERNET..]);
        self.0.outgoing.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(In, Out<'_>)> {
        let packet = self.incoming.take()?;
        Some((In(packet), Out(self)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Out<'_>> {
        (self.outgoing.len() < MAX_FRAMES).then_some(Out(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ip;
        c.max_transmission_unit = MTU;
        // The guest may leave checksums to its network card, and nothing on the way can have changed a bit.
        c.checksum = ChecksumCapabilities::ignored();
        c.checksum.ipv4 = Checksum::Tx;
        c.checksum.tcp = Checksum::Tx;
        c
    }
}

struct Connection {
    handle: SocketHandle,
    request: Vec<u8>,
    response: VecDeque<u8>,
    close: bool,
    /// When it was used last: a count of the guest's frames.
    used: u64,
}

/// The service at one network interface.
pub struct Stack {
    service: Service,
    address: Ipv4Addr,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    frames: u64,
}

impl Stack {
    /// A stack at `address`.
    ///
    /// # Errors
    /// The host gives no random numbers.
    pub fn new(service: Service, address: Ipv4Addr) -> io::Result<Self> {
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty())?;
        let mut wire = Wire { incoming: None, outgoing: VecDeque::new(), guest: [0xff; 6] };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from_le_bytes(seed);
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        // Everybody is a neighbour: the guest's address may be any.
        interface.update_ip_addrs(|list| {
            let _ = list.push(IpCidr::new(address.into(), 0));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let connections = (0..CONNECTIONS)
            .map(|_| {
                let (receive, send) = (SocketBuffer::new(vec![0; RECEIVE]), SocketBuffer::new(vec![0; SEND]));
                let mut socket = Socket::new(receive, send);
                socket.set_ack_delay(None);
                socket.set_nagle_enabled(false);
                // It cannot fail: the port is not 0.
                let _ = socket.listen(PORT);
                let handle = sockets.add(socket);
                Connection { handle, request: Vec::new(), response: VecDeque::new(), close: false, used: 0 }
            })
            .collect();
        Ok(Stack { service, address, wire, interface, sockets, connections, frames: 0 })
    }

    fn answer_arp(&mut self, frame: &[u8]) {
        let Some(sender) = frame.get(ETHERNET + 8..ETHERNET + 18) else { return };
        let mut reply = [&sender[..6], &MAC, &ARP, &ARP_REQUEST].concat();
        reply[ETHERNET + 7] = 2;
        reply.extend(MAC);
        reply.extend(self.address.octets());
        reply.extend(sender);
        if self.wire.outgoing.len() < MAX_FRAMES {
            self.wire.outgoing.push_back(reply);
        }
    }

    /// Moves everything as far as it goes.
    fn work(&mut self, now_ns: u64) {
        let now = Instant::from_micros(i64::try_from(now_ns / 1000).unwrap_or(i64::MAX));
        // Each turn that goes on has moved a request or filled a buffer: few are possible for one frame.
        for _ in 0..2 * CONNECTIONS {
            self.interface.poll(now, &mut self.wire, &mut self.sockets);
            let Stack { service, sockets, connections, frames, .. } = self;
            let mut moved = false;
            for c in connections.iter_mut() {
                moved |= c.work(sockets.get_mut(c.handle), service, *frames, now_ns);
            }
            moved |= self.make_room();
            if !moved {
                break;
            }
        }
    }

    /// One connection always listens: the one that was used least recently gives way.
    fn make_room(&mut self) -> bool {
        let listening = |c: &Connection| self.sockets.get::<Socket<'_>>(c.handle).is_listening();
        if self.connections.iter().any(listening) {
            return false;
        }
        let Some(oldest) = self.connections.iter_mut().min_by_key(|c| c.used) else { return false };
        oldest.used = u64::MAX;
        self.sockets.get_mut::<Socket<'_>>(oldest.handle).abort();
        true
    }
}

impl Connection {
    /// True if something moved.
    fn work(&mut self, socket: &mut Socket<'_>, service: &Service, frame: u64, now_ns: u64) -> bool {
        if !socket.is_open() {
            self.request.clear();
            self.response.clear();
            self.close = false;
            self.used = frame;
            return socket.listen(PORT).is_ok();
        }
        let mut moved = false;
        // One request at a time: a guest that does not take its answer is not heard.
        while self.response.is_empty() && !self.close {
            if socket.can_recv() {
                let room = http::MAX_REQUEST.saturating_sub(self.request.len());
                let request = &mut self.request;
                let taken = socket.recv(|bytes| {
                    let n = bytes.len().min(room);
                    request.extend(&bytes[..n]);
                    (n, n)
                });
                self.used = frame;
                moved |= taken.is_ok_and(|n| n > 0);
            }
            if self.request.is_empty() {
                break;
            }
            let store = service.store();
            let Heard::Whole { taken, response, close } = http::hear(&store, &self.request, now_ns) else {
                break;
            };
            drop(store);
            self.request.drain(..taken.min(self.request.len()));
            self.response.extend(response);
            self.close = close;
        }
        if socket.can_send() && !self.response.is_empty() {
            let (front, _) = self.response.as_slices();
            if let Ok(n @ 1..) = socket.send_slice(front) {
                self.response.drain(..n);
                moved = true;
            }
        }
        let done = self.close || !socket.may_recv() && !socket.can_recv();
        if done && self.response.is_empty() && socket.may_send() {
            socket.close();
            moved = true;
        }
        moved
    }
}

impl Detour for Stack {
    fn wants(&self, frame: &[u8]) -> bool {
        let at = |from: usize, len: usize| frame.get(from..from + len);
        let address = self.address.octets();
        match at(12, 2) {
            Some(kind) if kind == ARP => {
                at(ETHERNET, 8) == Some(&ARP_REQUEST) && at(ETHERNET + 24, 4) == Some(&address)
            }
            Some(kind) if kind == IPV4 => at(ETHERNET + 16, 4) == Some(&address),
            _ => false,
        }
    }

    fn take(&mut self, frame: &[u8], now_ns: u64) {
        self.frames += 1;
        if frame.get(12..14) == Some(&ARP) {
            if frame.len() >= ARP_LEN {
                self.answer_arp(frame);
            }
            return;
        }
        if let (Some(from), Some(packet)) = (frame.get(6..12), frame.get(ETHERNET..)) {
            self.wire.guest.copy_from_slice(from);
            self.wire.incoming = Some(packet.to_vec());
            self.work(now_ns);
        }
    }

    fn next(&mut self, frame: &mut Vec<u8>, now_ns: u64) -> bool {
        if self.wire.outgoing.is_empty() {
            return false;
        }
        if let Some(first) = self.wire.outgoing.pop_front() {
            *frame = first;
        }
        if self.wire.outgoing.is_empty() {
            // There may be more that did not fit.
            self.work(now_ns);
        }
        true
    }
}

#[cfg(test)]
mod tests;
