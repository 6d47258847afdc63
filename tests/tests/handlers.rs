//! The interpreter against itself. What a guest runs mostly goes through quick handlers, in blocks, fused, joined and
//! linked. With an instruction breakpoint set, even where nothing ever comes, it goes one instruction at a time, and every
//! access the general way. Both must give the same, on every host.

use godwit_tests::conformance::code::{self, CODE, assemble, handler};
use godwit_tests::conformance::rig::Rig;
use godwit_tests::oracle::generate::{FAMILIES, Random};
use godwit_tests::oracle::interp::{Machine, plugin};
use godwit_tests::oracle::{self, DATA, DATA_LEN, State};
use iced_x86::code_asm::*;

/// Where no sequence comes.
const NOWHERE: u64 = 0x7000_0000;

fn same_both_ways(machine: &Machine, name: &str, code: &[Vec<u8>], start: &State) -> Option<String> {
    let bytes = code.concat();
    let (quick, slow) = (machine.run(&bytes, start), machine.run_until(&bytes, start, &[NOWHERE]));
    if quick == slow {
        return None;
    }
    let differences = oracle::differences(code, &slow, &quick);
    let flags = format!("  rflags {:x} and {:x}\n", slow.state.rflags, quick.state.rflags);
    Some(format!("{name}:\n{}{differences}{flags}", oracle::listing(code, start.bits)))
}

/// Random sequences of everything.
#[test]
fn every_family_runs_alike_in_blocks_and_one_by_one() {
    let machine = Machine::new();
    let mut bad = String::new();
    for (name, family) in FAMILIES {
        for seed in 0..1500 {
            let (code, start) = oracle::case(seed, family);
            bad += &same_both_ways(&machine, &format!("{name} {seed}"), &code, &start).unwrap_or_default();
        }
    }
    assert!(bad.is_empty(), "{bad}");
}

/// Registers that hold addresses: RBX, RSI, RDI; R12 needs a byte more as a base, RBP a displacement.
const BASES: [u8; 5] = [3, 6, 7, 12, 5];

/// An instruction as compilers write many, most of them on a few registers, so that one takes what another has made.
fn plain(r: &mut Random) -> Vec<u8> {
    const VALUES: [u8; 6] = [0, 1, 2, 8, 9, 15];
    let mut pick = |from: &[u8]| from[r.below(from.len() as u64) as usize];
    let (a, b, base, index) = (pick(&VALUES), pick(&VALUES), pick(&BASES), pick(&[9, 10]));
    let (wide, small) = (r.one_in(2), r.next() as u8);
    let rex = |wide: bool, reg: u8, x: u8, rm: u8| {
        0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (x >> 3) << 1 | rm >> 3
    };
    let registers = |opcode: &[u8], reg: u8, rm: u8, tail: &[u8]| {
        let modrm = 0xc0 | (reg & 7) << 3 | rm & 7;
        [&[rex(wide, reg, 0, rm)], opcode, &[modrm], tail].concat()
    };
    // Near the pages' ends now and then.
    let displacement = if r.one_in(8) { [0xf9, 0x03, 0, 0] } else { [small & 0x78, 0, 0, 0] };
    let indexed = r.one_in(3);
    let memory = |prefix: &[u8], wide: bool, opcode: &[u8], reg: u8, tail: &[u8]| {
        let mut out = prefix.to_vec();
        out.push(rex(wide, reg, if indexed { index } else { 0 }, base));
        out.extend(opcode);
        let rm = if indexed || base & 7 == 4 { 4 } else { base & 7 };
        out.push(0x80 | (reg & 7) << 3 | rm);
        if rm == 4 {
            out.push(
                small & 0xc0 & if indexed { 0xff } else { 0 }
                    | if indexed { (index & 7) << 3 } else { 0x20 }
                    | base & 7,
            );
        }
        out.extend(displacement);
        out.extend(tail);
        out
    };
    let ops = [0x01u8, 0x29, 0x21, 0x09, 0x31, 0x39, 0x11, 0x19, 0x85];
    match r.below(30) {
        0..=5 => registers(&[ops[r.below(9) as usize]], a, b, &[]),
        6 | 7 => registers(&[0x83], r.below(8) as u8, b, &[small]),
        8..=10 => registers(&[0x89], a, b, &[]),
        11 => registers(&[0xc7], 0, b, &[small, 0, 1, 0x80]),
        12 => registers(&[0xc1], [0u8, 1, 4, 5, 7][r.below(5) as usize], b, &[small]),
        13 => registers(&[0xff], r.below(2) as u8, b, &[]),
        14 => registers(&[0xf7], 2 + r.below(2) as u8, b, &[]),
        15 => registers(&[0x0f, [0xaf, 0xb6, 0xb7, 0xbe][r.below(4) as usize]], a, b, &[]),
        16 => registers(&[0x0f, 0x40 | small & 15], a, b, &[]),
        17 => registers(&[0x63], a, b, &[]),
        18 | 19 => memory(&[], wide, &[0x8b], a, &[]),
        20 => memory(&[], wide, &[0x89], a, &[]),
        21 => memory(&[], wide, &[0x8d], a, &[]),
        22 => memory(&[], wide, &[0x0f, 0xb6 | small & 1], a, &[]),
        23 => memory(&[], wide, &[[0x03u8, 0x2b, 0x33, 0x3b, 0x01, 0x39][r.below(6) as usize]], a, &[]),
        24 => memory(&[], wide, &[0x83], r.below(8) as u8, &[small]),
        25 => memory(&[], wide, &[0xc7], 0, &[small, 1, 2, 3]),
        26 => memory(
            if small & 1 != 0 { &[0x66] } else { &[] },
            false,
            &[if small & 2 != 0 { 0x88 } else { 0x89 }],
            a,
            &[],
        ),
        27 => vec![0x40 | a >> 3, 0x50 | a & 7],
        28 => vec![0x40 | a >> 3, 0x58 | a & 7],
        // Over the next instruction or two, on any condition or none; or to it, with its address on the stack.
        _ => match small & 3 {
            0 => vec![0xeb, 0],
            1 => vec![0xe8, 0, 0, 0, 0],
            2 => vec![0x0f, 0x1f, 0x40, 0],
            _ => vec![0x70 | small >> 4, 0],
        },
    }
}

