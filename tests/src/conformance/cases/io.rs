//! Port and memory I/O.

use crate::conformance::board::{Event, memory_value, port_value};
use crate::conformance::code::{self, CODE, DEVICE, DONE, assemble};
use crate::conformance::plugin::Plugin;
use crate::conformance::rig::{Ended, Rig};
use iced_x86::code_asm::*;

const PORT: u16 = 0x1234;

pub(super) fn ports_of_all_widths(plugin: Plugin) {
    let program = assemble(16, CODE, |a| {
        a.mov(dx, i32::from(PORT))?;
        a.mov(eax, 0x8765_4321u32)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.mov(eax, -1i32)?;
        a.in_(al, dx)?;
        a.mov(ebx, eax)?;
        a.mov(eax, -1i32)?;
        a.in_(ax, dx)?;
        a.mov(ecx, eax)?;
        a.in_(eax, dx)?;
        a.mov(esi, eax)?;
        a.in_(al, 0x61)?;
        code::done(a)
    });
    let rig = Rig::real(plugin, &program);
    let events = rig.run_to_done();
    let expected = [
        Event::Out(PORT, 1, 0x21),
        Event::Out(PORT, 2, 0x4321),
        Event::Out(PORT, 4, 0x8765_4321),
        Event::In(PORT, 1),
        Event::In(PORT, 2),
        Event::In(PORT, 4),
        Event::In(0x61, 1),
    ];
    assert_eq!(events, expected);
    rig.stop();
    let regs = rig.cpu().save().regs;
    assert_eq!(regs.gpr[3], 0xffff_ff00 | port_value(PORT, 1));
    assert_eq!(regs.gpr[1], 0xffff_0000 | port_value(PORT, 2));
    assert_eq!(regs.gpr[6], port_value(PORT, 4));
    assert!(regs.rip > CODE && regs.rip < CODE + program.len() as u64, "it waits at its end");
}

pub(super) fn string_ports(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.mov(edx, i32::from(PORT))?;
        a.mov(esi, 0x3000)?;
        a.mov(ecx, 5)?;
        a.cld()?;
        a.rep().outsb()?;
        a.mov(edi, 0x3100)?;
        a.mov(ecx, 4)?;
        a.rep().insw()?;
        a.mov(ecx, 2)?;
        a.mov(esi, 0x3000)?;
        a.rep().outsd()?;
        code::done(a)
    });
    let rig = Rig::long(plugin, 0, &program);
    rig.ram.write(0x3000, b"godwit!!");
    let events = rig.run_to_done();
    let mut expected: Vec<_> = b"godwi".iter().map(|b| Event::Out(PORT, 1, u64::from(*b))).collect();
    expected.extend([Event::In(PORT, 2); 4]);
    expected.push(Event::Out(PORT, 4, u64::from(u32::from_le_bytes(*b"godw"))));
    expected.push(Event::Out(PORT, 4, u64::from(u32::from_le_bytes(*b"it!!"))));
    assert_eq!(events, expected);
    let word = (port_value(PORT, 2) as u16).to_le_bytes();
    assert_eq!(rig.ram.read(0x3100, 8), word.repeat(4));
    rig.stop();
    let regs = rig.cpu().save().regs;
    assert_eq!((regs.gpr[1], regs.gpr[6], regs.gpr[7]), (0, 0x3008, 0x3108));
}

pub(super) fn memory_of_all_widths(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.mov(rbx, DEVICE)?;
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.mov(byte_ptr(rbx), al)?;
        a.mov(word_ptr(rbx + 0x10), ax)?;
        a.mov(dword_ptr(rbx + 0x20), eax)?;
        a.mov(qword_ptr(rbx + 0x30), rax)?;
        a.movzx(ecx, byte_ptr(rbx + 0x40))?;
        a.movzx(edx, word_ptr(rbx + 0x50))?;
        a.mov(esi, dword_ptr(rbx + 0x60))?;
        a.mov(rdi, qword_ptr(rbx + 0x70))?;
        a.or(dword_ptr(rbx + 0x80), 1)?;
        code::done(a)
    });
    let rig = Rig::long(plugin, 0, &program);
    let events = rig.run_to_done();
    let expected = [
        Event::Write(DEVICE, 1, 0x88),
        Event::Write(DEVICE + 0x10, 2, 0x7788),
        Event::Write(DEVICE + 0x20, 4, 0x5566_7788),
        Event::Write(DEVICE + 0x30, 8, 0x1122_3344_5566_7788),
        Event::Read(DEVICE + 0x40, 1),
        Event::Read(DEVICE + 0x50, 2),
        Event::Read(DEVICE + 0x60, 4),
        Event::Read(DEVICE + 0x70, 8),
        Event::Read(DEVICE + 0x80, 4),
        Event::Write(DEVICE + 0x80, 4, memory_value(DEVICE + 0x80, 4) | 1),
    ];
    assert_eq!(events, expected);
    rig.stop();
    let gpr = rig.cpu().save().regs.gpr;
    assert_eq!(gpr[1], memory_value(DEVICE + 0x40, 1));
    assert_eq!(gpr[2], memory_value(DEVICE + 0x50, 2));
    assert_eq!(gpr[6], memory_value(DEVICE + 0x60, 4));
    assert_eq!(gpr[7], memory_value(DEVICE + 0x70, 8));
}

/// A kick that comes while the board answers: the instruction is whole when `run` returns.
pub(super) fn interrupted_access_is_complete(plugin: Plugin) {
    let program = assemble(64, CODE, |a| {
        a.mov(rbx, DEVICE)?;
        a.mov(rsi, qword_ptr(rbx))?;
        a.in_(al, 0x70)?;
        a.mov(edi, 0x3100)?;
        a.mov(ecx, 3)?;
        a.mov(edx, 0x71)?;
        a.rep().insb()?;
        code::done(a)
    });
    let rig = Rig::long(plugin, 0, &program);
    let cpu = rig.cpu();
    rig.start(0);
    rig.board.set_hook(move |_| cpu.kick());
    let mut seen = Vec::new();
    while !seen.iter().any(|e| matches!(e, Event::Out(DONE, ..))) {
        assert_eq!(cpu.run(), Ok(Ended::Kicked));
        rig.stop();
        let state = cpu.save();
        seen.extend(rig.board.take());
        // Every access that the board has answered has reached its register, and no other.
        let count = |event: Event| seen.iter().filter(|e| **e == event).count() as u64;
        if count(Event::Read(DEVICE, 8)) == 1 {
            assert_eq!(state.regs.gpr[6], memory_value(DEVICE, 8));
        }
        if count(Event::In(0x70, 1)) == 1 {
            assert_eq!(state.regs.gpr[0] as u8, port_value(0x70, 1) as u8);
        }
        let bytes = count(Event::In(0x71, 1));
        if bytes > 0 {
            assert_eq!((state.regs.gpr[7], state.regs.gpr[1]), (0x3100 + bytes, 3 - bytes));
            assert_eq!(rig.ram.read(0x3100, bytes as usize), vec![port_value(0x71, 1) as u8; bytes as usize]);
        }
        assert!(count(Event::Read(DEVICE, 8)) <= 1 && count(Event::In(0x70, 1)) <= 1 && bytes <= 3);
        // What was saved is enough to go on from.
        cpu.load(&state);
        rig.start(0);
    }
    assert_eq!(seen.iter().filter(|e| matches!(e, Event::In(0x71, 1))).count(), 3);
}
