//! A VM of a plugin with RAM and a board.

use super::board::{Board, Event};
use super::code::{self, DONE, RAM};
use super::plugin::{Failure, Plugin, call, read, text};
use godwit_abi as abi;
use godwit_state::{ClockV1, CpuState, Model, RawSection, decode_section};
use std::ffi::c_void;
use std::sync::Once;
use std::time::Duration;

/// Guest memory of a test.
pub struct Ram {
    ptr: *mut u8,
    len: usize,
}

impl Ram {
    fn new(len: u64) -> Self {
        let len = len as usize;
        // SAFETY: a fresh private mapping.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(p, libc::MAP_FAILED);
        Ram { ptr: p.cast(), len }
    }

    /// Writes at an address.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= self.len);
        // SAFETY: inside the mapping; no reference into it exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr.add(at as usize), bytes.len()) };
    }

    /// Reads at an address.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        assert!(at as usize + len <= self.len);
        let mut out = vec![0; len];
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.add(at as usize), out.as_mut_ptr(), len) };
        out
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the VM that used it is gone.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}

/// A vCPU's handle, to be used from any thread as the contract allows.
#[derive(Clone, Copy)]
pub struct Vcpu {
    plugin: Plugin,
    handle: abi::VcpuHandle,
}

// SAFETY: the contract: handles may be used from any thread; each test keeps to one in `run` at a time.
unsafe impl Send for Vcpu {}
// SAFETY: as above.
unsafe impl Sync for Vcpu {}

/// The VM's handle.
#[derive(Clone, Copy)]
pub struct Vm {
    plugin: Plugin,
    handle: abi::VmHandle,
}

// SAFETY: as for `Vcpu`.
unsafe impl Send for Vm {}
// SAFETY: as above.
unsafe impl Sync for Vm {}

/// How `run` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By a kick.
    Kicked,
    /// By a triple fault.
    Shutdown,
}

extern "C" fn ignore(_: libc::c_int) {}

/// The signal that the tests reserve, with its empty handler.
pub fn kick_signal() -> u32 {
    static ONCE: Once = Once::new();
    let signal = libc::SIGRTMIN() + 2;
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is valid; the handler does nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as *const () as usize;
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
    });
    signal as u32
}

/// The configuration of a VM.
pub fn config(vcpus: u32, model: &str) -> abi::VmConfig {
    abi::VmConfig {
        size: size_of::<abi::VmConfig>() as u32,
        vcpus,
        model: text(model),
        tsc_khz: 0,
        flags: 0,
        kick_signal: kick_signal(),
        reserved: 0,
    }
}

unsafe extern "C" fn take_section(ctx: *mut c_void, section: *const abi::Section) -> i32 {
    // SAFETY: `ctx` is the list in `sections_of`, the section is valid for the call.
    unsafe {
        let s = &*section;
        let data = if s.data.len == 0 {
            Vec::new()
        } else {
            std::slice::from_raw_parts(s.data.ptr, s.data.len as usize).to_vec()
        };
        (*ctx.cast::<Vec<RawSection>>()).push(RawSection {
            kind: read(s.kind),
            version: s.version,
            optional: s.flags & abi::SECTION_OPTIONAL != 0,
            data,
        });
    }
    abi::OK
}

fn sections_of(
    f: impl FnOnce(*const abi::Sink, *mut abi::ErrorText) -> i32,
) -> Result<Vec<RawSection>, Failure> {
    let mut out: Vec<RawSection> = Vec::new();
    let sink = abi::Sink {
        size: size_of::<abi::Sink>() as u32,
        reserved: 0,
        ctx: (&raw mut out).cast(),
        put: Some(take_section),
    };
    call(|err| f(&sink, err))?;
    Ok(out)
}

fn raw(sections: &[RawSection]) -> Vec<abi::Section> {
    sections
        .iter()
        .map(|s| abi::Section {
            size: size_of::<abi::Section>() as u32,
            version: s.version,
            kind: text(&s.kind),
            data: abi::Text { ptr: s.data.as_ptr(), len: s.data.len() as u64 },
            flags: if s.optional { abi::SECTION_OPTIONAL } else { 0 },
            reserved: 0,
        })
        .collect()
}

macro_rules! function {
    ($plugin:expr, $name:ident) => {
        $plugin.table.$name.expect(concat!(stringify!($name), " is mandatory"))
    };
}

impl Vcpu {
    /// The handle, for a call that a case makes itself.
    pub fn handle(&self) -> abi::VcpuHandle {
        self.handle
    }

