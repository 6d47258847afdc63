//! TLS between real processes: who is not whom he should be gets no guest and sends none, both ends say why, and the guest goes on.

use godwit_tests::certificates;
use godwit_tests::harness::moves::{Stage, goes_on, said};
use godwit_tests::harness::{Process, check_lines};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

const LOCAL: &str = "tcp:127.0.0.1:0";

/// One move that must not come about: what each end must say.
fn refused(
    stage: &Stage,
    source: &mut Process,
    (name, ours, theirs): (&str, Option<&str>, Option<&str>),
    says: (&str, &str),
) {
    let dir = |name: &str| stage.text(name);
    let theirs = theirs.map(dir);
    let with: Vec<&str> = theirs.iter().flat_map(|d| ["--tls-dir", d]).collect();
    let (mut there, place) = stage.receiver_at("interp", LOCAL, &format!("{name}.api"), &with, "");
    let ours = ours.map(dir);
    let with: Vec<&str> = ours.iter().flat_map(|d| ["--tls-dir", d]).collect();
    let moved = stage.migrate_to("s.api", &place, &with);
    let text = said(&moved);
    println!("{name}: {text}{}", there.err());
    assert_eq!(moved.status.code(), Some(3), "{name}: {text}");
    assert!(text.contains(says.0), "{name}: {text}");
    // The receiver turned somebody away and goes on waiting.
    there.wait_err(says.1);
    assert!(there.err().contains("turned somebody away") && there.is_alive(), "{name}: {}", there.err());
    assert!(there.text().is_empty(), "{name}: the guest ran");
    goes_on(source);
}

#[test]
fn whoever_is_not_whom_he_should_be_gets_no_guest() {
    let test = "whoever_is_not_whom_he_should_be_gets_no_guest";
    let Some(stage) = Stage::set(test, &["interp"]) else { return };
    let hosts = ["127.0.0.1"];
    certificates::write_until(&stage.scratch.path("good"), &hosts, &[("", 4096), ("-expired", 2020)])
        .unwrap();
    certificates::write(&stage.scratch.path("others"), &hosts).unwrap();
    certificates::write(&stage.scratch.path("elsewhere"), &["192.0.2.7"]).unwrap();
    std::fs::copy(stage.scratch.path("elsewhere/ca-cert.pem"), stage.scratch.path("others/ca-cert.pem"))
        .unwrap();
    let mut source = stage.source("interp", 64, "rate=50", "s.api", "");
    let good = Some("good");
    // Whom the sender trusts, whom the receiver trusts: "others" takes what "elsewhere" shows, not the reverse.
    let cases = [
        (
            ("authority", Some("others"), good),
            ("not signed by the authority", "authority that signed our certificate"),
        ),
        // Of the authority that the sender trusts, for another host.
        (("host", Some("others"), Some("elsewhere")), ("another host", "peer")),
        (("expired-server", good, Some("good-expired")), ("has expired", "our certificate has expired")),
        (("expired-client", Some("good-expired"), good), ("our certificate has expired", "has expired")),
        (("plain-to-tls", None, good), ("--tls-dir is missing here", "does not speak TLS")),
        (("tls-to-plain", good, None), ("does not speak TLS", "--tls-dir is missing here")),
    ];
    for (who, says) in cases {
        refused(&stage, &mut source, who, says);
    }
    // And a guest that may move, does.
    let dir = stage.text("good");
    let with = ["--tls-dir", dir.as_str()];
    let (there, place) = stage.receiver_at("interp", LOCAL, "last.api", &with, "");
    // Somebody without a certificate first.
    let why = without_certificate(&stage, place.trim_start_matches("tcp:"));
    assert!(why.contains("CertificateRequired"), "{why}");
    there.wait_err("the peer shows no certificate");
    let with = ["--tls-dir", dir.as_str(), "--mode", "hybrid", "--postcopy-fallback"];
    let moved = stage.migrate_to("s.api", &place, &with);
    assert_eq!(moved.status.code(), Some(0), "{}; {}", said(&moved), there.err());
    assert_eq!(source.wait_exit(), Some(0));
    there.wait_lines(3).unwrap();
    check_lines(&[source.text(), there.text()]);
}

/// Connects with TLS, knowing the authority and showing nothing: how it ends.
fn without_certificate(stage: &Stage, at: &str) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(stage.scratch.path("good/ca-cert.pem")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(at).unwrap());
    let greeted = stream.write_all(b"GODWITMG\x01\x00\x01\x00\x07\x00\x00\x00");
    let ended = greeted.and_then(|()| stream.read_to_end(&mut Vec::new()));
    ended.map_or_else(|e| e.to_string(), |n| format!("{n} bytes"))
}
