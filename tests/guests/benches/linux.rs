//! Linux: Debian's cloud kernel and a busybox initramfs, booted on Godwit's interpreter and on QEMU's TCG.
//!
//!     cargo bench -p godwit-guests --bench linux [-- --runs N] [--backend NAME] [--limit SECONDS]
//!
//! Each subject boots to the init script's marker and does the initramfs's timed work (`godwit.do=bench`),
//! in turn, `runs` times (3). The table has medians in milliseconds: of the processor time the
//! monitor took (so that a busy host matters less), with the wall's for the boot besides; and TCG relative to
//! Godwit (above 1: Godwit is faster). Then Godwit's own memory: what is private to the process and
//! no guest RAM, after the work, with one and with four vCPUs. `scripts/setup --tests` installs kernel and initramfs; the
//! `godwit` binary is `$GODWIT`, else the release build of this workspace; what is not there is left out by name.

use clap::Parser;
use godwit_guests::host::{self, median, own_memory};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MEMORY_MIB: u64 = 256;
const BOOT_ARGS: &str = "console=ttyS0 reboot=k panic=1 godwit.do=bench";

/// What one boot gave: milliseconds by name, and at its end the process's own memory.
struct Outcome {
    times: Vec<(String, u64)>,
    own_kib: Option<u64>,
}

/// Kernel and initramfs from the set-up's cache.
fn images() -> Option<(PathBuf, PathBuf)> {
    let cache = godwit_guests::host::cache();
    let (kernel, initrd) = (cache.join("linux/bzImage"), cache.join("initramfs.cpio.gz"));
    (kernel.is_file() && initrd.is_file()).then_some((kernel, initrd))
}

/// Processor time the process has taken so far, in milliseconds.
fn cpu_ms(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything; the fields behind it do not.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // Ticks are a hundredth of a second wherever this runs.
    Some((user + system) * 10)
}

fn finish(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Ends the process after `limit`, so that a guest that hangs gives its line and no more.
fn watch(pid: u32, limit: Duration) -> std::sync::mpsc::Sender<()> {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    });
    done
}

/// Boots, and reads the guest's console up to the end of its work.
fn boot(name: &str, command: &mut Command, limit: Duration) -> Option<Outcome> {
    let start = Instant::now();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            println!("left out: {name} ({error})");
            return None;
        }
    };
    let pid = child.id();
    let _watch = watch(pid, limit);
    let mut times = Vec::new();
    let mut before = 0;
    let mut last = String::new();
    let output = child.stdout.take()?;
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("GODWIT-INIT") {
            before = cpu_ms(pid)?;
            times.push(("boot, wall".to_owned(), start.elapsed().as_millis() as u64));
            times.push(("boot".to_owned(), before));
        } else if let Some(at) = line.find("BENCH ") {
            let now = cpu_ms(pid)?;
            let what = line[at + 6..].split_whitespace().next()?.to_owned();
            times.push((what, now - before));
            before = now;
        } else if line.contains("BENCH-END") {
            let outcome = Outcome { times, own_kib: own_memory(pid, MEMORY_MIB).map(|own| own.private) };
            finish(child);
            return Some(outcome);
        }
        last = line;
    }
    finish(child);
    println!("{name} did not finish; its last line: {last}");
    None
}

/// The host's clock rate as Linux gives it: what TCG's time stamp counter runs at.
fn khz() -> u64 {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz = info.lines().find_map(|l| l.strip_prefix("cpu MHz")?.rsplit(' ').next()?.parse::<f64>().ok());
    mhz.map_or(2_500_000, |mhz| (mhz * 1000.0) as u64)
}

