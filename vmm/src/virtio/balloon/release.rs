//! Gives guest memory back to the host. It stays mapped, and reads as zeros (or as the file it came from) when the
//! guest touches it again.

use crate::virtio::Ram;
use rustix::mm::{Advice, madvise};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions};

/// Releases the whole host pages within `len` bytes at `addr`; what is not RAM is left alone.
pub(super) fn release(mem: &Ram, addr: u64, len: u64) {
    let page = rustix::param::page_size();
    let Ok(slices) = GuestMemory::get_slices(mem, GuestAddress(addr), len as usize, Permissions::Write)
    else {
        return;
    };
    let mut at = addr;
    for slice in slices.map_while(Result::ok) {
        let in_file = mem.find_region(GuestAddress(at)).is_some_and(|r| r.file_offset().is_some());
        at += slice.len() as u64;
        let guard = slice.ptr_guard_mut();
        let start = guard.as_ptr() as usize;
        let skip = start.next_multiple_of(page) - start;
        let Some(whole) = slice.len().checked_sub(skip).map(|n| n - n % page).filter(|n| *n > 0) else {
            continue;
        };
        let ptr = guard.as_ptr().wrapping_add(skip).cast();
        // SAFETY: the range is whole pages inside one of the guest's mappings, which stays mapped; nothing in this
        // process refers to guest memory by reference, and the guest has said that it does not need the contents.
        let removed = in_file && unsafe { madvise(ptr, whole, Advice::LinuxRemove) }.is_ok();
        if !removed {
            // SAFETY: as above.
            if let Err(e) = unsafe { madvise(ptr, whole, Advice::LinuxDontNeed) } {
                tracing::debug!("balloon: {whole:#x} bytes not released: {e}");
                continue;
            }
        }
        // The contents have changed: a running migration must look again.
        slice.bitmap().mark_dirty(skip, whole);
    }
}
