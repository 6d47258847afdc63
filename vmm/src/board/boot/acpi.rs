//! ACPI tables: RSDP, XSDT, FADT (hardware-reduced), MADT, DSDT (ACPI 6.5, chapter 5).
//!
//! They say what the board is: so many LAPICs, one I/O APIC with line 0 on pin 2, the serial port, the keyboard
//! controller, the virtio-mmio windows, the VM generation ID with the event device that tells of a new one, how to reset
//! and how to switch off.

use super::layout;
use crate::board::chipset::IOAPIC_BASE;
use crate::board::serial::{COM1, COM1_LINE};
use crate::board::{generation, pm};
use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate, Scope, ZERO,
};

const OEM: [u8; 6] = *b"GODWIT";
const OEM_TABLE: [u8; 8] = *b"GODWITVM";
const HEADER: u32 = 36;
const FADT_LEN: u32 = 276;

/// Flags of the FADT: power and sleep button are not fixed hardware, there is a reset register, hardware-reduced.
const FADT_FLAGS: u32 = 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20;
/// IA-PC boot architecture: there is an 8042, there is no VGA.
const BOOT_ARCH: u16 = 1 << 1 | 1 << 2;

/// A virtio-mmio window in the DSDT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// Interrupt line.
    pub gsi: u32,
}

/// A table: header, body. (acpi_tables has such a type, but it writes in the host's byte order.)
struct Table(Vec<u8>);

impl Table {
    fn new(signature: &[u8; 4], length: u32, revision: u8) -> Self {
        let mut t = vec![0; length.max(HEADER) as usize];
        t[..4].copy_from_slice(signature);
        t[8] = revision;
        t[10..16].copy_from_slice(&OEM);
        t[16..24].copy_from_slice(&OEM_TABLE);
        t[24..28].copy_from_slice(&1u32.to_le_bytes());
        t[28..32].copy_from_slice(b"GDWT");
        t[32..36].copy_from_slice(&1u32.to_le_bytes());
        Table(t)
    }

    fn append_slice(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn write_bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The whole table, with its length and checksum.
    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.write_bytes(4, &length.to_le_bytes());
        self.0[9] = 0;
        self.0[9] = self.0.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        self.0
    }
}

/// A generic address: one byte wide, in port space.
fn port(address: u16) -> [u8; 12] {
    let mut out = [0; 12];
    out[..4].copy_from_slice(&[1, 8, 0, 1]);
    out[4..6].copy_from_slice(&address.to_le_bytes());
    out
}

/// The keyboard controller. Not the clock: Linux would claim line 8 for it, which is the fourth virtio window's.
fn legacy(aml: &mut Vec<u8>) {
    let id = EISAName::new("PNP0303");
    let id = Name::new("_HID".into(), &id);
    let (data, command) = (IO::new(0x60, 0x60, 1, 1), IO::new(0x64, 0x64, 1, 1));
    let line = Interrupt::new(true, true, false, false, 1);
    let resources = ResourceTemplate::new(vec![&data, &command, &line]);
    let crs = Name::new("_CRS".into(), &resources);
    let keyboard = Device::new("PS2_".into(), vec![&id, &crs]);
    Scope::new("_SB_".into(), vec![&keyboard]).to_aml_bytes(aml);
}

/// The generation ID's address, and the event device that passes its interrupt on. Names and IDs are those that guests know
/// from Firecracker.
fn generation_id(aml: &mut Vec<u8>) {
    let name = |what: &str| -> Path { what.into() };
    let id = Name::new(name("_HID"), &"FCVMGID");
    let compatible = Name::new(name("_CID"), &"VM_Gen_Counter");
    let description = Name::new(name("_DDN"), &"VM_Gen_Counter");
    let (low, high) = (layout::GENERATION as u32, (layout::GENERATION >> 32) as u32);
    let address = Package::new(vec![&low, &high]);
    let address = Name::new(name("ADDR"), &address);
    let counter = Device::new(name("VGEN"), vec![&id, &compatible, &description, &address]);

    let id = Name::new(name("_HID"), &"ACPI0013");
    let line = Interrupt::new(true, true, false, false, generation::LINE);
    let resources = ResourceTemplate::new(vec![&line]);
    let crs = Name::new(name("_CRS"), &resources);
    let (object, changed) = (name("\\_SB_.VGEN"), 0x80u8);
    let notify = Notify::new(&object, &changed);
    let (gsi, arg) = (generation::LINE, Arg(0));
    let ours = Equal::new(&arg, &gsi);
    let pass_on = If::new(&ours, vec![&notify]);
    let event = Method::new(name("_EVT"), 1, true, vec![&pass_on]);
    let events = Device::new(name("GED_"), vec![&id, &crs, &event]);
    Scope::new(name("_SB_"), vec![&counter, &events]).to_aml_bytes(aml);
}

