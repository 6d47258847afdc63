//! Shifts and rotates.

use super::operand::{Any, Mem, RegB, Src};
use super::{by_long, by_wide, by_width, ops, outlined};
use crate::cpu::{Cpu, RCX};
use crate::decode::Lower;
use crate::flags::{CF, Lazy, OF, kind};
use crate::op::{Flow, Handler, OpPtr, next, run};
use crate::regs::Int;
use iced_x86::Mnemonic as M;

/// A shift by a count that is not zero.
trait Shift {
    /// As the opcodes number it.
    const NUMBER: u8;
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, count: u32) -> T;
}

struct Shl;
struct Shr;
struct Sar;
struct Rol;
struct Ror;
struct Rcl;
struct Rcr;

impl Shift for Shl {
    const NUMBER: u8 = 4;
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, n: u32) -> T {
        let before = T::new(a.z() << (n - 1));
        let r = T::new(before.z() << 1);
        if F {
            lazy.set(kind::SHL, r, before);
        }
        r
    }
}

impl Shift for Shr {
    const NUMBER: u8 = 5;
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, n: u32) -> T {
        let before = T::new(a.z() >> (n - 1));
        let r = T::new(before.z() >> 1);
        if F {
            lazy.set(kind::SHR, r, before);
        }
        r
    }
}

impl Shift for Sar {
    const NUMBER: u8 = 7;
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, n: u32) -> T {
        let before = T::new((a.s() >> (n - 1)) as u64);
        let r = T::new((before.s() >> 1) as u64);
        if F {
            lazy.set(kind::SHR, r, before);
        }
        r
    }
}

fn rotate_flags(lazy: &mut Lazy, cf: bool, of: bool) {
    lazy.change(CF | OF, if cf { CF } else { 0 } | if of { OF } else { 0 });
}

impl Shift for Rol {
    const NUMBER: u8 = 0;
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, n: u32) -> T {
        let k = n % T::BITS;
        let r = if k == 0 { a } else { T::new(a.z() << k | a.z() >> (T::BITS - k)) };
        if F {
            let cf = r.z() & 1 != 0;
            rotate_flags(lazy, cf, cf != (r.z() & T::TOP != 0));
        }
        r
    }
}

impl Shift for Ror {
    const NUMBER: u8 = 1;
    #[inline(always)]
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, n: u32) -> T {
        let k = n % T::BITS;
        let r = if k == 0 { a } else { T::new(a.z() >> k | a.z() << (T::BITS - k)) };
        if F {
            let top = r.z() & T::TOP != 0;
            rotate_flags(lazy, top, top != (r.z() & (T::TOP >> 1) != 0));
        }
        r
    }
}

impl Shift for Rcl {
    const NUMBER: u8 = 2;
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, n: u32) -> T {
        let k = n % (T::BITS + 1);
        let mut cf = lazy.cf();
        let mut v = a.z();
        for _ in 0..k {
            let out = v & T::TOP != 0;
            v = (v << 1 | u64::from(cf)) & T::MASK;
            cf = out;
        }
        rotate_flags(lazy, cf, cf != (v & T::TOP != 0));
        T::new(v)
    }
}

impl Shift for Rcr {
    const NUMBER: u8 = 3;
    fn run<T: Int, const F: bool>(lazy: &mut Lazy, a: T, n: u32) -> T {
        let k = n % (T::BITS + 1);
        let mut cf = lazy.cf();
        let mut v = a.z();
        for _ in 0..k {
            let out = v & 1 != 0;
            v = v >> 1 | if cf { T::TOP } else { 0 };
            cf = out;
        }
        let top = v & T::TOP != 0;
        rotate_flags(lazy, cf, top != (v & (T::TOP >> 1) != 0));
        T::new(v)
    }
}

