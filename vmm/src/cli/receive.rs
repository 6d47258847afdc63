//! `godwit receive`: waits for a guest and runs it.

use super::cpu::Cpu;
use super::migrate::bar;
use super::socket::instance_id;
use super::{exit, log, run, signals, terminal};
use crate::config::{
    DriveOverride, MachineSpec, NetworkOverride, PasstOverride, ReceiveRequest, VsockOverride,
};
use crate::control::overrides::Replacement;
use crate::control::{Control, receiving};
use crate::migrate::{Address, Observer, Phase, Progress, Report};
use crate::sandbox::{self, Entering};
use std::io::IsTerminal;
use std::path::PathBuf;

/// Waits for a guest from another godwit, then runs it with its console here.
///
/// Exit codes as without a subcommand; 3: the guest did not arrive, and nothing has run here.
#[derive(Debug, clap::Args)]
pub struct Receive {
    /// Where to wait: tcp:HOST:PORT, unix:PATH or vsock:CID:PORT.
    address: Address,
    /// Unix socket for the API: it says how far the guest is, and serves it when it is here.
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,
    /// Name of this instance: letters, digits and '-'.
    #[arg(long, default_value = "anonymous-instance", value_parser = instance_id)]
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
    /// Take only devices of this kind, as virtio.block; may be given several times.
    #[arg(long, value_name = "KIND")]
    allow_device: Vec<String>,
    /// Let the sender name disks and sockets in this directory, and in no other; may be given several times. Without it a sender on
    /// this host may name any, and one elsewhere none: then --drive, --passt and --vsock-uds say what the devices get.
    #[arg(long, value_name = "DIR")]
    allow_path: Vec<PathBuf>,
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
    cpu: Cpu,
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

    fn request(&self) -> ReceiveRequest {
        fn all(list: &[Replacement]) -> impl Iterator<Item = (String, String)> {
            list.iter().cloned().map(|r| (r.id, r.with))
        }
        ReceiveRequest {
            address: self.address.to_string(),
            max_memory_mib: self.max_memory_mib,
            max_disk_mib: self.max_disk_mib,
            max_vcpus: self.max_vcpus,
            allow_devices: self.allow_device.clone(),
            allow_paths: self.allow_path.clone(),
            allow_tsc_mismatch: self.allow_tsc_mismatch,
            drive_overrides: all(&self.drive)
                .map(|(drive_id, path_on_host)| DriveOverride { drive_id, path_on_host })
                .collect(),
            network_overrides: all(&self.tap)
                .map(|(iface_id, host_dev_name)| NetworkOverride { iface_id, host_dev_name })
                .collect(),
            passt_overrides: all(&self.passt)
                .map(|(iface_id, passt_socket)| PasstOverride { iface_id, passt_socket })
                .collect(),
            vsock_override: self.vsock_uds.clone().map(|uds_path| VsockOverride { uds_path }),
            insecure: self.insecure,
            tls_dir: self.tls_dir.clone(),
            idle_s: self.idle_s,
        }
    }

    /// Draws the live bar on a terminal, and takes it away before the guest, which writes there too, runs.
    fn onlooker(&self) -> Option<Observer> {
        if self.json || !std::io::stderr().is_terminal() {
            return None;
        }
        let mut drawn = false;
        Some(Box::new(move |s| {
            let line = (s.phase == Phase::Precopy).then(|| bar(s));
            if line.is_some() || drawn {
                eprint!("\r\x1b[K{}", line.as_deref().unwrap_or_default());
            }
            drawn = line.is_some();
        }))
    }

    fn live(&self) -> Result<u8, u8> {
        let error = |e: &dyn std::fmt::Display| fail(e, exit::ERROR);
        let arguments = |e: &dyn std::fmt::Display| fail(e, exit::ARGUMENTS);
        let id = &self.id;
        let (path, module, level) = (None, None, "Warning");
        log::start(log::Style { path, level, show_level: false, show_origin: false, module, id })
            .map_err(|e| arguments(&e))?;
        sandbox::prepare(log::fd()).map_err(|e| error(&e))?;
        let request = self.request();
        receiving::check(&request).map_err(|e| arguments(&e))?;
        let plugin = self.cpu.load().map_err(|(text, code)| fail(text, code))?;
        self.cpu.check(&plugin).map_err(|(text, code)| fail(text, code))?;
        signals::block().map_err(|e| error(&e))?;
        let raw = terminal::Raw::enter().map_err(|e| error(&e))?;
        let mut control = Control::new(self.id.clone(), plugin, MachineSpec::default(), run::consoles());
        control.on_logger(Box::new(log::change));
        control.only_receives();
        let handle = control.handle();
        signals::watch(run::leave(handle.clone(), self.api_sock.clone())).map_err(|e| error(&e))?;
        let api = self.api_sock.as_ref().map(|path| run::Api::start(path, 51200, handle)).transpose();
        let (api, entering) = api.map_err(|e| error(&e))?.unzip();
        entering.map_or(Ok(()), Entering::wait).map_err(|e| error(&e))?;
        let json = self.json;
        let announce = move |progress: &Progress, report: &Report| {
            if json && progress.snapshot().phase == Phase::Done {
                eprintln!("{}", serde_json::to_string(&progress.snapshot()).unwrap_or_default());
            } else {
                receiving::announce(progress, report);
            }
        };
        let place = control.receive(&request, self.onlooker(), Box::new(announce)).map_err(|e| error(&e))?;
        eprintln!("godwit: waiting for a guest on {place}");
        let end = control.run();
        drop(api);
        drop(raw);
        Ok(run::report(end))
    }
}
