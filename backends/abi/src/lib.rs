//! The C contract between Godwit's VMM and a CPU backend: types and constants, no logic.
//!
//! A backend is a shared library that exports one symbol, [`ENTRY_SYMBOL`], of type [`EntryFn`].
//! The VMM's `plugin` module calls it once and keeps the [`BackendTable`] it returns; authors of
//! backends do not use this crate directly but the safe traits of `godwit-sdk`.
//!
//! ```text
//!   VMM                                        backend (.so)
//!   dlopen, dlsym(godwit_backend_entry) ─────► *const BackendTable   (static)
//!   vm_create(VmConfig, HostTable)      ─────► VmHandle
//!   vcpu_run(VcpuHandle)                ─────► … runs guest code …
//!        HostTable.pio_read/mmio_write  ◄───── device access of the guest
//! ```
//!
//! # Rules
//! - [`MAGIC`] and [`ABI_MAJOR`] must match exactly. [`ABI_MINOR`] grows when something is appended.
//! - Every struct that crosses begins with `size: u32`, its own size in bytes as the writer knows it,
//!   and is only ever appended to. A reader takes what both sides know: missing fields count as zero,
//!   and zero always means "as before". A non-zero tail that the reader does not know, or an unknown
//!   flag, is refused with [`ERR_INVALID`].
//! - Only fixed-width integers and pointers cross. Nobody frees what the other side allocated.
//! - No unwinding crosses: each side catches its own panics.
//! - Each function is tagged with the threads that may call it:
//!   - `[control]`: one thread at a time per VM, the machine's owner;
//!   - `[vcpu-thread]`: the thread that runs this vCPU, one at a time, always the same one while
//!     inside `vcpu_run`;
//!   - `[any-thread]`: any thread at any time while the handle lives;
//!   - `[any-thread, signal-safe]`: also from a signal handler.
//!
//! Guest-physical addresses and lengths are in bytes; dirty logs count guest pages of
//! [`GUEST_PAGE_SIZE`] bytes whatever the host's page size is.

#![no_std]
#![forbid(unsafe_code)]

use core::ffi::{CStr, c_void};
use core::mem::{align_of, offset_of, size_of};

/// First field that a loader checks: the bytes "GODWITBE" read as a big-endian number.
pub const MAGIC: u64 = 0x474f_4457_4954_4245;
/// Incompatible revision of this contract. Must be equal on both sides.
pub const ABI_MAJOR: u32 = 1;
/// Compatible revision: what has been appended so far.
pub const ABI_MINOR: u32 = 1;
/// The one exported symbol.
pub const ENTRY_SYMBOL: &CStr = c"godwit_backend_entry";
/// The type of [`ENTRY_SYMBOL`]. Returns a table that lives as long as the process.
pub type EntryFn = unsafe extern "C" fn() -> *const BackendTable;

/// Page size of dirty logs: an x86 page.
pub const GUEST_PAGE_SIZE: u64 = 4096;

/// Success.
pub const OK: i32 = 0;
/// An argument, size, flag or handle the callee does not accept.
pub const ERR_INVALID: i32 = 1;
/// Well-formed, but this backend cannot do it.
pub const ERR_UNSUPPORTED: i32 = 2;
/// This host lacks what the backend needs (a device node, a permission, a capability).
pub const ERR_UNUSABLE: i32 = 3;
/// A state section was refused.
pub const ERR_STATE: i32 = 4;
/// A system call failed.
pub const ERR_HOST: i32 = 5;
/// The backend panicked; the VM must be given up.
pub const ERR_PANIC: i32 = 6;
/// The backend cannot go on running this guest (KVM's internal error, for instance).
pub const ERR_GUEST: i32 = 7;

/// UTF-8 text or bytes, not NUL-terminated. Owned by whoever passes it, valid for the call only
/// unless the field's own comment says longer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// First byte; may be null when `len` is 0.
    pub ptr: *const u8,
    /// Length in bytes.
    pub len: u64,
}

