//! Near branches, and comparisons fused with the conditional branch behind them.
//!
//! A branch whose target is in the same page goes straight to the block its slot is linked to: the page is mapped
//! as it was when the block was entered, or the chain would have ended. One to another page checks that the
//! link was made under the same translations (`cpu.tag`) for the same address.

use super::mov::by_condition;
use super::operand::{Base, Imm, Index, Mem, RegA, RegB, Src};
use super::{by_form, by_wide};
use crate::cpu::{Cpu, PAGE, RCX, RSP, SS, mode};
use crate::decode::{Form, Lower};
use crate::exec::jump_index;
use crate::flags::{compare, kind};
use crate::mmu::ram::{PAGE_MASK, PAGE_SIZE};
use crate::op::{Exec, Flow, Handler, Op, OpPtr, fall, leave};
use crate::regs::Int;
use iced_x86::{FlowControl, Mnemonic as M, OpKind};
use std::cell::Cell;

/// Bits of a branch target for an operand size of 16, 32 or 64.
fn target_mask(bytes: u8) -> u64 {
    if bytes == 2 { 0xffff } else { u64::MAX }
}

/// No block is linked, or the budget is used up.
#[cold]
#[inline(never)]
fn unlinked(cpu: &mut Cpu, op: OpPtr, rip: u64) -> Flow {
    cpu.rip = rip;
    cpu.link = Some(op);
    Flow::Link
}

#[inline(always)]
fn target(cpu: &Cpu, op: OpPtr) -> u64 {
    cpu.page_rip(op.imm) & target_mask(op.c)
}

/// Goes to the target in the same page.
#[inline(always)]
pub(crate) fn take_near(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.budget -= i64::from(op.n);
    if cpu.budget > 0
        && let Some(to) = op.slot().to.get()
    {
        return to.go(cpu);
    }
    let rip = target(cpu, op);
    unlinked(cpu, op, rip)
}

/// The same for a fused pair, whose immediate is the comparison's: `asize` and `c` are the target's offset.
#[inline(always)]
fn take_fused(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.budget -= i64::from(op.n);
    if cpu.budget > 0
        && let Some(to) = op.slot().to.get()
    {
        return to.go(cpu);
    }
    let rip = cpu.page_rip(u64::from(op.asize) | u64::from(op.c) << 8);
    unlinked(cpu, op, rip)
}

/// Goes to the target in another page.
#[inline(always)]
pub(crate) fn take_far(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.budget -= i64::from(op.n);
    let slot = op.slot();
    let rip = target(cpu, op);
    if cpu.budget > 0
        && slot.va.get() == rip
        && slot.tag.get() == cpu.tag
        && let Some(to) = slot.to.get()
    {
        cpu.gpr[PAGE as usize] = slot.page.get();
        return to.go(cpu);
    }
    unlinked(cpu, op, rip)
}

#[inline(always)]
fn take<const NEAR: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    if NEAR { take_near(cpu, op) } else { take_far(cpu, op) }
}

/// Goes to an address known only now.
#[inline(always)]
pub(crate) fn indirect(cpu: &mut Cpu, op: OpPtr, rip: u64) -> Flow {
    cpu.budget -= i64::from(op.n);
    let jump = &cpu.jumps[jump_index(rip)];
    if cpu.budget > 0
        && jump.va == rip
        && jump.tag == cpu.tag
        && let Some(to) = jump.op
    {
        cpu.gpr[PAGE as usize] = jump.page;
        return to.go(cpu);
    }
    cpu.rip = rip;
    Flow::Next
}

/// The op that ends a block in front of `end`.
pub(crate) fn end_of_block(end: u64, n: u8) -> Op {
    let near = end < PAGE_SIZE;
    Op {
        run: Cell::new(if near { go_on::<true> } else { go_on::<false> }),
        imm: end,
        disp: 0,
        a: 0,
        b: 0,
        base: 0,
        index: 0,
        scale: 0,
        seg: 3,
        off: end as u16,
        len: 0,
        n,
        c: 8,
        asize: 0,
    }
}

fn go_on<const NEAR: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    take::<NEAR>(cpu, op)
}

fn jmp<const NEAR: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    take::<NEAR>(cpu, op)
}

fn jcc<const CC: u8, const NEAR: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    if cpu.lazy.cond(CC) { take::<NEAR>(cpu, op) } else { fall(cpu, op) }
}

