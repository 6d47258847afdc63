//! Integer kernels.

use crate::data::{ARENA, Random};
use core::hint::black_box;

/// Simple operations on four values at once, with a few multiplications and a rare division.
pub fn integer(iterations: u64) -> u64 {
    let (mut a, mut b, mut c, mut d) = (1u64, 0x9e37_79b9_7f4a_7c15u64, 7u32, 11u32);
    for i in 0..iterations {
        a = a.rotate_left(5).wrapping_add(i ^ b >> 9);
        b = b.wrapping_sub(i << 3) ^ (b >> 11);
        c = c.wrapping_add(i as u32) & 0x7fff_ffff | c << 1 & 0x10;
        d ^= (d << 5).wrapping_add(d >> 2).wrapping_add(c);
        if i & 3 == 0 {
            b = b.wrapping_mul(6_364_136_223_846_793_005);
        } else if i & 63 == 1 {
            a = a.wrapping_add(b / u64::from(d | 1));
        }
    }
    a ^ b ^ u64::from(c) ^ u64::from(d) << 17
}

/// List, matrix and CRC work, in the manner of CoreMark.
pub fn coremark(iterations: u64) -> u64 {
    let mut crc = 0xffffu16;
    for i in 0..iterations {
        crc = crc16(list(i as u32), crc);
        crc = crc16(matrix(i as i32), crc);
        crc = crc16(states(i as u32), crc);
    }
    u64::from(crc)
}

fn crc16(data: u32, mut crc: u16) -> u16 {
    for bit in 0..32 {
        let feedback = (crc ^ (data >> bit) as u16) & 1;
        crc >>= 1;
        if feedback != 0 {
            crc ^= 0xa001;
        }
    }
    crc
}

#[derive(Clone, Copy)]
struct Node {
    next: u16,
    value: u16,
}

const NODES: usize = 256;

fn list(seed: u32) -> u32 {
    let mut nodes = [Node { next: 0, value: 0 }; NODES];
    let mut random = Random(u64::from(seed) + 1);
    for (i, node) in nodes.iter_mut().enumerate() {
        *node = Node { next: ((i + 1) % NODES) as u16, value: random.next() as u16 };
    }
    let mut found = 0u32;
    for _ in 0..4 {
        // Reverse, then look for values that are not there.
        let (mut before, mut at) = (0u16, 0u16);
        for _ in 0..NODES {
            let next = nodes[at as usize % NODES].next;
            nodes[at as usize % NODES].next = before;
            before = at;
            at = next;
        }
        let wanted = random.next() as u16;
        at = before;
        for _ in 0..NODES {
            let node = nodes[at as usize % NODES];
            found = found.wrapping_add(u32::from(node.value ^ wanted).count_ones());
            if node.value == wanted {
                break;
            }
            at = node.next;
        }
    }
    black_box(found)
}

fn matrix(seed: i32) -> u32 {
    const SIDE: usize = 12;
    let mut a = [[0i16; SIDE]; SIDE];
    let mut b = [[0i16; SIDE]; SIDE];
    for row in 0..SIDE {
        for column in 0..SIDE {
            a[row][column] = (seed + (row * 7 + column) as i32) as i16;
            b[row][column] = (seed - (row * 3 + column * 5) as i32) as i16;
        }
    }
    let mut sum = 0i32;
    for row in &a {
        for column in 0..SIDE {
            let mut cell = 0i32;
            for k in 0..SIDE {
                cell = cell.wrapping_add(i32::from(black_box(row[k])) * i32::from(b[k][column]));
            }
            sum = sum.wrapping_add(cell >> 2 & 0xffff);
        }
    }
    sum as u32
}

fn states(seed: u32) -> u32 {
    let text = b"5012,1.5e7,-0.25,+7,0x3f,T0.3e-1F,-.123,1e+3,";
    let mut counts = [0u32; 6];
    let mut state = 0usize;
    for i in 0..text.len() * 4 {
        let c = text[(i + seed as usize) % text.len()];
        state = match (state, c) {
            (_, b',') => 0,
            (0 | 1, b'+' | b'-') => 1,
            (0..=2, b'0'..=b'9') => 2,
            (0..=2, b'.') => 3,
            (3, b'0'..=b'9') => 3,
            (2 | 3, b'e') => 4,
            (4, b'+' | b'-' | b'0'..=b'9') => 4,
            _ => 5,
        };
        counts[state] += 1;
    }
    counts.iter().fold(0, |sum, n| sum * 31 + n)
}

const SHA_K: [u32; 64] = sha_constants();

/// The first 32 bits of the fractions of the cube roots of the first 64 primes.
const fn sha_constants() -> [u32; 64] {
    let mut out = [0; 64];
    let (mut prime, mut n) = (2u128, 0);
    while n < 64 {
        let mut divisor = 2;
        let mut is_prime = true;
        while divisor * divisor <= prime {
            if prime % divisor == 0 {
                is_prime = false;
            }
            divisor += 1;
        }
        if is_prime {
            // The largest r with r^3 <= prime * 2^96, a bit at a time.
            let (mut root, mut bit) = (0u128, 1u128 << 34);
            while bit > 0 {
                let r = root | bit;
                if r * r * r <= prime << 96 {
                    root = r;
                }
                bit >>= 1;
            }
            out[n] = root as u32;
            n += 1;
        }
        prime += 1;
    }
    out
}

