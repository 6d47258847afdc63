//! The metadata service: JSON that the host puts in, which the guest reads by HTTP at 169.254.169.254.
//!
//! ```text
//!   API thread ── PUT, PATCH, GET /mmds ──► control ──► Service (Store behind a lock)
//!                                                          ▲ http: path, token, format
//!   guest ── Ethernet frames ── virtio::net ── Detour ── Stack (device thread)
//! ```
//!
//! `control` owns the [`Service`] and gives each configured interface a [`Stack`] over it. Firecracker's is the model:
//! the same answers, to the host and to the guest. The data, and the tokens' key, are of this process: neither a
//! snapshot nor a migration carries them.

mod http;
mod stack;
mod store;
mod token;

pub use stack::Stack;
pub use store::{DEFAULT_LIMIT, Metadata, MetadataError, Store};

use crate::virtio::net::{Detour, MmdsConfig};
use std::sync::{Arc, Mutex, MutexGuard};

/// The data with its rules, shared by the API's side and the guest's.
#[derive(Clone)]
pub struct Service(Arc<Mutex<Store>>);

impl Service {
    /// An empty one. Tokens are bound to the instance of this name.
    pub fn new(instance: &str) -> Self {
        Service(Arc::new(Mutex::new(Store::new(instance))))
    }

    /// The data.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The guest's side for one network interface.
    ///
    /// # Errors
    /// The host gives no random numbers.
    pub fn detour(&self, config: &MmdsConfig) -> std::io::Result<Box<dyn Detour>> {
        Ok(Box::new(Stack::new(self.clone(), config.address())?))
    }
}
