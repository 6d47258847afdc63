//! AES-NI, PCLMULQDQ, SHA, CRC32, PDEP and PEXT.

use super::vec::V128;

const fn gmul(mut a: u8, mut b: u8) -> u8 {
    let mut r = 0;
    while b != 0 {
        if b & 1 != 0 {
            r ^= a;
        }
        a = (a << 1) ^ (if a & 0x80 != 0 { 0x1b } else { 0 });
        b >>= 1;
    }
    r
}

const fn sbox() -> [u8; 256] {
    let mut t = [0u8; 256];
    // 3 generates the field's multiplicative group, and 0xf6 is its inverse.
    let (mut p, mut q) = (1u8, 1u8);
    loop {
        p = gmul(p, 3);
        q = gmul(q, 0xf6);
        t[p as usize] = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4) ^ 0x63;
        if p == 1 {
            break;
        }
    }
    t[0] = 0x63;
    t
}

const fn inverse(t: &[u8; 256]) -> [u8; 256] {
    let mut r = [0; 256];
    let mut i = 0;
    while i < 256 {
        r[t[i] as usize] = i as u8;
        i += 1;
    }
    r
}

/// A substituted byte times a column of the mix matrix, as a little-endian column.
const fn table(s: &[u8; 256], m: [u8; 4]) -> [u32; 256] {
    let mut t = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let v = s[i];
        t[i] = u32::from_le_bytes([gmul(v, m[0]), gmul(v, m[1]), gmul(v, m[2]), gmul(v, m[3])]);
        i += 1;
    }
    t
}

const fn identity() -> [u8; 256] {
    let mut t = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        t[i] = i as u8;
        i += 1;
    }
    t
}

static SBOX: [u8; 256] = sbox();
static INV_SBOX: [u8; 256] = inverse(&sbox());
static ENC: [u32; 256] = table(&sbox(), [2, 1, 1, 3]);
static DEC: [u32; 256] = table(&inverse(&sbox()), [14, 9, 13, 11]);
static IMC: [u32; 256] = table(&identity(), [14, 9, 13, 11]);

#[inline(always)]
fn columns(t: &[u32; 256], a: [u8; 16], row_step: usize) -> [u32; 4] {
    let mut r = [0; 4];
    for (c, r) in r.iter_mut().enumerate() {
        let mut v = 0;
        for row in 0..4 {
            let byte = a[((c + row * row_step) % 4) * 4 + row];
            v ^= t[usize::from(byte)].rotate_left(8 * row as u32);
        }
        *r = v;
    }
    r
}

#[inline(always)]
fn bytes(t: &[u8; 256], a: [u8; 16], row_step: usize) -> [u8; 16] {
    let mut r = [0; 16];
    for (i, r) in r.iter_mut().enumerate() {
        let (c, row) = (i / 4, i % 4);
        *r = t[usize::from(a[((c + row * row_step) % 4) * 4 + row])];
    }
    r
}

#[inline(always)]
fn xor(a: V128, b: V128) -> V128 {
    V128::from_u64s([a.low() ^ b.low(), a.high() ^ b.high()])
}

/// AESENC
#[inline]
#[must_use]
pub fn aesenc(state: V128, key: V128) -> V128 {
    xor(V128::from_u32s(columns(&ENC, state.0, 1)), key)
}

/// AESENCLAST
#[inline]
#[must_use]
pub fn aesenclast(state: V128, key: V128) -> V128 {
    xor(V128(bytes(&SBOX, state.0, 1)), key)
}

/// AESDEC
#[inline]
#[must_use]
pub fn aesdec(state: V128, key: V128) -> V128 {
    xor(V128::from_u32s(columns(&DEC, state.0, 3)), key)
}

/// AESDECLAST
#[inline]
#[must_use]
pub fn aesdeclast(state: V128, key: V128) -> V128 {
    xor(V128(bytes(&INV_SBOX, state.0, 3)), key)
}

/// AESIMC
#[inline]
#[must_use]
pub fn aesimc(a: V128) -> V128 {
    V128::from_u32s(columns(&IMC, a.0, 0))
}