/// A list of [`Text`]s, with the lifetime of what holds it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TextList {
    /// First element; may be null when `len` is 0.
    pub ptr: *const Text,
    /// Number of elements.
    pub len: u64,
}

/// Where a callee writes the text of an error. The buffer is the caller's; the callee truncates.
#[repr(C)]
#[derive(Debug)]
pub struct ErrorText {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// The caller's buffer.
    pub ptr: *mut u8,
    /// Its capacity in bytes.
    pub cap: u64,
    /// Bytes written by the callee, at most `cap`.
    pub len: u64,
}

/// A state section kind that a backend reads and writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SectionKind {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Newest version written; all versions from 1 to this are read.
    pub version: u32,
    /// For instance "x86.lapic". Lives as long as the process.
    pub kind: Text,
}

/// What a backend says of itself before any VM exists. Everything in it lives as long as the process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// Short name, `[a-z0-9-]`, shown to people; the VMM never decides by it.
    pub name: Text,
    /// One line for people.
    pub summary: Text,
    /// The backend's own version.
    pub version: Text,
    /// CPU models it can offer on some host; [`Probe`] says which on this one.
    pub models: TextList,
    /// First element of the state sections it reads and writes.
    pub sections: *const SectionKind,
    /// Their number.
    pub sections_len: u64,
    /// Linux system calls its threads make once the VM runs, by name.
    pub system_calls: TextList,
    /// Device nodes it opens, by absolute path.
    pub device_nodes: TextList,
    /// ioctl request numbers it makes once the VM runs; empty if it makes none.
    pub ioctls: *const u64,
    /// Their number.
    pub ioctls_len: u64,
    /// Preference among usable backends, higher first; hardware above software.
    pub rank: u32,
    /// Zero.
    pub reserved2: u32,
    /// Appended in revision 1.1. What its vCPU threads make of `system_calls`; null: all of them.
    pub vcpu_calls: TextList,
    /// What they make of `ioctls`; null: all of them.
    pub vcpu_ioctls: *const u64,
    /// Their number.
    pub vcpu_ioctls_len: u64,
    /// The same for the functions that the device thread calls (MSI, ExtINT, memory written): null: all of them.
    pub device_calls: TextList,
    /// What they make of `ioctls`; null: all of them.
    pub device_ioctls: *const u64,
    /// Their number.
    pub device_ioctls_len: u64,
}

impl Descriptor {
    /// Size of the struct as revision 1.0 had it: the least that a backend may give.
    pub const SIZE_1_0: u32 = offset_of!(Descriptor, vcpu_calls) as u32;
}

/// What a backend can do on this host, now.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Size of this struct in bytes; set by the caller.
    pub size: u32,
    /// Greatest number of vCPUs in a VM.
    pub max_vcpus: u32,
    /// Models that can be offered here, weakest first. Lives as long as the process.
    pub models: TextList,
    /// Frequency that a new guest's TSC would have, in kHz.
    pub tsc_khz: u64,
    /// [`PROBE_TSC_SCALING`] and others to come.
    pub flags: u64,
    /// What the model "host" has here, by CPUID register: leaf 1 EDX, ECX; leaf 7 EBX, ECX; leaf 0xd.1 EAX; leaf 0x80000001
    /// EDX, ECX; then zero. All zero: not told, and such guests cannot be compared. Since [`ABI_MINOR`] 1.
    pub host_features: [u32; 8],
}

/// Size of [`Probe`] as its first version had it.
pub const PROBE_SIZE_0: u32 = 40;

/// The backend can give a guest another TSC frequency than [`Probe::tsc_khz`].
pub const PROBE_TSC_SCALING: u64 = 1;

/// How a VM is to be.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct VmConfig {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Number of vCPUs, at least 1; their ids and APIC ids are 0 to this - 1.
    pub vcpus: u32,
    /// Name of the CPU model.
    pub model: Text,
    /// Frequency of the guest's TSC in kHz; 0: the backend's own.
    pub tsc_khz: u64,
    /// [`VM_ALLOW_TSC_MISMATCH`] and others to come.
    pub flags: u64,
    /// Real-time signal that the VMM has reserved for `vcpu_kick`, with an empty handler
    /// installed without SA_RESTART; 0: none, the backend must do without.
    pub kick_signal: u32,
    /// Zero.
    pub reserved: u32,
}

