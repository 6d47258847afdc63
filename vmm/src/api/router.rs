//! Requests to actions, outcomes to responses: Firecracker's paths, and Godwit's own.

use super::http::{Method, Request, Response};
use super::routes::{Route, Target, find};
use super::server::Handler;
use crate::config::{DriveConfig, DriveUpdate, MachineSpec, NetUpdate, NetworkInterfaceConfig, shape};
use crate::control::{
    Action, ConfigPart, Denied, DeviceUpdate, Handle, InstanceInfo, MigrationRequest, Migrations, Outcome,
    Requests,
};
use crate::migrate::LimitsChange;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

/// Whoever does what requests ask for: the control thread, or a test.
pub trait Owner: Send {
    /// Does it.
    ///
    /// # Errors
    /// Denied, with the reason.
    fn act(&self, action: Action) -> Result<Outcome, Denied>;

    /// Starts or changes a migration.
    ///
    /// # Errors
    /// Text for the operator.
    fn migrate(&self, request: MigrationRequest) -> Result<(), String>;

    /// Changes the limits of a migration that goes on.
    ///
    /// # Errors
    /// Text for the operator.
    fn change_migration(&self, change: LimitsChange) -> Result<(), String>;

    /// How far the migration is.
    fn migration(&self) -> Option<Value>;

    /// Where requests are counted.
    fn requests(&self) -> &Requests;
}

/// The control thread.
struct Real {
    handle: Handle,
    migrations: Migrations,
}

impl Owner for Real {
    fn act(&self, action: Action) -> Result<Outcome, Denied> {
        self.handle.act(action)
    }

    fn migrate(&self, request: MigrationRequest) -> Result<(), String> {
        self.migrations.request(request)
    }

    fn change_migration(&self, change: LimitsChange) -> Result<(), String> {
        self.migrations.change(change)
    }

    fn migration(&self) -> Option<Value> {
        self.migrations.snapshot().and_then(|s| serde_json::to_value(s).ok())
    }

    fn requests(&self) -> &Requests {
        self.handle.requests()
    }
}

/// Answers requests.
pub struct Router {
    owner: Box<dyn Owner>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionBody {
    action_type: ActionType,
}

#[derive(Deserialize)]
enum ActionType {
    InstanceStart,
    SendCtrlAltDel,
    FlushMetrics,
}

/// What a whole machine configuration must have.
#[derive(Deserialize)]
struct WholeMachine {
    #[serde(rename = "vcpu_count")]
    _vcpu_count: IgnoredAny,
    #[serde(rename = "mem_size_mib")]
    _mem_size_mib: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmBody {
    state: VmState,
}

#[derive(Deserialize)]
enum VmState {
    Paused,
    Resumed,
}

/// A refusal is ready to be sent, too.
type Answer = Result<Response, Response>;

fn bad(why: impl Into<String>) -> Response {
    Response::fault(400, why)
}

fn unreadable(why: String) -> Response {
    let end = if why.ends_with('?') { "" } else { "." };
    bad(format!("An error occurred when deserializing the json body of a request: {why}{end}"))
}

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Response> {
    shape::read(&request.body, "the body").map_err(unreadable)
}

/// A body that may hold arrays anywhere.
fn any_body<T: DeserializeOwned>(request: &Request) -> Result<T, Response> {
    serde_json::from_slice(&request.body).map_err(|e| unreadable(e.to_string()))
}

/// Names in paths are letters, digits, `_` and `-`, and the same as in the body.
fn named(id: &str, in_body: &str) -> Result<(), Response> {
    if !id.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-') {
        let only = "API Resource IDs can only contain alphanumeric characters and underscores (or -)";
        return Err(bad(format!("{only}: {id:?} has other characters.")));
    }
    if id != in_body {
        return Err(bad(format!(
            "The id from the path [{id}] does not match the id from the body [{in_body}]!"
        )));
    }
    Ok(())
}

/// A configuration in the config file's shape.
fn whole(c: &MachineSpec) -> Value {
    let d = &c.devices;
    let mut whole = json!({
        "boot-source": c.boot,
        "machine-config": c.machine,
        "drives": d.drives,
        "network-interfaces": d.network_interfaces,
        "mmds-config": d.mmds,
        "vsock": d.vsock,
        "balloon": d.balloon,
        "entropy": d.entropy,
    });
    if let Value::Object(members) = &mut whole {
        members.retain(|_, v| !v.is_null());
    }
    whole
}

fn unexpected<T>() -> Result<T, Response> {
    Err(Response::fault(500, "The machine's owner gave an answer of another kind: please report this."))
}

impl Router {
    /// A router in front of the control thread.
    pub fn new(handle: Handle) -> Self {
        let migrations = Migrations::new(handle.clone());
        Router::over(Box::new(Real { handle, migrations }))
    }

