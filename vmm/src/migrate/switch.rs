//! When to stop copying and switch over, and how much to slow down a guest that writes too fast. Arithmetic only.

use super::request::LimitsChange;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What to do when the guest will not come within the downtime target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTimeout {
    /// Give up; the guest runs on at the source.
    #[default]
    Cancel,
    /// Pause and finish, however long that takes.
    Force,
    /// Switch over at once; the pages that are left follow.
    Postcopy,
}

/// When pages are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// All of them while the guest runs here, until the rest is few.
    #[default]
    Precopy,
    /// After the guest has gone, as it needs them.
    Postcopy,
    /// All of them once while the guest runs here; then, unless the rest is few, the rest after it has gone.
    Hybrid,
}

/// How guest memory gets to a destination on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryWay {
    /// Handed over if it can be, else copied.
    #[default]
    Auto,
    /// Handed over as descriptors over `unix:`, or not at all.
    HandOver,
    /// Copied.
    Copy,
}

/// What the operator wants.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long the guest may stand still.
    pub downtime: Duration,
    /// Most bytes a second on the wire while the guest runs.
    pub bandwidth: Option<u64>,
    /// Most rounds before `on_timeout`.
    pub max_rounds: u32,
    /// Most time before `on_timeout`.
    pub timeout: Option<Duration>,
    /// And then.
    pub on_timeout: OnTimeout,
    /// Slow the vCPUs down as far as needed.
    pub auto_converge: bool,
    /// Compress pages by LZ4.
    pub compress: bool,
    /// Hand memory over or copy it.
    pub memory: MemoryWay,
    /// When pages are copied.
    pub mode: Mode,
    /// Where the destination cannot do postcopy, go on without.
    pub postcopy_fallback: bool,
    /// Connections to use, where the destination takes more than one.
    pub connections: u8,
    /// How long the peer may be silent, and this side wait in any one step.
    pub idle: Duration,
    /// How long the guest may stand still at worst before the attempt is given up.
    pub blackout: Duration,
}

impl Options {
    /// Pages may have to come after the guest.
    pub fn wants_postcopy(&self) -> bool {
        self.mode != Mode::Precopy || self.on_timeout == OnTimeout::Postcopy
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            downtime: Duration::from_millis(50),
            bandwidth: None,
            max_rounds: 60,
            timeout: Some(Duration::from_secs(600)),
            on_timeout: OnTimeout::Cancel,
            auto_converge: true,
            compress: false,
            memory: MemoryWay::Auto,
            mode: Mode::Precopy,
            postcopy_fallback: false,
            connections: 1,
            idle: Duration::from_secs(10),
            blackout: Duration::from_secs(30),
        }
    }
}