fn sha_block(state: &mut [u32; 8], block: &[u8; 64]) {
    let mut w = [0u32; 64];
    for (word, bytes) in w.iter_mut().zip(block.chunks_exact(4)) {
        *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    for i in 16..64 {
        let s0 = w[i - 15].rotate_right(7) ^ w[i - 15].rotate_right(18) ^ w[i - 15] >> 3;
        let s1 = w[i - 2].rotate_right(17) ^ w[i - 2].rotate_right(19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for i in 0..64 {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & f) ^ (!e & g);
        let t1 = h.wrapping_add(s1).wrapping_add(choice).wrapping_add(SHA_K[i]).wrapping_add(w[i]);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(add);
    }
}

/// SHA-256 compressions over 64 KiB, again and again.
pub fn sha256(iterations: u64) -> u64 {
    let mut state = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    let mut block = [0u8; 64];
    for i in 0..iterations {
        for n in 0..1024u64 {
            block[..8].copy_from_slice(&(i ^ n).to_le_bytes());
            sha_block(&mut state, &block);
        }
    }
    u64::from(state[0]) << 32 | u64::from(state[1])
}

/// A small stack machine that counts Collatz steps.
pub fn bytecode(iterations: u64) -> u64 {
    // 0 push k, 1 load k, 2 store k, 3 add, 4 mul, 5 and, 6 shr, 7 jump if zero, 8 jump, 9 less, 10 end
    static PROGRAM: [(u8, u8); 27] = [
        (1, 0),
        (0, 1),
        (5, 0),
        (7, 10), // odd? else 10
        (1, 0),
        (0, 3),
        (4, 0),
        (0, 1),
        (3, 0),
        (8, 13), // 3n+1
        (1, 0),
        (0, 1),
        (6, 0), // n/2
        (2, 0), // store n
        (1, 1),
        (0, 1),
        (3, 0),
        (2, 1), // steps += 1
        (1, 0),
        (0, 2),
        (9, 0),
        (7, 0), // n < 2? else again
        (1, 1),
        (10, 0),
        (10, 0),
        (10, 0),
        (10, 0),
    ];
    let (mut stack, mut locals) = ([0u64; 16], [0u64; 4]);
    let (mut total, mut budget, mut start) = (0u64, iterations * 16, 1u64);
    while budget > 0 {
        locals = [start, 0, locals[2], locals[3]];
        start += 1;
        let (mut pc, mut sp) = (0usize, 0usize);
        while budget > 0 {
            budget -= 1;
            let (op, k) = black_box(&PROGRAM)[pc % PROGRAM.len()];
            pc += 1;
            let (x, y) = (stack[sp.wrapping_sub(2) & 15], stack[sp.wrapping_sub(1) & 15]);
            let mut binary = |value: u64| {
                sp = sp.wrapping_sub(1);
                stack[sp.wrapping_sub(1) & 15] = value;
            };
            match op {
                0 | 1 => {
                    stack[sp & 15] = if op == 0 { u64::from(k) } else { locals[usize::from(k & 3)] };
                    sp = sp.wrapping_add(1);
                }
                2 => {
                    sp = sp.wrapping_sub(1);
                    locals[usize::from(k & 3)] = y;
                }
                3 => binary(x.wrapping_add(y)),
                4 => binary(x.wrapping_mul(y)),
                5 => binary(x & y),
                6 => binary(x >> (y & 63)),
                7 => {
                    sp = sp.wrapping_sub(1);
                    if y == 0 {
                        pc = usize::from(k);
                    }
                }
                8 => pc = usize::from(k),
                9 => binary(u64::from(x < y)),
                _ => break,
            }
        }
        total = total.wrapping_mul(31).wrapping_add(locals[1]);
    }
    total
}

fn quicksort(values: &mut [u32]) {
    if values.len() <= 12 {
        for i in 1..values.len() {
            let mut j = i;
            while j > 0 && values[j - 1] > values[j] {
                values.swap(j - 1, j);
                j -= 1;
            }
        }
        return;
    }
    let pivot = values[values.len() / 2];
    let (mut low, mut high) = (0, values.len() - 1);
    loop {
        while values[low] < pivot {
            low += 1;
        }
        while values[high] > pivot {
            high -= 1;
        }
        if low >= high {
            break;
        }
        values.swap(low, high);
        low += 1;
        high -= 1;
    }
    let (left, right) = values.split_at_mut(low);
    quicksort(left);
    quicksort(right);
}

/// Recursive quicksort of 200,000 numbers.
pub fn sort(iterations: u64) -> u64 {
    const COUNT: usize = 200_000;
    // SAFETY: the arena is ours alone, aligned, and large enough.
    let values = unsafe { core::slice::from_raw_parts_mut(ARENA.cast::<u32>(), COUNT) };
    let mut sum = 0u64;
    for i in 0..iterations {
        let mut random = Random(i + 1);
        values.fill_with(|| random.next() as u32);
        quicksort(values);
        for place in (0..COUNT).step_by(1000) {
            sum = sum.wrapping_mul(31).wrapping_add(u64::from(values[place]));
        }
    }
    sum
}
