//! Vector instructions that pick: variable blends, masked moves, gathers, string comparisons; and those whose source
//! and destination differ in width.
//!
//! `imm` is as in `sse`; the width in bytes of the memory operand also tells that there is one.

use super::operand::{address_mask, offset};
use super::ops;
use super::sse::{ALIGNMENT, address, bytes, low, numeric, whole};
use crate::cpu::{Cpu, RAX, RCX, RDI, RDX};
use crate::decode::Lower;
use crate::num::simd::{arith as ar, permute as pe, shuffle as su, string};
use crate::num::sse::convert as cv;
use crate::num::vec::{V128, V256};
use crate::op::{Exec, Handler, OpPtr};
use crate::regs::Int;
use iced_x86::{EncodingKind, Mnemonic as M};

/// Writes a destination of a VEX form.
fn put(cpu: &mut Cpu, op: OpPtr, lo: V128, hi: V128) {
    cpu.vec[usize::from(op.a & 15)] = V256 { lo, hi };
}

/// Linear address of a gather's element, whose index is `by` bytes: each has an address of its own size.
fn element(cpu: &mut Cpu, op: OpPtr, by: u64, bytes: u64) -> Exec<u64> {
    let at = offset(cpu, op).wrapping_add(by) & address_mask(op.asize);
    cpu.linear(usize::from(op.seg), at, bytes, false)
}

/// Linear address of a part, `by` bytes in, of a memory operand: it goes on from its start, also past what an address
/// of its size can name.
fn part(cpu: &mut Cpu, op: OpPtr, by: usize, bytes: usize, write: bool) -> Exec<u64> {
    let at = offset(cpu, op).wrapping_add(by as u64);
    cpu.linear(usize::from(op.seg), at, bytes as u64, write)
}

fn lane<T: Int>(v: &V256, n: usize) -> u64 {
    let q = v.u64s();
    let per = 8 / T::BYTES;
    q[(n / per) & 3] >> (n % per * T::BYTES * 8) & T::MASK
}

fn set_lane<T: Int>(v: &mut V256, n: usize, x: u64) {
    let mut q = v.u64s();
    let per = 8 / T::BYTES;
    let (at, shift) = ((n / per) & 3, n % per * T::BYTES * 8);
    q[at] = q[at] & !(T::MASK << shift) | (x & T::MASK) << shift;
    *v = V256::from_u64s(q);
}

/// Bytes of the vectors of a masked move: 32 if `asize`-free bit 17 of `imm` is set.
const YMM: u64 = 1 << 17;

const PS: u8 = 0;
const PD: u8 = 1;
const BYTES: u8 = 2;

fn blend(kind: u8, a: V128, b: V128, mask: V128) -> V128 {
    match kind {
        PS => su::blendvps(a, b, mask),
        PD => su::blendvpd(a, b, mask),
        _ => su::pblendvb(a, b, mask),
    }
}

macro_rules! by_kind {
    ($kind:expr, $f:ident) => {
        match $kind {
            PS => $f::<Ps>,
            PD => $f::<Pd>,
            _ => $f::<Bytes>,
        }
    };
}

/// A lane format, as a type.
trait Kind {
    const KIND: u8;
}
struct Ps;
struct Pd;
struct Bytes;
impl Kind for Ps {
    const KIND: u8 = PS;
}
impl Kind for Pd {
    const KIND: u8 = PD;
}
impl Kind for Bytes {
    const KIND: u8 = BYTES;
}

