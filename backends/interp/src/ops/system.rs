//! System instructions: control and debug registers, descriptor tables, MSRs, ports, time, caches, HLT.

use super::operand::{Any, Mem, RegB, Src, offset};
use super::{by_wide, ops};
use crate::cpu::{Cpu, GS, RAX, RCX, RDX, cr0, cr4, efer};
use crate::decode::Lower;
use crate::flags::{CF, ZF};
use crate::op::{Exec, Flow, Handler, OpPtr, leave};
use crate::regs::Int;
use crate::segment::{GP, NP};
use godwit_state::model::{Feature as F, PHYSICAL_ADDRESS_BITS};
use godwit_state::{TableV1, access};
use iced_x86::{Mnemonic as M, OpKind};

impl Cpu {
    /// Writes CR0, with what follows from it.
    pub(crate) fn write_cr0(&mut self, v: u64) -> Exec {
        const KNOWN: u64 = cr0::PE
            | cr0::MP
            | cr0::EM
            | cr0::TS
            | cr0::ET
            | cr0::NE
            | cr0::WP
            | cr0::AM
            | cr0::NW
            | cr0::CD
            | cr0::PG;
        let old = self.sys.cr0;
        let new = v & KNOWN | cr0::ET;
        let pg_without_pe = new & cr0::PG != 0 && new & cr0::PE == 0;
        let nw_without_cd = new & cr0::NW != 0 && new & cr0::CD == 0;
        if v >> 32 != 0 || pg_without_pe || nw_without_cd {
            return Err(self.gp(0));
        }
        if (old ^ new) & cr0::PG != 0 {
            if new & cr0::PG != 0 {
                if self.sys.efer & efer::LME != 0 {
                    let cs_long = self.seg[crate::cpu::CS].access & access::L != 0;
                    if self.sys.cr4 & cr4::PAE == 0 || cs_long {
                        return Err(self.gp(0));
                    }
                    self.sys.efer |= efer::LMA;
                } else if self.sys.cr4 & cr4::PAE != 0 && !self.load_pdptes(self.sys.cr3) {
                    return Err(self.gp(0));
                }
            } else {
                if self.long_code() || self.sys.cr4 & cr4::PCIDE != 0 {
                    return Err(self.gp(0));
                }
                self.sys.efer &= !efer::LMA;
                self.sys.pdpte = [0; 4];
            }
        }
        self.sys.cr0 = new;
        if (old ^ new) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        Ok(())
    }

    fn write_cr3(&mut self, v: u64) -> Exec {
        let (mut v, mut keep) = (v, false);
        if self.long_mode() {
            if self.sys.cr4 & cr4::PCIDE != 0 {
                keep = v >> 63 != 0;
                v &= !(1 << 63);
            }
            if v >> PHYSICAL_ADDRESS_BITS != 0 {
                return Err(self.gp(0));
            }
        } else if self.sys.cr0 & cr0::PG != 0 && self.sys.cr4 & cr4::PAE != 0 && !self.load_pdptes(v) {
            return Err(self.gp(0));
        }
        self.sys.cr3 = v;
        self.switch_space(keep);
        Ok(())
    }

    fn write_cr4(&mut self, v: u64) -> Exec {
        let mut known = cr4::VME
            | cr4::PVI
            | cr4::TSD
            | cr4::DE
            | cr4::PSE
            | cr4::PAE
            | cr4::MCE
            | cr4::PGE
            | cr4::PCE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT;
        for (feature, bit) in [
            (F::UMIP, cr4::UMIP),
            (F::FSGSBASE, cr4::FSGSBASE),
            (F::PCID, cr4::PCIDE),
            (F::XSAVE, cr4::OSXSAVE),
            (F::SMEP, cr4::SMEP),
            (F::SMAP, cr4::SMAP),
        ] {
            if self.features.has(feature) {
                known |= bit;
            }
        }
        let old = self.sys.cr4;
        let pcid_on = v & !old & cr4::PCIDE != 0;
        let bad = v & !known != 0
            || (self.long_mode() && v & cr4::PAE == 0)
            || (pcid_on && (!self.long_mode() || self.sys.cr3 & 0xfff != 0));
        if bad {
            return Err(self.gp(0));
        }
        let paging = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;
        if self.sys.cr0 & cr0::PG != 0
            && !self.long_mode()
            && v & cr4::PAE != 0
            && (old ^ v) & (cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP) != 0
            && !self.load_pdptes(self.sys.cr3)
        {
            return Err(self.gp(0));
        }
        self.sys.cr4 = v;
        if (old ^ v) & paging != 0 {
            self.flush_tlb();
        }
        self.update_mode();
        Ok(())
    }

