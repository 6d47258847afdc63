//! Descriptors: reading them, checking them, loading segment registers (SDM vol. 3A, chapters 3 and 5).

use crate::cpu::{CS, Cpu, SS};
use crate::op::Exec;
use godwit_state::{SegmentV1, access};

/// Vectors of the exceptions that segment loads raise.
pub(crate) const NP: u8 = 11;
pub(crate) const STACK: u8 = 12;
pub(crate) const GP: u8 = 13;

/// A descriptor as it lies in a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub low: u32,
    pub high: u32,
    /// Linear address of it.
    pub at: u64,
}

impl Descriptor {
    pub(crate) fn access(&self) -> u32 {
        self.high >> 8 & 0xf0ff
    }

    pub(crate) fn base(&self) -> u64 {
        u64::from(self.low >> 16 | (self.high & 0xff) << 16 | self.high & 0xff00_0000)
    }

    pub(crate) fn limit(&self) -> u32 {
        let raw = self.low & 0xffff | self.high & 0xf_0000;
        if self.access() & access::G != 0 { raw << 12 | 0xfff } else { raw }
    }

    pub(crate) fn dpl(&self) -> u8 {
        (self.access() >> access::DPL_SHIFT & 3) as u8
    }

    pub(crate) fn present(&self) -> bool {
        self.access() & access::PRESENT != 0
    }

    /// Code or data, not a system descriptor.
    pub(crate) fn is_segment(&self) -> bool {
        self.access() & access::S != 0
    }

    pub(crate) fn is_code(&self) -> bool {
        self.is_segment() && self.access() & access::CODE != 0
    }

    pub(crate) fn conforming(&self) -> bool {
        self.is_code() && self.access() & access::EXPAND_DOWN != 0
    }

    /// Type of a system descriptor.
    pub(crate) fn system_type(&self) -> u32 {
        self.access() & access::TYPE
    }

    pub(crate) fn segment(&self, selector: u16) -> SegmentV1 {
        SegmentV1 { selector, base: self.base(), limit: self.limit(), access: self.access() }
    }
}

/// What a null selector leaves in a data segment register.
fn null(selector: u16, old: SegmentV1, dpl: u8) -> SegmentV1 {
    SegmentV1 {
        selector,
        base: old.base,
        limit: old.limit,
        access: access::UNUSABLE | u32::from(dpl) << access::DPL_SHIFT,
    }
}

impl Cpu {
    /// Reads the descriptor a selector names; `vector` if it is outside of its table.
    pub(crate) fn descriptor(&mut self, selector: u16, vector: u8) -> Exec<Descriptor> {
        let code = u32::from(selector & 0xfffc);
        let (base, limit) = if selector & 4 != 0 {
            if self.sys.ldtr.access & access::UNUSABLE != 0 {
                return Err(self.raise(vector, Some(code)));
            }
            (self.sys.ldtr.base, self.sys.ldtr.limit)
        } else {
            (self.sys.gdtr.base, u32::from(self.sys.gdtr.limit))
        };
        if u32::from(selector | 7) > limit {
            return Err(self.raise(vector, Some(code)));
        }
        let at = base.wrapping_add(u64::from(selector & 0xfff8));
        let v: u64 = self.system_read(at)?;
        Ok(Descriptor { low: v as u32, high: (v >> 32) as u32, at })
    }

    /// Base address of a system descriptor, which has 16 bytes in long mode.
    pub(crate) fn system_base(&mut self, d: &Descriptor, selector: u16) -> Exec<u64> {
        Ok(d.base() | u64::from(self.upper(d, selector)?) << 32)
    }

    /// Bits 32 to 63 of a system descriptor's base or a gate's offset in long mode; what stands where another descriptor
    /// has its type must be clear (SDM vol. 3A, 5.8.3.1; APM vol. 2, 4.8.3).
    pub(crate) fn upper(&mut self, d: &Descriptor, selector: u16) -> Exec<u32> {
        if !self.long_mode() {
            return Ok(0);
        }
        let upper: u64 = self.system_read(d.at.wrapping_add(8))?;
        if upper >> 40 & 0x1f != 0 {
            return Err(self.gp(u32::from(selector & 0xfffc)));
        }
        Ok(upper as u32)
    }

    /// Sets the accessed bit in memory, if it is clear.
    pub(crate) fn mark_accessed(&mut self, d: &mut Descriptor) -> Exec {
        if d.is_segment() && d.access() & access::ACCESSED == 0 {
            d.high |= 1 << 8;
            self.system_write::<u32>(d.at.wrapping_add(4), d.high)?;
        }
        Ok(())
    }

