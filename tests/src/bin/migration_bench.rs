//! `godwit-migration-bench`: live migration beside QEMU's, in one run: `cargo run --release -p godwit-tests --bin godwit-migration-bench`.
//!
//! The same guest programs, the same memory, one host, a Unix socket; both emulate the CPU (godwit's interpreter, QEMU's TCG).
//! Where KVM can be used its figures stand beside them. Prints a table with ratios to QEMU at its defaults. Without
//! `qemu-system-x86_64` only godwit's columns are there, and it says so.

use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::{Process, Scratch, program};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// So long a mover may take before it counts as not converging.
const LIMIT: Duration = Duration::from_secs(20);
/// Longer than a guest takes to fill its memory and say so, on a busy machine.
const BOOT: Duration = Duration::from_secs(180);

/// A guest and its load.
struct Scene {
    what: &'static str,
    guest: &'static str,
    mib: u64,
    args: &'static str,
}

const SCENES: &[Scene] = &[
    Scene { what: "1 GiB idle", guest: "dirtier", mib: 1024, args: "mib=256 pages_per_s=1" },
    Scene {
        what: "256 MiB at 10,000 pages/s",
        guest: "dirtier",
        mib: 1024,
        args: "mib=256 pages_per_s=10000",
    },
    Scene {
        what: "256 MiB at 120,000 pages/s",
        guest: "dirtier",
        mib: 1024,
        args: "mib=256 pages_per_s=120000",
    },
    Scene { what: "256 MiB at full speed", guest: "dirtier", mib: 1024, args: "mib=256 pages_per_s=0" },
    Scene { what: "3 GiB mostly zero", guest: "dirtier", mib: 3072, args: "mib=32 pages_per_s=1" },
];

/// What a move cost; `None`: it did not converge within the limit.
struct Cost {
    downtime_ms: f64,
    total_ms: f64,
    bytes: f64,
    /// What the guest found wrong afterwards.
    wrong: Option<String>,
}

type Outcome = Result<Option<Cost>, String>;

