//! Debian on a virtio disk, and every virtio device with Linux's own drivers: disks, network, vsock, entropy, balloon.
//!
//! The guest's part is a shell script that it finds on its second disk.

use crate::boot::no_warnings;
use crate::guest::{Debian, Guest, until};
use crate::net::{self, HOST, TAP, noise, sha256};
use godwit_tests::harness::Scratch;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

const MIB: usize = 1 << 20;

const SCRIPT: &str = r#"
say() { printf 'CHECK %s %s\n' "$1" "$2"; }
sum() { sha256sum | cut -d' ' -f1; }
say mounted "$(findmnt -n -o FSTYPE,OPTIONS / | tr -s ' ' | cut -d, -f1)"
head -c 8000000 /dev/urandom >/srv/noise
sync
say file "$(sum </srv/noise)"
say serials "$(cat /sys/block/vda/serial) $(cat /sys/block/vdb/serial) $(cat /sys/block/vdc/serial)"
blockdev --setrw /dev/vdb 2>/dev/null
dd if=/dev/zero of=/dev/vdb bs=4096 count=1 oflag=direct 2>/dev/null
say readonly "$(cat /sys/block/vdb/ro) $?"

dd if=/dev/hwrng of=/dev/vdc bs=4096 count=16 iflag=fullblock oflag=direct 2>/dev/null
dd if=/dev/hwrng of=/dev/vdc bs=4096 count=16 iflag=fullblock oflag=direct seek=16 2>/dev/null
say hwrng "$(cat /sys/class/misc/hw_random/rng_current)"
blkdiscard -o 16M -l 16M /dev/vdc && blkdiscard -z -o 40M -l 4M /dev/vdc
say discard $?

say ping "$(ping -q -c 3 -i 0.2 -W 10 HOST | grep -c ' 0% packet loss')"
socat -u TCP-LISTEN:7001,reuseaddr STDOUT | sum >/run/in &
say listening yes
wait
say received "$(cat /run/in)"
cat /srv/noise /srv/noise >/run/noise
mkfifo /run/pipe
sum </run/pipe >/run/out &
{ left=BYTES; while [ $left -gt 0 ]; do n=$((left < 4000000 ? left : 4000000)); head -c $n /run/noise; left=$((left - n)); echo "$left to go" >&2; done; } |
    tee /run/pipe | socat -u STDIN TCP:HOST:7002
wait
rm /run/noise
say sent "$(cat /run/out)"

say vsock-out "$(head -c 1000000 /srv/noise | sum) $(head -c 1000000 /srv/noise | socat -t 60 - VSOCK-CONNECT:2:5005 | sum)"
socat VSOCK-LISTEN:1234,fork EXEC:cat &
say vsock-in listening
socat -u VSOCK-CONNECT:2:5006 STDOUT
kill %%

mkdir -p /run/full && mount -t tmpfs -o size=80% full /run/full
head -c 200000000 /dev/zero >/run/full/zeros
rm /run/full/zeros
say filled yes
socat -u VSOCK-CONNECT:2:5006 STDOUT
say balloon "$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)"
"#;

/// Echoes one connection to a Unix socket.
fn echo(listener: UnixListener) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        let (mut from, _) = listener.accept().unwrap();
        let mut to = from.try_clone().unwrap();
        let n = std::io::copy(&mut from, &mut to).unwrap();
        to.shutdown(Shutdown::Write).unwrap();
        n as usize
    })
}

/// Connects to a port of the guest as Firecracker's hosts do, sends and takes what comes back.
fn through(uds: &Path, port: u32, bytes: &[u8]) -> Vec<u8> {
    let mut back = Vec::new();
    until("the guest accepts a vsock connection", || {
        let mut stream = UnixStream::connect(uds).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || !line.starts_with("OK ") {
            return false;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                stream.write_all(bytes).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
            reader.read_to_end(&mut back).unwrap();
        });
        true
    });
    back
}

/// Noise is about evenly spread over the bytes; both halves differ.
fn looks_random(bytes: &[u8]) {
    let (one, two) = bytes.split_at(bytes.len() / 2);
    assert!(one != two);
    for half in [one, two] {
        let mut counts = [0u32; 256];
        half.iter().for_each(|b| counts[usize::from(*b)] += 1);
        let mean = half.len() as f64 / 256.0;
        let chi2: f64 = counts.iter().map(|n| (f64::from(*n) - mean).powi(2) / mean).sum();
        // 255 degrees of freedom: outside once in many millions.
        assert!((130.0..420.0).contains(&chi2), "chi-square {chi2}");
    }
}

/// Fills the guest's memory, then takes it by the balloon: what the host has back, in MiB.
fn balloon(guest: &mut Guest) -> u64 {
    guest.hear("filled");
    let full = guest.resident_mib();
    guest.ask("PATCH", "/balloon", json!({"amount_mib": 250}));
    let mut stats = Value::Null;
    until("the balloon is inflated and its statistics say so", || {
        stats = guest.ask("GET", "/balloon/statistics", Value::Null);
        let has = |name: &str| stats[name].as_u64().is_some_and(|n| n > 0);
        stats["actual_mib"] == 250 && has("free_memory") && has("total_memory") && has("available_memory")
    });
    let taken = guest.resident_mib();
    assert!(full > taken + 100, "{full} MiB resident before, {taken} MiB with the balloon: {stats}");
    guest.ask("PATCH", "/balloon", json!({"amount_mib": 0}));
    until("the balloon is deflated", || {
        guest.ask("GET", "/balloon/statistics", Value::Null)["actual_mib"] == 0
    });
    full - taken
}

