//! Guest code and tables: where things are in a test's memory, and the states that start there.

use godwit_state::{
    ActivityV1, AvxV1, CpuState, DebugV1, EventsV1, FpuV1, LapicV1, Model, MsrsV1, RegsV1, SegmentV1,
    SystemV1, TableV1, TscV1, access, model::Feature,
};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, byte_ptr};

/// RAM of a test, from address 0.
pub const RAM: u64 = 4 << 20;
/// The program.
pub const CODE: u64 = 0x1000;
/// Interrupt handlers, by [`handler`].
pub const HANDLERS: u64 = 0x4000;
/// Interrupt descriptor table of long mode.
pub const IDT: u64 = 0x8000;
/// Global descriptor table.
pub const GDT: u64 = 0x9000;
/// Task state segment.
pub const TSS: u64 = 0xa000;
/// Page tables: the first 4 GiB, each address its own.
pub const TABLES: u64 = 0x1_0000;
/// Top of the stack.
pub const STACK: u64 = 0x2_0000;
/// Device memory.
pub const DEVICE: u64 = 0xd000_0000;
/// The LAPIC.
pub const LAPIC: u32 = 0xfee0_0000;
/// A program says here that it has come this far.
pub const MARK: u16 = 0x80;
/// A program says here that it is done.
pub const DONE: u16 = 0xf4;

/// A byte that lets a program go on after [`done`].
pub const GO: u64 = 0x3ff0;

/// Says that the program is done, then waits to be let go on: a kick ends `run` soon, not at once.
///
/// # Errors
/// None that a test can have.
pub fn done(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.out(i32::from(DONE), al)?;
    a.set_label(&mut wait)?;
    a.cmp(byte_ptr(GO), 0)?;
    a.je(wait)?;
    a.mov(byte_ptr(GO), 0)
}

/// Where the handler of a vector is: 64 bytes each.
pub fn handler(vector: u8) -> u64 {
    HANDLERS + 64 * u64::from(vector)
}

/// Assembles for `bits` at `address`.
///
/// # Panics
/// If the test's code is not valid.
pub fn assemble(
    bits: u32,
    address: u64,
    f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("16, 32 or 64");
    f(&mut a).expect("valid instructions");
    a.assemble(address).expect("code assembles")
}

/// Tables for long mode, as (address, bytes).
pub fn tables() -> Vec<(u64, Vec<u8>)> {
    let mut pages = vec![0u64; 6 * 512];
    // Present, writable, user, accessed; dirty too where it counts, so that the processor doesn't write them.
    pages[0] = (TABLES + 0x1000) | 0x27;
    for gib in 0..4u64 {
        pages[512 + gib as usize] = (TABLES + 0x2000 + gib * 0x1000) | 0x27;
        for i in 0..512u64 {
            pages[1024 + (gib * 512 + i) as usize] = (gib << 30 | i << 21) | 0xe7;
        }
    }
    let gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8b00_0000_0067 | (TSS & 0xff_ffff) << 16,
        0,
    ];
    let idt = (0..=255u8).flat_map(|v| {
        let h = handler(v);
        [h & 0xffff | 8 << 16 | 0x8e << 40 | (h >> 16 & 0xffff) << 48, h >> 32]
    });
    let bytes = |words: &mut dyn Iterator<Item = u64>| words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    let mut tss = vec![0u8; 104];
    tss[4..12].copy_from_slice(&STACK.to_le_bytes());
    tss[102] = 104;
    vec![
        (TABLES, bytes(&mut pages.into_iter())),
        (GDT, bytes(&mut gdt.into_iter())),
        (IDT, bytes(&mut { idt })),
        (TSS, tss),
    ]
}

/// The reset state of vCPU `id`, for `model`.
pub fn reset(id: u32, model: Model) -> CpuState {
    let avx = model.features().is_some_and(|f| f.has(Feature::AVX));
    CpuState {
        regs: RegsV1 { rip: 0xfff0, rflags: 2, ..Default::default() },
        system: SystemV1::reset(),
        msrs: MsrsV1::reset(id == 0),
        debug: DebugV1::default(),
        fpu: FpuV1::default(),
        avx: avx.then(AvxV1::default),
        events: EventsV1 {
            activity: if id == 0 { ActivityV1::Running } else { ActivityV1::Uninitialized },
            ..Default::default()
        },
        lapic: LapicV1::reset(id),
        tsc: TscV1::default(),
    }
}

/// Real mode at [`CODE`].
pub fn real_mode(model: Model) -> CpuState {
    let mut s = reset(0, model);
    s.system.cs = SegmentV1::real_mode(0, true);
    s.regs.rip = CODE;
    s.regs.gpr[4] = 0xf000;
    s
}

/// Long mode at [`CODE`] with the tables of [`tables`], in ring 0 or 3, LAPIC enabled by software.
pub fn long_mode(model: Model, ring: u16) -> CpuState {
    let mut s = reset(0, model);
    let dpl = u32::from(ring) << access::DPL_SHIFT;
    let common = access::PRESENT | access::S | access::ACCESSED | access::WRITABLE | access::G | dpl;
    let (cs, ss) = if ring == 0 { (0x08, 0x10) } else { (0x23, 0x1b) };
    s.system.cs =
        SegmentV1 { selector: cs, base: 0, limit: u32::MAX, access: common | access::CODE | access::L };
    let data = SegmentV1 { selector: ss, base: 0, limit: u32::MAX, access: common | access::DB };
    (s.system.ds, s.system.es, s.system.ss) = (data, data, data);
    (s.system.fs, s.system.gs) = (data, data);
    s.system.tr = SegmentV1 { selector: 0x28, base: TSS, limit: 103, access: access::PRESENT | 11 };
    s.system.gdtr = TableV1 { base: GDT, limit: 55 };
    s.system.idtr = TableV1 { base: IDT, limit: 0xfff };
    s.system.cr0 = 0x8000_0033;
    s.system.cr3 = TABLES;
    // PAE, OSFXSR, OSXMMEXCPT.
    s.system.cr4 = 0x620;
    // LMA, LME, SCE.
    s.system.efer = 0x501;
    s.regs.rip = CODE;
    s.regs.gpr[4] = STACK;
    s.lapic.svr = 0x1ff;
    s
}
