//! Saved state of the transport and its queues.

use godwit_state::{Section, StateError};
use serde::{Deserialize, Serialize};

/// One virtqueue.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueV1 {
    /// QueueNum: elements.
    pub size: u16,
    /// QueueReady.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub desc: u64,
    /// Guest-physical address of the available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// Next index of the available ring that the device will take.
    pub next_avail: u16,
    /// Next index of the used ring that the device will fill.
    pub next_used: u16,
}

/// A virtio-mmio window, without its device's own state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioV1 {
    /// Device type (DeviceID register).
    pub device: u32,
    /// All feature bits that were on offer.
    pub offered: u64,
    /// Feature bits that the driver took, or with FEATURES_OK yet to come, wrote.
    pub accepted: u64,
    /// DeviceFeaturesSel.
    pub offered_select: u32,
    /// DriverFeaturesSel.
    pub accepted_select: u32,
    /// QueueSel.
    pub queue_select: u32,
    /// Status, with DEVICE_NEEDS_RESET.
    pub status: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The queues.
    pub queues: Vec<QueueV1>,
}

impl Section for MmioV1 {
    const KIND: &'static str = "virtio.mmio";
    const VERSION: u32 = 1;

    fn validate(&self) -> Result<(), StateError> {
        use super::status;
        let bad = |what: String| Err(StateError::invalid::<Self>(what));
        // Until FEATURES_OK the driver may have written anything.
        if self.status & status::FEATURES_OK != 0 && self.accepted & !self.offered != 0 {
            return bad(format!("accepted features {:#x} were not on offer", self.accepted & !self.offered));
        }
        if self.status & !status::ALL != 0 {
            return bad(format!("status {:#x}", self.status));
        }
        if self.status & status::DRIVER_OK != 0 && self.status & status::FEATURES_OK == 0 {
            return bad("DRIVER_OK without FEATURES_OK".into());
        }
        if self.interrupt_status & !3 != 0 {
            return bad(format!("interrupt status {:#x}", self.interrupt_status));
        }
        for (i, q) in self.queues.iter().enumerate() {
            if !q.size.is_power_of_two() || q.desc & 15 != 0 || q.avail & 1 != 0 || q.used & 3 != 0 {
                return bad(format!("queue {i}: size {} or alignment of its rings", q.size));
            }
        }
        Ok(())
    }
}
