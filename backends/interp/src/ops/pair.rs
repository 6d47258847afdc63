//! Plain instructions: two of them as one handler, and MOV merged into the operation behind it.
//!
//! *Plain*: general registers of 32 or 64 bits in 64-bit code, loads and stores in quick forms, PUSH and POP. A pair keeps
//! its two cells; the first one's handler does the work of both and goes on behind the second. Where the second takes
//! what the first has just made, and puts it in the same register, they are *chained*, and the register in between is
//! never written. `mov d, s` followed by `d = d op x` becomes `d = s op x`. Called by `decode` when a block's
//! instructions have been lowered one by one.

use super::alu::{Add, Alu, And, Or, Sub, Xor};
use super::operand::{Any, Base, Flat, Index, Quick, Segment};
use crate::cpu::{Cpu, RSP};
use crate::decode::{Form, Lower};
use crate::op::{Exec, Flow, Handler, Op, OpPtr, next};
use crate::regs::Int;
use iced_x86::{Code, Mnemonic as M, Register};
use std::marker::PhantomData;

/// What a plain instruction does: from `b` (and `c`, or an immediate) to `a`. Values have their upper bits clear.
trait Step {
    /// What does it where this one, of a quick form, cannot.
    type General: Step;

    /// Takes its first source's value from wherever.
    const CHAINS: bool = false;
    /// Of 64 bits.
    const WIDE: bool = false;
    /// `c` is a register too.
    const SECOND: bool = false;
    /// Leaves its value in `a`.
    const PUTS: bool = true;

    /// The first source's value, from `b`.
    #[inline(always)]
    fn first(_cpu: &Cpu, _op: OpPtr) -> u64 {
        0
    }

    /// The value, from the first source's. Those that leave none do all they do here.
    fn value(cpu: &mut Cpu, op: OpPtr, first: u64) -> Exec<u64>;

    /// Puts the value in its place.
    fn put(cpu: &mut Cpu, op: OpPtr, v: u64);

    /// All of it.
    #[inline(always)]
    fn run(cpu: &mut Cpu, op: OpPtr) -> Exec {
        let first = Self::first(cpu, op);
        let v = Self::value(cpu, op, first)?;
        Self::put(cpu, op, v);
        Ok(())
    }
}

/// Operations with a first source.
macro_rules! operations {
    ($($name:ident<$($g:tt),*> [$($bound:tt)*] $second:literal |$cpu:ident, $op:ident, $first:ident: $t:ident| $e:expr;)*) => {$(
        impl<$($bound)*> Step for $name<$($g),*> {
            type General = Self;
            const CHAINS: bool = true;
            const WIDE: bool = $t::BITS == 64;
            const SECOND: bool = $second;
            #[inline(always)]
            fn first(cpu: &Cpu, op: OpPtr) -> u64 {
                $t::get(cpu, op.b).z()
            }
            #[inline(always)]
            fn value($cpu: &mut Cpu, $op: OpPtr, first: u64) -> Exec<u64> {
                let $first = $t::new(first);
                let v: $t = $e;
                Ok(v.z())
            }
            #[inline(always)]
            fn put(cpu: &mut Cpu, op: OpPtr, v: u64) {
                $t::set(cpu, op.a, $t::new(v));
            }
        }
    )*};
}

/// Register and register; with `F`, also the flags.
struct Reg<T, O, const F: bool>(PhantomData<(T, O)>);
/// Register and immediate.
struct Im<T, O, const F: bool>(PhantomData<(T, O)>);
struct RolBy<T>(PhantomData<T>);
struct ShlBy<T>(PhantomData<T>);
struct ShrBy<T>(PhantomData<T>);
struct SarBy<T>(PhantomData<T>);
struct NotOf<T>(PhantomData<T>);
struct Imul<T>(PhantomData<T>);

