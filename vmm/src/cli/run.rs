//! Running a machine: Firecracker's flags, the console, signals, the API socket, and the end.

use super::cpu::Cpu;
use super::socket::{instance_id, not_made};
use super::{exit, log, signals, terminal};
use crate::api::router::Router;
use crate::api::server::Server;
use crate::config::{self, MachineSpec};
use crate::control::{Control, End, Handle};
use crate::machine::{Console, HostOutput};
use crate::migrate::Phase;
use crate::sandbox::{self, Entering};
use crate::state::{MAJOR, MAX_CONTAINER, MINOR, Reader};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use vmm_sys_util::eventfd::EventFd;

/// Where Firecracker listens unless it is told.
const DEFAULT_SOCKET: &str = "/run/firecracker.socket";

/// Firecracker's flags, and ours beside them.
#[derive(Debug, clap::Args)]
pub struct Flags {
    /// Configuration of the machine; it is started at once.
    #[arg(long, value_name = "PATH")]
    config_file: Option<PathBuf>,
    /// Print the version of the snapshots that are written.
    #[arg(long)]
    snapshot_version: bool,
    /// Print the version of this snapshot's state file.
    #[arg(long, value_name = "PATH")]
    describe_snapshot: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// `godwit run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Configuration of the machine.
    config: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// What both take.
#[derive(Debug, clap::Args)]
struct Common {
    /// Unix socket for the API; without a config file this is how the machine is configured, and it is /run/firecracker.socket
    /// unless given.
    #[arg(long, value_name = "PATH")]
    api_sock: Option<PathBuf>,
    /// No API socket; needs a config file.
    #[arg(long, conflicts_with = "api_sock")]
    no_api: bool,
    /// Name of this instance: letters, digits and '-'.
    #[arg(long, default_value = "anonymous-instance", value_parser = instance_id)]
    id: String,
    /// Write the log to this file or named pipe.
    #[arg(long, value_name = "PATH")]
    log_path: Option<PathBuf>,
    /// Off, Error, Warning, Info, Debug or Trace.
    #[arg(long, value_name = "LEVEL", default_value = "Warning")]
    level: String,
    /// Log only what comes from this module: for instance godwit_vmm::migrate.
    #[arg(long, value_name = "MODULE")]
    module: Option<String>,
    /// Show each log line's level.
    #[arg(long)]
    show_level: bool,
    /// Show where in the code each log line comes from.
    #[arg(long)]
    show_log_origin: bool,
    /// Monotonic time at which the jailer began, in microseconds; for the log.
    #[arg(long, value_name = "US")]
    start_time_us: Option<u64>,
    /// CPU time of this process at that point, in microseconds; for the log.
    #[arg(long, value_name = "US")]
    start_time_cpu_us: Option<u64>,
    /// CPU time of the process that started this one, in microseconds; for the log.
    #[arg(long, value_name = "US")]
    parent_cpu_time_us: Option<u64>,
    /// Log how long the guest takes to boot: until it writes 123 to address 0xc0000000.
    #[arg(long)]
    boot_timer: bool,
    /// Refused: virtio devices are on MMIO here.
    #[arg(long, hide = true)]
    enable_pci: bool,
    /// Write metrics to this file or named pipe.
    #[arg(long, value_name = "PATH")]
    metrics_path: Option<PathBuf>,
    /// Longest request body that the API takes, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 51200)]
    http_api_max_payload_size: usize,
    /// Metadata for the guest, in JSON.
    #[arg(long, value_name = "PATH")]
    metadata: Option<PathBuf>,
    /// Most bytes of metadata; by default as many as a request body may have.
    #[arg(long, value_name = "BYTES")]
    mmds_size_limit: Option<usize>,
    #[command(flatten)]
    cpu: Cpu,
}

/// Why it ended before the machine did: text and exit code.
struct Fatal(String, u8);

fn fatal<E: ToString>(code: u8) -> impl Fn(E) -> Fatal {
    move |e| Fatal(e.to_string(), code)
}

impl Flags {
    /// Does it: the exit code.
    pub fn run(&self) -> u8 {
        if self.common.enable_pci {
            eprintln!("godwit: --enable-pci: virtio devices are on MMIO here; leave the flag out");
            return exit::ARGUMENTS;
        }
        if self.snapshot_version {
            println!("v{MAJOR}.{MINOR}.0");
            return exit::OK;
        }
        if let Some(path) = &self.describe_snapshot {
            return match describe(path) {
                Ok(version) => {
                    println!("{version}");
                    exit::OK
                }
                Err(why) => {
                    eprintln!("godwit: {why}");
                    exit::ERROR
                }
            };
        }
        let config = self.config_file.as_deref();
        let mut socket = self.common.api_sock.clone();
        if config.is_none() && socket.is_none() {
            // Whoever says nothing at all wants to know what to say.
            if self.common.no_api || std::env::args_os().len() < 2 {
                eprintln!("godwit: give --config-file FILE, --api-sock PATH or both; see godwit --help");
                return exit::ARGUMENTS;
            }
            eprintln!("godwit: waiting for requests on {DEFAULT_SOCKET}");
            socket = Some(DEFAULT_SOCKET.into());
        }
        self.common.run(config, socket.as_deref())
    }
}

/// The version of a snapshot's state file, as Firecracker prints its own.
fn describe(path: &Path) -> Result<String, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let file = File::open(path).map_err(|e| failed(&e))?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_CONTAINER as u64), &mut bytes)
        .map_err(|e| failed(&e))?;
    // What its state files begin with, on either CPU architecture that it has.
    let magic = bytes.first_chunk().map(|b| u64::from_le_bytes(*b));
    if matches!(magic, Some(0x0710_1984_8664_0000 | 0x0710_1984_aaaa_0000)) {
        let why =
            "is a snapshot of Firecracker's: its state file has another format, which only Firecracker reads";
        return Err(failed(&why));
    }
    let reader = Reader::new(&bytes).map_err(|e| failed(&e))?;
    Ok(format!("v{MAJOR}.{}.0", reader.minor()))
}

