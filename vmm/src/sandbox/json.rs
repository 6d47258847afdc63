//! `--seccomp-filter FILE`: filters of the user's own, in the JSON of Firecracker's seccompiler.
//!
//! Firecracker takes the file compiled by a tool of its own; here the JSON itself is taken. Threads are named `vmm` (or
//! `control`), `api`, `vcpu`, and `device`, `migrate`, `signals` and `receive`, which are `vmm`'s unless given.

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
            Action::Trap => Answer::Trap,
        }
    }
}

fn check(a: &Argument) -> Result<Check, &'static str> {
    if a.index > 5 {
        return Err("index must be 0 to 5");
    }
    let index = a.index;
    let value = u32::try_from(a.val);
    match (a.op, a.width) {
        (Op::Eq, Width::Qword) => Ok(Check::Eq64 { index, value: a.val }),
        (Op::Eq, Width::Dword) => {
            Ok(Check::Eq { index, value: value.map_err(|_| "val does not fit a dword")? })
        }
        (Op::Ne, Width::Dword) => {
            Ok(Check::Ne { index, value: value.map_err(|_| "val does not fit a dword")? })
        }
        (Op::MaskedEq(mask), Width::Dword) => {
            let (Ok(mask), Ok(value)) = (u32::try_from(mask), value) else {
                return Err("val or mask does not fit a dword");
            };
            Ok(Check::Masked { index, mask, value: value & mask })
        }
        _ => Err("of op only eq (dword, qword), ne and masked_eq (dword) are known"),
    }
}

/// Reads the text of a filter file.
pub(super) fn parse(text: &str) -> Result<BTreeMap<Kind, Filter>, JsonError> {
    let threads: BTreeMap<String, Thread> = serde_json::from_str(text)?;
    let mut filters = BTreeMap::new();
    for (name, thread) in threads {
        let kind = match name.as_str() {
            "vmm" | "control" => Kind::Control,
            "api" => Kind::Api,
            "vcpu" => Kind::Vcpu,
            "device" => Kind::Device,
            "migrate" => Kind::Migrate,
            "signals" => Kind::Signals,
            "receive" => Kind::Receive,
            _ => return Err(JsonError::Thread(name)),
        };
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
        assert_eq!(rules[2].checks, [Check::Masked { index: 2, mask: 4, value: 0 }]);
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
            (all(r#"{"syscall":"read","args":[{"index":1,"type":"dword","op":"lt","val":1}]}"#), "only eq"),
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