/// AESKEYGENASSIST
#[inline]
#[must_use]
pub fn aeskeygenassist(a: V128, rcon: u8) -> V128 {
    let sub = |v: u32| u32::from_le_bytes(v.to_le_bytes().map(|b| SBOX[usize::from(b)]));
    let (x1, x3) = (sub(a.u32_lane(1)), sub(a.u32_lane(3)));
    let rc = u32::from(rcon);
    V128::from_u32s([x1, x1.rotate_right(8) ^ rc, x3, x3.rotate_right(8) ^ rc])
}

/// PCLMULQDQ: `imm` bits 0 and 4 choose the halves.
#[inline]
#[must_use]
pub fn pclmulqdq(a: V128, b: V128, imm: u8) -> V128 {
    let x = a.u64_lane(usize::from(imm & 1));
    let y = b.u64_lane(usize::from(imm >> 4 & 1));
    // Four bits of the multiplier at a time.
    let mut multiples = [0u128; 16];
    for i in 1..16usize {
        let half = multiples[i >> 1] << 1;
        multiples[i] = if i & 1 != 0 { half ^ u128::from(x) } else { half };
    }
    let mut r = 0u128;
    for i in (0..16).rev() {
        r = r << 4 ^ multiples[(y >> (4 * i) & 15) as usize];
    }
    V128::from_u128(r)
}

/// CRC32's polynomial (Castagnoli), bit-reversed.
const POLY: u32 = 0x82f6_3b78;

const fn crc_tables() -> [[u32; 256]; 4] {
    let mut t = [[0u32; 256]; 4];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut k = 0;
        while k < 8 {
            c = c >> 1 ^ (if c & 1 != 0 { POLY } else { 0 });
            k += 1;
        }
        t[0][i] = c;
        i += 1;
    }
    let mut n = 1;
    while n < 4 {
        let mut i = 0;
        while i < 256 {
            let c = t[n - 1][i];
            t[n][i] = c >> 8 ^ t[0][(c & 255) as usize];
            i += 1;
        }
        n += 1;
    }
    t
}

static CRC: [[u32; 256]; 4] = crc_tables();

/// CRC32 of a source of `bytes` bytes (1, 2, 4 or 8), its value zero-extended.
#[inline(always)]
#[must_use]
pub fn crc32(crc: u32, value: u64, bytes: usize) -> u32 {
    if bytes == 8 {
        crc_of(crc_of(crc, value as u32, 4), (value >> 32) as u32, 4)
    } else {
        crc_of(crc, value as u32, bytes)
    }
}

#[inline(always)]
fn crc_of(crc: u32, value: u32, bytes: usize) -> u32 {
    let v = value ^ crc;
    let mut r = if bytes < 4 { crc >> (8 * bytes as u32) } else { 0 };
    for i in 0..bytes {
        r ^= CRC[bytes - 1 - i][(v >> (8 * i)) as usize & 255];
    }
    r
}

/// PDEP (32-bit operands zero-extended).
#[inline]
#[must_use]
pub fn pdep(mut src: u64, mut mask: u64) -> u64 {
    let mut r = 0;
    while mask != 0 {
        let low = mask & mask.wrapping_neg();
        if src & 1 != 0 {
            r |= low;
        }
        src >>= 1;
        mask ^= low;
    }
    r
}

/// PEXT (32-bit operands zero-extended).
#[inline]
#[must_use]
pub fn pext(src: u64, mut mask: u64) -> u64 {
    let (mut r, mut at) = (0, 0);
    while mask != 0 {
        let low = mask & mask.wrapping_neg();
        if src & low != 0 {
            r |= 1 << at;
        }
        at += 1;
        mask ^= low;
    }
    r
}

