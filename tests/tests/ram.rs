//! The smallest and the largest RAM: a guest of a few instructions writes to the last bytes that it was given.

use godwit_tests::conformance::plugin::Plugin;
use godwit_tests::harness::{Process, Scratch, program};
use iced_x86::code_asm::*;

/// Where the code is: below 640 KiB, so that a guest of 1 MiB has it.
const CODE: u64 = 0x3_0000;
/// A page directory for the top, and the page-directory-pointer table that boot has made.
const DIRECTORY: u64 = 0x4_0000;
const POINTERS: u64 = 0xa000;
const PATTERN: u64 = 0x0123_4567_89ab_cdef;

/// Writes to and reads from `top`, says `K` or `E`, resets.
fn code(top: u64) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    let (mut wrong, mut say) = (a.create_label(), a.create_label());
    if top >= 1 << 30 {
        // Its gigabyte gets a directory with one large page.
        a.mov(rax, (top & !0x1f_ffff) | 0x83).unwrap();
        a.mov(qword_ptr(DIRECTORY + (top >> 21 & 511) * 8), rax).unwrap();
        a.mov(rax, DIRECTORY | 3).unwrap();
        a.mov(qword_ptr(POINTERS + (top >> 30) * 8), rax).unwrap();
    }
    a.mov(rbx, top).unwrap();
    a.mov(rcx, PATTERN).unwrap();
    a.mov(qword_ptr(rbx), rcx).unwrap();
    a.cmp(qword_ptr(rbx), rcx).unwrap();
    a.mov(dx, 0x3f8u32).unwrap();
    a.jne(wrong).unwrap();
    a.mov(al, i32::from(b'K')).unwrap();
    a.jmp(say).unwrap();
    a.set_label(&mut wrong).unwrap();
    a.mov(al, i32::from(b'E')).unwrap();
    a.set_label(&mut say).unwrap();
    a.out(dx, al).unwrap();
    a.mov(al, i32::from(b'\n')).unwrap();
    a.out(dx, al).unwrap();
    a.mov(al, 0xfe).unwrap();
    a.out(0x64, al).unwrap();
    let mut end = a.create_label();
    a.set_label(&mut end).unwrap();
    a.hlt().unwrap();
    a.jmp(end).unwrap();
    a.assemble(CODE).unwrap()
}

/// An ELF file with one segment.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend([2u8, 0, 62, 0, 1, 0, 0, 0]);
    for word in [CODE, 64, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend([0u8, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    out.extend([1u8, 0, 0, 0, 5, 0, 0, 0]);
    let len = code.len() as u64;
    for word in [120, CODE, CODE, len, len, 0x1000] {
        out.extend(word.to_le_bytes());
    }
    out.extend(code);
    out
}

fn reaches(name: &str, backend: &str, mib: u64, top: u64) {
    let (godwit, plugin) = match (program("godwit"), Plugin::usable(backend)) {
        (Ok(godwit), Ok(_)) => (godwit, backend),
        (Err(why), _) | (_, Err(why)) => return println!("SKIPPED {name} on {backend}: {why}"),
    };
    let scratch = Scratch::new(&format!("ram-{backend}-{mib}"));
    let kernel = scratch.path("kernel.elf");
    std::fs::write(&kernel, elf(&code(top))).unwrap();
    let config = scratch.path("vm.json");
    let text = format!(
        r#"{{"boot-source":{{"kernel_image_path":{kernel:?},"boot_args":""}},
           "machine-config":{{"vcpu_count":1,"mem_size_mib":{mib}}}}}"#
    );
    std::fs::write(&config, text).unwrap();
    let args = ["--no-api", "--config-file", config.to_str().unwrap(), "--backend", plugin];
    let mut vm = Process::start(&godwit, &args, "");
    let code = vm.wait_exit();
    if vm.err().contains("annot allocate memory") {
        return println!("SKIPPED {name} on {backend}: this host does not overcommit: {}", vm.err().trim());
    }
    assert_eq!((code, vm.text().as_str()), (Some(0), "K\n"), "{}", vm.err());
}

#[test]
fn a_guest_of_one_mebibyte() {
    for backend in ["interp", "kvm"] {
        reaches("a_guest_of_one_mebibyte", backend, 1, 0x9_fbf8);
    }
}

#[test]
fn a_guest_of_64_gibibytes_with_the_gap() {
    // What does not fit below the gap at 0xd000_0000 goes on at 4 GiB.
    let end = (4 << 30) + (64 << 30) - 0xd000_0000u64;
    for backend in ["interp", "kvm"] {
        reaches("a_guest_of_64_gibibytes_with_the_gap", backend, 64 << 10, end - 8);
    }
}
