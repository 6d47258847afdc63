//! All fuzz targets by name, for `tests/fuzz` (cargo-fuzz) and for the test here that replays its corpus without it.
//!
//! A target takes any bytes and comes back soon, without a panic and with bounded memory.

use crate::api::http;
use crate::api::router::{Owner, Router};
use crate::api::server::Handler;
use crate::control::MigrationRequest;
use crate::control::{Action, Denied, Outcome, Requests, SnapshotDevicesV1};
use crate::migrate::{LimitsChange, fuzz as migration};
use crate::mmds::Service;
use crate::virtio::net::{MmdsConfig, MmdsVersion};
use crate::virtio::{balloon, block, fuzz as virtio, net, rng, transport, vsock};
use crate::{board, config, snapshot, state};
use godwit_state::Section;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use vmm_sys_util::tempfile::TempFile;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Name and function.
pub const TARGETS: &[(&str, Target)] = &[
    ("block", virtio::fuzz_block),
    ("net", virtio::fuzz_net),
    ("vsock", virtio::fuzz_vsock),
    ("rng", virtio::fuzz_rng),
    ("balloon", virtio::fuzz_balloon),
    ("restore", virtio::fuzz_restore),
    ("serial", board::fuzz::fuzz_serial),
    ("pit", board::fuzz::fuzz_pit),
    ("rtc", board::fuzz::fuzz_rtc),
    ("i8042", board::fuzz::fuzz_i8042),
    ("chipset", board::fuzz::fuzz_chipset),
    ("container", container),
    ("sections", sections),
    ("snapshot", snapshot_file),
    ("destination", migration::fuzz_destination),
    ("source", migration::fuzz_source),
    ("offer", migration::fuzz_offer),
    ("http", http_request),
    ("api", api_request),
    ("config", config_file),
    ("mmds", metadata),
];

/// Runs the target of this name.
///
/// # Panics
/// There is none of that name, or the target's property does not hold.
pub fn run(name: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(n, _)| *n == name);
    let (_, target) = found.unwrap_or_else(|| panic!("no fuzz target {name}"));
    target(data);
}

/// The container; what is read is written the same.
fn container(data: &[u8]) {
    if let Ok((header, sections)) = state::read(data) {
        let again = state::write(&header, &sections).expect("what was read can be written");
        assert_eq!(state::read(&again).expect("and read"), (header, sections));
    }
}

fn section<S: Section + PartialEq + std::fmt::Debug>(data: &[u8]) {
    if let Ok(s) = godwit_state::decode::<S>(S::VERSION, data) {
        let again = godwit_state::decode::<S>(S::VERSION, &godwit_state::encode(&s));
        assert_eq!(again.expect("what was decoded is valid"), s);
    }
}

/// Every section's decoder.
fn sections(data: &[u8]) {
    const ALL: &[fn(&[u8])] = &[
        section::<godwit_state::RegsV1>,
        section::<godwit_state::SystemV1>,
        section::<godwit_state::FpuV1>,
        section::<godwit_state::AvxV1>,
        section::<godwit_state::DebugV1>,
        section::<godwit_state::EventsV1>,
        section::<godwit_state::LapicV1>,
        section::<godwit_state::MsrsV1>,
        section::<godwit_state::TscV1>,
        section::<godwit_state::ClockV1>,
        section::<board::clock::BoardClockV1>,
        section::<board::PicV1>,
        section::<board::IoApicV1>,
        section::<board::pit::PitV1>,
        section::<board::rtc::RtcV1>,
        section::<board::i8042::I8042V1>,
        section::<board::serial::SerialV1>,
        section::<transport::MmioV1>,
        section::<block::BlockV1>,
        section::<net::NetV1>,
        section::<vsock::VsockV1>,
        section::<rng::RngV1>,
        section::<balloon::BalloonV1>,
        section::<board::generation::GenerationV1>,
        section::<snapshot::SnapshotMemoryV1>,
        section::<SnapshotDevicesV1>,
    ];
    if let Some((which, data)) = data.split_first() {
        ALL[usize::from(*which) % ALL.len()](data);
    }
}

/// A snapshot's state file.
fn snapshot_file(data: &[u8]) {
    let file = TempFile::new().expect("temporary file");
    file.as_file().write_all(data).expect("temporary file");
    if let Ok(loaded) = snapshot::read_state(file.as_path()) {
        let _ = loaded.container();
    }
}

/// Requests one after the other, as the server takes them from a connection.
fn http_request(data: &[u8]) {
    let mut left = data;
    loop {
        match http::parse(left, 2000) {
            http::Parsed::Done(request, taken) => {
                assert!(taken > 0 && taken <= left.len() && request.body.len() <= 2000);
                left = &left[taken..];
            }
            http::Parsed::Refuse(response) => {
                assert!(response.status >= 400);
                let _ = response.to_bytes(false);
                return;
            }
            http::Parsed::Partial { .. } => return,
        }
    }
}

/// Applies configuration to one that is kept, as the control thread does; the rest is done by saying so.
struct Anybody(std::sync::Mutex<config::MachineSpec>, Requests);

impl Owner for Anybody {
    fn act(&self, action: Action) -> Result<Outcome, Denied> {
        let mut spec = self.0.lock().unwrap_or_else(|e| e.into_inner());
        match action {
            Action::Config => Ok(Outcome::Config(Box::new(spec.clone()))),
            Action::Configure(part) => {
                part.apply(&mut spec).map(|()| Outcome::Done).map_err(|e| Denied::Failed(e.to_string()))
            }
            _ => Ok(Outcome::Done),
        }
    }
    fn migrate(&self, _request: MigrationRequest) -> Result<(), String> {
        Ok(())
    }
    fn change_migration(&self, _change: LimitsChange) -> Result<(), String> {
        Ok(())
    }
    fn migration(&self) -> Option<Value> {
        None
    }
    fn requests(&self) -> &Requests {
        &self.1
    }
}

