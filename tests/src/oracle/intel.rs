//! What an Intel processor makes of a sequence: the interpreter runs it, stopped by its own breakpoints before each
//! instruction that the table of differences ([`vendor`]) names, which then gets Intel's result from here. So what is
//! set aside on an Intel host is not skipped: it must be this, to the bit.

use super::interp::Machine;
use super::{CODE, DATA, DATA_LEN, Outcome, State, instructions};
use godwit_interp::num::soft::{self, Env, F32, F64};
use godwit_interp::vendor;
use iced_x86::{
    CpuidFeature, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind, Register,
};
use std::collections::BTreeSet;

/// Where an instruction is run with another operand than its own.
const ELSEWHERE: u64 = DATA + 0x1c00;
/// MXCSR and the x87 control word: underflow is masked.
const UM: u32 = 1 << 11;
const DAZ: u32 = 1 << 6;
const PE: u32 = 1 << 5;

/// What comes of one instruction.
enum Step {
    /// It ends the sequence.
    Ends(Outcome),
    /// It leaves this.
    Leaves(State),
}

/// The instruction's difference, if it may have one.
fn difference(i: &Instruction, bits: u32) -> Option<&'static str> {
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    let sha = i.cpuid_features().contains(&CpuidFeature::SHA);
    Some(match i.mnemonic() {
        M::Dpps | M::Dppd | M::Vdpps | M::Vdppd => "dpps-nan",
        M::Vcvtps2ph => "vcvtps2ph-fault",
        M::Vgatherdps | M::Vgatherdpd | M::Vgatherqps | M::Vgatherqpd => "gather-fault",
        M::Vpgatherdd | M::Vpgatherdq | M::Vpgatherqd | M::Vpgatherqq => "gather-fault",
        _ if sha && memory => "sha-alignment",
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq
            if i.op0_kind() != OpKind::Register || i.has_rep_prefix() || i.has_repne_prefix() =>
        {
            "repeat-fault"
        }
        M::Movd | M::Movq | M::Movntq if i.op0_kind() == OpKind::Memory && i.op1_register().is_mm() => {
            "mmx-fault"
        }
        M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp if memory => "x87-store",
        M::Maskmovdqu | M::Vmaskmovdqu => "maskmov-fault",
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq if i.op0_kind() == OpKind::Memory => {
            "maskmov-span"
        }
        M::Fscale | M::Fprem | M::Fprem1 => "x87-unchanged",
        M::Popa | M::Popad => "popa-fault",
        _ if bits == 64 && memory && matches!(i.memory_segment(), Register::FS | Register::GS) => {
            "segment-offset"
        }
        _ => return None,
    })
}

/// Runs `code` from `start` as Intel's processors do. Gives the names of the differences that came up too.
pub fn run(machine: &Machine, code: &[Vec<u8>], start: &State) -> (Outcome, BTreeSet<&'static str>) {
    let mut seen = BTreeSet::new();
    let bytes = code.concat();
    let special: Vec<Instruction> = instructions(&bytes, start.bits)
        .into_iter()
        .filter(|i| difference(i, start.bits).is_some())
        .collect();
    let mut state = start.clone();
    loop {
        if let Some(i) = special.iter().find(|i| i.ip() == state.rip) {
            match step(machine, &bytes, i, &state, &mut seen) {
                Step::Ends(outcome) => return (outcome, seen),
                Step::Leaves(after) => state = after,
            }
            continue;
        }
        // Branches go forward.
        let stops: Vec<u64> =
            special.iter().map(Instruction::ip).filter(|at| *at > state.rip).take(4).collect();
        let outcome = machine.run_until(&bytes, &state, &stops);
        if outcome.fault != Some(1) {
            return (outcome, seen);
        }
        state = outcome.state;
    }
}

