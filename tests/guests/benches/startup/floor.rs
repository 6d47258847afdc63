//! The floor: a VM with nothing but what KVM itself asks for, in a process of its own, boots the same guest.
//!
//! The bench starts itself with `--floor ELF MIB`. Split irqchip, one slot of RAM, one vCPU entered by the PVH protocol; the
//! serial port's data register goes to standard output, a byte to the i8042's command port ends it.

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_regs, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit};
use std::error::Error;
use std::io::Write;
use std::path::Path;

const PINS: u64 = 24;
const SERIAL_DATA: u16 = 0x3f8;
const SERIAL_LINE_STATUS: u16 = 0x3fd;
const I8042_COMMAND: u16 = 0x64;

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

/// Copies the file's segments into `ram`: the PVH entry.
fn load(elf: &[u8], ram: &mut [u8]) -> Option<u64> {
    let (table, size, count) = (word(elf, 32)? as usize, half(elf, 54)?, half(elf, 56)?);
    let mut entry = None;
    for header in (0..count).map(|i| table + i * size) {
        let (offset, gpa, len) = (
            word(elf, header + 8)? as usize,
            word(elf, header + 24)? as usize,
            word(elf, header + 32)? as usize,
        );
        let bytes = elf.get(offset..offset + len)?;
        match elf.get(header)? {
            1 => ram.get_mut(gpa..gpa + len)?.copy_from_slice(bytes),
            4 => entry = word(bytes, 16),
            _ => {}
        }
    }
    entry
}

/// A flat 32-bit segment.
fn flat(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    }
}

/// Runs the guest to its end.
pub(crate) fn run(elf: &Path, mib: usize) -> Result<(), Box<dyn Error>> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    split.args[0] = PINS;
    vm.enable_cap(&split)?;
    let len = mib << 20;
    // SAFETY: a new anonymous mapping touches no other.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    // SAFETY: the mapping just made, before the guest has it.
    let ram = unsafe { std::slice::from_raw_parts_mut(at.cast::<u8>(), len) };
    let entry = load(&std::fs::read(elf)?, ram).ok_or("no guest of ours")?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: len as u64,
        userspace_addr: at as u64,
    };
    // SAFETY: it stays mapped until the process ends, and `ram` is not used from here on.
    unsafe { vm.set_user_memory_region(slot)? };

    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    let mut system = vcpu.get_sregs()?;
    let data = flat(0x10, 3);
    system.cs = flat(0x8, 11);
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.cr0 |= 1;
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&kvm_regs { rip: entry, rflags: 2, ..Default::default() })?;
    let mut out = std::io::stdout();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(SERIAL_DATA, bytes) => {
                out.write_all(bytes)?;
                out.flush()?;
            }
            VcpuExit::IoIn(SERIAL_LINE_STATUS, bytes) => bytes.fill(0x60),
            VcpuExit::IoOut(I8042_COMMAND, _) => return Ok(()),
            VcpuExit::IoOut(..) | VcpuExit::IoIn(..) => {}
            other => return Err(format!("{other:?}").into()),
        }
    }
}
