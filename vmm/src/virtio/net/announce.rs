//! Announcing a guest that has arrived: frames that teach switches where its MAC is now, sent several times with growing
//! delays, since the first ones may go out before the ports forward (as QEMU does it).

use crate::virtio::timer::OneShot;
use std::io;
use std::os::fd::RawFd;

/// Milliseconds before each further announcement.
const DELAYS_MS: [u16; 5] = [50, 150, 250, 350, 450];

/// Says when it is time.
#[derive(Debug)]
pub(super) struct Announcer {
    timer: OneShot,
    /// Announcements so far; `None`: no need for any.
    made: Option<usize>,
    due: bool,
}

impl Announcer {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Announcer { timer: OneShot::new()?, made: None, due: false })
    }

    /// The guest is new here: the next look is the first announcement.
    pub(super) fn begin(&mut self, needed: bool) {
        (self.made, self.due) = (needed.then_some(0), needed);
    }

    pub(super) fn fd(&self) -> RawFd {
        self.timer.fd()
    }

    /// The timer was readable.
    pub(super) fn fired(&mut self) {
        self.due |= self.timer.fired();
    }

    /// True if an announcement is to be made now; the next one is then on its way.
    pub(super) fn due(&mut self) -> bool {
        let (true, Some(made)) = (self.due, self.made) else { return false };
        self.due = false;
        self.made = DELAYS_MS.get(made).map(|ms| {
            if let Err(e) = self.timer.set_ns(u64::from(*ms) * 1_000_000) {
                tracing::warn!("the guest is not announced again: {e}");
            }
            made + 1
        });
        true
    }
}

/// A reverse ARP request (RFC 903) to everybody.
pub(super) fn frame(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    // RARP, Ethernet, IPv4, request.
    frame.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    for _ in 0..2 {
        frame.extend(mac);
        frame.extend([0; 4]);
    }
    frame.resize(60, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn a_guest_is_announced_six_times_and_then_no_more() {
        let mut a = Announcer::new().unwrap();
        assert!(!a.due());
        a.begin(true);
        assert!(a.due() && !a.due());
        for _ in DELAYS_MS {
            poll(&mut [PollFd::new(&a.timer, PollFlags::IN)], None).unwrap();
            a.fired();
            assert!(a.due() && !a.due());
        }
        assert!(a.made.is_none());
    }
}
