//! The state container: all sections of a machine in one self-describing blob.
//!
//! A hand-coded little-endian header (magic, container version, machine shape, CPU model, producer), then
//! sections `{kind, version, optional, instance, length, crc, postcard bytes}`, then an end marker.
//! `docs/STATE-FORMAT.md` gives every byte. Written and read by `migrate`, `snapshot` and `godwit inspect`.

#![forbid(unsafe_code)]

pub mod codec;
mod container;

pub use container::{
    BOARD_MICROVM, ContainerError, Header, MAGIC, MAJOR, MAX_CONTAINER, MAX_KIND, MAX_SECTION, MAX_SECTIONS,
    MINOR, Reader, SectionView, read, write,
};
use godwit_state::RawSection;

/// A section with the number of what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSection {
    /// vCPU number, device slot, or 0 for things of which there is one.
    pub instance: u32,
    /// Kind, version and bytes.
    pub section: RawSection,
}

/// Refuses mandatory sections that are not among `known` (kind and newest version).
///
/// # Errors
/// Every offender by name: [`godwit_state::StateError::Unknown`] or [`godwit_state::StateError::Version`].
pub fn check_known(
    sections: &[MachineSection],
    known: &[(&str, u32)],
) -> Result<(), godwit_state::StateError> {
    for MachineSection { section, .. } in sections.iter().filter(|s| !s.section.optional) {
        let (kind, found) = (section.kind.clone(), section.version);
        match known.iter().find(|(name, _)| *name == kind) {
            None => return Err(godwit_state::StateError::Unknown { kind, version: found }),
            Some((_, newest)) if found > *newest => {
                return Err(godwit_state::StateError::Version { kind, found, known: *newest });
            }
            Some(_) => {}
        }
    }
    Ok(())
}
