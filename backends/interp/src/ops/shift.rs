//! Shifts and rotates.

use super::operand::{Addr, Mem, RegA, RegB, Src};
use super::{any_form, by_wide, by_width, ops};
use crate::cpu::{Cpu, RCX};
use crate::decode::Lower;
use crate::flags::{CF, Lazy, OF, kind};
use crate::op::{Flow, Handler, OpPtr, next, run};
use crate::regs::Int;
use iced_x86::Mnemonic as M;

/// A shift by a count that is not zero.
trait Shift {
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

/// Where the count comes from.
trait Count {
    fn get<T: Int>(cpu: &Cpu, op: OpPtr) -> u32;
}

/// The immediate in `c`, already masked and not zero.
struct ByImm;
/// CL.
struct ByCl;

impl Count for ByImm {
    #[inline(always)]
    fn get<T: Int>(_cpu: &Cpu, op: OpPtr) -> u32 {
        u32::from(op.c)
    }
}

impl Count for ByCl {
    #[inline(always)]
    fn get<T: Int>(cpu: &Cpu, _op: OpPtr) -> u32 {
        cpu.gpr[RCX] as u32 & if T::BITS == 64 { 63 } else { 31 }
    }
}

fn shift_reg<T: Int, S: Shift, C: Count, const F: bool>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let n = C::get::<T>(cpu, op);
    let a = T::get(cpu, op.a);
    // A 32-bit register is written, and so extended, also by a count of 0.
    let r = if n == 0 { a } else { S::run::<T, F>(&mut cpu.lazy, a, n) };
    T::set(cpu, op.a, r);
    next(cpu, op)
}

fn shift_mem<T: Int, S: Shift, C: Count, A: Addr>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let n = C::get::<T>(cpu, op);
        let at = A::at(cpu, op, T::BYTES as u64, true)?;
        cpu.rmw::<T>(at, |cpu, a| if n == 0 { a } else { S::run::<T, true>(&mut cpu.lazy, a, n) })
    })
}

/// No count: nothing but the access happens.
fn shift_mem_zero<T: Int, A: Addr>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    run!(cpu, op, {
        let at = A::at(cpu, op, T::BYTES as u64, true)?;
        cpu.rmw::<T>(at, |_, a| a)
    })
}

fn shift_reg_zero<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let a = T::get(cpu, op.a);
    T::set(cpu, op.a, a);
    next(cpu, op)
}

