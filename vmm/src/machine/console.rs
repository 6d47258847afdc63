//! The serial port's other end: where its output goes, and what is typed.

use super::{Event, EventSink};
use crate::board::serial::{Nowhere, Output, Serial};
use crate::board::timers::Alarm;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// The escape key: Ctrl-A. Then `x` ends the machine, another Ctrl-A types one.
const ESCAPE: u8 = 1;
/// How long a stream of output is gathered before it is passed on.
const GATHER: Duration = Duration::from_millis(1);
/// When output that the host did not take is offered again.
const RETRY: Duration = Duration::from_millis(5);

/// Both directions of a machine's console.
pub struct Console {
    /// What is typed.
    pub input: Option<File>,
    /// What the guest says.
    pub output: Box<dyn Output>,
    /// The escape key works.
    pub escape: bool,
}

impl Default for Console {
    /// Nobody types, nobody listens.
    fn default() -> Self {
        Console { input: None, output: Box::new(Nowhere), escape: false }
    }
}

/// The device thread's part: reads what is typed while the port has room, and retries output.
pub(super) struct ConsoleInput {
    input: Option<File>,
    watching: bool,
    escape: bool,
    escaped: bool,
    serial: Arc<Mutex<Serial>>,
    attention: Arc<EventFd>,
    events: EventSink,
    retry: Alarm,
}

impl ConsoleInput {
    pub(super) fn new(
        input: Option<File>,
        escape: bool,
        serial: Arc<Mutex<Serial>>,
        events: EventSink,
    ) -> std::io::Result<Self> {
        let attention = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let bell = Arc::clone(&attention);
        serial.lock().unwrap_or_else(|e| e.into_inner()).on_attention(Box::new(move || drop(bell.write(1))));
        let retry = Alarm::new()?;
        Ok(ConsoleInput { input, watching: false, escape, escaped: false, serial, attention, events, retry })
    }

    fn watch(&mut self, ops: &mut EventOps<'_>, on: bool) {
        let Some(input) = &self.input else { return };
        if on == self.watching {
            return;
        }
        let events = Events::new(input, EventSet::IN);
        let done = if on { ops.add(events) } else { ops.remove(events) };
        match done {
            Ok(()) => self.watching = on,
            // A regular file cannot be watched (and /dev/null neither): there is nobody to type.
            Err(e) => {
                tracing::debug!("console input is not watched: {e:?}");
                self.input = None;
            }
        }
    }

    /// Takes the escape key out of what was typed; true: the machine is to end.
    fn filter(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            match (self.escape, std::mem::take(&mut self.escaped), byte) {
                (true, true, b'x' | b'X') => return true,
                (true, false, ESCAPE) => self.escaped = true,
                _ => out.push(byte),
            }
        }
        false
    }

    fn read(&mut self, ops: &mut EventOps<'_>) {
        let serial = Arc::clone(&self.serial);
        let mut serial = serial.lock().unwrap_or_else(|e| e.into_inner());
        let mut buffer = [0u8; 64];
        let room = serial.room().min(buffer.len());
        if room == 0 {
            return self.watch(ops, false);
        }
        let Some(input) = &mut self.input else { return };
        match input.read(&mut buffer[..room]) {
            Ok(0) => {
                // End of input: the guest goes on without.
                self.watch(ops, false);
                self.input = None;
            }
            Ok(n) => {
                let mut typed = Vec::with_capacity(n);
                if self.filter(&buffer[..n], &mut typed) {
                    (self.events)(Event::Escape);
                }
                serial.receive(&typed);
            }
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
            Err(_) => {
                self.watch(ops, false);
                self.input = None;
            }
        }
    }

    /// Output that the host did not take is offered again soon: not every file can be waited for.
    fn flush(&mut self) {
        let mut serial = self.serial.lock().unwrap_or_else(|e| e.into_inner());
        serial.flush();
        let again = serial.blocked();
        drop(serial);
        if again {
            let _ = self.retry.set(Some(RETRY));
        }
    }

    /// The port has room again, or output waits. What is gathered is left to grow for a moment.
    fn attend(&mut self) {
        let serial = self.serial.lock().unwrap_or_else(|e| e.into_inner());
        let (blocked, stalled) = (serial.blocked(), serial.stalled());
        drop(serial);
        if stalled {
            self.flush();
        } else if blocked {
            let _ = self.retry.set(Some(GATHER));
        }
    }
}

impl MutEventSubscriber for ConsoleInput {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for fd in [self.attention.as_raw_fd(), self.retry.as_raw_fd()] {
            if let Err(e) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                tracing::error!("console: {e:?}");
            }
        }
        self.watch(ops, true);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.attention.as_raw_fd() {
            let _ = self.attention.read();
            self.watch(ops, true);
            self.attend();
        } else if events.fd() == self.retry.as_raw_fd() {
            if self.retry.fired() {
                self.flush();
            }
        } else {
            self.read(ops);
        }
    }
}
