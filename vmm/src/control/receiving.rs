//! A guest is waited for: the thread that takes it in, and how the control thread gets the machine.
//!
//! ```text
//!   control:  NotStarted ─Receive─► Receiving ─Built─► bound to its filter ─Landed─► Running
//!                                      │ ▲                                   └─failed─► NotStarted
//!   receive:                  waits, builds ─► bound to its filter ─► pages, state ─► the guest runs
//! ```

use super::admission::Paths;
use super::handle::Handle;
use super::moving::{Arrived, Arriving, DEVICES, Limits};
use super::overrides::Overrides;
use super::{Control, Denied, End, Stage, confine, unconfined};
use crate::config::{MachineSpec, ReceiveRequest};
use crate::machine::Machine;
use crate::migrate::{
    Address, Arrival, Listener, MigrateError, Observer, Phase, Progress, Report, Tls, bytes_text,
    require_protection, wait_for_guest,
};
use godwit_state::Model;
use std::sync::mpsc;
use std::time::Duration;

/// Says that a guest has arrived: how far it is, and the figures.
pub type Announce = Box<dyn FnOnce(&Progress, &Report) + Send>;

/// The machine that came, and its configuration; or why none did.
pub(super) type Landed = Result<Box<(Machine, MachineSpec)>, String>;

/// Checks what can be checked before anything is opened.
///
/// # Errors
/// The address makes no sense, TCP for other machines without protection, or no certificates where they should be.
pub fn check(request: &ReceiveRequest) -> Result<(Address, Option<Tls>), MigrateError> {
    let address: Address = request.address.parse()?;
    require_protection(&address, request.tls_dir.is_some(), request.insecure)?;
    if let Some(kind) = request.allow_devices.iter().find(|k| !DEVICES.contains(&k.as_str())) {
        let why = format!("allow_devices: no device is called {kind}; there are {}", DEVICES.join(", "));
        return Err(MigrateError::Request(why));
    }
    if let Some(dir) = request.allow_paths.iter().find(|dir| !dir.is_dir()) {
        return Err(MigrateError::Request(format!("allow_paths: {} is no directory", dir.display())));
    }
    let tls = request.tls_dir.as_deref().map(Tls::server).transpose()?;
    Ok((address, tls))
}

/// For people at the terminal that the receiver was started from.
pub fn announce(progress: &Progress, report: &Report) {
    if progress.snapshot().phase == Phase::Done {
        eprintln!(
            "godwit: the guest has arrived: {} for {} of memory, state {} bytes, in {:.1} ms",
            bytes_text(report.bytes as f64),
            bytes_text(report.memory_bytes as f64),
            report.blob_bytes,
            report.total_ms
        );
    } else {
        eprintln!("godwit: the guest has arrived and runs; pages that it left behind follow");
    }
}

fn limits(request: &ReceiveRequest, address: &Address) -> Limits {
    let (drives, taps) = (&request.drive_overrides, &request.network_overrides);
    let overrides = Overrides::of(drives, taps, &request.passt_overrides, request.vsock_override.as_ref());
    Limits {
        memory_bytes: request.max_memory_mib.saturating_mul(1 << 20),
        vcpus: request.max_vcpus,
        allow_tsc_mismatch: request.allow_tsc_mismatch,
        disk_bytes: request.max_disk_mib.saturating_mul(1 << 20),
        devices: request.allow_devices.clone(),
        paths: if request.allow_paths.is_empty() && address.is_this_host() {
            Paths::Any
        } else {
            Paths::Under(request.allow_paths.clone())
        },
        overrides,
    }
}

/// The configuration of a machine that came from elsewhere.
fn config_of(machine: &Machine, devices: crate::virtio::slots::DevicesConfig, bytes: u64) -> MachineSpec {
    let shape = machine.shape();
    let mut config = MachineSpec { devices, ..MachineSpec::default() };
    config.machine.vcpu_count = u8::try_from(shape.vcpus).unwrap_or(u8::MAX);
    config.machine.mem_size_mib = bytes >> 20;
    config.machine.cpu_model = Model::from_name(&shape.model);
    config.machine.tsc_khz = Some(shape.tsc_khz);
    config
}

/// What the receiving thread has.
struct Worker {
    handle: Handle,
    listener: Listener,
    tls: Option<Tls>,
    arriving: Arriving,
    idle: Duration,
    progress: Progress,
    announce: Announce,
}

impl Worker {
    fn run(self) {
        let Worker { handle, listener, tls, arriving, idle, progress, announce } = self;
        let turned_away = |e: &MigrateError| eprintln!("godwit: turned somebody away: {e}");
        let arrival = wait_for_guest(listener, tls.as_ref(), arriving, idle, progress.clone(), turned_away);
        let failed = |e: MigrateError| {
            progress.update(|p| {
                p.phase = Phase::Failed;
                p.error = Some(e.to_string());
            });
            Err(e.to_string())
        };
        let landed = match arrival {
            Ok(Arrival::Running(Arrived { machine, devices }, report)) => {
                announce(&progress, &report);
                let config = config_of(&machine, devices, report.memory_bytes);
                Ok(Box::new((machine, config)))
            }
            Ok(Arrival::Failed(e)) | Err(e) => failed(e),
        };
        handle.landed(landed);
    }
}

impl Control {
    /// Begins to wait for a guest, on a thread of its own, with somebody to look on if anybody does. Gives the address with the port that
    /// it got.
    ///
    /// # Errors
    /// This instance was configured or has run already, the request makes no sense, or the address is taken.
    pub fn receive(
        &mut self,
        request: &ReceiveRequest,
        onlooker: Option<Observer>,
        announce: Announce,
    ) -> Result<Address, Denied> {
        fn failed(e: impl std::fmt::Display) -> Denied {
            Denied::Failed(e.to_string())
        }
        unconfined()?;
        if self.config != MachineSpec::default() {
            return Err(failed("a guest is received into a fresh instance, before anything is configured"));
        }
        let (address, tls) = check(request).map_err(failed)?;
        let console = self.console();
        let handle = self.handle.clone();
        let arriving =
            Arriving::new(self.plugin.clone(), limits(request, &address), console, handle.event_sink())
                .map_err(failed)?;
        let built = handle.clone();
        let arriving = arriving.with_metadata(&self.metadata).once_built(move || built.built());
        let listener = Listener::bind(&address).map_err(failed)?;
        let place = listener.address();
        let progress = Progress::new("destination", &place.to_string());
        if let Some(onlooker) = onlooker {
            progress.observe(onlooker);
        }
        let idle = Duration::from_secs(request.idle_s.max(1));
        if let Address::Unix(path) = &address {
            self.waits_at = Some(path.clone());
        }
        handle.set_arrival(progress.clone());
        let worker = Worker { handle, listener, tls, arriving, idle, progress, announce };
        std::thread::Builder::new().name("receive".into()).spawn(|| worker.run()).map_err(failed)?;
        self.stage = Stage::Receiving;
        Ok(place)
    }

    /// The machine is built; from here on the peer's bytes become the guest's.
    pub(super) fn built(&mut self, reply: &mpsc::Sender<Result<(), Denied>>) {
        let _ = reply.send(confine());
    }

    /// The receiving thread is done.
    pub(super) fn land(&mut self, landed: Landed) -> Option<End> {
        match landed {
            Ok(landed) => {
                let (machine, config) = *landed;
                self.adopt(machine, config);
                None
            }
            Err(why) => {
                self.stage = Stage::NotStarted;
                self.only_receives.then_some(End::NotArrived(why))
            }
        }
    }
}
