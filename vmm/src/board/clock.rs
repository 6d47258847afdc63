//! Time as devices see it: nanoseconds that stand still while the machine is paused.

/// A device's only clock.
pub trait Clock: Send + Sync {
    /// Nanoseconds of guest time since the machine was first made, on any host. Never goes back.
    fn now_ns(&self) -> u64;
    /// UTC in nanoseconds since 1970, for the RTC.
    fn utc_ns(&self) -> u64;
}