fn step(
    machine: &Machine,
    bytes: &[u8],
    i: &Instruction,
    before: &State,
    seen: &mut BTreeSet<&'static str>,
) -> Step {
    let mut ours = machine.run_until(bytes, before, &[i.next_ip()]);
    let done = ours.state.rip == i.next_ip() && matches!(ours.fault, Some(1) | None);
    let refused = matches!(ours.fault, Some(12..=14)) && ours.state.rip == i.ip();
    let name = difference(i, before.bits).expect("asked of what has one");
    match name {
        "dpps-nan" if done => {
            let after = dot(bytes, i, before, &ours.state);
            if after != ours.state {
                seen.insert(name);
            }
            return Step::Leaves(after);
        }
        "vcvtps2ph-fault" => return half(machine, bytes, i, before, ours, seen),
        "gather-fault" if refused => {
            gather_stopped(i, before, &mut ours.state);
            seen.insert(name);
        }
        "segment-offset" if refused && ours.fault != Some(14) => {
            let Some(at) = address(i, before) else { return Step::Ends(ours) };
            let last = i.memory_size().size().max(1) as u64 - 1;
            let canonical = |at: u64| (at as i64) << 16 >> 16 == at as i64;
            let whole = |at: u64| canonical(at) && canonical(at.wrapping_add(last));
            let base = if i.memory_segment() == Register::FS { before.fs_base } else { before.gs_base };
            if whole(at) && !whole(at.wrapping_sub(base)) {
                seen.insert(name);
                let error = 4 | u32::from(writes(i)) << 1;
                return Step::Ends(Outcome { fault: Some(14), error, address: at, state: ours.state });
            }
        }
        "sha-alignment" if address(i, before).is_some_and(|at| at & 15 != 0) => {
            seen.insert(name);
            return Step::Ends(Outcome { fault: Some(13), error: 0, address: 0, state: before.clone() });
        }
        "repeat-fault" if refused => {
            const STATUS: u64 = 0x8d5;
            if (ours.state.rflags ^ before.rflags) & STATUS != 0 {
                ours.state.rflags = ours.state.rflags & !STATUS | before.rflags & STATUS;
                seen.insert(name);
            }
            if let Some(destination) = other_operand(machine, bytes, i, &ours) {
                ours = destination;
                seen.insert("cmps-order");
            }
        }
        "mmx-fault" if refused => {
            let top = usize::from(before.fsw >> 11 & 7);
            ours.state.fsw = before.fsw & !0x3800;
            ours.state.st = std::array::from_fn(|n| before.st[(n + 8 - top) % 8]);
            seen.insert(name);
        }
        "x87-store" if refused => {
            let (after, stored) = stored_elsewhere(machine, bytes, i, before);
            if let (Some(after), None) = (after, &stored) {
                seen.insert(name);
                return Step::Leaves(after);
            }
            let at = address(i, before).map(|at| at.wrapping_sub(DATA) as usize).filter(|at| *at < DATA_LEN);
            if let (Some(stored), Some(at), Some(14), 10) = (stored, at, ours.fault, i.memory_size().size())
                && let (Some(part), None) = (ours.state.memory.get_mut(at..at + 8), before.memory.get(at + 9))
            {
                part.copy_from_slice(&stored);
                seen.insert("x87-parts");
            }
        }
        "popa-fault" if refused && popped(bytes, i, before, &mut ours.state) => {
            seen.insert(name);
        }
        // Where the upper half is not mapped.
        "maskmov-fault" if ours.fault == Some(14) && refused => {
            let mut upper = ours.address.wrapping_add(8);
            if before.bits == 32 {
                upper &= 0xffff_ffff;
            }
            let mapped = upper >= DATA && upper <= DATA + DATA_LEN as u64 - 8;
            if !mapped {
                ours.address = upper;
                seen.insert(name);
            }
        }
        // Which byte of the bad page it is, [`agrees`] takes from the processor.
        "maskmov-span" if ours.fault == Some(14) && refused => {
            seen.insert(name);
        }
        "x87-unchanged" if done && unchanged(i, before) => {
            const UNDERFLOW: u16 = 0x10;
            let new = ours.state.fsw & !before.fsw;
            if before.fcw & UNDERFLOW == 0 && new & UNDERFLOW != 0 {
                ours.state.st[0] = before.st[0];
                // With it go the summary and the busy flag, which nothing else has raised.
                ours.state.fsw &= !(UNDERFLOW | 0x8080);
                seen.insert(name);
            }
        }
        _ => {}
    }
    if done { Step::Leaves(ours.state) } else { Step::Ends(ours) }
}

