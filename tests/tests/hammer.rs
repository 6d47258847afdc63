//! A guest that does nothing but trouble its devices: the API goes on answering, the guest can be held and let go, and neither log
//! nor memory grows with what the guest does. All of it on one processor of the host.

use godwit_guests::elf::{self, Segment};
use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::{PATIENCE, Process, Scratch, ask, program};
use iced_x86::code_asm::*;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the guest's program is, in 32-bit mode without paging.
const AT: u64 = 0x20_0000;
/// A queue of 256 descriptors: the table, then the driver's ring, then the device's.
const QUEUE: u64 = 0x30_0000;
const BUFFERS: u32 = 0x40_0000;
const BUFFER: u32 = 0x4000;
const SIZE: u16 = 256;
/// The first virtio device.
const DEVICE: u32 = 0xd000_0000;
const COM1: u32 = 0x3f8;

type Asm = Result<CodeAssembler, IcedError>;

/// Says that it lives, every 256th time it comes by.
fn dot(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut on = a.create_label();
    a.inc(bl)?;
    a.jnz(on)?;
    a.mov(dx, COM1)?;
    a.mov(al, u32::from(b'.'))?;
    a.out(dx, al)?;
    a.set_label(&mut on)?;
    Ok(())
}

/// Bytes to the serial port, as fast as they go.
fn serial() -> Asm {
    let mut a = CodeAssembler::new(32)?;
    let mut again = a.create_label();
    a.mov(dx, COM1)?;
    a.mov(al, u32::from(b'x'))?;
    a.set_label(&mut again)?;
    a.out(dx, al)?;
    a.jmp(again)?;
    Ok(a)
}

/// Every port is read; clocks and interrupt controllers are written with whatever comes.
fn ports() -> Asm {
    let mut a = CodeAssembler::new(32)?;
    let mut again = a.create_label();
    a.xor(ebx, ebx)?;
    a.xor(esi, esi)?;
    a.set_label(&mut again)?;
    a.mov(edx, esi)?;
    a.in_(al, dx)?;
    a.mov(eax, esi)?;
    for port in [0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x61, 0x70, 0x71, 0x80, 0xa0, 0xa1] {
        a.out(port, al)?;
    }
    dot(&mut a)?;
    a.inc(si)?;
    a.jmp(again)?;
    Ok(a)
}

fn put(a: &mut CodeAssembler, offset: u32, value: u32) -> Result<(), IcedError> {
    a.mov(eax, value)?;
    a.mov(dword_ptr(DEVICE + offset), eax)
}

/// Starts the device with its first queue.
fn start(a: &mut CodeAssembler) -> Result<(), IcedError> {
    put(a, 0x70, 0)?;
    put(a, 0x70, 1 | 2)?;
    // VIRTIO_F_VERSION_1, and nothing else.
    put(a, 0x24, 0)?;
    put(a, 0x20, 0)?;
    put(a, 0x24, 1)?;
    put(a, 0x20, 1)?;
    put(a, 0x70, 1 | 2 | 8)?;
    put(a, 0x30, 0)?;
    put(a, 0x38, SIZE.into())?;
    for (offset, at) in [(0x80, QUEUE), (0x90, QUEUE + 0x1000), (0xa0, QUEUE + 0x2000)] {
        put(a, offset, at as u32)?;
        put(a, offset + 4, 0)?;
    }
    put(a, 0x44, 1)?;
    put(a, 0x70, 1 | 2 | 8 | 4)
}

/// Random numbers by the megabyte: the device's thread is never without work.
fn queue() -> Asm {
    let mut a = CodeAssembler::new(32)?;
    let (mut again, mut wait) = (a.create_label(), a.create_label());
    let (avail, used) = (QUEUE as u32 + 0x1002, QUEUE as u32 + 0x2002);
    a.mov(ebx, 0xf0)?;
    start(&mut a)?;
    a.set_label(&mut again)?;
    a.add(word_ptr(avail), i32::from(SIZE / 2))?;
    put(&mut a, 0x50, 0)?;
    a.set_label(&mut wait)?;
    dot(&mut a)?;
    // Bells that nobody waits for.
    put(&mut a, 0x50, 0)?;
    a.mov(ax, word_ptr(used))?;
    a.cmp(ax, word_ptr(avail))?;
    a.jne(wait)?;
    a.jmp(again)?;
    Ok(a)
}

