//! Raw system calls: the ioctls that kvm-ioctls has not, or has only in a form that copies or hides too much.
//!
//! Unsafe code of this crate is here, in `page.rs` (the shared page) and in `ext.rs` (the C tables).

use godwit_sdk::Error;
use kvm_bindings::{
    kvm_clear_dirty_log, kvm_device_attr, kvm_dirty_log, kvm_ioeventfd, kvm_irqfd, kvm_sregs2,
    kvm_userspace_memory_region, kvm_xsave,
};
use std::io;
use std::os::fd::RawFd;

const fn request(direction: u64, nr: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | 0xae00 | nr
}
const fn io(nr: u64) -> u64 {
    request(0, nr, 0)
}
const fn iow<T>(nr: u64) -> u64 {
    request(1, nr, size_of::<T>())
}
const fn ior<T>(nr: u64) -> u64 {
    request(2, nr, size_of::<T>())
}
const fn iowr<T>(nr: u64) -> u64 {
    request(3, nr, size_of::<T>())
}

pub(crate) const RUN: u64 = io(0x80);
pub(crate) const GET_DIRTY_LOG: u64 = iow::<kvm_dirty_log>(0x42);
pub(crate) const SET_USER_MEMORY_REGION: u64 = iow::<kvm_userspace_memory_region>(0x46);
pub(crate) const SET_GSI_ROUTING: u64 = iow::<[u32; 2]>(0x6a);
pub(crate) const IRQFD: u64 = iow::<kvm_irqfd>(0x76);
pub(crate) const IOEVENTFD: u64 = iow::<kvm_ioeventfd>(0x79);
pub(crate) const SET_CLOCK: u64 = iow::<kvm_bindings::kvm_clock_data>(0x7b);
pub(crate) const GET_CLOCK: u64 = ior::<kvm_bindings::kvm_clock_data>(0x7c);
pub(crate) const GET_REGS: u64 = ior::<kvm_bindings::kvm_regs>(0x81);
pub(crate) const SET_REGS: u64 = iow::<kvm_bindings::kvm_regs>(0x82);
pub(crate) const GET_SREGS: u64 = ior::<kvm_bindings::kvm_sregs>(0x83);
pub(crate) const SET_SREGS: u64 = iow::<kvm_bindings::kvm_sregs>(0x84);
pub(crate) const GET_MSRS: u64 = iowr::<[u32; 2]>(0x88);
pub(crate) const SET_MSRS: u64 = iow::<[u32; 2]>(0x89);
pub(crate) const SET_SIGNAL_MASK: u64 = iow::<u32>(0x8b);
pub(crate) const GET_LAPIC: u64 = ior::<kvm_bindings::kvm_lapic_state>(0x8e);
pub(crate) const SET_LAPIC: u64 = iow::<kvm_bindings::kvm_lapic_state>(0x8f);
pub(crate) const GET_MP_STATE: u64 = ior::<kvm_bindings::kvm_mp_state>(0x98);
pub(crate) const SET_MP_STATE: u64 = iow::<kvm_bindings::kvm_mp_state>(0x99);
pub(crate) const NMI: u64 = io(0x9a);
pub(crate) const GET_VCPU_EVENTS: u64 = ior::<kvm_bindings::kvm_vcpu_events>(0x9f);
pub(crate) const SET_VCPU_EVENTS: u64 = iow::<kvm_bindings::kvm_vcpu_events>(0xa0);
pub(crate) const GET_DEBUGREGS: u64 = ior::<kvm_bindings::kvm_debugregs>(0xa1);
pub(crate) const SET_DEBUGREGS: u64 = iow::<kvm_bindings::kvm_debugregs>(0xa2);
pub(crate) const SET_TSC_KHZ: u64 = io(0xa2);
pub(crate) const GET_TSC_KHZ: u64 = io(0xa3);
pub(crate) const GET_XSAVE: u64 = ior::<[u8; 4096]>(0xa4);
pub(crate) const SET_XSAVE: u64 = iow::<[u8; 4096]>(0xa5);
pub(crate) const SIGNAL_MSI: u64 = iow::<kvm_bindings::kvm_msi>(0xa5);
pub(crate) const GET_XCRS: u64 = ior::<kvm_bindings::kvm_xcrs>(0xa6);
pub(crate) const SET_XCRS: u64 = iow::<kvm_bindings::kvm_xcrs>(0xa7);
pub(crate) const CLEAR_DIRTY_LOG: u64 = iowr::<kvm_clear_dirty_log>(0xc0);
pub(crate) const GET_SREGS2: u64 = ior::<kvm_sregs2>(0xcc);
pub(crate) const SET_SREGS2: u64 = iow::<kvm_sregs2>(0xcd);
pub(crate) const SET_DEVICE_ATTR: u64 = iow::<kvm_device_attr>(0xe1);
pub(crate) const GET_DEVICE_ATTR: u64 = iow::<kvm_device_attr>(0xe2);

