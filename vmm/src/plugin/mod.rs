//! CPU backends as plugins: finding, checking and loading their libraries, and safe handles over the C contract.
//!
//! Used by `machine` (to make VMs) and `cli` (to choose a backend). Nobody else sees the contract's tables.
//!
//! ```text
//!   discover ──path──► trust ──file──► load ──table──► Plugin ──► BackendVm ──► BackendVcpu
//!                                                                   │ callbacks
//!                                                      host: impl Host ◄──┘  (machine's buses)
//! ```
//!
//! **Architecture Invariant:** nothing here or above decides by a backend's name, except to do what the user asked.

mod discover;
mod host;
mod load;
pub mod trust;
mod vm;

pub use discover::{Candidate, Choice, candidates, choose, named};
pub use host::Host;
pub use load::{Descriptor, Plugin, PluginError, Probe};
pub use vm::{BackendError, BackendVcpu, BackendVm, Exit, Kicker, MsiRoute, VmConfig, WeakVm};
