//! The interpreter behind its C table, on a board of nothing but RAM and a serial port.

#![allow(dead_code, reason = "each test uses its part")]

use godwit_interp::Interp;
use godwit_sdk::abi;
use godwit_sdk::state::{
    CpuState, DebugV1, EventsV1, FpuV1, LapicV1, Model, MsrsV1, RawSection, RegsV1, SegmentV1, SystemV1,
    TableV1, TscV1, access,
};
use std::ffi::c_void;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the callbacks write to.
pub(crate) struct Board {
    pub serial: Mutex<Vec<u8>>,
    pub reset: AtomicBool,
    table: *const abi::BackendTable,
    vcpu: Mutex<usize>,
    lines: usize,
}

unsafe extern "C" fn pio_read(_: *mut c_void, _: u32, port: u32, width: u32) -> u64 {
    match port {
        // Line status: transmitter empty.
        0x3fd => 0x60,
        _ => (1u64 << (8 * width)) - 1,
    }
}

unsafe extern "C" fn pio_write(ctx: *mut c_void, _: u32, port: u32, _width: u32, value: u64) {
    // SAFETY: the board outlives the VM.
    let board = unsafe { &*ctx.cast::<Board>() };
    let mut kick = false;
    if port == 0x3f8 {
        let mut serial = board.serial.lock().unwrap();
        serial.push(value as u8);
        kick = board.lines != 0 && serial.iter().filter(|b| **b == b'\n').count() >= board.lines;
    }
    if port == 0x64 && value == 0xfe {
        board.reset.store(true, Ordering::SeqCst);
        kick = true;
    }
    if kick {
        let vcpu = *board.vcpu.lock().unwrap() as *mut c_void;
        // SAFETY: the vCPU is running, so it lives.
        unsafe { (*board.table).vcpu_kick.unwrap()(vcpu) };
    }
}

unsafe extern "C" fn mmio_read(_: *mut c_void, _: u32, _: u64, _: u32) -> u64 {
    u64::MAX
}
unsafe extern "C" fn mmio_write(_: *mut c_void, _: u32, _: u64, _: u32, _: u64) {}
unsafe extern "C" fn eoi(_: *mut c_void, _: u32) {}
unsafe extern "C" fn extint_ack(_: *mut c_void) -> i32 {
    -1
}
unsafe extern "C" fn log(_: *mut c_void, level: u32, text: abi::Text) {
    // SAFETY: the text lives during the call.
    let text = unsafe { std::slice::from_raw_parts(text.ptr, text.len as usize) };
    eprintln!("[{level}] {}", String::from_utf8_lossy(text));
}

unsafe extern "C" fn put(ctx: *mut c_void, section: *const abi::Section) -> i32 {
    // SAFETY: `ctx` is the vector below; the section lives during the call.
    unsafe {
        let out = &mut *ctx.cast::<Vec<RawSection>>();
        let s = &*section;
        let kind = std::slice::from_raw_parts(s.kind.ptr, s.kind.len as usize);
        let data = std::slice::from_raw_parts(s.data.ptr, s.data.len as usize);
        out.push(RawSection {
            kind: String::from_utf8_lossy(kind).into_owned(),
            version: s.version,
            optional: s.flags & abi::SECTION_OPTIONAL != 0,
            data: data.to_vec(),
        });
    }
    0
}

fn text(s: &str) -> abi::Text {
    abi::Text { ptr: s.as_ptr(), len: s.len() as u64 }
}

pub(crate) struct Vm {
    table: &'static abi::BackendTable,
    vm: abi::VmHandle,
    vcpu: abi::VcpuHandle,
    ram: *mut u8,
    layout: std::alloc::Layout,
    pub board: Box<Board>,
    _host: Box<abi::HostTable>,
}

const RAM: usize = 64 << 20;

/// Checks a call's code.
macro_rules! call {
    ($f:expr, $($a:expr),*) => {{
        let mut message = [0u8; 256];
        let mut err = abi::ErrorText {
            size: size_of::<abi::ErrorText>() as u32, reserved: 0, ptr: message.as_mut_ptr(), cap: 256, len: 0,
        };
        // SAFETY: handles are live, pointers valid for the call.
        let code = unsafe { $f.unwrap()($($a,)* &raw mut err) };
        assert_eq!(code, 0, "{}", String::from_utf8_lossy(&message[..err.len as usize]));
    }};
}

