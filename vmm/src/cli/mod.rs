//! The program's command line: `godwit` with Firecracker's flags, and subcommands for people.

pub mod ask;
pub mod backends;
pub mod client;
pub mod completions;
mod confine;
mod cpu;
pub mod exit;
pub mod inspect;
mod log;
pub mod migrate;
pub mod ps;
pub mod receive;
pub mod run;
mod signals;
mod socket;
mod terminal;

use clap::{CommandFactory, Parser, Subcommand};

/// Runs microVMs that move live between hosts with different CPUs.
///
/// Without a subcommand it takes Firecracker's flags: a config file, an API socket, or both.
#[derive(Debug, Parser)]
#[command(name = "godwit", version, args_conflicts_with_subcommands = true, after_help = exit::HELP)]
struct Program {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::Flags,
}

/// The program without its subcommands. Most starts are of that kind, and describing what nobody asked for costs them time.
#[derive(Debug, Parser)]
#[command(name = "godwit", version)]
struct Plain {
    #[command(flatten)]
    run: run::Flags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the machine of a config file.
    Run(run::Run),
    /// List the CPU backends that are found, and what they can do here.
    Backends(backends::Backends),
    /// Hold the guest of a running godwit.
    Pause(ask::Pause),
    /// Let it go on.
    Resume(ask::Resume),
    /// Write a guest to a directory.
    Snapshot(ask::Snapshot),
    /// Go on from such a directory in a fresh godwit.
    Restore(ask::Restore),
    /// Put Diff snapshots over the full one they build on.
    Merge(ask::Merge),
    /// List the microVMs that run on this host.
    Ps(ps::Ps),
    /// Move a running guest to another host.
    Migrate(migrate::Migrate),
    /// Wait for a guest and run it.
    Receive(receive::Receive),
    /// Print what is in a snapshot or state file.
    Inspect(inspect::Inspect),
    /// Print a shell's completions for this program.
    Completions(completions::Completions),
}

/// Parses the command line and does what it says: the exit code.
pub fn main() -> u8 {
    // What is wrong, and help, is the whole program's to say.
    if let Ok(plain) = Plain::try_parse() {
        return plain.run.run();
    }
    let program = match Program::try_parse() {
        Ok(program) => program,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { exit::ARGUMENTS } else { exit::OK };
        }
    };
    match program.command {
        None => program.run.run(),
        Some(Command::Run(run)) => run.run(),
        Some(Command::Backends(backends)) => backends.run(),
        Some(Command::Pause(pause)) => pause.run(),
        Some(Command::Resume(resume)) => resume.run(),
        Some(Command::Snapshot(snapshot)) => snapshot.run(),
        Some(Command::Restore(restore)) => restore.run(),
        Some(Command::Merge(merge)) => merge.run(),
        Some(Command::Ps(ps)) => ps.run(),
        Some(Command::Completions(completions)) => completions.run(Program::command()),
        Some(Command::Migrate(migrate)) => migrate.run(),
        Some(Command::Receive(receive)) => receive.run(),
        Some(Command::Inspect(inspect)) => inspect.run(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_program_takes_what_the_whole_one_takes_without_a_subcommand() {
        let lines = [
            "godwit",
            "godwit --api-sock a",
            "godwit --api-sock run --id x-1 --level Debug --show-level",
            "godwit --no-api --config-file c --backend interp --no-seccomp",
            "godwit --snapshot-version",
        ];
        for line in lines {
            let plain = Plain::try_parse_from(line.split(' ')).unwrap();
            let whole = Program::try_parse_from(line.split(' ')).unwrap();
            assert!(whole.command.is_none());
            assert_eq!(format!("{:?}", plain.run), format!("{:?}", whole.run));
        }
        for line in [
            "godwit --help",
            "godwit --version",
            "godwit ps",
            "godwit --api-sock",
            "godwit --api-sock a ps",
            "godwit x",
        ] {
            assert!(Plain::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