/// A driver that breaks its device, starts it anew and breaks it again: each time there is something to log.
fn misuse() -> Asm {
    let mut a = CodeAssembler::new(32)?;
    let mut again = a.create_label();
    a.xor(ebx, ebx)?;
    a.set_label(&mut again)?;
    start(&mut a)?;
    // More buffers than the queue has places.
    a.add(word_ptr(QUEUE as u32 + 0x1002), 30_000)?;
    put(&mut a, 0x50, 0)?;
    // Registers that are not there, and widths that are not allowed.
    put(&mut a, 0x14, 7)?;
    put(&mut a, 0xff8, 7)?;
    a.mov(byte_ptr(DEVICE + 0x70), al)?;
    a.mov(ax, word_ptr(DEVICE + 0x101))?;
    dot(&mut a)?;
    a.jmp(again)?;
    Ok(a)
}

fn image(mut program: CodeAssembler) -> Vec<u8> {
    let code = Segment { gpa: AT, bytes: program.assemble(AT).unwrap(), executable: true };
    let mut rings = vec![0; 0x3000];
    for i in 0..usize::from(SIZE) {
        let at = BUFFERS + BUFFER * i as u32;
        rings[16 * i..16 * i + 8].copy_from_slice(&u64::from(at).to_le_bytes());
        rings[16 * i + 8..16 * i + 12].copy_from_slice(&BUFFER.to_le_bytes());
        // VIRTQ_DESC_F_WRITE
        rings[16 * i + 12] = 2;
        rings[0x1004 + 2 * i..0x1006 + 2 * i].copy_from_slice(&(i as u16).to_le_bytes());
    }
    let rings = Segment { gpa: QUEUE, bytes: rings, executable: false };
    elf::write(&[code, rings], AT, AT as u32)
}

fn status(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// All threads of a process on the first processor that this one may use.
fn on_one_processor(pid: u32) {
    // SAFETY: plain data of the C library's, filled in by it.
    unsafe {
        let mut all: libc::cpu_set_t = std::mem::zeroed();
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size_of_val(&all), &raw mut all), 0);
        let first = (0..libc::CPU_SETSIZE as usize).find(|n| libc::CPU_ISSET(*n, &all)).unwrap();
        libc::CPU_SET(first, &mut one);
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let tid: i32 = task.file_name().to_str().unwrap().parse().unwrap();
            // A thread may have ended since.
            libc::sched_setaffinity(tid, size_of_val(&one), &raw const one);
        }
    }
}

/// A guest with this program and `more` in its config file, with an API socket `api.sock` and its metrics in `metrics`; what is
/// missing is said.
fn started(
    test: &str,
    backend: &str,
    program_of: fn() -> Asm,
    more: impl FnOnce(&Scratch) -> Value,
) -> Option<(Scratch, Process)> {
    let found = Plugin::usable(backend).and_then(|_| program("godwit"));
    let godwit = found.map_err(|why| println!("SKIPPED {test} on {backend}: {why}")).ok()?;
    let scratch = Scratch::new(&format!("{test}-{backend}"));
    let [kernel, metrics, api, config] =
        ["hammer.elf", "metrics", "api.sock", "vm.json"].map(|n| scratch.path(n));
    std::fs::write(&kernel, image(program_of().unwrap())).unwrap();
    let mut spec = more(&scratch);
    spec["boot-source"] = json!({"kernel_image_path": kernel});
    spec["machine-config"] = json!({"vcpu_count": 1, "mem_size_mib": 32, "cpu_model": "x86-64"});
    spec["metrics"] = json!({"metrics_path": metrics});
    std::fs::write(&config, spec.to_string()).unwrap();
    let [config, api] = [&config, &api].map(|p| p.to_str().unwrap());
    let args = ["--backend", backend, "--config-file", config, "--api-sock", api];
    let vm = Process::start(&godwit, &args, "");
    Some((scratch, vm))
}

