//! Sending the guest away when asked to: the thread that does it, and what others see of it.

use super::moving::{Door, Leaving};
use super::{Action, Handle, MachineDoor, Outcome};
use crate::config::ReceiveRequest;
use crate::machine::Machine;
use crate::migrate::fault::Side;
use crate::migrate::{
    self, Address, LimitsChange, Link, MigrateError, Options, Phase, Progress, SendRequest, Snapshot, Stream,
    Tls, unconfirmed_advice,
};
use crate::sandbox;
use crate::virtio::block::OnMigration;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

/// After the guest has gone this process stays so long for somebody to fetch the report.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a request waits for a failed migration to be cleared up: it is over for whoever watches a moment before that.
const CLEARING: Duration = Duration::from_millis(200);

impl Door for MachineDoor {
    type Gone = ();
    fn with<R: Send + 'static>(&self, f: impl FnOnce(&mut Machine) -> R + Send + 'static) -> Option<R> {
        MachineDoor::with(self, f)
    }
    fn give_away(self) {
        MachineDoor::give_away(self);
    }
}

/// How the other end is reached.
#[derive(Clone)]
struct Way {
    address: Address,
    tls: Option<Tls>,
    /// How long it may be silent.
    idle: Duration,
}

impl Way {
    fn connect(&self) -> Result<Link, MigrateError> {
        let socket = migrate::connect(&self.address, CONNECT)?;
        let stream: Box<dyn Stream> = match &self.tls {
            Some(tls) => tls.wrap(socket, &self.address)?,
            None => Box::new(socket),
        };
        Ok(Link::new(stream, Side::Source, self.idle))
    }
}

/// Body of `PUT /migration`: send this guest away, wait for one, or stop doing so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MigrationRequest {
    /// Send the guest.
    Send(Box<SendRequest>),
    /// Wait for a guest, in an instance that has not run yet.
    Receive(Box<ReceiveRequest>),
    /// Stop sending, and the guest runs on; or stop waiting for one. Without effect after the commit.
    Cancel,
    /// Switch to postcopy now, where the destination agreed to that (`mode`, `on_timeout`).
    Postcopy,
    /// The connection broke after the guest had gone: connect again and send the pages that are missing.
    Recover {
        /// Where to, if not where the first connection went.
        #[serde(default)]
        target: Option<String>,
    },
    /// The answer to a commit was lost, and an operator knows that the guest does not run at the destination.
    Resume,
}

struct Shared {
    handle: Handle,
    /// To the thread that sends; or why there is none.
    sender: Result<Mutex<mpsc::Sender<Job>>, String>,
    busy: Arc<Busy>,
    current: Mutex<Option<Progress>>,
    /// How the other end was reached.
    way: Mutex<Option<Way>>,
    /// Somebody has seen the end.
    seen: AtomicBool,
}

/// What the sending thread is asked for.
struct Job {
    migrations: Migrations,
    request: Box<SendRequest>,
    reply: mpsc::Sender<Result<(), String>>,
    /// Given back when all is cleared up.
    _claim: Claim,
}

/// Whether the sending thread has a job. Who asks for another must not wait for its end: it is the API's thread.
#[derive(Default)]
struct Busy {
    taken: Mutex<bool>,
    freed: Condvar,
}

struct Claim(Arc<Busy>);

impl Busy {
    fn taken(&self) -> std::sync::MutexGuard<'_, bool> {
        self.taken.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The sending thread; `None` if it does not become free in a moment.
    fn claim(self: &Arc<Self>) -> Option<Claim> {
        let waited = self.freed.wait_timeout_while(self.taken(), CLEARING, |taken| *taken);
        let (mut taken, _) = waited.unwrap_or_else(|e| e.into_inner());
        (!std::mem::replace(&mut *taken, true)).then(|| Claim(Arc::clone(self)))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        *self.0.taken() = false;
        self.0.freed.notify_one();
    }
}

/// Starts the thread that sends: early, so that it has a filter of its own and not one on top of its starter's.
fn start_sender() -> Result<Mutex<mpsc::Sender<Job>>, String> {
    let (sender, jobs) = mpsc::channel::<Job>();
    // Nobody waits for it here: without its filter it ends, and a job that is sent to it then is refused.
    let serve = move || match sandbox::enter(sandbox::Kind::Migrate, "migrate") {
        Ok(()) => jobs.iter().for_each(Job::run),
        Err(e) => tracing::error!("{e}"),
    };
    let failed = |why: &dyn std::fmt::Display| format!("no thread for migrations: {why}");
    std::thread::Builder::new().name("migrate".into()).spawn(serve).map_err(|e| failed(&e))?;
    Ok(Mutex::new(sender))
}

