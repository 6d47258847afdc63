//! The guest that a live move must not disturb: it counts, with every register alive, and checks
//! itself; [`Checker`] checks it again from outside.
//!
//! Ten lines a second:
//!
//! ```text
//! n=000123 sum=5d0c... mem=91fe... gap_us=100004 max_gap_us=100310 stall_us=10040 units=31 ok
//! ```
//!
//! - `n` goes up by one from 1. `sum` folds in, over all lines so far, the registers as they were
//!   found after the wait (13 general, 16 XMM, the upper halves of 16 YMM, MXCSR, 8 x87 registers
//!   and the control word, all with values that change with every line), floating-point results
//!   under the live rounding mode, and `mem`. `mem` is a hash over the 64 KiB slice of a 1 MiB pattern that this line
//!   verified and then rewrote.
//! - `gap_us` is the time since the last line, `max_gap_us` the longest ever, `stall_us` the
//!   longest stretch since the last line in which the program did not run at all (it looks at
//!   every timer tick); by the TSC, and 0 where its frequency is unknown.
//! - `units` says what takes part (see [`Unit`]). Last comes `ok`, or `BAD` and what was wrong.
//!
//! Options, on the kernel command line: `rate` (lines a second, 10), `lines` (then reset; 0, for
//! ever), `fill` (MiB of RAM from 16 MiB up to fill with non-zero pages, verified 64 pages a
//! line), `units` (31; 63 for the guest `counter-avx`), `idle` (0: halt, but spin on every fourth line; 1: halt; 2: spin).

mod checker;
mod guest;

pub use checker::{Checker, Line, LineError, parse_line};
pub(crate) use guest::{build, build_avx};

/// A part of the CPU that takes part in the checksum: a bit of `units`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Unit {
    /// General registers.
    General = 1,
    /// XMM registers and MXCSR, moved only.
    Sse = 2,
    /// x87 registers and control word, loaded and stored only.
    X87 = 4,
    /// Scalar SSE arithmetic under the live MXCSR.
    SseArithmetic = 8,
    /// x87 arithmetic under the live control word.
    X87Arithmetic = 16,
    /// Upper halves of the YMM registers.
    Avx = 32,
}

/// The units that every x86-64 CPU has.
pub const BASE_UNITS: u64 = 31;

/// A run of 64-bit words in the state block that the guest compares and folds.
struct Group {
    unit: Unit,
    first: u64,
    words: u64,
    name: &'static str,
}

const GENERAL: Group = Group { unit: Unit::General, first: 0, words: 13, name: "gpr" };
const XMM: Group = Group { unit: Unit::Sse, first: 14, words: 32, name: "xmm" };
const MXCSR: Group = Group { unit: Unit::Sse, first: 46, words: 1, name: "mxcsr" };
const FCW: Group = Group { unit: Unit::X87, first: 47, words: 1, name: "fcw" };
// Eight times 64 bits of mantissa, then sign and exponent.
const X87: Group = Group { unit: Unit::X87, first: 48, words: 16, name: "x87" };
const SSE_RESULTS: Group = Group { unit: Unit::SseArithmetic, first: 64, words: 3, name: "sse-arithmetic" };
const YMM_HIGH: Group = Group { unit: Unit::Avx, first: 70, words: 32, name: "ymm" };
const X87_RESULTS: Group = Group { unit: Unit::X87Arithmetic, first: 67, words: 2, name: "x87-arithmetic" };

/// In the order of folding; the bit in the guest's set of errors is the place in this list.
const GROUPS: [Group; 8] = [GENERAL, XMM, MXCSR, FCW, X87, SSE_RESULTS, X87_RESULTS, YMM_HIGH];

/// Errors beyond those of [`GROUPS`], following them in the guest's set.
const MORE_ERRORS: [&str; 3] = ["mem", "fill", "tsc"];

/// MXCSR at rest, exceptions masked; lines add rounding, flush-to-zero and sticky flags to it.
const MXCSR_MASKED: u64 = 0x1f80;
const MXCSR_FLUSH: u64 = 0x8000;
/// x87 control word with 64-bit precision, exceptions masked, rounding to nearest.
const FCW_MASKED: u64 = 0x037f;

/// Slices of the pattern, and 64-bit words in each.
const SLICES: u64 = 16;
const SLICE_WORDS: u64 = 8192;

/// Multiplier of the running checksum.
const FOLD: u64 = 0x9e37_79b9_7f4a_7c15;
