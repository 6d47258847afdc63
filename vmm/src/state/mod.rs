//! The state container: all sections of a machine in one self-describing blob.
//!
//! A hand-coded little-endian header (magic, container version, machine shape, CPU model, producer), then
//! sections `{kind, version, optional, instance, length, crc, postcard bytes}`, then an end marker.
//! `docs/STATE-FORMAT.md` gives every byte. Written and read by `migrate`, `snapshot` and `godwit inspect`.

use godwit_state::RawSection;

/// A section with the number of what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSection {
    /// vCPU number, device slot, or 0 for things of which there is one.
    pub instance: u32,
    /// Kind, version and bytes.
    pub section: RawSection,
}
