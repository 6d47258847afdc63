//! The guests on a machine that is not ours: QEMU's microvm, by TCG, and by KVM where it works.
//! A guest that fails here would blame Godwit for its own bugs.

use godwit_guests::elf::{self, Segment};
use godwit_guests::host::qemu;
use godwit_guests::layout::*;
use godwit_guests::{bench, build, counter, dirtier};
use iced_x86::code_asm::*;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn accelerators(test: &str) -> Vec<&'static str> {
    if let Err(why) = qemu() {
        println!("SKIPPED {test}: {why}");
        return Vec::new();
    }
    if cfg!(target_arch = "x86_64") && Path::new("/dev/kvm").exists() {
        vec!["tcg", "kvm"]
    } else {
        println!("SKIPPED {test} under KVM: no /dev/kvm");
        vec!["tcg"]
    }
}

fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = dir.join(format!("{name}-{}.elf", std::process::id()));
    std::fs::write(&path, bytes).expect("the guest's file");
    path
}

/// Runs a guest until it resets; returns what it printed.
fn run(accelerator: &str, elf: &Path, cmdline: &str, cpus: u32) -> String {
    run_with(accelerator, elf, cmdline, cpus, &[])
}

fn run_with(accelerator: &str, elf: &Path, cmdline: &str, cpus: u32, more: &[&str]) -> String {
    let output = Command::new("timeout")
        .arg("120")
        .arg(qemu().expect("QEMU is there"))
        .args(["-M", "microvm", "-m", "256", "-nographic", "-no-reboot"])
        .args(["-accel", accelerator, "-smp", &cpus.to_string(), "-append", cmdline])
        .arg("-kernel")
        .arg(elf)
        .args(more)
        .stdin(Stdio::null())
        .output()
        .expect("QEMU starts");
    let printed = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    assert!(
        output.status.success(),
        "{accelerator}: {}\n{printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

#[test]
fn hello_says_hello() {
    let elf = write("hello", &build("hello").expect("builds"));
    for accelerator in accelerators("hello_says_hello") {
        let printed = run(accelerator, &elf, "", 1);
        assert!(printed.contains(godwit_guests::hello::TEXT), "{accelerator}: {printed}");
    }
}

fn check_counter(printed: &str, lines: u64) {
    let mut checker = counter::Checker::new();
    for line in printed.lines() {
        checker.check_line(line).expect("a right line");
    }
    assert_eq!(checker.lines(), lines, "{printed}");
    assert!(printed.contains(&format!("counter done: lines={lines} bad=0")), "{printed}");
}

#[test]
fn counter_counts() {
    let elf = write("counter", &build("counter").expect("builds"));
    for accelerator in accelerators("counter_counts") {
        let options = "console=ttyS0 lines=40 rate=50 fill=16";
        check_counter(&run(accelerator, &elf, options, 1), 40);
        for units in [0, 1, 2, 4, 8, 16, 23] {
            let options = format!("lines=3 rate=100 units={units} idle={}", units % 3);
            check_counter(&run(accelerator, &elf, &options, 1), 3);
        }
    }
}

#[test]
fn dirtier_dirties() {
    let elf = write("dirtier", &build("dirtier").expect("builds"));
    for accelerator in accelerators("dirtier_dirties") {
        for rate in [1000, 0] {
            let options = format!("mib=4 pages_per_s={rate} lines=2");
            let printed = run(accelerator, &elf, &options, 1);
            let mut checker = dirtier::Checker::new();
            for line in printed.lines() {
                checker.check_line(line).expect("a right line");
            }
            assert_eq!(checker.lines(), 2, "{printed}");
            assert!(checker.pages() >= 1000, "{printed}");
        }
    }
}

#[test]
fn smp_finds_order() {
    let elf = write("smp", &build("smp").expect("builds"));
    for accelerator in accelerators("smp_finds_order") {
        for cpus in [1, 3] {
            let options = format!("cpus={cpus} rounds=2 size=500");
            let printed = run(accelerator, &elf, &options, cpus);
            assert!(printed.contains(&format!("smp: cpus={cpus} ")), "{printed}");
            assert!(printed.contains("smp done: rounds=2 bad=0"), "{printed}");
        }
    }
}

/// A loader in the guest: by PVH into long mode with page tables of its own, then into `entry` as
/// the 64-bit Linux protocol says, with a command line.
fn linux_loader(guest: &[u8], cmdline: &str) -> Vec<u8> {
    const LOADER: u64 = 0x90_0000;
    const TABLES: u64 = LOADER + 0x1000;
    const PARAMS: u64 = LOADER + 0x4000;
    const TEXT: u64 = PARAMS + 0x1000;
    let word = |at: usize| u64::from_le_bytes(guest[at..at + 8].try_into().expect("8 bytes"));
    let mut bytes = vec![0u8; 0x6000];
    let mut put = |at: u64, value: &[u8]| {
        let at = (at - LOADER) as usize;
        bytes[at..at + value.len()].copy_from_slice(value);
    };
    put(TABLES, &(TABLES + 0x1003).to_le_bytes());
    put(TABLES + 0x1000, &(TABLES + 0x2003).to_le_bytes());
    for entry in 0..512u64 {
        put(TABLES + 0x2000 + entry * 8, &(entry << 21 | 0x83).to_le_bytes());
    }
    put(PARAMS + 0x228, &(TEXT as u32).to_le_bytes());
    put(TEXT, cmdline.as_bytes());
    // Flat 64-bit code and data at the selectors that the protocol names.
    let gdt = PARAMS + 0x800;
    put(gdt + 0x10, &0x00af_9b00_0000_ffffu64.to_le_bytes());
    put(gdt + 0x18, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    put(gdt + 0x40, &(0x1f | gdt << 16).to_le_bytes());

    let mut a = CodeAssembler::new(32).expect("32-bit code");
    let mut code = || -> Result<Vec<u8>, iced_x86::IcedError> {
        a.mov(eax, TABLES as u32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, 0x8000_0001u32)?;
        a.mov(cr0, eax)?;
        a.lgdt(ptr(gdt + 0x40))?;
        a.mov(eax, 0x18)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ss, eax)?;
        a.mov(esi, PARAMS as u32)?;
        let far = iced_x86::Code::Jmp_ptr1632;
        a.add_instruction(iced_x86::Instruction::with_far_branch(far, 0x10, word(24) as u32)?)?;
        a.assemble(LOADER)
    };
    put(LOADER, &code().expect("assembles"));

    let mut segments = Vec::new();
    let count = u16::from_le_bytes(guest[56..58].try_into().expect("2 bytes"));
    for at in (0..usize::from(count)).map(|i| 64 + i * 56).filter(|at| guest[*at] == 1) {
        let (offset, len) = (word(at + 8) as usize, word(at + 32) as usize);
        let bytes = guest[offset..offset + len].to_vec();
        segments.push(Segment { gpa: word(at + 16), bytes, executable: true });
    }
    segments.push(Segment { gpa: LOADER, bytes, executable: true });
    elf::write(&segments, LOADER, LOADER as u32)
}

#[test]
fn the_linux_entry_works_too() {
    let guest = build("counter").expect("builds");
    assert!(guest.len() as u64 > KERNEL_TEXT - KERNEL);
    let elf = write("counter-linux", &linux_loader(&guest, "quiet lines=5 rate=100"));
    for accelerator in accelerators("the_linux_entry_works_too") {
        let printed = run(accelerator, &elf, "", 1);
        assert!(printed.contains("booted_by=2"), "{printed}");
        check_counter(&printed, 5);
    }
}

/// FNV-1a, as the virtio guest hashes the first sectors of a disk.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[test]
fn virtio_drives_devices() {
    let test = "virtio_drives_devices";
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let program = match bench::compile_virtio(&dir) {
        Ok(program) => program,
        Err(why) if cfg!(target_arch = "x86_64") => panic!("{why}"),
        Err(why) => return eprintln!("SKIPPED {test}: {why}"),
    };
    let elf = write("virtio", &bench::image(&program).expect("assembles"));
    let disk = dir.join(format!("disk-{}.img", std::process::id()));
    let content: Vec<u8> = (0..2u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let windows: String =
        (0..24).map(|i| format!(" virtio_mmio.device=512@{:#x}:5", 0xfeb0_0000u64 + i * 512)).collect();
    let cmdline = format!("gateway=10.0.2.2 address=10.0.2.15 sectors=1000{windows}");
    for accelerator in accelerators(test) {
        std::fs::write(&disk, &content).expect("the disk");
        let drive = format!("file={},format=raw,if=none,id=disk", disk.display());
        let devices = [
            ["-global", "virtio-mmio.force-legacy=false"],
            ["-drive", &drive],
            ["-device", "virtio-blk-device,drive=disk,serial=godwit"],
            ["-device", "virtio-rng-device"],
            ["-netdev", "user,id=net"],
            ["-device", "virtio-net-device,netdev=net"],
        ];
        let printed = run_with(accelerator, &elf, &cmdline, 1, devices.as_flattened());
        let first = format!("serial=godwit first={:016x} written=1000 ok", fnv(&content[..4096]));
        for line in [first.as_str(), "rng bytes=256 ok", "arp=ok pings=16 ok", "virtio done bad=0"] {
            assert!(printed.contains(line), "{accelerator}: no {line:?} in\n{printed}");
        }
        let after = std::fs::read(&disk).expect("the disk");
        let changed = 8 * 512..1008 * 512;
        assert!(after[..changed.start] == content[..changed.start]);
        assert!(after[changed.clone()] != content[changed.clone()]);
        assert!(after[changed.end..] == content[changed.end..]);
    }
    std::fs::remove_file(&disk).ok();
}