/// Turns a failure of the KVM call `name` into the error of the contract.
pub(crate) fn failed<E: std::fmt::Display>(name: &'static str) -> impl FnOnce(E) -> Error {
    move |e| Error::Host(format!("{name}: {e}"))
}

fn check(result: libc::c_int) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn with_value(fd: RawFd, request: u64, value: u64) -> io::Result<i32> {
    // SAFETY: every request passed here takes a plain number, so no memory is touched.
    check(unsafe { libc::ioctl(fd, request as libc::Ioctl, value) })
}

fn with_ref<T>(fd: RawFd, request: u64, argument: &T) -> io::Result<i32> {
    // SAFETY: every request passed here only reads a `T`, and what that points to is the caller's duty, met below.
    check(unsafe { libc::ioctl(fd, request as libc::Ioctl, std::ptr::from_ref(argument)) })
}

fn with_mut<T>(fd: RawFd, request: u64, argument: &mut T) -> io::Result<i32> {
    // SAFETY: every request passed here reads or writes one `T` and nothing beyond it.
    check(unsafe { libc::ioctl(fd, request as libc::Ioctl, std::ptr::from_mut(argument)) })
}

/// KVM_RUN.
pub(crate) fn run(vcpu: RawFd) -> io::Result<i32> {
    with_value(vcpu, RUN, 0)
}

/// KVM_GET_TSC_KHZ of a VM or vCPU.
pub(crate) fn tsc_khz(fd: RawFd) -> io::Result<u64> {
    with_value(fd, GET_TSC_KHZ, 0).map(|khz| khz as u64)
}

/// KVM_GET_SREGS2.
pub(crate) fn sregs2(vcpu: RawFd) -> io::Result<kvm_sregs2> {
    let mut out = kvm_sregs2::default();
    with_mut(vcpu, GET_SREGS2, &mut out)?;
    Ok(out)
}

/// KVM_SET_SREGS2.
pub(crate) fn set_sregs2(vcpu: RawFd, sregs: &kvm_sregs2) -> io::Result<()> {
    with_ref(vcpu, SET_SREGS2, sregs).map(drop)
}

/// KVM_SET_XSAVE of a plain 4 KiB image.
pub(crate) fn set_xsave(vcpu: RawFd, xsave: &kvm_xsave) -> io::Result<()> {
    // The kernel reads more than 4 KiB only for features that a guest must be given by arch_prctl first.
    with_ref(vcpu, SET_XSAVE, xsave).map(drop)
}

