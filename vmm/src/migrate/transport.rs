//! Addresses and sockets: `tcp:HOST:PORT`, `unix:PATH`, `vsock:CID:PORT`.

use super::error::MigrateError;
use super::wire::MAX_DESCRIPTORS;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a guest goes to, or is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP port; the host may be a name, with its address if that is known (`name@192.0.2.1`).
    Tcp {
        /// Name, IPv4 or bracketed IPv6 address, or name, `@` and either.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
    /// A vsock port of a host (2), a guest, or this machine (1).
    Vsock {
        /// Context id; 0xffffffff listens on any.
        cid: u32,
        /// Port.
        port: u32,
    },
}

impl std::str::FromStr for Address {
    type Err = MigrateError;

    fn from_str(s: &str) -> Result<Self, MigrateError> {
        let bad = |why: &str| MigrateError::Address { address: s.to_owned(), why: why.to_owned() };
        let (scheme, rest) =
            s.split_once(':').ok_or_else(|| bad("say tcp:HOST:PORT, unix:PATH or vsock:CID:PORT"))?;
        match scheme {
            "tcp" => {
                let (host, port) =
                    rest.rsplit_once(':').ok_or_else(|| bad("a port is missing: tcp:HOST:PORT"))?;
                let port = port.parse().map_err(|_| bad("the port is a number from 0 to 65535"))?;
                let (name, ip) = host.rsplit_once('@').map_or((None, host), |(name, ip)| (Some(name), ip));
                if ip.is_empty() || (ip.contains(':') && !(ip.starts_with('[') && ip.ends_with(']'))) {
                    return Err(bad("a host is a name, an IPv4 address or an IPv6 address in brackets"));
                }
                if name.is_some_and(|n| n.is_empty() || n.contains(['@', ':']) || !is_ip(ip)) {
                    return Err(bad("say NAME@ADDRESS, the address being IPv4, or IPv6 in brackets"));
                }
                Ok(Address::Tcp { host: host.to_owned(), port })
            }
            "unix" if !rest.is_empty() => Ok(Address::Unix(rest.into())),
            "unix" => Err(bad("the path is empty")),
            "vsock" => {
                let (cid, port) =
                    rest.split_once(':').ok_or_else(|| bad("a port is missing: vsock:CID:PORT"))?;
                let number = |text: &str, any| match text {
                    "any" => Ok(any),
                    _ => text.parse().map_err(|_| bad("CID and port are numbers")),
                };
                Ok(Address::Vsock { cid: number(cid, u32::MAX)?, port: number(port, u32::MAX)? })
            }
            _ => Err(bad("the transport is missing: say tcp:HOST:PORT, unix:PATH or vsock:CID:PORT")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Vsock { cid: u32::MAX, port } => write!(f, "vsock:any:{port}"),
            Address::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

impl Address {
    /// True if nobody on a network can be at the other end without this machine's leave.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Tcp { host, port } => resolve(host, *port)
                .is_ok_and(|all| !all.is_empty() && all.iter().all(|a| a.ip().is_loopback())),
            Address::Unix(_) | Address::Vsock { .. } => true,
        }
    }

    /// Only processes of this host reach it; vsock is reached from guests.
    pub fn is_this_host(&self) -> bool {
        self.is_local() && !matches!(self, Address::Vsock { .. })
    }

    /// True if somebody must be asked where that is.
    pub fn needs_resolver(&self) -> bool {
        matches!(self, Address::Tcp { host, .. } if !host.contains('@') && !is_ip(host) && !is_localhost(host))
    }

    /// The same with the address of its name: for a process whose filter lets it ask nobody.
    ///
    /// # Errors
    /// The resolver's.
    pub fn resolved(self) -> Result<Self, MigrateError> {
        let Address::Tcp { host, port } = &self else { return Ok(self) };
        if !self.needs_resolver() {
            return Ok(self);
        }
        let failed = |why: String| MigrateError::Address { address: self.to_string(), why };
        let all = resolve(host, *port).map_err(|e| failed(format!("{host} is not found: {e}")))?;
        let ip = match all.first().ok_or_else(|| failed("the name has no address".into()))? {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        };
        Ok(Address::Tcp { host: format!("{host}@{ip}"), port: *port })
    }
}

fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host)
}

fn is_ip(host: &str) -> bool {
    without_brackets(host).parse::<std::net::IpAddr>().is_ok()
}

fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

/// The name that a certificate must be for.
pub(super) fn certified_name(host: &str) -> &str {
    without_brackets(host.rsplit_once('@').map_or(host, |(name, _)| name))
}

fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let host = without_brackets(host.rsplit_once('@').map_or(host, |(_, ip)| ip));
    if let Ok(ip) = host.parse::<std::net::IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    if is_localhost(host) {
        return Ok(vec![
            (std::net::Ipv4Addr::LOCALHOST, port).into(),
            (std::net::Ipv6Addr::LOCALHOST, port).into(),
        ]);
    }
    // A resolver reads files, loads libraries and asks servers, for which the filter would end the process.
    if crate::sandbox::confined() {
        let why = format!("`{host}` is a name, and with seccomp on none is resolved: say NAME@ADDRESS");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok((host, port).to_socket_addrs()?.collect())
}

/// Most bytes in a send queue before a prompt answer.
const UNSENT: u32 = 128 << 10;

/// One connection, whatever it goes over.
pub trait Stream: Read + Write + Send {
    /// How long a read or a write may make no progress.
    ///
    /// # Errors
    /// The system's.
    fn set_idle_limit(&self, limit: Duration) -> io::Result<()>;
    /// True if a write that fails has sent nothing: there is no buffer of our own in between.
    fn write_fails_clean(&self) -> bool {
        false
    }
    /// True if descriptors go over it, to a process on this machine.
    fn carries_descriptors(&self) -> bool {
        false
    }
    /// Writes `bytes`, the descriptors with the first of them.
    ///
    /// # Errors
    /// The system's; this connection carries none.
    fn write_with(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let _ = (bytes, descriptors);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Reads, and takes the descriptors that came with the bytes.
    ///
    /// # Errors
    /// The system's; this connection carries none.
    fn read_with(&mut self, buf: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let _ = (buf, descriptors);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// What becomes readable when bytes come, to wait for them together with something else.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
    /// True if bytes have come that a read gives without the descriptor being readable.
    fn has_buffered(&mut self) -> bool {
        false
    }
    /// Small answers are to pass soon: not much may wait in this host's send queue before them.
    fn be_prompt(&self) {}
    /// Ends the sending direction; the peer reads to the end.
    fn finish(&mut self);
    /// Ends both directions at once, from any thread's point of view.
    fn cut(&self);
}

impl Stream for Socket {
    fn set_idle_limit(&self, limit: Duration) -> io::Result<()> {
        let limit = limit.max(Duration::from_millis(1));
        self.set_read_timeout(Some(limit))?;
        self.set_write_timeout(Some(limit))
    }
    fn write_fails_clean(&self) -> bool {
        true
    }
    fn carries_descriptors(&self) -> bool {
        self.local_addr().is_ok_and(|a| a.domain() == Domain::UNIX)
    }
    fn write_with(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(sendmsg(&*self, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
    }
    fn read_with(&mut self, buf: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let n = recvmsg(&*self, &mut [IoSliceMut::new(buf)], &mut ancillary, flags)?.bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        Ok(n)
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
    fn be_prompt(&self) {
        if self.local_addr().is_ok_and(|a| a.is_ipv4() || a.is_ipv6()) {
            let _ = self.set_tcp_notsent_lowat(UNSENT);
        }
    }
    fn finish(&mut self) {
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
    fn cut(&self) {
        let _ = self.shutdown(std::net::Shutdown::Both);
    }
}

fn socket_of(address: &Address) -> io::Result<Vec<(Socket, SockAddr)>> {
    let stream = |domain, protocol, addr| Ok((Socket::new(domain, Type::STREAM, protocol)?, addr));
    match address {
        Address::Tcp { host, port } => resolve(host, *port)?
            .into_iter()
            .map(|a| stream(Domain::for_address(a), Some(socket2::Protocol::TCP), a.into()))
            .collect(),
        Address::Unix(path) => Ok(vec![stream(Domain::UNIX, None, SockAddr::unix(path)?)?]),
        Address::Vsock { cid, port } => Ok(vec![stream(Domain::VSOCK, None, SockAddr::vsock(*cid, *port))?]),
    }
}

fn tune(socket: &Socket, address: &Address) -> io::Result<()> {
    if matches!(address, Address::Tcp { .. }) {
        socket.set_tcp_nodelay(true)?;
        let probe =
            TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
        socket.set_tcp_keepalive(&probe.with_retries(3))?;
    }
    Ok(())
}

/// Connects, trying every address of a name, each for at most `limit`.
///
/// # Errors
/// The last address's failure.
pub fn connect(address: &Address, limit: Duration) -> Result<Socket, MigrateError> {
    let failed = |source| MigrateError::Connect { what: "connect to", address: address.to_string(), source };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (socket, to) in socket_of(address).map_err(failed)? {
        // A Unix socket connects at once or blocks on a full backlog, which its send limit bounds.
        let done = socket.set_write_timeout(Some(limit)).and_then(|()| match address {
            Address::Tcp { .. } => socket.connect_timeout(&to, limit),
            _ => socket.connect(&to),
        });
        match done.and_then(|()| tune(&socket, address)) {
            Ok(()) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(failed(last))
}

/// A bound socket that waits for one peer. A Unix socket's file goes away with it.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

impl Listener {
    /// Binds and listens. A stale Unix socket (nobody listens on it) is replaced.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub fn bind(address: &Address) -> Result<Self, MigrateError> {
        let failed =
            |source| MigrateError::Connect { what: "listen on", address: address.to_string(), source };
        let none = || failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        let (socket, to) = socket_of(address).map_err(failed)?.into_iter().next().ok_or_else(none)?;
        match address {
            Address::Unix(path) => {
                use std::os::unix::fs::FileTypeExt;
                let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
                if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
                    let _ = std::fs::remove_file(path);
                }
            }
            Address::Tcp { .. } => socket.set_reuse_address(true).map_err(failed)?,
            Address::Vsock { .. } => {}
        }
        socket.bind(&to).map_err(failed)?;
        socket.listen(8).map_err(failed)?;
        Ok(Listener { socket, address: address.clone() })
    }

    /// The address, with the port that the system chose for port 0.
    pub fn address(&self) -> Address {
        let port = self.socket.local_addr().ok().and_then(|a| a.as_socket()).map(|a| a.port());
        match (&self.address, port) {
            (Address::Tcp { host, .. }, Some(port)) => Address::Tcp { host: host.clone(), port },
            (other, _) => other.clone(),
        }
    }

    /// Waits for a peer; `None` when `limit` is over first.
    ///
    /// # Errors
    /// The system's.
    pub fn accept(&self, limit: Option<Duration>) -> Result<Option<Socket>, MigrateError> {
        let failed =
            |source| MigrateError::Connect { what: "listen on", address: self.address.to_string(), source };
        let end = limit.map(|l| Instant::now() + l);
        loop {
            let left = end.map(|e| e.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
            self.socket.set_read_timeout(left).map_err(failed)?;
            match self.socket.accept() {
                Ok((socket, _)) => {
                    tune(&socket, &self.address).map_err(failed)?;
                    return Ok(Some(socket));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::TimedOut => {
                    return Ok(None);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_print() {
        let good = "tcp:localhost:1234 tcp:[::1]:1 unix:/run/x vsock:3:5000 vsock:any:1 tcp:far.example@192.0.2.1:7 tcp:x@[::1]:1";
        for text in good.split(' ') {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let bad = "tcp tcp:host tcp:host:70000 tcp:::1:5 tcp::5 unix: vsock:3 ftp:a:1 tcp:a@b:1 tcp:@::1:1 tcp:@192.0.2.1:1 tcp:a@:1";
        for text in bad.split(' ').chain([""]) {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        let local = |s: &str| s.parse::<Address>().unwrap().is_local();
        assert!(
            local("tcp:127.0.0.1:1") && local("tcp:[::1]:1") && local("unix:x") && !local("tcp:0.0.0.0:1")
        );
    }

    #[test]
    fn a_name_with_its_address_asks_nobody_and_keeps_its_name() {
        let address: Address = "tcp:far.example@127.0.0.1:7".parse().unwrap();
        assert!(!address.needs_resolver() && address.is_local());
        assert_eq!(resolve("far.example@[::1]", 7).unwrap(), ["[::1]:7".parse().unwrap()]);
        assert_eq!((certified_name("far.example@[::1]"), certified_name("[::1]")), ("far.example", "::1"));
        let name: Address = "tcp:no-such-host.invalid:7".parse().unwrap();
        assert!(name.needs_resolver());
        let error = name.resolved().unwrap_err().to_string();
        assert!(error.contains("no-such-host.invalid is not found"), "{error}");
        for same in ["tcp:localhost:7", "unix:/x", "tcp:192.0.2.1:7"].map(|a| a.parse::<Address>().unwrap()) {
            assert_eq!(same.clone().resolved().unwrap(), same);
        }
    }

    #[test]
    fn a_port_is_chosen_and_an_accept_ends() {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(listener.accept(Some(Duration::from_millis(5))).unwrap().is_none());
        let address = listener.address();
        let _peer = connect(&address, Duration::from_secs(5)).unwrap();
        assert!(listener.accept(Some(Duration::from_secs(5))).unwrap().is_some());
        drop(listener);
        let error = connect(&address, Duration::from_secs(5)).unwrap_err().to_string();
        assert!(error.contains("connect to tcp:127.0.0.1:"), "{error}");
    }
}
