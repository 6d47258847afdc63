//! Start-up: from the start of the process to the guest's first byte on the serial port.
//!
//!     cargo bench -p godwit-guests --bench startup [-- --runs N]
//!
//! The `hello` guest on Godwit's backends and on QEMU's microvm, in turn, `runs` times (21);
//! medians and the fastest, in milliseconds, and the ratio to QEMU with TCG. The `godwit` binary
//! is `$GODWIT`, else the release build of this workspace; subjects that are not there are left
//! out by name.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Subject {
    name: &'static str,
    command: Command,
    times: Vec<Duration>,
}

fn subject(name: &'static str, command: Command) -> Subject {
    Subject { name, command, times: Vec::new() }
}

fn qemu(accelerator: &str, elf: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm", "-m", "128", "-accel", accelerator, "-nographic", "-no-reboot"])
        .args(["-nodefaults", "-serial", "stdio", "-kernel"])
        .arg(elf);
    command
}

fn godwit(binary: &Path, backend: &str, config: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(["--no-api", "--backend", backend, "--config-file"]).arg(config);
    command
}

/// One start; `None`, with the reason printed, where the guest said something else.
fn measure(subject: &mut Subject) -> Option<Duration> {
    let start = Instant::now();
    let child = subject.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            println!("left out: {} ({error})", subject.name);
            return None;
        }
    };
    let mut output = child.stdout.take()?;
    let mut text = vec![0];
    let first = output.read_exact(&mut text);
    let time = start.elapsed();
    let rest = output.read_to_end(&mut text);
    let status = child.wait();
    let said = String::from_utf8_lossy(&text);
    if first.is_ok() && rest.is_ok() && status.is_ok() && said.contains(godwit_guests::hello::TEXT.trim_end())
    {
        return Some(time);
    }
    println!("left out: {} (the guest printed {said:?})", subject.name);
    None
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runs =
        arguments.iter().skip_while(|a| *a != "--runs").nth(1).map_or(21, |n| n.parse().expect("a number"));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (elf, config) = (dir.join("hello.elf"), dir.join("hello.json"));
    std::fs::write(&elf, godwit_guests::build("hello").expect("builds")).expect("the guest's file");
    let text = format!(
        "{{\"boot-source\": {{\"kernel_image_path\": {:?}}},\n \
         \"machine-config\": {{\"vcpu_count\": 1, \"mem_size_mib\": 128}}}}\n",
        elf.display().to_string()
    );
    std::fs::write(&config, text).expect("the config file");

    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(workspace.join("target"), PathBuf::from);
    let binary = std::env::var_os("GODWIT").map_or(target.join("release/godwit"), PathBuf::from);
    let mut subjects = vec![subject("qemu tcg", qemu("tcg", &elf))];
    if Path::new("/dev/kvm").exists() {
        subjects.push(subject("qemu kvm", qemu("kvm", &elf)));
        subjects.push(subject("godwit kvm", godwit(&binary, "kvm", &config)));
    } else {
        println!("left out: KVM (no /dev/kvm)");
    }
    subjects.push(subject("godwit interp", godwit(&binary, "interp", &config)));

    for _ in 0..runs {
        subjects.retain_mut(|subject| match measure(subject) {
            Some(time) => {
                subject.times.push(time);
                true
            }
            None => false,
        });
    }
    let millis = |time: &Duration| time.as_secs_f64() * 1e3;
    let mut anchor = None;
    println!("{:14}{:>12}{:>12}{:>14}", "subject", "median ms", "fastest ms", "of qemu tcg");
    for subject in &mut subjects {
        subject.times.sort_unstable();
        let (Some(fastest), Some(median)) =
            (subject.times.first(), subject.times.get(subject.times.len() / 2))
        else {
            continue;
        };
        if subject.name == "qemu tcg" {
            anchor = Some(millis(median));
        }
        let ratio = anchor.map_or("-".to_owned(), |anchor| format!("{:.3}", millis(median) / anchor));
        println!("{:14}{:>12.2}{:>12.2}{ratio:>14}", subject.name, millis(median), millis(fastest));
    }
}
