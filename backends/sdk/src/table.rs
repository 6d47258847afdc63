//! The C table over a [`Backend`]: checks, panic fences and conversions, nothing else.

use crate::{Backend, Error, Exit, Host, Kick, MemorySlot, MsiRoute, Result, Vcpu, Vm, VmConfig};
use godwit_abi::{self as abi, BackendTable, ErrorText, SectionKind, Text, TextList, VcpuHandle, VmHandle};
use godwit_state::{ClockV1, CpuState, Model, RawSection, SECTIONS, Section, StateError, decode_section};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

struct VcpuBox<B: Backend> {
    // Apart from `vcpu`, because a kick comes while `run` holds that one.
    kick: Arc<dyn Kick>,
    vcpu: <B::Vm as Vm>::Vcpu,
}

/// Makes the table of backend `B`. Called once by what [`crate::export_backend`] expands to; the table is never freed.
pub fn entry<B: Backend>() -> *const BackendTable {
    catch_unwind(|| Box::leak(Box::new(table::<B>())) as *const BackendTable).unwrap_or(std::ptr::null())
}

fn table<B: Backend>() -> BackendTable {
    BackendTable {
        magic: abi::MAGIC,
        abi_major: abi::ABI_MAJOR,
        abi_minor: abi::ABI_MINOR,
        size: size_of::<BackendTable>() as u32,
        reserved: 0,
        descriptor: Box::leak(Box::new(descriptor::<B>())),
        probe: Some(probe::<B>),
        vm_create: Some(vm_create::<B>),
        vm_destroy: Some(vm_destroy::<B>),
        vm_map_memory: Some(vm_map_memory::<B>),
        vm_unmap_memory: Some(vm_unmap_memory::<B>),
        vm_set_dirty_log: Some(vm_set_dirty_log::<B>),
        vm_take_dirty_log: Some(vm_take_dirty_log::<B>),
        vm_memory_written: Some(vm_memory_written::<B>),
        vm_signal_msi: Some(vm_signal_msi::<B>),
        vm_set_routes: Some(vm_set_routes::<B>),
        vm_set_extint: Some(vm_set_extint::<B>),
        vm_inject_nmi: Some(vm_inject_nmi::<B>),
        vm_stop_clock: Some(vm_stop_clock::<B>),
        vm_start_clock: Some(vm_start_clock::<B>),
        vm_save: Some(vm_save::<B>),
        vm_load: Some(vm_load::<B>),
        vm_extension: Some(vm_extension::<B>),
        vcpu_create: Some(vcpu_create::<B>),
        vcpu_destroy: Some(vcpu_destroy::<B>),
        vcpu_run: Some(vcpu_run::<B>),
        vcpu_kick: Some(vcpu_kick::<B>),
        vcpu_save: Some(vcpu_save::<B>),
        vcpu_load: Some(vcpu_load::<B>),
    }
}

fn descriptor<B: Backend>() -> abi::Descriptor {
    let d = B::DESCRIPTOR;
    let sections: Vec<SectionKind> = SECTIONS
        .iter()
        .map(|(kind, version)| SectionKind {
            size: size_of::<SectionKind>() as u32,
            version: *version,
            kind: text(kind),
        })
        .collect();
    let sections = sections.leak();
    abi::Descriptor {
        size: size_of::<abi::Descriptor>() as u32,
        reserved: 0,
        name: text(d.name),
        summary: text(d.summary),
        version: text(d.version),
        models: model_list(d.models),
        sections: sections.as_ptr(),
        sections_len: sections.len() as u64,
        system_calls: text_list(d.system_calls),
        device_nodes: text_list(d.device_nodes),
        ioctls: d.ioctls.as_ptr(),
        ioctls_len: d.ioctls.len() as u64,
        rank: d.rank,
        reserved2: 0,
        vcpu_calls: text_list(d.vcpu_calls),
        vcpu_ioctls: d.vcpu_ioctls.as_ptr(),
        vcpu_ioctls_len: d.vcpu_ioctls.len() as u64,
        device_calls: text_list(d.device_calls),
        device_ioctls: d.device_ioctls.as_ptr(),
        device_ioctls_len: d.device_ioctls.len() as u64,
    }
}

fn text(s: &str) -> Text {
    Text { ptr: s.as_ptr(), len: s.len() as u64 }
}

