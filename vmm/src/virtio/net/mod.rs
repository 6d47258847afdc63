//! Network device (virtio 1.2, 5.1): one pair of queues over a TAP or passt.
//!
//! A frame waits in this device only while the guest gives no buffer for it; everything else waits in the host's
//! queue, where the host's own limits apply.

mod announce;
mod config;
mod passt;
mod state;
mod tap;
#[cfg(test)]
mod tests;

pub use config::{Mac, MmdsConfig, MmdsConfigError, MmdsVersion, NetworkInterfaceConfig};
pub use state::NetV1;

use super::Ram;
use super::device::{self, Context, DeviceFd, Progress, RestoreError, VirtioDevice};
use super::queue::{Chain, QueueError, Segments, Served, VirtQueue};
use super::ratelimit::{RateLimiter, RateLimiterConfig};
use super::stats::{Counted, Stats};
use super::timer::OneShot;
use announce::Announcer;
use event_manager::EventSet;
use godwit_state::RawSection;
use passt::Passt;
use std::io;
use std::os::fd::RawFd;
#[cfg(any(test, fuzzing))]
use std::os::unix::net::UnixStream;
use tap::Tap;

/// Feature bits (virtio 1.2, 5.1.3).
mod bits {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const OFFLOADS: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6;
}

/// Bytes of `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// Where `num_buffers` is in it.
const NUM_BUFFERS: usize = 10;
/// Largest frame: 64 KiB of offloaded segment with its Ethernet and VLAN headers.
const MAX_FRAME: usize = 65_535 + 22;
/// Largest packet with its header.
const MAX_PACKET: usize = HEADER + MAX_FRAME;
/// Queues.
const RX: usize = 0;
const TX: usize = 1;
/// Frames in one wake-up, each way.
const BUDGET: usize = 64;
/// Tokens of descriptors.
const LINK: u32 = 0;
const RX_TIMER: u32 = 1;
const TX_TIMER: u32 = 2;
const ANNOUNCE_TIMER: u32 = 3;
const REFILL_TIMER: u32 = 4;
/// How long, and how often in a row, a guest that is behind may put back buffers unasked.
const REFILL_NS: u64 = 100_000;
const REFILL_WAITS: u8 = 4;

/// What to do about a TAP that cannot be had.
fn tap_hint(why: &io::Error, name: &str) -> String {
    match why.raw_os_error() {
        Some(libc::EBUSY) => "; another program has it: give each guest a TAP of its own".into(),
        Some(libc::EPERM | libc::EACCES) => {
            format!("; as root, make one for this user: ip tuntap add {name} mode tap user NAME")
        }
        _ if name.len() >= libc::IFNAMSIZ => format!("; a name has at most {} bytes", libc::IFNAMSIZ - 1),
        Some(libc::ENOENT) => "; /dev/net/tun is not there: load the module tun".into(),
        _ => String::new(),
    }
}

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Neither a TAP nor passt, or both.
    #[error("network interface {0}: name either host_dev_name or passt_socket")]
    Backend(String),
    /// No TAP of that name, or not ours to use.
    #[error("network interface {id}: cannot use TAP {name}: {source}{hint}", hint = tap_hint(.source, .name))]
    Tap {
        /// Which interface.
        id: String,
        /// The host's interface.
        name: String,
        /// The host's answer.
        source: io::Error,
    },
    /// passt does not answer.
    #[error("network interface {id}: cannot connect to passt at {path}: {source}")]
    Passt {
        /// Which interface.
        id: String,
        /// Its socket.
        path: String,
        /// The host's answer.
        source: io::Error,
    },
    /// No timer for a rate limiter.
    #[error("network interface {id}: rate limiter: {source}")]
    Limiter {
        /// Which interface.
        id: String,
        /// The host's answer.
        source: io::Error,
    },
}

/// A listener inside the VMM that some of the guest's frames are meant for: the metadata service.
pub trait Detour: Send {
    /// Is the frame that begins so (at most 64 bytes) for it?
    fn wants(&self, frame: &[u8]) -> bool;
    /// Takes a frame that it wants.
    fn take(&mut self, frame: &[u8], now_ns: u64);
    /// Puts its next frame for the guest, at most 1514 bytes, into `frame`; false if there is none.
    fn next(&mut self, frame: &mut Vec<u8>, now_ns: u64) -> bool;
}

