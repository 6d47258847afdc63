//! `godwit migrate`: has a running godwit send its guest away, and watches.

use super::client;
use crate::control::MigrationRequest;
use crate::migrate::{
    Address, LimitsChange, MemoryWay, Mode, OnTimeout, Phase, SendRequest, Snapshot, bytes_text as bytes,
};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

/// How often progress is asked for.
const POLL: Duration = Duration::from_millis(50);
/// Answers that may be missing before the sender counts as gone.
const MISSING: u32 = 3;

/// Exit codes of `godwit migrate`.
pub mod exit {
    /// The guest runs at the destination; or what was asked for of a migration that goes on is done.
    pub const MOVED: u8 = 0;
    /// The sender could not be asked, or refused the request.
    pub const NOT_ASKED: u8 = 1;
    /// It did not move; it runs on where it was.
    pub const STAYED: u8 = 3;
    /// Given away, and no word that it runs: paused here, an operator must look.
    pub const UNCONFIRMED: u8 = 4;
    /// It runs there, some of its pages are only here, and the connection is broken: `--recover`.
    pub const INTERRUPTED: u8 = 5;
}

/// Moves the guest of a running godwit, live, to a waiting `godwit receive`.
///
/// Exit code 0: it runs there. 1: the request was refused. 3: it did not move and runs on here. 4: it was given away
/// and the answer was lost. 5: the connection broke while pages followed the guest (postcopy); --recover goes on.
#[derive(Debug, clap::Args)]
pub struct Migrate {
    /// API socket of the godwit whose guest is to move.
    #[arg(long, value_name = "PATH")]
    api_sock: PathBuf,
    /// Where to: tcp:HOST:PORT, unix:PATH or vsock:CID:PORT.
    #[arg(required_unless_present_any = ["recover", "switch", "change", "cancel"])]
    target: Option<String>,
    /// After a connection that broke in postcopy: connect again (to TARGET, if the way has changed) and send what is missing.
    #[arg(long)]
    recover: bool,
    /// Have the migration that goes on switch to postcopy now, if it was begun with that in mind (--mode, --on-timeout).
    #[arg(long = "switch-to-postcopy", conflicts_with = "recover")]
    switch: bool,
    /// Give the migration that goes on new limits: those of --downtime-ms, --bandwidth-mib-s, --timeout-s, --on-timeout and
    /// --no-auto-converge that are named.
    #[arg(long, conflicts_with_all = ["recover", "switch", "target"])]
    change: bool,
    /// End the migration that goes on; the guest runs on where it is.
    #[arg(long, conflicts_with_all = ["recover", "switch", "change", "target"])]
    cancel: bool,
    /// When pages are copied: before the guest goes ("precopy"), after it as it needs them ("postcopy"), or once before and the rest
    /// after ("hybrid").
    #[arg(long, value_name = "MODE", default_value = "precopy", value_parser = word::<Mode>)]
    mode: Mode,
    /// The same as --mode postcopy.
    #[arg(long, conflicts_with = "mode")]
    postcopy: bool,
    /// Where the destination cannot do postcopy, go on without.
    #[arg(long)]
    postcopy_fallback: bool,
    /// How long the guest may stand still, in milliseconds [default: 50].
    #[arg(long, value_name = "MS")]
    downtime_ms: Option<u64>,
    /// Most MiB a second while the guest runs; 0: no limit.
    #[arg(long, value_name = "MIB")]
    bandwidth_mib_s: Option<u64>,
    /// Most seconds before --on-timeout; 0: no limit [default: 600].
    #[arg(long, value_name = "S")]
    timeout_s: Option<u64>,
    /// Then give up ("cancel"), pause the guest and finish ("force"), or let the rest follow the guest ("postcopy").
    /// [default: cancel].
    #[arg(long, value_name = "WHAT", value_parser = word::<OnTimeout>)]
    on_timeout: Option<OnTimeout>,
    /// Don't slow the guest down when it writes faster than the link carries.
    #[arg(long)]
    no_auto_converge: bool,
    /// Compress pages (LZ4).
    #[arg(long)]
    compress: bool,
    /// To a destination on this machine over unix:, hand guest memory over ("hand-over") or copy it ("copy"); "auto" hands it
    /// over if that can be done.
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = word::<MemoryWay>)]
    memory: MemoryWay,
    /// Connections over which pages go, 1 to 16; for tcp and vsock.
    #[arg(long, value_name = "N", default_value_t = 1)]
    connections: u8,
    /// Accept another TSC frequency at the destination.
    #[arg(long)]
    allow_tsc_mismatch: bool,
    /// Send over TCP to another machine without TLS: everybody on the way can read and change the guest.
    #[arg(long)]
    insecure: bool,
    /// Directory with ca-cert.pem, client-cert.pem and client-key.pem, as the sending godwit sees it.
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// Copy this disk to the destination too; may be given several times. There --drive ID=PATH says where to.
    #[arg(long, value_name = "ID")]
    move_disk: Vec<String>,
    /// Print the final report as JSON.
    #[arg(long)]
    json: bool,
}

