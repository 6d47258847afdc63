//! The guest that is moved, and what it says of itself.

use godwit_guests::dirtier::Checker;
use godwit_tests::harness::Process;
use std::time::{Duration, Instant};

/// Longer than a guest takes to fill its memory and say so, on a busy machine.
const BOOT: Duration = Duration::from_secs(180);

/// A guest and its load.
pub(crate) struct Scene {
    pub(crate) what: &'static str,
    /// RAM.
    pub(crate) mib: u64,
    /// Of which so much is filled and rewritten.
    pub(crate) filled_mib: u64,
    /// 0: as fast as it can.
    pub(crate) pages_per_s: u64,
}

impl Scene {
    /// The guest's command line.
    pub(crate) fn arguments(&self) -> String {
        format!("mib={} pages_per_s={} watch=1", self.filled_mib, self.pages_per_s)
    }
}

/// The guest in one process of its life: its lines are checked over all of them.
pub(crate) struct Guest {
    process: Process,
    /// What came before this process.
    before: String,
    taken: usize,
    checker: Checker,
    stall_us: u64,
}

impl Guest {
    pub(crate) fn new(process: Process) -> Guest {
        Guest { process, before: String::new(), taken: 0, checker: Checker::new(), stall_us: 0 }
    }

    /// Takes the whole lines that have come, up to number `last`.
    fn take(&mut self, last: u64) -> Result<(), String> {
        let text = self.before.clone() + &self.process.text();
        while self.checker.lines() < last
            && let Some(len) = text[self.taken..].find('\n')
        {
            let line = &text[self.taken..self.taken + len];
            self.taken += len + 1;
            let checked = self.checker.check_line(line);
            if checked != Ok(false) {
                self.stall_us = self.stall_us.max(self.checker.stall_us());
            }
            checked.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Waits for `more` lines, each of which must say that its memory is right.
    pub(crate) fn wait(&mut self, more: u64) -> Result<(), String> {
        let (goal, end) = (self.checker.lines() + more, Instant::now() + BOOT);
        loop {
            self.take(goal)?;
            if self.checker.lines() >= goal {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("the guest is silent: {}", self.process.err()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// It goes on in another process.
    pub(crate) fn moved_to(mut self, process: Process, leaving: Leaving) -> Guest {
        if leaving == Leaving::Ends {
            // All that it printed is to be here.
            self.process.wait_exit();
        }
        Guest { before: self.before.clone() + &self.process.text(), process, ..self }
    }

    /// How long it stood still at most, in milliseconds by its own clock, according to the lines since this was last asked.
    pub(crate) fn stall_ms(&mut self) -> f64 {
        std::mem::take(&mut self.stall_us) as f64 / 1e3
    }
}

/// What the process does that a guest has left.
#[derive(PartialEq)]
pub(crate) enum Leaving {
    Ends,
    Stays,
}