/// True if it may write its memory operand.
fn writes(i: &Instruction) -> bool {
    InstructionInfoFactory::new().info(i).used_memory().iter().any(|m| {
        matches!(
            m.access(),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    })
}

/// True if FSCALE, FPREM or FPREM1 has a denormal number in ST(0) to leave as it is.
fn unchanged(i: &Instruction, s: &State) -> bool {
    let [(sign_and_exponent, significand), (exponent, fraction), ..] = s.st;
    let denormal = sign_and_exponent & 0x7fff == 0 && significand != 0;
    let exponent = exponent & 0x7fff;
    denormal
        && if i.mnemonic() == M::Fscale {
            exponent < 0x3fff
        } else {
            exponent == 0x7fff && fraction == 1 << 63
        }
}

/// The instruction's own bytes.
fn own<'a>(bytes: &'a [u8], i: &Instruction) -> &'a [u8] {
    &bytes[(i.ip() - CODE) as usize..][..i.len()]
}

/// Where its memory operand is.
fn address(i: &Instruction, s: &State) -> Option<u64> {
    let n = (0..i.op_count()).find(|n| i.op_kind(*n) == OpKind::Memory)?;
    i.virtual_address(n, 0, |register, _, _| {
        Some(match register {
            Register::FS => s.fs_base,
            Register::GS => s.gs_base,
            r if r.is_segment_register() => 0,
            r if r.is_gpr32() => s.gpr[r.number()] & 0xffff_ffff,
            r => s.gpr[r.number()],
        })
    })
}

/// A vector operand, its upper half zero if it is of 128 bits.
fn vector(bytes: &[u8], i: &Instruction, n: u32, s: &State) -> Option<[u64; 4]> {
    if i.op_kind(n) == OpKind::Register {
        return Some(s.ymm[i.op_register(n).number()]);
    }
    let (at, code) = (address(i, s)?, super::page(bytes, s.bits));
    let memory = if at < DATA { &code[..] } else { &s.memory[..] };
    let at = (at - if at < DATA { CODE } else { DATA }) as usize;
    let mut out = [0; 4];
    for (k, word) in out.iter_mut().enumerate().take(i.memory_size().size() / 8) {
        *word = u64::from_le_bytes(memory.get(at + k * 8..at + k * 8 + 8)?.try_into().ok()?);
    }
    Some(out)
}

/// DPPS and DPPD, that have run, with Intel's choice of NaNs.
fn dot(bytes: &[u8], i: &Instruction, before: &State, after: &State) -> State {
    let mut out = after.clone();
    let (a, b) = if i.op_count() == 4 { (1, 2) } else { (0, 1) };
    let (Some(x), Some(y)) = (vector(bytes, i, a, before), vector(bytes, i, b, before)) else { return out };
    let imm = i.immediate8();
    let env = &mut Env::from_mxcsr(before.mxcsr | 0x1f80);
    let result = &mut out.ymm[i.op0_register().number()];
    let halves = if i.op0_register().is_ymm() { 2 } else { 1 };
    for half in 0..halves {
        let (x, y) = (&x[half * 2..], &y[half * 2..]);
        if matches!(i.mnemonic(), M::Dppd | M::Vdppd) {
            let products: [F64; 2] = std::array::from_fn(|n| {
                if imm >> (4 + n) & 1 != 0 { soft::mul(env, F64(x[n]), F64(y[n])) } else { F64(0) }
            });
            for n in (0..2).filter(|n| imm >> n & 1 != 0) {
                result[n] = soft::add(env, products[n], products[n ^ 1]).0;
            }
            continue;
        }
        let single = |v: &[u64], n: usize| F32((v[n / 2] >> (n % 2 * 32)) as u32);
        let products: [F32; 4] = std::array::from_fn(|n| {
            if imm >> (4 + n) & 1 != 0 { soft::mul(env, single(x, n), single(y, n)) } else { F32(0) }
        });
        let sums: [F32; 4] = std::array::from_fn(|n| soft::add(env, products[n ^ 1], products[n]));
        for n in (0..4).filter(|n| imm >> n & 1 != 0) {
            let total = soft::add(env, sums[n], sums[n ^ 2]).0;
            let (word, shift) = (&mut result[half * 2 + n / 2], n % 2 * 32);
            *word = *word & !(0xffff_ffff << shift) | u64::from(total) << shift;
        }
    }
    out
}

