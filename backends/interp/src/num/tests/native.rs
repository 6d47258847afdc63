//! Running one instruction on the processor.

/// `fn name(a, b, c: V128, mxcsr) -> (V128, mxcsr)`: `a` is in xmm0 (and the result), `b` in
/// xmm1, `c` in xmm2, a scratch integer pair in rax.
macro_rules! sse_op {
    ($($name:ident $insn:expr;)*) => {$(
        pub(crate) fn $name(a: V128, b: V128, c: V128, mx: u32) -> (V128, u32) {
            let mut r = V128::ZERO;
            let mut m = [mx, 0x1f80];
            // SAFETY: the memory operands are live locals of the sizes used, MXCSR is put
            // back, and the clobbered registers are declared.
            unsafe {
                core::arch::asm!(
                    "movups xmm0, [{a}]",
                    "movups xmm1, [{b}]",
                    "movups xmm2, [{c}]",
                    "mov rax, [{a}]",
                    "ldmxcsr [{m}]",
                    $insn,
                    "stmxcsr [{m}]",
                    "ldmxcsr [{m} + 4]",
                    "movups [{r}], xmm0",
                    a = in(reg) a.0.as_ptr(), b = in(reg) b.0.as_ptr(), c = in(reg) c.0.as_ptr(),
                    m = in(reg) m.as_mut_ptr(), r = in(reg) r.0.as_mut_ptr(),
                    out("rax") _, out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("mm0") _, out("mm1") _,
                );
            }
            (r, m[0])
        }
    )*};
}
pub(crate) use sse_op;
