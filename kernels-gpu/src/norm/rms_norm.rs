//! RMSNorm, alone or fused with the residual add before it.
//!
//! ```text
//! h = x (+ residual)            rounded to the element type and written back to `residual`
//! out = h · rsqrt(mean(h²) + eps) · weight
//! ```
//! Grid: one block of [`row::threads`] threads per token, the row in registers ([`row`]).
//! Bytes per token: 2·width read and written (4·width each with the residual). Bound by memory. As in
//! transformers, h is normalised after it was rounded, in f32, and the weight multiplies before the one
//! rounding of the output.
use super::row::{self, MAX_THREADS, STEPS};
use crate::prim::{
    math::{fma, rsqrt},
    shared,
    thread::{block_idx_x, grid_dependency_launch, grid_dependency_wait},
};
use crate::tile::{
    Bf16, Elem, F16,
    reduce::{SCRATCH_BYTES, block_sum},
};

/// Bytes of shared memory.
pub const SHARED_BYTES: u32 = SCRATCH_BYTES;

entry! {
    /// Arguments of the RMSNorm kernels: `x`, `residual`, `out`: [tokens, width], rows `*_stride` elements
    /// apart; `weight`: [width].
    pub struct RmsNorm {
        x: *const u16, residual: *mut u16, weight: *const u16, out: *mut u16,
        width: u32, x_stride: u32, residual_stride: u32, out_stride: u32, eps: f32,
    }
    fn rms_norm_bf16(threads: MAX_THREADS, min_blocks: 1) = rms_norm::<Bf16, false>;
    fn rms_norm_f16(threads: MAX_THREADS, min_blocks: 1) = rms_norm::<F16, false>;
    fn add_rms_norm_bf16(threads: MAX_THREADS, min_blocks: 1) = rms_norm::<Bf16, true>;
    fn add_rms_norm_f16(threads: MAX_THREADS, min_blocks: 1) = rms_norm::<F16, true>;
}

#[inline(always)]
unsafe fn rms_norm<E: Elem, const ADD: bool>(
    x: *const u16,
    residual: *mut u16,
    weight: *const u16,
    out: *mut u16,
    width: u32,
    x_stride: u32,
    residual_stride: u32,
    out_stride: u32,
    eps: f32,
) {
    let token = block_idx_x() as usize;
    let (x, residual) = (x.add(token * x_stride as usize), residual.add(token * residual_stride as usize));
    // Nothing in the stream writes the weights, so they need not wait.
    let weight = row::load(weight, width);
    // A product behind this has weights to fetch meanwhile.
    grid_dependency_launch();
    grid_dependency_wait();
    let mut h = row::load_sum::<E, ADD>(x, residual, width);

    let mut squares = 0.0;
    for step in 0..STEPS {
        for i in 0..8 {
            squares = fma(h[step][i], h[step][i], squares);
        }
    }
    let scale = rsqrt(block_sum(squares, shared::base()) / width as f32 + eps);
    let weight = row::unpack::<E>(weight);
    for step in 0..STEPS {
        for i in 0..8 {
            h[step][i] = h[step][i] * scale * weight[step][i];
        }
    }
    row::store::<E>(h, out.add(token * out_stride as usize), width);
}
