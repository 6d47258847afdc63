//! Memory and data to work on, and how a sum of it is printed: for the bench and the virtio programs.

use crate::rt::Out;

/// 64 MiB mapped in 4 KiB pages.
pub const ARENA: *mut u8 = 0x100_0000 as *mut u8;

/// A xorshift generator: data that no compiler can foresee.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

impl Out {
    pub fn hex(&mut self, value: u64) -> &mut Self {
        self.digits(value, 16, 16)
    }
}