fn hammered(test: &str, program_of: fn() -> Asm) {
    for backend in ["kvm", "interp"] {
        let Some((scratch, mut vm)) = started(
            test,
            backend,
            program_of,
            |scratch| json!({"entropy": {}, "logger": {"log_path": scratch.path("log"), "level": "Info"}}),
        ) else {
            continue;
        };
        let [log, api] = ["log", "api.sock"].map(|n| scratch.path(n));
        let said = || vm.text().len();
        let until_more = |than: usize| {
            let end = Instant::now() + PATIENCE;
            while said() <= than {
                assert!(Instant::now() < end, "{test} on {backend}: the guest stands still: {}", vm.err());
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        until_more(0);
        on_one_processor(vm.id());
        let before = status(vm.id(), "VmHWM");
        let asked = |method: &str, path: &str, body: Value, wanted: u16| {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let (status, answer) = ask(&api, method, path, &body).unwrap();
            assert_eq!(status, wanted, "{test} on {backend}: {method} {path} {body}: {answer}");
            answer
        };
        for _ in 0..20 {
            let then = said();
            assert_eq!(asked("GET", "/", json!(null), 200)["state"], "Running");
            asked("GET", "/vm/config", json!(null), 200);
            asked("GET", "/backend", json!(null), 200);
            asked("PUT", "/actions", json!({"action_type": "FlushMetrics"}), 204);
            asked("PATCH", "/vm", json!({"state": "Paused"}), 204);
            assert_eq!(asked("GET", "/", json!(null), 200)["state"], "Paused");
            asked("PATCH", "/vm", json!({"state": "Resumed"}), 204);
            // Nor does the API keep the guest from its work.
            until_more(then);
        }
        let (size, after) = (std::fs::metadata(&log).unwrap().len(), status(vm.id(), "VmHWM"));
        println!("{test} on {backend}: {} bytes said, {size} bytes of log, {before} to {after} KiB", said());
        assert!(size < 64 << 10, "{size} bytes of log: {}", tail(&log));
        assert!(after < before + (48 << 10), "memory has grown from {before} to {after} KiB");
        assert!(vm.is_alive(), "{}", vm.err());
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().rev().take(5).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_guest_that_floods_its_serial_port_starves_nobody() {
    hammered("a_guest_that_floods_its_serial_port_starves_nobody", serial);
}

#[test]
fn a_guest_that_tries_every_port_starves_nobody() {
    hammered("a_guest_that_tries_every_port_starves_nobody", ports);
}

#[test]
fn a_guest_that_floods_a_queue_starves_nobody() {
    hammered("a_guest_that_floods_a_queue_starves_nobody", queue);
}

#[test]
fn a_guest_that_breaks_its_device_again_and_again_starves_nobody() {
    hammered("a_guest_that_breaks_its_device_again_and_again_starves_nobody", misuse);
}

#[test]
fn a_serial_port_with_a_limit_fills_no_file() {
    let test = "a_serial_port_with_a_limit_fills_no_file";
    for backend in ["kvm", "interp"] {
        let Some((scratch, vm)) = started(test, backend, serial, |scratch| {
            // Nothing comes back while this runs.
            let limit = json!({"size": 1000, "one_time_burst": 24, "refill_time": 360_000_000});
            json!({"serial": {"serial_out_path": scratch.path("out"), "rate_limiter": limit}})
        }) else {
            continue;
        };
        let [out, metrics, api] = ["out", "metrics", "api.sock"].map(|n| scratch.path(n));
        let end = Instant::now() + PATIENCE;
        let dropped = || {
            let text = std::fs::read_to_string(&metrics).unwrap_or_default();
            let lines = text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
            lines.filter_map(|l| l["uart"]["rate_limiter_dropped_bytes"].as_u64()).sum::<u64>()
        };
        while dropped() == 0 {
            assert!(Instant::now() < end, "{test} on {backend}: {}", vm.err());
            let _ = ask(&api, "PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#);
            std::thread::sleep(Duration::from_millis(5));
        }
        let size = || std::fs::metadata(&out).unwrap().len();
        // What is gathered may still be on its way.
        while size() < 1024 {
            assert!(Instant::now() < end, "{test} on {backend}: {} bytes", size());
            std::thread::sleep(Duration::from_millis(5));
        }
        let before = dropped();
        while dropped() < before + 1000 {
            assert!(Instant::now() < end, "{test} on {backend}: {}", vm.err());
            let _ = ask(&api, "PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#);
        }
        assert_eq!(size(), 1024, "{test} on {backend}");
    }
}
