//! Sections: a kind, a version and postcard bytes; and the set of them that is one vCPU.

use crate::{AvxV1, ClockV1, DebugV1, EventsV1, FpuV1, LapicV1, MsrsV1, RegsV1, SystemV1, TscV1};
use serde::{Serialize, de::DeserializeOwned};

/// A struct that is stored as a section of its own.
pub trait Section: Serialize + DeserializeOwned {
    /// For instance "x86.regs". Named by what the guest sees, never by an implementation.
    const KIND: &'static str;
    /// Version of this struct's layout.
    const VERSION: u32;
    /// Refuses what no processor can be in. Called after every decoding.
    fn validate(&self) -> Result<(), StateError>;
}

/// Why a section was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The bytes do not decode, or are followed by others.
    #[error("section {kind}: damaged ({what})")]
    Damaged {
        /// Which section.
        kind: String,
        /// What is wrong with the bytes.
        what: String,
    },
    /// Decoded, but not a state that a processor or device can be in.
    #[error("section {kind}: {what}")]
    Invalid {
        /// Which section.
        kind: String,
        /// The field and what is wrong with it.
        what: String,
    },
    /// A version of the section from the future.
    #[error("section {kind} has version {found}; this build reads up to {known}: use a newer godwit")]
    Version {
        /// Which section.
        kind: String,
        /// The version in the data.
        found: u32,
        /// The newest known here.
        known: u32,
    },
    /// A mandatory section that this build does not know.
    #[error("section {kind} (version {version}) is not known to this build: use a newer godwit")]
    Unknown {
        /// Which section.
        kind: String,
        /// Its version.
        version: u32,
    },
    /// A section that must be there is not.
    #[error("section {kind} is missing")]
    Missing {
        /// Which section.
        kind: String,
    },
    /// A section is there twice.
    #[error("section {kind} is there twice")]
    Twice {
        /// Which section.
        kind: String,
    },
}

impl StateError {
    /// An [`StateError::Invalid`] of section `S`.
    pub fn invalid<S: Section>(what: impl Into<String>) -> Self {
        StateError::Invalid { kind: S::KIND.into(), what: what.into() }
    }
}

/// The postcard bytes of a section.
pub fn encode<S: Section>(section: &S) -> Vec<u8> {
    // Serialising plain data into a growing Vec fails only if a Serialize impl says so; ours are derived.
    postcard::to_stdvec(section).expect("plain data serialises")
}

/// Decodes, checks and validates the bytes of section `S`.
///
/// # Errors
/// [`StateError::Version`] for another version than `S`'s, [`StateError::Damaged`] for bytes that do not
/// decode exactly or not back to themselves, [`StateError::Invalid`] from `S::validate`.
pub fn decode<S: Section>(version: u32, bytes: &[u8]) -> Result<S, StateError> {
    if version != S::VERSION {
        return Err(StateError::Version { kind: S::KIND.into(), found: version, known: S::VERSION });
    }
    let damaged = |what: String| StateError::Damaged { kind: S::KIND.into(), what };
    let (section, rest) = postcard::take_from_bytes::<S>(bytes).map_err(|e| damaged(e.to_string()))?;
    if !rest.is_empty() {
        return Err(damaged(format!("{} bytes too many", rest.len())));
    }
    // A varint has several spellings; only the shortest is ours.
    if encode(&section) != bytes {
        return Err(damaged("not in canonical form".into()));
    }
    section.validate()?;
    Ok(section)
}

/// A section as it crosses the backend contract and lies in a state container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSection {
    /// For instance "x86.lapic".
    pub kind: String,
    /// Version of the layout.
    pub version: u32,
    /// A reader that does not know the kind may skip it.
    pub optional: bool,
    /// postcard bytes.
    pub data: Vec<u8>,
}

impl RawSection {
    /// Encodes a section that readers must know.
    pub fn mandatory<S: Section>(section: &S) -> Self {
        RawSection { kind: S::KIND.into(), version: S::VERSION, optional: false, data: encode(section) }
    }

    /// Encodes a section that readers may skip.
    pub fn optional<S: Section>(section: &S) -> Self {
        RawSection { optional: true, ..Self::mandatory(section) }
    }
}

