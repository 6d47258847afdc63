//! Faults between two real processes: a proxy that passes a migration's frames on, and at one chosen frame kills an end,
//! cuts, stalls or flips a bit. The programs know nothing of it.
//!
//! Called by `tests/faults.rs`. A migration may open several connections: all go through the same proxy, and the fault
//! strikes the first frame that fits, on whichever.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// Bytes of the preface and of a frame's header, as `docs/MIGRATION-PROTOCOL.md` has them.
const PREFACE: usize = 16;
const HEADER: usize = 20;
/// Longest payload that the proxy takes; godwit's own bounds are lower.
const LONGEST: usize = 256 << 20;
const STATE: u16 = 8;

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
    /// Only after the state has gone by.
    pub after_state: bool,
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
    /// Nothing goes either way any more.
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
    point: Point,
    action: Action,
    /// Process ids of source and destination.
    source: u32,
    destination: u32,
    state_seen: AtomicBool,
    fired: AtomicBool,
    stalled: AtomicBool,
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
        (point, action): (Point, Action),
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
            point,
            action,
            source,
            destination,
            state_seen: AtomicBool::new(false),
            fired: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
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

    /// True if the fault has struck.
    pub fn fired(&self) -> bool {
        self.shared.fired.load(Ordering::SeqCst)
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
    let pump = |from: &Socket, to: &Socket, side| -> io::Result<JoinHandle<()>> {
        let (mut from, mut to, shared) = (from.try_clone()?, to.try_clone()?, Arc::clone(shared));
        Ok(std::thread::spawn(move || {
            let _ = shared.pump(&mut from, &mut to, side);
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

    fn pump(&self, from: &mut Socket, to: &mut Socket, side: Side) -> io::Result<()> {
        let mut frame = vec![0; PREFACE];
        from.read_exact(&mut frame)?;
        self.pass(0, &mut frame, to, side)?;
        loop {
            frame.resize(HEADER, 0);
            from.read_exact(&mut frame)?;
            let kind = u16::from_le_bytes([frame[0], frame[1]]);
            let len = u32::from_le_bytes([frame[4], frame[5], frame[6], frame[7]]) as usize;
            if len > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            frame.resize(HEADER + len, 0);
            from.read_exact(&mut frame[HEADER..])?;
            self.pass(kind, &mut frame, to, side)?;
        }
    }

    fn pass(&self, kind: u16, frame: &mut [u8], to: &mut Socket, side: Side) -> io::Result<()> {
        let p = self.point;
        let fits =
            p.from == side && p.kind == kind && (!p.after_state || self.state_seen.load(Ordering::SeqCst));
        if side == Side::Source && kind == STATE {
            self.state_seen.store(true, Ordering::SeqCst);
        }
        if fits && !self.fired.swap(true, Ordering::SeqCst) {
            self.strike(frame)?;
        }
        while self.stalled.load(Ordering::SeqCst) {
            if self.over.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        to.write_all(frame)
    }

    fn strike(&self, frame: &mut [u8]) -> io::Result<()> {
        match self.action {
            Action::KillSource => kill(self.source),
            Action::KillDestination => {
                kill(self.destination);
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Action::Cut => {
                self.cut();
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            Action::Stall => self.stalled.store(true, Ordering::SeqCst),
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