/// Go on with the host's TSC frequency where the asked one cannot be had.
pub const VM_ALLOW_TSC_MISMATCH: u64 = 1;

/// A stretch of guest RAM or ROM.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MemorySlot {
    /// Size of this struct in bytes.
    pub size: u32,
    /// The VMM's number for it, 0 to 31.
    pub slot: u32,
    /// Guest-physical address, a multiple of [`GUEST_PAGE_SIZE`].
    pub gpa: u64,
    /// Length in bytes, a multiple of [`GUEST_PAGE_SIZE`].
    pub len: u64,
    /// Where it is mapped in this process, readable and writable, page-aligned. The VMM's; it
    /// stays mapped until the slot is unmapped or the VM destroyed. Guest, VMM and backend write
    /// it concurrently: never form a reference into it.
    pub host: *mut u8,
    /// [`SLOT_READ_ONLY`] and others to come.
    pub flags: u64,
}

/// Guest writes are dropped, with the MMIO write callback called instead.
pub const SLOT_READ_ONLY: u64 = 1;

/// Where one interrupt line of the board goes, as the message it is delivered by.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MsiRoute {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Line number: 0 to 23 are the I/O APIC's pins.
    pub gsi: u32,
    /// Message address (SDM vol. 3A, 11.11.1).
    pub address: u64,
    /// Message data (SDM vol. 3A, 11.11.2). Bit 15 set: level-triggered, its EOI is reported.
    pub data: u32,
    /// [`ROUTE_MASKED`] and others to come.
    pub flags: u32,
}

/// The line is masked: its message must not be sent, but its EOI still counts.
pub const ROUTE_MASKED: u32 = 1;

/// One state section, in either direction. Data are the postcard bytes of a `godwit-state` struct.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Version of the layout.
    pub version: u32,
    /// Kind, for instance "x86.lapic".
    pub kind: Text,
    /// The bytes.
    pub data: Text,
    /// [`SECTION_OPTIONAL`] and others to come.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// A reader that does not know this kind may skip it.
pub const SECTION_OPTIONAL: u32 = 1;

/// Where a backend puts the sections it saves. `put` returns [`OK`] or the error to give back.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sink {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// The caller's.
    pub ctx: *mut c_void,
    /// Called once a section, on the calling thread; copies what it needs.
    pub put: Option<unsafe extern "C" fn(ctx: *mut c_void, section: *const Section) -> i32>,
}

/// Why `vcpu_run` came back.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Size of this struct in bytes; set by the caller.
    pub size: u32,
    /// [`EXIT_KICKED`] or [`EXIT_SHUTDOWN`].
    pub reason: u32,
}

/// `vcpu_kick` was called.
pub const EXIT_KICKED: u32 = 1;
/// Triple fault (SDM vol. 3A, 6.15): the guest's processor has shut down.
pub const EXIT_SHUTDOWN: u32 = 2;

/// A VM of the backend.
pub type VmHandle = *mut c_void;
/// A vCPU of the backend.
pub type VcpuHandle = *mut c_void;

/// Levels of [`HostTable::log`].
pub const LOG_ERROR: u32 = 1;
/// See [`LOG_ERROR`].
pub const LOG_WARN: u32 = 2;
/// See [`LOG_ERROR`].
pub const LOG_INFO: u32 = 3;
/// See [`LOG_ERROR`].
pub const LOG_DEBUG: u32 = 4;

