//! The counter's lines, checked from outside: nothing missing, nothing twice, every sum right.

use super::*;
use crate::program::{MIX_BIAS, MIX_I, MIX_N, mix};

/// One line of the counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub n: u64,
    /// Running checksum over registers and memory.
    pub sum: u64,
    /// Hash of the slice of memory it verified.
    pub mem: u64,
    /// Microseconds since the line before, by the guest's TSC.
    pub gap_us: u64,
    /// The largest `gap_us` so far.
    pub max_gap_us: u64,
    /// Longest stretch since the line before in which the program did not run.
    pub stall_us: u64,
    /// What took part in `sum`.
    pub units: u64,
    /// `ok`, or what the guest itself found wrong.
    pub verdict: String,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineError {
    /// It starts like a line and then isn't one.
    Malformed(String),
    /// Not the number after the last one.
    Sequence {
        /// The number due.
        expected: u64,
        /// The number in the line.
        found: u64,
    },
    /// The guest found its own state changed.
    Guest(Line),
    /// The guest is content, but its numbers are not those of an undisturbed guest.
    Sum {
        /// The line.
        line: Line,
        /// What `sum` had to be.
        sum: u64,
        /// What `mem` had to be.
        mem: u64,
    },
}

impl std::fmt::Display for LineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed(text) => write!(f, "malformed line {text:?}"),
            Self::Sequence { expected, found } => {
                write!(f, "line {found} where {expected} was due")
            }
            Self::Guest(line) => write!(f, "line {}: the guest says {}", line.n, line.verdict),
            Self::Sum { line, sum, mem } => write!(
                f,
                "line {}: sum {:016x} mem {:016x}, expected {sum:016x} {mem:016x}",
                line.n, line.sum, line.mem
            ),
        }
    }
}

impl std::error::Error for LineError {}

/// Reads a line of the counter; `None` for any other text.
pub fn parse_line(text: &str) -> Option<Result<Line, LineError>> {
    let text = text.trim_end();
    text.starts_with("n=").then(|| parse_fields(text).ok_or_else(|| LineError::Malformed(text.to_owned())))
}

fn parse_fields(text: &str) -> Option<Line> {
    let mut words = text.splitn(8, ' ');
    let mut field = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
    Some(Line {
        n: field("n")?.parse().ok()?,
        sum: u64::from_str_radix(field("sum")?, 16).ok()?,
        mem: u64::from_str_radix(field("mem")?, 16).ok()?,
        gap_us: field("gap_us")?.parse().ok()?,
        max_gap_us: field("max_gap_us")?.parse().ok()?,
        stall_us: field("stall_us")?.parse().ok()?,
        units: field("units")?.parse().ok()?,
        verdict: words.next()?.to_owned(),
    })
    .filter(|line| line.verdict == "ok" || line.verdict.starts_with("BAD "))
}

/// Follows the counter from its first line.
#[derive(Clone, Debug, Default)]
pub struct Checker {
    n: u64,
    sum: u64,
    max_gap_us: u64,
}

impl Checker {
    /// A checker that awaits line 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of lines seen, all of them right.
    pub fn lines(&self) -> u64 {
        self.n
    }

    /// The longest silence between two lines that the guest has measured, in microseconds.
    pub fn max_gap_us(&self) -> u64 {
        self.max_gap_us
    }

    /// Checks one line of output; `Ok(None)` for what is no line of the counter's.
    pub fn check_line(&mut self, text: &str) -> Result<Option<Line>, LineError> {
        let Some(line) = parse_line(text) else {
            return Ok(None);
        };
        let line = line?;
        if line.n != self.n + 1 {
            return Err(LineError::Sequence { expected: self.n + 1, found: line.n });
        }
        if line.verdict != "ok" {
            return Err(LineError::Guest(line));
        }
        let mem = slice_hash(line.n.wrapping_sub(SLICES));
        let sum = sum_after(self.sum, line.n, line.units, mem);
        if (sum, mem) != (line.sum, line.mem) {
            return Err(LineError::Sum { line, sum, mem });
        }
        self.n = line.n;
        self.sum = sum;
        self.max_gap_us = self.max_gap_us.max(line.max_gap_us);
        Ok(Some(line))
    }
}

fn fold(sum: u64, word: u64) -> u64 {
    (sum ^ word).wrapping_mul(FOLD).rotate_left(31)
}

/// Hash of the slice that line `generation` wrote.
fn slice_hash(generation: u64) -> u64 {
    let mut value = generation.wrapping_mul(MIX_N).wrapping_add(MIX_BIAS);
    let mut hash = 0u64;
    for _ in 0..SLICE_WORDS {
        hash = hash.rotate_left(7) ^ value ^ value >> 31;
        value = value.wrapping_add(MIX_I);
    }
    hash
}

