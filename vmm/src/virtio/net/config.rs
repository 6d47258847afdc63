//! `PUT /network-interfaces/{id}` in Firecracker's form, with passt as the way out that needs no privilege.

use crate::virtio::ratelimit::RateLimiterConfig;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::net::Ipv4Addr;

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
    /// Largest packet that the guest is told to send, in bytes, its Ethernet header aside; absent: the guest's own choice.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "mtu")]
    pub mtu: Option<u16>,
    /// Limits what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

/// What virtio and Firecracker allow.
fn mtu<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u16>, D::Error> {
    const LEAST: u16 = 68;
    match Option::<u64>::deserialize(d)? {
        None => Ok(None),
        Some(n) => match u16::try_from(n) {
            Ok(mtu) if mtu >= LEAST => Ok(Some(mtu)),
            _ => Err(D::Error::custom(format!("mtu: {n} is not in {LEAST} to {}", u16::MAX))),
        },
    }
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

/// How the guest must ask for metadata.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MmdsVersion {
    /// Anybody gets it.
    #[default]
    V1,
    /// By session tokens only.
    V2,
}

/// `PUT /mmds/config` in Firecracker's form: the metadata service, and the interfaces that it is at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// Whether tokens are needed.
    #[serde(default)]
    pub version: MmdsVersion,
    /// Interfaces by name.
    pub network_interfaces: Vec<String>,
    /// Where the guest finds it; absent: 169.254.169.254.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<Ipv4Addr>,
    /// Always in EC2's text form, whatever the guest accepts.
    #[serde(default)]
    pub imds_compat: bool,
}

/// Why there can be no such service: Firecracker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MmdsConfigError {
    /// RFC 3927 keeps the first and the last 256 addresses of 169.254.0.0/16.
    #[error("The MMDS IPv4 address is not link local.")]
    Address,
    /// It would be nowhere.
    #[error("The list of network interface IDs that allow forwarding MMDS requests is empty.")]
    NoInterface,
    /// An interface that is not configured.
    #[error(
        "The list of network interface IDs provided contains at least one ID that does not correspond to any existing \
         network interface."
    )]
    UnknownInterface,
}

impl MmdsConfig {
    /// Where the guest finds it.
    pub fn address(&self) -> Ipv4Addr {
        self.ipv4_address.unwrap_or(Ipv4Addr::new(169, 254, 169, 254))
    }

    /// Checks it against the interfaces that there are.
    ///
    /// # Errors
    /// See [`MmdsConfigError`].
    pub fn validate(&self, interfaces: &[NetworkInterfaceConfig]) -> Result<(), MmdsConfigError> {
        let [a, b, c, _] = self.address().octets();
        if (a, b) != (169, 254) || c == 0 || c == 255 {
            return Err(MmdsConfigError::Address);
        }
        if self.network_interfaces.is_empty() {
            return Err(MmdsConfigError::NoInterface);
        }
        let known = |id: &String| interfaces.iter().any(|n| n.iface_id == *id);
        if !self.network_interfaces.iter().all(known) {
            return Err(MmdsConfigError::UnknownInterface);
        }
        Ok(())
    }
}
