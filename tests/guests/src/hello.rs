//! The guest that says hello from ring 0, with as few instructions before the first byte as can
//! be: benches of start-up time boot it.

use crate::elf::{self, Segment};
use crate::kernel::{self, Config};
use crate::layout::KERNEL;
use iced_x86::IcedError;

/// What it prints.
pub const TEXT: &str = "Hello from Godwit guest\n";

pub(crate) fn build() -> Result<Vec<u8>, IcedError> {
    let kernel = kernel::build(&Config {
        print_and_reset: Some(TEXT),
        ticks_per_second: 100,
        bench: false,
        xsave: false,
        smp: false,
    })?;
    let segment = Segment { gpa: KERNEL, bytes: kernel.bytes, executable: true };
    Ok(elf::write(&[segment], kernel.entry64, kernel.entry32))
}
