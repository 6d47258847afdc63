//! The `godwit` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(godwit_vmm::cli::main())
}
