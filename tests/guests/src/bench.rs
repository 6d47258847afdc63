//! Builds the programs written in Rust (`bench/`, `virtio/` with rustc, `tcp/` with cargo for its libraries), and lays
//! the guests' kernel under them.
//!
//! Unlike the other guests they need a compiler for x86-64: any host's rustc with the target
//! `x86_64-unknown-linux-gnu` and a C linker for it (both are there on an x86-64 host). The same
//! bytes run in a guest ([`image`]) and in a process of an x86-64 host (see `native`).

use crate::elf::{self, Segment};
use crate::kernel::{self, Config};
use crate::layout::*;
use crate::program::TICKS_PER_SECOND;
use std::path::Path;
use std::process::Command;

/// The compiler's target.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The program as the compiler made it: the bytes from [`PROGRAM`] up, the entry first.
pub struct Program {
    pub(crate) bytes: Vec<u8>,
}

/// Compiles the bench program in `dir`. The compiler is `$RUSTC`, else `rustc`; its linker can be named
/// by `$GODWIT_BENCH_LINKER`.
pub fn compile(dir: &Path) -> Result<Program, String> {
    compile_named(dir, "bench")
}

/// Compiles the virtio guest's program in `dir`.
pub fn compile_virtio(dir: &Path) -> Result<Program, String> {
    compile_named(dir, "virtio")
}

/// How code for the guests' kernel is made and linked.
fn flags() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut flags: Vec<String> = [
        "-Ctarget-cpu=x86-64",
        "-Crelocation-model=static",
        "-Ccode-model=small",
        "-Cdefault-linker-libraries=no",
        "-Crelro-level=off",
        "-Clink-args=-nostdlib -nostartfiles -static -no-pie -Wl,--build-id=none",
    ]
    .map(str::to_owned)
    .into();
    flags.push(format!("-Clink-arg=-Wl,-T,{}", root.join("bench/link.ld").display()));
    if let Some(linker) = std::env::var_os("GODWIT_BENCH_LINKER") {
        flags.push(format!("-Clinker={}", linker.to_string_lossy()));
    }
    flags
}

/// Compiles the TCP program with cargo, in `dir`. Its libraries come from the registry, or cargo's cache.
pub fn compile_tcp(dir: &Path) -> Result<Program, String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tcp/Cargo.toml");
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--release", "--locked", "--target", TARGET, "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(dir)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags().join("\u{1f}"));
    let result = command.output().map_err(|e| format!("cannot run cargo {command:?}: {e}"))?;
    if !result.status.success() {
        let text = String::from_utf8_lossy(&result.stderr);
        return Err(format!("the tcp program did not compile for {TARGET}:\n{text}"));
    }
    program(&dir.join(TARGET).join("release/tcp"))
}

fn program(file: &Path) -> Result<Program, String> {
    let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let bytes =
        flat(&bytes).ok_or_else(|| format!("the linker did not place the program at {PROGRAM:#x}"))?;
    Ok(Program { bytes })
}

fn compile_named(dir: &Path, name: &str) -> Result<Program, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join(name);
    std::fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let output = dir.join(format!("{name}-program.elf"));
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command
        .arg(source.join("main.rs"))
        .arg("-o")
        .arg(&output)
        .args(["--edition", "2024", "--crate-name", name, "--crate-type", "bin"])
        .args(["--target", TARGET, "-Copt-level=3", "-Cpanic=abort", "-Cdebuginfo=0"])
        .args(flags());
    let result = command.output().map_err(|e| format!("cannot run the compiler {command:?}: {e}"))?;
    if !result.status.success() {
        let text = String::from_utf8_lossy(&result.stderr);
        return Err(format!("the {name} program did not compile for {TARGET}:\n{text}"));
    }
    program(&output)
}

/// What an ELF file loads from [`PROGRAM`] up, as one run of bytes with its gaps and tails zero.
fn flat(file: &[u8]) -> Option<Vec<u8>> {
    let half = |at: usize| Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?));
    let first = word(32)? as usize;
    let mut out = Vec::new();
    for at in (0..usize::from(half(56)?)).map(|i| first + i * 56) {
        let (offset, gpa) = (word(at + 8)? as usize, word(at + 16)?);
        let (filesz, memsz) = (word(at + 32)? as usize, word(at + 40)?);
        if file.get(at..at + 4)? != 1u32.to_le_bytes() || memsz == 0 {
            continue;
        }
        if gpa < PROGRAM || gpa.checked_add(memsz)? > SHARED {
            return None;
        }
        let (start, end) = ((gpa - PROGRAM) as usize, (gpa + memsz - PROGRAM) as usize);
        out.resize(end.max(out.len()), 0);
        out[start..start + filesz].copy_from_slice(file.get(offset..offset + filesz)?);
    }
    (word(24)? == PROGRAM && !out.is_empty()).then_some(out)
}

/// The guest: the program over a kernel with the handlers it asks for.
pub fn image(program: &Program) -> Result<Vec<u8>, crate::Error> {
    let config = Config {
        print_and_reset: None,
        ticks_per_second: TICKS_PER_SECOND,
        bench: true,
        xsave: true,
        smp: false,
    };
    let kernel = kernel::build(&config).map_err(crate::Error::Assemble)?;
    let segments = [
        Segment { gpa: KERNEL, bytes: kernel.bytes, executable: true },
        Segment { gpa: PROGRAM, bytes: program.bytes.clone(), executable: true },
        Segment { gpa: SMALL_PAGE_TABLES, bytes: crate::tables::small_pages(), executable: false },
    ];
    Ok(elf::write(&segments, kernel.entry64, kernel.entry32))
}
