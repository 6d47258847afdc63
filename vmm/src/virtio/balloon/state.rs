//! Saved state of the balloon. Which pages are in it, only the guest knows.

use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};

/// A balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonV1 {
    /// Pages of 4 KiB that the guest is asked to give.
    pub target_pages: u32,
    /// Pages that it says it has given.
    pub actual_pages: u32,
    /// The statistics buffer that waits to be asked for: head of its chain.
    pub stats_head: Option<u16>,
}

impl Section for BalloonV1 {
    const KIND: &'static str = "virtio.balloon";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), StateError> {
        Ok(())
    }
}
