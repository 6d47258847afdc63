//! The program's subcommands.

pub mod client;
pub mod inspect;
pub mod migrate;
