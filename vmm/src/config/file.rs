//! The config file: one JSON object with a member for each request that would configure the same by the API.

use super::{
    BootSourceConfig, Invalid, LoggerConfig, MachineConfig, MachineSpec, MetricsConfig, SerialConfig,
    refused, shape,
};
use crate::virtio::balloon::BalloonConfig;
use crate::virtio::block::DriveConfig;
use crate::virtio::net::{MmdsConfig, NetworkInterfaceConfig};
use crate::virtio::rng::EntropyConfig;
use crate::virtio::slots::DevicesConfig;
use crate::virtio::vsock::VsockConfig;
use serde::{Deserialize, Deserializer};
use std::path::{Path, PathBuf};

/// Longest config file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

refused! {
    cpu_config: "cpu-config", "custom CPU templates are not offered; use cpu_model in machine-config";
    pmem: "pmem", "persistent memory devices are not offered";
    memory_hotplug: "memory-hotplug", "memory cannot be plugged in";
}

/// Null is as good as absent.
fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

/// The file as it is.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ConfigFile {
    /// What to boot.
    pub boot_source: BootSourceConfig,
    /// vCPUs, memory, CPU model.
    #[serde(default, deserialize_with = "or_default")]
    pub machine_config: MachineConfig,
    /// Disks.
    #[serde(default, deserialize_with = "or_default")]
    pub drives: Vec<DriveConfig>,
    /// Network interfaces.
    #[serde(default, deserialize_with = "or_default")]
    pub network_interfaces: Vec<NetworkInterfaceConfig>,
    /// Entropy device.
    #[serde(default)]
    pub entropy: Option<EntropyConfig>,
    /// Memory that can be taken back.
    #[serde(default)]
    pub balloon: Option<BalloonConfig>,
    /// Sockets between guest and host.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Metadata service.
    #[serde(default)]
    pub mmds_config: Option<MmdsConfig>,
    /// Log.
    #[serde(default)]
    pub logger: Option<LoggerConfig>,
    /// Where metrics go.
    #[serde(default)]
    pub metrics: Option<MetricsConfig>,
    /// Where the serial port's output goes.
    #[serde(default, alias = "serial-config")]
    pub serial: Option<SerialConfig>,
    #[serde(default, rename = "cpu-config", deserialize_with = "cpu_config")]
    _cpu_config: (),
    #[serde(default, rename = "pmem", deserialize_with = "pmem")]
    _pmem: (),
    #[serde(default, rename = "memory-hotplug", deserialize_with = "memory_hotplug")]
    _memory_hotplug: (),
}

/// Why a config file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It could not be read.
    #[error("config file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// It is larger than any config file.
    #[error("{}: larger than {MAX_FILE} bytes: is this a config file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Not JSON, or not of the right shape; the text has line and column.
    #[error("{}: {why}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What and where.
        why: String,
    },
    /// A value that cannot be honoured.
    #[error("{}: {source}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Which and why.
        source: Invalid,
    },
}

impl ConfigFile {
    /// The machine that the file describes.
    pub fn spec(&self) -> MachineSpec {
        MachineSpec {
            machine: self.machine_config.clone(),
            boot: Some(self.boot_source.clone()),
            devices: DevicesConfig {
                drives: self.drives.clone(),
                network_interfaces: self.network_interfaces.clone(),
                mmds: self.mmds_config.clone(),
                entropy: self.entropy.clone(),
                vsock: self.vsock.clone(),
                balloon: self.balloon.clone(),
            },
        }
    }
}

/// Parses the text of a config file; `path` is for messages.
///
/// # Errors
/// See [`ConfigError`].
pub fn parse(path: &Path, text: &str) -> Result<ConfigFile, ConfigError> {
    let path = || path.to_owned();
    let file: ConfigFile =
        shape::read(text.as_bytes(), "the file").map_err(|why| ConfigError::Shape { path: path(), why })?;
    file.machine_config
        .validate()
        .and_then(|()| file.boot_source.validate())
        .and_then(|()| match &file.mmds_config {
            Some(mmds) => mmds
                .validate(&file.network_interfaces)
                .map_err(|e| Invalid::new("mmds-config", e.to_string())),
            None => Ok(()),
        })
        .map_err(|source| ConfigError::Value { path: path(), source })?;
    Ok(file)
}