#[derive(Debug)]
enum Link {
    Tap(Tap),
    Passt(Passt),
}

impl Link {
    fn fd(&self) -> RawFd {
        match self {
            Link::Tap(t) => t.fd(),
            Link::Passt(p) => p.fd(),
        }
    }

    /// The next packet, header first, into `buf` of [`MAX_PACKET`] bytes.
    fn read(&mut self, buf: &mut [u8]) -> Option<usize> {
        match self {
            Link::Tap(t) => t.read(buf).ok().filter(|&n| n > HEADER),
            Link::Passt(p) => {
                buf[..HEADER].fill(0);
                p.read(&mut buf[HEADER..]).map(|n| n + HEADER)
            }
        }
    }

    /// Can take a frame now.
    fn ready(&mut self) -> bool {
        match self {
            Link::Tap(_) => true,
            Link::Passt(p) => p.flush(),
        }
    }

    /// A packet that the host does not take is lost, as on any network.
    fn send(&mut self, mem: &Ram, packet: &Segments) -> Result<(), QueueError> {
        match self {
            Link::Tap(t) => {
                if let Err(e) = t.write(mem, packet) {
                    tracing::debug!("TAP: frame dropped: {e}");
                }
            }
            Link::Passt(p) => {
                let mut frame = vec![0; packet.len() as usize - HEADER];
                packet.read(mem, HEADER as u64, &mut frame)?;
                p.write(&frame);
            }
        }
        Ok(())
    }

    fn send_frame(&mut self, frame: &[u8]) {
        match self {
            Link::Tap(t) => drop(t.write_bytes(&[&[0; HEADER][..], frame].concat())),
            Link::Passt(p) => {
                if p.flush() {
                    p.write(frame);
                }
            }
        }
    }
}

/// A packet on its way to the guest.
#[derive(Debug)]
struct Incoming {
    bytes: Box<[u8]>,
    /// 0: none.
    len: usize,
    /// The rate limiter has let it pass.
    paid: bool,
}

/// What is counted.
const COUNTED: [&str; 13] = [
    "rx_queue_event_count",
    "rx_packets_count",
    "rx_count",
    "rx_bytes_count",
    "rx_fails",
    "rx_rate_limiter_throttled",
    "no_rx_avail_buffer",
    "tx_queue_event_count",
    "tx_packets_count",
    "tx_count",
    "tx_bytes_count",
    "tx_malformed_frames",
    "tx_rate_limiter_throttled",
];

/// The device.
pub struct Net {
    id: String,
    mac: Option<[u8; 6]>,
    seen: Option<[u8; 6]>,
    link: Link,
    incoming: Incoming,
    detour: Option<Box<dyn Detour>>,
    mtu: Option<u16>,
    rx_limiter: RateLimiter,
    tx_limiter: RateLimiter,
    mergeable: bool,
    announcer: Announcer,
    chains: Vec<Chain>,
    /// Packets and their bytes that are not counted yet.
    received: (u64, u64),
    refill: OneShot,
    /// Waits in a row in which no buffer came.
    waits: u8,
    /// The refill timer is set.
    waiting: bool,
    stats: Stats,
}

impl Net {
    /// Opens the interface's TAP or connects to its passt.
    ///
    /// # Errors
    /// It cannot be used; the error names the interface and what it needs.
    pub fn new(config: &NetworkInterfaceConfig) -> Result<Self, NetError> {
        let id = &config.iface_id;
        let link = match (&config.host_dev_name, &config.passt_socket) {
            (Some(name), None) => Link::Tap(Tap::open(id, name)?),
            (None, Some(path)) => Link::Passt(Passt::connect(id, path)?),
            _ => return Err(NetError::Backend(id.clone())),
        };
        Self::with_link(config, link)
    }

