//! Loading one plugin: trust, `dlopen`, and every check of its table before any function of it is called.

use super::trust::{self, Pin, TrustError};
use super::vm::{BackendError, call};
use godwit_abi::{self as abi, BackendTable, ENTRY_SYMBOL, EntryFn, Text, TextList};
use godwit_state::model::Features;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Why a plugin cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The file is not one to load.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The dynamic loader refused it.
    #[error("plugin {path}: the dynamic loader refuses it ({source}); is it complete and built for this system?", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The loader's words.
        source: libloading::Error,
    },
    /// A library, but no backend.
    #[error("plugin {path}: exports no `{symbol}`: it is a library, but not a Godwit backend", path = .0.display(), symbol = ENTRY_SYMBOL.to_string_lossy())]
    NoEntry(PathBuf),
    /// The entry function gave no table, or one too short.
    #[error("plugin {path}: its backend table {what}; rebuild the plugin against this godwit", path = .path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Not a table of ours.
    #[error("plugin {path}: magic is {found:#018x}, a backend's is {wanted:#018x}: it is not a Godwit backend", path = .path.display())]
    Magic {
        /// The file.
        path: PathBuf,
        /// What is there.
        found: u64,
        /// What should be.
        wanted: u64,
    },
    /// Another revision of the contract.
    #[error("plugin {path}: speaks revision {found} of the backend contract, this godwit revision {wanted}: use the plugin that came with this godwit, or rebuild it", path = .path.display())]
    Major {
        /// The file.
        path: PathBuf,
        /// The plugin's.
        found: u32,
        /// Ours.
        wanted: u32,
    },
}

/// What a backend says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// Short name.
    pub name: String,
    /// One line for people.
    pub summary: String,
    /// The backend's own version.
    pub version: String,
    /// CPU models it offers on some host.
    pub models: Vec<String>,
    /// State sections it reads and writes, with their newest versions.
    pub sections: Vec<(String, u32)>,
    /// System calls its threads make.
    pub system_calls: Vec<String>,
    /// ioctl requests it makes.
    pub ioctls: Vec<u64>,
    /// What its vCPU threads make of these two.
    pub vcpu: ThreadNeeds,
    /// What its functions make that the device thread calls.
    pub device: ThreadNeeds,
    /// Device nodes it opens.
    pub device_nodes: Vec<String>,
    /// Preference, higher first.
    pub rank: u32,
}

/// What one kind of thread asks of the host's kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct ThreadNeeds {
    /// System calls.
    pub system_calls: Vec<String>,
    /// ioctl requests.
    pub ioctls: Vec<u64>,
}

/// The descriptor in full, whatever revision the backend was built for: what it does not have is zero.
///
/// # Safety
/// `d` points to a descriptor that is as long as it says, at least [`abi::Descriptor::SIZE_1_0`].
unsafe fn whole(d: *const abi::Descriptor) -> abi::Descriptor {
    let mut full = std::mem::MaybeUninit::<abi::Descriptor>::zeroed();
    // SAFETY: the caller's promise; all its fields may be zero.
    unsafe {
        let len = ((*d).size as usize).min(size_of::<abi::Descriptor>());
        std::ptr::copy_nonoverlapping(d.cast::<u8>(), full.as_mut_ptr().cast::<u8>(), len);
        full.assume_init()
    }
}

/// A thread's needs; null lists: those of all threads.
///
/// # Safety
/// As [`list`] and [`texts`].
unsafe fn needs(calls: &TextList, ioctls: *const u64, len: u64, all: &abi::Descriptor) -> ThreadNeeds {
    // SAFETY: the caller's promise.
    unsafe {
        ThreadNeeds {
            system_calls: texts(if calls.ptr.is_null() { &all.system_calls } else { calls }),
            ioctls: if ioctls.is_null() { list(all.ioctls, all.ioctls_len) } else { list(ioctls, len) },
        }
    }
}

