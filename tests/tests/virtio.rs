//! The virtio guest on every backend: block, net over a TAP, vsock both ways, entropy, balloon; driven by registers and
//! queues, without a Linux.

use godwit_guests::bench;
use godwit_vmm::board::boot::BootSource;
use godwit_vmm::board::serial::Output;
use godwit_vmm::machine::{Console, Event, Machine, Spec};
use godwit_vmm::plugin::Plugin;
use godwit_vmm::virtio::block::DriveConfig;
use godwit_vmm::virtio::net::NetworkInterfaceConfig;
use godwit_vmm::virtio::slots::DevicesConfig;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Output for Said {
    fn put(&mut self, bytes: &[u8]) -> usize {
        self.0.lock().unwrap().extend(bytes);
        bytes.len()
    }
}

impl Said {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// A TAP with the host's address, in a network namespace of this thread.
fn tap() -> Result<NetworkInterfaceConfig, String> {
    // SAFETY: moves only this thread, which ends with the test, into a namespace of its own.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err("no right to make a network namespace".into());
    }
    for args in ["tuntap add tap0 mode tap", "addr add 10.0.2.2/24 dev tap0", "link set tap0 up"] {
        let status = Command::new("ip").args(args.split(' ')).status().map_err(|e| format!("ip: {e}"))?;
        if !status.success() {
            return Err(format!("ip {args}: {status}"));
        }
    }
    let json = r#"{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:0a:00:02:0f"}"#;
    Ok(serde_json::from_str(json).unwrap())
}