/// What the VMM does for a backend. The VMM's, it lives until `vm_destroy` returns; so does `ctx`.
/// Values are numbers (never host byte order); unused high bits are zero. No function may be
/// called while holding a lock that one of the backend's `[any-thread]` functions takes: the
/// board answers a device access by raising interrupts.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostTable {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// First argument of every function.
    pub ctx: *mut c_void,
    /// `[vcpu-thread]` IN from `port`, `width` 1, 2 or 4 bytes.
    pub pio_read: Option<unsafe extern "C" fn(ctx: *mut c_void, vcpu: u32, port: u32, width: u32) -> u64>,
    /// `[vcpu-thread]` OUT to `port`.
    pub pio_write:
        Option<unsafe extern "C" fn(ctx: *mut c_void, vcpu: u32, port: u32, width: u32, value: u64)>,
    /// `[vcpu-thread]` Read of `width` 1 to 8 bytes where no slot is.
    pub mmio_read: Option<unsafe extern "C" fn(ctx: *mut c_void, vcpu: u32, gpa: u64, width: u32) -> u64>,
    /// `[vcpu-thread]` Write of `width` 1 to 8 bytes where no writable slot is.
    pub mmio_write:
        Option<unsafe extern "C" fn(ctx: *mut c_void, vcpu: u32, gpa: u64, width: u32, value: u64)>,
    /// `[vcpu-thread]` A vCPU ended a level-triggered interrupt with this vector.
    pub eoi: Option<unsafe extern "C" fn(ctx: *mut c_void, vector: u32)>,
    /// `[vcpu-thread]` Interrupt acknowledge cycle of the 8259s: the vector, or -1 if the request
    /// has gone away. Called while `vm_set_extint` is raised and the vCPU can take it.
    pub extint_ack: Option<unsafe extern "C" fn(ctx: *mut c_void) -> i32>,
    /// `[any-thread]` A line for the log.
    pub log: Option<unsafe extern "C" fn(ctx: *mut c_void, level: u32, text: Text)>,
}