/// CMP and Jcc.
fn cmp_jcc<T: Int, X: Src<T>, Y: Src<T>, const CC: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let (a, b) = match operands::<T, X, Y>(cpu, op) {
        Ok(v) => v,
        Err(_) => return cpu.abort(op),
    };
    cpu.lazy.set(kind::SUB, T::new(a.z().wrapping_sub(b.z())), b);
    if compare::<T, CC>(a, b) { take_fused(cpu, op) } else { fall(cpu, op) }
}

/// TEST and Jcc.
fn test_jcc<T: Int, X: Src<T>, Y: Src<T>, const CC: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let (a, b) = match operands::<T, X, Y>(cpu, op) {
        Ok(v) => v,
        Err(_) => return cpu.abort(op),
    };
    let r = T::new(a.z() & b.z());
    cpu.lazy.logic(r);
    if compare::<T, CC>(r, T::new(0)) { take_fused(cpu, op) } else { fall(cpu, op) }
}

#[inline(always)]
fn operands<T: Int, X: Src<T>, Y: Src<T>>(cpu: &mut Cpu, op: OpPtr) -> Exec<(T, T)> {
    Ok((X::load(cpu, op)?, Y::load(cpu, op)?))
}

/// DEC or INC (whose carry stays) and a branch on zero or sign.
fn step_jcc<T: Int, const UP: bool, const CC: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let a = T::get(cpu, op.a);
    let r = T::new(if UP { a.z().wrapping_add(1) } else { a.z().wrapping_sub(1) });
    let carry = T::new(u64::from(cpu.lazy.cf()));
    cpu.lazy.set(if UP { kind::INC } else { kind::DEC }, r, carry);
    T::set(cpu, op.a, r);
    if compare::<T, CC>(r, T::new(0)) { take_fused(cpu, op) } else { fall(cpu, op) }
}

/// SUB, ADD or AND of registers or an immediate, and a branch on zero or sign.
fn alu_jcc<T: Int, O: super::alu::Alu, Y: Src<T>, const CC: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let Ok(b) = Y::load(cpu, op) else { return cpu.abort(op) };
    let a = T::get(cpu, op.a);
    let r = O::run::<T, true>(&mut cpu.lazy, a, b);
    T::set(cpu, op.a, r);
    if compare::<T, CC>(r, T::new(0)) { take_fused(cpu, op) } else { fall(cpu, op) }
}

macro_rules! by_zero_or_sign {
    ($cc:expr, $c:ident => $e:expr) => {
        match $cc {
            4 => {
                const $c: u8 = 4;
                $e
            }
            5 => {
                const $c: u8 = 5;
                $e
            }
            8 => {
                const $c: u8 = 8;
                $e
            }
            9 => {
                const $c: u8 = 9;
                $e
            }
            _ => return None,
        }
    };
}

