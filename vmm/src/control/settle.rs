//! A guest runs, and this program's own start is over: its code is let go of.
//!
//! Called by `control` when it has had nothing to do for a moment. Starting touches most of the program and of its libraries; the guest
//! needs little of that again. What is needed comes back from the page cache, where it stays.

#![allow(unsafe_code)]

/// Gives up the pages of code and constants that are as in their files.
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
pub(super) fn let_go_of_code() {
    // SAFETY: `object` is called while this runs, and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(object), std::ptr::null_mut()) };
}

/// Elsewhere an emulator may stand between this and the kernel.
#[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
pub(super) fn let_go_of_code() {}

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
unsafe extern "C" fn object(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    let page = rustix::param::page_size() as u64;
    // SAFETY: the loader's own description of an object, valid for this call.
    let (base, headers) = unsafe {
        let info = &*info;
        if info.dlpi_phdr.is_null() {
            return 0;
        }
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    let is_file = headers.iter().any(|h| h.p_type == libc::PT_GNU_RELRO);
    for h in headers.iter().filter(|h| is_file && h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0) {
        // Whole pages only: the others may be a neighbour's too.
        let start = (base + h.p_vaddr).next_multiple_of(page);
        let end = (base + h.p_vaddr + h.p_filesz) / page * page;
        if start < end {
            // SAFETY: a mapping of a file that is never written to: the same bytes are there again when they are looked at.
            unsafe { libc::madvise(start as *mut libc::c_void, (end - start) as usize, libc::MADV_DONTNEED) };
        }
    }
    0
}
