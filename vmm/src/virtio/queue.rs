//! Queues as devices use them: checked chains in, used elements out, notifications both ways.
//!
//! Ring arithmetic is rust-vmm's `virtio-queue`; what is added here is that a chain is looked at once, as a whole,
//! before a device sees it: it ends, its readable part comes before its writable part, and all of it is RAM. And used
//! elements may go back to the driver several at a time.

use super::Ram;
use super::device::Progress;
use super::transport::Interrupt;
use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Most descriptors in a chain: what one vectored system call takes.
pub(super) const MAX_DESCRIPTORS: usize = 1024;
/// How many used elements are held back at most. The driver's processor and ours then pass the ring's memory to each other
/// once for so many, and the backend is told once that it was written.
const MOST_HELD: usize = 16;
/// Bytes of a used element, and of what comes before a ring's first element.
const ELEMENT: u64 = 8;
const RING_HEADER: u64 = 4;

/// A queue that breaks the rules (virtio 1.2, 2.7). Its device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// An index in a ring is impossible, or a ring is not in RAM.
    #[error("broken ring: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A ring could not be accessed.
    #[error("ring not accessible: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The available ring names a descriptor that does not exist.
    #[error("no descriptor {0}")]
    Head(u16),
    /// Loops, is too long, mixes directions or ends nowhere.
    #[error("chain {0} is malformed")]
    Chain(u16),
    /// A buffer is not in RAM.
    #[error("chain {head}: {len:#x} bytes at {addr:#x} are not RAM")]
    Buffer {
        /// The chain.
        head: u16,
        /// Guest-physical address of the buffer.
        addr: u64,
        /// Its length in bytes.
        len: u32,
    },
}

/// One direction of a chain: pieces of RAM, checked.
#[derive(Debug, Default, Clone)]
pub struct Segments {
    list: Vec<(GuestAddress, u32)>,
    len: u64,
}

impl Segments {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a piece. The caller has checked that it is RAM.
    pub fn push(&mut self, addr: GuestAddress, len: u32) {
        if len > 0 {
            self.list.push((addr, len));
            self.len += u64::from(len);
        }
    }

    fn clear(&mut self) {
        self.list.clear();
        self.len = 0;
    }

    /// The pieces of `len` bytes from `offset` on; fewer where the segments end.
    pub fn range(&self, offset: u64, len: u64) -> impl Iterator<Item = (GuestAddress, usize)> + '_ {
        let (mut skip, mut left) = (offset, len);
        self.list.iter().filter_map(move |&(addr, piece)| {
            let piece = u64::from(piece);
            if skip >= piece {
                skip -= piece;
                return None;
            }
            let take = (piece - skip).min(left);
            let start = GuestAddress(addr.0 + skip);
            skip = 0;
            left -= take;
            (take > 0).then_some((start, take as usize))
        })
    }

    /// Copies bytes from `offset` on out of guest memory; how many were there.
    ///
    /// # Errors
    /// None for a checked chain; kept so that nobody has to trust that.
    pub fn read(&self, mem: &Ram, offset: u64, buf: &mut [u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for (addr, len) in self.range(offset, buf.len() as u64) {
            mem.read_slice(&mut buf[done..done + len], addr)?;
            done += len;
        }
        Ok(done)
    }

    /// Copies `buf` to `offset` into guest memory; how many bytes there was room for.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn write(&self, mem: &Ram, offset: u64, buf: &[u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for (addr, len) in self.range(offset, buf.len() as u64) {
            mem.write_slice(&buf[done..done + len], addr)?;
            done += len;
        }
        Ok(done)
    }

    /// The first `N` bytes from `offset`, if there are as many.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_array<const N: usize>(&self, mem: &Ram, offset: u64) -> Result<Option<[u8; N]>, QueueError> {
        let mut buf = [0; N];
        Ok((self.read(mem, offset, &mut buf)? == N).then_some(buf))
    }
}

/// A descriptor chain: what the driver gives, and where it wants an answer.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    /// Driver to device.
    pub readable: Segments,
    /// Device to driver.
    pub writable: Segments,
}

impl Chain {
    /// The descriptor it begins with: its name in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }
}

