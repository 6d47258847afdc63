//! Where everything is in a guest's memory: used by every other module here.
//!
//! ```text
//! 0x0000_0000  the VMM's: start_info or boot_params, command line (readable from ring 3)
//! 0x0020_0000  kernel: page tables, IDT, GDT, TSSs, ring-0 code, variables, stacks (ring 0 only)
//! 0x0040_0000  program: ring-3 code and constants
//! 0x0060_0000  shared page between the rings, print ring, program variables and stack
//! 0x0070_0000  1 MiB for the program's memory pattern
//! 0x0100_0000  RAM the program fills, up to the end of RAM
//! 0xc000_0000  device memory, uncached
//! ```
//!
//! Virtual is physical for the first 4 GiB.

/// Size of a guest page; never the host's.
pub const PAGE: u64 = 4096;

/// Start of the kernel's 2 MiB, the only ones that ring 3 cannot reach.
pub const KERNEL: u64 = 0x20_0000;
/// Top-level page table; the page-directory-pointer table and four page directories follow it.
pub const PML4: u64 = KERNEL;
/// Interrupt descriptor table.
pub const IDT: u64 = KERNEL + 6 * PAGE;
/// Global descriptor table.
pub const GDT: u64 = IDT + PAGE;
/// What `lgdt` loads.
pub const GDT_POINTER: u64 = GDT + 0x800;
/// What `lidt` loads.
pub const IDT_POINTER: u64 = GDT + 0x810;
/// A `lidt` operand of zeros: the next exception is a triple fault.
pub const NO_IDT_POINTER: u64 = GDT + 0x820;
/// Task state segments, one a CPU.
pub const TSS: u64 = GDT + PAGE;
/// Distance between two task state segments.
pub const TSS_STRIDE: u64 = 128;
/// Ring-0 code: the 32-bit PVH entry comes first.
pub const KERNEL_TEXT: u64 = TSS + PAGE;
/// Real-mode code, to be copied to [`TRAMPOLINE`].
pub const TRAMPOLINE_SOURCE: u64 = KERNEL_TEXT + 0x80;
/// The 64-bit part of the ring-0 code.
pub const KERNEL_TEXT64: u64 = KERNEL_TEXT + 0x100;
/// Ring-0 variables (not in the file: zero at start).
pub const KERNEL_VARS: u64 = KERNEL + 0xf000;
/// Non-zero where the LAPIC is in x2APIC mode.
pub const X2APIC: u64 = KERNEL_VARS;
/// Ring-0 stacks.
pub const KERNEL_STACKS: u64 = KERNEL + 0x1_0000;
/// Bytes of ring-0 stack a CPU.
pub const KERNEL_STACK_SIZE: u64 = 0x2000;
/// CPUs there are stacks and task state segments for.
pub const MAX_CPUS: u64 = 32;
/// A write here from ring 3 is a call into ring 0: AL says which (see [`crate::kernel`]).
pub const SERVICE: u64 = KERNEL + 0x1f_f000;

/// Real-mode page at which other CPUs start.
pub const TRAMPOLINE: u64 = 0x8000;
/// Copy of [`GDT_POINTER`] that real mode reaches.
pub const TRAMPOLINE_GDT: u64 = TRAMPOLINE + 0xf00;

/// Start of the program's code.
pub const PROGRAM: u64 = 0x40_0000;

/// Variables shared between the rings, 8 bytes each.
pub const SHARED: u64 = 0x60_0000;
/// Timer interrupts so far.
pub const TICKS: u64 = SHARED;
/// Address of the NUL-terminated command line, or zero.
pub const CMDLINE: u64 = SHARED + 0x08;
/// TSC frequency in kHz.
pub const TSC_KHZ: u64 = SHARED + 0x10;
/// LAPIC timer input clock in kHz.
pub const BUS_KHZ: u64 = SHARED + 0x18;
/// How the frequencies were learned: 1 CPUID 0x40000010, 2 the PIT, 3 a 1 GHz bus was assumed.
pub const TIME_SOURCE: u64 = SHARED + 0x20;
/// Bytes ever put into the print ring.
pub const RING_HEAD: u64 = SHARED + 0x28;
/// Bytes ever taken out of the print ring.
pub const RING_TAIL: u64 = SHARED + 0x30;
/// How the guest was entered: 1 by PVH, 2 by the 64-bit Linux protocol.
pub const BOOTED_BY: u64 = SHARED + 0x38;

/// CPUs that have entered ring 0 (guests that start more than one).
pub const CPUS: u64 = SHARED + 0x48;

/// Variables of the program, zero at start.
pub const VARS: u64 = 0x60_1000;
/// Top of the program's stack.
pub const STACK_TOP: u64 = 0x61_0000;
/// Each further CPU's stack is 1 KiB below the one before.
pub const OTHER_STACK_SHIFT: u32 = 10;
/// Print ring between the rings.
pub const RING: u64 = 0x61_0000;
/// Size of the print ring: a power of two of at most 64 KiB, since an index is 16 bits.
pub const RING_SIZE: u64 = 0x1_0000;
/// The program's 1 MiB of patterned memory.
pub const PATTERN: u64 = 0x70_0000;
/// The bench guest's page tables for [`SMALL_PAGES_SIZE`] of RAM from [`FILL`].
pub const SMALL_PAGE_TABLES: u64 = 0x80_0000;
/// RAM that the bench guest has mapped in 4 KiB pages.
pub const SMALL_PAGES_SIZE: u64 = 64 << 20;
/// RAM that a program fills on request starts here.
pub const FILL: u64 = 0x100_0000;

/// From here up memory is mapped uncached.
pub const DEVICES: u64 = 0xc000_0000;
/// The local APIC's registers in xAPIC mode.
pub const LAPIC: u64 = 0xfee0_0000;

/// Ring-0 code segment.
pub const KERNEL_CS: u16 = 0x08;
/// Ring-0 data segment.
pub const KERNEL_DS: u16 = 0x10;
/// Ring-3 data segment, with its RPL.
pub const USER_DS: u16 = 0x1b;
/// Ring-3 code segment, with its RPL.
pub const USER_CS: u16 = 0x23;
/// Task state segment of CPU 0; each next one is 16 further.
pub const TSS_SELECTOR: u16 = 0x28;

/// Vector of the LAPIC timer.
pub const TIMER_VECTOR: u8 = 0x40;
/// Spurious-interrupt vector.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// The first serial port.
pub const COM1: u16 = 0x3f8;
