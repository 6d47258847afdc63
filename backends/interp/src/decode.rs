//! From bytes to a block: iced-x86 decodes, the families in `ops` lower each instruction to an op.
//!
//! Two passes: all instructions first, so that flags nobody reads are known when an instruction is lowered, and
//! a comparison sees the branch behind it.

use crate::cache::Draft;
use crate::cpu::{Cpu, PAGE, ZERO, mode};
use crate::mmu::ram::{PAGE_MASK, PAGE_SIZE};
use crate::op::{Exec, Handler, Op};
use crate::ops::pair::Plain;
use crate::ops::{self, pair};
use crate::regs::byte_register;
use godwit_state::model::{Feature as F, Features};
use iced_x86::{
    CpuidFeature, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind,
    Register, RflagsBits,
};
use std::cell::Cell;

/// Most instructions in a block.
const MAX_INSNS: usize = 32;
/// Most bytes of an instruction.
const MAX_BYTES: usize = 15;
const ARITH: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// How a memory operand's address is worked out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// 64-bit code, no segment base, no index.
    Base,
    /// The same with an index.
    Index,
    /// Anything else.
    Any,
}

/// An instruction being lowered.
pub(crate) struct Lower<'a> {
    pub i: &'a Instruction,
    pub op: Op,
    /// 16, 32 or 64.
    pub bits: u32,
    pub mode: u64,
    pub form: Form,
    /// Somebody may read the arithmetic flags this instruction sets.
    pub flags: bool,
    /// LOCK matters.
    pub locked: bool,
    pub features: Features,
    /// What comes next, if it may be fused with this one.
    pub then: Option<&'a Instruction>,
    /// It has been fused.
    pub fused: bool,
    /// Where in the page this instruction ends.
    pub end: u64,
    /// RIP-relative, and the displacement from the page's start does not fit.
    pub far_rip: bool,
}

impl Lower<'_> {
    pub(crate) fn kind(&self, n: u32) -> OpKind {
        self.i.op_kind(n)
    }

    pub(crate) fn is_reg(&self, n: u32) -> bool {
        self.kind(n) == OpKind::Register
    }

    pub(crate) fn is_mem(&self, n: u32) -> bool {
        self.kind(n) == OpKind::Memory
    }

    pub(crate) fn is_imm(&self, n: u32) -> bool {
        !self.is_reg(n) && !self.is_mem(n)
    }

    pub(crate) fn reg(&self, n: u32) -> Register {
        self.i.op_register(n)
    }

    /// Operand number of register operand `n`.
    pub(crate) fn number(&self, n: u32) -> u8 {
        register_number(self.reg(n))
    }

    /// Width in bits of operand `n`: of the register, or of the memory access.
    pub(crate) fn width(&self, n: u32) -> u32 {
        if self.is_reg(n) {
            self.reg(n).size() as u32 * 8
        } else if self.is_mem(n) {
            self.i.memory_size().size() as u32 * 8
        } else {
            0
        }
    }

    /// The immediate operand, sign-extended where the instruction extends it.
    pub(crate) fn imm(&mut self, n: u32) {
        self.op.imm = self.i.immediate(n);
    }

    pub(crate) fn protected(&self) -> bool {
        self.mode & mode::PROTECTED != 0
    }

    /// Target of a near branch, relative to the page.
    pub(crate) fn target(&self) -> u64 {
        match self.kind(0) {
            OpKind::NearBranch64 => self.i.near_branch64(),
            OpKind::NearBranch32 => self.i.near_branch32() as i32 as i64 as u64,
            _ => self.i.near_branch16() as i16 as i64 as u64,
        }
    }

    /// Segment of the memory operand. In 64-bit code only prefixes for FS and GS count (SDM vol. 1, 3.4.4): the base
    /// register alone says whether a bad address is #SS.
    fn segment(&self) -> u8 {
        let named = segment_number(self.i.memory_segment());
        if self.bits < 64 || named >= 4 {
            return named;
        }
        match self.i.memory_base() {
            Register::RSP | Register::RBP | Register::ESP | Register::EBP => 2,
            _ => 3,
        }
    }

    /// The memory operand is one of [`crate::ops::operand::Segment`].
    pub(crate) fn in_segment(&self) -> bool {
        self.bits == 64 && self.op.asize == 8 && self.op.seg >= 4
    }

    /// Fills in the memory operand.
    fn memory(&mut self) {
        let i = self.i;
        if !(0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            // String instructions have a segment and an address size.
            self.op.seg = self.segment();
            self.op.asize = string_address_size(i).unwrap_or((self.bits / 8) as u8);
            return;
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        self.op.seg = self.segment();
        let wide = |r: Register| r.size() as u8;
        let mut asize = if base != Register::None {
            wide(base)
        } else if index != Register::None && !index.is_vector_register() {
            wide(index)
        } else {
            i.memory_displ_size() as u8
        };
        if asize < 2 {
            asize = (self.bits / 8) as u8;
        }
        self.op.asize = asize;
        let mut disp = i.memory_displacement64();
        if asize == 4 {
            disp = disp as u32 as i32 as i64 as u64;
        } else if asize == 2 {
            disp = disp as u16 as i16 as i64 as u64;
        }
        let rip = matches!(base, Register::RIP | Register::EIP);
        self.op.base = match base {
            Register::None => ZERO,
            Register::RIP | Register::EIP => PAGE,
            r => register_number(r),
        };
        self.op.index =
            if index == Register::None || index.is_vector_register() { ZERO } else { register_number(index) };
        self.op.scale = i.memory_index_scale() as u8;
        self.op.disp = disp as i32;
        let plain = self.bits == 64 && asize == 8 && self.op.seg < 4;
        self.form = match (plain, self.op.index == ZERO) {
            (true, true) => Form::Base,
            (true, false) => Form::Index,
            _ => Form::Any,
        };
        if i64::from(self.op.disp) as u64 != disp {
            // An absolute 64-bit address (MOV's own, see ops::mov), or RIP-relative at the edge of 2 GiB.
            self.op.imm = disp;
            self.far_rip = rip;
        }
    }
}

