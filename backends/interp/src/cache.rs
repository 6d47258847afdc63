//! The block cache of one vCPU: blocks by guest-physical address and mode, and what must go when code is written.
//!
//! ```text
//! key ──► table ──► Block ──► cells in a chunk:  op op jcc slot op … end slot
//! page ─► pages ──► its blocks
//! ```
//! A block whose code is overwritten keeps its cells, but every op's handler becomes [`stale`], so a chain that
//! is inside it, or a link that leads to it, comes back to the dispatcher before the next instruction. Decoding the
//! same key again reuses the cells where they suffice, and old links are good again. Cells are freed only by
//! [`Cache::empty`], between chains.

use crate::cpu::Cpu;
use crate::mmu::ram::PAGE_SHIFT;
use crate::op::{Cellule, Flow, Op, OpPtr, Slot};
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// Cells in a chunk.
const CHUNK: usize = 4096;
/// Most cells in a block: 32 instructions, each with a slot, and the end.
pub(crate) const MAX_CELLS: usize = 72;

/// What decoding makes of a block.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub cells: Vec<Option<Op>>,
    /// Bytes of code in the first page.
    pub bytes: u64,
    /// The other page, if the (only) instruction crosses.
    pub second: Option<u64>,
}

/// A decoded block.
#[derive(Debug)]
pub(crate) struct Block {
    key: u64,
    start: OpPtr,
    cells: u16,
    room: u16,
    /// Guest-physical address and bytes of its code, in its first page.
    gpa: u64,
    bytes: u64,
    /// Guest-physical address of the second page, if it crosses.
    pub second: Option<u64>,
    /// Bit i: cell i is a slot.
    slots: u128,
    valid: bool,
}

#[derive(Debug, Default)]
struct PageCode {
    blocks: Vec<u32>,
    /// Writes into code lines since something was last decoded here.
    writes: u32,
}

/// Multiplies; keys are addresses.
#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        let m = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = m ^ (m >> 29);
    }
}

type Map<V> = HashMap<u64, V, BuildHasherDefault<Mix>>;

/// The cache.
pub(crate) struct Cache {
    chunks: Vec<Box<[Cellule]>>,
    used: usize,
    blocks: Vec<Block>,
    table: Map<u32>,
    pages: Map<PageCode>,
    max_chunks: usize,
    /// Blocks made stale so far.
    pub invalidations: u64,
}

// SAFETY: the pointers are into the cache's own chunks.
unsafe impl Send for Cache {}

/// What invalidating did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// No block was hit.
    Nothing,
    /// Blocks were hit.
    Some,
    /// The page has no blocks any more.
    Page,
}

fn stale(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.rip = op.rip(cpu);
    Flow::Stale
}

