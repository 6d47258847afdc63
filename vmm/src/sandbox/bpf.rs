//! From rules to the classic BPF program that the kernel runs at each system call.
//!
//! Called by `Policy`. Own and small because the filters must exist on every host architecture; the byte order only
//! decides which half of an argument is its low word. Layout of what a program reads: `struct seccomp_data`.

use super::layout::{self, Deed};

/// One instruction, as the kernel takes it.
pub type Instruction = libc::sock_filter;

/// Program length that the kernel takes at most (BPF_MAXINSNS).
const MAX_LEN: usize = 4096;

/// What a value is compared for. All are on the low 32 bits of an argument unless said otherwise. Comparisons are unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Argument `index` equals `value`.
    Eq {
        /// 0 to 5.
        index: u8,
        /// The value.
        value: u32,
    },
    /// All 64 bits of argument `index` equal `value`.
    Eq64 {
        /// 0 to 5.
        index: u8,
        /// The value.
        value: u64,
    },
    /// Argument `index` does not equal `value`.
    Ne {
        /// 0 to 5.
        index: u8,
        /// The value.
        value: u32,
    },
    /// Argument `index` equals `value` in the bits of `mask`.
    Masked {
        /// 0 to 5.
        index: u8,
        /// The bits that count.
        mask: u32,
        /// The value.
        value: u32,
    },
    /// All 64 bits of argument `index` do not equal `value`.
    Ne64 {
        /// 0 to 5.
        index: u8,
        /// The value.
        value: u64,
    },
    /// All 64 bits of argument `index` equal `value` in the bits of `mask`.
    Masked64 {
        /// 0 to 5.
        index: u8,
        /// The bits that count.
        mask: u64,
        /// The value.
        value: u64,
    },
    /// All 64 bits of argument `index` are greater than `value`, or not.
    Greater {
        /// 0 to 5.
        index: u8,
        /// The value.
        value: u64,
        /// Whether they should be.
        than: bool,
    },
}

impl Check {
    /// Whether it holds of a call's arguments.
    #[must_use]
    pub fn holds(&self, args: &[u64; 6]) -> bool {
        let arg = |index: u8| args[usize::from(index) % 6];
        let low = |index: u8| (arg(index) & 0xffff_ffff) as u32;
        match *self {
            Check::Eq { index, value } => low(index) == value,
            Check::Eq64 { index, value } => arg(index) == value,
            Check::Ne { index, value } => low(index) != value,
            Check::Masked { index, mask, value } => low(index) & mask == value,
            Check::Ne64 { index, value } => arg(index) != value,
            Check::Masked64 { index, mask, value } => arg(index) & mask == value,
            Check::Greater { index, value, than } => (arg(index) > value) == than,
        }
    }
}

/// What happens at a call that a rule fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is made.
    Allow,
    /// It fails with this error number.
    Errno(u16),
    /// The thread gets SIGSYS, which ends the process with a message.
    Trap,
    /// The process is killed at once.
    KillProcess,
    /// The thread is killed at once.
    KillThread,
    /// It is made, and noted in the kernel's log.
    Log,
    /// A tracer is told, with this number; without one it fails.
    Trace(u16),
}

impl Answer {
    fn code(self) -> u32 {
        match self {
            Answer::Allow => libc::SECCOMP_RET_ALLOW,
            Answer::Errno(n) => libc::SECCOMP_RET_ERRNO | u32::from(n),
            Answer::Trap => libc::SECCOMP_RET_TRAP,
            Answer::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
            Answer::KillThread => libc::SECCOMP_RET_KILL_THREAD,
            Answer::Log => libc::SECCOMP_RET_LOG,
            Answer::Trace(n) => libc::SECCOMP_RET_TRACE | u32::from(n),
        }
    }
}

/// A system call with conditions that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its number.
    pub number: i64,
    /// Conditions.
    pub checks: Vec<Check>,
    /// What happens then.
    pub answer: Answer,
}

/// The architecture that a program is for.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// `AUDIT_ARCH_*`.
    pub audit: u32,
    /// Byte order of `struct seccomp_data`.
    pub big_endian: bool,
    /// Calls with this bit are another ABI's (x32) and never meant.
    pub foreign_bit: Option<u32>,
}

