//! A unikernel that serves TCP: smoltcp over a virtio network device, in ring 3 of the guests' small kernel.
//!
//! ```text
//! port 7   numbers: both sides send 0, 1, 2 ... as 32-bit big-endian words and check what comes
//! port 9   takes bytes as fast as it can
//! port 19  gives bytes as fast as it can
//! ```
//!
//! It prints `tcp ready`, a line for each connection that ended (`tcp numbers sent=N received=N ok`, or `BAD` and the
//! place), and goes on for ever.
//!
//! Options: `address=A.B.C.D` (ours, in a /24), `batch=N` (numbers that are sent at once; 256). With `fetch=PATH`, once
//! or more, it is a client of the metadata service at `metadata=A.B.C.D` instead: it prints what it gets for each path,
//! with `token=1` by a session token, with `json=1` as JSON, and resets.

#![no_std]
#![no_main]

mod fetch;
mod nic;
mod serve;

#[path = "../../virtio/mmio.rs"]
mod mmio;
#[path = "../../bench/rt.rs"]
mod rt;

use mmio::{Device, Failure, Outcome};
use rt::{Out, number, option, options};
use smoltcp::iface::{Config, Interface};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address};

/// The network device's own memory, with its packets: the start of the arena.
const NIC_MEMORY: u64 = 0x100_0000;
/// Then memory for sockets.
const SOCKET_MEMORY: u64 = NIC_MEMORY + mmio::MEMORY;

/// Bytes out of [`SOCKET_MEMORY`], which nobody else uses.
pub fn memory(len: usize) -> &'static mut [u8] {
    static NEXT: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(SOCKET_MEMORY);
    let at = NEXT.fetch_add(len as u64, core::sync::atomic::Ordering::Relaxed);
    // SAFETY: the arena is RAM, mapped and zero; each piece of it is handed out once.
    unsafe { core::slice::from_raw_parts_mut(at as *mut u8, len) }
}

pub fn now() -> Instant {
    Instant::from_micros(rt::micros(rt::tsc()) as i64)
}

/// `A.B.C.D`.
pub fn address(text: &[u8]) -> Ipv4Address {
    let mut out = [0; 4];
    for (byte, part) in out.iter_mut().zip(text.split(|c| *c == b'.')) {
        *byte = number(part) as u8;
    }
    Ipv4Address::from(out)
}

/// `0x` digits; what follows is left.
fn hex(text: &[u8]) -> u64 {
    let digits = text.strip_prefix(b"0x").unwrap_or(text);
    let values = digits.iter().map_while(|c| (*c as char).to_digit(16));
    values.fold(0, |n, digit| n << 4 | u64::from(digit))
}

/// The first network device that the command line names.
fn find() -> Option<Device> {
    options("virtio_mmio.device").find_map(|window| {
        let at = window.iter().position(|c| *c == b'@')?;
        Device::probe(hex(&window[at + 1..]), NIC_MEMORY).filter(|device| device.id == 1)
    })
}

fn run() -> Outcome {
    let device = find().ok_or(Failure("no network device"))?;
    let mut nic = nic::Nic::start(device)?;
    let own = address(option("address").unwrap_or(b"10.0.2.15"));
    let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(nic.mac())));
    config.random_seed = rt::tsc();
    let mut interface = Interface::new(config, &mut nic, now());
    interface.update_ip_addrs(|list| {
        let _ = list.push(IpCidr::new(own.into(), 24));
    });
    if option("fetch").is_some() {
        fetch::run(&mut interface, &mut nic)
    } else {
        serve::run(&mut interface, &mut nic)
    }
}

/// First instruction of the program: the kernel enters here, on a stack of ours.
#[unsafe(no_mangle)]
#[unsafe(naked)]
#[unsafe(link_section = ".text._start")]
extern "C" fn _start() -> ! {
    core::arch::naked_asm!("call {main}", "ud2", main = sym main)
}

extern "C" fn main() -> ! {
    match run() {
        Ok(()) => {
            Out.text("tcp done\n");
        }
        Err(Failure(why)) => {
            Out.text("tcp BAD ").text(why).text("\n");
        }
    }
    rt::leave()
}
