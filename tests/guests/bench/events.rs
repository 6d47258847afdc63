//! Kernels that leave the straight line: traps, ring changes, port I/O, TLB flushes, code changes.

use crate::data::ARENA;
use crate::rt;
use core::arch::asm;

/// Ring-0 services, as in `Service` of the guests' crate.
const NOTHING: u8 = 3;
const PORT_OUT: u8 = 4;
const LOAD_CR3: u8 = 5;

/// Breakpoint traps to ring 0 and back.
pub fn int3(iterations: u64) -> u64 {
    for _ in 0..iterations {
        // SAFETY: the kernel's handler returns at once.
        unsafe { asm!("int3") };
    }
    iterations
}

/// Page faults to ring 0 and back.
pub fn page_fault(iterations: u64) -> u64 {
    for _ in 0..iterations {
        rt::service(NOTHING, 0);
    }
    iterations
}

/// System calls to ring 0 and back.
pub fn syscall(iterations: u64) -> u64 {
    for _ in 0..iterations {
        // SAFETY: the kernel's handler returns at once.
        unsafe { asm!("syscall", out("rcx") _, out("r11") _) };
    }
    iterations
}

/// Writes to a port, from ring 0.
pub fn port_io(iterations: u64) -> u64 {
    rt::service(PORT_OUT, iterations);
    iterations
}

/// Loads of CR3 in ring 0, each followed by a few accesses.
pub fn cr3(iterations: u64) -> u64 {
    rt::service(LOAD_CR3, iterations);
    iterations
}

/// Calls a function whose constant is rewritten before each call.
pub fn self_modifying(iterations: u64) -> u64 {
    let mut sum = 0u64;
    // SAFETY: the arena is executable; the bytes are `mov eax, imm32; ret`.
    unsafe {
        ARENA.write_volatile(0xb8);
        ARENA.add(5).write_volatile(0xc3);
        let function: extern "C" fn() -> u32 = core::mem::transmute(ARENA);
        for i in 0..iterations {
            ARENA.add(1).cast::<u32>().write_unaligned(i as u32);
            asm!("", options(nostack)); // a barrier: the code above has changed
            sum = sum.wrapping_mul(3).wrapping_add(u64::from(function()));
        }
    }
    sum
}
