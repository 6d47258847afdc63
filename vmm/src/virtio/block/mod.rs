//! Block device (virtio 1.2, 5.2) over a raw image or a host's block device.
//!
//! Requests run in the disk's own thread, in the order the driver made them available, so nothing is in flight between
//! events and a drained disk is simply one whose event has ended. A disk that takes long holds nobody else up.

mod config;
mod disk;
pub mod image;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use config::{CacheType, DriveConfig, FileEngine, OnMigration};
pub use disk::DriveError;
pub use state::BlockV1;

use super::device::{self, Context, DeviceFd, Progress, RestoreError, VirtioDevice};
use super::queue::{QueueError, Served};
use super::ratelimit::{RateLimiter, RateLimiterConfig};
use super::stats::{Counted, Stats};
use disk::Disk;
use event_manager::EventSet;
use godwit_state::RawSection;
use request::{Command, Request};

/// Feature bits (virtio 1.2, 5.2.3).
mod bits {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

const QUEUE_SIZE: u16 = 256;
/// Data segments in a request: a queue's worth without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Sectors in a discard (1 GiB) and a write-zeroes (16 MiB) request.
const MAX_DISCARD: u32 = 1 << 21;
const MAX_WRITE_ZEROES: u32 = 1 << 15;
/// Most data in one request; drivers stay far below.
const MAX_DATA: u64 = 64 << 20;
/// Requests, and bytes after which others get their turn, in one wake-up.
const BUDGET: usize = 64;
const BYTE_BUDGET: u64 = 8 << 20;

/// What is counted.
const COUNTED: [&str; 9] = [
    "queue_event_count",
    "read_count",
    "read_bytes",
    "write_count",
    "write_bytes",
    "flush_count",
    "execute_fails",
    "invalid_reqs_count",
    "rate_limiter_throttled_events",
];

/// The device.
#[derive(Debug)]
pub struct Block {
    id: String,
    disk: Disk,
    serial: [u8; 20],
    limiter: RateLimiter,
    /// The driver does not know flushes: what is written must be safe when the answer comes (virtio 1.2, 5.2.6.2).
    write_through: bool,
    stats: Stats,
}

impl Block {
    /// Opens the drive's file.
    ///
    /// # Errors
    /// It cannot be used; the error names the drive and the file.
    pub fn new(config: &DriveConfig) -> Result<Self, DriveError> {
        let mut serial = [0; 20];
        for (to, from) in serial.iter_mut().zip(config.drive_id.bytes()) {
            *to = from;
        }
        let limiter = RateLimiter::new(&config.rate_limiter.unwrap_or_default())
            .map_err(|source| DriveError::Limiter { id: config.drive_id.clone(), source })?;
        Ok(Block {
            id: config.drive_id.clone(),
            disk: Disk::open(config)?,
            serial,
            limiter,
            write_through: false,
            stats: Stats::new(&COUNTED),
        })
    }

    /// The drive's configured name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `PATCH /drives/{id}` with a rate limiter.
    pub fn update_limiter(&mut self, config: &RateLimiterConfig) {
        self.limiter.update(config);
    }

    /// `PATCH /drives/{id}` with a path: another file, with the rest of `config` as it was. The caller then tells
    /// the driver of the new capacity.
    ///
    /// # Errors
    /// The new file cannot be used; the old one stays.
    pub fn replace_disk(&mut self, config: &DriveConfig) -> Result<(), DriveError> {
        if self.disk.is_copied() {
            return Err(DriveError::Moving(self.id.clone()));
        }
        self.disk = Disk::open(config)?;
        Ok(())
    }

    /// Its file, for who copies it while the guest runs.
    pub fn image(&self) -> image::Image {
        self.disk.image()
    }

    fn note(&mut self, request: &Request, status: u8) {
        match (status, &request.command) {
            (request::OK, Command::Read { .. }) => {
                self.stats.count("read_count");
                self.stats.add("read_bytes", request.data_len);
            }
            (request::OK, Command::Write { .. }) => {
                self.stats.count("write_count");
                self.stats.add("write_bytes", request.data_len);
            }
            (request::OK, Command::Flush) => self.stats.count("flush_count"),
            (request::OK, _) => {}
            (request::UNSUPPORTED, _) => self.stats.count("invalid_reqs_count"),
            _ => self.stats.count("execute_fails"),
        }
    }

