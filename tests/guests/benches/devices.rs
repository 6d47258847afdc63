//! Disk and network throughput of the interpreter's VMM beside QEMU's TCG: the same guest drives virtio over MMIO on both.
//!
//!     cargo bench -p godwit-guests --bench devices [-- --runs N]
//!
//! Needs root (a network namespace with a TAP), QEMU and a compiler for the guest. The guest is our `virtio` program with
//! `speed=1`; it says when a part begins and ends, and this times it. Medians of N runs (3), taken in turn; the ratio is
//! Godwit's rate by QEMU's, so above 1 Godwit is faster. The `godwit` binary is `$GODWIT`, else the release build.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn main() {
    if let Err(why) = linux::run() {
        println!("SKIPPED the devices bench: {why}");
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn main() {
    println!("SKIPPED the devices bench: QEMU and the guest's compiler are looked for on x86-64 Linux only");
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod linux {
    use clap::Parser;
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader};
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    const DISK: u64 = 256 << 20;
    const OPTIONS: &str = "speed=1 mib=256 ios=10000 frames=100000";
    /// Part, unit, and units in what the guest counts.
    const PARTS: &[(&str, &str, f64)] = &[
        ("disk-write", "MiB/s", 1048576.0),
        ("disk-read", "MiB/s", 1048576.0),
        ("disk-random-read", "4K/s", 1.0),
        ("disk-random-write", "4K/s", 1.0),
        ("net-send", "Mbit/s", 125000.0),
        ("net-receive", "Mbit/s", 125000.0),
    ];

    /// Disk and network throughput of Godwit's interpreter beside QEMU's TCG, with the same guest.
    #[derive(Parser)]
    struct Arguments {
        /// Runs of each subject; the table has their medians.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        runs: u32,
        /// What cargo says to every bench.
        #[arg(long, hide = true)]
        bench: bool,
    }

    fn network() -> Result<(), String> {
        // SAFETY: moves this thread, the only one so far, into a namespace of its own.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err("no right to make a network namespace".into());
        }
        for args in ["link set lo up", "tuntap add tap0 mode tap", "link set tap0 up"] {
            let status = Command::new("ip").args(args.split(' ')).status().map_err(|e| format!("ip: {e}"))?;
            if !status.success() {
                return Err(format!("ip {args}: {status}"));
            }
        }
        Ok(())
    }

    /// Sends frames to the guest until `stop`; what the TAP does not take is lost.
    fn flood(stop: &AtomicBool) -> Result<(), String> {
        let error = |what: &str| format!("{what}: {}", std::io::Error::last_os_error());
        // SAFETY: plain system calls on a socket of this function's own; every pointer is to a local that outlives the call.
        unsafe {
            let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            if socket < 0 {
                return Err(error("packet socket"));
            }
            let mut to: libc::sockaddr_ll = std::mem::zeroed();
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_ifindex = libc::if_nametoindex(c"tap0".as_ptr()) as i32;
            let mut frame = vec![0u8; 1514];
            frame[..6].fill(0xff);
            frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
            let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
            let mut message: libc::mmsghdr = std::mem::zeroed();
            message.msg_hdr.msg_name = (&raw mut to).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
            message.msg_hdr.msg_iov = &raw mut part;
            message.msg_hdr.msg_iovlen = 1;
            let mut messages = vec![message; 64];
            while !stop.load(Ordering::SeqCst) {
                if libc::sendmmsg(socket, messages.as_mut_ptr(), 64, 0) < 0 {
                    // Full: the TAP's reader is behind.
                    libc::usleep(50);
                }
            }
            libc::close(socket);
        }
        Ok(())
    }

    /// Units a second of each part in one run.
    fn measure(mut command: Command) -> Result<BTreeMap<String, f64>, String> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|e| format!("{:?}: {e}", command.get_program()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (mut began, mut rates, mut text) = (Instant::now(), BTreeMap::new(), String::new());
        let mut flooding = None;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?).split(b'\n');
        for line in lines {
            let line = String::from_utf8_lossy(&line.map_err(|e| e.to_string())?).trim().to_owned();
            let now = Instant::now();
            text.push_str(&line);
            text.push('\n');
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["speed", _, "begin"] => began = now,
                ["speed", "net-receive", "ready"] => {
                    let stop = stop.clone();
                    flooding = Some(std::thread::spawn(move || flood(&stop)));
                }
                ["speed", part, "done", amount] => {
                    let amount: f64 = amount.parse().map_err(|_| format!("what is {line:?}?"))?;
                    rates.insert(part.to_owned(), amount / (now - began).as_secs_f64());
                }
                _ => {}
            }
        }
        stop.store(true, Ordering::SeqCst);
        if let Some(thread) = flooding {
            thread.join().map_err(|_| "the sender failed")??;
        }
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        if rates.len() < PARTS.len() {
            return Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(rates)
    }

    pub(super) fn run() -> Result<(), String> {
        let Arguments { runs, .. } = Arguments::parse();
        network()?;
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (kernel, disk, config) = (dir.join("speed.elf"), dir.join("speed.img"), dir.join("speed.json"));
        let program = godwit_guests::bench::compile_virtio(dir)?;
        let image = godwit_guests::bench::image(&program).map_err(|e| e.to_string())?;
        std::fs::write(&kernel, image).map_err(|e| e.to_string())?;
        std::fs::write(&disk, vec![0x5a; DISK as usize]).map_err(|e| e.to_string())?;
        let text = format!(
            "{{\"boot-source\": {{\"kernel_image_path\": {kernel:?}, \"boot_args\": {OPTIONS:?}}},\n \
             \"machine-config\": {{\"vcpu_count\": 1, \"mem_size_mib\": 512}},\n \
             \"drives\": [{{\"drive_id\": \"d\", \"path_on_host\": {disk:?}, \"is_root_device\": false, \"cache_type\": \"Writeback\"}}],\n \
             \"network-interfaces\": [{{\"iface_id\": \"n\", \"host_dev_name\": \"tap0\"}}]}}\n"
        );
        std::fs::write(&config, text).map_err(|e| e.to_string())?;
        let binary = godwit_guests::host::godwit();

        let peer = godwit_guests::host::qemu()?;
        let qemu = || {
            let mut command = Command::new(&peer);
            command
                .args([
                    "-M",
                    "microvm,acpi=off",
                    "-m",
                    "512",
                    "-accel",
                    "tcg",
                    "-nographic",
                    "-no-reboot",
                    "-nodefaults",
                ])
                .args(["-serial", "stdio", "-global", "virtio-mmio.force-legacy=false", "-append", OPTIONS])
                .args(["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no"])
                .args(["-device", "virtio-net-device,netdev=n", "-device", "virtio-blk-device,drive=d"])
                .arg("-drive")
                .arg(format!("id=d,if=none,format=raw,cache=writeback,file={}", disk.display()))
                .arg("-kernel")
                .arg(&kernel);
            command
        };
        let godwit = || {
            let mut command = Command::new(&binary);
            command.args(["--no-api", "--backend", "interp", "--config-file"]).arg(&config);
            command
        };
        let mut all: [BTreeMap<String, Vec<f64>>; 2] = Default::default();
        for _ in 0..runs {
            for (of, command) in all.iter_mut().zip([qemu(), godwit()]) {
                for (part, rate) in measure(command)? {
                    of.entry(part).or_default().push(rate);
                }
            }
        }
        println!("{:20}{:>14}{:>16}{:>10}", "", "qemu tcg", "godwit interp", "ratio");
        for (part, unit, units) in PARTS {
            let [q, g] = all.each_mut().map(|of| {
                let rates = of.entry((*part).to_owned()).or_default();
                rates.sort_by(f64::total_cmp);
                rates.get(rates.len() / 2).copied().unwrap_or(0.0) / units
            });
            println!("{part:20}{q:>14.0}{g:>16.0}{:>10.2}  {unit}", g / q);
        }
        Ok(())
    }
}
