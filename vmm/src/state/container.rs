//! Writing and reading the container. Every byte is described in `docs/STATE-FORMAT.md`.

use super::MachineSection;
use super::codec::{CodecError, Cursor, put_name, put_varint};
use godwit_state::RawSection;
use std::collections::BTreeSet;

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"GODWITST";
/// Version of the framing. A reader takes only its own.
pub const MAJOR: u16 = 1;
/// Compatible revision: a newer one only appends header fields.
pub const MINOR: u16 = 0;
/// The one board there is so far: Firecracker's map (`docs/STATE-FORMAT.md`, "Boards").
pub const BOARD_MICROVM: u16 = 1;

/// Longest container taken, in bytes.
pub const MAX_CONTAINER: usize = 64 << 20;
/// Longest section, in bytes.
pub const MAX_SECTION: u32 = 16 << 20;
/// Most sections.
pub const MAX_SECTIONS: u32 = 4096;
/// Longest kind, in bytes.
pub const MAX_KIND: u8 = 48;
const MAX_HEADER: u16 = 1024;
const MAX_NAME: u8 = 64;

const TAG_MANDATORY: u8 = b'M';
const TAG_OPTIONAL: u8 = b'O';
const TAG_END: u8 = b'E';

/// What the header says of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Which board: [`BOARD_MICROVM`].
    pub board: u16,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Name of the CPU model.
    pub model: String,
    /// Who wrote it, for people: name and version.
    pub producer: String,
}

/// Why a container was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// Not a container at all.
    #[error("not a godwit state: the first bytes are not {:?}", std::str::from_utf8(&MAGIC).unwrap_or_default())]
    Magic,
    /// Another framing.
    #[error("state container version {found}; this build reads version {MAJOR}: use a godwit of its time")]
    Version {
        /// The version in the data.
        found: u16,
    },
    /// The bytes do not parse.
    #[error("state container is damaged: {0}")]
    Damaged(#[from] CodecError),
    /// A checksum is wrong.
    #[error("state container is damaged: checksum of {what} is {found:08x}, should be {right:08x}")]
    Checksum {
        /// The header, a section, or the whole.
        what: String,
        /// As computed over the bytes.
        right: u32,
        /// As stored.
        found: u32,
    },
    /// Two sections with the same kind and instance.
    #[error("section {kind} of instance {instance} is there twice")]
    Twice {
        /// The kind.
        kind: String,
        /// The instance.
        instance: u32,
    },
    /// The end marker counts other than what was there.
    #[error("the end marker counts {said} sections, {found} are there")]
    Count {
        /// What it says.
        said: u32,
        /// What was read.
        found: u32,
    },
    /// More than may be written.
    #[error("{what} is too big to be written")]
    TooBig {
        /// The part.
        what: String,
    },
}

/// Writes a container.
///
/// # Errors
/// [`ContainerError::TooBig`] or [`ContainerError::Twice`]: what no reader would take is not written.
pub fn write(header: &Header, sections: &[MachineSection]) -> Result<Vec<u8>, ContainerError> {
    let too_big = |what: &str| ContainerError::TooBig { what: what.to_owned() };
    let mut out = Vec::with_capacity(4096);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&MAJOR.to_le_bytes());
    out.extend_from_slice(&MINOR.to_le_bytes());
    let mut fields = Vec::new();
    fields.extend_from_slice(&header.board.to_le_bytes());
    fields.extend_from_slice(&header.vcpus.to_le_bytes());
    fields.extend_from_slice(&header.memory_bytes.to_le_bytes());
    for name in [&header.model, &header.producer] {
        if name.len() > MAX_NAME.into() {
            return Err(too_big("a name in the header"));
        }
        put_name(&mut fields, name);
    }
    let len = u16::try_from(fields.len()).map_err(|_| too_big("the header"))?;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&fields);
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());

    let mut seen = BTreeSet::new();
    for MachineSection { instance, section } in sections {
        let RawSection { kind, version, optional, data } = section;
        let len =
            u32::try_from(data.len()).ok().filter(|len| *len <= MAX_SECTION).ok_or_else(|| too_big(kind))?;
        if kind.is_empty() || kind.len() > MAX_KIND.into() {
            return Err(too_big("the name of a section"));
        }
        if !seen.insert((kind.as_str(), *instance)) {
            return Err(ContainerError::Twice { kind: kind.clone(), instance: *instance });
        }
        let start = out.len();
        out.push(if *optional { TAG_OPTIONAL } else { TAG_MANDATORY });
        put_name(&mut out, kind);
        put_varint(&mut out, *version);
        put_varint(&mut out, *instance);
        put_varint(&mut out, len);
        let crc = section_crc(&out[start..], data);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(data);
    }
    let count = u32::try_from(sections.len()).ok().filter(|n| *n <= MAX_SECTIONS);
    out.push(TAG_END);
    put_varint(&mut out, count.ok_or_else(|| too_big("the number of sections"))?);
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    if out.len() > MAX_CONTAINER {
        return Err(too_big("the state"));
    }
    Ok(out)
}

