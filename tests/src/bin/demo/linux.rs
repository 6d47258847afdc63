//! Linux abroad: Debian's kernel boots here to a shell, a snapshot of it is restored at every stop, and the shell
//! there does as it is told. Of any guest: its state is the same bytes at every stop.

use crate::host::{Hears, Host, Result, Stop, lock, say, title};
use godwit_tests::harness::cached;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// What a guest has said at one stop.
#[derive(Default)]
struct Heard(String);

impl Hears for Heard {
    fn put(&mut self, _: &str, bytes: &[u8]) {
        self.0.push_str(&String::from_utf8_lossy(bytes));
    }
}

/// What is typed, and how its answer begins; the sum is over a file that the host has too.
const TYPED: &str = "echo answer $((6 * 7)) $(uname -m) $(sha256sum < /bin/busybox)\n";

fn answer() -> Result<String> {
    let out =
        Command::new("sh").args(["-c", "sha256sum < /bin/busybox"]).output().map_err(|e| e.to_string())?;
    let sum = String::from_utf8_lossy(&out.stdout);
    let sum = sum.split_whitespace().next().ok_or("no sha256sum of /bin/busybox here")?;
    Ok(format!("answer 42 x86_64 {sum}"))
}

pub(crate) fn abroad(program: &Path, dir: &Path, stops: &[Stop]) -> Result<()> {
    let [kernel, initrd] = match cached(["linux/bzImage", "initramfs.cpio.gz"], "--tests") {
        Ok(images) => images,
        Err(why) => {
            say(&format!("SKIPPED Linux abroad: {why}"));
            return Ok(());
        }
    };
    let answer = answer()?;
    let config = dir.join("linux.json");
    let text = serde_json::json!({
        "boot-source": { "kernel_image_path": kernel, "initrd_path": initrd, "boot_args": "console=ttyS0 reboot=k panic=1 quiet" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 128, "cpu_model": "x86-64-v3" }
    });
    std::fs::write(&config, text.to_string()).map_err(|e| e.to_string())?;

    title("Linux boots here, on the interpreter");
    let here = Stop::here(program, "interp");
    let (api, began) = (dir.join("linux.sock"), Instant::now());
    let heard = Arc::new(Mutex::new(Heard::default()));
    let mut host = Host::start(&here, api, &["--config-file", &config.display().to_string()], &heard)?;
    host.wait("while Linux was to boot", |_| at_prompt(&lock(&heard).0))?;
    say(&format!("[{:>11}] a shell after {:.1} s", here.name, began.elapsed().as_secs_f64()));
    let snapshot = dir.join("linux.snapshot");
    ask(program, "snapshot", &host, &snapshot, &[])?;
    drop(host);

    title("Its snapshot is restored at every stop");
    restored_everywhere(program, dir, stops, &snapshot, |host, heard, told| {
        let resumed = Instant::now();
        let done = Command::new(program).args(["resume", "--api-sock"]).arg(&host.api).output();
        succeeded("resume", host, done)?;
        host.type_in(TYPED)?;
        host.wait("while the shell was to answer", |_| lock(heard).0.contains(&answer))?;
        say(&format!("{told}; resumed, {:.1} s later: {answer}", resumed.elapsed().as_secs_f64()));
        Ok(())
    })
}

/// Restores a snapshot here and at every stop, saves the guest again before it runs on, and compares; `then` gets each
/// host, what its guest says, and what is to be told of it.
fn restored_everywhere(
    program: &Path,
    dir: &Path,
    stops: &[Stop],
    snapshot: &Path,
    then: impl Fn(&mut Host, &Arc<Mutex<Heard>>, String) -> Result<()>,
) -> Result<()> {
    let mut everywhere = vec![Stop::here(program, "interp")];
    everywhere.extend_from_slice(stops);
    for (n, stop) in everywhere.iter().enumerate() {
        let (api, began) = (dir.join(format!("restored{n}.sock")), Instant::now());
        let heard = Arc::new(Mutex::new(Heard::default()));
        let mut host = Host::start(stop, api, &[], &heard)?;
        let api = host.api.clone();
        host.wait("while its API was to answer", |_| UnixStream::connect(&api).is_ok())?;
        ask(program, "restore", &host, snapshot, &["--paused"])?;
        let restored = began.elapsed();
        let again = dir.join(format!("restored{n}.snapshot"));
        ask(program, "snapshot", &host, &again, &["--stay-paused"])?;
        // Not with the snapshot itself: a restored guest has an interrupt pending, that of its new generation ID.
        let same = compare(program, &dir.join("restored0.snapshot"), &again)?;
        let told = format!(
            "[{:>11}] restored {:.1} s after its godwit was started; its {same} sections of state, saved again, are \
             byte for byte those of the first",
            stop.name,
            restored.as_secs_f64(),
        );
        then(&mut host, &heard, told)?;
    }
    Ok(())
}

/// A snapshot of the guest at `host`, restored here and at every stop: its state is the same bytes everywhere.
pub(crate) fn same_everywhere(program: &Path, dir: &Path, host: &Host, stops: &[Stop]) -> Result<()> {
    title("A snapshot of it is restored at every stop, and saved again");
    let snapshot = dir.join("guest.snapshot");
    ask(program, "snapshot", host, &snapshot, &["--stay-paused"])?;
    restored_everywhere(program, dir, stops, &snapshot, |_, _, told| {
        say(&told);
        Ok(())
    })
}

/// One request of godwit's to the one at `host`, about the snapshot in `dir`.
fn ask(program: &Path, what: &str, host: &Host, dir: &Path, more: &[&str]) -> Result<()> {
    let done = Command::new(program).args([what, "--api-sock"]).arg(&host.api).arg(dir).args(more).output();
    succeeded(what, host, done)
}

fn succeeded(what: &str, host: &Host, done: std::io::Result<Output>) -> Result<()> {
    let done = done.map_err(|e| e.to_string())?;
    let why = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("godwit {what} on {}: {why}", host.name)) }
}

/// What changes by being restored: the generation ID, so that clones do not share secrets.
const RENEWED: &str = "board.generation";

/// How many sections two snapshots have, all with the same bytes; or which have not.
fn compare(program: &Path, one: &Path, other: &Path) -> Result<usize> {
    let sections = |dir: &Path| -> Result<Vec<(String, String)>> {
        let out =
            Command::new(program).args(["inspect", "--json"]).arg(dir).output().map_err(|e| e.to_string())?;
        let file: serde_json::Value = serde_json::from_slice(&out.stdout).map_err(|e| e.to_string())?;
        let list = file["sections"].as_array().ok_or("no sections")?;
        Ok(list
            .iter()
            .map(|s| {
                (format!("{} {}", s["kind"].as_str().unwrap_or("?"), s["instance"]), s["hex"].to_string())
            })
            .filter(|(name, _)| !name.starts_with(RENEWED))
            .collect())
    };
    let (one, other) = (sections(one)?, sections(other)?);
    let differing: Vec<_> =
        one.iter().zip(&other).filter(|(a, b)| a != b).map(|(a, _)| a.0.as_str()).collect();
    match one.len() == other.len() && differing.is_empty() {
        true => Ok(one.len()),
        false => Err(format!("saved again, the state differs in {}", differing.join(", "))),
    }
}

fn at_prompt(said: &str) -> bool {
    said.split_once("GODWIT-INIT").is_some_and(|(_, after)| after.contains("# "))
}
