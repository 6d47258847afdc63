//! The interpreter as a loadable library.