    /// Raises #GP unless the port may be used (SDM vol. 1, 19.5).
    pub(crate) fn check_port(&mut self, port: u16, bytes: u16) -> Exec {
        if !self.protected() || (self.cpl <= self.iopl() && !self.v86()) {
            return Ok(());
        }
        let tr = self.sys.tr;
        if tr.access & 8 == 0 || tr.limit < 0x67 {
            return Err(self.gp(0));
        }
        let map: u16 = self.system_read(tr.base.wrapping_add(0x66))?;
        let at = u64::from(map) + u64::from(port / 8);
        if at + 1 > u64::from(tr.limit) {
            return Err(self.gp(0));
        }
        let bits: u16 = self.system_read(tr.base.wrapping_add(at))?;
        if bits >> (port % 8) & ((1 << bytes) - 1) != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    pub(crate) fn port_read(&mut self, port: u16, bytes: u32) -> u64 {
        self.counters.pio += 1;
        self.port_breakpoint(port, bytes);
        self.host.pio_read(self.id, port, bytes)
    }

    pub(crate) fn port_write(&mut self, port: u16, bytes: u32, v: u64) {
        self.counters.pio += 1;
        self.port_breakpoint(port, bytes);
        self.host.pio_write(self.id, port, bytes, v);
    }

    fn umip(&mut self) -> Exec {
        if self.cpl != 0 && self.sys.cr4 & cr4::UMIP != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// True if DR4 and DR5 are not DR6 and DR7.
    fn debug_extensions(&self) -> bool {
        self.sys.cr4 & cr4::DE != 0
    }
}

fn hlt(cpu: &mut Cpu, op: OpPtr) -> Flow {
    leave!(cpu, op, {
        cpu.privileged()?;
        cpu.rip = op.next_rip(cpu);
        cpu.budget -= i64::from(op.n);
        cpu.check_events = true;
        Ok(Flow::Halt)
    })
}

fn edx_eax(cpu: &Cpu) -> u64 {
    cpu.gpr[RDX] << 32 | cpu.gpr[RAX] & 0xffff_ffff
}

fn set_edx_eax(cpu: &mut Cpu, v: u64) {
    cpu.gpr[RAX] = v & 0xffff_ffff;
    cpu.gpr[RDX] = v >> 32;
}

/// Stores a table register: 16-bit limit, then a base of 4 or 8 bytes.
fn store_table(cpu: &mut Cpu, op: OpPtr, t: TableV1) -> Exec {
    cpu.umip()?;
    let wide = cpu.long_code();
    let bytes = if wide { 10 } else { 6 };
    let at = Any::at(cpu, op, bytes, true)?;
    let mut b = [0; 10];
    b[..2].copy_from_slice(&t.limit.to_le_bytes());
    b[2..].copy_from_slice(&t.base.to_le_bytes());
    cpu.write_bytes(at, &b[..bytes as usize])
}

fn load_table(cpu: &mut Cpu, op: OpPtr) -> Exec<TableV1> {
    cpu.privileged()?;
    let wide = cpu.long_code();
    let bytes = if wide { 10 } else { 6 };
    let at = Any::at(cpu, op, bytes, false)?;
    let mut b = [0; 10];
    cpu.read_bytes(at, &mut b[..bytes as usize])?;
    let limit = u16::from_le_bytes([b[0], b[1]]);
    let mut base = [0; 8];
    base.copy_from_slice(&b[2..]);
    let mut base = u64::from_le_bytes(base);
    if op.c == 2 {
        base &= 0xff_ffff;
    }
    if base.wrapping_add(1 << 47) >> 48 != 0 {
        return Err(cpu.gp(0));
    }
    Ok(TableV1 { base, limit })
}

/// LAR, LSL, VERR, VERW: the descriptor, if the selector may be looked at.
fn look(cpu: &mut Cpu, selector: u16, system: &[u32]) -> Option<crate::segment::Descriptor> {
    if selector & 0xfffc == 0 {
        return None;
    }
    let d = cpu.descriptor(selector, GP).ok()?;
    if d.is_segment() {
        let outer = cpu.cpl.max((selector & 3) as u8);
        (d.conforming() || outer <= d.dpl()).then_some(d)
    } else {
        let outer = cpu.cpl.max((selector & 3) as u8);
        let long = cpu.long_mode();
        let legal =
            system.contains(&d.system_type()) && (!long || matches!(d.system_type(), 2 | 9 | 11 | 12));
        (legal && outer <= d.dpl()).then_some(d)
    }
}

ops! {
    direct fn nop(cpu, op) { let _ = (&cpu, op); }

    pause fn nop_pause(cpu, op) { let _ = (&cpu, op); }

    fn cpuid(cpu, _op) {
        crate::mmu::ram::fence();
        cpu.cpuid()
    }

    fn rdtsc(cpu, _op) {
        if cpu.sys.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
            return Err(cpu.gp(0));
        }
        let v = cpu.tsc();
        set_edx_eax(cpu, v)
    }

    fn rdtscp(cpu, _op) {
        if cpu.sys.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
            return Err(cpu.gp(0));
        }
        let v = cpu.tsc();
        set_edx_eax(cpu, v);
        cpu.gpr[RCX] = cpu.msrs.tsc_aux & 0xffff_ffff
    }

