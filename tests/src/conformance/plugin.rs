//! Loads a plugin the way a VMM does, and finds it beside the test executable.

use godwit_abi::{self as abi, BackendTable, Descriptor, ErrorText, Probe, SectionKind, Text, TextList};
use std::path::PathBuf;

/// A loaded plugin. Never unloaded.
#[derive(Clone, Copy)]
pub struct Plugin {
    /// Its table.
    pub table: &'static BackendTable,
}

/// A code of the contract and the text that came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One of `godwit_abi::ERR_*`.
    pub code: i32,
    /// What it says.
    pub text: String,
}

/// Calls a function of the table with a place for its error text.
pub fn call(f: impl FnOnce(*mut ErrorText) -> i32) -> Result<(), Failure> {
    let mut buffer = vec![0u8; 2048];
    let mut err = ErrorText {
        size: size_of::<ErrorText>() as u32,
        reserved: 0,
        ptr: buffer.as_mut_ptr(),
        cap: buffer.len() as u64,
        len: 0,
    };
    let code = f(&mut err);
    if code == abi::OK {
        return Ok(());
    }
    assert!(err.len <= err.cap, "an error text overran its buffer");
    buffer.truncate(err.len as usize);
    Err(Failure { code, text: String::from_utf8(buffer).expect("an error text is UTF-8") })
}

/// A text of ours, for the call.
pub fn text(s: &str) -> Text {
    Text { ptr: s.as_ptr(), len: s.len() as u64 }
}

/// A copy of a text of the plugin's.
pub fn read(t: Text) -> String {
    if t.len == 0 {
        return String::new();
    }
    // SAFETY: the contract: a text has `len` readable bytes.
    let bytes = unsafe { std::slice::from_raw_parts(t.ptr, t.len as usize) };
    String::from_utf8(bytes.to_vec()).expect("a text is UTF-8")
}

fn read_list(list: TextList) -> Vec<String> {
    if list.len == 0 {
        return Vec::new();
    }
    // SAFETY: the contract: a list has `len` readable texts.
    unsafe { std::slice::from_raw_parts(list.ptr, list.len as usize) }.iter().map(|t| read(*t)).collect()
}

impl Plugin {
    /// The file of the plugin called `name`, in GODWIT_PLUGIN_DIR or where cargo put it; or why there is none to test.
    pub fn path(name: &str) -> Result<PathBuf, String> {
        let file = format!("libgodwit_backend_{name}.so");
        let dirs: Vec<PathBuf> = match std::env::var_os("GODWIT_PLUGIN_DIR") {
            Some(dir) => vec![dir.into()],
            None => {
                let exe = std::env::current_exe().map_err(|e| e.to_string())?;
                // target/PROFILE/deps/conformance-HASH: workspace members' libraries are one up, dependencies' beside it.
                exe.ancestors().skip(1).take(2).map(PathBuf::from).collect()
            }
        };
        let found = dirs.iter().map(|d| d.join(&file)).find(|p| p.is_file());
        found.ok_or_else(|| {
            format!("{file} is not built: cargo build -p godwit-plugin-{name}, or set GODWIT_PLUGIN_DIR")
        })
    }

    /// The plugin called `name`, or why there is none to test.
    pub fn find(name: &str) -> Result<Self, String> {
        let path = Self::path(name)?;
        // SAFETY: a plugin of this workspace, whose initialisers do nothing.
        let library = unsafe { libloading::Library::new(&path) }.map_err(|e| {
            let cause = std::error::Error::source(&e).map_or_else(|| e.to_string(), |c| format!("{e}: {c}"));
            format!("{}: {cause}", path.display())
        })?;
        // SAFETY: the contract's type for the contract's symbol.
        let entry = unsafe { library.get::<abi::EntryFn>(abi::ENTRY_SYMBOL.to_bytes()) }
            .map_err(|e| format!("{}: {e}", path.display()))?;
        // SAFETY: the entry function takes nothing, and gives null or a table that lives as long as the process.
        let table = unsafe { entry().as_ref() }.ok_or("the entry function gave null")?;
        std::mem::forget(library);
        assert_eq!(table.magic, abi::MAGIC);
        assert_eq!(table.abi_major, abi::ABI_MAJOR);
        assert!(table.size as usize >= size_of::<BackendTable>());
        Ok(Plugin { table })
    }

    /// [`Self::find`] for a plugin that works on this host too.
    pub fn usable(name: &str) -> Result<Self, String> {
        let plugin = Self::find(name)?;
        plugin.probe().map_err(|e| format!("{name} is of no use here: {}", e.text))?;
        Ok(plugin)
    }

    /// What it says of itself.
    pub fn descriptor(&self) -> &'static Descriptor {
        // SAFETY: the contract: readable, and lives as long as the process.
        unsafe { self.table.descriptor.as_ref() }.expect("there is a descriptor")
    }

    /// Names of the CPU models it can offer on some host.
    pub fn models(&self) -> Vec<String> {
        read_list(self.descriptor().models)
    }

    /// The state sections it reads and writes, with their versions.
    pub fn sections(&self) -> Vec<(String, u32)> {
        let d = self.descriptor();
        // SAFETY: the contract: as many readable elements as it says.
        let list: &[SectionKind] = unsafe { std::slice::from_raw_parts(d.sections, d.sections_len as usize) };
        list.iter().map(|s| (read(s.kind), s.version)).collect()
    }

    /// System calls and device nodes it needs.
    pub fn needs(&self) -> (Vec<String>, Vec<String>) {
        (read_list(self.descriptor().system_calls), read_list(self.descriptor().device_nodes))
    }

    /// What it can do here: its probe and the models' names.
    pub fn probe(&self) -> Result<(Probe, Vec<String>), Failure> {
        let mut out = Probe {
            size: size_of::<Probe>() as u32,
            max_vcpus: 0,
            models: TextList { ptr: std::ptr::null(), len: 0 },
            tsc_khz: 0,
            flags: 0,
            host_features: [0; 8],
        };
        let probe = self.table.probe.expect("mandatory");
        // SAFETY: `out` is ours and as long as its size says.
        call(|err| unsafe { probe(&mut out, err) })?;
        Ok((out, read_list(out.models)))
    }
}
