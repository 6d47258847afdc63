//! The one table of what the API has: routing, metrics' names and `docs/COMPATIBILITY.md` come out of it, and
//! `docs/openapi.yaml` is tested against it.

use super::http::Method;
use Method::{Get, Patch, Put};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Who are you?
    Instance,
    /// Which version?
    Version,
    /// The whole configuration.
    VmConfig,
    /// Pause or resume.
    Vm,
    /// Start, Ctrl-Alt-Del, metrics.
    Actions,
    /// Kernel.
    BootSource,
    /// vCPUs and memory.
    Machine,
    /// A disk.
    Drive,
    /// A network interface.
    Net,
    /// Sockets to the host.
    Vsock,
    /// Random numbers.
    Entropy,
    /// The balloon.
    Balloon,
    /// Its statistics.
    BalloonStats,
    /// The metadata for the guest.
    Mmds,
    /// How and where the guest gets it.
    MmdsConfig,
    /// The serial port.
    Serial,
    /// The log.
    Logger,
    /// Metrics.
    Metrics,
    /// Write a snapshot.
    SnapshotCreate,
    /// Go on from one.
    SnapshotLoad,
    /// Move to another host.
    Migration,
    /// Which CPU.
    Backend,
    /// Firecracker has it, Godwit refuses it.
    Refused,
}

/// When a request is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before and after the start.
    Always,
    /// Before.
    PreBoot,
    /// After.
    PostBoot,
    /// Never.
    Never,
}

/// One method on one path.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// Method.
    pub method: Method,
    /// Path; `{name}` is any one part.
    pub path: &'static str,
    /// What it does.
    pub target: Target,
    /// When.
    pub when: When,
    /// Its name in Firecracker's metrics, without `_count`.
    pub metric: &'static str,
    /// How it differs from Firecracker's; empty: not.
    pub note: &'static str,
}

impl Route {
    /// Firecracker does not have it.
    pub fn is_ours(&self) -> bool {
        matches!(self.target, Target::Migration | Target::Backend)
    }

    fn takes(&self, method: Method, parts: &[&str]) -> bool {
        let pattern = self.path[1..].split('/');
        method == self.method
            && pattern.clone().count() == parts.len()
            && pattern
                .zip(parts)
                .all(|(p, part)| if p.starts_with('{') { !part.is_empty() } else { p == *part })
    }
}

const fn route(
    method: Method,
    path: &'static str,
    target: Target,
    when: When,
    metric: &'static str,
    note: &'static str,
) -> Route {
    Route { method, path, target, when, metric, note }
}

const NO_TEMPLATES: &str = "custom CPU templates are not offered; use cpu_model in /machine-config";
const NO_HOTPLUG: &str = "memory cannot be plugged in";
const NO_HINTING: &str = "free page hinting is not offered; use free_page_reporting";
const NO_PMEM: &str = "persistent memory devices are not offered";

