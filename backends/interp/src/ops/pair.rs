//! Two plain instructions as one handler, and MOV merged into the operation behind it.
//!
//! *Plain*: general registers of 32 or 64 bits, no flags that anybody reads; loads too, and as the second of a pair
//! also stores and operations that set flags. A pair keeps its two cells; the first one's handler does the
//! work of both and goes on behind the second. `mov d, s` followed by `d = d op x` becomes `d = s op x`.
//! Called by `decode` when a block's instructions have been lowered one by one.

use super::alu::{Add, Alu, And, Or, Sub, Xor};
use super::operand::{Addr, Base, Index};
use crate::cpu::Cpu;
use crate::decode::{Form, Lower};
use crate::op::{Exec, Flow, Handler, Op, OpPtr, next};
use crate::regs::Int;
use iced_x86::Mnemonic as M;
use std::marker::PhantomData;

/// What a plain instruction does: from `b` (and `c`, or an immediate) to `a`.
trait Step {
    /// The value, from the first source's.
    fn value<T: Int>(cpu: &mut Cpu, op: OpPtr, first: T) -> Exec<T>;

    /// All of it, with the first source from the register file.
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec {
        let first = T::get(cpu, op.b);
        let v = Self::value::<T>(cpu, op, first)?;
        T::set(cpu, op.a, v);
        Ok(())
    }
}

/// Register and register.
struct Reg<O, const F: bool>(PhantomData<O>);
/// Register and immediate.
struct Im<O, const F: bool>(PhantomData<O>);
struct Rol;
struct Shl;
struct Shr;
struct Sar;
struct Mov;
struct MovImm;
struct Lea<A>(PhantomData<A>);
struct ZeroExtend;
struct SignExtend;
struct Load<A>(PhantomData<A>);
struct LoadByte<A>(PhantomData<A>);
struct Store<A>(PhantomData<A>);

impl<O: Alu, const F: bool> Step for Reg<O, F> {
    #[inline(always)]
    fn value<T: Int>(cpu: &mut Cpu, op: OpPtr, first: T) -> Exec<T> {
        let second = T::get(cpu, op.c);
        Ok(O::run::<T, F>(&mut cpu.lazy, first, second))
    }
}

impl<O: Alu, const F: bool> Step for Im<O, F> {
    #[inline(always)]
    fn value<T: Int>(cpu: &mut Cpu, op: OpPtr, first: T) -> Exec<T> {
        Ok(O::run::<T, F>(&mut cpu.lazy, first, T::new(op.imm)))
    }
}

macro_rules! step {
    ($($name:ident |$cpu:ident, $op:ident, $first:ident| $e:expr;)*) => {$(
        impl Step for $name {
            #[inline(always)]
            fn value<T: Int>($cpu: &mut Cpu, $op: OpPtr, $first: T) -> Exec<T> {
                Ok($e)
            }
        }
    )*};
}

step! {
    Rol |_cpu, op, first| first.rol(u32::from(op.c));
    Shl |_cpu, op, first| T::new(first.z() << (op.c & 63));
    Shr |_cpu, op, first| T::new(first.z() >> (op.c & 63));
    Sar |_cpu, op, first| T::new((first.s() >> (op.c & 63)) as u64);
    Mov |_cpu, _op, first| first;
}

/// Those that have no first source.
macro_rules! source {
    ($name:ident $(<$a:ident>)? |$cpu:ident, $op:ident| $e:expr) => {
        impl $(<$a: Addr>)? Step for $name $(<$a>)? {
            #[inline(always)]
            fn value<T: Int>($cpu: &mut Cpu, $op: OpPtr, _first: T) -> Exec<T> {
                Ok($e)
            }
            #[inline(always)]
            fn run<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec {
                let v = Self::value::<T>(cpu, op, T::new(0))?;
                T::set(cpu, op.a, v);
                Ok(())
            }
        }
    };
}

