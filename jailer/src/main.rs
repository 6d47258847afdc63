//! `godwit-jailer`: starts Godwit inside a chroot with namespaces, cgroups and dropped privileges.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!("godwit-jailer: not yet: the jail is built in its own issue; run godwit directly for now");
    ExitCode::from(2)
}