    fn rdpid(cpu, op) { u64::set(cpu, op.a, cpu.msrs.tsc_aux) }

    fn rdmsr(cpu, _op) {
        cpu.privileged()?;
        let v = cpu.read_msr(cpu.gpr[RCX] as u32)?;
        set_edx_eax(cpu, v)
    }

    pause fn wrmsr(cpu, _op) {
        cpu.privileged()?;
        let v = edx_eax(cpu);
        cpu.write_msr(cpu.gpr[RCX] as u32, v)?;
        cpu.update_mode()
    }

    fn rdpmc(cpu, _op) { cpu.privileged()?; Err::<(), _>(cpu.gp(0))? }

    pause fn port_in<T: Int>(cpu, op) {
        let number = if op.c != 0 { cpu.gpr[RDX] as u16 } else { op.imm as u16 & 0xff };
        cpu.check_port(number, T::BYTES as u16)?;
        // The exit may take long: show where we are.
        let v = cpu.port_read(number, T::BYTES as u32);
        let acc = if T::BITS == 8 { crate::regs::byte_register(0, false) } else { 0 };
        T::set(cpu, acc, T::new(v))
    }

    pause fn port_out<T: Int>(cpu, op) {
        let number = if op.c != 0 { cpu.gpr[RDX] as u16 } else { op.imm as u16 & 0xff };
        cpu.check_port(number, T::BYTES as u16)?;
        let v = cpu.gpr[RAX] & T::MASK;
        cpu.port_write(number, T::BYTES as u32, v)
    }

