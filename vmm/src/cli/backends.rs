//! `godwit backends`: what is found, what it can do here, and why not.

use super::exit;
use crate::plugin::{Candidate, candidates};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Lists the CPU backends that are found, and what they can do here.
#[derive(Debug, clap::Args)]
pub struct Backends {
    /// Look for plugins here only.
    #[arg(long, value_name = "DIR")]
    backend_dir: Option<PathBuf>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

fn as_json(c: &Candidate) -> Value {
    json!({
        "path": c.path,
        "usable": c.reason().is_none(),
        "reason": c.reason(),
        "descriptor": c.plugin.as_ref().ok().map(|p| p.descriptor()),
        "probe": c.probe.as_ref().and_then(|p| p.as_ref().ok()),
    })
}

fn as_text(c: &Candidate) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| out.push_str(&format!("  {name:<14}{value}\n"));
    match &c.plugin {
        Err(e) => return format!("{}\n  not usable    {e}\n", c.path.display()),
        Ok(p) => {
            let d = p.descriptor();
            line("plugin", c.path.display().to_string());
            line("summary", d.summary.clone());
            line("version", d.version.clone());
            line("models", d.models.join(", "));
            let sections: Vec<_> = d.sections.iter().map(|(kind, v)| format!("{kind}/{v}")).collect();
            line("sections", sections.join(", "));
            line(
                "device nodes",
                if d.device_nodes.is_empty() { "none".into() } else { d.device_nodes.join(", ") },
            );
            line("system calls", d.system_calls.join(", "));
        }
    }
    match &c.probe {
        Some(Ok(p)) => {
            let scaling = if p.tsc_scaling { "any TSC frequency" } else { "no other TSC frequency" };
            line("usable", format!("yes: up to {} vCPUs, TSC {} kHz, {scaling}", p.max_vcpus, p.tsc_khz));
            line("models here", p.models.join(", "));
        }
        Some(Err(e)) => line("usable", format!("no: {e}")),
        None => {}
    }
    let name = c.plugin.as_ref().map_or("", |p| &p.descriptor().name);
    format!("{name}\n{out}")
}

impl Backends {
    /// Does it: the exit code.
    pub fn run(&self) -> u8 {
        let all = candidates(self.backend_dir.as_deref(), &[]);
        if self.json {
            println!("{:#}", Value::from(all.iter().map(as_json).collect::<Vec<_>>()));
        } else if all.is_empty() {
            eprintln!(
                "godwit: no libgodwit_backend_*.so beside the program, in ../lib/godwit or in --backend-dir"
            );
        } else {
            print!("{}", all.iter().map(as_text).collect::<Vec<_>>().join("\n"));
        }
        if all.iter().any(|c| c.reason().is_none()) { exit::OK } else { exit::ERROR }
    }
}
