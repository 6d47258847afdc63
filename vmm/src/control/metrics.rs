//! Metrics in Firecracker's form: a line of JSON at each flush. As there, counts are those since the last flush.
//!
//! Flushed when asked to, every [`PERIOD`], and at the end. Only what is counted here is in it; groups of Firecracker's
//! that are not are left out, never zero.

use crate::virtio::stats::Counted;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time between two flushes.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// API requests since the last flush, by group and name. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Requests(Arc<Mutex<BTreeMap<(&'static str, String), u64>>>);

impl Requests {
    /// Counts a request: for instance ("put_api_requests", "drive"), and whether it failed.
    pub fn count(&self, group: &'static str, name: &str, failed: bool) {
        let mut map = self.0.lock().unwrap_or_else(|e| e.into_inner());
        *map.entry((group, format!("{name}_count"))).or_default() += 1;
        let fails = map.entry((group, format!("{name}_fails"))).or_default();
        *fails += u64::from(failed);
    }

    fn take(&self) -> Map<String, Value> {
        let taken = std::mem::take(&mut *self.0.lock().unwrap_or_else(|e| e.into_inner()));
        let mut out = Map::new();
        for ((group, name), n) in taken {
            if let Value::Object(o) = out.entry(group).or_insert_with(|| json!({})) {
                o.insert(name, n.into());
            }
        }
        out
    }
}

/// Where metrics go, and what is in them besides requests.
#[derive(Debug)]
pub(super) struct Metrics {
    file: File,
    next: Instant,
    before: BTreeMap<String, u64>,
}

/// Opens a file or FIFO to append to, without waiting for a reader.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).custom_flags(libc::O_NONBLOCK).open(path)
}

impl Metrics {
    pub(super) fn new(path: &Path) -> std::io::Result<Self> {
        Ok(Metrics { file: open(path)?, next: Instant::now() + PERIOD, before: BTreeMap::new() })
    }

    /// How long until the next flush is due.
    pub(super) fn wait(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Writes a line: API requests, latencies of what was done, the backend's counters, the devices'.
    pub(super) fn flush(
        &mut self,
        requests: &Requests,
        latencies_us: &BTreeMap<&'static str, u64>,
        backend: &str,
        counters: Vec<(String, u64)>,
        devices: Vec<Counted>,
    ) -> std::io::Result<()> {
        self.next = Instant::now() + PERIOD;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = Map::new();
        line.insert("utc_timestamp_ms".into(), json!(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)));
        line.append(&mut requests.take());
        line.insert("latencies_us".into(), json!(latencies_us));
        let mut since = Map::new();
        for (name, n) in counters {
            let before = self.before.insert(name.clone(), n).unwrap_or(0);
            since.insert(name, n.saturating_sub(before).into());
        }
        line.insert("backend".into(), json!({ "name": backend, "counters": since }));
        for (group, counts) in self.since(devices) {
            line.insert(group, counts);
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        self.file.write_all(text.as_bytes())
    }

    /// A group for each device, and one for all of a kind.
    fn since(&mut self, devices: Vec<Counted>) -> Map<String, Value> {
        let mut groups: BTreeMap<String, BTreeMap<&'static str, u64>> = BTreeMap::new();
        for Counted { group, kind, counts } in devices {
            for (name, n) in counts {
                let before = self.before.insert(format!("{group}/{name}"), n).unwrap_or(0);
                let since = n.saturating_sub(before);
                *groups.entry(group.clone()).or_default().entry(name).or_default() += since;
                if !kind.is_empty() {
                    *groups.entry(kind.to_owned()).or_default().entry(name).or_default() += since;
                }
            }
        }
        groups.into_iter().map(|(group, counts)| (group, json!(counts))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_since_the_last_flush_and_kinds_are_summed() {
        let path = std::env::temp_dir().join(format!("godwit-metrics-{}", std::process::id()));
        let mut metrics = Metrics::new(&path).unwrap();
        let device = |group: &str, n| Counted {
            group: group.into(),
            kind: "net",
            counts: vec![("tx_bytes_count", n)],
        };
        let requests = Requests::default();
        requests.count("get_api_requests", "mmds", false);
        for (a, b) in [(5, 7), (5, 8)] {
            let devices = vec![device("net_a", a), device("net_b", b)];
            metrics.flush(&requests, &BTreeMap::new(), "x", vec![("exits".into(), a)], devices).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let bytes = |line: usize, group: &str| lines[line][group]["tx_bytes_count"].as_u64();
        assert_eq!((bytes(0, "net_a"), bytes(0, "net_b"), bytes(0, "net")), (Some(5), Some(7), Some(12)));
        assert_eq!((bytes(1, "net_a"), bytes(1, "net_b"), bytes(1, "net")), (Some(0), Some(1), Some(1)));
        assert_eq!(
            (&lines[0]["get_api_requests"]["mmds_count"], &lines[1]["backend"]["counters"]["exits"]),
            (&json!(1), &json!(0))
        );
    }
}