    /// Runs until it ends.
    pub fn run(&self) -> Result<Ended, Failure> {
        let mut exit = abi::Exit { size: size_of::<abi::Exit>() as u32, reason: 0 };
        // SAFETY: a live handle, and nobody else in `run`.
        call(|err| unsafe { function!(self.plugin, vcpu_run)(self.handle, &mut exit, err) })?;
        match exit.reason {
            abi::EXIT_KICKED => Ok(Ended::Kicked),
            abi::EXIT_SHUTDOWN => Ok(Ended::Shutdown),
            other => panic!("exit reason {other}"),
        }
    }

    /// Kicks it.
    pub fn kick(&self) {
        // SAFETY: a live handle.
        unsafe { function!(self.plugin, vcpu_kick)(self.handle) };
    }

    /// Its sections.
    pub fn save_raw(&self) -> Result<Vec<RawSection>, Failure> {
        // SAFETY: a live handle that nobody runs.
        sections_of(|sink, err| unsafe { function!(self.plugin, vcpu_save)(self.handle, sink, err) })
    }

    /// Its state.
    ///
    /// # Panics
    /// If it cannot be saved or is not valid.
    pub fn save(&self) -> CpuState {
        let sections = self.save_raw().expect("a vCPU is saved");
        CpuState::from_sections(&sections).expect("what a backend saves is valid")
    }

    /// Loads sections.
    pub fn load_raw(&self, sections: &[RawSection]) -> Result<(), Failure> {
        let list = raw(sections);
        // SAFETY: a live handle that nobody runs; the sections live for the call.
        call(|err| unsafe {
            function!(self.plugin, vcpu_load)(self.handle, list.as_ptr(), list.len() as u64, err)
        })
    }

    /// Loads a state.
    ///
    /// # Panics
    /// If it is refused.
    pub fn load(&self, state: &CpuState) {
        self.load_raw(&state.to_sections()).expect("a state is loaded");
    }
}

impl Vm {
    /// Delivers a message.
    ///
    /// # Panics
    /// If it fails.
    pub fn msi(&self, address: u64, data: u32) {
        // SAFETY: a live handle.
        call(|err| unsafe { function!(self.plugin, vm_signal_msi)(self.handle, address, data, err) })
            .expect("a message is sent");
    }

    /// Level of the 8259s' output.
    pub fn set_extint(&self, level: bool) {
        // SAFETY: a live handle.
        unsafe { function!(self.plugin, vm_set_extint)(self.handle, u32::from(level)) };
    }

    /// The pages of slot 0 written since the log was last taken.
    ///
    /// # Panics
    /// If it cannot be had.
    pub fn dirty(&self) -> Vec<u64> {
        let words = RAM / abi::GUEST_PAGE_SIZE / 64;
        let mut bitmap = vec![0u64; words as usize];
        // SAFETY: a live handle, a bitmap of that length.
        call(|err| unsafe {
            function!(self.plugin, vm_take_dirty_log)(self.handle, 0, bitmap.as_mut_ptr(), words, err)
        })
        .expect("the dirty log is taken");
        (0..words * 64).filter(|page| bitmap[(page / 64) as usize] >> (page % 64) & 1 == 1).collect()
    }

    /// Raises NMI.
    pub fn nmi(&self, vcpu: u32) -> Result<(), Failure> {
        // SAFETY: a live handle.
        call(|err| unsafe { function!(self.plugin, vm_inject_nmi)(self.handle, vcpu, err) })
    }
}

/// A VM with RAM, board and vCPUs. Its clock is stopped until [`Rig::start`].
pub struct Rig {
    /// Whose it is.
    pub plugin: Plugin,
    /// The VM.
    pub vm: Vm,
    /// The vCPUs, by id.
    pub vcpus: Vec<Vcpu>,
    /// What the guest sees and does.
    pub board: Box<Board>,
    /// Memory from address 0, in slot 0.
    pub ram: Ram,
    /// The CPU model.
    pub model: Model,
}

impl Rig {
    /// One vCPU of the weakest model.
    pub fn new(plugin: Plugin) -> Self {
        Self::with(plugin, 1, Model::X86_64, 0)
    }

