//! Operands: every class of number, and a seeded generator.

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A fraction with runs of ones and zeros, which rounding cares about, or any.
    pub(super) fn frac(&mut self) -> u64 {
        let r = self.next();
        match self.below(6) {
            0 => r,
            1 => u64::MAX << (r % 64),
            2 => !(u64::MAX << (r % 64)),
            3 => 1 << (r % 64),
            4 => r & r << (r % 64) & self.next(),
            _ => r | self.next() >> (r % 64),
        }
    }

    pub(super) fn f64(&mut self) -> u64 {
        if self.below(8) == 0 {
            return F64S[self.below(F64S.len() as u64) as usize];
        }
        let e = match self.below(4) {
            0 => self.below(2048),
            1 => 1023 + self.below(8),
            2 => 1023 - 64 + self.below(128),
            _ => [0, 1, 2, 53, 2045, 2046, 2047, 1075, 1086][self.below(9) as usize],
        };
        self.below(2) << 63 | e << 52 | self.frac() >> 12
    }

    pub(super) fn f32(&mut self) -> u32 {
        if self.below(8) == 0 {
            return F32S[self.below(F32S.len() as u64) as usize];
        }
        let e = match self.below(4) {
            0 => self.below(256),
            1 => 127 + self.below(8),
            2 => 127 - 32 + self.below(64),
            _ => [0, 1, 2, 24, 253, 254, 255, 150, 158][self.below(9) as usize],
        };
        (self.below(2) << 31 | e << 23 | self.frac() >> 41) as u32
    }

    pub(super) fn f80(&mut self) -> (u16, u64) {
        if self.below(8) == 0 {
            return F80S[self.below(F80S.len() as u64) as usize];
        }
        let e = match self.below(5) {
            0 => self.below(32768),
            1 => 16383 + self.below(8),
            2 => 16383 - 70 + self.below(140),
            3 => 16383 - 1100 + self.below(2200),
            _ => [0, 1, 2, 64, 32765, 32766, 32767, 16383 + 63, 16383][self.below(9) as usize],
        };
        let int = if e == 0 || self.below(40) == 0 { self.below(2) } else { 1 };
        ((self.below(2) << 15 | e) as u16, int << 63 | self.frac() >> 1)
    }
}

pub(super) const F64S: &[u64] = &[
    0,
    1 << 63,
    1,
    1 << 63 | 1,
    0x0008_0000_0000_0000,
    0x000f_ffff_ffff_ffff,
    0x800f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x8010_0000_0000_0000,
    0x0010_0000_0000_0001,
    0x0020_0000_0000_0000,
    0x3fe0_0000_0000_0000,
    0xbfe0_0000_0000_0000,
    0x3fef_ffff_ffff_ffff,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x3ff0_0000_0000_0001,
    0x3ff8_0000_0000_0000,
    0x4000_0000_0000_0000,
    0x4004_0000_0000_0000,
    0xc008_0000_0000_0000,
    0x4009_21fb_5444_2d18,
    0x41df_ffff_ffc0_0000,
    0x41df_ffff_ffe0_0000,
    0xc1e0_0000_0000_0000,
    0xc1e0_0000_0010_0000,
    0xc1e0_0000_0020_0000,
    0x41e0_0000_0000_0000,
    0x43df_ffff_ffff_ffff,
    0x43e0_0000_0000_0000,
    0xc3e0_0000_0000_0000,
    0xc3e0_0000_0000_0001,
    0x4330_0000_0000_0001,
    0x4320_0000_0000_0001,
    0x3690_0000_0000_0000,
    0x380f_ffff_ffff_ffff,
    0x47ef_ffff_f000_0000,
    0x47ef_ffff_e000_0000,
    0x7fe0_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0xffef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_0000_0000_0000,
    0x7ff8_1234_5678_9abc,
    0xfff8_1234_5678_9abd,
    0x7ff0_0000_0000_0001,
    0xfff4_0000_dead_beef,
    0x7ff7_ffff_ffff_ffff,
];

