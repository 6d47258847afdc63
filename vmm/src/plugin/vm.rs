//! Safe handles over a backend's VM and vCPUs: the only callers of the contract's functions.

use super::host::{Host, HostBox};
use super::load::{Plugin, text};
use godwit_abi::{self as abi, ErrorText, HostTable, Section, Sink, Text};
use godwit_state::RawSection;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A backend's refusal or failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct BackendError {
    /// One of the contract's `ERR_` codes.
    pub code: i32,
    /// For people.
    pub text: String,
}

/// Longest error text taken from a backend, in bytes.
const ERROR_BYTES: usize = 2048;
/// Greatest section taken from a backend, in bytes.
const MAX_SECTION: u64 = 16 << 20;

/// Calls a function of the contract and turns its code and text into a result.
pub(super) fn call(what: &str, f: impl FnOnce(*mut ErrorText) -> Option<i32>) -> Result<(), BackendError> {
    let mut buffer = [0u8; ERROR_BYTES];
    let mut err = ErrorText {
        size: size_of::<ErrorText>() as u32,
        reserved: 0,
        ptr: buffer.as_mut_ptr(),
        cap: ERROR_BYTES as u64,
        len: 0,
    };
    let code = f(&mut err).unwrap_or(abi::ERR_UNSUPPORTED);
    if code == abi::OK {
        return Ok(());
    }
    let len = (err.len as usize).min(ERROR_BYTES);
    let mut text = String::from_utf8_lossy(&buffer[..len]).into_owned();
    if text.is_empty() {
        text = format!("the backend's {what} failed with code {code} and says no more");
    }
    Err(BackendError { code, text })
}

/// How a VM is to be.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Name of the CPU model.
    pub model: String,
    /// TSC frequency in kHz; `None`: the backend's own.
    pub tsc_khz: Option<u64>,
    /// Go on with another frequency where the given one cannot be had.
    pub allow_tsc_mismatch: bool,
    /// The reserved signal.
    pub kick_signal: u32,
}

/// Where a line goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiRoute {
    /// Line number.
    pub gsi: u32,
    /// Message address.
    pub address: u64,
    /// Message data; bit 15 set: level-triggered.
    pub data: u32,
    /// No message is sent.
    pub masked: bool,
}

/// Why a vCPU came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was kicked.
    Kicked,
    /// Triple fault.
    Shutdown,
}

struct VmInner {
    plugin: Arc<Plugin>,
    handle: abi::VmHandle,
    // Declared after nothing that uses it: freed when the VM is destroyed in `drop` below.
    _host: Box<(HostTable, HostBox)>,
}

// SAFETY: the handle is opaque; the [control] functions are called under the machine's ownership, the others may be
// called from any thread.
unsafe impl Send for VmInner {}
// SAFETY: as above.
unsafe impl Sync for VmInner {}

impl Drop for VmInner {
    fn drop(&mut self) {
        if let Some(destroy) = self.plugin.table.vm_destroy {
            // SAFETY: all vCPUs hold an Arc of this, so they are gone.
            unsafe { destroy(self.handle) };
        }
    }
}

/// A VM of a backend. Clones are the same VM.
#[derive(Clone)]
pub struct BackendVm(Arc<VmInner>);

/// The VM, for whoever must not keep it alive.
#[derive(Clone)]
pub struct WeakVm(std::sync::Weak<VmInner>);

impl WeakVm {
    /// The VM, while it lives.
    pub fn upgrade(&self) -> Option<BackendVm> {
        self.0.upgrade().map(BackendVm)
    }
}

impl Plugin {
    /// Makes a VM whose devices are behind `host`.
    ///
    /// # Errors
    /// The backend's; it names what cannot be had.
    pub fn create_vm(
        self: &Arc<Self>,
        config: &VmConfig,
        host: Box<dyn Host>,
    ) -> Result<BackendVm, BackendError> {
        let host = HostBox::new(host, self.descriptor().name.clone());
        let raw = abi::VmConfig {
            size: size_of::<abi::VmConfig>() as u32,
            vcpus: config.vcpus,
            model: borrow(config.model.as_bytes()),
            tsc_khz: config.tsc_khz.unwrap_or(0),
            flags: if config.allow_tsc_mismatch { abi::VM_ALLOW_TSC_MISMATCH } else { 0 },
            kick_signal: config.kick_signal,
            reserved: 0,
        };
        let mut handle = std::ptr::null_mut();
        call("vm_create", |err| {
            // SAFETY: valid for the call; the host table lives in the box that the VM keeps.
            unsafe { self.table.vm_create.map(|f| f(&raw, &host.0, &mut handle, err)) }
        })?;
        Ok(BackendVm(Arc::new(VmInner { plugin: Arc::clone(self), handle, _host: host })))
    }
}

