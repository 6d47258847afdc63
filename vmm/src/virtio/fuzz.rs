//! Fuzz targets: one a device for its registers and queues, and one for its saved state. Each takes any bytes and
//! must come back, without a panic, soon; what a device then saves must be what a new one saves that took it on.
//! Driven by seeded random bytes in the tests and by cargo-fuzz (`crate::fuzz` lists them).

use super::balloon::{Balloon, BalloonConfig};
use super::block;
use super::mock::{play, restore_hostile};
use super::net::{Net, NetworkInterfaceConfig};
use super::rng::{EntropyConfig, Rng};
use super::vsock::{Vsock, VsockConfig};
use std::io::Write;
use std::os::unix::net::UnixStream;
use vmm_sys_util::tempdir::TempDir;
use vmm_sys_util::tempfile::TempFile;

/// A disk of 64 sectors and the file that it is.
pub fn test_disk(read_only: bool) -> (block::Block, TempFile) {
    let file = TempFile::new().expect("temporary file");
    file.as_file().set_len(64 * 512).expect("temporary file");
    let config = block::DriveConfig {
        drive_id: "fuzz".into(),
        path_on_host: Some(file.as_path().display().to_string()),
        is_root_device: false,
        partuuid: None,
        is_read_only: Some(read_only),
        cache_type: block::CacheType::Writeback,
        rate_limiter: None,
        io_engine: None,
        on_migration: Default::default(),
        socket: None,
    };
    (block::Block::new(&config).expect("disk"), file)
}

pub(super) fn rng() -> Rng {
    Rng::new(&EntropyConfig::default()).expect("rng")
}

/// Block device.
pub fn fuzz_block(data: &[u8]) {
    let read_only = data.first().is_some_and(|b| b & 1 != 0);
    let (disk, _file) = test_disk(read_only);
    let (fresh, _other) = test_disk(read_only);
    play(disk, data).saved_as(fresh);
}

/// Entropy device.
pub fn fuzz_rng(data: &[u8]) {
    play(rng(), data).saved_as(rng());
}

pub(super) fn net() -> (Net, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let config = NetworkInterfaceConfig { iface_id: "fuzz".into(), ..Default::default() };
    (Net::over(&config, ours).expect("net"), theirs)
}

/// Network device; the first half of the bytes comes from the network's side.
pub fn fuzz_net(data: &[u8]) {
    let (net, mut peer) = net();
    let (outside, inside) = data.split_at(data.len() / 2);
    peer.set_nonblocking(true).expect("socket");
    for piece in outside.chunks(60) {
        let mut frame = (piece.len() as u32).to_be_bytes().to_vec();
        frame.extend(piece);
        let _ = peer.write(&frame);
    }
    let _ = peer.write(outside);
    play(net, inside).saved_as(self::net().0);
}

/// A vsock device, the folder of its socket and its socket.
pub fn test_vsock() -> (Vsock, TempDir, String) {
    let dir = TempDir::new().expect("folder");
    let uds_path = dir.as_path().join("v.sock").display().to_string();
    let config = VsockConfig { guest_cid: 3, uds_path: uds_path.clone(), vsock_id: None };
    (Vsock::new(&config).expect("vsock"), dir, uds_path)
}

/// vsock; the first half of the bytes comes from the host's side.
pub fn fuzz_vsock(data: &[u8]) {
    let (vsock, _dir, path) = test_vsock();
    let (outside, inside) = data.split_at(data.len() / 2);
    let mut host = UnixStream::connect(&path).expect("socket");
    let _ = host.write(if outside.len() & 1 == 0 { b"CONNECT 7\n" } else { outside });
    let _ = host.write(outside);
    let (fresh, _folder, _path) = test_vsock();
    play(vsock, inside).saved_as(fresh);
}

pub(super) fn balloon() -> Balloon {
    let config = BalloonConfig { amount_mib: 1, free_page_reporting: true, ..Default::default() };
    Balloon::new(&config, 4).expect("balloon")
}

/// Balloon.
pub fn fuzz_balloon(data: &[u8]) {
    play(balloon(), data).saved_as(balloon());
}

/// Saved state of all devices.
pub fn fuzz_restore(data: &[u8]) {
    let Some((which, data)) = data.split_first() else { return };
    match which % 5 {
        0 => restore_hostile(test_disk(false).0, data),
        1 => restore_hostile(net().0, data),
        2 => restore_hostile(test_vsock().0, data),
        3 => restore_hostile(balloon(), data),
        _ => restore_hostile(rng(), data),
    }
}

#[cfg(test)]
mod tests {
    /// Seeded: the same bytes every time (xorshift64*).
    fn for_random_bytes(count: u64, len: usize, target: fn(&[u8])) {
        for seed in 1..=count {
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut data = Vec::with_capacity(len + 8);
            while data.len() < len {
                x ^= x >> 12;
                x ^= x << 25;
                x ^= x >> 27;
                data.extend(x.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
            }
            target(&data);
        }
    }

    #[test]
    fn hostile_drivers_do_no_harm() {
        for_random_bytes(300, 1200, super::fuzz_block);
        for_random_bytes(100, 1200, super::fuzz_rng);
        for_random_bytes(200, 2400, super::fuzz_net);
        for_random_bytes(200, 2400, super::fuzz_vsock);
        for_random_bytes(200, 1200, super::fuzz_balloon);
    }

    #[test]
    fn hostile_state_does_no_harm() {
        for_random_bytes(500, 12, super::fuzz_restore);
        for_random_bytes(500, 120, super::fuzz_restore);
    }
}
