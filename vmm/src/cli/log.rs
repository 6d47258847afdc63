//! The log: lines to standard error or a file.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

struct Log {
    level: Option<Level>,
    show_level: bool,
    show_origin: bool,
    file: Option<Mutex<File>>,
}

/// How the log is to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style<'a> {
    pub(super) path: Option<&'a Path>,
    pub(super) level: &'a str,
    pub(super) show_level: bool,
    pub(super) show_origin: bool,
}

fn level(text: &str) -> Result<Option<Level>, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "off" => None,
        "error" => Some(Level::ERROR),
        "warn" | "warning" => Some(Level::WARN),
        "info" => Some(Level::INFO),
        "debug" => Some(Level::DEBUG),
        "trace" => Some(Level::TRACE),
        _ => return Err(format!("--level {text}: say Off, Error, Warning, Info, Debug or Trace")),
    })
}

/// Sets the log up, once.
pub(super) fn start(style: Style<'_>) -> Result<(), String> {
    let level = level(style.level)?;
    let file = match style.path {
        None => None,
        Some(path) => {
            // A named pipe without a reader must not hold the start up.
            let open = OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).open(path);
            Some(Mutex::new(open.map_err(|e| format!("--log-path {}: {e}", path.display()))?))
        }
    };
    let log = Log { level, show_level: style.show_level, show_origin: style.show_origin, file };
    tracing::subscriber::set_global_default(log).map_err(|e| e.to_string())
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.level.is_some_and(|most| *metadata.level() <= most)
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line("godwit".into());
        let metadata = event.metadata();
        if self.show_level {
            let _ = write!(line.0, " [{}]", metadata.level());
        }
        if self.show_origin {
            let _ =
                write!(line.0, " {}:{}", metadata.file().unwrap_or("?"), metadata.line().unwrap_or_default());
        }
        line.0.push_str(": ");
        event.record(&mut line);
        line.0.push('\n');
        // A log that cannot be written must not stop the guest.
        let _ = match &self.file {
            Some(file) => file.lock().unwrap_or_else(|e| e.into_inner()).write_all(line.0.as_bytes()),
            None => std::io::stderr().write_all(line.0.as_bytes()),
        };
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}
