//! String instructions: by whole pages where they repeat.
//!
//! A repeated instruction does as much as lies in one page of each operand, then gives the dispatcher a look at
//! what waits and comes back to itself.

use super::by_width;
use crate::cpu::{Cpu, ES, RAX, RCX, RDI, RDX, RSI};
use crate::decode::Lower;
use crate::flags::{DF, kind};
use crate::mmu::ram;
use crate::op::{Exec, Flow, Handler, OpPtr, leave, run};
use crate::regs::Int;
use iced_x86::Mnemonic as M;

/// How a string instruction repeats.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Rep,
    WhileEqual,
    WhileNot,
}

fn mask(op: OpPtr) -> u64 {
    super::operand::address_mask(op.asize)
}

fn step<T: Int>(cpu: &Cpu) -> u64 {
    if cpu.flags & DF != 0 { (T::BYTES as u64).wrapping_neg() } else { T::BYTES as u64 }
}

/// Writes an index or count register in the instruction's address size.
fn put(cpu: &mut Cpu, op: OpPtr, r: usize, v: u64) {
    match op.asize {
        2 => u16::set(cpu, r as u8, v as u16),
        4 => cpu.gpr[r] = v & 0xffff_ffff,
        _ => cpu.gpr[r] = v,
    }
}

fn advance<T: Int>(cpu: &mut Cpu, op: OpPtr, r: usize) {
    let v = cpu.gpr[r].wrapping_add(step::<T>(cpu));
    put(cpu, op, r, v);
}

/// What one element does. Gives whether ZF matters and is set.
trait Element {
    fn one<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec;
    /// Does up to `count` elements, upwards, inside one page each; 0 if it cannot.
    fn many<T: Int>(_cpu: &mut Cpu, _op: OpPtr, _count: u64) -> Exec<u64> {
        Ok(0)
    }
}

fn source<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<u64> {
    let at = cpu.gpr[RSI] & mask(op);
    cpu.linear(usize::from(op.seg), at, T::BYTES as u64, false)
}

fn dest<T: Int>(cpu: &mut Cpu, op: OpPtr, write: bool) -> Exec<u64> {
    let at = cpu.gpr[RDI] & mask(op);
    cpu.linear(ES, at, T::BYTES as u64, write)
}

struct Movs;
struct Stos;
struct Lods;
struct Scas;
struct Cmps;

/// Whether runs of bytes may be handled at once: upwards, and no wrap or limit on the way.
fn plain(cpu: &Cpu, op: OpPtr) -> bool {
    cpu.long_code() && op.asize == 8 && cpu.flags & DF == 0
}

/// Whether an element reaches into the next page: it faults as one, not as its first part would.
fn straddles<T: Int>(at: u64) -> bool {
    at & 0xfff > 0x1000 - T::BYTES as u64
}

impl Element for Movs {
    fn one<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec {
        let from = source::<T>(cpu, op)?;
        let v = cpu.read::<T>(from)?;
        let to = dest::<T>(cpu, op, true)?;
        cpu.write(to, v)?;
        advance::<T>(cpu, op, RSI);
        advance::<T>(cpu, op, RDI);
        Ok(())
    }
    fn many<T: Int>(cpu: &mut Cpu, op: OpPtr, count: u64) -> Exec<u64> {
        if !plain(cpu, op) {
            return Ok(0);
        }
        let from = source::<T>(cpu, op)?;
        let to = dest::<T>(cpu, op, true)?;
        if straddles::<T>(from) || straddles::<T>(to) {
            return Ok(0);
        }
        let Some((src, room_src)) = cpu.run_of(from, false)? else { return Ok(0) };
        let Some((dst, room_dst)) = cpu.run_of(to, true)? else { return Ok(0) };
        let n = count.min(room_src / T::BYTES as u64).min(room_dst / T::BYTES as u64);
        let bytes = n * T::BYTES as u64;
        // Elements larger than a byte that overlap closer than their size repeat differently.
        let gap = (dst as u64).wrapping_sub(src as u64);
        if gap != 0 && gap < T::BYTES as u64 {
            return Ok(0);
        }
        ram::copy_up(src, dst, bytes as usize);
        put(cpu, op, RSI, cpu.gpr[RSI].wrapping_add(bytes));
        put(cpu, op, RDI, cpu.gpr[RDI].wrapping_add(bytes));
        Ok(n)
    }
}

impl Element for Stos {
    fn one<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec {
        let to = dest::<T>(cpu, op, true)?;
        cpu.write(to, T::new(cpu.gpr[RAX]))?;
        advance::<T>(cpu, op, RDI);
        Ok(())
    }
    fn many<T: Int>(cpu: &mut Cpu, op: OpPtr, count: u64) -> Exec<u64> {
        if !plain(cpu, op) {
            return Ok(0);
        }
        let to = dest::<T>(cpu, op, true)?;
        if straddles::<T>(to) {
            return Ok(0);
        }
        let Some((dst, room)) = cpu.run_of(to, true)? else { return Ok(0) };
        let n = count.min(room / T::BYTES as u64);
        let v = T::new(cpu.gpr[RAX]);
        let bytes = n * T::BYTES as u64;
        let first = v.z() as u8;
        if v.z() == u64::from(first) * (T::MASK / 0xff) {
            ram::fill(dst, first, bytes as usize);
        } else {
            for i in 0..n as usize {
                ram::store(dst + i * T::BYTES, v);
            }
        }
        put(cpu, op, RDI, cpu.gpr[RDI].wrapping_add(bytes));
        Ok(n)
    }
}

