//! What is not compared: status flags that the manuals leave undefined, followed through a sequence, and the last bits
//! of approximations.

use super::CODE;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic as M, OpKind, Register, RflagsBits,
};

/// Status flags in RFLAGS' own bits.
fn bits(set: u32) -> u64 {
    [
        (RflagsBits::OF, 11),
        (RflagsBits::SF, 7),
        (RflagsBits::ZF, 6),
        (RflagsBits::AF, 4),
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
    ]
    .into_iter()
    .filter(|(bit, _)| set & bit != 0)
    .fold(0, |all, (_, shift)| all | 1 << shift)
}

const NOT_ZF: u32 = RflagsBits::OF | RflagsBits::SF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// Flags that an instruction leaves undefined (SDM vol. 1, appendix A; APM vol. 3, appendix E).
pub fn undefined(i: &Instruction) -> u64 {
    match i.mnemonic() {
        // OF after a count other than 1, AF always, CF beyond the operand's width: by count, so never relied on.
        M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd => {
            bits(RflagsBits::OF | RflagsBits::AF | RflagsBits::CF)
        }
        // OF after a count other than 1.
        M::Rol | M::Ror | M::Rcl | M::Rcr => bits(RflagsBits::OF),
        // Every flag but ZF.
        M::Bsf | M::Bsr => bits(NOT_ZF),
        _ => bits(i.rflags_undefined()),
    }
}

/// Flags undefined after `i` if `before` were undefined before it.
pub fn undefined_after(before: u64, i: &Instruction) -> u64 {
    // A count of nothing leaves the flags.
    let keeps = matches!(
        i.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    ) || i.has_rep_prefix()
        || i.has_repne_prefix();
    let defined = if keeps { 0 } else { bits(i.rflags_written() | i.rflags_cleared() | i.rflags_set()) };
    before & !defined | undefined(i)
}

/// True if an instruction's outcome depends on one of these flags.
pub fn reads(i: &Instruction, flags: u64) -> bool {
    bits(i.rflags_read()) & flags != 0
        || flags != 0 && matches!(i.mnemonic(), M::Pushf | M::Pushfd | M::Pushfq | M::Lahf)
}

/// Where an instruction may lead besides the next one.
pub fn target(i: &Instruction) -> Option<u64> {
    if i.op_count() > 0 && matches!(i.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32) {
        Some(i.near_branch_target())
    } else if i.op_count() > 0 && i.op0_kind() == OpKind::FarBranch32 {
        Some(i.far_branch32().into())
    } else if i.code() == Code::Mov_r32_imm32 && (CODE..CODE + 0x1000).contains(&i.immediate32().into()) {
        // As LEA below, in 32-bit code.
        Some(i.immediate32().into())
    } else if i.mnemonic() == M::Lea && i.memory_base() == Register::RIP {
        // What a branch through a register or the stack goes to.
        Some(i.ip_rel_memory_address())
    } else {
        None
    }
}

/// Flags undefined at the end of `code`, and those undefined anywhere in it.
pub fn flags(code: &[u8], bits: u32) -> (u64, u64) {
    let mut decoder = Decoder::with_ip(bits, code, CODE, DecoderOptions::NONE);
    let (mut now, mut ever) = (0, 0);
    let mut joins: Vec<(u64, u64)> = Vec::new();
    while decoder.can_decode() {
        let i = decoder.decode();
        joins.iter().filter(|(at, _)| *at == i.ip()).for_each(|(_, mask)| now |= mask);
        now = undefined_after(now, &i);
        ever |= now;
        if let Some(to) = target(&i) {
            joins.push((to, now));
        }
        debug_assert!(i.flow_control() != FlowControl::XbeginXabortXend);
    }
    let end = CODE + code.len() as u64;
    joins.iter().filter(|(at, _)| *at == end).for_each(|(_, mask)| now |= mask);
    (now, ever)
}

/// How far results may lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tolerance {
    /// Not at all.
    None,
    /// ST0 and ST1 by one unit of the last place, C1 (which says how it was rounded) not at all. The manual promises
    /// an error below one unit (SDM vol. 1, 8.3.10; APM vol. 1, 6.4.5.1), and no processor says which side.
    Ulp,
    /// Vector elements by the relative error of 1.5 * 2^-12 that either side may have (SDM vol. 2, RCPPS).
    Approximation,
}

/// The tolerance for a sequence.
pub fn tolerance(last: &Instruction) -> Tolerance {
    match last.mnemonic() {
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::Fpatan | M::F2xm1 | M::Fyl2x | M::Fyl2xp1 => {
            Tolerance::Ulp
        }
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss => Tolerance::Approximation,
        M::Vrcpps | M::Vrcpss | M::Vrsqrtps | M::Vrsqrtss => Tolerance::Approximation,
        _ => Tolerance::None,
    }
}

/// True if two x87 values are one unit of the last place apart, or less.
pub fn close(a: (u16, u64), b: (u16, u64)) -> bool {
    if a == b {
        return true;
    }
    let order = |v: (u16, u64)| {
        let magnitude = i128::from(v.0 & 0x7fff) << 63 | i128::from(v.1 & !(1 << 63));
        if v.0 >> 15 != 0 { -magnitude } else { magnitude }
    };
    // Infinities and NaNs are exact.
    a.0 & 0x7fff != 0x7fff && b.0 & 0x7fff != 0x7fff && (order(a) - order(b)).abs() <= 1
}

/// True if four or eight singles in two words are as close as approximations must be.
pub fn close_singles(a: u64, b: u64) -> bool {
    [0, 32].into_iter().all(|shift| {
        let (x, y) = ((a >> shift) as u32, (b >> shift) as u32);
        let (f, g) = (f64::from(f32::from_bits(x)), f64::from(f32::from_bits(y)));
        x == y || f.is_finite() && g.is_finite() && (f - g).abs() <= 3.1 / 4096.0 * f.abs().max(g.abs())
    })
}
