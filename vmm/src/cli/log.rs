//! The log: lines in Firecracker's form to a file or FIFO, or in a shorter one to standard error.
//!
//! ```text
//!   2018-11-07T05:34:25.180751152 [ID:THREAD:LEVEL:FILE:LINE] what has happened      (UTC)
//!   godwit [LEVEL] FILE:LINE: what has happened
//! ```
//!
//! A guest or client that can make one place in the code log again and again fills no disk: see [`Limiter`].

use crate::config::LoggerConfig;
use crate::sandbox::handler;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tracing::callsite::Identifier;
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
    id: String,
}

/// At most [`Limiter::BURST`] lines from one place in the code in [`Limiter::PERIOD`]; the first that is let through later
/// says how many were left out. Debug and trace lines are not counted: who asks for them wants all.
#[derive(Debug, Default)]
struct Limiter(Mutex<HashMap<Identifier, Count>>);

#[derive(Debug)]
struct Count {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Limiter {
    const BURST: u32 = 20;
    const PERIOD: Duration = Duration::from_secs(5);

    /// Whether a line from `place` is written, and how many before it were not.
    fn admits(&self, place: Identifier, now: Instant) -> Option<u64> {
        let mut places = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let count = places.entry(place).or_insert(Count { since: now, lines: 0, left_out: 0 });
        if now.saturating_duration_since(count.since) >= Self::PERIOD {
            (count.since, count.lines) = (now, 0);
        }
        if count.lines == Self::BURST {
            count.left_out += 1;
            return None;
        }
        count.lines += 1;
        Some(std::mem::take(&mut count.left_out))
    }
}

/// The one log of this process.
#[derive(Debug, Clone, Default)]
struct Log(Arc<RwLock<Settings>>, Arc<Limiter>);

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
    pub(super) module: Option<&'a str>,
    pub(super) id: &'a str,
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
    let settings = Settings {
        level,
        show_level: style.show_level,
        show_origin: style.show_origin,
        module: style.module.map(str::to_owned),
        file,
        id: style.id.to_owned(),
    };
    let log = Log(Arc::new(RwLock::new(settings)), Arc::default());
    tracing::subscriber::set_global_default(LOG.get_or_init(|| log).clone()).map_err(|e| e.to_string())
}

/// The log file's descriptor, for who must write without locks or memory; `None`: the log goes to standard error.
pub(super) fn fd() -> Option<i32> {
    LOG.get()?.read().file.as_ref().map(AsRawFd::as_raw_fd)
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
        if let Some(file) = file {
            // Before the old one is closed.
            handler::log_to(Some(file.as_raw_fd()));
            settings.file = Some(file);
        }
    }
    tracing::callsite::rebuild_interest_cache();
    Ok(())
}

/// A point of time since 1970 as `2018-11-07T05:34:25.180751152`.
struct Utc(Duration);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0.as_secs() / 86_400, self.0.as_secs() % 86_400);
        // Years that begin in March end with the leap day; an era of 400 of them has 146,097 days.
        let shifted = days + 719_468;
        let (era, day) = (shifted / 146_097, shifted % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let (date, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
        let year = 400 * era + year + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let nanos = self.0.subsec_nanos();
        write!(f, "{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}")
    }
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
        let metadata = event.metadata();
        let left_out = match *metadata.level() {
            Level::DEBUG | Level::TRACE => Some(0),
            _ => self.1.admits(metadata.callsite(), Instant::now()),
        };
        let Some(left_out) = left_out else { return };
        let settings = self.read();
        let mut line = Line(String::new());
        let (file, number) = (metadata.file().unwrap_or("?"), metadata.line().unwrap_or_default());
        if settings.file.is_some() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let thread = std::thread::current();
            let _ = write!(line.0, "{} [{}:{}", Utc(now), settings.id, thread.name().unwrap_or("-"));
            if settings.show_level {
                let _ = write!(line.0, ":{}", metadata.level());
            }
            if settings.show_origin {
                let _ = write!(line.0, ":{file}:{number}");
            }
            line.0.push_str("] ");
        } else {
            line.0.push_str("godwit");
            if settings.show_level {
                let _ = write!(line.0, " [{}]", metadata.level());
            }
            if settings.show_origin {
                let _ = write!(line.0, " {file}:{number}");
            }
            line.0.push_str(": ");
        }
        event.record(&mut line);
        if left_out > 0 {
            let _ = write!(line.0, " ({left_out} lines from the same place were left out)");
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates_as_people_write_them() {
        let text = |seconds, nanos| Utc(Duration::new(seconds, nanos)).to_string();
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000");
        assert_eq!(text(1_541_568_865, 180_751_152), "2018-11-07T05:34:25.180751152");
        assert_eq!(text(951_782_400, 1), "2000-02-29T00:00:00.000000001");
        assert_eq!(text(1_709_251_199, 0), "2024-02-29T23:59:59.000000000");
        assert_eq!(text(1_735_689_599, 0), "2024-12-31T23:59:59.000000000");
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000000000");
    }

    #[test]
    fn one_place_cannot_flood_the_log() {
        struct Place;
        impl tracing::Callsite for Place {
            fn set_interest(&self, _: tracing::subscriber::Interest) {}
            fn metadata(&self) -> &Metadata<'_> {
                unreachable!("nobody asks")
            }
        }
        static PLACE: Place = Place;
        let (limiter, start) = (Limiter::default(), Instant::now());
        let at = |seconds| limiter.admits(Identifier(&PLACE), start + Duration::from_secs(seconds));
        for _ in 0..Limiter::BURST {
            assert_eq!(at(0), Some(0));
        }
        assert_eq!((at(1), at(4)), (None, None));
        assert_eq!((at(5), at(5)), (Some(2), Some(0)));
    }
}
