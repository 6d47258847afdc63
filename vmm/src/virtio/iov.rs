//! Vectored I/O straight between files and guest memory: the one place of this room that hands out guest pointers.

use super::{Ram, Segments};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemory, Permissions};

/// Most bytes in one call; a host's limit is INT_MAX rounded down to its pages.
const MAX_IO: u64 = 1 << 30;

fn check(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Runs `call` on I/O vectors that cover `len` bytes of `segments` from `offset` on. What it says it wrote into
/// them (`device_writes`) is marked dirty.
fn with_vectors(
    mem: &Ram,
    segments: &Segments,
    (offset, len): (u64, u64),
    device_writes: bool,
    call: impl FnOnce(&[libc::iovec]) -> libc::ssize_t,
) -> io::Result<usize> {
    let mut pieces = segments.range(offset, len.min(MAX_IO));
    if let (Some((addr, piece)), None) = (pieces.next(), pieces.next())
        && let Some(slice) = mem.slice(addr, piece)
    {
        // Nearly always: without the lists that follow.
        let guard = slice.ptr_guard_mut();
        let done = check(call(&[libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }]));
        if device_writes {
            slice.bitmap().mark_dirty(0, *done.as_ref().unwrap_or(&0));
        }
        return done;
    }
    let access = if device_writes { Permissions::Write } else { Permissions::Read };
    let mut slices = Vec::with_capacity(16);
    for (addr, piece) in segments.range(offset, len.min(MAX_IO)) {
        let found = mem.get_slices(addr, piece, access).map_err(io::Error::other)?;
        for slice in found {
            slices.push(slice.map_err(io::Error::other)?);
        }
    }
    slices.truncate(super::queue::MAX_DESCRIPTORS);
    let guards: Vec<_> = slices.iter().map(|s| s.ptr_guard_mut()).collect();
    let vectors: Vec<_> =
        guards.iter().map(|g| libc::iovec { iov_base: g.as_ptr().cast(), iov_len: g.len() }).collect();
    let done = check(call(&vectors));
    if device_writes {
        let mut left = *done.as_ref().unwrap_or(&0);
        for slice in &slices {
            let part = left.min(slice.len());
            slice.bitmap().mark_dirty(0, part);
            left -= part;
        }
    }
    done
}

fn repeat(len: u64, mut step: impl FnMut(u64) -> io::Result<usize>) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        match step(done) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Fills `len` bytes of `segments` from `file` at `position`.
///
/// # Errors
/// The file's; end of file before `len` bytes is one.
pub(super) fn read_at(
    file: BorrowedFd<'_>,
    position: u64,
    mem: &Ram,
    segments: &Segments,
    len: u64,
) -> io::Result<()> {
    repeat(len, |done| {
        with_vectors(mem, segments, (done, len - done), true, |v| {
            // SAFETY: the vectors are memory of `mem`'s mappings, which outlive the call; nothing in this process
            // holds a reference into them. `v.len()` is at most MAX_DESCRIPTORS.
            unsafe {
                libc::preadv64(file.as_raw_fd(), v.as_ptr(), v.len() as _, position.wrapping_add(done) as _)
            }
        })
    })
}

/// Writes `len` bytes of `segments` to `file` at `position`.
///
/// # Errors
/// The file's.
pub(super) fn write_at(
    file: BorrowedFd<'_>,
    position: u64,
    mem: &Ram,
    segments: &Segments,
    len: u64,
) -> io::Result<()> {
    repeat(len, |done| {
        with_vectors(mem, segments, (done, len - done), false, |v| {
            // SAFETY: as in `read_at`; the kernel only reads.
            unsafe {
                libc::pwritev64(file.as_raw_fd(), v.as_ptr(), v.len() as _, position.wrapping_add(done) as _)
            }
        })
    })
}

/// Writes all of `segments` to a packet device in one call.
///
/// # Errors
/// The device's.
pub(super) fn write_once(file: BorrowedFd<'_>, mem: &Ram, segments: &Segments) -> io::Result<usize> {
    with_vectors(mem, segments, (0, segments.len()), false, |v| {
        // SAFETY: as in `write_at`.
        unsafe { libc::writev(file.as_raw_fd(), v.as_ptr(), v.len() as _) }
    })
}
