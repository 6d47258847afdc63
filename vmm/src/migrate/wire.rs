//! Preface, frames and messages: the bytes of `docs/MIGRATION-PROTOCOL.md`.

use super::error::MigrateError;
use crate::memory::{MAX_REGIONS, PAGE_SIZE, Region, Run};
use crate::state::codec::{CodecError, Cursor, put_blob};

/// First eight bytes that each side sends.
pub(super) const MAGIC: [u8; 8] = *b"GODWITMG";
/// Oldest protocol version spoken.
pub const MIN_VERSION: u16 = 1;
/// Newest protocol version spoken.
pub const MAX_VERSION: u16 = 1;
/// Bytes of the preface.
pub(super) const PREFACE_LEN: usize = 16;

/// Most pages in a [`Kind::Pages`] frame.
pub(super) const CHUNK_PAGES: u64 = 256;
/// Most runs in a [`Kind::Zero`] frame.
pub(super) const MAX_ZERO_RUNS: usize = 4096;
/// Most runs in a [`Kind::Request`] frame.
pub(super) const MAX_REQUESTS: usize = 256;
/// Bytes of a session's token.
pub(super) const TOKEN_LEN: usize = 16;
/// Bytes of a frame's header.
pub(super) const HEADER_LEN: usize = 20;
/// [`Kind::Pages`]: the pages are one LZ4 block.
pub(super) const FLAG_LZ4: u16 = 1;
/// [`Kind::Offer`]: [`Kind::Memory`] follows at once.
pub(super) const FLAG_MEMORY: u16 = 1;
/// [`Kind::Offer`]: some pages are to come after [`Kind::Commit`].
pub(super) const FLAG_POSTCOPY: u16 = 2;
/// [`Kind::Offer`]: if they may not, the offer is to be refused.
pub(super) const FLAG_REQUIRED: u16 = 4;
/// [`Kind::Accept`]: pages may come after [`Kind::Commit`].
pub(super) const FLAG_GRANTED: u16 = 2;
/// [`Kind::Accept`]: the further connections are waited for.
pub(super) const FLAG_JOIN: u16 = 4;
/// [`Kind::Accept`]: the descriptors were lost on the way; pages are to be sent.
pub(super) const FLAG_COPY: u16 = 1;

/// Most descriptors with a frame.
pub(super) const MAX_DESCRIPTORS: usize = 2;

const MAX_TEXT: u32 = 1024;
const MAX_TEXTS: u32 = 64;

/// What this build can do beyond the version: bits of the preface.
pub(super) mod caps {
    /// Takes LZ4 blocks.
    pub(crate) const LZ4: u32 = 1;
    /// Takes guest memory as descriptors.
    pub(crate) const MEMORY: u32 = 2;
    /// Knows sessions, and pages that come after the commit.
    pub(crate) const POSTCOPY: u32 = 4;
    /// Takes pages over several connections.
    pub(crate) const STREAMS: u32 = 8;
    /// All of this build.
    pub(crate) const OURS: u32 = LZ4 | MEMORY | POSTCOPY | STREAMS;
}

/// The preface: the same 16 bytes in every version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Preface {
    pub(super) min: u16,
    pub(super) max: u16,
    pub(super) caps: u32,
}

impl Preface {
    pub(super) fn ours() -> Self {
        Preface { min: MIN_VERSION, max: MAX_VERSION, caps: caps::OURS }
    }

    pub(super) fn encode(self) -> [u8; PREFACE_LEN] {
        let mut out = [0; PREFACE_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&self.min.to_le_bytes());
        out[10..12].copy_from_slice(&self.max.to_le_bytes());
        out[12..].copy_from_slice(&self.caps.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; PREFACE_LEN]) -> Result<Self, MigrateError> {
        let mut c = Cursor::new(bytes);
        if c.bytes(8, "magic")? != MAGIC {
            return Err(MigrateError::NotGodwit);
        }
        Ok(Preface { min: c.u16("version")?, max: c.u16("version")?, caps: c.u32("capabilities")? })
    }

    /// The version to speak: the newest that both do.
    pub(super) fn agree(self, peer: Preface) -> Result<u16, MigrateError> {
        let version = self.max.min(peer.max);
        if version < self.min || version < peer.min {
            return Err(MigrateError::Version {
                ours_min: self.min,
                ours_max: self.max,
                theirs_min: peer.min,
                theirs_max: peer.max,
            });
        }
        Ok(version)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $max:expr, $text:literal;)*) => {
        /// Kinds of frames.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Kind { $($(#[$doc])* $name = $code),* }
        impl Kind {
            pub(super) fn from_code(code: u16) -> Option<Kind> {
                match code { $($code => Some(Kind::$name),)* _ => None }
            }
            /// Longest payload, in bytes.
            pub(super) fn max_len(self) -> usize {
                match self { $(Kind::$name => $max),* }
            }
            /// The name in messages for people.
            pub(super) fn name(self) -> &'static str {
                match self { $(Kind::$name => $text),* }
            }
        }
    };
}

