//! Pages that come in: what a frame says is checked, written to guest memory and remembered. Each connection has one; they share
//! what they remember. A connection that is alone has its pages written by another thread while it reads on: memory that is written for the
//! first time costs as much as taking the bytes in, deciphering them included.

use super::error::MigrateError;
use super::machine::Memory;
use super::wire::{CHUNK_PAGES, FLAG_LZ4, Kind, MAX_ZERO_RUNS, runs};
use crate::memory::{PAGE_SIZE, PageSet, Region, Run};
use crate::state::codec::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;

/// What all connections together have brought.
struct Seen {
    /// Pages of which the source has said what they hold.
    known: PageSet,
    /// Pages that were ever written: others are still zero.
    written: PageSet,
    pages: u64,
    zero_pages: u64,
}

/// Frames that wait to be written at most.
const WAITING: usize = 4;

/// A frame of pages that another thread is to write: flags and payload.
type Job = (u16, Vec<u8>);

/// The thread that writes pages, and its buffers.
struct Writer {
    /// `None`: it is to end.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    done: mpsc::Receiver<Result<Vec<u8>, MigrateError>>,
    /// Frames that it has not come back with.
    waiting: usize,
    spare: Vec<Vec<u8>>,
}

impl Writer {
    /// `None`: there is no thread to be had, and none is needed.
    fn start(mut intake: Intake) -> Option<Self> {
        let ((jobs, todo), (tell, done)) = (mpsc::channel::<Job>(), mpsc::channel());
        let work = move || {
            for (flags, payload) in todo {
                let written = intake.put(flags, &payload);
                let failed = written.is_err();
                if tell.send(written.map(|()| payload)).is_err() || failed {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("receive".into()).spawn(work).ok();
        thread.is_some().then(|| Writer { jobs: Some(jobs), thread, done, waiting: 0, spare: Vec::new() })
    }

    /// Waits until at most `left` frames are still to be written.
    fn wait(&mut self, left: usize) -> Result<(), MigrateError> {
        while self.waiting > left {
            let lost = |_| MigrateError::Impossible("the thread that writes pages has ended".into());
            let buffer = self.done.recv().map_err(lost)??;
            self.spare.push(buffer);
            self.waiting -= 1;
        }
        Ok(())
    }

    fn put(&mut self, flags: u16, payload: &[u8]) -> Result<(), MigrateError> {
        self.wait(WAITING - 1)?;
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(payload);
        self.waiting += 1;
        // If it has ended, it has said why.
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send((flags, buffer)).is_ok());
        if sent { Ok(()) } else { self.wait(0) }
    }
}

impl Drop for Writer {
    /// Afterwards nobody has guest memory.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where one connection's pages go.
pub(super) struct Intake {
    memory: Arc<dyn Memory>,
    seen: Arc<Mutex<Seen>>,
    unpacked: Vec<u8>,
    /// Number of pages.
    all: u64,
    /// Who writes them, if not who takes them in.
    writer: Option<Box<Writer>>,
}

fn foreign(run: &Run) -> MigrateError {
    MigrateError::Frame(format!("pages {:#x}+{} are not guest memory", run.page, run.count))
}

impl Intake {
    pub(super) fn new(memory: Arc<dyn Memory>, all: &[Region]) -> Self {
        let (known, written) = (PageSet::empty(all), PageSet::empty(all));
        let seen = Arc::new(Mutex::new(Seen { known, written, pages: 0, zero_pages: 0 }));
        let pages = all.iter().map(|region| region.len / PAGE_SIZE).sum();
        Intake { memory, seen, unpacked: Vec::new(), all: pages, writer: None }
    }

    /// For another connection of the same migration.
    pub(super) fn another(&self) -> Self {
        let (memory, seen) = (Arc::clone(&self.memory), Arc::clone(&self.seen));
        Intake { memory, seen, unpacked: Vec::new(), all: self.all, writer: None }
    }

    /// Has another thread write the pages from here on.
    pub(super) fn write_aside(&mut self) {
        self.writer = Writer::start(self.another()).map(Box::new);
    }

    /// Waits until all that was taken is in memory.
    pub(super) fn settle(&mut self) -> Result<(), MigrateError> {
        self.writer.as_mut().map_or(Ok(()), |writer| writer.wait(0))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// An empty set of this memory's pages.
    pub(super) fn none(&self) -> PageSet {
        let mut none = self.seen().known.clone();
        none.clear();
        none
    }

    /// Takes a frame with pages. False: it is of another kind.
    pub(super) fn take(&mut self, kind: Kind, flags: u16, payload: &[u8]) -> Result<bool, MigrateError> {
        match kind {
            Kind::Zero => {
                let c = &mut Cursor::new(payload);
                let list = runs(c, MAX_ZERO_RUNS)?;
                c.end("zero pages")?;
                // In the order in which they came.
                self.settle()?;
                self.zero(&list)?;
            }
            Kind::Pages => match &mut self.writer {
                Some(writer) => writer.put(flags, payload)?,
                None => self.put(flags, payload)?,
            },
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// These pages come later: nothing more is to be said of them now.
    pub(super) fn owe(&self, absent: &PageSet) {
        self.seen().known.merge(absent);
    }

    /// Pages that there are.
    pub(super) fn pages(&self) -> u64 {
        self.all
    }

    /// Every page was named.
    pub(super) fn is_full(&self) -> bool {
        self.seen().known.is_full()
    }

    /// Pages that came with contents, and as zero.
    pub(super) fn counts(&self) -> (u64, u64) {
        let seen = self.seen();
        (seen.pages, seen.zero_pages)
    }

    fn zero(&self, list: &[Run]) -> Result<(), MigrateError> {
        // Fresh memory is zero: touching it would only use up memory.
        let mut stale = Vec::new();
        let mut seen = self.seen();
        for run in list {
            if !seen.known.covers(*run) || !seen.known.insert(*run) {
                return Err(foreign(run));
            }
            seen.zero_pages += run.count;
            let (mut page, end) = (run.page, run.page + run.count);
            while let Some(dirty) = seen.written.next_run(page, end - page).filter(|dirty| dirty.page < end) {
                page = (dirty.page + dirty.count).min(end);
                stale.push(Run { page: dirty.page, count: page - dirty.page });
            }
        }
        drop(seen);
        for run in stale {
            let done = self.memory.zero(run.gpa(), run.len());
            done.map_err(MigrateError::machine("clearing guest memory"))?;
        }
        Ok(())
    }

    fn put(&mut self, flags: u16, payload: &[u8]) -> Result<(), MigrateError> {
        let mut unpacked = std::mem::take(&mut self.unpacked);
        let (list, data) = unpack(payload, flags, &mut unpacked)?;
        if let Some(run) = list.iter().find(|run| !self.seen().known.covers(**run)) {
            return Err(foreign(run));
        }
        let mut at = 0;
        for run in &list {
            let part = &data[at..at + run.len() as usize];
            self.memory.write(run.gpa(), part).map_err(MigrateError::machine("writing guest memory"))?;
            at += part.len();
        }
        self.unpacked = unpacked;
        let mut seen = self.seen();
        for run in &list {
            let _ = seen.known.insert(*run) && seen.written.insert(*run);
            seen.pages += run.count;
        }
        Ok(())
    }
}

/// Takes a [`Kind::Pages`] frame apart: where the pages go, and what they hold, of the right length.
pub(super) fn unpack<'a>(
    payload: &'a [u8],
    flags: u16,
    unpacked: &'a mut Vec<u8>,
) -> Result<(Vec<Run>, &'a [u8]), MigrateError> {
    let c = &mut Cursor::new(payload);
    let list = runs(c, CHUNK_PAGES as usize)?;
    let mut pages = 0u64;
    for run in &list {
        if run.is_empty() || run.count > CHUNK_PAGES {
            return Err(MigrateError::Frame(format!("{} pages in one run", run.count)));
        }
        pages += run.count;
    }
    if pages > CHUNK_PAGES {
        return Err(MigrateError::Frame(format!("{pages} pages in one frame")));
    }
    let len = (pages * PAGE_SIZE) as usize;
    let data = if flags & FLAG_LZ4 != 0 {
        unpacked.resize(len, 0);
        let n = lz4_flex::block::decompress_into(c.rest(), unpacked)
            .map_err(|e| MigrateError::Frame(format!("pages do not decompress: {e}")))?;
        &unpacked[..n]
    } else {
        c.rest()
    };
    if data.len() != len {
        return Err(MigrateError::Frame(format!("{} bytes for {pages} pages", data.len())));
    }
    Ok((list, data))
}
