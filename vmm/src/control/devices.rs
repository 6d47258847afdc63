//! Changing devices of a machine that is there: `PATCH` requests, and the balloon's answers.

use super::{Control, Denied, DeviceUpdate};
use crate::config::{DriveUpdate, NetUpdate};
use crate::machine::Machine;
use crate::virtio::balloon::{Balloon, BalloonConfig, BalloonStats};
use crate::virtio::slots::{Shared, lock_device};

fn failed(e: impl std::fmt::Display) -> Denied {
    Denied::Failed(e.to_string())
}

fn missing(what: &str) -> Denied {
    Denied::Failed(format!("there is no {what}"))
}

impl Control {
    fn there(&self) -> Result<&Machine, Denied> {
        self.machine.as_ref().ok_or_else(|| missing("machine"))
    }

    fn balloon_device(&self) -> Result<&Shared<Balloon>, Denied> {
        self.there()?.slots().balloon().ok_or_else(|| missing("balloon"))
    }

    /// The balloon's configuration, before and after the start.
    pub(super) fn balloon(&self) -> Result<BalloonConfig, Denied> {
        match &self.machine {
            Some(_) => {
                Ok(lock_device(self.balloon_device()?).map_err(failed)?.device().current_config().clone())
            }
            None => self.config.devices.balloon.clone().ok_or_else(|| missing("balloon")),
        }
    }

    /// What the guest says.
    pub(super) fn balloon_stats(&self) -> Result<BalloonStats, Denied> {
        let stats = lock_device(self.balloon_device()?).map_err(failed)?.device().statistics();
        stats.ok_or_else(|| failed("the balloon was configured without stats_polling_interval_s"))
    }

    /// Changes a device, and the configuration that describes it.
    pub(super) fn update(&mut self, update: DeviceUpdate) -> Result<(), Denied> {
        match update {
            DeviceUpdate::Drive(update) => self.update_drive(&update),
            DeviceUpdate::Net(update) => self.update_net(&update),
            DeviceUpdate::Balloon(update) => {
                {
                    let mut balloon = lock_device(self.balloon_device()?).map_err(failed)?;
                    balloon.device_mut().set_target(update.amount_mib).map_err(failed)?;
                    balloon.config_changed();
                }
                if let Some(config) = &mut self.config.devices.balloon {
                    config.amount_mib = update.amount_mib;
                }
                Ok(())
            }
            DeviceUpdate::BalloonStats(update) => {
                let seconds = update.stats_polling_interval_s;
                {
                    let mut balloon = lock_device(self.balloon_device()?).map_err(failed)?;
                    let on = balloon.device().current_config().stats_polling_interval_s > 0;
                    if on != (seconds > 0) {
                        let why =
                            "stats_polling_interval_s: statistics are turned on or off before the start only";
                        return Err(failed(why));
                    }
                    balloon.device_mut().set_polling_interval(seconds).map_err(failed)?;
                }
                if let Some(config) = &mut self.config.devices.balloon {
                    config.stats_polling_interval_s = seconds;
                }
                Ok(())
            }
        }
    }

    fn update_drive(&mut self, update: &DriveUpdate) -> Result<(), Denied> {
        let id = &update.drive_id;
        let no_drive = || missing(&format!("drive {id}"));
        let place = self.config.devices.drives.iter().position(|d| d.drive_id == *id).ok_or_else(no_drive)?;
        let mut config = self.config.devices.drives[place].clone();
        {
            let drive = self.there()?.slots().drive(id).ok_or_else(no_drive)?;
            let mut drive = lock_device(drive).map_err(failed)?;
            if let Some(path) = &update.path_on_host {
                config.path_on_host = Some(path.clone());
                drive.device_mut().replace_disk(&config).map_err(failed)?;
                drive.config_changed();
            }
            if let Some(limiter) = &update.rate_limiter {
                drive.device_mut().update_limiter(limiter);
                config.rate_limiter = Some(*limiter);
                drive.kick();
            }
        }
        self.config.devices.drives[place] = config;
        Ok(())
    }

    fn update_net(&mut self, update: &NetUpdate) -> Result<(), Denied> {
        let id = &update.iface_id;
        let no_net = || missing(&format!("network interface {id}"));
        {
            let net = self.there()?.slots().interface(id).ok_or_else(no_net)?;
            let mut net = lock_device(net).map_err(failed)?;
            net.device_mut()
                .update_limiters(update.rx_rate_limiter.as_ref(), update.tx_rate_limiter.as_ref());
            net.kick();
        }
        let found = self.config.devices.network_interfaces.iter_mut().find(|n| n.iface_id == *id);
        let config = found.ok_or_else(no_net)?;
        config.rx_rate_limiter = update.rx_rate_limiter.or(config.rx_rate_limiter);
        config.tx_rate_limiter = update.tx_rate_limiter.or(config.tx_rate_limiter);
        Ok(())
    }
}
