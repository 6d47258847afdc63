//! `PUT /network-interfaces/{id}` in Firecracker's form, with passt as the way out that needs no privilege.

use crate::virtio::ratelimit::RateLimiterConfig;
use serde::{Deserialize, Serialize};

/// A network interface. Exactly one of `host_dev_name` and `passt_socket` must be there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceConfig {
    /// Name of the interface in the API.
    pub iface_id: String,
    /// The host's TAP interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// Unix socket of a `passt` process (ours, not Firecracker's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passt_socket: Option<String>,
    /// The guest's MAC, as `06:00:ac:10:00:02`; absent: the guest chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<Mac>,
    /// Limits what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

/// A MAC address, written as six pairs of hexadecimal digits with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bad = || format!("MAC address {text:?} is not of the form 06:00:ac:10:00:02");
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2 && !p.starts_with('+')).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(Mac(mac))
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.0.map(|b| format!("{b:02x}")).join(":")
    }
}