/// The encoding's number of a general, segment, control, debug or vector register; a byte register's offset.
pub(crate) fn register_number(r: Register) -> u8 {
    if r.is_gpr8() {
        return match r {
            Register::AH | Register::CH | Register::DH | Register::BH => {
                byte_register(r as u8 - Register::AH as u8, true)
            }
            _ => byte_register(r.full_register().number() as u8, false),
        };
    }
    r.number() as u8
}

fn segment_number(r: Register) -> u8 {
    match r {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}

fn string_address_size(i: &Instruction) -> Option<u8> {
    (0..i.op_count()).find_map(|n| match i.op_kind(n) {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    })
}

/// True if the guest's model has what the instruction needs.
fn in_model(i: &Instruction, features: Features) -> bool {
    use CpuidFeature as C;
    i.cpuid_features().iter().all(|f| {
        let need = match f {
            C::SSE3 => F::SSE3,
            C::SSSE3 => F::SSSE3,
            C::SSE4_1 => F::SSE4_1,
            C::SSE4_2 => F::SSE4_2,
            C::POPCNT => F::POPCNT,
            C::CMPXCHG16B => F::CX16,
            C::PCLMULQDQ => F::PCLMULQDQ,
            C::AES => F::AES,
            C::SHA => F::SHA,
            C::MOVBE => F::MOVBE,
            C::RDRAND => F::RDRAND,
            C::RDSEED => F::RDSEED,
            C::XSAVE => F::XSAVE,
            C::XSAVEOPT => F::XSAVEOPT,
            C::XSAVEC => F::XSAVEC,
            C::AVX => F::AVX,
            C::AVX2 => F::AVX2,
            C::FMA => F::FMA,
            C::F16C => F::F16C,
            C::BMI2 => F::BMI2,
            C::ADX => F::ADX,
            C::FSGSBASE => F::FSGSBASE,
            C::INVPCID => F::INVPCID,
            C::SMAP => F::SMAP,
            C::RDTSCP => F::RDTSCP,
            C::RDPID => F::RDPID,
            C::CLFLUSHOPT => F::CLFLUSHOPT,
            // Hints that processors without control-flow enforcement take for NOP.
            C::CET_IBT | C::CET_SS
                if matches!(
                    i.mnemonic(),
                    Mnemonic::Endbr32 | Mnemonic::Endbr64 | Mnemonic::Rdsspd | Mnemonic::Rdsspq
                ) =>
            {
                return true;
            }
            // Without BMI1 and LZCNT these are BSF and BSR.
            C::BMI1 | C::LZCNT if matches!(i.mnemonic(), Mnemonic::Tzcnt | Mnemonic::Lzcnt) => return true,
            C::BMI1 => F::BMI1,
            C::LZCNT => F::LZCNT,
            C::INTEL8086
            | C::INTEL8086_ONLY
            | C::INTEL186
            | C::INTEL286
            | C::INTEL386
            | C::INTEL386_ONLY
            | C::INTEL486
            | C::FPU
            | C::FPU287
            | C::FPU387
            | C::FPU287XL_ONLY
            | C::FPU387SL_ONLY
            | C::CPUID
            | C::CMOV
            | C::CX8
            | C::MMX
            | C::SSE
            | C::SSE2
            | C::FXSR
            | C::MSR
            | C::TSC
            | C::X64
            | C::SEP
            | C::SYSCALL
            | C::PAUSE
            | C::MULTIBYTENOP
            | C::CLFSH
            | C::PREFETCHW
            | C::D3NOW
            | C::RDPMC => return true,
            _ => return false,
        };
        // LAHF and SAHF are INTEL8086 to iced; the model's bit concerns 64-bit code, where v1 lacks it.
        features.has(need)
    })
}

/// Decodes from a buffer of code that starts `off` bytes into its page. Gives the instructions, in the first
/// pass's order, and whether the buffer cuts the next off. The last may be invalid (a #UD); one that is cut off is left out, and
/// so is one of more than 15 bytes, which is a #GP(0) (SDM vol. 2, 2.3.11).
fn instructions(code: &[u8], off: u64, bits: u32, max: usize) -> (Vec<Instruction>, bool) {
    let mut decoder = Decoder::with_ip(bits, code, off, DecoderOptions::NONE);
    let mut out = Vec::with_capacity(16);
    while out.len() < max && decoder.can_decode() {
        let bytes = &code[decoder.position()..];
        let i = decoder.decode();
        if i.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
            return (out, true);
        }
        if i.is_invalid() && i.len() == MAX_BYTES && is_longer(bytes, bits) {
            return (out, false);
        }
        let end = i.is_invalid()
            || ops::ends_block(&i)
            || !matches!(i.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
        out.push(i);
        if end {
            break;
        }
    }
    (out, false)
}

/// True if an instruction that is invalid within the most bytes there can be is so for having more. It begins with a prefix
/// that it has twice: without that, an instruction that fits ends before these bytes do.
fn is_longer(code: &[u8], bits: u32) -> bool {
    let mut decoder = Decoder::new(bits, &code[1..MAX_BYTES], DecoderOptions::NONE);
    let _ = decoder.decode();
    decoder.last_error() == DecoderError::NoMoreBytes
}

/// Registers only, nothing that can fault: flags set before it cannot be seen through it.
fn pure(i: &Instruction) -> bool {
    use Mnemonic as M;
    let simple = matches!(
        i.mnemonic(),
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Lea
            | M::Add
            | M::Sub
            | M::And
            | M::Or
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Adc
            | M::Sbb
            | M::Imul
            | M::Bswap
            | M::Xchg
            | M::Cdqe
            | M::Cqo
            | M::Cdq
            | M::Cwde
            | M::Nop
            | M::Bt
            | M::Popcnt
            | M::Movd
            | M::Movq
    ) || ops::condition(i).is_some() && i.flow_control() == FlowControl::Next;
    simple
        && (i.mnemonic() == M::Lea
            || i.mnemonic() == M::Nop
            || (0..i.op_count()).all(|n| i.op_kind(n) != OpKind::Memory))
        && (0..i.op_count()).all(|n| i.op_kind(n) != OpKind::Register || !special(i.op_register(n)))
}

fn special(r: Register) -> bool {
    r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr() || r.is_mm()
}

/// Which instructions' flags somebody may read.
fn live_flags(list: &[Instruction]) -> u32 {
    use Mnemonic as M;
    let (mut live, mut needed) = (ARITH, 0u32);
    for (n, i) in list.iter().enumerate().rev() {
        let sets = i.rflags_modified() & ARITH;
        if sets & live != 0 {
            needed |= 1 << n;
        }
        if !pure(i) {
            live = ARITH;
            continue;
        }
        // A shift by nothing leaves the flags.
        let shift = matches!(i.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror);
        if !(shift && (i.op_kind(1) == OpKind::Register || i.immediate(1) & 0x1f == 0)) {
            live &= !sets;
        }
        live |= i.rflags_read() & ARITH;
    }
    needed
}

impl Cpu {
    /// Decodes the block at `cpu.rip`, which is at `gpa`.
    pub(crate) fn decode(&mut self, gpa: u64) -> Exec<Draft> {
        self.counters.decoded += 1;
        let off = gpa & PAGE_MASK;
        let mode = self.tag & mode::ALL;
        let bits = 16 << (mode & mode::BITS);
        let max = if mode & mode::STEP != 0 { 1 } else { MAX_INSNS };
        let mut buffer = [0u8; MAX_BYTES * MAX_INSNS];
        let room = (PAGE_SIZE - off) as usize;
        let want = if max == 1 { MAX_BYTES } else { 256 };
        let here = room.min(want);
        self.watch_code(gpa, here as u64);
        self.read_physical(gpa, &mut buffer[..here]);
        let (mut list, cut) = instructions(&buffer[..here], off, bits, max);
        let mut second = None;
        if list.is_empty() && cut {
            // It goes on in the next page.
            let linear = self.linear_rip(self.rip);
            let next = (linear & !PAGE_MASK).wrapping_add(PAGE_SIZE);
            let next = if bits == 64 { next } else { next & 0xffff_ffff };
            let gpa2 = self.fetch(next)?;
            self.watch_code(gpa2, MAX_BYTES as u64);
            self.read_physical(gpa2, &mut buffer[here..here + MAX_BYTES]);
            (list, _) = instructions(&buffer[..here + MAX_BYTES], off, bits, 1);
            second = Some(gpa2);
        }
        if list.is_empty() {
            return Err(self.gp(0));
        }
        let mut draft = self.lower_all(&list, bits, mode, off);
        let end = list.last().map_or(off, |i| i.next_ip());
        draft.bytes = end.min(PAGE_SIZE) - off;
        draft.second = second.filter(|_| end > PAGE_SIZE);
        Ok(draft)
    }

    fn lower_all(&mut self, list: &[Instruction], bits: u32, mode: u64, off: u64) -> Draft {
        let needed = live_flags(list);
        let mut cells: Vec<Option<Op>> = Vec::with_capacity(list.len() + 8);
        // What each cell is as a step that can be paired.
        let mut steps: Vec<Option<Plain>> = Vec::with_capacity(list.len() + 8);
        let mut n = 0;
        let mut open = true;
        let mut end = off;
        while n < list.len() {
            let i = &list[n];
            let start = end;
            end = start + i.len() as u64;
            let mut l = Lower {
                i,
                op: Op {
                    run: Cell::new(ops::undefined as Handler),
                    imm: 0,
                    disp: 0,
                    a: 0,
                    b: 0,
                    base: ZERO,
                    index: ZERO,
                    scale: 0,
                    seg: 3,
                    off: start as u16,
                    len: i.len() as u8,
                    n: n as u8 + 1,
                    c: 0,
                    asize: 0,
                },
                bits,
                mode,
                form: Form::Any,
                flags: needed >> n & 1 != 0,
                locked: i.has_lock_prefix(),
                features: self.features,
                then: list.get(n + 1).filter(|_| !self.stepping()),
                fused: false,
                end,
                far_rip: false,
            };
            let valid = !i.is_invalid() && in_model(i, self.features);
            let handler = if valid {
                l.memory();
                if l.far_rip { Some(ops::undefined as Handler) } else { ops::lower(&mut l) }
            } else {
                Some(ops::undefined as Handler)
            };
            let run = handler.unwrap_or_else(|| {
                l.op.imm = i.code() as u64;
                ops::unknown
            });
            l.op.run.set(run);
            if l.fused {
                n += 1;
                let j = &list[n];
                end += j.len() as u64;
                l.op.len += j.len() as u8;
                l.op.n += 1;
            }
            let branch = if l.fused { &list[n] } else { i };
            let slot = valid && ops::has_slot(branch);
            let conditional = slot && branch.flow_control() == FlowControl::ConditionalBranch;
            open = valid && (conditional || branch.flow_control() == FlowControl::Next);
            n += 1;
            // The next op counts it. An op that writes memory may write the NOP behind it, which then has to be looked at.
            if valid && i.mnemonic() == Mnemonic::Nop && !self.stepping() && n > 1 && pure(&list[n - 2]) {
                continue;
            }
            let mut step = if valid && !l.far_rip { pair::plain(&l) } else { None };
            if let (Some(mov), Some(then)) = (steps.last().copied().flatten(), step)
                && let Some(both) = pair::merge(&mov, &then)
                && let Some(Some(before)) = cells.pop()
            {
                steps.pop();
                step = Some(both);
                l.op.off = before.off;
                l.op.len = (end - u64::from(before.off)) as u8;
            }
            cells.push(Some(l.op));
            steps.push(step);
            if slot {
                cells.push(None);
                steps.push(None);
            }
        }
        join(&mut cells, &steps);
        if open {
            cells.push(Some(ops::branch::end_of_block(end, list.len() as u8)));
            cells.push(None);
        }
        Draft { cells, bytes: 0, second: None }
    }
}

/// Joins plain instructions in pairs and rows.
fn join(cells: &mut [Option<Op>], steps: &[Option<Plain>]) {
    let mut n = 0;
    while n < cells.len() {
        if let (Some(Some(x)), (Some(handler), ops)) = (cells.get(n), pair::row(&steps[n..])) {
            x.run.set(handler);
            n += ops;
            continue;
        }
        let (head, tail) = cells.split_at_mut(n + 1);
        if let (Some(Some(x)), Some(Some(px))) = (head.last_mut(), steps.get(n)) {
            if let (Some(Some(y)), Some(Some(py))) = (tail.first_mut(), steps.get(n + 1))
                && pair::join(x, px, y, py)
            {
                n += 2;
                continue;
            }
            pair::alone(x, px);
        }
        n += 1;
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