    /// Loads a data segment register or SS, as MOV and POP do.
    pub(crate) fn load_segment(&mut self, register: usize, selector: u16) -> Exec {
        if self.real_segments() {
            let old = self.seg[register];
            let access = if self.v86() { 0xf3 } else { old.access };
            let base = u64::from(selector) << 4;
            self.seg[register] = SegmentV1 { selector, base, access, ..old };
            if self.v86() {
                self.seg[register].limit = 0xffff;
            }
            self.update_mode();
            return Ok(());
        }
        let code = u32::from(selector & 0xfffc);
        if selector & 0xfffc == 0 {
            if register == SS {
                let rpl = (selector & 3) as u8;
                if !self.long_code() || self.cpl == 3 || rpl != self.cpl {
                    return Err(self.gp(0));
                }
                self.seg[SS] = null(selector, self.seg[SS], rpl);
                self.seg[SS].access |= access::DB;
            } else {
                self.seg[register] = null(selector, self.seg[register], 0);
            }
            self.update_mode();
            return Ok(());
        }
        let mut d = self.descriptor(selector, GP)?;
        let rpl = (selector & 3) as u8;
        if register == SS {
            let writable = d.is_segment() && !d.is_code() && d.access() & access::WRITABLE != 0;
            if !writable || rpl != self.cpl || d.dpl() != self.cpl {
                return Err(self.gp(code));
            }
            if !d.present() {
                return Err(self.raise(STACK, Some(code)));
            }
        } else {
            let readable = d.is_segment() && (!d.is_code() || d.access() & access::WRITABLE != 0);
            if !readable || (!d.conforming() && (rpl > d.dpl() || self.cpl > d.dpl())) {
                return Err(self.gp(code));
            }
            if !d.present() {
                return Err(self.raise(NP, Some(code)));
            }
        }
        self.mark_accessed(&mut d)?;
        self.seg[register] = d.segment(selector);
        self.update_mode();
        Ok(())
    }

    /// Loads SS for a new privilege level: `vector` is #TS for stack switches, #GP for returns.
    pub(crate) fn stack_segment(&mut self, selector: u16, cpl: u8, vector: u8) -> Exec<SegmentV1> {
        let code = u32::from(selector & 0xfffc);
        if selector & 0xfffc == 0 {
            return Err(self.raise(vector, Some(if vector == GP { 0 } else { code })));
        }
        let mut d = self.descriptor(selector, vector)?;
        let writable = d.is_segment() && !d.is_code() && d.access() & access::WRITABLE != 0;
        if (selector & 3) as u8 != cpl || d.dpl() != cpl || !writable {
            return Err(self.raise(vector, Some(code)));
        }
        if !d.present() {
            return Err(self.raise(STACK, Some(code)));
        }
        self.mark_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// A null SS for `cpl`, as long mode uses.
    pub(crate) fn null_stack(&self, selector: u16, cpl: u8) -> SegmentV1 {
        let mut s = null(selector, self.seg[SS], cpl);
        s.access |= access::DB;
        s
    }

    /// Puts a code segment in place; CPL becomes `cpl`, which also goes into the selector.
    pub(crate) fn set_code(&mut self, d: &mut Descriptor, selector: u16, cpl: u8) -> Exec {
        self.mark_accessed(d)?;
        self.seg[CS] = d.segment(selector & 0xfffc | u16::from(cpl));
        self.set_cpl(cpl);
        Ok(())
    }

    /// After a return to an outer level: data segments that it may not use become null.
    pub(crate) fn drop_inner_segments(&mut self) {
        for r in [0, 3, 4, 5] {
            let s = self.seg[r];
            let conforming =
                s.access & (access::CODE | access::EXPAND_DOWN) == access::CODE | access::EXPAND_DOWN;
            let usable = s.access & access::UNUSABLE == 0;
            if usable && !conforming && s.dpl() < self.cpl {
                self.seg[r] = null(0, s, 0);
            }
        }
    }

    /// Checks an offset in a segment, outside of 64-bit code.
    pub(crate) fn check_limit(&mut self, register: usize, offset: u64, bytes: u64, write: bool) -> Exec {
        let s = &self.seg[register];
        let a = s.access;
        let vector = if register == SS { STACK } else { GP };
        if a & access::UNUSABLE != 0 {
            return Err(self.raise(vector, Some(0)));
        }
        if self.protected() && !self.v86() {
            let wrong = if write {
                a & access::CODE != 0 || a & access::WRITABLE == 0
            } else {
                a & access::CODE != 0 && a & access::WRITABLE == 0
            };
            if wrong {
                return Err(self.raise(vector, Some(0)));
            }
        }
        let last = offset + bytes - 1;
        let limit = u64::from(s.limit);
        let ok = if a & (access::CODE | access::EXPAND_DOWN) == access::EXPAND_DOWN {
            let top = if a & access::DB != 0 { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            // What goes on from 4 GiB at 0 is the implementation's choice (SDM vol. 3, limit checking): none is seen to refuse it.
            last <= limit || limit == 0xffff_ffff
        };
        if ok { Ok(()) } else { Err(self.raise(vector, Some(0))) }
    }
}