/// [`decode`] for a [`RawSection`] whose kind is known to be `S`'s.
pub fn decode_section<S: Section>(raw: &RawSection) -> Result<S, StateError> {
    decode(raw.version, &raw.data)
}

/// All sections of this crate with their newest versions: per vCPU, then "x86.clock" of the VM.
pub const SECTIONS: &[(&str, u32)] = &[
    (RegsV1::KIND, RegsV1::VERSION),
    (SystemV1::KIND, SystemV1::VERSION),
    (MsrsV1::KIND, MsrsV1::VERSION),
    (DebugV1::KIND, DebugV1::VERSION),
    (FpuV1::KIND, FpuV1::VERSION),
    (AvxV1::KIND, AvxV1::VERSION),
    (EventsV1::KIND, EventsV1::VERSION),
    (LapicV1::KIND, LapicV1::VERSION),
    (TscV1::KIND, TscV1::VERSION),
    (ClockV1::KIND, ClockV1::VERSION),
];

/// One whole vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuState {
    /// General registers.
    pub regs: RegsV1,
    /// Segments, tables and control registers.
    pub system: SystemV1,
    /// Model-specific registers.
    pub msrs: MsrsV1,
    /// Debug registers.
    pub debug: DebugV1,
    /// x87 and SSE.
    pub fpu: FpuV1,
    /// Upper halves of the YMM registers: there exactly if the CPU model has AVX.
    pub avx: Option<AvxV1>,
    /// Pending and injected events.
    pub events: EventsV1,
    /// Local APIC.
    pub lapic: LapicV1,
    /// This vCPU's TSC against the VM's.
    pub tsc: TscV1,
}

impl CpuState {
    /// The sections, always in the same order.
    pub fn to_sections(&self) -> Vec<RawSection> {
        let mut out = vec![
            RawSection::mandatory(&self.regs),
            RawSection::mandatory(&self.system),
            RawSection::mandatory(&self.msrs),
            RawSection::mandatory(&self.debug),
            RawSection::mandatory(&self.fpu),
        ];
        out.extend(self.avx.as_ref().map(RawSection::mandatory));
        out.extend([
            RawSection::mandatory(&self.events),
            RawSection::mandatory(&self.lapic),
            RawSection::mandatory(&self.tsc),
        ]);
        out
    }

    /// Puts a vCPU together from its sections, in any order.
    ///
    /// # Errors
    /// A section missing, twice, unknown and mandatory, or refused by [`decode`].
    pub fn from_sections(sections: &[RawSection]) -> Result<Self, StateError> {
        struct Slot<S>(Option<S>);
        impl<S: Section> Slot<S> {
            fn offer(&mut self, raw: &RawSection) -> Result<bool, StateError> {
                if raw.kind != S::KIND {
                    return Ok(false);
                }
                if self.0.is_some() {
                    return Err(StateError::Twice { kind: S::KIND.into() });
                }
                self.0 = Some(decode_section(raw)?);
                Ok(true)
            }
            fn need(self) -> Result<S, StateError> {
                self.0.ok_or(StateError::Missing { kind: S::KIND.into() })
            }
        }
        let mut regs = Slot::<RegsV1>(None);
        let mut system = Slot::<SystemV1>(None);
        let mut msrs = Slot::<MsrsV1>(None);
        let mut debug = Slot::<DebugV1>(None);
        let mut fpu = Slot::<FpuV1>(None);
        let mut avx = Slot::<AvxV1>(None);
        let mut events = Slot::<EventsV1>(None);
        let mut lapic = Slot::<LapicV1>(None);
        let mut tsc = Slot::<TscV1>(None);
        for raw in sections {
            let known = regs.offer(raw)?
                || system.offer(raw)?
                || msrs.offer(raw)?
                || debug.offer(raw)?
                || fpu.offer(raw)?
                || avx.offer(raw)?
                || events.offer(raw)?
                || lapic.offer(raw)?
                || tsc.offer(raw)?;
            if !known && !raw.optional {
                return Err(StateError::Unknown { kind: raw.kind.clone(), version: raw.version });
            }
        }
        Ok(CpuState {
            regs: regs.need()?,
            system: system.need()?,
            msrs: msrs.need()?,
            debug: debug.need()?,
            fpu: fpu.need()?,
            avx: avx.0,
            events: events.need()?,
            lapic: lapic.need()?,
            tsc: tsc.need()?,
        })
    }
}