/// The backend's functions. All are mandatory: a null one is refused at load.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BackendTable {
    /// [`MAGIC`]. First, so that a reader of any revision finds it.
    pub magic: u64,
    /// [`ABI_MAJOR`].
    pub abi_major: u32,
    /// [`ABI_MINOR`].
    pub abi_minor: u32,
    /// Size of this struct in bytes.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// What this backend is. Lives as long as the process.
    pub descriptor: *const Descriptor,
    /// `[control]` What it can do on this host; [`ERR_UNUSABLE`] with a text if nothing.
    pub probe: Option<unsafe extern "C" fn(out: *mut Probe, err: *mut ErrorText) -> i32>,

    /// `[control]` Makes a VM. `config` is read during the call; `host` must outlive the VM.
    pub vm_create: Option<
        unsafe extern "C" fn(
            config: *const VmConfig,
            host: *const HostTable,
            out: *mut VmHandle,
            err: *mut ErrorText,
        ) -> i32,
    >,
    /// `[control]` Destroys a VM. All its vCPUs must have been destroyed.
    pub vm_destroy: Option<unsafe extern "C" fn(vm: VmHandle)>,
    /// `[control]` Adds a slot. No vCPU may be inside `vcpu_run`.
    pub vm_map_memory:
        Option<unsafe extern "C" fn(vm: VmHandle, slot: *const MemorySlot, err: *mut ErrorText) -> i32>,
    /// `[control]` Removes a slot. No vCPU may be inside `vcpu_run`.
    pub vm_unmap_memory: Option<unsafe extern "C" fn(vm: VmHandle, slot: u32, err: *mut ErrorText) -> i32>,
    /// `[control]` Starts (1) or stops (0) logging guest writes to a slot; starting clears the log.
    /// vCPUs may be running.
    pub vm_set_dirty_log:
        Option<unsafe extern "C" fn(vm: VmHandle, slot: u32, on: u32, err: *mut ErrorText) -> i32>,
    /// `[control]` ORs the log of a slot into `bitmap` (bit i % 64 of word i / 64 is page i) and
    /// clears the log. `words` must be the slot's pages divided by 64, rounded up. A page written
    /// during the call is in this log or in the next, never in none. vCPUs may be running.
    pub vm_take_dirty_log: Option<
        unsafe extern "C" fn(
            vm: VmHandle,
            slot: u32,
            bitmap: *mut u64,
            words: u64,
            err: *mut ErrorText,
        ) -> i32,
    >,
    /// `[any-thread]` The VMM has written guest memory (a device's DMA): decoded code there is
    /// stale. Not for the dirty log: the VMM keeps its own.
    pub vm_memory_written: Option<unsafe extern "C" fn(vm: VmHandle, gpa: u64, len: u64)>,
    /// `[any-thread]` Delivers a message-signalled interrupt to the LAPICs.
    pub vm_signal_msi:
        Option<unsafe extern "C" fn(vm: VmHandle, address: u64, data: u32, err: *mut ErrorText) -> i32>,
    /// `[control]` or a vCPU thread inside a callback, one at a time: replaces the routes by which
    /// lines are delivered. A backend learns from it which vectors' EOIs to report.
    pub vm_set_routes: Option<
        unsafe extern "C" fn(vm: VmHandle, routes: *const MsiRoute, count: u64, err: *mut ErrorText) -> i32,
    >,
    /// `[any-thread]` Level of the 8259s' INTR output, seen by vCPU 0's LINT0.
    pub vm_set_extint: Option<unsafe extern "C" fn(vm: VmHandle, level: u32)>,
    /// `[any-thread]` Raises NMI on one vCPU.
    pub vm_inject_nmi: Option<unsafe extern "C" fn(vm: VmHandle, vcpu: u32, err: *mut ErrorText) -> i32>,
    /// `[control]` Stops guest time (TSC, kvmclock, LAPIC timers) and remembers the instant. A new
    /// VM's clock is stopped. No vCPU may be inside `vcpu_run`. Saving and loading want it stopped.
    pub vm_stop_clock: Option<unsafe extern "C" fn(vm: VmHandle, err: *mut ErrorText) -> i32>,
    /// `[control]` Starts guest time again, `advance_ns` after the instant it was stopped at.
    pub vm_start_clock:
        Option<unsafe extern "C" fn(vm: VmHandle, advance_ns: u64, err: *mut ErrorText) -> i32>,
    /// `[control]` Saves the VM's own sections ("x86.clock").
    pub vm_save: Option<unsafe extern "C" fn(vm: VmHandle, sink: *const Sink, err: *mut ErrorText) -> i32>,
    /// `[control]` Loads them; before any vCPU's, with the clock stopped.
    pub vm_load: Option<
        unsafe extern "C" fn(vm: VmHandle, sections: *const Section, count: u64, err: *mut ErrorText) -> i32,
    >,
    /// `[control]` The extension table of that name, or null. It lives as long as the process.
    pub vm_extension: Option<unsafe extern "C" fn(vm: VmHandle, name: Text) -> *const c_void>,

    /// `[control]` Makes a vCPU, in the architectural reset state (id 0) or waiting for INIT/SIPI.
    pub vcpu_create:
        Option<unsafe extern "C" fn(vm: VmHandle, id: u32, out: *mut VcpuHandle, err: *mut ErrorText) -> i32>,
    /// `[control]` Destroys a vCPU that nobody runs.
    pub vcpu_destroy: Option<unsafe extern "C" fn(vcpu: VcpuHandle)>,
    /// `[vcpu-thread]` Runs guest code until kicked or shut down. HLT and waiting for SIPI block
    /// inside. Returns only with the vCPU in a consistent state that may be saved: no half-done
    /// device access, no instruction half retired.
    pub vcpu_run: Option<unsafe extern "C" fn(vcpu: VcpuHandle, exit: *mut Exit, err: *mut ErrorText) -> i32>,
    /// `[any-thread, signal-safe]` Makes `vcpu_run` return [`EXIT_KICKED`] soon. Sticky: with nobody inside, the next
    /// `vcpu_run` returns at once. Kicks do not add up.
    pub vcpu_kick: Option<unsafe extern "C" fn(vcpu: VcpuHandle)>,
    /// `[control]` Saves all sections of a vCPU that nobody runs.
    pub vcpu_save:
        Option<unsafe extern "C" fn(vcpu: VcpuHandle, sink: *const Sink, err: *mut ErrorText) -> i32>,
    /// `[control]` Loads all sections of a vCPU that nobody runs. On error the vCPU must not be run.
    pub vcpu_load: Option<
        unsafe extern "C" fn(
            vcpu: VcpuHandle,
            sections: *const Section,
            count: u64,
            err: *mut ErrorText,
        ) -> i32,
    >,
}

