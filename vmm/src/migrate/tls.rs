//! Mutual TLS 1.3 over TCP: each side shows a certificate of one authority.
//!
//! The files are those of QEMU's and Cloud Hypervisor's directories: `ca-cert.pem`, and `server-cert.pem`,
//! `server-key.pem` at the receiver, `client-cert.pem`, `client-key.pem` at the sender. The receiver takes any client of its
//! authority; the sender checks that the receiver's certificate is for the host that it connects to.

use super::error::MigrateError;
use super::transport::{Address, Stream, certified_name};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, InvalidMessage, RootCertStore,
    ServerConfig, ServerConnection, StreamOwned,
};
use socket2::Socket;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn bad(path: &Path, why: impl std::fmt::Display) -> MigrateError {
    MigrateError::Certificate { path: path.display().to_string(), why: why.to_string() }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Why a file of certificates or a key was not read.
fn unread(error: pem::Error) -> String {
    match error {
        pem::Error::Io(e) => e.to_string(),
        pem::Error::NoItemsFound => "no such thing is in this file (PEM, `-----BEGIN ...`)".into(),
        other => other.to_string(),
    }
}

fn identity(dir: &Path, who: &str) -> Result<Identity, MigrateError> {
    let (cert, key) = (dir.join(format!("{who}-cert.pem")), dir.join(format!("{who}-key.pem")));
    let chain: Vec<_> = CertificateDer::pem_file_iter(&cert)
        .and_then(Iterator::collect)
        .map_err(|e| bad(&cert, unread(e)))?;
    if chain.is_empty() {
        return Err(bad(&cert, "holds no certificate"));
    }
    Ok((chain, PrivateKeyDer::from_pem_file(&key).map_err(|e| bad(&key, unread(e)))?))
}

fn authority(dir: &Path) -> Result<Arc<RootCertStore>, MigrateError> {
    let path = dir.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(&path).map_err(|e| bad(&path, unread(e)))? {
        roots.add(cert.map_err(|e| bad(&path, unread(e)))?).map_err(|e| bad(&path, e))?;
    }
    if roots.is_empty() { Err(bad(&path, "holds no certificate")) } else { Ok(Arc::new(roots)) }
}

/// Ciphers with the fastest first: guest memory is much, and 128 bits are enough. Where processors have no instructions for AES,
/// ChaCha20 is.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    use rustls::crypto::ring::{cipher_suite as suite, default_provider};
    let aes = [suite::TLS13_AES_128_GCM_SHA256, suite::TLS13_AES_256_GCM_SHA384];
    let mut all = aes.to_vec();
    let at = if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) { all.len() } else { 0 };
    all.insert(at, suite::TLS13_CHACHA20_POLY1305_SHA256);
    Arc::new(rustls::crypto::CryptoProvider { cipher_suites: all, ..default_provider() })
}

/// What a sender or receiver needs, read before anything is connected.
#[derive(Debug, Clone)]
pub enum Tls {
    /// For the sending side.
    Client(Arc<ClientConfig>),
    /// For the receiving side.
    Server(Arc<ServerConfig>),
}

impl Tls {
    /// Reads the sender's files.
    ///
    /// # Errors
    /// A file is missing or not what it should be.
    pub fn client(dir: &Path) -> Result<Self, MigrateError> {
        let (chain, key) = identity(dir, "client")?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| bad(dir, e))?
            .with_root_certificates(authority(dir)?)
            .with_client_auth_cert(chain, key)
            .map_err(|e| bad(dir, e))?;
        Ok(Tls::Client(Arc::new(config)))
    }

    /// Reads the receiver's files.
    ///
    /// # Errors
    /// A file is missing or not what it should be.
    pub fn server(dir: &Path) -> Result<Self, MigrateError> {
        let (chain, key) = identity(dir, "server")?;
        let clients = WebPkiClientVerifier::builder_with_provider(authority(dir)?, provider())
            .build()
            .map_err(|e| bad(dir, e))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| bad(dir, e))?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(|e| bad(dir, e))?;
        Ok(Tls::Server(Arc::new(config)))
    }

    /// Wraps a connected socket. The handshake comes with the first bytes.
    ///
    /// # Errors
    /// The address has no name to check.
    pub fn wrap(&self, socket: Socket, address: &Address) -> Result<Box<dyn Stream>, MigrateError> {
        let refused = |why: String| MigrateError::Address { address: address.to_string(), why };
        match self {
            Tls::Server(config) => {
                let connection =
                    ServerConnection::new(Arc::clone(config)).map_err(|e| refused(e.to_string()))?;
                Ok(Box::new(StreamOwned::new(connection, socket)))
            }
            Tls::Client(config) => {
                let Address::Tcp { host, .. } = address else {
                    return Err(refused("TLS is for tcp addresses".into()));
                };
                let name = ServerName::try_from(certified_name(host).to_owned())
                    .map_err(|e| refused(e.to_string()))?;
                let connection =
                    ClientConnection::new(Arc::clone(config), name).map_err(|e| refused(e.to_string()))?;
                Ok(Box::new(StreamOwned::new(connection, socket)))
            }
        }
    }
}

