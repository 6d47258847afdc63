//! What other threads hold of the control thread.

use super::receiving::Landed;
use super::{Action, Denied, Outcome, Requests};
use crate::machine::{Event, EventSink, Machine};
use crate::migrate::{Fault, Progress, Snapshot};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

/// Work with the machine.
type Work = Box<dyn FnOnce(Option<&mut Machine>) + Send>;

pub(super) enum Message {
    Act(Action, Sender<Result<Outcome, Denied>>),
    With(Work),
    GiveAway(Sender<()>),
    TakeBack(Sender<Result<(), Denied>>),
    Built(Sender<Result<(), Denied>>),
    Landed(Landed),
    Event(Event),
    Quit,
}

/// Sends requests to the control thread. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Sender<Message>, Requests, Arc<Life>);

/// What others must know while the control thread is busy.
#[derive(Default)]
struct Life {
    building: AtomicBool,
    quitting: AtomicBool,
    /// How far a machine that comes from elsewhere is.
    arrival: Mutex<Option<Progress>>,
}

impl Handle {
    pub(super) fn pair() -> (Handle, Receiver<Message>) {
        let (sender, receiver) = channel();
        (Handle(sender, Requests::default(), Arc::default()), receiver)
    }

    /// Has an action done and waits for the answer.
    ///
    /// # Errors
    /// Denied, with the reason.
    pub fn act(&self, action: Action) -> Result<Outcome, Denied> {
        let (reply, answer) = channel();
        self.0.send(Message::Act(action, reply)).map_err(|_| Denied::Ended)?;
        answer.recv().map_err(|_| Denied::Ended)?
    }

    /// API requests, counted for the metrics.
    pub fn requests(&self) -> &Requests {
        &self.1
    }

    /// The machine comes from elsewhere, and this is how far it is.
    pub fn set_arrival(&self, progress: Progress) {
        *self.2.arrival.lock().unwrap_or_else(|e| e.into_inner()) = Some(progress);
    }

    /// How far a machine that comes from elsewhere is.
    pub fn arrival(&self) -> Option<Snapshot> {
        self.2.arrival.lock().unwrap_or_else(|e| e.into_inner()).as_ref().map(Progress::snapshot)
    }

    /// The arrival itself, to cancel it.
    pub(super) fn arriving(&self) -> Option<Progress> {
        self.2.arrival.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// The receiving thread has built a machine: the control thread binds itself.
    pub(super) fn built(&self) -> Result<(), Fault> {
        let (reply, answer) = channel();
        self.0.send(Message::Built(reply)).map_err(|_| Denied::Ended)?;
        Ok(answer.recv().map_err(|_| Denied::Ended)??)
    }

    /// The receiving thread is done.
    pub(super) fn landed(&self, landed: Landed) {
        let _ = self.0.send(Message::Landed(landed));
    }

    /// Asks for the end, without waiting. False: a machine is being built, however long that takes, and no guest has run
    /// yet; the process may as well end at once.
    pub fn quit(&self) -> bool {
        self.2.quitting.store(true, Ordering::SeqCst);
        if self.2.building.load(Ordering::SeqCst) {
            return false;
        }
        let _ = self.0.send(Message::Quit);
        true
    }

    /// Says that a machine is being built, or no longer. False: the end was asked for before.
    pub(super) fn building(&self, yes: bool) -> bool {
        self.2.building.store(yes, Ordering::SeqCst);
        !self.2.quitting.load(Ordering::SeqCst)
    }

    /// Where a machine's events go.
    pub fn event_sink(&self) -> EventSink {
        let sender = self.0.clone();
        Arc::new(move |event| drop(sender.send(Message::Event(event))))
    }

    /// The machine, for a migration or a snapshot.
    pub fn door(&self) -> MachineDoor {
        MachineDoor(self.clone())
    }
}

/// A way to have the control thread do something with its machine, one thing at a time.
pub struct MachineDoor(Handle);

impl MachineDoor {
    /// Has `f` done on the control thread and waits for it. `None`: there is no machine, or no control thread any more.
    pub fn with<R: Send + 'static>(&self, f: impl FnOnce(&mut Machine) -> R + Send + 'static) -> Option<R> {
        let (reply, answer) = channel();
        let work: Work = Box::new(move |machine| {
            if let Some(machine) = machine {
                let _ = reply.send(f(machine));
            }
        });
        (self.0).0.send(Message::With(work)).ok()?;
        answer.recv().ok()
    }

    /// The guest is somebody else's from here on: no action resumes it any more.
    pub fn give_away(self) {
        let (reply, done) = channel();
        if (self.0).0.send(Message::GiveAway(reply)).is_ok() {
            let _ = done.recv();
        }
    }

    /// An operator's word that a guest that was given away does not run elsewhere: it goes on here.
    ///
    /// # Errors
    /// It was not given away, or cannot be run.
    pub fn take_back(self) -> Result<(), Denied> {
        let (reply, done) = channel();
        (self.0).0.send(Message::TakeBack(reply)).map_err(|_| Denied::Ended)?;
        done.recv().map_err(|_| Denied::Ended)?
    }
}