source!(MovImm | _cpu, op | T::new(op.imm));
source!(ZeroExtend | cpu, op | T::new(u8::get(cpu, op.b).z()));
source!(SignExtend | cpu, op | T::new(u32::get(cpu, op.b).s() as u64));
source!(Lea<A> |cpu, op| T::new(A::at(cpu, op, 8, false)?));
source!(Load<A> |cpu, op| {
    let at = A::at(cpu, op, T::BYTES as u64, false)?;
    cpu.read::<T>(at)?
});
source!(LoadByte<A> |cpu, op| {
    let at = A::at(cpu, op, 1, false)?;
    T::new(cpu.read::<u8>(at)?.z())
});

impl<A: Addr> Step for Store<A> {
    #[inline(always)]
    fn value<T: Int>(_cpu: &mut Cpu, _op: OpPtr, first: T) -> Exec<T> {
        Ok(first)
    }
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec {
        let v = T::get(cpu, op.a);
        let at = A::at(cpu, op, T::BYTES as u64, true)?;
        cpu.write(at, v)
    }
}

fn single<T: Int, A: Step>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    match A::run::<T>(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(_) => cpu.abort(op),
    }
}

fn pair<T: Int, A: Step, B: Step>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    if A::run::<T>(cpu, op).is_err() {
        return cpu.abort(op);
    }
    let op = op.succ();
    match B::run::<T>(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(_) => cpu.abort(op),
    }
}

/// A pair whose second goes on with the first one's result, in the same register.
fn chain<T: Int, A: Step, B: Step>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let first = T::get(cpu, op.b);
    let Ok(v) = A::value::<T>(cpu, op, first) else { return cpu.abort(op) };
    let op = op.succ();
    match B::value::<T>(cpu, op, v) {
        Ok(v) => {
            T::set(cpu, op.a, v);
            next(cpu, op)
        }
        Err(_) => cpu.abort(op),
    }
}

/// Kinds of steps in three groups: those that chain, the others that may come first, and the last.
macro_rules! kinds {
    (chain { $($c:ident = $C:ty;)* } first { $($f:ident = $F:ty;)* } last { $($l:ident = $L:ty;)* }) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Kind { $($c,)* $($f,)* $($l,)* }
        const CHAINS: usize = [$(Kind::$c),*].len();
        const FIRSTS: usize = CHAINS + [$(Kind::$f),*].len();
        const ALL: usize = FIRSTS + [$(Kind::$l),*].len();

        const fn singles<T: Int>() -> [Handler; ALL] {
            [$(single::<T, $C>,)* $(single::<T, $F>,)* $(single::<T, $L>,)*]
        }
        const fn pairs_of<T: Int, A: Step>() -> [Handler; ALL] {
            [$(pair::<T, A, $C>,)* $(pair::<T, A, $F>,)* $(pair::<T, A, $L>,)*]
        }
        const fn pairs<T: Int>() -> [[Handler; ALL]; FIRSTS] {
            [$(pairs_of::<T, $C>(),)* $(pairs_of::<T, $F>(),)*]
        }
        const fn chains_of<T: Int, A: Step>() -> [Handler; CHAINS] {
            [$(chain::<T, A, $C>,)*]
        }
        const fn chains<T: Int>() -> [[Handler; CHAINS]; CHAINS] {
            [$(chains_of::<T, $C>(),)*]
        }
    };
}

kinds! {
    chain {
        AddReg = Reg<Add, false>;
        AddImm = Im<Add, false>;
        SubReg = Reg<Sub, false>;
        AndReg = Reg<And, false>;
        AndImm = Im<And, false>;
        OrReg = Reg<Or, false>;
        XorReg = Reg<Xor, false>;
        RolImm = Rol;
        ShlImm = Shl;
        ShrImm = Shr;
        SarImm = Sar;
    }
    first {
        MovReg = Mov;
        MovValue = MovImm;
        LeaBase = Lea<Base>;
        LeaIndex = Lea<Index>;
        Zero = ZeroExtend;
        LoadBase = Load<Base>;
        LoadIndex = Load<Index>;
        ByteBase = LoadByte<Base>;
        ByteIndex = LoadByte<Index>;
    }
    last {
        Sign = SignExtend;
        StoreBase = Store<Base>;
        StoreIndex = Store<Index>;
        AddFlags = Reg<Add, true>;
        AddImmFlags = Im<Add, true>;
        SubFlags = Reg<Sub, true>;
        AndFlags = Reg<And, true>;
        AndImmFlags = Im<And, true>;
        XorFlags = Reg<Xor, true>;
    }
}

