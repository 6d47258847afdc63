//! Every route against an owner that only remembers what it was asked for.

mod fields;

use super::super::routes::{ROUTES, When};
use super::*;
use crate::config::MachineSpec;
use crate::control::Stage;
use std::sync::{Arc, Mutex};

/// An interface that every fake machine has: the metadata service needs one.
const NET: &str = r#"{"iface_id":"n","host_dev_name":"t"}"#;

#[derive(Default)]
struct Fake {
    asked: Arc<Mutex<Vec<String>>>,
    requests: Requests,
}

impl Owner for Fake {
    fn act(&self, action: Action) -> Result<Outcome, Denied> {
        self.asked.lock().unwrap().push(format!("{action:?}"));
        match action {
            Action::Configure(part) => {
                let mut spec = MachineSpec::default();
                spec.devices.network_interfaces.push(serde_json::from_str(NET).unwrap());
                part.apply(&mut spec).map(|()| Outcome::Done).map_err(|e| Denied::Failed(e.to_string()))
            }
            Action::Describe => Ok(Outcome::Instance(InstanceInfo {
                id: "me".into(),
                state: Stage::NotStarted,
                backend: "fake".into(),
                backend_summary: "none".into(),
                backend_models: vec!["x86-64".into()],
            })),
            Action::Config => Ok(Outcome::Config(Box::default())),
            Action::Counters => Err(Denied::Failed("none".into())),
            Action::Metadata => Ok(Outcome::Metadata(None)),
            Action::Balloon => Ok(Outcome::Balloon(Default::default())),
            Action::Pause => Err(Denied::Stage { action: "pause", stage: Stage::NotStarted, early: false }),
            Action::Resume => Err(Denied::Ended),
            _ => Ok(Outcome::Done),
        }
    }

    fn migrate(&self, _request: MigrationRequest) -> Result<(), String> {
        Err("nowhere".into())
    }

    fn change_migration(&self, _change: LimitsChange) -> Result<(), String> {
        Err("no guest is being sent".into())
    }

    fn migration(&self) -> Option<Value> {
        None
    }

    fn requests(&self) -> &Requests {
        &self.requests
    }
}

fn router() -> (Router, Arc<Mutex<Vec<String>>>) {
    let fake = Fake::default();
    let asked = fake.asked.clone();
    (Router::over(Box::new(fake)), asked)
}

fn ask(method: Method, path: &str, body: &str) -> (u16, String, Vec<String>) {
    let (mut router, asked) = router();
    let request =
        Request { method, path: path.into(), query: String::new(), body: body.into(), keep_alive: true };
    let response = router.handle(request);
    let asked = asked.lock().unwrap().clone();
    (response.status, response.body.unwrap_or_default(), asked)
}

