//! Guest RAM some of whose pages are still elsewhere: who touches one waits until it has been put there (userfaultfd).
//!
//! Used by the receiving end of a postcopy migration. The kernel stops any thread of this process that touches a missing page,
//! guest code and devices alike, also inside a system call; [`Missing::next`] names the page, [`Missing::put`] and
//! [`Missing::zero`] let it go on.

use super::uffd::{FEATURE_MISSING_SHMEM, open, register};
use super::{GuestRam, PAGE_SIZE, Run, SharedRam};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}
#[repr(C)]
struct Zeropage {
    range: Range,
    mode: u64,
    zeroed: i64,
}

const TYPE: u8 = 0xaa;
const UNREGISTER: Opcode = opcode::read::<Range>(TYPE, 1);
const COPY: Opcode = opcode::read_write::<Copy>(TYPE, 3);
const ZEROPAGE: Opcode = opcode::read_write::<Zeropage>(TYPE, 4);
const EVENT_PAGEFAULT: u8 = 0x12;
/// Bytes of one message, and where the address lies in it.
const MESSAGE: usize = 32;
const ADDRESS: usize = 16;

fn call<const OPCODE: Opcode, T>(fd: &OwnedFd, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: the opcodes of this file go with the structs that they were made from, which the kernel reads and writes.
    unsafe { ioctl(fd, Updater::<OPCODE, T>::new(argument)) }
}

fn explained(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::InvalidInput => "this kernel's userfaultfd does not serve shared memory".into(),
        io::ErrorKind::Unsupported => "this kernel has no userfaultfd".into(),
        _ => format!("userfaultfd is not permitted: {e}"),
    }
}

/// Whether pages of guest memory may come later on this host.
///
/// # Errors
/// Why not.
pub fn missing_is_possible() -> Result<(), String> {
    let page = rustix::param::page_size() as u64;
    if page != PAGE_SIZE {
        return Err(format!(
            "pages of {page} bytes on this host cannot come one by one, only of {PAGE_SIZE}"
        ));
    }
    open(FEATURE_MISSING_SHMEM).map(drop).map_err(|e| explained(&e))
}

/// Guest RAM with missing pages. Dropping it makes every missing page zero: nobody may run the guest then.
#[derive(Debug)]
pub struct Missing {
    fd: OwnedFd,
    ram: GuestRam,
}

impl Missing {
    /// From here on every page of `ram` that is in `absent`, or was never written, is missing.
    ///
    /// # Errors
    /// The memory is not one of which pages can be missing, or the host refuses.
    pub fn begin(ram: &GuestRam, absent: impl Iterator<Item = Run>) -> Result<Self, String> {
        let shared = SharedRam::of(ram)?;
        let place = |run: Run| {
            let inside = |(region, _): &&(super::Region, u64)| {
                run.gpa() >= region.gpa && run.gpa() + run.len() <= region.gpa + region.len
            };
            shared.pieces.iter().find(inside).map(|(region, at)| at + (run.gpa() - region.gpa))
        };
        for run in absent {
            let at = place(run).ok_or("a page outside of guest memory")?;
            fallocate(&shared.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, run.len())
                .map_err(|e| format!("pages could not be given back: {e}"))?;
            // A hole in a huge page may have been filled with zeros instead.
            match seek(&shared.file, SeekFrom::Data(at)) {
                Ok(data) if data < at + run.len() => {
                    return Err("pages of guest memory could not be given back: huge pages".into());
                }
                _ => {}
            }
        }
        let fd = open(FEATURE_MISSING_SHMEM).map_err(|e| explained(&e))?;
        register(&fd, ram).map_err(|e| format!("userfaultfd: {e}"))?;
        Ok(Missing { fd, ram: ram.clone() })
    }

