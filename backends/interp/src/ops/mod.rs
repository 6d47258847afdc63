//! The instructions, one file a family. [`lower`] finds an instruction's family by its mnemonic; the family's
//! `lower` picks the handler for the operands.

pub(crate) mod alu;
pub(crate) mod bit;
pub(crate) mod branch;
pub(crate) mod far;
pub(crate) mod fast_call;
pub(crate) mod flag;
pub(crate) mod mmx;
pub(crate) mod mov;
pub(crate) mod muldiv;
pub(crate) mod operand;
pub(crate) mod pair;
pub(crate) mod shift;
pub(crate) mod sse;
pub(crate) mod sse_mov;
pub(crate) mod sse_scalar;
pub(crate) mod sse_select;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod system;
pub(crate) mod x87;
pub(crate) mod xsave;

use crate::cpu::Cpu;
use crate::decode::Lower;
use crate::op::{Flow, Handler, OpPtr};
use iced_x86::{FlowControl, Instruction, Mnemonic as M, OpKind, Register};

/// The handler for an instruction; none if there is none.
pub(crate) fn lower(l: &mut Lower<'_>) -> Option<Handler> {
    let m = l.i.mnemonic();
    match m {
        M::Add
        | M::Or
        | M::Adc
        | M::Sbb
        | M::And
        | M::Sub
        | M::Xor
        | M::Cmp
        | M::Test
        | M::Inc
        | M::Dec
        | M::Neg
        | M::Not => alu::lower(l),
        M::Mov
        | M::Movzx
        | M::Movsx
        | M::Movsxd
        | M::Lea
        | M::Xchg
        | M::Bswap
        | M::Movbe
        | M::Cwd
        | M::Cdq
        | M::Cqo
        | M::Cbw
        | M::Cwde
        | M::Cdqe
        | M::Xlatb
        | M::Movnti
        | M::Xadd
        | M::Cmpxchg
        | M::Cmpxchg8b
        | M::Cmpxchg16b => mov::lower(l),
        M::Shl
        | M::Sal
        | M::Shr
        | M::Sar
        | M::Rol
        | M::Ror
        | M::Rcl
        | M::Rcr
        | M::Shld
        | M::Shrd
        | M::Rorx
        | M::Sarx
        | M::Shlx
        | M::Shrx => shift::lower(l),
        M::Mul
        | M::Imul
        | M::Div
        | M::Idiv
        | M::Mulx
        | M::Aaa
        | M::Aad
        | M::Aam
        | M::Aas
        | M::Daa
        | M::Das => muldiv::lower(l),
        M::Bt
        | M::Bts
        | M::Btr
        | M::Btc
        | M::Bsf
        | M::Bsr
        | M::Tzcnt
        | M::Lzcnt
        | M::Popcnt
        | M::Andn
        | M::Bextr
        | M::Blsi
        | M::Blsmsk
        | M::Blsr
        | M::Bzhi
        | M::Pdep
        | M::Pext
        | M::Adcx
        | M::Adox
        | M::Crc32 => bit::lower(l),
        M::Push
        | M::Pop
        | M::Pusha
        | M::Pushad
        | M::Popa
        | M::Popad
        | M::Pushf
        | M::Pushfd
        | M::Pushfq
        | M::Popf
        | M::Popfd
        | M::Popfq
        | M::Enter
        | M::Leave
        | M::Bound
        | M::Arpl => stack::lower(l),
        M::Clc
        | M::Stc
        | M::Cmc
        | M::Cld
        | M::Std
        | M::Cli
        | M::Sti
        | M::Lahf
        | M::Sahf
        | M::Salc
        | M::Clac
        | M::Stac => flag::lower(l),
        M::Movsb
        | M::Movsw
        | M::Movsq
        | M::Stosb
        | M::Stosw
        | M::Stosd
        | M::Stosq
        | M::Lodsb
        | M::Lodsw
        | M::Lodsd
        | M::Lodsq
        | M::Scasb
        | M::Scasw
        | M::Scasd
        | M::Scasq
        | M::Cmpsb
        | M::Cmpsw
        | M::Cmpsq
        | M::Insb
        | M::Insw
        | M::Insd
        | M::Outsb
        | M::Outsw
        | M::Outsd => string::lower(l),
        M::Movsd | M::Cmpsd if is_string(l.i) => string::lower(l),
        M::Call | M::Ret | M::Jmp | M::Jcxz | M::Jecxz | M::Jrcxz | M::Loop | M::Loope | M::Loopne => {
            branch::lower(l)
        }
        M::Retf
        | M::Iret
        | M::Iretd
        | M::Iretq
        | M::Int
        | M::Int1
        | M::Int3
        | M::Into
        | M::Syscall
        | M::Sysret
        | M::Sysretq
        | M::Sysenter
        | M::Sysexit
        | M::Sysexitq
        | M::Lds
        | M::Les
        | M::Lfs
        | M::Lgs
        | M::Lss
        | M::Ud0
        | M::Ud1
        | M::Ud2 => far::lower(l),
        M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsavec
        | M::Xsavec64
        | M::Xrstor
        | M::Xrstor64
        | M::Xgetbv
        | M::Xsetbv
        | M::Ldmxcsr
        | M::Stmxcsr
        | M::Vldmxcsr
        | M::Vstmxcsr => xsave::lower(l),
        _ if condition(l.i).is_some() => branch::lower(l),
        _ => system::lower(l).or_else(|| x87::lower(l)).or_else(|| mmx::lower(l)).or_else(|| sse::lower(l)),
    }
}

