//! Debian's unmodified Linux on the interpreter, by the real `godwit` binary. What is not installed is skipped by name.

mod boot;
mod clones;
mod crypto;
mod debian;
mod guest;
mod net;
mod xen;
