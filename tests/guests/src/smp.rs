//! The guest that starts every CPU and tries what they promise each other: atomic operations and
//! x86's memory order. One line a round:
//!
//! ```text
//! round=000003 cpus=4 locked=ok spinlock=ok messages=ok fenced=ok reordered=17 ok
//! ```
//!
//! - `locked`: every CPU added with LOCK INC, LOCK XADD and a LOCK CMPXCHG loop; nothing is lost.
//! - `spinlock`: a plain counter under an XCHG lock; nothing is lost.
//! - `messages`: CPU 0 writes data, then a flag; CPU 1 that sees the flag sees the data (stores are
//!   seen in order, loads are done in order).
//! - `fenced`: CPUs 0 and 1 each store, MFENCE, and load the other's variable; never both see
//!   nothing.
//! - `reordered`: the same without MFENCE, where both may see nothing: how often they did. It may
//!   be zero.
//!
//! With one CPU, the last three have nobody to try them with and are `ok`. Options on the kernel
//! command line: `cpus` (await so many; by default those that came within 200 ms), `rounds` (then
//! reset; 0, for ever; 3), `size` (operations in each test; 2000, at most 4000).

use crate::kernel::Service;
use crate::layout::*;
use crate::program::{Asm, Program};
use iced_x86::code_asm::*;

const GO: u64 = VARS;
const COUNT: u64 = VARS + 0x08;
const ROUNDS: u64 = VARS + 0x10;
const SIZE: u64 = VARS + 0x18;
const ROUND: u64 = VARS + 0x20;
const BAD: u64 = VARS + 0x28;
const REORDERED: u64 = VARS + 0x30;
const BOTH_BLIND: u64 = VARS + 0x38;
const AWAITED: u64 = VARS + 0x40;
const BAD_ROUNDS: u64 = VARS + 0x48;
// What CPUs share is a cache line each.
const BARRIER: u64 = VARS + 0x100;
const LOCKED: u64 = VARS + 0x140;
const LOCK: u64 = VARS + 0x180;
const GUARDED: u64 = VARS + 0x1c0;
const DATA: u64 = VARS + 0x200;
const FLAG: u64 = VARS + 0x240;
const VIOLATIONS: u64 = VARS + 0x280;
const TURNS: [u64; 2] = [VARS + 0x2c0, VARS + 0x300];

/// Per operation a cache line for each CPU's variable, then a word for what each CPU saw.
const VARIABLES: [u64; 2] = [PATTERN, PATTERN + 0x4_0000];
const SEEN: [u64; 2] = [PATTERN + 0x8_0000, PATTERN + 0x9_0000];
const LARGEST: u32 = 4000;

const LOCKED_BAD: u32 = 1;
const SPINLOCK_BAD: u32 = 2;
const MESSAGES_BAD: u32 = 4;
const FENCED_BAD: u32 = 8;

/// All CPUs meet; R15 counts the arrivals awaited so far.
fn barrier(p: &mut Program) -> Asm {
    let mut wait = p.a.create_label();
    let mut go = p.a.create_label();
    p.a.add(r15, qword_ptr(COUNT))?;
    p.a.lock().inc(qword_ptr(BARRIER))?;
    p.a.set_label(&mut wait)?;
    p.a.cmp(qword_ptr(BARRIER), r15)?;
    p.a.jae(go)?;
    p.a.pause()?;
    p.a.jmp(wait)?;
    p.a.set_label(&mut go)?;
    p.a.nop()
}

