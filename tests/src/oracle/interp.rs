//! Runs a sequence on the interpreter: long mode, ring 3, the same addresses as natively and nothing else mapped.

use super::{CODE, DATA, DATA_LEN, Outcome, State};
use godwit_abi as abi;
use godwit_interp::Interp;
use godwit_state::{
    AvxV1, CpuState, DebugV1, EventsV1, F80, FpuV1, LapicV1, MsrsV1, RawSection, RegsV1, SegmentV1, SystemV1,
    TableV1, TscV1,
};
use std::ffi::c_void;

const SYSTEM: usize = 0x2_0000;
const USER: usize = 0x2_0000;

struct Board {
    table: *const abi::BackendTable,
    vcpu: abi::VcpuHandle,
    vector: u32,
}

unsafe extern "C" fn read(_: *mut c_void, _: u32, _: u32, _: u32) -> u64 {
    0
}
unsafe extern "C" fn write(ctx: *mut c_void, _: u32, port: u32, _: u32, _: u64) {
    // SAFETY: the board outlives the VM, and only the thread in `run` comes here; the vCPU lives.
    unsafe {
        let board = ctx.cast::<Board>();
        (*board).vector = port;
        if let Some(kick) = (*(*board).table).vcpu_kick {
            kick((*board).vcpu);
        }
    }
}
unsafe extern "C" fn mmio_read(_: *mut c_void, _: u32, _: u64, _: u32) -> u64 {
    0
}
unsafe extern "C" fn mmio_write(_: *mut c_void, _: u32, _: u64, _: u32, _: u64) {}
unsafe extern "C" fn eoi(_: *mut c_void, _: u32) {}
unsafe extern "C" fn extint_ack(_: *mut c_void) -> i32 {
    -1
}
unsafe extern "C" fn log(_: *mut c_void, _: u32, _: abi::Text) {}
unsafe extern "C" fn put(ctx: *mut c_void, section: *const abi::Section) -> i32 {
    // SAFETY: `ctx` is the vector in `save`; the section lives during the call.
    unsafe {
        let s = &*section;
        (*ctx.cast::<Vec<RawSection>>()).push(RawSection {
            kind: String::from_utf8_lossy(std::slice::from_raw_parts(s.kind.ptr, s.kind.len as usize))
                .into_owned(),
            version: s.version,
            optional: s.flags & abi::SECTION_OPTIONAL != 0,
            data: std::slice::from_raw_parts(s.data.ptr, s.data.len as usize).to_vec(),
        });
    }
    0
}

fn text(s: &str) -> abi::Text {
    abi::Text { ptr: s.as_ptr(), len: s.len() as u64 }
}

macro_rules! call {
    ($f:expr, $($a:expr),*) => {{
        let mut message = [0u8; 256];
        let mut err = abi::ErrorText {
            size: size_of::<abi::ErrorText>() as u32, reserved: 0, ptr: message.as_mut_ptr(), cap: 256, len: 0,
        };
        // SAFETY: handles are live, pointers valid for the call.
        let code = unsafe { $f.expect("a mandatory function")($($a,)* &raw mut err) };
        assert_eq!(code, 0, "{}", String::from_utf8_lossy(&message[..err.len.min(256) as usize]));
    }};
}

/// A machine of the interpreter that runs one sequence after another.
pub struct Machine {
    table: &'static abi::BackendTable,
    vm: abi::VmHandle,
    vcpu: abi::VcpuHandle,
    memory: *mut u8,
    board: *mut Board,
    _host: Box<abi::HostTable>,
    template: CpuState,
}

const LAYOUT: std::alloc::Layout = match std::alloc::Layout::from_size_align(SYSTEM + USER, 0x1_0000) {
    Ok(layout) => layout,
    Err(_) => panic!("a valid layout"),
};

