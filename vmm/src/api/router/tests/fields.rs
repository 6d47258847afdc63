//! Every field of a request that Firecracker 1.17 has, and every one of Godwit's own: taken, or refused by its name.
//!
//! The table under "Fields" in `docs/COMPATIBILITY.md` is made from this one.

use super::*;
use Method::{Patch, Put};

/// What is asked of one kind of request; fields as `"name": value`.
struct Fields {
    method: Method,
    path: &'static str,
    /// What must be there anyway.
    needed: &'static [&'static str],
    taken: &'static [&'static str],
    refused: &'static [&'static str],
    ours: &'static [&'static str],
}

const LIMITER: &str =
    r#""rate_limiter": {"bandwidth": {"size": 1, "refill_time": 1, "one_time_burst": 1}, "ops": null}"#;
const RX: &str = r#""rx_rate_limiter": {"ops": {"size": 1, "refill_time": 1}}"#;
const TX: &str = r#""tx_rate_limiter": {"bandwidth": {"size": 1, "refill_time": 1}}"#;
const MACHINE: &[&str] = &[
    r#""smt": false"#,
    r#""cpu_template": "None""#,
    r#""track_dirty_pages": true"#,
    r#""huge_pages": "None""#,
];
const NO_MACHINE: &[&str] = &[
    r#""smt": true"#,
    r#""cpu_template": "T2""#,
    r#""huge_pages": "2M""#,
    r#""huge_pages": "Transparent""#,
    r#""gdb_socket_path": "g""#,
];
const OUR_MACHINE: &[&str] =
    &[r#""cpu_model": "x86-64-v2""#, r#""tsc_khz": 2000000"#, r#""allow_tsc_mismatch": true"#];

const FIELDS: &[Fields] = &[
    Fields {
        method: Put,
        path: "/actions",
        needed: &[],
        taken: &[
            r#""action_type": "InstanceStart""#,
            r#""action_type": "FlushMetrics""#,
            r#""action_type": "SendCtrlAltDel""#,
        ],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/balloon",
        needed: &[r#""amount_mib": 1"#, r#""deflate_on_oom": true"#],
        taken: &[
            r#""stats_polling_interval_s": 1"#,
            r#""free_page_reporting": true"#,
            r#""free_page_hinting": false"#,
        ],
        refused: &[r#""free_page_hinting": true"#],
        ours: &[],
    },
    Fields {
        method: Patch,
        path: "/balloon",
        needed: &[r#""amount_mib": 1"#],
        taken: &[],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Patch,
        path: "/balloon/statistics",
        needed: &[r#""stats_polling_interval_s": 1"#],
        taken: &[],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/boot-source",
        needed: &[r#""kernel_image_path": "k""#],
        taken: &[r#""boot_args": "a""#, r#""initrd_path": "i""#],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/drives/{drive_id}",
        needed: &[r#""drive_id": "n""#, r#""is_root_device": true"#, r#""path_on_host": "p""#],
        taken: &[
            r#""partuuid": "u""#,
            r#""cache_type": "Writeback""#,
            r#""cache_type": "Unsafe""#,
            r#""is_read_only": true"#,
            LIMITER,
            r#""io_engine": "Sync""#,
            r#""io_engine": "Async""#,
        ],
        refused: &[r#""socket": "s""#],
        ours: &[r#""on_migration": "Moved""#],
    },
    Fields {
        method: Patch,
        path: "/drives/{drive_id}",
        needed: &[r#""drive_id": "n""#],
        taken: &[r#""path_on_host": "p""#, LIMITER],
        refused: &[],
        ours: &[],
    },
    Fields { method: Put, path: "/entropy", needed: &[], taken: &[LIMITER], refused: &[], ours: &[] },
    Fields {
        method: Put,
        path: "/logger",
        needed: &[],
        taken: &[
            r#""log_path": "l""#,
            r#""level": "Info""#,
            r#""level": "wArNiNg""#,
            r#""show_level": true"#,
            r#""show_log_origin": true"#,
            r#""module": "m""#,
        ],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/machine-config",
        needed: &[r#""vcpu_count": 2"#, r#""mem_size_mib": 64"#],
        taken: MACHINE,
        refused: NO_MACHINE,
        ours: OUR_MACHINE,
    },
    Fields {
        method: Patch,
        path: "/machine-config",
        needed: &[],
        taken: MACHINE,
        refused: NO_MACHINE,
        ours: OUR_MACHINE,
    },
    Fields {
        method: Put,
        path: "/metrics",
        needed: &[r#""metrics_path": "m""#],
        taken: &[],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/mmds/config",
        needed: &[r#""network_interfaces": ["n"]"#],
        taken: &[
            r#""version": "V1""#,
            r#""version": "V2""#,
            r#""ipv4_address": "169.254.1.1""#,
            r#""imds_compat": true"#,
        ],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/network-interfaces/{iface_id}",
        needed: &[r#""iface_id": "n""#, r#""host_dev_name": "t""#],
        taken: &[r#""guest_mac": "06:00:00:00:00:01""#, r#""mtu": 1500"#, RX, TX],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/network-interfaces/{iface_id}",
        needed: &[r#""iface_id": "n""#],
        taken: &[],
        refused: &[],
        ours: &[r#""passt_socket": "p""#],
    },
    Fields {
        method: Patch,
        path: "/network-interfaces/{iface_id}",
        needed: &[r#""iface_id": "n""#],
        taken: &[RX, TX],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/serial",
        needed: &[],
        taken: &[r#""serial_out_path": "s""#, r#""rate_limiter": {"size": 1, "refill_time": 1}"#],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/snapshot/create",
        needed: &[r#""snapshot_path": "s""#, r#""mem_file_path": "m""#],
        taken: &[r#""snapshot_type": "Full""#, r#""snapshot_type": "Diff""#],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/snapshot/load",
        needed: &[
            r#""snapshot_path": "s""#,
            r#""mem_backend": {"backend_type": "Uffd", "backend_path": "u"}"#,
        ],
        taken: &[
            r#""enable_diff_snapshots": true"#,
            r#""track_dirty_pages": true"#,
            r#""resume_vm": true"#,
            r#""network_overrides": [{"iface_id": "n", "host_dev_name": "t"}]"#,
            r#""vsock_override": {"uds_path": "v"}"#,
            r#""clock_realtime": true"#,
        ],
        refused: &[],
        ours: &[
            r#""drive_overrides": [{"drive_id": "d", "path_on_host": "p"}]"#,
            r#""allow_tsc_mismatch": true"#,
        ],
    },
    Fields {
        method: Put,
        path: "/snapshot/load",
        needed: &[r#""snapshot_path": "s""#, r#""mem_file_path": "m""#],
        taken: &[],
        refused: &[],
        ours: &[],
    },
    Fields {
        method: Put,
        path: "/vsock",
        needed: &[r#""guest_cid": 3"#, r#""uds_path": "v""#],
        taken: &[r#""vsock_id": "i""#],
        refused: &[],
        ours: &[],
    },
];

fn name(field: &str) -> &str {
    field.trim_start_matches('"').split('"').next().unwrap_or_default()
}

fn body(fields: &Fields, more: Option<&str>) -> String {
    let all: Vec<&str> = fields.needed.iter().copied().chain(more).collect();
    format!("{{{}}}", all.join(", "))
}

fn put(fields: &Fields, body: &str) -> (u16, String, Vec<String>) {
    let path = fields.path.replace("{drive_id}", "n").replace("{iface_id}", "n");
    ask(fields.method, &path, body)
}

#[test]
fn every_field_is_taken_or_refused_by_its_name() {
    for fields in FIELDS {
        let more = fields.taken.iter().chain(fields.ours).map(|f| Some(*f));
        // What is needed by itself, where that is a request.
        let alone = (!fields.needed.is_empty()).then_some(None);
        for field in alone.into_iter().chain(more) {
            let body = body(fields, field);
            let (status, text, asked) = put(fields, &body);
            assert_eq!((status, asked.len()), (204, 1), "{} {body}: {text}", fields.path);
        }
        for field in fields.refused.iter().chain([&r#""no_such_field": 1"#]) {
            let body = body(fields, Some(field));
            let (status, text, _) = put(fields, &body);
            assert!(status == 400 && text.contains(name(field)), "{} {body}: {status} {text}", fields.path);
        }
    }
}

/// Requests with a body that are not in the table: theirs is any JSON, or has one field that other tests know.
const WITHOUT: [&str; 5] = ["PUT /mmds", "PATCH /mmds", "PATCH /vm", "PUT /migration", "PATCH /migration"];

#[test]
fn every_request_with_a_body_is_in_the_table() {
    for route in ROUTES.iter().filter(|r| r.method != Method::Get && r.when != When::Never) {
        let here = FIELDS.iter().any(|f| f.method == route.method && f.path == route.path);
        let text = format!("{} {}", route.method.name(), route.path);
        assert_ne!(here, WITHOUT.contains(&text.as_str()), "{text}");
    }
}

/// Names as the page shows them; with its value where only that value is meant.
fn shown(fields: &[&str], refused: bool) -> String {
    let mut names: Vec<String> = Vec::new();
    for field in fields {
        let value = field.split_once(": ").map_or("", |(_, value)| value);
        let short = value.starts_with('"') || value == "true";
        let valued = refused && short && !["socket", "gdb_socket_path"].contains(&name(field));
        let text = if valued {
            format!("`{}` {}", name(field), value.trim_matches('"'))
        } else {
            format!("`{}`", name(field))
        };
        if !names.contains(&text) {
            names.push(text);
        }
    }
    names.join(", ")
}

#[test]
fn the_compatibility_page_has_the_fields() {
    let mut table = String::from("| request | taken | refused | Godwit's own |\n|---|---|---|---|\n");
    for f in FIELDS {
        let taken: Vec<&str> = f.needed.iter().chain(f.taken).copied().collect();
        let cells = [shown(&taken, false), shown(f.refused, true), shown(f.ours, false)];
        table.push_str(&format!("| `{} {}` | {} |\n", f.method.name(), f.path, cells.join(" | ")));
    }
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/COMPATIBILITY.md");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains(&table), "the table under Fields in docs/COMPATIBILITY.md should be:\n{table}");
}
