//! vsock device (virtio 1.2, 5.10): streams between the guest and the host's Unix sockets.

mod config;
mod connection;
mod muxer;
mod packet;
mod state;
#[cfg(test)]
mod tests;

pub use config::VsockConfig;
pub use state::VsockV1;

use super::device::{self, Context, DeviceFd, Progress, RestoreError, VirtioDevice};
use super::queue::{QueueError, Served};
use super::stats::{Counted, Stats};
use event_manager::EventSet;
use godwit_state::RawSection;
use muxer::Muxer;
use packet::{HEADER, Header};
use std::io;

/// Queues.
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Packets in one wake-up, each way.
const BUDGET: usize = 64;
/// What is counted.
const COUNTED: [&str; 4] = ["rx_packets_count", "rx_bytes_count", "tx_packets_count", "tx_bytes_count"];
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// Why the device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// 0 to 2 and the last one have other meanings.
    #[error("vsock: guest_cid {0} is reserved; use 3 or more")]
    Cid(u32),
    /// The socket cannot be made.
    #[error("vsock: cannot listen at {path}: {source}")]
    Listen {
        /// The socket.
        path: String,
        /// The host's answer.
        source: io::Error,
    },
}

/// The device.
#[derive(Debug)]
pub struct Vsock {
    cid: u64,
    muxer: Muxer,
    /// The guest is to be told that its connections are gone.
    tell_reset: bool,
    payload: Vec<u8>,
    stats: Stats,
}

impl Vsock {
    /// Listens at the configured socket; it is unlinked when the device goes.
    ///
    /// # Errors
    /// A reserved CID, or the socket cannot be made; the error names it.
    pub fn new(config: &VsockConfig) -> Result<Self, VsockError> {
        if config.guest_cid < 3 || config.guest_cid == u32::MAX {
            return Err(VsockError::Cid(config.guest_cid));
        }
        let cid = config.guest_cid.into();
        let muxer = Muxer::new(&config.uds_path, cid)
            .map_err(|source| VsockError::Listen { path: config.uds_path.clone(), source })?;
        Ok(Vsock { cid, muxer, tell_reset: false, payload: Vec::new(), stats: Stats::new(&COUNTED) })
    }

    fn transmit(&mut self, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let Vsock { muxer, payload, stats, .. } = self;
        let mem = cx.mem;
        cx.queues[TX].serve(mem, cx.interrupt, BUDGET, |chain| {
            let packet = &chain.readable;
            let Some(bytes) = packet.read_array::<HEADER>(mem, 0)? else { return Ok(Served::Used(0)) };
            let h = Header::from_bytes(&bytes);
            // More than there is, or than any credit allows: nothing to be made of it.
            if u64::from(h.len) > packet.len() - HEADER as u64 || h.len > connection::BUFFER {
                return Ok(Served::Used(0));
            }
            payload.resize(h.len as usize, 0);
            packet.read(mem, HEADER as u64, payload)?;
            muxer.receive(&h, payload);
            stats.count("tx_packets_count");
            stats.add("tx_bytes_count", h.len.into());
            Ok(Served::Used(0))
        })
    }

    fn receive(&mut self, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let Vsock { muxer, payload, stats, .. } = self;
        let mem = cx.mem;
        let q = &mut cx.queues[RX];
        if !q.ready() {
            return Ok(Progress::Idle);
        }
        q.ignore(mem)?;
        let mut progress = Progress::More;
        for _ in 0..BUDGET {
            if !muxer.has_packets() {
                progress = Progress::Idle;
                break;
            }
            let Some(chain) = q.pop(mem)? else {
                if q.listen(mem)? {
                    q.ignore(mem)?;
                    continue;
                }
                progress = Progress::Idle;
                break;
            };
            let Some(room) = chain.writable.len().checked_sub(HEADER as u64) else {
                q.push_used(mem, chain.head(), 0)?;
                continue;
            };
            match muxer.next_packet(room as usize, payload) {
                Some(h) => {
                    chain.writable.write(mem, 0, &h.to_bytes())?;
                    chain.writable.write(mem, HEADER as u64, payload)?;
                    stats.count("rx_packets_count");
                    stats.add("rx_bytes_count", payload.len() as u64);
                    q.push_used(mem, chain.head(), (HEADER + payload.len()) as u32)?;
                }
                None => q.undo_pop(),
            }
            q.recycle(chain);
        }
        q.signal(mem, cx.interrupt)?;
        Ok(progress)
    }

    /// News from the host's sockets.
    fn hear(&mut self, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let more = self.muxer.poll();
        let progress = self.receive(cx)?;
        Ok(if more { Progress::More } else { progress })
    }

    fn tell(&mut self, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let mem = cx.mem;
        let pending = &mut self.tell_reset;
        if !*pending {
            return Ok(Progress::Idle);
        }
        cx.queues[EVENT].serve(mem, cx.interrupt, BUDGET, |chain| {
            if !std::mem::take(pending) {
                return Ok(Served::Later);
            }
            Ok(Served::Used(chain.writable.write(mem, 0, &TRANSPORT_RESET)? as u32))
        })
    }
}

impl VirtioDevice for Vsock {
    const TYPE: u32 = 19;

    fn name(&self) -> String {
        "vsock".into()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256; 3]
    }

    fn config(&self) -> Vec<u8> {
        self.cid.to_le_bytes().to_vec()
    }

    fn reset(&mut self) {
        self.muxer.clear();
        self.tell_reset = false;
    }

    fn fds(&self) -> Vec<DeviceFd> {
        vec![DeviceFd { fd: self.muxer.fd(), events: EventSet::IN | EventSet::EDGE_TRIGGERED, token: 0 }]
    }

    fn queue_event(&mut self, queue: usize, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        match queue {
            RX => {
                // Sockets that had news while nobody listened.
                self.hear(cx)
            }
            TX => {
                let progress = self.transmit(cx)?;
                let answers = self.receive(cx)?;
                Ok(if answers == Progress::More { answers } else { progress })
            }
            _ => self.tell(cx),
        }
    }

    fn event(
        &mut self,
        _token: u32,
        _events: EventSet,
        cx: &mut Context<'_>,
    ) -> Result<Progress, QueueError> {
        self.hear(cx)
    }

    fn counted(&self) -> Option<Counted> {
        Some(Counted { group: "vsock".into(), kind: "", counts: self.stats.all().to_vec() })
    }

    fn save(&self) -> RawSection {
        RawSection::mandatory(&VsockV1 { guest_cid: self.cid })
    }

    fn restore(&mut self, section: &RawSection, active: bool) -> Result<(), RestoreError> {
        let state: VsockV1 = device::section(section)?;
        if state.guest_cid != self.cid {
            let what = format!("guest_cid is {} here, was {}", self.cid, state.guest_cid);
            return Err(RestoreError::Mismatch { device: self.name(), what });
        }
        self.tell_reset = active;
        Ok(())
    }
}
