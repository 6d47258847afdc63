//! Debian's Linux on the interpreter moves ten times between two network namespaces, at work, while it is pinged and a TCP connection
//! to it stays open.
//!
//! ```text
//!   namespace a            namespace w (the world)            namespace b
//!   godwit ─ tap ─ br ═ veth ═ br ═ veth ═ br ─ tap ─ godwit
//!                              │ ping, TCP client
//! ```
//!
//! The guest is the kernel and the initramfs that `scripts/setup --tests` puts into the cache, with a script of ours on top. It goes
//! over TCP on the same wires as its own traffic. By `scripts/soak linux`.

use godwit_tests::harness::{PATIENCE, Process, Scratch, ask, cached, program};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MOVES: usize = 10;
/// Linux boots and works slowly on a busy machine.
const LONG: Duration = Duration::from_secs(600);

const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
modprobe virtio_mmio
modprobe virtio_net
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.77.0.2 netmask 255.255.255.0 up || echo "NO NETWORK"
nc -ll -p 7000 -e cat &
n=0
echo "MOVE-READY"
while :; do
    n=$((n + 1))
    head -c 100000 /dev/urandom >/tmp/a
    gzip -c /tmp/a | gunzip -c >/tmp/b
    if cmp -s /tmp/a /tmp/b && [ "$(awk 'BEGIN { for (i = 1; i <= 2000; i++) s += i / 7; printf "%.9e", s }')" = 2.858571429e+05 ]; then
        echo "WORK $n ok"
    else
        echo "WORK $n BAD"
    fi
done
"#;

/// One file in an archive of the kernel's kind ("newc"), to be put behind another.
fn cpio(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut entry = |name: &str, mode: u32, bytes: &[u8]| {
        let size = bytes.len();
        let fields = [1, mode as usize, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() + 1, 0];
        out.extend_from_slice(b"070701");
        fields.iter().for_each(|f| out.extend_from_slice(format!("{f:08x}").as_bytes()));
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(4), 0);
    };
    entry(name, 0o100755, bytes);
    entry("TRAILER!!!", 0, &[]);
    out
}

/// Namespaces and their wires; gone with it.
struct World(String);

impl World {
    fn name(&self, which: &str) -> String {
        format!("{}{which}", self.0)
    }

    fn make() -> Result<World, String> {
        let world = World(format!("gw{}", std::process::id()));
        let run = |args: String| {
            let status =
                Command::new("ip").args(args.split_whitespace()).output().map_err(|e| format!("ip: {e}"))?;
            let said = String::from_utf8_lossy(&status.stderr).into_owned();
            if status.status.success() { Ok(()) } else { Err(format!("ip {args}: {said}")) }
        };
        let (a, b, w) = (world.name("a"), world.name("b"), world.name("w"));
        for ns in [&w, &a, &b] {
            run(format!("netns add {ns}"))?;
            run(format!("-n {ns} link set lo up"))?;
            run(format!("-n {ns} link add br0 type bridge"))?;
            run(format!("-n {ns} link set br0 up"))?;
        }
        run(format!("-n {w} addr add 10.77.0.1/24 dev br0"))?;
        for (ns, last) in [(&a, 11), (&b, 12)] {
            run(format!("-n {ns} addr add 10.77.0.{last}/24 dev br0"))?;
            run(format!("-n {ns} tuntap add tap0 mode tap"))?;
            run(format!("-n {ns} link set tap0 master br0 up"))?;
            run(format!("-n {ns} link add up0 type veth peer name to{last} netns {w}"))?;
            run(format!("-n {ns} link set up0 master br0 up"))?;
            run(format!("-n {w} link set to{last} master br0 up"))?;
        }
        Ok(world)
    }

    fn enter(&self, which: &str) {
        let file =
            std::fs::File::open(Path::new("/run/netns").join(self.name(which))).expect("the namespace");
        // SAFETY: moves only this thread, which was made for that, into the namespace.
        assert_eq!(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for which in ["a", "b", "w"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(which)]).output();
        }
    }
}

fn godwit(world: &World, ns: &str, program: &Path, args: &[&str]) -> Process {
    let name = world.name(ns);
    let mut all = vec!["netns", "exec", &name, program.to_str().unwrap()];
    all.extend(args);
    Process::start(Path::new("/sbin/ip"), &all, "")
}