impl Cache {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Cache {
            chunks: Vec::new(),
            used: CHUNK,
            blocks: Vec::new(),
            table: Map::default(),
            pages: Map::default(),
            max_chunks: (max_bytes / (CHUNK * size_of::<Cellule>())).max(2),
            invalidations: 0,
        }
    }

    /// True if the next block may not fit; then [`Cache::empty`] it, outside of any chain.
    pub(crate) fn full(&self) -> bool {
        self.chunks.len() >= self.max_chunks && self.used + MAX_CELLS > CHUNK
    }

    /// Drops every block. The caller drops every link and jump cache entry.
    pub(crate) fn empty(&mut self) {
        self.chunks.truncate(1);
        self.used = if self.chunks.is_empty() { CHUNK } else { 0 };
        self.blocks.clear();
        self.table.clear();
        self.pages.clear();
    }

    /// The valid block with this key.
    pub(crate) fn find(&self, key: u64) -> Option<(OpPtr, Option<u64>)> {
        let block = &self.blocks[*self.table.get(&key)? as usize];
        block.valid.then_some((block.start, block.second))
    }

    /// Adds a block that was decoded from `gpa`.
    pub(crate) fn insert(&mut self, key: u64, gpa: u64, draft: &Draft) -> OpPtr {
        let cells = draft.cells.len();
        let known = self.table.get(&key).copied();
        let index = match known {
            Some(i) if usize::from(self.blocks[i as usize].room) >= cells => i,
            _ => {
                let room = cells.next_multiple_of(4);
                let start = self.take(room);
                let index = self.blocks.len() as u32;
                self.blocks.push(Block {
                    key,
                    start,
                    cells: 0,
                    room: room as u16,
                    gpa,
                    bytes: 0,
                    second: None,
                    slots: 0,
                    valid: false,
                });
                self.table.insert(key, index);
                index
            }
        };
        self.detach(index);
        let block = &mut self.blocks[index as usize];
        debug_assert_eq!(block.key, key);
        block.cells = cells as u16;
        block.bytes = draft.bytes;
        block.second = draft.second;
        block.slots = 0;
        block.valid = true;
        for (i, cell) in draft.cells.iter().enumerate() {
            let cell = match cell {
                Some(op) => Cellule { op: ManuallyDrop::new(op.clone()) },
                None => {
                    block.slots |= 1 << i;
                    let slot = Slot {
                        to: Cell::new(None),
                        tag: Cell::new(0),
                        from: Cell::new(0),
                        page: Cell::new(0),
                    };
                    Cellule { slot: ManuallyDrop::new(slot) }
                }
            };
            // SAFETY: `take` gave `room` cells from `start` on to this block, and cells <= room.
            unsafe { block.start.0.as_ptr().add(i).write(cell) };
        }
        let start = block.start;
        for page in [Some(gpa >> PAGE_SHIFT), draft.second.map(|g| g >> PAGE_SHIFT)].into_iter().flatten() {
            let code = self.pages.entry(page).or_default();
            code.writes = 0;
            code.blocks.push(index);
        }
        start
    }

    fn take(&mut self, cells: usize) -> OpPtr {
        if self.used + cells > CHUNK {
            let blank = || Cellule {
                slot: ManuallyDrop::new(Slot {
                    to: Cell::new(None),
                    tag: Cell::new(0),
                    from: Cell::new(0),
                    page: Cell::new(0),
                }),
            };
            self.chunks.push((0..CHUNK).map(|_| blank()).collect());
            self.used = 0;
        }
        let at = self.used;
        self.used += cells;
        // The chunk was pushed above or before; `used` is only below CHUNK if there is one.
        let chunk = self.chunks.last_mut().map_or(std::ptr::null_mut(), |c| c.as_mut_ptr());
        // SAFETY: `at + cells` is within the chunk, which is never moved: only its box is.
        OpPtr(unsafe { NonNull::new_unchecked(chunk.add(at)) })
    }

    /// Takes a block off the lists of its pages.
    fn detach(&mut self, index: u32) {
        let (gpa, second) = (self.blocks[index as usize].gpa, self.blocks[index as usize].second);
        for page in [Some(gpa >> PAGE_SHIFT), second.map(|g| g >> PAGE_SHIFT)].into_iter().flatten() {
            if let Some(code) = self.pages.get_mut(&page) {
                code.blocks.retain(|i| *i != index);
            }
        }
    }

    fn kill(&mut self, index: u32) {
        let block = &mut self.blocks[index as usize];
        if !block.valid {
            return;
        }
        block.valid = false;
        self.invalidations += 1;
        for i in 0..usize::from(block.cells) {
            if block.slots >> i & 1 == 0 {
                // SAFETY: the block's own cells; `insert` wrote an op there. The handler is in a Cell.
                unsafe { (*block.start.0.as_ptr().add(i).cast::<Op>()).run.set(stale) };
            }
        }
    }

    /// Code at `gpa` (in one page) has been overwritten. `whole` gives up on the page as a whole.
    pub(crate) fn invalidate(&mut self, gpa: u64, len: u64, whole: bool) -> Gone {
        let page = gpa >> PAGE_SHIFT;
        let Some(code) = self.pages.get_mut(&page) else { return Gone::Page };
        code.writes += 1;
        let whole = whole || code.writes > 16;
        let blocks = std::mem::take(&mut code.blocks);
        let (mut kept, mut hit) = (Vec::with_capacity(blocks.len()), false);
        for i in blocks {
            let b = &self.blocks[i as usize];
            let (from, to) = match b.second {
                Some(second) if second >> PAGE_SHIFT == page => (second, second + 16),
                _ => (b.gpa, b.gpa + b.bytes),
            };
            if whole || (gpa < to && from < gpa + len) {
                hit = true;
                self.kill(i);
            } else {
                kept.push(i);
            }
        }
        let blocks = kept;
        if blocks.is_empty() {
            self.pages.remove(&page);
            return Gone::Page;
        }
        if let Some(code) = self.pages.get_mut(&page) {
            code.blocks = blocks;
        }
        if hit { Gone::Some } else { Gone::Nothing }
    }

    /// A page whose decoded code is not wanted any more.
    pub(crate) fn invalidate_all(&mut self) {
        for i in 0..self.blocks.len() as u32 {
            self.kill(i);
        }
        self.pages.clear();
    }
}