/// Requests with bodies, up to the control thread's door.
fn api_request(data: &[u8]) {
    let owner = Anybody(std::sync::Mutex::default(), Requests::default());
    let mut router = Router::over(Box::new(owner));
    let mut left = data;
    while let http::Parsed::Done(request, taken) = http::parse(left, 2000) {
        let response = router.handle(request);
        if let Some(body) = &response.body {
            serde_json::from_str::<Value>(body).expect("every answer is JSON");
        }
        left = &left[taken..];
    }
}

/// The config file.
fn config_file(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(file) = config::parse(Path::new("fuzz"), text)
    {
        let _ = file.spec();
    }
}

/// Frames of a guest: each from `flags, length, bytes…`, with a right Ethernet header unless the flags say otherwise.
fn metadata(data: &[u8]) {
    let service = Service::new("fuzz");
    let version = if data.first().is_some_and(|b| b & 1 != 0) { MmdsVersion::V2 } else { MmdsVersion::V1 };
    let config = MmdsConfig { version, ..MmdsConfig::default() };
    {
        let mut store = service.store();
        store.configure(&config);
        store.put(json!({ "a": { "b": "c" }, "long": "x".repeat(5000) })).expect("it fits");
    }
    let mut stack = service.detour(&config).expect("random numbers");
    let (mut now_ns, mut reply) = (0u64, Vec::new());
    // The guest's next acknowledgement: the fuzzer cannot guess our sequence numbers.
    let mut ours = [0u8; 4];
    let mut left = data.get(1..).unwrap_or(&[]);
    while let Some((head, rest)) = left.split_first_chunk::<3>() {
        let len = (usize::from(head[1]) + usize::from(head[2] & 7) * 256).min(rest.len());
        let (bytes, after) = rest.split_at(len);
        left = after;
        now_ns += u64::from(head[2]) << 20;
        let mut frame = bytes.to_vec();
        match head[0] % 4 {
            0 => {}
            1 => frame.splice(0..0, ethernet()).for_each(drop),
            _ => frame = segment(head[0], ours, bytes),
        }
        if stack.wants(&frame[..frame.len().min(64)]) {
            stack.take(&frame, now_ns);
        }
        for _ in 0..u32::from(head[0] >> 5) * 4 {
            if !stack.next(&mut reply, now_ns) {
                break;
            }
            assert!(reply.len() <= 1514);
            // An ARP reply has none.
            if let (Some(seq), Some(flags)) = (reply.get(38..42), reply.get(47)) {
                let next = u32::from_be_bytes([seq[0], seq[1], seq[2], seq[3]])
                    .wrapping_add(reply.len().saturating_sub(54) as u32)
                    .wrapping_add(u32::from(flags & 3 != 0));
                ours = next.to_be_bytes();
            }
        }
    }
}

fn ethernet() -> [u8; 14] {
    [6, 1, 0x23, 0x45, 0x67, 1, 2, 0, 0, 0, 0, 9, 8, 0]
}

/// A TCP segment to the service: `sequence number, flags, payload…`, or the IP and TCP headers right and the rest open.
fn segment(kind: u8, ack: [u8; 4], bytes: &[u8]) -> Vec<u8> {
    let (head, payload) = bytes.split_at(bytes.len().min(2));
    let len = 40 + payload.len() as u16;
    let mut f = ethernet().to_vec();
    f.extend([0x45, 0]);
    f.extend(len.to_be_bytes());
    f.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 169, 254, 169, 254]);
    f.extend([0x10, kind & 4, 0, 80, 0, 0, 0, head.first().copied().unwrap_or(0)]);
    f.extend(ack);
    f.extend([0x50, head.get(1).copied().unwrap_or(0x10) & 0x3f, 0x20, 0, 0, 0, 0, 0]);
    f.extend(payload);
    f
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The inputs of a packed corpus: `godwit fuzz corpus 1\n`, then each as its length (u32, little-endian) and bytes.
    fn unpack(bytes: &[u8]) -> Option<Vec<&[u8]>> {
        let mut left = bytes.strip_prefix(b"godwit fuzz corpus 1\n")?;
        let mut inputs = Vec::new();
        while let Some((len, rest)) = left.split_first_chunk::<4>() {
            let len = u32::from_le_bytes(*len) as usize;
            inputs.push(rest.get(..len)?);
            left = &rest[len..];
        }
        left.is_empty().then_some(inputs)
    }

    #[test]
    fn the_corpus_does_no_harm() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let mut total = 0;
        for (name, target) in TARGETS {
            let path = dir.join(name);
            let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let inputs = unpack(&bytes).unwrap_or_else(|| panic!("{} is damaged", path.display()));
            inputs.iter().for_each(|input| target(input));
            total += inputs.len();
        }
        println!("{total} inputs");
    }

    #[test]
    fn random_bytes_do_no_harm() {
        for (name, target) in TARGETS {
            let mut x = 0x9e37_79b9_7f4a_7c15u64;
            for round in 0..60 {
                let mut data = vec![0u8];
                for _ in 0..round * 8 {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    data.extend(x.to_le_bytes().iter().map(|b| if round % 2 == 0 { b & 0x1f } else { *b }));
                }
                target(&data);
            }
            println!("{name}");
        }
    }
}
