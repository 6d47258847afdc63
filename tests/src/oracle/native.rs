//! Runs a sequence on the processor itself (x86-64 Linux): state is loaded from a fixed page, the sequence jumps
//! back through it, and a signal handler turns a fault into a result. One run at a time in a process.

use super::{CODE, DATA, DATA_LEN, Outcome, State};
use std::arch::global_asm;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// The page both ways: GPRs at 0, RFLAGS at 0x80, RIP at 0x88, trap at 0x90, the host's RSP at 0x100, addresses
/// of the code and of the way out at 0x108 and 0x110, the XSAVE image at 0x400.
const PAGE: u64 = 0x2345_6000;
const NONE: u64 = u64::MAX;

global_asm!(
    ".globl godwit_oracle_enter",
    "godwit_oracle_enter:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "mov ds:[0x23456100], rsp",
    "mov eax, 7; xor edx, edx; xrstor64 ds:[0x23456400]",
    "push qword ptr ds:[0x23456080]; popfq",
    "mov rax, ds:[0x23456000]; mov rcx, ds:[0x23456008]; mov rdx, ds:[0x23456010]; mov rbx, ds:[0x23456018]",
    "mov rsp, ds:[0x23456020]; mov rbp, ds:[0x23456028]; mov rsi, ds:[0x23456030]; mov rdi, ds:[0x23456038]",
    "mov r8, ds:[0x23456040]; mov r9, ds:[0x23456048]; mov r10, ds:[0x23456050]; mov r11, ds:[0x23456058]",
    "mov r12, ds:[0x23456060]; mov r13, ds:[0x23456068]; mov r14, ds:[0x23456070]; mov r15, ds:[0x23456078]",
    "jmp qword ptr ds:[0x23456108]",
    ".globl godwit_oracle_leave",
    "godwit_oracle_leave:",
    "mov ds:[0x23456020], rsp; mov rsp, ds:[0x23456100]; pushfq; pop qword ptr ds:[0x23456080]; cld",
    "mov ds:[0x23456000], rax; mov ds:[0x23456008], rcx; mov ds:[0x23456010], rdx; mov ds:[0x23456018], rbx",
    "mov ds:[0x23456028], rbp; mov ds:[0x23456030], rsi; mov ds:[0x23456038], rdi",
    "mov ds:[0x23456040], r8; mov ds:[0x23456048], r9; mov ds:[0x23456050], r10; mov ds:[0x23456058], r11",
    "mov ds:[0x23456060], r12; mov ds:[0x23456068], r13; mov ds:[0x23456070], r14; mov ds:[0x23456078], r15",
    "mov eax, 7; xor edx, edx; xsave64 ds:[0x23456400]",
    ".globl godwit_oracle_fault",
    "godwit_oracle_fault:",
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
    // SAFETY: the kernel's own frame, whose FPU image is an XSAVE area; the page is mapped while handlers are set.
    unsafe {
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let g = &mut machine.gregs;
        let rip = g[libc::REG_RIP as usize] as u64;
        if !(CODE..CODE + 0x1000).contains(&rip) && rip >> 47 != 0 || *word(0x90) != NONE {
            libc::_exit(125);
        }
        for (n, r) in ORDER.into_iter().enumerate() {
            *word(n as u64 * 8) = g[r as usize] as u64;
        }
        *word(0x80) = g[libc::REG_EFL as usize] as u64;
        *word(0x88) = rip;
        *word(0x90) = g[libc::REG_TRAPNO as usize] as u64;
        std::ptr::copy_nonoverlapping(machine.fpregs.cast::<u8>(), word(0x400).cast(), 832);
        g[libc::REG_RIP as usize] = godwit_oracle_fault as *const () as i64;
        g[libc::REG_RSP as usize] = *word(0x100) as i64;
        g[libc::REG_EFL as usize] = 0x202;
    }
}

/// The processor, held by one thread at a time.
pub struct Native(#[allow(dead_code, reason = "held for its lock")] MutexGuard<'static, ()>);

impl Native {
    /// Takes it: none without AVX2 or where the addresses are taken.
    pub fn new() -> Option<Native> {
        static LOCK: Mutex<()> = Mutex::new(());
        static ONCE: Once = Once::new();
        if !(std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("bmi2")) {
            return None;
        }
        let guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fine = true;
        ONCE.call_once(|| {
            for (at, len) in [(CODE, 0x1000), (DATA, DATA_LEN), (PAGE, 0x1000)] {
                let execute = if at == CODE { libc::PROT_EXEC } else { 0 };
                // SAFETY: a new mapping that replaces none.
                let got = unsafe {
                    libc::mmap(
                        at as *mut libc::c_void,
                        len,
                        libc::PROT_READ | libc::PROT_WRITE | execute,
                        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                        -1,
                        0,
                    )
                };
                fine &= got as u64 == at;
            }
        });
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
        fine.then_some(Native(guard))
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
        let mut page = [0xccu8; 0x1000];
        page[..code.len()].copy_from_slice(code);
        // JMP [PAGE + 0x110]
        page[code.len()..code.len() + 7].copy_from_slice(&[0xff, 0x24, 0x25, 0x10, 0x61, 0x45, 0x23]);
        let mut out = start.clone();
        // SAFETY: the fixed mappings are ours and this thread holds the lock; `enter` keeps what the ABI says.
        unsafe {
            std::ptr::copy_nonoverlapping(page.as_ptr(), CODE as *mut u8, page.len());
            std::ptr::copy_nonoverlapping(start.memory.as_ptr(), DATA as *mut u8, DATA_LEN);
            std::ptr::copy_nonoverlapping(start.gpr.as_ptr(), word(0), 16);
            *word(0x80) = start.rflags;
            *word(0x90) = NONE;
            *word(0x108) = CODE;
            *word(0x110) = godwit_oracle_leave as *const () as u64;
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
        Outcome { fault: (trap != NONE).then_some(trap as u32), state: out }
    }
}
