//! The C contract between the VMM and a CPU backend.
