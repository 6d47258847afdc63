//! Where the serial port's output goes on the host: a file, pipe, socket or terminal, as far as it takes it without waiting.
//!
//! A byte after a silence is written at once, so that nobody waits for a prompt or a first sign of life. What follows in a
//! stream is gathered and passed on by the device thread a moment later: a system call for many bytes instead of two for
//! each.

use crate::board::serial::Output;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// A byte that comes so long after the last write is written at once.
const SILENCE: Duration = Duration::from_millis(1);
/// What is gathered at most; then it is written by the vCPU that says it.
const ROOM: usize = 4096;
/// How long the rest is offered to the host when the machine ends.
const FAREWELL: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How to write without waiting.
enum Way {
    /// It never waits, or says that it would: a regular file, or one that is open for not waiting.
    Direct,
    /// A socket.
    Send,
    /// Is asked before each byte: a byte is what a terminal takes when it takes anything.
    Ask,
}

/// Output to a file of the host.
pub struct HostOutput {
    file: File,
    way: Way,
    gathered: Vec<u8>,
    written: Option<Instant>,
}

/// The same pipe or terminal, opened anew for not waiting: whoever shares ours keeps it as it is.
fn reopened(file: &File) -> Option<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok().map(File::from)
}

impl HostOutput {
    /// Output to `file`.
    pub fn new(file: File) -> Self {
        let kind = rustix::fs::fstat(&file).map(|s| FileType::from_raw_mode(s.st_mode));
        let (file, way) = match kind {
            Ok(FileType::RegularFile) => (file, Way::Direct),
            Ok(FileType::Socket) => (file, Way::Send),
            Ok(FileType::Fifo | FileType::CharacterDevice) => match reopened(&file) {
                Some(again) => (again, Way::Direct),
                None => (file, Way::Ask),
            },
            _ => (file, Way::Ask),
        };
        HostOutput { file, way, gathered: Vec::new(), written: None }
    }

    /// What the host takes of `bytes` now.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let done = match self.way {
            Way::Direct => rustix::io::write(&self.file, bytes),
            Way::Send => rustix::net::send(&self.file, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Way::Ask => {
                let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
                match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                    Ok(0) | Err(_) => return 0,
                    Ok(_) => rustix::io::write(&self.file, &bytes[..bytes.len().min(1)]),
                }
            }
        };
        match done {
            Ok(n) => n,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // Nobody listens any more: the guest goes on.
            Err(_) => bytes.len(),
        }
    }
}

impl Output for HostOutput {
    fn put(&mut self, bytes: &[u8]) -> usize {
        if self.gathered.is_empty() && self.written.is_none_or(|at| at.elapsed() >= SILENCE) {
            let n = self.write(bytes);
            self.written = Some(Instant::now());
            return n;
        }
        if self.gathered.len() + bytes.len() > ROOM {
            self.flush();
        }
        let n = bytes.len().min(ROOM.saturating_sub(self.gathered.len()));
        self.gathered.extend_from_slice(&bytes[..n]);
        n
    }

    fn gathered(&self) -> bool {
        !self.gathered.is_empty()
    }

    fn flush(&mut self) {
        let mut all = std::mem::take(&mut self.gathered);
        let mut done = 0;
        while done < all.len() {
            match self.write(&all[done..]) {
                0 => break,
                n => done += n,
            }
        }
        if done > 0 {
            self.written = Some(Instant::now());
        }
        all.drain(..done);
        self.gathered = all;
    }

    fn give_back(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.gathered)
    }
}

impl Drop for HostOutput {
    fn drop(&mut self) {
        self.flush();
        if self.gathered() {
            let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
            let _ = poll(&mut fds, Some(&FAREWELL));
            self.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pipe() -> (File, HostOutput) {
        let (reader, writer) = std::io::pipe().unwrap();
        let file = |fd: std::os::fd::OwnedFd| File::from(fd);
        (file(reader.into()), HostOutput::new(file(writer.into())))
    }

    #[test]
    fn the_first_byte_goes_at_once_and_a_stream_is_gathered() {
        let (mut reader, mut out) = pipe();
        assert_eq!(out.put(b"a"), 1);
        let mut got = [0; 8];
        assert_eq!((reader.read(&mut got).unwrap(), got[0]), (1, b'a'));
        // Whatever the host's pace, what follows comes whole and in order.
        for byte in b"bcdefg" {
            assert_eq!(out.put(&[*byte]), 1);
        }
        out.flush();
        assert!(!out.gathered());
        let mut rest = Vec::new();
        drop(out);
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"bcdefg");
    }

    #[test]
    fn a_pipe_that_is_full_loses_nothing_and_holds_nobody_up() {
        let (mut reader, mut out) = pipe();
        let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let mut taken = 0;
        while taken < sent.len() {
            match out.put(&sent[taken..sent.len().min(taken + 100)]) {
                0 => break,
                n => taken += n,
            }
        }
        assert!(taken < sent.len(), "a pipe is no bottomless pit");
        let back = out.give_back();
        assert!(!out.gathered());
        drop(out);
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        got.extend(back);
        assert!(got == sent[..taken]);
    }

    #[test]
    fn what_is_gathered_at_the_end_is_passed_on() {
        let (mut reader, mut out) = pipe();
        b"farewell".iter().for_each(|b| assert_eq!(out.put(&[*b]), 1));
        drop(out);
        let mut got = String::new();
        reader.read_to_string(&mut got).unwrap();
        assert_eq!(got, "farewell");
    }
}
