//! What may be asked of the control thread, when, and what it answers.

use crate::config::{
    BalloonStatsUpdate, BalloonUpdate, BootSourceConfig, DriveUpdate, Invalid, LoggerConfig, MachineConfig,
    MachineConfigUpdate, MachineSpec, MetricsConfig, NetUpdate, ReceiveRequest, SerialConfig, SnapshotCreate,
    SnapshotLoad,
};
use crate::mmds::Metadata;
use crate::virtio::balloon::{BalloonConfig, BalloonStats};
use crate::virtio::block::DriveConfig;
use crate::virtio::net::{MmdsConfig, NetworkInterfaceConfig};
use crate::virtio::rng::EntropyConfig;
use crate::virtio::vsock::VsockConfig;
use serde::{Serialize, Serializer};
use std::fmt;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Being configured.
    NotStarted,
    /// A guest from elsewhere is waited for, or arrives.
    Receiving,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
    /// The guest is another host's.
    GivenAway,
}

impl fmt::Display for Stage {
    /// Firecracker's words for the stages that it has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::NotStarted => "Not started",
            Stage::Receiving => "Receiving",
            Stage::Running => "Running",
            Stage::Paused => "Paused",
            Stage::GivenAway => "Migrated",
        })
    }
}

impl Serialize for Stage {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A piece of configuration from the API.
#[derive(Debug, Clone)]
pub enum ConfigPart {
    /// `/boot-source`.
    BootSource(BootSourceConfig),
    /// `/machine-config`.
    Machine(MachineConfig),
    /// A change of `/machine-config`.
    MachineUpdate(MachineConfigUpdate),
    /// `/drives/ID`.
    Drive(DriveConfig),
    /// `/network-interfaces/ID`.
    Net(NetworkInterfaceConfig),
    /// `/mmds/config`.
    Mmds(MmdsConfig),
    /// `/vsock`.
    Vsock(VsockConfig),
    /// `/balloon`.
    Balloon(BalloonConfig),
    /// `/entropy`.
    Entropy(EntropyConfig),
}

/// A balloon cannot take more than all of the memory.
fn balloon_fits(balloon: Option<&BalloonConfig>, machine: &MachineConfig) -> Result<(), Invalid> {
    match balloon {
        Some(b) if u64::from(b.amount_mib) > machine.mem_size_mib => {
            let why = format!(
                "the balloon's {} MiB are more than the guest's {}",
                b.amount_mib, machine.mem_size_mib
            );
            Err(Invalid::new("amount_mib", why))
        }
        _ => Ok(()),
    }
}

impl ConfigPart {
    /// Puts it into a configuration, in the place of what has its name.
    ///
    /// # Errors
    /// Names the field; nothing is changed.
    pub(crate) fn apply(self, config: &mut MachineSpec) -> Result<(), Invalid> {
        let devices = &mut config.devices;
        match self {
            ConfigPart::BootSource(b) => {
                b.validate()?;
                config.boot = Some(b);
            }
            ConfigPart::Machine(m) => {
                m.validate()?;
                balloon_fits(devices.balloon.as_ref(), &m)?;
                config.machine = m;
            }
            ConfigPart::MachineUpdate(update) => {
                let m = update.apply(&config.machine);
                m.validate()?;
                balloon_fits(devices.balloon.as_ref(), &m)?;
                config.machine = m;
            }
            ConfigPart::Drive(d) => {
                if d.socket.is_some() {
                    return Err(Invalid::new("socket", "vhost-user is not offered: give path_on_host"));
                }
                let other = |x: &&DriveConfig| x.is_root_device && x.drive_id != d.drive_id;
                if d.is_root_device && devices.drives.iter().find(other).is_some() {
                    return Err(Invalid::new("is_root_device", "a root device is configured already"));
                }
                match devices.drives.iter_mut().find(|x| x.drive_id == d.drive_id) {
                    Some(old) => *old = d,
                    None => devices.drives.push(d),
                }
            }
            ConfigPart::Net(n) => {
                match devices.network_interfaces.iter_mut().find(|x| x.iface_id == n.iface_id) {
                    Some(old) => *old = n,
                    None => devices.network_interfaces.push(n),
                }
            }
            ConfigPart::Mmds(m) => {
                m.validate(&devices.network_interfaces)
                    .map_err(|e| Invalid::new("mmds/config", e.to_string()))?;
                devices.mmds = Some(m);
            }
            ConfigPart::Vsock(v) => {
                if !(3..u32::MAX.into()).contains(&u64::from(v.guest_cid)) {
                    return Err(Invalid::new("guest_cid", "0 to 2 and the highest are not a guest's"));
                }
                devices.vsock = Some(v);
            }
            ConfigPart::Balloon(b) if b.free_page_hinting => {
                return Err(Invalid::new("free_page_hinting", "only false: use free_page_reporting"));
            }
            ConfigPart::Balloon(b) => {
                balloon_fits(Some(&b), &config.machine)?;
                devices.balloon = Some(b);
            }
            ConfigPart::Entropy(e) => devices.entropy = Some(e),
        }
        Ok(())
    }
}

/// A change of a device while the machine is there.
#[derive(Debug, Clone)]
pub enum DeviceUpdate {
    /// `/drives/ID`.
    Drive(DriveUpdate),
    /// `/network-interfaces/ID`.
    Net(NetUpdate),
    /// `/balloon`.
    Balloon(BalloonUpdate),
    /// `/balloon/statistics`.
    BalloonStats(BalloonStatsUpdate),
}

/// A request to the control thread.
#[derive(Debug, Clone)]
pub enum Action {
    /// Who are you?
    Describe,
    /// The whole configuration.
    Config,
    /// Change the configuration.
    Configure(Box<ConfigPart>),
    /// Change a device.
    Update(Box<DeviceUpdate>),
    /// Where the serial port's output goes.
    Serial(SerialConfig),
    /// What is logged, and where.
    Logger(LoggerConfig),
    /// Where metrics go.
    Metrics(MetricsConfig),
    /// Write metrics now.
    FlushMetrics,
    /// The metadata for the guest.
    Metadata,
    /// Replace it.
    PutMetadata(Metadata),
    /// Change it.
    PatchMetadata(Metadata),
    /// The balloon as it is.
    Balloon,
    /// What the guest says of its memory.
    BalloonStats,
    /// Write a snapshot.
    Snapshot(SnapshotCreate),
    /// Go on from a snapshot.
    Load(Box<SnapshotLoad>),
    /// Wait for a guest from elsewhere.
    Receive(Box<ReceiveRequest>),
    /// Build, boot and run.
    Start,
    /// Hold the guest.
    Pause,
    /// Let it go on.
    Resume,
    /// Type Ctrl-Alt-Del.
    CtrlAltDel,
    /// The backend's counters.
    Counters,
    /// End.
    Quit,
}

impl Action {
    /// Its name, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Action::Describe => "describe",
            Action::Config => "read the configuration of",
            Action::Configure(_) => "change the configuration of",
            Action::Update(_) => "change a device of",
            Action::Serial(_) => "redirect the serial port of",
            Action::Logger(_) => "set up the log of",
            Action::Metrics(_) => "set up metrics of",
            Action::FlushMetrics => "write metrics of",
            Action::Metadata => "read the metadata of",
            Action::PutMetadata(_) | Action::PatchMetadata(_) => "change the metadata of",
            Action::Balloon => "read the balloon of",
            Action::BalloonStats => "read balloon statistics of",
            Action::Snapshot(_) => "take a snapshot of",
            Action::Load(_) => "load a snapshot into",
            Action::Receive(_) => "receive a guest into",
            Action::Start => "start",
            Action::Pause => "pause",
            Action::Resume => "resume",
            Action::CtrlAltDel => "type Ctrl-Alt-Del to",
            Action::Counters => "read counters of",
            Action::Quit => "end",
        }
    }

    /// The one table: which action may be done in which stage.
    pub fn legal(&self, stage: Stage) -> bool {
        use Stage::{NotStarted, Paused, Running};
        match self {
            Action::Describe | Action::Config | Action::Quit => true,
            Action::Logger(_) | Action::Metrics(_) | Action::FlushMetrics | Action::Balloon => true,
            Action::Metadata | Action::PutMetadata(_) | Action::PatchMetadata(_) => true,
            Action::Configure(_) | Action::Serial(_) | Action::Load(_) | Action::Start => stage == NotStarted,
            Action::Receive(_) => stage == NotStarted,
            Action::Update(_) | Action::BalloonStats => matches!(stage, Running | Paused),
            // Firecracker wants it paused too: who asks knows that the guest stands still.
            Action::Snapshot(_) => stage == Paused,
            // Pausing what is paused is no error in Firecracker either.
            Action::Pause | Action::Resume => matches!(stage, Running | Paused),
            Action::CtrlAltDel => stage == Running,
            Action::Counters => !matches!(stage, NotStarted | Stage::Receiving),
        }
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Nothing to say.
    Done,
    /// To [`Action::Describe`].
    Instance(InstanceInfo),
    /// To [`Action::Config`].
    Config(Box<MachineSpec>),
    /// To [`Action::Metadata`]; `None` until something was put.
    Metadata(Option<Metadata>),
    /// To [`Action::Balloon`].
    Balloon(BalloonConfig),
    /// To [`Action::BalloonStats`].
    BalloonStats(BalloonStats),
    /// To [`Action::Counters`].
    Counters(Vec<(String, u64)>),
}