/// Reads and parses a config file.
///
/// # Errors
/// See [`ConfigError`].
pub fn read(path: &Path) -> Result<ConfigFile, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_FILE + 1), &mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    parse(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_state::Model;

    fn error(text: &str) -> String {
        parse(Path::new("vm.json"), text).unwrap_err().to_string()
    }

    #[test]
    fn firecrackers_example_is_taken() {
        let file = parse(
            Path::new("vm.json"),
            r#"{
  "boot-source": { "kernel_image_path": "vmlinux.bin", "boot_args": "console=ttyS0 reboot=k panic=1 pci=off", "initrd_path": null },
  "drives": [
    { "drive_id": "rootfs", "partuuid": null, "is_root_device": true, "cache_type": "Unsafe", "is_read_only": false,
      "path_on_host": "bionic.rootfs.ext4", "io_engine": "Sync", "rate_limiter": null, "socket": null }
  ],
  "machine-config": { "vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false, "huge_pages": "None" },
  "cpu-config": null, "balloon": null, "network-interfaces": [], "vsock": null, "logger": null, "metrics": null,
  "mmds-config": null, "entropy": null
}"#,
        )
        .unwrap();
        let spec = file.spec();
        assert_eq!((spec.machine.vcpu_count, spec.machine.mem_bytes()), (2, 1 << 30));
        assert_eq!(spec.devices.drives[0].drive_id, "rootfs");
        assert_eq!(spec.boot.unwrap().args(), "console=ttyS0 reboot=k panic=1 pci=off");
    }

    #[test]
    fn what_is_not_known_is_refused_by_name_and_place() {
        let e = error("{\n  \"boot-source\": {\"kernel_image_path\": \"k\"},\n  \"machine-confg\": {}\n}");
        assert!(e.contains("vm.json") && e.contains("machine-confg") && e.contains("line 3 column"), "{e}");
        let e = error("{\"boot-source\": {\"kernel_image_path\": \"k\", \"bootargs\": \"\"}}");
        assert!(e.contains("bootargs") && e.contains("line 1 column"), "{e}");
        let e = error("{\"machine-config\": {}}");
        assert!(e.contains("boot-source"), "{e}");
        let e = error("{\"boot-source\": {\"kernel_image_path\": \"k\"},\n\"drivs\": []}");
        assert!(
            e.contains("`drivs`") && e.contains("line 2") && e.ends_with("did you mean `drives`?"),
            "{e}"
        );
        assert!(error("[]").ends_with("the file: an object is wanted, not an array"));
        let e = error("{\"boot-source\": {\"kernel_image_path\": \"k\"}\n\"x\"");
        assert!(e.contains("line 2 column"), "{e}");
    }

    #[test]
    fn what_is_not_offered_is_refused_by_name_and_place() {
        for name in ["cpu-config", "pmem", "memory-hotplug"] {
            let with = |value: &str| {
                format!("{{\n\"boot-source\": {{\"kernel_image_path\": \"k\"}},\n\"{name}\": {value} }}")
            };
            let e = error(&with("{\"a\": 1}"));
            assert!(e.contains(&format!("`{name}` is not supported")) && e.contains("line 3 column"), "{e}");
            assert!(parse(Path::new("x"), &with("null")).is_ok(), "{name}");
        }
        let machine = |m: &str| {
            format!("{{\"boot-source\": {{\"kernel_image_path\": \"k\"}}, \"machine-config\": {{{m}}}}}")
        };
        for (field, value) in [
            ("vcpu_count", "0"),
            ("vcpu_count", "33"),
            ("mem_size_mib", "0"),
            ("mem_size_mib", "65537"),
            ("smt", "true"),
            ("cpu_template", "\"T2\""),
            ("huge_pages", "\"2M\""),
            ("cpu_model", "\"pentium\""),
            ("tsc_khz", "1"),
        ] {
            let e = error(&machine(&format!("\"{field}\": {value}")));
            assert!(e.contains(field), "{field}: {e}");
        }
        let e = error(&machine("\"mem_size_mib\": -1"));
        assert!(e.contains("line 1 column"), "{e}");
    }

    #[test]
    fn what_is_observed_may_be_said_in_the_file_too() {
        let text = r#"{"boot-source": {"kernel_image_path": "k"}, "drives": null, "machine-config": null,
            "logger": {"log_path": "l", "level": "dEBUG", "show_level": true, "module": "godwit_vmm::api"},
            "metrics": {"metrics_path": "m"}, "serial": {"serial_out_path": "s"}}"#;
        let file = parse(Path::new("x"), text).unwrap();
        assert_eq!(file.metrics.unwrap().metrics_path, Path::new("m"));
        assert_eq!(file.serial.unwrap().serial_out_path.as_deref(), Some(Path::new("s")));
        assert_eq!(file.logger.unwrap().log_path.as_deref(), Some(Path::new("l")));
        let e =
            error(r#"{"boot-source": {"kernel_image_path": "k"}, "serial": {"rate_limiter": {"size": 1}}}"#);
        assert!(e.contains("refill_time"), "{e}");
    }

    #[test]
    fn our_own_fields_are_taken() {
        let text = r#"{"boot-source": {"kernel_image_path": "k"}, "machine-config": {"cpu_model": "x86-64-v2", "tsc_khz": 1000000}}"#;
        let spec = parse(Path::new("x"), text).unwrap().spec();
        assert_eq!((spec.machine.cpu_model, spec.machine.tsc_khz), (Some(Model::V2), Some(1_000_000)));
        assert_eq!((spec.machine.vcpu_count, spec.machine.mem_size_mib), (1, 128));
    }

    #[test]
    fn a_command_line_has_bounds() {
        let boot = |args: &str| {
            let config = serde_json::json!({"kernel_image_path": "k", "boot_args": args});
            serde_json::from_value::<BootSourceConfig>(config).unwrap().validate()
        };
        assert!(boot(&"a".repeat(2047)).is_ok());
        assert_eq!(boot(&"a".repeat(2048)).unwrap_err().field, "boot_args");
        assert_eq!(boot("a\nb").unwrap_err().field, "boot_args");
    }
}