impl Target {
    /// This host; none where the kernel's number for it is not known here.
    #[must_use]
    pub fn host() -> Option<Self> {
        const LE64: u32 = 0xc000_0000;
        const BE64: u32 = 0x8000_0000;
        let big_endian = cfg!(target_endian = "big");
        // linux/audit.h: 64 bits, byte order and the ELF machine.
        let audit = match std::env::consts::ARCH {
            "x86_64" => LE64 | 62,
            "aarch64" if !big_endian => LE64 | 183,
            "riscv64" => LE64 | 243,
            "s390x" => BE64 | 22,
            "powerpc64" => (if big_endian { BE64 } else { LE64 }) | 21,
            "sparc64" => BE64 | 43,
            "loongarch64" => LE64 | 258,
            _ => return None,
        };
        Some(Self { audit, big_endian, foreign_bit: cfg!(target_arch = "x86_64").then_some(0x4000_0000) })
    }
}

pub(super) fn statement(code: u32, k: u32) -> Instruction {
    // Codes are 16 bits.
    Instruction { code: (code & 0xffff) as u16, jt: 0, jf: 0, k }
}

fn load(offset: u32) -> Instruction {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

/// Stands in a comparison until the way from there to the end of its rule is known: the rule does not fit.
const FAIL: u8 = u8::MAX;

/// Compares by `code` (BPF_JEQ and its kin): how many instructions it then skips, if so and if not.
pub(super) fn compare(code: u32, value: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { jt, jf, ..statement(libc::BPF_JMP | code | libc::BPF_K, value) }
}

/// Goes on if equal.
fn equal(value: u32) -> Instruction {
    compare(libc::BPF_JEQ, value, 0, FAIL)
}

/// Loads the low word of an argument. Each is 8 bytes, from byte 16 on; its low word comes first in little-endian order.
fn low(index: u8, target: Target) -> Instruction {
    load(16 + 8 * u32::from(index & 7) + if target.big_endian { 4 } else { 0 })
}

fn checks(rule: &Rule, target: Target) -> Vec<Instruction> {
    let low = |index: u8| low(index, target);
    let high = |index: u8| load(16 + 8 * u32::from(index & 7) + if target.big_endian { 0 } else { 4 });
    let and = |mask: u32| statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask);
    let halves = |value: u64| ((value >> 32) as u32, (value & 0xffff_ffff) as u32);
    let mut code = Vec::new();
    for check in &rule.checks {
        match *check {
            Check::Eq { index, value } => code.extend([low(index), equal(value)]),
            Check::Ne { index, value } => code.extend([low(index), compare(libc::BPF_JEQ, value, FAIL, 0)]),
            Check::Eq64 { index, value } => {
                let (up, down) = halves(value);
                code.extend([low(index), equal(down), high(index), equal(up)]);
            }
            Check::Ne64 { index, value } => {
                let (up, down) = halves(value);
                // One half that differs is enough.
                code.extend([low(index), compare(libc::BPF_JEQ, down, 0, 2)]);
                code.extend([high(index), compare(libc::BPF_JEQ, up, FAIL, 0)]);
            }
            Check::Masked { index, mask, value } => code.extend([low(index), and(mask), equal(value)]),
            Check::Masked64 { index, mask, value } => {
                let ((up, down), (mask_up, mask_down)) = (halves(value), halves(mask));
                code.extend([low(index), and(mask_down), equal(down)]);
                code.extend([high(index), and(mask_up), equal(up)]);
            }
            Check::Greater { index, value, than } => {
                let (up, down) = halves(value);
                // The upper halves decide, unless they are equal.
                let (above, below) = if than { (3, FAIL) } else { (FAIL, 2) };
                let (jt, jf) = if than { (0, FAIL) } else { (FAIL, 0) };
                code.extend([high(index), compare(libc::BPF_JGT, up, above, 0)]);
                code.push(compare(libc::BPF_JEQ, up, 0, below));
                code.extend([low(index), compare(libc::BPF_JGT, down, jt, jf)]);
            }
        }
    }
    code.push(statement(libc::BPF_RET | libc::BPF_K, rule.answer.code()));
    // A failed comparison goes to what follows the rule.
    let len = code.len();
    for (at, i) in code.iter_mut().enumerate().filter(|(_, i)| u32::from(i.code) & 7 == libc::BPF_JMP) {
        let skip = u8::try_from(len - at - 1).unwrap_or(u8::MAX);
        for jump in [&mut i.jt, &mut i.jf] {
            if *jump == FAIL {
                *jump = skip;
            }
        }
    }
    code
}