operations! {
    Reg<T, O, F> [T: Int, O: Alu, const F: bool] true |cpu, op, first: T| {
        let second = T::get(cpu, op.c);
        O::run::<T, F>(&mut cpu.lazy, first, second)
    };
    Im<T, O, F> [T: Int, O: Alu, const F: bool] false |cpu, op, first: T| {
        O::run::<T, F>(&mut cpu.lazy, first, T::new(op.imm))
    };
    RolBy<T> [T: Int] false |_cpu, op, first: T| first.rol(u32::from(op.c));
    ShlBy<T> [T: Int] false |_cpu, op, first: T| T::new(first.z() << (op.c & 63));
    ShrBy<T> [T: Int] false |_cpu, op, first: T| T::new(first.z() >> (op.c & 63));
    SarBy<T> [T: Int] false |_cpu, op, first: T| T::new((first.s() >> (op.c & 63)) as u64);
    NotOf<T> [T: Int] false |_cpu, _op, first: T| T::new(!first.z());
    Imul<T> [T: Int] true |cpu, op, first: T| T::new(first.z().wrapping_mul(T::get(cpu, op.c).z()));
}

/// Those that need no first source.
macro_rules! sources {
    ($($name:ty, $general:ty, $t:ty $(, [$($bound:tt)*])? => |$cpu:ident, $op:ident| $e:expr;)*) => {$(
        impl $(<$($bound)*>)? Step for $name {
            type General = $general;
            #[inline(always)]
            fn value($cpu: &mut Cpu, $op: OpPtr, _first: u64) -> Exec<u64> {
                Ok($e)
            }
            const WIDE: bool = <$t as Int>::BITS == 64;
            #[inline(always)]
            fn put(cpu: &mut Cpu, op: OpPtr, v: u64) {
                <$t as Int>::set(cpu, op.a, <$t as Int>::new(v));
            }
        }
    )*};
}

struct Mov<T>(PhantomData<T>);
struct MovImm;
struct Lea<T, A>(PhantomData<(T, A)>);
/// MOVZX of a register of `F`.
struct Extend<F>(PhantomData<F>);
struct SignExtend;
/// MOV, or MOVZX of a narrower `F`.
struct Load<F, A>(PhantomData<(F, A)>);

sources! {
    Mov<T>, Self, T, [T: Int] => |cpu, op| T::get(cpu, op.b).z();
    MovImm, Self, u64 => |_cpu, op| op.imm;
    Lea<T, A>, Self, T, [T: Int, A: Flat] => |cpu, op| A::at(cpu, op) & T::MASK;
    Extend<F>, Self, u64, [F: Int] => |cpu, op| F::get(cpu, op.b).z();
    SignExtend, Self, u64 => |cpu, op| u32::get(cpu, op.b).s() as u64;
    Load<F, Q>, Load<F, Any>, u64, [F: Int, Q: Quick] => |cpu, op| Q::read::<F>(cpu, op)?.z();
    Load<F, Any>, Self, u64, [F: Int] => |cpu, op| Any::read::<F>(cpu, op)?.z();
}

/// Those that leave no value in a register.
macro_rules! effects {
    ($($name:ty, $general:ty $(, [$($bound:tt)*])? => |$cpu:ident, $op:ident| $e:expr;)*) => {$(
        impl $(<$($bound)*>)? Step for $name {
            type General = $general;
            const PUTS: bool = false;
            #[inline(always)]
            fn value($cpu: &mut Cpu, $op: OpPtr, _first: u64) -> Exec<u64> {
                let done: Exec = $e;
                done.map(|()| 0)
            }
            #[inline(always)]
            fn put(_cpu: &mut Cpu, _op: OpPtr, _v: u64) {}
        }
    )*};
}

struct Store<T, A>(PhantomData<(T, A)>);
struct StoreImm<T, A>(PhantomData<(T, A)>);
/// Flags only, of registers and of a register and an immediate.
struct Compare<T, O>(PhantomData<(T, O)>);
struct CompareImm<T, O>(PhantomData<(T, O)>);
struct PushReg;
struct PopReg;
struct PushAny;
struct PopAny;

