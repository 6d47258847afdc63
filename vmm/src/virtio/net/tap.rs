//! The host's TAP interface, with virtio's own packet header.

use super::{HEADER, NetError, bits};
use crate::virtio::{Ram, Segments, iov};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// An open TAP.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    name: String,
}

/// A request for the interface `name`.
fn request_for(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data; all zeros is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// One ioctl whose argument is a pointer to `arg`.
fn ioctl_ptr<T>(file: &File, request: libc::Ioctl, arg: &T) -> io::Result<()> {
    // SAFETY: every request passed here reads a `T` through the pointer and keeps nothing of it.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_ref(arg)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Tap {
    pub(super) fn open(id: &str, name: &str) -> Result<Self, NetError> {
        let error = |source| NetError::Tap { id: id.into(), name: name.into(), source };
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.bytes().any(|b| b == 0) {
            return Err(error(io::ErrorKind::InvalidInput.into()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(error)?;
        let mut request = request_for(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        ioctl_ptr(&file, libc::TUNSETIFF, &request).map_err(error)?;
        ioctl_ptr(&file, libc::TUNSETVNETHDRSZ, &(HEADER as libc::c_int)).map_err(error)?;
        if cfg!(target_endian = "big") {
            ioctl_ptr(&file, libc::TUNSETVNETLE, &(1 as libc::c_int)).map_err(error)?;
        }
        let tap = Tap { file, name: name.into() };
        tap.set_offloads(0).map_err(error)?;
        Ok(tap)
    }

    /// What the kernel may leave undone in frames for the guest, by the features that the driver took.
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        let map = [
            (bits::GUEST_CSUM, libc::TUN_F_CSUM),
            (bits::GUEST_TSO4, libc::TUN_F_TSO4),
            (bits::GUEST_TSO6, libc::TUN_F_TSO6),
        ];
        // TSO without checksums does not exist.
        let flags = if features & bits::GUEST_CSUM == 0 {
            0
        } else {
            map.iter().filter(|(bit, _)| features & bit != 0).fold(0, |all, (_, flag)| all | flag)
        };
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Whether frames go through, as far as the host can tell. The kernel may take a second to let an interface that was
    /// just opened take part (its link-watch work is rate-limited), and a bridge drops what comes before.
    pub(super) fn is_up(&self) -> bool {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        let Ok(any) = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None) else {
            return true;
        };
        let mut request = request_for(&self.name);
        // SAFETY: SIOCGIFFLAGS reads the name in the ifreq and writes its flags.
        if unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
            return true;
        }
        // SAFETY: all bytes of the union are initialised.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        // One that nobody has switched on will not come up by itself.
        flags & libc::IFF_UP == 0 || flags & libc::IFF_RUNNING != 0
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Reads a packet, header first, into `buf`.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }

    /// Sends a packet, header first, straight from guest memory.
    pub(super) fn write(&mut self, mem: &Ram, packet: &Segments) -> io::Result<()> {
        iov::write_once(self.file.as_fd(), mem, packet).map(drop)
    }

    /// Sends a packet of our own.
    pub(super) fn write_bytes(&mut self, packet: &[u8]) -> io::Result<()> {
        io::Write::write(&mut self.file, packet).map(drop)
    }
}
