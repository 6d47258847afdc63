//! The memory map that the guest is told of.

use super::layout;

/// Usable RAM.
pub(super) const RAM: u32 = 1;
/// Not to be used.
pub(super) const RESERVED: u32 = 2;

/// One stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) kind: u32,
}

/// The map of `low` bytes of RAM at 0 and perhaps more at `high`.
pub(super) fn map(low: u64, high: Option<(u64, u64)>) -> Vec<Entry> {
    let mut out = vec![Entry { start: 0, len: layout::EBDA.min(low), kind: RAM }];
    if low > layout::EBDA {
        let end = layout::ACPI_END.min(low);
        out.push(Entry { start: layout::EBDA, len: end - layout::EBDA, kind: RESERVED });
    }
    if low > layout::ACPI_END {
        out.push(Entry { start: layout::ACPI_END, len: low - layout::ACPI_END, kind: RAM });
    }
    out.extend(high.map(|(start, len)| Entry { start, len, kind: RAM }));
    out
}
