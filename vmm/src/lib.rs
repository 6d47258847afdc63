//! The microVM monitor: library and the godwit program.