effects! {
    Store<T, Q>, Store<T, Any>, [T: Int, Q: Quick] => |cpu, op| Q::write(cpu, op, T::get(cpu, op.a));
    Store<T, Any>, Self, [T: Int] => |cpu, op| Any::write(cpu, op, T::get(cpu, op.a));
    StoreImm<T, Q>, StoreImm<T, Any>, [T: Int, Q: Quick] => |cpu, op| Q::write(cpu, op, T::new(op.imm));
    StoreImm<T, Any>, Self, [T: Int] => |cpu, op| Any::write(cpu, op, T::new(op.imm));
    Compare<T, O>, Self, [T: Int, O: Alu] => |cpu, op| {
        let (a, b) = (T::get(cpu, op.b), T::get(cpu, op.c));
        O::run::<T, true>(&mut cpu.lazy, a, b);
        Ok(())
    };
    CompareImm<T, O>, Self, [T: Int, O: Alu] => |cpu, op| {
        let a = T::get(cpu, op.b);
        O::run::<T, true>(&mut cpu.lazy, a, T::new(op.imm));
        Ok(())
    };
    PushReg, PushAny => |cpu, op| cpu.quick_push(u64::get(cpu, op.b));
    PushAny, Self => |cpu, op| cpu.push_sized(8, u64::get(cpu, op.b));
    PopReg, PopAny => |cpu, op| {
        let v = cpu.quick_read::<u64>(cpu.gpr[RSP])?;
        cpu.gpr[RSP] = cpu.gpr[RSP].wrapping_add(8);
        u64::set(cpu, op.a, v);
        Ok(())
    };
    PopAny, Self => |cpu, op| {
        let v = cpu.peek_sized(8, 0)?;
        cpu.drop_stack(8);
        u64::set(cpu, op.a, v);
        Ok(())
    };
}

/// A step by itself, in its general form.
#[inline(never)]
fn general<A: Step>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    match A::General::run(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(_) => cpu.abort(op),
    }
}

fn single<A: Step>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    match A::run(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(_) => general::<A>(cpu, op),
    }
}

/// Where one of the two has to be done in its general form, the rest of the pair follows by its own handler.
fn pair<A: Step, B: Step>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    if A::run(cpu, op).is_err() {
        return general::<A>(cpu, op);
    }
    let op = op.succ();
    match B::run(cpu, op) {
        Ok(()) => next(cpu, op),
        Err(_) => general::<B>(cpu, op),
    }
}

/// A pair whose second goes on with the first one's result, in the same register.
fn chain<A: Step, B: Step>(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let first = A::first(cpu, op);
    let Ok(v) = A::value(cpu, op, first) else { return general::<A>(cpu, op) };
    let op = op.succ();
    match B::value(cpu, op, v) {
        Ok(v) => {
            B::put(cpu, op, v);
            next(cpu, op)
        }
        Err(_) => cpu.abort(op),
    }
}

/// The kinds of steps.
macro_rules! steps {
    ($($name:ident = $step:ty;)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        enum Kind { $($name,)* Ret }
        mod step {
            use super::*;
            $(pub(super) type $name = $step;)*
        }
        /// The handlers of steps by themselves.
        static SINGLES: &[Handler] = &[$(single::<step::$name>,)*];
        impl Kind {
            fn chains(self) -> bool {
                match self { $(Kind::$name => <$step as Step>::CHAINS,)* Kind::Ret => false }
            }
            fn wide(self) -> bool {
                match self { $(Kind::$name => <$step as Step>::WIDE,)* Kind::Ret => false }
            }
            fn second(self) -> bool {
                match self { $(Kind::$name => <$step as Step>::SECOND,)* Kind::Ret => false }
            }
            fn puts(self) -> bool {
                match self { $(Kind::$name => <$step as Step>::PUTS,)* Kind::Ret => false }
            }
        }
    };
}