/// The vCPU's TSC less the (scaled) host's.
pub(crate) fn tsc_offset(vcpu: RawFd) -> io::Result<u64> {
    let mut offset = 0u64;
    let attr = kvm_device_attr {
        group: kvm_bindings::KVM_VCPU_TSC_CTRL,
        attr: u64::from(kvm_bindings::KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(&mut offset) as u64,
        flags: 0,
    };
    // `addr` points to a live u64, which is what the kernel writes.
    with_ref(vcpu, GET_DEVICE_ATTR, &attr)?;
    Ok(offset)
}

/// Sets [`tsc_offset`], without the guesses that KVM makes when IA32_TSC is written.
pub(crate) fn set_tsc_offset(vcpu: RawFd, offset: u64) -> io::Result<()> {
    let attr = kvm_device_attr {
        group: kvm_bindings::KVM_VCPU_TSC_CTRL,
        attr: u64::from(kvm_bindings::KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_ref(&offset) as u64,
        flags: 0,
    };
    with_ref(vcpu, SET_DEVICE_ATTR, &attr).map(drop)
}

/// KVM_SET_USER_MEMORY_REGION. The contract makes the VMM keep the memory mapped as long as the slot is.
pub(crate) fn set_memory(vm: RawFd, region: &kvm_userspace_memory_region) -> io::Result<()> {
    with_ref(vm, SET_USER_MEMORY_REGION, region).map(drop)
}

/// KVM_GET_DIRTY_LOG into `bitmap`, which has a bit for each page of the slot.
pub(crate) fn dirty_log(vm: RawFd, slot: u32, bitmap: &mut [u64]) -> io::Result<()> {
    let mut log = kvm_dirty_log { slot, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = bitmap.as_mut_ptr().cast();
    with_mut(vm, GET_DIRTY_LOG, &mut log).map(drop)
}

/// KVM_CLEAR_DIRTY_LOG of the pages set in `bitmap`, from the slot's first on.
pub(crate) fn clear_dirty_log(vm: RawFd, slot: u32, pages: u32, bitmap: &mut [u64]) -> io::Result<()> {
    let mut log = kvm_clear_dirty_log { slot, num_pages: pages, first_page: 0, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = bitmap.as_mut_ptr().cast();
    with_mut(vm, CLEAR_DIRTY_LOG, &mut log).map(drop)
}

/// KVM_IOEVENTFD.
pub(crate) fn ioeventfd(vm: RawFd, event: &kvm_ioeventfd) -> io::Result<()> {
    with_ref(vm, IOEVENTFD, event).map(drop)
}

/// KVM_IRQFD.
pub(crate) fn irqfd(vm: RawFd, event: &kvm_irqfd) -> io::Result<()> {
    with_ref(vm, IRQFD, event).map(drop)
}

/// The signal mask a vCPU has inside KVM_RUN; `None`: the thread's own.
pub(crate) fn set_signal_mask(vcpu: RawFd, mask: Option<u64>) -> io::Result<()> {
    #[repr(C, packed)]
    struct Mask {
        len: u32,
        set: u64,
    }
    match mask {
        Some(set) => with_ref(vcpu, SET_SIGNAL_MASK, &Mask { len: 8, set }).map(drop),
        None => with_value(vcpu, SET_SIGNAL_MASK, 0).map(drop),
    }
}

/// The host's TSC.
pub(crate) fn rdtsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux allows it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The calling thread's id.
pub(crate) fn gettid() -> i32 {
    // SAFETY: no argument, cannot fail.
    unsafe { libc::gettid() }
}

/// Sends `signal` to a thread of this process. Signal-safe.
pub(crate) fn tgkill(tid: i32, signal: i32) {
    // SAFETY: plain numbers; a thread that is gone gives an error, which is what is wanted.
    unsafe {
        libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal);
    }
}

/// Lets `signal` reach the calling thread, whatever mask it was started with.
pub(crate) fn unblock(signal: i32) -> io::Result<()> {
    let set = 1u64 << (signal - 1);
    // SAFETY: the set lives for the call and has the size that is said; the old mask is not asked for.
    check(unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_UNBLOCK, &set, std::ptr::null_mut::<u64>(), 8)
            as libc::c_int
    })
    .map(drop)
}

/// A signal blocked in the calling thread until dropped; one that came meanwhile is swallowed.
pub(crate) struct Blocked {
    signal: i32,
    /// The thread's mask before, as the kernel has it.
    pub(crate) before: u64,
}

impl Blocked {
    /// Blocks `signal`.
    pub(crate) fn new(signal: i32) -> io::Result<Self> {
        let set = 1u64 << (signal - 1);
        let mut before = 0u64;
        // SAFETY: both pointers are to live 8-byte sets, the size that is said.
        check(unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &set, &mut before, 8) as libc::c_int
        })?;
        Ok(Blocked { signal, before })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let set = 1u64 << (self.signal - 1);
        let no_wait = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the sets and the timeout live for the calls; a null info is allowed.
        unsafe {
            while libc::syscall(
                libc::SYS_rt_sigtimedwait,
                &set,
                std::ptr::null_mut::<libc::siginfo_t>(),
                &no_wait,
                8,
            ) > 0
            {}
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &self.before,
                std::ptr::null_mut::<u64>(),
                8,
            );
        }
    }
}
