//! How large the state of an idle guest is, all memory aside: one vCPU, serial port, disk and network.

use crate::qemu::{self, Qmp};
use godwit_tests::harness::{Process, Scratch, ask};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

type Sizes = Vec<(String, usize)>;

fn print(who: &str, sizes: &Sizes) {
    let total: usize = sizes.iter().map(|(_, bytes)| bytes).sum();
    println!("{who}: {total} bytes in {} parts", sizes.len());
    for (name, bytes) in sizes {
        println!("    {bytes:>7}  {name}");
    }
}

/// Prints both.
pub(crate) fn compare(godwit: &Path, peer: Option<&Path>) {
    match ours(godwit) {
        Ok(sizes) => print("godwit, interpreter", &sizes),
        Err(why) => println!("godwit: failed: {why}"),
    }
    match peer.map(theirs) {
        Some(Ok(sizes)) => print("QEMU, device sections of its stream", &sizes),
        Some(Err(why)) => println!("QEMU: failed: {why}"),
        None => {}
    }
}

fn ours(program: &Path) -> Result<Sizes, String> {
    let scratch = Scratch::new("migration-bench-blob");
    let text = |name: &str| scratch.path(name).to_string_lossy().into_owned();
    let config = scratch.config("hello", 128, "x86-64", "");
    std::fs::write(scratch.path("disk.img"), vec![0; 1 << 20]).map_err(|e| e.to_string())?;
    // A network interface needs something behind it: a socket that is listened to is enough.
    let _passt = std::os::unix::net::UnixListener::bind(scratch.path("net")).map_err(|e| e.to_string())?;
    let mut spec: Value = serde_json::from_slice(&std::fs::read(&config).map_err(|e| e.to_string())?)
        .map_err(|e| e.to_string())?;
    scratch.config("counter", 128, "x86-64", "");
    spec["boot-source"]["kernel_image_path"] = json!(text("counter.elf"));
    spec["drives"] = json!([{"drive_id": "d", "path_on_host": text("disk.img"), "is_root_device": false}]);
    spec["network-interfaces"] = json!([{"iface_id": "n", "passt_socket": text("net")}]);
    std::fs::write(&config, spec.to_string()).map_err(|e| e.to_string())?;
    let (config, api) = (config.to_string_lossy().into_owned(), scratch.path("api"));
    let api_text = api.to_string_lossy().into_owned();
    let args = ["--config-file", &config, "--api-sock", &api_text, "--backend", "interp"];
    let guest = Process::start(program, &args, "");
    guest.wait_lines(3)?;
    let snapshot = json!({"snapshot_path": text("state"), "mem_file_path": text("memory")});
    for (method, path, body) in
        [("PATCH", "/vm", json!({"state": "Paused"})), ("PUT", "/snapshot/create", snapshot)]
    {
        let answer = ask(&api, method, path, &body.to_string())?;
        if answer.0 != 204 {
            return Err(format!("{path}: {answer:?}"));
        }
    }
    let said = Command::new(program).args(["inspect", "--json", &text("state")]).output();
    let said = said.map_err(|e| e.to_string())?.stdout;
    let said: Value = serde_json::from_slice(&said).map_err(|e| e.to_string())?;
    let sections = said["sections"].as_array().ok_or("inspect names no sections")?;
    let size = |s: &Value| Some((s["kind"].as_str()?.to_owned(), s["stored_bytes"].as_u64()? as usize));
    let sizes: Option<Sizes> = sections.iter().map(size).collect();
    let mut sizes = sizes.ok_or_else(|| said.to_string())?;
    let stored: usize = sizes.iter().map(|(_, bytes)| bytes).sum();
    let whole = said["bytes"].as_u64().ok_or("inspect names no size")? as usize;
    // What only a file has: a move says it in the offer.
    sizes.retain(|(kind, _)| !kind.starts_with("snapshot."));
    sizes.push(("header and end".into(), whole - stored));
    Ok(sizes)
}

/// Sections with a device's whole state, in the order in which they come. The stream is that of a stopped guest, into a file.
fn theirs(program: &Path) -> Result<Sizes, String> {
    let scratch = Scratch::new("migration-bench-blob-qemu");
    let text = |name: &str| scratch.path(name).to_string_lossy().into_owned();
    scratch.config("counter", 128, "x86-64", "");
    std::fs::write(scratch.path("disk.img"), vec![0; 1 << 20]).map_err(|e| e.to_string())?;
    let mut args = qemu::arguments(&text("counter.elf"), 128, "", &text("qmp"));
    let drive = format!("file={},format=raw,if=none,id=d", text("disk.img"));
    for more in ["-drive", &drive, "-device", "virtio-blk-device,drive=d", "-netdev", "user,id=n"] {
        args.push(more.into());
    }
    args.extend(["-device".into(), "virtio-net-device,netdev=n".into()]);
    let guest = qemu::start(program, &args);
    guest.wait_lines(3)?;
    let mut qmp = Qmp::open(&scratch.path("qmp"))?;
    qmp.ask("stop", json!({}))?;
    qmp.migrate(&format!("exec:cat >{}", text("stream")))?.ok_or("QEMU does not come to an end")?;
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let stream = std::fs::read(scratch.path("stream")).map_err(|e| e.to_string())?;
        match sections(&stream) {
            Some(sizes) => return Ok(sizes),
            None if Instant::now() > end => return Err("its stream is not understood".into()),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

const END: u8 = 0;
const FULL: u8 = 4;
const DESCRIPTION: u8 = 6;
const FOOTER: u8 = 0x7e;

/// Sizes of the sections `FULL` of a stream, headers included: they come after memory, `timer` first.
fn sections(stream: &[u8]) -> Option<Sizes> {
    let first = stream.windows(11).position(|w| w[0] == FULL && w[5..] == *b"\x05timer")?;
    let (mut at, mut sizes) = (first, Vec::new());
    while stream.get(at) == Some(&FULL) {
        let id: [u8; 4] = stream.get(at + 1..at + 5)?.try_into().ok()?;
        let len = usize::from(*stream.get(at + 5)?);
        let name = String::from_utf8_lossy(stream.get(at + 6..at + 6 + len)?).into_owned();
        let mut footer = vec![FOOTER];
        footer.extend(id);
        let body = at + 6 + len + 8;
        let rest = stream.get(body..)?;
        let next =
            rest.windows(6).position(|w| w[..5] == footer[..] && [END, FULL, DESCRIPTION].contains(&w[5]))?;
        sizes.push((name, body + next + footer.len() - at));
        at = body + next + footer.len();
    }
    Some(sizes).filter(|s| !s.is_empty())
}
