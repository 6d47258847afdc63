//! Near branches, and comparisons fused with the conditional branch behind them.
//!
//! A branch whose target is in the same page goes straight to the block its slot is linked to: the page is mapped
//! as it was when the block was entered, or the chain would have ended. One to another page checks that the
//! link was made under the same translations (`cpu.tag`) for the same address.

use super::alu::{Add, Alu, And, Sub};
use super::by_wide;
use super::mov::by_condition;
use super::operand::{Any, Flat, Imm, Index, Mem, RegA, RegB, Src};
use crate::cpu::{Cpu, PAGE, RCX, RSP, SS, mode};
use crate::decode::{Form, Lower};
use crate::exec::jump_index;
use crate::flags::{compare, kind};
use crate::mmu::ram::{PAGE_MASK, PAGE_SIZE};
use crate::op::{Exec, Flow, Handler, Op, OpPtr, fall, leave, opaque};
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
fn unlinked(cpu: &mut Cpu, op: OpPtr) -> Flow {
    link(cpu, op, cpu.page_rip(op.imm) & target_mask(op.c))
}

/// The same for a fused pair.
#[cold]
#[inline(never)]
fn unlinked_fused(cpu: &mut Cpu, op: OpPtr) -> Flow {
    link(cpu, op, cpu.page_rip(u64::from(op.asize) | u64::from(op.c) << 8))
}

fn link(cpu: &mut Cpu, op: OpPtr, rip: u64) -> Flow {
    cpu.rip = rip;
    cpu.link = Some(op);
    cpu.link_page = cpu.gpr[PAGE as usize];
    opaque(Flow::Link)
}

/// Takes the instructions up to and with `op` off the budget. True if some is left.
#[inline(always)]
fn budget(cpu: &mut Cpu, op: OpPtr) -> bool {
    cpu.budget -= i64::from(op.n);
    cpu.budget >= 0
}

/// Goes to the target in the same page.
#[inline(always)]
pub(crate) fn take_near(cpu: &mut Cpu, op: OpPtr) -> Flow {
    if budget(cpu, op)
        && let Some(to) = op.slot().to.get()
    {
        return to.go(cpu);
    }
    unlinked(cpu, op)
}

/// The same for a fused pair, whose immediate is the comparison's: `asize` and `c` are the target's offset.
#[inline(always)]
fn take_fused(cpu: &mut Cpu, op: OpPtr) -> Flow {
    if budget(cpu, op)
        && let Some(to) = op.slot().to.get()
    {
        return to.go(cpu);
    }
    unlinked_fused(cpu, op)
}

/// Goes to the target in another page.
#[inline(always)]
pub(crate) fn take_far(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let slot = op.slot();
    if budget(cpu, op)
        && slot.from.get() == cpu.gpr[PAGE as usize]
        && slot.tag.get() == cpu.tag
        && let Some(to) = slot.to.get()
    {
        cpu.gpr[PAGE as usize] = slot.page.get();
        return to.go(cpu);
    }
    unlinked(cpu, op)
}

#[inline(always)]
fn take<const NEAR: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    if NEAR { take_near(cpu, op) } else { take_far(cpu, op) }
}

/// Goes to an address known only now.
#[inline(always)]
pub(crate) fn indirect(cpu: &mut Cpu, op: OpPtr, rip: u64) -> Flow {
    let left = budget(cpu, op);
    let jump = &cpu.jumps[jump_index(rip)];
    if left
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

/// Jcc. Where the flags are not those of a comparison, [`any_jcc`] does it.
fn jcc<const CC: u8, const NEAR: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    match cpu.lazy.quick_cond::<CC>() {
        Some(true) => take::<NEAR>(cpu, op),
        Some(false) => fall(cpu, op),
        None => any_jcc::<NEAR>(cpu, op),
    }
}

/// Jcc; `b` is the condition.
#[inline(never)]
fn any_jcc<const NEAR: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    if cpu.lazy.cond(op.b) { take::<NEAR>(cpu, op) } else { fall(cpu, op) }
}