fn lower_shift<S: Shift>(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    let by_cl = l.is_reg(1);
    if !by_cl {
        l.op.c = l.i.immediate(1) as u8 & if w == 64 { 63 } else { 31 };
    }
    let zero = !by_cl && l.op.c == 0;
    if l.is_mem(0) {
        return Some(match (zero, by_cl) {
            (true, _) => by_width!(w, T => any_form!(A => shift_mem_zero::<T, A>)),
            (_, true) => by_width!(w, T => any_form!(A => shift_mem::<T, S, ByCl, A>)),
            _ => by_width!(w, T => any_form!(A => shift_mem::<T, S, ByImm, A>)),
        });
    }
    l.op.a = l.number(0);
    Some(match (zero, by_cl, l.flags) {
        (true, _, _) => by_width!(w, T => shift_reg_zero::<T>),
        (_, true, true) => by_width!(w, T => shift_reg::<T, S, ByCl, true>),
        (_, true, false) => by_width!(w, T => shift_reg::<T, S, ByCl, false>),
        (_, false, true) => by_width!(w, T => shift_reg::<T, S, ByImm, true>),
        (_, false, false) => by_width!(w, T => shift_reg::<T, S, ByImm, false>),
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

ops! {
    fn double_reg<T: Int, C: CountTrait, D: Direction>(cpu, op) {
        let n = C::count::<T>(cpu, op);
        let (a, b) = (T::get(cpu, op.a), T::get(cpu, op.b));
        let r = if n == 0 { a } else if D::LEFT {
            double::<T, true>(&mut cpu.lazy, a, b, n)
        } else {
            double::<T, false>(&mut cpu.lazy, a, b, n)
        };
        T::set(cpu, op.a, r)
    }

    fn double_mem<T: Int, C: CountTrait, D: Direction, A: Addr>(cpu, op) {
        let n = C::count::<T>(cpu, op);
        let b = T::get(cpu, op.b);
        let at = A::at(cpu, op, T::BYTES as u64, true)?;
        cpu.rmw::<T>(at, |cpu, a| {
            if n == 0 { a } else if D::LEFT {
                double::<T, true>(&mut cpu.lazy, a, b, n)
            } else {
                double::<T, false>(&mut cpu.lazy, a, b, n)
            }
        })?
    }

    fn rorx<T: Int, S: Src64>(cpu, op) {
        let a = S::get::<T>(cpu, op)?.z();
        let k = op.imm as u32 & (T::BITS - 1);
        let r = if k == 0 { a } else { a >> k | a << (T::BITS - k) };
        T::set(cpu, op.a, T::new(r))
    }

    fn sarx<T: Int, S: Src64>(cpu, op) {
        let a = S::get::<T>(cpu, op)?;
        let k = T::get(cpu, op.c).z() as u32 & (T::BITS - 1);
        T::set(cpu, op.a, T::new((a.s() >> k) as u64))
    }

    fn shlx<T: Int, S: Src64>(cpu, op) {
        let a = S::get::<T>(cpu, op)?;
        let k = T::get(cpu, op.c).z() as u32 & (T::BITS - 1);
        T::set(cpu, op.a, T::new(a.z() << k))
    }

    fn shrx<T: Int, S: Src64>(cpu, op) {
        let a = S::get::<T>(cpu, op)?;
        let k = T::get(cpu, op.c).z() as u32 & (T::BITS - 1);
        T::set(cpu, op.a, T::new(a.z() >> k))
    }
}

/// A source that is generic over its width.
pub(crate) trait Src64 {
    fn get<T: Int>(cpu: &mut Cpu, op: OpPtr) -> crate::op::Exec<T>;
}
impl Src64 for RegB {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, op: OpPtr) -> crate::op::Exec<T> {
        <RegB as Src<T>>::load(cpu, op)
    }
}
impl Src64 for RegA {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, op: OpPtr) -> crate::op::Exec<T> {
        <RegA as Src<T>>::load(cpu, op)
    }
}
impl<A: Addr> Src64 for Mem<A> {
    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, op: OpPtr) -> crate::op::Exec<T> {
        <Mem<A> as Src<T>>::load(cpu, op)
    }
}

trait CountTrait {
    fn count<T: Int>(cpu: &Cpu, op: OpPtr) -> u32;
}
impl<C: Count> CountTrait for C {
    fn count<T: Int>(cpu: &Cpu, op: OpPtr) -> u32 {
        C::get::<T>(cpu, op)
    }
}

trait Direction {
    const LEFT: bool;
}
struct Left;
struct Right;
impl Direction for Left {
    const LEFT: bool = true;
}
impl Direction for Right {
    const LEFT: bool = false;
}

fn lower_double<D: Direction>(l: &mut Lower<'_>) -> Option<Handler> {
    let w = l.width(0);
    let by_cl = l.is_reg(2);
    if !by_cl {
        l.op.c = l.i.immediate(2) as u8 & if w == 64 { 63 } else { 31 };
    }
    l.op.b = l.number(1);
    if l.is_reg(0) {
        l.op.a = l.number(0);
        return Some(if by_cl {
            by_wide!(w, T => double_reg::<T, ByCl, D>)
        } else {
            by_wide!(w, T => double_reg::<T, ByImm, D>)
        });
    }
    Some(if by_cl {
        by_wide!(w, T => any_form!(A => double_mem::<T, ByCl, D, A>))
    } else {
        by_wide!(w, T => any_form!(A => double_mem::<T, ByImm, D, A>))
    })
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
                by_wide!(w, T => any_form!(A => $h::<T, Mem<A>>))
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
        M::Shld => lower_double::<Left>(l),
        M::Shrd => lower_double::<Right>(l),
        M::Rorx => Some(bmi!(rorx)),
        M::Sarx => Some(bmi!(sarx)),
        M::Shlx => Some(bmi!(shlx)),
        M::Shrx => Some(bmi!(shrx)),
        _ => None,
    }
}
