//! What may be asked of the control thread, when, and what it answers.

use crate::config::{BootSourceConfig, Invalid, MachineConfig, MachineConfigUpdate, MachineSpec};
use crate::virtio::balloon::BalloonConfig;
use crate::virtio::block::DriveConfig;
use crate::virtio::net::NetworkInterfaceConfig;
use crate::virtio::rng::EntropyConfig;
use crate::virtio::vsock::VsockConfig;
use serde::{Serialize, Serializer};
use std::fmt;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Being configured.
    NotStarted,
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
    /// `/vsock`.
    Vsock(VsockConfig),
    /// `/balloon`.
    Balloon(BalloonConfig),
    /// `/entropy`.
    Entropy(EntropyConfig),
}

impl ConfigPart {
    /// Puts it into a configuration, in the place of what has its name.
    ///
    /// # Errors
    /// Names the field; nothing is changed.
    pub(super) fn apply(self, config: &mut MachineSpec) -> Result<(), Invalid> {
        let devices = &mut config.devices;
        match self {
            ConfigPart::BootSource(b) => {
                b.validate()?;
                config.boot = Some(b);
            }
            ConfigPart::Machine(m) => {
                m.validate()?;
                config.machine = m;
            }
            ConfigPart::MachineUpdate(update) => {
                let m = update.apply(&config.machine);
                m.validate()?;
                config.machine = m;
            }
            ConfigPart::Drive(d) => {
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
            ConfigPart::Vsock(v) => devices.vsock = Some(v),
            ConfigPart::Balloon(b) => devices.balloon = Some(b),
            ConfigPart::Entropy(e) => devices.entropy = Some(e),
        }
        Ok(())
    }
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
            Action::Config => "read the configuration",
            Action::Configure(_) => "change the configuration",
            Action::Start => "start",
            Action::Pause => "pause",
            Action::Resume => "resume",
            Action::CtrlAltDel => "type Ctrl-Alt-Del",
            Action::Counters => "read counters",
            Action::Quit => "end",
        }
    }

    /// The one table: which action may be done in which stage.
    pub fn legal(&self, stage: Stage) -> bool {
        use Stage::{NotStarted, Paused, Running};
        match self {
            Action::Describe | Action::Config | Action::Quit => true,
            Action::Configure(_) | Action::Start => stage == NotStarted,
            // Pausing what is paused is no error in Firecracker either.
            Action::Pause | Action::Resume => matches!(stage, Running | Paused),
            Action::CtrlAltDel => stage == Running,
            Action::Counters => stage != NotStarted,
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
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Not now.
    #[error("cannot {action} a machine that is in the state {stage}")]
    Stage {
        /// What was asked.
        action: &'static str,
        /// Where the machine is.
        stage: Stage,
    },
    /// It was tried.
    #[error("{0}")]
    Failed(String),
    /// The control thread has ended.
    #[error("the machine has ended")]
    Ended,
}
