//! The one thread that owns the machine. All others send it an [`Action`] and get a typed outcome or a typed denial.
//!
//! ```text
//!   NotStarted ──Start──► Running ◄──Pause/Resume──► Paused
//!        └──Receive──► Receiving ──arrived──┘
//!                           │    (guest's reset, power-off, triple fault; signal; escape key)
//!                           ▼
//!                          End          Running/Paused ──given to another host──► GivenAway ──Quit──► End
//! ```
//!
//! Which action is legal in which stage is [`Action::legal`], and nowhere else.

mod action;
pub mod admission;
mod devices;
mod handle;
mod metadata;
mod metrics;
mod migration;
pub mod moving;
pub mod overrides;
pub mod receiving;
mod settle;
mod snapshot;
pub mod volumes;

pub use action::{Action, ConfigPart, Denied, DeviceUpdate, InstanceInfo, Outcome, Stage};
pub use handle::{Handle, MachineDoor};
pub use metrics::Requests;
pub use migration::{MigrationRequest, Migrations};
pub use snapshot::SnapshotDevicesV1;

use crate::config::{BootSourceConfig, LoggerConfig, MachineSpec, MetricsConfig, SerialConfig, SnapshotType};
use crate::machine::{BootSource, Console, Event, HostOutput, Limited, Machine, Spec};
use crate::memory::ram::Backing;
use crate::mmds::Service;
use crate::plugin::Plugin;
use crate::sandbox::{self, Entering};
use crate::virtio::ratelimit::TokenBucketConfig;
use crate::virtio::slots::DevicesConfig;
use crate::virtio::stats::Counted;
use handle::Message;
use metrics::Metrics;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long the source of a guest that has ended is given to hear that.
const FAREWELL: Duration = Duration::from_secs(2);

/// Sets the log up anew.
pub type LogSetter = Box<dyn Fn(&LoggerConfig) -> Result<(), String> + Send>;

/// How it all ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest asked for a reset.
    Reset,
    /// The guest switched itself off.
    PowerOff,
    /// Asked to by signal, escape key or API.
    Quit,
    /// The guest runs elsewhere.
    GivenAway,
    /// The guest that was waited for did not arrive; nothing has run here.
    NotArrived(String),
    /// A vCPU's triple fault.
    TripleFault {
        /// Which.
        vcpu: u32,
    },
    /// The backend could not go on.
    Failed(String),
}

/// The owner of the machine.
pub struct Control {
    id: String,
    plugin: Arc<Plugin>,
    config: MachineSpec,
    consoles: Box<dyn FnMut() -> Console + Send>,
    serial_out: Option<File>,
    serial_limit: Option<TokenBucketConfig>,
    set_log: LogSetter,
    metrics: Option<Metrics>,
    metadata: Service,
    latencies_us: BTreeMap<&'static str, u64>,
    boot_timer: bool,
    startup_us: Option<(u64, u64)>,
    machine: Option<Machine>,
    /// Its start is over, and what only that needed is let go of.
    settled: bool,
    only_receives: bool,
    /// The Unix socket at which a guest is waited for.
    waits_at: Option<PathBuf>,
    /// After the machine: its memory may need it until the end.
    served: Option<snapshot::Served>,
    stage: Stage,
    /// A thread that was started before, until it is known to be bound by its filter.
    entering: Option<Entering>,
    handle: Handle,
    inbox: Receiver<Message>,
}

/// Idle for this long after a start, this thread does what can wait.
const SETTLED_AFTER: Duration = Duration::from_millis(200);

impl Control {
    /// An owner of no machine yet; `config` may be changed until `Start`. `consoles` gives each machine that is tried its
    /// console.
    pub fn new(
        id: String,
        plugin: Arc<Plugin>,
        config: MachineSpec,
        consoles: impl FnMut() -> Console + Send + 'static,
    ) -> Self {
        let (handle, inbox) = Handle::pair();
        Control {
            metadata: Service::new(&id),
            id,
            plugin,
            config,
            consoles: Box::new(consoles),
            serial_out: None,
            serial_limit: None,
            set_log: Box::new(|_| Err("the log cannot be changed here".into())),
            metrics: None,
            latencies_us: BTreeMap::new(),
            boot_timer: false,
            startup_us: None,
            machine: None,
            settled: false,
            only_receives: false,
            waits_at: None,
            served: None,
            stage: Stage::NotStarted,
            entering: None,
            handle,
            inbox,
        }
    }

