//! The board of a test: records what the guest does and answers it.

use godwit_abi::{HostTable, Text};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Something the guest did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// IN: port, width.
    In(u16, u32),
    /// OUT: port, width, value.
    Out(u16, u32, u64),
    /// Memory read: address, width.
    Read(u64, u32),
    /// Memory write: address, width, value.
    Write(u64, u32, u64),
    /// EOI of a level-triggered vector.
    Eoi(u8),
    /// Interrupt acknowledge.
    Ack,
}

/// What a hook sees and may do, called from within a callback after the event was recorded.
pub type Hook = Box<dyn FnMut(Event) + Send>;

#[derive(Default)]
struct Inner {
    events: Vec<Event>,
    /// Vectors that the 8259 will give.
    extints: VecDeque<u8>,
    log: Vec<String>,
}

/// The board. Its address is the context of the callbacks.
#[derive(Default)]
pub struct Board {
    inner: Mutex<Inner>,
    changed: Condvar,
    hook: Mutex<Option<Hook>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What port `port` reads as.
pub fn port_value(port: u16, width: u32) -> u64 {
    (0xa1b2_c3d4 ^ u64::from(port)) & (u64::MAX >> (64 - 8 * width))
}

/// What device memory at `gpa` reads as.
pub fn memory_value(gpa: u64, width: u32) -> u64 {
    (0x8182_8384_8586_8788 ^ gpa) & (u64::MAX >> (64 - 8 * width))
}

impl Board {
    fn record(&self, event: Event) {
        lock(&self.inner).events.push(event);
        self.changed.notify_all();
        let hook = lock(&self.hook).take();
        if let Some(mut hook) = hook {
            hook(event);
            lock(&self.hook).get_or_insert(hook);
        }
    }

    /// Calls `hook` on every event from now on.
    pub fn set_hook(&self, hook: impl FnMut(Event) + Send + 'static) {
        *lock(&self.hook) = Some(Box::new(hook));
    }

    /// Takes the events so far.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut lock(&self.inner).events)
    }

    /// Waits until the guest has done this.
    pub fn wait_for(&self, event: Event) {
        let mut inner = lock(&self.inner);
        while !inner.events.contains(&event) {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The 8259 will give this vector at the next acknowledge.
    pub fn push_extint(&self, vector: u8) {
        lock(&self.inner).extints.push_back(vector);
    }

    /// Lines logged by the backend.
    pub fn log(&self) -> Vec<String> {
        lock(&self.inner).log.clone()
    }

    /// The table for a backend. `self` must outlive the VM.
    pub fn table(&self) -> HostTable {
        HostTable {
            size: size_of::<HostTable>() as u32,
            reserved: 0,
            ctx: std::ptr::from_ref(self).cast_mut().cast(),
            pio_read: Some(pio_read),
            pio_write: Some(pio_write),
            mmio_read: Some(mmio_read),
            mmio_write: Some(mmio_write),
            eoi: Some(eoi),
            extint_ack: Some(extint_ack),
            log: Some(log),
        }
    }
}

/// # Safety
/// `ctx` must be the context of a live board's table.
unsafe fn board<'a>(ctx: *mut c_void) -> &'a Board {
    // SAFETY: the caller's promise.
    unsafe { &*ctx.cast::<Board>() }
}

unsafe extern "C" fn pio_read(ctx: *mut c_void, _: u32, port: u32, width: u32) -> u64 {
    // SAFETY: the table's own context.
    unsafe { board(ctx) }.record(Event::In(port as u16, width));
    port_value(port as u16, width)
}

unsafe extern "C" fn pio_write(ctx: *mut c_void, _: u32, port: u32, width: u32, value: u64) {
    // SAFETY: as above.
    unsafe { board(ctx) }.record(Event::Out(port as u16, width, value));
}

unsafe extern "C" fn mmio_read(ctx: *mut c_void, _: u32, gpa: u64, width: u32) -> u64 {
    // SAFETY: as above.
    unsafe { board(ctx) }.record(Event::Read(gpa, width));
    memory_value(gpa, width)
}

unsafe extern "C" fn mmio_write(ctx: *mut c_void, _: u32, gpa: u64, width: u32, value: u64) {
    // SAFETY: as above.
    unsafe { board(ctx) }.record(Event::Write(gpa, width, value));
}

unsafe extern "C" fn eoi(ctx: *mut c_void, vector: u32) {
    // SAFETY: as above.
    unsafe { board(ctx) }.record(Event::Eoi(vector as u8));
}

unsafe extern "C" fn extint_ack(ctx: *mut c_void) -> i32 {
    // SAFETY: as above.
    let board = unsafe { board(ctx) };
    let vector = lock(&board.inner).extints.pop_front();
    board.record(Event::Ack);
    vector.map_or(-1, i32::from)
}

unsafe extern "C" fn log(ctx: *mut c_void, _: u32, text: Text) {
    // SAFETY: as above; the text is valid for the call.
    unsafe { lock(&board(ctx).inner) }.log.push(super::plugin::read(text));
}