    /// A VM like that; `tsc_khz` 0 is the backend's own.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn with(plugin: Plugin, vcpus: u32, model: Model, tsc_khz: u64) -> Self {
        let board = Box::<Board>::default();
        let mut handle = std::ptr::null_mut();
        let config = abi::VmConfig { tsc_khz, ..config(vcpus, model.name()) };
        let table = board.table();
        // SAFETY: config and table live for the call; the functions and the board for the VM.
        call(|err| unsafe { function!(plugin, vm_create)(&config, &table, &mut handle, err) })
            .expect("a VM is made");
        let ram = Ram::new(RAM);
        let mut rig = Rig { plugin, vm: Vm { plugin, handle }, vcpus: Vec::new(), board, ram, model };
        rig.map(0, 0, RAM, rig.ram.ptr, 0).expect("RAM is mapped");
        for id in 0..vcpus {
            let vcpu = rig.create_vcpu(id).expect("a vCPU is made");
            rig.vcpus.push(vcpu);
        }
        rig
    }

    /// A VM whose RAM has the tables of long mode and `code` at [`code::CODE`], its vCPU about to run it.
    pub fn long(plugin: Plugin, ring: u16, code: &[u8]) -> Self {
        let rig = Self::new(plugin);
        rig.fill_long(code);
        rig.cpu().load(&code::long_mode(rig.model, ring));
        rig
    }

    /// Puts long mode's tables and the code in place.
    pub fn fill_long(&self, code: &[u8]) {
        for (at, bytes) in code::tables() {
            self.ram.write(at, &bytes);
        }
        self.ram.write(code::CODE, code);
    }

    /// A VM about to run `code` in real mode.
    pub fn real(plugin: Plugin, code: &[u8]) -> Self {
        let rig = Self::new(plugin);
        rig.ram.write(code::CODE, code);
        rig.cpu().load(&code::real_mode(rig.model));
        rig
    }

    /// vCPU 0.
    pub fn cpu(&self) -> Vcpu {
        self.vcpus[0]
    }

    /// The VM's handle, for a call that a case makes itself.
    pub fn handle(&self) -> abi::VmHandle {
        self.vm.handle
    }

    /// Makes a vCPU.
    pub fn create_vcpu(&self, id: u32) -> Result<Vcpu, Failure> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a live handle.
        call(|err| unsafe { function!(self.plugin, vcpu_create)(self.vm.handle, id, &mut handle, err) })?;
        Ok(Vcpu { plugin: self.plugin, handle })
    }

    /// Maps a slot. `host` must outlive it.
    pub fn map(&self, slot: u32, gpa: u64, len: u64, host: *mut u8, flags: u64) -> Result<(), Failure> {
        let slot = abi::MemorySlot { size: size_of::<abi::MemorySlot>() as u32, slot, gpa, len, host, flags };
        // SAFETY: a live handle; the memory is the rig's or of the test that asks.
        call(|err| unsafe { function!(self.plugin, vm_map_memory)(self.vm.handle, &slot, err) })
    }

    /// Unmaps a slot.
    pub fn unmap(&self, slot: u32) -> Result<(), Failure> {
        // SAFETY: a live handle.
        call(|err| unsafe { function!(self.plugin, vm_unmap_memory)(self.vm.handle, slot, err) })
    }

    /// The address of RAM in this process.
    pub fn ram_ptr(&self) -> *mut u8 {
        self.ram.ptr
    }

    /// Starts or stops the dirty log of slot 0.
    pub fn log(&self, on: bool) -> Result<(), Failure> {
        // SAFETY: a live handle.
        call(|err| unsafe { function!(self.plugin, vm_set_dirty_log)(self.vm.handle, 0, u32::from(on), err) })
    }

    /// The pages written since the log was last taken.
    ///
    /// # Panics
    /// If it cannot be had.
    pub fn dirty(&self) -> Vec<u64> {
        self.vm.dirty()
    }

    /// Writes memory as a device does.
    pub fn dma(&self, at: u64, bytes: &[u8]) {
        self.ram.write(at, bytes);
        // SAFETY: a live handle.
        unsafe { function!(self.plugin, vm_memory_written)(self.vm.handle, at, bytes.len() as u64) };
    }

    /// Replaces the routes: line, address, data, masked.
    ///
    /// # Panics
    /// If they are refused.
    pub fn routes(&self, routes: &[(u32, u64, u32, bool)]) {
        let list: Vec<_> = routes
            .iter()
            .map(|(gsi, address, data, masked)| abi::MsiRoute {
                size: size_of::<abi::MsiRoute>() as u32,
                gsi: *gsi,
                address: *address,
                data: *data,
                flags: if *masked { abi::ROUTE_MASKED } else { 0 },
            })
            .collect();
        // SAFETY: a live handle; the list lives for the call.
        call(|err| unsafe {
            function!(self.plugin, vm_set_routes)(self.vm.handle, list.as_ptr(), list.len() as u64, err)
        })
        .expect("routes are taken");
    }

    /// Starts the clock.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&self, advance_ns: u64) {
        // SAFETY: a live handle.
        call(|err| unsafe { function!(self.plugin, vm_start_clock)(self.vm.handle, advance_ns, err) })
            .expect("the clock starts");
    }

    /// Stops the clock and gives what it shows.
    ///
    /// # Panics
    /// If it cannot be stopped.
    pub fn stop(&self) -> ClockV1 {
        // SAFETY: a live handle.
        call(|err| unsafe { function!(self.plugin, vm_stop_clock)(self.vm.handle, err) })
            .expect("the clock stops");
        self.clock()
    }

    /// The VM's sections.
    pub fn save_raw(&self) -> Result<Vec<RawSection>, Failure> {
        // SAFETY: a live handle.
        sections_of(|sink, err| unsafe { function!(self.plugin, vm_save)(self.vm.handle, sink, err) })
    }

    /// The stopped clock.
    ///
    /// # Panics
    /// If it cannot be had.
    pub fn clock(&self) -> ClockV1 {
        let sections = self.save_raw().expect("the clock is saved");
        assert_eq!(sections.len(), 1);
        decode_section(&sections[0]).expect("what a backend saves is valid")
    }

    /// Loads the VM's sections.
    pub fn load_raw(&self, sections: &[RawSection]) -> Result<(), Failure> {
        let list = raw(sections);
        // SAFETY: a live handle; the sections live for the call.
        call(|err| unsafe {
            function!(self.plugin, vm_load)(self.vm.handle, list.as_ptr(), list.len() as u64, err)
        })
    }

    /// The extension table of that name.
    pub fn extension(&self, name: &str) -> *const c_void {
        // SAFETY: a live handle.
        unsafe { function!(self.plugin, vm_extension)(self.vm.handle, text(name)) }
    }

    /// Runs vCPU 0 in short turns, the clock stopped between them, until its saved state is as wanted. However busy the host
    /// is, a turn that came to nothing is followed by another. Leaves the clock stopped.
    ///
    /// # Panics
    /// If a turn does not end by its kick, or none of a thousand came to anything.
    pub fn run_until(&self, mut wanted: impl FnMut(&CpuState) -> bool) -> CpuState {
        let cpu = self.cpu();
        for _ in 0..1000 {
            self.start(0);
            std::thread::scope(|s| {
                let thread = s.spawn(|| cpu.run());
                std::thread::sleep(Duration::from_millis(5));
                cpu.kick();
                assert_eq!(
                    thread.join().expect("no panic"),
                    Ok(Ended::Kicked),
                    "log: {:?}",
                    self.board.log()
                );
            });
            self.stop();
            let state = cpu.save();
            if wanted(&state) {
                return state;
            }
        }
        panic!("the guest does not get on: {:#x?}, log: {:?}", cpu.save().regs, self.board.log());
    }

    /// From now on a write to [`DONE`] kicks vCPU 0.
    pub fn kick_when_done(&self) {
        let cpu = self.cpu();
        self.board.set_hook(move |event| {
            if matches!(event, Event::Out(DONE, ..)) {
                cpu.kick();
            }
        });
    }

    /// Starts the clock, runs vCPU 0 until it says that it is done, and gives what it did, without that.
    ///
    /// # Panics
    /// If it ends otherwise.
    pub fn run_to_done(&self) -> Vec<Event> {
        self.start(0);
        self.run_on()
    }

    /// Lets a program that was done go on to where it is done again.
    ///
    /// # Panics
    /// If it ends otherwise.
    pub fn run_more(&self) -> Vec<Event> {
        self.ram.write(code::GO, &[1]);
        self.run_on()
    }

    /// [`Self::run_to_done`] with the clock running already.
    ///
    /// # Panics
    /// If it ends otherwise.
    pub fn run_on(&self) -> Vec<Event> {
        self.kick_when_done();
        assert_eq!(self.cpu().run(), Ok(Ended::Kicked), "log: {:?}", self.board.log());
        let mut events = self.board.take();
        assert!(matches!(events.pop(), Some(Event::Out(DONE, ..))), "ended without saying so: {events:?}");
        events
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for vcpu in &self.vcpus {
            // SAFETY: live handles that nobody runs; the VM's is the last to go.
            unsafe { function!(self.plugin, vcpu_destroy)(vcpu.handle) };
        }
        // SAFETY: as above.
        unsafe { function!(self.plugin, vm_destroy)(self.vm.handle) };
    }
}
