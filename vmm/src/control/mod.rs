//! Soon.

pub mod moving;
