//! Moves of a Godwit guest: the real program, hop after hop through new processes.

use crate::guest::{Guest, Leaving, Scene};
use crate::{Cost, LIMIT, Outcome, plain};
use godwit_tests::certificates;
use godwit_tests::harness::{PATIENCE, Process, Scratch, ask};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How a guest goes.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// The backends that take turns.
    pub(crate) backends: [&'static str; 2],
    pub(crate) transport: Transport,
    pub(crate) hops: usize,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Transport {
    Tcp,
    Tls,
    /// Guest memory is handed over by descriptors.
    Local,
}

struct Life {
    guest: Guest,
    api: PathBuf,
}

fn receive(
    program: &Path,
    scratch: &Scratch,
    way: &Way,
    number: usize,
) -> Result<(Process, PathBuf, String), String> {
    let text = |name: &str| scratch.path(name).to_string_lossy().into_owned();
    let api = scratch.path(&format!("{number}.api"));
    let at = match way.transport {
        Transport::Local => format!("unix:{}", text(&format!("{number}.move"))),
        _ => "tcp:127.0.0.1:0".to_owned(),
    };
    let (api_text, tls) = (api.to_string_lossy().into_owned(), text("tls"));
    let mut args = vec![
        "receive",
        &at,
        "--backend",
        way.backends[number % 2],
        "--api-sock",
        &api_text,
        "--idle-s",
        "60",
    ];
    if way.transport == Transport::Tls {
        args.extend(["--tls-dir", &tls]);
    }
    let process = Process::start(program, &args, "");
    let place = process.wait_place()?;
    Ok((process, api, place))
}

fn send(life: &Life, scratch: &Scratch, way: &Way, place: &str) -> Result<Option<Value>, String> {
    let mut body = json!({
        "action": "send", "target": place, "allow_tsc_mismatch": true, "timeout_s": LIMIT.as_secs(), "idle_s": 60,
        "memory": if way.transport == Transport::Local { "hand-over" } else { "copy" },
    });
    if way.transport == Transport::Tls {
        body["tls_dir"] = json!(scratch.path("tls"));
    }
    let asked = ask(&life.api, "PUT", "/migration", &body.to_string())?;
    if asked.0 != 204 {
        return Err(format!("refused: {asked:?}"));
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let now = ask(&life.api, "GET", "/migration", "")?.1;
        match now["phase"].as_str() {
            Some("done") => return Ok(Some(now["report"].clone())),
            Some("failed") if now["elapsed_ms"].as_f64() >= Some(LIMIT.as_secs_f64() * 900.0) => {
                return Ok(None);
            }
            Some("failed" | "unconfirmed") => return Err(now.to_string()),
            _ if Instant::now() > end => return Err(format!("endless: {now}")),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Hops of one guest: what each cost, by where from and where to.
pub(crate) fn run(program: &Path, way: &Way, scene: &Scene) -> Vec<(String, Outcome)> {
    let mut all: Vec<(String, Vec<Cost>)> = Vec::new();
    let failed = hops(program, way, scene, &mut all);
    let mut rows: Vec<_> =
        all.into_iter().map(|(name, costs)| (name, Ok(Some(Cost::median(costs))))).collect();
    match failed {
        Ok(true) => {}
        Ok(false) => rows.push((way.name.to_owned(), Ok(None))),
        Err(why) => rows.push((way.name.to_owned(), Err(why))),
    }
    rows
}

/// False: one did not converge.
fn hops(
    program: &Path,
    way: &Way,
    scene: &Scene,
    all: &mut Vec<(String, Vec<Cost>)>,
) -> Result<bool, String> {
    let scratch = Scratch::new("migration-bench");
    if way.transport == Transport::Tls {
        certificates::write(&scratch.path("tls"), &["127.0.0.1"])?;
    }
    let config = scratch.config("dirtier", scene.mib, "x86-64", &scene.arguments());
    let (config, api) = (config.to_string_lossy().into_owned(), scratch.path("0.api"));
    let api_text = api.to_string_lossy().into_owned();
    let args = ["--config-file", &config, "--api-sock", &api_text, "--backend", way.backends[0]];
    let mut here = Life { guest: Guest::new(Process::start(program, &args, "")), api };
    here.guest.wait(2)?;
    for number in 1..=way.hops {
        here.guest.stall_ms();
        here.guest.wait(1)?;
        let before = here.guest.stall_ms();
        let (process, api, place) = receive(program, &scratch, way, number)?;
        let Some(report) = send(&here, &scratch, way, &place)? else { return Ok(false) };
        let number_of = |name: &str| report[name].as_f64().unwrap_or(f64::NAN);
        // The line that the pause is in is the next one, or the one after that.
        let mut guest = here.guest.moved_to(process, Leaving::Ends);
        let wrong = guest.wait(2).err();
        let silence = guest.stall_ms();
        let bytes = number_of("bytes");
        let cost = Cost {
            downtime_ms: number_of("downtime_ms"),
            total_ms: number_of("total_ms"),
            bytes,
            silence_ms: (silence, before),
            rounds: number_of("rounds"),
            throttle: number_of("throttle_percent"),
            plain_ms: plain::copy_ms(bytes as u64),
            wrong,
        };
        let [from, to] = [way.backends[(number + 1) % 2], way.backends[number % 2]];
        let name = if from == to { way.name.to_owned() } else { format!("{}: {from} to {to}", way.name) };
        let stop = cost.wrong.is_some();
        match all.iter_mut().find(|(n, _)| *n == name) {
            Some((_, costs)) => costs.push(cost),
            None => all.push((name, vec![cost])),
        }
        if stop {
            break;
        }
        here = Life { guest, api };
    }
    Ok(true)
}
