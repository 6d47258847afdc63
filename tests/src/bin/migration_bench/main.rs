//! `godwit-migration-bench`: live migration beside QEMU's, in one run: `cargo run --release -p godwit-tests --bin godwit-migration-bench`.
//!
//! The same guest program, the same memory, one host, TCP on the loopback; both emulate the CPU (godwit's interpreter, QEMU's
//! TCG). Where KVM can be used its figures stand beside them, and moves between the two, with TLS, and by handing memory over.
//! Each of godwit's rows is the median of a few moves of one guest. Behind each move the
//! same number of bytes goes through one plain connection: what the total time is compared with. Then the sizes of the state of
//! an idle guest, section by section. Without `qemu-system-x86_64` its rows are missing, and it says so.

mod blob;
mod godwit;
mod guest;
mod plain;
mod qemu;

use clap::Parser;
use godwit::{Transport, Way};
use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::program;
use guest::Scene;
use std::time::Duration;

/// So long a mover may take before it counts as not converging.
const LIMIT: Duration = Duration::from_secs(20);

const fn scene(what: &'static str, mib: u64, filled_mib: u64, pages_per_s: u64) -> Scene {
    Scene { what, mib, filled_mib, pages_per_s }
}

const SCENES: &[Scene] = &[
    scene("1 GiB, 256 MiB filled, idle", 1024, 256, 1),
    scene("1 GiB, 256 MiB at 10,000 pages/s", 1024, 256, 10_000),
    scene("1 GiB, 256 MiB at 50,000 pages/s", 1024, 256, 50_000),
    scene("1 GiB, 256 MiB at 120,000 pages/s", 1024, 256, 120_000),
    scene("1 GiB, 256 MiB at full speed", 1024, 256, 0),
    scene("4 GiB, mostly zero", 4096, 32, 1),
];

const fn way(name: &'static str, backends: [&'static str; 2], transport: Transport, hops: usize) -> Way {
    Way { name, backends, transport, hops }
}

const WAYS: &[Way] = &[
    way("godwit, interpreter", ["interp", "interp"], Transport::Tcp, 5),
    way("godwit, interpreter, TLS", ["interp", "interp"], Transport::Tls, 3),
    way("godwit, interpreter, memory handed over", ["interp", "interp"], Transport::Local, 5),
    way("godwit, KVM", ["kvm", "kvm"], Transport::Tcp, 5),
    way("godwit, KVM, memory handed over", ["kvm", "kvm"], Transport::Local, 5),
    way("godwit", ["kvm", "interp"], Transport::Tcp, 6),
];

/// What a move cost.
pub(crate) struct Cost {
    downtime_ms: f64,
    total_ms: f64,
    bytes: f64,
    /// How long the guest stood still at most by its own clock, while it moved and in the second before.
    silence_ms: (f64, f64),
    rounds: f64,
    throttle: f64,
    /// What the same bytes take through a socket.
    plain_ms: f64,
    /// What the guest found wrong afterwards.
    wrong: Option<String>,
}

/// `None`: it did not converge within the limit.
type Outcome = Result<Option<Cost>, String>;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Cost {
    /// Field by field; of faults, the first.
    fn median(costs: Vec<Cost>) -> Cost {
        let of = |field: fn(&Cost) -> f64| median(costs.iter().map(field).collect());
        Cost {
            downtime_ms: of(|c| c.downtime_ms),
            total_ms: of(|c| c.total_ms),
            bytes: of(|c| c.bytes),
            silence_ms: (of(|c| c.silence_ms.0), of(|c| c.silence_ms.1)),
            rounds: of(|c| c.rounds),
            throttle: of(|c| c.throttle),
            plain_ms: of(|c| c.plain_ms),
            wrong: costs.into_iter().find_map(|c| c.wrong),
        }
    }
}

/// One line of the table. `best`: QEMU's shortest downtime in this run.
fn row(scene: &Scene, who: &str, outcome: &Outcome, best: Option<f64>) {
    let cells = match outcome {
        Ok(Some(c)) => {
            let ratio = match best {
                Some(best) if best > 0.0 => format!(" ({:.2}x)", c.downtime_ms / best),
                _ => String::new(),
            };
            let wrong = c.wrong.as_ref().map(|w| format!("; then {}", w.replace(['\n', '|'], " ")));
            format!(
                "{:.1}{ratio} | {:.1} (before: {:.1}) | {:.0} | {:.1} | {:.0} | {:.2} | {:.0} | {:.0}{}",
                c.downtime_ms,
                c.silence_ms.0,
                c.silence_ms.1,
                c.total_ms,
                c.bytes / f64::from(1 << 20),
                c.plain_ms,
                c.total_ms / c.plain_ms,
                c.rounds,
                c.throttle,
                wrong.unwrap_or_default(),
            )
        }
        Ok(None) => format!("does not converge in {} s | | | | | | |", LIMIT.as_secs()),
        Err(why) => format!("failed: {} | | | | | | |", why.replace(['\n', '|'], " ")),
    };
    println!("| {} | {who} | {cells} |", scene.what);
}

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

/// Live migration beside QEMU's, in one run, and the sizes of an idle guest's state.
#[derive(Parser)]
struct Arguments {
    /// Only guests whose row says this, such as "full speed"; "blob": only the state's sizes.
    #[arg(default_value = "")]
    guest: String,
    /// Only movers with this in their name, such as "TLS" or "handed over".
    #[arg(default_value = "")]
    mover: String,
}

fn main() {
    let Arguments { guest: scenes, mover: movers } = Arguments::parse();
    let Ok(godwit) = program("godwit").or_else(|_| {
        let beside = std::env::current_exe().ok().and_then(|e| Some(e.parent()?.join("godwit")));
        beside.filter(|p| p.is_file()).ok_or(())
    }) else {
        return eprintln!("godwit is not built for this profile: cargo build --release --workspace");
    };
    let peer = godwit_guests::host::qemu().map_err(|why| println!("SKIPPED QEMU's rows: {why}")).ok();
    let kvm = Plugin::usable("kvm");
    if let Err(why) = &kvm {
        println!("SKIPPED KVM's rows: {why}");
    }
    println!("load before: {}", load());
    println!(
        "| guest | mover | downtime, ms | guest's own silence, ms | total, ms | MiB sent | plain copy, ms | total/copy | rounds | throttle, % |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for scene in SCENES.iter().filter(|s| s.what.contains(&*scenes)) {
        let mut best = None::<f64>;
        for settings in qemu::SETTINGS.iter().filter(|s| s.name.contains(&*movers)) {
            let Some(path) = &peer else { break };
            let outcome = qemu::run(path, settings, scene);
            if let Ok(Some(cost)) = &outcome {
                best = Some(best.map_or(cost.downtime_ms, |b| b.min(cost.downtime_ms)));
            }
            row(scene, settings.name, &outcome, None);
        }
        for way in WAYS.iter().filter(|w| w.name.contains(&*movers)) {
            if way.backends.contains(&"kvm") && kvm.is_err() {
                continue;
            }
            for (name, outcome) in godwit::run(&godwit, way, scene) {
                row(scene, &name, &outcome, best);
            }
        }
    }
    println!("\nRatios of downtime are to QEMU's shortest for the same guest. Load after: {}\n", load());
    if "blob".contains(&*scenes) {
        blob::compare(&godwit, peer.as_deref());
    }
}