/// The shift of that number.
#[inline(never)]
fn by_number<T: Int>(number: u8, lazy: &mut Lazy, a: T, count: u32) -> T {
    if count == 0 {
        return a;
    }
    match number & 7 {
        Rol::NUMBER => Rol::run::<T, true>(lazy, a, count),
        Ror::NUMBER => Ror::run::<T, true>(lazy, a, count),
        Rcl::NUMBER => Rcl::run::<T, true>(lazy, a, count),
        Rcr::NUMBER => Rcr::run::<T, true>(lazy, a, count),
        Shr::NUMBER => Shr::run::<T, true>(lazy, a, count),
        Sar::NUMBER => Sar::run::<T, true>(lazy, a, count),
        _ => Shl::run::<T, true>(lazy, a, count),
    }
}

/// Bits of a count that matter.
const fn count_mask<T: Int>() -> u8 {
    if T::BITS == 64 { 63 } else { 31 }
}

/// A count that is taken from CL.
const BY_CL: u8 = 0xff;

/// CL, or the given count; masked.
fn count<T: Int>(cpu: &Cpu, given: u8) -> u32 {
    let n = if given == BY_CL { cpu.gpr[RCX] as u8 } else { given };
    u32::from(n & count_mask::<T>())
}

/// By the immediate in `b`, already masked and not zero.
fn by_imm<T: Int, S: Shift, const F: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let a = T::get(cpu, op.a);
    let r = S::run::<T, F>(&mut cpu.lazy, a, u32::from(op.b & count_mask::<T>()));
    T::set(cpu, op.a, r);
    next(cpu, op)
}

fn by_cl<T: Int, S: Shift, const F: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let n = cpu.gpr[RCX] as u32 & u32::from(count_mask::<T>());
    let a = T::get(cpu, op.a);
    // A 32-bit register is written, and so extended, also by a count of 0.
    let r = if n == 0 { a } else { S::run::<T, F>(&mut cpu.lazy, a, n) };
    T::set(cpu, op.a, r);
    next(cpu, op)
}

/// `c` is the shift's number.
#[inline(never)]
fn any_reg<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let n = count::<T>(cpu, op.b);
    let a = T::get(cpu, op.a);
    let r = by_number(op.c, &mut cpu.lazy, a, n);
    T::set(cpu, op.a, r);
    next(cpu, op)
}

/// `c` is the shift's number.
#[inline(never)]
fn any_mem<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let n = count::<T>(cpu, op.b);
        Any::rmw::<T>(cpu, op, |cpu, a| by_number(op.c, &mut cpu.lazy, a, n))
    })
}

fn lower_shift<S: Shift>(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    l.op.c = S::NUMBER;
    l.op.b = if l.is_reg(1) { BY_CL } else { l.i.immediate(1) as u8 & if w == 64 { 63 } else { 31 } };
    if l.is_mem(0) {
        return Some(by_width!(w, T => any_mem::<T>));
    }
    l.op.a = l.number(0);
    let rare = l.op.b == 0 || w < 32 || S::NUMBER == Rcl::NUMBER || S::NUMBER == Rcr::NUMBER;
    Some(match (rare, l.op.b == BY_CL, l.flags) {
        (true, ..) => by_width!(w, T => any_reg::<T>),
        (_, true, true) => by_long!(w, T => by_cl::<T, S, true>),
        (_, true, false) => by_long!(w, T => by_cl::<T, S, false>),
        (_, false, true) => by_long!(w, T => by_imm::<T, S, true>),
        (_, false, false) => by_long!(w, T => by_imm::<T, S, false>),
    })
}

/// SHLD and SHRD of a value and the bits that come in; counts above the width are undefined for 16 bits.
fn double<T: Int, const LEFT: bool>(lazy: &mut Lazy, a: T, fill: T, n: u32) -> T {
    let w = T::BITS;
    let n = if n > w { n - w } else { n };
    let (r, before) = if LEFT {
        let wide = u128::from(a.z()) << w | u128::from(fill.z());
        (wide << n >> w, wide << (n - 1) >> w)
    } else {
        let wide = u128::from(fill.z()) << w | u128::from(a.z());
        (wide >> n, wide >> (n - 1))
    };
    let (r, before) = (T::new(r as u64), T::new(before as u64));
    // OF: the sign changed (the manual defines it for a count of 1).
    let cf = if LEFT { before.z() & T::TOP != 0 } else { before.z() & 1 != 0 };
    let of = if n == 1 { (r.z() ^ a.z()) & T::TOP != 0 } else { (r.z() ^ before.z()) & T::TOP != 0 };
    lazy.logic(r);
    rotate_flags(lazy, cf, of);
    r
}

