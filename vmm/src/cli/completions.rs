//! `godwit completions`: what a shell needs to complete the program's arguments.

use super::exit;
use clap_complete::Shell;
use std::io::Write;

/// Prints a shell's completions for this program.
///
/// bash: `godwit completions bash > /etc/bash_completion.d/godwit`; zsh: `… zsh > DIR/_godwit` with DIR in `$fpath`; fish:
/// `… fish > ~/.config/fish/completions/godwit.fish`.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// Which shell.
    shell: Shell,
}

impl Completions {
    /// Does it: the exit code.
    pub fn run(&self, mut command: clap::Command) -> u8 {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut command, "godwit", &mut text);
        match std::io::stdout().write_all(&text) {
            Ok(()) => exit::OK,
            Err(_) => exit::ERROR,
        }
    }
}
