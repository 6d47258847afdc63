//! The interpreter as a loadable library.

godwit_sdk::export_backend!(godwit_interp::Interp);
