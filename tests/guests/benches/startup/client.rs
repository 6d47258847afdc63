//! A client of Godwit's API socket that knows no more than the bench asks.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longer than anything here takes: only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Tries again and again, `pause` apart, until somebody listens.
pub(crate) fn connect(socket: &Path, pause: Duration) -> Option<UnixStream> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Ok(peer) = UnixStream::connect(socket) {
            peer.set_read_timeout(Some(PATIENCE)).ok()?;
            return Some(peer);
        }
        std::thread::sleep(pause);
    }
    None
}

/// One request that is answered without a body; `None` if it was not granted.
pub(crate) fn ask(peer: &mut UnixStream, method: &str, path: &str, body: &str) -> Option<()> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    peer.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    while !answer.ends_with(b"\r\n\r\n") {
        match peer.read(&mut chunk) {
            Ok(n @ 1..) => answer.extend_from_slice(&chunk[..n]),
            _ => break,
        }
    }
    if answer.starts_with(b"HTTP/1.1 204") {
        return Some(());
    }
    println!("{method} {path}: {}", String::from_utf8_lossy(&answer));
    None
}
