//! The KVM backend: guest code on the host's own processor.
//!
//! Loaded as the plugin `godwit_backend_kvm`; the VMM knows it only through the contract. It uses KVM with the
//! *split irqchip*: LAPICs in the kernel, every other interrupt controller in the VMM.
//!
//! ```text
//!   backend.rs   probe, models, VM creation     vm.rs      memory, routes, messages, dirty log
//!   vcpu.rs      the run loop                   kick.rs    how a running vCPU is made to return
//!   state.rs     canonical state in and out     fpu.rs, lapic.rs, msrs.rs, segments.rs: its parts
//!   time.rs      the stopped and running clock  ext.rs     extensions of the contract
//!   sys.rs       ioctls that kvm-ioctls lacks   page.rs    the page shared with the kernel
//! ```
//!
//! On any host but x86-64 Linux the crate is a backend whose probe says that it is unusable there.

macro_rules! here {
    ($($item:item)*) => {
        $(
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            $item
        )*
    };
}

here! {
    mod backend;
    mod ext;
    mod fpu;
    mod kick;
    mod lapic;
    mod msrs;
    mod page;
    mod segments;
    mod state;
    mod sys;
    mod time;
    mod vcpu;
    mod vm;
    pub use backend::KvmBackend;
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod elsewhere;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub use elsewhere::KvmBackend;
