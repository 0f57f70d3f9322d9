//! Conversions between f32 and the 16-bit formats. 16-bit values travel as raw bits: `f16` and `bf16`
//! operands are not yet possible in `asm!`.

/// bf16 bits to f32 (exact).
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}
/// Two packed bf16 to f32, low half first.
#[inline(always)]
pub fn bf16x2_to_f32(bits: u32) -> (f32, f32) {
    (f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000))
}
/// Rounds to nearest even.
#[inline(always)]
pub fn f32_to_bf16(x: f32) -> u16 {
    device! {
        let y: u16;
        core::arch::asm!("cvt.rn.bf16.f32 {0}, {1};", out(reg16) y, in(reg32) x, options(pure, nomem, nostack));
        y
    }
}
/// Rounds two to nearest even; `lo` in the low half.
#[inline(always)]
pub fn f32_to_bf16x2(lo: f32, hi: f32) -> u32 {
    device! {
        let y: u32;
        core::arch::asm!("cvt.rn.bf16x2.f32 {0}, {1}, {2};", out(reg32) y, in(reg32) hi, in(reg32) lo, options(pure, nomem, nostack));
        y
    }
}
/// f16 bits to f32 (exact).
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    device! {
        let y: f32;
        core::arch::asm!("cvt.f32.f16 {0}, {1};", out(reg32) y, in(reg16) bits, options(pure, nomem, nostack));
        y
    }
}
/// Rounds to nearest even; overflows to infinity.
#[inline(always)]
pub fn f32_to_f16(x: f32) -> u16 {
    device! {
        let y: u16;
        core::arch::asm!("cvt.rn.f16.f32 {0}, {1};", out(reg16) y, in(reg32) x, options(pure, nomem, nostack));
        y
    }
}
/// Rounds two to nearest even; `lo` in the low half.
#[inline(always)]
pub fn f32_to_f16x2(lo: f32, hi: f32) -> u32 {
    device! {
        let y: u32;
        core::arch::asm!("cvt.rn.f16x2.f32 {0}, {1}, {2};", out(reg32) y, in(reg32) hi, in(reg32) lo, options(pure, nomem, nostack));
        y
    }
}
