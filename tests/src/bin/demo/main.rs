//! `godwit-demo`: one guest, two CPUs, two live moves, on one terminal. Run by `scripts/demo`.
//!
//! Starts the counter guest on the best backend, moves it to the other one and home again while its output streams by,
//! checks every line from outside, and prints the reports. Where KVM cannot be used both ends are interpreters, and it says so.
//!
//! With `--stop NAME=COMMAND` (as often as wanted; run by `scripts/tour`) the guest goes to the interpreter of each such
//! godwit instead, over TCP with TLS: builds for other CPU architectures, under emulation. `--guest disk` sends the guest
//! that reads and writes a disk, `--guest avx` the one with AVX, and so on; `--lines N` is how long it stays.

mod host;
mod linux;

use godwit_guests::bench;
use godwit_guests::counter::Checker;
use godwit_tests::harness::place;
use host::{Check, Host, Result, Screen, Stop, backends, lock, say, title};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};

/// Lines of the guest between two moves.
const LINES_A_STOP: u64 = 12;
const DISK_BYTES: u64 = 1 << 20;

/// What is sent around.
#[derive(Clone, Copy, PartialEq)]
enum Guest {
    /// The counter: registers, memory, time.
    Counter,
    /// The counter with AVX, on a CPU that has it.
    Avx,
    /// The busy guest: memory, arithmetic, and a disk on which it verifies what it wrote.
    Disk,
    /// A snapshot of Linux at its shell, restored at every stop.
    Linux,
}

/// One hop: a receiver at `stop`, and the guest sent there; over TCP with TLS where there are certificates.
fn hop(
    program: &Path,
    from: Host,
    stop: &Stop,
    certificates: Option<&str>,
    dir: &Path,
    n: usize,
    screen: &Arc<Mutex<Screen>>,
) -> Result<(Host, Value)> {
    let wanted = match certificates {
        Some(_) => "tcp:127.0.0.1:0".into(),
        None => format!("unix:{}", dir.join(format!("hop{n}.sock")).display()),
    };
    let tls: Vec<&str> = certificates.map(|dir| vec!["--tls-dir", dir]).unwrap_or_default();
    let api = dir.join(format!("api{n}.sock"));
    let mut args = vec!["receive", wanted.as_str()];
    args.extend(&tls);
    let mut to = Host::start(stop, api, &args, screen)?;
    to.wait("while it was to listen", |said| place(said).is_some())?;
    let target = place(&lock(&to.errors)).ok_or("no address")?.to_owned();
    let out = Command::new(program)
        .args(["migrate", "--json", "--api-sock"])
        .arg(&from.api)
        .arg(&target)
        .args(&tls)
        .output()
        .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        return Err(format!(
            "godwit migrate: {}\n{text}{}",
            out.status,
            String::from_utf8_lossy(&out.stderr)
        ));
    }
    let report = serde_json::from_str(&text).map_err(|e| format!("the report is not JSON: {e}: {text}"))?;
    Ok((to, report))
}

/// What was asked for.
struct Options {
    stops: Vec<Stop>,
    guest: Guest,
    model: String,
    lines: u64,
}

/// Writes the guest and its configuration; returns the path of the latter.
fn write_guest(dir: &Path, options: &Options) -> Result<PathBuf> {
    let failed = |e: std::io::Error| format!("{}: {e}", dir.display());
    let kernel = dir.join("guest.elf");
    let mut config = serde_json::json!({
        "boot-source": { "kernel_image_path": kernel, "boot_args": "" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128, "cpu_model": options.model }
    });
    let elf = if options.guest == Guest::Disk {
        let disk = dir.join("disk.img");
        std::fs::File::create(&disk).and_then(|f| f.set_len(DISK_BYTES)).map_err(failed)?;
        config["boot-source"]["boot_args"] = "busy=1".into();
        config["drives"] = serde_json::json!([
            { "drive_id": "disk", "path_on_host": disk, "is_root_device": false, "is_read_only": false }
        ]);
        let program = bench::compile_virtio(dir)?;
        bench::image(&program).map_err(|e| e.to_string())?
    } else {
        let name = if options.guest == Guest::Avx { "counter-avx" } else { "counter" };
        godwit_guests::build(name).map_err(|e| e.to_string())?
    };
    std::fs::write(&kernel, elf).map_err(failed)?;
    let path = dir.join("guest.json");
    std::fs::write(&path, config.to_string()).map_err(failed)?;
    Ok(path)
}

