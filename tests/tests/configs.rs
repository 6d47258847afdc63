//! The config files in `tests/configs` start as they are, in a directory with the files that they name.

use godwit_guests::bench;
use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::{PATIENCE, Scratch, cached, program, traced};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

/// Starts the config until the guest has said `until` or has ended: what it said.
fn starts(name: &str, backend: &str, files: &[(&str, Vec<u8>)], until: &str) -> Option<(Scratch, String)> {
    let test = format!("config {name} on {backend}");
    let godwit = match Plugin::usable(backend).map(drop).and_then(|()| program("godwit")) {
        Ok(godwit) => godwit,
        Err(why) => {
            println!("SKIPPED {test}: {why}");
            return None;
        }
    };
    let scratch = Scratch::new(&format!("config-{name}-{backend}"));
    for (file, content) in files {
        std::fs::write(scratch.path(file), content).unwrap();
    }
    let mut command = traced(&godwit);
    command.arg("--config-file").arg(folder().join(name)).args(["--no-api", "--backend", backend]);
    command.current_dir(scratch.path("")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let (mut said, mut chunk) = (String::new(), [0; 4096]);
    let end = Instant::now() + PATIENCE;
    while !said.contains(until) && Instant::now() < end {
        match stdout.read(&mut chunk) {
            Ok(n @ 1..) => said.push_str(&String::from_utf8_lossy(&chunk[..n])),
            _ => break,
        }
    }
    // A clean end writes the metrics.
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(until), "{test}: no {until:?} but {said:?}; {err}");
    assert_eq!(output.status.code(), Some(0), "{test}: {err}");
    Some((scratch, said))
}

fn best() -> &'static str {
    if Plugin::usable("kvm").is_ok() { "kvm" } else { "interp" }
}

fn guest(name: &str) -> Vec<u8> {
    godwit_guests::build(name).expect("the guest assembles")
}

#[test]
fn every_config_is_read() {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            godwit_vmm::config::read(&path).unwrap_or_else(|e| panic!("{e}"));
            found.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
        }
    }
    let guests =
        godwit_guests::GUESTS.iter().map(|g| g.name).chain(["firecracker", "virtio", "bench", "linux"]);
    for name in guests {
        assert!(found.iter().any(|f| f == name), "no tests/configs/{name}.json");
    }
}

#[test]
fn firecrackers_example_starts() {
    let files = [("vmlinux.bin", guest("counter")), ("bionic.rootfs.ext4", vec![0; 1 << 20])];
    starts("firecracker.json", best(), &files, "n=000002");
}

#[test]
fn a_config_for_each_small_guest_starts() {
    for (name, until) in [("hello", "\n"), ("dirtier", "\n"), ("smp", "\n")] {
        starts(&format!("{name}.json"), best(), &[(&format!("{name}.elf"), guest(name))], until);
    }
    for backend in ["kvm", "interp"] {
        let files = [("counter.elf", guest("counter"))];
        let Some((scratch, _)) = starts("counter.json", backend, &files, "n=000003") else { continue };
        let metrics = std::fs::read_to_string(scratch.path("godwit.metrics")).unwrap();
        let line: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
        assert!(line["latencies_us"]["start_vm"].is_u64(), "{line}");
        assert!(scratch.path("godwit.log").exists());
    }
}

#[test]
fn a_config_with_every_device_starts() {
    let test = "a_config_with_every_device_starts";
    let scratch = Scratch::new(test);
    let program = match bench::compile_virtio(&scratch.path("")) {
        Ok(program) => program,
        Err(why) if cfg!(target_arch = "x86_64") => panic!("{why}"),
        Err(why) => return println!("SKIPPED {test}: {why}"),
    };
    // SAFETY: moves only this thread, which ends with the test, into a network namespace of its own.
    let own = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    let ip = |args: &str| Command::new("ip").args(args.split(' ')).status().is_ok_and(|s| s.success());
    if !own
        || !ip("tuntap add tap0 mode tap")
        || !ip("addr add 10.0.2.2/24 dev tap0")
        || !ip("link set tap0 up")
    {
        return println!("SKIPPED {test}: no right to make a network");
    }
    let files = [("virtio.elf", bench::image(&program).unwrap()), ("disk.img", vec![0; 1 << 20])];
    starts("virtio.json", best(), &files, "busy n=2 ");
}

#[test]
fn a_config_for_linux_starts() {
    let test = "a_config_for_linux_starts";
    match cached(["linux/bzImage", "initramfs.cpio.gz"], "--tests") {
        Ok(paths) => {
            let [kernel, initramfs] = paths.map(|p| std::fs::read(p).unwrap());
            let files = [("bzImage", kernel), ("initramfs.cpio.gz", initramfs)];
            starts("linux.json", "interp", &files, "Linux version");
        }
        Err(why) => println!("SKIPPED {test}: {why}"),
    }
}
