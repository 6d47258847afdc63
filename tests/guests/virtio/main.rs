//! The guest that drives virtio devices: the same checks on every backend, without a Linux.
//!
//! A ring-3 program in Rust, built like the bench program. It finds its devices by
//! `virtio_mmio.device=SIZE@0xADDRESS:IRQ` on the command line, drives each by polling, and prints
//! a line for each; the last is `virtio done bad=N`.
//!
//! ```text
//! virtio block sectors=2048 readonly=0 serial=abc first=... written=1024 ok
//! virtio rng bytes=256 ok
//! virtio net mac=... arp=ok pings=16 ok
//! virtio vsock cid=3 there=300000 listening
//! virtio vsock back=300000 ok
//! virtio balloon target=2048 back=1024 stats=2 ok
//! ```
//!
//! With `busy=1` it never ends: see [`busy`].
//!
//! Options: `sectors=N` (how much of a disk is written and read back: N sectors from sector 8;
//! 1024), `rounds=N` (1), `gateway=A.B.C.D` and `address=A.B.C.D` (whom to ask by ARP and ping, and
//! as whom; without them a net device is only set up), `vsock_port=N` (the host's listener that sends
//! all back), `vsock_listen=N` (whom the host connects to next), `stats=N` (how often the balloon is
//! awaited to ask for statistics), `speed=1` (throughput instead of checks: see `speed`; `mib`, `ios`
//! and `frames` say how much). A balloon keeps half of what it was given. A disk's first 8
//! sectors are only read: `first` is their FNV-1a hash, for the host to compare.

#![no_std]
#![no_main]

mod balloon;
mod block;
mod busy;
#[path = "../bench/data.rs"]
mod data;
mod mmio;
mod net;
mod polling;
mod rng;
#[path = "../bench/rt.rs"]
mod rt;
mod speed;
mod ticks;
mod vsock;

use mmio::{Device, Failure};
use rt::Out;

/// `0x` digits, or decimal ones; what follows is left.
fn hex(text: &[u8]) -> u64 {
    let digits = text.strip_prefix(b"0x").unwrap_or(text);
    let values = digits.iter().map_while(|c| (*c as char).to_digit(16));
    values.fold(0, |n, digit| n << 4 | u64::from(digit))
}

/// The devices that the command line names, each with memory of its own.
fn devices() -> impl Iterator<Item = Device> {
    let windows = rt::options("virtio_mmio.device");
    let bases = windows.filter_map(|w| Some(hex(&w[w.iter().position(|c| *c == b'@')? + 1..])));
    let found = bases.scan(data::ARENA as u64, |arena, base| {
        let device = Device::probe(base, *arena);
        *arena += if device.is_some() { mmio::MEMORY } else { 0 };
        Some(device)
    });
    found.flatten()
}

fn run() {
    if rt::option("busy").is_some() {
        return busy::run();
    }
    let mut bad = 0;
    for mut device in devices() {
        let id = device.id;
        let fast = rt::option("speed").is_some();
        let outcome = match id {
            1 if fast => speed::net(&mut device),
            2 if fast => speed::disk(&mut device),
            _ if fast => continue,
            1 => net::check(&mut device),
            2 => block::check(&mut device),
            4 => rng::check(&mut device),
            5 => balloon::check(&mut device),
            19 => vsock::check(&mut device),
            _ => {
                Out.text("virtio device id=").decimal(u64::from(id)).text(" not tried\n");
                continue;
            }
        };
        if id != 5 || outcome.is_err() {
            device.reset();
        }
        match outcome {
            Ok(()) => {
                Out.text(" ok\n");
            }
            Err(Failure(why)) => {
                bad += 1;
                Out.text(" BAD id=").decimal(u64::from(id)).text(" ").text(why).text("\n");
            }
        }
        Out.flush();
    }
    Out.text("virtio done bad=").decimal(bad).text("\n");
}

/// First instruction of the program: the kernel enters here, on a stack of ours.
#[unsafe(no_mangle)]
#[unsafe(naked)]
#[unsafe(link_section = ".text._start")]
extern "C" fn _start() -> ! {
    core::arch::naked_asm!("call {main}", "ud2", main = sym main)
}

extern "C" fn main() -> ! {
    run();
    rt::leave()
}
