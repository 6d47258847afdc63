//! Extensions of the contract: doorbells (ioeventfd), irqfd, counters.

use crate::backend::KvmBackend;
use crate::sys::{self, failed};
use crate::vm::KvmVm;
use godwit_sdk::abi::{self, Counters1, Doorbell1, ErrorText, Irqfd1, Text, VmHandle};
use godwit_sdk::{Error, Result, guarded, vm_ref};
use kvm_bindings::{kvm_ioeventfd, kvm_irqfd};
use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

static DOORBELL: Doorbell1 = Doorbell1 {
    size: size_of::<Doorbell1>() as u32,
    reserved: 0,
    add: Some(doorbell::<true>),
    remove: Some(doorbell::<false>),
};
static IRQFD: Irqfd1 = Irqfd1 {
    size: size_of::<Irqfd1>() as u32,
    reserved: 0,
    add: Some(irqfd::<true>),
    remove: Some(irqfd::<false>),
};
static COUNTERS: Counters1 =
    Counters1 { size: size_of::<Counters1>() as u32, reserved: 0, read: Some(counters_read) };

/// The table of an extension.
pub(crate) fn table(name: &str) -> *const c_void {
    match name {
        abi::EXT_DOORBELL_1 => (&raw const DOORBELL).cast(),
        abi::EXT_IRQFD_1 => (&raw const IRQFD).cast(),
        abi::EXT_COUNTERS_1 => (&raw const COUNTERS).cast(),
        _ => std::ptr::null(),
    }
}

impl KvmVm {
    fn doorbell(&self, gpa: u64, width: u32, value: Option<u64>, fd: i32, on: bool) -> Result<()> {
        if !matches!(width, 0 | 1 | 2 | 4 | 8) || (width == 0 && value.is_some()) {
            return Err(Error::Invalid(format!("doorbell at {gpa:#x}: a width of {width} bytes")));
        }
        let datamatch = if value.is_some() { 1 << kvm_bindings::kvm_ioeventfd_flag_nr_datamatch } else { 0 };
        let deassign = if on { 0 } else { 1 << kvm_bindings::kvm_ioeventfd_flag_nr_deassign };
        let event = kvm_ioeventfd {
            datamatch: value.unwrap_or(0),
            addr: gpa,
            len: width,
            fd,
            flags: datamatch | deassign,
            ..Default::default()
        };
        sys::ioeventfd(self.inner.fd.as_raw_fd(), &event).map_err(failed("KVM_IOEVENTFD"))
    }

    fn irqfd(&self, gsi: u32, fd: i32, on: bool) -> Result<()> {
        let flags = if on { 0 } else { kvm_bindings::KVM_IRQFD_FLAG_DEASSIGN };
        let event = kvm_irqfd { fd: fd as u32, gsi, flags, ..Default::default() };
        sys::irqfd(self.inner.fd.as_raw_fd(), &event).map_err(failed("KVM_IRQFD"))?;
        self.inner.irqfd_changed(gsi, on)
    }
}

// The functions below are called through the tables under the contract of godwit-abi: `vm` is a live handle of this backend and
// the pointers are valid for the call. Each `unsafe` block rests on that.

unsafe extern "C" fn doorbell<const ON: bool>(
    vm: VmHandle,
    gpa: u64,
    width: u32,
    match_value: u32,
    value: u64,
    fd: i32,
    err: *mut ErrorText,
) -> i32 {
    let value = (match_value != 0).then_some(value);
    // SAFETY: contract.
    unsafe { guarded(err, || vm_ref::<KvmBackend>(vm).doorbell(gpa, width, value, fd, ON)) }
}

unsafe extern "C" fn irqfd<const ON: bool>(vm: VmHandle, gsi: u32, fd: i32, err: *mut ErrorText) -> i32 {
    // SAFETY: contract.
    unsafe { guarded(err, || vm_ref::<KvmBackend>(vm).irqfd(gsi, fd, ON)) }
}

unsafe extern "C" fn counters_read(
    vm: VmHandle,
    ctx: *mut c_void,
    each: unsafe extern "C" fn(ctx: *mut c_void, name: Text, value: u64),
) {
    // SAFETY: contract.
    let counters = unsafe { &vm_ref::<KvmBackend>(vm).inner.counters };
    for (name, value) in [
        ("exits.pio", &counters.pio),
        ("exits.mmio", &counters.mmio),
        ("exits.interrupt-window", &counters.interrupt_window),
        ("exits.eoi", &counters.eoi),
        ("exits.signal", &counters.signal),
        ("exits.other", &counters.other),
        ("kicked", &counters.kicked),
    ] {
        let text = Text { ptr: name.as_ptr(), len: name.len() as u64 };
        // SAFETY: the caller's own function with its own ctx; the text outlives the call.
        unsafe { each(ctx, text, value.load(Ordering::Relaxed)) };
    }
}