/// VCVTPS2PH: the conversion first, as to a register, then the store.
fn half(
    machine: &Machine,
    bytes: &[u8],
    i: &Instruction,
    before: &State,
    ours: Outcome,
    seen: &mut BTreeSet<&'static str>,
) -> Step {
    let own = own(bytes, i);
    let vex = own.iter().position(|b| *b == 0xc4).expect("the form with three bytes is drawn");
    let alone =
        [0xc4, own[vex + 1], own[vex + 2], own[vex + 3], 0xc0 | own[vex + 4] & 0x38, own[i.len() - 1]];
    let mut converted = machine.run_until(&alone, &State { rip: CODE, ..before.clone() }, &[]);
    let denormal = |v: &u64| [*v as u32, (*v >> 32) as u32].iter().any(|s| s << 1 != 0 && s << 1 >> 24 == 0);
    let source = &before.ymm[i.op1_register().number()];
    let source = &source[..if i.op1_register().is_ymm() { 4 } else { 2 }];
    if before.mxcsr & (UM | DAZ) == 0 && source.iter().any(denormal) && converted.state.mxcsr & PE == 0 {
        // Overflow, division and so on of other elements do not hide it; what comes before arithmetic does.
        if converted.state.mxcsr & 0x10 != 0 {
            converted.state.mxcsr |= PE;
            seen.insert("vcvtps2ph-denormal");
        }
    }
    if converted.fault == Some(19) {
        if ours.fault != Some(19) {
            seen.insert("vcvtps2ph-fault");
        }
        let state = State { mxcsr: converted.state.mxcsr, ..before.clone() };
        return Step::Ends(Outcome { fault: Some(19), error: 0, address: 0, state });
    }
    if ours.fault.is_some_and(|f| f != 1) && ours.state.rip == i.ip() {
        let state = State { mxcsr: converted.state.mxcsr, ..ours.state.clone() };
        if state != ours.state {
            seen.insert("vcvtps2ph-fault");
        }
        return Step::Ends(Outcome { state, ..ours });
    }
    Step::Leaves(ours.state)
}

/// A gather that faulted: its mask is extended by its elements' top bits, and zero beyond the vector, as its destination
/// is once an element is done.
fn gather_stopped(i: &Instruction, before: &State, s: &mut State) {
    let doubles = matches!(i.mnemonic(), M::Vgatherdpd | M::Vgatherqpd | M::Vpgatherdq | M::Vpgatherqq);
    let words = if i.memory_index().is_ymm() || i.op0_register().is_ymm() { 4 } else { 2 };
    let spread = |v: u64, bit: u32| if v >> bit & 1 != 0 { !0u64 } else { 0 };
    let extended = |v: u64| {
        if doubles { spread(v, 63) } else { spread(v, 31) & 0xffff_ffff | spread(v, 63) << 32 }
    };
    let mask = i.op2_register().number();
    for n in 0..4 {
        s.ymm[mask][n] = if n < words { extended(s.ymm[mask][n]) } else { 0 };
    }
    if (0..words).any(|n| s.ymm[mask][n] != extended(before.ymm[mask][n])) {
        s.ymm[i.op0_register().number()][words..].fill(0);
    }
}