impl Job {
    fn run(self) {
        let prepared = self.migrations.prepare(&self.request);
        match prepared {
            Ok((worker, leaving)) => {
                let _ = self.reply.send(Ok(()));
                worker.run(leaving);
            }
            Err(why) => drop(self.reply.send(Err(why))),
        }
    }
}

/// The migration that goes on, or the last one. Cheap to clone.
#[derive(Clone)]
pub struct Migrations(Arc<Shared>);

impl Migrations {
    /// None so far, of the machine behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Migrations(Arc::new(Shared {
            handle,
            sender: start_sender(),
            busy: Arc::default(),
            current: Mutex::new(None),
            way: Mutex::new(None),
            seen: AtomicBool::new(false),
        }))
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Progress>> {
        self.0.current.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How far it is; `None`: there was none.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let snapshot = self.current().as_ref().map(Progress::snapshot).or_else(|| self.0.handle.arrival())?;
        if snapshot.is_over() {
            self.0.seen.store(true, Ordering::SeqCst);
        }
        Some(snapshot)
    }

    /// Does what `PUT /migration` asks for. Sending goes on when this returns.
    ///
    /// # Errors
    /// Text for the operator.
    pub fn request(&self, request: MigrationRequest) -> Result<(), String> {
        match request {
            MigrationRequest::Send(request) => self.send(request),
            MigrationRequest::Receive(request) => {
                self.0.handle.act(Action::Receive(request)).map(drop).map_err(|e| e.to_string())
            }
            MigrationRequest::Cancel => {
                let arriving = self.0.handle.arriving();
                let progress = self.current().clone().or(arriving).filter(|p| !p.snapshot().is_over());
                progress.ok_or("no migration goes on")?.cancel();
                Ok(())
            }
            MigrationRequest::Postcopy => match self.current().as_ref() {
                Some(progress) if progress.snapshot().phase == Phase::Precopy => {
                    progress.ask_postcopy();
                    Ok(())
                }
                _ => Err("no pages are copied at the moment".into()),
            },
            MigrationRequest::Recover { target } => self.recover(target),
            MigrationRequest::Resume => self.reclaim(),
        }
    }

    /// Does what `PATCH /migration` asks for: new limits for what is being sent.
    ///
    /// # Errors
    /// Text for the operator.
    pub fn change(&self, change: LimitsChange) -> Result<(), String> {
        change.check()?;
        let current = self.current();
        let progress = current.as_ref().filter(|p| !p.snapshot().is_over());
        progress.ok_or("no guest is being sent")?.change(change);
        Ok(())
    }

    /// The connection of a guest that has gone, and whose pages have not, is replaced.
    fn recover(&self, target: Option<String>) -> Result<(), String> {
        let progress = self.current().clone();
        let progress = progress.filter(Progress::waits_for_connection);
        let progress = progress.ok_or("no migration waits for a new connection")?;
        let way = self.0.way.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let mut way = way.ok_or("no migration waits for a new connection")?;
        if let Some(target) = target {
            let address: Address = target.parse().map_err(|e: MigrateError| e.to_string())?;
            // What was allowed for the first connection is for this one.
            let insecure = way.tls.is_none() && !way.address.is_local();
            migrate::require_protection(&address, way.tls.is_some(), insecure).map_err(|e| e.to_string())?;
            way.address = address;
        }
        // On the thread that sends: its filter allows it.
        let told = progress.reconnect(Box::new(move || way.connect()));
        let told = told.ok_or("no migration waits for a new connection")?;
        told.recv().map_err(|_| "the thread for migrations has ended".to_owned())?
    }

    /// An operator knows that a guest whose commit was not confirmed does not run at the destination.
    fn reclaim(&self) -> Result<(), String> {
        let mut current = self.current();
        if current.as_ref().is_none_or(|p| p.snapshot().phase != Phase::Unconfirmed) {
            return Err("only a guest whose migration ended unconfirmed is resumed this way".into());
        }
        if let Some(progress) = current.as_ref() {
            progress.give_up();
        }
        self.0.handle.door().take_back().map_err(|e| e.to_string())?;
        *current = None;
        Ok(())
    }

    fn may_send(&self) -> Result<(), String> {
        if self.0.handle.arrival().is_some_and(|a| !a.is_over()) {
            return Err("the guest has not wholly arrived here: pages are still missing".into());
        }
        if let Some(before) = self.current().as_ref().map(Progress::snapshot) {
            if !before.is_over() {
                return Err(format!("a migration to {} goes on already", before.peer));
            }
            if before.phase != Phase::Failed {
                return Err("the guest was given away already".into());
            }
        }
        Ok(())
    }

    fn send(&self, request: Box<SendRequest>) -> Result<(), String> {
        self.may_send()?;
        let busy = || "a migration is still being cleared up; ask again".to_owned();
        let _claim = self.0.busy.claim().ok_or_else(busy)?;
        let (reply, answer) = mpsc::channel();
        let sender = self.0.sender.as_ref().map_err(Clone::clone)?;
        let job = Job { migrations: self.clone(), request, reply, _claim };
        let gone = || "the thread for migrations has ended".to_owned();
        sender.lock().unwrap_or_else(|e| e.into_inner()).send(job).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    /// On the sending thread: all that can be refused at once.
    fn prepare(&self, request: &SendRequest) -> Result<(Worker, Leaving<MachineDoor>), String> {
        self.may_send()?;
        let (address, options) = request.check().map_err(|e| e.to_string())?;
        let tls = request.tls_dir.as_deref().map(Tls::client).transpose().map_err(|e| e.to_string())?;
        let config = match self.0.handle.act(Action::Config) {
            Ok(Outcome::Config(config)) => config,
            Ok(_) => return Err("an unexpected outcome".into()),
            Err(denied) => return Err(denied.to_string()),
        };
        let mut devices = config.devices;
        for id in &request.move_disks {
            let drive = devices.drives.iter_mut().find(|d| d.drive_id == *id);
            drive.ok_or_else(|| format!("the guest has no drive {id}"))?.on_migration = OnMigration::Moved;
        }
        // Diff snapshots have it on all the time.
        let keep_log = config.machine.track_dirty_pages;
        let leaving = Leaving::new(self.0.handle.door(), &devices, request.allow_tsc_mismatch, keep_log)
            .map_err(|e| e.to_string())?;
        let progress = Progress::new("source", &address.to_string());
        let way = Way { address, tls, idle: options.idle };
        *self.0.way.lock().unwrap_or_else(|e| e.into_inner()) = Some(way.clone());
        let worker = Worker { migrations: self.clone(), way, options, progress: progress.clone() };
        self.0.seen.store(false, Ordering::SeqCst);
        *self.current() = Some(progress);
        Ok((worker, leaving))
    }
}