/// SHLD (`LEFT`) and SHRD; `c` is the count.
fn double_reg<T: Int, const LEFT: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let n = count::<T>(cpu, op.c);
        let (a, b) = (T::get(cpu, op.a), T::get(cpu, op.b));
        let r = if n == 0 { a } else { double::<T, LEFT>(&mut cpu.lazy, a, b, n) };
        T::set(cpu, op.a, r);
        Ok(())
    })
}

fn double_mem<T: Int, const LEFT: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    outlined(cpu, op, |cpu, op| {
        let n = count::<T>(cpu, op.c);
        let b = T::get(cpu, op.b);
        Any::rmw::<T>(cpu, op, |cpu, a| if n == 0 { a } else { double::<T, LEFT>(&mut cpu.lazy, a, b, n) })
    })
}

ops! {
    direct fn rorx<T: Int, S: Src>(cpu, op) {
        let a = S::load::<T>(cpu, op)?.z();
        let k = op.imm as u32 & (T::BITS - 1);
        let r = if k == 0 { a } else { a >> k | a << (T::BITS - k) };
        T::set(cpu, op.a, T::new(r))
    }

    direct fn sarx<T: Int, S: Src>(cpu, op) {
        let a = S::load::<T>(cpu, op)?;
        let k = T::get(cpu, op.c).z() as u32 & (T::BITS - 1);
        T::set(cpu, op.a, T::new((a.s() >> k) as u64))
    }

    direct fn shlx<T: Int, S: Src>(cpu, op) {
        let a = S::load::<T>(cpu, op)?;
        let k = T::get(cpu, op.c).z() as u32 & (T::BITS - 1);
        T::set(cpu, op.a, T::new(a.z() << k))
    }

    direct fn shrx<T: Int, S: Src>(cpu, op) {
        let a = S::load::<T>(cpu, op)?;
        let k = T::get(cpu, op.c).z() as u32 & (T::BITS - 1);
        T::set(cpu, op.a, T::new(a.z() >> k))
    }
}

fn lower_double<const LEFT: bool>(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    l.op.c = if l.is_reg(2) { BY_CL } else { l.i.immediate(2) as u8 & if w == 64 { 63 } else { 31 } };
    l.op.b = l.number(1);
    if l.is_reg(0) {
        l.op.a = l.number(0);
        return Some(by_wide!(w, T => double_reg::<T, LEFT>));
    }
    Some(by_wide!(w, T => double_mem::<T, LEFT>))
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    macro_rules! bmi {
        ($h:ident) => {{
            l.op.a = l.number(0);
            let w = l.width(0);
            if l.is_reg(2) {
                l.op.c = l.number(2);
            } else {
                l.op.imm = l.i.immediate(2);
            }
            if l.is_reg(1) {
                l.op.b = l.number(1);
                by_wide!(w, T => $h::<T, RegB>)
            } else {
                by_wide!(w, T => $h::<T, Mem<Any>>)
            }
        }};
    }
    match l.i.mnemonic() {
        M::Shl | M::Sal => lower_shift::<Shl>(l),
        M::Shr => lower_shift::<Shr>(l),
        M::Sar => lower_shift::<Sar>(l),
        M::Rol => lower_shift::<Rol>(l),
        M::Ror => lower_shift::<Ror>(l),
        M::Rcl => lower_shift::<Rcl>(l),
        M::Rcr => lower_shift::<Rcr>(l),
        M::Shld => lower_double::<true>(l),
        M::Shrd => lower_double::<false>(l),
        M::Rorx => Some(bmi!(rorx)),
        M::Sarx => Some(bmi!(sarx)),
        M::Shlx => Some(bmi!(shlx)),
        M::Shrx => Some(bmi!(shrx)),
        _ => None,
    }
}
