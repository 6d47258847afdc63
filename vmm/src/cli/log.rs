//! The log: lines to standard error or a file.

use crate::config::LoggerConfig;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock, RwLock};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

#[derive(Debug, Default)]
struct Settings {
    level: Option<Level>,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
    file: Option<File>,
}

/// The one log of this process.
#[derive(Debug, Clone, Default)]
struct Log(Arc<RwLock<Settings>>);

static LOG: OnceLock<Log> = OnceLock::new();

impl Log {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Settings> {
        self.0.read().unwrap_or_else(|e| e.into_inner())
    }
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
    let file = style.path.map(open).transpose().map_err(|e| format!("--log-path: {e}"))?;
    let settings =
        Settings { level, show_level: style.show_level, show_origin: style.show_origin, module: None, file };
    let log = Log(Arc::new(RwLock::new(settings)));
    tracing::subscriber::set_global_default(LOG.get_or_init(|| log).clone()).map_err(|e| e.to_string())
}

fn open(path: &Path) -> Result<File, String> {
    // A named pipe without a reader must not hold the start up.
    let open =
        OpenOptions::new().read(true).create(true).append(true).custom_flags(libc::O_NONBLOCK).open(path);
    open.map_err(|e| format!("{}: {e}", path.display()))
}

/// `PUT /logger`: what is absent stays.
///
/// # Errors
/// The file does not open; nothing is changed.
pub(super) fn change(config: &LoggerConfig) -> Result<(), String> {
    let log = LOG.get().ok_or("there is no log")?;
    let file = config.log_path.as_deref().map(open).transpose().map_err(|e| format!("log_path: {e}"))?;
    let level = config.level.map(|l| level(&format!("{l:?}"))).transpose()?;
    {
        let mut settings = log.0.write().unwrap_or_else(|e| e.into_inner());
        if let Some(level) = level {
            settings.level = level;
        }
        settings.show_level = config.show_level.unwrap_or(settings.show_level);
        settings.show_origin = config.show_log_origin.unwrap_or(settings.show_origin);
        if config.module.is_some() {
            settings.module.clone_from(&config.module);
        }
        if file.is_some() {
            settings.file = file;
        }
    }
    tracing::callsite::rebuild_interest_cache();
    Ok(())
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
        let settings = self.read();
        settings.level.is_some_and(|most| *metadata.level() <= most)
            && settings.module.as_ref().is_none_or(|m| metadata.target().starts_with(m.as_str()))
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let settings = self.read();
        let mut line = Line("godwit".into());
        let metadata = event.metadata();
        if settings.show_level {
            let _ = write!(line.0, " [{}]", metadata.level());
        }
        if settings.show_origin {
            let _ =
                write!(line.0, " {}:{}", metadata.file().unwrap_or("?"), metadata.line().unwrap_or_default());
        }
        line.0.push_str(": ");
        event.record(&mut line);
        line.0.push('\n');
        // A log that cannot be written must not stop the guest.
        let _ = match &settings.file {
            // One write a line: lines of several threads do not mix.
            Some(file) => (&mut &*file).write_all(line.0.as_bytes()),
            None => std::io::stderr().write_all(line.0.as_bytes()),
        };
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}
