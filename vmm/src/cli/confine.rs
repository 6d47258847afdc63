//! `--no-seccomp` and `--seccomp-filter`: settled once the backend is loaded, before any thread is started.

use crate::plugin::Plugin;
use crate::sandbox::{self, BackendNeeds, Policy};
use std::path::PathBuf;

/// Longest filter file that is read, in bytes.
const MAX_FILTER: u64 = 1 << 20;

/// Which filters the threads get.
#[derive(Debug, clap::Args)]
pub(super) struct Confine {
    /// Run without seccomp filters: whoever takes a thread over may then ask anything of the kernel.
    #[arg(long)]
    no_seccomp: bool,
    /// Filters of your own instead of the built-in ones: the JSON that Firecracker's seccompiler takes, or what it makes of it.
    #[arg(long, value_name = "FILE", conflicts_with = "no_seccomp")]
    seccomp_filter: Option<PathBuf>,
}

impl Confine {
    /// Checks what the backend asks for, also where there are no filters, and settles the filters of all threads.
    ///
    /// # Errors
    /// Text for the user.
    pub(super) fn settle(&self, plugin: &Plugin) -> Result<(), String> {
        let needs =
            BackendNeeds::of(plugin.descriptor()).map_err(|e| format!("{}: {e}", plugin.path().display()))?;
        let policy = match &self.seccomp_filter {
            _ if self.no_seccomp => Policy::Off,
            Some(path) => {
                let failed = |e: String| format!("--seccomp-filter {}: {e}", path.display());
                Policy::from_file(&read(path).map_err(failed)?).map_err(|e| failed(e.to_string()))?
            }
            None => Policy::builtin(&needs).map_err(|e| e.to_string())?,
        };
        if policy.is_on() {
            sandbox::available().map_err(|e| e.to_string())?;
        }
        if !sandbox::choose(policy) {
            return Err("the filters were chosen before".into());
        }
        Ok(())
    }
}

fn read(path: &std::path::Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_FILTER + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_FILTER {
        return Err(format!("longer than {MAX_FILTER} bytes"));
    }
    Ok(bytes)
}
