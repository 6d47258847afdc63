//! Runs a sequence on the processor itself (x86-64 Linux), in this process: state is loaded from a fixed page, IRETQ
//! enters the sequence, which jumps back through that page, and a signal handler turns a fault into a result. One run
//! at a time in a process. IRETQ leads into 32-bit code too, with segments of its own. The code's page is not writable where it runs: it is written by another mapping of the same
//! memory, and IRETQ serialises.

use super::generate::{FS, GS, GS_LIMIT, USER_CS, USER_CS_32, USER_SS};
use super::{CODE, DATA, DATA_LEN, Outcome, State};
use std::arch::{asm, global_asm};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The page both ways: GPRs at 0, RFLAGS at 0x80, RIP at 0x88, trap at 0x90, error code at 0x98, CR2 at 0xa0; the host's
/// RSP at 0x100, the way out at 0x110, the host's bases of FS and GS at 0x120, the sequence's at 0x130, selectors of
/// 32-bit code at 0x140; IRETQ's frame at 0x180, 32-bit code's way out at 0x1a8, the XSAVE image at 0x400.
const PAGE: u64 = 0x2345_6000;
const NONE: u64 = u64::MAX;

/// Whether an address is of the page that these runs need themselves: what reads or writes there cannot be compared.
pub fn is_own(address: u64) -> bool {
    (PAGE..PAGE + 0x1000).contains(&address)
}

global_asm!(
    ".globl godwit_oracle_enter",
    "godwit_oracle_enter:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "mov ds:[0x23456100], rsp",
    "rdfsbase rax; mov ds:[0x23456120], rax; rdgsbase rax; mov ds:[0x23456128], rax",
    "mov rax, ds:[0x23456130]; wrfsbase rax; mov rax, ds:[0x23456138]; wrgsbase rax",
    "cmp word ptr ds:[0x23456140], 0; je 2f",
    "mov eax, ds:[0x23456140]; mov ds, eax; mov es, eax",
    "mov eax, ds:[0x23456142]; mov fs, eax; mov eax, ds:[0x23456144]; mov gs, eax",
    "2:",
    "mov eax, 7; xor edx, edx; xrstor64 ds:[0x23456400]",
    "mov rax, ds:[0x23456000]; mov rcx, ds:[0x23456008]; mov rdx, ds:[0x23456010]; mov rbx, ds:[0x23456018]",
    "mov rbp, ds:[0x23456028]; mov rsi, ds:[0x23456030]; mov rdi, ds:[0x23456038]",
    "mov r8, ds:[0x23456040]; mov r9, ds:[0x23456048]; mov r10, ds:[0x23456050]; mov r11, ds:[0x23456058]",
    "mov r12, ds:[0x23456060]; mov r13, ds:[0x23456068]; mov r14, ds:[0x23456070]; mov r15, ds:[0x23456078]",
    "mov rsp, 0x23456180",
    "iretq",
    ".globl godwit_oracle_leave",
    "godwit_oracle_leave:",
    "mov ds:[0x23456020], rsp; mov rsp, ds:[0x23456100]; pushfq; pop qword ptr ds:[0x23456080]; push 2; popfq",
    "mov ds:[0x23456000], rax; mov ds:[0x23456008], rcx; mov ds:[0x23456010], rdx; mov ds:[0x23456018], rbx",
    "mov ds:[0x23456028], rbp; mov ds:[0x23456030], rsi; mov ds:[0x23456038], rdi",
    "mov ds:[0x23456040], r8; mov ds:[0x23456048], r9; mov ds:[0x23456050], r10; mov ds:[0x23456058], r11",
    "mov ds:[0x23456060], r12; mov ds:[0x23456068], r13; mov ds:[0x23456070], r14; mov ds:[0x23456078], r15",
    "mov eax, 7; xor edx, edx; xsave64 ds:[0x23456400]",
    "rdfsbase rax; mov ds:[0x23456130], rax; rdgsbase rax; mov ds:[0x23456138], rax",
    ".globl godwit_oracle_fault",
    "godwit_oracle_fault:",
    "cmp word ptr ds:[0x23456140], 0; je 2f",
    "xor eax, eax; mov ds, eax; mov es, eax; mov fs, eax; mov gs, eax",
    "2:",
    "mov rax, ds:[0x23456120]; wrfsbase rax; mov rax, ds:[0x23456128]; wrgsbase rax",
    "cld; fninit; vzeroupper; mov dword ptr ds:[0x23456118], 0x1f80; ldmxcsr ds:[0x23456118]",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "ret",
);

