//! The terminal as the guest's console: raw while the machine lives, as it was afterwards.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

/// Puts the terminal back when dropped.
pub(super) struct Raw {
    file: File,
    before: Termios,
}

impl Raw {
    /// Makes standard input raw, if it is a terminal.
    pub(super) fn enter() -> io::Result<Option<Raw>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let file = File::from(stdin.as_fd().try_clone_to_owned()?);
        let before = tcgetattr(&file)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output goes on as usual: messages of ours stay readable.
        raw.output_modes = before.output_modes;
        tcsetattr(&file, OptionalActions::Now, &raw)?;
        Ok(Some(Raw { file, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.file, OptionalActions::Now, &self.before);
    }
}
