//! Landlock: a last fence, where the kernel has it, that holds even if the root could be escaped.
//!
//! Called by `main` right before exec. Inside the jail all goes on as before, except that only the exec file and its
//! loader can be executed, no device node can be made, and no process outside can be signalled.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// Newest interface whose every right was thought about here.
const KNOWN: ABI = ABI::V6;

/// Fences this process in. `executables` are the only files that it may execute. False: the kernel has no Landlock.
pub(crate) fn enforce(executables: &[PathBuf]) -> Result<bool, RulesetError> {
    let denied = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock;
    let all = AccessFs::from_all(KNOWN);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    if let Ok(root) = PathFd::new(Path::new("/")) {
        rules = rules.add_rule(PathBeneath::new(root, all & !denied))?;
    }
    for path in executables {
        if let Ok(file) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(file, AccessFs::Execute | AccessFs::ReadFile))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}