/// Branches that [`plain`] left without a distance skip what follows them, sometimes two.
fn sequence(r: &mut Random) -> Vec<Vec<u8>> {
    let mut code: Vec<Vec<u8>> = Vec::new();
    while code.len() < 40 {
        // Rows, as where functions begin and end.
        let row = if r.one_in(8) { 1 + r.below(7) } else { 1 };
        let push = r.one_in(2);
        for n in 0..row {
            code.push(match row {
                1 => plain(r),
                _ => vec![if push { 0x50 } else { 0x58 } | [0u8, 1, 2, 3, 5, 6, 7][(n % 7) as usize]],
            });
        }
    }
    for n in 0..code.len() - 2 {
        if code[n].len() == 2 && (code[n][0] == 0xeb || code[n][0] & 0xf0 == 0x70) {
            let over = code[n + 1].len() + if r.one_in(3) { code[n + 2].len() } else { 0 };
            code[n][1] = over as u8;
        }
    }
    code
}

fn start(r: &mut Random) -> State {
    let mut s = oracle::generate::state(r, 64);
    for base in BASES {
        s.gpr[usize::from(base)] = DATA + 0x800 + r.below(0x80) * 8;
    }
    s.gpr[9] = r.below(4);
    s.gpr[10] = r.below(16);
    // The stack begins and ends where pages do, or the buffer, more often than not.
    s.gpr[4] = DATA + [0x1000, 0x1800, DATA_LEN as u64 - 0x20, 0x20][r.below(4) as usize] + r.below(8) * 8;
    s.rflags &= !0x400;
    s
}

/// Sequences like compilers', for what is joined: pairs, rows of PUSH and POP, comparisons with their branches.
#[test]
fn joined_handlers_do_what_their_parts_do() {
    let machine = Machine::new();
    let mut bad = String::new();
    for seed in 0..6000 {
        let mut r = Random::new(seed);
        let (code, start) = (sequence(&mut r), start(&mut r));
        bad += &same_both_ways(&machine, &format!("seed {seed}"), &code, &start).unwrap_or_default();
    }
    assert!(bad.is_empty(), "{bad}");
}

