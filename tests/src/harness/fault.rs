//! Faults between two real processes: a proxy that passes a migration's frames and descriptors on, and at chosen frames kills an
//! end, cuts, stalls or flips a bit. The programs know nothing of it.
//!
//! Called by `tests/faults.rs`. A migration may open several connections, one after another: all go through the same proxy, and
//! a fault strikes the first frame that fits, on whichever. Faults strike in their order, each once.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, SockAddr, Socket, Type};

/// Bytes of the preface and of a frame's header, as `docs/MIGRATION-PROTOCOL.md` has them.
const PREFACE: usize = 16;
const HEADER: usize = 20;
/// Longest payload that the proxy takes; godwit's own bounds are lower.
const LONGEST: usize = 256 << 20;
/// Most descriptors with a frame.
const DESCRIPTORS: usize = 4;

/// An end of the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the guest is.
    Source,
    /// Where it goes.
    Destination,
}

/// What is struck: the first such frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its name in tables.
    pub name: &'static str,
    /// Who sends it.
    pub from: Side,
    /// The frame's kind; 0: the preface.
    pub kind: u16,
    /// Only after a frame of this kind has gone by; 0: at once.
    pub after: u16,
}

/// How it is struck, before it has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `kill -9` of the sending process. What it had sent still arrives, as from a host that dies.
    KillSource,
    /// `kill -9` of the receiving process.
    KillDestination,
    /// All connections end.
    Cut,
    /// Nothing goes either way any more on the connections that there are.
    Stall,
    /// A bit is wrong: this part of the frame, in thousandths.
    Flip(u32),
}

/// An address that godwit takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A Unix socket.
    Unix(PathBuf),
    /// A port of this machine.
    Tcp(u16),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
            Place::Tcp(port) => write!(f, "tcp:127.0.0.1:{port}"),
        }
    }
}

impl std::str::FromStr for Place {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once(':') {
            Some(("unix", path)) => Ok(Place::Unix(path.into())),
            Some(("tcp", rest)) => {
                let port = rest.rsplit(':').next().and_then(|p| p.parse().ok());
                port.map(Place::Tcp).ok_or_else(|| format!("{s}: no port"))
            }
            _ => Err(format!("{s}: neither unix nor tcp")),
        }
    }
}

impl Place {
    fn socket(&self) -> io::Result<(Socket, SockAddr)> {
        Ok(match self {
            Place::Unix(path) => (Socket::new(Domain::UNIX, Type::STREAM, None)?, SockAddr::unix(path)?),
            Place::Tcp(port) => {
                let at = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
                (Socket::new(Domain::IPV4, Type::STREAM, None)?, at.into())
            }
        })
    }
}

/// What the pumps share.
struct Shared {
    strikes: Vec<(Point, Action)>,
    /// Process ids of source and destination.
    source: u32,
    destination: u32,
    /// Kinds that have gone by, a bit each.
    seen: Mutex<u128>,
    /// How many have struck.
    fired: AtomicUsize,
    /// Connections, and how many of the first ones stand still.
    connections: AtomicUsize,
    stalled: AtomicUsize,
    over: AtomicBool,
    sockets: Mutex<Vec<Socket>>,
}

