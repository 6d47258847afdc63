//! Errors of a backend, and their codes in the contract.

use godwit_abi as abi;
use godwit_state::StateError;

/// What went wrong in a backend. The text reaches the user: it names the thing and what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// An argument that cannot be accepted.
    #[error("{0}")]
    Invalid(String),
    /// Well-formed, but not offered here.
    #[error("{0}")]
    Unsupported(String),
    /// This host lacks what the backend needs.
    #[error("{0}")]
    Unusable(String),
    /// A state section was refused.
    #[error("{0}")]
    State(String),
    /// A system call failed.
    #[error("{0}")]
    Host(String),
    /// The backend panicked. Made by the SDK only.
    #[error("{0}")]
    Panic(String),
    /// This guest cannot be run on.
    #[error("{0}")]
    Guest(String),
}

impl Error {
    /// The code in the contract.
    pub fn code(&self) -> i32 {
        match self {
            Error::Invalid(_) => abi::ERR_INVALID,
            Error::Unsupported(_) => abi::ERR_UNSUPPORTED,
            Error::Unusable(_) => abi::ERR_UNUSABLE,
            Error::State(_) => abi::ERR_STATE,
            Error::Host(_) => abi::ERR_HOST,
            Error::Panic(_) => abi::ERR_PANIC,
            Error::Guest(_) => abi::ERR_GUEST,
        }
    }
}

impl From<StateError> for Error {
    fn from(e: StateError) -> Self {
        Error::State(e.to_string())
    }
}