/// Who this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceInfo {
    /// `--id`.
    pub id: String,
    /// Stage.
    pub state: Stage,
    /// Name of the backend, for people.
    pub backend: String,
    /// What it says of itself.
    pub backend_summary: String,
    /// CPU models that a guest can have on this host.
    pub backend_models: Vec<String>,
}

fn firecrackers(stage: Stage, early: bool) -> &'static str {
    match stage {
        Stage::NotStarted => "The requested operation is not supported before starting the microVM.",
        Stage::Receiving => "This instance waits for a guest from elsewhere.",
        Stage::GivenAway => "The microVM is another host's now.",
        _ if early => "The requested operation is not supported after starting the microVM.",
        _ => "The requested operation is not supported in this state of the microVM.",
    }
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not now. Firecracker's sentence first: its clients look for it.
    #[error("{} Cannot {action} a machine that is in the state {stage}.", firecrackers(*stage, *early))]
    Stage {
        /// What was asked.
        action: &'static str,
        /// Where the machine is.
        stage: Stage,
        /// It may be done before the start.
        early: bool,
    },
    /// Only of a machine that stands still.
    #[error(
        "Create snapshot error: Operation not allowed: save/restore unavailable while running: pause the microVM first (PATCH /vm; it is in the state Running)."
    )]
    Unpaused,
    /// It was tried.
    #[error("{0}")]
    Failed(String),
    /// More than fits.
    #[error("{0}")]
    TooLarge(String),
    /// The control thread has ended.
    #[error("the machine has ended")]
    Ended,
}