/// All of it.
pub const ROUTES: &[Route] = &[
    route(
        Get,
        "/",
        Target::Instance,
        When::Always,
        "instance_info",
        "also `backend`; while a guest is waited for `state` is \"Receiving\", after a migration \"Migrated\"",
    ),
    route(
        Put,
        "/actions",
        Target::Actions,
        When::Always,
        "actions",
        "InstanceStart before the start, SendCtrlAltDel while it runs",
    ),
    route(Get, "/balloon", Target::Balloon, When::Always, "balloon", ""),
    route(Put, "/balloon", Target::Balloon, When::PreBoot, "balloon", "`free_page_hinting` is refused"),
    route(Patch, "/balloon", Target::Balloon, When::PostBoot, "balloon", ""),
    route(Get, "/balloon/statistics", Target::BalloonStats, When::PostBoot, "balloon", ""),
    route(Patch, "/balloon/statistics", Target::BalloonStats, When::PostBoot, "balloon", ""),
    route(Patch, "/balloon/hinting/start", Target::Refused, When::Never, "balloon", NO_HINTING),
    route(Get, "/balloon/hinting/status", Target::Refused, When::Never, "balloon", NO_HINTING),
    route(Patch, "/balloon/hinting/stop", Target::Refused, When::Never, "balloon", NO_HINTING),
    route(Put, "/boot-source", Target::BootSource, When::PreBoot, "boot_source", ""),
    route(Put, "/cpu-config", Target::Refused, When::Never, "cpu_cfg", NO_TEMPLATES),
    route(
        Put,
        "/drives/{drive_id}",
        Target::Drive,
        When::PreBoot,
        "drive",
        "`socket` (vhost-user) is refused; with either `io_engine` a thread of the disk's own waits for it",
    ),
    route(Patch, "/drives/{drive_id}", Target::Drive, When::PostBoot, "drive", ""),
    route(Put, "/entropy", Target::Entropy, When::PreBoot, "entropy", ""),
    route(Put, "/hotplug/memory", Target::Refused, When::Never, "hotplug_memory", NO_HOTPLUG),
    route(Patch, "/hotplug/memory", Target::Refused, When::Never, "hotplug_memory", NO_HOTPLUG),
    route(Get, "/hotplug/memory", Target::Refused, When::Never, "hotplug_memory", NO_HOTPLUG),
    route(Put, "/logger", Target::Logger, When::Always, "logger", "may be set again at any time"),
    route(
        Get,
        "/machine-config",
        Target::Machine,
        When::Always,
        "machine_cfg",
        "also `cpu_model`, `tsc_khz`, `allow_tsc_mismatch`",
    ),
    route(
        Put,
        "/machine-config",
        Target::Machine,
        When::PreBoot,
        "machine_cfg",
        "also `cpu_model`, `tsc_khz`, `allow_tsc_mismatch`; `smt`, `cpu_template` and `huge_pages` other than the defaults are refused",
    ),
    route(Patch, "/machine-config", Target::Machine, When::PreBoot, "machine_cfg", "as PUT"),
    route(
        Put,
        "/metrics",
        Target::Metrics,
        When::Always,
        "metrics",
        "groups that are not counted are left out",
    ),
    route(Get, "/mmds", Target::Mmds, When::Always, "mmds", ""),
    route(Put, "/mmds", Target::Mmds, When::Always, "mmds", ""),
    route(Patch, "/mmds", Target::Mmds, When::Always, "mmds", ""),
    route(Put, "/mmds/config", Target::MmdsConfig, When::PreBoot, "mmds", ""),
    route(
        Put,
        "/network-interfaces/{iface_id}",
        Target::Net,
        When::PreBoot,
        "network",
        "also `passt_socket` in place of `host_dev_name`",
    ),
    route(Patch, "/network-interfaces/{iface_id}", Target::Net, When::PostBoot, "network", ""),
    route(Put, "/pmem/{id}", Target::Refused, When::Never, "pmem", NO_PMEM),
    route(Patch, "/pmem/{id}", Target::Refused, When::Never, "pmem", NO_PMEM),
    route(Put, "/serial", Target::Serial, When::PreBoot, "serial", ""),
    route(
        Put,
        "/snapshot/create",
        Target::SnapshotCreate,
        When::PostBoot,
        "snapshot_create",
        "paused only; Diff needs `track_dirty_pages`; the state file is Godwit's own format",
    ),
    route(
        Put,
        "/snapshot/load",
        Target::SnapshotLoad,
        When::PreBoot,
        "snapshot_load",
        "also `drive_overrides`, `allow_tsc_mismatch`; the CPU backend may be another one",
    ),
    route(
        Get,
        "/version",
        Target::Version,
        When::Always,
        "vmm_version",
        "Godwit's version under Firecracker's name",
    ),
    route(Patch, "/vm", Target::Vm, When::PostBoot, "vm", ""),
    route(
        Get,
        "/vm/config",
        Target::VmConfig,
        When::Always,
        "vm_config",
        "without `logger`, `metrics` and what is refused above",
    ),
    route(Put, "/vsock", Target::Vsock, When::PreBoot, "vsock", ""),
    route(
        Get,
        "/backend",
        Target::Backend,
        When::Always,
        "backend",
        "name, models, sections and counters of the CPU backend",
    ),
    route(Get, "/migration", Target::Migration, When::Always, "migration", "progress and report"),
    route(
        Put,
        "/migration",
        Target::Migration,
        When::Always,
        "migration",
        "send, receive (before the start), cancel, postcopy, recover, resume",
    ),
    route(
        Patch,
        "/migration",
        Target::Migration,
        When::PostBoot,
        "migration",
        "limits, while a guest is sent",
    ),
];

