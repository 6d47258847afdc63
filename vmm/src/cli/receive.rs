//! `godwit receive`: waits for a guest and runs it.

use super::confine::Confine;
use super::{exit, log, run, signals, terminal};
use crate::config::MachineSpec;
use crate::control::moving::{Arrived, Arriving, Limits};
use crate::control::overrides::{Overrides, Replacement};
use crate::control::{Control, End};
use crate::migrate::{Address, Arrival, Listener, Phase, Progress, Tls, require_protection, wait_for_guest};
use crate::plugin::trust::Pin;
use crate::plugin::{Choice, choose};
use crate::sandbox;
use godwit_state::Model;
use std::path::PathBuf;
use std::time::Duration;

/// Exit code: the guest did not arrive; nothing has run here.
const NOT_ARRIVED: u8 = 3;

/// Waits for a guest from another godwit, then runs it with its console here.
///
/// Exit codes as without a subcommand; 3: the guest did not arrive, and nothing has run here.
#[derive(Debug, clap::Args)]
pub struct Receive {
    /// Where to wait: tcp:HOST:PORT, unix:PATH or vsock:CID:PORT.
    address: Address,
    /// CPU backend: auto (the best that works here), a name, or the path of a plugin.
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    backend: Choice,
    /// Look for plugins here only.
    #[arg(long, value_name = "DIR")]
    backend_dir: Option<PathBuf>,
    /// Load only a plugin with this SHA-256; may be given several times.
    #[arg(long, value_name = "SHA256")]
    plugin_sha256: Vec<String>,
    /// Unix socket for the API once the guest is here.
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,
    /// Name of this instance.
    #[arg(long, default_value = "anonymous-instance")]
    id: String,
    /// Most guest memory to take, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 0, hide_default_value = true)]
    max_memory_mib: u64,
    /// Most MiB of disks to take along with the guest, together.
    #[arg(long, value_name = "MIB", default_value_t = 0, hide_default_value = true)]
    max_disk_mib: u64,
    /// Most vCPUs to take.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_vcpus: u32,
    /// Accept another TSC frequency than the guest's.
    #[arg(long)]
    allow_tsc_mismatch: bool,
    /// Give the guest's disk ID this file or block device of this host; for a disk that moves with the guest: where its copy goes. May be given several times.
    #[arg(long, value_name = "ID=PATH")]
    drive: Vec<Replacement>,
    /// Give the guest's network interface ID this TAP interface; may be given several times.
    #[arg(long, value_name = "ID=TAP")]
    tap: Vec<Replacement>,
    /// Give the guest's network interface ID this passt socket; may be given several times.
    #[arg(long, value_name = "ID=PATH")]
    passt: Vec<Replacement>,
    /// Put the Unix socket of the guest's vsock device here.
    #[arg(long, value_name = "PATH")]
    vsock_uds: Option<String>,
    /// Receive over TCP from other machines without TLS.
    #[arg(long)]
    insecure: bool,
    /// Directory with ca-cert.pem, server-cert.pem and server-key.pem.
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// Seconds of silence after which the sender is given up.
    #[arg(long, value_name = "S", default_value_t = 10)]
    idle_s: u64,
    /// Print the arrival's report on standard error as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    confine: Confine,
}

fn fail(why: impl std::fmt::Display, code: u8) -> u8 {
    eprintln!("godwit: {why}");
    code
}

impl Receive {
    /// Waits, receives, runs: the exit code.
    pub fn run(&self) -> u8 {
        self.live().unwrap_or_else(|code| code)
    }