ops! {
    fn blendv<K: Kind>(cpu, op) {
        let b = low(cpu, op)?;
        let mask = cpu.vec[0].lo;
        let d = &mut cpu.vec[usize::from(op.a & 15)].lo;
        *d = blend(K::KIND, *d, b, mask)
    }
    fn vblendv<K: Kind>(cpu, op) {
        let b = whole(cpu, op)?;
        let (a, mask) = (cpu.vec[usize::from(op.c & 15)], cpu.vec[(op.imm & 15) as usize]);
        let hi = if op.imm & YMM != 0 { blend(K::KIND, a.hi, b.hi, mask.hi) } else { V128::ZERO };
        put(cpu, op, blend(K::KIND, a.lo, b.lo, mask.lo), hi)
    }

    fn insertps(cpu, op) {
        let imm = op.imm as u8;
        let memory = bytes(op) != 0;
        let b = low(cpu, op)?;
        let x = b.u32s()[if memory { 0 } else { usize::from(imm >> 6) }];
        let d = &mut cpu.vec[usize::from(op.a & 15)];
        d.lo = su::insertps(d.lo, x, imm)
    }
    fn vinsertps(cpu, op) {
        let imm = op.imm as u8;
        let memory = bytes(op) != 0;
        let b = low(cpu, op)?;
        let x = b.u32s()[if memory { 0 } else { usize::from(imm >> 6) }];
        let a = cpu.vec[usize::from(op.c & 15)].lo;
        put(cpu, op, su::insertps(a, x, imm), V128::ZERO)
    }

    fn masked_load<T: Int>(cpu, op) {
        let mask = cpu.vec[usize::from(op.c & 15)];
        let n = if op.imm & YMM != 0 { 32 } else { 16 } / T::BYTES;
        let mut r = V256::ZERO;
        for i in (0..n).filter(|i| lane::<T>(&mask, *i) & T::TOP != 0) {
            let at = part(cpu, op, i * T::BYTES, T::BYTES, false)?;
            set_lane::<T>(&mut r, i, cpu.read::<T>(at)?.z());
        }
        cpu.vec[usize::from(op.a & 15)] = r
    }
    fn masked_store<T: Int>(cpu, op) {
        let (mask, v) = (cpu.vec[usize::from(op.c & 15)], cpu.vec[usize::from(op.b & 15)]);
        let n = if op.imm & YMM != 0 { 32 } else { 16 } / T::BYTES;
        let chosen = |i: &usize| lane::<T>(&mask, *i) & T::TOP != 0;
        for i in (0..n).filter(chosen) {
            let at = part(cpu, op, i * T::BYTES, T::BYTES, true)?;
            cpu.check_write(at, T::BYTES as u64)?;
        }
        for i in (0..n).filter(chosen) {
            let at = part(cpu, op, i * T::BYTES, T::BYTES, true)?;
            cpu.write(at, T::new(lane::<T>(&v, i)))?;
        }
    }
    fn maskmovdqu(cpu, op) {
        let (mask, v) = (cpu.vec[usize::from(op.b & 15)].lo, cpu.vec[usize::from(op.c & 15)].lo);
        let start = cpu.gpr[RDI] & address_mask(op.asize);
        // Its start is looked at whatever the mask, which the manual leaves open; as found on the silicon.
        let first = cpu.linear(usize::from(op.seg), start, 1, true)?;
        cpu.check_write(first, 1)?;
        for check in [true, false] {
            for i in (0..16usize).filter(|i| mask.0[*i] & 0x80 != 0) {
                let at = cpu.linear(usize::from(op.seg), start.wrapping_add(i as u64), 1, true)?;
                if check { cpu.check_write(at, 1)? } else { cpu.write(at, v.0[i])? }
            }
        }
    }

    /// A gather of `T` by indices of `I`: destination `a`, mask `b`, indices `c`, elements in `imm`.
    /// What is done before a fault stays done, its mask cleared.
    fn gather<T: Int, I: Int>(cpu, op) {
        let n = (op.imm & 0xff) as usize;
        let (d, m) = (usize::from(op.a & 15), usize::from(op.b & 15));
        let index = cpu.vec[usize::from(op.c & 15)];
        let (old, given) = (cpu.vec[d], cpu.vec[m]);
        let (mut r, mut mask) = (V256::ZERO, given);
        for i in 0..n {
            set_lane::<T>(&mut r, i, lane::<T>(&old, i));
        }
        for i in 0..n {
            let wanted = lane::<T>(&given, i) & T::TOP != 0;
            set_lane::<T>(&mut mask, i, 0);
            if !wanted {
                continue;
            }
            let by = (I::new(lane::<I>(&index, i)).s() as u64).wrapping_mul(u64::from(op.scale));
            match element(cpu, op, by, T::BYTES as u64).and_then(|at| cpu.read::<T>(at)) {
                Ok(v) => set_lane::<T>(&mut r, i, v.z()),
                Err(e) => {
                    // Lanes that nobody gathered are as they were, the upper ones too.
                    for lane_done in 0..i {
                        if lane::<T>(&given, lane_done) & T::TOP != 0 {
                            set_lane::<T>(&mut cpu.vec[d], lane_done, lane::<T>(&r, lane_done));
                        }
                    }
                    set_lane::<T>(&mut mask, i, lane::<T>(&given, i));
                    cpu.vec[m] = mask;
                    return Err(e);
                }
            }
        }
        cpu.vec[d] = r;
        cpu.vec[m] = V256::ZERO
    }

    fn string_index(cpu, op) {
        let r = compare(cpu, op)?;
        cpu.gpr[RCX] = u64::from(r.index());
        cpu.lazy.put(u64::from(r.eflags))
    }
    fn string_mask(cpu, op) {
        let r = compare(cpu, op)?;
        cpu.vec[0].lo = r.mask();
        if op.c & VEX != 0 {
            cpu.vec[0].hi = V128::ZERO;
        }
        cpu.lazy.put(u64::from(r.eflags))
    }

    fn vtest<K: Kind>(cpu, op) {
        let b = whole(cpu, op)?;
        let a = cpu.vec[usize::from(op.a & 15)];
        let (z, c) = match (op.imm & YMM != 0, K::KIND) {
            (true, PS) => pe::vtestps(a, b),
            (true, _) => pe::vtestpd(a, b),
            (false, PS) => ar::vtestps(a.lo, b.lo),
            (false, _) => ar::vtestpd(a.lo, b.lo),
        };
        cpu.lazy.put(u64::from(c) | u64::from(z) << 6)
    }
    fn permute_imm<K: Kind>(cpu, op) {
        let b = whole(cpu, op)?;
        let imm = op.imm as u8;
        let f = |v, imm| if K::KIND == PS { su::pshufd(v, imm) } else { su::vpermilpd_imm(v, imm) };
        let high = if K::KIND == PS { imm } else { imm >> 2 };
        put(cpu, op, f(b.lo, imm), if op.imm & YMM != 0 { f(b.hi, high) } else { V128::ZERO })
    }

    fn vcvtpd2ps(cpu, op) {
        let b = whole(cpu, op)?;
        let ymm = op.imm & YMM != 0;
        let r = numeric(cpu, |mx| if ymm { cv::vcvtpd2ps(mx, b) } else { cv::cvtpd2ps(mx, b.lo) })?;
        put(cpu, op, r, V128::ZERO)
    }
    fn vcvtpd2dq(cpu, op) {
        let b = whole(cpu, op)?;
        let (ymm, cut) = (op.imm & YMM != 0, op.c != 0);
        let r = numeric(cpu, |mx| if ymm { cv::vcvtpd2dq(mx, b, cut) } else { cv::cvtpd2dq(mx, b.lo, cut) })?;
        put(cpu, op, r, V128::ZERO)
    }

    fn vcvtph2ps(cpu, op) {
        let h = low(cpu, op)?.u16s();
        if op.imm & YMM != 0 {
            let r = numeric(cpu, |mx| cv::f16_to_f32::<8>(mx, h))?;
            let half = |n: usize| V128::from_u32s([r[n], r[n + 1], r[n + 2], r[n + 3]]);
            put(cpu, op, half(0), half(4))
        } else {
            let r = numeric(cpu, |mx| cv::f16_to_f32::<4>(mx, [h[0], h[1], h[2], h[3]]))?;
            put(cpu, op, V128::from_u32s(r), V128::ZERO)
        }
    }
    fn vcvtps2ph_reg(cpu, op) {
        let r = to_half(cpu, op)?;
        put(cpu, op, r, V128::ZERO)
    }
    fn vcvtps2ph_mem(cpu, op) {
        let bytes = bytes(op);
        let at = address(cpu, op, bytes, true)?;
        // A page fault comes before MXCSR changes.
        cpu.check_write(at, bytes)?;
        let r = to_half(cpu, op)?;
        if bytes == 16 { cpu.write128(at, r.to_u128())? } else { cpu.write(at, r.low())? }
    }
}

