//! The 16-bit element types, as raw bits with conversions.
use crate::prim::{convert, mma};

/// A 16-bit floating-point format.
pub trait Elem: Copy {
    /// To f32 (exact).
    fn to_f32(bits: u16) -> f32;
    /// From f32, to nearest even.
    fn from_f32(x: f32) -> u16;
    /// Two packed elements to f32, low half first.
    fn unpack(bits: u32) -> (f32, f32);
    /// Packs two, `lo` in the low half, to nearest even.
    fn pack(lo: f32, hi: f32) -> u32;
    /// d += a · b, one m16n8k16 step.
    fn mma(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]);

    /// Eight packed elements to f32.
    #[inline(always)]
    fn unpack8(v: [u32; 4]) -> [f32; 8] {
        let mut x = [0.0; 8];
        for i in 0..4 {
            (x[2 * i], x[2 * i + 1]) = Self::unpack(v[i]);
        }
        x
    }
    /// Packs eight.
    #[inline(always)]
    fn pack8(x: [f32; 8]) -> [u32; 4] {
        [Self::pack(x[0], x[1]), Self::pack(x[2], x[3]), Self::pack(x[4], x[5]), Self::pack(x[6], x[7])]
    }
}

/// bfloat16.
#[derive(Clone, Copy)]
pub struct Bf16;
/// IEEE half precision.
#[derive(Clone, Copy)]
pub struct F16;

impl Elem for Bf16 {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        convert::bf16_to_f32(bits)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> u16 {
        convert::f32_to_bf16(x)
    }
    #[inline(always)]
    fn unpack(bits: u32) -> (f32, f32) {
        convert::bf16x2_to_f32(bits)
    }
    #[inline(always)]
    fn pack(lo: f32, hi: f32) -> u32 {
        convert::f32_to_bf16x2(lo, hi)
    }
    #[inline(always)]
    fn mma(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
        mma::mma_bf16(d, a, b)
    }
}

impl Elem for F16 {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        convert::f16_to_f32(bits)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> u16 {
        convert::f32_to_f16(x)
    }
    #[inline(always)]
    fn unpack(bits: u32) -> (f32, f32) {
        (convert::f16_to_f32(bits as u16), convert::f16_to_f32((bits >> 16) as u16))
    }
    #[inline(always)]
    fn pack(lo: f32, hi: f32) -> u32 {
        convert::f32_to_f16x2(lo, hi)
    }
    #[inline(always)]
    fn mma(d: &mut [f32; 4], a: [u32; 4], b: [u32; 2]) {
        mma::mma_f16(d, a, b)
    }
}
