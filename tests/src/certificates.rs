//! Certificates for tests and the tour: an authority, and what it signed for both ends of a move.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use std::path::{Path, PathBuf};

/// Makes the directory that `--tls-dir` takes, for a receiver that is known by any of `hosts`.
///
/// # Errors
/// What could not be made or written.
pub fn write(dir: &Path, hosts: &[&str]) -> Result<(), String> {
    write_until(dir, hosts, &[("", 4096)])
}

/// The same for several directories, `dir` with each suffix, whose certificates end with a year and are signed by one authority.
///
/// # Errors
/// What could not be made or written.
pub fn write_until(dir: &Path, hosts: &[&str], all: &[(&str, i32)]) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("certificates in {}: {e}", dir.display());
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let name = format!("Godwit test authority of {}", dir.display());
    authority.distinguished_name.push(DnType::CommonName, name);
    let authority = KeyPair::generate()
        .and_then(|key| CertifiedIssuer::self_signed(authority, key))
        .map_err(|e| failed(&e))?;
    for (suffix, last_year) in all {
        let dir = PathBuf::from(format!("{}{suffix}", dir.display()));
        std::fs::create_dir_all(&dir).map_err(|e| failed(&e))?;
        let put = |name: &str, text: String| std::fs::write(dir.join(name), text).map_err(|e| failed(&e));
        put("ca-cert.pem", authority.pem())?;
        for end in ["client", "server"] {
            let names: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
            let key = KeyPair::generate().map_err(|e| failed(&e))?;
            let mut params = CertificateParams::new(names).map_err(|e| failed(&e))?;
            params.not_after = date_time_ymd(*last_year, 12, 31);
            let signed = params.signed_by(&key, &authority);
            put(&format!("{end}-cert.pem"), signed.map_err(|e| failed(&e))?.pem())?;
            put(&format!("{end}-key.pem"), key.serialize_pem())?;
        }
    }
    Ok(())
}