fn text_list(list: &[&'static str]) -> TextList {
    let list = list.iter().map(|s| text(s)).collect::<Vec<_>>().leak();
    TextList { ptr: list.as_ptr(), len: list.len() as u64 }
}

fn model_list(models: &[Model]) -> TextList {
    text_list(&models.iter().map(|m| m.name()).collect::<Vec<_>>())
}

/// Runs `f` behind a panic fence and reports its error through `err`: for the C functions of extensions too.
///
/// # Safety
/// `err` must be null or a valid [`ErrorText`] of the caller.
pub unsafe fn guarded(err: *mut ErrorText, f: impl FnOnce() -> Result<()>) -> i32 {
    let error = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => return abi::OK,
        Ok(Err(e)) => e,
        Err(payload) => {
            let what = payload
                .downcast_ref::<&str>()
                .map(|s| (*s).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".into());
            Error::Panic(format!("the backend panicked: {what}"))
        }
    };
    // SAFETY: the caller's promise; only whole UTF-8 characters within its capacity are written.
    unsafe {
        if !err.is_null() && !(*err).ptr.is_null() {
            let message = error.to_string();
            let cap = usize::try_from((*err).cap).unwrap_or(0);
            let mut len = message.len().min(cap);
            while !message.is_char_boundary(len) {
                len -= 1;
            }
            std::ptr::copy_nonoverlapping(message.as_ptr(), (*err).ptr, len);
            (*err).len = len as u64;
        }
    }
    error.code()
}

/// Runs an infallible method behind a panic fence.
fn fenced(f: impl FnOnce()) {
    // Nothing can be reported; the next fallible call will fail too if the backend is broken.
    let _ = catch_unwind(AssertUnwindSafe(f));
}

/// Reads a struct whose first field is its `size`. A longer one is accepted if the unknown tail is zero.
///
/// # Safety
/// `p` must be null or point to as many readable bytes as its `size` field says. `T` must be plain data,
/// valid for every bit pattern, beginning with that `u32`.
unsafe fn sized<T: Copy>(p: *const T, what: &str) -> Result<T> {
    // SAFETY: the caller's promise.
    let size = if p.is_null() { 0 } else { unsafe { p.cast::<u32>().read() } } as usize;
    let known = size_of::<T>();
    if size < known {
        return Err(Error::Invalid(format!("{what}: {size} bytes, at least {known} are needed")));
    }
    // SAFETY: `size` readable bytes.
    let tail = unsafe { std::slice::from_raw_parts(p.cast::<u8>().add(known), size - known) };
    if tail.iter().any(|b| *b != 0) {
        return Err(Error::Invalid(format!("{what}: uses fields that this backend does not know")));
    }
    // SAFETY: at least `known` readable bytes.
    Ok(unsafe { p.read() })
}

/// # Safety
/// `t` must describe readable bytes that live for `'a`.
unsafe fn bytes<'a>(t: Text) -> Result<&'a [u8]> {
    let len = usize::try_from(t.len).map_err(|_| Error::Invalid("a text is too long".into()))?;
    if len == 0 {
        return Ok(&[]);
    }
    if t.ptr.is_null() {
        return Err(Error::Invalid("a text is null".into()));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(t.ptr, len) })
}

/// # Safety
/// As for [`bytes`].
unsafe fn str<'a>(t: Text) -> Result<&'a str> {
    // SAFETY: the caller's promise.
    std::str::from_utf8(unsafe { bytes(t) }?).map_err(|_| Error::Invalid("a text is not UTF-8".into()))
}

/// # Safety
/// `p` must be null (with `len` 0) or point to `len` readable elements that live for `'a`.
unsafe fn slice<'a, T>(p: *const T, len: u64, what: &str) -> Result<&'a [T]> {
    let len = usize::try_from(len).map_err(|_| Error::Invalid(format!("{what}: too many")))?;
    if len == 0 {
        return Ok(&[]);
    }
    if p.is_null() {
        return Err(Error::Invalid(format!("{what}: null")));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(p, len) })
}

/// # Safety
/// `sections` must describe valid sections for the call.
unsafe fn raw_sections(sections: *const abi::Section, count: u64) -> Result<Vec<RawSection>> {
    // SAFETY: the caller's promise.
    unsafe { slice(sections, count, "sections") }?
        .iter()
        .map(|s| {
            // SAFETY: `s` is a live reference to a section.
            let s = unsafe { sized(s, "section") }?;
            if s.flags & !abi::SECTION_OPTIONAL != 0 {
                return Err(Error::Invalid(format!("section: unknown flags {:#x}", s.flags)));
            }
            // SAFETY: the caller's promise.
            let (kind, data) = unsafe { (str(s.kind)?, bytes(s.data)?) };
            Ok(RawSection {
                kind: kind.to_owned(),
                version: s.version,
                optional: s.flags & abi::SECTION_OPTIONAL != 0,
                data: data.to_vec(),
            })
        })
        .collect()
}

