//! `PUT` and `PATCH /machine-config`: vCPUs, memory, CPU model.

use super::Invalid;
use godwit_state::Model;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Most vCPUs of a machine.
pub const MAX_VCPUS: u8 = 32;
/// Most memory of a machine, in MiB.
pub const MAX_MEM_MIB: u64 = 64 * 1024;

/// Firecracker's CPU templates: none of them is of use here, CPU models take their place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuTemplate {
    /// No template.
    #[default]
    None,
    /// Refused by name.
    C3,
    /// Refused by name.
    T2,
    /// Refused by name.
    T2S,
    /// Refused by name.
    T2CL,
    /// Refused by name.
    T2A,
    /// Refused by name.
    V1N1,
}

/// Page size that backs guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// The host's base pages.
    #[default]
    None,
    /// Refused by name.
    Transparent,
    /// Refused by name.
    #[serde(rename = "2M")]
    TwoMiB,
}

fn model_out<S: Serializer>(model: &Option<Model>, s: S) -> Result<S::Ok, S::Error> {
    model.map(Model::name).serialize(s)
}

fn model_in<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Model>, D::Error> {
    let name = Option::<String>::deserialize(d)?;
    name.map(|n| n.parse().map_err(|e| serde::de::Error::custom(format!("cpu_model: {e}")))).transpose()
}

fn default_vcpus() -> u8 {
    1
}

fn default_mem() -> u64 {
    128
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// 1 to [`MAX_VCPUS`].
    #[serde(default = "default_vcpus")]
    pub vcpu_count: u8,
    /// 1 to [`MAX_MEM_MIB`].
    #[serde(default = "default_mem")]
    pub mem_size_mib: u64,
    /// Two hardware threads a core; only `false` is offered.
    #[serde(default)]
    pub smt: bool,
    /// Only "None" is offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Keep dirty bits from the start, for diff snapshots.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Only "None" is offered.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// Godwit's own: the CPU that the guest sees; absent: the best portable one that the backend has.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "model_out",
        deserialize_with = "model_in"
    )]
    pub cpu_model: Option<Model>,
    /// Godwit's own: frequency of the guest's TSC in kHz; absent: the backend's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsc_khz: Option<u64>,
    /// Godwit's own: go on with another TSC frequency where that one cannot be had.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_tsc_mismatch: bool,
}

impl Default for MachineConfig {
    fn default() -> Self {
        MachineConfig {
            vcpu_count: default_vcpus(),
            mem_size_mib: default_mem(),
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            cpu_model: None,
            tsc_khz: None,
            allow_tsc_mismatch: false,
        }
    }
}

impl MachineConfig {
    /// Memory in bytes.
    pub fn mem_bytes(&self) -> u64 {
        self.mem_size_mib << 20
    }

    /// Checks that this machine can be built.
    ///
    /// # Errors
    /// The first field that cannot be honoured.
    pub fn validate(&self) -> Result<(), Invalid> {
        if !(1..=MAX_VCPUS).contains(&self.vcpu_count) {
            return Err(Invalid::new(
                "vcpu_count",
                format!("{} is not in 1 to {MAX_VCPUS}", self.vcpu_count),
            ));
        }
        if !(1..=MAX_MEM_MIB).contains(&self.mem_size_mib) {
            return Err(Invalid::new(
                "mem_size_mib",
                format!("{} is not in 1 to {MAX_MEM_MIB}", self.mem_size_mib),
            ));
        }
        if self.smt {
            return Err(Invalid::new("smt", "only false: a guest's vCPUs are whole cores here"));
        }
        if self.cpu_template.is_some_and(|t| t != CpuTemplate::None) {
            let why = "only \"None\": use cpu_model (x86-64, x86-64-v2, x86-64-v3 or host) instead";
            return Err(Invalid::new("cpu_template", why));
        }
        if self.huge_pages != HugePages::None {
            return Err(Invalid::new("huge_pages", "only \"None\""));
        }
        if self.tsc_khz.is_some_and(|f| !(10_000..=100_000_000).contains(&f)) {
            return Err(Invalid::new("tsc_khz", "not in 10,000 to 100,000,000 (10 MHz to 100 GHz)"));
        }
        Ok(())
    }
}

/// A partial change: what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfigUpdate {
    /// See [`MachineConfig`].
    pub vcpu_count: Option<u8>,
    /// See [`MachineConfig`].
    pub mem_size_mib: Option<u64>,
    /// See [`MachineConfig`].
    pub smt: Option<bool>,
    /// See [`MachineConfig`].
    pub cpu_template: Option<CpuTemplate>,
    /// See [`MachineConfig`].
    pub track_dirty_pages: Option<bool>,
    /// See [`MachineConfig`].
    pub huge_pages: Option<HugePages>,
    /// See [`MachineConfig`].
    #[serde(default, serialize_with = "model_out", deserialize_with = "model_in")]
    pub cpu_model: Option<Model>,
    /// See [`MachineConfig`].
    pub tsc_khz: Option<u64>,
    /// See [`MachineConfig`].
    pub allow_tsc_mismatch: Option<bool>,
}

impl MachineConfigUpdate {
    /// `config` with these changes.
    pub fn apply(&self, config: &MachineConfig) -> MachineConfig {
        MachineConfig {
            vcpu_count: self.vcpu_count.unwrap_or(config.vcpu_count),
            mem_size_mib: self.mem_size_mib.unwrap_or(config.mem_size_mib),
            smt: self.smt.unwrap_or(config.smt),
            cpu_template: self.cpu_template.or(config.cpu_template),
            track_dirty_pages: self.track_dirty_pages.unwrap_or(config.track_dirty_pages),
            huge_pages: self.huge_pages.unwrap_or(config.huge_pages),
            cpu_model: self.cpu_model.or(config.cpu_model),
            tsc_khz: self.tsc_khz.or(config.tsc_khz),
            allow_tsc_mismatch: self.allow_tsc_mismatch.unwrap_or(config.allow_tsc_mismatch),
        }
    }
}
