//! Live migration: one framed protocol, one typed state machine a side.
//!
//! Called by `control` (a guest leaves) and by `godwit receive` (one arrives). This module moves bytes and keeps
//! promises; it does not know what a page or a section means, nor what a machine is beyond the traits in [`machine`].
//! `docs/MIGRATION-PROTOCOL.md` describes the wire.
//!
//! The promise: **never two, never none.** Before the commit any failure leaves the guest running at the source. The
//! destination is ready only when the state is verified and loaded. After the commit the source has, as a type, no way to
//! resume; if the answer is lost it stays paused and says so.

#![forbid(unsafe_code)]

mod destination;
mod error;
pub mod fault;
#[cfg(test)]
mod flips;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod intake;
mod link;
pub mod machine;
mod offer;
mod owed;
mod pager;
mod progress;
mod ram;
mod request;
mod sender;
mod source;
mod streams;
mod switch;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod wire;

pub use destination::{Arrival, receive, wait_for_guest};
pub use error::MigrateError;
pub use link::Link;
pub use machine::{Builder, Fault, Memory, Source, Target};
pub use offer::{Capabilities, MAX_DESCRIPTION, Offer, OfferedDevice, OfferedSection, preflight};
pub use progress::{Dial, Downtime, Observer, Phase, Progress, Report, Snapshot, bytes_text};
pub use request::{LimitsChange, SendRequest, require_protection};
pub use source::{Outcome, send, send_over, unconfirmed_advice};
pub use streams::{Connect, MAX_CONNECTIONS};
pub use switch::{MemoryWay, Mode, OnTimeout, Options};
pub use tls::Tls;
pub use transport::{Address, Listener, Stream, connect};
pub use wire::{MAX_VERSION, MIN_VERSION};
