//! Where everything is in the memory of the guest that runs system vectors. Virtual is physical, but for the aliases
//! that large pages make.
//!
//! ```text
//! 0x0_0000  real mode's vectors     0x0_7000  two pages of data
//! 0x0_1000  GDT, LDT                0x0_9000  stacks of rings 0 and 1, not compared
//! 0x0_2000  IDT, of long mode too   0x0_a000  stack of ring 3
//! 0x0_4000  TSSs                    0x0_b000  IST stack, what to start and what came out, not compared
//! 0x0_5000  handlers                0x0_c000  page tables, up to [`LOW`]
//! 0x0_6000  the vector's code       0x20_0000 home, tables as they should be, vectors
//! ```

/// GDT.
pub const GDT: u32 = 0x1000;
/// LDT.
pub const LDT: u32 = 0x1800;
/// IDT of protected mode.
pub const IDT: u32 = 0x2000;
/// IDT of long mode.
pub const IDT64: u32 = 0x3000;
/// The current task's TSS, in protected mode.
pub const TSS: u32 = 0x4000;
/// Another's.
pub const OTHER_TSS: u32 = 0x4200;
/// Another's, of 16 bits.
pub const TSS16: u32 = 0x4400;
/// Long mode's.
pub const TSS64: u32 = 0x4600;
/// Handlers.
pub const HANDLERS: u32 = 0x5000;
/// The vector's code.
pub const CODE: u32 = 0x6000;
/// Where gates and other tasks lead.
pub const ELSEWHERE: u32 = 0x6800;
/// Data of every ring.
pub const DATA: u32 = 0x7000;
/// Top of ring 0's stack.
pub const STACK0: u32 = 0xa000;
/// Top of ring 1's.
pub const STACK1: u32 = 0x9800;
/// Top of ring 3's.
pub const STACK3: u32 = 0xb000;
/// Top of the stack of interrupt stack table entry 1.
pub const IST1: u32 = 0xb400;
/// What to load last, see [`super::guest`].
pub const LAUNCH: u32 = 0xb400;
/// What came out.
pub const DUMP: u32 = 0xb800;
/// Operands of LGDT and LIDT, eight bytes each: GDT, IDT, real mode's, none; at 0x40 IDT of long mode.
pub const POINTERS: u32 = 0xbc00;
/// Page directory of 32-bit paging; its table follows.
pub const PD: u32 = 0xc000;
/// PAE's page-directory-pointer table; directory and table follow.
pub const PDPT_PAE: u32 = 0xe000;
/// PML4; page-directory-pointer table, directory and table follow.
pub const PML4: u32 = 0x1_1000;
/// End of what is compared.
pub const LOW: u32 = 0x1_5000;

/// Home's code.
pub const HOME: u32 = 0x20_0000;
/// Top of home's stack; its variables from there.
pub const HOME_STACK: u32 = 0x20_8000;
/// Address of the vector's record.
pub const CURRENT: u32 = HOME_STACK;
/// Number of changed words, then address and value of each.
pub const CHANGES: u32 = 0x20_9000;
/// Changed words that there is room for.
pub const MAX_CHANGES: u32 = 64;
/// What [`LOW`] begins as.
pub const PRISTINE: u32 = 0x21_0000;
/// What it is when the vector starts.
pub const SHADOW: u32 = 0x23_0000;
/// Records of vectors.
pub const RECORDS: u32 = 0x25_0000;
/// End of memory.
pub const END: u32 = 0x40_0000;

/// Offsets in [`DUMP`].
pub mod dump {
    /// The vector's number; 0 in real mode's stubs needs none.
    pub const VECTOR: u32 = 0;
    /// Error code.
    pub const ERROR: u32 = 4;
    /// RIP.
    pub const RIP: u32 = 8;
    /// CS.
    pub const CS: u32 = 0x10;
    /// RFLAGS.
    pub const RFLAGS: u32 = 0x18;
    /// RSP.
    pub const RSP: u32 = 0x20;
    /// SS.
    pub const SS: u32 = 0x28;
    /// RAX, RCX, RDX, RBX, (RSP), RBP, RSI, RDI, R8 ...
    pub const GPR: u32 = 0x30;
    /// DS, ES, FS, GS, each in eight bytes.
    pub const SEGMENTS: u32 = 0xb0;
    /// TR, LDTR.
    pub const TASK: u32 = 0xd0;
    /// CR0, CR2, CR3, CR4.
    pub const CR: u32 = 0xe0;
    /// EFER.
    pub const EFER: u32 = 0x100;
    /// DR6, DR7.
    pub const DR: u32 = 0x108;
    /// Its bytes.
    pub const LEN: u32 = 0x118;
}

/// Offsets in a record, and in [`LAUNCH`], to which its first part is copied.
pub mod record {
    /// 0 real mode, 1 protected, 2 long.
    pub const KIND: u32 = 0;
    /// CR0, CR3, CR4, EFER.
    pub const CR: u32 = 4;
    /// DR0 to DR3, DR7.
    pub const DR: u32 = 0x14;
    /// FS and GS, DS and ES.
    pub const SEGMENTS: u32 = 0x28;
    /// Stack pointer and SS before IRET.
    pub const STACK: u32 = 0x30;
    /// Where IRET's frame goes, and how many words of 32 bits it has.
    pub const FRAME_AT: u32 = 0x38;
    /// As above.
    pub const FRAME_LEN: u32 = 0x3c;
    /// The frame.
    pub const FRAME: u32 = 0x40;
    /// EDI, ESI, EBP, (ESP), EBX, EDX, ECX, EAX, as POPAD takes them.
    pub const POPAD: u32 = 0x70;
    /// RAX, RCX, RDX, RBX, (RSP), RBP, RSI, RDI, R8 ...
    pub const GPR: u32 = 0x90;
    /// End of what is copied.
    pub const COPIED: u32 = 0x110;
    /// How many MSRs, then number and value of each; then how many pokes, then address, length and bytes of each,
    /// padded to four. The next record begins there.
    pub const LISTS: u32 = COPIED;
}