static SINGLES: [[Handler; ALL]; 2] = [singles::<u32>(), singles::<u64>()];
static PAIRS: [[[Handler; ALL]; FIRSTS]; 2] = [pairs::<u32>(), pairs::<u64>()];
static CHAINED: [[[Handler; CHAINS]; CHAINS]; 2] = [chains::<u32>(), chains::<u64>()];

/// Operand width of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Width {
    Narrow,
    Wide,
    Either,
}

/// A plain instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain {
    kind: Kind,
    width: Width,
    a: u8,
    b: u8,
    c: u8,
    imm: u64,
    /// It took in the MOV before it, so its own handler will not do.
    merged: bool,
}

impl Plain {
    /// Its operands are `a`, `b`, `c` and the immediate; else the op's are as its own handler has them.
    fn simple(&self) -> bool {
        !matches!(
            self.kind,
            Kind::LeaBase
                | Kind::LeaIndex
                | Kind::LoadBase
                | Kind::LoadIndex
                | Kind::ByteBase
                | Kind::ByteIndex
                | Kind::StoreBase
                | Kind::StoreIndex
                | Kind::Zero
                | Kind::Sign
        )
    }

    /// It reads `b`, as wide as it is itself.
    fn takes(&self) -> bool {
        (self.kind as usize) < CHAINS
            || matches!(
                self.kind,
                Kind::AddFlags
                    | Kind::AddImmFlags
                    | Kind::SubFlags
                    | Kind::AndFlags
                    | Kind::AndImmFlags
                    | Kind::XorFlags
            )
    }

    fn fill(&self, op: &mut Op) {
        if self.simple() {
            (op.a, op.b, op.c, op.imm) = (self.a, self.b, self.c, self.imm);
        }
    }
}

/// What `l`'s instruction is as a step, if it is plain. Its op has been lowered.
pub(crate) fn plain(l: &Lower<'_>) -> Option<Plain> {
    let i = l.i;
    if l.bits != 64 || l.fused || i.has_lock_prefix() || i.op_count() == 0 || i.op_count() > 2 {
        return None;
    }
    let w = l.width(0);
    let width = match w {
        32 => Width::Narrow,
        64 => Width::Wide,
        _ => return None,
    };
    let mut p = Plain { kind: Kind::MovReg, width, a: 0, b: 0, c: 0, imm: 0, merged: false };
    let two = i.op_count() == 2;
    let memory = (0..i.op_count()).any(|n| l.is_mem(n));
    let by_form = |base, index| match l.form {
        Form::Base => Some(base),
        Form::Index => Some(index),
        Form::Any => None,
    };
    if l.is_reg(0) {
        if !l.reg(0).is_gpr() {
            return None;
        }
        p.a = l.number(0);
        p.b = p.a;
    }
    if two && l.is_reg(1) && !l.reg(1).is_gpr() {
        return None;
    }
    let m = i.mnemonic();
    if memory {
        p.kind = match m {
            M::Lea => by_form(Kind::LeaBase, Kind::LeaIndex)?,
            M::Mov if l.is_mem(1) => by_form(Kind::LoadBase, Kind::LoadIndex)?,
            M::Mov if l.is_reg(1) => by_form(Kind::StoreBase, Kind::StoreIndex)?,
            M::Movzx if l.width(1) == 8 => {
                p.width = Width::Either;
                by_form(Kind::ByteBase, Kind::ByteIndex)?
            }
            _ => return None,
        };
        // MOV with an absolute 64-bit address has an op of its own form.
        return (i64::from(l.op.disp) as u64 == i.memory_displacement64()).then_some(p);
    }
    let register = two && l.is_reg(1);
    if register {
        p.c = l.number(1);
    } else if two {
        p.imm = i.try_immediate(1).ok()?;
    }
    let f = l.flags;
    p.kind = match (m, register) {
        (M::Mov, true) => {
            p.b = p.c;
            Kind::MovReg
        }
        (M::Mov, false) => {
            if w == 32 {
                p.imm &= 0xffff_ffff;
            }
            if p.imm <= 0xffff_ffff {
                p.width = Width::Either;
            }
            Kind::MovValue
        }
        (M::Movzx, true) if l.width(1) == 8 => {
            p.width = Width::Either;
            Kind::Zero
        }
        (M::Movsxd, true) if w == 64 && l.width(1) == 32 => Kind::Sign,
        (M::Xor | M::Sub, true) if !f && p.c == p.a => {
            p.width = Width::Either;
            Kind::MovValue
        }
        (M::Add, true) => {
            if f {
                Kind::AddFlags
            } else {
                Kind::AddReg
            }
        }
        (M::Add, false) => {
            if f {
                Kind::AddImmFlags
            } else {
                Kind::AddImm
            }
        }
        (M::Sub, true) => {
            if f {
                Kind::SubFlags
            } else {
                Kind::SubReg
            }
        }
        (M::Sub, false) if !f => {
            p.imm = p.imm.wrapping_neg();
            Kind::AddImm
        }
        (M::Inc, _) if !f => {
            p.imm = 1;
            Kind::AddImm
        }
        (M::Dec, _) if !f => {
            p.imm = u64::MAX;
            Kind::AddImm
        }
        (M::And, true) => {
            if f {
                Kind::AndFlags
            } else {
                Kind::AndReg
            }
        }
        (M::And, false) => {
            if f {
                Kind::AndImmFlags
            } else {
                Kind::AndImm
            }
        }
        (M::Or, true) if !f => Kind::OrReg,
        (M::Xor, true) => {
            if f {
                Kind::XorFlags
            } else {
                Kind::XorReg
            }
        }
        (M::Rol | M::Ror | M::Shl | M::Sal | M::Shr | M::Sar, false) if !f => {
            let n = p.imm as u8 & (w as u8 - 1);
            if n == 0 {
                return None;
            }
            p.c = if m == M::Ror { w as u8 - n } else { n };
            match m {
                M::Rol | M::Ror => Kind::RolImm,
                M::Shr => Kind::ShrImm,
                M::Sar => Kind::SarImm,
                _ => Kind::ShlImm,
            }
        }
        _ => return None,
    };
    Some(p)
}