steps! {
    AddReg32 = Reg<u32, Add, false>;
    AddReg64 = Reg<u64, Add, false>;
    AddImm32 = Im<u32, Add, false>;
    AddImm64 = Im<u64, Add, false>;
    SubReg32 = Reg<u32, Sub, false>;
    SubReg64 = Reg<u64, Sub, false>;
    AndReg32 = Reg<u32, And, false>;
    AndReg64 = Reg<u64, And, false>;
    AndImm32 = Im<u32, And, false>;
    AndImm64 = Im<u64, And, false>;
    OrReg32 = Reg<u32, Or, false>;
    OrReg64 = Reg<u64, Or, false>;
    OrImm32 = Im<u32, Or, false>;
    OrImm64 = Im<u64, Or, false>;
    XorReg32 = Reg<u32, Xor, false>;
    XorReg64 = Reg<u64, Xor, false>;
    XorImm32 = Im<u32, Xor, false>;
    XorImm64 = Im<u64, Xor, false>;
    Rol32 = RolBy<u32>;
    Rol64 = RolBy<u64>;
    Shl32 = ShlBy<u32>;
    Shl64 = ShlBy<u64>;
    Shr32 = ShrBy<u32>;
    Shr64 = ShrBy<u64>;
    Sar32 = SarBy<u32>;
    Sar64 = SarBy<u64>;
    Not32 = NotOf<u32>;
    Not64 = NotOf<u64>;
    Imul32 = Imul<u32>;
    Imul64 = Imul<u64>;
    AddRegF32 = Reg<u32, Add, true>;
    AddRegF64 = Reg<u64, Add, true>;
    AddImmF32 = Im<u32, Add, true>;
    AddImmF64 = Im<u64, Add, true>;
    SubRegF32 = Reg<u32, Sub, true>;
    SubRegF64 = Reg<u64, Sub, true>;
    SubImmF32 = Im<u32, Sub, true>;
    SubImmF64 = Im<u64, Sub, true>;
    AndRegF32 = Reg<u32, And, true>;
    AndRegF64 = Reg<u64, And, true>;
    AndImmF32 = Im<u32, And, true>;
    AndImmF64 = Im<u64, And, true>;
    XorRegF32 = Reg<u32, Xor, true>;
    XorRegF64 = Reg<u64, Xor, true>;
    CmpReg32 = Compare<u32, Sub>;
    CmpReg64 = Compare<u64, Sub>;
    CmpImm32 = CompareImm<u32, Sub>;
    CmpImm64 = CompareImm<u64, Sub>;
    TestReg32 = Compare<u32, And>;
    TestReg64 = Compare<u64, And>;
    Mov32 = Mov<u32>;
    Mov64 = Mov<u64>;
    Value = MovImm;
    Lea32Base = Lea<u32, Base>;
    Lea64Base = Lea<u64, Base>;
    Lea32Index = Lea<u32, Index>;
    Lea64Index = Lea<u64, Index>;
    Zero8 = Extend<u8>;
    Zero16 = Extend<u16>;
    Sign = SignExtend;
    Load8 = Load<u8, Index>;
    Load16 = Load<u16, Index>;
    Load32Base = Load<u32, Base>;
    Load32Index = Load<u32, Index>;
    Load64Base = Load<u64, Base>;
    Load64Index = Load<u64, Index>;
    Load64Segment = Load<u64, Segment>;
    Store8 = Store<u8, Index>;
    Store16 = Store<u16, Index>;
    Store32Base = Store<u32, Base>;
    Store32Index = Store<u32, Index>;
    Store64Base = Store<u64, Base>;
    Store64Index = Store<u64, Index>;
    StoreImm8 = StoreImm<u8, Index>;
    StoreImm32 = StoreImm<u32, Index>;
    StoreImm64 = StoreImm<u64, Index>;
    Push = PushReg;
    Pop = PopReg;
}