    /// An interface at one end of a socket that speaks passt's protocol.
    ///
    /// # Errors
    /// The host gives no timer.
    #[cfg(any(test, fuzzing))]
    pub fn over(config: &NetworkInterfaceConfig, socket: UnixStream) -> Result<Self, NetError> {
        let id = config.iface_id.clone();
        let passt = Passt::over(socket).map_err(|source| NetError::Limiter { id, source })?;
        Self::with_link(config, Link::Passt(passt))
    }

    fn with_link(config: &NetworkInterfaceConfig, link: Link) -> Result<Self, NetError> {
        let limiter = |c: &Option<RateLimiterConfig>| {
            RateLimiter::new(&c.unwrap_or_default())
                .map_err(|source| NetError::Limiter { id: config.iface_id.clone(), source })
        };
        Ok(Net {
            id: config.iface_id.clone(),
            mac: config.guest_mac.map(|m| m.0),
            seen: None,
            link,
            incoming: Incoming { bytes: vec![0; MAX_PACKET].into(), len: 0, paid: false },
            detour: None,
            mtu: config.mtu,
            rx_limiter: limiter(&config.rx_rate_limiter)?,
            tx_limiter: limiter(&config.tx_rate_limiter)?,
            mergeable: false,
            announcer: Announcer::new()
                .map_err(|source| NetError::Limiter { id: config.iface_id.clone(), source })?,
            chains: Vec::new(),
            received: (0, 0),
            refill: OneShot::new()
                .map_err(|source| NetError::Limiter { id: config.iface_id.clone(), source })?,
            waits: 0,
            waiting: false,
            stats: Stats::new(&COUNTED),
        })
    }

    /// The interface's configured name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the host lets frames through yet.
    pub fn link_is_up(&self) -> bool {
        match &self.link {
            Link::Tap(tap) => tap.is_up(),
            Link::Passt(_) => true,
        }
    }

    /// Gives some of the guest's frames to `detour` instead of the network.
    pub fn set_detour(&mut self, detour: Box<dyn Detour>) {
        self.detour = Some(detour);
    }

    /// `PATCH /network-interfaces/{id}`.
    pub fn update_limiters(&mut self, rx: Option<&RateLimiterConfig>, tx: Option<&RateLimiterConfig>) {
        if let Some(c) = rx {
            self.rx_limiter.update(c);
        }
        if let Some(c) = tx {
            self.tx_limiter.update(c);
        }
    }

    /// Fetches a packet for the guest, if none is waiting.
    fn fetch(&mut self, now_ns: u64) -> bool {
        if self.incoming.len == 0 {
            let mut frame = Vec::new();
            let from_detour = self.detour.as_mut().is_some_and(|d| d.next(&mut frame, now_ns));
            self.incoming.len = if from_detour && frame.len() <= MAX_FRAME {
                self.incoming.bytes[..HEADER].fill(0);
                self.incoming.bytes[HEADER..][..frame.len()].copy_from_slice(&frame);
                HEADER + frame.len()
            } else {
                self.link.read(&mut self.incoming.bytes).unwrap_or(0)
            };
            self.incoming.paid = false;
        }
        self.incoming.len > 0
    }

    /// Puts the waiting packet into buffers of the guest; false if there are too few.
    fn deliver(&mut self, q: &mut VirtQueue, mem: &Ram) -> Result<bool, QueueError> {
        let mut room = 0;
        while room < self.incoming.len as u64 {
            let chain = match q.pop(mem)? {
                Some(chain) if self.mergeable || self.chains.is_empty() => chain,
                other => {
                    if other.is_some() {
                        // One buffer a packet, and this packet does not fit: it is lost.
                        q.undo_pop();
                        self.incoming.len = 0;
                        self.stats.count("rx_fails");
                    }
                    for _ in self.chains.drain(..) {
                        q.undo_pop();
                    }
                    return Ok(other.is_some());
                }
            };
            room += chain.writable.len();
            self.chains.push(chain);
        }
        let count = self.chains.len() as u16;
        self.incoming.bytes[NUM_BUFFERS..NUM_BUFFERS + 2].copy_from_slice(&count.to_le_bytes());
        let packet = &self.incoming.bytes[..self.incoming.len];
        let mut done = 0;
        for chain in &self.chains {
            let len = chain.writable.write(mem, 0, &packet[done..])?;
            q.hold_used(mem, chain.head(), len as u32)?;
            done += len;
        }
        if let Some(chain) = self.chains.drain(..).next() {
            q.recycle(chain);
        }
        self.received.0 += 1;
        self.received.1 += (self.incoming.len - HEADER) as u64;
        self.incoming.len = 0;
        Ok(true)
    }

