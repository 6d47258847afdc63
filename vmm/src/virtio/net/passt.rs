//! User-mode networking through a `passt` process: frames on a Unix stream socket, each after its length in four
//! bytes, big-endian. No privilege, no offloads.

use super::{MAX_FRAME, NetError};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// Bytes of the length before a frame.
const PREFIX: usize = 4;
/// Room for incoming bytes: a few large frames.
const ROOM: usize = 256 * 1024;

/// A connection to passt.
#[derive(Debug)]
pub(super) struct Passt {
    socket: UnixStream,
    incoming: Vec<u8>,
    /// Bytes of `incoming` that are handed out.
    taken: usize,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that are sent.
    sent: usize,
    gone: bool,
}

impl Passt {
    pub(super) fn connect(id: &str, path: &str) -> Result<Self, NetError> {
        UnixStream::connect(path).and_then(Self::over).map_err(|source| NetError::Passt {
            id: id.into(),
            path: path.into(),
            source,
        })
    }

    pub(super) fn over(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Passt { socket, incoming: Vec::new(), taken: 0, outgoing: Vec::new(), sent: 0, gone: false })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn lost(&mut self, why: &str) {
        if !self.gone {
            tracing::warn!("passt: {why}; the interface is dead from now on");
        }
        self.gone = true;
    }

    /// The next frame into `to`, which has room for [`MAX_FRAME`] bytes; its length.
    pub(super) fn read(&mut self, to: &mut [u8]) -> Option<usize> {
        loop {
            let have = &self.incoming[self.taken..];
            if let Some((prefix, rest)) = have.split_first_chunk::<PREFIX>() {
                let len = u32::from_be_bytes(*prefix) as usize;
                if len > MAX_FRAME || len > to.len() {
                    self.lost("a frame is too long");
                    return None;
                }
                if let Some(frame) = rest.get(..len) {
                    to[..len].copy_from_slice(frame);
                    self.taken += PREFIX + len;
                    return Some(len);
                }
            }
            if self.gone || !self.fill() {
                return None;
            }
        }
    }

    /// Reads more bytes; false if there are none.
    fn fill(&mut self) -> bool {
        self.incoming.drain(..std::mem::take(&mut self.taken));
        let have = self.incoming.len();
        self.incoming.resize(ROOM, 0);
        let got = loop {
            match self.socket.read(&mut self.incoming[have..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.incoming.truncate(have + *got.as_ref().unwrap_or(&0));
        match got {
            Ok(0) => self.lost("closed the connection"),
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => self.lost(&e.to_string()),
            _ => {}
        }
        self.incoming.len() > have
    }

    /// Whether the last frame is all sent, after trying to; a frame may be written only then.
    pub(super) fn flush(&mut self) -> bool {
        while self.sent < self.outgoing.len() && !self.gone {
            match self.socket.write(&self.outgoing[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self.lost(&e.to_string()),
            }
        }
        true
    }

    /// Sends a frame, or as much of it as the socket takes now.
    pub(super) fn write(&mut self, frame: &[u8]) {
        self.outgoing.clear();
        self.sent = 0;
        if !self.gone {
            self.outgoing.extend((frame.len() as u32).to_be_bytes());
            self.outgoing.extend(frame);
            self.flush();
        }
    }
}
