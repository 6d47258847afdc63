//! The `godwit` program.
fn main() {}