/// Which steps are joined with which, the first before the colon.
macro_rules! pairs {
    ($($first:ident: $($second:ident)*;)*) => {
        fn paired(first: Kind, second: Kind) -> Option<Handler> {
            Some(match (first, second) {
                $($((Kind::$first, Kind::$second) => pair::<step::$first, step::$second>,)*)*
                _ => return None,
            })
        }
        fn chained(first: Kind, second: Kind) -> Option<Handler> {
            Some(match (first, second) {
                $($((Kind::$first, Kind::$second) if <step::$second as Step>::CHAINS && <step::$first as Step>::PUTS => {
                    chain::<step::$first, step::$second>
                })*)*
                _ => return None,
            })
        }
    };
}

// Those met most often while Debian's kernel boots, busybox works and the bench's kernels run.
pairs! {
    AddReg32: AddReg32 AddImm64 AndImm32 XorReg32 Shr32 AddRegF32 Mov32 Zero8;
    AddReg64: AddReg64 Shl64 AddRegF64 CmpReg64 Mov64 Lea64Index;
    AddImm32: AddReg64 AddImm32 Sign;
    AddImm64: AddImm64 AndReg32 XorReg32 Shl64 AddImmF64 Mov32 Mov64 Lea32Base;
    SubReg32: AndImm32;
    SubReg64: AddReg64 XorRegF32;
    AndReg32: AddReg32 AndReg32 XorReg32;
    AndImm32: AddReg32 AddImm32 SubReg32 OrReg32 Shl64 Shr32 AddImmF64 AndImmF32 CmpImm32 Lea64Base;
    AndImm64: Mov64 Lea64Base;
    OrReg32: Shl32;
    XorReg32: AddReg32 AndReg32 AndImm64 XorReg32 Rol32 Shr32 AddRegF32 AndRegF32 XorRegF32 CmpReg64 Mov32
        Lea32Index;
    XorReg64: AddReg64 AddImm32 Shl64 Shr64 Lea32Index;
    Rol32: AddReg32 AndReg32 XorReg32 Rol32 XorRegF32 Mov32;
    Rol64: Mov32;
    Shl32: Shr32;
    Shl64: AddReg64 XorReg64 XorRegF64;
    Shr32: AddReg32 AndImm32 Rol32 XorRegF32 Mov32 Zero16;
    Shr64: AddReg64 XorReg64 XorRegF64 Mov64 Lea32Index Lea64Index;
    Not32: AddImm64;
    Imul32: AddReg32 AddRegF32 Load16;
    Imul64: AddImm64 Imul64 Mov64;
    AddRegF32: Load16 Store32Base Store32Index;
    AddRegF64: Mov64 Store64Base;
    AddImmF32: Store64Base;
    AddImmF64: Mov64 Store64Base Pop;
    SubRegF32: Load8;
    SubRegF64: Mov64 Value Load64Index;
    SubImmF64: Value Load64Base Load64Segment;
    AndImmF32: Load8 Load64Index Store32Base Store64Index;
    XorRegF32: Mov32 Mov64 Load32Base Store64Base Push;
    XorRegF64: Store16;
    CmpReg64: Mov64;
    CmpImm64: Lea64Base;
    Mov32: AddReg32 AndReg32 AndImm32 Rol32 Shr32 Shr64 XorRegF32 Mov32 Mov64 Lea64Index Zero8 Store8 Push;
    Mov64: AddReg64 AddImm32 Imul64 AddImmF32 AddImmF64 SubImmF64 XorRegF32 Mov32 Mov64 Value Lea64Base
        Load8 Load64Base Store64Index Push Pop;
    Value: Mov64 Lea64Base Load64Base;
    Lea32Base: AndImm32 Lea32Base;
    Lea64Base: XorReg32 AndImmF32 Mov32 Mov64 Load64Index Store64Base Push;
    Lea32Index: AndImm32 SubRegF32 Mov32 Lea32Index;
    Lea64Index: AndImm32 Shr64 SubRegF64 Mov64 Lea64Index Store64Base;
    Zero8: AddReg32 AndImm32 AddRegF64 Load16 Load64Base;
    Zero16: AddReg32;
    Sign: AddReg64 SubReg64 SubRegF64;
    Load8: AddImm64 XorReg32 CmpImm64 Mov32 Lea64Base Load8 Load16 Load64Index;
    Load16: SubReg64 XorReg32 Mov64 Store16;
    Load32Base: AddImm64 AndImm32 AddRegF32 Lea32Base Zero8 Load32Base Load64Base Store32Base Store64Base;
    Load32Index: XorReg32 Rol32 Lea64Base;
    Load64Base: AddImm64 SubImmF32 XorRegF32 Mov64 Value Lea64Base Lea64Index Zero8 Load32Base Load64Base
        Load64Segment Store32Base Store64Base Push;
    Load64Index: AndImmF32 Lea64Index Load64Index;
    Load64Segment: Mov64 Store64Base;
    Store8: AddImm64 Mov32;
    Store16: AddImm64 Lea32Base Zero8 Store16 StoreImm64;
    Store32Base: AddImm32 XorRegF32 Load8 Load32Base;
    Store32Index: AddImm64;
    Store64Base: AddReg64 XorReg32 AndImmF32 XorRegF32 Mov32 Mov64 Lea64Base Load8 Load16 Load32Base
        Load64Base Store32Base Store64Base Store64Index Pop;
    Store64Index: AddImm64 Store16;
    StoreImm64: AddImmF64 Load64Base;
    Push: SubImmF64 Mov32 Mov64 Value Lea64Base Load64Base;
    Pop: Mov64;
}