fn borrow(bytes: &[u8]) -> Text {
    Text { ptr: bytes.as_ptr(), len: bytes.len() as u64 }
}

/// Calls a function of the VM with its handle first and the error text last.
macro_rules! vm_call {
    ($self:ident, $name:ident $(, $arg:expr)*) => {
        call(stringify!($name), |err| {
            // SAFETY: the handle lives, pointers among the arguments are valid for the call.
            unsafe { $self.0.plugin.table.$name.map(|f| f($self.0.handle $(, $arg)*, err)) }
        })
    };
}

impl BackendVm {
    /// The same VM, not kept alive.
    pub fn downgrade(&self) -> WeakVm {
        WeakVm(Arc::downgrade(&self.0))
    }

    /// The backend.
    pub fn plugin(&self) -> &Arc<Plugin> {
        &self.0.plugin
    }

    /// Adds a slot of guest memory. No vCPU is running.
    ///
    /// # Errors
    /// The backend's.
    ///
    /// # Safety
    /// `host` is mapped for `len` bytes and stays so until the slot is removed or the VM gone.
    pub unsafe fn map_memory(
        &self,
        slot: u32,
        gpa: u64,
        len: u64,
        host: *mut u8,
    ) -> Result<(), BackendError> {
        let slot =
            abi::MemorySlot { size: size_of::<abi::MemorySlot>() as u32, slot, gpa, len, host, flags: 0 };
        vm_call!(self, vm_map_memory, &slot)
    }

    /// Starts or stops logging guest writes to a slot.
    ///
    /// # Errors
    /// The backend's.
    pub fn set_dirty_log(&self, slot: u32, on: bool) -> Result<(), BackendError> {
        vm_call!(self, vm_set_dirty_log, slot, on.into())
    }

    /// ORs the slot's log into `bitmap` and clears it.
    ///
    /// # Errors
    /// The backend's.
    pub fn take_dirty_log(&self, slot: u32, bitmap: &mut [u64]) -> Result<(), BackendError> {
        let (ptr, words) = (bitmap.as_mut_ptr(), bitmap.len() as u64);
        vm_call!(self, vm_take_dirty_log, slot, ptr, words)
    }

    /// The VMM has written guest memory.
    pub fn memory_written(&self, gpa: u64, len: u64) {
        if let Some(f) = self.0.plugin.table.vm_memory_written {
            // SAFETY: [any-thread]; the handle lives.
            unsafe { f(self.0.handle, gpa, len) };
        }
    }

    /// Sends a message to the LAPICs.
    ///
    /// # Errors
    /// The backend's.
    pub fn signal_msi(&self, address: u64, data: u32) -> Result<(), BackendError> {
        vm_call!(self, vm_signal_msi, address, data)
    }

    /// Replaces the lines' routes.
    ///
    /// # Errors
    /// The backend's.
    pub fn set_routes(&self, routes: &[MsiRoute]) -> Result<(), BackendError> {
        let raw: Vec<abi::MsiRoute> = routes
            .iter()
            .map(|r| abi::MsiRoute {
                size: size_of::<abi::MsiRoute>() as u32,
                gsi: r.gsi,
                address: r.address,
                data: r.data,
                flags: if r.masked { abi::ROUTE_MASKED } else { 0 },
            })
            .collect();
        vm_call!(self, vm_set_routes, raw.as_ptr(), raw.len() as u64)
    }

    /// Level of the 8259s' output.
    pub fn set_extint(&self, level: bool) {
        if let Some(f) = self.0.plugin.table.vm_set_extint {
            // SAFETY: [any-thread]; the handle lives.
            unsafe { f(self.0.handle, level.into()) };
        }
    }

    /// Raises NMI on a vCPU.
    ///
    /// # Errors
    /// The backend's.
    pub fn inject_nmi(&self, vcpu: u32) -> Result<(), BackendError> {
        vm_call!(self, vm_inject_nmi, vcpu)
    }