/// # Safety
/// `sink` must be null or a valid sink for the call.
unsafe fn put_sections(sink: *const abi::Sink, sections: &[RawSection]) -> Result<()> {
    // SAFETY: the caller's promise.
    let sink = unsafe { sized(sink, "sink") }?;
    let put = sink.put.ok_or_else(|| Error::Invalid("sink: no function".into()))?;
    for s in sections {
        let section = abi::Section {
            size: size_of::<abi::Section>() as u32,
            version: s.version,
            kind: text(&s.kind),
            data: Text { ptr: s.data.as_ptr(), len: s.data.len() as u64 },
            flags: if s.optional { abi::SECTION_OPTIONAL } else { 0 },
            reserved: 0,
        };
        // SAFETY: the sink's own function with its own ctx.
        if unsafe { put(sink.ctx, &section) } != abi::OK {
            return Err(Error::Host(format!("the VMM did not take section {}", s.kind)));
        }
    }
    Ok(())
}

/// The VM behind a handle, as the C functions of an extension get it.
///
/// # Safety
/// `vm` must be a handle that the `vm_create` of backend `B`'s table gave, not yet destroyed.
pub unsafe fn vm_ref<'a, B: Backend>(vm: VmHandle) -> &'a B::Vm {
    // SAFETY: the caller's promise.
    unsafe { &*vm.cast::<B::Vm>() }
}

// Every function below is called through the table by a VMM that keeps the contract of godwit-abi: handles are live
// and of this backend, pointers are valid for the call. Each `unsafe` block rests on that.

unsafe extern "C" fn probe<B: Backend>(out: *mut abi::Probe, err: *mut ErrorText) -> i32 {
    // SAFETY: contract.
    unsafe {
        guarded(err, || {
            // An older VMM has room for less.
            let room = if out.is_null() { 0 } else { out.cast::<u32>().read() };
            if room < abi::PROBE_SIZE_0 {
                let least = abi::PROBE_SIZE_0;
                return Err(Error::Invalid(format!("probe: {room} bytes, at least {least} are needed")));
            }
            let p = B::probe()?;
            let size = room.min(size_of::<abi::Probe>() as u32);
            let probe = abi::Probe {
                size,
                max_vcpus: p.max_vcpus,
                models: model_list(&p.models),
                tsc_khz: p.tsc_khz,
                flags: if p.tsc_scaling { abi::PROBE_TSC_SCALING } else { 0 },
                host_features: p.host_features.map_or([0; 8], |f| {
                    let [a, b, c, d, e, f, g] = f.registers();
                    [a, b, c, d, e, f, g, 0]
                }),
            };
            std::ptr::copy_nonoverlapping((&raw const probe).cast::<u8>(), out.cast::<u8>(), size as usize);
            Ok(())
        })
    }
}

unsafe extern "C" fn vm_create<B: Backend>(
    config: *const abi::VmConfig,
    host: *const abi::HostTable,
    out: *mut VmHandle,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract.
    unsafe {
        guarded(err, || {
            let c = sized(config, "VM config")?;
            if c.flags & !abi::VM_ALLOW_TSC_MISMATCH != 0 {
                return Err(Error::Invalid(format!("VM config: unknown flags {:#x}", c.flags)));
            }
            if c.vcpus == 0 {
                return Err(Error::Invalid("VM config: no vCPU".into()));
            }
            let config = VmConfig {
                vcpus: c.vcpus,
                model: str(c.model)?.parse().map_err(|e: StateError| Error::Unsupported(e.to_string()))?,
                tsc_khz: (c.tsc_khz != 0).then_some(c.tsc_khz),
                allow_tsc_mismatch: c.flags & abi::VM_ALLOW_TSC_MISMATCH != 0,
                kick_signal: i32::try_from(c.kick_signal).ok().filter(|s| *s != 0),
            };
            let vm = B::create_vm(&config, Host::from_table(host)?)?;
            *out = Box::into_raw(Box::new(vm)).cast();
            Ok(())
        })
    }
}

unsafe extern "C" fn vm_destroy<B: Backend>(vm: VmHandle) {
    // SAFETY: contract; the box was made in vm_create.
    fenced(|| drop(unsafe { Box::from_raw(vm.cast::<B::Vm>()) }));
}

