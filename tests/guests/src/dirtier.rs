//! The guest that dirties memory at a set rate while it is moved, and misses no write.
//!
//! It sweeps over its pages again and again. Each page carries its own number and the sweep that
//! wrote it last; before a sweep writes a page it verifies what the sweep before left there, so a
//! page lost, stale or mixed up by a migration is seen. A line a second:
//!
//! ```text
//! t=000007 pages=120000 sweep=13 gap_us=1000020 max_gap_us=1000310 stall_us=10020 ok
//! ```
//!
//! `t` goes up by one from 1, `pages` were written since the last line, in sweep `sweep`;
//! `gap_us` is the time since the last line and `max_gap_us` the longest ever, by the TSC.
//! `stall_us` is the longest time between two looks at the TSC since the last line; it looks before
//! each page and when it wakes up from HLT, with `watch=1` also all the time that it has nothing to
//! write: then this is for how long it stood still, to some microseconds. Last comes `ok`, or `BAD pages=N first=P` with the number of wrong pages and the first of them.
//!
//! Options on the kernel command line: `mib` (MiB to sweep, from 16 MiB up; 256), `pages_per_s`
//! (120000; 0 for as fast as it can), `lines` (then reset; 0, for ever), `watch` (0).

use crate::kernel::Service;
use crate::layout::*;
use crate::program::{Asm, Program, TICKS_PER_SECOND};
use iced_x86::code_asm::*;

const PAGES: u64 = VARS;
const RATE: u64 = VARS + 0x08;
const LINES: u64 = VARS + 0x10;
const SWEEP: u64 = VARS + 0x18;
const CURSOR: u64 = VARS + 0x20;
const DEADLINE: u64 = VARS + 0x28;
const LAST_TICK: u64 = VARS + 0x30;
const LEFT_OVER: u64 = VARS + 0x38;
const WRITTEN: u64 = VARS + 0x40;
const T: u64 = VARS + 0x48;
const LAST_LINE: u64 = VARS + 0x50;
const GAP: u64 = VARS + 0x58;
const MAX_GAP: u64 = VARS + 0x60;
const BAD: u64 = VARS + 0x68;
const FIRST_BAD: u64 = VARS + 0x70;
const BAD_LINES: u64 = VARS + 0x78;
const LAST_LOOK: u64 = VARS + 0x80;
const STALL: u64 = VARS + 0x88;
const WATCH: u64 = VARS + 0x90;
const TEMPLATE: u64 = VARS + 0x2000;

/// Ticks that are made up for when the program falls behind.
const CATCH_UP_TICKS: u32 = 10;
/// Pages between two looks at the clock at full speed.
const BURST: u32 = 64;
/// Words of a page between its first and last.
const INNER_WORDS: u32 = 510;

/// RBP = address of page RBX.
fn page_address(p: &mut Program) -> Asm {
    p.a.mov(rbp, rbx)?;
    p.a.shl(rbp, 12)?;
    p.a.add(rbp, FILL as i32)
}

/// RAX = the stamp of page RBX in sweep R13, RCX = the inner word that carries it too.
fn stamp(p: &mut Program) -> Asm {
    p.a.mov(rax, r13)?;
    p.a.xor(edx, edx)?;
    p.a.mov(ecx, INNER_WORDS)?;
    p.a.div(rcx)?;
    p.a.lea(r9, ptr(rdx + 1))?;
    p.a.mov(rax, rbx)?;
    p.a.mov(rcx, r13)?;
    p.mix()?;
    p.a.mov(rcx, r9)
}

/// Writes the stamp RAX, RCX into the page at RBP.
fn write_stamp(p: &mut Program) -> Asm {
    p.a.mov(qword_ptr(rbp), rax)?;
    p.a.mov(qword_ptr(rbp + rcx * 8), rax)?;
    p.a.not(rax)?;
    p.a.mov(qword_ptr(rbp + 4088), rax)
}

/// Looks at the clock; clobbers RAX, RCX and RDX.
fn look(p: &mut Program) -> Asm {
    let mut shorter = p.a.create_label();
    p.read_tsc()?;
    p.a.mov(rcx, rax)?;
    p.a.sub(rax, qword_ptr(LAST_LOOK))?;
    p.a.mov(qword_ptr(LAST_LOOK), rcx)?;
    p.a.cmp(rax, qword_ptr(STALL))?;
    p.a.jbe(shorter)?;
    p.a.mov(qword_ptr(STALL), rax)?;
    p.a.set_label(&mut shorter)?;
    p.a.nop()
}

