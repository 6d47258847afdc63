//! Stands in for TLS on hosts for which the cryptography library has no code: every use is refused by name.

use super::error::MigrateError;
use super::transport::{Address, Stream};
use socket2::Socket;
use std::path::Path;

/// Nothing: cannot be made.
#[derive(Debug, Clone)]
pub enum Tls {}

fn refused(dir: &Path) -> MigrateError {
    let why = "this build has no TLS: there is none for this processor".to_owned();
    MigrateError::Address { address: dir.display().to_string(), why }
}

impl Tls {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn client(dir: &Path) -> Result<Self, MigrateError> {
        Err(refused(dir))
    }

    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn server(dir: &Path) -> Result<Self, MigrateError> {
        Err(refused(dir))
    }

    /// Cannot be called.
    ///
    /// # Errors
    /// None.
    pub fn wrap(&self, _socket: Socket, _address: &Address) -> Result<Box<dyn Stream>, MigrateError> {
        match *self {}
    }
}