impl Vm {
    pub(crate) fn new(model: Model, lines: usize) -> Vm {
        // SAFETY: the table lives as long as the process.
        let table = unsafe { &*godwit_sdk::entry::<Interp>() };
        let board = Box::new(Board {
            serial: Mutex::default(),
            reset: AtomicBool::new(false),
            table,
            vcpu: Mutex::new(0),
            lines,
        });
        let host = Box::new(abi::HostTable {
            size: size_of::<abi::HostTable>() as u32,
            reserved: 0,
            ctx: (&raw const *board).cast_mut().cast(),
            pio_read: Some(pio_read),
            pio_write: Some(pio_write),
            mmio_read: Some(mmio_read),
            mmio_write: Some(mmio_write),
            eoi: Some(eoi),
            extint_ack: Some(extint_ack),
            log: Some(log),
        });
        let config = abi::VmConfig {
            size: size_of::<abi::VmConfig>() as u32,
            vcpus: 1,
            model: text(model.name()),
            tsc_khz: 0,
            flags: 0,
            kick_signal: 0,
            reserved: 0,
        };
        let mut vm = std::ptr::null_mut();
        call!(table.vm_create, &raw const config, &raw const *host, &raw mut vm);
        let layout = std::alloc::Layout::from_size_align(RAM, 1 << 16).unwrap();
        // SAFETY: a non-zero layout.
        let ram = unsafe { std::alloc::alloc_zeroed(layout) };
        let slot = abi::MemorySlot {
            size: size_of::<abi::MemorySlot>() as u32,
            slot: 0,
            gpa: 0,
            len: RAM as u64,
            host: ram,
            flags: 0,
        };
        call!(table.vm_map_memory, vm, &raw const slot);
        let mut vcpu = std::ptr::null_mut();
        call!(table.vcpu_create, vm, 0, &raw mut vcpu);
        *board.vcpu.lock().unwrap() = vcpu as usize;
        Vm { table, vm, vcpu, ram, layout, board, _host: host }
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= RAM);
        // SAFETY: inside the allocation; no vCPU runs.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ram.add(at as usize), bytes.len()) }
    }

    /// Reads guest memory.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) {
        assert!(at as usize + into.len() <= RAM);
        // SAFETY: inside the allocation; no vCPU runs.
        unsafe { std::ptr::copy_nonoverlapping(self.ram.add(at as usize), into.as_mut_ptr(), into.len()) }
    }

    /// Loads an ELF file; gives its PVH entry.
    fn load_elf(&self, elf: &[u8]) -> u32 {
        let u16_at = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
        let u32_at = |at: usize| u32::from_le_bytes(elf[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap()) as usize;
        let mut entry = 0;
        for i in 0..u16_at(56) {
            let p = u64_at(32) + i * u16_at(54);
            let (offset, paddr, size) = (u64_at(p + 8), u64_at(p + 24), u64_at(p + 32));
            match u32_at(p) {
                1 => self.write(paddr as u64, &elf[offset..offset + size]),
                4 => {
                    let mut at = offset;
                    while at < offset + size {
                        let (name, desc, kind) =
                            (u32_at(at) as usize, u32_at(at + 4) as usize, u32_at(at + 8));
                        let data = at + 12 + name.next_multiple_of(4);
                        if kind == 18 {
                            entry = u32_at(data);
                        }
                        at = data + desc.next_multiple_of(4);
                    }
                }
                _ => {}
            }
        }
        assert_ne!(entry, 0, "no PVH entry");
        entry
    }

    pub(crate) fn boot(&self, guest: &str, cmdline: &str, avx: bool) {
        let elf = godwit_guests::build(guest).unwrap();
        let entry = self.load_elf(&elf);
        self.write(0x2_0000, cmdline.as_bytes());
        let mut info = [0u8; 56];
        info[..4].copy_from_slice(&0x336e_c578u32.to_le_bytes());
        info[24..32].copy_from_slice(&0x2_0000u64.to_le_bytes());
        self.write(0x6000, &info);
        let mut s = SystemV1::reset();
        let flat = |code: bool| SegmentV1 {
            selector: 0,
            base: 0,
            limit: u32::MAX,
            access: access::PRESENT
                | access::S
                | access::DB
                | access::G
                | access::WRITABLE
                | access::ACCESSED
                | if code { access::CODE } else { 0 },
        };
        s.cs = flat(true);
        (s.ds, s.es, s.fs, s.gs, s.ss) = (flat(false), flat(false), flat(false), flat(false), flat(false));
        s.cr0 = 0x11;
        s.gdtr = TableV1::default();
        let mut gpr = [0; 16];
        gpr[3] = 0x6000;
        let state = CpuState {
            regs: RegsV1 { gpr, rip: u64::from(entry), rflags: 2 },
            system: s,
            msrs: MsrsV1::reset(true),
            debug: DebugV1::default(),
            fpu: FpuV1::default(),
            avx: avx.then(Default::default),
            events: EventsV1::default(),
            lapic: LapicV1::reset(0),
            tsc: TscV1::default(),
        };
        self.load(&state.to_sections());
    }

    pub(crate) fn load(&self, sections: &[RawSection]) {
        let raw: Vec<abi::Section> = sections
            .iter()
            .map(|s| abi::Section {
                size: size_of::<abi::Section>() as u32,
                version: s.version,
                kind: text(&s.kind),
                data: abi::Text { ptr: s.data.as_ptr(), len: s.data.len() as u64 },
                flags: 0,
                reserved: 0,
            })
            .collect();
        call!(self.table.vcpu_load, self.vcpu, raw.as_ptr(), raw.len() as u64);
    }

    pub(crate) fn save(&self) -> Vec<RawSection> {
        let mut out: Vec<RawSection> = Vec::new();
        let sink = abi::Sink {
            size: size_of::<abi::Sink>() as u32,
            reserved: 0,
            ctx: (&raw mut out).cast(),
            put: Some(put),
        };
        call!(self.table.vcpu_save, self.vcpu, &raw const sink);
        out
    }

    pub(crate) fn run(&self) -> u32 {
        call!(self.table.vm_start_clock, self.vm, 0);
        let mut exit = abi::Exit { size: size_of::<abi::Exit>() as u32, reason: 0 };
        call!(self.table.vcpu_run, self.vcpu, &raw mut exit);
        call!(self.table.vm_stop_clock, self.vm);
        exit.reason
    }

    pub(crate) fn serial(&self) -> String {
        String::from_utf8_lossy(&self.board.serial.lock().unwrap()).into_owned()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // SAFETY: nobody runs; the RAM is the VM's no more after it is gone.
        unsafe {
            self.table.vcpu_destroy.unwrap()(self.vcpu);
            self.table.vm_destroy.unwrap()(self.vm);
            std::alloc::dealloc(self.ram, self.layout);
        }
    }
}
