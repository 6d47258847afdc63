//! Guest programs, assembled for x86-64 on any host: what tests, benches and the demo boot.
//!
//! [`build`] gives the ELF file of a guest by name; `godwit-guests OUTDIR` writes them all.
//! Each is a small ring-0 stub ([`kernel`]) with a program in ring 3, and prints to the first
//! serial port. [`layout`] is its memory map, [`elf`] its file.

#![deny(unsafe_code)]

pub mod bench;
pub mod counter;
pub mod dirtier;
pub mod elf;
pub mod hello;
pub mod host;
pub mod kernel;
pub mod layout;
pub mod multiboot;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod native;
mod program;
pub mod smp;
mod tables;

use iced_x86::IcedError;

/// A guest program.
pub struct Guest {
    /// Its name.
    pub name: &'static str,
    /// What it does and which options its command line takes.
    pub about: &'static str,
    build: fn() -> Result<Vec<u8>, IcedError>,
}

/// All guests.
pub const GUESTS: &[Guest] = &[
    Guest { name: "hello", about: "prints one line as early as it can and resets", build: hello::build },
    Guest {
        name: "counter",
        about: "ten checked lines a second with live registers: rate= lines= fill=MIB units= idle=",
        build: counter::build,
    },
    Guest {
        name: "counter-avx",
        about: "the counter with AVX, for CPUs that have it (x86-64-v3)",
        build: counter::build_avx,
    },
    Guest {
        name: "dirtier",
        about: "writes and verifies pages at a set rate: mib= pages_per_s= (0: full) lines=",
        build: dirtier::build,
    },
    Guest {
        name: "smp",
        about: "atomics and memory order on all CPUs: cpus= (awaited) rounds= size=",
        build: smp::build,
    },
];

/// Why a guest was not built.
#[derive(Debug)]
pub enum Error {
    /// There is no guest of this name.
    Unknown(String),
    /// The assembler refused an instruction: our bug.
    Assemble(IcedError),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown(name) => {
                let known: Vec<_> = GUESTS.iter().map(|guest| guest.name).collect();
                write!(f, "no guest named {name:?}; there are {}", known.join(", "))
            }
            Self::Assemble(error) => write!(f, "assembling a guest failed: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// The ELF file of the guest called `name`,
/// as it is written into a file.
pub fn build(name: &str) -> Result<Vec<u8>, Error> {
    let guest = GUESTS.iter().find(|guest| guest.name == name);
    let guest = guest.ok_or_else(|| Error::Unknown(name.to_owned()))?;
    (guest.build)().map_err(Error::Assemble)
}
