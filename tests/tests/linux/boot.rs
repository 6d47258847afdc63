//! Debian's unmodified cloud kernel and a busybox initramfs on the interpreter: user space is reached, and what it
//! computes is what this host computes.
//!
//! `scripts/setup --tests` installs both; without them the tests say that they are skipped.

use godwit_tests::harness::{PATIENCE, Process, Scratch, cached, program};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a shell command prints here.
fn here(command: &str) -> Option<String> {
    let run = Command::new("sh").args(["-c", command]).stderr(Stdio::null()).output().ok()?;
    run.status.success().then(|| String::from_utf8_lossy(&run.stdout).trim().to_owned())
}

fn boots(name: &str, vcpus: u32) {
    let images = cached(["linux/bzImage", "initramfs.cpio.gz"], "--tests");
    let ([kernel, initrd], godwit, plugin) =
        match (images, program("godwit"), program("libgodwit_backend_interp.so")) {
            (Ok(images), Ok(godwit), Ok(plugin)) => (images, godwit, plugin),
            (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return println!("SKIPPED {name}: {why}"),
        };
    let scratch = Scratch::new(name);
    let config = scratch.path("linux.json");
    let text = format!(
        r#"{{"boot-source":{{"kernel_image_path":{kernel:?},"initrd_path":{initrd:?},
             "boot_args":"console=ttyS0 reboot=k panic=1 godwit.do=check"}},
             "machine-config":{{"vcpu_count":{vcpus},"mem_size_mib":256}}}}"#
    );
    std::fs::write(&config, text).expect("written");
    let paths = [&config, &plugin].map(|p| p.to_str().expect("UTF-8").to_owned());
    let args = ["--no-api", "--config-file", &paths[0], "--backend", &paths[1]];
    let mut vm = Process::start(&godwit, &args, "");
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
    assert!(lines.iter().any(|l| l.contains("GODWIT-INIT")), "no init marker");
    let result = |what: &str| {
        let prefix = format!("CHECK {what} ");
        let line = lines.iter().find_map(|l| l.find(&prefix).map(|at| l[at + prefix.len()..].trim()));
        line.unwrap_or_else(|| panic!("the guest did not say {what}")).to_owned()
    };
    assert_eq!(result("cpus"), vcpus.to_string());
    let sum = here("yes godwit | head -c 1000000 | sha256sum | cut -d' ' -f1").expect("sha256sum is here");
    assert_eq!(result("sha256"), sum);
    assert_eq!(result("gzip"), sum);
    assert_eq!(result("bzip2"), sum);
    let awk = r#"awk 'BEGIN { s = 0; for (i = 1; i <= 20000; i++) s += i / 7 * (i % 13 - 6) / (1 + i * 1e-3); printf "%.15e", s }'"#;
    assert_eq!(Some(result("awk")), here(awk));
    let mut s = 0u64;
    for i in 0..5000 {
        s = (s * 31 + i) % 1_000_003;
    }
    assert_eq!(result("loop"), s.to_string());
}

#[test]
fn linux_boots_on_the_interpreter_with_one_vcpu() {
    boots("linux_boots_on_the_interpreter_with_one_vcpu", 1);
}

#[test]
fn linux_boots_on_the_interpreter_with_four_vcpus() {
    boots("linux_boots_on_the_interpreter_with_four_vcpus", 4);
}