    /// A router in front of anyone.
    pub fn over(owner: Box<dyn Owner>) -> Self {
        Router { owner }
    }

    fn act(&self, action: Action) -> Result<Outcome, Response> {
        self.owner.act(action).map_err(|e| {
            let status = match e {
                Denied::Ended => 503,
                Denied::TooLarge(_) => 413,
                _ => 400,
            };
            Response::fault(status, e.to_string())
        })
    }

    fn done(&self, action: Action) -> Answer {
        self.act(action).map(|_| Response::no_content())
    }

    fn configure(&self, part: ConfigPart) -> Answer {
        self.done(Action::Configure(Box::new(part)))
    }

    fn update(&self, update: DeviceUpdate) -> Answer {
        self.done(Action::Update(Box::new(update)))
    }

    fn config(&self) -> Result<Box<MachineSpec>, Response> {
        match self.act(Action::Config)? {
            Outcome::Config(c) => Ok(c),
            _ => unexpected(),
        }
    }

    fn describe(&self) -> Result<InstanceInfo, Response> {
        match self.act(Action::Describe)? {
            Outcome::Instance(i) => Ok(i),
            _ => unexpected(),
        }
    }

    fn route(&self, request: &Request, route: &Route, last: &str) -> Answer {
        match (request.method, request.body.is_empty()) {
            (Method::Get, false) => return Err(bad("GET request cannot have a body.")),
            (Method::Put | Method::Patch, true) if route.target != Target::Refused => {
                return Err(bad(format!("Empty {} request.", request.method.name())));
            }
            _ => {}
        }
        match request.method {
            Method::Get => self.get(route),
            Method::Put => self.put(request, route, last),
            Method::Patch => self.patch(request, route, last),
            Method::Delete => Err(bad("Nothing is deleted here.")),
        }
    }

    fn refused(route: &Route) -> Answer {
        Err(bad(format!("{} {} is not supported: {}.", route.method.name(), route.path, route.note)))
    }

    fn get(&self, route: &Route) -> Answer {
        match route.target {
            Target::Instance => {
                let i = self.describe()?;
                Ok(Response::ok(&json!({
                    "app_name": "Godwit",
                    "id": i.id,
                    "state": i.state,
                    "vmm_version": env!("CARGO_PKG_VERSION"),
                    "backend": i.backend,
                })))
            }
            Target::Version => Ok(Response::ok(&json!({ "firecracker_version": env!("CARGO_PKG_VERSION") }))),
            Target::VmConfig => Ok(Response::ok(&whole(&*self.config()?))),
            Target::Machine => Ok(Response::ok(&self.config()?.machine)),
            Target::Mmds => match self.act(Action::Metadata)? {
                Outcome::Metadata(data) => Ok(Response::ok(&data.unwrap_or_else(|| json!({})))),
                _ => unexpected(),
            },
            Target::Balloon => match self.act(Action::Balloon)? {
                Outcome::Balloon(b) => Ok(Response::ok(&b)),
                _ => unexpected(),
            },
            Target::BalloonStats => match self.act(Action::BalloonStats)? {
                Outcome::BalloonStats(s) => Ok(Response::ok(&s)),
                _ => unexpected(),
            },
            Target::Migration => match self.owner.migration() {
                Some(progress) => Ok(Response::ok(&progress)),
                None => Err(bad("There was no migration.")),
            },
            Target::Backend => self.backend(),
            _ => Self::refused(route),
        }
    }

