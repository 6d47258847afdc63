//! All targets in one program: `GODWIT_FUZZ_TARGET` names the one to run (they are listed in `godwit_vmm::fuzz`).

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

static TARGET: OnceLock<String> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let name = TARGET.get_or_init(|| std::env::var("GODWIT_FUZZ_TARGET").expect("GODWIT_FUZZ_TARGET is set"));
    godwit_vmm::fuzz::run(name, data);
});