/// On the first CPU: options, and how many take part.
fn start(p: &mut Program) -> Asm {
    let (mut wait, mut enough, mut fits) = (p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.option("cpus", 0, AWAITED)?;
    p.option("rounds", 3, ROUNDS)?;
    p.option("size", 2000, SIZE)?;
    p.a.cmp(qword_ptr(SIZE), LARGEST as i32)?;
    p.a.jbe(fits)?;
    p.a.mov(dword_ptr(SIZE), LARGEST)?;
    p.a.set_label(&mut fits)?;
    p.a.nop()?;
    p.a.set_label(&mut wait)?;
    p.a.mov(eax, dword_ptr(CPUS))?;
    p.a.cmp(eax, dword_ptr(AWAITED))?;
    p.a.mov(ecx, 20)?;
    p.a.mov(edx, 3000)?;
    p.a.cmovb(ecx, edx)?; // some are missing: up to 30 s
    p.a.cmp(qword_ptr(AWAITED), 1)?;
    p.a.jb(enough)?;
    p.a.cmp(eax, dword_ptr(AWAITED))?;
    p.a.mov(edx, 0)?;
    p.a.cmovae(ecx, edx)?;
    p.a.set_label(&mut enough)?;
    p.a.cmp(dword_ptr(TICKS), ecx)?;
    let mut ready = p.a.create_label();
    p.a.jae(ready)?;
    p.service(Service::Wait)?;
    p.a.jmp(wait)?;
    p.a.set_label(&mut ready)?;
    p.a.mov(eax, dword_ptr(CPUS))?;
    p.a.mov(qword_ptr(COUNT), rax)?;
    p.print_field("smp: cpus=", COUNT)?;
    p.print_field(" size=", SIZE)?;
    p.print("\n")?;
    p.a.mov(dword_ptr(GO), 1)
}

/// All CPUs: adds in three ways, three times SIZE in all.
fn locked(p: &mut Program) -> Asm {
    let (mut next, mut retry) = (p.a.create_label(), p.a.create_label());
    p.a.mov(rsi, qword_ptr(SIZE))?;
    p.a.set_label(&mut next)?;
    p.a.lock().inc(qword_ptr(LOCKED))?;
    p.a.mov(ecx, 1)?;
    p.a.lock().xadd(qword_ptr(LOCKED), rcx)?;
    p.a.mov(rax, qword_ptr(LOCKED))?;
    p.a.set_label(&mut retry)?;
    p.a.lea(rcx, ptr(rax + 1))?;
    p.a.lock().cmpxchg(qword_ptr(LOCKED), rcx)?;
    p.a.jne(retry)?;
    p.a.dec(rsi)?;
    p.a.jne(next)
}

/// All CPUs: SIZE plain increments under a lock.
fn spinlock(p: &mut Program) -> Asm {
    let (mut next, mut take, mut wait, mut taken) =
        (p.a.create_label(), p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.a.mov(rsi, qword_ptr(SIZE))?;
    p.a.set_label(&mut next)?;
    p.a.nop()?;
    p.a.set_label(&mut take)?;
    p.a.mov(eax, 1)?;
    p.a.xchg(dword_ptr(LOCK), eax)?;
    p.a.test(eax, eax)?;
    p.a.je(taken)?;
    p.a.set_label(&mut wait)?;
    p.a.pause()?;
    p.a.cmp(dword_ptr(LOCK), 0)?;
    p.a.jne(wait)?;
    p.a.jmp(take)?;
    p.a.set_label(&mut taken)?;
    p.a.mov(rax, qword_ptr(GUARDED))?;
    p.a.inc(rax)?;
    p.a.mov(qword_ptr(GUARDED), rax)?;
    p.a.mov(dword_ptr(LOCK), 0)?;
    p.a.dec(rsi)?;
    p.a.jne(next)
}

/// CPU 0 sends SIZE * 16 numbers, CPU 1 looks at flag and data.
fn messages(p: &mut Program) -> Asm {
    let (mut others, mut end, mut send, mut look, mut fine) =
        (p.a.create_label(), p.a.create_label(), p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.a.mov(rsi, qword_ptr(SIZE))?;
    p.a.shl(rsi, 4)?;
    p.a.test(ebx, ebx)?;
    p.a.jne(others)?;
    p.a.xor(eax, eax)?;
    p.a.set_label(&mut send)?;
    p.a.inc(rax)?;
    p.a.mov(qword_ptr(DATA), rax)?;
    p.a.mov(qword_ptr(FLAG), rax)?;
    p.a.cmp(rax, rsi)?;
    p.a.jb(send)?;
    p.a.jmp(end)?;
    p.a.set_label(&mut others)?;
    p.a.cmp(ebx, 1)?;
    p.a.jne(end)?;
    p.a.set_label(&mut look)?;
    p.a.mov(rax, qword_ptr(FLAG))?;
    p.a.mov(rcx, qword_ptr(DATA))?;
    p.a.cmp(rcx, rax)?;
    p.a.jae(fine)?;
    p.a.inc(qword_ptr(VIOLATIONS))?;
    p.a.set_label(&mut fine)?;
    p.a.cmp(rax, rsi)?;
    p.a.jb(look)?;
    p.a.set_label(&mut end)?;
    p.a.nop()
}

/// CPU `me`'s half of SIZE tries: store mine, maybe fence, load the other's.
fn store_then_load(p: &mut Program, me: usize, fence: bool) -> Asm {
    let (mut next, mut wait) = (p.a.create_label(), p.a.create_label());
    let other = 1 - me;
    p.a.xor(esi, esi)?;
    p.a.set_label(&mut next)?;
    p.a.mov(rdi, rsi)?;
    p.a.shl(rdi, 6)?;
    p.a.inc(rsi)?;
    // Both start each try at about the same time.
    p.a.mov(qword_ptr(TURNS[me]), rsi)?;
    p.a.set_label(&mut wait)?;
    p.a.cmp(qword_ptr(TURNS[other]), rsi)?;
    p.a.jb(wait)?;
    p.a.mov(qword_ptr(rdi + VARIABLES[me] as i32), 1)?;
    if fence {
        p.a.mfence()?;
    }
    p.a.mov(rax, qword_ptr(rdi + VARIABLES[other] as i32))?;
    p.a.mov(qword_ptr(rsi * 8 + SEEN[me] as i32 - 8), rax)?;
    p.a.cmp(rsi, qword_ptr(SIZE))?;
    p.a.jb(next)
}

/// CPUs 0 and 1 try; BOTH_BLIND counts the tries in which both saw nothing.
fn store_buffer(p: &mut Program, fence: bool) -> Asm {
    let (mut zeroed, mut second, mut done) = (p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.a.test(ebx, ebx)?;
    p.a.jne(zeroed)?;
    p.a.mov(edi, PATTERN as u32)?;
    p.a.mov(ecx, 0xa_0000 / 8)?;
    p.a.xor(eax, eax)?;
    p.a.rep().stosq()?;
    p.a.mov(qword_ptr(BOTH_BLIND), rax)?;
    for turn in TURNS {
        p.a.mov(qword_ptr(turn), rax)?;
    }
    p.a.set_label(&mut zeroed)?;
    p.a.nop()?;
    barrier(p)?;
    p.a.cmp(ebx, 1)?;
    p.a.ja(done)?;
    p.a.je(second)?;
    store_then_load(p, 0, fence)?;
    p.a.jmp(done)?;
    p.a.set_label(&mut second)?;
    p.a.nop()?;
    store_then_load(p, 1, fence)?;
    p.a.set_label(&mut done)?;
    p.a.nop()?;
    barrier(p)?;
    let (mut counted, mut next, mut seen) = (p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.a.test(ebx, ebx)?;
    p.a.jne(counted)?;
    p.a.xor(esi, esi)?;
    p.a.set_label(&mut next)?;
    p.a.mov(rax, qword_ptr(rsi * 8 + SEEN[0] as i32))?;
    p.a.or(rax, qword_ptr(rsi * 8 + SEEN[1] as i32))?;
    p.a.jne(seen)?;
    p.a.inc(qword_ptr(BOTH_BLIND))?;
    p.a.set_label(&mut seen)?;
    p.a.inc(rsi)?;
    p.a.cmp(rsi, qword_ptr(SIZE))?;
    p.a.jb(next)?;
    p.a.set_label(&mut counted)?;
    p.a.nop()
}

/// Notes the error `bit` unless the variable `at` is RAX.
fn must_be(p: &mut Program, at: u64, bit: u32) -> Asm {
    let mut same = p.a.create_label();
    p.a.cmp(qword_ptr(at), rax)?;
    p.a.je(same)?;
    p.a.or(dword_ptr(BAD), bit)?;
    p.a.set_label(&mut same)?;
    p.a.nop()
}

fn print_verdict(p: &mut Program, label: &str, bit: u32) -> Asm {
    let (mut bad, mut end) = (p.a.create_label(), p.a.create_label());
    p.a.test(byte_ptr(BAD), bit)?;
    p.a.jne(bad)?;
    p.print(&format!(" {label}=ok"))?;
    p.a.jmp(end)?;
    p.a.set_label(&mut bad)?;
    p.print(&format!(" {label}=BAD"))?;
    p.a.set_label(&mut end)?;
    p.a.nop()
}

/// On the first CPU: the round's line, and everything at zero for the next.
fn report(p: &mut Program) -> Asm {
    p.a.mov(rax, qword_ptr(SIZE))?;
    p.a.imul_2(rax, qword_ptr(COUNT))?;
    must_be(p, GUARDED, SPINLOCK_BAD)?;
    p.a.lea(rax, ptr(rax + rax * 2))?;
    must_be(p, LOCKED, LOCKED_BAD)?;
    p.a.xor(eax, eax)?;
    must_be(p, VIOLATIONS, MESSAGES_BAD)?;
    p.a.inc(qword_ptr(ROUND))?;
    p.print("round=")?;
    p.a.mov(rax, qword_ptr(ROUND))?;
    p.print_decimal(6)?;
    p.print_field(" cpus=", COUNT)?;
    print_verdict(p, "locked", LOCKED_BAD)?;
    print_verdict(p, "spinlock", SPINLOCK_BAD)?;
    print_verdict(p, "messages", MESSAGES_BAD)?;
    print_verdict(p, "fenced", FENCED_BAD)?;
    p.print_field(" reordered=", REORDERED)?;
    let (mut bad, mut end) = (p.a.create_label(), p.a.create_label());
    p.a.cmp(dword_ptr(BAD), 0)?;
    p.a.jne(bad)?;
    p.print(" ok\n")?;
    p.a.jmp(end)?;
    p.a.set_label(&mut bad)?;
    p.a.inc(qword_ptr(BAD_ROUNDS))?;
    p.print(" BAD\n")?;
    p.a.set_label(&mut end)?;
    p.a.xor(eax, eax)?;
    for variable in [LOCKED, GUARDED, DATA, FLAG, VIOLATIONS, BAD, REORDERED] {
        p.a.mov(qword_ptr(variable), rax)?;
    }
    let mut more = p.a.create_label();
    p.a.mov(rax, qword_ptr(ROUNDS))?;
    p.a.test(rax, rax)?;
    p.a.je(more)?;
    p.a.cmp(rax, qword_ptr(ROUND))?;
    p.a.ja(more)?;
    p.print_field("smp done: rounds=", ROUND)?;
    p.print_field(" bad=", BAD_ROUNDS)?;
    p.print("\n")?;
    p.service(Service::Reset)?;
    p.a.set_label(&mut more)?;
    p.a.nop()
}

/// The two tests of store buffers, where there are two CPUs.
fn store_buffers(p: &mut Program) -> Asm {
    let (mut skip, mut not_first, mut not_first_either) =
        (p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.a.cmp(qword_ptr(COUNT), 1)?;
    p.a.jbe(skip)?;
    store_buffer(p, false)?;
    p.a.test(ebx, ebx)?;
    p.a.jne(not_first)?;
    p.a.mov(rax, qword_ptr(BOTH_BLIND))?;
    p.a.mov(qword_ptr(REORDERED), rax)?;
    p.a.set_label(&mut not_first)?;
    p.a.nop()?;
    barrier(p)?;
    store_buffer(p, true)?;
    p.a.test(ebx, ebx)?;
    p.a.jne(not_first_either)?;
    p.a.xor(eax, eax)?;
    must_be(p, BOTH_BLIND, FENCED_BAD)?;
    p.a.set_label(&mut not_first_either)?;
    p.a.nop()?;
    p.a.set_label(&mut skip)?;
    p.a.nop()
}

pub(crate) fn build() -> Asm<Vec<u8>> {
    let mut p = Program::new()?;
    let (mut others, mut round, mut too_late, mut reported) =
        (p.a.create_label(), p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.a.xor(r15d, r15d)?;
    p.a.test(ebx, ebx)?;
    p.a.jne(others)?;
    start(&mut p)?;
    p.a.set_label(&mut others)?;
    p.a.pause()?;
    p.a.cmp(dword_ptr(GO), 0)?;
    p.a.je(others)?;
    // One that came after the count takes no part.
    p.a.set_label(&mut too_late)?;
    p.a.pause()?;
    p.a.cmp(ebx, dword_ptr(COUNT))?;
    p.a.jae(too_late)?;

    p.a.set_label(&mut round)?;
    p.a.nop()?;
    barrier(&mut p)?;
    locked(&mut p)?;
    spinlock(&mut p)?;
    let mut alone = p.a.create_label();
    p.a.cmp(qword_ptr(COUNT), 1)?;
    p.a.jbe(alone)?;
    messages(&mut p)?;
    p.a.set_label(&mut alone)?;
    p.a.nop()?;
    barrier(&mut p)?;
    store_buffers(&mut p)?;
    p.a.test(ebx, ebx)?;
    p.a.jne(reported)?;
    report(&mut p)?;
    p.a.set_label(&mut reported)?;
    p.a.jmp(round)?;
    p.finish_smp()
}