    fn from_control(cpu, op) {
        cpu.privileged()?;
        let v = match op.b {
            0 => cpu.sys.cr0,
            2 => cpu.sys.cr2,
            3 => cpu.sys.cr3,
            4 => cpu.sys.cr4,
            8 => u64::from(cpu.lapic.r.tpr >> 4),
            _ => return Err(cpu.ud()),
        };
        if cpu.long_code() { u64::set(cpu, op.a, v) } else { u32::set(cpu, op.a, v as u32) }
    }

    pause fn to_control(cpu, op) {
        cpu.privileged()?;
        let v = if cpu.long_code() { u64::get(cpu, op.b) } else { u64::from(u32::get(cpu, op.b)) };
        match op.a {
            0 => cpu.write_cr0(v)?,
            2 => cpu.sys.cr2 = v,
            3 => cpu.write_cr3(v)?,
            4 => cpu.write_cr4(v)?,
            8 => {
                if v & !15 != 0 {
                    return Err(cpu.gp(0));
                }
                cpu.lapic.r.tpr = (v as u8) << 4;
                cpu.look_for_interrupts();
            }
            _ => return Err(cpu.ud()),
        }
    }

    fn from_debug(cpu, op) {
        cpu.privileged()?;
        let n = op.b;
        if matches!(n, 4 | 5) && cpu.debug_extensions() || n > 7 {
            return Err(cpu.ud());
        }
        if cpu.sys.dr7 & 1 << 13 != 0 {
            cpu.raise(1, None);
            cpu.exception.payload = 1 << 13;
            return Err(crate::op::Abort);
        }
        let v = match n {
            0..=3 => cpu.sys.dr[usize::from(n)],
            4 | 6 => cpu.sys.dr6,
            _ => cpu.sys.dr7,
        };
        if cpu.long_code() { u64::set(cpu, op.a, v) } else { u32::set(cpu, op.a, v as u32) }
    }

    pause fn to_debug(cpu, op) {
        cpu.privileged()?;
        let n = op.a;
        if matches!(n, 4 | 5) && cpu.debug_extensions() || n > 7 {
            return Err(cpu.ud());
        }
        if cpu.sys.dr7 & 1 << 13 != 0 {
            cpu.raise(1, None);
            cpu.exception.payload = 1 << 13;
            return Err(crate::op::Abort);
        }
        let v = if cpu.long_code() { u64::get(cpu, op.b) } else { u64::from(u32::get(cpu, op.b)) };
        if n >= 4 && v >> 32 != 0 {
            return Err(cpu.gp(0));
        }
        match n {
            0..=3 => cpu.sys.dr[usize::from(n)] = v,
            4 | 6 => cpu.sys.dr6 = v & 0xe00f | 0xffff_0ff0,
            _ => {
                cpu.sys.dr7 = v & 0xffff_2bff | 0x400;
                cpu.update_mode();
                cpu.check_events = true;
            }
        }
    }

    pause fn clts(cpu, _op) {
        cpu.privileged()?;
        cpu.sys.cr0 &= !cr0::TS;
        cpu.update_mode()
    }

    fn smsw_reg<T: Int>(cpu, op) {
        cpu.umip()?;
        let v = cpu.sys.cr0;
        T::set(cpu, op.a, T::new(v))
    }

    fn smsw_mem(cpu, op) {
        cpu.umip()?;
        let at = Any::at(cpu, op, 2, true)?;
        cpu.write(at, cpu.sys.cr0 as u16)?
    }

    pause fn lmsw<S: Src>(cpu, op) {
        cpu.privileged()?;
        let v = u64::from(S::load::<u16>(cpu, op)?) & 15;
        // PE can only be set.
        let keep = cpu.sys.cr0 & !0xe;
        cpu.write_cr0(keep | v)?
    }

    pause fn lgdt(cpu, op) { cpu.sys.gdtr = load_table(cpu, op)? }
    pause fn lidt(cpu, op) { cpu.sys.idtr = load_table(cpu, op)? }
    fn sgdt(cpu, op) { let t = cpu.sys.gdtr; store_table(cpu, op, t)? }
    fn sidt(cpu, op) { let t = cpu.sys.idtr; store_table(cpu, op, t)? }

