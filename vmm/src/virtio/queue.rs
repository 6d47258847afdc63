//! Queues as devices use them: checked chains in, used elements out, notifications both ways.
//!
//! Ring arithmetic is rust-vmm's `virtio-queue`; what is added here is that a chain is looked at once, as a whole,
//! before a device sees it: it ends, its readable part comes before its writable part, and all of it is RAM.

use super::Ram;
use super::device::Progress;
use super::transport::Interrupt;
use std::sync::atomic::Ordering;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Most descriptors in a chain: what one vectored system call takes.
pub(super) const MAX_DESCRIPTORS: usize = 1024;

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
    unsignalled: bool,
}

impl VirtQueue {
    /// Wraps a queue that is set up.
    pub fn new(queue: Queue) -> Self {
        VirtQueue { queue, spare: Chain::default(), unsignalled: false }
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
        self.queue.add_used(mem, head, len)?;
        self.unsignalled = true;
        Ok(())
    }

    /// Interrupts the driver if it wants to hear of the chains given back since the last call.
    ///
    /// # Errors
    /// The available ring is not in RAM.
    pub fn signal(&mut self, mem: &Ram, interrupt: &Interrupt) -> Result<(), QueueError> {
        if !std::mem::take(&mut self.unsignalled) {
            return Ok(());
        }
        let wanted = self.queue.needs_notification(mem)?
            && (self.queue.event_idx_enabled() || {
                // VIRTQ_AVAIL_F_NO_INTERRUPT, which virtio-queue leaves to us.
                let flags: u16 = mem.load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)?;
                u16::from_le(flags) & 1 == 0
            });
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