    /// The next page that somebody waits for; `None`: nobody does. Once a page may come several times.
    ///
    /// # Errors
    /// The host's.
    pub fn next(&self) -> io::Result<Option<u64>> {
        loop {
            let mut message = [0u8; MESSAGE];
            match rustix::io::read(&self.fd, &mut message) {
                Ok(MESSAGE) if message[0] == EVENT_PAGEFAULT => {
                    let address = message[ADDRESS..ADDRESS + 8].try_into().unwrap_or_default();
                    if let Some(gpa) = self.guest_address(u64::from_ne_bytes(address)) {
                        return Ok(Some(gpa / PAGE_SIZE));
                    }
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn guest_address(&self, host: u64) -> Option<u64> {
        self.ram.iter().find_map(|r| {
            let offset = host.checked_sub(r.as_ptr() as u64)?;
            (offset < r.len()).then(|| r.start_addr().0 + offset)
        })
    }

    fn host_address(&self, gpa: u64, len: u64) -> io::Result<u64> {
        self.ram
            .iter()
            .find_map(|r| {
                let offset = gpa.checked_sub(r.start_addr().0)?;
                (offset.checked_add(len)? <= r.len()).then(|| r.as_ptr() as u64 + offset)
            })
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not guest memory"))
    }

    /// Does `step` (from, length: bytes done) until all of `len` is done; pages that are there already stay as they are.
    fn each(len: u64, mut step: impl FnMut(u64, u64) -> (Result<(), Errno>, i64)) -> io::Result<()> {
        let mut at = 0;
        while at < len {
            let (result, done) = step(at, len - at);
            at += u64::try_from(done).unwrap_or(0);
            match result {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::EXIST) => at += PAGE_SIZE,
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Puts whole pages from guest-physical `gpa` on there, and lets who waits for them go on. Pages that are there stay.
    ///
    /// # Errors
    /// The host's, or the range is not guest memory.
    pub fn put(&self, gpa: u64, pages: &[u8]) -> io::Result<()> {
        let to = self.host_address(gpa, pages.len() as u64)?;
        Self::each(pages.len() as u64, |at, len| {
            let src = pages[at as usize..].as_ptr() as u64;
            let mut copy = Copy { dst: to + at, src, len, mode: 0, copied: 0 };
            (call::<COPY, _>(&self.fd, &mut copy), copy.copied)
        })
    }

    /// The same with zeros.
    ///
    /// # Errors
    /// As for [`Missing::put`].
    pub fn zero(&self, gpa: u64, len: u64) -> io::Result<()> {
        let to = self.host_address(gpa, len)?;
        Self::each(len, |at, len| {
            let mut zero = Zeropage { range: Range { start: to + at, len }, mode: 0, zeroed: 0 };
            (call::<ZEROPAGE, _>(&self.fd, &mut zero), zero.zeroed)
        })
    }

    /// All pages are there: from here on what was never written is zero, as in any memory.
    ///
    /// # Errors
    /// The host's.
    pub fn end(&self) -> io::Result<()> {
        for region in self.ram.iter() {
            let mut range = Range { start: region.as_ptr() as u64, len: region.len() };
            call::<UNREGISTER, _>(&self.fd, &mut range)?;
            region.bitmap().set_filled_on_touch(false);
        }
        Ok(())
    }
}

impl AsFd for Missing {
    /// Readable when somebody waits for a page.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ram::{Backing, allocate};
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn who_touches_a_missing_page_waits_for_it() {
        let name = "who_touches_a_missing_page_waits_for_it";
        if let Err(why) = missing_is_possible() {
            return println!("SKIPPED {name}: {why}");
        }
        let ram = allocate(4 << 20, &Backing::Shared).unwrap();
        ram.write_slice(&[1; 3 * PAGE_SIZE as usize], GuestAddress(0)).unwrap();
        let missing = Missing::begin(&ram, [Run { page: 1, count: 1 }].into_iter()).unwrap();
        assert_eq!(missing.next().unwrap(), None);
        let reader = ram.clone();
        let guest = std::thread::spawn(move || {
            let mut seen = vec![0; 5 * PAGE_SIZE as usize];
            reader.read_slice(&mut seen, GuestAddress(0)).unwrap();
            seen
        });
        let mut asked = Vec::new();
        while !guest.is_finished() {
            match missing.next().unwrap() {
                Some(page @ 1) => {
                    asked.push(page);
                    // What is there already (pages 0 and 2) is left alone.
                    missing.put(0, &[7; 3 * PAGE_SIZE as usize]).unwrap();
                }
                Some(page) => {
                    asked.push(page);
                    missing.zero(page * PAGE_SIZE, PAGE_SIZE).unwrap();
                }
                None => std::thread::yield_now(),
            }
        }
        let seen = guest.join().unwrap();
        let firsts: Vec<_> = seen.chunks(PAGE_SIZE as usize).map(|p| p[0]).collect();
        assert_eq!(firsts, [1, 7, 1, 0, 0]);
        assert_eq!(asked, [1, 3, 4]);
        assert!(missing.put(4 << 20, &[0; PAGE_SIZE as usize]).is_err());
        missing.end().unwrap();
        let mut last = [9];
        ram.read_slice(&mut last, GuestAddress((4 << 20) - 1)).unwrap();
        assert_eq!(last, [0]);
    }
}