/// The proxy. Dropping it ends all connections.
pub struct Proxy {
    place: Place,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

/// Ends a process at once and waits until it does nothing any more.
pub fn kill(pid: u32) {
    // SAFETY: a plain system call on a child of ours that nobody has waited for yet, so the id is still its own.
    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
    let stat = format!("/proc/{pid}/stat");
    let dead = |text: String| text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    while std::fs::read_to_string(&stat).is_ok_and(|text| !dead(text)) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Proxy {
    /// Stands between whoever connects to it and `to`. `scratch` is where its Unix socket may lie.
    ///
    /// # Errors
    /// The system's.
    pub fn start(
        to: &Place,
        scratch: &Path,
        strikes: Vec<(Point, Action)>,
        (source, destination): (u32, u32),
    ) -> io::Result<Proxy> {
        let wanted = match to {
            Place::Unix(_) => Place::Unix(scratch.to_owned()),
            Place::Tcp(_) => Place::Tcp(0),
        };
        let (socket, at) = wanted.socket()?;
        socket.bind(&at)?;
        socket.listen(16)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let place = match wanted {
            Place::Tcp(_) => Place::Tcp(socket.local_addr()?.as_socket().map_or(0, |a| a.port())),
            unix => unix,
        };
        let shared = Arc::new(Shared {
            strikes,
            source,
            destination,
            seen: Mutex::new(0),
            fired: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            stalled: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            sockets: Mutex::new(Vec::new()),
        });
        let (mine, to) = (Arc::clone(&shared), to.clone());
        let listener = std::thread::spawn(move || {
            let mut pumps = Vec::new();
            while !mine.over.load(Ordering::SeqCst) {
                if let Ok((near, _)) = socket.accept()
                    && let Ok(two) = connect(&mine, near, &to)
                {
                    pumps.extend(two);
                }
            }
            mine.cut();
            pumps.into_iter().for_each(|p| drop(p.join()));
        });
        Ok(Proxy { place, shared, listener: Some(listener) })
    }

    /// Where it listens.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// True if all faults have struck.
    pub fn fired(&self) -> bool {
        self.shared.fired.load(Ordering::SeqCst) == self.shared.strikes.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.cut();
        if let Some(thread) = self.listener.take() {
            let _ = thread.join();
        }
    }
}

fn connect(shared: &Arc<Shared>, near: Socket, to: &Place) -> io::Result<[JoinHandle<()>; 2]> {
    let (far, at) = to.socket()?;
    far.connect(&at)?;
    near.set_read_timeout(None)?;
    let clones = [near.try_clone()?, far.try_clone()?];
    shared.sockets.lock().unwrap_or_else(|e| e.into_inner()).extend(clones);
    let number = shared.connections.fetch_add(1, Ordering::SeqCst);
    let pump = |from: &Socket, to: &Socket, side| -> io::Result<JoinHandle<()>> {
        let (from, mut to, shared) = (from.try_clone()?, to.try_clone()?, Arc::clone(shared));
        Ok(std::thread::spawn(move || {
            let _ = shared.pump(&from, &mut to, side, number);
            // What this end would still say reaches nobody; the other end's last words may still come.
            let _ = to.shutdown(std::net::Shutdown::Write);
        }))
    };
    Ok([pump(&near, &far, Side::Source)?, pump(&far, &near, Side::Destination)?])
}

impl Shared {
    fn cut(&self) {
        for socket in self.sockets.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    fn pump(&self, from: &Socket, to: &mut Socket, side: Side, number: usize) -> io::Result<()> {
        let (mut frame, mut held) = (vec![0; PREFACE], Vec::new());
        read_exact(from, &mut frame, &mut held)?;
        self.pass(0, &mut frame, (to, &mut held), side, number)?;
        loop {
            frame.resize(HEADER, 0);
            read_exact(from, &mut frame, &mut held)?;
            let kind = u16::from_le_bytes([frame[0], frame[1]]);
            let len = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]) as usize;
            if len > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            frame.resize(HEADER + len, 0);
            read_exact(from, &mut frame[HEADER..], &mut held)?;
            self.pass(kind, &mut frame, (to, &mut held), side, number)?;
        }
    }

    /// The fault that strikes this frame.
    fn due(&self, kind: u16, side: Side) -> Option<Action> {
        let mut seen = self.seen.lock().unwrap_or_else(|e| e.into_inner());
        let fired = self.fired.load(Ordering::SeqCst);
        let (p, action) = *self.strikes.get(fired)?;
        let late = p.after == 0 || *seen & (1 << p.after) != 0;
        *seen |= 1u128.checked_shl(kind.into()).unwrap_or(0);
        (p.from == side && p.kind == kind && late).then(|| {
            self.fired.store(fired + 1, Ordering::SeqCst);
            action
        })
    }

    fn pass(
        &self,
        kind: u16,
        frame: &mut [u8],
        (to, held): (&mut Socket, &mut Vec<OwnedFd>),
        side: Side,
        number: usize,
    ) -> io::Result<()> {
        if let Some(action) = self.due(kind, side) {
            self.strike(action, frame)?;
        }
        while number < self.stalled.load(Ordering::SeqCst) {
            if self.over.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let held = std::mem::take(held);
        let sent = if held.is_empty() { 0 } else { send_with(to, frame, &held)? };
        to.write_all(&frame[sent..])
    }

    fn strike(&self, action: Action, frame: &mut [u8]) -> io::Result<()> {
        match action {
            Action::KillSource => kill(self.source),
            Action::KillDestination => {
                kill(self.destination);
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Action::Cut => {
                self.cut();
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            Action::Stall => {
                self.stalled.store(self.connections.load(Ordering::SeqCst), Ordering::SeqCst);
            }
            Action::Flip(thousandth) => {
                // A preface's magic; versions and capabilities are a choice, not a checksum.
                let len = if frame.len() == PREFACE { 8 } else { frame.len() };
                let bit = (len * 8 - 1) * thousandth.min(1000) as usize / 1000;
                frame[bit / 8] ^= 1 << (bit % 8);
            }
        }
        Ok(())
    }
}

/// Fills `buf`, and keeps the descriptors that come with it.
fn read_exact(from: &Socket, buf: &mut [u8], held: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut at = 0;
    while at < buf.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut buf[at..])];
        match recvmsg(from, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(read) if read.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => at += read.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                held.extend(came);
            }
        }
    }
    Ok(())
}

/// Sends what goes at once, the descriptors with it.
fn send_with(to: &Socket, bytes: &[u8], held: &[OwnedFd]) -> io::Result<usize> {
    let held: Vec<BorrowedFd<'_>> = held.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&held));
    Ok(sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Waits until `done`, generously; false: it never came.
pub fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + super::PATIENCE;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    true
}