/// The fault of CMPS' operand at RDI, where it has one and that at RSI was met first.
fn other_operand(machine: &Machine, bytes: &[u8], i: &Instruction, ours: &Outcome) -> Option<Outcome> {
    let mut alone: Vec<u8> = own(bytes, i).iter().copied().filter(|b| !matches!(b, 0xf2 | 0xf3)).collect();
    // SCAS for CMPS.
    match alone.last_mut()? {
        opcode @ (0xa6 | 0xa7) => *opcode += 8,
        _ => return None,
    }
    let done = machine.run_until(&alone, &State { rip: CODE, ..ours.state.clone() }, &[]);
    let other = (done.fault, done.error, done.address) != (ours.fault, ours.error, ours.address);
    (matches!(done.fault, Some(12..=14)) && other).then(|| Outcome { state: ours.state.clone(), ..done })
}

/// Loads what POPA has popped before its fault. True if there was any.
fn popped(bytes: &[u8], i: &Instruction, before: &State, s: &mut State) -> bool {
    let (code, size) = (super::page(bytes, s.bits), if i.mnemonic() == M::Popad { 4 } else { 2 });
    for n in 0..8u64 {
        let at = (before.gpr[4] + n * size) as u32 as u64;
        let of = |start: u64, memory: &[u8]| {
            let at = at.checked_sub(start)? as usize;
            memory.get(at..at + size as usize).map(<[u8]>::to_vec)
        };
        let Some(value) = of(DATA, &s.memory).or_else(|| of(CODE, &code)) else { return n != 0 };
        let register = 7 - n as usize;
        if register != 4 {
            let mut whole = s.gpr[register].to_le_bytes();
            whole[..size as usize].copy_from_slice(&value);
            s.gpr[register] = u64::from_le_bytes(whole);
        }
    }
    true
}

/// What an x87 store leaves where its operand may be stored, and the first eight bytes that it stores there; no bytes if
/// an unmasked exception keeps it from storing.
fn stored_elsewhere(
    machine: &Machine,
    bytes: &[u8],
    i: &Instruction,
    before: &State,
) -> (Option<State>, Option<[u8; 8]>) {
    let own = own(bytes, i);
    let opcode = own.iter().position(|b| (0xd8..=0xdf).contains(b)).expect("an x87 instruction");
    let mut alone = vec![own[opcode], own[opcode + 1] & 0x38 | 4, 0x25];
    alone.extend((ELSEWHERE as u32).to_le_bytes());
    let done = machine.run_until(&alone, &State { rip: CODE, ..before.clone() }, &[]);
    if done.fault.is_some() {
        return (None, None);
    }
    // Of the unmasked exceptions only that for an inexact result lets it be stored.
    let kept = done.state.fsw & !done.state.fcw & 0x1f != 0;
    let place = (ELSEWHERE - DATA) as usize;
    let stored = done.state.memory[place..place + 8].try_into().expect("8 bytes");
    let after = State { rip: i.next_ip(), memory: before.memory.clone(), ..done.state };
    (Some(after), (!kept).then_some(stored))
}

/// Compares with what this processor answered, where it is Intel's: none if that is no such answer.
pub fn agrees(
    machine: &Machine,
    code: &[Vec<u8>],
    start: &State,
    native: &Outcome,
) -> Option<BTreeSet<&'static str>> {
    if vendor::host() != vendor::Vendor::Intel {
        return None;
    }
    let (mut theirs, seen) = run(machine, code, start);
    let near = |a: u64, b: u64| a >> 12 == b >> 12 && a.abs_diff(b) < 32;
    if seen.contains("maskmov-span") && native.fault == Some(14) && near(native.address, theirs.address) {
        theirs.address = native.address;
    }
    (!seen.is_empty() && super::agree(code, native, &theirs)).then_some(seen)
}
