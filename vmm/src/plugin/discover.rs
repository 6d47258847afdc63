//! Where plugins are, and which one to take.

use super::load::{Plugin, PluginError, Probe};
use super::trust::Pin;
use super::vm::BackendError;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a plugin's file name begins with; its backend's name follows.
const PREFIX: &str = "libgodwit_backend_";
const SUFFIX: &str = ".so";

/// What `--backend` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// The usable backend of the highest rank.
    #[default]
    Auto,
    /// The backend of that name.
    Name(String),
    /// The plugin at that path.
    Path(PathBuf),
}

impl std::str::FromStr for Choice {
    type Err = std::convert::Infallible;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Ok(match s {
            "auto" => Choice::Auto,
            path if path.contains('/') => Choice::Path(path.into()),
            name => Choice::Name(name.into()),
        })
    }
}

/// A plugin file that was found, or a backend that is linked in.
pub struct Candidate {
    /// Where.
    pub path: PathBuf,
    /// The plugin, or why it was not loaded.
    pub plugin: Result<Arc<Plugin>, PluginError>,
    /// What it can do here, or why it cannot be used.
    pub probe: Option<Result<Probe, BackendError>>,
}

impl Candidate {
    fn new(path: PathBuf, plugin: Result<Arc<Plugin>, PluginError>) -> Self {
        Candidate { path, plugin, probe: None }
    }

    /// Asks it what it can do here, which may take milliseconds.
    fn probed(mut self) -> Self {
        self.probe = self.plugin.as_ref().ok().map(|p| p.probe());
        self
    }

    fn rank(&self) -> u32 {
        self.plugin.as_ref().map_or(0, |p| p.descriptor().rank)
    }

    fn usable(&self) -> Option<&Arc<Plugin>> {
        self.plugin.as_ref().ok().filter(|_| matches!(self.probe, Some(Ok(_))))
    }

    /// Why it cannot be used.
    pub fn reason(&self) -> Option<String> {
        match (&self.plugin, &self.probe) {
            (Err(e), _) => Some(e.to_string()),
            (Ok(_), Some(Err(e))) => Some(e.to_string()),
            _ => None,
        }
    }
}

/// Directories that are searched: `given` alone, or beside the program and `../lib/godwit` from it.
fn directories(given: Option<&Path>) -> Vec<PathBuf> {
    if let Some(dir) = given {
        return vec![std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned())];
    }
    // In a jail there is no /proc to ask; the jailer starts the program by its absolute path.
    let named = || std::env::args_os().next().map(PathBuf::from).filter(|p| p.is_absolute());
    let Some(bin) =
        std::env::current_exe().ok().or_else(named).and_then(|exe| exe.parent().map(Path::to_owned))
    else {
        return Vec::new();
    };
    let lib = bin.parent().unwrap_or(Path::new("/")).join("lib/godwit");
    vec![bin, lib]
}

fn files(given: Option<&Path>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in directories(given) {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        let mut here: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        here.retain(|p| {
            let name = p.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(PREFIX) && name.ends_with(SUFFIX)
        });
        here.sort();
        found.extend(here);
    }
    found
}

/// The entry of a backend that is linked in, in the shape that a library's has.
#[cfg(feature = "static-backends")]
extern "C" fn entry_of<B: godwit_sdk::Backend>() -> *const godwit_abi::BackendTable {
    godwit_sdk::entry::<B>()
}

#[cfg(feature = "static-backends")]
fn linked() -> Vec<Candidate> {
    let all = [
        ("kvm (linked in)", entry_of::<godwit_kvm::KvmBackend> as extern "C" fn() -> _),
        ("interp (linked in)", entry_of::<godwit_interp::Interp> as extern "C" fn() -> _),
    ];
    all.map(|(name, entry)| Candidate::new(name.into(), Plugin::linked(name, entry))).into()
}

#[cfg(not(feature = "static-backends"))]
fn linked() -> Vec<Candidate> {
    Vec::new()
}