    /// What `PUT /logger` does.
    pub fn on_logger(&mut self, set_log: LogSetter) {
        self.set_log = set_log;
    }

    /// A thread that must be bound by its filter before a guest runs.
    pub fn expect(&mut self, entering: Entering) {
        self.entering = Some(entering);
    }

    /// Has the log say how long a guest takes to boot (`--boot-timer`).
    pub fn time_boot(&mut self) {
        self.boot_timer = true;
    }

    /// When the guest that is waited for does not arrive, that is the end.
    pub fn only_receives(&mut self) {
        self.only_receives = true;
    }

    /// How long this process took to get here, for the metrics: wall-clock and CPU time in microseconds.
    pub fn set_startup(&mut self, wall_us: u64, cpu_us: u64) {
        self.startup_us = Some((wall_us, cpu_us));
    }

    /// What other threads reach it by.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes a machine that came from elsewhere, running or paused, with the configuration it has.
    pub fn adopt(&mut self, machine: Machine, config: MachineSpec) {
        use crate::machine::RunState;
        self.stage = match machine.run_state() {
            RunState::Running => Stage::Running,
            RunState::Paused => Stage::Paused,
        };
        (self.machine, self.config) = (Some(machine), config);
    }

    /// The next machine's console.
    pub fn console(&mut self) -> Console {
        let mut console = (self.consoles)();
        if let Some(file) = self.serial_out.as_ref().and_then(|f| f.try_clone().ok()) {
            console.output = Box::new(HostOutput::new(file));
        }
        if let Some(limit) = &self.serial_limit {
            console.output = Limited::over(console.output, limit);
        }
        console
    }

    /// Sends the serial port's output elsewhere, and limits it.
    ///
    /// # Errors
    /// The file does not open.
    pub fn set_serial(&mut self, config: &SerialConfig) -> Result<(), Denied> {
        let open = |path: &std::path::PathBuf| {
            metrics::open(path)
                .map_err(|e| Denied::Failed(format!("serial_out_path: {}: {e}", path.display())))
        };
        self.serial_out = config.serial_out_path.as_ref().map(open).transpose()?;
        self.serial_limit = config.rate_limiter;
        Ok(())
    }

    /// Begins to write metrics.
    ///
    /// # Errors
    /// The file does not open, or there is one already.
    pub fn set_metrics(&mut self, config: &MetricsConfig) -> Result<(), Denied> {
        if self.metrics.is_some() {
            return Err(Denied::Failed("metrics_path: metrics go somewhere already".into()));
        }
        let path = &config.metrics_path;
        let metrics = Metrics::new(path)
            .map_err(|e| Denied::Failed(format!("metrics_path: {}: {e}", path.display())))?;
        self.metrics = Some(metrics);
        Ok(())
    }

    fn flush_metrics(&mut self) -> Result<(), Denied> {
        // As Firecracker: where they go nowhere there is nothing to do.
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        let counters = self.machine.as_ref().map(Machine::counters).unwrap_or_default();
        let mut devices = self.machine.as_ref().map(Machine::counted).unwrap_or_default();
        // Once: counts are since the last line.
        let (wall, cpu) = self.startup_us.unwrap_or_default();
        devices.push(Counted {
            group: "api_server".into(),
            kind: "",
            counts: vec![("process_startup_time_us", wall), ("process_startup_time_cpu_us", cpu)],
        });
        let name = &self.plugin.descriptor().name;
        metrics
            .flush(self.handle.requests(), &self.latencies_us, name, counters, devices)
            .map_err(|e| Denied::Failed(format!("metrics: {e}")))
    }