struct Worker {
    migrations: Migrations,
    way: Way,
    options: Options,
    progress: Progress,
}

impl Worker {
    fn run(self, leaving: Leaving<MachineDoor>) {
        let link = match self.way.connect() {
            Ok(link) => link,
            Err(error) => {
                return self.progress.update(|p| {
                    p.phase = Phase::Failed;
                    p.error = Some(error.to_string());
                });
            }
        };
        let way = self.way.clone();
        let connect: migrate::Connect = Box::new(move || way.connect());
        let (options, progress) = (self.options.clone(), self.progress.clone());
        match migrate::send_over(leaving, link, Some(connect), options, progress) {
            migrate::Outcome::Moved((), _) => {
                eprintln!("godwit: the guest has moved to {}", self.way.address);
                let end = Instant::now() + FAREWELL;
                while !self.migrations.0.seen.load(Ordering::SeqCst) && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(5));
                }
                // The answer that carries the report is still on its way to the client.
                std::thread::sleep(Duration::from_millis(20));
                let _ = self.migrations.0.handle.quit();
            }
            migrate::Outcome::Stayed { error, stuck, .. } => {
                eprintln!("godwit: the guest has not moved to {}: {error}", self.way.address);
                if let Some(why) = stuck {
                    eprintln!("godwit: and it could not be resumed: {why}");
                }
            }
            migrate::Outcome::Unconfirmed((), error) => {
                eprintln!("godwit: {}", unconfirmed_advice(&self.way.address.to_string(), &error));
            }
        }
    }
}
