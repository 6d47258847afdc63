//! A connection that carries frames: numbered, checksummed, bounded in length and in time.

use super::error::MigrateError;
use super::fault::{Action, Plan, Side, Step};
use super::tls;
use super::transport::Stream;
use super::wire::{FrameHeader, HEADER_LEN, Kind, PREFACE_LEN, Preface, decode_texts, encode_texts};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long an aborting side waits for the peer to read why.
const LINGER: Duration = Duration::from_millis(500);

/// One end of a migration's connection.
pub struct Link {
    stream: Box<dyn Stream>,
    side: Side,
    plan: Option<Plan>,
    armed: Option<Action>,
    /// A read or write may make no progress for this long.
    idle: Duration,
    set_idle: Duration,
    /// No read or write may end after this.
    deadline: Option<Instant>,
    sent: u64,
    received: u64,
    seq_out: u32,
    seq_in: u32,
    /// The frame being built; its first bytes are the header's room.
    out: Vec<u8>,
    /// The last frame's payload is its first `payload_len` bytes; it is never made shorter, which would mean filling it again.
    payload: Vec<u8>,
    payload_len: usize,
    /// The next read takes descriptors too.
    wants_descriptors: bool,
    descriptors: Vec<OwnedFd>,
    dead: bool,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("side", &self.side).field("sent", &self.sent).finish_non_exhaustive()
    }
}

/// A connection that is closed.
struct Nothing;

impl Read for Nothing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}
impl Write for Nothing {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
impl Stream for Nothing {
    fn set_idle_limit(&self, _: Duration) -> io::Result<()> {
        Ok(())
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn finish(&mut self) {}
    fn cut(&self) {}
}

/// A received frame.
pub(super) struct Frame<'a> {
    pub(super) kind: Kind,
    pub(super) flags: u16,
    pub(super) payload: &'a [u8],
}

impl Link {
    /// Wraps a connected stream. No read or write may stand still for longer than `idle`.
    pub fn new(stream: Box<dyn Stream>, side: Side, idle: Duration) -> Self {
        Link {
            stream,
            side,
            plan: Plan::from_env().filter(|p| p.side == side),
            armed: None,
            idle,
            set_idle: Duration::ZERO,
            deadline: None,
            sent: 0,
            received: 0,
            seq_out: 0,
            seq_in: 0,
            out: Vec::new(),
            payload: Vec::new(),
            payload_len: 0,
            wants_descriptors: false,
            descriptors: Vec::new(),
            dead: false,
        }
    }

    /// In the place of a connection that is no more.
    pub(super) fn broken(side: Side) -> Self {
        Link { dead: true, ..Link::new(Box::new(Nothing), side, Duration::from_secs(1)) }
    }

    /// Ends both directions at once.
    pub(super) fn cut(&self) {
        self.stream.cut();
    }

    /// Sets a fault to inject, for tests.
    pub fn set_plan(&mut self, plan: Option<Plan>) {
        self.plan = plan.filter(|p| p.side == self.side);
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Until when everything has to be done; `None`: only the idle limit holds.
    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// This side is about to do `step`: the place for an injected fault.
    pub(super) fn at(&mut self, step: Step) {
        let Some(plan) = self.plan.filter(|p| p.step == step) else { return };
        self.plan = None;
        match plan.action {
            Action::Kill => (plan.kill)(),
            Action::Cut => self.stream.cut(),
            Action::Stall => std::thread::sleep(plan.stall),
            Action::Flip | Action::Repeat => self.armed = Some(plan.action),
        }
    }

    /// Time left for one system call.
    fn arm(&mut self, doing: &'static str) -> Result<(), MigrateError> {
        let left = match self.deadline {
            Some(end) => end.saturating_duration_since(Instant::now()).min(self.idle),
            None => self.idle,
        };
        if left.is_zero() {
            return Err(MigrateError::Timeout { doing, limit: self.idle });
        }
        // Setting it costs two system calls: not for every little change.
        if left != self.set_idle && (left < self.set_idle || left == self.idle) {
            self.stream.set_idle_limit(left).map_err(|source| MigrateError::Io { doing, source })?;
            self.set_idle = left;
        }
        Ok(())
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> MigrateError {
        if let Some(error) = tls::explain(&source) {
            return error;
        }
        match source.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                MigrateError::Timeout { doing, limit: self.set_idle }
            }
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => {
                MigrateError::Closed { doing }
            }
            _ => MigrateError::Io { doing, source },
        }
    }