fn wait_for(process: &Process, what: &str, limit: Duration) {
    let end = Instant::now() + limit;
    while !process.text().contains(what) {
        let text = process.text();
        let tail: String = text.lines().rev().take(12).collect::<Vec<_>>().join("\n");
        assert!(Instant::now() < end, "no {what:?}: {tail}\n{}", process.err());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Talks over one connection until told to end: exchanges done, longest wait for an answer.
fn client(world: &World, over: &AtomicBool, done: &AtomicU64) -> Result<Duration, String> {
    world.enter("w");
    let stream = TcpStream::connect("10.77.0.2:7000").map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let mut lines = BufReader::new(stream.try_clone().map_err(|e| e.to_string())?);
    let (mut stream, mut longest) = (stream, Duration::ZERO);
    for n in 0u64.. {
        if over.load(Ordering::SeqCst) {
            break;
        }
        let sent = format!("{n} {}\n", "godwit ".repeat((n % 200) as usize));
        let begun = Instant::now();
        stream.write_all(sent.as_bytes()).map_err(|e| format!("after {n} exchanges: {e}"))?;
        let mut back = String::new();
        lines.read_line(&mut back).map_err(|e| format!("after {n} exchanges: {e}"))?;
        if back != sent {
            return Err(format!("exchange {n}: {sent:?} came back as {back:?}"));
        }
        longest = longest.max(begun.elapsed());
        done.store(n + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(longest)
}

#[test]
#[ignore = "minutes: scripts/soak linux"]
fn linux_moves_ten_times_and_its_connection_stays() {
    let test = "linux_moves_ten_times_and_its_connection_stays";
    let skip = |why: String| println!("SKIPPED {test}: {why}");
    let program = match program("godwit") {
        Ok(program) => program,
        Err(why) => return skip(why),
    };
    let [kernel, initramfs] = match cached(["linux/bzImage", "initramfs.cpio.gz"], "--tests") {
        Ok(paths) => paths,
        Err(why) => return skip(why),
    };
    let world = match World::make() {
        Ok(world) => Arc::new(world),
        Err(why) => return skip(why),
    };
    let scratch = Scratch::new("linux-moves");
    let initrd = scratch.path("initrd");
    let mut bytes = std::fs::read(initramfs).unwrap();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(cpio("move", INIT.as_bytes()));
    std::fs::write(&initrd, bytes).unwrap();
    let config = json!({
        "boot-source": {"kernel_image_path": kernel, "initrd_path": initrd,
            "boot_args": "console=ttyS0 reboot=k panic=-1 quiet rdinit=/move"},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 256, "cpu_model": "x86-64-v2"},
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:0a:4d:00:02"}],
    });
    let path = scratch.path("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let api = |n: usize| scratch.path(&format!("{n}.api"));
    let first = api(0);
    let mut here = godwit(
        &world,
        "a",
        &program,
        &[
            "--config-file",
            path.to_str().unwrap(),
            "--api-sock",
            first.to_str().unwrap(),
            "--backend",
            "interp",
        ],
    );
    wait_for(&here, "MOVE-READY", LONG);
    wait_for(&here, "WORK 1 ok", LONG);

    let over = Arc::new(AtomicBool::new(false));
    let exchanges = Arc::new(AtomicU64::new(0));
    let talker = {
        let (world, over, done) = (Arc::clone(&world), Arc::clone(&over), Arc::clone(&exchanges));
        std::thread::spawn(move || client(&world, &over, &done))
    };
    let name = world.name("w");
    let ping =
        Process::start(Path::new("/sbin/ip"), &["netns", "exec", &name, "busybox", "ping", "10.77.0.2"], "");
    wait_for(&ping, "seq=1", PATIENCE);
    let talked = |more: u64| {
        let (goal, end) = (exchanges.load(Ordering::SeqCst) + more, Instant::now() + PATIENCE);
        while exchanges.load(Ordering::SeqCst) < goal {
            assert!(Instant::now() < end && !talker.is_finished(), "the connection is silent");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    talked(10);
    let mut console = String::new();
    for number in 1..=MOVES {
        let (ns, ip) = if number % 2 == 1 { ("b", "10.77.0.12") } else { ("a", "10.77.0.11") };
        let (at, sock) = (format!("tcp:{ip}:{}", 7100 + number), api(number));
        let next = godwit(
            &world,
            ns,
            &program,
            &["receive", &at, "--insecure", "--backend", "interp", "--api-sock", sock.to_str().unwrap()],
        );
        next.wait_place().unwrap();
        let body = json!({"action": "send", "target": at, "insecure": true}).to_string();
        let asked = ask(&api(number - 1), "PUT", "/migration", &body).unwrap();
        assert_eq!(asked.0, 204, "{asked:?}");
        let end = Instant::now() + PATIENCE;
        let report = loop {
            let now = ask(&api(number - 1), "GET", "/migration", "").unwrap().1;
            match now["phase"].as_str() {
                Some("done") => break now["report"].clone(),
                Some("failed" | "unconfirmed") => {
                    panic!("move {number}: {now}; {}; {}", here.err(), next.err())
                }
                _ => assert!(Instant::now() < end, "{now}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        here.wait_exit();
        console += &here.text();
        here = next;
        talked(10);
        println!(
            "move {number}: total {:.0} ms, pause {:.2} ms, {} rounds, {:.1} MiB; {} exchanges over the connection",
            report["total_ms"].as_f64().unwrap(),
            report["downtime_ms"].as_f64().unwrap(),
            report["rounds"],
            report["bytes"].as_f64().unwrap() / f64::from(1 << 20),
            exchanges.load(Ordering::SeqCst)
        );
    }
    wait_for(&here, " ok", LONG);
    over.store(true, Ordering::SeqCst);
    let longest = talker.join().unwrap().unwrap();
    console += &here.text();
    let works: Vec<&str> = console.lines().filter(|l| l.starts_with("WORK ")).collect();
    assert!(works.iter().all(|l| l.trim_end().ends_with(" ok")), "{works:#?}");
    for (line, n) in works.iter().zip(1..) {
        assert_eq!(line.trim_end(), format!("WORK {n} ok"));
    }
    assert!(!console.contains("BUG:") && !console.contains("Oops"), "{console}");
    let text = ping.text();
    let seqs: Vec<u64> =
        text.lines().filter_map(|l| l.split_once("seq=")?.1.split(' ').next()?.parse().ok()).collect();
    let sent = seqs.iter().max().map_or(0, |m| m + 1);
    println!(
        "{MOVES} moves: one connection kept, {} exchanges, the longest {} ms; {} of {sent} pings answered; {} pieces of work right",
        exchanges.load(Ordering::SeqCst),
        longest.as_millis(),
        seqs.len(),
        works.len()
    );
}