pub(super) const F32S: &[u32] = &[
    0,
    1 << 31,
    1,
    0x8000_0001,
    0x0040_0000,
    0x007f_ffff,
    0x807f_ffff,
    0x0080_0000,
    0x8080_0000,
    0x0080_0001,
    0x0100_0000,
    0x3f00_0000,
    0xbf00_0000,
    0x3f7f_ffff,
    0x3f80_0000,
    0xbf80_0000,
    0x3f80_0001,
    0x3fc0_0000,
    0x4000_0000,
    0x4020_0000,
    0xc040_0000,
    0x4049_0fdb,
    0x4eff_ffff,
    0x4f00_0000,
    0xcf00_0000,
    0xcf00_0001,
    0x5eff_ffff,
    0x5f00_0000,
    0xdf00_0000,
    0xdf00_0001,
    0x4b00_0001,
    0x4a80_0001,
    0x3380_0000,
    0x3300_0000,
    0x3880_0000,
    0x387f_e000,
    0x477f_e000,
    0x477f_efff,
    0x477f_f000,
    0x7f00_0000,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0000,
    0x7fc1_2345,
    0xffc1_2346,
    0x7f80_0001,
    0xffa0_beef,
    0x7fbf_ffff,
];

pub(super) const F80S: &[(u16, u64)] = &[
    (0, 0),
    (0x8000, 0),
    (0, 1),
    (0x8000, 1),
    (0, 0x4000_0000_0000_0000),
    (0, 0x7fff_ffff_ffff_ffff),
    (0, 0x8000_0000_0000_0000),
    (0x8000, 0xffff_ffff_ffff_ffff),
    (1, 0x8000_0000_0000_0000),
    (0x8001, 0x8000_0000_0000_0001),
    (2, 0x8000_0000_0000_0000),
    (0x3ffe, 0x8000_0000_0000_0000),
    (0xbffe, 0x8000_0000_0000_0000),
    (0x3ffe, 0xffff_ffff_ffff_ffff),
    (0x3fff, 0x8000_0000_0000_0000),
    (0xbfff, 0x8000_0000_0000_0000),
    (0x3fff, 0x8000_0000_0000_0001),
    (0x3fff, 0xc000_0000_0000_0000),
    (0x4000, 0x8000_0000_0000_0000),
    (0x4000, 0xc90f_daa2_2168_c235),
    (0xc000, 0xc000_0000_0000_0000),
    (0x400d, 0xfffe_0000_0000_0000),
    (0x400d, 0xffff_0000_0000_0000),
    (0x400e, 0x8000_0000_0000_0000),
    (0xc00e, 0x8000_0000_0000_0000),
    (0x401d, 0xffff_fffe_0000_0000),
    (0x401e, 0x8000_0000_0000_0000),
    (0xc01e, 0x8000_0000_0000_0000),
    (0x403a, 0xde0b_6b3a_763f_ffff),
    (0x403a, 0xde0b_6b3a_7640_0000),
    (0xc03a, 0xde0b_6b3a_763f_fff8),
    (0x403e, 0x8000_0000_0000_0000),
    (0xc03e, 0x8000_0000_0000_0000),
    (0xc03e, 0x8000_0000_0000_0001),
    (0x403d, 0xffff_ffff_ffff_ffff),
    (0x3f80, 0xffff_ffff_0000_0000),
    (0x3f6a, 0x8000_0000_0000_0000),
    (0x407e, 0xffff_ff7f_ffff_ffff),
    (0x407e, 0xffff_ff80_0000_0000),
    (0x3c00, 0xffff_ffff_ffff_fc00),
    (0x43fe, 0xffff_ffff_ffff_fc00),
    (0x7ffe, 0x8000_0000_0000_0000),
    (0x7ffe, 0xffff_ffff_ffff_ffff),
    (0xfffe, 0xffff_ffff_ffff_ffff),
    (0x7fff, 0x8000_0000_0000_0000),
    (0xffff, 0x8000_0000_0000_0000),
    (0x7fff, 0xc000_0000_0000_0000),
    (0xffff, 0xc000_0000_0000_0000),
    (0x7fff, 0xc000_1234_5678_9abc),
    (0xffff, 0xc000_1234_5678_9abc),
    (0x7fff, 0x8000_0000_0000_0001),
    (0xffff, 0xa000_0000_dead_beef),
    (0x7fff, 0x0000_0000_0000_0001),
    (0x7fff, 0x0000_0000_0000_0000),
    (0xffff, 0x4000_0000_0000_0000),
    (0x3fff, 0x4000_0000_0000_0000),
    (0x0001, 0x7fff_ffff_ffff_ffff),
];
