//! SSE and AVX.

use crate::cpu::{Cpu, mode};
use crate::decode::Lower;
use crate::op::{Flow, Handler, OpPtr};

fn not_available(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.raise(7, None);
    cpu.abort(op)
}

/// The handler that refuses an SSE instruction in the current mode, if it must.
pub(super) fn refused(l: &Lower<'_>) -> Option<Handler> {
    if l.mode & mode::EM != 0 || l.mode & mode::FXSR == 0 {
        return Some(super::undefined);
    }
    (l.mode & mode::TS != 0).then_some(not_available as Handler)
}

/// The same for AVX.
pub(super) fn refused_avx(l: &Lower<'_>) -> Option<Handler> {
    if l.mode & mode::AVX == 0 || l.mode & mode::PROTECTED == 0 || l.mode & mode::V86 != 0 {
        return Some(super::undefined);
    }
    (l.mode & mode::TS != 0).then_some(not_available as Handler)
}

pub(super) fn lower(_l: &mut Lower<'_>) -> Option<Handler> {
    None
}
