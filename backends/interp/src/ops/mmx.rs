//! MMX: its own instructions, SSE's additions to them, and what moves and converts between MMX and XMM
//! registers. An instruction that touches an MMX register empties the x87 stack's top and fills every tag.

use super::operand::{Any, address_mask};
use super::sse::numeric;
use super::{ops, outlined};
use crate::cpu::{Cpu, RDI, mode};
use crate::decode::Lower;
use crate::num::simd::{arith as ar, mmx, shift as sh, shuffle as su};
use crate::num::sse::convert as cv;
use crate::num::vec::V128;
use crate::op::{Exec, Flow, Handler, OpPtr};
use crate::regs::Int;
use godwit_state::F80;
use iced_x86::{EncodingKind, Mnemonic as M};

impl Cpu {
    #[inline(always)]
    fn mm(&self, i: u8) -> u64 {
        self.fpu.regs[usize::from(i & 7)].frac
    }

    #[inline(always)]
    fn set_mm(&mut self, i: u8, v: u64) {
        self.fpu.regs[usize::from(i & 7)] = F80 { frac: v, se: 0xffff };
    }

    /// From x87 to MMX: after everything that may fault.
    #[inline(always)]
    fn enter_mmx(&mut self) {
        self.fpu.top = 0;
        self.fpu.tags = 0xff;
    }

    fn xmm_low(&mut self, i: u8) -> &mut V128 {
        &mut self.vec[usize::from(i & 15)].lo
    }
}

/// Bytes of the memory operand, if there is one: bits 8 to 15 of `op.imm`.
fn bytes(op: OpPtr) -> u64 {
    op.imm >> 8 & 0xff
}

/// MMX register `b`, or up to eight bytes of memory.
#[inline(always)]
fn source(cpu: &mut Cpu, op: OpPtr) -> Exec<u64> {
    Ok(match bytes(op) {
        0 => cpu.mm(op.b),
        size => match size {
            8 => Any::read::<u64>(cpu, op)?,
            4 => Any::read::<u32>(cpu, op)?.z(),
            2 => Any::read::<u16>(cpu, op)?.z(),
            _ => Any::read::<u8>(cpu, op)?.z(),
        },
    })
}

/// XMM register `b`, or memory.
fn source_xmm(cpu: &mut Cpu, op: OpPtr) -> Exec<V128> {
    match bytes(op) {
        0 => Ok(*cpu.xmm_low(op.b)),
        16 => {
            let at = Any::at(cpu, op, 16, false)?;
            if at & 15 != 0 {
                return Err(cpu.gp(0));
            }
            Ok(V128::from_u128(cpu.read128(at)?))
        }
        _ => Ok(V128::from_halves(source(cpu, op)?, 0)),
    }
}

/// `a`, the destination's value, `b`, the source's, and the immediate, to the destination's new value.
type Operation = fn(a: u64, b: u64, imm: u8) -> u64;

/// The operation whose number is in `c`.
fn operate(cpu: &mut Cpu, op: OpPtr, b: u64) {
    cpu.enter_mmx();
    let v = OPERATIONS[usize::from(op.c) % OPERATIONS.len()](cpu.mm(op.a), b, op.imm as u8);
    cpu.set_mm(op.a, v);
}

fn operation(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let b = source(cpu, op)?;
        operate(cpu, op, b);
        Ok(())
    })
}

macro_rules! table {
    ($($m:ident: |$a:ident, $b:ident, $i:ident| $e:expr;)*) => {
        enum Number { $($m,)* }
        static OPERATIONS: &[Operation] = &[$(|$a, $b, $i| {
            let _ = ($a, $b, $i);
            $e
        },)*];
        fn number(m: M) -> Option<u8> {
            Some(match m {
                $(M::$m => Number::$m as u8,)*
                _ => return None,
            })
        }
    };
}

/// A shift: the count is all of the source, or the immediate.
#[inline(always)]
fn shift(a: u64, count: u64, f: fn(V128, u64) -> V128) -> u64 {
    mmx::map(a, |a| f(a, count))
}