/// A plain instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain {
    kind: Kind,
    a: u8,
    b: u8,
    c: u8,
    imm: u64,
    /// Its operands are `a`, `b`, `c` and the immediate; else the op's are as its own handler has them.
    simple: bool,
    /// It took in the MOV before it, so its own handler will not do.
    merged: bool,
}

impl Plain {
    fn fill(&self, op: &mut Op) {
        if self.simple {
            (op.a, op.b, op.c, op.imm) = (self.a, self.b, self.c, self.imm);
        }
    }
}

/// What `l`'s instruction is as a step, if it is plain. Its op has been lowered.
pub(crate) fn plain(l: &Lower<'_>) -> Option<Plain> {
    let i = l.i;
    if l.bits != 64 || l.fused || i.has_lock_prefix() || i.op_count() > 2 {
        return None;
    }
    let own = |kind| Some(Plain { kind, a: l.op.a, b: l.op.b, c: 0, imm: 0, simple: false, merged: false });
    match i.op_count() {
        0 if i.code() == Code::Retnq => return own(Kind::Ret),
        0 => return None,
        _ => {}
    }
    let m = i.mnemonic();
    let general = |n: u32| l.is_reg(n) && l.reg(n).is_gpr();
    if (0..i.op_count()).any(|n| l.is_reg(n) && !general(n)) {
        return None;
    }
    if matches!(m, M::Push | M::Pop) {
        let usual = general(0) && l.reg(0).is_gpr64() && l.reg(0) != Register::RSP;
        return if usual { own(if m == M::Push { Kind::Push } else { Kind::Pop }) } else { None };
    }
    if (0..i.op_count()).any(|n| l.is_mem(n)) {
        // MOV with an absolute 64-bit address has an op of its own form.
        return if i64::from(l.op.disp) as u64 == i.memory_displacement64() { own(memory(l)?) } else { None };
    }
    register(l)
}

