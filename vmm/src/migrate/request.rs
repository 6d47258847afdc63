//! What an operator asks for: where to send a guest and how, and what may be changed on the way.

use super::error::MigrateError;
use super::streams::MAX_CONNECTIONS;
use super::switch::{MemoryWay, Mode, OnTimeout, Options};
use super::transport::Address;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Where to and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SendRequest {
    /// `tcp:HOST:PORT`, `unix:PATH` or `vsock:CID:PORT`.
    pub target: String,
    /// How long the guest may stand still, in milliseconds.
    pub downtime_ms: u64,
    /// Most bytes a second while the guest runs.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Most rounds of precopy.
    pub max_rounds: u32,
    /// Most seconds of precopy; 0: no limit.
    pub timeout_s: u64,
    /// And then.
    pub on_timeout: OnTimeout,
    /// Slow the vCPUs down as far as needed.
    pub auto_converge: bool,
    /// Compress pages by LZ4.
    pub compress: bool,
    /// Over `unix:`, hand memory over or copy it.
    pub memory: MemoryWay,
    /// When pages are copied: `precopy`, `postcopy`, `hybrid`.
    pub mode: Mode,
    /// Where the destination cannot do postcopy, go on without.
    pub postcopy_fallback: bool,
    /// Connections over which pages go, 1 to 16; `tcp:` and `vsock:` only.
    pub connections: u8,
    /// Accept another TSC frequency at the destination.
    pub allow_tsc_mismatch: bool,
    /// Send over TCP to another machine without TLS.
    pub insecure: bool,
    /// Directory with ca-cert.pem, client-cert.pem and client-key.pem.
    pub tls_dir: Option<PathBuf>,
    /// Disks to copy to the destination, by name, besides those configured so (`on_migration`).
    pub move_disks: Vec<String>,
    /// Seconds without any byte from the peer before it is given up.
    pub idle_s: u64,
}

impl Default for SendRequest {
    fn default() -> Self {
        let o = Options::default();
        SendRequest {
            target: String::new(),
            downtime_ms: o.downtime.as_millis() as u64,
            bandwidth_bytes_per_s: None,
            max_rounds: o.max_rounds,
            timeout_s: o.timeout.map_or(0, |t| t.as_secs()),
            on_timeout: o.on_timeout,
            auto_converge: o.auto_converge,
            compress: o.compress,
            memory: o.memory,
            mode: o.mode,
            postcopy_fallback: o.postcopy_fallback,
            connections: o.connections,
            allow_tsc_mismatch: false,
            insecure: false,
            tls_dir: None,
            move_disks: Vec::new(),
            idle_s: o.idle.as_secs(),
        }
    }
}

impl SendRequest {
    /// Checks the request and takes it apart.
    ///
    /// # Errors
    /// The address or a number makes no sense, or TCP to elsewhere without protection.
    pub fn check(&self) -> Result<(Address, Options), MigrateError> {
        let address: Address = self.target.parse()?;
        let bad = |why: &str| MigrateError::Address { address: self.target.clone(), why: why.into() };
        if address.needs_resolver() && crate::sandbox::confined() {
            return Err(bad(
                "with seccomp on no name is resolved: say tcp:NAME@ADDRESS:PORT, as `godwit migrate` does",
            ));
        }
        require_protection(&address, self.tls_dir.is_some(), self.insecure)?;
        if self.max_rounds == 0 || self.idle_s == 0 || self.bandwidth_bytes_per_s == Some(0) {
            let why = "max_rounds, idle_s and bandwidth_bytes_per_s must not be 0";
            return Err(MigrateError::Request(why.into()));
        }
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            return Err(MigrateError::Request("connections must be 1 to 16".into()));
        }
        if self.connections > 1 && matches!(address, Address::Unix(_)) {
            return Err(bad("several connections are for tcp and vsock addresses"));
        }
        let options = Options {
            downtime: Duration::from_millis(self.downtime_ms),
            bandwidth: self.bandwidth_bytes_per_s,
            max_rounds: self.max_rounds,
            timeout: limit(self.timeout_s),
            on_timeout: self.on_timeout,
            auto_converge: self.auto_converge,
            compress: self.compress,
            memory: self.memory,
            mode: self.mode,
            postcopy_fallback: self.postcopy_fallback,
            connections: self.connections,
            idle: Duration::from_secs(self.idle_s),
            ..Options::default()
        };
        Ok((address, options))
    }
}

/// New limits for a migration that goes on: the body of `PATCH /migration`. What is left out stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsChange {
    /// How long the guest may stand still, in milliseconds.
    pub downtime_ms: Option<u64>,
    /// Most bytes a second while the guest runs; 0: no limit.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Most rounds of precopy.
    pub max_rounds: Option<u32>,
    /// Most seconds of precopy, counted from its beginning; 0: no limit.
    pub timeout_s: Option<u64>,
    /// And then.
    pub on_timeout: Option<OnTimeout>,
    /// Slow the vCPUs down as far as needed.
    pub auto_converge: Option<bool>,
}