fn qemu(binary: &Path, kernel: &Path, initrd: &Path) -> Command {
    // Told its clocks: calibrating them under TCG on a busy host can fail, and then the kernel waits for ever.
    let args = format!("{BOOT_ARGS} no_timer_check lpj=4000000 tsc_early_khz={}", khz());
    let mut command = Command::new(binary);
    // Without these devices of a PC the kernel waits for ever for its clock.
    command.args(["-M", "microvm,pit=on,pic=on,rtc=on", "-accel", "tcg", "-cpu", "max", "-nographic"]);
    command.args(["-no-reboot", "-m", &MEMORY_MIB.to_string(), "-append", &args]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    command
}

fn godwit(binary: &Path, backend: &str, vcpus: u32, kernel: &Path, initrd: &Path) -> Command {
    let config = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("linux-{vcpus}.json"));
    let text = format!(
        "{{\"boot-source\": {{\"kernel_image_path\": {:?}, \"initrd_path\": {:?},\n \
         \"boot_args\": {BOOT_ARGS:?}}},\n \
         \"machine-config\": {{\"vcpu_count\": {vcpus}, \"mem_size_mib\": {MEMORY_MIB}}}}}\n",
        kernel.display().to_string(),
        initrd.display().to_string()
    );
    std::fs::write(&config, text).expect("the config file");
    let mut command = Command::new(binary);
    command.args(["--no-api", "--backend", backend, "--config-file"]).arg(config);
    command
}

/// Debian's kernel and what it does then, on Godwit and on QEMU's TCG.
#[derive(Parser)]
struct Arguments {
    /// Runs of each subject; the table has their medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Godwit's CPU backend.
    #[arg(long, default_value = "interp")]
    backend: String,
    /// Most seconds for one run.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let Arguments { runs, backend, limit, .. } = Arguments::parse();
    let limit = Duration::from_secs(limit);
    let Some((kernel, initrd)) = images() else {
        return println!("left out: linux (no kernel and initramfs; scripts/setup --tests installs them)");
    };
    let binary = host::godwit();
    if !binary.exists() {
        return println!("left out: linux (no {}; cargo build --release --workspace)", binary.display());
    }
    let mut subjects = vec![("godwit", godwit(&binary, &backend, 1, &kernel, &initrd))];
    match host::qemu() {
        Ok(peer) => subjects.insert(0, ("tcg", qemu(&peer, &kernel, &initrd))),
        Err(why) => println!("left out: tcg ({why})"),
    }
    let mut results: BTreeMap<(&str, String), Vec<u64>> = BTreeMap::new();
    let (mut order, mut own) = (Vec::<String>::new(), None);
    for _ in 0..runs {
        for (name, command) in &mut subjects {
            let Some(outcome) = boot(name, command, limit) else { continue };
            if *name == "godwit" {
                own = own.max(outcome.own_kib);
            }
            for (what, ms) in outcome.times {
                if !order.contains(&what) {
                    order.push(what.clone());
                }
                results.entry((name, what)).or_default().push(ms);
            }
        }
    }
    println!("{:14}{:>10}{:>10}{:>14}", "milliseconds", "tcg", "godwit", "tcg/godwit");
    for what in &order {
        let get = |name: &'static str| results.get(&(name, what.clone())).map(|v| median(v));
        let (tcg, ours) = (get("tcg"), get("godwit"));
        let show = |ms: Option<u64>| ms.map_or("-".to_owned(), |ms| ms.to_string());
        let ratio = match (tcg, ours) {
            (Some(tcg), Some(ours)) if ours > 0 => format!("{:.2}", tcg as f64 / ours as f64),
            _ => "-".to_owned(),
        };
        println!("{what:14}{:>10}{:>10}{ratio:>14}", show(tcg), show(ours));
    }
    let mib =
        |kib: Option<u64>| kib.map_or("unknown".to_owned(), |kib| format!("{:.1} MiB", kib as f64 / 1024.0));
    println!("godwit's own memory, guest RAM not counted: one vCPU {}", mib(own));
    let four = boot("godwit with 4 vCPUs", &mut godwit(&binary, &backend, 4, &kernel, &initrd), limit);
    println!("godwit's own memory, guest RAM not counted: four vCPUs {}", mib(four.and_then(|o| o.own_kib)));
}
