//! Saved state of a disk: what the guest has learned of it. Its contents stay where they are.

use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockV1 {
    /// Capacity in sectors of 512 bytes.
    pub sectors: u64,
    /// The guest may not write.
    pub read_only: bool,
    /// Answer to VIRTIO_BLK_T_GET_ID, padded with zeros.
    pub serial: [u8; 20],
}

impl Section for BlockV1 {
    const KIND: &'static str = "virtio.block";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), StateError> {
        if self.sectors > u64::MAX / 512 {
            return Err(StateError::invalid::<Self>(format!("{} sectors", self.sectors)));
        }
        Ok(())
    }
}
