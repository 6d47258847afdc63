//! What the interpreter counts, for "godwit.counters/1".

use crate::vm::{Interp, InterpVm};
use godwit_sdk::abi;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($name:ident $text:literal),* $(,)?) => {
        /// A vCPU's own counts.
        #[derive(Debug, Default, Clone)]
        pub(crate) struct Counters { $(pub $name: u64),* }

        /// The same, where other threads can read them; brought up to date now and then, before HLT waits, and when `run` returns.
        #[derive(Debug, Default)]
        pub(crate) struct Published { $($name: AtomicU64),* }

        impl Published {
            pub(crate) fn publish(&self, c: &Counters) {
                $(self.$name.store(c.$name, Ordering::Relaxed);)*
            }

            pub(crate) fn each(&self, mut f: impl FnMut(&'static str, u64)) {
                $(f($text, self.$name.load(Ordering::Relaxed));)*
            }
        }
    };
}

counters! {
    instructions "instructions",
    chains "dispatcher_rounds",
    lookups "block_lookups",
    decoded "blocks_decoded",
    invalidated "blocks_invalidated",
    emptied "block_caches_emptied",
    tlb_misses "tlb_misses",
    tlb_flushes "tlb_flushes",
    walks "page_walks",
    exceptions "exceptions",
    interrupts "interrupts",
    mmio "mmio_accesses",
    pio "port_accesses",
    halts "halts",
    unknown "unknown_instructions",
}

static TABLE: abi::Counters1 =
    abi::Counters1 { size: size_of::<abi::Counters1>() as u32, reserved: 0, read: Some(read) };

/// The table of an extension, or null.
pub(crate) fn extension(name: &str) -> *const c_void {
    if name == abi::EXT_COUNTERS_1 { (&raw const TABLE).cast() } else { std::ptr::null() }
}

unsafe extern "C" fn read(
    vm: abi::VmHandle,
    ctx: *mut c_void,
    each: unsafe extern "C" fn(ctx: *mut c_void, name: abi::Text, value: u64),
) {
    // SAFETY: the contract: a live handle of this backend.
    let vm: &InterpVm = unsafe { godwit_sdk::vm_ref::<Interp>(vm) };
    vm.counters(|name, value| {
        // SAFETY: the contract: `each` may be called with `ctx`; the text outlives the call.
        unsafe { each(ctx, abi::Text { ptr: name.as_ptr(), len: name.len() as u64 }, value) };
    });
}