/// Options, then sweep 0: every page gets the template and its stamp.
fn start(p: &mut Program) -> Asm {
    p.option("mib", 256, PAGES)?;
    p.option("pages_per_s", 120_000, RATE)?;
    p.option("lines", 0, LINES)?;
    p.option("watch", 0, WATCH)?;
    p.a.shl(qword_ptr(PAGES), 8)?;
    p.print_field("dirtier: booted_by=", BOOTED_BY)?;
    p.print_field(" tsc_khz=", TSC_KHZ)?;
    p.print_field(" time_source=", TIME_SOURCE)?;
    p.print_field(" pages=", PAGES)?;
    p.print_field(" pages_per_s=", RATE)?;
    p.print("\n")?;
    let (mut some, mut template, mut page) = (p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.a.cmp(qword_ptr(PAGES), 0)?;
    p.a.jne(some)?;
    p.a.mov(qword_ptr(PAGES), 1)?;
    p.a.set_label(&mut some)?;
    p.a.xor(ebx, ebx)?;
    p.a.set_label(&mut template)?;
    p.a.mov(eax, ebx)?;
    p.a.mov(ecx, 1000)?;
    p.mix()?;
    p.a.mov(qword_ptr(rbx * 8 + TEMPLATE as i32), rax)?;
    p.a.inc(ebx)?;
    p.a.cmp(ebx, 512)?;
    p.a.jb(template)?;
    p.a.xor(ebx, ebx)?;
    p.a.xor(r13d, r13d)?;
    p.a.set_label(&mut page)?;
    page_address(p)?;
    p.a.mov(rdi, rbp)?;
    p.a.mov(esi, TEMPLATE as u32)?;
    p.a.mov(ecx, 512)?;
    p.a.rep().movsq()?;
    stamp(p)?;
    write_stamp(p)?;
    p.a.inc(rbx)?;
    p.a.cmp(rbx, qword_ptr(PAGES))?;
    p.a.jb(page)?;
    p.a.mov(qword_ptr(SWEEP), 1)?;
    p.read_tsc()?;
    p.a.mov(qword_ptr(LAST_LINE), rax)?;
    p.a.mov(qword_ptr(LAST_LOOK), rax)?;
    p.a.mov(rax, qword_ptr(TICKS))?;
    p.a.mov(qword_ptr(LAST_TICK), rax)?;
    p.a.add(rax, TICKS_PER_SECOND as i32)?;
    p.a.mov(qword_ptr(DEADLINE), rax)
}

/// R12 = pages to write now; at a set rate this waits for the next tick.
fn budget(p: &mut Program) -> Asm {
    let (mut again, mut ticked, mut few, mut full, mut end) =
        (p.a.create_label(), p.a.create_label(), p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.a.cmp(qword_ptr(RATE), 0)?;
    p.a.je(full)?;
    p.a.set_label(&mut again)?;
    look(p)?;
    p.a.mov(rcx, qword_ptr(TICKS))?;
    p.a.mov(rax, rcx)?;
    p.a.sub(rax, qword_ptr(LAST_TICK))?;
    p.a.jne(ticked)?;
    p.a.cmp(qword_ptr(WATCH), 0)?;
    p.a.jne(again)?;
    p.service(Service::Wait)?;
    p.a.jmp(again)?;
    p.a.set_label(&mut ticked)?;
    p.a.mov(qword_ptr(LAST_TICK), rcx)?;
    p.a.cmp(rax, CATCH_UP_TICKS as i32)?;
    p.a.jbe(few)?;
    p.a.mov(eax, CATCH_UP_TICKS)?;
    p.a.set_label(&mut few)?;
    p.a.imul_2(rax, qword_ptr(RATE))?;
    p.a.add(rax, qword_ptr(LEFT_OVER))?;
    p.a.xor(edx, edx)?;
    p.a.mov(ecx, TICKS_PER_SECOND)?;
    p.a.div(rcx)?;
    p.a.mov(qword_ptr(LEFT_OVER), rdx)?;
    p.a.mov(r12, rax)?;
    p.a.jmp(end)?;
    p.a.set_label(&mut full)?;
    p.a.mov(r12d, BURST)?;
    p.a.set_label(&mut end)?;
    p.a.add(qword_ptr(WRITTEN), r12)
}

/// Verifies and writes the next R12 pages.
fn sweep(p: &mut Program) -> Asm {
    let (mut next, mut bad, mut counted, mut good, mut inside, mut end) = (
        p.a.create_label(),
        p.a.create_label(),
        p.a.create_label(),
        p.a.create_label(),
        p.a.create_label(),
        p.a.create_label(),
    );
    p.a.set_label(&mut next)?;
    p.a.test(r12, r12)?;
    p.a.je(end)?;
    look(p)?;
    p.a.mov(rbx, qword_ptr(CURSOR))?;
    page_address(p)?;
    p.a.mov(r13, qword_ptr(SWEEP))?;
    p.a.dec(r13)?;
    stamp(p)?;
    p.a.cmp(rax, qword_ptr(rbp))?;
    p.a.jne(bad)?;
    p.a.cmp(rax, qword_ptr(rbp + rcx * 8))?;
    p.a.jne(bad)?;
    p.a.not(rax)?;
    p.a.cmp(rax, qword_ptr(rbp + 4088))?;
    p.a.je(good)?;
    p.a.set_label(&mut bad)?;
    p.a.inc(qword_ptr(BAD))?;
    p.a.cmp(qword_ptr(BAD), 1)?;
    p.a.jne(counted)?;
    p.a.mov(qword_ptr(FIRST_BAD), rbx)?;
    p.a.set_label(&mut counted)?;
    p.a.nop()?;
    p.a.set_label(&mut good)?;
    p.a.inc(r13)?;
    stamp(p)?;
    write_stamp(p)?;
    p.a.inc(rbx)?;
    p.a.cmp(rbx, qword_ptr(PAGES))?;
    p.a.jb(inside)?;
    p.a.xor(ebx, ebx)?;
    p.a.inc(qword_ptr(SWEEP))?;
    p.a.set_label(&mut inside)?;
    p.a.mov(qword_ptr(CURSOR), rbx)?;
    p.a.dec(r12)?;
    p.a.jmp(next)?;
    p.a.set_label(&mut end)?;
    p.a.nop()
}

fn print_line(p: &mut Program) -> Asm {
    let (mut shorter, mut bad, mut end) = (p.a.create_label(), p.a.create_label(), p.a.create_label());
    p.a.inc(qword_ptr(T))?;
    p.read_tsc()?;
    p.a.mov(rcx, rax)?;
    p.a.sub(rax, qword_ptr(LAST_LINE))?;
    p.a.mov(qword_ptr(LAST_LINE), rcx)?;
    p.micros()?;
    p.a.mov(qword_ptr(GAP), rax)?;
    p.a.cmp(rax, qword_ptr(MAX_GAP))?;
    p.a.jbe(shorter)?;
    p.a.mov(qword_ptr(MAX_GAP), rax)?;
    p.a.set_label(&mut shorter)?;
    p.print("t=")?;
    p.a.mov(rax, qword_ptr(T))?;
    p.print_decimal(6)?;
    p.print_field(" pages=", WRITTEN)?;
    p.print_field(" sweep=", SWEEP)?;
    p.print_field(" gap_us=", GAP)?;
    p.print_field(" max_gap_us=", MAX_GAP)?;
    p.print(" stall_us=")?;
    p.a.mov(rax, qword_ptr(STALL))?;
    p.micros()?;
    p.print_decimal(1)?;
    p.a.mov(qword_ptr(STALL), 0)?;
    p.a.mov(qword_ptr(WRITTEN), 0)?;
    p.a.cmp(qword_ptr(BAD), 0)?;
    p.a.jne(bad)?;
    p.print(" ok\n")?;
    p.a.jmp(end)?;
    p.a.set_label(&mut bad)?;
    p.print_field(" BAD pages=", BAD)?;
    p.print_field(" first=", FIRST_BAD)?;
    p.print("\n")?;
    p.a.mov(qword_ptr(BAD), 0)?;
    p.a.inc(qword_ptr(BAD_LINES))?;
    p.a.set_label(&mut end)?;
    p.a.nop()
}

pub(crate) fn build() -> Asm<Vec<u8>> {
    let mut p = Program::new()?;
    start(&mut p)?;
    let (mut round, mut in_time) = (p.a.create_label(), p.a.create_label());
    p.a.set_label(&mut round)?;
    budget(&mut p)?;
    sweep(&mut p)?;
    p.a.mov(rax, qword_ptr(TICKS))?;
    p.a.mov(rcx, qword_ptr(DEADLINE))?;
    p.a.cmp(rax, rcx)?;
    p.a.jb(round)?;
    p.a.add(rcx, TICKS_PER_SECOND as i32)?;
    p.a.cmp(rcx, rax)?;
    p.a.ja(in_time)?;
    p.a.lea(rcx, ptr(rax + TICKS_PER_SECOND as i32))?;
    p.a.set_label(&mut in_time)?;
    p.a.mov(qword_ptr(DEADLINE), rcx)?;
    print_line(&mut p)?;
    p.a.mov(rax, qword_ptr(LINES))?;
    p.a.test(rax, rax)?;
    p.a.je(round)?;
    p.a.cmp(rax, qword_ptr(T))?;
    p.a.ja(round)?;
    p.print_field("dirtier done: lines=", T)?;
    p.print_field(" bad=", BAD_LINES)?;
    p.print("\n")?;
    p.service(Service::Reset)?;
    p.finish()
}

/// What is wrong with the dirtier's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineError {
    /// A line that is not well-formed, or not the one after the last.
    Sequence {
        /// The number due.
        expected: u64,
        /// The line.
        line: String,
    },
    /// The guest found wrong pages.
    Guest(String),
}

impl std::fmt::Display for LineError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sequence { expected, line } => {
                write!(f, "line {expected} was due, there came {line:?}")
            }
            Self::Guest(line) => write!(f, "the guest found wrong pages: {line:?}"),
        }
    }
}

