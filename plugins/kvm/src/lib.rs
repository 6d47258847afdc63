//! The KVM backend as a loadable library: one exported symbol, `godwit_backend_entry`.

godwit_sdk::export_backend!(godwit_kvm::KvmBackend);
