//! What runs in ring 0 later: exceptions, services, the timer, and printing for all of them.

use super::{Asm, Assembler, SERVICE_CALL_LEN, Service};
use crate::layout::*;
use iced_x86::code_asm::*;
use iced_x86::{Code, Instruction};

const LAPIC_EOI: u32 = 0xb0;
/// Vectors that push an error code.
const WITH_ERROR_CODE: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

impl Assembler {
    /// Sends the print ring's contents; clobbers RAX, RCX, RDX, RSI, RDI.
    pub(super) fn drain_routine(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut more, mut poll, mut ready) = (a.create_label(), a.create_label(), a.create_label());
        let (mut burst, mut end) = (a.create_label(), a.create_label());
        a.set_label(&mut self.r.drain)?;
        a.mov(rcx, qword_ptr(RING_TAIL))?;
        a.set_label(&mut more)?;
        a.cmp(rcx, qword_ptr(RING_HEAD))?;
        a.je(end)?;
        a.mov(esi, 100_000)?;
        a.mov(edx, u32::from(COM1 + 5))?;
        a.set_label(&mut poll)?;
        a.in_(al, dx)?;
        a.test(al, 0x20)?; // transmitter empty: the FIFO takes 16 bytes
        a.jne(ready)?;
        a.dec(esi)?;
        a.jne(poll)?;
        a.set_label(&mut ready)?;
        a.mov(edx, u32::from(COM1))?;
        a.mov(esi, 16)?;
        a.set_label(&mut burst)?;
        a.movzx(edi, cx)?;
        a.mov(al, byte_ptr(rdi + RING as i32))?;
        a.out(dx, al)?;
        a.inc(rcx)?;
        a.cmp(rcx, qword_ptr(RING_HEAD))?;
        a.je(more)?;
        a.dec(esi)?;
        a.jne(burst)?;
        a.jmp(more)?;
        a.set_label(&mut end)?;
        a.mov(qword_ptr(RING_TAIL), rcx)?;
        a.ret()
    }

    /// Prints ECX bytes at RSI past the ring, and RAX in hexadecimal; clobbers RAX to RDI.
    pub(super) fn print_routines(&mut self) -> Asm {
        let a = &mut self.a;
        let (mut next, mut poll, mut digit, mut decimal) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut self.r.print)?;
        a.zero_bytes()?;
        a.set_label(&mut next)?;
        a.mov(edx, u32::from(COM1))?;
        a.mov(al, byte_ptr(rsi))?;
        a.out(dx, al)?; // the first byte needs no look at the line status
        a.inc(rsi)?;
        a.mov(edx, u32::from(COM1 + 5))?;
        a.set_label(&mut poll)?;
        a.in_(al, dx)?;
        a.test(al, 0x20)?;
        a.je(poll)?;
        a.dec(ecx)?;
        a.jne(next)?;
        a.ret()?;

        a.set_label(&mut self.r.print_hex)?;
        a.mov(rdi, rax)?;
        a.mov(ecx, 16)?;
        a.mov(edx, u32::from(COM1))?;
        a.set_label(&mut digit)?;
        a.rol(rdi, 4)?;
        a.mov(eax, edi)?;
        a.and(eax, 15)?;
        a.add(eax, u32::from(b'0'))?;
        a.cmp(eax, u32::from(b'9'))?;
        a.jbe(decimal)?;
        a.add(eax, 39)?;
        a.set_label(&mut decimal)?;
        a.out(dx, al)?;
        a.dec(ecx)?;
        a.jne(digit)?;
        a.ret()
    }

    pub(super) fn reset_routine(&mut self) -> Asm {
        let a = &mut self.a;
        let mut pause = a.create_label();
        a.set_label(&mut self.r.reset)?;
        a.mov(al, 0xfe)?;
        a.out(0x64, al)?;
        // Some boards have no i8042: after a while, a triple fault.
        a.mov(ecx, 1000)?;
        a.set_label(&mut pause)?;
        a.dec(ecx)?;
        a.jne(pause)?;
        a.lidt(ptr(NO_IDT_POINTER))?;
        a.ud2()
    }

    pub(super) fn save(&mut self) -> Asm {
        for register in [rcx, rdx, rsi, rdi] {
            self.a.push(register)?;
        }
        Ok(())
    }

    pub(super) fn restore(&mut self) -> Asm {
        for register in [rdi, rsi, rdx, rcx] {
            self.a.pop(register)?;
        }
        Ok(())
    }

    pub(super) fn timer_handler(&mut self) -> Asm {
        let mut empty = self.a.create_label();
        self.a.push(rax)?;
        self.save()?;
        let a = &mut self.a;
        a.inc(qword_ptr(TICKS))?;
        a.mov(rax, qword_ptr(RING_TAIL))?;
        a.cmp(rax, qword_ptr(RING_HEAD))?;
        a.je(empty)?;
        a.call(self.r.drain)?;
        a.set_label(&mut empty)?;
        a.mov(ecx, LAPIC_EOI)?;
        a.xor(eax, eax)?;
        a.call(self.r.apic_write)?;
        self.restore()?;
        self.a.pop(rax)?;
        self.a.iretq()
    }

    /// #PF: a service call, or a fault like any other. Stack: error code, RIP, CS, ...
    pub(super) fn page_fault_handler(&mut self, fault: CodeLabel) -> Asm {
        let a = &mut self.a;
        let (mut port, mut load_cr3, mut again) = (a.create_label(), a.create_label(), a.create_label());
        let (mut other, mut flush, mut wait, mut out) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.push(rax)?;
        a.mov(rax, cr2)?;
        a.cmp(rax, SERVICE as i32)?;
        a.jne(other)?;
        a.test(byte_ptr(rsp + 24), 3)?;
        a.je(other)?;
        a.add(qword_ptr(rsp + 16), SERVICE_CALL_LEN)?;
        a.mov(al, byte_ptr(rsp))?;
        a.cmp(al, Service::Wait as u32)?;
        a.je(wait)?;
        a.cmp(al, Service::Flush as u32)?;
        a.je(flush)?;
        a.cmp(al, Service::Nothing as u32)?;
        a.je(out)?;
        a.cmp(al, Service::PortOut as u32)?;
        a.je(port)?;
        a.cmp(al, Service::LoadCr3 as u32)?;
        a.je(load_cr3)?;
        a.call(self.r.drain)?;
        let a = &mut self.a;
        a.jmp(self.r.reset)?;
        a.set_label(&mut port)?;
        a.out(0x80, al)?;
        a.dec(rcx)?;
        a.jne(port)?;
        a.jmp(out)?;
        a.set_label(&mut load_cr3)?;
        a.mov(rax, cr3)?;
        a.set_label(&mut again)?;
        a.mov(cr3, rax)?;
        for page in 0..4 {
            a.mov(rdx, qword_ptr(FILL + page * 17 * PAGE))?;
        }
        a.dec(rcx)?;
        a.jne(again)?;
        a.jmp(out)?;
        a.set_label(&mut wait)?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        a.jmp(out)?;
        a.set_label(&mut flush)?;
        self.save()?;
        self.a.call(self.r.drain)?;
        self.restore()?;
        let a = &mut self.a;
        a.set_label(&mut out)?;
        a.pop(rax)?;
        a.add(rsp, 8)?;
        a.iretq()?;
        a.set_label(&mut other)?;
        a.pop(rax)?;
        a.push(14)?;
        a.jmp(fault)
    }

    /// Says which exception, where, and resets. Stack: vector, error code, RIP, CS, ...
    pub(super) fn fault_routine(&mut self) -> Asm {
        self.a.call(self.r.drain)?;
        for (name, offset) in [("\nPANIC vector=", 0), (" error=", 8), (" rip=", 16), (" rsp=", 40)] {
            self.print(name)?;
            self.a.mov(rax, qword_ptr(rsp + offset))?;
            self.a.call(self.r.print_hex)?;
        }
        self.print(" cr2=")?;
        self.a.mov(rax, cr2)?;
        self.a.call(self.r.print_hex)?;
        self.print("\n")?;
        self.a.jmp(self.r.reset)
    }

    /// All handlers; returns each vector's label.
    pub(super) fn handlers(&mut self, bench: bool) -> Asm<Vec<(u8, CodeLabel)>> {
        let mut gates = Vec::new();
        let mut fault = self.a.create_label();
        self.a.set_label(&mut self.r.syscall)?;
        self.a.add_instruction(Instruction::with(Code::Sysretq))?;
        for vector in 0..32u8 {
            let mut label = self.a.create_label();
            self.a.set_label(&mut label)?;
            gates.push((vector, label));
            if vector == 14 {
                self.page_fault_handler(fault)?;
                continue;
            }
            if vector == 3 && bench {
                self.a.iretq()?;
                continue;
            }
            if WITH_ERROR_CODE >> vector & 1 == 0 {
                self.a.push(0)?;
            }
            self.a.push(i32::from(vector))?;
            self.a.jmp(fault)?;
        }
        self.a.set_label(&mut fault)?;
        self.fault_routine()?;
        let mut timer = self.a.create_label();
        self.a.set_label(&mut timer)?;
        self.timer_handler()?;
        gates.push((TIMER_VECTOR, timer));
        let mut spurious = self.a.create_label();
        self.a.set_label(&mut spurious)?;
        self.a.iretq()?;
        gates.push((SPURIOUS_VECTOR, spurious));
        Ok(gates)
    }
}
