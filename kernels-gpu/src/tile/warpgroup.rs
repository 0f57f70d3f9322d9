//! Matrix products of a warpgroup over element types and tile widths.
use super::{Bf16, Elem, F16};
use crate::prim::wgmma;

/// An element type with a matrix instruction of `REGS` accumulators a thread: a tile of 64 rows and 2 · `REGS`
/// columns. Layout and rules in [`wgmma`].
pub trait WarpgroupMma<const REGS: usize>: Elem {
    /// d = a · bᵀ (+ d), one step of 16 elements of K, by shared memory descriptors.
    unsafe fn mma_async(d: &mut [f32; REGS], a: u64, b: u64, accumulate: bool);
}

macro_rules! warpgroup_mma {
    ($($elem:ident $regs:literal $mma:ident;)*) => {
        $(impl WarpgroupMma<$regs> for $elem {
            #[inline(always)]
            unsafe fn mma_async(d: &mut [f32; $regs], a: u64, b: u64, accumulate: bool) {
                wgmma::$mma(d, a, b, accumulate)
            }
        })*
    };
}
warpgroup_mma! {
    Bf16 8 mma_n16_bf16;
    Bf16 16 mma_n32_bf16;
    Bf16 24 mma_n48_bf16;
    Bf16 32 mma_n64_bf16;
    Bf16 40 mma_n80_bf16;
    Bf16 48 mma_n96_bf16;
    Bf16 56 mma_n112_bf16;
    Bf16 64 mma_n128_bf16;
    Bf16 72 mma_n144_bf16;
    Bf16 80 mma_n160_bf16;
    Bf16 96 mma_n192_bf16;
    Bf16 112 mma_n224_bf16;
    Bf16 128 mma_n256_bf16;
    F16 8 mma_n16_f16;
    F16 16 mma_n32_f16;
    F16 24 mma_n48_f16;
    F16 32 mma_n64_f16;
    F16 40 mma_n80_f16;
    F16 48 mma_n96_f16;
    F16 56 mma_n112_f16;
    F16 64 mma_n128_f16;
    F16 72 mma_n144_f16;
    F16 80 mma_n160_f16;
    F16 96 mma_n192_f16;
    F16 112 mma_n224_f16;
    F16 128 mma_n256_f16;
}

/// As [`WarpgroupMma`], with the first operand in registers and the second one's rows along K.
pub trait WarpgroupMmaRegisters<const REGS: usize>: Elem {
    /// d += a · b, one step of 16 rows of b; a as packed accumulators.
    unsafe fn mma_registers(d: &mut [f32; REGS], a: [u32; 4], b: u64);
}

macro_rules! warpgroup_mma_registers {
    ($($elem:ident $regs:literal $mma:ident;)*) => {
        $(impl WarpgroupMmaRegisters<$regs> for $elem {
            #[inline(always)]
            unsafe fn mma_registers(d: &mut [f32; $regs], a: [u32; 4], b: u64) {
                wgmma::$mma(d, a, b)
            }
        })*
    };
}
warpgroup_mma_registers! {
    Bf16 32 mma_registers_n64_bf16;
    Bf16 48 mma_registers_n96_bf16;
    Bf16 64 mma_registers_n128_bf16;
    Bf16 128 mma_registers_n256_bf16;
    F16 32 mma_registers_n64_f16;
    F16 48 mma_registers_n96_f16;
    F16 64 mma_registers_n128_f16;
    F16 128 mma_registers_n256_f16;
}