    fn store_selector_reg<T: Int>(cpu, op) {
        cpu.umip()?;
        let v = if op.c == 0 { cpu.sys.ldtr.selector } else { cpu.sys.tr.selector };
        T::set(cpu, op.a, T::new(u64::from(v)))
    }

    fn store_selector_mem(cpu, op) {
        cpu.umip()?;
        let v = if op.c == 0 { cpu.sys.ldtr.selector } else { cpu.sys.tr.selector };
        let at = Any::at(cpu, op, 2, true)?;
        cpu.write(at, v)?
    }

    pause fn lldt<S: Src>(cpu, op) {
        cpu.privileged()?;
        let selector = S::load::<u16>(cpu, op)?;
        if selector & 0xfffc == 0 {
            cpu.sys.ldtr.selector = selector;
            cpu.sys.ldtr.access = access::UNUSABLE;
        } else {
            let code = u32::from(selector & 0xfffc);
            if selector & 4 != 0 {
                return Err(cpu.gp(code));
            }
            let d = cpu.descriptor(selector, GP)?;
            if d.is_segment() || d.system_type() != 2 {
                return Err(cpu.gp(code));
            }
            if !d.present() {
                return Err(cpu.raise(NP, Some(code)));
            }
            let base = cpu.system_base(&d, selector)?;
            cpu.sys.ldtr = d.segment(selector);
            cpu.sys.ldtr.base = base;
        }
    }

    pause fn ltr<S: Src>(cpu, op) {
        cpu.privileged()?;
        let selector = S::load::<u16>(cpu, op)?;
        let code = u32::from(selector & 0xfffc);
        if code == 0 || selector & 4 != 0 {
            return Err(cpu.gp(code));
        }
        let mut d = cpu.descriptor(selector, GP)?;
        let available = d.system_type() == 9 || (d.system_type() == 1 && !cpu.long_mode());
        if d.is_segment() || !available {
            return Err(cpu.gp(code));
        }
        if !d.present() {
            return Err(cpu.raise(NP, Some(code)));
        }
        let base = cpu.system_base(&d, selector)?;
        // Busy from now on.
        d.high |= 2 << 8;
        cpu.system_write::<u32>(d.at.wrapping_add(4), d.high)?;
        cpu.sys.tr = d.segment(selector);
        cpu.sys.tr.base = base
    }

    fn lar<T: Int, S: Src>(cpu, op) {
        let selector = S::load::<u16>(cpu, op)?;
        match look(cpu, selector, &[1, 2, 3, 4, 5, 9, 11, 12]) {
            Some(d) => {
                T::set(cpu, op.a, T::new(u64::from(d.high & 0x00f0_ff00)));
                cpu.lazy.change(ZF, ZF)
            }
            None => cpu.lazy.change(ZF, 0),
        }
    }

    fn lsl<T: Int, S: Src>(cpu, op) {
        let selector = S::load::<u16>(cpu, op)?;
        match look(cpu, selector, &[1, 2, 3, 9, 11]).filter(|d| d.is_segment() || d.system_type() != 12) {
            Some(d) => {
                T::set(cpu, op.a, T::new(u64::from(d.limit())));
                cpu.lazy.change(ZF, ZF)
            }
            None => cpu.lazy.change(ZF, 0),
        }
    }

    fn verr<S: Src>(cpu, op) {
        let selector = S::load::<u16>(cpu, op)?;
        let ok = look(cpu, selector, &[])
            .is_some_and(|d| d.is_segment() && (!d.is_code() || d.access() & access::WRITABLE != 0));
        cpu.lazy.change(ZF, if ok { ZF } else { 0 })
    }

    fn verw<S: Src>(cpu, op) {
        let selector = S::load::<u16>(cpu, op)?;
        let ok = look(cpu, selector, &[])
            .is_some_and(|d| d.is_segment() && !d.is_code() && d.access() & access::WRITABLE != 0);
        cpu.lazy.change(ZF, if ok { ZF } else { 0 })
    }

