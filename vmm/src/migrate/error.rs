//! What can go wrong while a guest moves, in words for the operator of either end.

use crate::state::codec::CodecError;
use std::time::Duration;

/// Why a migration did not happen.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The address cannot be used.
    #[error("address {address:?}: {why}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// A number of the request makes no sense.
    #[error("{0}")]
    Request(String),
    /// A certificate or key cannot be used.
    #[error("--tls-dir: {path}: {why}")]
    Certificate {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// No connection.
    #[error("cannot {what} {address}: {source}{}", hint(what, source))]
    Connect {
        /// "connect to" or "listen on".
        what: &'static str,
        /// The address.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("connection lost while {doing}: {source}")]
    Io {
        /// What this side was doing.
        doing: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The peer closed the connection.
    #[error("the peer closed the connection while this side was {doing}")]
    Closed {
        /// What this side was doing.
        doing: &'static str,
    },
    /// A time limit ran out.
    #[error("no answer for {} ms while {doing}", limit.as_millis())]
    Timeout {
        /// What this side was doing.
        doing: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// Who and what each side is was not settled.
    #[error("TLS: {0}")]
    Tls(String),
    /// The peer is something else.
    #[error("the peer does not speak godwit's migration protocol")]
    NotGodwit,
    /// No version in common.
    #[error(
        "migration protocol versions {theirs_min} to {theirs_max} at the peer, {ours_min} to {ours_max} here: none in common"
    )]
    Version {
        /// Oldest and newest spoken here.
        ours_min: u16,
        /// See `ours_min`.
        ours_max: u16,
        /// Oldest and newest spoken by the peer.
        theirs_min: u16,
        /// See `theirs_min`.
        theirs_max: u16,
    },
    /// A frame is damaged: checksum, number or length.
    #[error("damaged frame: {0}")]
    Frame(String),
    /// A message does not parse.
    #[error("malformed message: {0}")]
    Malformed(#[from] CodecError),
    /// A message that has no place here.
    #[error("the peer sent {found} where {expected} was due")]
    Unexpected {
        /// What came.
        found: String,
        /// What this side waited for.
        expected: &'static str,
    },
    /// The destination cannot take this guest.
    #[error("the destination refuses the guest: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// The peer gave up.
    #[error("the peer gave up: {0}")]
    Peer(String),
    /// This side's machine could not do its part.
    #[error("{doing}: {why}")]
    Machine {
        /// The step.
        doing: &'static str,
        /// The machine's reason.
        why: String,
    },
    /// Asked for by the operator.
    #[error("cancelled")]
    Cancelled,
    /// The guest dirties memory faster than it can be sent.
    #[error("not converging: {0}")]
    NotConverging(String),
    /// What was asked for cannot be had; the text says what and why.
    #[error("{0}")]
    Impossible(String),
    /// The destination's last word: the guest is not running there and never will.
    #[error("the peer gave up: the guest does not run there: {0}")]
    NotRunning(String),
    /// A local move: the source took the guest back before it ran here.
    #[error("the source took the guest back")]
    Withdrawn,
    /// The state does not fit in the protocol.
    #[error("{0}")]
    TooBig(String),
}

/// What to do about it.
fn hint(what: &str, source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, ConnectionRefused, ConnectionReset, NotFound};
    match (what, source.kind()) {
        ("connect to", ConnectionRefused | ConnectionReset | NotFound) => {
            "; nobody waits for a guest there: start `godwit receive` first"
        }
        ("listen on", AddrInUse) => "; something else is there: end it, or choose another address",
        ("listen on", AddrNotAvailable) => "; that is not an address of this host",
        _ => "",
    }
}

impl MigrateError {
    /// For `map_err` on a machine's failure.
    pub fn machine<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> MigrateError {
        move |e| MigrateError::Machine { doing, why: e.to_string() }
    }
}
