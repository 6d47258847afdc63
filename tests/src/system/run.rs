//! Runs vectors on the interpreter and under QEMU.

use super::layout::{END, HOME};
use super::outcome::Raw;
use super::vector::Vector;
use super::{image, vector};
use crate::conformance::board::Event;
use crate::conformance::code;
use crate::conformance::rig::Rig;
use crate::oracle::interp::{kicked_after, plugin};
use godwit_state::{Model, SegmentV1};
use std::path::Path;
use std::process::{Command, Stdio};

/// What a vector comes to that ends the machine.
pub const SHUTDOWN: &str = "shutdown";

/// Milliseconds after which a machine is stopped: no vector of the file comes to that.
const FOR_EVER_MS: u64 = 600_000;

/// Outcomes of all vectors; `machine` gives what the serial port said of an image. A vector that ends the machine says
/// nothing; those after it run on another.
fn outcomes(
    vectors: &[Vector],
    mut machine: impl FnMut(&[&Vector]) -> Result<Vec<u8>, String>,
) -> Result<Vec<String>, String> {
    let all: Vec<&Vector> = vectors.iter().collect();
    let mut out = Vec::new();
    while out.len() < all.len() {
        let said = machine(&all[out.len()..])?;
        let mut rest = &said[..];
        while let Some((raw, more)) = Raw::split(rest) {
            let v = all.get(out.len()).ok_or("more was said than there are vectors")?;
            out.push(raw.text(v));
            rest = more;
        }
        if out.len() < all.len() {
            out.push(SHUTDOWN.into());
        }
    }
    Ok(out)
}

/// On the interpreter.
///
/// # Panics
/// If it refuses the machine.
pub fn interp(vectors: &[Vector]) -> Vec<String> {
    outcomes(vectors, |vectors| {
        let rig = Rig::with(plugin(), 1, Model::Host, 0);
        assert!(u64::from(END) <= code::RAM);
        for (at, bytes) in image::memory(vectors) {
            rig.ram.write(at.into(), &bytes);
        }
        let mut state = code::reset(0, Model::V3);
        let flat = |selector, access| SegmentV1 { selector, base: 0, limit: u32::MAX, access };
        let s = &mut state.system;
        s.cs = flat(0x08, 0xc09b);
        for data in [&mut s.ds, &mut s.es, &mut s.ss, &mut s.fs, &mut s.gs] {
            *data = flat(0x10, 0xc093);
        }
        s.cr0 = 0x11;
        state.regs.rip = HOME.into();
        rig.cpu().load(&state);
        rig.kick_when_done();
        rig.start(0);
        // Ends by the kick, or by a triple fault; a vector that goes round for ever is kicked out.
        let cpu = rig.cpu();
        kicked_after(FOR_EVER_MS, || cpu.kick(), || cpu.run()).map_err(|why| format!("{why:?}"))?;
        rig.stop();
        let events = rig.board.take();
        Ok(events
            .iter()
            .filter_map(|e| if let Event::Out(0x3f8, 1, v) = e { Some(*v as u8) } else { None })
            .collect())
    })
    .expect("the interpreter runs")
}

/// Under QEMU, by `tcg` or `kvm`. A machine that says nothing more for two minutes counts as ended.
///
/// # Errors
/// If QEMU is not there or does not start.
pub fn qemu(accelerator: &str, vectors: &[Vector], dir: &Path) -> Result<Vec<String>, String> {
    let program = godwit_guests::host::qemu()?;
    let file = |what: &str| dir.join(format!("system-{accelerator}-{}.{what}", std::process::id()));
    let result = outcomes(vectors, |vectors| {
        std::fs::write(file("elf"), image::elf(vectors)).map_err(|e| e.to_string())?;
        let serial = format!("file:{}", file("out").display());
        let cpu = if accelerator == "tcg" { "max" } else { "host" };
        let out = Command::new("timeout")
            .arg("120")
            .arg(&program)
            .args(["-M", "microvm", "-m", "64", "-no-reboot", "-display", "none", "-monitor", "none"])
            .args(["-accel", accelerator, "-cpu", cpu, "-serial", &serial, "-kernel"])
            .arg(file("elf"))
            .stdin(Stdio::null())
            .output()
            .map_err(|e| e.to_string())?;
        let said = std::fs::read(file("out")).unwrap_or_default();
        if said.is_empty() && out.status.code() == Some(1) {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        Ok(said)
    });
    for what in ["elf", "out"] {
        std::fs::remove_file(file(what)).ok();
    }
    result
}

/// An outcome without RF in its flags, which TCG does not set for faults (SDM 3A 6.3, 17.3.1.1: processors do).
pub fn without_rf(outcome: &str) -> String {
    let word = |w: &str| match w.strip_prefix("flags=").and_then(|f| u64::from_str_radix(f, 16).ok()) {
        Some(flags) => format!("flags={:x}", flags & !0x1_0000),
        None => w.into(),
    };
    outcome.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Fills in what a line lacks: its hex from its assembly.
///
/// # Errors
/// What the assembler says.
pub fn complete(v: &mut Vector, dir: &Path) -> Result<(), String> {
    if v.code.is_empty() {
        v.code = vector::assembled(v, dir)?;
        v.code.extend([0xcd, 0x20]);
    }
    Ok(())
}
