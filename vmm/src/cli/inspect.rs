//! `godwit inspect`: prints a state container or snapshot, also one from the future, section by section.

use crate::board;
use crate::control::SnapshotDevicesV1;
use crate::snapshot::{Paths, SnapshotMemoryV1};
use crate::state::{ContainerError, MAJOR, MAX_CONTAINER, MINOR, Reader, SectionView};
use crate::virtio;
use godwit_state::{
    AvxV1, ClockV1, DebugV1, EventsV1, FpuV1, LapicV1, MsrsV1, RegsV1, Section, StateError, SystemV1, TscV1,
};
use std::fmt::{Debug, Write as _};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Prints what is in a state file, a snapshot directory or a saved migration blob.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// A state file, or a snapshot's directory.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the sections' sizes only, not what is in them.
    #[arg(long)]
    sizes: bool,
}

/// A decoded section, for people and as JSON.
struct Decoded {
    text: String,
    json: String,
}

type Decoder = fn(u32, &[u8]) -> Result<Decoded, StateError>;

fn decoder<S: Section + Debug>(version: u32, data: &[u8]) -> Result<Decoded, StateError> {
    let section: S = godwit_state::decode(version, data)?;
    let json = serde_json::to_string(&section).unwrap_or_else(|_| "null".into());
    Ok(Decoded { text: format!("{section:#x?}"), json })
}

fn known<S: Section + Debug>() -> (&'static str, u32, Decoder) {
    (S::KIND, S::VERSION, decoder::<S>)
}

/// Every section that some part of this program writes. A test finds what is missing here.
fn decoders() -> Vec<(&'static str, u32, Decoder)> {
    vec![
        known::<RegsV1>(),
        known::<SystemV1>(),
        known::<MsrsV1>(),
        known::<DebugV1>(),
        known::<FpuV1>(),
        known::<AvxV1>(),
        known::<EventsV1>(),
        known::<LapicV1>(),
        known::<TscV1>(),
        known::<ClockV1>(),
        known::<virtio::transport::MmioV1>(),
        known::<virtio::block::BlockV1>(),
        known::<virtio::rng::RngV1>(),
        known::<virtio::net::NetV1>(),
        known::<virtio::vsock::VsockV1>(),
        known::<virtio::balloon::BalloonV1>(),
        known::<board::clock::BoardClockV1>(),
        known::<board::PicV1>(),
        known::<board::IoApicV1>(),
        known::<board::pit::PitV1>(),
        known::<board::rtc::RtcV1>(),
        known::<board::i8042::I8042V1>(),
        known::<board::serial::SerialV1>(),
        known::<board::generation::GenerationV1>(),
        known::<SnapshotMemoryV1>(),
        known::<SnapshotDevicesV1>(),
    ]
}

/// What a section says, if this build knows it.
fn decode(section: &SectionView<'_>) -> Result<Decoded, String> {
    let of_kind: Vec<_> = decoders().into_iter().filter(|(kind, ..)| *kind == section.kind).collect();
    match of_kind.iter().find(|(_, version, _)| *version == section.version) {
        Some((.., decoder)) => decoder(section.version, section.data).map_err(|e| e.to_string()),
        None if of_kind.is_empty() => Err("of a kind that this build does not know".into()),
        None => Err("of a version that this build does not know".into()),
    }
}

/// The beginning of a section's bytes.
fn hex(data: &[u8]) -> String {
    const SHOWN: usize = 64;
    let mut out: String = data.iter().take(SHOWN).map(|b| format!("{b:02x}")).collect();
    if data.len() > SHOWN {
        let _ = write!(out, "… ({} bytes)", data.len());
    }
    out
}

fn board_name(board: u16) -> &'static str {
    if board == crate::state::BOARD_MICROVM { "microvm" } else { "not known to this build" }
}

/// All that is known of a file; `Err` carries what could be read before the damage.
fn text(bytes: &[u8], sizes: bool) -> (String, Option<ContainerError>) {
    let mut out = String::new();
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(e) => return (out, Some(e)),
    };
    let (h, minor) = (reader.header().clone(), reader.minor());
    let _ = writeln!(out, "state container version {MAJOR}.{minor}, {} bytes", bytes.len());
    if minor > MINOR {
        let _ = writeln!(out, "(from a newer godwit: its header may say more than is shown)");
    }
    let mib = h.memory_bytes as f64 / f64::from(1 << 20);
    let _ = writeln!(out, "  producer   {}", h.producer);
    let _ = writeln!(out, "  board      {} ({})", h.board, board_name(h.board));
    let _ = writeln!(out, "  vCPUs      {}", h.vcpus);
    let _ = writeln!(out, "  memory     {mib} MiB");
    let _ = writeln!(out, "  CPU model  {}", h.model);
    let _ = writeln!(
        out,
        "\n{:<24} {:>8} {:>7} {:>8} {:>8}",
        "section", "instance", "version", "bytes", "stored"
    );
    let mut details = String::new();
    let (mut count, mut stored) = (0, 0);
    let error = loop {
        match reader.next_section() {
            Ok(Some(s)) => {
                count += 1;
                stored += s.stored_len;
                let flag = if s.optional { " (optional)" } else { "" };
                let (bytes, kept) = (s.data.len(), s.stored_len);
                let _ = writeln!(
                    out,
                    "{:<24} {:>8} {:>7} {bytes:>8} {kept:>8}{flag}",
                    s.kind, s.instance, s.version
                );
                let what = match decode(&s) {
                    Ok(decoded) => decoded.text,
                    Err(why) => format!("{why}: {}", hex(s.data)),
                };
                let _ = writeln!(details, "\n{} of instance {}: {what}", s.kind, s.instance);
            }
            Ok(None) => break None,
            Err(e) => break Some(e),
        }
    };
    let _ = writeln!(out, "{count} sections, {stored} bytes; header and end {} bytes", bytes.len() - stored);
    if !sizes {
        out.push_str(&details);
    }
    (out, error)
}