fn is_string(i: &Instruction) -> bool {
    !(0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_xmm())
}

/// Number of the condition that an instruction tests.
pub(crate) fn condition(i: &Instruction) -> Option<u8> {
    use iced_x86::ConditionCode as C;
    if matches!(i.mnemonic(), M::Loope | M::Loopne) {
        return None;
    }
    Some(match i.condition_code() {
        C::None => return None,
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    })
}

/// True if a slot follows the instruction's op: near branches with a fixed target.
pub(crate) fn has_slot(i: &Instruction) -> bool {
    match i.flow_control() {
        FlowControl::ConditionalBranch => true,
        FlowControl::UnconditionalBranch | FlowControl::Call => {
            matches!(i.op_kind(0), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
        }
        _ => false,
    }
}

/// True if the dispatcher must look around after the instruction, or a handler of it never runs on.
pub(crate) fn ends_block(i: &Instruction) -> bool {
    match i.mnemonic() {
        M::Hlt
        | M::Wrmsr
        | M::Lmsw
        | M::Clts
        | M::Invlpg
        | M::Invpcid
        | M::Lgdt
        | M::Lidt
        | M::Lldt
        | M::Ltr
        | M::Xsetbv
        | M::In
        | M::Out
        | M::Insb
        | M::Insw
        | M::Insd
        | M::Outsb
        | M::Outsw
        | M::Outsd
        | M::Wbinvd
        | M::Invd
        | M::Wrfsbase
        | M::Wrgsbase
        | M::Pause
        | M::Lss
        | M::Xrstor
        | M::Xrstor64 => true,
        M::Mov | M::Pop => {
            let r = i.op0_register();
            i.op0_kind() == OpKind::Register && (r.is_cr() || r.is_dr() || r == Register::SS)
        }
        _ => {
            // Repeated string instructions come back to themselves.
            i.has_rep_prefix() && is_string_op(i) || i.has_repne_prefix() && is_string_op(i)
        }
    }
}

fn is_string_op(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        M::Movsb
            | M::Movsw
            | M::Movsq
            | M::Stosb
            | M::Stosw
            | M::Stosd
            | M::Stosq
            | M::Lodsb
            | M::Lodsw
            | M::Lodsd
            | M::Lodsq
            | M::Scasb
            | M::Scasw
            | M::Scasd
            | M::Scasq
            | M::Cmpsb
            | M::Cmpsw
            | M::Cmpsq
    ) || matches!(i.mnemonic(), M::Movsd | M::Cmpsd) && is_string(i)
}

/// #UD.
pub(crate) fn undefined(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.ud();
    cpu.abort(op)
}

/// An instruction that the interpreter does not have: named in the log, #UD in the guest.
pub(crate) fn unknown(cpu: &mut Cpu, op: OpPtr) -> Flow {
    cpu.rip = op.rip(cpu);
    // The decoder's number: its name would need a table of all names.
    cpu.note(&format!("instruction form {} is not implemented: #UD", op.imm));
    undefined(cpu, op)
}

/// Ends a block in front of the next instruction, for the dispatcher to look around. All instructions that serialize a
/// processor end so, but for CPUID and IRET, and those that reach a device: what was stored before is seen.
#[inline(always)]
pub(crate) fn pause(cpu: &mut Cpu, op: OpPtr) -> Flow {
    crate::mmu::ram::fence();
    cpu.rip = op.next_rip(cpu);
    cpu.budget -= i64::from(op.n);
    Flow::Next
}