/// The same sequences on the processor that runs the test.
#[test]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn joined_handlers_do_what_this_processor_does() {
    let native = match oracle::native::Native::new() {
        Ok(native) => native,
        Err(why) => return eprintln!("SKIPPED joined_handlers_do_what_this_processor_does: {why}"),
    };
    let machine = Machine::new();
    let (mut bad, mut compared) = (String::new(), 0);
    for seed in 10_000..14_000 {
        let mut r = Random::new(seed);
        let (code, start) = (sequence(&mut r), start(&mut r));
        let bytes = code.concat();
        if reads_undefined(&bytes) {
            continue;
        }
        compared += 1;
        let (a, b) = (native.run(&bytes, &start), machine.run(&bytes, &start));
        if !oracle::agree(&code, &a, &b) && oracle::intel::agrees(&machine, &code, &start, &a).is_none() {
            bad += &format!(
                "seed {seed}:\n{}{}",
                oracle::listing(&code, 64),
                oracle::differences(&code, &a, &b)
            );
        }
    }
    println!("{compared} sequences compared");
    assert!(compared > 100, "{compared}");
    assert!(bad.is_empty(), "{bad}");
}

/// True if an instruction may depend on a flag that the manual leaves undefined.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn reads_undefined(code: &[u8]) -> bool {
    use oracle::undefined;
    // Branches only skip, and what is skipped defines no more than what is not: all that was ever undefined counts.
    let mut ever = 0;
    oracle::instructions(code, 64).iter().any(|i| {
        let reads = undefined::reads(i, ever);
        ever |= undefined::undefined(i);
        reads
    })
}

/// A guest that single-steps itself gets a trap after every instruction, also after a RET to where it has been before.
#[test]
fn a_trap_follows_every_instruction_stepped() {
    const COUNT: u64 = 0x3010;
    const LIST: u64 = 0x3100;
    let mut expected = Vec::new();
    let program = assemble(64, CODE, |a| {
        let (mut top, mut f) = (a.create_label(), a.create_label());
        a.mov(ecx, 3)?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.set_label(&mut top)?;
        a.call(f)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), !0x100)?;
        a.popfq()?;
        code::done(a)?;
        a.set_label(&mut f)?;
        a.ret()
    });
    let all = listing(&program);
    let at = |mnemonic: iced_x86::Mnemonic, nth: usize| {
        all.iter().filter(|i| i.mnemonic() == mnemonic).nth(nth).expect("it is there")
    };
    use iced_x86::Mnemonic as M;
    let (call, dec, jne, ret) = (at(M::Call, 0), at(M::Dec, 0), at(M::Jne, 0), at(M::Ret, 0));
    let end = at(M::Pushfq, 1);
    for round in 0..3 {
        expected.extend([ret.ip(), dec.ip(), jne.ip()]);
        expected.push(if round < 2 { call.ip() } else { end.ip() });
    }
    expected.extend([at(M::And, 0).ip(), at(M::Popfq, 1).ip(), at(M::Popfq, 1).next_ip()]);

    let rig = Rig::long(plugin(), 0, &program);
    let note = assemble(64, handler(1), |a| {
        a.push(rax)?;
        a.push(rdx)?;
        a.mov(rdx, qword_ptr(COUNT))?;
        a.mov(rax, qword_ptr(rsp + 16))?;
        a.mov(qword_ptr(rdx * 8 + LIST as i32), rax)?;
        a.inc(qword_ptr(COUNT))?;
        a.pop(rdx)?;
        a.pop(rax)?;
        a.iretq()
    });
    rig.ram.write(handler(1), &note);
    rig.run_to_done();
    let word = |at: u64| u64::from_le_bytes(rig.ram.read(at, 8).try_into().expect("8 bytes"));
    let trapped: Vec<u64> = (0..word(COUNT)).map(|n| word(LIST + n * 8)).collect();
    assert_eq!(trapped, expected);
}

/// The program's instructions, where they stand.
fn listing(program: &[u8]) -> Vec<iced_x86::Instruction> {
    iced_x86::Decoder::with_ip(64, program, CODE, 0).into_iter().collect()
}