fn to_half(cpu: &mut Cpu, op: OpPtr) -> Exec<V128> {
    let v = cpu.vec[usize::from(op.b & 15)];
    let imm = op.imm as u8;
    let (a, b) = (v.lo.u32s(), v.hi.u32s());
    if op.imm & YMM != 0 {
        let all = [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]];
        Ok(V128::from_u16s(numeric(cpu, |mx| cv::f32_to_f16::<8>(mx, all, imm))?))
    } else {
        let r = numeric(cpu, |mx| cv::f32_to_f16::<4>(mx, a, imm))?;
        Ok(V128::from_u16s([r[0], r[1], r[2], r[3], 0, 0, 0, 0]))
    }
}

// Forms of a string comparison, in `c`.
const EXPLICIT: u8 = 1;
const WIDE: u8 = 2;
const VEX: u8 = 4;

fn compare(cpu: &mut Cpu, op: OpPtr) -> Exec<string::Match> {
    let b = low(cpu, op)?;
    let a = cpu.vec[usize::from(op.a & 15)].lo;
    let imm = op.imm as u8;
    if op.c & EXPLICIT == 0 {
        return Ok(string::implicit(a, b, imm));
    }
    let length = |r: u64| if op.c & WIDE != 0 { r as i64 } else { i64::from(r as i32) };
    Ok(string::explicit(a, length(cpu.gpr[RAX]), b, length(cpu.gpr[RDX]), imm))
}

