//! The offer, and preflight: everything that can be refused is refused before any page is sent.

use crate::memory::{MAX_REGIONS, Region, regions_are_sound};
use crate::state::codec::{CodecError, Cursor, put_blob, put_name};
use godwit_state::model::{Feature, Features, Model};

/// Most kinds of sections in an offer.
const MAX_KINDS: u32 = 512;
/// Most devices in an offer.
const MAX_DEVICES: u32 = 256;
/// Longest machine description, in bytes.
pub const MAX_DESCRIPTION: u32 = 256 << 10;

/// A kind of section that the source will send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedSection {
    /// For instance "x86.lapic".
    pub kind: String,
    /// Version of the layout.
    pub version: u32,
    /// The destination may do without.
    pub optional: bool,
}

/// A device of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedDevice {
    /// For instance "virtio.net".
    pub kind: String,
    /// What people call it: for instance the drive's id.
    pub id: String,
}

/// What the source says of its guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Name and version of the sending program.
    pub producer: String,
    /// Which board (`docs/STATE-FORMAT.md`).
    pub board: u16,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub regions: Vec<Region>,
    /// Name of the CPU model.
    pub model: String,
    /// What the model has: CPUID registers as in [`Features`].
    pub features: Features,
    /// Frequency of the guest's TSC in kHz.
    pub tsc_khz: u64,
    /// The source's operator accepts another TSC frequency.
    pub allow_tsc_mismatch: bool,
    /// Kinds of sections that will come.
    pub sections: Vec<OfferedSection>,
    /// Devices besides the board's own.
    pub devices: Vec<OfferedDevice>,
    /// What the destination's builder needs; not looked into by the protocol.
    pub description: Vec<u8>,
}

impl Offer {
    /// Bytes of guest memory.
    pub fn memory_bytes(&self) -> u64 {
        self.regions.iter().fold(0, |sum, r| sum.saturating_add(r.len))
    }

    /// As it goes over the wire (`docs/MIGRATION-PROTOCOL.md`).
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_name(&mut out, &self.producer);
        out.extend(self.board.to_le_bytes());
        out.extend(self.vcpus.to_le_bytes());
        out.extend((self.regions.len() as u32).to_le_bytes());
        for r in &self.regions {
            out.extend(r.gpa.to_le_bytes());
            out.extend(r.len.to_le_bytes());
        }
        put_name(&mut out, &self.model);
        for register in registers(&self.features) {
            out.extend(register.to_le_bytes());
        }
        out.extend(self.tsc_khz.to_le_bytes());
        out.push(self.allow_tsc_mismatch.into());
        out.extend((self.sections.len() as u32).to_le_bytes());
        for s in &self.sections {
            put_name(&mut out, &s.kind);
            out.extend(s.version.to_le_bytes());
            out.push(s.optional.into());
        }
        out.extend((self.devices.len() as u32).to_le_bytes());
        for d in &self.devices {
            put_name(&mut out, &d.kind);
            put_name(&mut out, &d.id);
        }
        put_blob(&mut out, &self.description);
        out
    }

    /// Reads what [`Offer::encode`] wrote, trusting nothing.
    ///
    /// # Errors
    /// Malformed, or over a bound.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let c = &mut Cursor::new(bytes);
        let flag = |c: &mut Cursor<'_>, what| match c.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Malformed { what }),
        };
        let producer = c.name(64, "producer")?.to_owned();
        let board = c.u16("board")?;
        let vcpus = c.u32("vcpus")?;
        let n = c.count(MAX_REGIONS, 16, "number of memory regions")?;
        let regions = (0..n)
            .map(|_| Ok(Region { gpa: c.u64("region address")?, len: c.u64("region length")? }))
            .collect::<Result<Vec<_>, CodecError>>()?;
        if !regions_are_sound(&regions) {
            return Err(CodecError::Malformed { what: "memory regions" });
        }
        let model = c.name(64, "CPU model")?.to_owned();
        let features = Features {
            leaf1_edx: c.u32("features")?,
            leaf1_ecx: c.u32("features")?,
            leaf7_ebx: c.u32("features")?,
            leaf7_ecx: c.u32("features")?,
            xsave_eax: c.u32("features")?,
            ext1_edx: c.u32("features")?,
            ext1_ecx: c.u32("features")?,
        };
        let tsc_khz = c.u64("TSC frequency")?;
        let allow_tsc_mismatch = flag(c, "TSC flag")?;
        let n = c.count(MAX_KINDS, 6, "number of section kinds")?;
        let sections = (0..n)
            .map(|_| {
                Ok(OfferedSection {
                    kind: c.name(crate::state::MAX_KIND, "section kind")?.to_owned(),
                    version: c.u32("section version")?,
                    optional: flag(c, "optional flag")?,
                })
            })
            .collect::<Result<Vec<_>, CodecError>>()?;
        let n = c.count(MAX_DEVICES, 2, "number of devices")?;
        let devices = (0..n)
            .map(|_| {
                Ok(OfferedDevice {
                    kind: c.name(48, "device kind")?.to_owned(),
                    id: c.name(128, "device id")?.to_owned(),
                })
            })
            .collect::<Result<Vec<_>, CodecError>>()?;
        let description = c.blob(MAX_DESCRIPTION, "machine description")?.to_vec();
        c.end("the offer")?;
        Ok(Offer {
            producer,
            board,
            vcpus,
            regions,
            model,
            features,
            tsc_khz,
            allow_tsc_mismatch,
            sections,
            devices,
            description,
        })
    }
}

