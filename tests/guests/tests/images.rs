//! The files of all guests: what a VMM's loader relies on, and what slow rings and old CPUs need.

use godwit_guests::elf::XEN_ELFNOTE_PHYS32_ENTRY;
use godwit_guests::kernel::SERVICE_CALL_LEN;
use godwit_guests::layout::*;
use godwit_guests::{GUESTS, build};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic};

struct Header {
    kind: u32,
    offset: u64,
    gpa: u64,
    filesz: u64,
    memsz: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn headers(elf: &[u8]) -> Vec<Header> {
    let first = u64_at(elf, 32) as usize;
    (0..usize::from(u16_at(elf, 56)))
        .map(|i| first + i * 56)
        .map(|at| Header {
            kind: u32_at(elf, at),
            offset: u64_at(elf, at + 8),
            gpa: u64_at(elf, at + 24),
            filesz: u64_at(elf, at + 32),
            memsz: u64_at(elf, at + 40),
        })
        .collect()
}

fn loaded(elf: &[u8], gpa: u64) -> &[u8] {
    let segment = headers(elf)
        .into_iter()
        .find(|h| h.kind == 1 && (h.gpa..h.gpa + h.filesz).contains(&gpa))
        .expect("address in a segment");
    &elf[(segment.offset + gpa - segment.gpa) as usize..(segment.offset + segment.filesz) as usize]
}

fn decode_until(code: &[u8], bits: u32, ip: u64, last: Mnemonic) -> Vec<Instruction> {
    let mut out = Vec::new();
    for instruction in Decoder::with_ip(bits, code, ip, DecoderOptions::NONE) {
        out.push(instruction);
        if instruction.mnemonic() == last {
            return out;
        }
    }
    panic!("no {last:?} from {ip:#x}");
}

#[test]
fn files_are_well_formed() {
    for guest in GUESTS {
        let elf = build(guest.name).expect("builds");
        assert_eq!(&elf[..6], b"\x7fELF\x02\x01", "{}", guest.name);
        assert_eq!((u16_at(&elf, 16), u16_at(&elf, 18)), (2, 62));
        let headers = headers(&elf);
        let mut end = 0;
        for load in headers.iter().filter(|h| h.kind == 1) {
            assert!(load.gpa >= end, "{}: segments in order, apart", guest.name);
            assert_eq!(load.gpa % PAGE, load.offset % PAGE);
            assert_eq!(load.filesz, load.memsz);
            assert!(load.offset + load.filesz <= elf.len() as u64);
            end = load.gpa + load.memsz;
            let limit = if load.gpa == KERNEL { KERNEL_VARS } else { SHARED };
            assert!(end <= limit, "{}: {end:#x} runs over", guest.name);
        }
        let note = headers.iter().find(|h| h.kind == 4).expect("a note");
        let note = &elf[note.offset as usize..];
        assert_eq!((u32_at(note, 0), u32_at(note, 4)), (4, 8));
        assert_eq!(u32_at(note, 8), XEN_ELFNOTE_PHYS32_ENTRY);
        assert_eq!(&note[12..16], b"Xen\0");
        assert_eq!(u64_at(note, 16), KERNEL_TEXT);
    }
}

#[test]
fn both_entries_reach_the_same_code() {
    for guest in GUESTS {
        let elf = build(guest.name).expect("builds");
        let pvh = decode_until(loaded(&elf, KERNEL_TEXT), 32, KERNEL_TEXT, Mnemonic::Jmp);
        let jump = pvh.last().expect("a jump");
        assert_eq!(jump.code(), Code::Jmp_ptr1632);
        assert_eq!(jump.far_branch_selector(), KERNEL_CS);
        let entry = u64_at(&elf, 24);
        let linux = decode_until(loaded(&elf, entry), 64, entry, Mnemonic::Retf);
        let lea = linux.iter().find(|i| i.mnemonic() == Mnemonic::Lea).expect("the target");
        assert_eq!(lea.memory_displacement64(), u64::from(jump.far_branch32()));
        assert_eq!(linux.last().expect("a return").code(), Code::Retfq);
    }
}

/// Every gate of the interrupt descriptor table leads to code, and that code keeps to what hosts
/// emulate that have no hardware for ring 0: integers, no int3, up to the next jump or return.
#[test]
fn handlers_are_integer_code() {
    for guest in GUESTS {
        let elf = build(guest.name).expect("builds");
        for vector in (0..32).chain([TIMER_VECTOR, SPURIOUS_VECTOR].map(u64::from)) {
            let gate = loaded(&elf, IDT + vector * 16);
            let (low, high) = (u64_at(gate, 0), u64_at(gate, 8));
            assert_eq!(low >> 40 & 0xff, 0x8e);
            assert_eq!(low >> 16 & 0xffff, u64::from(KERNEL_CS));
            let handler = low & 0xffff | (low >> 48) << 16 | high << 32;
            let code = loaded(&elf, handler);
            for instruction in Decoder::with_ip(64, code, handler, DecoderOptions::NONE) {
                assert_ne!(instruction.code(), Code::INVALID);
                assert!(!matches!(instruction.mnemonic(), Mnemonic::Int3 | Mnemonic::Int));
                for operand in 0..instruction.op_count() {
                    let register = instruction.op_register(operand);
                    assert!(!register.is_vector_register() && !register.is_st(), "{instruction:?}");
                }
                if matches!(instruction.mnemonic(), Mnemonic::Jmp | Mnemonic::Iretq) {
                    break;
                }
            }
        }
    }
}

#[test]
fn service_calls_have_the_length_the_handler_steps_over() {
    for guest in GUESTS.iter().filter(|guest| guest.name != "hello") {
        let elf = build(guest.name).expect("builds");
        let code = loaded(&elf, PROGRAM);
        let calls: Vec<_> = Decoder::with_ip(64, code, PROGRAM, DecoderOptions::NONE)
            .into_iter()
            .filter(|i| i.mnemonic() == Mnemonic::Mov && i.memory_displacement64() == SERVICE)
            .collect();
        assert!(!calls.is_empty(), "{}", guest.name);
        for call in calls {
            assert_eq!(call.len() as i32, SERVICE_CALL_LEN);
            assert_eq!(call.code(), Code::Mov_rm8_r8);
        }
    }
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let error = build("nothing").expect_err("no such guest").to_string();
    assert!(error.contains("\"nothing\"") && error.contains("counter"), "{error}");
}
