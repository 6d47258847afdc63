//! Instructions on single flags.

use super::ops;
use crate::cpu::{Cpu, RAX, cr4, mode};
use crate::decode::Lower;
use crate::flags::{AC, AF, CF, DF, IF, PF, SF, VIF, VIP, ZF};
use crate::op::{Flow, Handler, OpPtr, next};
use crate::regs::{Int, byte_register};
use iced_x86::Mnemonic as M;

ops! {
    direct fn clc(cpu, op) { cpu.lazy.set_carry(false) }
    direct fn stc(cpu, op) { cpu.lazy.set_carry(true) }
    direct fn cmc(cpu, op) { let cf = cpu.lazy.cf(); cpu.lazy.set_carry(!cf) }
    direct fn cld(cpu, op) { cpu.flags &= !DF }
    direct fn std(cpu, op) { cpu.flags |= DF }

    direct fn lahf(cpu, op) {
        let v = cpu.lazy.bits() & (SF | ZF | AF | PF | CF) | 2;
        u8::set(cpu, byte_register(0, true), v as u8)
    }

    direct fn sahf(cpu, op) {
        let which = SF | ZF | AF | PF | CF;
        let v = cpu.gpr[RAX] >> 8;
        cpu.lazy.change(which, v)
    }

    fn salc(cpu, _op) {
        let v = if cpu.lazy.cf() { 0xff } else { 0 };
        u8::set(cpu, byte_register(0, false), v)
    }

    fn cli(cpu, _op) {
        if !cpu.protected() || cpu.iopl() >= cpu.cpl {
            cpu.flags &= !IF;
        } else if cpu.v86() && cpu.sys.cr4 & cr4::VME != 0 || !cpu.v86() && cpu.cpl == 3 && cpu.sys.cr4 & cr4::PVI != 0 {
            cpu.flags &= !VIF;
        } else {
            return Err(cpu.gp(0));
        }
    }

    /// STI that has something waiting for it, or does not set IF.
    pause fn sti_slow(cpu, _op) {
        if !cpu.protected() || cpu.iopl() >= cpu.cpl {
            if cpu.flags & IF == 0 {
                cpu.flags |= IF;
                cpu.shadow_sti = true;
                cpu.check_events = true;
            }
        } else if cpu.v86() && cpu.sys.cr4 & cr4::VME != 0 || !cpu.v86() && cpu.cpl == 3 && cpu.sys.cr4 & cr4::PVI != 0 {
            if cpu.flags & VIP != 0 {
                return Err(cpu.gp(0));
            }
            cpu.flags |= VIF;
        } else {
            return Err(cpu.gp(0));
        }
    }

    fn clac(cpu, _op) {
        if cpu.cpl != 0 {
            return Err(cpu.ud());
        }
        cpu.flags &= !AC;
        cpu.update_mode()
    }

    fn stac(cpu, _op) {
        if cpu.cpl != 0 {
            return Err(cpu.ud());
        }
        cpu.flags |= AC;
        cpu.update_mode()
    }
}

/// Where nothing waits, the next instruction simply follows, and with it the shadow is over. The budget must last
/// beyond it: nothing is delivered inside a round.
fn sti(cpu: &mut Cpu, op: OpPtr) -> Flow {
    let allowed = !cpu.protected() || cpu.iopl() >= cpu.cpl;
    if allowed && cpu.budget > 64 && cpu.tag & mode::STEP == 0 && !cpu.check_events && !cpu.interrupt_waits()
    {
        cpu.flags |= IF;
        return next(cpu, op);
    }
    sti_slow(cpu, op)
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    use godwit_state::model::Feature;
    Some(match l.i.mnemonic() {
        M::Clc => clc,
        M::Stc => stc,
        M::Cmc => cmc,
        M::Cld => cld,
        M::Std => std,
        M::Lahf | M::Sahf if l.bits == 64 && !l.features.has(Feature::LAHF) => super::undefined,
        M::Lahf => lahf,
        M::Sahf => sahf,
        M::Salc => salc,
        M::Cli => cli,
        M::Sti => sti,
        M::Clac => clac,
        M::Stac => stac,
        _ => return None,
    })
}