/// Runs a body out of line, then on. A handler with locals in memory could not jump to the next one: its frame
/// would stay on the stack for the rest of the chain.
#[inline(always)]
pub(crate) fn outlined(
    cpu: &mut Cpu,
    op: OpPtr,
    body: impl FnOnce(&mut Cpu, OpPtr) -> crate::op::Exec,
) -> Flow {
    #[inline(never)]
    fn outline(
        cpu: &mut Cpu,
        op: OpPtr,
        body: impl FnOnce(&mut Cpu, OpPtr) -> crate::op::Exec,
    ) -> crate::op::Exec {
        body(cpu, op)
    }
    match outline(cpu, op, body) {
        Ok(()) => crate::op::next(cpu, op),
        Err(_) => cpu.abort(op),
    }
}

/// Defines handlers from fallible bodies that run on: out of line; or with `direct` in the handler itself, for short ones
/// without locals in memory. With `pause` they end the block.
macro_rules! ops {
    ($(#[$m:meta])* $vis:vis fn $name:ident $(<$($g:ident : $b:path),*>)? ($cpu:ident, $op:ident) $body:block $($rest:tt)*) => {
        $(#[$m])* #[inline(never)] $vis fn $name $(<$($g: $b),*>)? ($cpu: &mut crate::cpu::Cpu, $op: crate::op::OpPtr) -> crate::op::Flow {
            crate::ops::outlined($cpu, $op, |$cpu, $op| { let _ = &$op; $body; Ok(()) })
        }
        crate::ops::ops! { $($rest)* }
    };
    ($(#[$m:meta])* $vis:vis direct fn $name:ident $(<$($g:ident : $b:path),*>)? ($cpu:ident, $op:ident) $body:block $($rest:tt)*) => {
        $(#[$m])* #[inline(never)] $vis fn $name $(<$($g: $b),*>)? ($cpu: &mut crate::cpu::Cpu, $op: crate::op::OpPtr) -> crate::op::Flow {
            crate::op::run!($cpu, $op, { $body; Ok(()) })
        }
        crate::ops::ops! { $($rest)* }
    };
    ($(#[$m:meta])* $vis:vis pause fn $name:ident $(<$($g:ident : $b:path),*>)? ($cpu:ident, $op:ident) $body:block $($rest:tt)*) => {
        $(#[$m])* #[inline(never)] $vis fn $name $(<$($g: $b),*>)? ($cpu: &mut crate::cpu::Cpu, $op: crate::op::OpPtr) -> crate::op::Flow {
            crate::op::leave!($cpu, $op, { $body; Ok(crate::ops::pause($cpu, $op)) })
        }
        crate::ops::ops! { $($rest)* }
    };
    () => {};
}

/// A handler for each of some widths in bits, in which `$t` is the type.
macro_rules! by_bits {
    ($bits:expr, $t:ident: $($n:literal $w:ty => $e:expr),*) => {
        match $bits {
            $($n => {
                type $t = $w;
                $e
            })*
            _ => return None,
        }
    };
}

/// A handler for each operand width.
macro_rules! by_width {
    ($bits:expr, $t:ident => $e:expr) => {
        crate::ops::by_bits!($bits, $t: 8 u8 => $e, 16 u16 => $e, 32 u32 => $e, 64 u64 => $e)
    };
}

/// The same for the widths above a byte.
macro_rules! by_wide {
    ($bits:expr, $t:ident => $e:expr) => {
        crate::ops::by_bits!($bits, $t: 16 u16 => $e, 32 u32 => $e, 64 u64 => $e)
    };
}

/// The same for the widths of 32 and 64.
macro_rules! by_long {
    ($bits:expr, $t:ident => $e:expr) => {
        crate::ops::by_bits!($bits, $t: 32 u32 => $e, 64 u64 => $e)
    };
}

/// A handler of its own for the widths of 32 and 64, another for bytes and words.
macro_rules! by_word {
    ($bits:expr, $t:ident => $e:expr, else $rare:expr) => {
        crate::ops::by_bits!($bits, $t: 8 u8 => $rare, 16 u16 => $rare, 32 u32 => $e, 64 u64 => $e)
    };
}

/// A handler for each quick form of address, and the general one's.
macro_rules! by_form {
    ($form:expr, $q:ident => $e:expr, else $any:expr) => {
        match $form {
            crate::decode::Form::Base => {
                type $q = crate::ops::operand::Base;
                $e
            }
            crate::decode::Form::Index => {
                type $q = crate::ops::operand::Index;
                $e
            }
            crate::decode::Form::Any => $any,
        }
    };
}

pub(crate) use {by_bits, by_form, by_long, by_wide, by_width, by_word, ops};
