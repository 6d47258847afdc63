//! Kernels that move memory.

use crate::data::{ARENA, Random};
use core::arch::asm;
use core::arch::x86_64::*;

const BLOCK: usize = 64 << 10;

fn sum(from: *const u8, len: usize) -> u64 {
    // SAFETY: callers pass parts of the arena.
    let words = unsafe { core::slice::from_raw_parts(from.cast::<u64>(), len / 8) };
    words.iter().fold(0, |sum: u64, word| sum.wrapping_mul(31).wrapping_add(*word))
}

fn fill(len: usize) {
    let mut random = Random(99);
    // SAFETY: callers pass less than the arena's size.
    let words = unsafe { core::slice::from_raw_parts_mut(ARENA.cast::<u64>(), len / 8) };
    words.fill_with(|| random.next());
}

/// 64 KiB at a time, at changing offsets.
pub fn rep_movsb(iterations: u64) -> u64 {
    fill(2 * BLOCK);
    // SAFETY: source and target lie in the arena, apart.
    unsafe {
        for i in 0..iterations {
            asm!("rep movsb", inout("rdi") ARENA.add(4 * BLOCK + i as usize % 64) => _,
                inout("rsi") ARENA.add(i as usize % 32) => _, inout("rcx") BLOCK => _);
        }
        sum(ARENA.add(4 * BLOCK), BLOCK)
    }
}

/// 64 KiB at a time, at changing offsets.
pub fn rep_stosb(iterations: u64) -> u64 {
    // SAFETY: the target lies in the arena.
    unsafe {
        for i in 0..iterations {
            asm!("rep stosb", inout("rdi") ARENA.add(i as usize % 64) => _,
                in("al") i as u8, inout("rcx") BLOCK => _);
        }
        sum(ARENA.add(64), BLOCK - 64)
    }
}

/// 1 MiB at a time through an XMM register.
pub fn sse_copy(iterations: u64) -> u64 {
    const SIZE: usize = 1 << 20;
    fill(SIZE);
    // SAFETY: source and target lie in the arena, apart, aligned.
    unsafe {
        let (from, to) = (ARENA.cast::<__m128i>(), ARENA.add(4 * SIZE).cast::<__m128i>());
        let mut key = _mm_set1_epi64x(1);
        for _ in 0..iterations {
            for i in 0..SIZE / 16 {
                _mm_store_si128(to.add(i), _mm_xor_si128(_mm_load_si128(from.add(i)), key));
            }
            key = _mm_add_epi64(key, key);
        }
        sum(to.cast(), SIZE)
    }
}

/// Dependent loads, one a 4 KiB page, over 64 MiB.
pub fn pointer_chase(iterations: u64) -> u64 {
    const PAGES: usize = (64 << 20) / 4096;
    let at = |page: usize| {
        let line = (page * 0x9e37_79b1) >> 7 & 63;
        ARENA.wrapping_add(page * 4096 + line * 64).cast::<u64>()
    };
    // SAFETY: every address lies in the arena; a one-cycle permutation by Sattolo's method.
    unsafe {
        for page in 0..PAGES {
            at(page).write(page as u64);
        }
        let mut random = Random(5);
        for page in (1..PAGES).rev() {
            let other = (random.next() % page as u64) as usize;
            let (a, b) = (at(page).read(), at(other).read());
            at(page).write(b);
            at(other).write(a);
        }
        for page in 0..PAGES {
            let next = at(page).read() as usize;
            at(page).write(at(next) as u64);
        }
        let mut pointer = at(0);
        for _ in 0..iterations {
            pointer = pointer.read_volatile() as *mut u64;
        }
        pointer as u64
    }
}