    pause fn invlpg(cpu, op) {
        cpu.privileged()?;
        let at = offset(cpu, op);
        let at = if cpu.long_code() && op.seg < 4 { at } else { at.wrapping_add(cpu.seg[usize::from(op.seg)].base) };
        cpu.flush_page(at)
    }

    pause fn invpcid(cpu, op) {
        cpu.privileged()?;
        let kind = if cpu.long_code() { u64::get(cpu, op.a) } else { u64::from(u32::get(cpu, op.a)) };
        let at = Any::at(cpu, op, 16, false)?;
        let d = cpu.read128(at)?;
        let (pcid, va) = (d as u64, (d >> 64) as u64);
        let foreign = pcid != 0 && cpu.sys.cr4 & cr4::PCIDE == 0;
        let bad = match kind {
            0 => foreign || va.wrapping_add(1 << 47) >> 48 != 0,
            1 => foreign,
            _ => kind > 3,
        };
        if bad || pcid >> 12 != 0 {
            return Err(cpu.gp(0));
        }
        match kind {
            0 => cpu.flush_page_of(pcid, va),
            1 => cpu.flush_pcid(pcid),
            2 => cpu.flush_tlb(),
            _ => cpu.flush_local(),
        }
    }

    pause fn wbinvd(cpu, _op) { cpu.privileged()? }

    fn swapgs(cpu, _op) {
        cpu.privileged()?;
        std::mem::swap(&mut cpu.seg[GS].base, &mut cpu.msrs.kernel_gs_base)
    }

    fn read_base<T: Int>(cpu, op) {
        if cpu.sys.cr4 & cr4::FSGSBASE == 0 {
            return Err(cpu.ud());
        }
        let v = cpu.seg[usize::from(op.c)].base;
        T::set(cpu, op.a, T::new(v))
    }

    fn write_base<T: Int>(cpu, op) {
        if cpu.sys.cr4 & cr4::FSGSBASE == 0 {
            return Err(cpu.ud());
        }
        let v = T::get(cpu, op.a).z();
        if v.wrapping_add(1 << 47) >> 48 != 0 {
            return Err(cpu.gp(0));
        }
        cpu.seg[usize::from(op.c)].base = v
    }

    fn random<T: Int>(cpu, op) {
        let v = cpu.random.next();
        T::set(cpu, op.a, T::new(v));
        cpu.lazy.put(CF)
    }
}

/// MOV to and from control and debug registers.
pub(super) fn lower_control(l: &mut Lower<'_>) -> Option<Handler> {
    let (r0, r1) = (l.reg(0), l.reg(1));
    l.op.a = l.number(0);
    l.op.b = l.number(1);
    Some(if r0.is_cr() {
        to_control
    } else if r1.is_cr() {
        from_control
    } else if r0.is_dr() {
        to_debug
    } else if r1.is_dr() {
        from_debug
    } else {
        return None;
    })
}

fn with_selector(l: &mut Lower<'_>, n: u32) -> bool {
    if l.is_reg(n) {
        l.op.b = l.reg(n).full_register().number() as u8;
        true
    } else {
        false
    }
}

