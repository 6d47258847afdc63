//! How the program and the plugins are linked where they are released: relocations are packed. A table of functions else
//! takes three times its own size in the file.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=Cargo.toml");
    let is = |name: &str, value: &str| var(name).is_ok_and(|v| v == value);
    // Other architectures' linkers do not all know it. The C library must be of 2022 or later (glibc 2.36).
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_ENV", "gnu")
    {
        println!("cargo::rustc-link-arg=-Wl,-z,pack-relative-relocs");
    }
}