    fn put(&self, request: &Request, route: &Route, last: &str) -> Answer {
        match route.target {
            Target::BootSource => self.configure(ConfigPart::BootSource(body(request)?)),
            Target::Machine => {
                let machine = body(request)?;
                // A config file may leave them out, a request that replaces all may not, as in Firecracker.
                any_body::<WholeMachine>(request)?;
                self.configure(ConfigPart::Machine(machine))
            }
            Target::Drive => {
                let drive: DriveConfig = body(request)?;
                named(last, &drive.drive_id)?;
                self.configure(ConfigPart::Drive(drive))
            }
            Target::Net => {
                let net: NetworkInterfaceConfig = body(request)?;
                named(last, &net.iface_id)?;
                self.configure(ConfigPart::Net(net))
            }
            Target::Mmds => self.done(Action::PutMetadata(any_body(request)?)),
            Target::MmdsConfig => self.configure(ConfigPart::Mmds(body(request)?)),
            Target::Vsock => self.configure(ConfigPart::Vsock(body(request)?)),
            Target::Balloon => self.configure(ConfigPart::Balloon(body(request)?)),
            Target::Entropy => self.configure(ConfigPart::Entropy(body(request)?)),
            Target::Serial => self.done(Action::Serial(body(request)?)),
            Target::Logger => self.done(Action::Logger(body(request)?)),
            Target::Metrics => self.done(Action::Metrics(body(request)?)),
            Target::SnapshotCreate => self.done(Action::Snapshot(body(request)?)),
            Target::SnapshotLoad => self.done(Action::Load(Box::new(body(request)?))),
            Target::Migration => {
                self.owner.migrate(body(request)?).map(|()| Response::no_content()).map_err(bad)
            }
            Target::Actions => self.done(match body::<ActionBody>(request)?.action_type {
                ActionType::InstanceStart => Action::Start,
                ActionType::SendCtrlAltDel => Action::CtrlAltDel,
                ActionType::FlushMetrics => Action::FlushMetrics,
            }),
            _ => Self::refused(route),
        }
    }

    fn patch(&self, request: &Request, route: &Route, last: &str) -> Answer {
        match route.target {
            Target::Machine => {
                let update = body(request)?;
                if any_body::<serde_json::Map<String, Value>>(request)?.is_empty() {
                    return Err(bad("Empty PATCH request."));
                }
                self.configure(ConfigPart::MachineUpdate(update))
            }
            Target::Drive => {
                let update: DriveUpdate = body(request)?;
                named(last, &update.drive_id)?;
                self.update(DeviceUpdate::Drive(update))
            }
            Target::Net => {
                let update: NetUpdate = body(request)?;
                named(last, &update.iface_id)?;
                self.update(DeviceUpdate::Net(update))
            }
            Target::Mmds => self.done(Action::PatchMetadata(any_body(request)?)),
            Target::Balloon => self.update(DeviceUpdate::Balloon(body(request)?)),
            Target::BalloonStats => self.update(DeviceUpdate::BalloonStats(body(request)?)),
            Target::Migration => {
                let changed = self.owner.change_migration(body(request)?);
                changed.map(|()| Response::no_content()).map_err(bad)
            }
            Target::Vm => self.done(match body::<VmBody>(request)?.state {
                VmState::Paused => Action::Pause,
                VmState::Resumed => Action::Resume,
            }),
            _ => Self::refused(route),
        }
    }

    fn backend(&self) -> Answer {
        let i = self.describe()?;
        let counters = match self.act(Action::Counters) {
            Ok(Outcome::Counters(c)) => c,
            _ => Vec::new(),
        };
        let counters: serde_json::Map<_, _> = counters.into_iter().map(|(k, v)| (k, v.into())).collect();
        Ok(Response::ok(&json!({
            "name": i.backend,
            "summary": i.backend_summary,
            "models": i.backend_models,
            "counters": counters,
        })))
    }
}

impl Handler for Router {
    fn handle(&mut self, request: Request) -> Response {
        let Some((route, last)) = find(request.method, &request.path) else {
            let method = request.method.name();
            return bad(format!("Invalid request method and/or path: {method} {}.", request.path));
        };
        let answer = self.route(&request, route, last);
        let group = match request.method {
            Method::Get => "get_api_requests",
            Method::Put => "put_api_requests",
            Method::Patch | Method::Delete => "patch_api_requests",
        };
        self.owner.requests().count(group, route.metric, answer.is_err());
        answer.unwrap_or_else(|refusal| refusal)
    }
}

#[cfg(test)]
mod tests;
