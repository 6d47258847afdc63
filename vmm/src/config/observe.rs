//! `PUT /logger`, `PUT /metrics` and `PUT /serial`.

use crate::virtio::ratelimit::TokenBucketConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Least severity that is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub enum Level {
    /// Nothing.
    Off,
    /// Failures.
    Error,
    /// And oddities.
    Warning,
    /// And what is worth knowing.
    #[default]
    Info,
    /// And details.
    Debug,
    /// And everything.
    Trace,
}

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "off" => Level::Off,
            "error" => Level::Error,
            "warn" | "warning" => Level::Warning,
            "info" => Level::Info,
            "debug" => Level::Debug,
            "trace" => Level::Trace,
            _ => return Err(format!("level {text:?}: say Off, Error, Warning, Info, Debug or Trace")),
        })
    }
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
