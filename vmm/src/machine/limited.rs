//! A serial port's output that is limited: what the guest writes beyond its allowance is left out and counted.

use crate::board::serial::Output;
use crate::virtio::ratelimit::{Allowance, TokenBucketConfig};
use std::time::Instant;

/// Output of at most so many bytes in a time.
pub struct Limited {
    output: Box<dyn Output>,
    allowance: Allowance,
    since: Instant,
    dropped: u64,
}

impl Limited {
    /// `output`, limited; as it is where the configuration does not limit.
    pub fn over(output: Box<dyn Output>, config: &TokenBucketConfig) -> Box<dyn Output> {
        match Allowance::new(config) {
            Some(allowance) => Box::new(Limited { output, allowance, since: Instant::now(), dropped: 0 }),
            None => output,
        }
    }
}

impl Output for Limited {
    fn put(&mut self, bytes: &[u8]) -> usize {
        let now_ns = u64::try_from(self.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let wanted = bytes.len() as u64;
        let allowed = self.allowance.spend(wanted, now_ns);
        // What the host does not take now is offered again, and pays again.
        let taken = self.output.put(&bytes[..allowed as usize]);
        if (taken as u64) < allowed {
            return taken;
        }
        self.dropped += wanted - allowed;
        bytes.len()
    }

    fn gathered(&self) -> bool {
        self.output.gathered()
    }

    fn flush(&mut self) {
        self.output.flush();
    }

    fn give_back(&mut self) -> Vec<u8> {
        self.output.give_back()
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Takes so much at once.
    struct Host(Arc<Mutex<Vec<u8>>>, usize);

    impl Output for Host {
        fn put(&mut self, bytes: &[u8]) -> usize {
            let n = bytes.len().min(self.1);
            self.0.lock().unwrap().extend(&bytes[..n]);
            n
        }
    }

    #[test]
    fn what_is_beyond_the_allowance_is_left_out_and_counted() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        // An hour: nothing comes back while this runs.
        let config = TokenBucketConfig { size: 4, one_time_burst: Some(2), refill_time: 3_600_000 };
        let mut output = Limited::over(Box::new(Host(seen.clone(), 100)), &config);
        assert_eq!((output.put(b"abcd"), output.dropped()), (4, 0));
        assert_eq!((output.put(b"efgh"), output.dropped()), (4, 2));
        assert_eq!((output.put(b"ij"), output.dropped()), (2, 4));
        assert_eq!(*seen.lock().unwrap(), b"abcdef");

        seen.lock().unwrap().clear();
        let mut slow = Limited::over(Box::new(Host(seen.clone(), 3)), &config);
        assert_eq!((slow.put(b"abcd"), slow.dropped()), (3, 0), "the rest waits for the host");
        let config = TokenBucketConfig { size: 0, ..config };
        let mut free = Limited::over(Box::new(Host(seen, 1000)), &config);
        assert_eq!((free.put(&[0; 1000]), free.dropped()), (1000, 0));
    }
}