/// The route that takes a request, and the last part of the path that it looks at. What stands behind a path of Firecracker's
/// that no other continues is not looked at, as there: clients say `PUT /vsock/ID`.
pub fn find(method: Method, path: &str) -> Option<(&'static Route, &str)> {
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    let parts: Vec<&str> = trimmed.split('/').collect();
    for len in (1..=parts.len()).rev() {
        let Some(route) = ROUTES.iter().find(|r| r.takes(method, &parts[..len])) else { continue };
        let continues = |r: &Route| r.method == method && r.path.starts_with(&format!("{}/", route.path));
        let open = !route.is_ours() && parts[..len] != [""] && !ROUTES.iter().any(continues);
        return (len == parts.len() || open).then(|| (route, parts[len - 1]));
    }
    None
}

/// The tables of `docs/COMPATIBILITY.md`.
pub fn compatibility() -> String {
    let table = |ours: bool| {
        let mut out = String::from("| request | when | remarks |\n|---|---|---|\n");
        for r in ROUTES.iter().filter(|r| r.is_ours() == ours) {
            let when = match r.when {
                When::Always => "always",
                When::PreBoot => "before the start",
                When::PostBoot => "after the start",
                When::Never => "**refused**",
            };
            out.push_str(&format!("| `{} {}` | {when} | {} |\n", r.method.name(), r.path, r.note));
        }
        out
    };
    format!("{}\n## Godwit's own requests\n\n{}", table(false), table(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found() {
        let target = |m, p| find(m, p).map(|(r, last)| (r.target, last.to_owned()));
        assert_eq!(target(Get, "/"), Some((Target::Instance, String::new())));
        assert_eq!(target(Put, "/drives/a-b"), Some((Target::Drive, "a-b".into())));
        assert_eq!(target(Patch, "/balloon/statistics/"), Some((Target::BalloonStats, "statistics".into())));
        for (method, path, wanted, part) in [
            (Put, "/vsock/vsock0", Target::Vsock, "vsock"),
            (Put, "/drives/a/b", Target::Drive, "a"),
            (Put, "/balloon/x", Target::Balloon, "balloon"),
            (Put, "/mmds/config/x", Target::MmdsConfig, "config"),
            (Get, "/vm/config/x", Target::VmConfig, "config"),
            (Patch, "/balloon/statistics/x/y", Target::BalloonStats, "statistics"),
        ] {
            assert_eq!(target(method, path), Some((wanted, part.into())), "{path}");
        }
        for (method, path) in [
            (Put, "/drives"),
            (Put, "/drives/"),
            (Put, "/drives//"),
            (Put, "/"),
            (Get, "/x"),
            (Get, "//x"),
            (Put, "/mmds/x"),
            (Get, "/balloon/x"),
            (Patch, "/balloon/hinting/x"),
            (Put, "/snapshot/x"),
            (Get, "/migration/x"),
            (Patch, "/vsock/v"),
        ] {
            assert_eq!(target(method, path), None, "{path}");
        }
    }

    /// Reads a file of `docs`, for comparing it with the table.
    fn doc(name: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    #[test]
    fn the_compatibility_page_is_the_table() {
        let page = doc("COMPATIBILITY.md");
        let (table, wanted) = (compatibility(), "the tables of docs/COMPATIBILITY.md should be:");
        assert!(page.contains(&table), "{wanted}\n{table}");
    }

    #[test]
    fn the_openapi_file_has_the_routes_and_no_others() {
        // Two levels of indentation are all that this needs to know of YAML: a path, then its methods.
        let mut found = Vec::new();
        let mut path = String::new();
        for line in doc("openapi.yaml").lines().skip_while(|l| *l != "paths:").skip(1) {
            if !line.starts_with(' ') && !line.is_empty() {
                break;
            }
            let key = line.trim().trim_end_matches(':').trim_matches('"');
            match line.len() - line.trim_start().len() {
                2 => path = key.to_owned(),
                4 if ["get", "put", "patch", "delete"].contains(&key) => {
                    found.push(format!("{} {path}", key.to_uppercase()));
                }
                _ => {}
            }
        }
        let mut wanted: Vec<String> = ROUTES
            .iter()
            .filter(|r| r.target != Target::Refused)
            .map(|r| format!("{} {}", r.method.name(), r.path))
            .collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
    }
}