    /// Stops guest time.
    ///
    /// # Errors
    /// The backend's.
    pub fn stop_clock(&self) -> Result<(), BackendError> {
        vm_call!(self, vm_stop_clock)
    }

    /// Starts guest time, `advance_ns` after the instant it was stopped at.
    ///
    /// # Errors
    /// The backend's.
    pub fn start_clock(&self, advance_ns: u64) -> Result<(), BackendError> {
        vm_call!(self, vm_start_clock, advance_ns)
    }

    /// The VM's own sections.
    ///
    /// # Errors
    /// The backend's.
    pub fn save(&self) -> Result<Vec<RawSection>, BackendError> {
        saved(|sink| vm_call!(self, vm_save, sink))
    }

    /// Loads them.
    ///
    /// # Errors
    /// The backend's.
    pub fn load(&self, sections: &[RawSection]) -> Result<(), BackendError> {
        let raw = lent(sections);
        vm_call!(self, vm_load, raw.as_ptr(), raw.len() as u64)
    }

    fn extension(&self, name: &str) -> *const c_void {
        let f = self.0.plugin.table.vm_extension;
        // SAFETY: [control]; the text is valid for the call.
        f.map_or(std::ptr::null(), |f| unsafe { f(self.0.handle, borrow(name.as_bytes())) })
    }

    /// Has the backend write to `fd` (1) when the guest writes `value` (32 bits) to `gpa`; false: it cannot.
    ///
    /// # Errors
    /// It can, and failed.
    pub fn add_doorbell(&self, gpa: u64, value: u32, fd: i32) -> Result<bool, BackendError> {
        let table = self.extension(abi::EXT_DOORBELL_1).cast::<abi::Doorbell1>();
        // SAFETY: null, or a table that lives as long as the process and begins with its size.
        if table.is_null() || (unsafe { (*table).size } as usize) < size_of::<abi::Doorbell1>() {
            return Ok(false);
        }
        call("doorbell", |err| {
            // SAFETY: as above; the VM's handle lives.
            unsafe { (*table).add.map(|f| f(self.0.handle, gpa, 4, 1, value.into(), fd, err)) }
        })?;
        Ok(true)
    }

    /// The backend's counters.
    pub fn counters(&self) -> Vec<(String, u64)> {
        unsafe extern "C" fn each(ctx: *mut c_void, name: Text, value: u64) {
            // SAFETY: ctx is the Vec below; the text is valid for the call.
            unsafe { (*ctx.cast::<Vec<(String, u64)>>()).push((text(&name), value)) }
        }
        let mut out: Vec<(String, u64)> = Vec::new();
        let table = self.extension(abi::EXT_COUNTERS_1).cast::<abi::Counters1>();
        // SAFETY: null, or a table that lives as long as the process and begins with its size.
        unsafe {
            if !table.is_null()
                && (*table).size as usize >= size_of::<abi::Counters1>()
                && let Some(read) = (*table).read
            {
                read(self.0.handle, (&raw mut out).cast(), each);
            }
        }
        out
    }

    /// Makes a vCPU.
    ///
    /// # Errors
    /// The backend's.
    pub fn create_vcpu(&self, id: u32) -> Result<BackendVcpu, BackendError> {
        let mut handle = std::ptr::null_mut();
        vm_call!(self, vcpu_create, id, &mut handle)?;
        Ok(BackendVcpu { seat: Arc::new(Seat { vm: self.clone(), handle }) })
    }
}

struct Seat {
    vm: BackendVm,
    handle: abi::VcpuHandle,
}

// SAFETY: only `vcpu_kick` is called through a shared Seat, and it is [any-thread]; the rest needs `&mut BackendVcpu`.
unsafe impl Send for Seat {}
// SAFETY: as above.
unsafe impl Sync for Seat {}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(destroy) = self.vm.0.plugin.table.vcpu_destroy {
            // SAFETY: the last holder is gone, so nobody runs it.
            unsafe { destroy(self.handle) };
        }
    }
}

/// A vCPU. Whoever has it alone may run, save or load it.
pub struct BackendVcpu {
    seat: Arc<Seat>,
}

/// Makes a vCPU's `run` return, stickily, from any thread.
#[derive(Clone)]
pub struct Kicker(Arc<Seat>);