fn sum_after(before: u64, n: u64, units: u64, mem: u64) -> u64 {
    let mut sum = fold(before, n);
    for group in GROUPS.iter().filter(|group| units & group.unit as u64 != 0) {
        for index in 0..group.words {
            sum = fold(sum, state_word(n, group, index));
        }
    }
    fold(sum, mem)
}

/// The word that line `n` has at `index` of `group`.
fn state_word(n: u64, group: &Group, index: u64) -> u64 {
    let rounding = 1 + n % 3;
    let up = rounding == 2;
    match (group.name, index) {
        ("mxcsr", _) => MXCSR_MASKED + MXCSR_FLUSH + (rounding << 13) + (n & 0x3f),
        ("fcw", _) => FCW_MASKED + (rounding << 10),
        ("x87", _) if index.is_multiple_of(2) => mix(n, 100 + index / 2) | 1 << 63,
        ("x87", _) => (mix(n, 100 + index / 2) & 0x8fff) + 0x3000,
        ("sse-arithmetic", 0) => {
            let (mantissa, exponent) = divide(n, 3, 53, up);
            biased(exponent, 1023) << 52 | mantissa & ((1 << 52) - 1)
        }
        ("sse-arithmetic", 1) => {
            let (mantissa, exponent) = divide(n, 7, 24, up);
            biased(exponent, 127) << 23 | mantissa & ((1 << 23) - 1)
        }
        ("sse-arithmetic", _) => 0,
        ("x87-arithmetic", 0) => divide(n, 3, 64, up).0,
        ("x87-arithmetic", _) => biased(divide(n, 3, 64, up).1, 16383),
        _ => mix(n, group.first + index),
    }
}

fn biased(exponent: i64, bias: i64) -> u64 {
    (exponent + bias) as u64
}

/// `n / d` as a mantissa of `bits` bits and the power of two of its first bit;
/// rounded up, or else down. Exact integers: no host floating point.
fn divide(n: u64, d: u64, bits: u32, up: bool) -> (u64, i64) {
    let (n, d) = (u128::from(n), u128::from(d));
    let limit = 1u128 << bits;
    let mut shift = 0u32;
    while (n << shift) / d < limit / 2 {
        shift += 1;
    }
    let mut quotient = (n << shift) / d;
    if up && !(n << shift).is_multiple_of(d) {
        quotient += 1;
    }
    if quotient == limit {
        quotient /= 2;
        shift -= 1;
    }
    (quotient as u64, i64::from(bits - 1) - i64::from(shift))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divides_like_ieee() {
        // Exact quotients agree with the host whatever the rounding.
        for n in [3u64, 6, 9, 300, 3 << 40] {
            for up in [false, true] {
                let (mantissa, exponent) = divide(n, 3, 53, up);
                let bits = biased(exponent, 1023) << 52 | mantissa & ((1 << 52) - 1);
                assert_eq!(f64::from_bits(bits), n as f64 / 3.0);
            }
        }
        // 1/3 in 64 bits: down ends in ...aa, up in ...ab, both 2^-2.
        assert_eq!(divide(1, 3, 64, false), (0xaaaa_aaaa_aaaa_aaaa, -2));
        assert_eq!(divide(1, 3, 64, true), (0xaaaa_aaaa_aaaa_aaab, -2));
    }

    #[test]
    fn tells_lines_from_other_text() {
        assert!(parse_line("counter: booted_by=1").is_none());
        assert!(parse_line("n=000001 sum=zz").is_some_and(|line| line.is_err()));
        let line = "n=000002 sum=0000000000000001 mem=00000000000000ff gap_us=1 max_gap_us=2 \
                    stall_us=3 units=31 BAD xmm mxcsr";
        let line = parse_line(line).expect("a line").expect("well-formed");
        assert_eq!((line.n, line.mem, line.stall_us), (2, 255, 3));
        assert_eq!(line.verdict, "BAD xmm mxcsr");
    }

    #[test]
    fn refuses_gaps_repeats_and_wrong_sums() {
        let mem = slice_hash(1u64.wrapping_sub(SLICES));
        let sum = sum_after(0, 1, BASE_UNITS, mem);
        let line = |n: u64, sum: u64| {
            format!("n={n:06} sum={sum:016x} mem={mem:016x} gap_us=0 max_gap_us=0 stall_us=0 units=31 ok")
        };
        let mut checker = Checker::new();
        assert!(matches!(checker.check_line(&line(2, sum)), Err(LineError::Sequence { .. })));
        assert!(matches!(checker.check_line(&line(1, sum ^ 1)), Err(LineError::Sum { .. })));
        assert!(checker.check_line(&line(1, sum)).is_ok());
        assert!(matches!(checker.check_line(&line(1, sum)), Err(LineError::Sequence { .. })));
        assert_eq!(checker.lines(), 1);
    }
}
