//! A network namespace of a test's own, with a TAP in it, and what talks to the guest over it.

use crate::guest::until;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::JoinHandle;

/// The host's end of the guest's network.
pub(crate) const HOST: &str = "10.0.9.1";
/// The guest's.
pub(crate) const GUEST: &str = "10.0.9.2";
/// The TAP.
pub(crate) const TAP: &str = "tap0";

/// Moves this thread, and what it starts from now on, into a new network namespace with a TAP.
pub(crate) fn namespace() -> Result<(), String> {
    // SAFETY: moves only this thread, which ends with the test, into a namespace of its own.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err("no right to make a network namespace".into());
    }
    let address = format!("addr add {HOST}/24 dev {TAP}");
    for args in ["link set lo up", "tuntap add tap0 mode tap", &address, "link set tap0 up"] {
        let status = Command::new("ip").args(args.split(' ')).status().map_err(|e| format!("ip: {e}"))?;
        if !status.success() {
            return Err(format!("ip {args}: {status}"));
        }
    }
    Ok(())
}

/// Pings the guest.
pub(crate) fn ping() {
    let run = Command::new("ping").args(["-q", "-c", "3", "-i", "0.2", "-W", "10", GUEST]).output();
    let run = run.expect("ping is installed");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains(" 0% packet loss"), "{said}");
}

/// The SHA-256 of bytes, by the tool that everybody has.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    use std::process::Stdio;
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&out.stdout).split(' ').next().unwrap().to_owned()
}

/// Bytes that do not repeat.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let word = |i: u64| {
        let mut hasher = DefaultHasher::new();
        (seed, i).hash(&mut hasher);
        hasher.finish().to_le_bytes()
    };
    (0..len.div_ceil(8) as u64).flat_map(word).take(len).collect()
}

/// Sends bytes to a port of the guest.
pub(crate) fn send(port: u16, bytes: &[u8]) {
    let to: SocketAddr = format!("{GUEST}:{port}").parse().unwrap();
    let mut stream = None;
    until("the guest's port is open", || {
        stream = TcpStream::connect(to).ok();
        stream.is_some()
    });
    let mut stream = stream.unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let _ = stream.read(&mut [0]);
}

/// Takes one connection from the guest and all that it sends.
pub(crate) fn receive(port: u16) -> JoinHandle<Vec<u8>> {
    let listener = TcpListener::bind((HOST, port)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    })
}
