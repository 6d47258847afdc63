//! The REST API: Firecracker's requests, and Godwit's own beside them, over HTTP on a Unix socket.
//!
//! `http` parses and writes messages, `server` is the API thread's loop. Requests become `control` actions; this
//! room does not know the machine's inside.

pub mod http;
pub mod router;
pub mod routes;
pub mod server;