table! {
    Paddb: |a, b, i| mmx::lanes(a, b, ar::paddb);
    Paddw: |a, b, i| mmx::lanes(a, b, ar::paddw);
    Paddd: |a, b, i| mmx::lanes(a, b, ar::paddd);
    Paddq: |a, b, i| a.wrapping_add(b);
    Paddsb: |a, b, i| mmx::lanes(a, b, ar::paddsb);
    Paddsw: |a, b, i| mmx::lanes(a, b, ar::paddsw);
    Paddusb: |a, b, i| mmx::lanes(a, b, ar::paddusb);
    Paddusw: |a, b, i| mmx::lanes(a, b, ar::paddusw);
    Psubb: |a, b, i| mmx::lanes(a, b, ar::psubb);
    Psubw: |a, b, i| mmx::lanes(a, b, ar::psubw);
    Psubd: |a, b, i| mmx::lanes(a, b, ar::psubd);
    Psubq: |a, b, i| a.wrapping_sub(b);
    Psubsb: |a, b, i| mmx::lanes(a, b, ar::psubsb);
    Psubsw: |a, b, i| mmx::lanes(a, b, ar::psubsw);
    Psubusb: |a, b, i| mmx::lanes(a, b, ar::psubusb);
    Psubusw: |a, b, i| mmx::lanes(a, b, ar::psubusw);
    Pmullw: |a, b, i| mmx::lanes(a, b, ar::pmullw);
    Pmulhw: |a, b, i| mmx::lanes(a, b, ar::pmulhw);
    Pmulhuw: |a, b, i| mmx::lanes(a, b, ar::pmulhuw);
    Pmulhrsw: |a, b, i| mmx::lanes(a, b, ar::pmulhrsw);
    Pmuludq: |a, b, i| mmx::lanes(a, b, ar::pmuludq);
    Pmaddwd: |a, b, i| mmx::lanes(a, b, ar::pmaddwd);
    Pmaddubsw: |a, b, i| mmx::lanes(a, b, ar::pmaddubsw);
    Psadbw: |a, b, i| mmx::lanes(a, b, ar::psadbw);
    Pavgb: |a, b, i| mmx::lanes(a, b, ar::pavgb);
    Pavgw: |a, b, i| mmx::lanes(a, b, ar::pavgw);
    Pminub: |a, b, i| mmx::lanes(a, b, ar::pminub);
    Pmaxub: |a, b, i| mmx::lanes(a, b, ar::pmaxub);
    Pminsw: |a, b, i| mmx::lanes(a, b, ar::pminsw);
    Pmaxsw: |a, b, i| mmx::lanes(a, b, ar::pmaxsw);
    Pcmpeqb: |a, b, i| mmx::lanes(a, b, ar::pcmpeqb);
    Pcmpeqw: |a, b, i| mmx::lanes(a, b, ar::pcmpeqw);
    Pcmpeqd: |a, b, i| mmx::lanes(a, b, ar::pcmpeqd);
    Pcmpgtb: |a, b, i| mmx::lanes(a, b, ar::pcmpgtb);
    Pcmpgtw: |a, b, i| mmx::lanes(a, b, ar::pcmpgtw);
    Pcmpgtd: |a, b, i| mmx::lanes(a, b, ar::pcmpgtd);
    Psignb: |a, b, i| mmx::lanes(a, b, ar::psignb);
    Psignw: |a, b, i| mmx::lanes(a, b, ar::psignw);
    Psignd: |a, b, i| mmx::lanes(a, b, ar::psignd);
    Pabsb: |a, b, i| mmx::map(b, ar::pabsb);
    Pabsw: |a, b, i| mmx::map(b, ar::pabsw);
    Pabsd: |a, b, i| mmx::map(b, ar::pabsd);
    Pand: |a, b, i| a & b;
    Pandn: |a, b, i| !a & b;
    Por: |a, b, i| a | b;
    Pxor: |a, b, i| a ^ b;
    Phaddw: |a, b, i| mmx::joined(a, b, ar::phaddw);
    Phaddd: |a, b, i| mmx::joined(a, b, ar::phaddd);
    Phaddsw: |a, b, i| mmx::joined(a, b, ar::phaddsw);
    Phsubw: |a, b, i| mmx::joined(a, b, ar::phsubw);
    Phsubd: |a, b, i| mmx::joined(a, b, ar::phsubd);
    Phsubsw: |a, b, i| mmx::joined(a, b, ar::phsubsw);
    Packsswb: |a, b, i| mmx::joined(a, b, su::packsswb);
    Packssdw: |a, b, i| mmx::joined(a, b, su::packssdw);
    Packuswb: |a, b, i| mmx::joined(a, b, su::packuswb);
    Punpcklbw: |a, b, i| mmx::unpack_low(a, b, su::punpcklbw);
    Punpcklwd: |a, b, i| mmx::unpack_low(a, b, su::punpcklwd);
    Punpckldq: |a, b, i| mmx::unpack_low(a, b, su::punpckldq);
    Punpckhbw: |a, b, i| mmx::unpack_high(a, b, su::punpcklbw);
    Punpckhwd: |a, b, i| mmx::unpack_high(a, b, su::punpcklwd);
    Punpckhdq: |a, b, i| mmx::unpack_high(a, b, su::punpckldq);
    Pshufb: |a, b, i| mmx::pshufb(a, b);
    Pshufw: |a, b, i| mmx::pshufw(b, i);
    Palignr: |a, b, i| mmx::palignr(a, b, i);
    Psllw: |a, b, i| shift(a, b, sh::psllw);
    Pslld: |a, b, i| shift(a, b, sh::pslld);
    Psllq: |a, b, i| shift(a, b, sh::psllq);
    Psrlw: |a, b, i| shift(a, b, sh::psrlw);
    Psrld: |a, b, i| shift(a, b, sh::psrld);
    Psrlq: |a, b, i| shift(a, b, sh::psrlq);
    Psraw: |a, b, i| shift(a, b, sh::psraw);
    Psrad: |a, b, i| shift(a, b, sh::psrad);
}

