//! Canonical x86 CPU state: frozen versioned sections, their validation, CPU models.