/// The handler for `l`'s instruction together with the conditional branch behind it, if there is one.
pub(super) fn lower_fused(l: &mut Lower<'_>) -> Option<Handler> {
    let then = l.then?;
    if l.bits != 64
        || l.i.has_lock_prefix()
        || then.flow_control() != FlowControl::ConditionalBranch
        || then.op_kind(0) != OpKind::NearBranch64
    {
        return None;
    }
    let cc = super::condition(then)?;
    let target = then.near_branch64();
    // Both in this page, or the branch is better off alone.
    if target > PAGE_MASK || then.next_ip() > PAGE_MASK || l.i.mnemonic() == M::Nop {
        return None;
    }
    let w = l.width(0);
    macro_rules! wide {
        ($t:ident => $e:expr) => {
            match w {
                8 => {
                    type $t = u8;
                    $e
                }
                32 => {
                    type $t = u32;
                    $e
                }
                64 => {
                    type $t = u64;
                    $e
                }
                _ => return None,
            }
        };
    }
    let m = l.i.mnemonic();
    let (reg0, reg1, mem0, mem1) =
        (l.is_reg(0), l.i.op_count() > 1 && l.is_reg(1), l.is_mem(0), l.i.op_count() > 1 && l.is_mem(1));
    if reg0 {
        l.op.a = l.number(0);
    }
    let handler: Handler = match m {
        M::Cmp | M::Test if reg0 && reg1 => {
            l.op.b = l.number(1);
            if m == M::Cmp {
                by_condition!(cc, C => wide!(T => cmp_jcc::<T, RegA, RegB, C>))
            } else {
                by_condition!(cc, C => wide!(T => test_jcc::<T, RegA, RegB, C>))
            }
        }
        M::Cmp | M::Test if reg0 && !mem1 => {
            if m == M::Cmp {
                by_condition!(cc, C => wide!(T => cmp_jcc::<T, RegA, Imm, C>))
            } else {
                by_condition!(cc, C => wide!(T => test_jcc::<T, RegA, Imm, C>))
            }
        }
        M::Cmp if mem1 && l.form != Form::Any => {
            if l.form == Form::Base {
                by_condition!(cc, C => wide!(T => cmp_jcc::<T, RegA, Mem<Base>, C>))
            } else {
                by_condition!(cc, C => wide!(T => cmp_jcc::<T, RegA, Mem<Index>, C>))
            }
        }
        M::Cmp if mem0 && reg1 && l.form == Form::Base => {
            l.op.a = l.number(1);
            by_condition!(cc, C => wide!(T => cmp_jcc::<T, Mem<Base>, RegA, C>))
        }
        M::Cmp if mem0 && !reg1 && l.form != Form::Any => {
            if l.form == Form::Base {
                by_condition!(cc, C => wide!(T => cmp_jcc::<T, Mem<Base>, Imm, C>))
            } else {
                by_condition!(cc, C => wide!(T => cmp_jcc::<T, Mem<Index>, Imm, C>))
            }
        }
        M::Test if mem0 && !reg1 && l.form == Form::Base => {
            by_zero_or_sign!(cc, C => wide!(T => test_jcc::<T, Mem<Base>, Imm, C>))
        }
        M::Inc if reg0 => by_zero_or_sign!(cc, C => wide!(T => step_jcc::<T, true, C>)),
        M::Dec if reg0 => by_zero_or_sign!(cc, C => wide!(T => step_jcc::<T, false, C>)),
        M::Sub | M::Add | M::And if reg0 && reg1 => {
            l.op.b = l.number(1);
            match m {
                M::Sub => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, super::alu::Sub, RegB, C>)),
                M::Add => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, super::alu::Add, RegB, C>)),
                _ => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, super::alu::And, RegB, C>)),
            }
        }
        M::Sub | M::Add | M::And if reg0 && !mem1 => match m {
            M::Sub => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, super::alu::Sub, Imm, C>)),
            M::Add => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, super::alu::Add, Imm, C>)),
            _ => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, super::alu::And, Imm, C>)),
        },
        _ => return None,
    };
    if l.i.op_count() > 1 && !reg1 && !mem1 {
        l.imm(1);
    }
    l.op.asize = target as u8;
    l.op.c = (target >> 8) as u8;
    l.fused = true;
    Some(handler)
}

fn call<const NEAR: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let back = op.next_rip(cpu);
    match cpu.push_sized(op.c, back) {
        Ok(()) => take::<NEAR>(cpu, op),
        Err(_) => cpu.abort(op),
    }
}

/// CALL in 64-bit code.
fn call64<const NEAR: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let back = op.next_rip(cpu);
    let sp = cpu.gpr[RSP].wrapping_sub(8);
    match cpu.write::<u64>(sp, back) {
        Ok(()) => {
            cpu.gpr[RSP] = sp;
            take::<NEAR>(cpu, op)
        }
        Err(e) => {
            cpu.stack_fault(e);
            cpu.abort(op)
        }
    }
}

fn ret64(cpu: &mut Cpu, op: OpPtr) -> Flow {
    match cpu.read::<u64>(cpu.gpr[RSP]) {
        Ok(rip) => {
            cpu.gpr[RSP] = cpu.gpr[RSP].wrapping_add(8).wrapping_add(op.imm);
            indirect(cpu, op, rip)
        }
        Err(_) => cpu.abort(op),
    }
}

fn ret(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        let rip = cpu.peek_sized(op.c, 0)?;
        cpu.drop_stack(u64::from(op.c) + op.imm);
        Ok(indirect(cpu, op, rip))
    })
}

fn jmp_indirect<T: Int, S: Src<T>>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        let rip = S::load(cpu, op)?.z();
        Ok(indirect(cpu, op, rip))
    })
}

fn call_indirect<T: Int, S: Src<T>>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        let rip = S::load(cpu, op)?.z();
        let back = op.next_rip(cpu);
        cpu.push_sized(T::BYTES as u8, back)?;
        Ok(indirect(cpu, op, rip))
    })
}