fn section_crc(head: &[u8], data: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(data);
    crc.finalize()
}

/// A section as it lies in the container; its bytes are not looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionView<'a> {
    /// For instance "x86.lapic".
    pub kind: &'a str,
    /// Version of the layout.
    pub version: u32,
    /// A reader that does not know the kind skips it.
    pub optional: bool,
    /// vCPU or device number.
    pub instance: u32,
    /// postcard bytes.
    pub data: &'a [u8],
    /// Bytes it takes in the container, framing included.
    pub stored_len: usize,
}

impl SectionView<'_> {
    /// A copy that owns its bytes.
    pub fn to_owned(&self) -> MachineSection {
        let section = RawSection {
            kind: self.kind.into(),
            version: self.version,
            optional: self.optional,
            data: self.data.to_vec(),
        };
        MachineSection { instance: self.instance, section }
    }
}

/// Reads a container section by section.
#[derive(Debug)]
pub struct Reader<'a> {
    cursor: Cursor<'a>,
    header: Header,
    minor: u16,
    count: u32,
    seen: BTreeSet<(&'a str, u32)>,
    ended: bool,
}

impl<'a> Reader<'a> {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// The bytes are no container, one of another version, or damaged.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ContainerError> {
        let mut c = Cursor::new(bytes);
        if c.bytes(MAGIC.len(), "magic").ok() != Some(&MAGIC[..]) {
            return Err(ContainerError::Magic);
        }
        let major = c.u16("version")?;
        if major != MAJOR {
            return Err(ContainerError::Version { found: major });
        }
        if bytes.len() > MAX_CONTAINER {
            let (found, limit) = (bytes.len() as u64, MAX_CONTAINER as u64);
            return Err(CodecError::TooLong { what: "container", found, limit }.into());
        }
        let minor = c.u16("minor version")?;
        let len = c.u16("header length")?;
        if len > MAX_HEADER {
            let (found, limit) = (len.into(), MAX_HEADER.into());
            return Err(CodecError::TooLong { what: "header", found, limit }.into());
        }
        let fields = c.bytes(len.into(), "header")?;
        let right = crc32fast::hash(c.since(0));
        let found = c.u32("header checksum")?;
        if right != found {
            return Err(ContainerError::Checksum { what: "the header".into(), right, found });
        }
        let mut f = Cursor::new(fields);
        let header = Header {
            board: f.u16("board")?,
            vcpus: f.u32("vcpus")?,
            memory_bytes: f.u64("memory size")?,
            model: f.name(MAX_NAME, "CPU model")?.into(),
            producer: f.name(MAX_NAME, "producer")?.into(),
        };
        // What a later minor version appended is passed over.
        if minor == MINOR {
            f.end("the header")?;
        }
        Ok(Reader { cursor: c, header, minor, count: 0, seen: BTreeSet::new(), ended: false })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Minor version of the container: greater than [`MINOR`] if it is from the future.
    pub fn minor(&self) -> u16 {
        self.minor
    }

    /// The next section, its checksum verified; `None` after the end marker, which is verified too.
    ///
    /// # Errors
    /// The container is damaged. Reading on after an error gives `None`.
    pub fn next_section(&mut self) -> Result<Option<SectionView<'a>>, ContainerError> {
        if self.ended {
            return Ok(None);
        }
        let next = self.read_next();
        self.ended = !matches!(next, Ok(Some(_)));
        next
    }

    fn read_next(&mut self) -> Result<Option<SectionView<'a>>, ContainerError> {
        let c = &mut self.cursor;
        let start = c.position();
        let optional = match c.u8("section tag")? {
            TAG_MANDATORY => false,
            TAG_OPTIONAL => true,
            TAG_END => {
                let said = c.varint("section count")?;
                let right = crc32fast::hash(c.since(0));
                let found = c.u32("container checksum")?;
                if right != found {
                    return Err(ContainerError::Checksum { what: "the whole".into(), right, found });
                }
                if said != self.count {
                    return Err(ContainerError::Count { said, found: self.count });
                }
                c.end("the end marker")?;
                return Ok(None);
            }
            _ => return Err(CodecError::Malformed { what: "section tag" }.into()),
        };
        if self.count >= MAX_SECTIONS {
            let (found, limit) = (u64::from(self.count) + 1, MAX_SECTIONS.into());
            return Err(CodecError::TooLong { what: "number of sections", found, limit }.into());
        }
        let kind = c.name(MAX_KIND, "section kind")?;
        let version = c.varint("section version")?;
        let instance = c.varint("section instance")?;
        let len = c.varint("section length")?;
        if len > MAX_SECTION {
            let (found, limit) = (len.into(), MAX_SECTION.into());
            return Err(CodecError::TooLong { what: "section length", found, limit }.into());
        }
        let head = c.since(start);
        let found = c.u32("section checksum")?;
        let data = c.bytes(len as usize, "section data")?;
        let right = section_crc(head, data);
        if right != found {
            let what = format!("section {kind} of instance {instance}");
            return Err(ContainerError::Checksum { what, right, found });
        }
        if kind.is_empty() {
            return Err(CodecError::Malformed { what: "section kind" }.into());
        }
        if !self.seen.insert((kind, instance)) {
            return Err(ContainerError::Twice { kind: kind.into(), instance });
        }
        self.count += 1;
        let stored_len = c.position() - start;
        Ok(Some(SectionView { kind, version, optional, instance, data, stored_len }))
    }
}