impl Run {
    /// Does it: the exit code.
    pub fn run(&self) -> u8 {
        self.common.run(Some(&self.config), self.common.api_sock.as_deref())
    }
}

impl Common {
    fn run(&self, config: Option<&Path>, socket: Option<&Path>) -> u8 {
        match self.live(config, socket.filter(|_| !self.no_api)) {
            Ok(code) => code,
            Err(Fatal(text, code)) => {
                eprintln!("godwit: {text}");
                code
            }
        }
    }

    /// What the config file says of log, metrics and serial port; flags come first, as in Firecracker.
    fn observe(&self, control: &mut Control, config: &config::ConfigFile) -> Result<(), Fatal> {
        if let Some(logger) = &config.logger {
            log::change(logger).map_err(|e| Fatal(format!("logger: {e}"), exit::CONFIG))?;
        }
        if let Some(metrics) = &config.metrics {
            control.set_metrics(metrics).map_err(fatal(exit::CONFIG))?;
        }
        if let Some(serial) = &config.serial {
            control.set_serial(serial).map_err(fatal(exit::CONFIG))?;
        }
        Ok(())
    }

    /// How long it took from the point that the jailer (or whoever) names until now.
    fn startup(&self, control: &mut Control) {
        let us = |id| {
            let now = rustix::time::clock_gettime(id);
            now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
        };
        let Some(began) = self.start_time_us else { return };
        let wall = us(rustix::time::ClockId::Monotonic).saturating_sub(began);
        let before = self.start_time_cpu_us.unwrap_or(0);
        let cpu = us(rustix::time::ClockId::ProcessCPUTime).saturating_sub(before)
            + self.parent_cpu_time_us.unwrap_or(0);
        tracing::info!("process start: {wall} us ago, {cpu} us of CPU time with its parent's");
        control.set_startup(wall, cpu);
    }

    fn live(&self, file: Option<&Path>, socket: Option<&Path>) -> Result<u8, Fatal> {
        let style = log::Style {
            path: self.log_path.as_deref(),
            level: &self.level,
            show_level: self.show_level,
            show_origin: self.show_log_origin,
            module: self.module.as_deref(),
            id: &self.id,
        };
        log::start(style).map_err(fatal(exit::ARGUMENTS))?;
        sandbox::prepare(log::fd()).map_err(fatal(exit::ERROR))?;
        let config = file.map(config::read).transpose().map_err(fatal(exit::CONFIG))?;
        if let (Some(path), Some(config)) = (file, &config) {
            let named = |e| Fatal(format!("{}: {e}", path.display()), exit::CONFIG);
            config.spec().check_files().map_err(named)?;
        }
        let plugin = self.cpu.load().map_err(|(text, code)| Fatal(text, code))?;
        signals::block().map_err(fatal(exit::ERROR))?;

        let raw = terminal::Raw::enter().map_err(fatal(exit::ERROR))?;
        let mut control = Control::new(
            self.id.clone(),
            Arc::clone(&plugin),
            config.as_ref().map_or_else(MachineSpec::default, |c| c.spec()),
            consoles(),
        );
        control.on_logger(Box::new(log::change));
        if self.boot_timer {
            control.time_boot();
        }
        self.startup(&mut control);
        if let Some(path) = &self.metrics_path {
            let config = config::MetricsConfig { metrics_path: path.clone() };
            control.set_metrics(&config).map_err(fatal(exit::ARGUMENTS))?;
        }
        if let Some(config) = &config {
            self.observe(&mut control, config)?;
        }
        let limit = self.mmds_size_limit.unwrap_or(self.http_api_max_payload_size);
        control.metadata().store().set_limit(limit);
        if let Some(path) = &self.metadata {
            let text = |e: &dyn std::fmt::Display| {
                Fatal(format!("--metadata {}: {e}", path.display()), exit::CONFIG)
            };
            let data = std::fs::read(path).map_err(|e| text(&e))?;
            let data = serde_json::from_slice(&data).map_err(|e| text(&e))?;
            control.metadata().store().put(data).map_err(|e| text(&e))?;
        }
        let handle = control.handle();
        signals::watch(leave(handle.clone(), socket.map(Path::to_owned))).map_err(fatal(exit::ERROR))?;
        let api = socket.map(|path| Api::start(path, self.http_api_max_payload_size, handle)).transpose();
        let (api, entering) = api.map_err(fatal(exit::ERROR))?.unzip();
        self.cpu.check(&plugin).map_err(|(text, code)| Fatal(text, code))?;
        if config.is_some() {
            // The start itself is something to do meanwhile.
            entering.into_iter().for_each(|e| control.expect(e));
            control.start_now().map_err(fatal(exit::ERROR))?;
        } else {
            entering.map_or(Ok(()), Entering::wait).map_err(fatal(exit::ERROR))?;
        }
        let end = control.run();
        drop(api);
        drop(raw);
        Ok(report(end))
    }
}