/// JCXZ, JECXZ, JRCXZ, LOOP, LOOPE, LOOPNE: `a` says which, `asize` the width of the counter.
fn count_branch<const NEAR: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let mask = super::operand::address_mask(op.asize);
    let mut count = cpu.gpr[RCX] & mask;
    if op.a != 0 {
        count = count.wrapping_sub(1) & mask;
        match op.asize {
            2 => u16::set(cpu, RCX as u8, count as u16),
            _ => cpu.gpr[RCX] = count,
        }
    }
    let taken = match op.a {
        0 => count == 0,
        1 => count != 0,
        2 => count != 0 && cpu.lazy.zf(),
        _ => count != 0 && !cpu.lazy.zf(),
    };
    if taken { take::<NEAR>(cpu, op) } else { fall(cpu, op) }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    let kind = l.kind(0);
    let direct = matches!(kind, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    if let Some(cc) = super::condition(l.i)
        && !direct
    {
        return super::mov::lower_conditional(l, cc);
    }
    // Operand size: decides how much of the instruction pointer survives.
    let size: u8 = match kind {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        _ => (l.bits / 8) as u8,
    };
    l.op.c = size;
    if direct {
        l.op.imm = l.target();
        let near = l.op.imm <= PAGE_MASK && l.end <= PAGE_SIZE && (l.bits != 16 || size == 2);
        if let Some(cc) = super::condition(l.i) {
            return Some(if near {
                by_condition!(cc, C => jcc::<C, true>)
            } else {
                by_condition!(cc, C => jcc::<C, false>)
            });
        }
        let counter = |m: M| match m {
            M::Jcxz | M::Jecxz | M::Jrcxz => Some(0),
            M::Loop => Some(1),
            M::Loope => Some(2),
            M::Loopne => Some(3),
            _ => None,
        };
        if let Some(which) = counter(m) {
            l.op.a = which;
            l.op.asize = counter_size(l);
            return Some(if near { count_branch::<true> } else { count_branch::<false> });
        }
        let long = l.mode & mode::BITS == 2;
        return Some(match (m, near, long) {
            (M::Jmp, true, _) => jmp::<true>,
            (M::Jmp, false, _) => jmp::<false>,
            (M::Call, true, true) => call64::<true>,
            (M::Call, false, true) => call64::<false>,
            (M::Call, true, false) => call::<true>,
            (M::Call, false, false) => call::<false>,
            _ => return None,
        });
    }
    match m {
        M::Ret => {
            l.op.imm = if l.i.op_count() > 0 { l.i.immediate(0) & 0xffff } else { 0 };
            use iced_x86::Code as C;
            let size = match l.i.code() {
                C::Retnw | C::Retnw_imm16 => 2,
                C::Retnd | C::Retnd_imm16 => 4,
                _ => 8,
            };
            l.op.c = size;
            l.op.seg = SS as u8;
            Some(if l.bits == 64 && size == 8 { ret64 } else { ret })
        }
        M::Jmp | M::Call if l.is_reg(0) => {
            l.op.b = l.number(0);
            let w = l.width(0);
            Some(if m == M::Jmp {
                by_wide!(w, T => jmp_indirect::<T, RegB>)
            } else {
                by_wide!(w, T => call_indirect::<T, RegB>)
            })
        }
        M::Jmp | M::Call if l.is_mem(0) => {
            use iced_x86::Code as C;
            let w = match l.i.code() {
                C::Jmp_rm16 | C::Call_rm16 => 16,
                C::Jmp_rm32 | C::Call_rm32 => 32,
                C::Jmp_rm64 | C::Call_rm64 => 64,
                _ => return super::far::lower(l),
            };
            Some(if m == M::Jmp {
                by_wide!(w, T => by_form!(l.form, A => jmp_indirect::<T, Mem<A>>))
            } else {
                by_wide!(w, T => by_form!(l.form, A => call_indirect::<T, Mem<A>>))
            })
        }
        _ => super::far::lower(l),
    }
}

fn counter_size(l: &Lower<'_>) -> u8 {
    use iced_x86::Code as C;
    match l.i.code() {
        C::Jcxz_rel8_16
        | C::Jcxz_rel8_32
        | C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX => 2,
        C::Jrcxz_rel8_16
        | C::Jrcxz_rel8_64
        | C::Loop_rel8_16_RCX
        | C::Loop_rel8_64_RCX
        | C::Loope_rel8_16_RCX
        | C::Loope_rel8_64_RCX
        | C::Loopne_rel8_16_RCX
        | C::Loopne_rel8_64_RCX => 8,
        _ => 4,
    }
}
