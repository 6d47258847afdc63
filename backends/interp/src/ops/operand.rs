//! Operand forms, as types: what a handler is generic over.
//!
//! A memory operand has *quick* forms and a general one, [`Any`]. A quick form works its address out in a line or two and
//! makes the access only where the TLB has the page. Where it has not, nothing has happened yet, and the handler
//! hands the op to a general handler (`quick!` in `op`), which can do everything: walk the page tables, cross
//! pages, ask the board, raise an exception. So a quick handler calls nothing and needs no stack.

use crate::cpu::{Cpu, PAGE};
use crate::op::{Abort, Exec, OpPtr};
use crate::regs::Int;

/// A quick form of a memory operand, in 64-bit code. An error means no more than that the general form
/// has to do it.
pub(crate) trait Quick {
    /// The linear address.
    fn linear(cpu: &Cpu, op: OpPtr) -> Exec<u64>;

    #[inline(always)]
    fn read<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        let at = Self::linear(cpu, op)?;
        cpu.quick_read(at)
    }

    #[inline(always)]
    fn write<T: Int>(cpu: &mut Cpu, op: OpPtr, v: T) -> Exec {
        let at = Self::linear(cpu, op)?;
        cpu.quick_write(at, v)
    }

    /// Reads and writes back what `f` makes of it.
    #[inline(always)]
    fn rmw<T: Int>(cpu: &mut Cpu, op: OpPtr, f: impl FnOnce(&mut Cpu, T) -> T) -> Exec {
        let at = Self::linear(cpu, op)?;
        cpu.quick_rmw(at, f)
    }
}

/// No index.
pub(crate) struct Base;
/// An index, which may be [`crate::cpu::ZERO`].
pub(crate) struct Index;

/// A quick form that always has an address.
pub(crate) trait Flat: Quick {
    fn at(cpu: &Cpu, op: OpPtr) -> u64;
}

impl Flat for Base {
    #[inline(always)]
    fn at(cpu: &Cpu, op: OpPtr) -> u64 {
        u64::get(cpu, op.base).wrapping_add(i64::from(op.disp) as u64)
    }
}

impl Flat for Index {
    #[inline(always)]
    fn at(cpu: &Cpu, op: OpPtr) -> u64 {
        u64::get(cpu, op.base)
            .wrapping_add(u64::get(cpu, op.index).wrapping_mul(u64::from(op.scale)))
            .wrapping_add(i64::from(op.disp) as u64)
    }
}

impl<F: Flat> Quick for F {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: OpPtr) -> Exec<u64> {
        Ok(F::at(cpu, op))
    }
}

/// FS or GS in 64-bit code, with an address that is not near the edge of the canonical ones.
pub(crate) struct Segment;

impl Quick for Segment {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: OpPtr) -> Exec<u64> {
        let offset = Index::at(cpu, op);
        // As found on the silicon, the offset is looked at whatever the sum is.
        let inside = offset.wrapping_add(1 << 46) >> 47 == 0;
        if inside { Ok(offset.wrapping_add(cpu.seg[usize::from(op.seg) % 6].base)) } else { Err(Abort) }
    }
}

/// The general form: any address, in any mode.
pub(crate) struct Any;

impl Any {
    #[inline(always)]
    fn linear(cpu: &mut Cpu, op: OpPtr, bytes: u64, write: bool) -> Exec<u64> {
        if cpu.long_code() && op.asize == 8 {
            if op.seg < 4 {
                return Ok(Index::at(cpu, op));
            }
            if let Ok(at) = Segment::linear(cpu, op) {
                return Ok(at);
            }
        }
        let offset = offset(cpu, op);
        cpu.linear(usize::from(op.seg), offset, bytes, write)
    }

    /// The linear address of an access of `bytes` bytes.
    #[inline(never)]
    pub(crate) fn at(cpu: &mut Cpu, op: OpPtr, bytes: u64, write: bool) -> Exec<u64> {
        Any::linear(cpu, op, bytes, write)
    }

    #[inline(never)]
    pub(crate) fn read<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        let at = Any::linear(cpu, op, T::BYTES as u64, false)?;
        match cpu.quick_read(at) {
            Ok(v) => Ok(v),
            Err(_) => cpu.read_slow(at, T::BYTES).map(T::new),
        }
    }

    #[inline(never)]
    pub(crate) fn write<T: Int>(cpu: &mut Cpu, op: OpPtr, v: T) -> Exec {
        let at = Any::linear(cpu, op, T::BYTES as u64, true)?;
        match cpu.quick_write(at, v) {
            Ok(()) => Ok(()),
            Err(_) => cpu.write_slow(at, T::BYTES, v.z()),
        }
    }

    /// Reads and writes back what `f` makes of it.
    #[inline(always)]
    pub(crate) fn rmw<T: Int>(cpu: &mut Cpu, op: OpPtr, f: impl FnOnce(&mut Cpu, T) -> T) -> Exec {
        let at = Any::at(cpu, op, T::BYTES as u64, true)?;
        cpu.rmw(at, f)
    }
}

/// The effective address, before segmentation.
#[inline]
pub(crate) fn offset(cpu: &Cpu, op: OpPtr) -> u64 {
    debug_assert!(op.base <= PAGE);
    Index::at(cpu, op) & address_mask(op.asize)
}

/// Bits of an address of that many bytes.
#[inline(always)]
pub(crate) fn address_mask(asize: u8) -> u64 {
    match asize {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

impl Cpu {
    /// From an offset in a segment to a linear address.
    #[inline(never)]
    pub(crate) fn linear(&mut self, segment: usize, offset: u64, bytes: u64, write: bool) -> Exec<u64> {
        if self.long_code() {
            if segment < 4 {
                return Ok(offset);
            }
            // As found on the silicon, the offset is looked at too, whatever the sum is.
            self.bad_span(offset, bytes as usize)?;
            return Ok(offset.wrapping_add(self.seg[segment].base));
        }
        self.check_limit(segment, offset, bytes, write)?;
        Ok(offset.wrapping_add(self.seg[segment].base) & 0xffff_ffff)
    }
}

/// Where a source operand comes from.
pub(crate) trait Src {
    fn load<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<T>;
}

/// Register `op.a`.
pub(crate) struct RegA;
/// Register `op.b`.
pub(crate) struct RegB;
/// The immediate.
pub(crate) struct Imm;
/// Memory, by a quick form or [`Any`].
pub(crate) struct Mem<A>(std::marker::PhantomData<A>);

impl Src for RegA {
    #[inline(always)]
    fn load<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        Ok(T::get(cpu, op.a))
    }
}

impl Src for RegB {
    #[inline(always)]
    fn load<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        Ok(T::get(cpu, op.b))
    }
}

impl Src for Imm {
    #[inline(always)]
    fn load<T: Int>(_cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        Ok(T::new(op.imm))
    }
}

impl<Q: Quick> Src for Mem<Q> {
    #[inline(always)]
    fn load<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        Q::read(cpu, op)
    }
}

impl Src for Mem<Any> {
    #[inline(always)]
    fn load<T: Int>(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        Any::read(cpu, op)
    }
}
