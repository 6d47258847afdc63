//! Safe traits for authors of CPU backends, and the macro that exports one over the contract.
