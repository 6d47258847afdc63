//! What Rust programs for the guests' kernel stand on: the page shared with ring 0, printing,
//! options, the clock.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;

// As in layout.rs of the guests' crate.
const CMDLINE: *const u64 = 0x60_0008 as *const u64;
const TSC_KHZ: *const u64 = 0x60_0010 as *const u64;
const RING_HEAD: *mut u64 = 0x60_0028 as *mut u64;
const RING_TAIL: *const u64 = 0x60_0030 as *const u64;
const BOOTED_BY: *const u64 = 0x60_0038 as *const u64;
const RING: *mut u8 = 0x61_0000 as *mut u8;
const RING_SIZE: u64 = 0x1_0000;

/// Ring-0 services, as in `Service` of the guests' crate; others stand where they are used.
const FLUSH: u8 = 0;
const RESET: u8 = 1;

/// Calls ring 0 with a count.
#[inline(always)]
pub fn service(which: u8, count: u64) {
    // SAFETY: the kernel steps over this instruction; the services change RCX and RDX at most.
    unsafe {
        asm!("mov byte ptr [0x3ff000], al", in("al") which, inout("rcx") count => _, out("rdx") _);
    }
}

/// Whether this is a process of the host's, with no ring 0 of ours under it.
pub fn is_native() -> bool {
    // SAFETY: the shared page is always mapped.
    unsafe { BOOTED_BY.read_volatile() == 3 }
}

/// Back to whoever started the program.
pub fn leave() -> ! {
    if is_native() {
        // SAFETY: the host's runner put its stack pointer there, with a return address on top.
        unsafe { asm!("mov rsp, [0x600040]", "ret", options(noreturn)) }
    }
    service(RESET, 0);
    loop {}
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 has it, and ring 3 may read it here.
    unsafe { _rdtsc() }
}

/// Microseconds of so many TSC cycles; 0 where its frequency is unknown.
pub fn micros(cycles: u64) -> u64 {
    // SAFETY: the shared page is always mapped.
    let khz = unsafe { TSC_KHZ.read_volatile() };
    if khz == 0 { 0 } else { (u128::from(cycles) * 1000 / u128::from(khz)) as u64 }
}

/// Printing into the ring between the rings.
pub struct Out;

impl Out {
    fn byte(&mut self, byte: u8) {
        // SAFETY: ring and counters are mapped; ring 0 only moves the tail.
        unsafe {
            let head = RING_HEAD.read_volatile();
            while head - RING_TAIL.read_volatile() >= RING_SIZE {
                service(FLUSH, 0);
            }
            RING.add((head % RING_SIZE) as usize).write_volatile(byte);
            RING_HEAD.write_volatile(head + 1);
        }
    }

    pub fn text(&mut self, text: &str) -> &mut Self {
        for byte in text.bytes() {
            self.byte(byte);
        }
        self
    }

    pub fn digits(&mut self, value: u64, base: u64, width: u32) -> &mut Self {
        let mut digits = 1.max(width);
        while base.checked_pow(digits).is_some_and(|limit| value >= limit) {
            digits += 1;
        }
        for place in (0..digits).rev() {
            let digit = (value / base.pow(place) % base) as usize;
            self.byte(b"0123456789abcdef"[digit & 15]);
        }
        self
    }

    pub fn decimal(&mut self, value: u64) -> &mut Self {
        self.digits(value, 10, 1)
    }

    /// Sends what was printed.
    pub fn flush(&mut self) {
        if !is_native() {
            service(FLUSH, 0);
        }
    }
}

/// What follows `name=` on the command line, up to the next space.
pub fn option(name: &str) -> Option<&'static [u8]> {
    options(name).next()
}

/// The same for every `name=` there is.
pub fn options(name: &str) -> impl Iterator<Item = &'static [u8]> {
    let words = command_line().split(|c| *c == b' ');
    words.filter_map(move |word| word.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

fn command_line() -> &'static [u8] {
    // SAFETY: the kernel stored the address of a string that ends with a zero byte, or zero.
    unsafe {
        let start = CMDLINE.read_volatile() as *const u8;
        if start.is_null() {
            return &[];
        }
        let mut len = 0;
        while start.add(len).read() != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(start, len)
    }
}

/// A decimal number, up to the first byte that is no digit.
pub fn number(text: &[u8]) -> u64 {
    let digits = text.iter().take_while(|c| c.is_ascii_digit());
    digits.fold(0, |n, c| n * 10 + u64::from(c - b'0'))
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let line = info.location().map_or(0, |location| location.line());
    Out.text("PANIC in the program, line ").decimal(u64::from(line)).text("\n");
    leave()
}

// What the compiler calls by name; there is no C library.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's contract is memcpy's.
    unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's contract is memset's.
    unsafe { asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") len => _) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: the caller's contract; forwards is right for this overlap.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller's contract; backwards is right for this overlap.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rdi") to.add(len).wrapping_sub(1) => _,
            inout("rsi") from.add(len).wrapping_sub(1) => _, inout("rcx") len => _);
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let mut i = 0;
    while i < len {
        // SAFETY: the caller's contract.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        i += 1;
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's contract.
    unsafe { memcmp(a, b, len) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller's contract. Volatile, or this loop would become a call of itself.
    while unsafe { text.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}

/// Named by the unwind tables of `core`; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
