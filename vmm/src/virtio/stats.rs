//! What a device has done, counted under the names of Firecracker's metrics.

/// Counts since the device was made. They are no state: a machine that is restored or arrives begins at zero.
#[derive(Debug, Clone, Default)]
pub struct Stats(Vec<(&'static str, u64)>);

impl Stats {
    /// Counts of these names, all zero.
    pub fn new(names: &[&'static str]) -> Self {
        Stats(names.iter().map(|name| (*name, 0)).collect())
    }

    /// Adds to one of them.
    pub fn add(&mut self, name: &'static str, n: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += n,
            None => self.0.push((name, n)),
        }
    }

    /// Adds one.
    pub fn count(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// All of them.
    pub fn all(&self) -> &[(&'static str, u64)] {
        &self.0
    }
}

/// A device's counts: the group's name as in Firecracker's metrics, the name of the sum over all devices of the kind (empty:
/// there is one at most), and the counts.
#[derive(Debug, Clone)]
pub struct Counted {
    /// For instance `net_eth0`.
    pub group: String,
    /// For instance `net`.
    pub kind: &'static str,
    /// By name.
    pub counts: Vec<(&'static str, u64)>,
}