/// The host's side of the vsock check: sends back what the guest's connection to port 52 brings, then connects to the
/// guest's port 1024 and has its own bytes sent back: how many.
fn echo(socket: &Path) -> usize {
    let out = format!("{}_52", socket.display());
    let listener = UnixListener::bind(&out).unwrap();
    let (mut guest, _) = listener.accept().unwrap();
    std::io::copy(&mut guest.try_clone().unwrap(), &mut guest).unwrap();
    drop(guest);
    let mut guest = loop {
        let mut guest = UnixStream::connect(socket).unwrap();
        guest.write_all(b"CONNECT 1024\n").unwrap();
        let mut line = String::new();
        // Closed while the guest does not yet listen.
        if BufReader::new(guest.try_clone().unwrap()).read_line(&mut line).is_ok() && line.starts_with("OK ")
        {
            break guest;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut total = 0;
    for turn in 0..40usize {
        let sent: Vec<u8> = (0..1 + turn * 399).map(|i| (i * 31 + turn) as u8).collect();
        guest.write_all(&sent).unwrap();
        let mut back = vec![0; sent.len()];
        guest.read_exact(&mut back).unwrap();
        assert!(back == sent, "the guest sends back something else");
        total += back.len();
    }
    guest.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.read(&mut [0; 16]).unwrap(), 0, "the guest adds something");
    total
}

/// The library that cargo built for this profile, or in GODWIT_PLUGIN_DIR.
fn plugin_path(backend: &str) -> Result<PathBuf, String> {
    let dir = std::env::var_os("GODWIT_PLUGIN_DIR").map_or_else(
        || std::env::current_exe().ok().and_then(|e| Some(e.parent()?.parent()?.to_path_buf())),
        |dir| Some(dir.into()),
    );
    let path = dir.unwrap_or_default().join(format!("libgodwit_backend_{backend}.so"));
    if path.exists() { Ok(path) } else { Err(format!("{} is not built", path.display())) }
}

fn drives_devices(backend: &str) {
    let test = format!("virtio on {backend}");
    let plugin = match plugin_path(backend).and_then(|p| Plugin::load(&p, &[]).map_err(|e| e.to_string())) {
        Ok(plugin) => plugin,
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    if let Err(why) = plugin.probe() {
        return println!("SKIPPED {test}: {why}");
    }
    let dir =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("virtio-{backend}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let program = match bench::compile_virtio(&dir) {
        Ok(program) => program,
        Err(why) if cfg!(target_arch = "x86_64") => panic!("{why}"),
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    let kernel = dir.join("virtio.elf");
    std::fs::write(&kernel, bench::image(&program).expect("assembles")).unwrap();
    let disk = dir.join("disk.img");
    let content: Vec<u8> = (0..2u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&disk, &content).unwrap();
    let drive = serde_json::json!({
        "drive_id": "godwit", "path_on_host": disk, "is_root_device": false, "cache_type": "Writeback"
    });
    let drive: DriveConfig = serde_json::from_value(drive).unwrap();
    let (network_interfaces, address) = match tap() {
        Ok(config) => (vec![config], "gateway=10.0.2.2 address=10.0.2.15"),
        Err(why) => {
            println!("SKIPPED the network of {test}: {why}");
            (vec![], "")
        }
    };
    let with_net = !network_interfaces.is_empty();
    let socket = dir.join("v.sock");
    let vsock = serde_json::json!({ "guest_cid": 3, "uds_path": socket });
    let balloon =
        serde_json::json!({ "amount_mib": 8, "deflate_on_oom": false, "stats_polling_interval_s": 1 });
    let devices = DevicesConfig {
        drives: vec![drive],
        network_interfaces,
        entropy: Some(Default::default()),
        vsock: serde_json::from_value(vsock).unwrap(),
        balloon: serde_json::from_value(balloon).unwrap(),
        mmds: None,
    };
    let options = "sectors=1000 vsock_port=52 vsock_listen=1024 stats=2";
    let cmdline = format!("{address} {options}");
    let said = Said::default();
    let (sender, events) = mpsc::channel();
    let sink = Arc::new(move |event: Event| drop(sender.send(format!("{event:?}"))));
    let console = Console { output: Box::new(said.clone()), ..Console::default() };
    let spec = Spec { vcpus: 1, memory_bytes: 512 << 20, devices, ..Spec::default() };
    let mut machine = Machine::build(&spec, &plugin, console, sink).unwrap();
    machine.boot(&BootSource { kernel, initrd: None, cmdline }).unwrap();
    let host = std::thread::spawn(move || echo(&socket));
    machine.resume(0).unwrap();
    // Long, so that only a guest that hangs meets it.
    let end = events.recv_timeout(Duration::from_secs(240));
    let balloon = machine.slots().balloon().unwrap().lock().unwrap().device().statistics().unwrap();
    drop(machine);
    let printed = said.text();
    println!("{printed}");
    let fnv = content[..4096].iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let first = format!("serial=godwit first={fnv:016x} written=1000 ok");
    let vsock = "virtio vsock cid=3 there=300000 listening";
    let balloon_line = "virtio balloon target=2048 back=1024 stats=2 ok";
    let lines = [first.as_str(), vsock, balloon_line, "rng bytes=256 ok", "virtio done bad=0"];
    for line in lines {
        assert!(printed.contains(line), "{test}: no {line:?}; ended by {end:?}");
    }
    assert!(!with_net || printed.contains("arp=ok pings=16 ok"), "{test}: network; ended by {end:?}");
    assert_eq!(end.as_deref(), Ok("Reset"), "{test}");
    let there = host.join().unwrap();
    assert!(printed.contains(&format!("virtio vsock back={there} ok")), "{test}: {there}");
    assert_eq!((balloon.target_mib, balloon.actual_pages), (8, 1024), "{test}");
    // The last of three: the third waits for its turn.
    let guest = (balloon.guest.free_memory, balloon.guest.total_memory);
    assert_eq!(guest, (Some(123_456_790), Some(512 << 20)), "{test}");
    let after = std::fs::read(&disk).unwrap();
    let changed = 8 * 512..1008 * 512;
    assert!(after[..changed.start] == content[..changed.start]);
    assert!(after[changed.clone()] != content[changed.clone()]);
    assert!(after[changed.end..] == content[changed.end..]);
    std::fs::remove_dir_all(&dir).ok();
}

#[test]
fn virtio_drives_devices_on_kvm() {
    drives_devices("kvm");
}

#[test]
fn virtio_drives_devices_on_the_interpreter() {
    drives_devices("interp");
}