/// One with a memory operand.
fn memory(l: &Lower<'_>) -> Option<Kind> {
    use Kind as K;
    let m = l.i.mnemonic();
    let w = l.width(0);
    if m == M::Mov && w == 64 && l.is_mem(1) && l.in_segment() {
        return Some(K::Load64Segment);
    }
    let base = match l.form {
        Form::Base => true,
        Form::Index => false,
        Form::Any => return None,
    };
    let load = l.is_mem(1);
    let from = l.width(1);
    Some(match (m, w, base) {
        (M::Lea, 32, true) => K::Lea32Base,
        (M::Lea, 64, true) => K::Lea64Base,
        (M::Lea, 32, false) => K::Lea32Index,
        (M::Lea, 64, false) => K::Lea64Index,
        (M::Movzx, 32 | 64, _) if load && from == 8 => K::Load8,
        (M::Movzx, 32 | 64, _) if load && from == 16 => K::Load16,
        (M::Mov, 32, true) if load => K::Load32Base,
        (M::Mov, 64, true) if load => K::Load64Base,
        (M::Mov, 32, false) if load => K::Load32Index,
        (M::Mov, 64, false) if load => K::Load64Index,
        (M::Mov, ..) if load => return None,
        (M::Mov, 8, _) if l.is_reg(1) => K::Store8,
        (M::Mov, 16, _) if l.is_reg(1) => K::Store16,
        (M::Mov, 32, true) if l.is_reg(1) => K::Store32Base,
        (M::Mov, 64, true) if l.is_reg(1) => K::Store64Base,
        (M::Mov, 32, false) if l.is_reg(1) => K::Store32Index,
        (M::Mov, 64, false) if l.is_reg(1) => K::Store64Index,
        (M::Mov, 8, _) => K::StoreImm8,
        (M::Mov, 32, _) => K::StoreImm32,
        (M::Mov, 64, _) => K::StoreImm64,
        _ => return None,
    })
}

/// One of registers and immediates.
fn register(l: &Lower<'_>) -> Option<Plain> {
    use Kind as K;
    let (i, m, f) = (l.i, l.i.mnemonic(), l.flags);
    let wide = match l.width(0) {
        32 => false,
        64 => true,
        _ => return None,
    };
    let by = |narrow, other| if wide { other } else { narrow };
    let two = i.op_count() == 2;
    let register = two && l.is_reg(1);
    let (a, b) = (l.number(0), l.number(0));
    let c = if register { l.number(1) } else { 0 };
    let imm = if two && !register { i.try_immediate(1).ok()? } else { 0 };
    let mut p = Plain { kind: K::Ret, a, b, c, imm, simple: true, merged: false };
    p.kind = match (m, register) {
        (M::Mov, true) => {
            p.b = p.c;
            by(K::Mov32, K::Mov64)
        }
        (M::Mov, false) => {
            p.imm &= if wide { u64::MAX } else { 0xffff_ffff };
            K::Value
        }
        (M::Movzx, true) => {
            (p.b, p.simple) = (c, false);
            if l.width(1) == 8 { K::Zero8 } else { K::Zero16 }
        }
        (M::Movsxd, true) if wide && l.width(1) == 32 => {
            (p.b, p.simple) = (c, false);
            K::Sign
        }
        (M::Xor | M::Sub, true) if !f && a == c => K::Value,
        (M::Add, true) if f => by(K::AddRegF32, K::AddRegF64),
        (M::Add, true) => by(K::AddReg32, K::AddReg64),
        (M::Add, false) if f => by(K::AddImmF32, K::AddImmF64),
        (M::Add, false) => by(K::AddImm32, K::AddImm64),
        (M::Sub, true) if f => by(K::SubRegF32, K::SubRegF64),
        (M::Sub, true) => by(K::SubReg32, K::SubReg64),
        (M::Sub, false) if f => by(K::SubImmF32, K::SubImmF64),
        (M::Sub, false) => {
            p.imm = imm.wrapping_neg();
            by(K::AddImm32, K::AddImm64)
        }
        (M::Inc, _) if !f => {
            p.imm = 1;
            by(K::AddImm32, K::AddImm64)
        }
        (M::Dec, _) if !f => {
            p.imm = u64::MAX;
            by(K::AddImm32, K::AddImm64)
        }
        (M::Not, _) => by(K::Not32, K::Not64),
        (M::And, true) if f => by(K::AndRegF32, K::AndRegF64),
        (M::And, true) => by(K::AndReg32, K::AndReg64),
        (M::And, false) if f => by(K::AndImmF32, K::AndImmF64),
        (M::And, false) => by(K::AndImm32, K::AndImm64),
        (M::Or, true) if !f => by(K::OrReg32, K::OrReg64),
        (M::Or, false) if !f => by(K::OrImm32, K::OrImm64),
        (M::Xor, true) if f => by(K::XorRegF32, K::XorRegF64),
        (M::Xor, true) => by(K::XorReg32, K::XorReg64),
        (M::Xor, false) if !f => by(K::XorImm32, K::XorImm64),
        (M::Cmp, true) => by(K::CmpReg32, K::CmpReg64),
        (M::Cmp, false) => by(K::CmpImm32, K::CmpImm64),
        (M::Test, true) => by(K::TestReg32, K::TestReg64),
        (M::Imul, true) if !f => by(K::Imul32, K::Imul64),
        (M::Rol | M::Ror | M::Shl | M::Sal | M::Shr | M::Sar, false) if !f => {
            let bits = if wide { 64 } else { 32 };
            let n = imm as u8 & (bits - 1);
            if n == 0 {
                return None;
            }
            p.c = if m == M::Ror { bits - n } else { n };
            match m {
                M::Rol | M::Ror => by(K::Rol32, K::Rol64),
                M::Shr => by(K::Shr32, K::Shr64),
                M::Sar => by(K::Sar32, K::Sar64),
                _ => by(K::Shl32, K::Shl64),
            }
        }
        _ => return None,
    };
    Some(p)
}

