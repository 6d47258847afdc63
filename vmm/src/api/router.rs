//! Requests to actions, outcomes to responses: Firecracker's paths, and Godwit's own.

use super::http::{Method, Request, Response};
use super::server::Handler;
use crate::config::{BootSourceConfig, MachineConfig, MachineConfigUpdate, MachineSpec};
use crate::control::{Action, ConfigPart, Denied, Handle, Migrations, Outcome};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// Answers requests by way of the control thread.
pub struct Router {
    handle: Handle,
    migrations: Migrations,
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

/// A refusal, ready to be sent.
type Answer = Result<Response, Response>;

fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Response> {
    serde_json::from_slice(&request.body).map_err(|e| {
        Response::fault(400, format!("An error occurred when deserializing the json body of a request: {e}."))
    })
}

/// A configuration in the config file's shape.
fn whole(c: &MachineSpec) -> serde_json::Value {
    let d = &c.devices;
    json!({
        "boot-source": c.boot,
        "machine-config": c.machine,
        "drives": d.drives,
        "network-interfaces": d.network_interfaces,
        "vsock": d.vsock,
        "balloon": d.balloon,
        "entropy": d.entropy,
    })
}

impl Router {
    /// A router in front of the control thread.
    pub fn new(handle: Handle) -> Self {
        let migrations = Migrations::new(handle.clone());
        Router { handle, migrations }
    }

    fn act(&self, action: Action) -> Result<Outcome, Response> {
        self.handle.act(action).map_err(|e| {
            let status = if e == Denied::Ended { 503 } else { 400 };
            Response::fault(status, e.to_string())
        })
    }

    fn done(&self, action: Action) -> Answer {
        self.act(action).map(|_| Response::no_content())
    }

    fn configure(&self, part: ConfigPart) -> Answer {
        self.done(Action::Configure(Box::new(part)))
    }

    /// The path's last part must be the name in the body.
    fn named(id: &str, in_body: &str) -> Result<(), Response> {
        if id == in_body {
            return Ok(());
        }
        Err(Response::fault(
            400,
            format!("The id from the path [{id}] does not match the id from the body [{in_body}]!"),
        ))
    }

    fn route(&self, request: &Request) -> Answer {
        use Method::{Get, Patch, Put};
        let path = request.path.trim_matches('/');
        let parts: Vec<&str> = path.split('/').collect();
        match (request.method, parts.as_slice()) {
            (Get, [""]) => self.instance(),
            (Get, ["version"]) => {
                Ok(Response::ok(&json!({ "firecracker_version": env!("CARGO_PKG_VERSION") })))
            }
            (Get, ["vm", "config"]) => self.config(|c| Ok(whole(c))),
            (Get, ["machine-config"]) => self.config(|c| serde_json::to_value(&c.machine)),
            (Get, ["backend"]) => self.backend(),
            (Get, ["migration"]) => match self.migrations.snapshot() {
                Some(s) => {
                    let value = serde_json::to_value(s).map_err(|e| Response::fault(500, e.to_string()))?;
                    Ok(Response::ok(&value))
                }
                None => Err(Response::fault(400, "There was no migration.")),
            },
            (Put, ["migration"]) => match self.migrations.request(body(request)?) {
                Ok(()) => Ok(Response::no_content()),
                Err(why) => Err(Response::fault(400, why)),
            },
            (Put, ["boot-source"]) => {
                self.configure(ConfigPart::BootSource(body::<BootSourceConfig>(request)?))
            }
            (Put, ["machine-config"]) => self.configure(ConfigPart::Machine(body::<MachineConfig>(request)?)),
            (Patch, ["machine-config"]) => {
                self.configure(ConfigPart::MachineUpdate(body::<MachineConfigUpdate>(request)?))
            }
            (Put, ["drives", id]) => {
                let drive: crate::config::DriveConfig = body(request)?;
                Self::named(id, &drive.drive_id)?;
                self.configure(ConfigPart::Drive(drive))
            }
            (Put, ["network-interfaces", id]) => {
                let net: crate::config::NetworkInterfaceConfig = body(request)?;
                Self::named(id, &net.iface_id)?;
                self.configure(ConfigPart::Net(net))
            }
            (Put, ["vsock"]) => self.configure(ConfigPart::Vsock(body(request)?)),
            (Put, ["balloon"]) => self.configure(ConfigPart::Balloon(body(request)?)),
            (Put, ["entropy"]) => self.configure(ConfigPart::Entropy(body(request)?)),
            (Put, ["actions"]) => match body::<ActionBody>(request)?.action_type {
                ActionType::InstanceStart => self.done(Action::Start),
                ActionType::SendCtrlAltDel => self.done(Action::CtrlAltDel),
                ActionType::FlushMetrics => {
                    Err(Response::fault(400, "FlushMetrics: metrics are not supported yet."))
                }
            },
            (Patch, ["vm"]) => match body::<VmBody>(request)?.state {
                VmState::Paused => self.done(Action::Pause),
                VmState::Resumed => self.done(Action::Resume),
            },
            (method, _) => Err(Response::fault(
                400,
                format!("Invalid request method and/or path: {} {path}.", method.name()),
            )),
        }
    }

    fn instance(&self) -> Answer {
        match self.act(Action::Describe)? {
            Outcome::Instance(i) => Ok(Response::ok(&json!({
                "app_name": "Godwit",
                "id": i.id,
                "state": i.state,
                "vmm_version": env!("CARGO_PKG_VERSION"),
                "backend": i.backend,
            }))),
            _ => Err(Response::fault(500, "An unexpected outcome.")),
        }
    }

    fn config(&self, part: impl Fn(&MachineSpec) -> serde_json::Result<serde_json::Value>) -> Answer {
        match self.act(Action::Config)? {
            Outcome::Config(c) => {
                let value = part(&c).map_err(|e| Response::fault(500, e.to_string()))?;
                Ok(Response::ok(&value))
            }
            _ => Err(Response::fault(500, "An unexpected outcome.")),
        }
    }

    fn backend(&self) -> Answer {
        let Outcome::Instance(i) = self.act(Action::Describe)? else {
            return Err(Response::fault(500, "An unexpected outcome."));
        };
        let counters = match self.act(Action::Counters) {
            Ok(Outcome::Counters(c)) => c,
            _ => Vec::new(),
        };
        let counters: serde_json::Map<_, _> = counters.into_iter().map(|(k, v)| (k, v.into())).collect();
        Ok(Response::ok(&json!({ "name": i.backend, "counters": counters })))
    }
}

impl Handler for Router {
    fn handle(&mut self, request: Request) -> Response {
        self.route(&request).unwrap_or_else(|refusal| refusal)
    }
}