/// A word of the API's.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|e| e.to_string())
}

/// Where to, with the address of a name: the sender cannot ask, for its filters allow no resolver.
fn resolved(target: &str) -> Result<String, String> {
    let address = target.parse::<Address>().and_then(Address::resolved);
    address.map(|a| a.to_string()).map_err(|e| e.to_string())
}

/// The live bar.
pub(super) fn bar(s: &Snapshot) -> String {
    const WIDTH: u64 = 20;
    let filled = (s.round_pages_done * WIDTH).checked_div(s.round_pages).unwrap_or(0).min(WIDTH);
    let mut line = format!(
        "{:9} round {:2} [{}{}] {}",
        format!("{:?}", s.phase).to_lowercase(),
        s.round,
        "#".repeat(filled as usize),
        ".".repeat((WIDTH - filled) as usize),
        bytes(s.bytes as f64),
    );
    if s.bytes_per_s > 0.0 {
        let _ = write!(line, "  {}/s", bytes(s.bytes_per_s));
    }
    if s.dirty_pages_per_s > 0.0 {
        let _ = write!(line, "  dirty {:.0} pages/s", s.dirty_pages_per_s);
    }
    if s.expected_downtime_ms > 0.0 {
        let _ = write!(line, "  downtime {:.1} ms", s.expected_downtime_ms);
    }
    if s.missing_pages > 0 {
        let _ = write!(line, "  {} pages to come", s.missing_pages);
    }
    if s.throttle_percent > 0.0 {
        let _ = write!(line, "  throttle {} %", s.throttle_percent);
    }
    line
}

/// The final report, for people.
pub fn report_text(s: &Snapshot) -> String {
    let mut out = match s.phase {
        Phase::Done => format!("moved to {}\n", s.peer),
        Phase::Unconfirmed => format!(
            "GIVEN TO {} AND NOT CONFIRMED: {}\nThe guest stands still here. Look there: if it runs, end this one.\n",
            s.peer,
            s.error.as_deref().unwrap_or_default()
        ),
        Phase::Interrupted => format!(
            "RUNS AT {}, AND THE CONNECTION IS BROKEN: {}\nDon't end this one: it has the pages.\n",
            s.peer,
            s.error.as_deref().unwrap_or_default()
        ),
        _ => format!(
            "not moved to {}: {}\nThe guest runs on here.\n",
            s.peer,
            s.error.as_deref().unwrap_or("no reason was given")
        ),
    };
    if let Some(r) = s.report.as_ref().filter(|_| s.phase == Phase::Done) {
        let _ = writeln!(out, "  total time  {:.1} ms", r.total_ms);
        let d = &r.downtime;
        let _ = writeln!(
            out,
            "  downtime    {:.2} ms: pause {:.2}, state {:.2}, last pages {:.2}, loading {:.2}, start {:.2}",
            r.downtime_ms, d.pause, d.state, d.pages, d.load, d.start
        );
        if r.handed_over {
            let _ = writeln!(out, "  memory      handed over, nothing copied");
        } else {
            let _ = writeln!(out, "  rounds      {}, the last with {} pages", r.rounds, r.last_pages);
            let _ = writeln!(out, "  pages       {} sent, {} zero", r.pages, r.zero_pages);
            if r.connections > 1 {
                let _ = writeln!(out, "  connections {}", r.connections);
            }
        }
        if r.postcopy_pages > 0 {
            let _ = writeln!(
                out,
                "  postcopy    {:.1} ms: {} pages, {} of them waited for; {} new connections",
                r.postcopy_ms, r.postcopy_pages, r.requested_pages, r.recoveries
            );
        }
        if let Some(why) = &r.copied_because {
            let _ = writeln!(out, "  copied      because {why}");
        }
        let _ = writeln!(
            out,
            "  sent        {} for {} of memory",
            bytes(r.bytes as f64),
            bytes(r.memory_bytes as f64)
        );
        let _ = writeln!(out, "  state       {} bytes", r.blob_bytes);
        if r.throttle_percent > 0.0 {
            let _ = writeln!(out, "  throttle    up to {} %", r.throttle_percent);
        }
    }
    out
}

impl Migrate {
    fn request(&self) -> SendRequest {
        let usual = SendRequest::default();
        SendRequest {
            target: self.target.clone().unwrap_or_default(),
            downtime_ms: self.downtime_ms.unwrap_or(usual.downtime_ms),
            bandwidth_bytes_per_s: self.bandwidth().filter(|b| *b != 0),
            timeout_s: self.timeout_s.unwrap_or(usual.timeout_s),
            on_timeout: self.on_timeout.unwrap_or(usual.on_timeout),
            auto_converge: !self.no_auto_converge,
            compress: self.compress,
            memory: self.memory,
            mode: if self.postcopy { Mode::Postcopy } else { self.mode },
            postcopy_fallback: self.postcopy_fallback,
            connections: self.connections,
            allow_tsc_mismatch: self.allow_tsc_mismatch,
            insecure: self.insecure,
            tls_dir: self.tls_dir.clone(),
            move_disks: self.move_disk.clone(),
            ..usual
        }
    }

