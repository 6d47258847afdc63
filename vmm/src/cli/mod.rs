//! The program's subcommands.

pub mod inspect;