    fn execute(
        &self,
        request: &Request,
        mem: &super::Ram,
        chain: &super::Chain,
    ) -> Result<(u8, u32), QueueError> {
        let data_len = request.data_len;
        let done = match request.command {
            Command::Read { sector } if self.disk.has(sector, data_len) && data_len <= MAX_DATA => {
                self.disk.read(sector, mem, &chain.writable, data_len).map(|()| data_len as u32)
            }
            Command::Write { sector }
                if !self.disk.read_only && self.disk.has(sector, data_len) && data_len <= MAX_DATA =>
            {
                let from = request.write_data(chain);
                self.disk.write(sector, mem, &from, data_len).map(|()| 0)
            }
            Command::Flush => match self.disk.cache {
                CacheType::Unsafe => Ok(0),
                CacheType::Writeback => self.disk.flush().map(|()| 0),
            },
            Command::GetId => {
                return Ok((
                    request::OK,
                    chain.writable.write(mem, 0, &self.serial[..data_len.min(20) as usize])? as u32,
                ));
            }
            Command::Discard { sector, count }
                if !self.disk.read_only
                    && count <= MAX_DISCARD
                    && self.disk.has(sector, u64::from(count) * disk::SECTOR) =>
            {
                self.disk.discard(sector, count.into()).map(|()| 0)
            }
            Command::WriteZeroes { sector, count, unmap }
                if !self.disk.read_only
                    && count <= MAX_WRITE_ZEROES
                    && self.disk.has(sector, u64::from(count) * disk::SECTOR) =>
            {
                self.disk.write_zeroes(sector, count.into(), unmap).map(|()| 0)
            }
            Command::Unknown => return Ok((request::UNSUPPORTED, 0)),
            _ => return Ok((request::IO_ERROR, 0)),
        };
        let writes = !matches!(request.command, Command::Read { .. } | Command::Flush);
        let done = match done {
            Ok(written) if writes && self.write_through => self.disk.flush().map(|()| written),
            other => other,
        };
        Ok(done.map_or_else(
            |e| {
                tracing::warn!("drive {}: {:?}: {e}", self.id, request.command);
                (request::IO_ERROR, 0)
            },
            |written| (request::OK, written),
        ))
    }
}

impl VirtioDevice for Block {
    const TYPE: u32 = 2;
    const WAITS: bool = true;

    fn name(&self) -> String {
        format!("drive {}", self.id)
    }

    fn features(&self) -> u64 {
        let write = if self.disk.read_only { bits::RO } else { bits::DISCARD | bits::WRITE_ZEROES };
        let flush = if self.disk.cache == CacheType::Writeback { bits::FLUSH } else { 0 };
        bits::SEG_MAX | write | flush
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// `struct virtio_blk_config` (5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut c = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| c[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.disk.sectors.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(34, &1u16.to_le_bytes());
        put(36, &MAX_DISCARD.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(44, &1u32.to_le_bytes());
        put(48, &MAX_WRITE_ZEROES.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        put(56, &[1]);
        c
    }

    fn activate(&mut self, features: u64) {
        self.write_through = self.features() & !features & bits::FLUSH != 0;
    }

    fn fds(&self) -> Vec<DeviceFd> {
        vec![DeviceFd { fd: self.limiter.fd(), events: EventSet::IN, token: 0 }]
    }

    fn queue_event(&mut self, queue: usize, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let (mem, now_ns) = (cx.mem, cx.now_ns);
        let (mut bytes, mut tired) = (0, false);
        self.stats.count("queue_event_count");
        let progress = cx.queues[queue].serve(mem, cx.interrupt, BUDGET, |chain| {
            tired = bytes >= BYTE_BUDGET;
            if tired {
                return Ok(Served::Later);
            }
            let Some(request) = Request::parse(mem, chain)? else { return Ok(Served::Used(0)) };
            if !self.limiter.allow(request.data_len, now_ns) {
                self.stats.count("rate_limiter_throttled_events");
                return Ok(Served::Later);
            }
            bytes += request.cost();
            let (status, written) = self.execute(&request, mem, chain)?;
            self.note(&request, status);
            chain.writable.write(mem, request.status_offset, &[status])?;
            Ok(Served::Used(written + 1))
        })?;
        Ok(if tired { Progress::More } else { progress })
    }

    fn event(&mut self, token: u32, _events: EventSet, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        self.event_ignored(token);
        Ok(match self.queue_event(0, cx)? {
            Progress::More => Progress::More,
            Progress::Idle | Progress::Blocked => Progress::Idle,
        })
    }

    fn event_ignored(&mut self, _token: u32) {
        self.limiter.fired();
    }

    fn counted(&self) -> Option<Counted> {
        Some(Counted {
            group: format!("block_{}", self.id),
            kind: "block",
            counts: self.stats.all().to_vec(),
        })
    }

    fn save(&self) -> RawSection {
        let state =
            BlockV1 { sectors: self.disk.sectors, read_only: self.disk.read_only, serial: self.serial };
        RawSection::mandatory(&state)
    }

    fn restore(&mut self, section: &RawSection, _active: bool) -> Result<(), RestoreError> {
        let state: BlockV1 = device::section(section)?;
        let mismatch = |what: String| Err(RestoreError::Mismatch { device: self.name(), what });
        if state.sectors != self.disk.sectors {
            return mismatch(format!("{} sectors here, {} when saved", self.disk.sectors, state.sectors));
        }
        if state.read_only != self.disk.read_only {
            return mismatch(format!(
                "is_read_only is {} here, was {}",
                self.disk.read_only, state.read_only
            ));
        }
        self.serial = state.serial;
        Ok(())
    }
}