/// What a round of precopy measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// Its number, from 1.
    pub(super) number: u32,
    /// Pages it handled.
    pub(super) pages: u64,
    /// From its first page to the destination's acknowledgement.
    pub(super) took: Duration,
    /// Pages that the guest dirtied meanwhile.
    pub(super) dirtied: u64,
    /// Time since the migration began.
    pub(super) elapsed: Duration,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Verdict {
    /// Another round, at this throttle, in thousandths.
    Again { throttle: u16 },
    /// Switch over.
    Switch,
    /// Switch over; the rest comes later.
    Postcopy,
    /// Give up: why.
    GiveUp(&'static str),
}

/// State and pages apart from copying: pausing, saving, loading, a few round trips.
const FIXED_COST: Duration = Duration::from_millis(1);
/// So few pages are one write: their time is all fixed cost, and says nothing of the speed.
const FEW_PAGES: u64 = 64;
/// So short a downtime is not worth another round.
const PROMPT: Duration = Duration::from_millis(2);
/// Rounds that may leave hardly less than they began with before the guest is stopped all the same: it may write in bursts.
const TRIES: u32 = 4;
/// The strongest throttle, in thousandths: what still runs then writes few pages over the slowest link.
const MAX_THROTTLE: u16 = 999;

/// Decides after every round.
#[derive(Debug)]
pub(super) struct Switch {
    options: Options,
    /// Measured seconds a page, over the last rounds that were long enough to tell.
    page_s: Option<f64>,
    throttle: u16,
    pub(super) expected: Duration,
    tries: u32,
}

impl Switch {
    pub(super) fn new(options: Options) -> Self {
        Switch { options, page_s: None, throttle: 0, expected: Duration::ZERO, tries: 0 }
    }

    /// The throttle, in percent.
    pub(super) fn percent(&self) -> f64 {
        f64::from(self.throttle) / 10.0
    }

    /// Most time before `on_timeout`.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.options.timeout
    }

    /// Other limits from here on.
    pub(super) fn change(&mut self, change: &LimitsChange) {
        change.apply(&mut self.options);
    }

    /// After a round.
    pub(super) fn judge(&mut self, round: Round) -> Verdict {
        let o = &self.options;
        if round.pages >= FEW_PAGES || self.page_s.is_none() {
            let now = round.took.as_secs_f64() / round.pages.max(1) as f64;
            // Half old, half new: a single slow round neither decides nor is forgotten.
            self.page_s = Some(self.page_s.map_or(now, |old| (old + now) / 2.0));
        }
        let page_s = self.page_s.unwrap_or_default();
        self.expected = FIXED_COST + Duration::from_secs_f64((page_s * round.dirtied as f64).min(1e6));
        let late = o.timeout.is_some_and(|t| round.elapsed >= t);
        if self.expected <= o.downtime || round.dirtied == 0 {
            // The downtime asked for is the most, not what is aimed at: as long as rounds get shorter, another makes it less.
            let shrinking = round.dirtied <= round.pages / 4 * 3;
            let last = late || round.number >= o.max_rounds || self.expected <= PROMPT;
            if last || round.dirtied == 0 || !shrinking && self.tries >= TRIES {
                return Verdict::Switch;
            }
            self.tries += u32::from(!shrinking);
            return Verdict::Again { throttle: self.throttle };
        }
        if o.mode == Mode::Hybrid {
            return Verdict::Postcopy;
        }
        if late || round.number >= o.max_rounds {
            return match (o.on_timeout, late) {
                (OnTimeout::Force, _) => Verdict::Switch,
                (OnTimeout::Postcopy, _) => Verdict::Postcopy,
                (_, true) => Verdict::GiveUp("the time limit is over (timeout_s)"),
                (_, false) => Verdict::GiveUp("too many rounds (max_rounds)"),
            };
        }
        // Each round should leave at most half of what it began with.
        let allowed = round.pages / 2;
        if o.auto_converge && round.dirtied > allowed && round.number > 1 {
            let runs = 1000 - self.throttle;
            let wanted = f64::from(runs) * allowed as f64 / round.dirtied as f64;
            let target = (1000.0 - wanted).clamp(0.0, MAX_THROTTLE.into()) as u16;
            // At least a step of ten percent, and half of what still runs near the end: measured rates lag behind, and a guest
            // that writes all its pages in each round shows no more than that.
            self.throttle = target.max(self.throttle + (runs / 2).min(100)).min(MAX_THROTTLE);
        }
        Verdict::Again { throttle: self.throttle }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that dirties `rate` pages a second of at most `set` pages, over a link of `link` pages a second.
    fn run(rate: f64, set: u64, link: f64, options: Options) -> (u32, u16, Result<Duration, &'static str>) {
        let mut switch = Switch::new(options);
        let (mut pages, mut elapsed, mut throttle) = (262_144u64, Duration::ZERO, 0u16);
        for number in 1.. {
            let took = Duration::from_secs_f64(pages as f64 / link);
            elapsed += took;
            let speed = rate * f64::from(1000 - throttle) / 1000.0;
            let dirtied = ((speed * took.as_secs_f64()) as u64).min(set);
            match switch.judge(Round { number, pages, took, dirtied, elapsed }) {
                Verdict::Again { throttle: t } => (throttle, pages) = (t, dirtied),
                Verdict::Switch | Verdict::Postcopy => return (number, throttle, Ok(switch.expected)),
                Verdict::GiveUp(why) => return (number, throttle, Err(why)),
            }
        }
        unreachable!()
    }

    #[test]
    fn an_idle_guest_switches_after_one_round() {
        assert_eq!(run(0.0, 0, 250_000.0, Options::default()), (1, 0, Ok(FIXED_COST)));
    }

    #[test]
    fn a_slow_writer_converges_without_throttle() {
        let (rounds, throttle, downtime) = run(50_000.0, 262_144, 250_000.0, Options::default());
        assert!(
            rounds < 9 && throttle == 0 && downtime.unwrap() <= PROMPT,
            "{rounds} rounds, {throttle} thousandths"
        );
    }

    #[test]
    fn a_writer_that_no_round_catches_up_with_is_stopped_in_time() {
        let mut switch = Switch::new(Options::default());
        let again = Verdict::Again { throttle: 0 };
        // Whatever the round's length, a burst of 1,000 pages falls into it: 10 ms.
        let round = |number| Round {
            number,
            pages: 1000,
            took: Duration::from_millis(10),
            dirtied: 1000,
            elapsed: Duration::from_secs(1),
        };
        for number in 1..=TRIES {
            assert_eq!(switch.judge(round(number)), again);
        }
        assert_eq!(switch.judge(round(TRIES + 1)), Verdict::Switch);
    }

    #[test]
    fn any_writer_converges_by_throttle() {
        for rate in [120_000.0, 250_000.0, 1e6, 1e7] {
            let (rounds, throttle, downtime) = run(rate, 262_144, 250_000.0, Options::default());
            assert!(
                downtime.unwrap() <= Duration::from_millis(50),
                "{rate}: {rounds} rounds, {throttle} thousandths"
            );
            assert!(rounds < 20, "{rate}: {rounds} rounds, {throttle} thousandths");
        }
    }

    /// A hundredth of its speed is still more than the link carries.
    #[test]
    fn a_fast_writer_converges_over_a_slow_link() {
        let (rounds, throttle, downtime) = run(1e6, 6_144, 8_192.0, Options::default());
        assert!(
            downtime.unwrap() <= Duration::from_millis(50) && rounds < 25,
            "{rounds} rounds, {throttle} thousandths"
        );
    }

    #[test]
    fn without_throttle_limits_hold() {
        let mut options =
            Options { auto_converge: false, timeout: Some(Duration::from_secs(5)), ..Options::default() };
        assert!(run(1e6, 262_144, 250_000.0, options.clone()).2.is_err());
        options.on_timeout = OnTimeout::Force;
        assert!(run(1e6, 262_144, 250_000.0, options.clone()).2.unwrap() > Duration::from_millis(500));
        options.timeout = None;
        options.max_rounds = 3;
        assert_eq!(run(1e6, 262_144, 250_000.0, options).0, 3);
    }
}