/// What a device did with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Done, so many bytes written into it.
    Used(u32),
    /// Not now: it stays the next available one.
    Later,
}

/// A queue of a device that the driver has started.
#[derive(Debug)]
pub struct VirtQueue {
    queue: Queue,
    spare: Chain,
    /// Used elements that are not in the ring yet.
    held: Vec<u8>,
    /// Those that the driver was not interrupted for yet.
    added: u16,
}

impl VirtQueue {
    /// Wraps a queue that is set up.
    pub fn new(queue: Queue) -> Self {
        VirtQueue { queue, spare: Chain::default(), held: Vec::new(), added: 0 }
    }

    /// The driver has set it up.
    pub fn ready(&self) -> bool {
        self.queue.ready()
    }

    /// Where it stands: next available index, next used index.
    pub fn position(&self) -> (u16, u16) {
        (self.queue.next_avail(), self.queue.next_used())
    }

    /// The next chain, checked; `None` if there is none. Give it back by [`Self::recycle`] to save allocations.
    ///
    /// # Errors
    /// The queue is broken.
    pub fn pop(&mut self, mem: &Ram) -> Result<Option<Chain>, QueueError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let Some(raw) = self.queue.iter(mem)?.next() else { return Ok(None) };
        let head = raw.head_index();
        if head >= self.queue.size() {
            return Err(QueueError::Head(head));
        }
        let mut chain = std::mem::take(&mut self.spare);
        chain.head = head;
        chain.readable.clear();
        chain.writable.clear();
        let (mut count, mut ended, mut writing) = (0, false, false);
        for d in raw {
            count += 1;
            ended = !d.has_next();
            if count > MAX_DESCRIPTORS || (writing && !d.is_write_only()) {
                return Err(QueueError::Chain(head));
            }
            writing = d.is_write_only();
            let access = if writing { Permissions::Write } else { Permissions::Read };
            if !mem.check_range(d.addr(), d.len() as usize, access) {
                return Err(QueueError::Buffer { head, addr: d.addr().0, len: d.len() });
            }
            (if writing { &mut chain.writable } else { &mut chain.readable }).push(d.addr(), d.len());
        }
        if !ended {
            return Err(QueueError::Chain(head));
        }
        Ok(Some(chain))
    }

    /// Makes the chain that was popped last the next available one again.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Takes back a chain that is no longer needed.
    pub fn recycle(&mut self, chain: Chain) {
        self.spare = chain;
    }

    /// Gives a chain back to the driver with `len` bytes written; [`Self::signal`] tells it.
    ///
    /// # Errors
    /// The used ring is not in RAM.
    pub fn push_used(&mut self, mem: &Ram, head: u16, len: u32) -> Result<(), QueueError> {
        self.hold_used(mem, head, len)?;
        self.publish(mem)
    }

    /// As [`Self::push_used`], but the driver may see it only after some more of them, or at [`Self::signal`].
    ///
    /// # Errors
    /// The used ring is not in RAM.
    pub fn hold_used(&mut self, mem: &Ram, head: u16, len: u32) -> Result<(), QueueError> {
        self.held.extend(u32::from(head).to_le_bytes());
        self.held.extend(len.to_le_bytes());
        if self.held.len() < MOST_HELD * ELEMENT as usize { Ok(()) } else { self.publish(mem) }
    }

    /// Puts what is held into the ring.
    fn publish(&mut self, mem: &Ram) -> Result<(), QueueError> {
        let held = self.held.len() / ELEMENT as usize;
        if held == 0 {
            return Ok(());
        }
        let (size, next) = (self.queue.size(), self.queue.next_used());
        // MOST_HELD at most; a queue may have fewer elements than that, and takes them in turns.
        let mut part = &self.held[..];
        let mut at = next % size;
        while !part.is_empty() {
            let (now, later) = part.split_at(part.len().min(usize::from(size - at) * ELEMENT as usize));
            let offset = RING_HEADER + u64::from(at) * ELEMENT;
            mem.write_slice(now, self.ring(self.queue.used_ring(), offset)?)?;
            (part, at) = (later, 0);
        }
        self.held.clear();
        let next = next.wrapping_add(held as u16);
        self.queue.set_next_used(next);
        self.added = self.added.saturating_add(held as u16);
        mem.store(next.to_le(), self.ring(self.queue.used_ring(), 2)?, Ordering::Release)?;
        Ok(())
    }

    fn ring(&self, ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
        ring.checked_add(offset).map(GuestAddress).ok_or(virtio_queue::Error::AddressOverflow.into())
    }

    /// Interrupts the driver if it wants to hear of the chains given back since the last call.
    ///
    /// # Errors
    /// The available ring is not in RAM.
    pub fn signal(&mut self, mem: &Ram, interrupt: &Interrupt) -> Result<(), QueueError> {
        self.publish(mem)?;
        let added = std::mem::take(&mut self.added);
        if added == 0 {
            return Ok(());
        }
        // The index is written before the driver's wish is read: else both could wait for the other.
        fence(Ordering::SeqCst);
        let avail = self.queue.avail_ring();
        let wanted = if self.queue.event_idx_enabled() {
            // At the end of the available ring: the index whose use it wants to hear of (virtio 1.2, 2.7.10).
            let event = self.ring(avail, RING_HEADER + 2 * u64::from(self.queue.size()))?;
            let event = u16::from_le(mem.load(event, Ordering::Relaxed)?);
            let next = Wrapping(self.queue.next_used());
            next - Wrapping(event) - Wrapping(1) < Wrapping(added)
        } else {
            // VIRTQ_AVAIL_F_NO_INTERRUPT.
            u16::from_le(mem.load(GuestAddress(avail), Ordering::Relaxed)?) & 1 == 0
        };
        if wanted {
            interrupt.used();
        }
        Ok(())
    }

    /// Asks the driver for notifications; true if something came in meanwhile.
    ///
    /// # Errors
    /// A ring is not in RAM.
    pub fn listen(&mut self, mem: &Ram) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(mem)?)
    }

    /// Tells the driver that notifications are not needed.
    ///
    /// # Errors
    /// A ring is not in RAM.
    pub fn ignore(&mut self, mem: &Ram) -> Result<(), QueueError> {
        Ok(self.queue.disable_notification(mem)?)
    }

    /// Serves at most `budget` chains with `f`, then interrupts the driver if it wants that.
    ///
    /// # Errors
    /// The queue is broken, or `f` says so.
    pub fn serve(
        &mut self,
        mem: &Ram,
        interrupt: &Interrupt,
        budget: usize,
        f: impl FnMut(&Chain) -> Result<Served, QueueError>,
    ) -> Result<Progress, QueueError> {
        self.serve_by(mem, interrupt, budget, false, f)
    }

    /// As [`Self::serve`], for an `f` that is quick: chains go back several at a time.
    ///
    /// # Errors
    /// As [`Self::serve`].
    pub fn serve_quickly(
        &mut self,
        mem: &Ram,
        interrupt: &Interrupt,
        budget: usize,
        f: impl FnMut(&Chain) -> Result<Served, QueueError>,
    ) -> Result<Progress, QueueError> {
        self.serve_by(mem, interrupt, budget, true, f)
    }

    fn serve_by(
        &mut self,
        mem: &Ram,
        interrupt: &Interrupt,
        budget: usize,
        hold: bool,
        mut f: impl FnMut(&Chain) -> Result<Served, QueueError>,
    ) -> Result<Progress, QueueError> {
        if !self.ready() {
            return Ok(Progress::Idle);
        }
        self.ignore(mem)?;
        for _ in 0..budget {
            let Some(chain) = self.pop(mem)? else {
                self.signal(mem, interrupt)?;
                if self.listen(mem)? {
                    self.ignore(mem)?;
                    continue;
                }
                return Ok(Progress::Idle);
            };
            match f(&chain)? {
                Served::Used(len) if hold => self.hold_used(mem, chain.head, len)?,
                Served::Used(len) => self.push_used(mem, chain.head, len)?,
                Served::Later => {
                    self.undo_pop();
                    self.recycle(chain);
                    self.signal(mem, interrupt)?;
                    return Ok(Progress::Blocked);
                }
            }
            self.recycle(chain);
        }
        self.signal(mem, interrupt)?;
        Ok(Progress::More)
    }
}
