//! bzImage kernels, by the 64-bit boot protocol (Linux's Documentation/arch/x86/boot.rst).

use super::{Entry, LoadError, layout};
use crate::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

/// Offsets into the file (and into boot_params).
const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// XLF_KERNEL_64: there is a 64-bit entry 0x200 bytes into the kernel.
const KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;

pub(super) fn is(image: &[u8]) -> bool {
    image.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

pub(super) fn load(ram: &GuestRam, image: &[u8]) -> Result<(Entry, u64), LoadError> {
    let bad = |what: &str| LoadError::Image(what.into());
    // The header's last field that we read is init_size.
    let header = image.get(..INIT_SIZE + 4).ok_or_else(|| bad("the bzImage is cut short"))?;
    let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let version = word(VERSION);
    if version < 0x20c || word(XLOADFLAGS) & KERNEL_64 == 0 {
        return Err(bad(
            "a bzImage without the 64-bit entry (boot protocol 2.12): it must be a 64-bit kernel of Linux 3.8 or later",
        ));
    }
    let sectors = match header[SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let setup = (sectors + 1) * 512;
    let kernel = image.get(setup..).filter(|k| k.len() > ENTRY_64 as usize);
    let kernel = kernel.ok_or_else(|| bad("the bzImage is cut short"))?;
    let mut long = [0; 8];
    long.copy_from_slice(&header[PREF_ADDRESS..PREF_ADDRESS + 8]);
    let preferred = u64::from_le_bytes(long);
    let mut int = [0; 4];
    int.copy_from_slice(&header[INIT_SIZE..INIT_SIZE + 4]);
    let init_size = u64::from(u32::from_le_bytes(int));
    let need = init_size.max(kernel.len() as u64);
    // It unpacks itself to where it prefers to be, if it is loaded below; loaded there it moves out of its own way.
    let at = preferred.max(layout::KERNEL);
    let room = || LoadError::Room { what: "the kernel".into(), gpa: at, len: need };
    let end = at.checked_add(need).ok_or_else(room)?;
    ram.write_slice(kernel, GuestAddress(at)).map_err(|_| room())?;
    ram.read_slice(&mut [0], GuestAddress(end - 1)).map_err(|_| room())?;
    // From setup_sects to the end of the header: 0x202 plus the jump's distance.
    let header_end = 0x202 + usize::from(image[0x201]);
    let header = image.get(SETUP_SECTS..header_end).ok_or_else(|| bad("its setup header is malformed"))?;
    Ok((Entry::Linux(at + ENTRY_64, Some(header.to_vec())), end))
}