fn lower_gather(l: &mut Lower<'_>) -> Option<Handler> {
    let (wide, wide_index) = match l.i.mnemonic() {
        M::Vpgatherdd | M::Vgatherdps => (false, false),
        M::Vpgatherqd | M::Vgatherqps => (false, true),
        M::Vpgatherdq | M::Vgatherdpd => (true, false),
        M::Vpgatherqq | M::Vgatherqpd => (true, true),
        _ => return None,
    };
    let index = l.i.memory_index();
    let (d, m, x) = (l.number(0) & 15, l.number(2) & 15, index.number() as u8 & 15);
    if d == m || d == x || m == x {
        return Some(super::undefined);
    }
    (l.op.a, l.op.b, l.op.c) = (d, m, x);
    let width = |ymm: bool| if ymm { 32 } else { 16 };
    let values = width(l.reg(0).is_ymm()) / if wide { 8 } else { 4 };
    let indices = width(index.is_ymm()) / if wide_index { 8 } else { 4 };
    l.op.imm = std::cmp::min(values, indices);
    Some(match (wide, wide_index) {
        (false, false) => gather::<u32, u32>,
        (false, true) => gather::<u32, u64>,
        (true, false) => gather::<u64, u32>,
        (true, true) => gather::<u64, u64>,
    })
}

/// Operands are filled in by `sse::operands`.
pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    let vex = l.i.encoding() != EncodingKind::Legacy;
    let ymm = (0..l.i.op_count()).any(|n| l.is_reg(n) && l.reg(n).is_ymm());
    let to_mem = l.is_mem(0);
    let handler: Handler = match m {
        M::Pblendvb => blendv::<Bytes>,
        M::Blendvps => blendv::<Ps>,
        M::Blendvpd => blendv::<Pd>,
        M::Vpblendvb | M::Vblendvps | M::Vblendvpd => {
            l.op.imm = l.op.imm & !0xff | u64::from(l.number(3) & 15);
            l.op.c = l.number(1) & 15;
            if l.is_reg(2) {
                l.op.b = l.number(2) & 15;
            }
            by_kind!(
                match m {
                    M::Vblendvps => PS,
                    M::Vblendvpd => PD,
                    _ => BYTES,
                },
                vblendv
            )
        }
        M::Insertps => insertps,
        M::Vinsertps => vinsertps,
        M::Vmaskmovps | M::Vpmaskmovd if to_mem => masked_store::<u32>,
        M::Vmaskmovps | M::Vpmaskmovd => masked_load::<u32>,
        M::Vmaskmovpd | M::Vpmaskmovq if to_mem => masked_store::<u64>,
        M::Vmaskmovpd | M::Vpmaskmovq => masked_load::<u64>,
        M::Maskmovdqu | M::Vmaskmovdqu => maskmovdqu,
        M::Pcmpestri
        | M::Pcmpestri64
        | M::Vpcmpestri
        | M::Vpcmpestri64
        | M::Pcmpestrm
        | M::Pcmpestrm64
        | M::Vpcmpestrm
        | M::Vpcmpestrm64
        | M::Pcmpistri
        | M::Vpcmpistri
        | M::Pcmpistrm
        | M::Vpcmpistrm => {
            // Their memory operand need not be aligned.
            l.op.imm &= !ALIGNMENT;
            let implicit = matches!(m, M::Pcmpistri | M::Vpcmpistri | M::Pcmpistrm | M::Vpcmpistrm);
            let wide = matches!(m, M::Pcmpestri64 | M::Vpcmpestri64 | M::Pcmpestrm64 | M::Vpcmpestrm64);
            l.op.c =
                if implicit { 0 } else { EXPLICIT } | if wide { WIDE } else { 0 } | if vex { VEX } else { 0 };
            match m {
                M::Pcmpestri
                | M::Pcmpestri64
                | M::Vpcmpestri
                | M::Vpcmpestri64
                | M::Pcmpistri
                | M::Vpcmpistri => string_index,
                _ => string_mask,
            }
        }
        M::Vtestps => vtest::<Ps>,
        M::Vtestpd => vtest::<Pd>,
        M::Vpermilps if l.is_imm(2) => permute_imm::<Ps>,
        M::Vpermilpd if l.is_imm(2) => permute_imm::<Pd>,
        M::Vcvtpd2ps => vcvtpd2ps,
        M::Vcvtpd2dq | M::Vcvttpd2dq => {
            l.op.c = u8::from(m == M::Vcvttpd2dq);
            vcvtpd2dq
        }
        M::Vcvtph2ps => vcvtph2ps,
        M::Vcvtps2ph if to_mem => vcvtps2ph_mem,
        M::Vcvtps2ph => vcvtps2ph_reg,
        _ => return lower_gather(l),
    };
    if ymm || l.op.imm >> 8 & 0xff == 32 {
        l.op.imm |= YMM;
    }
    Some(handler)
}