pub(super) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    let w = if l.i.op_count() > 0 { l.width(0) } else { 0 };
    macro_rules! selector {
        ($h:ident) => {
            if with_selector(l, 0) { $h::<RegB> } else { $h::<Mem<Any>> }
        };
    }
    let only_protected =
        matches!(m, M::Lldt | M::Ltr | M::Sldt | M::Str | M::Lar | M::Lsl | M::Verr | M::Verw);
    if only_protected && (!l.protected() || l.mode & crate::cpu::mode::V86 != 0) {
        return Some(super::undefined);
    }
    Some(match m {
        M::Nop
        | M::Endbr32
        | M::Endbr64
        | M::Prefetch
        | M::Prefetchw
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Rdsspd
        | M::Rdsspq
        | M::Reservednop => nop,
        M::Lfence | M::Sfence => nop,
        M::Mfence => mfence,
        M::Clflush | M::Clflushopt => clflush,
        M::Pause => nop_pause,
        M::Cpuid => cpuid,
        M::Rdtsc => rdtsc,
        M::Rdtscp => rdtscp,
        M::Rdpid => {
            l.op.a = l.number(0);
            rdpid
        }
        M::Rdmsr => rdmsr,
        M::Wrmsr => wrmsr,
        M::Rdpmc => rdpmc,
        M::Hlt => hlt,
        M::In | M::Out => {
            let (value, port) = if m == M::In { (0, 1) } else { (1, 0) };
            if l.kind(port) == OpKind::Immediate8 {
                l.op.imm = l.i.immediate(port);
            } else {
                l.op.c = 1;
            }
            match (m, l.width(value)) {
                (M::In, 8) => port_in::<u8>,
                (M::In, 16) => port_in::<u16>,
                (M::In, _) => port_in::<u32>,
                (_, 8) => port_out::<u8>,
                (_, 16) => port_out::<u16>,
                _ => port_out::<u32>,
            }
        }
        M::Clts => clts,
        M::Smsw if l.is_reg(0) => {
            l.op.a = l.number(0);
            by_wide!(w, T => smsw_reg::<T>)
        }
        M::Smsw => smsw_mem,
        M::Lmsw => selector!(lmsw),
        M::Lgdt | M::Lidt => {
            use iced_x86::Code as C;
            l.op.c = if matches!(l.i.code(), C::Lgdt_m1632_16 | C::Lidt_m1632_16) { 2 } else { 8 };
            if m == M::Lgdt { lgdt } else { lidt }
        }
        M::Sgdt => sgdt,
        M::Sidt => sidt,
        M::Sldt | M::Str => {
            l.op.c = u8::from(m == M::Str);
            if l.is_reg(0) {
                l.op.a = l.number(0);
                by_wide!(w, T => store_selector_reg::<T>)
            } else {
                store_selector_mem
            }
        }
        M::Lldt => selector!(lldt),
        M::Ltr => selector!(ltr),
        M::Verr => selector!(verr),
        M::Verw => selector!(verw),
        M::Lar | M::Lsl => {
            l.op.a = l.number(0);
            if with_selector(l, 1) {
                if m == M::Lar { by_wide!(w, T => lar::<T, RegB>) } else { by_wide!(w, T => lsl::<T, RegB>) }
            } else if m == M::Lar {
                by_wide!(w, T => lar::<T, Mem<Any>>)
            } else {
                by_wide!(w, T => lsl::<T, Mem<Any>>)
            }
        }
        M::Invlpg => invlpg,
        M::Invpcid => {
            l.op.a = l.number(0);
            invpcid
        }
        M::Wbinvd | M::Invd => wbinvd,
        M::Swapgs => swapgs,
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => {
            l.op.a = l.number(0);
            l.op.c = if matches!(m, M::Rdfsbase | M::Wrfsbase) { 4 } else { 5 };
            if matches!(m, M::Rdfsbase | M::Rdgsbase) {
                by_wide!(w, T => read_base::<T>)
            } else {
                by_wide!(w, T => write_base::<T>)
            }
        }
        M::Rdrand | M::Rdseed => {
            l.op.a = l.number(0);
            by_wide!(w, T => random::<T>)
        }
        _ => return None,
    })
}

ops! {
    fn mfence(cpu, op) {
        let _ = (&cpu, op);
        crate::mmu::ram::fence()
    }

    /// There are no caches, but the address is checked as a read.
    fn clflush(cpu, op) {
        let at = Any::at(cpu, op, 1, false)?;
        cpu.read::<u8>(at)?;
    }
}
