//! What a godwit that waits for a guest from elsewhere is told.

use super::{DriveOverride, NetworkOverride, VsockOverride};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Godwit's own: another passt process than the one that the guest had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasstOverride {
    /// Which interface.
    pub iface_id: String,
    /// The passt process's socket here.
    pub passt_socket: String,
}

/// Where a guest is waited for, what is taken, and what its devices get here. Body of `PUT /migration` with the action
/// `receive`, and the flags of `godwit receive`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReceiveRequest {
    /// `tcp:HOST:PORT`, `unix:PATH` or `vsock:CID:PORT`.
    pub address: String,
    /// Most guest memory to take, in MiB; 0: all that fits.
    pub max_memory_mib: u64,
    /// Most MiB of disks that move with the guest, together; 0: no limit.
    pub max_disk_mib: u64,
    /// Most vCPUs to take; 0: as many as the CPU backend has.
    pub max_vcpus: u32,
    /// Kinds of devices to take, as `virtio.block`; none: all there are.
    pub allow_devices: Vec<String>,
    /// Directories in which the sender may name disks and sockets. None: from this host anywhere, from elsewhere nowhere.
    pub allow_paths: Vec<PathBuf>,
    /// Accept another TSC frequency than the guest's.
    pub allow_tsc_mismatch: bool,
    /// Disks: files of this host. For a disk that moves with the guest: where its copy goes.
    pub drive_overrides: Vec<DriveOverride>,
    /// Network interfaces: TAP interfaces of this host.
    pub network_overrides: Vec<NetworkOverride>,
    /// Network interfaces: passt processes of this host.
    pub passt_overrides: Vec<PasstOverride>,
    /// Where the socket of the vsock device lies here.
    pub vsock_override: Option<VsockOverride>,
    /// Receive over TCP from other machines without TLS.
    pub insecure: bool,
    /// Directory with ca-cert.pem, server-cert.pem and server-key.pem.
    pub tls_dir: Option<PathBuf>,
    /// Seconds of silence after which the sender is given up.
    pub idle_s: u64,
}

impl Default for ReceiveRequest {
    fn default() -> Self {
        ReceiveRequest {
            address: String::new(),
            max_memory_mib: 0,
            max_disk_mib: 0,
            max_vcpus: 0,
            allow_devices: Vec::new(),
            allow_paths: Vec::new(),
            allow_tsc_mismatch: false,
            drive_overrides: Vec::new(),
            network_overrides: Vec::new(),
            passt_overrides: Vec::new(),
            vsock_override: None,
            insecure: false,
            tls_dir: None,
            idle_s: 10,
        }
    }
}
