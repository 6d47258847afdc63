//! The file behind a drive.

use super::config::{CacheType, DriveConfig};
use super::image::{Image, WriteLog};
use crate::memory::ZEROS;
use crate::virtio::{Ram, Segments, iov};
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::sync::Arc;

/// Bytes in a sector, whatever the host's disk has.
pub(crate) const SECTOR: u64 = 512;

/// Why a drive cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The configuration names none.
    #[error("drive {0}: path_on_host is missing")]
    NoPath(String),
    /// Something that this build does not do.
    #[error("drive {id}: {what} is not supported")]
    Unsupported {
        /// Which drive.
        id: String,
        /// The field and its value.
        what: &'static str,
    },
    /// The file is not there, or not accessible.
    #[error("drive {id}: cannot open {path}: {source}")]
    Open {
        /// Which drive.
        id: String,
        /// The file.
        path: String,
        /// The host's answer.
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("drive {id}: {path} is neither a file nor a block device")]
    Kind {
        /// Which drive.
        id: String,
        /// The file.
        path: String,
    },
    /// It is being copied to where the guest goes.
    #[error("drive {0} moves with the guest just now: its file cannot be changed")]
    Moving(String),
    /// No timer for the rate limiter.
    #[error("drive {id}: rate limiter: {source}")]
    Limiter {
        /// Which drive.
        id: String,
        /// The host's answer.
        source: io::Error,
    },
}

/// An open image.
#[derive(Debug)]
pub(super) struct Disk {
    file: Arc<File>,
    log: Arc<WriteLog>,
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    pub(super) cache: CacheType,
}

impl DriveConfig {
    /// Checks that the drive can be had.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), DriveError> {
        Disk::open(self).map(drop)
    }
}

impl Disk {
    pub(super) fn open(config: &DriveConfig) -> Result<Self, DriveError> {
        let id = || config.drive_id.clone();
        if config.socket.is_some() {
            return Err(DriveError::Unsupported { id: id(), what: "socket (vhost-user)" });
        }
        let path = config.path_on_host.clone().ok_or_else(|| DriveError::NoPath(id()))?;
        let read_only = config.is_read_only.unwrap_or(false);
        let open = |source| DriveError::Open { id: id(), path: path.clone(), source };
        // A named pipe would be waited for.
        let mut how = OpenOptions::new();
        how.read(true).write(!read_only).custom_flags(libc::O_NONBLOCK);
        let mut file = how.open(&path).map_err(open)?;
        let kind = file.metadata().map_err(open)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DriveError::Kind { id: id(), path });
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(open)?;
        if bytes % SECTOR != 0 {
            tracing::warn!("drive {}: the last {} bytes of {path} are not a sector", id(), bytes % SECTOR);
        }
        let (file, log) = (Arc::new(file), Arc::default());
        Ok(Disk { file, log, sectors: bytes / SECTOR, read_only, cache: config.cache_type })
    }

    /// For who copies it while the guest runs.
    pub(super) fn image(&self) -> Image {
        let (file, log) = (Arc::clone(&self.file), Arc::clone(&self.log));
        Image { file, bytes: self.sectors * SECTOR, log }
    }

    pub(super) fn is_copied(&self) -> bool {
        self.log.is_on()
    }

    /// Is `bytes` bytes from `sector` on a part of the disk, in whole sectors?
    pub(super) fn has(&self, sector: u64, bytes: u64) -> bool {
        bytes.is_multiple_of(SECTOR)
            && sector.checked_add(bytes / SECTOR).is_some_and(|end| end <= self.sectors)
    }

    pub(super) fn read(&self, sector: u64, mem: &Ram, to: &Segments, len: u64) -> io::Result<()> {
        iov::read_at(self.file.as_fd(), sector * SECTOR, mem, to, len)
    }

    pub(super) fn write(&self, sector: u64, mem: &Ram, from: &Segments, len: u64) -> io::Result<()> {
        let done = iov::write_at(self.file.as_fd(), sector * SECTOR, mem, from, len);
        self.log.wrote(sector * SECTOR, len);
        done
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&*self.file)?)
    }

    /// The contents may go; reading them gives zeros or what was there.
    pub(super) fn discard(&self, sector: u64, count: u64) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let done = fallocate(&*self.file, mode, sector * SECTOR, count * SECTOR);
        self.log.wrote(sector * SECTOR, count * SECTOR);
        match done {
            // A hint: a file that cannot do it keeps its data.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Zeros from now on; with `unmap` the room may be given back.
    pub(super) fn write_zeroes(&self, sector: u64, count: u64, unmap: bool) -> io::Result<()> {
        let done = self.put_zeroes(sector, count, unmap);
        self.log.wrote(sector * SECTOR, count * SECTOR);
        done
    }

    fn put_zeroes(&self, sector: u64, count: u64, unmap: bool) -> io::Result<()> {
        let first = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        let mode = first | FallocateFlags::KEEP_SIZE;
        match fallocate(&*self.file, mode, sector * SECTOR, count * SECTOR) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            other => return Ok(other?),
        }
        // A host or file that cannot punch or zero ranges.
        let (mut at, end) = (sector * SECTOR, (sector + count) * SECTOR);
        while at < end {
            let n = (end - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..n as usize], at)?;
            at += n;
        }
        Ok(())
    }
}
