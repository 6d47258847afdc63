//! Debian's unmodified cloud kernel and a busybox initramfs on the interpreter: user space is reached, and what it
//! computes is what this host computes.
//!
//! `scripts/setup --tests` installs both; without them the tests say that they are skipped.

use godwit_tests::harness::{PATIENCE, Process, Scratch, cached, program};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a shell command prints here.
fn here(command: &str) -> Option<String> {
    let run = Command::new("sh").args(["-c", command]).stderr(Stdio::null()).output().ok()?;
    run.status.success().then(|| String::from_utf8_lossy(&run.stdout).trim().to_owned())
}

/// The kernel within a bzImage, where that is compressed with LZ4's old format: blocks of at most 8 MiB.
fn unpacked(image: &[u8]) -> Result<Vec<u8>, String> {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| image[at + i]));
    let kernel = (usize::from(image[0x1f1]) + 1) * 512;
    let (from, len) = (kernel + word(0x248) as usize, word(0x24c) as usize);
    if word(from) != 0x184c_2102 {
        return Err("this kernel is not compressed with LZ4".into());
    }
    let (mut at, end, mut out) = (from + 4, from + len, Vec::new());
    // The last four bytes are the size of it all.
    while at + 4 < end {
        let block = word(at) as usize;
        let plain = lz4_flex::block::decompress(&image[at + 4..at + 4 + block], 8 << 20);
        out.extend(plain.map_err(|e| e.to_string())?);
        at += 4 + block;
    }
    if out.len() == word(end - 4) as usize { Ok(out) } else { Err(format!("{} bytes came out", out.len())) }
}

