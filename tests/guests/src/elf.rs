//! Writes the ELF64 file of a guest: loadable segments and the PVH note. Called by [`crate::build`].
//!
//! A VMM that reads the note enters at its address by the PVH protocol (32-bit protected mode,
//! EBX = `hvm_start_info`); one that does not enters at `e_entry` by the 64-bit Linux protocol
//! (long mode, identity-mapped, RSI = `boot_params`). Both are the same program.

/// Type of the note that holds the PVH entry.
pub const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// One PT_LOAD segment, at the same physical and virtual address.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Guest-physical address; a multiple of 4096.
    pub gpa: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Executable, besides readable and writable.
    pub executable: bool,
}

const EHDR: usize = 64;
const PHDR: usize = 56;
const ALIGN: usize = 4096;

fn program_header(kind: u32, flags: u32, offset: usize, gpa: u64, size: usize, align: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(PHDR);
    out.extend(kind.to_le_bytes());
    out.extend(flags.to_le_bytes());
    for word in [offset as u64, gpa, gpa, size as u64, size as u64, align] {
        out.extend(word.to_le_bytes());
    }
    out
}

/// The ELF file of `segments`, entered at `entry64` or, by PVH, at `entry32`.
pub fn write(segments: &[Segment], entry64: u64, entry32: u32) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend(4u32.to_le_bytes());
    // Eight bytes: QEMU reads a whole 64-bit word from a 64-bit file, others the low half.
    note.extend(8u32.to_le_bytes());
    note.extend(XEN_ELFNOTE_PHYS32_ENTRY.to_le_bytes());
    note.extend(b"Xen\0");
    note.extend(u64::from(entry32).to_le_bytes());

    let count = segments.len() + 1;
    let mut out = Vec::new();
    out.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend(2u16.to_le_bytes()); // ET_EXEC
    out.extend(62u16.to_le_bytes()); // EM_X86_64
    out.extend(1u32.to_le_bytes());
    out.extend(entry64.to_le_bytes());
    out.extend((EHDR as u64).to_le_bytes());
    out.extend(0u64.to_le_bytes());
    out.extend(0u32.to_le_bytes());
    for half in [EHDR, PHDR, count, 64, 0, 0] {
        out.extend((half as u16).to_le_bytes());
    }

    let note_at = EHDR + count * PHDR;
    let mut body_at = (note_at + note.len()).next_multiple_of(ALIGN);
    for segment in segments {
        let flags = if segment.executable { 7 } else { 6 };
        out.extend(program_header(1, flags, body_at, segment.gpa, segment.bytes.len(), ALIGN as u64));
        body_at += segment.bytes.len().next_multiple_of(ALIGN);
    }
    out.extend(program_header(4, 4, note_at, 0, note.len(), 4));
    out.extend(note);
    for segment in segments {
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        out.extend(&segment.bytes);
    }
    out
}