    fn bandwidth(&self) -> Option<u64> {
        self.bandwidth_mib_s.map(|m| m.saturating_mul(1 << 20))
    }

    /// The request's method and body.
    fn asked(&self) -> Result<(&'static str, String), String> {
        let put =
            |request: &MigrationRequest| Ok(("PUT", serde_json::to_string(request).unwrap_or_default()));
        if self.recover {
            put(&MigrationRequest::Recover { target: self.target.as_deref().map(resolved).transpose()? })
        } else if self.switch {
            put(&MigrationRequest::Postcopy)
        } else if self.cancel {
            put(&MigrationRequest::Cancel)
        } else if self.change {
            let change = LimitsChange {
                downtime_ms: self.downtime_ms,
                bandwidth_bytes_per_s: self.bandwidth(),
                max_rounds: None,
                timeout_s: self.timeout_s,
                on_timeout: self.on_timeout,
                auto_converge: self.no_auto_converge.then_some(false),
            };
            change.check()?;
            Ok(("PATCH", serde_json::to_string(&change).unwrap_or_default()))
        } else {
            let mut request = self.request();
            request.target = resolved(&request.target)?;
            request.check().map_err(|e| e.to_string())?;
            put(&MigrationRequest::Send(Box::new(request)))
        }
    }

    /// Asks, watches, reports. Gives an exit code of [`exit`].
    pub fn run(&self) -> u8 {
        let fail = |why: &str| {
            eprintln!("godwit: {why}");
            exit::NOT_ASKED
        };
        let (method, body) = match self.asked() {
            Ok(asked) => asked,
            Err(why) => return fail(&why),
        };
        match client::request(&self.api_sock, method, "/migration", &body, Some(client::SOON)) {
            // Whoever began the migration watches it.
            Ok(answer) if answer.is_success() && (self.change || self.cancel) => return exit::MOVED,
            Ok(answer) if answer.is_success() => {}
            Ok(answer) => return fail(&answer.fault()),
            Err(why) => return fail(&why),
        }
        let (last, watched) = self.watch();
        if let Err(why) = watched {
            eprintln!("godwit: {why}");
        }
        last.map_or(exit::NOT_ASKED, |last| self.report(&last))
    }

    fn watch(&self) -> (Option<Snapshot>, Result<(), String>) {
        let terminal = std::io::stderr().is_terminal() && !self.json;
        let (mut last, mut missing) = (None, 0);
        loop {
            let answer = client::request(&self.api_sock, "GET", "/migration", "", Some(client::SOON));
            let snapshot = answer.and_then(|a| {
                serde_json::from_str::<Snapshot>(&a.body)
                    .map_err(|e| format!("an answer that is no progress: {e}"))
            });
            match snapshot {
                Ok(s) => {
                    missing = 0;
                    if terminal {
                        eprint!("\r\x1b[K{}", bar(&s));
                        let _ = std::io::stderr().flush();
                    }
                    if s.is_over() || s.phase == Phase::Interrupted {
                        if terminal {
                            eprintln!();
                        }
                        return (Some(s), Ok(()));
                    }
                    last = Some(s);
                }
                Err(why) => {
                    missing += 1;
                    if missing >= MISSING {
                        return (last, Err(format!("the sender is gone: {why}")));
                    }
                }
            }
            std::thread::sleep(POLL);
        }
    }

    fn report(&self, s: &Snapshot) -> u8 {
        if self.json {
            println!("{}", serde_json::to_string(s).unwrap_or_default());
        } else {
            print!("{}", report_text(s));
        }
        match s.phase {
            Phase::Done => exit::MOVED,
            Phase::Unconfirmed | Phase::Committed => exit::UNCONFIRMED,
            Phase::Interrupted | Phase::Postcopy => exit::INTERRUPTED,
            Phase::Failed => exit::STAYED,
            _ => exit::NOT_ASKED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::Report;

    #[test]
    fn reports_say_where_the_guest_is() {
        let report = Report { total_ms: 12.5, bytes: 3 << 20, blob_bytes: 1400, ..Report::default() };
        let mut s = Snapshot {
            phase: Phase::Done,
            peer: "unix:/x".into(),
            report: Some(report),
            ..Snapshot::default()
        };
        let text = report_text(&s);
        assert!(
            text.contains("moved to unix:/x") && text.contains("3.0 MiB") && text.contains("1400 bytes"),
            "{text}"
        );
        (s.phase, s.error) = (Phase::Failed, Some("no room".into()));
        assert!(report_text(&s).contains("no room") && report_text(&s).contains("runs on here"));
        s.phase = Phase::Unconfirmed;
        assert!(report_text(&s).contains("stands still"));
        assert!(
            bar(&Snapshot { round_pages: 10, round_pages_done: 5, ..s }).contains("[##########..........]")
        );
    }
}