/// A shift by the immediate.
fn shift_imm(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        operate(cpu, op, op.imm & 0xff);
        Ok(())
    })
}

/// Loads 4 or 8 bytes, zero-extended.
fn load(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let v = source(cpu, op)?;
        cpu.enter_mmx();
        cpu.set_mm(op.a, v);
        Ok(())
    })
}

fn store<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        let at = Any::at(cpu, op, T::BYTES as u64, true)?;
        let v = T::new(cpu.mm(op.b));
        cpu.write(at, v)?;
        cpu.enter_mmx();
        Ok(())
    })
}

fn from_gpr<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        cpu.enter_mmx();
        let v = T::get(cpu, op.b).z();
        cpu.set_mm(op.a, v);
        Ok(())
    })
}

fn to_gpr<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        cpu.x87_wait()?;
        cpu.enter_mmx();
        let v = T::new(cpu.mm(op.b));
        T::set(cpu, op.a, v);
        Ok(())
    })
}

fn pair(v: u64) -> [u32; 2] {
    [v as u32, (v >> 32) as u32]
}

fn join(v: [u32; 2]) -> u64 {
    u64::from(v[0]) | u64::from(v[1]) << 32
}

ops! {
    fn emms(cpu, _op) {
        cpu.x87_wait()?;
        cpu.fpu.top = 0;
        cpu.fpu.tags = 0
    }

    fn pinsrw(cpu, op) {
        cpu.x87_wait()?;
        let v = if bytes(op) == 0 { cpu.gpr[usize::from(op.b)] } else { source(cpu, op)? };
        cpu.enter_mmx();
        let at = (op.imm as u32 & 3) * 16;
        let v = cpu.mm(op.a) & !(0xffff << at) | (v & 0xffff) << at;
        cpu.set_mm(op.a, v)
    }

    fn pextrw(cpu, op) {
        cpu.x87_wait()?;
        cpu.enter_mmx();
        let v = cpu.mm(op.b) >> ((op.imm as u32 & 3) * 16) & 0xffff;
        cpu.gpr[usize::from(op.a)] = v
    }

    fn pmovmskb(cpu, op) {
        cpu.x87_wait()?;
        cpu.enter_mmx();
        cpu.gpr[usize::from(op.a)] = u64::from(mmx::pmovmskb(cpu.mm(op.b)))
    }

    fn maskmovq(cpu, op) {
        cpu.x87_wait()?;
        let (v, mask) = (cpu.mm(op.a), cpu.mm(op.b));
        let offset = cpu.gpr[RDI] & address_mask(op.asize);
        let chosen = |i: u64| mask >> (8 * i) & 0x80 != 0;
        // The switch from x87 stands although a store faults, as found on the silicon.
        cpu.enter_mmx();
        let at = cpu.linear(usize::from(op.seg), offset, 8, true)?;
        // Its start is looked at whatever the mask, which the manual leaves open; as found on the silicon.
        cpu.check_write(at, 1)?;
        for i in (0..8).filter(|i| chosen(*i)) {
            cpu.check_write(at.wrapping_add(i), 1)?;
        }
        for i in (0..8).filter(|i| chosen(*i)) {
            cpu.write(at.wrapping_add(i), (v >> (8 * i)) as u8)?;
        }
    }

    fn movq2dq(cpu, op) {
        cpu.x87_wait()?;
        cpu.enter_mmx();
        *cpu.xmm_low(op.a) = V128::from_halves(cpu.mm(op.b), 0)
    }

    fn movdq2q(cpu, op) {
        cpu.x87_wait()?;
        cpu.enter_mmx();
        let v = cpu.xmm_low(op.b).low();
        cpu.set_mm(op.a, v)
    }

    /// From memory it leaves x87 alone, as does CVTPI2PD.
    fn cvtpi2ps(cpu, op) {
        let from_memory = bytes(op) != 0;
        if !from_memory {
            cpu.x87_wait()?;
        }
        let v = pair(source(cpu, op)?).map(|v| v as i32);
        // The switch from x87 stands although the conversion ends in #XM, as found on the silicon.
        if !from_memory {
            cpu.enter_mmx();
        }
        let r = numeric(cpu, |mx| cv::i32_to_f32(mx, v))?;
        let high = cpu.xmm_low(op.a).high();
        *cpu.xmm_low(op.a) = V128::from_halves(join(r), high)
    }

    fn cvtpi2pd(cpu, op) {
        if bytes(op) == 0 {
            cpu.x87_wait()?;
        }
        let v = pair(source(cpu, op)?).map(|v| v as i32);
        if bytes(op) == 0 {
            cpu.enter_mmx();
        }
        *cpu.xmm_low(op.a) = V128::from_u64s(cv::i32_to_f64(v))
    }

    fn cvtps2pi(cpu, op) {
        cpu.x87_wait()?;
        let v = pair(source_xmm(cpu, op)?.low());
        cpu.enter_mmx();
        let r = numeric(cpu, |mx| cv::f32_to_i32(mx, v, op.c != 0))?;
        cpu.set_mm(op.a, join(r.map(|v| v as u32)))
    }

    fn cvtpd2pi(cpu, op) {
        cpu.x87_wait()?;
        let v = source_xmm(cpu, op)?.u64s();
        cpu.enter_mmx();
        let r = numeric(cpu, |mx| cv::f64_to_i32(mx, v, op.c != 0))?;
        cpu.set_mm(op.a, join(r.map(|v| v as u32)))
    }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    let count = l.i.op_count();
    let has =
        |l: &Lower<'_>, f: fn(iced_x86::Register) -> bool| (0..count).any(|n| l.is_reg(n) && f(l.reg(n)));
    let mm = has(l, iced_x86::Register::is_mm) || matches!(m, M::Emms | M::Cvtpi2pd | M::Cvtpi2ps);
    if !mm || l.i.encoding() != EncodingKind::Legacy {
        return None;
    }
    if has(l, iced_x86::Register::is_xmm)
        || matches!(m, M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi)
    {
        if let Some(refused) = super::sse::refused(l) {
            return Some(refused);
        }
    } else if l.mode & mode::EM != 0 {
        return Some(super::undefined);
    } else if l.mode & mode::TS != 0 {
        return Some(super::x87::not_available);
    }
    // MASKMOVQ's registers come after its address.
    let first = u32::from(m == M::Maskmovq);
    let immediate = count > 1 && l.is_imm(count - 1);
    if immediate {
        l.op.imm = l.i.immediate(count - 1) & 0xff;
    }
    if count > first && l.is_reg(first) {
        l.op.a = l.number(first);
    }
    if count > first + 1 && l.is_reg(first + 1) {
        l.op.b = l.number(first + 1);
    }
    if (0..count).any(|n| l.is_mem(n)) {
        l.op.imm |= (l.i.memory_size().size() as u64 & 0xff) << 8;
    }
    l.op.c = u8::from(matches!(m, M::Cvttps2pi | M::Cvttpd2pi));
    let gpr = |l: &Lower<'_>, n: u32| l.is_reg(n) && l.reg(n).is_gpr();
    Some(match m {
        M::Emms => emms,
        M::Movd | M::Movq | M::Movntq if l.is_mem(0) => {
            if l.i.memory_size().size() == 4 {
                store::<u32>
            } else {
                store::<u64>
            }
        }
        M::Movd | M::Movq if gpr(l, 0) => {
            if l.reg(0).size() == 4 {
                to_gpr::<u32>
            } else {
                to_gpr::<u64>
            }
        }
        M::Movd | M::Movq if gpr(l, 1) => {
            if l.reg(1).size() == 4 {
                from_gpr::<u32>
            } else {
                from_gpr::<u64>
            }
        }
        M::Movd | M::Movq => load,
        M::Pinsrw => pinsrw,
        M::Pextrw => pextrw,
        M::Pmovmskb => pmovmskb,
        M::Maskmovq => maskmovq,
        M::Movq2dq => movq2dq,
        M::Movdq2q => movdq2q,
        M::Cvtpi2ps => cvtpi2ps,
        M::Cvtpi2pd => cvtpi2pd,
        M::Cvtps2pi | M::Cvttps2pi => cvtps2pi,
        M::Cvtpd2pi | M::Cvttpd2pi => cvtpd2pi,
        _ => {
            l.op.c = number(m)?;
            // Only shifts have nothing but a register and an immediate.
            if immediate && count == 2 { shift_imm } else { operation }
        }
    })
}