/// Waits for `n` more of the guest's lines, each of which must say that its memory is right.
fn wait_ticks(guest: &Process, n: usize) -> Result<(), String> {
    let ticks = || guest.lines().into_iter().filter(|l| l.starts_with("t=")).collect::<Vec<_>>();
    let (begin, end) = (ticks().len(), Instant::now() + BOOT);
    loop {
        let now = ticks();
        if let Some(bad) = now.iter().find(|l| l.contains("BAD")) {
            return Err(format!("a page was lost: {bad}"));
        }
        if now.len() >= begin + n {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("the guest is silent: {}", guest.err()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn godwit(program: &Path, backend: &str, scene: &Scene) -> Outcome {
    let scratch = Scratch::new(&format!("bench-{backend}"));
    let text = |name: &str| scratch.path(name).to_string_lossy().into_owned();
    let config = scratch.config(scene.guest, scene.mib, "x86-64", scene.args);
    let (config, from, to) = (config.to_string_lossy().into_owned(), text("from.api"), text("to.api"));
    let source =
        Process::start(program, &["--config-file", &config, "--api-sock", &from, "--backend", backend], "");
    wait_ticks(&source, 2)?;
    let address = format!("unix:{}", text("move"));
    let destination =
        Process::start(program, &["receive", &address, "--backend", backend, "--api-sock", &to], "");
    destination.wait_err("waiting for a guest");
    let moved = Command::new(program)
        .args([
            "migrate",
            "--api-sock",
            &from,
            &address,
            "--json",
            "--memory",
            "copy",
            "--timeout-s",
            &LIMIT.as_secs().to_string(),
        ])
        .output()
        .map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&moved.stdout);
    let report: Value = serde_json::from_str(&said).map_err(|e| format!("{e}: {said}"))?;
    match moved.status.code() {
        Some(0) => {}
        Some(3) if report["elapsed_ms"].as_f64() >= Some(LIMIT.as_secs_f64() * 900.0) => return Ok(None),
        _ => return Err(format!("{said}{}", String::from_utf8_lossy(&moved.stderr))),
    }
    let wrong = wait_ticks(&destination, 2).err();
    let number = |name: &str| report["report"][name].as_f64().unwrap_or(f64::NAN);
    Ok(Some(Cost {
        downtime_ms: number("downtime_ms"),
        total_ms: number("total_ms"),
        bytes: number("bytes"),
        wrong,
    }))
}

/// QEMU's control socket.
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn open(path: &Path) -> Result<Qmp, String> {
        let end = Instant::now() + Duration::from_secs(20);
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > end => return Err(format!("{}: {e}", path.display())),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(|e| e.to_string())?;
        let mut qmp = Qmp(BufReader::new(stream));
        qmp.line()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn line(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.0.read_line(&mut line).map_err(|e| e.to_string())?;
        serde_json::from_str(&line).map_err(|e| format!("QMP: {e}: {line}"))
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let body = json!({"execute": command, "arguments": arguments});
        writeln!(self.0.get_mut(), "{body}").map_err(|e| e.to_string())?;
        loop {
            let answer = self.line()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}"));
            }
            if let Some(result) = answer.get("return") {
                return Ok(result.clone());
            }
        }
    }
}

fn qemu(program: &Path, scene: &Scene, tuned: bool) -> Outcome {
    let scratch = Scratch::new(if tuned { "bench-qemu-tuned" } else { "bench-qemu" });
    let text = |name: &str| scratch.path(name).to_string_lossy().into_owned();
    scratch.config(scene.guest, scene.mib, "x86-64", scene.args);
    let kernel = text(&format!("{}.elf", scene.guest));
    let (memory, address) = (scene.mib.to_string(), format!("unix:{}", text("move")));
    let start = |qmp: &str, incoming: bool| {
        let control = format!("unix:{},server=on,wait=off", text(qmp));
        let mut args =
            vec!["-M", "microvm", "-accel", "tcg", "-cpu", "max", "-nodefaults", "-no-user-config"];
        args.extend(["-display", "none", "-serial", "stdio", "-m", &memory, "-kernel", &kernel]);
        args.extend(["-append", scene.args, "-qmp", &control]);
        if incoming {
            args.extend(["-incoming", &address]);
        }
        Process::start(program, &args, "")
    };
    let source = start("from.qmp", false);
    wait_ticks(&source, 2)?;
    let destination = start("to.qmp", true);
    let (mut from, mut to) = (Qmp::open(&scratch.path("from.qmp"))?, Qmp::open(&scratch.path("to.qmp"))?);
    if tuned {
        from.ask("migrate-set-parameters", json!({"max-bandwidth": 64u64 << 30, "downtime-limit": 50}))?;
    }
    from.ask("migrate", json!({"uri": address}))?;
    let end = Instant::now() + LIMIT;
    let info = loop {
        let info = from.ask("query-migrate", json!({}))?;
        match info["status"].as_str() {
            Some("completed") => break info,
            Some("failed") => return Err(format!("QEMU: {info}; {}", destination.err())),
            _ if Instant::now() > end => return Ok(None),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    // The source only knows that its bytes are gone: the destination has to run.
    while to.ask("query-status", json!({}))?["status"] != "running" {
        std::thread::sleep(Duration::from_millis(1));
    }
    let wrong = wait_ticks(&destination, 2).err();
    Ok(Some(Cost {
        wrong,
        downtime_ms: info["downtime"].as_f64().unwrap_or(f64::NAN),
        total_ms: info["total-time"].as_f64().unwrap_or(f64::NAN),
        bytes: info["ram"]["transferred"].as_f64().unwrap_or(f64::NAN),
    }))
}

fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join(name)).find(|p| p.is_file())
}

fn row(scene: &Scene, who: &str, outcome: &Outcome, peer: Option<&Cost>) {
    let cells = match outcome {
        Ok(Some(cost)) => {
            let ratio = |ours: f64, theirs: fn(&Cost) -> f64| match peer.map(theirs) {
                Some(theirs) if theirs > 0.0 => format!(" ({:.2}x)", ours / theirs),
                _ => String::new(),
            };
            format!(
                "{:.1}{} | {:.0}{} | {:.1}{}{}",
                cost.downtime_ms,
                ratio(cost.downtime_ms, |c| c.downtime_ms),
                cost.total_ms,
                ratio(cost.total_ms, |c| c.total_ms),
                cost.bytes / f64::from(1 << 20),
                ratio(cost.bytes, |c| c.bytes),
                cost.wrong
                    .as_ref()
                    .map(|w| format!("; then {}", w.replace(['\n', '|'], " ")))
                    .unwrap_or_default(),
            )
        }
        Ok(None) => format!("does not converge in {} s | |", LIMIT.as_secs()),
        Err(why) => format!("failed: {} | |", why.replace(['\n', '|'], " ")),
    };
    println!("| {} | {who} | {cells} |", scene.what);
}

fn main() {
    let Ok(program) = program("godwit").or_else(|_| {
        let beside = std::env::current_exe().ok().and_then(|e| Some(e.parent()?.join("godwit")));
        beside.filter(|p| p.is_file()).ok_or(())
    }) else {
        return eprintln!("godwit is not built for this profile: cargo build --release --workspace");
    };
    let peer = find("qemu-system-x86_64");
    if peer.is_none() {
        println!("SKIPPED QEMU's columns: qemu-system-x86_64 is not installed (scripts/setup --peers)");
    }
    let kvm = Plugin::usable("kvm");
    if let Err(why) = &kvm {
        println!("SKIPPED KVM's columns: {why}");
    }
    let only = std::env::args().nth(1).unwrap_or_default();
    println!("| guest | mover | downtime, ms | total, ms | MiB sent |\n|---|---|---|---|---|");
    for scene in SCENES.iter().filter(|s| s.what.contains(&only)) {
        let default = peer.as_deref().map(|qemu_path| qemu(qemu_path, scene, false));
        let tuned = peer.as_deref().map(|qemu_path| qemu(qemu_path, scene, true));
        let best = [&default, &tuned].into_iter().flatten().filter_map(|o| o.as_ref().ok()?.as_ref());
        let best = best.min_by(|a, b| a.downtime_ms.total_cmp(&b.downtime_ms));
        for (name, outcome) in [("QEMU, its defaults", &default), ("QEMU, no bandwidth limit, 50 ms", &tuned)]
        {
            if let Some(outcome) = outcome {
                row(scene, name, outcome, None);
            }
        }
        row(scene, "godwit, interpreter", &godwit(&program, "interp", scene), best);
        if kvm.is_ok() {
            row(scene, "godwit, KVM", &godwit(&program, "kvm", scene), best);
        }
    }
    println!("\nRatios are to QEMU's run with the shorter downtime.");
}
