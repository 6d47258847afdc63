//! `--seccomp-filter FILE`: filters of the user's own, in the JSON of Firecracker's seccompiler.
//!
//! What the tool makes of it is taken too: `compiled`. Threads are named `vmm` (or `control`), `api`, `vcpu`, and `device`,
//! `migrate`, `signals` and `receive`, which are `vmm`'s unless given.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::bpf::{Answer, Check, Rule};
use super::{Filter, Kind, names};

/// What is wrong with the file.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not the JSON that is wanted.
    #[error("not a seccomp filter: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A thread that is not one of ours.
    #[error("unknown thread category `{0}`: use vmm, api, vcpu, device, migrate, signals, receive")]
    Thread(String),
    /// A thread that must be there.
    #[error("no filter for the thread category `{0}`")]
    Missing(&'static str),
    /// A call that this architecture does not have.
    #[error("thread category `{0}`: unknown system call `{1}`")]
    Call(String, String),
    /// A condition that cannot be had.
    #[error("thread category `{0}`, system call `{1}`: {2}")]
    Argument(String, String, &'static str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Thread {
    default_action: Action,
    filter_action: Action,
    filter: Vec<Entry>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Allow,
    Errno(u16),
    KillThread,
    KillProcess,
    Log,
    Trace(u16),
    Trap,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    syscall: String,
    #[serde(default)]
    args: Vec<Argument>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Argument {
    index: u8,
    #[serde(rename = "type")]
    width: Width,
    op: Op,
    val: u64,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Width {
    Dword,
    Qword,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Op {
    Eq,
    Ne,
    MaskedEq(u64),
    Ge,
    Gt,
    Le,
    Lt,
}

impl From<Action> for Answer {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Answer::Allow,
            Action::Errno(n) => Answer::Errno(n),
            Action::KillThread => Answer::KillThread,
            Action::KillProcess => Answer::KillProcess,
            Action::Log => Answer::Log,
            Action::Trace(n) => Answer::Trace(n),
            Action::Trap => Answer::Trap,
        }
    }
}

/// Conditions of `op` on a value. As in Firecracker's compiler, which asks libseccomp, only `eq` heeds the type.
fn check(a: &Argument) -> Result<Check, &'static str> {
    if a.index > 5 {
        return Err("index must be 0 to 5");
    }
    let (index, value) = (a.index, a.val);
    if a.width == Width::Dword && u32::try_from(value).is_err() {
        return Err("val does not fit a dword");
    }
    Ok(match (a.op, u32::try_from(value)) {
        (Op::Eq, Ok(value)) if a.width == Width::Dword => Check::Eq { index, value },
        (Op::Eq, _) => Check::Eq64 { index, value },
        (Op::Ne, _) => Check::Ne64 { index, value },
        (Op::MaskedEq(mask), _) => Check::Masked64 { index, mask, value: value & mask },
        (Op::Gt, _) => Check::Greater { index, value, than: true },
        (Op::Le, _) => Check::Greater { index, value, than: false },
        (Op::Ge, _) => match value.checked_sub(1) {
            Some(value) => Check::Greater { index, value, than: true },
            None => Check::Masked64 { index, mask: 0, value: 0 },
        },
        (Op::Lt, _) => match value.checked_sub(1) {
            Some(value) => Check::Greater { index, value, than: false },
            None => return Err("nothing is less than 0"),
        },
    })
}

/// The kind of thread that a category of a filter file is for.
pub(super) fn kind_of(category: &str) -> Option<Kind> {
    Some(match category {
        "vmm" | "control" => Kind::Control,
        "api" => Kind::Api,
        "vcpu" => Kind::Vcpu,
        "device" => Kind::Device,
        "migrate" => Kind::Migrate,
        "signals" => Kind::Signals,
        "receive" => Kind::Receive,
        _ => return None,
    })
}

/// Sees to it that every kind has a filter: Firecracker's three must be there, the others are `vmm`'s unless given.
pub(super) fn complete<T: Clone>(filters: &mut BTreeMap<Kind, T>) -> Result<(), JsonError> {
    for kind in [Kind::Control, Kind::Api, Kind::Vcpu] {
        if !filters.contains_key(&kind) {
            return Err(JsonError::Missing(if kind == Kind::Control { "vmm" } else { kind.name() }));
        }
    }
    for kind in [Kind::Device, Kind::Migrate, Kind::Signals, Kind::Receive] {
        if let (false, Some(main)) = (filters.contains_key(&kind), filters.get(&Kind::Control).cloned()) {
            filters.insert(kind, main);
        }
    }
    Ok(())
}

/// Reads the text of a filter file.
pub(super) fn parse(text: &str) -> Result<BTreeMap<Kind, Filter>, JsonError> {
    let threads: BTreeMap<String, Thread> = serde_json::from_str(text)?;
    let mut filters = BTreeMap::new();
    for (name, thread) in threads {
        let kind = kind_of(&name).ok_or_else(|| JsonError::Thread(name.clone()))?;
        let mut rules = Vec::new();
        for entry in thread.filter {
            let number = names::number(&entry.syscall)
                .ok_or_else(|| JsonError::Call(name.clone(), entry.syscall.clone()))?;
            let checks: Result<Vec<_>, _> = entry.args.iter().map(check).collect();
            let checks = checks.map_err(|why| JsonError::Argument(name.clone(), entry.syscall, why))?;
            rules.push(Rule { number, checks, answer: thread.filter_action.into() });
        }
        filters.insert(kind, Filter { rules, default: thread.default_action.into() });
    }
    complete(&mut filters)?;
    Ok(filters)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"{"default_action":"trap","filter_action":"allow","filter":["#;

    fn all(vmm: &str) -> String {
        format!(r#"{{"vmm":{HEAD}{vmm}]}},"api":{HEAD}]}},"vcpu":{HEAD}]}}}}"#)
    }

    #[test]
    fn firecrackers_json_is_read() {
        let text = all(
            r#"{"syscall":"read"},{"syscall":"ioctl","comment":"why","args":[{"index":1,"type":"dword","op":"eq","val":44672,"comment":"KVM_RUN"}]},
            {"syscall":"mmap","args":[{"index":2,"type":"dword","op":{"masked_eq":4},"val":0}]}"#,
        );
        let filters = parse(&text).unwrap();
        assert_eq!(filters.len(), 7);
        let rules = &filters[&Kind::Device].rules;
        assert_eq!(rules[1].checks, [Check::Eq { index: 1, value: 44672 }]);
        assert_eq!(rules[2].checks, [Check::Masked64 { index: 2, mask: 4, value: 0 }]);
    }

    #[test]
    fn every_comparison_is_the_one_it_says() {
        type Holds = fn(u64, u64) -> bool;
        let ops: [(&str, Holds); 6] = [
            (r#""eq""#, |a, v| a == v),
            (r#""ne""#, |a, v| a != v),
            (r#""ge""#, |a, v| a >= v),
            (r#""gt""#, |a, v| a > v),
            (r#""le""#, |a, v| a <= v),
            (r#"{"masked_eq": 68719476721}"#, |a, v| a & 0xf_ffff_fff1 == v & 0xf_ffff_fff1),
        ];
        let values = [0, 1, 2, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, u64::MAX];
        for ((op, holds), value) in ops.iter().flat_map(|op| values.map(|v| (op, v))) {
            let json = format!(
                r#"{{"syscall":"read","args":[{{"index":2,"type":"qword","op":{op},"val":{value}}}]}}"#
            );
            let check = parse(&all(&json)).unwrap()[&Kind::Control].rules[0].checks[0];
            for arg in values {
                assert_eq!(check.holds(&[0, 0, arg, 0, 0, 0]), holds(arg, value), "{arg:#x} {op} {value:#x}");
            }
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for (text, wanted) in [
            ("".to_owned(), "not a seccomp filter"),
            ("[]".to_owned(), "not a seccomp filter"),
            ("{}".to_owned(), "`vmm`"),
            (all(r#"{"syscall":"frobnicate"}"#), "unknown system call `frobnicate`"),
            (all(r#"{"syscall":"read","arg":[]}"#), "unknown field"),
            (
                all(r#"{"syscall":"read","args":[{"index":6,"type":"dword","op":"eq","val":1}]}"#),
                "index must be",
            ),
            (
                all(r#"{"syscall":"read","args":[{"index":1,"type":"dword","op":"lt","val":0}]}"#),
                "less than 0",
            ),
            (
                all(r#"{"syscall":"read","args":[{"index":1,"type":"dword","op":"eq","val":4294967296}]}"#),
                "fit",
            ),
            (format!(r#"{{"gpu":{HEAD}]}}}}"#), "unknown thread category `gpu`"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