fn registers(f: &Features) -> [u32; 7] {
    [f.leaf1_edx, f.leaf1_ecx, f.leaf7_ebx, f.leaf7_ecx, f.xsave_eax, f.ext1_edx, f.ext1_ecx]
}

/// What a destination can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The backend's name, for messages.
    pub backend: String,
    /// Boards that can be built.
    pub boards: Vec<u16>,
    /// Most guest memory, in bytes.
    pub max_memory_bytes: u64,
    /// Most vCPUs.
    pub max_vcpus: u32,
    /// CPU models of the backend on this host.
    pub models: Vec<String>,
    /// Features of the model `host`, if that is offered.
    pub host_features: Option<Features>,
    /// Sections that backend and board read, with their newest version.
    pub sections: Vec<(String, u32)>,
    /// TSC frequency that a guest gets here without scaling, in kHz.
    pub tsc_khz: u64,
    /// Any frequency can be had.
    pub tsc_scaling: bool,
    /// The operator here accepts another TSC frequency.
    pub allow_tsc_mismatch: bool,
    /// Kinds of devices that can be built and are allowed.
    pub devices: Vec<String>,
}

/// TSC frequencies this close are the same: what Linux itself tolerates (250 ppm).
const TSC_TOLERANCE_PPM: u64 = 250;

/// Every reason why a destination cannot take an offer. None: it can.
pub fn preflight(offer: &Offer, host: &Capabilities) -> Vec<String> {
    let mut no = Vec::new();
    if !host.boards.contains(&offer.board) {
        no.push(format!("board {} is not known here", offer.board));
    }
    let (memory, limit) = (offer.memory_bytes(), host.max_memory_bytes);
    if memory == 0 || memory > limit {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        no.push(format!("guest memory of {} MiB, at most {} MiB is allowed here", mib(memory), mib(limit)));
    }
    if offer.vcpus == 0 || offer.vcpus > host.max_vcpus {
        no.push(format!("{} vCPUs, at most {} are possible here", offer.vcpus, host.max_vcpus));
    }
    no.extend(model_refusal(offer, host));
    if offer.tsc_khz != host.tsc_khz && !host.tsc_scaling {
        let apart = offer.tsc_khz.abs_diff(host.tsc_khz);
        let close = apart.saturating_mul(1_000_000) <= offer.tsc_khz.saturating_mul(TSC_TOLERANCE_PPM);
        if !close && !offer.allow_tsc_mismatch && !host.allow_tsc_mismatch {
            no.push(format!(
                "the guest's TSC runs at {} kHz, {} gives {} kHz here and cannot scale it (--allow-tsc-mismatch overrides)",
                offer.tsc_khz, host.backend, host.tsc_khz
            ));
        }
    }
    for s in offer.sections.iter().filter(|s| !s.optional) {
        match host.sections.iter().find(|(kind, _)| *kind == s.kind) {
            None => no.push(format!("state section {} is not known here", s.kind)),
            Some((_, newest)) if s.version > *newest => {
                no.push(format!("state section {} version {}, here up to {newest}", s.kind, s.version));
            }
            Some(_) => {}
        }
    }
    for d in &offer.devices {
        if !host.devices.contains(&d.kind) {
            no.push(format!("device {} ({}) is not possible here", d.id, d.kind));
        }
    }
    no
}

fn model_refusal(offer: &Offer, host: &Capabilities) -> Option<String> {
    let names = |features: Features| {
        let missing: Vec<_> = offer.features.missing_in(features).iter().map(|f| f.name()).collect();
        missing.join(", ")
    };
    let Some(model) = Model::from_name(&offer.model) else {
        return Some(format!("CPU model {} is not known here", offer.model));
    };
    if model.features().is_some_and(|f| f != offer.features) {
        return Some(format!("CPU model {} has other features at the source than here", offer.model));
    }
    let offered = host.models.contains(&offer.model);
    if model == Model::Host {
        let backend = &host.backend;
        // Only between equals: a guest must not find features that it was not started with, either.
        return match host.host_features.filter(|_| offered) {
            Some(here) if here == offer.features => None,
            Some(here) => {
                let list =
                    |names: Vec<Feature>| names.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ");
                let (lacks, more) = (offer.features.missing_in(here), here.missing_in(offer.features));
                Some(match (lacks.is_empty(), more.is_empty()) {
                    (false, _) => format!("CPU model host: {backend} here lacks {}", list(lacks)),
                    (_, false) => {
                        format!(
                            "CPU model host: {backend} here has {} besides, which the guest must not find",
                            list(more)
                        )
                    }
                    _ => format!("CPU model host: {backend} here is another than the guest's"),
                })
            }
            None => Some(format!("CPU model host is not possible with {backend} here")),
        };
    }
    if offered {
        return None;
    }
    let best = host.models.iter().filter_map(|m| Model::from_name(m)?.features()).reduce(Features::union);
    let missing = names(best.unwrap_or_default());
    let list = host.models.join(", ");
    Some(format!("CPU model {}: {} here offers {list} and lacks {missing}", offer.model, host.backend))
}

