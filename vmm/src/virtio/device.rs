//! What a virtio device is to the transport.

use super::Ram;
use super::queue::{QueueError, VirtQueue};
use super::stats::Counted;
use super::transport::Interrupt;
use event_manager::EventSet;
use godwit_state::{RawSection, Section, StateError};
use std::os::fd::RawFd;

/// What a device may touch while it handles an event.
pub struct Context<'a> {
    /// Guest memory.
    pub mem: &'a Ram,
    /// All queues of the device; one that the driver left unused is not [`VirtQueue::ready`].
    pub queues: &'a mut [VirtQueue],
    /// The device's interrupt.
    pub interrupt: &'a Interrupt,
    /// Feature bits that the driver took.
    pub features: u64,
    /// Guest time in nanoseconds.
    pub now_ns: u64,
}

/// How a queue was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do until the next notification.
    Idle,
    /// There is more; call again after others had their turn.
    More,
    /// Something other than the driver must happen first (a timer, a socket).
    Blocked,
}

/// A file descriptor that the device thread watches for a device.
#[derive(Debug, Clone, Copy)]
pub struct DeviceFd {
    /// The descriptor; the device keeps it open for its whole life.
    pub fd: RawFd,
    /// What to wait for. Sources that are not always emptied must be edge-triggered.
    pub events: EventSet,
    /// Handed to [`VirtioDevice::event`].
    pub token: u32,
}

/// Why a saved device was refused.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A section is damaged, unknown or impossible.
    #[error(transparent)]
    State(#[from] StateError),
    /// The state does not fit the device that was configured here.
    #[error("{device}: {what}")]
    Mismatch {
        /// Kind and name of the device.
        device: String,
        /// What differs.
        what: String,
    },
}

/// One virtio device. All methods run under the worker's lock; none may wait for anything outside this process, unless
/// the device says that it [`waits`](VirtioDevice::WAITS).
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.2, 5).
    const TYPE: u32;
    /// It waits for files: it gets a thread of its own, so that a slow one holds nobody else up.
    const WAITS: bool = false;

    /// What people call it: kind and configured name, for messages.
    fn name(&self) -> String;

    /// Device feature bits on offer, without those of [`super::feature`].
    fn features(&self) -> u64;

    /// Greatest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Configuration space as it is now. The transport serves any aligned access to it.
    fn config(&self) -> Vec<u8>;

    /// A driver's write of `data` at `offset` of the configuration space.
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready; `features` are those it took.
    fn activate(&mut self, features: u64) {
        let _ = features;
    }

    /// Back to how it was made: the driver has gone.
    fn reset(&mut self) {}

    /// Descriptors to watch; asked for once.
    fn fds(&self) -> Vec<DeviceFd> {
        Vec::new()
    }

    /// The driver has put something into `queue`, or may have: also called when the device starts and resumes, so
    /// that nothing depends on an event from before.
    ///
    /// # Errors
    /// The queue is broken: the device stops and tells the driver to reset it.
    fn queue_event(&mut self, queue: usize, cx: &mut Context<'_>) -> Result<Progress, QueueError>;

    /// The descriptor with this token is ready. [`Progress::More`] has all queues looked at again.
    ///
    /// # Errors
    /// As [`Self::queue_event`].
    fn event(&mut self, token: u32, events: EventSet, cx: &mut Context<'_>) -> Result<Progress, QueueError> {
        let _ = (token, events, cx);
        Ok(Progress::Idle)
    }

    /// As [`Self::event`] while no driver is there or the machine is paused: empty the descriptor, touch no queue.
    fn event_ignored(&mut self, token: u32) {
        let _ = token;
    }

    /// Finishes what is in flight: after this, state and guest memory agree.
    ///
    /// # Errors
    /// As [`Self::queue_event`].
    fn drain(&mut self, cx: &mut Context<'_>) -> Result<(), QueueError> {
        let _ = cx;
        Ok(())
    }

    /// What it has done so far.
    fn counted(&self) -> Option<Counted> {
        None
    }

    /// The device's own state. The machine is paused and drained.
    fn save(&self) -> RawSection;

    /// Takes on a saved state; the device is as it was made. `active`: the driver had started it.
    ///
    /// # Errors
    /// The section is not this device's, or does not fit its configuration. The device is then unchanged.
    fn restore(&mut self, section: &RawSection, active: bool) -> Result<(), RestoreError>;
}

/// Decodes a device's own section, which must be of `S`'s kind.
///
/// # Errors
/// Another kind, damaged or impossible.
pub(super) fn section<S: Section>(raw: &RawSection) -> Result<S, StateError> {
    if raw.kind != S::KIND {
        return Err(StateError::Unknown { kind: raw.kind.clone(), version: raw.version });
    }
    godwit_state::decode_section(raw)
}
