//! The same moves by QEMU, TCG to TCG.

use crate::guest::{Guest, Leaving, Scene};
use crate::{Cost, LIMIT, Outcome};
use godwit_tests::harness::{Process, Scratch};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// One way to have QEMU do it.
pub(crate) struct Settings {
    pub(crate) name: &'static str,
    /// `migrate-set-parameters`; nothing: its defaults.
    pub(crate) parameters: fn() -> Option<Value>,
    pub(crate) auto_converge: bool,
}

const UNLIMITED: u64 = 64 << 30;

pub(crate) const SETTINGS: &[Settings] = &[
    Settings { name: "QEMU, its defaults", parameters: || None, auto_converge: false },
    Settings {
        name: "QEMU, no bandwidth limit",
        parameters: || Some(json!({"max-bandwidth": UNLIMITED})),
        auto_converge: false,
    },
    Settings {
        name: "QEMU, no bandwidth limit, 50 ms, auto-converge",
        parameters: || Some(json!({"max-bandwidth": UNLIMITED, "downtime-limit": 50})),
        auto_converge: true,
    },
];

/// QEMU's control socket.
pub(crate) struct Qmp(BufReader<UnixStream>);

impl Qmp {
    pub(crate) fn open(path: &Path) -> Result<Qmp, String> {
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

    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
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

    /// Has it send its guest to `uri`: its figures; `None`: not within the limit.
    pub(crate) fn migrate(&mut self, uri: &str) -> Result<Option<Value>, String> {
        self.ask("migrate", json!({"uri": uri}))?;
        let end = Instant::now() + LIMIT;
        loop {
            let info = self.ask("query-migrate", json!({}))?;
            match info["status"].as_str() {
                Some("completed") => return Ok(Some(info)),
                Some("failed") => return Err(format!("QEMU: {info}")),
                _ if Instant::now() > end => return Ok(None),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// Arguments of a QEMU with nothing but a serial port, and a control socket.
pub(crate) fn arguments(kernel: &str, mib: u64, append: &str, control: &str) -> Vec<String> {
    let (mib, control) = (mib.to_string(), format!("unix:{control},server=on,wait=off"));
    let mut args = vec!["-M", "microvm", "-accel", "tcg", "-cpu", "max", "-nodefaults", "-no-user-config"];
    args.extend(["-display", "none", "-serial", "stdio", "-m", &mib, "-kernel", kernel]);
    args.extend(["-append", append, "-qmp", &control]);
    args.into_iter().map(str::to_owned).collect()
}

/// Starts a QEMU.
pub(crate) fn start(program: &Path, args: &[String]) -> Process {
    Process::start(program, &args.iter().map(String::as_str).collect::<Vec<_>>(), "")
}

/// One move.
pub(crate) fn run(program: &Path, settings: &Settings, scene: &Scene) -> Outcome {
    let scratch = Scratch::new("migration-bench-qemu");
    let text = |name: &str| scratch.path(name).to_string_lossy().into_owned();
    scratch.config("dirtier", scene.mib, "x86-64", "");
    let args = |qmp: &str| arguments(&text("dirtier.elf"), scene.mib, &scene.arguments(), &text(qmp));
    let mut guest = Guest::new(start(program, &args("from.qmp")));
    guest.wait(2)?;
    guest.stall_ms();
    guest.wait(1)?;
    let before = guest.stall_ms();
    let mut incoming = args("to.qmp");
    incoming.extend(["-incoming".into(), "defer".into()]);
    let destination = start(program, &incoming);
    let (mut from, mut to) = (Qmp::open(&scratch.path("from.qmp"))?, Qmp::open(&scratch.path("to.qmp"))?);
    to.ask("migrate-incoming", json!({"uri": "tcp:127.0.0.1:0"}))?;
    let port = to.ask("query-migrate", json!({}))?["socket-address"][0]["port"].clone();
    let port = port.as_str().ok_or("QEMU does not say where it waits")?.to_owned();
    if let Some(parameters) = (settings.parameters)() {
        from.ask("migrate-set-parameters", parameters)?;
    }
    if settings.auto_converge {
        let on = json!({"capabilities": [{"capability": "auto-converge", "state": true}]});
        from.ask("migrate-set-capabilities", on)?;
    }
    let Some(info) = from.migrate(&format!("tcp:127.0.0.1:{port}"))? else { return Ok(None) };
    // The source only knows that its bytes are gone: the destination has to run.
    while to.ask("query-status", json!({}))?["status"] != "running" {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut guest = guest.moved_to(destination, Leaving::Stays);
    let wrong = guest.wait(2).err();
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let bytes = number(&info["ram"]["transferred"]);
    Ok(Some(Cost {
        downtime_ms: number(&info["downtime"]),
        total_ms: number(&info["total-time"]),
        bytes,
        silence_ms: (guest.stall_ms(), before),
        rounds: number(&info["ram"]["dirty-sync-count"]),
        throttle: info["cpu-throttle-percentage"].as_f64().unwrap_or(0.0),
        plain_ms: crate::plain::copy_ms(bytes as u64),
        wrong,
    }))
}
