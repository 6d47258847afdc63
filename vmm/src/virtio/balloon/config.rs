//! `PUT /balloon` and its statistics, in Firecracker's form.

use serde::{Deserialize, Serialize};

/// The balloon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Target size in MiB.
    pub amount_mib: u32,
    /// The guest may take pages back when it is out of memory.
    pub deflate_on_oom: bool,
    /// Seconds between two statistics; 0: none.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// The guest reports its free pages, which are then given back to the host.
    #[serde(default)]
    pub free_page_reporting: bool,
    /// Only `false` is offered.
    #[serde(default)]
    pub free_page_hinting: bool,
}

/// What the guest has told of its memory; bytes or counts since boot (virtio 1.2, 5.5.6.4; from 10 on as Linux has them).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct GuestStats {
    /// Swapped in, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Swapped out, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Page faults that needed the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// The others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Unused, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// All, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// For new programs without swapping, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Disk caches that can go, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Huge pages given out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Programs ended for want of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Allocations that took the slow way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    /// Looked at in the background, pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    /// Looked at by who needed memory, pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    /// Won in the background, pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    /// Won by who needed memory, pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
}

impl GuestStats {
    /// Takes `{tag: u16, value: u64}` entries; unknown tags are left out.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut stats = Self::default();
        for entry in bytes.chunks_exact(10) {
            let value = Some(u64::from_le_bytes(std::array::from_fn(|i| entry[2 + i])));
            let field = match u16::from_le_bytes([entry[0], entry[1]]) {
                0 => &mut stats.swap_in,
                1 => &mut stats.swap_out,
                2 => &mut stats.major_faults,
                3 => &mut stats.minor_faults,
                4 => &mut stats.free_memory,
                5 => &mut stats.total_memory,
                6 => &mut stats.available_memory,
                7 => &mut stats.disk_caches,
                8 => &mut stats.hugetlb_allocations,
                9 => &mut stats.hugetlb_failures,
                10 => &mut stats.oom_kill,
                11 => &mut stats.alloc_stall,
                12 => &mut stats.async_scan,
                13 => &mut stats.direct_scan,
                14 => &mut stats.async_reclaim,
                15 => &mut stats.direct_reclaim,
                _ => continue,
            };
            *field = value;
        }
        stats
    }
}

/// `GET /balloon/statistics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BalloonStats {
    /// Pages of 4 KiB that the guest was asked to give.
    pub target_pages: u32,
    /// Pages that it has given.
    pub actual_pages: u32,
    /// The same in MiB.
    pub target_mib: u32,
    /// The same in MiB.
    pub actual_mib: u32,
    /// The guest's own figures.
    #[serde(flatten)]
    pub guest: GuestStats,
}
