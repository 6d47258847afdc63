use super::*;
use crate::memory::ram::{Backing, allocate};
use godwit_state::Section;

fn elf(note: bool) -> Vec<u8> {
    let mut out = vec![0u8; 0x1000];
    let mut set = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, b"\x7fELF\x02\x01\x01");
    set(16, &[2, 0, 62, 0]);
    set(24, &0x10_0040u64.to_le_bytes());
    set(32, &64u64.to_le_bytes());
    set(54, &[56, 0, if note { 2 } else { 1 }, 0]);
    set(64, &[1, 0, 0, 0, 7, 0, 0, 0]);
    set(64 + 8, &0x200u64.to_le_bytes());
    set(64 + 24, &0x10_0000u64.to_le_bytes());
    set(64 + 32, &4u64.to_le_bytes());
    set(64 + 40, &0x2000u64.to_le_bytes());
    set(120, &[4, 0, 0, 0]);
    set(120 + 8, &0x300u64.to_le_bytes());
    set(120 + 32, &20u64.to_le_bytes());
    set(0x200, b"code");
    set(0x300, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 0x78, 0x56, 0x10, 0]);
    out
}

fn boot(
    image: &[u8],
    mem: u64,
    cmdline: &str,
    initrd: Option<&[u8]>,
) -> Result<(GuestRam, FirstState), BootError> {
    let dir = vmm_sys_util::tempdir::TempDir::new().unwrap();
    let kernel = dir.as_path().join("kernel");
    std::fs::write(&kernel, image).unwrap();
    let initrd = initrd.map(|bytes| {
        let path = dir.as_path().join("initrd");
        std::fs::write(&path, bytes).unwrap();
        path
    });
    let ram = allocate(mem, &Backing::Anonymous).unwrap();
    let first = load(&ram, &BootSource { kernel, initrd, cmdline: cmdline.into() }, b"RSD PTR ")?;
    Ok((ram, first))
}

fn u64_at(ram: &GuestRam, at: u64) -> u64 {
    let mut b = [0; 8];
    ram.read_slice(&mut b, GuestAddress(at)).unwrap();
    u64::from_le_bytes(b)
}

#[test]
fn pvh_says_where_everything_is() {
    let (ram, first) = boot(&elf(true), 4 << 20, "a=b", Some(&[7; 5000])).unwrap();
    assert_eq!((first.regs.rip, first.regs.gpr[3]), (0x10_5678, 0x7000));
    assert!(first.system.validate().is_ok() && first.regs.validate().is_ok());
    assert_eq!(u64_at(&ram, 0x7000) as u32, 0x336e_c578);
    let module = u64_at(&ram, 0x7010);
    assert_eq!((u64_at(&ram, module), u64_at(&ram, module + 8)), ((4 << 20) - 8192, 5000));
    let mut line = [0xff; 4];
    ram.read_slice(&mut line, GuestAddress(u64_at(&ram, 0x7018))).unwrap();
    assert_eq!(&line, b"a=b\0");
    assert_eq!(u64_at(&ram, 0x7020), layout::ACPI);
    let map = u64_at(&ram, 0x7028);
    assert_eq!((u64_at(&ram, map), u64_at(&ram, map + 8)), (0, layout::EBDA));
    let mut code = [0; 4];
    ram.read_slice(&mut code, GuestAddress(0x10_0000)).unwrap();
    assert_eq!(&code, b"code");
}

#[test]
fn linux_is_entered_in_long_mode() {
    let (ram, first) = boot(&elf(false), 8 << 20, "", None).unwrap();
    assert_eq!((first.regs.rip, first.regs.gpr[6]), (0x10_0040, 0x7000));
    assert!(first.system.validate().is_ok());
    assert_eq!(u64_at(&ram, first.system.cr3), 0xa003);
    assert_eq!(u64_at(&ram, 0xb000 + 8), 0x20_0083);
    // The flat 64-bit code segment as every 64-bit kernel has it.
    assert_eq!(u64_at(&ram, layout::GDT + 8), 0x00af_9b00_0000_ffff);
}

#[test]
fn what_does_not_fit_or_is_no_kernel_is_refused() {
    let text = |r: Result<(GuestRam, FirstState), BootError>| r.map(|_| ()).unwrap_err().to_string();
    assert!(text(boot(&elf(true), 1 << 20, "", None)).contains("more memory"));
    assert!(text(boot(&elf(true), 2 << 20, "", Some(&[0; 2 << 20]))).contains("initrd"));
    assert!(text(boot(&elf(true), 2 << 20, &"x".repeat(2048), None)).contains("2047"));
    assert!(text(boot(&elf(true), 2 << 20, "a\0b", None)).contains("NUL"));
    assert!(text(boot(b"#!/bin/sh", 2 << 20, "", None)).contains("neither"));
    for cut in [5, 20, 60, 100, 0x1ff, 0x202] {
        assert!(boot(&elf(true)[..cut], 2 << 20, "", None).is_err(), "{cut}");
    }
    // Any damage is an error or a kernel, never a panic.
    for at in 0..0x340 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut image = elf(true);
            image[at] = value;
            let ram = allocate(2 << 20, &Backing::Anonymous).unwrap();
            let _ = super::elf::load(&ram, &image);
        }
    }
}