unsafe extern "C" fn vm_map_memory<B: Backend>(
    vm: VmHandle,
    slot: *const abi::MemorySlot,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract.
    unsafe {
        guarded(err, || {
            let s = sized(slot, "memory slot")?;
            if s.flags & !abi::SLOT_READ_ONLY != 0 {
                return Err(Error::Invalid(format!("memory slot: unknown flags {:#x}", s.flags)));
            }
            let page = abi::GUEST_PAGE_SIZE;
            if s.slot >= 32
                || s.len == 0
                || s.gpa % page != 0
                || s.len % page != 0
                || s.host.is_null()
                || s.gpa.checked_add(s.len).is_none()
            {
                return Err(Error::Invalid(format!(
                    "memory slot {}: {:#x} bytes at {:#x} are not whole pages",
                    s.slot, s.len, s.gpa
                )));
            }
            vm_ref::<B>(vm).map_memory(MemorySlot {
                slot: s.slot,
                gpa: s.gpa,
                len: s.len,
                host: s.host,
                read_only: s.flags & abi::SLOT_READ_ONLY != 0,
            })
        })
    }
}

unsafe extern "C" fn vm_unmap_memory<B: Backend>(vm: VmHandle, slot: u32, err: *mut ErrorText) -> i32 {
    // SAFETY: contract.
    unsafe { guarded(err, || vm_ref::<B>(vm).unmap_memory(slot)) }
}

unsafe extern "C" fn vm_set_dirty_log<B: Backend>(
    vm: VmHandle,
    slot: u32,
    on: u32,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract.
    unsafe { guarded(err, || vm_ref::<B>(vm).set_dirty_log(slot, on != 0)) }
}

unsafe extern "C" fn vm_take_dirty_log<B: Backend>(
    vm: VmHandle,
    slot: u32,
    bitmap: *mut u64,
    words: u64,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract: `bitmap` is the caller's, `words` long, nobody else's during the call.
    unsafe {
        guarded(err, || {
            let words = usize::try_from(words).unwrap_or(0);
            if bitmap.is_null() || words == 0 {
                return Err(Error::Invalid("dirty log: no bitmap".into()));
            }
            vm_ref::<B>(vm).take_dirty_log(slot, std::slice::from_raw_parts_mut(bitmap, words))
        })
    }
}

unsafe extern "C" fn vm_memory_written<B: Backend>(vm: VmHandle, gpa: u64, len: u64) {
    // SAFETY: contract.
    fenced(|| unsafe { vm_ref::<B>(vm) }.memory_written(gpa, len));
}

unsafe extern "C" fn vm_signal_msi<B: Backend>(
    vm: VmHandle,
    address: u64,
    data: u32,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract.
    unsafe { guarded(err, || vm_ref::<B>(vm).signal_msi(address, data)) }
}

unsafe extern "C" fn vm_set_routes<B: Backend>(
    vm: VmHandle,
    routes: *const abi::MsiRoute,
    count: u64,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract.
    unsafe {
        guarded(err, || {
            let routes = slice(routes, count, "routes")?
                .iter()
                .map(|r| {
                    let r = sized(r, "route")?;
                    if r.flags & !abi::ROUTE_MASKED != 0 {
                        return Err(Error::Invalid(format!("route: unknown flags {:#x}", r.flags)));
                    }
                    Ok(MsiRoute {
                        gsi: r.gsi,
                        address: r.address,
                        data: r.data,
                        masked: r.flags & abi::ROUTE_MASKED != 0,
                    })
                })
                .collect::<Result<Vec<_>>>()?;
            vm_ref::<B>(vm).set_routes(&routes)
        })
    }
}

unsafe extern "C" fn vm_set_extint<B: Backend>(vm: VmHandle, level: u32) {
    // SAFETY: contract.
    fenced(|| unsafe { vm_ref::<B>(vm) }.set_extint(level != 0));
}

unsafe extern "C" fn vm_inject_nmi<B: Backend>(vm: VmHandle, vcpu: u32, err: *mut ErrorText) -> i32 {
    // SAFETY: contract.
    unsafe { guarded(err, || vm_ref::<B>(vm).inject_nmi(vcpu)) }
}

unsafe extern "C" fn vm_stop_clock<B: Backend>(vm: VmHandle, err: *mut ErrorText) -> i32 {
    // SAFETY: contract.
    unsafe { guarded(err, || vm_ref::<B>(vm).stop_clock()) }
}

unsafe extern "C" fn vm_start_clock<B: Backend>(vm: VmHandle, advance_ns: u64, err: *mut ErrorText) -> i32 {
    // SAFETY: contract.
    unsafe { guarded(err, || vm_ref::<B>(vm).start_clock(advance_ns)) }
}

