//! The page that a vCPU shares with the kernel (`struct kvm_run`): why KVM_RUN came back, and the data of device accesses.
//!
//! Mapped a second time beside kvm-ioctls's own mapping, so that whoever kicks holds what it writes to.

use godwit_sdk::Error;
use kvm_bindings as kvm;
use kvm_bindings::kvm_run;
use std::os::fd::RawFd;
use std::ptr::{NonNull, addr_of, addr_of_mut};
use std::sync::atomic::{AtomicU8, Ordering};

/// Why KVM_RUN came back.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RunExit {
    /// Port accesses, `count` of them (string instructions have many).
    Pio { input: bool, port: u16, width: u8, count: u32, offset: u64 },
    /// A memory access outside RAM.
    Mmio { gpa: u64, len: u8, write: bool, data: [u8; 8] },
    /// An external interrupt could be taken now.
    InterruptWindow,
    /// A level-triggered vector was ended.
    Eoi(u8),
    /// Triple fault.
    Shutdown,
    /// KVM cannot go on.
    Internal { suberror: u32, data: [u64; 16], len: u32 },
    /// The processor refused to enter the guest.
    FailEntry { reason: u64, cpu: u32 },
    /// Nothing to do but enter again.
    Nothing,
    /// Not expected with what this backend enables.
    Other(u32),
}

/// The mapping.
#[derive(Debug)]
pub(crate) struct RunPage {
    run: NonNull<kvm_run>,
    len: usize,
}

// SAFETY: fields that other threads touch are accessed atomically (immediate_exit); all others only by the vCPU's thread.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the page of a vCPU; `len` is what KVM_GET_VCPU_MMAP_SIZE gave.
    pub(crate) fn new(vcpu: RawFd, len: usize) -> Result<Self, Error> {
        if len < size_of::<kvm_run>() {
            return Err(Error::Host(format!("KVM_GET_VCPU_MMAP_SIZE: {len} bytes are too few")));
        }
        // SAFETY: a fresh shared mapping at an address of the kernel's choice.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu,
                0,
            )
        };
        match NonNull::new(p) {
            Some(run) if p != libc::MAP_FAILED => Ok(RunPage { run: run.cast(), len }),
            _ => Err(Error::Host(format!("mmap of a vCPU: {}", std::io::Error::last_os_error()))),
        }
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the byte is inside the live mapping; the kernel only reads it, we only access it atomically.
        unsafe { AtomicU8::from_ptr(addr_of_mut!((*self.run.as_ptr()).immediate_exit)) }
    }

    /// Makes KVM_RUN finish the device access under way and come back at once. Signal-safe.
    pub(crate) fn set_immediate_exit(&self, on: bool) {
        self.immediate_exit().store(u8::from(on), Ordering::SeqCst);
    }

    /// See [`Self::set_immediate_exit`].
    pub(crate) fn immediate_exit_is_set(&self) -> bool {
        self.immediate_exit().load(Ordering::SeqCst) != 0
    }

    /// Asks for [`RunExit::InterruptWindow`].
    pub(crate) fn request_interrupt_window(&self, on: bool) {
        // SAFETY: inside the mapping; only the vCPU's thread writes it, outside KVM_RUN.
        unsafe {
            addr_of_mut!((*self.run.as_ptr()).request_interrupt_window).write_volatile(u8::from(on));
        }
    }

    /// At the last return of KVM_RUN an external interrupt could be taken.
    pub(crate) fn ready_for_interrupt(&self) -> bool {
        // SAFETY: inside the mapping; the kernel writes it only inside KVM_RUN.
        unsafe {
            addr_of!((*self.run.as_ptr()).ready_for_interrupt_injection).read_volatile() != 0
                && addr_of!((*self.run.as_ptr()).if_flag).read_volatile() != 0
        }
    }

    /// Why the last KVM_RUN came back.
    pub(crate) fn exit(&self) -> RunExit {
        let run = self.run.as_ptr();
        // SAFETY: inside the mapping, which the kernel does not change outside KVM_RUN. Each union field is plain data,
        // valid for any bytes, and the exit reason says which the kernel filled.
        unsafe {
            let reason = addr_of!((*run).exit_reason).read_volatile();
            let detail = addr_of!((*run).__bindgen_anon_1);
            match reason {
                kvm::KVM_EXIT_IO => {
                    let io = addr_of!((*detail).io).read_volatile();
                    RunExit::Pio {
                        input: u32::from(io.direction) == kvm::KVM_EXIT_IO_IN,
                        port: io.port,
                        width: io.size,
                        count: io.count,
                        offset: io.data_offset,
                    }
                }
                kvm::KVM_EXIT_MMIO => {
                    let m = addr_of!((*detail).mmio).read_volatile();
                    let len = m.len.min(8) as u8;
                    RunExit::Mmio { gpa: m.phys_addr, len, write: m.is_write != 0, data: m.data }
                }
                kvm::KVM_EXIT_IRQ_WINDOW_OPEN => RunExit::InterruptWindow,
                kvm::KVM_EXIT_IOAPIC_EOI => RunExit::Eoi(addr_of!((*detail).eoi.vector).read_volatile()),
                kvm::KVM_EXIT_SHUTDOWN | kvm::KVM_EXIT_SYSTEM_EVENT => RunExit::Shutdown,
                kvm::KVM_EXIT_INTERNAL_ERROR => {
                    let e = addr_of!((*detail).internal).read_volatile();
                    RunExit::Internal { suberror: e.suberror, data: e.data, len: e.ndata.min(16) }
                }
                kvm::KVM_EXIT_FAIL_ENTRY => {
                    let e = addr_of!((*detail).fail_entry).read_volatile();
                    RunExit::FailEntry { reason: e.hardware_entry_failure_reason, cpu: e.cpu }
                }
                kvm::KVM_EXIT_INTR | kvm::KVM_EXIT_SET_TPR => RunExit::Nothing,
                other => RunExit::Other(other),
            }
        }
    }

    /// Checks that a PIO exit's data lie in the mapping.
    fn pio_data(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        (offset.checked_add(len)? <= self.len).then(|| {
            // SAFETY: within the mapping, as just checked.
            unsafe { self.run.as_ptr().cast::<u8>().add(offset) }
        })
    }

    /// One value of a PIO exit's data, little-endian.
    pub(crate) fn pio_get(&self, offset: u64, width: u8) -> u64 {
        let width = usize::from(width.min(4));
        let mut bytes = [0; 8];
        if let Some(p) = self.pio_data(offset, width) {
            // SAFETY: `width` bytes of the mapping; the kernel is not inside KVM_RUN.
            unsafe { std::ptr::copy_nonoverlapping(p, bytes.as_mut_ptr(), width) };
        }
        u64::from_le_bytes(bytes)
    }

    /// Puts one value into a PIO exit's data.
    pub(crate) fn pio_put(&self, offset: u64, width: u8, value: u64) {
        let width = usize::from(width.min(4));
        if let Some(p) = self.pio_data(offset, width) {
            // SAFETY: as in `pio_get`.
            unsafe { std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), p, width) };
        }
    }

    /// Answers an MMIO read.
    pub(crate) fn mmio_put(&self, value: u64) {
        let data = value.to_le_bytes();
        // SAFETY: inside the mapping; the kernel is not inside KVM_RUN.
        unsafe { addr_of_mut!((*self.run.as_ptr()).__bindgen_anon_1.mmio.data).write_volatile(data) };
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing borrows from it any more.
        unsafe {
            libc::munmap(self.run.as_ptr().cast(), self.len);
        }
    }
}
