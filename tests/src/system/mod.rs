//! System instructions, one vector a line: `tests/vectors/system.txt`, what runs it, and what came of it as text.
//!
//! A bare-metal guest ([`guest`]) starts one vector after another and says over its serial port what each came to. The same
//! image runs on the interpreter and under QEMU.

pub mod guest;
pub mod image;
pub mod layout;
pub mod outcome;
pub mod run;
pub mod vector;
