//! `PUT /logger`, `PUT /metrics` and `PUT /serial`.

use crate::virtio::ratelimit::TokenBucketConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Least severity that is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Nothing.
    #[serde(alias = "off", alias = "OFF")]
    Off,
    /// Failures.
    #[serde(alias = "error", alias = "ERROR")]
    Error,
    /// And oddities.
    #[serde(alias = "warning", alias = "WARNING", alias = "warn", alias = "WARN", alias = "Warn")]
    Warning,
    /// And what is worth knowing.
    #[default]
    #[serde(alias = "info", alias = "INFO")]
    Info,
    /// And details.
    #[serde(alias = "debug", alias = "DEBUG")]
    Debug,
    /// And everything.
    #[serde(alias = "trace", alias = "TRACE")]
    Trace,
}

/// Where and what to log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoggerConfig {
    /// File or FIFO; absent: stays where it is (stderr at first).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// Least severity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Print the severity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Print file and line of origin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Only lines of this module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// Where metrics go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// File or FIFO: a line of JSON each flush.
    pub metrics_path: PathBuf,
}

/// Where the serial port's output goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// File or FIFO; absent: standard output.
    #[serde(default)]
    pub serial_out_path: Option<PathBuf>,
    /// Bytes beyond it are left out; absent: no limit.
    #[serde(default)]
    pub rate_limiter: Option<TokenBucketConfig>,
}