/// Boots a kernel whose init does the self-checks, and has its answers; they are right.
pub(crate) fn checked(
    (godwit, plugin): (&Path, &Path),
    scratch: &Scratch,
    boot_source: &Value,
    (vcpus, mib): (u32, u32),
) -> Vec<String> {
    let config = scratch.path("linux.json");
    let machine = json!({"vcpu_count": vcpus, "mem_size_mib": mib});
    let text = json!({"boot-source": boot_source, "machine-config": machine}).to_string();
    std::fs::write(&config, text).expect("written");
    let paths = [&config, plugin].map(|p| p.to_str().expect("UTF-8").to_owned());
    let args = ["--no-api", "--config-file", &paths[0], "--backend", &paths[1]];
    let mut vm = Process::start(godwit, &args, "");
    let mut end = Instant::now() + PATIENCE;
    let mut seen = 0;
    loop {
        let lines = vm.lines();
        if lines.iter().any(|l| l.contains("CHECK-END")) {
            break;
        }
        // Only silence is a hang: the host may be slow.
        if lines.len() > seen {
            (seen, end) = (lines.len(), Instant::now() + PATIENCE);
        }
        let tail = &lines[lines.len().saturating_sub(20)..];
        assert!(vm.is_alive(), "godwit ended early: {}\n{}", vm.err(), tail.join("\n"));
        assert!(Instant::now() < end, "the guest is silent: {}\n{}", vm.err(), tail.join("\n"));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let lines = vm.lines();
    no_warnings(&lines);
    assert!(lines.iter().any(|l| l.contains("GODWIT-INIT")), "no init marker");
    assert_eq!(result(&lines, "cpus"), vcpus.to_string());
    let sum = here("yes godwit | head -c 1000000 | sha256sum | cut -d' ' -f1").expect("sha256sum is here");
    assert_eq!(result(&lines, "sha256"), sum);
    assert_eq!(result(&lines, "gzip"), sum);
    assert_eq!(result(&lines, "bzip2"), sum);
    let awk = r#"awk 'BEGIN { s = 0; for (i = 1; i <= 20000; i++) s += i / 7 * (i % 13 - 6) / (1 + i * 1e-3); printf "%.15e", s }'"#;
    assert_eq!(Some(result(&lines, "awk")), here(awk));
    let mut s = 0u64;
    for i in 0..5000 {
        s = (s * 31 + i) % 1_000_003;
    }
    assert_eq!(result(&lines, "loop"), s.to_string());
    lines
}

/// Nothing about the machine made the kernel wonder.
pub(crate) fn no_warnings(lines: &[String]) {
    let wonders =
        |l: &&String| ["WARNING: ", "BUG: ", "Oops: ", "firmware bug"].iter().any(|w| l.contains(w));
    if let Some(line) = lines.iter().find(wonders) {
        panic!("the kernel says: {line}\n{}", lines.join("\n"));
    }
}

/// What the guest's self-checks said of `what`.
pub(crate) fn result(lines: &[String], what: &str) -> String {
    let prefix = format!("CHECK {what} ");
    let line = lines.iter().find_map(|l| l.find(&prefix).map(|at| l[at + prefix.len()..].trim()));
    line.unwrap_or_else(|| panic!("the guest did not say {what}")).to_owned()
}

/// Boots by bzImage, or the ELF file in it by its PVH note.
fn boots(name: &str, vcpus: u32, pvh: bool) {
    let images = cached(["linux/bzImage", "initramfs.cpio.gz"], "--tests");
    let ([kernel, initrd], godwit, plugin) =
        match (images, program("godwit"), program("libgodwit_backend_interp.so")) {
            (Ok(images), Ok(godwit), Ok(plugin)) => (images, godwit, plugin),
            (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return println!("SKIPPED {name}: {why}"),
        };
    let scratch = Scratch::new(name);
    let kernel = if pvh {
        let vmlinux = match unpacked(&std::fs::read(&kernel).expect("readable")) {
            Ok(vmlinux) => vmlinux,
            Err(why) => return println!("SKIPPED {name}: {why}"),
        };
        std::fs::write(scratch.path("vmlinux"), vmlinux).expect("written");
        scratch.path("vmlinux")
    } else {
        kernel
    };
    let source = json!({"kernel_image_path": kernel, "initrd_path": initrd,
                        "boot_args": "console=ttyS0 reboot=k panic=1 godwit.do=check"});
    let lines = checked((&godwit, &plugin), &scratch, &source, (vcpus, 256));
    // What Linux's PVH entry says of who loaded it; by its other protocol it is our own number.
    assert_eq!(result(&lines, "loader") == "176", pvh, "{}", result(&lines, "loader"));
}

#[test]
fn linux_boots_on_the_interpreter_with_one_vcpu() {
    boots("linux_boots_on_the_interpreter_with_one_vcpu", 1, false);
}

#[test]
fn linux_boots_on_the_interpreter_with_four_vcpus() {
    boots("linux_boots_on_the_interpreter_with_four_vcpus", 4, false);
}

#[test]
fn linux_boots_by_its_pvh_note() {
    boots("linux_boots_by_its_pvh_note", 1, true);
}

/// The guest ends its machine: by the keyboard controller, the reset register of ACPI, ACPI's power-off; and by a triple fault, which is
/// told apart since a crash looks the same.
#[test]
fn linux_resets_and_switches_off() {
    let name = "linux_resets_and_switches_off";
    let images = cached(["linux/bzImage", "initramfs.cpio.gz"], "--tests");
    let ([kernel, initrd], godwit, plugin) =
        match (images, program("godwit"), program("libgodwit_backend_interp.so")) {
            (Ok(images), Ok(godwit), Ok(plugin)) => (images, godwit, plugin),
            (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return println!("SKIPPED {name}: {why}"),
        };
    let scratch = Scratch::new(name);
    for (how, end, code, err) in [
        ("reboot=k godwit.do=reboot", "Restarting system", 0, ""),
        ("reboot=a godwit.do=reboot", "Restarting system", 0, ""),
        ("reboot=t godwit.do=reboot", "Restarting system", 100, "triple fault"),
        ("godwit.do=poweroff", "Power down", 0, ""),
    ] {
        let config = scratch.path("linux.json");
        let source = json!({"kernel_image_path": kernel, "initrd_path": initrd,
                            "boot_args": format!("console=ttyS0 panic=1 {how}")});
        let machine = json!({"vcpu_count": 1, "mem_size_mib": 128});
        std::fs::write(&config, json!({"boot-source": source, "machine-config": machine}).to_string())
            .unwrap();
        let paths = [&config, &plugin].map(|p| p.to_str().expect("UTF-8").to_owned());
        let args = ["--no-api", "--config-file", &paths[0], "--backend", &paths[1]];
        let mut vm = Process::start(&godwit, &args, "");
        assert_eq!(vm.wait_exit(), Some(code), "{how}: {}", vm.err());
        assert!(vm.text().contains(end) && vm.err().contains(err), "{how}: {}\n{}", vm.err(), vm.text());
    }
}
