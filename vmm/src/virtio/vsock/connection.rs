//! One stream between the guest and a Unix socket: credit, shutdown, and what to tell the guest next.

use super::packet::{HOST_CID, Header, NO_RECEIVE, NO_SEND, STREAM, op};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// Bytes from the guest that are kept for a slow host socket: what the guest is given as credit.
pub(super) const BUFFER: u32 = 64 * 1024;
/// Most payload in a packet to the guest.
const MAX_PAYLOAD: u32 = 64 * 1024;

/// (host port, guest port).
pub(super) type Key = (u32, u32);

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    key: Key,
    guest_cid: u64,
    socket: UnixStream,
    /// The host asked for it, and the guest has not answered yet.
    pub(super) awaits_response: bool,
    /// The socket may have bytes; cleared when it says that it has not.
    pub(super) readable: bool,
    /// The socket's peer has closed both directions.
    pub(super) hung_up: bool,
    host_ended: bool,
    /// Shutdown flags that the guest was told.
    told: u32,
    /// Shutdown flags that the guest has sent.
    guest_flags: u32,
    outgoing: Vec<u8>,
    fwd_cnt: u32,
    fwd_told: u32,
    guest_alloc: u32,
    guest_fwd: u32,
    sent: u32,
    asked_credit: bool,
    pending: Pending,
    /// In the muxer's queue of connections to ask.
    pub(super) queued: bool,
}

#[derive(Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    reset: bool,
    credit: bool,
}

impl Connection {
    /// The guest's request, accepted: answered by a response.
    pub(super) fn by_guest(request: &Header, socket: UnixStream) -> Self {
        let key = (request.dst_port, request.src_port);
        let mut c = Self::new(key, request.src_cid, socket);
        c.pending.response = true;
        c.guest_alloc = request.buf_alloc;
        c.guest_fwd = request.fwd_cnt;
        c
    }

    /// The host's: begins with a request to the guest.
    pub(super) fn by_host(key: Key, guest_cid: u64, socket: UnixStream) -> Self {
        let mut c = Self::new(key, guest_cid, socket);
        c.pending.request = true;
        c.awaits_response = true;
        c
    }

    fn new(key: Key, guest_cid: u64, socket: UnixStream) -> Self {
        Connection {
            key,
            guest_cid,
            socket,
            awaits_response: false,
            readable: true,
            hung_up: false,
            host_ended: false,
            told: 0,
            guest_flags: 0,
            outgoing: Vec::new(),
            fwd_cnt: 0,
            fwd_told: 0,
            guest_alloc: 0,
            guest_fwd: 0,
            sent: 0,
            asked_credit: false,
            pending: Pending::default(),
            queued: false,
        }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    fn header(&mut self, op: u16) -> Header {
        self.fwd_told = self.fwd_cnt;
        self.pending.credit = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.0,
            dst_port: self.key.1,
            kind: STREAM,
            op,
            buf_alloc: BUFFER,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    /// Bytes that the guest has room for. A guest that counts wrongly has none.
    fn credit(&self) -> u32 {
        self.guest_alloc.saturating_sub(self.sent.wrapping_sub(self.guest_fwd))
    }

    /// A packet from the guest for this connection, with its payload; false: it is over, without an answer.
    pub(super) fn receive(&mut self, h: &Header, payload: &[u8]) -> bool {
        self.guest_alloc = h.buf_alloc;
        self.guest_fwd = h.fwd_cnt;
        self.asked_credit = false;
        match h.op {
            op::RST => return false,
            op::RESPONSE if self.awaits_response => {
                self.awaits_response = false;
                if self.socket.write_all(format!("OK {}\n", self.key.0).as_bytes()).is_err() {
                    self.pending.reset = true;
                }
            }
            _ if self.awaits_response => self.pending.reset = true,
            op::RW => {
                let room = BUFFER as usize - self.outgoing.len();
                if payload.len() > room || self.guest_flags & NO_SEND != 0 {
                    self.pending.reset = true;
                } else {
                    self.outgoing.extend(payload);
                    self.flush();
                }
            }
            op::SHUTDOWN => {
                self.guest_flags |= h.flags & (NO_RECEIVE | NO_SEND);
                self.flush();
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => self.pending.credit = true,
            _ => self.pending.reset = true,
        }
        true
    }

    /// Writes what the guest has sent, as far as the socket takes it.
    pub(super) fn flush(&mut self) {
        let mut done = 0;
        while done < self.outgoing.len() {
            match self.socket.write(&self.outgoing[done..]) {
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.pending.reset = true;
                    break;
                }
            }
        }
        self.outgoing.drain(..done);
        self.fwd_cnt = self.fwd_cnt.wrapping_add(done as u32);
        if self.fwd_cnt.wrapping_sub(self.fwd_told) >= BUFFER / 4 {
            self.pending.credit = true;
        }
        if self.outgoing.is_empty() && self.guest_flags & NO_SEND != 0 {
            if self.guest_flags & NO_RECEIVE != 0 {
                self.pending.reset = true;
            } else {
                let _ = self.socket.shutdown(Shutdown::Write);
            }
        }
    }

    /// The next packet for the guest, its payload (at most `room` bytes) in `payload`. After a reset the
    /// connection is over.
    pub(super) fn next_packet(&mut self, room: usize, payload: &mut Vec<u8>) -> Option<Header> {
        payload.clear();
        if self.pending.reset {
            return Some(self.header(op::RST));
        }
        if std::mem::take(&mut self.pending.request) {
            return Some(self.header(op::REQUEST));
        }
        if std::mem::take(&mut self.pending.response) {
            return Some(self.header(op::RESPONSE));
        }
        if self.awaits_response {
            return None;
        }
        if self.readable && !self.host_ended && self.guest_flags & NO_RECEIVE == 0 {
            if self.credit() == 0 {
                if !std::mem::replace(&mut self.asked_credit, true) {
                    return Some(self.header(op::CREDIT_REQUEST));
                }
            } else if let Some(h) = self.read(room, payload) {
                return Some(h);
            }
        }
        let flags = match (self.host_ended, self.hung_up) {
            (false, _) => 0,
            (true, false) => NO_SEND,
            (true, true) => NO_SEND | NO_RECEIVE,
        };
        if flags & !self.told != 0 {
            self.told |= flags;
            let told = self.told;
            return Some(Header { flags: told, ..self.header(op::SHUTDOWN) });
        }
        self.pending.credit.then(|| self.header(op::CREDIT_UPDATE))
    }

    fn read(&mut self, room: usize, payload: &mut Vec<u8>) -> Option<Header> {
        let most = (room as u64).min(self.credit().min(MAX_PAYLOAD).into()) as usize;
        if most == 0 {
            return None;
        }
        payload.resize(most, 0);
        let got = loop {
            match self.socket.read(payload) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        payload.truncate(*got.as_ref().unwrap_or(&0));
        match got {
            Ok(0) => self.host_ended = true,
            Ok(n) => {
                self.sent = self.sent.wrapping_add(n as u32);
                return Some(Header { len: n as u32, ..self.header(op::RW) });
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                self.pending.reset = true;
                return Some(self.header(op::RST));
            }
        }
        None
    }
}