/// CMP and Jcc.
fn cmp_jcc<T: Int, X: Src, Y: Src, const CC: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let Ok((a, b)) = operands::<T, X, Y>(cpu, op) else { return any_fused::<T>(cpu, op) };
    cpu.lazy.set(kind::SUB, T::new(a.z().wrapping_sub(b.z())), b);
    if compare::<T, CC>(a, b) { take_fused(cpu, op) } else { fall(cpu, op) }
}

/// TEST and Jcc.
fn test_jcc<T: Int, X: Src, Y: Src, const CC: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let Ok((a, b)) = operands::<T, X, Y>(cpu, op) else { return any_fused::<T>(cpu, op) };
    let r = T::new(a.z() & b.z());
    cpu.lazy.logic(r);
    if compare::<T, CC>(r, T::new(0)) { take_fused(cpu, op) } else { fall(cpu, op) }
}

#[inline(always)]
fn operands<T: Int, X: Src, Y: Src>(cpu: &mut Cpu, op: OpPtr) -> Exec<(T, T)> {
    Ok((X::load(cpu, op)?, Y::load(cpu, op)?))
}

/// In `b` of a pair whose comparison has a memory operand, besides the condition: the other is the immediate.
const IMMEDIATE: u8 = 0x10;
/// The other, a register, comes first.
const REGISTER_FIRST: u8 = 0x20;
/// TEST, not CMP.
const TEST: u8 = 0x40;

/// A comparison with memory that the quick forms cannot do, and Jcc.
#[inline(never)]
fn any_fused<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        // `asize` is the target's, but the address is of a quick form.
        let mut a = cpu.read::<T>(Index::at(cpu, op))?;
        let mut b = if op.b & IMMEDIATE != 0 { T::new(op.imm) } else { T::get(cpu, op.a) };
        if op.b & REGISTER_FIRST != 0 {
            (a, b) = (b, a);
        }
        if op.b & TEST != 0 {
            And::run::<T, true>(&mut cpu.lazy, a, b);
        } else {
            Sub::run::<T, true>(&mut cpu.lazy, a, b);
        }
        Ok(if cpu.lazy.cond(op.b & 15) { take_fused(cpu, op) } else { fall(cpu, op) })
    })
}

/// DEC or INC (whose carry stays) and a branch on zero or sign.
fn step_jcc<T: Int, const UP: bool, const CC: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    match cpu.lazy.quick_cf() {
        Some(carry) => step::<T, UP>(cpu, op, carry, |r| compare::<T, CC>(r, T::new(0))),
        None => any_step_jcc::<T, UP>(cpu, op),
    }
}

/// The same; `b` is the condition.
#[inline(never)]
fn any_step_jcc<T: Int, const UP: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let carry = cpu.lazy.cf();
    step::<T, UP>(cpu, op, carry, |r| {
        let on = if op.b & 8 != 0 { r.s() < 0 } else { r.z() == 0 };
        on != (op.b & 1 != 0)
    })
}

#[inline(always)]
fn step<T: Int, const UP: bool>(cpu: &mut Cpu, op: OpPtr, carry: bool, taken: impl Fn(T) -> bool) -> Flow {
    let a = T::get(cpu, op.a);
    let r = T::new(if UP { a.z().wrapping_add(1) } else { a.z().wrapping_sub(1) });
    cpu.lazy.set(if UP { kind::INC } else { kind::DEC }, r, T::new(u64::from(carry)));
    T::set(cpu, op.a, r);
    if taken(r) { take_fused(cpu, op) } else { fall(cpu, op) }
}

