//! The VMM as a backend calls it, with a fence that no panic passes.

use godwit_abi::{self as abi, HostTable, Text};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the machine does for a backend's vCPUs. Called from vCPU threads.
pub trait Host: Send + Sync {
    /// IN.
    fn pio_read(&self, port: u16, width: u32) -> u64;
    /// OUT.
    fn pio_write(&self, port: u16, width: u32, value: u64);
    /// Read outside RAM.
    fn mmio_read(&self, gpa: u64, width: u32) -> u64;
    /// Write outside writable RAM.
    fn mmio_write(&self, gpa: u64, width: u32, value: u64);
    /// A level-triggered interrupt has been ended.
    fn eoi(&self, vector: u8);
    /// Interrupt acknowledge cycle of the 8259s.
    fn extint_ack(&self) -> Option<u8>;
}

/// The table and the object behind it; lives as long as the VM.
pub(super) struct HostBox {
    host: Box<dyn Host>,
    backend: String,
}

impl HostBox {
    pub(super) fn new(host: Box<dyn Host>, backend: String) -> Box<(HostTable, HostBox)> {
        let mut pair = Box::new((
            HostTable {
                size: size_of::<HostTable>() as u32,
                reserved: 0,
                ctx: std::ptr::null_mut(),
                pio_read: Some(pio_read),
                pio_write: Some(pio_write),
                mmio_read: Some(mmio_read),
                mmio_write: Some(mmio_write),
                eoi: Some(eoi),
                extint_ack: Some(extint_ack),
                log: Some(log),
            },
            HostBox { host, backend },
        ));
        pair.0.ctx = (&raw const pair.1).cast_mut().cast();
        pair
    }
}

/// Runs `f` on the object; a panic is our bug, is said once here, and answers `otherwise`.
///
/// # Safety
/// `ctx` is the pointer that [`HostBox::new`] put into the table, and the box lives.
unsafe fn fenced<R>(ctx: *mut c_void, otherwise: R, f: impl FnOnce(&HostBox) -> R) -> R {
    // SAFETY: the caller's promise; the object is only ever shared.
    let host = unsafe { &*ctx.cast::<HostBox>() };
    catch_unwind(AssertUnwindSafe(|| f(host))).unwrap_or_else(|_| {
        tracing::error!("a device panicked while the guest accessed it: this is a bug in godwit");
        otherwise
    })
}

unsafe extern "C" fn pio_read(ctx: *mut c_void, _vcpu: u32, port: u32, width: u32) -> u64 {
    // SAFETY: the backend passes the table's ctx.
    unsafe { fenced(ctx, u64::MAX, |h| h.host.pio_read(port as u16, width)) }
}

unsafe extern "C" fn pio_write(ctx: *mut c_void, _vcpu: u32, port: u32, width: u32, value: u64) {
    // SAFETY: as above.
    unsafe { fenced(ctx, (), |h| h.host.pio_write(port as u16, width, value)) }
}

unsafe extern "C" fn mmio_read(ctx: *mut c_void, _vcpu: u32, gpa: u64, width: u32) -> u64 {
    // SAFETY: as above.
    unsafe { fenced(ctx, u64::MAX, |h| h.host.mmio_read(gpa, width)) }
}

unsafe extern "C" fn mmio_write(ctx: *mut c_void, _vcpu: u32, gpa: u64, width: u32, value: u64) {
    // SAFETY: as above.
    unsafe { fenced(ctx, (), |h| h.host.mmio_write(gpa, width, value)) }
}

unsafe extern "C" fn eoi(ctx: *mut c_void, vector: u32) {
    // SAFETY: as above.
    unsafe { fenced(ctx, (), |h| h.host.eoi(vector as u8)) }
}

unsafe extern "C" fn extint_ack(ctx: *mut c_void) -> i32 {
    // SAFETY: as above.
    unsafe { fenced(ctx, -1, |h| h.host.extint_ack().map_or(-1, i32::from)) }
}

unsafe extern "C" fn log(ctx: *mut c_void, level: u32, text: Text) {
    // SAFETY: as above; the text is valid for the call.
    unsafe {
        fenced(ctx, (), |h| {
            let text = super::load::text(&text);
            let backend = &h.backend;
            match level {
                abi::LOG_ERROR => tracing::error!("{backend}: {text}"),
                abi::LOG_WARN => tracing::warn!("{backend}: {text}"),
                abi::LOG_INFO => tracing::info!("{backend}: {text}"),
                _ => tracing::debug!("{backend}: {text}"),
            }
        });
    }
}