/// Extension "godwit.doorbell/1": guest writes that signal an eventfd without a callback.
pub const EXT_DOORBELL_1: &str = "godwit.doorbell/1";

/// Table of [`EXT_DOORBELL_1`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Doorbell1 {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// `[control]` Writes of `width` bytes (0: any width) to `gpa` with this value (if `match_value` is 1) signal `fd`,
    /// which stays the caller's and must live until removed.
    pub add: Option<
        unsafe extern "C" fn(
            vm: VmHandle,
            gpa: u64,
            width: u32,
            match_value: u32,
            value: u64,
            fd: i32,
            err: *mut ErrorText,
        ) -> i32,
    >,
    /// `[control]` Undoes an `add` with the same arguments.
    pub remove: Option<
        unsafe extern "C" fn(
            vm: VmHandle,
            gpa: u64,
            width: u32,
            match_value: u32,
            value: u64,
            fd: i32,
            err: *mut ErrorText,
        ) -> i32,
    >,
}

/// Extension "godwit.irqfd/1": eventfds that raise an edge-triggered line without a call.
pub const EXT_IRQFD_1: &str = "godwit.irqfd/1";

/// Table of [`EXT_IRQFD_1`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Irqfd1 {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// `[control]` A signal on `fd` sends the message routed for `gsi`.
    pub add: Option<unsafe extern "C" fn(vm: VmHandle, gsi: u32, fd: i32, err: *mut ErrorText) -> i32>,
    /// `[control]` Undoes an `add` with the same arguments.
    pub remove: Option<unsafe extern "C" fn(vm: VmHandle, gsi: u32, fd: i32, err: *mut ErrorText) -> i32>,
}

/// Extension "godwit.counters/1": what the backend counts, for metrics.
pub const EXT_COUNTERS_1: &str = "godwit.counters/1";

/// Table of [`EXT_COUNTERS_1`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Counters1 {
    /// Size of this struct in bytes.
    pub size: u32,
    /// Zero.
    pub reserved: u32,
    /// `[control]` Calls `each` once a counter, with its name and its value since the VM was made.
    pub read: Option<
        unsafe extern "C" fn(
            vm: VmHandle,
            ctx: *mut c_void,
            each: unsafe extern "C" fn(ctx: *mut c_void, name: Text, value: u64),
        ),
    >,
}

// Tripwires: the contract is only for 64-bit hosts, and a layout never changes silently.
const _: () = {
    assert!(size_of::<*const u8>() == 8 && align_of::<u64>() == 8);
    assert!(size_of::<Text>() == 16);
    assert!(size_of::<TextList>() == 16);
    assert!(size_of::<ErrorText>() == 32);
    assert!(size_of::<SectionKind>() == 24);
    assert!(size_of::<Descriptor>() == 208 && offset_of!(Descriptor, rank) == 136);
    assert!(Descriptor::SIZE_1_0 == 144);
    assert!(size_of::<Probe>() == 72 && offset_of!(Probe, host_features) == PROBE_SIZE_0 as usize);
    assert!(size_of::<VmConfig>() == 48 && offset_of!(VmConfig, kick_signal) == 40);
    assert!(size_of::<MemorySlot>() == 40);
    assert!(size_of::<MsiRoute>() == 24);
    assert!(size_of::<Section>() == 48);
    assert!(size_of::<Sink>() == 24);
    assert!(size_of::<Exit>() == 8);
    assert!(size_of::<HostTable>() == 72);
    assert!(size_of::<BackendTable>() == 216 && offset_of!(BackendTable, descriptor) == 24);
    assert!(size_of::<Doorbell1>() == 24);
    assert!(size_of::<Irqfd1>() == 24);
    assert!(size_of::<Counters1>() == 16);
};