fn json(bytes: &[u8]) -> (String, Option<ContainerError>) {
    let quoted = |s: &str| serde_json::to_string(s).unwrap_or_default();
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(e) => return (format!("{{\"error\":{}}}", quoted(&e.to_string())), Some(e)),
    };
    let (h, minor) = (reader.header().clone(), reader.minor());
    let mut sections = Vec::new();
    let error = loop {
        match reader.next_section() {
            Ok(Some(s)) => {
                let (decoded, error) = match decode(&s) {
                    Ok(d) => (d.json, "null".to_owned()),
                    Err(why) => ("null".to_owned(), quoted(&why)),
                };
                let hex: String = s.data.iter().map(|b| format!("{b:02x}")).collect();
                sections.push(format!(
                    "{{\"kind\":{},\"instance\":{},\"version\":{},\"optional\":{},\"bytes\":{},\"stored_bytes\":{},\
                     \"decoded\":{decoded},\"error\":{error},\"hex\":\"{hex}\"}}",
                    quoted(s.kind),
                    s.instance,
                    s.version,
                    s.optional,
                    s.data.len(),
                    s.stored_len,
                ));
            }
            Ok(None) => break None,
            Err(e) => break Some(e),
        }
    };
    let why = error.as_ref().map_or("null".to_owned(), |e| quoted(&e.to_string()));
    let out = format!(
        "{{\"version\":[{MAJOR},{minor}],\"bytes\":{},\"producer\":{},\"board\":{},\"vcpus\":{},\"memory_bytes\":{},\
         \"model\":{},\"sections\":[{}],\"error\":{why}}}",
        bytes.len(),
        quoted(&h.producer),
        h.board,
        h.vcpus,
        h.memory_bytes,
        quoted(&h.model),
        sections.join(","),
    );
    (out, error)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let path = if path.is_dir() { Paths::in_dir(path).state } else { path.to_owned() };
    let mut bytes = Vec::new();
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let file = std::fs::File::open(&path).map_err(failed)?;
    file.take(MAX_CONTAINER as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

impl Inspect {
    /// Prints it. Exit code 0 if all of it could be read, 1 if it is damaged or unreadable.
    pub fn run(&self) -> u8 {
        let bytes = match read(&self.file) {
            Ok(bytes) => bytes,
            Err(why) => {
                eprintln!("godwit: {why}");
                return 1;
            }
        };
        let (out, error) = if self.json { json(&bytes) } else { text(&bytes, self.sizes) };
        print!("{out}{}", if self.json { "\n" } else { "" });
        if let Some(error) = error {
            eprintln!("godwit: {}: {error}", self.file.display());
            return 1;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{BOARD_MICROVM, Header, MachineSection, write};
    use godwit_state::RawSection;

    fn blob() -> Vec<u8> {
        let header = Header {
            board: BOARD_MICROVM,
            vcpus: 1,
            memory_bytes: 128 << 20,
            model: "x86-64-v9".into(),
            producer: "godwit 9.0".into(),
        };
        let fpu = RawSection::mandatory(&FpuV1 { xmm: [u128::MAX; 16], ..FpuV1::default() });
        let newer =
            RawSection { version: 2, ..RawSection::mandatory(&RegsV1 { rflags: 2, ..RegsV1::default() }) };
        let unknown =
            RawSection { kind: "x86.amx".into(), version: 1, optional: true, data: vec![0xab; 100] };
        let sections = [fpu, newer, unknown].map(|section| MachineSection { instance: 0, section });
        write(&header, &sections).unwrap()
    }

    #[test]
    fn sections_known_newer_and_unknown_are_all_shown() {
        let (out, error) = text(&blob(), false);
        assert!(error.is_none());
        for part in
            ["x86-64-v9", "mxcsr: 0x1f80", "x86.amx", "does not know: abab", "(optional)", "3 sections"]
        {
            assert!(out.contains(part), "{part:?} is missing in\n{out}");
        }
        let (out, _) = json(&blob());
        let value: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["sections"][0]["decoded"]["mxcsr"], 0x1f80);
        assert_eq!(value["sections"][1]["error"], "of a version that this build does not know");
        assert_eq!(value["sections"][2]["hex"].as_str().unwrap().len(), 200);
    }

    #[test]
    fn every_section_of_a_machine_is_known() {
        let here: Vec<_> =
            decoders().iter().map(|(kind, version, _)| ((*kind).to_owned(), *version)).collect();
        let cpu = godwit_state::SECTIONS.iter().map(|(kind, version)| ((*kind).to_owned(), *version));
        for kind in cpu.chain(crate::machine::board_kinds()).chain(crate::machine::device_kinds()) {
            assert!(here.contains(&kind), "{kind:?} cannot be shown");
        }
    }

    #[test]
    fn of_a_damaged_file_the_whole_part_is_shown() {
        let mut bytes = blob();
        let len = bytes.len();
        bytes[len - 20] ^= 1;
        let (out, error) = text(&bytes, true);
        assert!(out.contains("x86.fpu") && !out.contains("x86.amx"));
        assert!(error.unwrap().to_string().contains("section x86.amx"));
        let (out, error) = json(&bytes);
        assert!(
            error.is_some() && serde_json::from_str::<serde_json::Value>(&out).unwrap()["error"].is_string()
        );
        assert!(json(b"GARBAGE").1.is_some());
    }
}
