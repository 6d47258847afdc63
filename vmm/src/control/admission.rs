//! Which of the host paths that a sender names for its guest's devices a receiver opens.

use super::overrides::{Overrides, Replacement};
use crate::virtio::slots::DevicesConfig;
use std::io;
use std::path::{Path, PathBuf};

/// Directories under which a sender may name files and sockets.
#[derive(Debug, Clone, Default)]
pub enum Paths {
    /// Anywhere: the sender is on this host.
    #[default]
    Any,
    /// In these, and below.
    Under(Vec<PathBuf>),
}

/// The place itself, whatever links lead to it; the last part need not exist.
fn place(path: &Path) -> io::Result<PathBuf> {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Err(e), Some(parent), Some(name)) if e.kind() == io::ErrorKind::NotFound => {
            let parent = if parent == Path::new("") { Path::new(".") } else { parent };
            // A link to nowhere would be followed when the last part is made.
            if path.symlink_metadata().is_ok() { Err(e) } else { Ok(parent.canonicalize()?.join(name)) }
        }
        (found, ..) => found,
    }
}

impl Paths {
    fn admit(&self, path: &str) -> bool {
        match self {
            Paths::Any => true,
            Paths::Under(dirs) => place(Path::new(path)).is_ok_and(|path| {
                dirs.iter().any(|dir| dir.canonicalize().is_ok_and(|dir| path.starts_with(dir)))
            }),
        }
    }

    /// Checks what devices have after `overrides`: what was replaced here is our own choice.
    ///
    /// # Errors
    /// It names the device, the path, and what to do.
    pub fn check(&self, devices: &DevicesConfig, overrides: &Overrides) -> Result<(), String> {
        let ours = |list: &[Replacement], id: &str| list.iter().any(|r| r.id == id);
        let judge = |device: String, path: &str, instead: String| match self.admit(path) {
            true => Ok(()),
            false => Err(format!(
                "{device}: the sender names {path}: allow it with --allow-path DIR, or give another with {instead}"
            )),
        };
        for d in devices.drives.iter().filter(|d| !ours(&overrides.drives, &d.drive_id)) {
            let path = d.path_on_host.as_deref().unwrap_or_default();
            judge(format!("drive {}", d.drive_id), path, format!("--drive {}=PATH", d.drive_id))?;
        }
        for n in devices.network_interfaces.iter().filter(|n| !ours(&overrides.passt, &n.iface_id)) {
            if let Some(path) = &n.passt_socket {
                judge(
                    format!("network interface {}", n.iface_id),
                    path,
                    format!("--passt {}=PATH", n.iface_id),
                )?;
            }
        }
        if let (Some(vsock), None) = (&devices.vsock, &overrides.vsock_uds) {
            judge("vsock device".into(), &vsock.uds_path, "--vsock-uds PATH".into())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_path_counts_where_it_leads_to() {
        let dir = std::env::temp_dir().join(format!("godwit-admission-{}", std::process::id()));
        let at = |name: &str| dir.join(name);
        std::fs::create_dir_all(at("in")).unwrap();
        std::fs::write(at("in/disk"), "").unwrap();
        std::fs::write(at("secret"), "").unwrap();
        symlink(at("secret"), at("in/out")).unwrap();
        symlink(at("nowhere"), at("in/dangling")).unwrap();
        symlink(at("in"), at("also-in")).unwrap();
        let paths = Paths::Under(vec![at("in")]);
        let admits = |name: &str| paths.admit(at(name).to_str().unwrap());
        assert!(admits("in/disk") && admits("in/new.sock") && admits("also-in/disk"));
        for bad in ["secret", "in/out", "in/dangling", "in/../secret", "in/no/such", "infix", ""] {
            assert!(!admits(bad), "{bad}");
        }
        assert!(!paths.admit("") && Paths::Any.admit("/etc/shadow"));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_the_sender_names_is_judged_and_what_the_operator_names_is_not() {
        let paths = Paths::Under(vec!["/srv".into()]);
        let mut devices = DevicesConfig {
            drives: vec![
                serde_json::from_str(
                    r#"{"drive_id":"d","path_on_host":"/etc/shadow","is_root_device":false}"#,
                )
                .unwrap(),
            ],
            ..DevicesConfig::default()
        };
        let error = paths.check(&devices, &Overrides::default()).unwrap_err();
        assert!(error.contains("drive d") && error.contains("/etc/shadow") && error.contains("--allow-path"));
        let overrides = Overrides { drives: vec!["d=/etc/shadow".parse().unwrap()], ..Overrides::default() };
        paths.check(&devices, &overrides).unwrap();
        devices.vsock = Some(serde_json::from_str(r#"{"guest_cid":3,"uds_path":"/run/v.sock"}"#).unwrap());
        assert!(paths.check(&devices, &overrides).unwrap_err().contains("--vsock-uds"));
    }
}