/// What happens at a call that has these rules, the first that fits deciding.
fn deed(rules: &[(u32, &Rule)], default: u32, target: Target) -> Deed {
    // What the only check compares with, and what with it decides.
    let alternative = |rule: &Rule| match rule.checks[..] {
        [Check::Eq { index, value }] => Some((index, rule.answer, value)),
        _ => None,
    };
    if let [(_, rule), ..] = rules
        && rule.checks.is_empty()
    {
        return Deed::Always(rule.answer.code());
    }
    let mut code = Vec::new();
    let alike = |a: &Rule, b: &Rule| match (alternative(a), alternative(b)) {
        (Some(a), Some(b)) => (a.0, a.1) == (b.0, b.1),
        _ => false,
    };
    for run in rules.chunk_by(|a, b| alike(a.1, b.1)) {
        let values: Vec<u32> = run.iter().filter_map(|(_, rule)| alternative(rule).map(|a| a.2)).collect();
        match alternative(run[0].1) {
            Some((index, answer, _)) => {
                code.push(low(index, target));
                layout::one_of(&values, answer.code(), &mut code);
            }
            None => code.extend(checks(run[0].1, target)),
        }
    }
    code.push(layout::ret(default));
    Deed::Asks(code)
}

/// Compiles rules; calls that fit none get `default`. None: longer than the kernel takes.
#[must_use]
pub fn compile(rules: &[Rule], default: Answer, target: Target) -> Option<Vec<Instruction>> {
    let default = default.code();
    let mut by_call = Vec::with_capacity(rules.len());
    for rule in rules {
        if rule.checks.len() > 12 {
            return None;
        }
        by_call.push((u32::try_from(rule.number).ok()?, rule));
    }
    let first = by_call.first().map(|(number, _)| *number);
    // The rules of one call stay in their order.
    by_call.sort_by_key(|(number, _)| *number);
    let mut calls: Vec<(u32, Deed)> =
        by_call.chunk_by(|a, b| a.0 == b.0).map(|rules| (rules[0].0, deed(rules, default, target))).collect();
    let kill = layout::ret(Answer::KillProcess.code());
    let mut code = vec![load(4), compare(libc::BPF_JEQ, target.audit, 1, 0), kill, load(0)];
    if let Some(bit) = target.foreign_bit {
        let jset = statement(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, bit);
        code.extend([Instruction { jt: 0, jf: 1, ..jset }, kill]);
    }
    // The first rule's call, which is made most, by itself.
    if let Some(place) = calls.iter().position(|(number, _)| Some(*number) == first) {
        let (number, deed) = calls.remove(place);
        layout::at(number, &deed, &mut code)?;
    }
    layout::tree(&calls, default, &mut code)?;
    (code.len() <= MAX_LEN).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's interpreter, as far as programs made here go.
    fn run(code: &[Instruction], target: Target, arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            0 => number,
            4 => arch,
            _ => {
                let arg = args[(offset as usize - 16) / 8];
                let first = offset.is_multiple_of(8);
                if first == target.big_endian { (arg >> 32) as u32 } else { arg as u32 }
            }
        };
        let (mut at, mut a) = (0, 0);
        loop {
            let i = code[at];
            at += 1;
            match u32::from(i.code) {
                0x20 => a = word(i.k),
                0x54 => a &= i.k,
                0x15 => at += usize::from(if a == i.k { i.jt } else { i.jf }),
                0x25 => at += usize::from(if a > i.k { i.jt } else { i.jf }),
                0x35 => at += usize::from(if a >= i.k { i.jt } else { i.jf }),
                0x45 => at += usize::from(if a & i.k != 0 { i.jt } else { i.jf }),
                0x05 => at += i.k as usize,
                0x06 => return i.k,
                other => panic!("code {other:#x}"),
            }
        }
    }

    #[test]
    fn programs_decide_alike_in_both_byte_orders() {
        let rule = |number, checks: &[Check], answer| Rule { number, checks: checks.to_vec(), answer };
        let mut rules = vec![
            rule(16, &[Check::Eq { index: 1, value: 0xae80 }], Answer::Allow),
            rule(
                9,
                &[Check::Masked { index: 2, mask: 4, value: 0 }, Check::Ne { index: 0, value: 7 }],
                Answer::Allow,
            ),
            rule(1, &[], Answer::Allow),
            rule(56, &[Check::Eq64 { index: 0, value: 0x1_0000_0002 }], Answer::Allow),
            rule(435, &[], Answer::Errno(38)),
        ];
        // More alternatives than a conditional jump could reach over.
        rules.extend((0..200).map(|i| rule(16, &[Check::Eq { index: 1, value: 0x4000 + i }], Answer::Allow)));
        let (allow, trap, kill) =
            (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_TRAP, libc::SECCOMP_RET_KILL_PROCESS);
        for target in [
            Target { audit: 0xc000_003e, big_endian: false, foreign_bit: Some(0x4000_0000) },
            Target { audit: 0x8000_0016, big_endian: true, foreign_bit: None },
        ] {
            let code = compile(&rules, Answer::Trap, target).unwrap();
            let case = |number, args| run(&code, target, target.audit, number, args);
            let table: &[(u32, [u64; 6], u32)] = &[
                (1, [0; 6], allow),
                (2, [0; 6], trap),
                (16, [3, 0xae80, 0, 0, 0, 0], allow),
                (16, [3, 0x5_0000_ae80, 0, 0, 0, 0], allow),
                (16, [3, 0x40c7, 0, 0, 0, 0], allow),
                (16, [3, 0x40c8, 0, 0, 0, 0], trap),
                (16, [0xae80, 0, 0, 0, 0, 0], trap),
                (9, [0, 0, 3, 0, 0, 0], allow),
                (9, [0, 0, 7, 0, 0, 0], trap),
                (9, [7, 0, 3, 0, 0, 0], trap),
                (56, [0x1_0000_0002, 0, 0, 0, 0, 0], allow),
                (56, [2, 0, 0, 0, 0, 0], trap),
                (56, [0x2_0000_0001, 0, 0, 0, 0, 0], trap),
                (435, [0; 6], libc::SECCOMP_RET_ERRNO | 38),
            ];
            for (number, args, want) in table {
                assert_eq!(case(*number, *args), *want, "{number} {args:x?} {target:?}");
            }
            assert_eq!(run(&code, target, 0x4000_0003, 1, [0; 6]), kill);
            if target.foreign_bit.is_some() {
                assert_eq!(case(0x4000_0001, [0; 6]), kill);
            }
        }
    }

    #[test]
    fn every_check_decides_as_it_says() {
        let edges: Vec<u64> = [0u64, 1, 5, 0x7fff_ffff, 0xffff_fffe, 0xffff_ffff]
            .iter()
            .flat_map(|low| [0u64, 1, 0x8000_0000, 0xffff_ffff].map(|high| high << 32 | low))
            .collect();
        let of = |value: u64, mask: u64| {
            let (index, low) = (3, (value & 0xffff_ffff) as u32);
            [
                Check::Eq { index, value: low },
                Check::Ne { index, value: low },
                Check::Eq64 { index, value },
                Check::Ne64 { index, value },
                Check::Masked {
                    index,
                    mask: (mask & 0xffff_ffff) as u32,
                    value: low & (mask & 0xffff_ffff) as u32,
                },
                Check::Masked64 { index, mask, value: value & mask },
                Check::Greater { index, value, than: true },
                Check::Greater { index, value, than: false },
            ]
        };
        for target in [
            Target { audit: 7, big_endian: false, foreign_bit: None },
            Target { audit: 7, big_endian: true, foreign_bit: None },
        ] {
            for check in edges.iter().flat_map(|v| edges.iter().flat_map(|m| of(*v, *m))) {
                // A second one behind it shows that a check which holds goes on with the next.
                let rule = Rule {
                    number: 1,
                    checks: vec![check, Check::Eq { index: 0, value: 9 }],
                    answer: Answer::Allow,
                };
                let code = compile(&[rule], Answer::Trap, target).unwrap();
                for (arg, first) in edges.iter().flat_map(|a| [(*a, 9), (*a, 8)]) {
                    let args = [first, 0, 0, arg, 0, 0];
                    let allowed = run(&code, target, 7, 1, args) == libc::SECCOMP_RET_ALLOW;
                    assert_eq!(allowed, check.holds(&args) && first == 9, "{check:?} {arg:#x} {target:?}");
                }
            }
        }
    }

    #[test]
    fn what_the_kernel_would_refuse_is_none() {
        let target = Target { audit: 1, big_endian: false, foreign_bit: None };
        let rule = |i: i64| Rule { number: i, checks: vec![], answer: Answer::Allow };
        assert!(compile(&(0..4000).map(rule).collect::<Vec<_>>(), Answer::Trap, target).is_none());
        assert!(compile(&[rule(-1)], Answer::Trap, target).is_none());
    }

    #[test]
    fn programs_decide_as_their_rules_do() {
        // Few numbers and values, so that calls have several rules and arguments hit them.
        let mut seed = 1u64;
        let mut draw = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        let target = Target { audit: 1, big_endian: false, foreign_bit: None };
        for _ in 0..200 {
            let rules: Vec<Rule> = (0..draw(120) + 1)
                .map(|_| {
                    let checks = (0..draw(3)).map(|_| {
                        let (index, value) = (draw(2) as u8, draw(4) as u32);
                        match draw(6) {
                            0 => Check::Ne { index, value },
                            1 => Check::Masked { index, mask: 2, value: value & 2 },
                            2 => Check::Eq64 { index, value: u64::from(value) },
                            _ => Check::Eq { index, value },
                        }
                    });
                    let checks = checks.collect();
                    let answer =
                        [Answer::Allow, Answer::Allow, Answer::Log, Answer::Errno(5)][draw(4) as usize];
                    Rule { number: draw(60) as i64, checks, answer }
                })
                .collect();
            let code = compile(&rules, Answer::Trap, target).unwrap();
            for number in 0..61 {
                for (a, b) in (0..5).flat_map(|a| (0..5).map(move |b| (a, b))) {
                    let args = [a, b, 0, 0, 0, 0];
                    let fits = |r: &&Rule| r.number == number && r.checks.iter().all(|c| c.holds(&args));
                    let want = rules.iter().find(fits).map_or(Answer::Trap, |r| r.answer);
                    assert_eq!(run(&code, target, 1, number as u32, args), want.code(), "{number} {args:?}");
                }
            }
        }
    }

    #[test]
    fn jumps_reach_over_long_blocks() {
        let target = Target { audit: 1, big_endian: false, foreign_bit: None };
        let eq = |value| vec![Check::Eq { index: 0, value }];
        let mut rules: Vec<Rule> =
            (0..600).map(|v| Rule { number: 5, checks: eq(v), answer: Answer::Allow }).collect();
        rules.extend((0..40).map(|number| Rule { number, checks: eq(700), answer: Answer::Allow }));
        let code = compile(&rules, Answer::Trap, target).unwrap();
        for (number, arg) in (0..41).flat_map(|n| [0, 249, 250, 599, 600, 700].map(|a| (n, a))) {
            let fits = |r: &Rule| r.number == i64::from(number) && r.checks[0].holds(&[arg; 6]);
            let want = if rules.iter().any(fits) { libc::SECCOMP_RET_ALLOW } else { libc::SECCOMP_RET_TRAP };
            assert_eq!(run(&code, target, 1, number, [arg; 6]), want, "{number} {arg}");
        }
    }
}