impl std::error::Error for LineError {}

/// Follows the dirtier from its first line.
#[derive(Clone, Debug, Default)]
pub struct Checker {
    t: u64,
    pages: u64,
    max_gap_us: u64,
    stall_us: u64,
}

impl Checker {
    /// A checker that awaits line 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lines seen, all of them right.
    pub fn lines(&self) -> u64 {
        self.t
    }

    /// Pages written in all.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The longest silence between two lines, in microseconds by the guest's TSC.
    pub fn max_gap_us(&self) -> u64 {
        self.max_gap_us
    }

    /// How long it stood still at most before the last line, in microseconds by its TSC: see `stall_us`.
    pub fn stall_us(&self) -> u64 {
        self.stall_us
    }

    /// Checks one line of output; `Ok(false)` for what is no line of the dirtier's.
    pub fn check_line(&mut self, text: &str) -> Result<bool, LineError> {
        let text = text.trim_end();
        if !text.starts_with("t=") {
            return Ok(false);
        }
        let mut words = text.split(' ');
        let mut field =
            |name: &str| -> Option<u64> { words.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok() };
        let fields = (field("t"), field("pages"), field("sweep"), field("gap_us"), field("max_gap_us"));
        let stall = field("stall_us");
        let wrong = || LineError::Sequence { expected: self.t + 1, line: text.to_owned() };
        let ((Some(t), Some(pages), Some(_), Some(_), Some(max_gap_us)), Some(stall_us)) = (fields, stall)
        else {
            return Err(wrong());
        };
        if t != self.t + 1 {
            return Err(wrong());
        }
        self.stall_us = stall_us;
        if words.next() != Some("ok") || words.next().is_some() {
            return Err(LineError::Guest(text.to_owned()));
        }
        self.t = t;
        self.pages += pages;
        self.max_gap_us = self.max_gap_us.max(max_gap_us);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_lines_and_refuses_others() {
        let line =
            |t: u64, end: &str| format!("t={t:06} pages=5 sweep=1 gap_us=7 max_gap_us=9 stall_us=4 {end}");
        let mut checker = Checker::new();
        assert_eq!(checker.check_line("dirtier: booted_by=1"), Ok(false));
        assert_eq!(checker.check_line(&line(1, "ok")), Ok(true));
        assert!(matches!(checker.check_line(&line(3, "ok")), Err(LineError::Sequence { .. })));
        assert!(matches!(checker.check_line("t=000002 pa"), Err(LineError::Sequence { .. })));
        let bad = line(2, "BAD pages=1 first=77");
        assert!(matches!(checker.check_line(&bad), Err(LineError::Guest(_))));
        assert_eq!(
            (checker.lines(), checker.pages(), checker.max_gap_us(), checker.stall_us()),
            (1, 5, 9, 4)
        );
    }
}