impl Element for Lods {
    fn one<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec {
        let from = source::<T>(cpu, op)?;
        let v = cpu.read::<T>(from)?;
        let acc = if T::BITS == 8 { crate::regs::byte_register(0, false) } else { 0 };
        T::set(cpu, acc, v);
        advance::<T>(cpu, op, RSI);
        Ok(())
    }
}

impl Element for Scas {
    fn one<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec {
        let at = dest::<T>(cpu, op, false)?;
        let b = cpu.read::<T>(at)?;
        let a = T::new(cpu.gpr[RAX]);
        cpu.lazy.set(kind::SUB, T::new(a.z().wrapping_sub(b.z())), b);
        advance::<T>(cpu, op, RDI);
        Ok(())
    }
}

impl Element for Cmps {
    fn one<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec {
        let from = source::<T>(cpu, op)?;
        let a = cpu.read::<T>(from)?;
        let at = dest::<T>(cpu, op, false)?;
        let b = cpu.read::<T>(at)?;
        cpu.lazy.set(kind::SUB, T::new(a.z().wrapping_sub(b.z())), b);
        advance::<T>(cpu, op, RSI);
        advance::<T>(cpu, op, RDI);
        Ok(())
    }
}

fn single<T: Int, E: Element>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, { E::one::<T>(cpu, op) })
}

/// Elements done one by one before the dispatcher gets a look.
const SLICE: u64 = 1024;

fn repeated<T: Int, E: Element>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        let how = match op.c {
            1 => Repeat::WhileEqual,
            2 => Repeat::WhileNot,
            _ => Repeat::Rep,
        };
        let mut count = cpu.gpr[RCX] & mask(op);
        let start = count;
        let single = cpu.tag & crate::cpu::mode::STEP != 0;
        let mut more = count != 0;
        while more {
            if !single {
                let n = E::many::<T>(cpu, op, count)?;
                if n != 0 {
                    count -= n;
                    put(cpu, op, RCX, count);
                    cpu.budget -= 64;
                    more = count != 0;
                    if cpu.budget < 0 {
                        break;
                    }
                    continue;
                }
            }
            E::one::<T>(cpu, op)?;
            count -= 1;
            put(cpu, op, RCX, count);
            more = count != 0
                && match how {
                    Repeat::Rep => true,
                    Repeat::WhileEqual => cpu.lazy.zf(),
                    Repeat::WhileNot => !cpu.lazy.zf(),
                };
            if single || start - count >= SLICE {
                break;
            }
        }
        if !more {
            return Ok(super::pause(cpu, op));
        }
        cpu.rip = op.rip(cpu);
        cpu.budget -= i64::from(op.n);
        Ok(Flow::Next)
    })
}

/// INS and OUTS, repeated or not: one element at a time.
fn port<T: Int, const OUT: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        let repeat = op.c != 0;
        let count = cpu.gpr[RCX] & mask(op);
        if repeat && count == 0 {
            return Ok(super::pause(cpu, op));
        }
        let number = cpu.gpr[RDX] as u16;
        cpu.check_port(number, T::BYTES as u16)?;
        if OUT {
            let from = source::<T>(cpu, op)?;
            let v = cpu.read::<T>(from)?;
            cpu.port_write(number, T::BYTES as u32, v.z());
            advance::<T>(cpu, op, RSI);
        } else {
            let to = dest::<T>(cpu, op, true)?;
            cpu.check_write(to, T::BYTES as u64)?;
            let v = cpu.port_read(number, T::BYTES as u32);
            cpu.write(to, T::new(v))?;
            advance::<T>(cpu, op, RDI);
        }
        if repeat {
            put(cpu, op, RCX, count.wrapping_sub(1));
            if count != 1 {
                cpu.rip = op.rip(cpu);
                cpu.budget -= i64::from(op.n);
                return Ok(Flow::Next);
            }
        }
        Ok(super::pause(cpu, op))
    })
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    use iced_x86::OpKind as K;
    let m = l.i.mnemonic();
    let w = match m {
        M::Movsb | M::Stosb | M::Lodsb | M::Scasb | M::Cmpsb | M::Insb | M::Outsb => 8,
        M::Movsw | M::Stosw | M::Lodsw | M::Scasw | M::Cmpsw | M::Insw | M::Outsw => 16,
        M::Movsd | M::Stosd | M::Lodsd | M::Scasd | M::Cmpsd | M::Insd | M::Outsd => 32,
        _ => 64,
    };
    let rep = l.i.has_rep_prefix() || l.i.has_repne_prefix();
    debug_assert!((0..l.i.op_count()).any(|n| !matches!(l.kind(n), K::Immediate8)));
    macro_rules! pick {
        ($e:ty) => {
            if rep { by_width!(w, T => repeated::<T, $e>) } else { by_width!(w, T => single::<T, $e>) }
        };
    }
    l.op.c = u8::from(rep) * 3;
    Some(match m {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => pick!(Movs),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => pick!(Stos),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => pick!(Lods),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq | M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => {
            if rep {
                l.op.c = if l.i.has_repne_prefix() { 2 } else { 1 };
            }
            if matches!(m, M::Scasb | M::Scasw | M::Scasd | M::Scasq) { pick!(Scas) } else { pick!(Cmps) }
        }
        M::Insb | M::Insw | M::Insd => match w {
            8 => port::<u8, false>,
            16 => port::<u16, false>,
            _ => port::<u32, false>,
        },
        _ => match w {
            8 => port::<u8, true>,
            16 => port::<u16, true>,
            _ => port::<u32, true>,
        },
    })
}