impl LimitsChange {
    /// Checks it.
    ///
    /// # Errors
    /// Nothing is changed, a number makes no sense, or postcopy, on which both ends must agree at the beginning.
    pub fn check(&self) -> Result<(), &'static str> {
        if *self == LimitsChange::default() {
            return Err("name at least one limit to change");
        }
        if self.max_rounds == Some(0) {
            return Err("max_rounds must not be 0");
        }
        if self.on_timeout == Some(OnTimeout::Postcopy) {
            return Err("on_timeout: both ends agree on postcopy when a migration begins, not later");
        }
        Ok(())
    }

    /// What is asked later counts.
    pub(super) fn merge(&mut self, later: LimitsChange) {
        let LimitsChange {
            downtime_ms,
            bandwidth_bytes_per_s,
            max_rounds,
            timeout_s,
            on_timeout,
            auto_converge,
        } = later;
        self.downtime_ms = downtime_ms.or(self.downtime_ms);
        self.bandwidth_bytes_per_s = bandwidth_bytes_per_s.or(self.bandwidth_bytes_per_s);
        self.max_rounds = max_rounds.or(self.max_rounds);
        self.timeout_s = timeout_s.or(self.timeout_s);
        self.on_timeout = on_timeout.or(self.on_timeout);
        self.auto_converge = auto_converge.or(self.auto_converge);
    }

    /// Puts all but the bandwidth, which the sender keeps, into `options`.
    pub(super) fn apply(&self, options: &mut Options) {
        options.downtime = self.downtime_ms.map_or(options.downtime, Duration::from_millis);
        options.max_rounds = self.max_rounds.unwrap_or(options.max_rounds);
        options.timeout = self.timeout_s.map_or(options.timeout, limit);
        options.on_timeout = self.on_timeout.unwrap_or(options.on_timeout);
        options.auto_converge = self.auto_converge.unwrap_or(options.auto_converge);
    }
}

/// Seconds; 0: none.
fn limit(seconds: u64) -> Option<Duration> {
    (seconds != 0).then(|| Duration::from_secs(seconds))
}

/// Refuses TCP beyond this machine that is neither protected nor said to be insecure.
///
/// # Errors
/// It names what to do.
pub fn require_protection(address: &Address, tls: bool, insecure: bool) -> Result<(), MigrateError> {
    let refused = |why: &str| Err(MigrateError::Address { address: address.to_string(), why: why.into() });
    if tls && !matches!(address, Address::Tcp { .. }) {
        return refused("TLS is for tcp addresses");
    }
    if !tls && !insecure && !address.is_local() {
        return refused(
            "a guest goes over the network only with --tls-dir, or --insecure if everybody on it is trusted",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_strict_and_have_defaults() {
        let parse = |s: &str| serde_json::from_str::<SendRequest>(s).map_err(|e| e.to_string());
        let request = parse(r#"{"target":"unix:/x","downtime_ms":5}"#).unwrap();
        let (address, options) = request.check().unwrap();
        assert_eq!((address.to_string().as_str(), options.downtime.as_millis()), ("unix:/x", 5));
        assert_eq!(options.idle, Options::default().idle);
        let error = parse(r#"{"target":"unix:/x","downtime":5}"#).unwrap_err();
        assert!(error.contains("downtime"), "{error}");
    }

    #[test]
    fn a_change_of_limits_leaves_the_others_alone() {
        let mut change = LimitsChange { downtime_ms: Some(5), timeout_s: Some(0), ..LimitsChange::default() };
        change.merge(LimitsChange { downtime_ms: Some(7), max_rounds: Some(3), ..LimitsChange::default() });
        let mut options = Options::default();
        change.apply(&mut options);
        assert_eq!((options.downtime.as_millis(), options.max_rounds, options.timeout), (7, 3, None));
        assert_eq!(options.auto_converge, Options::default().auto_converge);
        for bad in [r#"{}"#, r#"{"max_rounds":0}"#, r#"{"on_timeout":"postcopy"}"#] {
            assert!(serde_json::from_str::<LimitsChange>(bad).unwrap().check().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<LimitsChange>(r#"{"target":"unix:/x"}"#).is_err());
    }

    #[test]
    fn the_network_needs_protection_or_consent() {
        let to = |target: &str| SendRequest { target: target.into(), ..SendRequest::default() };
        assert!(to("tcp:127.0.0.1:1").check().is_ok() && to("vsock:3:1").check().is_ok());
        let error = to("tcp:192.0.2.1:1").check().unwrap_err().to_string();
        assert!(error.contains("--tls-dir") && error.contains("--insecure"), "{error}");
        assert!(SendRequest { insecure: true, ..to("tcp:192.0.2.1:1") }.check().is_ok());
        assert!(SendRequest { tls_dir: Some("/pki".into()), ..to("unix:/x") }.check().is_err());
    }
}