impl Kicker {
    /// See the contract's `vcpu_kick`.
    pub fn kick(&self) {
        if let Some(f) = self.0.vm.0.plugin.table.vcpu_kick {
            // SAFETY: [any-thread]; the handle lives.
            unsafe { f(self.0.handle) };
        }
    }
}

impl BackendVcpu {
    /// What kicks it.
    pub fn kicker(&self) -> Kicker {
        Kicker(Arc::clone(&self.seat))
    }

    fn table(&self) -> &'static abi::BackendTable {
        self.seat.vm.0.plugin.table
    }

    /// Runs guest code until kicked or shut down.
    ///
    /// # Errors
    /// The backend cannot go on.
    pub fn run(&mut self) -> Result<Exit, BackendError> {
        let mut exit = abi::Exit { size: size_of::<abi::Exit>() as u32, reason: 0 };
        call("vcpu_run", |err| {
            // SAFETY: we have the vCPU alone; pointers are valid for the call.
            unsafe { self.table().vcpu_run.map(|f| f(self.seat.handle, &mut exit, err)) }
        })?;
        match exit.reason {
            abi::EXIT_KICKED => Ok(Exit::Kicked),
            abi::EXIT_SHUTDOWN => Ok(Exit::Shutdown),
            other => Err(BackendError {
                code: abi::ERR_INVALID,
                text: format!("the backend's vcpu_run returned the unknown reason {other}"),
            }),
        }
    }

    /// All sections of this vCPU.
    ///
    /// # Errors
    /// The backend's.
    pub fn save(&mut self) -> Result<Vec<RawSection>, BackendError> {
        saved(|sink| {
            call("vcpu_save", |err| {
                // SAFETY: we have the vCPU alone; the sink is valid for the call.
                unsafe { self.table().vcpu_save.map(|f| f(self.seat.handle, sink, err)) }
            })
        })
    }

    /// Replaces its state.
    ///
    /// # Errors
    /// The backend's; the vCPU must not be run then.
    pub fn load(&mut self, sections: &[RawSection]) -> Result<(), BackendError> {
        let raw = lent(sections);
        call("vcpu_load", |err| {
            // SAFETY: as above.
            unsafe {
                self.table().vcpu_load.map(|f| f(self.seat.handle, raw.as_ptr(), raw.len() as u64, err))
            }
        })
    }
}

/// Sections as the contract passes them; they borrow.
fn lent(sections: &[RawSection]) -> Vec<Section> {
    sections
        .iter()
        .map(|s| Section {
            size: size_of::<Section>() as u32,
            version: s.version,
            kind: borrow(s.kind.as_bytes()),
            data: borrow(&s.data),
            flags: if s.optional { abi::SECTION_OPTIONAL } else { 0 },
            reserved: 0,
        })
        .collect()
}

/// Collects what a backend puts into a sink.
fn saved(
    save: impl FnOnce(*const Sink) -> Result<(), BackendError>,
) -> Result<Vec<RawSection>, BackendError> {
    unsafe extern "C" fn put(ctx: *mut c_void, section: *const Section) -> i32 {
        // SAFETY: ctx is the Vec below, used by this call only; the section is valid for the call.
        let (out, s) = unsafe { (&mut *ctx.cast::<Vec<RawSection>>(), &*section) };
        if (s.size as usize) < size_of::<Section>()
            || s.data.len > MAX_SECTION
            || s.flags & !abi::SECTION_OPTIONAL != 0
        {
            return abi::ERR_INVALID;
        }
        let put = || {
            // SAFETY: null with length 0, or that many readable bytes.
            let data = match s.data.len {
                0 => Vec::new(),
                // SAFETY: that many readable bytes.
                n => unsafe { std::slice::from_raw_parts(s.data.ptr, n as usize) }.to_vec(),
            };
            out.push(RawSection {
                // SAFETY: as above.
                kind: unsafe { text(&s.kind) },
                version: s.version,
                optional: s.flags & abi::SECTION_OPTIONAL != 0,
                data,
            });
        };
        catch_unwind(AssertUnwindSafe(put)).map_or(abi::ERR_PANIC, |()| abi::OK)
    }
    let mut out: Vec<RawSection> = Vec::new();
    let sink =
        Sink { size: size_of::<Sink>() as u32, reserved: 0, ctx: (&raw mut out).cast(), put: Some(put) };
    save(&sink)?;
    Ok(out)
}