/// What a backend can do on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// Greatest number of vCPUs.
    pub max_vcpus: u32,
    /// Models on offer here, weakest first.
    pub models: Vec<String>,
    /// TSC frequency of a new guest in kHz.
    pub tsc_khz: u64,
    /// It can give a guest any other frequency too.
    pub tsc_scaling: bool,
    /// What the model "host" has here, if it is on offer and the backend says so.
    #[serde(skip)]
    pub host_features: Option<Features>,
}

/// A loaded backend. Never unloaded: its threads and thread-locals may outlive any VM.
#[derive(Debug)]
pub struct Plugin {
    pub(super) table: &'static BackendTable,
    descriptor: Descriptor,
    path: PathBuf,
    probed: OnceLock<Probe>,
}

// SAFETY: the table is immutable for the life of the process, and its functions' thread tags are kept by the types
// that call them.
unsafe impl Send for Plugin {}
// SAFETY: as above.
unsafe impl Sync for Plugin {}

/// Copies a text of the contract; what is not UTF-8 is replaced.
///
/// # Safety
/// `t` is valid: null with length 0, or that many readable bytes.
pub(super) unsafe fn text(t: &Text) -> String {
    if t.ptr.is_null() || t.len == 0 {
        return String::new();
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(t.ptr, t.len as usize) };
    String::from_utf8_lossy(bytes).into_owned()
}

/// # Safety
/// `ptr` is null, or points to `len` readable elements.
unsafe fn list<T: Copy>(ptr: *const T, len: u64) -> Vec<T> {
    if ptr.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(ptr, len as usize) }.to_vec()
}

/// # Safety
/// As [`text`], for the list and every element.
pub(super) unsafe fn texts(t: &TextList) -> Vec<String> {
    // SAFETY: the caller's promise.
    unsafe { list(t.ptr, t.len).iter().map(|t| text(t)).collect() }
}

