//! Operand forms, as types: what a handler is generic over.

use crate::cpu::{Cpu, PAGE};
use crate::op::{Exec, OpPtr};
use crate::regs::Int;

/// How a memory operand's linear address is worked out.
pub(crate) trait Addr {
    /// The linear address of an access of `bytes` bytes.
    fn at(cpu: &mut Cpu, op: OpPtr, bytes: u64, write: bool) -> Exec<u64>;
}

/// 64-bit code, no segment base, no index.
pub(crate) struct Base;
/// The same with an index.
pub(crate) struct Index;
/// Anything else: FS and GS, other address sizes, segments with limits.
pub(crate) struct Any;

impl Addr for Base {
    #[inline(always)]
    fn at(cpu: &mut Cpu, op: OpPtr, _bytes: u64, _write: bool) -> Exec<u64> {
        Ok(u64::get(cpu, op.base).wrapping_add(i64::from(op.disp) as u64))
    }
}

impl Addr for Index {
    #[inline(always)]
    fn at(cpu: &mut Cpu, op: OpPtr, _bytes: u64, _write: bool) -> Exec<u64> {
        Ok(u64::get(cpu, op.base)
            .wrapping_add(u64::get(cpu, op.index) << (op.scale & 3))
            .wrapping_add(i64::from(op.disp) as u64))
    }
}

impl Addr for Any {
    #[inline(never)]
    fn at(cpu: &mut Cpu, op: OpPtr, bytes: u64, write: bool) -> Exec<u64> {
        let offset = offset(cpu, op);
        cpu.linear(usize::from(op.seg), offset, bytes, write)
    }
}

/// The effective address, before segmentation.
#[inline]
pub(crate) fn offset(cpu: &Cpu, op: OpPtr) -> u64 {
    let sum = u64::get(cpu, op.base)
        .wrapping_add(u64::get(cpu, op.index) << (op.scale & 3))
        .wrapping_add(i64::from(op.disp) as u64);
    debug_assert!(op.base <= PAGE);
    sum & address_mask(op.asize)
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
    #[inline]
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
pub(crate) trait Src<T: Int> {
    fn load(cpu: &mut Cpu, op: OpPtr) -> Exec<T>;
}

/// Register `op.a`.
pub(crate) struct RegA;
/// Register `op.b`.
pub(crate) struct RegB;
/// The immediate.
pub(crate) struct Imm;
/// Memory.
pub(crate) struct Mem<A>(std::marker::PhantomData<A>);

impl<T: Int> Src<T> for RegA {
    #[inline(always)]
    fn load(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        Ok(T::get(cpu, op.a))
    }
}

impl<T: Int> Src<T> for RegB {
    #[inline(always)]
    fn load(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        Ok(T::get(cpu, op.b))
    }
}

impl<T: Int> Src<T> for Imm {
    #[inline(always)]
    fn load(_cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        Ok(T::new(op.imm))
    }
}

impl<T: Int, A: Addr> Src<T> for Mem<A> {
    #[inline(always)]
    fn load(cpu: &mut Cpu, op: OpPtr) -> Exec<T> {
        let at = A::at(cpu, op, T::BYTES as u64, false)?;
        cpu.read(at)
    }
}
