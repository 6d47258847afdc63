//! The VMM as a backend sees it: device access, interrupt acknowledge, log.

use crate::{Error, Result};
use godwit_abi::{self as abi, HostTable, Text};
use std::ffi::c_void;

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// Worth knowing.
    Info,
    /// For whoever debugs a guest.
    Debug,
}

/// The VMM's callbacks. Cheap to clone; valid as long as the VM.
#[derive(Clone, Copy)]
pub struct Host {
    ctx: *mut c_void,
    pio_read: unsafe extern "C" fn(*mut c_void, u32, u32, u32) -> u64,
    pio_write: unsafe extern "C" fn(*mut c_void, u32, u32, u32, u64),
    mmio_read: unsafe extern "C" fn(*mut c_void, u32, u64, u32) -> u64,
    mmio_write: unsafe extern "C" fn(*mut c_void, u32, u64, u32, u64),
    eoi: unsafe extern "C" fn(*mut c_void, u32),
    extint_ack: unsafe extern "C" fn(*mut c_void) -> i32,
    log: unsafe extern "C" fn(*mut c_void, u32, Text),
}

// SAFETY: the contract lets every callback be used from any vCPU thread, and log from any thread.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Host {
    /// # Safety
    /// `table` must be null or point to a readable [`HostTable`] whose functions and `ctx` live until the VM is destroyed.
    pub(crate) unsafe fn from_table(table: *const HostTable) -> Result<Self> {
        let missing = || Error::Invalid("the host table is null, too short, or lacks a function".into());
        // SAFETY: the caller's promise; `size` is the first field.
        let size = if table.is_null() { 0 } else { unsafe { (*table).size } };
        if (size as usize) < size_of::<HostTable>() {
            return Err(missing());
        }
        // SAFETY: at least as long as the struct.
        let t = unsafe { &*table };
        Ok(Host {
            ctx: t.ctx,
            pio_read: t.pio_read.ok_or_else(missing)?,
            pio_write: t.pio_write.ok_or_else(missing)?,
            mmio_read: t.mmio_read.ok_or_else(missing)?,
            mmio_write: t.mmio_write.ok_or_else(missing)?,
            eoi: t.eoi.ok_or_else(missing)?,
            extint_ack: t.extint_ack.ok_or_else(missing)?,
            log: t.log.ok_or_else(missing)?,
        })
    }

    /// IN: `width` 1, 2 or 4 bytes; unused high bits of the result are zero.
    pub fn pio_read(&self, vcpu: u32, port: u16, width: u32) -> u64 {
        // SAFETY: functions and ctx are valid as long as the VM.
        unsafe { (self.pio_read)(self.ctx, vcpu, u32::from(port), width) }
    }

    /// OUT.
    pub fn pio_write(&self, vcpu: u32, port: u16, width: u32, value: u64) {
        // SAFETY: as above.
        unsafe { (self.pio_write)(self.ctx, vcpu, u32::from(port), width, value) }
    }

    /// Read of 1 to 8 bytes outside RAM.
    pub fn mmio_read(&self, vcpu: u32, gpa: u64, width: u32) -> u64 {
        // SAFETY: as above.
        unsafe { (self.mmio_read)(self.ctx, vcpu, gpa, width) }
    }

    /// Write of 1 to 8 bytes outside writable RAM.
    pub fn mmio_write(&self, vcpu: u32, gpa: u64, width: u32, value: u64) {
        // SAFETY: as above.
        unsafe { (self.mmio_write)(self.ctx, vcpu, gpa, width, value) }
    }

    /// A level-triggered interrupt has been ended.
    pub fn eoi(&self, vector: u8) {
        // SAFETY: as above.
        unsafe { (self.eoi)(self.ctx, u32::from(vector)) }
    }

    /// Acknowledges the 8259s: the vector, unless the request has gone away.
    pub fn extint_ack(&self) -> Option<u8> {
        // SAFETY: as above.
        u8::try_from(unsafe { (self.extint_ack)(self.ctx) }).ok()
    }

    /// Writes a log line.
    pub fn log(&self, level: LogLevel, text: &str) {
        let level = match level {
            LogLevel::Error => abi::LOG_ERROR,
            LogLevel::Warn => abi::LOG_WARN,
            LogLevel::Info => abi::LOG_INFO,
            LogLevel::Debug => abi::LOG_DEBUG,
        };
        // SAFETY: as above; the text outlives the call.
        unsafe { (self.log)(self.ctx, level, Text { ptr: text.as_ptr(), len: text.len() as u64 }) }
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Host")
    }
}
