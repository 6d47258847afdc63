//! A drive's file as whoever copies it while the guest runs sees it, and the log of what the guest writes meanwhile.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Granularity of the log, in bytes.
pub const BLOCK: u64 = 4096;

/// Blocks written since somebody began to copy.
#[derive(Debug, Default)]
pub(super) struct WriteLog {
    on: AtomicBool,
    /// Bit `i % 64` of word `i / 64` is block `i`.
    words: Mutex<Vec<u64>>,
}

impl WriteLog {
    fn words(&self) -> MutexGuard<'_, Vec<u64>> {
        self.words.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Bytes were written, perhaps only in part. Called after the write: a copier that took the log before it will find them in
    /// the next.
    pub(super) fn wrote(&self, offset: u64, len: u64) {
        if !self.on.load(Ordering::SeqCst) || len == 0 {
            return;
        }
        let mut words = self.words();
        let (first, last) = (offset / BLOCK, (offset + len - 1) / BLOCK);
        for block in first..=last.min((words.len() as u64 * 64).saturating_sub(1)) {
            words[(block / 64) as usize] |= 1 << (block % 64);
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }
}

/// A drive's file and its log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Image {
    pub(super) file: Arc<File>,
    pub(super) bytes: u64,
    pub(super) log: Arc<WriteLog>,
}

impl Image {
    /// Bytes, a multiple of 512.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Begins to log writes.
    pub fn start_log(&self) {
        *self.log.words() = vec![0; self.bytes.div_ceil(BLOCK).div_ceil(64) as usize];
        self.log.on.store(true, Ordering::SeqCst);
    }

    /// Ends that.
    pub fn stop_log(&self) {
        self.log.on.store(false, Ordering::SeqCst);
        *self.log.words() = Vec::new();
    }

    /// Adds the blocks written since the last call to `into`, and clears the log.
    pub fn take_log(&self, into: &mut [u64]) {
        let mut words = self.log.words();
        for (into, from) in into.iter_mut().zip(words.iter_mut()) {
            *into |= std::mem::take(from);
        }
    }

    /// Copies out; past the end come zeros.
    ///
    /// # Errors
    /// The host's.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let there = self.bytes.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (inside, beyond) = buf.split_at_mut(there);
        self.file.read_exact_at(inside, offset)?;
        beyond.fill(0);
        Ok(())
    }

    /// The next stretch at or after `offset` that may hold data, as start and end; `None`: only holes follow. A host that does
    /// not know holes says that all is data.
    pub fn data(&self, offset: u64) -> Option<(u64, u64)> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        if offset >= self.bytes {
            return None;
        }
        // The file's position is nobody's: all else reads and writes at offsets.
        let start = match seek(&*self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return None,
            Err(_) => return Some((offset, self.bytes)),
        };
        let end = seek(&*self.file, SeekFrom::Hole(start)).unwrap_or(self.bytes);
        (start < self.bytes).then_some((start, end.min(self.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempfile::TempFile;

    fn image(bytes: u64) -> Image {
        let file = TempFile::new().unwrap().into_file();
        file.set_len(bytes).unwrap();
        Image { file: Arc::new(file), bytes, log: Arc::default() }
    }

    #[test]
    fn every_block_that_a_write_touches_is_logged_once() {
        let image = image(BLOCK * 100 + 512);
        image.log.wrote(0, 1);
        image.start_log();
        for (offset, len) in
            [(BLOCK - 1, 2), (BLOCK * 64, BLOCK), (BLOCK * 100, 512), (7, 0), (u64::MAX / 2, 5)]
        {
            image.log.wrote(offset, len);
        }
        let mut words = [0; 2];
        image.take_log(&mut words);
        assert_eq!(words, [0b11, 1 | 1 << 36]);
        image.take_log(&mut words);
        assert_eq!(words, [0b11, 1 | 1 << 36], "a taken log is empty");
        image.stop_log();
        image.log.wrote(0, 1);
        assert!(!image.log.is_on());
    }

    #[test]
    fn holes_are_found_and_the_end_reads_as_zeros() {
        let image = image(BLOCK * 1000 + 512);
        image.file.write_all_at(&[7; 10], BLOCK * 500).unwrap();
        let (start, end) = image.data(0).unwrap();
        assert!(start <= BLOCK * 500 && end > BLOCK * 500);
        assert!(end >= image.bytes || image.data(end).is_none());
        let mut buf = [1; BLOCK as usize];
        image.read(BLOCK * 1000, &mut buf).unwrap();
        assert_eq!(buf, [0; BLOCK as usize]);
    }
}
