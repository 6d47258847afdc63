//! Debian's unmodified Xen hypervisor on the interpreter, with Debian's kernel as its first domain: a guest that runs a guest,
//! by segments, rings and page tables that Linux alone never uses.
//!
//! `scripts/setup --tests` brings all; without it the test says that it is skipped.

use super::boot::checked;
use godwit_guests::multiboot::{Module, wrap};
use godwit_tests::harness::{Scratch, cached, program};
use serde_json::json;

const MIB: u32 = 512;

#[test]
fn xen_boots_and_runs_its_first_domain() {
    let name = "xen_boots_and_runs_its_first_domain";
    let images = cached(["xen/xen.elf", "linux/bzImage", "initramfs.cpio.gz"], "--tests");
    let ([xen, kernel, initrd], godwit, plugin) =
        match (images, program("godwit"), program("libgodwit_backend_interp.so")) {
            (Ok(images), Ok(godwit), Ok(plugin)) => (images, godwit, plugin),
            (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => return println!("SKIPPED {name}: {why}"),
        };
    let scratch = Scratch::new(name);
    let read = |path| std::fs::read(path).expect("readable");
    // The first word names the image. There is no BIOS to ask; the domain gets a part of the memory.
    let line = "xen com1=115200,8n1,0x3f8,4 console=com1 no-real-mode noreboot dom0_mem=320M";
    // The cloud kernel has no console of a first domain, but its log can go to Xen's.
    let domain = "linux earlyprintk=xen,keep printk.devkmsg=on godwit.do=check godwit.say=/dev/kmsg";
    let modules =
        vec![Module { bytes: read(&kernel), line: domain }, Module { bytes: read(&initrd), line: "" }];
    let image = wrap(&read(&xen), line, modules, MIB).expect("Xen is a multiboot kernel");
    std::fs::write(scratch.path("xen.pvh"), image).expect("written");
    let source = json!({"kernel_image_path": scratch.path("xen.pvh"), "boot_args": ""});
    let lines = checked((&godwit, &plugin), &scratch, &source, (1, MIB));
    let said =
        |text: &str| assert!(lines.iter().any(|l| l.contains(text)), "no {text:?}: {}", lines.join("\n"));
    said("Xen version 4.");
    said("Hypervisor detected: Xen PV");
}
