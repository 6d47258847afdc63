//! Canonical x86 state: what a CPU *is*, not how some host or kernel lays it out.
//!
//! Every backend saves into and loads from these structs, so that a guest may move between any two
//! of them. A struct's postcard bytes are a section of a migration stream or snapshot; they cross the
//! backend contract in the same form.
//!
//! # Rules
//! - A released `…V1` struct is frozen: no field or variant is added, removed, reordered or retyped.
//!   New data is a new section, or a `…V2` with a conversion from V1. `docs/STATE-FORMAT.md` has the
//!   procedure; golden files in `tests/goldens` fail when bytes change.
//! - Fixed-width integers only; no `usize`, no `cfg`, no serde attributes that change the form.
//! - [`decode`] is the only door in: it checks the version, refuses trailing bytes and validates.
//! - Equal CPU state is equal bytes. Where hardware leaves something undefined or forgets it, the
//!   field's comment gives the one canonical value.

#![forbid(unsafe_code)]

mod cpu;
mod lapic;
pub mod model;
mod section;
mod system;

pub use cpu::{ActivityV1, AvxV1, DebugV1, EventsV1, ExceptionV1, F80, FpuV1, RegsV1};
pub use lapic::{LapicV1, lvt};
pub use model::Model;
pub use section::{CpuState, RawSection, SECTIONS, Section, StateError, decode, decode_section, encode};
pub use system::{ClockV1, MsrsV1, MtrrVarV1, SegmentV1, SystemV1, TableV1, TscV1, access};