    fn live(&self) -> Result<u8, u8> {
        let error = |e: &dyn std::fmt::Display| fail(e, exit::ERROR);
        let arguments = |e: &dyn std::fmt::Display| fail(e, exit::ARGUMENTS);
        let id = &self.id;
        let (path, module, level) = (None, None, "Warning");
        log::start(log::Style { path, level, show_level: false, show_origin: false, module, id })
            .map_err(|e| arguments(&e))?;
        sandbox::prepare(log::fd()).map_err(|e| error(&e))?;
        require_protection(&self.address, self.tls_dir.is_some(), self.insecure)
            .map_err(|e| arguments(&e))?;
        let tls = self.tls_dir.as_deref().map(Tls::server).transpose().map_err(|e| arguments(&e))?;
        let pins: Vec<Pin> = self
            .plugin_sha256
            .iter()
            .map(|p| Pin::parse(p))
            .collect::<Result<_, _>>()
            .map_err(|e| arguments(&e))?;
        let plugin = choose(&self.backend, self.backend_dir.as_deref(), &pins).map_err(|e| error(&e))?;
        if self.backend == Choice::Auto {
            let d = plugin.descriptor();
            eprintln!("godwit: CPU backend {}: {}", d.name, d.summary);
        }
        self.confine.settle(&plugin).map_err(|e| error(&e))?;
        signals::block().map_err(|e| error(&e))?;
        let raw = terminal::Raw::enter().map_err(|e| error(&e))?;
        let mut control =
            Control::new(self.id.clone(), plugin.clone(), MachineSpec::default(), run::consoles());
        control.on_logger(Box::new(log::change));
        let handle = control.handle();

        let limits = Limits {
            memory_bytes: self.max_memory_mib.saturating_mul(1 << 20),
            vcpus: self.max_vcpus,
            allow_tsc_mismatch: self.allow_tsc_mismatch,
            disk_bytes: self.max_disk_mib.saturating_mul(1 << 20),
            overrides: Overrides {
                drives: self.drive.clone(),
                taps: self.tap.clone(),
                passt: self.passt.clone(),
                vsock_uds: self.vsock_uds.clone(),
            },
        };
        let arriving =
            Arriving::new(plugin, limits, control.console(), handle.event_sink()).map_err(|e| error(&e))?;
        let arriving = arriving.with_metadata(control.metadata());
        let listener = Listener::bind(&self.address).map_err(|e| error(&e))?;
        let place = listener.address().to_string();
        eprintln!("godwit: waiting for a guest on {place}");
        let waiting = self.address.clone();
        let quit = handle.clone();
        let arrived = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let here = std::sync::Arc::clone(&arrived);
        signals::watch(move || {
            if quit.arrival().is_some_and(|a| a.phase == Phase::Interrupted) {
                // A vCPU that waits for a page that nobody sends cannot be called back.
                eprintln!("godwit: ended while pages of the guest were missing: the guest is lost");
                std::process::exit(exit::ERROR.into());
            } else if here.load(std::sync::atomic::Ordering::SeqCst) {
                let _ = quit.quit();
            } else {
                // Nothing runs here yet, so nothing is lost; the sender sees the connection close.
                if let Address::Unix(path) = &waiting {
                    let _ = std::fs::remove_file(path);
                }
                terminal::restore();
                std::process::exit(exit::OK.into());
            }
        })
        .map_err(|e| error(&e))?;

        let progress = Progress::new("destination", &place);
        let idle = Duration::from_secs(self.idle_s.max(1));
        let turned_away = |e: &crate::migrate::MigrateError| eprintln!("godwit: turned somebody away: {e}");
        let arrival = wait_for_guest(listener, tls.as_ref(), arriving, idle, progress.clone(), turned_away)
            .map_err(|e| error(&e))?;
        let (Arrived { machine, devices }, report) = match arrival {
            Arrival::Running(arrived, report) => (arrived, report),
            Arrival::Failed(e) => return Err(fail(format!("the guest did not arrive: {e}"), NOT_ARRIVED)),
        };
        arrived.store(true, std::sync::atomic::Ordering::SeqCst);
        handle.set_arrival(progress.clone());
        if progress.snapshot().phase != Phase::Done {
            eprintln!("godwit: the guest has arrived and runs; pages that it left behind follow");
        } else if self.json {
            eprintln!("{}", serde_json::to_string(&progress.snapshot()).unwrap_or_default());
        } else {
            eprintln!(
                "godwit: the guest has arrived: {} pages, {} bytes, state {} bytes, {:.1} ms",
                report.pages, report.bytes, report.blob_bytes, report.total_ms
            );
        }
        let shape = machine.shape();
        let mut config = MachineSpec { devices, ..MachineSpec::default() };
        config.machine.vcpu_count = u8::try_from(shape.vcpus).unwrap_or(u8::MAX);
        config.machine.mem_size_mib = report.memory_bytes >> 20;
        config.machine.cpu_model = Model::from_name(&shape.model);
        config.machine.tsc_khz = Some(shape.tsc_khz);
        control.adopt(machine, config);
        let api = match &self.api_sock {
            Some(path) => Some(run::Api::start(path, 51200, handle).map_err(|e| error(&e))?),
            None => None,
        };
        // What receiving needed is over.
        sandbox::enter(sandbox::Kind::Control, "control").map_err(|e| error(&e))?;
        let end: End = control.run();
        drop(api);
        drop(raw);
        Ok(run::report(end))
    }
}
