//! How the program and the plugins are linked where they are released.
//!
//! Relocations are packed: a table of functions else takes three times its own size in the file. The unwinder is linked in:
//! its library would be the only one beside the C library, and loading it takes a twentieth of a start.

use std::env::var;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=Cargo.toml");
    let is = |name: &str, value: &str| var(name).is_ok_and(|v| v == value);
    // Cargo's `strip` is not for packages that have a line of their own in the profile.
    if is("PROFILE", "release")
        && is("CARGO_CFG_TARGET_OS", "linux")
        && var("DEBUG").is_ok_and(|v| v != "true")
    {
        println!("cargo::rustc-link-arg=-Wl,--strip-all");
    }
    // Other architectures' linkers do not all know it. The C library must be of 2022 or later (glibc 2.36).
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_ENV", "gnu")
    {
        println!("cargo::rustc-link-arg=-Wl,-z,pack-relative-relocs");
        if has_static_unwinder() {
            println!("cargo::rustc-link-lib=static:-bundle=gcc_eh");
        }
    }
}

/// Whether the linker's compiler, which is GCC nearly always, comes with its unwinder as an archive.
fn has_static_unwinder() -> bool {
    let linker = var("RUSTC_LINKER").unwrap_or_else(|_| "cc".into());
    let found = Command::new(linker).arg("-print-file-name=libgcc_eh.a").output();
    // A name alone is the answer of one that has no such file.
    found.is_ok_and(|o| o.status.success() && o.stdout.starts_with(b"/"))
}