unsafe extern "C" fn vm_save<B: Backend>(vm: VmHandle, sink: *const abi::Sink, err: *mut ErrorText) -> i32 {
    // SAFETY: contract.
    unsafe {
        guarded(err, || {
            let clock = vm_ref::<B>(vm).save_clock()?;
            put_sections(sink, &[RawSection::mandatory(&clock)])
        })
    }
}

unsafe extern "C" fn vm_load<B: Backend>(
    vm: VmHandle,
    sections: *const abi::Section,
    count: u64,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract.
    unsafe {
        guarded(err, || {
            let mut clock = None;
            for raw in raw_sections(sections, count)? {
                if raw.kind == ClockV1::KIND && clock.is_none() {
                    clock = Some(decode_section::<ClockV1>(&raw)?);
                } else if raw.kind == ClockV1::KIND {
                    return Err(StateError::Twice { kind: raw.kind }.into());
                } else if !raw.optional {
                    return Err(StateError::Unknown { kind: raw.kind, version: raw.version }.into());
                }
            }
            let clock = clock.ok_or(StateError::Missing { kind: ClockV1::KIND.into() })?;
            vm_ref::<B>(vm).load_clock(&clock)
        })
    }
}

unsafe extern "C" fn vm_extension<B: Backend>(vm: VmHandle, name: Text) -> *const c_void {
    let mut found = std::ptr::null();
    fenced(|| {
        // SAFETY: contract.
        if let (vm, Ok(name)) = unsafe { (vm_ref::<B>(vm), str(name)) } {
            found = vm.extension(name);
        }
    });
    found
}

unsafe extern "C" fn vcpu_create<B: Backend>(
    vm: VmHandle,
    id: u32,
    out: *mut VcpuHandle,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract.
    unsafe {
        guarded(err, || {
            let vcpu = vm_ref::<B>(vm).create_vcpu(id)?;
            let boxed = Box::new(VcpuBox::<B> { kick: vcpu.kicker(), vcpu });
            *out = Box::into_raw(boxed).cast();
            Ok(())
        })
    }
}

unsafe extern "C" fn vcpu_destroy<B: Backend>(vcpu: VcpuHandle) {
    // SAFETY: contract; the box was made in vcpu_create.
    fenced(|| drop(unsafe { Box::from_raw(vcpu.cast::<VcpuBox<B>>()) }));
}

/// # Safety
/// `vcpu` must be live and nobody else may be in a method of it that takes it mutably.
unsafe fn vcpu_mut<'a, B: Backend>(vcpu: VcpuHandle) -> &'a mut <B::Vm as Vm>::Vcpu {
    // SAFETY: the caller's promise; only the field is borrowed, so a kick may come at the same time.
    unsafe { &mut (*vcpu.cast::<VcpuBox<B>>()).vcpu }
}

unsafe extern "C" fn vcpu_run<B: Backend>(
    vcpu: VcpuHandle,
    exit: *mut abi::Exit,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract.
    unsafe {
        guarded(err, || {
            sized(exit.cast_const(), "exit")?;
            (*exit).reason = match vcpu_mut::<B>(vcpu).run()? {
                Exit::Kicked => abi::EXIT_KICKED,
                Exit::Shutdown => abi::EXIT_SHUTDOWN,
            };
            Ok(())
        })
    }
}

unsafe extern "C" fn vcpu_kick<B: Backend>(vcpu: VcpuHandle) {
    // No panic fence: catch_unwind is not signal-safe, and a Kick must not panic; if it does, the process aborts here.
    // SAFETY: contract; only `kick` is borrowed.
    unsafe { &(*vcpu.cast::<VcpuBox<B>>()).kick }.kick();
}

unsafe extern "C" fn vcpu_save<B: Backend>(
    vcpu: VcpuHandle,
    sink: *const abi::Sink,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract.
    unsafe {
        guarded(err, || {
            let state = vcpu_mut::<B>(vcpu).save()?;
            put_sections(sink, &state.to_sections())
        })
    }
}

unsafe extern "C" fn vcpu_load<B: Backend>(
    vcpu: VcpuHandle,
    sections: *const abi::Section,
    count: u64,
    err: *mut ErrorText,
) -> i32 {
    // SAFETY: contract.
    unsafe {
        guarded(err, || {
            let state = CpuState::from_sections(&raw_sections(sections, count)?)?;
            vcpu_mut::<B>(vcpu).load(&state)
        })
    }
}