/// Reads and verifies a whole container.
///
/// # Errors
/// As [`Reader`].
pub fn read(bytes: &[u8]) -> Result<(Header, Vec<MachineSection>), ContainerError> {
    let mut reader = Reader::new(bytes)?;
    let mut sections = Vec::new();
    while let Some(section) = reader.next_section()? {
        sections.push(section.to_owned());
    }
    Ok((reader.header, sections))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            board: BOARD_MICROVM,
            vcpus: 2,
            memory_bytes: 128 << 20,
            model: "x86-64".into(),
            producer: "godwit 0.1.0".into(),
        }
    }

    fn section(kind: &str, instance: u32, data: &[u8]) -> MachineSection {
        let section = RawSection { kind: kind.into(), version: 1, optional: false, data: data.into() };
        MachineSection { instance, section }
    }

    fn sample() -> Vec<u8> {
        let mut sections = vec![
            section("x86.regs", 0, &[1, 2, 3]),
            section("x86.regs", 1, &[0; 200]),
            section("board.serial", 0, b""),
        ];
        sections[2].section.optional = true;
        write(&header(), &sections).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = sample();
        let (h, sections) = read(&bytes).unwrap();
        assert_eq!(h, header());
        assert_eq!(sections.len(), 3);
        assert_eq!(write(&h, &sections).unwrap(), bytes);
        // Framing is small beside the data: the whole idle guest has to fit in 2 KiB.
        assert_eq!(bytes.len(), 52 + (17 + 3) + (18 + 200) + 21 + 6);
    }

    #[test]
    fn every_single_bit_flip_is_refused() {
        let bytes = sample();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit} flipped and taken");
        }
    }

    #[test]
    fn every_cut_and_every_tail_is_refused() {
        let mut bytes = sample();
        for len in 0..bytes.len() {
            assert!(read(&bytes[..len]).is_err(), "cut to {len}");
        }
        bytes.push(0);
        assert!(matches!(read(&bytes), Err(ContainerError::Damaged(CodecError::Trailing { .. }))));
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let mut bytes = sample();
        bytes[8] = 2;
        assert_eq!(read(&bytes).unwrap_err(), ContainerError::Version { found: 2 });
        assert_eq!(read(b"GARBAGE!").unwrap_err(), ContainerError::Magic);
        assert_eq!(read(b"").unwrap_err(), ContainerError::Magic);
        let twice = [section("a", 0, &[]), section("a", 0, &[1])];
        assert!(matches!(write(&header(), &twice), Err(ContainerError::Twice { .. })));
        // Left out a section, with the marker's own checksum right.
        let one = write(&header(), &twice[..1]).unwrap();
        let end = one.len() - 6;
        let mut other = one[..end].to_vec();
        other.extend([TAG_END, 2]);
        let crc = crc32fast::hash(&other);
        other.extend(crc.to_le_bytes());
        assert_eq!(read(&other).unwrap_err(), ContainerError::Count { said: 2, found: 1 });
    }

    #[test]
    fn a_later_minor_version_is_read() {
        // The future appends a header field: an older reader passes over it.
        let bytes = sample();
        let old_len = u16::from_le_bytes([bytes[12], bytes[13]]) as usize;
        let mut new = bytes[..14 + old_len].to_vec();
        new[10] = 7;
        new[12..14].copy_from_slice(&(old_len as u16 + 4).to_le_bytes());
        new.extend([1, 2, 3, 4]);
        let crc = crc32fast::hash(&new);
        new.extend(crc.to_le_bytes());
        new.extend(&bytes[14 + old_len + 4..bytes.len() - 4]);
        let crc = crc32fast::hash(&new);
        new.extend(crc.to_le_bytes());
        assert_eq!(read(&new).unwrap().1.len(), 3);
        assert_eq!(Reader::new(&new).unwrap().minor(), 7);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&bytes);
            let mut with_head = sample();
            with_head.truncate(52);
            with_head.extend(&bytes);
            prop_assert!(read(&with_head).is_err());
        }

        #[test]
        fn any_sections_survive(datas in proptest::collection::vec((any::<u32>(), any::<u32>(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..50)), 0..20)) {
            let sections: Vec<_> = datas.into_iter().enumerate().map(|(i, (instance, version, optional, data))| MachineSection {
                instance,
                section: RawSection { kind: format!("k{i}"), version, optional, data },
            }).collect();
            let bytes = write(&header(), &sections).unwrap();
            prop_assert_eq!(read(&bytes).unwrap(), (header(), sections));
        }
    }
}
