//! Saved state of the vsock device. Connections end with a move: the guest is told by a transport reset.

use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockV1 {
    /// The guest's context identifier.
    pub guest_cid: u64,
}

impl Section for VsockV1 {
    const KIND: &'static str = "virtio.vsock";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), StateError> {
        if self.guest_cid < 3 || self.guest_cid >= u64::from(u32::MAX) {
            return Err(StateError::invalid::<Self>(format!("guest CID {}", self.guest_cid)));
        }
        Ok(())
    }
}