/// An offer and a receiver that takes it, for tests and fuzz targets.
#[cfg(any(test, fuzzing))]
pub(crate) mod sample {
    use super::*;

    pub(crate) fn offer() -> Offer {
        Offer {
            producer: "godwit test".into(),
            board: 1,
            vcpus: 2,
            regions: vec![Region { gpa: 0, len: 1 << 20 }, Region { gpa: 1 << 32, len: 1 << 16 }],
            model: "x86-64".into(),
            features: Model::X86_64.features().unwrap_or_default(),
            tsc_khz: 2_600_000,
            allow_tsc_mismatch: false,
            sections: vec![OfferedSection { kind: "x86.regs".into(), version: 1, optional: false }],
            devices: vec![OfferedDevice { kind: "virtio.net".into(), id: "eth0".into() }],
            description: b"{}".to_vec(),
        }
    }

    pub(crate) fn capabilities() -> Capabilities {
        Capabilities {
            backend: "fake".into(),
            boards: vec![1],
            max_memory_bytes: 64 << 20,
            max_vcpus: 4,
            models: vec!["x86-64".into(), "x86-64-v2".into()],
            host_features: None,
            sections: vec![("x86.regs".into(), 1)],
            tsc_khz: 1_000_000,
            tsc_scaling: true,
            allow_tsc_mismatch: false,
            devices: vec!["virtio.net".into()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sample::{capabilities, offer};
    use super::*;

    #[test]
    fn an_offer_survives_the_wire_and_no_cut_of_it_does() {
        let bytes = offer().encode();
        assert_eq!(Offer::decode(&bytes).unwrap(), offer());
        for len in 0..bytes.len() {
            assert!(Offer::decode(&bytes[..len]).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let _ = Offer::decode(&bad);
        }
    }

    #[test]
    fn all_reasons_are_given_at_once_and_name_the_thing() {
        assert_eq!(preflight(&offer(), &capabilities()), [""; 0]);
        let mut o = offer();
        o.vcpus = 5;
        o.regions[0].len = 1 << 30;
        o.model = "x86-64-v3".into();
        o.features = Model::V3.features().unwrap();
        o.sections[0].version = 2;
        o.sections.push(OfferedSection { kind: "x86.amx".into(), version: 1, optional: false });
        o.sections.push(OfferedSection { kind: "x86.nice".into(), version: 1, optional: true });
        o.devices[0].kind = "virtio.gpu".into();
        let mut host = capabilities();
        host.tsc_scaling = false;
        let no = preflight(&o, &host);
        assert_eq!(no.len(), 7, "{no:#?}");
        for (text, part) in
            no.iter().zip(["1025 MiB", "5 vCPUs", "avx2", "2600000 kHz", "version 2", "x86.amx", "eth0"])
        {
            assert!(text.contains(part), "{text} should name {part}");
        }
        o.allow_tsc_mismatch = true;
        assert_eq!(preflight(&o, &host).len(), 6);
    }

    #[test]
    fn a_host_model_goes_between_equals_only_and_the_difference_is_named() {
        let mut o = offer();
        o.model = "host".into();
        o.features = Model::V2.features().unwrap();
        let mut host = capabilities();
        assert!(preflight(&o, &host)[0].contains("not possible"));
        host.models.push("host".into());
        assert!(preflight(&o, &host)[0].contains("not possible"), "a backend that does not say");
        host.host_features = Some(o.features);
        assert_eq!(preflight(&o, &host), [""; 0]);
        host.host_features = Model::X86_64.features();
        assert!(preflight(&o, &host)[0].contains("lacks") && preflight(&o, &host)[0].contains("sse4.2"));
        host.host_features = Model::V3.features();
        let text = &preflight(&o, &host)[0];
        assert!(text.contains("avx2") && text.contains("besides"), "{text}");
    }

    #[test]
    fn close_tsc_frequencies_are_the_same() {
        let mut host = capabilities();
        host.tsc_scaling = false;
        host.tsc_khz = 2_600_100;
        assert!(preflight(&offer(), &host).is_empty());
    }
}