/// SUB, ADD or AND of registers or an immediate, and a branch on zero or sign.
fn alu_jcc<T: Int, O: Alu, Y: Src, const CC: u8>(cpu: &mut Cpu, op: OpPtr) -> Flow {
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
        M::Cmp | M::Test if (mem0 || mem1) && l.form == Form::Any => return None,
        M::Cmp if mem1 => {
            l.op.b = cc | REGISTER_FIRST;
            by_condition!(cc, C => wide!(T => cmp_jcc::<T, RegA, Mem<Index>, C>))
        }
        M::Cmp if mem0 && reg1 => {
            l.op.a = l.number(1);
            l.op.b = cc;
            by_condition!(cc, C => wide!(T => cmp_jcc::<T, Mem<Index>, RegA, C>))
        }
        M::Cmp if mem0 => {
            l.op.b = cc | IMMEDIATE;
            by_condition!(cc, C => wide!(T => cmp_jcc::<T, Mem<Index>, Imm, C>))
        }
        M::Test if mem0 && !reg1 => {
            l.op.b = cc | IMMEDIATE | TEST;
            by_zero_or_sign!(cc, C => wide!(T => test_jcc::<T, Mem<Index>, Imm, C>))
        }
        M::Inc | M::Dec if reg0 => {
            l.op.b = cc;
            if m == M::Inc {
                by_zero_or_sign!(cc, C => wide!(T => step_jcc::<T, true, C>))
            } else {
                by_zero_or_sign!(cc, C => wide!(T => step_jcc::<T, false, C>))
            }
        }
        M::Sub | M::Add | M::And if reg0 && reg1 => {
            l.op.b = l.number(1);
            match m {
                M::Sub => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, Sub, RegB, C>)),
                M::Add => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, Add, RegB, C>)),
                _ => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, And, RegB, C>)),
            }
        }
        M::Sub | M::Add | M::And if reg0 && !mem1 => match m {
            M::Sub => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, Sub, Imm, C>)),
            M::Add => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, Add, Imm, C>)),
            _ => by_zero_or_sign!(cc, C => wide!(T => alu_jcc::<T, And, Imm, C>)),
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

#[inline(never)]
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
    if cpu.quick_push(back).is_err() {
        return call::<NEAR>(cpu, op);
    }
    take::<NEAR>(cpu, op)
}

/// RET in 64-bit code.
fn ret64(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let Ok(rip) = cpu.quick_read::<u64>(cpu.gpr[RSP]) else { return ret(cpu, op) };
    cpu.gpr[RSP] = cpu.gpr[RSP].wrapping_add(8).wrapping_add(op.imm);
    indirect(cpu, op, rip)
}

#[inline(never)]
fn ret(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        let rip = cpu.peek_sized(op.c, 0)?;
        cpu.drop_stack(u64::from(op.c) + op.imm);
        Ok(indirect(cpu, op, rip))
    })
}

/// JMP by a register or memory, in 64-bit code.
fn jmp64_indirect<S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let Ok(rip) = S::load::<u64>(cpu, op) else { return jmp_indirect::<u64, Mem<Any>>(cpu, op) };
    indirect(cpu, op, rip)
}

#[inline(never)]
fn jmp_indirect<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        let rip = S::load::<T>(cpu, op)?.z();
        Ok(indirect(cpu, op, rip))
    })
}

/// CALL by a register or memory, in 64-bit code; `G` is the operand's general form.
fn call64_indirect<S: Src, G: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let back = op.next_rip(cpu);
    let Ok(rip) = S::load::<u64>(cpu, op) else { return call_indirect::<u64, G>(cpu, op) };
    if cpu.quick_push(back).is_err() {
        return call_indirect::<u64, G>(cpu, op);
    }
    indirect(cpu, op, rip)
}

#[inline(never)]
fn call_indirect<T: Int, S: Src>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        let rip = S::load::<T>(cpu, op)?.z();
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
            l.op.b = cc;
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
            Some(match (m == M::Jmp, w == 64) {
                (true, true) => jmp64_indirect::<RegB>,
                (false, true) => call64_indirect::<RegB, RegB>,
                (true, _) => by_wide!(w, T => jmp_indirect::<T, RegB>),
                _ => by_wide!(w, T => call_indirect::<T, RegB>),
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
            Some(match (m == M::Jmp, w == 64 && l.form != Form::Any) {
                (true, true) => jmp64_indirect::<Mem<Index>>,
                (false, true) => call64_indirect::<Mem<Index>, Mem<Any>>,
                (true, _) => by_wide!(w, T => jmp_indirect::<T, Mem<Any>>),
                _ => by_wide!(w, T => call_indirect::<T, Mem<Any>>),
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
