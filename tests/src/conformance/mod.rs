//! The conformance suite: what every CPU backend must do, written against the C table of its library.
//!
//! `tests/tests/conformance.rs` runs the cases over each plugin. [`plugin`] loads one, [`rig`] is a VM of it with memory and a
//! [`board::Board`] that records what the guest does, [`code`] assembles the guests. The cases are in `cases/`, a file a topic.
//!
//! Guest code is kept to what every KVM runs, also one that emulates ring 0: integer instructions, port and memory I/O,
//! interrupts, `iretq`.

pub mod board;
pub mod cases;
pub mod code;
pub mod plugin;
pub mod rig;