    fn receive(&mut self, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let q = &mut cx.queues[RX];
        if !q.ready() {
            return Ok(Progress::Idle);
        }
        q.ignore(cx.mem)?;
        let mut progress = Progress::More;
        for _ in 0..BUDGET {
            if !self.fetch(cx.now_ns) {
                progress = Progress::Idle;
                break;
            }
            if !self.incoming.paid && !self.rx_limiter.allow(self.incoming.len as u64, cx.now_ns) {
                self.stats.count("rx_rate_limiter_throttled");
                progress = Progress::Blocked;
                break;
            }
            self.incoming.paid = true;
            if self.deliver(q, cx.mem)? {
                self.waits = 0;
                continue;
            }
            // Asked to tell of new buffers, a guest that is behind would tell of each, and each would wake this thread.
            self.waiting = self.waits < REFILL_WAITS && self.refill.set_ns(REFILL_NS).is_ok();
            self.waits = self.waits.saturating_add(1);
            // The next notification of new buffers goes on with this packet.
            if !self.waiting && q.listen(cx.mem)? && self.deliver(q, cx.mem)? {
                q.ignore(cx.mem)?;
                continue;
            }
            self.stats.count("no_rx_avail_buffer");
            progress = Progress::Idle;
            break;
        }
        q.signal(cx.mem, cx.interrupt)?;
        let (packets, bytes) = std::mem::take(&mut self.received);
        self.stats.add("rx_packets_count", packets);
        self.stats.add("rx_count", packets);
        self.stats.add("rx_bytes_count", bytes);
        Ok(progress)
    }

    fn transmit(&mut self, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let Net { link, detour, tx_limiter, seen, stats, .. } = self;
        let (mem, now_ns) = (cx.mem, cx.now_ns);
        let (mut detoured, mut packets, mut bytes) = (false, 0, 0);
        // The rest of a frame goes out whether or not another follows.
        link.ready();
        let progress = cx.queues[TX].serve_quickly(mem, cx.interrupt, BUDGET, |chain| {
            let packet = &chain.readable;
            let len = packet.len();
            if len <= (HEADER + 14) as u64 || len > MAX_PACKET as u64 {
                stats.count("tx_malformed_frames");
                return Ok(Served::Used(0));
            }
            if !link.ready() {
                return Ok(Served::Later);
            }
            if !tx_limiter.allow(len, now_ns) {
                stats.count("tx_rate_limiter_throttled");
                return Ok(Served::Later);
            }
            packets += 1;
            bytes += len - HEADER as u64;
            let mut head = [0; 64];
            let n = packet.read(mem, HEADER as u64, &mut head)?;
            *seen = head[6..].first_chunk().copied();
            match detour {
                Some(d) if d.wants(&head[..n]) => {
                    let mut frame = vec![0; len as usize - HEADER];
                    packet.read(mem, HEADER as u64, &mut frame)?;
                    d.take(&frame, now_ns);
                    detoured = true;
                }
                _ => link.send(mem, packet)?,
            }
            Ok(Served::Used(0))
        });
        stats.add("tx_packets_count", packets);
        stats.add("tx_count", packets);
        stats.add("tx_bytes_count", bytes);
        let progress = progress?;
        if detoured && self.receive(cx)? == Progress::More {
            return Ok(Progress::More);
        }
        Ok(progress)
    }

    /// Tells the network where the guest's MAC is now, if it is time to.
    fn announce(&mut self) {
        if let Some(mac) = self.mac.or(self.seen)
            && self.announcer.due()
        {
            self.link.send_frame(&announce::frame(mac));
        }
    }
}