#[test]
fn requests_become_actions() {
    use Method::{Patch, Put};
    for (method, path, body, action) in [
        (Put, "/boot-source", r#"{"kernel_image_path":"k"}"#, "BootSource"),
        (Put, "/machine-config", r#"{"vcpu_count":2,"mem_size_mib":64}"#, "vcpu_count: 2"),
        (Patch, "/machine-config", r#"{"vcpu_count":2}"#, "MachineUpdate"),
        (Put, "/drives/a", r#"{"drive_id":"a","path_on_host":"x","is_root_device":false}"#, "Drive"),
        (Patch, "/drives/a", r#"{"drive_id":"a","path_on_host":"y"}"#, "path_on_host: Some(\"y\")"),
        (Put, "/network-interfaces/n", r#"{"iface_id":"n","host_dev_name":"t"}"#, "Net"),
        (Patch, "/network-interfaces/n", r#"{"iface_id":"n"}"#, "Net(NetUpdate"),
        (Put, "/vsock", r#"{"guest_cid":3,"uds_path":"v"}"#, "Vsock"),
        (Put, "/entropy", "{}", "Entropy"),
        (Put, "/balloon", r#"{"amount_mib":1,"deflate_on_oom":false}"#, "Balloon"),
        (Patch, "/balloon", r#"{"amount_mib":1}"#, "BalloonUpdate"),
        (Patch, "/balloon/statistics", r#"{"stats_polling_interval_s":1}"#, "BalloonStatsUpdate"),
        (Put, "/actions", r#"{"action_type":"InstanceStart"}"#, "Start"),
        (Put, "/actions", r#"{"action_type":"FlushMetrics"}"#, "FlushMetrics"),
        (Put, "/actions", r#"{"action_type":"SendCtrlAltDel"}"#, "CtrlAltDel"),
        (Put, "/serial", r#"{"serial_out_path":"s"}"#, "Serial"),
        (Put, "/logger", r#"{"level":"Debug"}"#, "Debug"),
        (Put, "/metrics", r#"{"metrics_path":"m"}"#, "Metrics"),
        (
            Put,
            "/snapshot/create",
            r#"{"snapshot_path":"s","mem_file_path":"m","snapshot_type":"Diff"}"#,
            "Diff",
        ),
        (
            Put,
            "/snapshot/load",
            r#"{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m"},"resume_vm":true}"#,
            "resume_vm: true",
        ),
    ] {
        let (status, text, asked) = ask(method, path, body);
        assert_eq!((status, text.as_str()), (204, ""), "{path}");
        assert!(asked.len() == 1 && asked[0].contains(action), "{path}: {asked:?}");
    }
}

#[test]
fn answers_have_firecrackers_fields() {
    let (status, text, _) = ask(Method::Get, "/", "");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &value["state"], &value["id"]), (200, &json!("Not started"), &json!("me")));
    assert!(value["app_name"].is_string() && value["vmm_version"].is_string());
    let (status, text, _) = ask(Method::Get, "/machine-config", "");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &value["vcpu_count"], &value["mem_size_mib"]), (200, &json!(1), &json!(128)));
    assert_eq!((&value["smt"], &value["huge_pages"]), (&json!(false), &json!("None")));
    assert!(ask(Method::Get, "/version", "").1.contains("firecracker_version"));
    assert!(ask(Method::Get, "/vm/config", "").1.contains("machine-config"));
    assert!(ask(Method::Get, "/balloon", "").1.contains("amount_mib"));
    assert!(ask(Method::Get, "/backend", "").1.contains("x86-64"));
}

#[test]
fn what_is_wrong_is_told_by_name_and_never_reaches_the_owner() {
    use Method::{Delete, Get, Patch, Put};
    for (method, path, body, named) in [
        (Put, "/nothing", "{}", "/nothing"),
        (Delete, "/drives/a", "", "DELETE"),
        (Get, "/machine-config", "{}", "body"),
        (Put, "/machine-config", "{}", "missing field `vcpu_count`"),
        (Put, "/machine-config", r#"{"vcpu_count":1}"#, "missing field `mem_size_mib`"),
        (Put, "/machine-config", r#"{"vcpu_cuont":1}"#, "did you mean `vcpu_count`?"),
        (Patch, "/machine-config", "{}", "Empty PATCH request"),
        (Put, "/logger", r#"{"level":"loud"}"#, "say Off, Error"),
        (Put, "/actions", "", "Empty PUT"),
        (Put, "/actions", "{", "EOF"),
        (Put, "/serial", " [null]", "array"),
        (Put, "/entropy", r#"{"rate_limiter":[null,null]}"#, "rate_limiter"),
        (Put, "/snapshot/load", r#"{"snapshot_path":"s","drive_overrides":[["a","b"]]}"#, "drive_overrides"),
        (Put, "/snapshot/load", r#"{"snapshot_path":"s","mem_backend":["File","x"]}"#, "mem_backend"),
        (Put, "/actions", r#"{"action_type":"Fly"}"#, "Fly"),
        (Put, "/actions", r#"{"action_type":"InstanceStart","payload":1}"#, "payload"),
        (
            Put,
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":1,"gdb_socket_path":"g"}"#,
            "gdb_socket_path",
        ),
        (Put, "/drives/a", r#"{"drive_id":"b","path_on_host":"x","is_root_device":false}"#, "[b]"),
        (Put, "/drives/a%20b", r#"{"drive_id":"a%20b","is_root_device":false}"#, "characters"),
        (Put, "/network-interfaces/n", r#"{"iface_id":"n","host_dev_name":"t","mtu":67}"#, "mtu"),
        (Put, "/serial", r#"{"rate_limiter":{"size":1}}"#, "refill_time"),
        (Put, "/snapshot/load", r#"{"snapshot_path":"s","version":"1"}"#, "version"),
        (Patch, "/vm", r#"{"state":"Gone"}"#, "Gone"),
        (Put, "/migration", r#"{"Send":1}"#, "json body"),
    ] {
        let (status, text, asked) = ask(method, path, body);
        let fault: Value = serde_json::from_str(&text).unwrap();
        let fault = fault["fault_message"].as_str().unwrap_or_default();
        assert!(status == 400 && fault.contains(named), "{path} {body}: {status} {fault}");
        assert!(asked.is_empty(), "{path}: {asked:?}");
    }
}

#[test]
fn denials_are_faults() {
    let (status, text, _) = ask(Method::Patch, "/vm", r#"{"state":"Paused"}"#);
    assert!(status == 400 && text.contains("Not started"), "{status} {text}");
    assert_eq!(ask(Method::Patch, "/vm", r#"{"state":"Resumed"}"#).0, 503);
    assert_eq!(ask(Method::Get, "/migration", "").0, 400);
}

#[test]
fn every_route_is_served_or_refused_by_name() {
    for route in ROUTES {
        let path = route.path.replace("{drive_id}", "a").replace("{iface_id}", "a").replace("{id}", "a");
        let (status, text, _) = ask(route.method, &path, if route.method == Method::Get { "" } else { "{}" });
        let refused = text.contains("is not supported: ");
        assert_eq!(refused, route.when == When::Never, "{} {path}: {status} {text}", route.method.name());
        assert!(!text.contains("another kind") || route.target == Target::BalloonStats, "{path}: {text}");
    }
}
