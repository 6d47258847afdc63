//! The KVM backend as a loadable library.