unsafe extern "C" {
    fn godwit_oracle_enter();
    fn godwit_oracle_leave();
    fn godwit_oracle_fault();
}

fn word(at: u64) -> *mut u64 {
    (PAGE + at) as *mut u64
}

extern "C" fn on_fault(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const ORDER: [i32; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    let (fs, gs): (u64, u64);
    // SAFETY: the bases before the sequence come back before anything may use them; the page is mapped.
    unsafe {
        asm!(
            "rdfsbase {0}; rdgsbase {1}; mov {2}, ds:[0x23456120]; wrfsbase {2}; mov {2}, ds:[0x23456128]; wrgsbase {2}",
            out(reg) fs,
            out(reg) gs,
            out(reg) _,
            options(nostack, preserves_flags)
        );
    }
    // SAFETY: the kernel's own frame, whose FPU image is an XSAVE area; the page is mapped while handlers are set.
    unsafe {
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let g = &mut machine.gregs;
        let rip = g[libc::REG_RIP as usize] as u64;
        if *word(0x90) != NONE {
            // Not a sequence's fault.
            libc::_exit(125);
        }
        for (n, r) in ORDER.into_iter().enumerate() {
            *word(n as u64 * 8) = g[r as usize] as u64;
        }
        *word(0x80) = g[libc::REG_EFL as usize] as u64;
        *word(0x88) = rip;
        *word(0x90) = g[libc::REG_TRAPNO as usize] as u64;
        *word(0x98) = g[libc::REG_ERR as usize] as u64;
        *word(0xa0) = g[libc::REG_CR2 as usize] as u64;
        (*word(0x130), *word(0x138)) = (fs, gs);
        std::ptr::copy_nonoverlapping(machine.fpregs.cast::<u8>(), word(0x400).cast(), 832);
        g[libc::REG_RIP as usize] = godwit_oracle_fault as *const () as i64;
        // CS is the lowest of four selectors there.
        let selectors = &mut g[libc::REG_CSGSFS as usize];
        *selectors = *selectors & !0xffff | i64::from(USER_CS);
        g[libc::REG_RSP as usize] = *word(0x100) as i64;
        g[libc::REG_EFL as usize] = 0x202;
    }
}

/// The processor, held by one thread at a time.
pub struct Native {
    _guard: MutexGuard<'static, ()>,
    /// Where the code's page may be written.
    code: *mut u8,
}

/// Selectors of this process.
fn selectors() -> (u16, u16) {
    let (cs, ss): (u16, u16);
    // SAFETY: reads two registers.
    unsafe { asm!("mov {0:x}, cs; mov {1:x}, ss", out(reg) cs, out(reg) ss, options(nomem, nostack)) };
    (cs, ss)
}

/// Makes the segments of [`FS`] and [`GS`].
fn segments() -> bool {
    // `struct user_desc` of asm/ldt.h: number, base, limit, flags: 32 bits, expand-down, usable.
    let make = |number: u32, limit: u32, down: u32| {
        let descriptor = [number, DATA as u32, limit, 1 | down << 1 | 1 << 6];
        // SAFETY: writes an entry of this process' own table, that nothing else uses.
        unsafe {
            libc::syscall(libc::SYS_modify_ldt, 0x11, descriptor.as_ptr(), size_of_val(&descriptor)) == 0
        }
    };
    make(u32::from(FS >> 3), DATA_LEN as u32 - 1, 0) && make(u32::from(GS >> 3), GS_LIMIT, 1)
}

/// Maps the fixed addresses; the code's page twice. Gives where it may be written.
fn map() -> Option<usize> {
    let at = |at: u64, len: usize, protection: i32, flags: i32, fd: i32| {
        // SAFETY: a new mapping that replaces none.
        let got = unsafe { libc::mmap(at as *mut libc::c_void, len, protection, flags, fd, 0) };
        (got != libc::MAP_FAILED && (at == 0 || got as u64 == at)).then_some(got as usize)
    };
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let fixed = libc::MAP_FIXED_NOREPLACE;
    for (address, len) in [(DATA, DATA_LEN), (PAGE, 0x1000)] {
        at(address, len, both, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed, -1)?;
    }
    // SAFETY: a literal name.
    let file = unsafe { libc::memfd_create(c"godwit-oracle".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: the file is ours.
    if file < 0 || unsafe { libc::ftruncate(file, 0x1000) } != 0 {
        return None;
    }
    at(CODE, 0x1000, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED | fixed, file)?;
    at(0, 0x1000, both, libc::MAP_SHARED, file)
}

impl Native {
    /// Takes it; why not, without AVX2 or FSGSBASE, or where the addresses or selectors are others.
    ///
    /// # Errors
    /// The reason.
    pub fn new() -> Result<Native, &'static str> {
        static LOCK: Mutex<()> = Mutex::new(());
        static MAP: OnceLock<Option<usize>> = OnceLock::new();
        if !(std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("bmi2")) {
            return Err("this processor has no AVX2");
        }
        // SAFETY: no memory is involved. Bit 1: the kernel lets programs use FSGSBASE.
        if unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 == 0 {
            return Err("this kernel does not let programs use FSGSBASE");
        }
        if selectors() != (USER_CS.into(), USER_SS) {
            return Err("this kernel has other selectors for programs");
        }
        let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let code = MAP.get_or_init(map).ok_or("the oracle's addresses are taken")?;
        if !segments() {
            return Err("this kernel lets programs have no segments of their own (modify_ldt)");
        }
        let stack = Box::leak(vec![0u8; 1 << 16].into_boxed_slice());
        // SAFETY: the stack is leaked; the handler is above.
        unsafe {
            let alternate =
                libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
            libc::sigaltstack(&alternate, std::ptr::null_mut());
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
        Ok(Native { _guard, code: code as *mut u8 })
    }

    /// Why this processor cannot run a sequence: the first mnemonic that it lacks.
    pub fn lacks(code: &[u8], bits: u32) -> Option<iced_x86::Mnemonic> {
        Self::lacks_any(&super::instructions(code, bits))
    }

    /// The same of a sequence already decoded.
    pub fn lacks_any(code: &[iced_x86::Instruction]) -> Option<iced_x86::Mnemonic> {
        use iced_x86::CpuidFeature as C;
        // The instruction may trap to a hypervisor: once.
        static LEAF_7: OnceLock<std::arch::x86_64::CpuidResult> = OnceLock::new();
        let leaf_7 = || LEAF_7.get_or_init(|| std::arch::x86_64::__cpuid(7));
        let has = |f: &C| match f {
            C::AES => std::is_x86_feature_detected!("aes"),
            C::PCLMULQDQ => std::is_x86_feature_detected!("pclmulqdq"),
            C::SHA => std::is_x86_feature_detected!("sha"),
            C::ADX => std::is_x86_feature_detected!("adx"),
            C::FMA => std::is_x86_feature_detected!("fma"),
            C::F16C => std::is_x86_feature_detected!("f16c"),
            C::MOVBE => std::is_x86_feature_detected!("movbe"),
            C::LZCNT => std::is_x86_feature_detected!("lzcnt"),
            C::RDRAND => std::is_x86_feature_detected!("rdrand"),
            C::RDSEED => std::is_x86_feature_detected!("rdseed"),
            C::XSAVEOPT => std::is_x86_feature_detected!("xsaveopt"),
            C::XSAVEC => std::is_x86_feature_detected!("xsavec"),
            // Leaf 7: CLFLUSHOPT, INVPCID, SMAP (CLAC and STAC), RDPID.
            C::CLFLUSHOPT => leaf_7().ebx >> 23 & 1 != 0,
            C::INVPCID => leaf_7().ebx >> 10 & 1 != 0,
            C::SMAP => leaf_7().ebx >> 20 & 1 != 0,
            C::RDPID => leaf_7().ecx >> 22 & 1 != 0,
            _ => true,
        };
        code.iter().find(|i| !i.cpuid_features().iter().all(has)).map(|i| i.mnemonic())
    }

    /// Runs `code` from `start` until it faults or comes to its end.
    pub fn run(&self, code: &[u8], start: &State) -> Outcome {
        let mut image = [0u8; 832];
        image[0..2].copy_from_slice(&start.fcw.to_le_bytes());
        image[2..4].copy_from_slice(&start.fsw.to_le_bytes());
        image[4] = start.ftw;
        image[24..28].copy_from_slice(&start.mxcsr.to_le_bytes());
        image[512] = 7;
        for n in 0..8 {
            image[32 + n * 16..40 + n * 16].copy_from_slice(&start.st[n].1.to_le_bytes());
            image[40 + n * 16..42 + n * 16].copy_from_slice(&start.st[n].0.to_le_bytes());
        }
        let place =
            |n: usize, k: usize| if k < 2 { 160 + n * 16 + k * 8 } else { 576 + n * 16 + (k - 2) * 8 };
        for n in 0..16 {
            for k in 0..4 {
                image[place(n, k)..place(n, k) + 8].copy_from_slice(&start.ymm[n][k].to_le_bytes());
            }
        }
        let page = super::page(code, start.bits);
        let mut out = start.clone();
        // SAFETY: the fixed mappings are ours and this thread holds the lock; `enter` keeps what the ABI says.
        unsafe {
            std::ptr::copy_nonoverlapping(page.as_ptr(), self.code, page.len());
            std::ptr::copy_nonoverlapping(start.memory.as_ptr(), DATA as *mut u8, DATA_LEN);
            std::ptr::copy_nonoverlapping(start.gpr.as_ptr(), word(0), 16);
            *word(0x90) = NONE;
            (*word(0x130), *word(0x138)) = (start.fs_base, start.gs_base);
            let frame = [
                CODE,
                (if start.bits == 32 { USER_CS_32 } else { USER_CS }).into(),
                start.rflags,
                start.gpr[4],
                USER_SS.into(),
            ];
            std::ptr::copy_nonoverlapping(frame.as_ptr(), word(0x180), 5);
            *word(0x110) = godwit_oracle_leave as *const () as u64;
            *word(0x1a8) = super::THROUGH | u64::from(USER_CS) << 32;
            // DS and ES, FS, GS of 32-bit code; in 64-bit code they stay null.
            *word(0x140) = if start.bits == 32 {
                [USER_SS, FS, GS].iter().rev().fold(0, |all, s| all << 16 | u64::from(*s))
            } else {
                0
            };
            std::ptr::copy_nonoverlapping(image.as_ptr(), word(0x400).cast(), image.len());
            godwit_oracle_enter();
            std::ptr::copy_nonoverlapping(word(0), out.gpr.as_mut_ptr(), 16);
            std::ptr::copy_nonoverlapping(word(0x400).cast(), image.as_mut_ptr(), image.len());
            std::ptr::copy_nonoverlapping(DATA as *const u8, out.memory.as_mut_ptr(), DATA_LEN);
        }
        // SAFETY: as above.
        let (rflags, rip, trap) = unsafe { (*word(0x80), *word(0x88), *word(0x90)) };
        let bytes8 = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().expect("8 bytes"));
        let bytes2 = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let there = image[512];
        // SAFETY: as above.
        let (error, cr2) = unsafe { (*word(0x98), *word(0xa0)) };
        // SAFETY: as above.
        (out.fs_base, out.gs_base) = unsafe { (*word(0x130), *word(0x138)) };
        out.rflags = rflags;
        out.rip = if trap == NONE { CODE + code.len() as u64 } else { rip };
        out.mxcsr = bytes8(24) as u32;
        if there & 1 != 0 {
            (out.fcw, out.fsw, out.ftw) = (bytes2(0), bytes2(2), image[4]);
            out.st = std::array::from_fn(|n| (bytes2(40 + n * 16), bytes8(32 + n * 16)));
        } else {
            (out.fcw, out.fsw, out.ftw, out.st) = (0x37f, 0, 0, [(0, 0); 8]);
        }
        for n in 0..16 {
            for k in 0..4 {
                out.ymm[n][k] = if there >> (1 + k / 2) & 1 != 0 { bytes8(place(n, k)) } else { 0 };
            }
        }
        let coded = trap != NONE && matches!(trap, 8 | 10..=14 | 17);
        Outcome {
            fault: (trap != NONE).then_some(trap as u32),
            error: if coded { super::error_code(trap as u32, error as u32, cr2) } else { 0 },
            address: if trap == 14 { cr2 } else { 0 },
            state: out,
        }
    }
}