impl Plugin {
    /// Loads the plugin at `path`, which must be absolute; with pins, its SHA-256 must be among them.
    ///
    /// # Errors
    /// Each names the file and what to do.
    pub fn load(path: &Path, pins: &[Pin]) -> Result<Arc<Plugin>, PluginError> {
        let trusted = trust::check(path, pins)?;
        // SAFETY: loading runs the library's initialisers: that is what the trust check is for.
        let library = unsafe { Library::open(Some(&trusted.path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|source| PluginError::Open { path: path.to_owned(), source })?;
        let library = Box::leak(Box::new(library));
        // SAFETY: the symbol's type is the contract's.
        let entry = unsafe { library.get::<EntryFn>(ENTRY_SYMBOL.to_bytes_with_nul()) }
            .map_err(|_| PluginError::NoEntry(path.to_owned()))?;
        // SAFETY: the entry function takes nothing and returns a table that lives as long as the process.
        let plugin = unsafe { Self::from_table((*entry)(), path) }?;
        Ok(plugin)
    }

    /// Takes a backend that is linked in.
    ///
    /// # Errors
    /// As for a loaded one.
    pub fn linked(
        name: &str,
        entry: extern "C" fn() -> *const BackendTable,
    ) -> Result<Arc<Plugin>, PluginError> {
        // SAFETY: an entry function made by the SDK.
        unsafe { Self::from_table(entry(), Path::new(name)) }
    }

    /// # Safety
    /// `table` is null or what a backend's entry function returned.
    unsafe fn from_table(table: *const BackendTable, path: &Path) -> Result<Arc<Plugin>, PluginError> {
        let path = path.to_owned();
        let bad = |what: &str| PluginError::Table { path: path.clone(), what: what.into() };
        if table.is_null() {
            return Err(bad("is missing"));
        }
        // SAFETY: magic, major and size are the first fields of every revision, and are read one by one before the rest.
        let (magic, major, size) = unsafe { ((*table).magic, (*table).abi_major, (*table).size) };
        if magic != abi::MAGIC {
            return Err(PluginError::Magic { path, found: magic, wanted: abi::MAGIC });
        }
        if major != abi::ABI_MAJOR {
            return Err(PluginError::Major { path, found: major, wanted: abi::ABI_MAJOR });
        }
        if (size as usize) < size_of::<BackendTable>() {
            return Err(bad(&format!("has {size} bytes, {} are needed", size_of::<BackendTable>())));
        }
        // SAFETY: at least as long as the struct, and it lives as long as the process.
        let table: &'static BackendTable = unsafe { &*table };
        if let Some(name) = missing(table) {
            return Err(bad(&format!("lacks the function {name}")));
        }
        if table.descriptor.is_null() {
            return Err(bad("lacks a descriptor"));
        }
        // SAFETY: the size comes first.
        if (unsafe { (*table.descriptor).size }) < abi::Descriptor::SIZE_1_0 {
            return Err(bad("has a descriptor that is too short"));
        }
        // SAFETY: it and all it points to live as long as the process.
        let descriptor = unsafe {
            let d = &whole(table.descriptor);
            Descriptor {
                name: text(&d.name),
                summary: text(&d.summary),
                version: text(&d.version),
                models: texts(&d.models),
                sections: list(d.sections, d.sections_len)
                    .iter()
                    .map(|s| (text(&s.kind), s.version))
                    .collect(),
                system_calls: texts(&d.system_calls),
                ioctls: list(d.ioctls, d.ioctls_len),
                vcpu: needs(&d.vcpu_calls, d.vcpu_ioctls, d.vcpu_ioctls_len, d),
                device: needs(&d.device_calls, d.device_ioctls, d.device_ioctls_len, d),
                device_nodes: texts(&d.device_nodes),
                rank: d.rank,
            }
        };
        Ok(Arc::new(Plugin { table, descriptor, path, probed: OnceLock::new() }))
    }

    /// What it says of itself.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it can do on this host. Asked once: the answer stays.
    ///
    /// # Errors
    /// Nothing: the text says what is missing and what to do.
    pub fn probe(&self) -> Result<Probe, BackendError> {
        if let Some(probe) = self.probed.get() {
            return Ok(probe.clone());
        }
        self.ask().inspect(|probe| drop(self.probed.set(probe.clone())))
    }

    fn ask(&self) -> Result<Probe, BackendError> {
        let mut probe = abi::Probe {
            size: size_of::<abi::Probe>() as u32,
            max_vcpus: 0,
            models: TextList { ptr: std::ptr::null(), len: 0 },
            tsc_khz: 0,
            flags: 0,
            host_features: [0; 8],
        };
        call("probe", |err| {
            // SAFETY: the pointers are valid for the call; presence was checked at load.
            unsafe { self.table.probe.map(|f| f(&mut probe, err)) }
        })?;
        Ok(Probe {
            max_vcpus: probe.max_vcpus,
            // SAFETY: the backend's list lives as long as the process.
            models: unsafe { texts(&probe.models) },
            tsc_khz: probe.tsc_khz,
            tsc_scaling: probe.flags & abi::PROBE_TSC_SCALING != 0,
            host_features: host_features(&probe.host_features),
        })
    }
}

/// All zero is a backend that does not say.
fn host_features(told: &[u32; 8]) -> Option<Features> {
    let [registers @ .., _] = *told;
    registers.iter().any(|r| *r != 0).then(|| Features::from_registers(registers))
}

/// Name of the first function that the table lacks.
fn missing(t: &BackendTable) -> Option<&'static str> {
    macro_rules! first_null {
        ($($name:ident),*) => { $(if t.$name.is_none() { return Some(stringify!($name)); })* };
    }
    first_null!(
        probe,
        vm_create,
        vm_destroy,
        vm_map_memory,
        vm_unmap_memory,
        vm_set_dirty_log,
        vm_take_dirty_log,
        vm_memory_written,
        vm_signal_msi,
        vm_set_routes,
        vm_set_extint,
        vm_inject_nmi,
        vm_stop_clock,
        vm_start_clock,
        vm_save,
        vm_load,
        vm_extension,
        vcpu_create,
        vcpu_destroy,
        vcpu_run,
        vcpu_kick,
        vcpu_save,
        vcpu_load
    );
    None
}