/// SHA1RNDS4: four rounds, `imm & 3` choosing function and constant.
#[inline]
#[must_use]
pub fn sha1rnds4(a: V128, b: V128, imm: u8) -> V128 {
    let s = a.u32s();
    let w = b.u32s();
    // The first round's word comes with E already added.
    let (mut a, mut b, mut c, mut d, mut e) = (s[3], s[2], s[1], s[0], 0u32);
    for i in 0..4 {
        let (f, k) = match imm & 3 {
            0 => ((b & c) ^ (!b & d), 0x5a82_7999u32),
            1 => (b ^ c ^ d, 0x6ed9_eba1),
            2 => ((b & c) ^ (b & d) ^ (c & d), 0x8f1b_bcdc),
            _ => (b ^ c ^ d, 0xca62_c1d6),
        };
        let t = f.wrapping_add(a.rotate_left(5)).wrapping_add(w[3 - i]).wrapping_add(e).wrapping_add(k);
        (e, d, c, b, a) = (d, c, b.rotate_left(30), a, t);
    }
    V128::from_u32s([d, c, b, a])
}

/// SHA1NEXTE
#[inline]
#[must_use]
pub fn sha1nexte(a: V128, b: V128) -> V128 {
    b.with_u32(3, b.u32_lane(3).wrapping_add(a.u32_lane(3).rotate_left(30)))
}

/// SHA1MSG1
#[inline]
#[must_use]
pub fn sha1msg1(a: V128, b: V128) -> V128 {
    let (x, y) = (a.u32s(), b.u32s());
    V128::from_u32s([y[2] ^ x[0], y[3] ^ x[1], x[0] ^ x[2], x[1] ^ x[3]])
}

/// SHA1MSG2
#[inline]
#[must_use]
pub fn sha1msg2(a: V128, b: V128) -> V128 {
    let (x, y) = (a.u32s(), b.u32s());
    let w16 = (x[3] ^ y[2]).rotate_left(1);
    let w17 = (x[2] ^ y[1]).rotate_left(1);
    let w18 = (x[1] ^ y[0]).rotate_left(1);
    let w19 = (x[0] ^ w16).rotate_left(1);
    V128::from_u32s([w19, w18, w17, w16])
}

/// SHA256RNDS2: two rounds; `wk` is XMM0.
#[inline]
#[must_use]
pub fn sha256rnds2(cdgh: V128, abef: V128, wk: V128) -> V128 {
    let (x, y, w) = (cdgh.u32s(), abef.u32s(), wk.u32s());
    let (mut a, mut b, mut e, mut f) = (y[3], y[2], y[1], y[0]);
    let (mut c, mut d, mut g, mut h) = (x[3], x[2], x[1], x[0]);
    for &w in &w[..2] {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t = ((e & f) ^ (!e & g)).wrapping_add(s1).wrapping_add(w).wrapping_add(h);
        let m = ((a & b) ^ (a & c) ^ (b & c)).wrapping_add(s0);
        (h, g, f, e) = (g, f, e, d.wrapping_add(t));
        (d, c, b, a) = (c, b, a, t.wrapping_add(m));
    }
    let _ = (c, d, g, h);
    V128::from_u32s([f, e, b, a])
}

/// SHA256MSG1
#[inline]
#[must_use]
pub fn sha256msg1(a: V128, b: V128) -> V128 {
    let s0 = |v: u32| v.rotate_right(7) ^ v.rotate_right(18) ^ v >> 3;
    let (x, y) = (a.u32s(), b.u32s());
    V128::from_u32s([
        x[0].wrapping_add(s0(x[1])),
        x[1].wrapping_add(s0(x[2])),
        x[2].wrapping_add(s0(x[3])),
        x[3].wrapping_add(s0(y[0])),
    ])
}

/// SHA256MSG2
#[inline]
#[must_use]
pub fn sha256msg2(a: V128, b: V128) -> V128 {
    let s1 = |v: u32| v.rotate_right(17) ^ v.rotate_right(19) ^ v >> 10;
    let (x, y) = (a.u32s(), b.u32s());
    let w16 = x[0].wrapping_add(s1(y[2]));
    let w17 = x[1].wrapping_add(s1(y[3]));
    let w18 = x[2].wrapping_add(s1(w16));
    let w19 = x[3].wrapping_add(s1(w17));
    V128::from_u32s([w16, w17, w18, w19])
}