/// What a signal that is to end the process does.
pub(super) fn leave(handle: Handle, socket: Option<PathBuf>) -> impl Fn() + Send + 'static {
    let now = move |code: u8| {
        terminal::restore();
        let _ = socket.as_ref().map(std::fs::remove_file);
        std::process::exit(code.into());
    };
    move || {
        if handle.arrival().is_some_and(|a| a.phase == Phase::Interrupted) {
            // A vCPU that waits for a page that nobody sends cannot be called back.
            eprintln!("godwit: ended while pages of the guest were missing: the guest is lost");
            now(exit::ERROR);
        } else if !handle.quit() {
            // No guest has run yet, so nothing is lost.
            now(exit::OK);
        }
    }
}

/// Says how it ended, if that needs saying: the exit code.
pub(super) fn report(end: End) -> u8 {
    match end {
        End::Reset | End::PowerOff | End::Quit | End::GivenAway => exit::OK,
        End::TripleFault { vcpu } => {
            eprintln!("godwit: vCPU {vcpu}: triple fault: the guest's processor has shut down");
            exit::TRIPLE_FAULT
        }
        End::Failed(reason) => {
            eprintln!("godwit: {reason}");
            exit::ERROR
        }
        End::NotArrived(why) => {
            eprintln!("godwit: the guest did not arrive: {why}");
            exit::NOT_ARRIVED
        }
    }
}

/// The guest's console, for each machine that is tried.
pub(super) fn consoles() -> impl FnMut() -> Console + Send + 'static {
    || {
        console().unwrap_or_else(|e| {
            tracing::error!("the guest has no console: {e}");
            Console::default()
        })
    }
}

/// Standard input and output as the guest's console.
fn console() -> io::Result<Console> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let escape = io::stdin().is_terminal();
    Ok(Console { input: Some(input), output: Box::new(HostOutput::new(output)), escape })
}

/// The API thread; dropping it ends it and removes the socket.
pub(super) struct Api {
    path: PathBuf,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Api {
    /// Serves `path` from now on; with it, what to wait at until its thread is bound by its filter.
    ///
    /// # Errors
    /// Text for the user.
    pub(super) fn start(path: &Path, max_body: usize, handle: Handle) -> Result<(Self, Entering), String> {
        let listener = UnixListener::bind(path).map_err(|e| not_made(path, &e))?;
        Self::serve(listener, path, max_body, handle)
            .map_err(|e| format!("API socket {}: {e}", path.display()))
    }

    fn serve(
        listener: UnixListener,
        path: &Path,
        max_body: usize,
        handle: Handle,
    ) -> io::Result<(Self, Entering)> {
        let stop = EventFd::new(libc::EFD_CLOEXEC)?;
        let router = Router::new(handle);
        let mut server = Server::new(listener, stop.try_clone()?, max_body, router)?;
        let (entry, entering) = sandbox::entering();
        let serve = move || {
            if entry.enter(sandbox::Kind::Api, "api")
                && let Err(e) = server.run()
            {
                tracing::error!("the API has ended: {e}");
            }
        };
        let thread = std::thread::Builder::new().name("api".into()).spawn(serve)?;
        Ok((Api { path: path.into(), stop, thread: Some(thread) }, entering))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}