fn demo(dir: &Path, options: &Options) -> Result<()> {
    let Options { stops, guest, model, lines: stay } = options;
    let program = std::env::current_exe().map_err(|e| e.to_string())?.with_file_name("godwit");
    let check = match guest {
        Guest::Counter | Guest::Avx => Check::Counter(Checker::new()),
        Guest::Disk => Check::Busy,
        Guest::Linux => return linux::abroad(&program, dir, stops),
    };
    let usable = backends(&program, model)?;
    let (first, second) = match usable.as_slice() {
        [best, other, ..] => (best.clone(), other.clone()),
        [only] => {
            if stops.is_empty() {
                say(&format!("Only {only} can be used here: the guest moves between two processes of it."));
            }
            (only.clone(), only.clone())
        }
        [] => {
            return Err(format!("no backend can run a guest with the CPU {model} here; see godwit backends"));
        }
    };
    let config = write_guest(dir, options)?;
    let certificates = dir.join("tls");
    let certificates = match stops.is_empty() {
        true => None,
        false => {
            godwit_tests::certificates::write(&certificates, &["127.0.0.1"])?;
            Some(certificates.display().to_string())
        }
    };

    let screen = Arc::new(Mutex::new(Screen::new(check)));
    let lines = |n: u64| {
        let screen = Arc::clone(&screen);
        let until = lock(&screen).lines + n;
        move |_: &str| lock(&screen).lines >= until || lock(&screen).wrong.is_some()
    };
    let path = config.display().to_string();
    let first = Stop::here(&program, &first);
    title(&format!("The guest starts on {}", first.name));
    let mut route = stops.to_vec();
    if stops.is_empty() {
        route.push(Stop::here(&program, &second));
    }
    route.push(first.clone());
    let mut host = Host::start(&first, dir.join("api0.sock"), &["--config-file", &path], &screen)?;
    host.wait("while the guest was to count", lines(*stay))?;
    let mut reports = Vec::new();
    for (n, stop) in route.iter().enumerate() {
        title(&format!("It moves to {}", stop.name));
        let from = host.name.clone();
        let (next, report) = hop(&program, host, stop, certificates.as_deref(), dir, n + 1, &screen)?;
        host = next;
        reports.push((format!("{from} -> {}", stop.name), report));
        host.wait("while the guest was to count on", lines(*stay))?;
    }
    if !stops.is_empty() && *guest != Guest::Disk {
        linux::same_everywhere(&program, dir, &host, stops)?;
    }
    drop(host);

    let screen = lock(&screen);
    title("Reports");
    say(&format!(
        "{:24} {:>10} {:>11} {:>7} {:>8} {:>10} {:>7}",
        "hop", "total", "VMM pause", "rounds", "pages", "bytes", "state"
    ));
    for (name, r) in &reports {
        let r = &r["report"];
        let number = |key: &str| r[key].as_f64().unwrap_or(f64::NAN);
        say(&format!(
            "{name:24} {:>7.1} ms {:>8.2} ms {:>7} {:>8} {:>10} {:>5} B",
            number("total_ms"),
            number("downtime_ms"),
            number("rounds"),
            number("pages"),
            number("bytes"),
            number("blob_bytes")
        ));
    }
    if let Some(wrong) = &screen.wrong {
        return Err(format!("the guest was disturbed: {wrong}"));
    }
    let silence = screen.silence.as_millis();
    match &screen.check {
        Check::Counter(checker) => {
            say(&format!(
                "The guest prints a line every 100 ms. Its longest silence between two lines: {} ms by its own clock, {silence} ms as seen here.",
                checker.max_gap_us() / 1000,
            ));
            say(&format!("{} lines: none missing, none twice, every checksum right.", checker.lines()));
        }
        Check::Busy => say(&format!(
            "{} rounds: none missing, none twice, memory, arithmetic and disk verified in each. Longest silence: {silence} ms.",
            screen.lines
        )),
    }
    Ok(())
}

const USAGE: &str = "usage: godwit-demo [--stop NAME=COMMAND]... [--guest counter|avx|disk|linux] [--lines N]
Moves a guest live between CPU backends; scripts/demo and scripts/tour build everything and run it.";

fn arguments() -> Result<Options> {
    let mut options =
        Options { stops: Vec::new(), guest: Guest::Counter, model: "x86-64".into(), lines: LINES_A_STOP };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        match arg.as_str() {
            "--stop" => options.stops.push(Stop::parse(&value)?),
            "--guest" if value == "counter" => options.guest = Guest::Counter,
            "--guest" if value == "avx" => {
                options.guest = Guest::Avx;
                options.model = "x86-64-v3".into();
            }
            "--guest" if value == "disk" => options.guest = Guest::Disk,
            "--guest" if value == "linux" => options.guest = Guest::Linux,
            "--lines" => options.lines = value.parse().map_err(|e| format!("--lines {value}: {e}"))?,
            _ => return Err(USAGE.into()),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match arguments() {
        Ok(options) => options,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(2);
        }
    };
    let dir = std::env::temp_dir().join(format!("godwit-demo-{}", std::process::id()));
    let result = std::fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display())).and_then(|()| {
        let result = demo(&dir, &options);
        let _ = std::fs::remove_dir_all(&dir);
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("godwit-demo: {e}");
            ExitCode::FAILURE
        }
    }
}