/// Takes `mov d, s` into the operation on `d` that follows it.
pub(crate) fn merge(mov: &Plain, then: &Plain) -> Option<Plain> {
    if mov.kind != Kind::MovReg
        || !then.takes()
        || mov.width != then.width
        || then.a != mov.a
        || then.b != mov.a
    {
        return None;
    }
    let mut p = Plain { b: mov.b, merged: true, ..*then };
    let register = matches!(
        then.kind,
        Kind::AddReg
            | Kind::SubReg
            | Kind::AndReg
            | Kind::OrReg
            | Kind::XorReg
            | Kind::AddFlags
            | Kind::SubFlags
            | Kind::AndFlags
            | Kind::XorFlags
    );
    if register && then.c == mov.a {
        p.c = mov.b;
    }
    Some(p)
}

/// Gives two ops in a row one handler, if there is one for them.
pub(crate) fn join(x: &mut Op, px: &Plain, y: &mut Op, py: &Plain) -> bool {
    let wide = match (px.width, py.width) {
        (Width::Narrow, Width::Wide) | (Width::Wide, Width::Narrow) => return false,
        (Width::Narrow, _) | (_, Width::Narrow) => 0,
        _ => 1,
    };
    let (k, j) = (px.kind as usize, py.kind as usize);
    if k >= FIRSTS {
        return false;
    }
    let chained = k < CHAINS && j < CHAINS && py.a == px.a && py.b == px.a;
    let handler = if chained {
        // The register in between is never written.
        let second =
            matches!(py.kind, Kind::AddReg | Kind::SubReg | Kind::AndReg | Kind::OrReg | Kind::XorReg);
        if second && py.c == px.a { PAIRS[wide][k][j] } else { CHAINED[wide][k][j] }
    } else {
        PAIRS[wide][k][j]
    };
    px.fill(x);
    py.fill(y);
    x.run.set(handler);
    true
}

/// An op that took in the MOV before it, and is not half of a pair.
pub(crate) fn alone(x: &mut Op, px: &Plain) {
    if px.merged {
        px.fill(x);
        x.run.set(SINGLES[usize::from(px.width == Width::Wide)][px.kind as usize]);
    }
}