kinds! {
    /// Source: what it wants to send.
    Offer = 1, 512 << 10, "an offer";
    /// Destination: it can take it and has built the machine.
    Accept = 2, 0, "an acceptance";
    /// Destination: it cannot, and why.
    Refuse = 3, 128 << 10, "a refusal";
    /// Source: these pages are zero.
    Zero = 4, 4 + MAX_ZERO_RUNS * 16, "zero pages";
    /// Source: contents of pages.
    Pages = 5, 4 + CHUNK_PAGES as usize * 16 + (CHUNK_PAGES * PAGE_SIZE) as usize + (64 << 10), "pages";
    /// Source: a round is over.
    RoundEnd = 6, 4, "the end of a round";
    /// Destination: everything up to that round's end is in memory.
    RoundAck = 7, 4, "a round's acknowledgement";
    /// Source: the state container.
    State = 8, crate::state::MAX_CONTAINER, "the state";
    /// Source: nothing more comes; load the state.
    Finish = 9, 4, "the finish";
    /// Destination: all is verified and loaded.
    Ready = 10, 8, "readiness";
    /// Source: the guest is yours.
    Commit = 11, 8, "the commit";
    /// Destination: it runs.
    Running = 12, 0, "the guest's start";
    /// Destination, after the commit: it does not run and never will.
    NotRunning = 13, 8 << 10, "a failed start";
    /// Either: it gives up, and why. Not after the commit.
    Abort = 14, 8 << 10, "an abort";
    /// Either: still there; means nothing else.
    KeepAlive = 15, 0, "a sign of life";
    /// Source: guest memory itself, as descriptors.
    Memory = 16, 4 + MAX_REGIONS as usize * 24, "the memory's descriptors";
    /// Source, before the offer: what later connections show to belong to this migration.
    Session = 17, TOKEN_LEN, "a session";
    /// Source, after the session: how many connections more it would open.
    Streams = 18, 1, "a number of connections";
    /// Either: pages that the destination does not have (yet).
    Missing = 19, 4 + MAX_ZERO_RUNS * 16, "missing pages";
    /// Destination: the guest waits for these pages.
    Request = 20, 4 + MAX_REQUESTS * 16, "a request for pages";
    /// Destination: it has every page.
    Complete = 21, 0, "the word that all pages are there";
    /// Source, on a new connection after a broken one.
    Recover = 22, TOKEN_LEN, "a recovery";
    /// Destination: its missing pages have been named; their number.
    Recovered = 23, 8, "the end of the missing pages";
    /// Source, on another connection: the session that it belongs to.
    Join = 24, TOKEN_LEN, "another connection";
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: Kind,
    pub(super) flags: u16,
    pub(super) len: u32,
    pub(super) seq: u32,
    /// CRC-32 of the payload.
    pub(super) crc: u32,
}

impl FrameHeader {
    /// Writes the header with its own checksum.
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..2].copy_from_slice(&(self.kind as u16).to_le_bytes());
        out[2..4].copy_from_slice(&self.flags.to_le_bytes());
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8..12].copy_from_slice(&self.seq.to_le_bytes());
        out[12..16].copy_from_slice(&self.crc.to_le_bytes());
        let own = crc32fast::hash(&out[..16]);
        out[16..].copy_from_slice(&own.to_le_bytes());
        out
    }

    /// Reads, verifies and bounds a header: only then is its length believed.
    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, MigrateError> {
        let mut c = Cursor::new(bytes);
        let (code, flags) = (c.u16("frame kind")?, c.u16("frame flags")?);
        let (len, seq, crc) = (c.u32("frame length")?, c.u32("frame number")?, c.u32("frame checksum")?);
        if crc32fast::hash(c.since(0)) != c.u32("header checksum")? {
            return Err(MigrateError::Frame("checksum of a header is wrong".into()));
        }
        let kind =
            Kind::from_code(code).ok_or_else(|| MigrateError::Frame(format!("kind {code} is not known")))?;
        let allowed = match kind {
            Kind::Pages => FLAG_LZ4,
            Kind::Offer => FLAG_MEMORY | FLAG_POSTCOPY | FLAG_REQUIRED,
            Kind::Accept => FLAG_COPY | FLAG_GRANTED | FLAG_JOIN,
            _ => 0,
        };
        if flags & !allowed != 0 {
            return Err(MigrateError::Frame(format!("unknown flags {flags:#x} on {}", kind.name())));
        }
        if len as usize > kind.max_len() {
            return Err(MigrateError::Frame(format!("{} of {len} bytes is too long", kind.name())));
        }
        Ok(FrameHeader { kind, flags, len, seq, crc })
    }
}

