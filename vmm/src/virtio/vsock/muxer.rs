//! The host's side: Unix sockets, found by Firecracker's convention.
//!
//! The host connects to `uds_path`, sends `CONNECT port\n` and gets `OK host_port\n` when the guest has accepted;
//! a guest's connection to `port` goes to `uds_path_port`.

use super::connection::{Connection, Key};
use super::packet::{HOST_CID, Header, STREAM, op};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Connections, and host sockets that have not yet said where to, at a time.
pub(super) const MAX_CONNECTIONS: usize = 1023;
/// Answers to packets of no connection that may wait; a guest that does not read loses the rest.
const MAX_RESETS: usize = 256;
/// "CONNECT 4294967295\n" and some.
const MAX_COMMAND: usize = 32;
/// Host ports for connections that the host begins.
const FIRST_PORT: u32 = 1 << 30;
const LISTENER: u64 = 0;

#[derive(Debug)]
struct Greeting {
    socket: UnixStream,
    line: Vec<u8>,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Muxer {
    path: String,
    guest_cid: u64,
    listener: UnixListener,
    epoll: Epoll,
    next_id: u64,
    next_port: u32,
    greetings: HashMap<u64, Greeting>,
    connections: HashMap<u64, Connection>,
    ids: HashMap<Key, u64>,
    resets: VecDeque<Header>,
    /// Connections that may have a packet for the guest.
    ready: VecDeque<u64>,
}

impl Muxer {
    pub(super) fn new(path: &str, guest_cid: u64) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let set_up = || {
            listener.set_nonblocking(true)?;
            let epoll = Epoll::new()?;
            let event = EpollEvent::new(EventSet::IN, LISTENER);
            epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
            Ok(epoll)
        };
        match set_up() {
            Ok(epoll) => Ok(Muxer {
                path: path.into(),
                guest_cid,
                listener,
                epoll,
                next_id: LISTENER + 1,
                next_port: FIRST_PORT,
                greetings: HashMap::new(),
                connections: HashMap::new(),
                ids: HashMap::new(),
                resets: VecDeque::new(),
                ready: VecDeque::new(),
            }),
            Err(e) => {
                let _ = std::fs::remove_file(path);
                Err(e)
            }
        }
    }

    /// Readable when [`Self::poll`] has something to do.
    pub(super) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Ends everything but the listener.
    pub(super) fn clear(&mut self) {
        self.greetings.clear();
        self.connections.clear();
        self.ids.clear();
        self.resets.clear();
        self.ready.clear();
    }

    fn full(&self) -> bool {
        self.greetings.len() + self.connections.len() >= MAX_CONNECTIONS
    }

    fn watch(&mut self, socket: &UnixStream) -> io::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), EpollEvent::new(events, id))?;
        Ok(id)
    }

    fn queue(&mut self, id: u64) {
        if let Some(c) = self.connections.get_mut(&id)
            && !std::mem::replace(&mut c.queued, true)
        {
            self.ready.push_back(id);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(c) = self.connections.remove(&id) {
            self.ids.remove(&c.key());
        }
    }

    fn add(&mut self, id: u64, connection: Connection) {
        self.ids.insert(connection.key(), id);
        self.connections.insert(id, connection);
        self.queue(id);
    }

    /// Looks at the sockets that have news, a bounded number of them; true if there may be more.
    pub(super) fn poll(&mut self) -> bool {
        let mut events = [EpollEvent::default(); 64];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        let mut more = count == events.len();
        for event in &events[..count] {
            let (id, set) = (event.data(), event.event_set());
            if id == LISTENER {
                more |= self.accept();
            } else if self.greetings.contains_key(&id) {
                self.greet(id);
            } else if let Some(c) = self.connections.get_mut(&id) {
                c.readable = true;
                c.hung_up |= set.contains(EventSet::HANG_UP);
                if set.contains(EventSet::OUT) {
                    c.flush();
                }
                self.queue(id);
            }
        }
        more
    }

    fn accept(&mut self) -> bool {
        for _ in 0..16 {
            let Ok((socket, _)) = self.listener.accept() else { return false };
            // Refused by closing it.
            if self.full() || socket.set_nonblocking(true).is_err() {
                continue;
            }
            if let Ok(id) = self.watch(&socket) {
                self.greetings.insert(id, Greeting { socket, line: Vec::new() });
            }
        }
        true
    }

    /// Reads the host's command, not a byte further.
    fn greet(&mut self, id: u64) {
        let Some(mut g) = self.greetings.remove(&id) else { return };
        let mut byte = [0];
        while g.line.len() < MAX_COMMAND {
            match g.socket.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => {
                    let text = std::str::from_utf8(&g.line).unwrap_or("").trim_end_matches('\r');
                    let port = text.strip_prefix("CONNECT ").and_then(|p| p.trim().parse().ok());
                    if let (Some(port), Some(own)) = (port, self.free_port()) {
                        self.add(id, Connection::by_host((own, port), self.guest_cid, g.socket));
                    }
                    return;
                }
                Ok(1) => g.line.push(byte[0]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.greetings.insert(id, g);
                    return;
                }
                _ => return,
            }
        }
    }

    /// A host port that no connection has.
    fn free_port(&mut self) -> Option<u32> {
        (0..=MAX_CONNECTIONS as u32).find_map(|_| {
            let port = self.next_port;
            self.next_port = FIRST_PORT | port.wrapping_add(1) & (FIRST_PORT - 1);
            (!self.ids.keys().any(|(own, _)| *own == port)).then_some(port)
        })
    }

    /// A packet from the guest.
    pub(super) fn receive(&mut self, h: &Header, payload: &[u8]) {
        if h.src_cid != self.guest_cid || h.dst_cid != HOST_CID || h.kind != STREAM {
            return self.refuse(h);
        }
        let key = (h.dst_port, h.src_port);
        if let Some(&id) = self.ids.get(&key) {
            let stays = self.connections.get_mut(&id).is_some_and(|c| c.receive(h, payload));
            if stays { self.queue(id) } else { self.remove(id) }
        } else if h.op == op::REQUEST && !self.full() {
            match self.connect(h.dst_port).and_then(|s| Ok((self.watch(&s)?, s))) {
                Ok((id, socket)) => self.add(id, Connection::by_guest(h, socket)),
                Err(_) => self.refuse(h),
            }
        } else {
            self.refuse(h);
        }
    }

    fn refuse(&mut self, h: &Header) {
        if h.op != op::RST && self.resets.len() < MAX_RESETS {
            self.resets.push_back(Header { dst_cid: self.guest_cid, ..h.reset() });
        }
    }

    /// Connects to the host's listener for `port`, without ever waiting for it.
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let address = SocketAddrUnix::new(format!("{}_{port}", self.path))?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(socket.into())
    }

    /// Whether there may be a packet for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest, with at most `room` bytes of payload.
    pub(super) fn next_packet(&mut self, room: usize, payload: &mut Vec<u8>) -> Option<Header> {
        payload.clear();
        if let Some(h) = self.resets.pop_front() {
            return Some(h);
        }
        // Each is asked once, and queued again only if it had something: this ends.
        while let Some(id) = self.ready.pop_front() {
            let Some(c) = self.connections.get_mut(&id) else { continue };
            c.queued = false;
            if let Some(h) = c.next_packet(room, payload) {
                if h.op == op::RST {
                    self.remove(id)
                } else {
                    self.queue(id)
                }
                return Some(h);
            }
        }
        None
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
