//! `PUT /vsock` in Firecracker's form.

use serde::{Deserialize, Serialize};

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context identifier, 3 or more.
    pub guest_cid: u32,
    /// Unix socket that the host connects to; `uds_path_PORT` is where the guest's connections to `PORT` go.
    pub uds_path: String,
    /// Ignored, as Firecracker does since 1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}
