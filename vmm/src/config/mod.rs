//! What a machine is to be: Firecracker's JSON shapes, the config file, and what is refused by name.
//!
//! The same structs are the bodies of API requests (`api`) and the members of the config file (`file`). A field nobody
//! knows, or one that Firecracker knows and Godwit cannot honour, is an error with its name, line and column: never
//! ignored. `control` makes machines out of a whole [`MachineSpec`].

mod boot;
mod file;
mod machine;
mod observe;
mod receive;
pub mod shape;
mod snapshot;
mod update;

pub use boot::BootSourceConfig;
pub use file::{ConfigError, ConfigFile, parse, read};
pub use machine::{CpuTemplate, HugePages, MAX_MEM_MIB, MAX_VCPUS, MachineConfig, MachineConfigUpdate};
pub use observe::{Level, LoggerConfig, MetricsConfig, SerialConfig};
pub use receive::{PasstOverride, ReceiveRequest};
pub use snapshot::{
    DriveOverride, MemBackend, MemBackendType, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType,
    VsockOverride,
};
pub use update::{BalloonStatsUpdate, BalloonUpdate, DriveUpdate, NetUpdate};

pub use crate::virtio::block::DriveConfig;
pub use crate::virtio::net::NetworkInterfaceConfig;
use crate::virtio::slots::DevicesConfig;

/// Why a value cannot be honoured: it names the field and says what can be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Invalid {
    /// The field, as in JSON.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub why: String,
}

impl Invalid {
    /// `field` cannot be honoured, because of `why`.
    pub fn new(field: &'static str, why: impl Into<String>) -> Self {
        Invalid { field, why: why.into() }
    }
}

/// Everything that a machine is made of.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MachineSpec {
    /// vCPUs, memory, CPU model.
    pub machine: MachineConfig,
    /// Kernel, command line, initrd; none until it is given.
    pub boot: Option<BootSourceConfig>,
    /// virtio devices.
    pub devices: DevicesConfig,
}

impl MachineSpec {
    /// Checks that the files that it names are there and can be opened as it says.
    ///
    /// # Errors
    /// Names the file.
    pub fn check_files(&self) -> Result<(), Invalid> {
        self.boot.iter().try_for_each(BootSourceConfig::check_files)?;
        self.devices
            .drives
            .iter()
            .try_for_each(|d| d.check().map_err(|e| Invalid::new("drives", e.to_string())))
    }
}

/// Makes a `deserialize_with` function that takes null or an empty list and refuses all else by the field's name.
macro_rules! refused {
    ($($name:ident: $field:literal, $why:literal;)*) => {
        $(fn $name<'de, D: serde::Deserializer<'de>>(d: D) -> Result<(), D::Error> {
            match <Option<serde_json::Value> as serde::Deserialize>::deserialize(d)? {
                None => Ok(()),
                // No device of a kind that is not offered is none.
                Some(serde_json::Value::Array(list)) if list.is_empty() => Ok(()),
                Some(_) => Err(serde::de::Error::custom(concat!("`", $field, "` is not supported: ", $why))),
            }
        })*
    };
}
pub(crate) use refused;