fn segment(selector: u16, access: u32) -> SegmentV1 {
    SegmentV1 { selector, base: 0, limit: u32::MAX, access }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// Makes it.
    ///
    /// # Panics
    /// If the interpreter refuses.
    pub fn new() -> Machine {
        // SAFETY: the table lives as long as the process.
        let table = unsafe { &*godwit_sdk::entry::<Interp>() };
        let board = Box::into_raw(Box::new(Board { table, vcpu: std::ptr::null_mut(), vector: 0 }));
        let host = Box::new(abi::HostTable {
            size: size_of::<abi::HostTable>() as u32,
            reserved: 0,
            ctx: board.cast(),
            pio_read: Some(read),
            pio_write: Some(write),
            mmio_read: Some(mmio_read),
            mmio_write: Some(mmio_write),
            eoi: Some(eoi),
            extint_ack: Some(extint_ack),
            log: Some(log),
        });
        let config = abi::VmConfig {
            size: size_of::<abi::VmConfig>() as u32,
            vcpus: 1,
            model: text("host"),
            tsc_khz: 0,
            flags: 0,
            kick_signal: 0,
            reserved: 0,
        };
        let mut vm = std::ptr::null_mut();
        call!(table.vm_create, &raw const config, &raw const *host, &raw mut vm);
        // SAFETY: a non-zero layout.
        let memory = unsafe { std::alloc::alloc_zeroed(LAYOUT) };
        for (slot, gpa, at, len) in [(0, 0, 0, SYSTEM), (1, CODE, SYSTEM, USER)] {
            let slot = abi::MemorySlot {
                size: size_of::<abi::MemorySlot>() as u32,
                slot,
                gpa,
                len: len as u64,
                // SAFETY: inside the allocation.
                host: unsafe { memory.add(at) },
                flags: 0,
            };
            call!(table.vm_map_memory, vm, &raw const slot);
        }
        let mut vcpu = std::ptr::null_mut();
        call!(table.vcpu_create, vm, 0, &raw mut vcpu);
        // SAFETY: nobody runs yet.
        unsafe { (*board).vcpu = vcpu };
        let mut s = SystemV1::reset();
        s.cs = segment(0x33, 0xa0fb);
        s.ss = segment(0x2b, 0xc0f3);
        // As Linux leaves them: null.
        let none = SegmentV1 { selector: 0, base: 0, limit: 0, access: godwit_state::access::UNUSABLE };
        (s.ds, s.es, s.fs, s.gs) = (none, none, none, none);
        s.tr = SegmentV1 { selector: 0x40, base: 0x7000, limit: 0x67, access: 0x8b };
        s.gdtr = TableV1 { base: 0x6000, limit: 0x37 };
        s.idtr = TableV1 { base: 0xa000, limit: 0x1ff };
        s.cr0 = 0x8005_0033;
        s.cr3 = 0x1000;
        // OSXSAVE, FSGSBASE, UMIP, OSXMMEXCPT, OSFXSR, PAE, DE.
        s.cr4 = 0x5_0e28;
        s.efer = 0xd01;
        s.xcr0 = 7;
        let template = CpuState {
            regs: RegsV1 { gpr: [0; 16], rip: CODE, rflags: 2 },
            system: s,
            msrs: MsrsV1::reset(true),
            debug: DebugV1::default(),
            fpu: FpuV1::default(),
            avx: Some(AvxV1::default()),
            events: EventsV1::default(),
            lapic: LapicV1::reset(0),
            tsc: TscV1::default(),
        };
        let machine = Machine { table, vm, vcpu, memory, board, _host: host, template };
        machine.tables();
        machine
    }

    fn tables(&self) {
        let put = |at: u64, value: u64| self.poke(at as usize, &value.to_le_bytes());
        put(0x1000, 0x2007);
        put(0x2000, 0x3007);
        put(0x3000, 0x4003);
        put(0x3000 + (CODE >> 21) * 8, 0x5007);
        (0..32).for_each(|n| put(0x4000 + n * 8, n << 12 | 3));
        put(0x5000 + (CODE >> 12 & 511) * 8, CODE | 5);
        for page in 0..DATA_LEN as u64 / 0x1000 {
            let at = DATA + page * 0x1000;
            put(0x5000 + (at >> 12 & 511) * 8, at | 7);
        }
        put(0x6008, 0x00af_9b00_0000_ffff);
        put(0x6010, 0x00cf_9300_0000_ffff);
        put(0x6028, 0x00cf_f300_0000_ffff);
        put(0x6030, 0x00af_fb00_0000_ffff);
        put(0x7004, 0x9000);
        // No I/O map.
        self.poke(0x7066, &[0xff; 2]);
        for n in 0..32u64 {
            let handler = 0xb000 + n * 8;
            // INT3 and INTO are for programs.
            let access = if matches!(n, 3 | 4) { 0xee00 } else { 0x8e00 };
            put(0xa000 + n * 16, handler & 0xffff | 8 << 16 | access << 32 | handler >> 16 << 48);
            // OUT n, AL; JMP $
            self.poke(handler as usize, &[0xe6, n as u8, 0xeb, 0xfe]);
        }
    }

    fn poke(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= SYSTEM + USER);
        // SAFETY: inside the allocation; no vCPU runs.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.add(at), bytes.len()) };
    }

    fn peek(&self, at: usize, out: &mut [u8]) {
        assert!(at + out.len() <= SYSTEM + USER);
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(self.memory.add(at), out.as_mut_ptr(), out.len()) };
    }

    /// Runs `code` from `start` until it faults or comes to its end.
    ///
    /// # Panics
    /// If the interpreter refuses the state.
    pub fn run(&self, code: &[u8], start: &State) -> Outcome {
        let mut page = [0xccu8; 0x1000];
        page[..code.len()].copy_from_slice(code);
        // What follows the code natively, for sequences that read it: here it faults, since nothing is mapped there.
        page[code.len()..code.len() + 7].copy_from_slice(&super::WAY_OUT);
        self.poke(SYSTEM, &page);
        self.poke(SYSTEM + (DATA - CODE) as usize, &start.memory);
        if let Some(written) = self.table.vm_memory_written {
            // SAFETY: a live VM.
            unsafe { written(self.vm, CODE, 0x1000) };
        }
        let mut s = self.template.clone();
        s.regs = RegsV1 { gpr: start.gpr, rip: CODE, rflags: start.rflags };
        (s.system.fs.base, s.system.gs.base) = (start.fs_base, start.gs_base);
        s.system.cr2 = 0;
        s.fpu.fcw = start.fcw;
        (s.fpu.fsw, s.fpu.ftw, s.fpu.mxcsr) = (start.fsw, start.ftw, start.mxcsr);
        s.fpu.st = start.st.map(|(se, frac)| F80 { se, frac });
        let wide = |lo: u64, hi: u64| u128::from(hi) << 64 | u128::from(lo);
        s.fpu.xmm = start.ymm.map(|y| wide(y[0], y[1]));
        s.avx = Some(AvxV1 { ymm_high: start.ymm.map(|y| wide(y[2], y[3])) });
        self.load(&s.to_sections());
        call!(self.table.vm_start_clock, self.vm, 0);
        let mut exit = abi::Exit { size: size_of::<abi::Exit>() as u32, reason: 0 };
        call!(self.table.vcpu_run, self.vcpu, &raw mut exit);
        call!(self.table.vm_stop_clock, self.vm);
        let end = CpuState::from_sections(&self.save()).expect("what a backend saves is valid");
        // SAFETY: the vCPU is not running.
        let vector = unsafe { (*self.board).vector };
        let coded = matches!(vector, 8 | 10..=14 | 17);
        let mut frame = [0; 48];
        self.peek(0x9000 - 48, &mut frame);
        let word = |n: usize| u64::from_le_bytes(frame[n * 8 + 8..n * 8 + 16].try_into().expect("8 bytes"));
        let error = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]);
        let mut out = start.clone();
        out.gpr = end.regs.gpr;
        out.gpr[4] = word(3);
        out.rflags = word(2);
        out.rip = word(0);
        (out.fcw, out.fsw, out.ftw, out.mxcsr) = (end.fpu.fcw, end.fpu.fsw, end.fpu.ftw, end.fpu.mxcsr);
        out.st = end.fpu.st.map(|f| (f.se, f.frac));
        let high = end.avx.unwrap_or_default().ymm_high;
        for (n, y) in out.ymm.iter_mut().enumerate() {
            let (lo, hi) = (end.fpu.xmm[n], high[n]);
            *y = [lo as u64, (lo >> 64) as u64, hi as u64, (hi >> 64) as u64];
        }
        self.peek(SYSTEM + (DATA - CODE) as usize, &mut out.memory);
        let done = vector == 14 && out.rip == CODE + code.len() as u64;
        (out.fs_base, out.gs_base) = (end.system.fs.base, end.system.gs.base);
        Outcome {
            fault: (!done).then_some(vector),
            error: if !done && coded { super::error_code(vector, error, end.system.cr2) } else { 0 },
            address: if !done && vector == 14 { end.system.cr2 } else { 0 },
            state: out,
        }
    }

    /// Runs any bytes: those that never come to an end are kicked out after a while. Says nothing of the result; a panic
    /// in the interpreter becomes one here, and a run that a kick does not end hangs.
    pub fn run_anything(&self, code: &[u8], start: &State) {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (kick, vcpu) = (self.table.vcpu_kick, self.vcpu as usize);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if wait.recv_timeout(std::time::Duration::from_millis(5)).is_err()
                    && let Some(kick) = kick
                {
                    // SAFETY: the scope ends before the vCPU does.
                    unsafe { kick(vcpu as abi::VcpuHandle) };
                }
            });
            self.run(code, start);
            // Fails if the kick came first.
            let _ = done.send(());
        });
    }

    fn load(&self, sections: &[RawSection]) {
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

    fn save(&self) -> Vec<RawSection> {
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
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: nobody runs; memory and board are the VM's no more after it is gone.
        unsafe {
            if let (Some(vcpu), Some(vm)) = (self.table.vcpu_destroy, self.table.vm_destroy) {
                vcpu(self.vcpu);
                vm(self.vm);
            }
            std::alloc::dealloc(self.memory, LAYOUT);
            drop(Box::from_raw(self.board));
        }
    }
}
