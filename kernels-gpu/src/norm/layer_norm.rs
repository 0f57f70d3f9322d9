//! LayerNorm with bias, alone or fused with the residual add before it.
//!
//! ```text
//! h = x (+ residual)            rounded to the element type and written back to `residual`
//! out = (h − mean(h)) · rsqrt(var(h) + eps) · weight + bias        var: mean((h − mean)²)
//! ```
//! Grid: one block of [`row::threads`] threads per token, the row in registers ([`row`]).
//! Bytes per token: 2·width read and written (4·width each with the residual). Bound by memory.
//!
//! The variance takes a second pass over the registers, after the mean is known: mean(h²) − mean(h)²
//! cancels where |mean| ≫ std (at mean 1000, std 0.1 in f32 nothing is left), and the second block
//! reduction costs under a microsecond.
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

/// Bytes of shared memory: one scratch area for each of the two sums, so that no barrier is needed between.
pub const SHARED_BYTES: u32 = 2 * SCRATCH_BYTES;

entry! {
    /// Arguments of the LayerNorm kernels: `x`, `residual`, `out`: [tokens, width], rows `*_stride` elements
    /// apart; `weight`, `bias`: [width].
    pub struct LayerNorm {
        x: *const u16, residual: *mut u16, weight: *const u16, bias: *const u16, out: *mut u16,
        width: u32, x_stride: u32, residual_stride: u32, out_stride: u32, eps: f32,
    }
    fn layer_norm_bf16(threads: MAX_THREADS, min_blocks: 1) = layer_norm::<Bf16, false>;
    fn layer_norm_f16(threads: MAX_THREADS, min_blocks: 1) = layer_norm::<F16, false>;
    fn add_layer_norm_bf16(threads: MAX_THREADS, min_blocks: 1) = layer_norm::<Bf16, true>;
    fn add_layer_norm_f16(threads: MAX_THREADS, min_blocks: 1) = layer_norm::<F16, true>;
}

#[inline(always)]
unsafe fn layer_norm<E: Elem, const ADD: bool>(
    x: *const u16,
    residual: *mut u16,
    weight: *const u16,
    bias: *const u16,
    out: *mut u16,
    width: u32,
    x_stride: u32,
    residual_stride: u32,
    out_stride: u32,
    eps: f32,
) {
    let token = block_idx_x() as usize;
    let (x, residual) = (x.add(token * x_stride as usize), residual.add(token * residual_stride as usize));
    // A product behind this has weights to fetch meanwhile.
    grid_dependency_launch();
    grid_dependency_wait();
    let mut h = row::load_sum::<E, ADD>(x, residual, width);

    let mut sum = 0.0;
    for step in 0..STEPS {
        for i in 0..8 {
            sum += h[step][i];
        }
    }
    let mean = block_sum(sum, shared::base()) / width as f32;
    let mut squares = 0.0;
    for step in 0..STEPS {
        // The zeros beyond the row are no elements of it.
        let inside = row::column(step) < width;
        for i in 0..8 {
            h[step][i] = if inside { h[step][i] - mean } else { 0.0 };
            squares = fma(h[step][i], h[step][i], squares);
        }
    }
    let scale = rsqrt(block_sum(squares, shared::base() + SCRATCH_BYTES) / width as f32 + eps);
    let (weight, bias) = (row::unpack::<E>(row::load(weight, width)), row::unpack::<E>(row::load(bias, width)));
    for step in 0..STEPS {
        for i in 0..8 {
            h[step][i] = fma(h[step][i] * scale, weight[step][i], bias[step][i]);
        }
    }
    row::store::<E>(h, out.add(token * out_stride as usize), width);
}