    fn read_exact(&mut self, buf: &mut [u8], doing: &'static str) -> Result<(), MigrateError> {
        let mut at = 0;
        while at < buf.len() {
            self.arm(doing)?;
            let read = match self.wants_descriptors {
                true => self.stream.read_with(&mut buf[at..], &mut self.descriptors),
                false => self.stream.read(&mut buf[at..]),
            };
            match read {
                Ok(0) => return Err(MigrateError::Closed { doing }),
                Ok(n) => at += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(doing, e)),
            }
        }
        self.received += buf.len() as u64;
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8], doing: &'static str) -> Result<(), MigrateError> {
        self.write_all_with(bytes, &[], doing)
    }

    /// The descriptors go with the first byte.
    fn write_all_with(
        &mut self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
        doing: &'static str,
    ) -> Result<(), MigrateError> {
        let mut at = 0;
        while at < bytes.len() {
            self.arm(doing)?;
            let written = match at {
                0 if !descriptors.is_empty() => self.stream.write_with(bytes, descriptors),
                _ => self.stream.write(&bytes[at..]),
            };
            match written {
                Ok(0) => return Err(MigrateError::Closed { doing }),
                Ok(n) => {
                    at += n;
                    self.sent += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(doing, e)),
            }
        }
        self.stream.flush().map_err(|e| self.failed(doing, e))
    }

    /// Sends this side's preface and reads the peer's. Gives the agreed version and the capabilities of both.
    pub(super) fn hello(&mut self) -> Result<(u16, u32), MigrateError> {
        const DOING: &str = "exchanging greetings";
        self.at(Step::Hello);
        let ours = Preface::ours();
        let mut bytes = ours.encode();
        match self.armed.take() {
            Some(Action::Flip) => bytes[3] ^= 4,
            other => self.armed = other,
        }
        self.write_all(&bytes, DOING)?;
        let mut theirs = [0; PREFACE_LEN];
        // As much as tells, of an alert that is shorter than a greeting.
        let (first, rest) = theirs.split_at_mut(4);
        self.read_exact(first, DOING)?;
        if tls::is_record(first) {
            return Err(MigrateError::Tls("the peer speaks it: --tls-dir is missing here".into()));
        }
        self.read_exact(rest, DOING)?;
        let theirs = Preface::decode(&theirs)?;
        Ok((ours.agree(theirs)?, ours.caps & theirs.caps))
    }

    /// Begins a frame; what is appended to the buffer is its payload.
    pub(super) fn begin(&mut self) -> &mut Vec<u8> {
        self.out.clear();
        self.out.resize(HEADER_LEN, 0);
        &mut self.out
    }

    /// Sends the frame that [`Link::begin`] began.
    pub(super) fn send_built(
        &mut self,
        kind: Kind,
        flags: u16,
        doing: &'static str,
    ) -> Result<(), MigrateError> {
        self.send_built_with(kind, flags, &[], doing)
    }

    /// True if descriptors go over this connection.
    pub(super) fn carries_descriptors(&self) -> bool {
        self.stream.carries_descriptors()
    }

    /// Sends the frame that [`Link::begin`] began, and descriptors with it.
    pub(super) fn send_built_with(
        &mut self,
        kind: Kind,
        flags: u16,
        descriptors: &[BorrowedFd<'_>],
        doing: &'static str,
    ) -> Result<(), MigrateError> {
        let mut out = std::mem::take(&mut self.out);
        let result = self.send_with(kind, flags, &mut out, descriptors, doing);
        self.out = out;
        result
    }

    /// Sends a frame of the caller's: room for the header, and the payload.
    pub(super) fn send_frame(
        &mut self,
        kind: Kind,
        flags: u16,
        frame: &mut [u8],
        doing: &'static str,
    ) -> Result<(), MigrateError> {
        self.send_with(kind, flags, frame, &[], doing)
    }

    fn send_with(
        &mut self,
        kind: Kind,
        flags: u16,
        out: &mut [u8],
        descriptors: &[BorrowedFd<'_>],
        doing: &'static str,
    ) -> Result<(), MigrateError> {
        let len = out.len() - HEADER_LEN;
        if len > kind.max_len() {
            return Err(MigrateError::TooBig(format!(
                "{} of {len} bytes is too long to be sent",
                kind.name()
            )));
        }
        let crc = crc32fast::hash(&out[HEADER_LEN..]);
        let header = FrameHeader { kind, flags, len: len as u32, seq: self.seq_out, crc };
        out[..HEADER_LEN].copy_from_slice(&header.encode());
        self.seq_out = self.seq_out.wrapping_add(1);
        let mut result = Ok(());
        match self.armed.take() {
            Some(Action::Flip) => {
                let bit = (out.len() * 8 * 5) / 7;
                out[bit / 8] ^= 1 << (bit % 8);
            }
            Some(Action::Repeat) => result = self.write_all(out, doing),
            _ => {}
        }
        result.and_then(|()| self.write_all_with(out, descriptors, doing))
    }

    /// Sends a small frame.
    pub(super) fn send(
        &mut self,
        kind: Kind,
        payload: &[u8],
        doing: &'static str,
    ) -> Result<(), MigrateError> {
        self.send_flagged(kind, 0, payload, doing)
    }

    /// Sends a small frame with flags.
    pub(super) fn send_flagged(
        &mut self,
        kind: Kind,
        flags: u16,
        payload: &[u8],
        doing: &'static str,
    ) -> Result<(), MigrateError> {
        self.begin().extend_from_slice(payload);
        self.send_built(kind, flags, doing)
    }

    /// Sends a small frame, and tells apart a failure after which the peer certainly has no byte of it (`Err(Ok(..))`) from one
    /// after which nobody knows (`Err(Err(..))`).
    pub(super) fn send_surely(
        &mut self,
        kind: Kind,
        payload: &[u8],
        doing: &'static str,
    ) -> Result<(), Result<MigrateError, MigrateError>> {
        let before = self.sent;
        self.send(kind, payload, doing).map_err(|error| {
            if self.sent == before && self.stream.write_fails_clean() { Ok(error) } else { Err(error) }
        })
    }

    /// The next frame that means something. The peer's [`Kind::Abort`] is an error.
    pub(super) fn recv(&mut self, doing: &'static str) -> Result<Frame<'_>, MigrateError> {
        let header = loop {
            let header = self.recv_frame(doing)?;
            if header.kind != Kind::KeepAlive {
                break header;
            }
        };
        Ok(Frame { kind: header.kind, flags: header.flags, payload: self.payload() })
    }

    /// The next frame, a [`Kind::KeepAlive`] too: it does not wait for another one.
    pub(super) fn recv_any(&mut self, doing: &'static str) -> Result<Frame<'_>, MigrateError> {
        let header = self.recv_frame(doing)?;
        Ok(Frame { kind: header.kind, flags: header.flags, payload: self.payload() })
    }

    /// How long the peer may be silent.
    pub(super) fn idle(&self) -> Duration {
        self.idle
    }

    /// Changes that.
    pub(super) fn set_idle(&mut self, idle: Duration) {
        self.idle = idle;
    }

    /// Waits until a frame has begun to come, or `other` is readable, or `limit` is over. Gives which of the two first are.
    pub(super) fn wait(
        &mut self,
        other: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(bool, Vec<bool>), MigrateError> {
        let buffered = self.stream.has_buffered();
        let limit = if buffered { Duration::ZERO } else { limit };
        let doing = "waiting for pages or for the guest to need some";
        let io = |source: io::Error| MigrateError::Io { doing, source };
        let own = self.stream.descriptor().ok_or_else(|| io(ErrorKind::Unsupported.into()))?;
        let mut polled: Vec<_> = std::iter::once(&own)
            .chain(other)
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        let time = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut polled, Some(&time)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(io(e.into())),
        }
        let ready = |p: &PollFd<'_>| !p.revents().is_empty();
        Ok((buffered || ready(&polled[0]), polled[1..].iter().map(ready).collect()))
    }

    /// Small frames are to pass soon from here on.
    pub(super) fn be_prompt(&self) {
        self.stream.be_prompt();
    }

    /// The next frame, and the descriptors that came with it.
    pub(super) fn recv_with_descriptors(
        &mut self,
        doing: &'static str,
    ) -> Result<(Frame<'_>, Vec<OwnedFd>), MigrateError> {
        self.descriptors.clear();
        self.wants_descriptors = self.stream.carries_descriptors();
        let result = self.recv(doing).map(|f| (f.kind, f.flags));
        self.wants_descriptors = false;
        let (kind, flags) = result?;
        let descriptors = std::mem::take(&mut self.descriptors);
        Ok((Frame { kind, flags, payload: self.payload() }, descriptors))
    }

    fn payload(&self) -> &[u8] {
        &self.payload[..self.payload_len]
    }

    fn recv_frame(&mut self, doing: &'static str) -> Result<FrameHeader, MigrateError> {
        let mut head = [0; HEADER_LEN];
        self.read_exact(&mut head, doing)?;
        let header = FrameHeader::decode(&head)?;
        let mut payload = std::mem::take(&mut self.payload);
        // The state's bound is large: memory is taken as the bytes come, not as the length says.
        let (mut have, len) = (0, header.len as usize);
        let mut read = Ok(());
        while read.is_ok() && have < len {
            let to = len.min(have + (2 << 20));
            payload.resize(payload.len().max(to), 0);
            read = self.read_exact(&mut payload[have..to], doing);
            have = to;
        }
        self.payload = payload;
        self.payload_len = have;
        read?;
        if crc32fast::hash(self.payload()) != header.crc {
            return Err(MigrateError::Frame(format!("checksum of {} is wrong", header.kind.name())));
        }
        if header.seq != self.seq_in {
            let (found, due) = (header.seq, self.seq_in);
            return Err(MigrateError::Frame(format!("number {found} where {due} was due")));
        }
        self.seq_in = self.seq_in.wrapping_add(1);
        if header.kind == Kind::Abort {
            self.dead = true;
            return Err(MigrateError::Peer(decode_texts(self.payload())?.join("; ")));
        }
        Ok(header)
    }

    /// A write failed: perhaps the peer said why before it went.
    pub(super) fn why(&mut self, error: MigrateError) -> MigrateError {
        if self.dead || !matches!(error, MigrateError::Closed { .. } | MigrateError::Io { .. }) {
            return error;
        }
        self.deadline = Some(Instant::now() + LINGER);
        self.set_idle = Duration::ZERO;
        match self.recv("waiting for its reason") {
            Err(reason @ MigrateError::Peer(_)) => reason,
            _ => error,
        }
    }

    /// Tells the peer why this side gives up, and waits a little for it to read that.
    pub(super) fn abort(&mut self, error: &MigrateError) {
        if std::mem::replace(&mut self.dead, true) {
            self.stream.cut();
            return;
        }
        self.deadline = Some(Instant::now() + LINGER);
        self.set_idle = Duration::ZERO;
        self.armed = None;
        if self.send(Kind::Abort, &encode_texts(&[error.to_string()]), "giving up").is_ok() {
            self.drain();
        }
        self.stream.cut();
    }

    /// Reads until the peer has closed: a connection closed with unread bytes would take the last message with it.
    pub(super) fn drain(&mut self) {
        self.deadline = Some(Instant::now() + LINGER);
        self.set_idle = Duration::ZERO;
        self.stream.finish();
        let mut scrap = [0; 4096];
        while self.arm("closing").is_ok() && matches!(self.stream.read(&mut scrap), Ok(n) if n > 0) {}
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::{Arc, Mutex};

    /// Reads from one buffer, writes into another.
    #[derive(Default)]
    struct Tape {
        input: io::Cursor<Vec<u8>>,
        output: Arc<Mutex<Vec<u8>>>,
    }
    impl Read for Tape {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.input.read(buf)
        }
    }
    impl Write for Tape {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.output.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Stream for Tape {
        fn set_idle_limit(&self, _: Duration) -> io::Result<()> {
            Ok(())
        }
        fn descriptor(&self) -> Option<BorrowedFd<'_>> {
            None
        }
        fn finish(&mut self) {}
        fn cut(&self) {}
    }

    fn reader(bytes: Vec<u8>) -> Link {
        let tape = Tape { input: io::Cursor::new(bytes), ..Tape::default() };
        Link::new(Box::new(tape), Side::Destination, Duration::from_secs(1))
    }

    /// What a link makes of `bytes` that come as its frame `number`.
    pub(in super::super) fn taken(bytes: Vec<u8>, number: u32) -> Result<Kind, MigrateError> {
        let mut link = reader(bytes);
        link.seq_in = number;
        link.recv_any("").map(|frame| frame.kind)
    }

    fn frames() -> Vec<u8> {
        let tape = Tape::default();
        let output = Arc::clone(&tape.output);
        let mut link = Link::new(Box::new(tape), Side::Source, Duration::from_secs(1));
        link.send(Kind::RoundEnd, &1u32.to_le_bytes(), "").unwrap();
        link.send(Kind::KeepAlive, &[], "").unwrap();
        link.send(Kind::Pages, &[7; 300], "").unwrap();
        drop(link);
        Arc::try_unwrap(output).unwrap().into_inner().unwrap()
    }

    fn read_all(bytes: Vec<u8>) -> Result<Vec<(Kind, Vec<u8>)>, MigrateError> {
        let mut link = reader(bytes);
        (0..2).map(|_| link.recv("").map(|f| (f.kind, f.payload.to_vec()))).collect()
    }

    #[test]
    fn frames_arrive_and_no_flipped_bit_does() {
        let bytes = frames();
        let want = vec![(Kind::RoundEnd, 1u32.to_le_bytes().to_vec()), (Kind::Pages, vec![7; 300])];
        assert_eq!(read_all(bytes.clone()).unwrap(), want);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read_all(bad).is_err(), "bit {bit} flipped and taken");
        }
    }

    #[test]
    fn frames_lost_or_repeated_are_refused() {
        let bytes = frames();
        let mut twice = bytes[..24].to_vec();
        twice.extend(&bytes);
        assert!(matches!(read_all(twice), Err(MigrateError::Frame(_))));
        assert!(matches!(read_all(bytes[24..].to_vec()), Err(MigrateError::Frame(_))));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read_all(bytes.clone()).is_err());
            prop_assert!(reader(bytes).hello().is_err());
        }
    }
}
