//! How soon a microVM is there, and what it costs to have one: beside a bare KVM VM and QEMU, in the same run.
//!
//!     cargo build --release -p godwit-vmm && cargo build --release -p godwit-plugin-kvm && cargo build --release -p godwit-plugin-interp
//!     cargo bench -p godwit-guests --bench startup [-- --runs N] [--at-once N,N] [--only NAME,NAME]
//!
//! Medians in milliseconds of `runs` (21) runs, the subjects taken in turn, for one microVM by itself and for a hundred at
//! once (then of all hundred in all runs). Counted from just before the process is started, as the bench sees it: the API
//! socket takes a connection; the `hello` guest's first byte comes, and its process has ended; a `counter` guest goes on
//! from a snapshot (request granted, then its next line). Then a full snapshot of a guest that has touched next to none of
//! its 128 MiB, and what its process holds besides guest RAM. Files are on tmpfs where there is one. `floor` is a KVM VM with
//! a split irqchip and nothing else, made by this bench. What is not there is left out by name. Last, the files' sizes.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod client;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod floor;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod subjects;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod table;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, elf, mib] = &arguments[..]
        && flag == "--floor"
    {
        let done = floor::run(elf.as_ref(), mib.parse().expect("a number"));
        return done.unwrap_or_else(|e| {
            eprintln!("floor: {e}");
            std::process::exit(1)
        });
    }
    subjects::bench();
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {
    println!("SKIPPED the start-up bench: its floor is a KVM VM, on x86-64 Linux only");
}
