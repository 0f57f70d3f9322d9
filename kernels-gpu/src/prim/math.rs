//! Fast arithmetic. rustc never contracts to fused multiply-adds and its `sqrt`, `/` and `exp2` are the
//! slow, exactly rounded (or denormal-preserving) forms, so kernels use these.
#[cfg(device)]
use super::intrinsics as llvm;

/// log2(e).
pub const LOG2_E: f32 = core::f32::consts::LOG2_E;

/// `a * b + c`, rounded once.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    device! { llvm::fma(a, b, c) }
}
/// 2^x, within 2 ulp (`ex2.approx.ftz`); `exp2(-inf)` is 0.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    device! { llvm::ex2(x) }
}
/// e^x through [`exp2`].
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    exp2(x * LOG2_E)
}
/// log2(x) (`lg2.approx.ftz`).
#[inline(always)]
pub fn log2(x: f32) -> f32 {
    device! { llvm::lg2(x) }
}
/// 1/√x (`rsqrt.approx.ftz`, within 2^-22.9 relative).
#[inline(always)]
pub fn rsqrt(x: f32) -> f32 {
    device! { llvm::rsqrt(x) }
}
/// 1/x (`rcp.approx.ftz`, within 1 ulp).
#[inline(always)]
pub fn rcp(x: f32) -> f32 {
    device! { llvm::rcp(x) }
}
/// tanh(x) (`tanh.approx`, within 2^-11 relative).
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    device! {
        let y: f32;
        core::arch::asm!("tanh.approx.f32 {0}, {1};", out(reg32) y, in(reg32) x, options(pure, nomem, nostack));
        y
    }
}
/// The larger of the two; a NaN loses against a number.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    if a > b || b.is_nan() { a } else { b }
}
/// The smaller of the two; a NaN loses against a number.
#[inline(always)]
pub fn min(a: f32, b: f32) -> f32 {
    if a < b || b.is_nan() { a } else { b }
}
