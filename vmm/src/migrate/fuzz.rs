//! Fuzz targets of the migration protocol: a hostile peer of either side. The bytes are cut into frames with right headers
//! and checksums, since raw ones would never get past those; one target feeds raw bytes all the same.

use super::destination::receive;
use super::fault::Side;
use super::link::Link;
use super::machine::{Builder, Fault, Memory, Source, Target};
use super::offer::{Capabilities, Offer, preflight, sample};
use super::progress::Progress;
use super::source::send;
use super::switch::{OnTimeout, Options};
use super::transport::Stream;
use super::wire::{FrameHeader, Kind, Preface};
use crate::memory::{PageSet, Run, SharedRam};
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the peer says, read to its end; what it is told is thrown away.
struct Script(io::Cursor<Vec<u8>>);

impl Read for Script {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for Script {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Script {
    fn set_idle_limit(&self, _limit: Duration) -> io::Result<()> {
        Ok(())
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn finish(&mut self) {}
    fn cut(&self) {}
}

fn offer() -> Offer {
    Offer { allow_tsc_mismatch: true, ..sample::offer() }
}

/// Takes the offer, and little more: a peer's lie must not make memory.
fn capabilities() -> Capabilities {
    Capabilities { max_memory_bytes: 2 << 20, allow_tsc_mismatch: true, ..sample::capabilities() }
}

/// A greeting, and frames: each from `kind, flags, length low, length high, payload…`. A first byte of 0xff: all raw.
fn script(data: &[u8], offered: bool) -> Vec<u8> {
    if let Some((0xff, raw)) = data.split_first() {
        return raw.to_vec();
    }
    let mut out = Preface::ours().encode().to_vec();
    let mut seq = 0;
    let mut frame = |out: &mut Vec<u8>, kind: Kind, flags: u16, payload: &[u8]| {
        let crc = crc32fast::hash(payload);
        out.extend(FrameHeader { kind, flags, len: payload.len() as u32, seq, crc }.encode());
        out.extend(payload);
        seq += 1;
    };
    if offered {
        frame(&mut out, Kind::Offer, 0, &offer().encode());
    }
    let mut left = data;
    while let Some((head, rest)) = left.split_first_chunk::<4>() {
        let len = usize::from(u16::from_le_bytes([head[2], head[3]])).min(rest.len());
        let (payload, after) = rest.split_at(len);
        left = after;
        let kind = Kind::from_code(u16::from(head[0] % 17)).unwrap_or(Kind::KeepAlive);
        frame(&mut out, kind, u16::from(head[1] & 1), payload);
    }
    out
}

/// The arriving machine's memory, every address checked.
struct Pages(Vec<(u64, Mutex<Vec<u8>>)>);

impl Pages {
    fn with(&self, gpa: u64, len: u64, f: impl FnOnce(&mut [u8])) {
        for (start, bytes) in &self.0 {
            let mut bytes = bytes.lock().unwrap_or_else(|e| e.into_inner());
            let piece = gpa.checked_sub(*start).and_then(|at| {
                let at = usize::try_from(at).ok()?;
                bytes.get_mut(at..at.checked_add(usize::try_from(len).ok()?)?)
            });
            if let Some(piece) = piece {
                return f(piece);
            }
        }
        // The protocol's own check comes before: nothing else may get here.
        panic!("a page that is not guest memory was let through: {len:#x} bytes at {gpa:#x}");
    }
}

impl Memory for Pages {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        self.with(gpa, buf.len() as u64, |piece| buf.copy_from_slice(piece));
        Ok(())
    }
    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.with(gpa, bytes.len() as u64, |piece| piece.copy_from_slice(bytes));
        Ok(())
    }
    fn zero(&self, gpa: u64, len: u64) -> Result<(), Fault> {
        self.with(gpa, len, |piece| piece.fill(0));
        Ok(())
    }
}

fn pages(offer: &Offer) -> Arc<Pages> {
    Arc::new(Pages(offer.regions.iter().map(|r| (r.gpa, Mutex::new(vec![0; r.len as usize]))).collect()))
}

/// The arriving machine.
struct Filling(Arc<Pages>);

impl Target for Filling {
    type Running = ();
    fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.0) as _
    }
    fn load(&mut self, container: &[u8]) -> Result<(), Fault> {
        Ok(crate::state::read(container).map(drop)?)
    }
    fn run(self, _advance_ns: u64) -> Result<(), Fault> {
        Ok(())
    }
}

struct Place;

impl Builder for Place {
    type Target = Filling;
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }
    fn build(self, offer: &Offer, _memory: Option<SharedRam>) -> Result<Filling, Fault> {
        assert!(offer.memory_bytes() <= capabilities().max_memory_bytes, "preflight let too much through");
        Ok(Filling(pages(offer)))
    }
}

/// The leaving machine.
struct Guest {
    turns: u32,
    pages: Arc<Pages>,
}

impl Source for Guest {
    type Gone = ();
    fn offer(&self) -> Result<Offer, Fault> {
        Ok(offer())
    }
    fn start_logging(&mut self) -> Result<(), Fault> {
        Ok(())
    }
    fn take_dirty(&mut self, pages: &mut PageSet) -> Result<(), Fault> {
        self.turns += 1;
        let _ = pages.insert(Run { page: u64::from(self.turns % 200), count: 3 });
        Ok(())
    }
    fn memory(&self) -> Arc<dyn Memory> {
        Arc::clone(&self.pages) as _
    }
    fn throttle(&mut self, _permille: u16) -> Result<(), Fault> {
        Ok(())
    }
    fn pause(&mut self) -> Result<(), Fault> {
        Ok(())
    }
    fn save(&mut self) -> Result<Vec<u8>, Fault> {
        Ok(vec![1; 100])
    }
    fn abandon(&mut self, _taken: &PageSet) -> Result<(), Fault> {
        Ok(())
    }
    fn commit(self) {}
}

/// A hostile source. Half of the inputs begin with a good offer.
pub fn fuzz_destination(data: &[u8]) {
    let good = data.first().is_some_and(|b| b & 1 == 0);
    let stream = Box::new(Script(io::Cursor::new(script(data, good))));
    let link = Link::new(stream, Side::Destination, Duration::from_secs(1));
    let _ = receive(Place, link, Progress::new("destination", "fuzz"));
}

/// A hostile destination.
pub fn fuzz_source(data: &[u8]) {
    let stream = Box::new(Script(io::Cursor::new(script(data, false))));
    let link = Link::new(stream, Side::Source, Duration::from_secs(1));
    let options = Options {
        max_rounds: 3,
        on_timeout: OnTimeout::Force,
        compress: data.get(1).is_some_and(|b| b & 2 != 0),
        ..Options::default()
    };
    let _ = send(Guest { turns: 0, pages: pages(&offer()) }, link, options, Progress::new("source", "fuzz"));
}

/// An offer by itself: what is decoded is encoded the same, and is judged.
pub fn fuzz_offer(data: &[u8]) {
    if let Ok(offer) = Offer::decode(data) {
        assert_eq!(Offer::decode(&offer.encode()).ok().as_ref(), Some(&offer));
        let _ = preflight(&offer, &capabilities());
    }
}