/// Takes `mov d, s` into the operation on `d` that follows it.
pub(crate) fn merge(mov: &Plain, then: &Plain) -> Option<Plain> {
    let fits = match mov.kind {
        Kind::Mov64 => true,
        Kind::Mov32 => !then.kind.wide(),
        _ => false,
    };
    if !fits || !then.kind.chains() || then.a != mov.a || then.b != mov.a {
        return None;
    }
    let mut p = Plain { b: mov.b, merged: true, ..*then };
    if then.kind.second() && then.c == mov.a {
        p.c = mov.b;
    }
    Some(p)
}

/// Gives two ops in a row one handler, if there is one for them.
pub(crate) fn join(x: &mut Op, px: &Plain, y: &mut Op, py: &Plain) -> bool {
    // The register in between is never written where they are chained.
    let chain = px.kind.puts() && py.a == px.a && py.b == px.a && !(py.kind.second() && py.c == px.a);
    let handler = if chain { chained(px.kind, py.kind) } else { None };
    let Some(handler) = handler.or_else(|| paired(px.kind, py.kind)) else { return false };
    px.fill(x);
    py.fill(y);
    x.run.set(handler);
    // For where the first one's handler cannot do both.
    y.run.set(SINGLES[py.kind as usize]);
    true
}

/// The handler of a row of PUSH or POP, and RET behind, and how many ops it does; 1 if there is none.
pub(crate) fn row(steps: &[Option<Plain>]) -> (Option<Handler>, usize) {
    let kind = |n: usize| steps.get(n).and_then(|s| s.as_ref()).map(|p| p.kind);
    let first = kind(0);
    let same = (0..super::stack::ROW).take_while(|n| kind(*n) == first).count();
    let (handler, extra) = match first {
        Some(Kind::Push) => (super::stack::push_row(same), 0),
        Some(Kind::Pop) if kind(same) == Some(Kind::Ret) => (super::stack::pop_row(same, true), 1),
        Some(Kind::Pop) => (super::stack::pop_row(same, false), 0),
        _ => (None, 0),
    };
    (handler, if handler.is_some() { same + extra } else { 1 })
}

/// An op that took in the MOV before it, and is not half of a pair.
pub(crate) fn alone(x: &mut Op, px: &Plain) {
    if px.merged {
        px.fill(x);
        x.run.set(SINGLES[px.kind as usize]);
    }
}
