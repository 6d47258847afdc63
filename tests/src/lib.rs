//! End-to-end tests, their harness, the conformance suite, vectors, fuzzing and benches.

pub mod certificates;
pub mod conformance;
pub mod harness;
pub mod oracle;
pub mod syscalls;
pub mod system;
