//! What the devices of a guest that arrives, or is restored, get instead of the host paths and names that they had.

use crate::config::{DriveOverride, NetworkOverride, PasstOverride, VsockOverride};
use crate::virtio::slots::DevicesConfig;
use std::str::FromStr;

/// A device's name, and the path or interface that it gets here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// Name of the device in its configuration.
    pub id: String,
    /// What it gets.
    pub with: String,
}

impl FromStr for Replacement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((id, with)) if !id.is_empty() && !with.is_empty() => {
                Ok(Replacement { id: id.into(), with: with.into() })
            }
            _ => Err(format!("{text:?} is not of the form ID=WHAT")),
        }
    }
}

/// All replacements.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Disks: files on this host.
    pub drives: Vec<Replacement>,
    /// Network interfaces: TAP interfaces of this host.
    pub taps: Vec<Replacement>,
    /// Network interfaces: sockets of passt processes of this host.
    pub passt: Vec<Replacement>,
    /// Where the vsock device's Unix socket lies here.
    pub vsock_uds: Option<String>,
}

impl Overrides {
    /// As requests name them.
    pub fn of(
        drives: &[DriveOverride],
        taps: &[NetworkOverride],
        passt: &[PasstOverride],
        vsock: Option<&VsockOverride>,
    ) -> Self {
        let one = |id: &str, with: &str| Replacement { id: id.into(), with: with.into() };
        Overrides {
            drives: drives.iter().map(|o| one(&o.drive_id, &o.path_on_host)).collect(),
            taps: taps.iter().map(|o| one(&o.iface_id, &o.host_dev_name)).collect(),
            passt: passt.iter().map(|o| one(&o.iface_id, &o.passt_socket)).collect(),
            vsock_uds: vsock.map(|o| o.uds_path.clone()),
        }
    }

    /// Puts them in the place of what the sender had.
    ///
    /// # Errors
    /// A device that the guest does not have, by name: a typing error must not leave the guest on the wrong disk.
    pub fn apply(&self, devices: &mut DevicesConfig) -> Result<(), String> {
        for Replacement { id, with } in &self.drives {
            let drive = devices.drives.iter_mut().find(|d| d.drive_id == *id);
            drive.ok_or_else(|| format!("the guest has no drive {id}"))?.path_on_host = Some(with.clone());
        }
        for (list, is_tap) in [(&self.taps, true), (&self.passt, false)] {
            for Replacement { id, with } in list {
                let iface = devices.network_interfaces.iter_mut().find(|n| n.iface_id == *id);
                let iface = iface.ok_or_else(|| format!("the guest has no network interface {id}"))?;
                let (tap, passt) =
                    if is_tap { (Some(with.clone()), None) } else { (None, Some(with.clone())) };
                (iface.host_dev_name, iface.passt_socket) = (tap, passt);
            }
        }
        if let Some(path) = &self.vsock_uds {
            let vsock = devices.vsock.as_mut().ok_or("the guest has no vsock device")?;
            vsock.uds_path.clone_from(path);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> DevicesConfig {
        DevicesConfig {
            drives: vec![
                serde_json::from_str(r#"{"drive_id":"root","path_on_host":"/a","is_root_device":true}"#)
                    .unwrap(),
            ],
            network_interfaces: vec![
                serde_json::from_str(r#"{"iface_id":"eth0","host_dev_name":"tap0"}"#).unwrap(),
            ],
            vsock: Some(serde_json::from_str(r#"{"guest_cid":3,"uds_path":"/v"}"#).unwrap()),
            ..DevicesConfig::default()
        }
    }

    #[test]
    fn what_is_named_is_replaced_and_nothing_else() {
        let mut d = devices();
        let overrides = Overrides {
            drives: vec!["root=/b=c".parse().unwrap()],
            passt: vec!["eth0=/run/passt".parse().unwrap()],
            ..Overrides::default()
        };
        overrides.apply(&mut d).unwrap();
        assert_eq!(d.drives[0].path_on_host.as_deref(), Some("/b=c"));
        assert_eq!(d.network_interfaces[0].host_dev_name, None);
        assert_eq!(d.network_interfaces[0].passt_socket.as_deref(), Some("/run/passt"));
        assert_eq!(d.vsock.as_ref().unwrap().uds_path, "/v");
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_by_name() {
        for (overrides, name) in [
            (Overrides { drives: vec!["boot=/b".parse().unwrap()], ..Overrides::default() }, "boot"),
            (Overrides { taps: vec!["eth1=t".parse().unwrap()], ..Overrides::default() }, "eth1"),
        ] {
            assert!(overrides.apply(&mut devices()).unwrap_err().contains(name));
        }
        let vsock = Overrides { vsock_uds: Some("/w".into()), ..Overrides::default() };
        assert!(vsock.apply(&mut DevicesConfig::default()).is_err());
        for bad in ["", "root", "=x", "root="] {
            assert!(bad.parse::<Replacement>().is_err(), "{bad}");
        }
    }
}
