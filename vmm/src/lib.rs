//! Godwit's VMM: everything but the CPU.
//!
//! One folder a capability; which may use which is checked by `tests/tests/architecture.rs`:
//!
//! ```text
//!   cli, api ─► control ─► machine, snapshot, migrate, mmds
//!                snapshot, migrate ─► machine, state
//!                             mmds ─► virtio
//!                          machine ─► board, virtio, memory, plugin, state
//!                    board, virtio ─► memory, state
//! ```

// First: it shadows the standard print macros for all that follows.
#[macro_use]
mod term;

pub mod api;
pub mod board;
pub mod cli;
pub mod config;
pub mod control;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod machine;
pub mod memory;
pub mod migrate;
pub mod mmds;
pub mod plugin;
pub mod sandbox;
pub mod snapshot;
pub mod state;
pub mod virtio;