impl VirtioDevice for Net {
    const TYPE: u32 = 1;

    fn name(&self) -> String {
        format!("network interface {}", self.id)
    }

    fn features(&self) -> u64 {
        let mac = if self.mac.is_some() { bits::MAC } else { 0 };
        let offloads = if matches!(self.link, Link::Tap(_)) { bits::OFFLOADS } else { 0 };
        let mtu = if self.mtu.is_some() { bits::MTU } else { 0 };
        mac | mtu | offloads | bits::MRG_RXBUF
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 256]
    }

    /// `struct virtio_net_config` up to the MTU (5.1.4).
    fn config(&self) -> Vec<u8> {
        let mut c = self.mac.unwrap_or_default().to_vec();
        // No status, one pair of queues.
        c.extend([0, 0, 1, 0]);
        c.extend(self.mtu.unwrap_or(0).to_le_bytes());
        c
    }

    fn activate(&mut self, features: u64) {
        self.mergeable = features & bits::MRG_RXBUF != 0;
        if let Link::Tap(tap) = &self.link
            && let Err(e) = tap.set_offloads(features)
        {
            tracing::error!("network interface {}: offloads: {e}", self.id);
        }
    }

    fn reset(&mut self) {
        self.incoming.len = 0;
        self.mergeable = false;
        self.chains.clear();
        (self.waits, self.waiting) = (0, false);
    }

    fn fds(&self) -> Vec<DeviceFd> {
        let link = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        vec![
            DeviceFd { fd: self.link.fd(), events: link, token: LINK },
            DeviceFd { fd: self.rx_limiter.fd(), events: EventSet::IN, token: RX_TIMER },
            DeviceFd { fd: self.tx_limiter.fd(), events: EventSet::IN, token: TX_TIMER },
            DeviceFd { fd: self.announcer.fd(), events: EventSet::IN, token: ANNOUNCE_TIMER },
            DeviceFd { fd: self.refill.fd(), events: EventSet::IN, token: REFILL_TIMER },
        ]
    }

    fn queue_event(&mut self, queue: usize, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        self.announce();
        match queue {
            RX => {
                self.stats.count("rx_queue_event_count");
                self.receive(cx)
            }
            _ => {
                self.stats.count("tx_queue_event_count");
                self.transmit(cx)
            }
        }
    }

    fn event(&mut self, token: u32, events: EventSet, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        self.event_ignored(token);
        if token == ANNOUNCE_TIMER {
            self.announce();
            return Ok(Progress::Idle);
        }
        let mut more = Progress::Idle;
        // While the guest puts back buffers, further packets wait in the host's queue.
        let came = token == LINK && events.contains(EventSet::IN) && !self.waiting;
        if matches!(token, RX_TIMER | REFILL_TIMER) || came {
            more = self.receive(cx)?;
        }
        let waits = matches!(self.link, Link::Passt(_)) && events.contains(EventSet::OUT);
        if (token == TX_TIMER || token == LINK && waits) && self.transmit(cx)? == Progress::More {
            more = Progress::More;
        }
        Ok(more)
    }

    fn event_ignored(&mut self, token: u32) {
        match token {
            RX_TIMER => self.rx_limiter.fired(),
            TX_TIMER => self.tx_limiter.fired(),
            ANNOUNCE_TIMER => self.announcer.fired(),
            REFILL_TIMER => self.waiting = !self.refill.fired() && self.waiting,
            _ => {}
        }
    }

    fn counted(&self) -> Option<Counted> {
        Some(Counted { group: format!("net_{}", self.id), kind: "net", counts: self.stats.all().to_vec() })
    }

    fn save(&self) -> RawSection {
        RawSection::mandatory(&NetV1 { mac: self.mac, seen: self.seen })
    }

    fn restore(&mut self, section: &RawSection, active: bool) -> Result<(), RestoreError> {
        let state: NetV1 = device::section(section)?;
        self.mac = state.mac;
        self.seen = state.seen;
        self.announcer.begin(active);
        Ok(())
    }
}
