//! Guest memory: where it is mapped, who wrote which page, and telling the CPU backend of device writes.
//!
//! Devices and boot code write through [`GuestRam`]; every such write passes [`WriteTracker::mark_dirty`], the one
//! place that keeps the VMM's own dirty bits and invalidates decoded code. Nobody forms a reference into guest
//! memory: copy, or go through `vm-memory`'s volatile types.
//!
//! **Byte order**: `vm-memory` stores integers in the host's order. Use `Le16`/`Le32`/`Le64` or explicit
//! `to_le_bytes`; a bare `write_obj(u32)` is a bug.

mod missing;
mod pages;
pub mod ram;
mod shared;
mod touched;
mod tracker;
mod uffd;

pub use missing::{Missing, missing_is_possible};
pub use pages::{MAX_REGIONS, PageSet, Region, Run, regions_are_sound};
pub use shared::{Deed, SharedRam};
pub use touched::untouched;
pub use tracker::{DirtyPages, TrackedSlice, WriteObserver, WriteTracker};
pub use uffd::FaultHandle;

/// The guest's address space. Cheap to clone (`Arc` inside).
pub type GuestRam = std::sync::Arc<vm_memory::GuestMemoryMmap<WriteTracker>>;

/// Guest page size in bytes: what dirty logs count, whatever the host's page size is.
pub const PAGE_SIZE: u64 = godwit_abi::GUEST_PAGE_SIZE;

/// Zeros to write or to compare with: one copy of them, since a constant of zeros is as long in the program's file.
pub static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// A page of [`ZEROS`].
#[must_use]
pub fn zero_page() -> &'static [u8] {
    &ZEROS[..PAGE_SIZE as usize]
}