fn devices(name: &str, tcp_bytes: usize) {
    let debian = match Debian::find().and_then(|d| net::namespace().map(|()| d)) {
        Ok(debian) => debian,
        Err(why) => return println!("SKIPPED {name}: {why}"),
    };
    let scratch = Scratch::new(name);
    let data = scratch.path("data.img");
    std::fs::write(&data, vec![0x5a; 64 * MIB]).unwrap();
    File::open(&data).unwrap().sync_all().unwrap();
    let full_blocks = std::fs::metadata(&data).unwrap().blocks();
    let uds = scratch.path("vsock");
    let listen = |port: u32| UnixListener::bind(format!("{}_{port}", uds.display())).unwrap();
    let (out, go) = (listen(5005), listen(5006));

    let script = SCRIPT.replace("HOST", HOST).replace("BYTES", &tcp_bytes.to_string());
    let more = json!({
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": TAP, "guest_mac": "06:00:0a:00:09:02"}],
        "vsock": {"guest_cid": 42, "uds_path": uds},
        "entropy": {},
        "balloon": {"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 1},
    });
    let config = debian.config(&scratch, &script, &[&data], 512, more);
    let mut vm = debian.start(&scratch, "api.sock", Some(&config));

    assert_eq!(vm.hear("mounted"), "ext4 rw");
    let file = vm.hear("file");
    assert_eq!(vm.hear("serials"), "root script data0");
    assert!(vm.hear("readonly").starts_with("1 "));
    assert!(vm.hear("hwrng").starts_with("virtio_rng"));
    assert_eq!(vm.hear("discard"), "0");

    assert_eq!(vm.hear("ping"), "1");
    let taken = net::receive(7002);
    vm.hear("listening");
    net::ping();
    let sent = noise(tcp_bytes, 1);
    net::send(7001, &sent);
    assert_eq!(vm.hear("received"), sha256(&sent), "what the guest received");
    let sum = vm.hear("sent");
    let taken = taken.join().unwrap();
    assert_eq!((taken.len(), sha256(&taken)), (tcp_bytes, sum), "what the guest sent");

    let echoed = echo(out);
    let sums = vm.hear("vsock-out");
    assert_eq!(echoed.join().unwrap(), 1_000_000);
    assert!(sums.split(' ').next() == sums.split(' ').nth(1) && sums.len() == 129, "{sums}");
    vm.hear("vsock-in");
    let back = through(&uds, 1234, &sent[..MIB]);
    assert!(back == sent[..MIB], "{} bytes came back", back.len());
    drop(go.accept().unwrap());

    let given_back = balloon(&mut vm);
    drop(go.accept().unwrap());
    vm.hear("balloon");
    assert_eq!(vm.process.wait_exit(), Some(0), "{}", vm.process.err());
    no_warnings(&vm.process.lines());
    println!("{name}: TCP {tcp_bytes} bytes each way; the balloon gave back {given_back} MiB");

    // What the guest left on its disks.
    let root = scratch.path("root.ext4");
    let fsck = Command::new("e2fsck").arg("-fn").arg(&root).output().expect("e2fsck is installed");
    assert_eq!(fsck.status.code(), Some(0), "{}", String::from_utf8_lossy(&fsck.stdout));
    let cat = Command::new("debugfs").args(["-R", "cat /srv/noise"]).arg(&root).output().unwrap();
    assert_eq!(sha256(&cat.stdout), file, "the file that the guest wrote");
    let held = std::fs::read(scratch.path("script")).unwrap();
    assert!(held.starts_with(script.as_bytes()), "the read-only disk");
    let held = std::fs::read(&data).unwrap();
    looks_random(&held[..128 << 10]);
    let ranges = [(128 << 10, 16 * MIB, 0x5a), (16 * MIB, 32 * MIB, 0), (32 * MIB, 40 * MIB, 0x5a)];
    for (from, to, byte) in ranges.into_iter().chain([(40 * MIB, 44 * MIB, 0), (44 * MIB, 64 * MIB, 0x5a)]) {
        assert!(held[from..to].iter().all(|b| *b == byte), "bytes {from} to {to} are not all {byte:#x}");
    }
    let blocks = std::fs::metadata(&data).unwrap().blocks();
    assert!(
        // Less what the host keeps of the holes themselves.
        blocks + (16 * MIB as u64 / 512) <= full_blocks + 64,
        "{blocks} blocks of {full_blocks} after the discard"
    );
}

#[test]
fn debian_on_a_disk_with_all_virtio_devices() {
    devices("debian_on_a_disk_with_all_virtio_devices", 8 * MIB);
}

/// `cargo test --release -p godwit-tests --test linux -- --ignored at_length`
#[test]
#[ignore = "minutes"]
fn debian_at_length() {
    devices("debian_at_length", 100 * MIB);
}