fn load(path: PathBuf, pins: &[Pin]) -> Candidate {
    let plugin = Plugin::load(&path, pins);
    Candidate::new(path, plugin)
}

/// Loads and probes every plugin that is found.
pub fn candidates(dir: Option<&Path>, pins: &[Pin]) -> Vec<Candidate> {
    let loaded = files(dir).into_iter().map(|path| load(path, pins));
    linked().into_iter().chain(loaded).map(Candidate::probed).collect()
}

/// The backend that the user asked for by name or path, if the first file that may be it is: loaded, and not asked what it
/// can do here. `None`: see [`choose`].
pub fn named(choice: &Choice, dir: Option<&Path>, pins: &[Pin]) -> Option<Arc<Plugin>> {
    match choice {
        Choice::Auto => None,
        Choice::Path(path) => Plugin::load(&std::path::absolute(path).ok()?, pins).ok(),
        Choice::Name(name) => {
            let file = format!("{PREFIX}{name}{SUFFIX}");
            let is = |plugin: &Arc<Plugin>| plugin.descriptor().name == *name;
            let linked = linked().into_iter().find_map(|c| c.plugin.ok().filter(is));
            linked.or_else(|| {
                let path = files(dir).into_iter().find(|p| p.file_name().is_some_and(|n| *n == *file))?;
                Plugin::load(&path, pins).ok().filter(is)
            })
        }
    }
}

/// The backend that the user asked for; an error says what was found and why it will not do.
///
/// # Errors
/// Text for the user.
pub fn choose(choice: &Choice, dir: Option<&Path>, pins: &[Pin]) -> Result<Arc<Plugin>, String> {
    if let Choice::Path(path) = choice {
        let path = std::path::absolute(path).map_err(|e| format!("plugin {}: {e}", path.display()))?;
        let plugin = Plugin::load(&path, pins).map_err(|e| e.to_string())?;
        plugin.probe().map_err(|e| format!("plugin {}: {e}", path.display()))?;
        return Ok(plugin);
    }
    // What is loaded stays and is asked takes time, so neither is done to more than are needed.
    let mut paths = files(dir);
    let in_turn: Box<dyn Iterator<Item = Candidate>> = match choice {
        Choice::Name(name) => {
            let file = format!("{PREFIX}{name}{SUFFIX}");
            paths.sort_by_key(|p| p.file_name().is_none_or(|n| *n != *file));
            Box::new(linked().into_iter().chain(paths.into_iter().map(|path| load(path, pins))))
        }
        _ => {
            let mut all = linked();
            all.extend(paths.into_iter().map(|path| load(path, pins)));
            all.sort_by_key(|c| std::cmp::Reverse(c.rank()));
            Box::new(all.into_iter())
        }
    };
    let wanted = |plugin: &&Arc<Plugin>| match choice {
        Choice::Name(name) => plugin.descriptor().name == *name,
        _ => true,
    };
    let mut all = Vec::new();
    let mut chosen = None;
    for candidate in in_turn {
        let candidate = candidate.probed();
        chosen = candidate.usable().filter(wanted).cloned();
        all.push(candidate);
        if chosen.is_some() {
            break;
        }
    }
    if let Some(plugin) = chosen {
        return Ok(plugin);
    }
    let wanted = match choice {
        Choice::Name(name) => format!("no usable backend named {name}"),
        _ => "no usable backend".into(),
    };
    let mut text = wanted;
    for c in &all {
        let reason = c.reason().unwrap_or_else(|| "usable, but not the one asked for".into());
        text.push_str(&format!("\n  {}: {reason}", c.path.display()));
    }
    if all.is_empty() {
        let dirs: Vec<_> = directories(dir).iter().map(|d| d.display().to_string()).collect();
        text.push_str(&format!(
            ": no libgodwit_backend_*.so in {}; give --backend-dir or --backend /path/to/plugin.so",
            dirs.join(" or ")
        ));
    }
    Err(text)
}
