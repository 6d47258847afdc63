//! The bench program: the same machine code under Godwit, under a peer, and in a native process.
//!
//! A ring-3 program for the guests' kernel, built by `godwit_guests::bench` with any rustc that
//! has x86-64. For each kernel it prints
//!
//! ```text
//! kernel NAME iterations N cycles C us U checksum X
//! ```
//!
//! with cycles of the TSC, microseconds where the TSC's frequency is known (else 0), and a
//! checksum that must be the same wherever it runs. On the command line: `only=NAME,NAME` picks
//! kernels, `scale=PERCENT` changes all iteration counts (100).

#![no_std]
#![no_main]

mod avx;
mod compute;
mod data;
mod events;
mod float;
mod memory;
mod rt;

use rt::{Out, option, tsc};

/// A kernel: its name, its iterations at full scale, whether it needs our ring 0 under it, and
/// its code, from iterations to checksum.
pub struct Kernel {
    name: &'static str,
    iterations: u64,
    needs_ring0: bool,
    available: fn() -> bool,
    run: fn(u64) -> u64,
}

const fn compute(name: &'static str, iterations: u64, run: fn(u64) -> u64) -> Kernel {
    Kernel { name, iterations, needs_ring0: false, available: || true, run }
}

const fn event(name: &'static str, iterations: u64, run: fn(u64) -> u64) -> Kernel {
    Kernel { name, iterations, needs_ring0: true, available: || true, run }
}

static KERNELS: &[Kernel] = &[
    compute("integer", 40_000_000, compute::integer),
    compute("coremark", 20_000, compute::coremark),
    compute("sha256", 300, compute::sha256),
    compute("rep_movsb", 40_000, memory::rep_movsb),
    compute("rep_stosb", 40_000, memory::rep_stosb),
    compute("sse_copy", 600, memory::sse_copy),
    compute("pointer_chase", 3_000_000, memory::pointer_chase),
    compute("nbody", 300_000, float::nbody),
    compute("mandelbrot_sse2", 1, float::mandelbrot_sse2),
    Kernel {
        name: "mandelbrot_avx2",
        iterations: 1,
        needs_ring0: false,
        available: avx::has_avx2,
        run: float::mandelbrot_avx2,
    },
    compute("bytecode", 1_500_000, compute::bytecode),
    compute("sort", 8, compute::sort),
    event("int3", 500_000, events::int3),
    event("page_fault", 100_000, events::page_fault),
    event("syscall", 2_000_000, events::syscall),
    event("port_io", 300_000, events::port_io),
    event("cr3", 100_000, events::cr3),
    compute("self_modifying", 40_000, events::self_modifying),
];

fn selected(name: &str) -> bool {
    match option("only") {
        None => true,
        Some(list) => list.split(|c| *c == b',').any(|one| one == name.as_bytes()),
    }
}

fn run() {
    let scale = option("scale").map_or(100, rt::number).max(1);
    let mut out = Out;
    for kernel in KERNELS {
        if !selected(kernel.name) {
            continue;
        }
        if (kernel.needs_ring0 && rt::is_native()) || !(kernel.available)() {
            out.text("skipped ").text(kernel.name).text("\n");
            continue;
        }
        let iterations = (kernel.iterations * scale / 100).max(1);
        // Touch the memory, and let a translator translate.
        (kernel.run)((iterations / 20).max(1));
        let start = tsc();
        let checksum = (kernel.run)(iterations);
        let cycles = tsc() - start;
        out.text("kernel ").text(kernel.name);
        out.text(" iterations ").decimal(iterations);
        out.text(" cycles ").decimal(cycles);
        out.text(" us ").decimal(rt::micros(cycles));
        out.text(" checksum ").hex(checksum).text("\n");
        out.flush();
    }
    out.text("bench done\n");
}

/// First instruction of the program: the kernel enters here, on a stack of ours.
#[unsafe(no_mangle)]
#[unsafe(naked)]
#[unsafe(link_section = ".text._start")]
extern "C" fn _start() -> ! {
    core::arch::naked_asm!("call {main}", "ud2", main = sym main)
}

extern "C" fn main() -> ! {
    run();
    rt::leave()
}
