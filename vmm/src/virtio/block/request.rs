//! A request (virtio 1.2, 5.2.6): header, data, status byte, in whatever pieces the driver chose.

use crate::virtio::queue::QueueError;
use crate::virtio::{Chain, Ram, Segments};

/// Status byte.
pub(super) const OK: u8 = 0;
pub(super) const IO_ERROR: u8 = 1;
pub(super) const UNSUPPORTED: u8 = 2;

/// Bytes of `struct virtio_blk_req` before the data.
pub(super) const HEADER: u64 = 16;
/// Bytes of `struct virtio_blk_discard_write_zeroes`.
const RANGE: u64 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read {
        sector: u64,
    },
    Write {
        sector: u64,
    },
    Flush,
    GetId,
    Discard {
        sector: u64,
        count: u32,
    },
    WriteZeroes {
        sector: u64,
        count: u32,
        unmap: bool,
    },
    /// Known, but wrong: answered with an I/O error.
    Malformed,
    /// Not known: answered as unsupported.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    /// Bytes of data, in the direction of the command.
    pub(super) data_len: u64,
    /// Where in the writable part the status byte goes: its last byte.
    pub(super) status_offset: u64,
}

impl Request {
    /// `None` if there is no room for a status byte: nothing can be answered.
    pub(super) fn parse(mem: &Ram, chain: &Chain) -> Result<Option<Self>, QueueError> {
        let Some(status_offset) = chain.writable.len().checked_sub(1) else { return Ok(None) };
        let incoming = status_offset;
        let Some(header) = chain.readable.read_array::<{ HEADER as usize }>(mem, 0)? else {
            return Ok(Some(Request { command: Command::Malformed, data_len: 0, status_offset }));
        };
        let outgoing = chain.readable.len() - HEADER;
        let kind = u32::from_le_bytes(std::array::from_fn(|i| header[i]));
        let sector = u64::from_le_bytes(std::array::from_fn(|i| header[8 + i]));
        let (command, data_len) = match kind {
            0 if outgoing == 0 => (Command::Read { sector }, incoming),
            1 if incoming == 0 => (Command::Write { sector }, outgoing),
            4 => (Command::Flush, 0),
            8 if outgoing == 0 => (Command::GetId, incoming),
            11 | 13 => match chain.readable.read_array::<{ RANGE as usize }>(mem, HEADER)? {
                Some(range) if outgoing == RANGE => (Self::range(kind, &range), 0),
                _ => (Command::Malformed, 0),
            },
            0 | 1 | 8 => (Command::Malformed, 0),
            _ => (Command::Unknown, 0),
        };
        Ok(Some(Request { command, data_len, status_offset }))
    }

    fn range(kind: u32, bytes: &[u8; RANGE as usize]) -> Command {
        let sector = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
        let count = u32::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]));
        let flags = u32::from_le_bytes(std::array::from_fn(|i| bytes[12 + i]));
        match (kind, flags) {
            (11, 0) => Command::Discard { sector, count },
            (13, 0 | 1) => Command::WriteZeroes { sector, count, unmap: flags == 1 },
            // Reserved flags, and unmap in a discard, must be refused as unsupported (5.2.6.2).
            _ => Command::Unknown,
        }
    }

    /// The data of a write: all that is readable but the header.
    pub(super) fn write_data(&self, chain: &Chain) -> Segments {
        let mut data = Segments::default();
        for (addr, len) in chain.readable.range(HEADER, self.data_len) {
            data.push(addr, len as u32);
        }
        data
    }

    /// What it costs of a wake-up's budget, in bytes.
    pub(super) fn cost(&self) -> u64 {
        match self.command {
            Command::WriteZeroes { count, .. } => u64::from(count) * super::disk::SECTOR,
            _ => self.data_len,
        }
    }
}
