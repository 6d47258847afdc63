//! Saved state of a network interface. Frames on their way are the network's to lose.

use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetV1 {
    /// MAC in the configuration space.
    pub mac: Option<[u8; 6]>,
    /// Source address of the guest's last frame: what a new place is announced with.
    pub seen: Option<[u8; 6]>,
}

impl Section for NetV1 {
    const KIND: &'static str = "virtio.net";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), StateError> {
        Ok(())
    }
}
