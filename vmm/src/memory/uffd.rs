//! Guest memory that another process fills: page faults go to it by `userfaultfd(2)`.
//!
//! Called by `snapshot`, which gives the descriptor to that process. The kernel holds a thread that touches a missing page,
//! also one inside KVM or a system call, until the other process has put the page there.

use super::GuestRam;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

const API: u64 = 0xaa;
/// The other process is told of pages that the balloon gives back: from then on they are zero.
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
/// Missing pages of shared memory are reported too.
pub(super) const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1;

#[repr(C)]
struct Handshake {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// Where page faults of guest memory are read and answered. Pages that are missing when the last copy of it is closed are
/// zero from then on, so it must live as long as the memory.
#[derive(Debug)]
pub struct FaultHandle(OwnedFd);

impl FaultHandle {
    /// Has the kernel report every first touch of `ram`'s pages here.
    ///
    /// # Errors
    /// The kernel has no userfaultfd, or does not let this process use it for faults inside the kernel.
    pub fn new(ram: &GuestRam) -> io::Result<Self> {
        let fd = open(FEATURE_EVENT_REMOVE)?;
        register(&fd, ram)?;
        Ok(FaultHandle(fd))
    }
}

impl AsFd for FaultHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A userfaultfd with these features.
pub(super) fn open(features: u64) -> io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: a descriptor without registered ranges changes nothing.
    let fd = match unsafe { userfaultfd(flags) } {
        Ok(fd) => fd,
        // Whoever may not make the system call may have been given the device: a jail's way.
        Err(Errno::PERM) => {
            let device = File::options().read(true).write(true).open("/dev/userfaultfd").map_err(|e| {
                let why = "needs CAP_SYS_PTRACE, or /dev/userfaultfd, or vm.unprivileged_userfaultfd = 1";
                io::Error::new(e.kind(), format!("{why}: {e}"))
            })?;
            new_from(&device, flags)?
        }
        Err(e) => return Err(e.into()),
    };
    let mut handshake = Handshake { api: API, features, ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one such struct.
    unsafe {
        const REQUEST: Opcode = opcode::read_write::<Handshake>(0xaa, 0x3f);
        ioctl(&fd, Updater::<REQUEST, Handshake>::new(&mut handshake))?;
    }
    Ok(fd)
}

/// From here on every first touch of `ram`'s pages is reported to `fd`, and what was never touched is not known to be zero.
pub(super) fn register(fd: &OwnedFd, ram: &GuestRam) -> io::Result<()> {
    for region in ram.iter() {
        let mut register =
            Register { start: region.as_ptr() as u64, len: region.len(), mode: MODE_MISSING, ioctls: 0 };
        // SAFETY: UFFDIO_REGISTER reads and writes one such struct; the range is memory of guest RAM, which nobody
        // refers to, so that any bytes may appear in it.
        unsafe {
            const REQUEST: Opcode = opcode::read_write::<Register>(0xaa, 0);
            ioctl(fd, Updater::<REQUEST, Register>::new(&mut register))?;
        }
        region.bitmap().set_filled_on_touch(true);
    }
    Ok(())
}

/// USERFAULTFD_IOC_NEW: a new descriptor as the return value.
fn new_from(device: &File, flags: UserfaultfdFlags) -> io::Result<OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd};
    const REQUEST: Opcode = opcode::none(0xaa, 0);
    // SAFETY: the request takes its flags by value and returns a new descriptor.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), REQUEST as _, flags.bits() as libc::c_ulong) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
