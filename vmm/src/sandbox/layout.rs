//! Where the parts of a filter's program stand. Called by `bpf`.
//!
//! Every instruction costs every start: the kernel checks, converts and compiles it for each thread, and walks the program
//! once for every call there is. So calls that are simply allowed share a return with their neighbours, alternatives of one
//! argument share its load, and calls are found by halving.

use super::bpf::{Instruction, compare, statement};

/// How many calls are tried one after the other, at most, where halving ends.
const FEW: usize = 6;
/// How many comparisons may share a return: a conditional jump reaches 255 instructions.
const MOST: usize = 250;

/// What happens at one call.
pub(super) enum Deed {
    /// The same whatever its arguments: the value to return.
    Always(u32),
    /// What these instructions say; every way through them ends in a return.
    Asks(Vec<Instruction>),
}

/// A return of this value.
pub(super) fn ret(value: u32) -> Instruction {
    statement(libc::BPF_RET | libc::BPF_K, value)
}

/// Returns `answer` if the loaded word is one of these values, and else goes on behind.
pub(super) fn one_of(values: &[u32], answer: u32, code: &mut Vec<Instruction>) {
    for part in values.chunks(MOST) {
        let others = (0..part.len()).rev();
        code.extend(part.iter().zip(others).map(|(value, others)| {
            // No more than MOST.
            compare(libc::BPF_JEQ, *value, others as u8, u8::from(others == 0))
        }));
        code.push(ret(answer));
    }
}

/// Goes on if the comparison holds, and else behind the `len` instructions that follow.
fn unless(comparison: u32, value: u32, len: usize, code: &mut Vec<Instruction>) -> Option<()> {
    match u8::try_from(len) {
        Ok(len) => code.push(compare(comparison, value, 0, len)),
        Err(_) => {
            let over = statement(libc::BPF_JMP | libc::BPF_JA, u32::try_from(len).ok()?);
            code.extend([compare(comparison, value, 1, 0), over]);
        }
    }
    Some(())
}

/// What happens at this call, whose number is loaded; any other goes on behind.
pub(super) fn at(number: u32, deed: &Deed, code: &mut Vec<Instruction>) -> Option<()> {
    match deed {
        Deed::Always(answer) => one_of(&[number], *answer, code),
        Deed::Asks(block) => {
            unless(libc::BPF_JEQ, number, block.len(), code)?;
            code.extend(block);
        }
    }
    Some(())
}

/// What happens at these calls, in ascending order of their numbers, one of which is loaded; any other returns `default`.
pub(super) fn tree(calls: &[(u32, Deed)], default: u32, code: &mut Vec<Instruction>) -> Option<()> {
    if calls.len() > FEW {
        let (low, high) = calls.split_at(calls.len() / 2);
        let mut above = Vec::new();
        tree(high, default, &mut above)?;
        unless(libc::BPF_JGE, high[0].0, above.len(), code)?;
        code.append(&mut above);
        return tree(low, default, code);
    }
    let mut always: Vec<(u32, u32)> = Vec::new();
    for (number, deed) in calls {
        match deed {
            Deed::Always(answer) => always.push((*answer, *number)),
            Deed::Asks(_) => at(*number, deed, code)?,
        }
    }
    always.sort_unstable();
    for alike in always.chunk_by(|a, b| a.0 == b.0) {
        let numbers: Vec<u32> = alike.iter().map(|(_, number)| *number).collect();
        one_of(&numbers, alike[0].0, code);
    }
    code.push(ret(default));
    Some(())
}