    /// Starts the configured machine without being asked.
    ///
    /// # Errors
    /// As for the action.
    pub fn start_now(&mut self) -> Result<(), Denied> {
        self.act(Action::Start).map(drop)
    }

    /// Serves until the end.
    pub fn run(mut self) -> End {
        let end = self.serve();
        if self.metrics.is_some() {
            let _ = self.flush_metrics();
        }
        if let Some(arrival) = self.handle.arriving() {
            // Pages that are still on their way are not needed any more.
            arrival.guest_ended(FAREWELL);
        }
        if self.stage == Stage::Receiving {
            // The thread that waits ends with the process, and cleans nothing up.
            self.waits_at.iter().for_each(|path| drop(std::fs::remove_file(path)));
        }
        end
    }

    /// The next message; metrics are written when they are due.
    fn next(&mut self) -> Option<Message> {
        if self.machine.is_some() && !std::mem::replace(&mut self.settled, true) {
            match self.inbox.recv_timeout(SETTLED_AFTER) {
                Ok(message) => {
                    self.settled = false;
                    return Some(message);
                }
                Err(_) => settle::let_go_of_code(),
            }
        }
        loop {
            let Some(wait) = self.metrics.as_ref().map(Metrics::wait) else { return self.inbox.recv().ok() };
            match self.inbox.recv_timeout(wait) {
                Ok(message) => return Some(message),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(e) = self.flush_metrics() {
                        tracing::warn!("{e}");
                    }
                }
            }
        }
    }

    fn serve(&mut self) -> End {
        loop {
            // The handle of our own keeps the channel open, so this only ends by a message.
            let Some(message) = self.next() else { return End::Quit };
            match message {
                Message::Act(Action::Quit, reply) => {
                    let _ = reply.send(Ok(Outcome::Done));
                    return if self.stage == Stage::GivenAway { End::GivenAway } else { End::Quit };
                }
                Message::Act(action, reply) => {
                    // Whoever asked may have gone away.
                    let _ = reply.send(self.act(action));
                }
                Message::With(f) => {
                    f(self.machine.as_mut());
                    self.look();
                }
                Message::GiveAway(reply) => {
                    self.stage = Stage::GivenAway;
                    let _ = reply.send(());
                }
                Message::TakeBack(reply) => {
                    let _ = reply.send(self.take_back());
                }
                Message::Built(reply) => self.built(&reply),
                Message::Landed(landed) => {
                    if let Some(end) = self.land(landed) {
                        return end;
                    }
                }
                Message::Event(event) => {
                    if let Some(end) = self.event(event) {
                        return end;
                    }
                }
                Message::Quit => return End::Quit,
            }
        }
    }

    fn take_back(&mut self) -> Result<(), Denied> {
        if self.stage != Stage::GivenAway {
            return Err(Denied::Stage { action: "take back", stage: self.stage, early: false });
        }
        self.machine()?.resume(0).map_err(|e| Denied::Failed(e.to_string()))?;
        self.stage = Stage::Running;
        Ok(())
    }

    /// Somebody had the machine: is it running?
    fn look(&mut self) {
        use crate::machine::RunState;
        if let (Stage::Running | Stage::Paused, Some(machine)) = (self.stage, &self.machine) {
            self.stage = match machine.run_state() {
                RunState::Running => Stage::Running,
                RunState::Paused => Stage::Paused,
            };
        }
    }

    fn event(&mut self, event: Event) -> Option<End> {
        if self.stage == Stage::GivenAway {
            return None;
        }
        Some(match event {
            Event::Reset => End::Reset,
            Event::PowerOff => End::PowerOff,
            Event::TripleFault { vcpu } => End::TripleFault { vcpu },
            Event::Failed { vcpu, reason } => End::Failed(format!("vCPU {vcpu}: {reason}")),
            Event::Escape => End::Quit,
        })
    }

    fn act(&mut self, action: Action) -> Result<Outcome, Denied> {
        if !action.legal(self.stage) {
            if matches!((&action, self.stage), (Action::Snapshot(_), Stage::Running)) {
                return Err(Denied::Unpaused);
            }
            let early = action.legal(Stage::NotStarted);
            return Err(Denied::Stage { action: action.name(), stage: self.stage, early });
        }
        let begin = Instant::now();
        let timed = match &action {
            Action::Start => Some("start_vm"),
            Action::Pause => Some("pause_vm"),
            Action::Resume => Some("resume_vm"),
            Action::Load(_) => Some("load_snapshot"),
            Action::Snapshot(s) if s.snapshot_type == SnapshotType::Diff => Some("diff_create_snapshot"),
            Action::Snapshot(_) => Some("full_create_snapshot"),
            _ => None,
        };
        let outcome = self.execute(action)?;
        if let Some(name) = timed {
            self.latencies_us.insert(name, u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        Ok(outcome)
    }

    fn execute(&mut self, action: Action) -> Result<Outcome, Denied> {
        let failed = |e: crate::machine::MachineError| Denied::Failed(e.to_string());
        match action {
            Action::Describe => Ok(Outcome::Instance(InstanceInfo {
                id: self.id.clone(),
                state: self.stage,
                backend: self.plugin.descriptor().name.clone(),
                backend_summary: self.plugin.descriptor().summary.clone(),
                backend_models: self.plugin.probe().map(|p| p.models).unwrap_or_default(),
            })),
            Action::Config => Ok(Outcome::Config(Box::new(self.config.clone()))),
            Action::Configure(part) => self.configure(*part).map(|()| Outcome::Done),
            Action::Update(update) => self.update(*update).map(|()| Outcome::Done),
            Action::Serial(config) => self.set_serial(&config).map(|()| Outcome::Done),
            Action::Logger(config) => (self.set_log)(&config).map(|()| Outcome::Done).map_err(Denied::Failed),
            Action::Metrics(config) => self.set_metrics(&config).map(|()| Outcome::Done),
            Action::FlushMetrics => self.flush_metrics().map(|()| Outcome::Done),
            Action::Metadata => Ok(Outcome::Metadata(self.get_metadata())),
            Action::PutMetadata(data) => self.put_metadata(data).map(|()| Outcome::Done),
            Action::PatchMetadata(patch) => self.patch_metadata(patch).map(|()| Outcome::Done),
            Action::Balloon => self.balloon().map(Outcome::Balloon),
            Action::BalloonStats => self.balloon_stats().map(Outcome::BalloonStats),
            Action::Snapshot(request) => {
                let Some(machine) = &mut self.machine else {
                    return Err(Denied::Failed("there is no machine".into()));
                };
                snapshot::create(machine, &self.config, &request).map(|()| Outcome::Done)
            }
            Action::Load(request) => self.building(|c| c.load(&request)),
            Action::Receive(request) => {
                self.receive(&request, None, Box::new(receiving::announce)).map(|_| Outcome::Done)
            }
            Action::Start => self.building(Self::start),
            Action::Pause => {
                self.machine()?.pause().map_err(failed)?;
                self.stage = Stage::Paused;
                Ok(Outcome::Done)
            }
            Action::Resume => {
                self.machine()?.resume(0).map_err(failed)?;
                self.stage = Stage::Running;
                Ok(Outcome::Done)
            }
            Action::CtrlAltDel => match self.machine()?.ctrl_alt_del() {
                true => Ok(Outcome::Done),
                false => Err(Denied::Failed("the guest has not taken the last Ctrl-Alt-Del yet".into())),
            },
            Action::Counters => Ok(Outcome::Counters(self.machine()?.counters())),
            Action::Quit => Ok(Outcome::Done),
        }
    }

    /// See [`confine`]; no guest runs before the API's thread is bound too.
    fn confine(&mut self) -> Result<(), Denied> {
        let entered = self.entering.take().map_or(Ok(()), Entering::wait);
        entered.map_err(|e| Denied::Failed(e.to_string()))?;
        confine()
    }

    fn machine(&mut self) -> Result<&mut Machine, Denied> {
        self.machine.as_mut().ok_or(Denied::Failed("there is no machine".into()))
    }

    fn configure(&mut self, part: ConfigPart) -> Result<(), Denied> {
        if let ConfigPart::Mmds(m) = &part {
            // Firecracker's words, without the field's name before them.
            let checked = m.validate(&self.config.devices.network_interfaces);
            checked.map_err(|e| Denied::Failed(e.to_string()))?;
        }
        // As Firecracker, which opens them now.
        match &part {
            ConfigPart::BootSource(b) => b.check_files().map_err(|e| Denied::Failed(e.to_string()))?,
            ConfigPart::Drive(d) => d.check().map_err(|e| Denied::Failed(e.to_string()))?,
            _ => {}
        }
        part.apply(&mut self.config).map_err(|e| Denied::Failed(e.to_string()))
    }

    /// A machine is built, unless the end was asked for.
    fn building(&mut self, build: impl FnOnce(&mut Self) -> Result<(), Denied>) -> Result<Outcome, Denied> {
        let built = if self.handle.building(true) { build(self) } else { Err(Denied::Ended) };
        self.handle.building(false);
        built.map(|()| Outcome::Done)
    }

    fn start(&mut self) -> Result<(), Denied> {
        let failed = |e: crate::machine::MachineError| Denied::Failed(e.to_string());
        unconfined()?;
        let Some(boot) = &self.config.boot else {
            return Err(Denied::Failed(
                "Cannot start microvm without kernel configuration: no boot-source is configured.".into(),
            ));
        };
        let source = BootSource {
            kernel: boot.kernel_image_path.clone(),
            initrd: boot.initrd_path.clone(),
            cmdline: cmdline(boot, &self.config.devices),
        };
        let spec = spec(&self.config);
        let console = self.console();
        let mut machine =
            Machine::build(&spec, &self.plugin, console, self.handle.event_sink()).map_err(failed)?;
        metadata::attach(&self.metadata, &self.config.devices, machine.slots()).map_err(Denied::Failed)?;
        machine.boot(&source).map_err(failed)?;
        if self.boot_timer {
            machine.time_boot().map_err(|e| Denied::Failed(format!("--boot-timer: {e}")))?;
        }
        if self.config.machine.track_dirty_pages {
            machine.start_dirty_log().map_err(failed)?;
        }
        self.confine()?;
        machine.resume(0).map_err(failed)?;
        self.machine = Some(machine);
        self.stage = Stage::Running;
        Ok(())
    }
}

/// A machine is made before this thread is bound: opening its files and devices takes more than the filter allows.
fn unconfined() -> Result<(), Denied> {
    if sandbox::confined() {
        return Err(Denied::Failed(
            "a start has failed before in this process: begin with a fresh one".into(),
        ));
    }
    Ok(())
}

/// Binds this thread to its filter: everything is open and all threads run. The guest's first instruction comes after this.
fn confine() -> Result<(), Denied> {
    sandbox::enter(sandbox::Kind::Control, "control").map_err(|e| Denied::Failed(e.to_string()))
}

/// The kernel command line: the given one and the root device's, as Firecracker adds it.
fn cmdline(boot: &BootSourceConfig, devices: &DevicesConfig) -> String {
    let mut line = boot.args().to_owned();
    let named = line.split_whitespace().any(|w| w.starts_with("root="));
    if let Some(root) = devices.drives.iter().find(|d| d.is_root_device)
        && boot.initrd_path.is_none()
        && !named
    {
        let device = root.partuuid.as_ref().map_or("/dev/vda".into(), |id| format!("PARTUUID={id}"));
        let mode = if root.is_read_only == Some(true) { "ro" } else { "rw" };
        line.push_str(&format!(" root={device} {mode}"));
    }
    line
}

/// The machine that a configuration describes.
pub fn spec(config: &MachineSpec) -> Spec {
    let m = &config.machine;
    Spec {
        vcpus: m.vcpu_count.into(),
        memory_bytes: m.mem_bytes(),
        model: m.cpu_model.map(|m| m.name().to_owned()),
        tsc_khz: m.tsc_khz,
        allow_tsc_mismatch: m.allow_tsc_mismatch,
        backing: Backing::Shared,
        devices: config.devices.clone(),
    }
}