/// What a failed read or write says of TLS, in words for who set it up.
pub(super) fn explain(error: &io::Error) -> Option<MigrateError> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(MigrateError::Tls(match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the peer's certificate has expired".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the peer's certificate is not valid yet".into()
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the peer's certificate is not signed by the authority in ca-cert.pem here".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the peer's certificate is for another host than the one in the address".into()
            }
            other => format!("the peer's certificate is not good: {other}"),
        },
        rustls::Error::NoCertificatesPresented => "the peer shows no certificate".into(),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the peer does not speak TLS: it has to be given --tls-dir too".into()
        }
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => "the peer says that our certificate has expired".into(),
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "the peer does not know the authority that signed our certificate".into()
            }
            AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
                "the peer does not take our certificate".into()
            }
            AlertDescription::CertificateRequired => "the peer wants a certificate".into(),
            other => format!("the peer ends it: {other:?}"),
        },
        other => other.to_string(),
    }))
}

/// True if the peer's first bytes are a TLS record: an alert or a handshake.
pub(super) fn is_record(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 0x03, ..])
}

macro_rules! stream {
    ($connection:ty) => {
        impl Stream for StreamOwned<$connection, Socket> {
            fn set_idle_limit(&self, limit: Duration) -> io::Result<()> {
                self.sock.set_idle_limit(limit)
            }
            fn descriptor(&self) -> Option<BorrowedFd<'_>> {
                self.sock.descriptor()
            }
            fn has_buffered(&mut self) -> bool {
                // An error shows itself at the next read.
                self.conn.process_new_packets().map_or(true, |s| s.plaintext_bytes_to_read() > 0)
            }
            fn be_prompt(&self) {
                self.sock.be_prompt();
            }
            fn finish(&mut self) {
                self.conn.send_close_notify();
                let _ = io::Write::flush(self);
                self.sock.finish();
            }
            fn cut(&self) {
                self.sock.cut();
            }
        }
    };
}
stream!(ClientConnection);
stream!(ServerConnection);

#[cfg(test)]
mod tests {
    use super::super::fault::Side;
    use super::super::link::Link;
    use super::super::transport::{Listener, connect};
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use std::path::PathBuf;

    fn issuer(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A directory whose own certificates come from `own`, and which trusts `trusted`.
    fn directory(
        name: &str,
        own: &CertifiedIssuer<'_, KeyPair>,
        trusted: &CertifiedIssuer<'_, KeyPair>,
        host: &str,
    ) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("godwit-tls-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), trusted.pem()).unwrap();
        for who in ["client", "server"] {
            let key = KeyPair::generate().unwrap();
            let cert = CertificateParams::new(vec![host.to_owned()]).unwrap().signed_by(&key, own).unwrap();
            std::fs::write(dir.join(format!("{who}-cert.pem")), cert.pem()).unwrap();
            std::fs::write(dir.join(format!("{who}-key.pem")), key.serialize_pem()).unwrap();
        }
        dir
    }

    fn greet(client: &Path, server: &Path) -> (Result<(), String>, Result<(), String>) {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address();
        let (tls, patience) = (Tls::server(server).unwrap(), Duration::from_secs(60));
        let to = address.clone();
        let receiver = std::thread::spawn(move || {
            let socket = listener.accept(Some(patience)).unwrap().unwrap();
            let mut link = Link::new(tls.wrap(socket, &to).unwrap(), Side::Destination, patience);
            link.hello().map(|_| ()).map_err(|e| e.to_string())
        });
        let socket = connect(&address, patience).unwrap();
        let stream = Tls::client(client).unwrap().wrap(socket, &address).unwrap();
        let mut link = Link::new(stream, Side::Source, patience);
        let sent = link.hello().map(|_| ()).map_err(|e| e.to_string());
        drop(link);
        (sent, receiver.join().unwrap())
    }

    #[test]
    fn only_peers_of_one_authority_greet_each_other() {
        let (ours, theirs) = (issuer("ours"), issuer("theirs"));
        let good = directory("good", &ours, &ours, "127.0.0.1");
        assert_eq!(greet(&good, &good), (Ok(()), Ok(())));
        // A client of another authority.
        let stranger = directory("stranger", &theirs, &ours, "127.0.0.1");
        assert!(greet(&stranger, &good).1.is_err());
        // A server of another authority.
        let impostor = directory("impostor", &theirs, &ours, "127.0.0.1");
        let error = greet(&good, &impostor).0.unwrap_err();
        assert!(error.contains("certificate"), "{error}");
        // The right authority, another host.
        let elsewhere = directory("elsewhere", &ours, &ours, "192.0.2.7");
        let error = greet(&good, &elsewhere).0.unwrap_err();
        assert!(error.contains("certificate"), "{error}");
        for dir in [good, stranger, impostor, elsewhere] {
            std::fs::remove_dir_all(dir).unwrap();
        }
        let error = Tls::client(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("client-cert.pem"), "{error}");
    }
}
