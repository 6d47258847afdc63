//! RDRAND and RDSEED: std's randomly seeded hasher, keyed by the system's entropy, over a counter.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A generator.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    keys: [RandomState; 2],
    count: u64,
}

impl Random {
    pub(crate) fn new() -> Self {
        Random { keys: [RandomState::new(), RandomState::new()], count: 0 }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.count += 1;
        let [a, b] = self.keys.each_ref().map(|k| {
            let mut h = k.build_hasher();
            h.write_u64(self.count);
            h.finish()
        });
        a ^ b.rotate_left(32)
    }
}
