//! Runs a sequence on the interpreter: long or compatibility mode, ring 3, the same addresses as natively and nothing else
//! mapped.

use super::generate::{FS, GS, GS_LIMIT, USER_CS, USER_CS_32, USER_SS};
use super::{CODE, DATA, DATA_LEN, Outcome, State};
use crate::conformance::board::Event;
use crate::conformance::code;
use crate::conformance::plugin::Plugin;
use crate::conformance::rig::Rig;
use godwit_interp::Interp;
use godwit_state::{AvxV1, CpuState, F80, Model, RegsV1, SegmentV1, TableV1, access};

/// Where the code's page and the buffer are in the rig's memory.
const USER: u64 = 0x2_0000;

/// A machine of the interpreter that runs one sequence after another.
pub struct Machine {
    rig: Rig,
    template: CpuState,
}

fn segment(selector: u16, access: u32) -> SegmentV1 {
    SegmentV1 { selector, base: 0, limit: u32::MAX, access }
}

/// The interpreter of this very process.
pub fn plugin() -> Plugin {
    // SAFETY: the table lives as long as the process.
    Plugin { table: unsafe { &*godwit_sdk::entry::<Interp>() } }
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
        let rig = Rig::with(plugin(), 1, Model::Host, 0);
        let vcpu = rig.cpu();
        rig.board.set_hook(move |event| {
            if matches!(event, Event::Out(..)) {
                vcpu.kick();
            }
        });
        let mut template = code::reset(0, Model::V3);
        let s = &mut template.system;
        s.cs = segment(USER_CS.into(), 0xa0fb);
        s.ss = segment(USER_SS, 0xc0f3);
        // As Linux leaves them: null.
        let none = SegmentV1 { selector: 0, base: 0, limit: 0, access: access::UNUSABLE };
        (s.ds, s.es, s.fs, s.gs) = (none, none, none, none);
        s.tr = SegmentV1 { selector: 0x40, base: 0x7000, limit: 0x67, access: 0x8b };
        s.gdtr = TableV1 { base: 0x6000, limit: 0x37 };
        s.ldtr = SegmentV1 { selector: 0x48, base: 0x6100, limit: 0xf, access: 0x82 };
        s.idtr = TableV1 { base: 0xa000, limit: 0x1ff };
        s.cr0 = 0x8005_0033;
        s.cr3 = 0x1000;
        // OSXSAVE, FSGSBASE, UMIP, OSXMMEXCPT, OSFXSR, PAE, DE.
        s.cr4 = 0x5_0e28;
        s.efer = 0xd01;
        s.xcr0 = 7;
        let machine = Machine { rig, template };
        machine.tables();
        machine
    }

    fn tables(&self) {
        let put = |at: u64, value: u64| self.rig.ram.write(at, &value.to_le_bytes());
        put(0x1000, 0x2007);
        put(0x2000, 0x3007);
        put(0x3000, 0x4003);
        put(0x3000 + (CODE >> 21) * 8, 0x5007);
        (0..32).for_each(|n| put(0x4000 + n * 8, n << 12 | 3));
        put(0x5000 + (CODE >> 12 & 511) * 8, USER | 5);
        for page in 0..DATA_LEN as u64 / 0x1000 {
            let at = DATA + page * 0x1000;
            put(0x5000 + (at >> 12 & 511) * 8, (USER + at - CODE) | 7);
        }
        put(0x6008, 0x00af_9b00_0000_ffff);
        put(0x6010, 0x00cf_9300_0000_ffff);
        put(0x6020, 0x00cf_fb00_0000_ffff);
        put(0x6028, 0x00cf_f300_0000_ffff);
        put(0x6030, 0x00af_fb00_0000_ffff);
        let own = |limit: u32, access: u64| {
            (DATA & 0xff_ffff) << 16 | (DATA >> 24) << 56 | u64::from(limit) | access << 40 | 5 << 52
        };
        put(0x6100 + u64::from(FS & !7), own(DATA_LEN as u32 - 1, 0xf3));
        put(0x6100 + u64::from(GS & !7), own(GS_LIMIT, 0xf7));
        put(0x7004, 0x9000);
        // No I/O map.
        self.rig.ram.write(0x7066, &[0xff; 2]);
        for n in 0..32u64 {
            let handler = 0xb000 + n * 8;
            // INT3 and INTO are for programs.
            let access = if matches!(n, 3 | 4) { 0xee00 } else { 0x8e00 };
            put(0xa000 + n * 16, handler & 0xffff | 8 << 16 | access << 32 | handler >> 16 << 48);
            // OUT n, AL; JMP $
            self.rig.ram.write(handler, &[0xe6, n as u8, 0xeb, 0xfe]);
        }
    }

    /// Runs `code` from `start` until it faults or comes to its end.
    ///
    /// # Panics
    /// If the interpreter refuses the state.
    pub fn run(&self, code: &[u8], start: &State) -> Outcome {
        self.run_until(code, start, &[])
    }

    /// The same, but it ends with fault 1 where it is about to run one of up to four instructions.
    ///
    /// # Panics
    /// If the interpreter refuses the state.
    pub fn run_until(&self, code: &[u8], start: &State, stops: &[u64]) -> Outcome {
        // What follows the code natively faults here, since its own page is not mapped.
        self.rig.dma(USER, &super::page(code, start.bits));
        self.rig.ram.write(USER + DATA - CODE, &start.memory);
        let mut s = self.template.clone();
        s.regs = RegsV1 { gpr: start.gpr, rip: start.rip, rflags: start.rflags };
        for (n, stop) in stops.iter().enumerate() {
            s.debug.dr[n] = *stop;
            s.debug.dr7 |= 1 << (n * 2);
        }
        (s.system.fs.base, s.system.gs.base) = (start.fs_base, start.gs_base);
        if start.bits == 32 {
            s.system.cs = segment(USER_CS_32.into(), 0xc0fb);
            (s.system.ds, s.system.es) = (segment(USER_SS, 0xc0f3), segment(USER_SS, 0xc0f3));
            let own = |selector, limit, access| SegmentV1 { selector, base: DATA, limit, access };
            s.system.fs = own(FS, DATA_LEN as u32 - 1, 0x50f3);
            s.system.gs = own(GS, GS_LIMIT, 0x50f7);
        }
        s.system.cr2 = 0;
        s.fpu.fcw = start.fcw;
        (s.fpu.fsw, s.fpu.ftw, s.fpu.mxcsr) = (start.fsw, start.ftw, start.mxcsr);
        s.fpu.st = start.st.map(|(se, frac)| F80 { se, frac });
        let wide = |lo: u64, hi: u64| u128::from(hi) << 64 | u128::from(lo);
        s.fpu.xmm = start.ymm.map(|y| wide(y[0], y[1]));
        s.avx = Some(AvxV1 { ymm_high: start.ymm.map(|y| wide(y[2], y[3])) });
        let vcpu = self.rig.cpu();
        vcpu.load(&s);
        self.rig.start(0);
        vcpu.run().expect("the interpreter runs");
        self.rig.stop();
        let end = vcpu.save();
        let vector = self.rig.board.take().iter().rev().find_map(|event| match event {
            Event::Out(port, ..) => Some(u32::from(*port)),
            _ => None,
        });
        let vector = vector.unwrap_or(u32::MAX);
        let coded = matches!(vector, 8 | 10..=14 | 17);
        let frame = self.rig.ram.read(0x9000 - 48, 48);
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
        out.memory = self.rig.ram.read(USER + DATA - CODE, DATA_LEN);
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
        let vcpu = self.rig.cpu();
        kicked_after(5, || vcpu.kick(), || self.run(code, start));
    }
}

/// Does something, and the other thing beside it once it has taken that many milliseconds.
pub fn kicked_after<R>(milliseconds: u64, kick: impl FnOnce() + Send, f: impl FnOnce() -> R) -> R {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(std::time::Duration::from_millis(milliseconds)).is_err() {
                kick();
            }
        });
        let r = f();
        // Fails if the kick came first.
        let _ = done.send(());
        r
    })
}
