//! Certificates for tests and the tour: an authority, and what it signed for both ends of a move.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::path::Path;

/// Makes the directory that `--tls-dir` takes, for a receiver that is known by any of `hosts`.
///
/// # Errors
/// What could not be made or written.
pub fn write(dir: &Path, hosts: &[&str]) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("certificates in {}: {e}", dir.display());
    let put = |name: &str, text: String| std::fs::write(dir.join(name), text).map_err(|e| failed(&e));
    std::fs::create_dir_all(dir).map_err(|e| failed(&e))?;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "Godwit test authority");
    let authority = KeyPair::generate()
        .and_then(|key| CertifiedIssuer::self_signed(authority, key))
        .map_err(|e| failed(&e))?;
    put("ca-cert.pem", authority.pem())?;
    for end in ["client", "server"] {
        let names: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let key = KeyPair::generate().map_err(|e| failed(&e))?;
        let signed = CertificateParams::new(names).and_then(|params| params.signed_by(&key, &authority));
        put(&format!("{end}-cert.pem"), signed.map_err(|e| failed(&e))?.pem())?;
        put(&format!("{end}-key.pem"), key.serialize_pem())?;
    }
    Ok(())
}