/// Appends a list of runs.
pub(super) fn put_runs(out: &mut Vec<u8>, runs: &[Run]) {
    out.extend_from_slice(&(runs.len() as u32).to_le_bytes());
    for run in runs {
        out.extend_from_slice(&run.page.to_le_bytes());
        out.extend_from_slice(&run.count.to_le_bytes());
    }
}

/// Reads a list of runs; the caller checks where they lie.
pub(super) fn runs(c: &mut Cursor<'_>, limit: usize) -> Result<Vec<Run>, CodecError> {
    let n = c.count(limit as u32, 16, "number of runs")?;
    (0..n).map(|_| Ok(Run { page: c.u64("page number")?, count: c.u64("page count")? })).collect()
}

/// Regions, and where they lie in a memory file.
pub(super) fn put_pieces(out: &mut Vec<u8>, pieces: &[(Region, u64)]) {
    out.extend_from_slice(&(pieces.len() as u32).to_le_bytes());
    for (region, offset) in pieces {
        for number in [region.gpa, region.len, *offset] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
}

/// What [`put_pieces`] wrote; the caller checks it.
pub(super) fn pieces(bytes: &[u8]) -> Result<Vec<(Region, u64)>, CodecError> {
    let c = &mut Cursor::new(bytes);
    let n = c.count(MAX_REGIONS, 24, "number of memory regions")?;
    let pieces = (0..n)
        .map(|_| {
            let region = Region { gpa: c.u64("region address")?, len: c.u64("region length")? };
            Ok((region, c.u64("offset in the memory file")?))
        })
        .collect();
    c.end("the memory's descriptors")?;
    pieces
}

/// Texts for the operator, cut to what the peer takes.
pub(super) fn encode_texts(texts: &[String]) -> Vec<u8> {
    let texts = &texts[..texts.len().min(MAX_TEXTS as usize)];
    let mut out = (texts.len() as u32).to_le_bytes().to_vec();
    for text in texts {
        let mut end = text.len().min(MAX_TEXT as usize);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        put_blob(&mut out, &text.as_bytes()[..end]);
    }
    out
}

/// The peer's texts, without what could do something to a terminal.
pub(super) fn decode_texts(bytes: &[u8]) -> Result<Vec<String>, CodecError> {
    let mut c = Cursor::new(bytes);
    let n = c.count(MAX_TEXTS, 4, "number of texts")?;
    let texts = (0..n)
        .map(|_| {
            let text = String::from_utf8_lossy(c.blob(MAX_TEXT, "text")?);
            Ok(text.chars().map(|ch| if ch.is_control() { ' ' } else { ch }).collect())
        })
        .collect();
    c.end("the texts")?;
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefaces_agree_on_the_newest_common_version() {
        let p = |min, max| Preface { min, max, caps: 0 };
        assert_eq!(p(1, 3).agree(p(2, 9)).unwrap(), 3);
        assert!(matches!(p(1, 1).agree(p(2, 3)), Err(MigrateError::Version { theirs_max: 3, .. })));
        assert!(p(4, 5).agree(p(1, 3)).is_err());
        let ours = Preface::ours();
        assert_eq!(Preface::decode(&ours.encode()).unwrap(), ours);
        assert!(matches!(Preface::decode(b"GET / HTTP/1.1\r\n"), Err(MigrateError::NotGodwit)));
    }

    /// Frozen: what a peer of any age sends first.
    #[test]
    fn the_preface_is_what_the_document_says() {
        assert_eq!(Preface::ours().encode(), *b"GODWITMG\x01\x00\x01\x00\x0f\x00\x00\x00");
    }

    #[test]
    fn texts_are_bounded_and_tame() {
        let long = "ä".repeat(2000);
        let sent = encode_texts(&["a\x1b[31mb".into(), long]);
        let texts = decode_texts(&sent).unwrap();
        assert_eq!(texts[0], "a [31mb");
        assert_eq!(texts[1].len(), 1024);
        assert!(decode_texts(&sent[..sent.len() - 1]).is_err());
    }
}
