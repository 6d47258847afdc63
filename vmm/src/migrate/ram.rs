//! Guest RAM as a migration reads and fills it.

use super::machine::{Fault, Memory};
use crate::memory::WriteTracker;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

impl Memory for GuestMemoryMmap<WriteTracker> {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Fault> {
        Ok(self.read_slice(buf, GuestAddress(gpa))?)
    }

    fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Fault> {
        Ok(self.write_slice(bytes, GuestAddress(gpa))?)
    }

    fn zero(&self, gpa: u64, len: u64) -> Result<(), Fault> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut at = 0;
        while at < len {
            let part = (len - at).min(ZEROS.len() as u64);
            self.write_slice(&ZEROS[..part as usize], GuestAddress(gpa + at))?;
            at += part;
        }
        Ok(())
    }
}
