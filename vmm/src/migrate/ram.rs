//! Guest RAM as a migration reads and fills it.

use super::machine::Fault;
use crate::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

/// Copies guest RAM out; the guest may be writing it.
///
/// # Errors
/// The range is not guest memory.
pub fn read(ram: &GuestRam, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
    Ok(ram.read_slice(buf, GuestAddress(gpa))?)
}

/// Puts bytes of a migration into guest RAM.
///
/// # Errors
/// The range is not guest memory.
pub fn write(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), Fault> {
    Ok(ram.write_slice(bytes, GuestAddress(gpa))?)
}

/// Makes guest RAM zero.
///
/// # Errors
/// The range is not guest memory.
pub fn zero(ram: &GuestRam, gpa: u64, len: u64) -> Result<(), Fault> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = 0;
    while at < len {
        let part = (len - at).min(ZEROS.len() as u64);
        ram.write_slice(&ZEROS[..part as usize], GuestAddress(gpa + at))?;
        at += part;
    }
    Ok(())
}
