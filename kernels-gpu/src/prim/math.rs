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

/// 2π as the sum of three f32, each the rounding of what the ones before leave.
const TAU_PARTS: [f32; 3] = [6.283_185_5, -1.748_455_5e-7, -6.860_498e-15];

/// x − 2π·round(x / 2π): the same angle within ±3.2 for |x| up to 2^20 (|x| < 2^24 stays within ±2π).
/// Cody and Waite's reduction. The first step is exact: from one turn on, x and n·TAU_PARTS[0] are
/// multiples of 2^-22 and their difference is below 4. The others add 2^-23 of rounding.
/// `fma` is a parameter so that the host can test it with its own.
#[inline(always)]
pub fn reduce_angle(x: f32, fma: impl Fn(f32, f32, f32) -> f32) -> f32 {
    // 1.5·2^23: adding it leaves no bits for a fraction, so the sum is rounded to an integer.
    const TO_INTEGER: f32 = 12_582_912.0;
    let turns = fma(x, 1.0 / core::f32::consts::TAU, TO_INTEGER) - TO_INTEGER;
    TAU_PARTS.iter().fold(x, |rest, &part| fma(-turns, part, rest))
}
/// Sine and cosine, absolute error below 2^-20 for |x| up to 2^20: [`reduce_angle`], then `sin.approx` and
/// `cos.approx` (2^-20.5 within ±2π, useless far outside).
#[inline(always)]
pub fn sin_cos(x: f32) -> (f32, f32) {
    let x = reduce_angle(x, fma);
    device! { (llvm::sin(x), llvm::cos(x)) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::reduce_angle;

    #[test]
    fn reduced_angles_are_the_same_angles() {
        let mut worst = 0f64;
        for step in 0..200_000u32 {
            // Every magnitude from 2^-12 to 2^20, both signs.
            let x = (step as f32 / 200_000.0 * 32.0 - 12.0).exp2() * if step % 2 == 0 { 1.0 } else { -1.0 };
            let reduced = reduce_angle(x, f32::mul_add);
            assert!(reduced.abs() < 3.2, "{x} became {reduced}");
            let (found, expected) = (f64::from(reduced).sin_cos(), f64::from(x).sin_cos());
            worst = worst.max((found.0 - expected.0).abs()).max((found.1 - expected.1).abs());
        }
        assert!(worst < 2.5e-7, "{worst:e}");
    }
}
