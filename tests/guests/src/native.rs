//! Runs the bench program in a process of this host: the "native" column of the benches.
//!
//! The program's addresses are fixed, so its segments, the shared page and its arena are mapped
//! where a guest has them. Its calls of ring 0 are plain stores here, and at its end it returns.

#![allow(unsafe_code)]

use crate::bench::Program;
use crate::layout::*;
use std::ffi::CString;
use std::time::{Duration, Instant};

/// Stack pointer to return with, as the program knows it.
const RETURN_STACK: u64 = SHARED + 0x40;

fn map(start: u64, end: u64) -> Result<(), String> {
    // SAFETY: MAP_FIXED_NOREPLACE takes no mapping away from anybody.
    let at = unsafe {
        libc::mmap(
            start as *mut libc::c_void,
            (end - start) as usize,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if at as u64 == start {
        return Ok(());
    }
    Err(format!("cannot map {start:#x}: {}", std::io::Error::last_os_error()))
}

fn store(at: u64, value: u64) {
    // SAFETY: callers name variables of the shared page, which `run` has mapped.
    unsafe { (at as *mut u64).write_volatile(value) }
}

fn tsc_khz() -> u64 {
    // SAFETY: every x86-64 has a TSC.
    let tsc = || unsafe { core::arch::x86_64::_rdtsc() };
    let (start, first) = (Instant::now(), tsc());
    while start.elapsed() < Duration::from_millis(50) {}
    let micros = start.elapsed().as_micros() as u64;
    (tsc() - first) * 1000 / micros
}

/// Runs the program with `cmdline`; returns what it printed. Once a process: the mappings stay.
pub fn run(program: &Program, cmdline: &str) -> Result<String, String> {
    let cmdline = CString::new(cmdline).map_err(|_| "a zero byte in the command line")?;
    map(KERNEL, PATTERN)?;
    map(FILL, FILL + SMALL_PAGES_SIZE)?;
    // SAFETY: the program ends below SHARED, inside the first mapping.
    unsafe {
        std::ptr::copy_nonoverlapping(program.bytes.as_ptr(), PROGRAM as *mut u8, program.bytes.len());
    }
    store(CMDLINE, cmdline.as_ptr() as u64);
    store(TSC_KHZ, tsc_khz());
    store(BOOTED_BY, 3);
    // SAFETY: the program runs on its own stack, saves nothing, and comes back through
    // RETURN_STACK; whatever it changed is declared, RBX and RBP are kept on our stack.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "push rbp",
            "lea rax, [rip + 2f]",
            "push rax",
            "mov [{save}], rsp",
            "mov rsp, {stack}",
            "jmp {entry}",
            "2:",
            "pop rbp",
            "pop rbx",
            save = in(reg) RETURN_STACK,
            stack = in(reg) STACK_TOP,
            entry = in(reg) PROGRAM,
            out("rax") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("sysv64"),
        );
    }
    drop(cmdline);
    // SAFETY: the shared page and the ring are mapped, and the program has ended.
    let printed = unsafe {
        let head = (RING_HEAD as *const u64).read_volatile().min(RING_SIZE);
        std::slice::from_raw_parts(RING as *const u8, head as usize)
    };
    Ok(String::from_utf8_lossy(printed).into_owned())
}