fn dsdt(windows: &[Window]) -> Vec<u8> {
    let mut aml = Vec::new();
    let serial_id = EISAName::new("PNP0501");
    let serial_name = Name::new("_HID".into(), &serial_id);
    let serial_uid = Name::new("_UID".into(), &ZERO);
    let (ports, line) = (IO::new(COM1, COM1, 1, 8), Interrupt::new(true, true, false, false, COM1_LINE));
    let resources = ResourceTemplate::new(vec![&ports, &line]);
    let serial_crs = Name::new("_CRS".into(), &resources);
    let serial = Device::new("COM1".into(), vec![&serial_name, &serial_uid, &serial_crs]);
    Scope::new("_SB_".into(), vec![&serial]).to_aml_bytes(&mut aml);
    legacy(&mut aml);
    for (i, w) in (0u32..).zip(windows) {
        let name = Name::new("_HID".into(), &"LNRO0005");
        let uid = Name::new("_UID".into(), &i);
        // DMA is coherent.
        let cca = Name::new("_CCA".into(), &acpi_tables::aml::ONE);
        let memory = Memory32Fixed::new(true, w.addr as u32, w.size as u32);
        let line = Interrupt::new(true, true, false, false, w.gsi);
        let resources = ResourceTemplate::new(vec![&memory, &line]);
        let crs = Name::new("_CRS".into(), &resources);
        let path = format!("V{i:03}");
        let device = Device::new(path.as_str().into(), vec![&name, &uid, &cca, &crs]);
        Scope::new("_SB_".into(), vec![&device]).to_aml_bytes(&mut aml);
    }
    generation_id(&mut aml);
    Name::new("_S5_".into(), &Package::new(vec![&pm::S5, &pm::S5, &ZERO, &ZERO])).to_aml_bytes(&mut aml);
    let mut out = Table::new(b"DSDT", HEADER, 2);
    out.append_slice(&aml);
    out.finish()
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let mut t = Table::new(b"FACP", FADT_LEN, 6);
    t.write_bytes(109, &BOOT_ARCH.to_le_bytes());
    t.write_bytes(112, &FADT_FLAGS.to_le_bytes());
    t.write_bytes(116, &port(0x64));
    t.write_bytes(128, &[0xfe]);
    // ACPI 6.5.
    t.write_bytes(131, &[5]);
    t.write_bytes(140, &dsdt.to_le_bytes());
    t.write_bytes(244, &port(pm::PORT));
    t.write_bytes(256, &port(pm::PORT + 1));
    t.finish()
}

fn madt(vcpus: u32) -> Vec<u8> {
    let mut t = Table::new(b"APIC", HEADER, 5);
    t.append_slice(&0xfee0_0000u32.to_le_bytes());
    // There are 8259s too.
    t.append_slice(&1u32.to_le_bytes());
    for id in 0..vcpus.min(255) as u8 {
        t.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    t.append_slice(&[1, 12, 0, 0]);
    t.append_slice(&(IOAPIC_BASE as u32).to_le_bytes());
    t.append_slice(&0u32.to_le_bytes());
    // ISA line 0 is on pin 2, as the bus has it.
    t.append_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    t.finish()
}

fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut out = vec![0u8; 36];
    out[..8].copy_from_slice(b"RSD PTR ");
    out[9..15].copy_from_slice(&OEM);
    out[15] = 2;
    out[20..24].copy_from_slice(&36u32.to_le_bytes());
    out[24..32].copy_from_slice(&xsdt.to_le_bytes());
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |s, b| s.wrapping_sub(*b));
    out[8] = sum(&out[..20]);
    out[32] = sum(&out);
    out
}

/// All tables, to lie at [`layout::ACPI`], the root pointer first.
pub fn tables(vcpus: u32, windows: &[Window]) -> Vec<u8> {
    let mut out = vec![0; 64];
    let mut add = |bytes: Vec<u8>| {
        let at = layout::ACPI + out.len() as u64;
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(16), 0);
        at
    };
    let dsdt = add(dsdt(windows));
    let fadt = add(fadt(dsdt));
    let madt = add(madt(vcpus));
    let mut xsdt = Table::new(b"XSDT", HEADER, 1);
    xsdt.append_slice(&fadt.to_le_bytes());
    xsdt.append_slice(&madt.to_le_bytes());
    let xsdt = add(xsdt.finish());
    let root = rsdp(xsdt);
    out[..root.len()].copy_from_slice(&root);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(t: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(t[at..at + 8].try_into().unwrap())
    }

    fn sound(t: &[u8], at: u64, signature: &[u8]) -> usize {
        let at = (at - layout::ACPI) as usize;
        let len = u32::from_le_bytes(t[at + 4..at + 8].try_into().unwrap()) as usize;
        assert_eq!(&t[at..at + 4], signature);
        assert_eq!(t[at..at + len].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0, "checksum");
        at
    }

    #[test]
    fn tables_point_to_each_other_and_add_up() {
        let windows: Vec<_> = (0..19)
            .map(|i| Window { addr: 0xd000_0000 + 0x1000 * i, size: 0x1000, gsi: 5 + i as u32 })
            .collect();
        let t = tables(32, &windows);
        assert!(t.len() as u64 <= layout::GENERATION - layout::ACPI);
        assert_eq!(&t[..8], b"RSD PTR ");
        assert_eq!(t[..20].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        assert_eq!(t[..36].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
        let xsdt = sound(&t, u64_at(&t, 24), b"XSDT");
        let fadt = sound(&t, u64_at(&t, xsdt + 36), b"FACP");
        let madt = sound(&t, u64_at(&t, xsdt + 44), b"APIC");
        sound(&t, u64_at(&t, fadt + 140), b"DSDT");
        assert_eq!(t[madt + 44..madt + 44 + 16], [0, 8, 0, 0, 1, 0, 0, 0, 0, 8, 1, 1, 1, 0, 0, 0]);
    }
}
