//! `--backend` and its kin: the CPU that a machine gets, and what its plugin may do.

use super::confine::Confine;
use super::exit;
use crate::plugin::trust::Pin;
use crate::plugin::{Choice, Plugin, choose, named};
use std::path::PathBuf;
use std::sync::Arc;

/// Which CPU backend.
#[derive(Debug, clap::Args)]
pub(super) struct Cpu {
    /// CPU backend: auto (the best that works here), a name, or the path of a plugin.
    #[arg(long, value_name = "BACKEND", default_value = "auto")]
    backend: Choice,
    /// Look for plugins here only.
    #[arg(long, value_name = "DIR")]
    backend_dir: Option<PathBuf>,
    /// Load only a plugin with this SHA-256; may be given several times.
    #[arg(long, value_name = "SHA256")]
    plugin_sha256: Vec<String>,
    #[command(flatten)]
    confine: Confine,
}

impl Cpu {
    fn pins(&self) -> Result<Vec<Pin>, (String, u8)> {
        let pins = self.plugin_sha256.iter().map(|p| Pin::parse(p)).collect::<Result<_, _>>();
        pins.map_err(|e| (e.to_string(), exit::ARGUMENTS))
    }

    /// Loads the plugin and settles the threads' filters. Whether it can be used here is [`Cpu::check`]'s to find.
    ///
    /// # Errors
    /// Text for the user, and the exit code.
    pub(super) fn load(&self) -> Result<Arc<Plugin>, (String, u8)> {
        let pins = self.pins()?;
        let dir = self.backend_dir.as_deref();
        let plugin = match named(&self.backend, dir, &pins) {
            Some(plugin) => plugin,
            None => choose(&self.backend, dir, &pins).map_err(|e| (e, exit::ERROR))?,
        };
        if self.backend == Choice::Auto {
            let d = plugin.descriptor();
            eprintln!("godwit: CPU backend {}: {}", d.name, d.summary);
        }
        self.confine.settle(&plugin).map_err(|e| (e, exit::ERROR))?;
        Ok(plugin)
    }

    /// Asks the plugin what it can do here, which takes KVM most of a millisecond: threads may start meanwhile.
    ///
    /// # Errors
    /// It cannot be used: text for the user, and the exit code.
    pub(super) fn check(&self, plugin: &Plugin) -> Result<(), (String, u8)> {
        let Err(why) = plugin.probe() else { return Ok(()) };
        // The one that chooses says it in full.
        let told = choose(&self.backend, self.backend_dir.as_deref(), &self.pins()?).err();
        Err((told.unwrap_or_else(|| format!("{}: {why}", plugin.path().display())), exit::ERROR))
    }
}
